"""Print the compiled modules that have a stub beside them: what `mypy.stubtest` is to compare."""

from __future__ import annotations

from pathlib import Path

EXT = Path(__file__).resolve().parents[2] / "nokv" / "_ext"

print(*sorted(f"nokv._ext.{path.stem}" for path in EXT.glob("*.pyi") if path.with_suffix(".pyx").exists()))
