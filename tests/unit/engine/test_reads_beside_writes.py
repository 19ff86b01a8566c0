"""A read is of one moment, whatever runs between its beginning and its end: the caller's own code (an iterable of keys,
a clock, a bound that compares itself) may write, and so may any thread that gets its turn there. ENG-08, ENG-17"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles


class BusyClock(FakeClock):
    """Whoever asks for the time meets a writer."""

    write: Any = None

    def time_ms(self) -> int:
        write, self.write = self.write, None
        if write is not None:
            write()
        return super().time_ms()


@pytest.fixture
def db() -> Iterator[nokv.DB]:
    with nokv.open("db", files=CrashFiles(), clock=BusyClock(), executor=StepExecutor()) as db:
        yield db


def test_keys_that_are_made_while_they_are_read(db: nokv.DB) -> None:
    db.put(b"k", b"old")

    def keys() -> Iterator[bytes]:
        db.put(b"k", b"new")
        yield b"k"

    assert db.get_many(keys()) == [b"old"]
    assert db.get_many([b"k"]) == [b"new"]


def test_a_scan_whose_bounds_write(db: nokv.DB) -> None:
    class Limit(int):
        def __lt__(self, other: object) -> bool:
            db.put(b"k", b"new")
            return False

    db.put(b"k", b"old")
    assert list(db.scan(limit=Limit(5))) == [(b"k", b"old")]


def test_a_key_that_writes_when_it_becomes_bytes(db: nokv.DB) -> None:
    class Key(bytes):
        def __bytes__(self) -> bytes:
            db.put(b"k", b"new")
            return b"k"

    db.put(b"k", b"old")
    assert db.get(Key(b"k")) in (b"old", b"new")
    db.put(b"k", b"old")
    assert db.get_many([Key(b"k")]) == [b"old"]


@pytest.mark.parametrize("length", [3, 8, 40])
def test_the_clock_is_asked_while_a_value_is_overwritten(db: nokv.DB, length: int) -> None:
    """The new value takes the place of the old one in memory: what a read found there must stay until it is read."""
    db.put(b"k", b"o" * 40, ttl=1000)
    clock: Any = db._clock
    clock.write = lambda: db.put(b"k", b"n" * length)
    assert db.get(b"k") == b"o" * 40
    assert db.get(b"k") == b"n" * length


def test_a_readers_snapshot_keeps_its_range_deletes(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path, durability="process") as db:
        db.put(b"k", b"v")
        db.delete_range(b"a", b"z")
        with nokv.open(path, read_only=True) as reader, reader.snapshot() as snapshot:
            assert snapshot.get(b"k") is None
            for n in range(5):
                db.delete_range(b"a", b"z")
                assert reader.refresh()
                assert snapshot.get(b"k") is None, n
                assert list(snapshot.scan()) == [], n
                assert list(reader.scan()) == [], n


def test_the_list_of_value_files_is_replaced_and_never_changed(tmp_path: Path) -> None:
    """A compaction step walks it while a flush adds to it."""
    with nokv.open(str(tmp_path / "db"), value_file_threshold=100) as db:
        for key in (b"a", b"b"):
            db.put(key, b"v" * 200)
            db.flush()
        walk = iter(db._versions.values.metas.items())
        first = next(walk)
        db.put(b"c", b"v" * 200)
        db.flush()
        assert len([first, *walk]) == 2
        assert len(db._versions.values.metas) == 3


@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("background", [False, True])
def test_a_snapshot_that_is_opened_while_a_compaction_begins(turn: int, background: bool) -> None:
    """Its sequence is not among those that the compaction asked for: what is flushed behind it may not be merged."""
    executor = StepExecutor()
    with nokv.open("db", files=CrashFiles(), clock=BusyClock(), executor=executor, l0_files_trigger=2) as db:
        db.put(b"t", b"expires", ttl=1000)
        for _ in range(3):
            db.put(b"k", b"old")
            db.flush()
        clock: Any = db._clock
        held: list[nokv.Snapshot] = []

        def write(left: int) -> None:
            if left:
                clock.write = lambda: write(left - 1)
                return
            held.append(db.snapshot())
            db.put(b"k", b"new")
            db.flush()

        clock.write = lambda: write(turn)
        executor.run_all() if background else db.compact()
        clock.write = None
        assert all(snapshot.get(b"k") == b"old" for snapshot in held)
        assert all(list(snapshot.scan(b"k", b"l")) == [(b"k", b"old")] for snapshot in held)
        assert held or turn
