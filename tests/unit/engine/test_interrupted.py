"""A signal handler runs on the thread that it interrupts, which may be in the middle of the same database."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv.env.files import OsFiles, OsWritableFile
from nokv.errors import UsageError
from nokv.testing.executor import StepExecutor

ROWS = {b"k%03d" % i: b"v%d" % i for i in range(100)}


class Interrupting(OsFiles):
    """A signal arrives whenever a directory is synced: in the middle of a flush, a compaction, a checkpoint."""

    armed = False

    def sync_dir(self, path: str) -> None:
        if self.armed:
            signal.raise_signal(signal.SIGUSR1)
        super().sync_dir(path)


class InterruptingTables(Interrupting):
    """... whenever a table is begun."""

    def sync_dir(self, path: str) -> None:
        OsFiles.sync_dir(self, path)

    def create(self, path: str) -> OsWritableFile:
        if self.armed:
            signal.raise_signal(signal.SIGUSR1)
        return super().create(path)


class Handler:
    def __init__(self) -> None:
        self.action: Callable[[], Any] = lambda: None
        self.outcomes: list[object] = []
        self.running = False

    def __call__(self, *_: object) -> None:
        if self.running:
            return  # one at a time
        self.running = True
        try:
            self.outcomes.append(self.action() or "done")
        except Exception as error:
            self.outcomes.append(error)
        finally:
            self.running = False


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    before = signal.signal(signal.SIGUSR1, handler)
    yield handler
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def files() -> Interrupting:
    return Interrupting()


def open_db(path: Path, files: Interrupting) -> nokv.DB:
    db = nokv.open(path, files=files, executor=StepExecutor(), write_buffer_bytes=1 << 16)  # nothing but this thread
    for key, value in ROWS.items():
        db.put(key, value)
    return db


OUTER: dict[str, Callable[[nokv.DB, Path], Any]] = {
    "flush": lambda db, path: db.flush(),
    "compact": lambda db, path: db.compact(),
    "compact a range": lambda db, path: db.compact(b"k", b"l"),
    "checkpoint": lambda db, path: db.checkpoint(path / "outer"),
    "ingest": lambda db, path: db.ingest_sst([]),
}
INNER: dict[str, Callable[[nokv.DB, Path], Any]] = {
    "flush": lambda db, path: db.flush(),
    "compact": lambda db, path: db.compact(),
    "checkpoint": lambda db, path: db.checkpoint(path / "inner"),
    "link_tables": lambda db, path: db.link_tables(str(path / "linked")),
    "ingest": lambda db, path: db.ingest_sst([]),
    "family": lambda db, path: db.family("inner", create=True),
    "close": lambda db, path: db.close(),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_a_handler_is_refused_what_it_interrupts(
    tmp_path: Path, handler: Handler, files: Interrupting, outer: str, inner: str
) -> None:
    db = open_db(tmp_path / "db", files)
    handler.action = lambda: INNER[inner](db, tmp_path)
    files.armed = True
    OUTER[outer](db, tmp_path)
    files.armed = False
    assert handler.outcomes, f"nothing interrupted {outer}"
    for outcome in handler.outcomes:
        assert isinstance(outcome, UsageError) and "signal handler" in outcome.hint, outcome
    assert dict(db.scan()) == ROWS
    INNER[inner](db, tmp_path)  # afterwards it works
    db.close()
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == ROWS


@pytest.mark.parametrize("inner", INNER)
def test_a_compaction_is_interrupted_by_what_another_thread_may_do_meanwhile(
    tmp_path: Path, handler: Handler, inner: str
) -> None:
    files = InterruptingTables()
    db = open_db(tmp_path / "db", files)
    db.flush()
    db.put(b"k000", ROWS[b"k000"])
    db.flush()
    handler.action = lambda: INNER[inner](db, tmp_path)
    files.armed = True
    db.compact()
    files.armed = False
    assert handler.outcomes, "nothing interrupted the compaction"
    for outcome in handler.outcomes:
        if inner in ("compact", "checkpoint", "link_tables", "close"):
            assert isinstance(outcome, UsageError) and "signal handler" in outcome.hint, outcome
        else:
            assert not isinstance(outcome, Exception), outcome
    assert dict(db.scan()) == ROWS
    db.close()
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == ROWS


def test_a_handler_may_write_while_there_is_room(tmp_path: Path, handler: Handler, files: Interrupting) -> None:
    db = open_db(tmp_path / "db", files)
    handler.action = lambda: db.put(b"from the handler", b"1")
    files.armed = True
    db.flush()
    files.armed = False
    assert set(handler.outcomes) == {"done"}
    db.close()
    with nokv.open(tmp_path / "db") as again:
        assert dict(again.scan()) == {**ROWS, b"from the handler": b"1"}


def test_a_handler_that_would_wait_for_the_flush_it_interrupts_is_refused(
    tmp_path: Path, handler: Handler, files: Interrupting
) -> None:
    db = open_db(tmp_path / "db", files)
    written: dict[bytes, bytes] = {}

    def fill() -> None:
        for n in range(1000):
            key = b"full%04d" % n
            db.put(key, b"x" * 1000)
            written[key] = b"x" * 1000

    handler.action = fill
    files.armed = True
    db.flush()
    files.armed = False
    assert isinstance(handler.outcomes[0], UsageError) and "signal handler" in handler.outcomes[0].hint
    assert dict(db.scan()) == {**ROWS, **written}
    db.close()


@pytest.mark.parametrize("inner", ["put", "write_if", "put_many", "ingest"])
def test_a_handler_writes_nothing_between_the_check_and_the_write(
    tmp_path: Path, handler: Handler, files: Interrupting, inner: str
) -> None:
    """Neither by a put, which once waited for ever, nor by another conditional write, which came between them."""
    db = open_db(tmp_path / "db", files)

    def nested() -> None:
        batch = nokv.WriteBatch()
        batch.put(b"k000", b"nested")
        {
            "put": lambda: db.put(b"k000", b"nested"),
            "put_many": lambda: db.put_many([(b"k000", b"nested")]),
            "write_if": lambda: db.write_if(batch, lambda: None),
            "ingest": lambda: db.ingest_sst([]),
        }[inner]()

    handler.action = nested
    outer = nokv.WriteBatch()
    outer.put(b"k001", b"outer")
    db.write_if(outer, lambda: signal.raise_signal(signal.SIGUSR1))
    assert len(handler.outcomes) == 1
    assert isinstance(handler.outcomes[0], UsageError) and "signal handler" in handler.outcomes[0].hint
    assert dict(db.scan()) == {**ROWS, b"k001": b"outer"}
    db.put(b"k002", b"after")
    db.close()


def test_a_reader_is_not_refreshed_inside_a_refresh(tmp_path: Path, handler: Handler) -> None:
    class Listing(OsFiles):
        def listdir(self, path: str) -> list[str]:
            signal.raise_signal(signal.SIGUSR1)
            return super().listdir(path)

    with (
        open_db(tmp_path / "db", Interrupting()) as db,
        nokv.open(tmp_path / "db", read_only=True, files=Listing()) as reader,
    ):
        db.put(b"later", b"1")
        db.flush()
        handler.outcomes.clear()
        handler.action = lambda: reader.snapshot().close() or reader.refresh()
        assert reader.refresh()
        handler.action = lambda: None
        assert handler.outcomes, "nothing interrupted the refresh"
        assert isinstance(handler.outcomes[0], UsageError)
        assert reader.get(b"later") == b"1"
