"""The system has no more threads for a while: what needed one raises, and is done once there are some again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv
from nokv.env.executor import ThreadExecutor

WAIT_S = 60.0
NO_SUCH_STACK = 1 << 60  # bytes: more than a process has addresses for

pytestmark = pytest.mark.timeout(120)


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    before = threading.stack_size(NO_SUCH_STACK)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_an_executor_starts_its_thread_as_soon_as_it_can() -> None:
    executor = ThreadExecutor("step")
    ran: list[str] = []
    with no_threads(), pytest.raises(RuntimeError, match="thread"):
        executor.submit(lambda: ran.append("refused"))
    executor.drain()  # it does not wait for what was refused
    executor.submit(lambda: ran.append("done"))
    executor.drain()
    assert ran == ["done"]
    executor.close()


def test_an_executor_without_a_thread_closes() -> None:
    executor = ThreadExecutor("step")
    with no_threads(), pytest.raises(RuntimeError, match="thread"):
        executor.submit(lambda: None)
    executor.close()


def test_an_interval_syncs_once_there_is_a_thread(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db", durability="interval", sync_interval_ms=10) as db:
        with no_threads(), pytest.raises(RuntimeError, match="thread"):
            db.put(b"first", b"1")
        assert db.get(b"first") == b"1"
        synced = threading.Event()
        step = db._interval_step

        def watched() -> None:
            step()
            synced.set()

        db._interval_step = watched  # type: ignore[method-assign]
        db.put(b"second", b"2")
        assert synced.wait(WAIT_S)
        assert db._wal.stats()["unsynced_records"] == 0
        db._interval_step = step  # type: ignore[method-assign]
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == {b"first": b"1", b"second": b"2"}


@pytest.mark.parametrize("durability", ["interval", "process", "sync"])
def test_a_database_that_found_no_thread_closes_and_has_its_data(tmp_path: Path, durability: str) -> None:
    with nokv.open(tmp_path / "db", durability=durability) as db:
        with no_threads(), contextlib.suppress(RuntimeError):
            db.put(b"key", b"value")
        assert db.get(b"key") == b"value"
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == {b"key": b"value"}


def test_flushes_go_on_once_there_is_a_thread(tmp_path: Path) -> None:
    rows: dict[bytes, bytes] = {}
    with nokv.open(tmp_path / "db", durability="process", write_buffer_bytes=1 << 18) as db:
        refused = 0
        with no_threads():
            for n in range(6000):
                key = b"%08d" % n
                try:
                    db.put(key, b"v" * 100)
                except RuntimeError:
                    refused += 1
                rows[key] = b"v" * 100
        assert refused and db._flushes == 0
        for key, value in rows.items():
            db.put(key, value)
        db.flush()
        db.compact()
        assert db._flushes >= 3
        assert dict(db.scan()) == rows
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == rows
