"""Who needs the GIL gets it from a busy writer: no step of a background thread waits for CPython's switch interval."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv
from nokv._ext import gilturn
from nokv.env.executor import ThreadExecutor
from nokv.env.files import OsFiles

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def balanced() -> Iterator[None]:
    assert gilturn.needed() == 0
    yield
    assert gilturn.needed() == 0


@pytest.fixture
def no_switching() -> Iterator[None]:
    """CPython itself takes the GIL from nobody."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def executor() -> Iterator[ThreadExecutor]:
    executor = ThreadExecutor("step")
    yield executor
    executor.close()


def test_a_step_runs_beside_a_writer_that_never_lets_go(
    tmp_path: Path, no_switching: None, executor: ThreadExecutor
) -> None:
    turns: list[int] = []

    def step() -> None:
        for n in range(20):
            os.stat(tmp_path)  # lets go of the GIL
            turns.append(n)

    with nokv.open(f"{tmp_path}/db", durability="process") as db:
        executor.submit(step)
        puts = 0
        while len(turns) < 20:
            db.put(b"key", b"value")
            puts += 1
            assert puts < 100_000_000
        assert puts >= 1
    executor.drain()


def test_flushes_go_on_beside_a_writer_that_never_lets_go(tmp_path: Path, no_switching: None) -> None:
    with nokv.open(f"{tmp_path}/db", write_buffer_bytes=1 << 20, compression="zstd") as db:
        n = 0
        while db._flushes < 3 and n < 100_000_000:
            db.put(b"%016d" % (n * 7919 % 1_000_003), b"v" * 100)
            n += 1
        assert db._flushes >= 3
        assert db.stats()["write"]["waits"] <= 3
    assert gilturn.needed() == 0


@contextlib.contextmanager
def waiting_step(executor: ThreadExecutor) -> Iterator[None]:
    """Meanwhile a step needs the GIL, and waits for something else."""
    gate, entered = threading.Event(), threading.Event()

    def step() -> None:
        entered.set()
        assert gate.wait(WAIT_S)

    executor.submit(step)
    assert entered.wait(WAIT_S)
    try:
        yield
    finally:
        gate.set()
        executor.drain()


def test_a_step_that_waits_for_something_else_does_not_hold_the_writer_up(
    tmp_path: Path, executor: ThreadExecutor
) -> None:
    with nokv.open(f"{tmp_path}/db", durability="process") as db, waiting_step(executor):
        assert gilturn.needed() >= 1
        began = time.thread_time()
        for n in range(20_000):
            db.put(b"%d" % n, b"value")
        assert time.thread_time() - began < 2  # 4 s would be spent if each of them waited for the step
        assert gilturn.needed() >= 1


def test_a_writer_that_was_kept_waiting_goes_on_resting(tmp_path: Path, executor: ThreadExecutor) -> None:
    """Beside a step that stays long, each slice of a memtable would else begin with another wait."""
    with nokv.open(f"{tmp_path}/db", durability="process") as db, waiting_step(executor):
        spent = 0
        for n in range(2_000):
            gilturn.hold_on()
            until = time.monotonic_ns() + 60_000
            while time.monotonic_ns() < until:
                pass
            began = time.thread_time_ns()
            db.put(b"%d" % n, b"value")
            spent += time.thread_time_ns() - began
    assert spent < 150_000_000  # 400 ms, did each of them wait for the step


def test_a_step_that_raises_has_ended(executor: ThreadExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def step() -> None:
        raise ValueError("a bug")

    for _ in range(3):
        executor.submit(step)
    executor.drain()
    executor.close()
    assert len(seen) == 3


def test_an_end_without_a_beginning_changes_nothing() -> None:
    gilturn.end()
    assert gilturn.needed() == 0


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_all_kinds_of_work_leave_nothing_behind(tmp_path: Path, compression: str) -> None:
    with nokv.open(
        f"{tmp_path}/db",
        write_buffer_bytes=1 << 20,
        compression=compression,
        upper_compression=compression,
        value_file_threshold=2000,
    ) as db:
        for n in range(20_000):
            db.put(
                b"%016d" % (n * 7919 % 20_000),
                os.urandom(3000) if n % 50 == 0 else b"v" * 100,
                ttl=10**9 if n % 3 else None,
            )
        db.delete_range(b"%016d" % 5, b"%016d" % 500)
        db.compact()
        db.checkpoint(f"{tmp_path}/copy")
        db._flush_executor.drain()
        db._compaction_executor.drain()
        db._log_executor.drain()
    assert gilturn.needed() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_in_the_child_of_a_fork_no_step_runs(tmp_path: Path) -> None:
    program = """
import os, sys, threading
from nokv._ext import gilturn
gilturn.expect()
gilturn.begin(True)
child = os.fork()
if child == 0:
    before = gilturn.needed()
    gilturn.end()       # of the parent's step
    os._exit(0 if before == gilturn.needed() == 0 else 1)
gilturn.end()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or gilturn.needed())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=WAIT_S, check=False).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these are system calls of Linux")
def test_a_thread_may_run_where_it_could_before(tmp_path: Path, executor: ThreadExecutor) -> None:
    """Removing a file keeps a step off the writer's processor, and nobody else off any."""
    allowed = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    path = f"{tmp_path}/file"

    def step() -> None:
        files = OsFiles()
        for _ in range(3):
            Path(path).write_bytes(b"x")
            files.remove(path)
            seen.append(os.sched_getaffinity(0))
        with pytest.raises(FileNotFoundError):
            files.remove(path)
        seen.append(os.sched_getaffinity(0))

    with nokv.open(f"{tmp_path}/db", write_buffer_bytes=1 << 20) as db:
        for n in range(30_000):
            db.put(b"%016d" % n, b"v" * 100)
        executor.submit(step)
        executor.drain()
    step()
    assert len(seen) == 8 and all(found == allowed for found in seen)
