"""nokv/pb is what scripts/dev/gen_proto.py makes of proto/ now."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = "1.75.1"


def test_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    if metadata.version("grpcio-tools") != GENERATOR:
        pytest.skip(f"needs grpcio-tools {GENERATOR}")
    subprocess.run([sys.executable, "scripts/dev/gen_proto.py", "--out", str(tmp_path)], cwd=ROOT, check=True)
    stale = []
    for made in sorted((tmp_path / "nokv" / "pb").iterdir()):
        kept = ROOT / "nokv" / "pb" / made.name
        if made.name == "meta_pb2_grpc.py":  # meta.proto has no service
            continue
        if not kept.exists() or kept.read_bytes() != made.read_bytes():
            stale.append(made.name)
    assert not stale, f"run python scripts/dev/gen_proto.py: {stale}"


def test_every_proto_has_its_modules() -> None:
    for proto in (ROOT / "proto" / "nokv" / "pb").glob("*.proto"):
        assert (ROOT / "nokv" / "pb" / f"{proto.stem}_pb2.py").exists(), proto.name
        assert (ROOT / "nokv" / "pb" / f"{proto.stem}_pb2.pyi").exists(), proto.name
