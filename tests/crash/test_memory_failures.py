"""R6o: every allocation fails in its turn, ours and those of the interpreter on our behalf; see memory_failures.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counts import count
from tests.crash.memory_failures import OPERATIONS

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc").split()[-1]) or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None or "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("needs Linux, a C compiler, and no other allocator in the way")
    out = tmp_path_factory.mktemp("shim") / "failing_malloc.so"
    source = HERE / "failing_malloc.c"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(out), str(source), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the shim needs glibc: {done.stderr[-200:]}")
    return out


def run(operation: str, kind: str, first: int, last: int, step: int, extra: dict[str, str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **extra}
    done = subprocess.run(
        [sys.executable, str(HERE / "memory_failures.py"), operation, kind, *map(str, (first, last, step))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{operation}, {kind}: {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("operation", OPERATIONS)
def test_our_own_allocations(shim: Path, operation: str) -> None:
    out = run(operation, "native", 1, 5000, 1, {"LD_PRELOAD": str(shim), "PYTHONMALLOC": "malloc"})
    assert "worked" in out, f"not all allocations of {operation} had their turn: {out}"
    if operation in ("put_many", "scan", "iterator", "compact", "open"):
        assert "MemoryError" in out


@pytest.mark.counted
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_interpreters_allocations(operation: str) -> None:
    pytest.importorskip("_testcapi", reason="this Python was built without its test module")
    # flush: every one, since a failure inside threading.Event once left its lock taken for ever
    run(operation, "python", 1, 200, 1 if operation == "flush" else count(9, 1, 1), {})
    if deeper := count(0, 0, 5000):
        run(operation, "python", 201, deeper, 11, {})
