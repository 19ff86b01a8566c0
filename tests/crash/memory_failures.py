"""One operation under failing allocations (RELIABILITY R6o). Run as a program by test_memory_failures.py:

    memory_failures.py OPERATION native|python FIRST LAST STEP

For n from FIRST to LAST the n-th allocation inside the operation fails: of our C code (native: the preloaded
failing_malloc), or of the interpreter on our behalf (python). Allowed: success, MemoryError, or a typed error; then the
database answers as before or is read-only, and another open finds every acknowledged write.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import linecache
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import nokv
from nokv.errors import NoKVError
from nokv.testing.executor import StepExecutor

BASE = {b"k%04d" % i: b"v%d" % i * 20 for i in range(400)}
OPTIONS: dict[str, Any] = {"write_buffer_bytes": 1 << 16, "wal_segment_bytes": 1 << 16, "block_bytes": 512}
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no disk to wait for
BIG = b"B" * 200_000


def open_db(path: str) -> nokv.DB:
    return nokv.open(path, executor=StepExecutor(inline=True), durability="process", **OPTIONS)


def transact(db: nokv.DB) -> None:
    with db.transaction() as txn:
        txn.get(b"k0001")
        txn.put(b"new", b"1")


def walk(db: nokv.DB) -> None:
    with contextlib.closing(db.iterator()) as it:
        it.seek(b"k0100")
        it.next()
        it.prev()


def snapshot(db: nokv.DB) -> None:
    with db.snapshot() as view:
        view.get(b"k0001")
        list(view.scan(limit=3))


def ranges(db: nokv.DB) -> None:
    """Range deletes in every place: memtable, table, scan, compaction."""
    with db.write_batch() as batch:
        batch.put(b"new", b"1")
        batch.delete_range(b"new", b"newer")
        batch.delete_range(b"new", b"newest")
    db.delete_range(b"newt", None)
    list(db.scan())
    db.flush()
    db.get(b"new")
    db.compact(b"k", None)


OPERATIONS: dict[str, Callable[[nokv.DB], Any]] = {
    "put": lambda db: db.put(b"new", b"1"),
    "put_big": lambda db: db.put(b"new", BIG),
    "put_ttl": lambda db: db.put(b"new", b"1", ttl=1 << 40),
    "delete_range": lambda db: [db.delete_range(b"new%d" % i, b"newer") for i in range(5)],
    "ranges": ranges,
    "put_many": lambda db: db.put_many([(b"new%d" % i, b"1" * 100) for i in range(500)]),
    "delete": lambda db: db.delete(b"k0003"),
    "get": lambda db: db.get(b"k0001"),
    "get_many": lambda db: db.get_many([b"k0001", b"none", b"k0399"]),
    "scan": lambda db: list(db.scan(b"k0000", b"k0300")),
    "reverse": lambda db: list(db.scan(reverse=True, limit=50)),
    "iterator": walk,
    "snapshot": snapshot,
    "transaction": transact,
    "flush": lambda db: (db.put(b"new", b"1"), db.flush()),
    "compact": lambda db: (db.put(b"new", b"1"), db.compact()),
    "family": lambda db: db.family("other", create=True),
    "verify": lambda db: db.verify(),
    "open": lambda db: None,  # the open itself, see below
}


class Native:
    def __init__(self) -> None:
        self.shim = ctypes.CDLL(None)
        self.shim.nokv_malloc_calls.restype = ctypes.c_long
        self.shim.nokv_fail_malloc.argtypes = [ctypes.c_long]

    @contextlib.contextmanager
    def failing(self, n: int) -> Iterator[None]:
        self.shim.nokv_fail_malloc(n)
        try:
            yield
        finally:
            self.shim.nokv_fail_malloc(0)


class Interpreter:
    def __init__(self) -> None:
        import _testcapi  # type: ignore[import-not-found, unused-ignore]

        self.hooks = _testcapi

    @contextlib.contextmanager
    def failing(self, n: int) -> Iterator[None]:
        self.hooks.set_nomemory(n - 1, n)  # it counts from zero
        try:
            yield
        except BaseException as error:
            self.hooks.remove_mem_hooks()
            for value in forgotten_arguments(error):
                no_leak(value)
            raise
        finally:
            self.hooks.remove_mem_hooks()


def forgotten_arguments(error: BaseException | None) -> list[Any]:
    """What CPython 3.11 and 3.12 never release once memory has run out: the arguments of a function that keeps a
    variable for an inner one (a cell). Where the cell cannot be made, MAKE_CELL (Python/ceval.c) jumps to
    resume_with_error, which takes the stack pointer of a frame that runs already: it becomes -1, and _PyFrame_Clear
    then clears no locals. The function has not begun, so that the traceback ends in the line that calls it, as after no
    failure inside it. test_what_cpython_forgets shows it without us. Only text, bytes and numbers matter: other
    arguments are known to the garbage collector, where LeakSanitizer finds them."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return []
    values: list[Any] = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        code = None if trace is None else _called(trace)
        if trace is not None and code is not None and code.co_cellvars:
            values += [value for value in trace.tb_frame.f_locals.values() if type(value) in (str, bytes, int)]
        error = error.__context__
    return values


