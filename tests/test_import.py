"""What starting costs: modules that must not be loaded, counted instead of timed (BLD-02)."""

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


HEAVY = {
    "asyncio", "concurrent", "cryptography", "google", "grpc", "http", "msgspec", "multiprocessing",
    "prometheus_client", "prompt_toolkit", "pygments", "rich", "socket", "ssl", "structlog", "subprocess", "zstandard",
}  # fmt: skip
CLUSTER = {"client", "coordinator", "metaroot", "multiraft", "mvcc", "pb", "raft", "raftstore", "rpc", "testing"}


def _loaded(*arguments: str, environment: str = "") -> tuple[set[str], set[str]]:
    """(top-level modules, folders of nokv) after one command."""
    names = _run(
        f"import os, sys, io; {environment}\n"
        "from nokv.cli.main import run\n"
        "out, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO())\n"
        "try:\n"
        f"    code = run({list(arguments)!r})\n"
        "except SystemExit as stop: code = stop.code\n"  # completion ends so
        "sys.stdout = out; assert code == 0, code; print(*sys.modules)"
    ).split()
    return {n.split(".")[0] for n in names}, {n.split(".")[1] for n in names if n.startswith("nokv.")}


def test_import_loads_the_errors_and_no_more() -> None:
    assert _run("import sys, nokv; print(*sorted(m for m in sys.modules if m.startswith('nokv.')))") == "nokv.errors"
    complete = "set(nokv.__all__) <= set(dir(nokv)) and all(hasattr(nokv, name) for name in nokv.__all__)"
    assert _run(f"import nokv; print({complete})") == "True"


def test_version_help_and_completion_load_no_engine() -> None:
    complete = "os.environ.update(_NOKV_COMPLETE='zsh_complete', COMP_WORDS='nokv clu', COMP_CWORD='1')"
    for arguments, environment in ((["--version"], ""), (["--help"], ""), ([], complete)):
        modules, folders = _loaded(*arguments, environment=environment)
        assert not modules & HEAVY, (arguments, modules & HEAVY)
        assert folders == {"errors", "cli"}, arguments


def test_get_on_a_directory_loads_the_engine_alone(tmp_path: Path) -> None:
    _run(f"import nokv; db = nokv.open({str(tmp_path / 'db')!r}); db.put(b'k', b'v'); db.close()")
    modules, folders = _loaded("get", "k", "--workdir", str(tmp_path / "db"))
    assert not modules & HEAVY, modules & HEAVY
    assert not folders & CLUSTER, folders & CLUSTER


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
