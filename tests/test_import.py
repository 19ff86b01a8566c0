"""What `import nokv` costs others: no grpc, no asyncio, no zstandard (BLD-02)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _run(code: str) -> str:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'shell'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    loaded = _run(
        "import sys; import nokv;"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'grpc', 'asyncio', 'zstandard', 'google', 'click'}))"
    )
    assert loaded == ""


def test_the_engine_works_without_grpc(tmp_path: Path) -> None:
    assert (
        _run(
            "import sys; sys.modules['grpc'] = None; sys.modules['google.protobuf'] = None\n"
            "import nokv\n"
            f"with nokv.open({str(tmp_path / 'db')!r}) as db:\n"
            "    db.put(b'k', b'v')\n"
            "    print(db.get(b'k').decode())"
        )
        == "v"
    )