def _called(trace: TracebackType) -> CodeType | None:
    """The code of the Python function whose call the line stands at, if it is one."""
    frame: FrameType = trace.tb_frame
    line, _, column, _ = list(frame.f_code.co_positions())[trace.tb_lasti // 2]
    if line is None or column is None:
        return None
    source = linecache.getline(frame.f_code.co_filename, line).encode()[column:].decode()  # columns count bytes
    name = re.match(r"[\w.]+(?=\()", source)
    if name is None:
        return None
    first, *rest = name.group().split(".")
    value = frame.f_locals.get(first, frame.f_globals.get(first))
    for attribute in rest:
        value = getattr(value, attribute, None)
    if isinstance(value, type):
        value = getattr(value, "__init__", None)
    return getattr(value, "__code__", None)


def no_leak(value: Any) -> None:
    with contextlib.suppress(AttributeError):  # no sanitizer here
        ctypes.CDLL(None)["__lsan_ignore_object"](ctypes.c_void_p(id(value)))


def make(path: str) -> None:
    with open_db(path) as db:
        db.put_many(list(BASE.items())[:300])
        db.flush()
        for key, value in list(BASE.items())[300:]:
            db.put(key, value)


def check(db: nokv.DB, when: str) -> None:
    found = {key: value for key, value in db.scan() if not key.startswith(b"new")}
    missing = BASE.keys() - found.keys() - {b"k0003"}
    assert not missing and all(BASE[key] == value for key, value in found.items()), f"{when}: {len(missing)} missing"
    assert db.get_many([b"k0001", b"k0399"]) == [BASE[b"k0001"], BASE[b"k0399"]], when


def attempt(operation: str, failures: Native | Interpreter, n: int, path: str) -> str:
    make(path)
    outcome = "worked"
    act = OPERATIONS[operation]
    db = None if operation == "open" else open_db(path)
    gc.disable()
    try:
        with failures.failing(n):
            if db is None:
                open_db(path).close()
            else:
                act(db)
    except MemoryError:
        outcome = "MemoryError"
    except RuntimeError as error:
        # what threading.Lock() and open() say instead
        if str(error) not in ("can't allocate lock", "can't allocate read lock"):
            raise
        outcome = "MemoryError"
    except NoKVError as error:
        outcome = type(error).__name__
    gc.enable()
    gc.collect()
    if db is not None:
        check(db, "after the failure")
        try:
            db.put(b"new", b"2")
        except nokv.ReadOnly:
            outcome += ", read-only"
        else:
            assert db.get(b"new") == b"2"
            db.put_many([(b"newer%d" % i, b"3") for i in range(50)])
        with contextlib.suppress(nokv.ReadOnly):
            db.close()
    with open_db(path) as again:
        check(again, "after reopening")
        again.put(b"new", b"4")
    return outcome


def main(operation: str, kind: str, first: int, last: int, step: int) -> None:
    faulthandler.enable()
    failures = Native() if kind == "native" else Interpreter()
    outcomes: dict[str, int] = {}
    for n in range(first, last + 1, step):
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            try:
                outcome = attempt(operation, failures, n, str(Path(folder) / "db"))
            except BaseException:
                print(f"{operation}: the failure of {kind} allocation {n}", file=sys.stderr)
                raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if isinstance(failures, Native) and failures.shim.nokv_malloc_calls() < n:
            break  # there are no more
    print(outcomes)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
