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


FORGETFUL = """
import gc, sys, _testcapi
sys.path.insert(0, sys.argv[1])
from memory_failures import forgotten_arguments

def cell(argument):
    kept = argument
    return lambda: kept

def plain(argument):
    return [argument]

def forgiven(function, argument):
    try:
        _testcapi.set_nomemory(0, 1)
        function(argument)
    except MemoryError as error:
        _testcapi.remove_mem_hooks()
        return any(value is argument for value in forgotten_arguments(error))
    finally:
        _testcapi.remove_mem_hooks()

for function in (cell, plain):
    argument = f"{len(sys.argv)} arguments"
    before = sys.getrefcount(argument)
    seen = forgiven(function, argument)
    gc.collect()  # the frames that were looked at
    print(function.__name__, seen, sys.getrefcount(argument) - before)
"""


@pytest.mark.skipif(sys.version_info[:2] not in ((3, 11), (3, 12)), reason="CPython 3.11 and 3.12 do this")
def test_what_cpython_forgets(tmp_path: Path) -> None:
    """Without us: a cell that cannot be made leaks the argument, and only this is forgiven. Once it no longer does,
    forgotten_arguments() can go."""
    pytest.importorskip("_testcapi", reason="this Python was built without its test module")
    script = tmp_path / "forgetful.py"  # a file: the columns of its lines are looked at
    script.write_text(FORGETFUL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONMALLOC": "malloc"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # it is one
    done = subprocess.run(
        [sys.executable, str(script), str(HERE)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "cell True 1\nplain False 0\n"
