"""Segments of the log that go before they were synced, under kills and power losses, one after the other.

A small engine: now and then it writes down, durably, how far all is flushed and which segment is the oldest needed, and
frees the log. After every crash the log has to open, to go on behind what was flushed, and to hold what was synced.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

import nokv
from nokv.engine.wal import Wal
from nokv.env.ports import Buffer, LogFile
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint, FaultFiles
from tests.counts import count

STATE = struct.Struct("<QQ")


class Engine:
    """Appends the numbers 1, 2, 3 ... `synced`: up to here they survive power loss."""

    def __init__(self, files: CrashFiles, dice: random.Random) -> None:
        self.files = files
        self.flushed, log_number = STATE.unpack(files.read_file("state")) if files.exists("state") else (0, 0)
        self.last = self.synced = self.flushed
        sync_found = dice.random() < 0.5
        self.wal = Wal(
            files,
            "wal",
            1024,
            ("engine",),
            recycle_syncs=dice.choice((0, 3, 1000)),
            sync_found=sync_found,
            first_needed=log_number,
        )
        for _, _, payload in self.wal.replay({16}):
            number = int(payload[:8])
            if number > self.flushed:
                assert number == self.last + 1, f"{number} follows {self.last}"
                self.last = number
        if sync_found:
            self.synced = self.last
        segments = self.wal.segments()
        assert not log_number or segments[0] <= log_number, f"segment {log_number} is missing: {segments}"
        needed = max(log_number, segments[0])
        if segments[0] < log_number:
            files.sync_file("state")
            files.sync_dir("")
        self.wal.retain("engine", max(n for n in segments if n <= needed))

    def step(self, dice: random.Random) -> None:
        what = dice.random()
        if what < 0.7:
            self.last += 1
            self.wal.append(16, b"%08d" % self.last + b"x" * dice.randrange(400))
        elif what < 0.8:
            before = self.last
            self.wal.sync()
            self.synced = before
        elif what < 0.9:
            self.wal.prepare()
        else:
            with_tables, needed = self.last, self.wal.active_segment
            for _ in range(dice.randrange(12)):  # written while the flush is at work
                self.last += 1
                self.wal.append(16, b"%08d" % self.last + b"y" * 100)
            file = self.files.create("new")
            file.write(STATE.pack(with_tables, needed))
            file.sync()
            file.close()
            self.files.rename("new", "state")
            self.files.sync_dir("")
            self.flushed = with_tables
            self.synced = max(self.synced, with_tables)
            self.wal.retain("engine", needed)


@pytest.mark.counted
@pytest.mark.timeout(3000)
def test_a_log_that_frees_what_was_not_synced_survives_any_crashes() -> None:
    freed = 0
    for seed in range(count(300, 5_000, 100_000)):
        dice = random.Random(seed)
        files = CrashFiles(seed=seed)
        for life in range(6):
            where = f"seed {seed}, life {life}"
            engine = None
            files.crash_at = dice.randrange(1, 250)
            try:
                engine = Engine(files, dice)
                while True:
                    engine.step(dice)
            except CrashPoint:
                mode = dice.choice(CRASH_MODES)
            except (nokv.NoKVError, AssertionError) as error:
                raise AssertionError(where) from error
            if engine is not None:
                freed += engine.wal.stats()["freed"]
                before, files = engine, files.crash_clone(mode, seed=dice.randrange(1 << 30))
                try:
                    after = Engine(files.crash_clone("process"), random.Random(0))
                except (nokv.NoKVError, AssertionError) as error:
                    raise AssertionError(f"{where}, {mode}") from error
                least = before.synced if mode != "process" else before.last - 1  # one may have been on its way
                assert least <= after.last <= before.last, f"{where}, {mode}: {least} {after.last} {before.last}"
            else:
                files = files.crash_clone(mode, seed=dice.randrange(1 << 30))
    assert freed > 1000


def contents(wal: Wal) -> list[bytes]:
    return [payload for _, _, payload in wal.replay({16})]


@pytest.mark.parametrize("mode", ["drop", "names", "random"])
@pytest.mark.parametrize("who", ["the same process", "the next process, at once", "the next process, later"])
def test_what_was_synced_behind_a_segment_that_went_unsynced_survives(who: str, mode: CrashMode) -> None:
    """Power loss must not give the name back, with nothing behind it: the log would end there."""
    files = CrashFiles()
    wal = Wal(files, "wal", 1024, ("engine",))
    for number in range(30):
        wal.append(16, b"%d" % number * 50)
    wal.retain("engine", wal.active_segment)
    assert wal.segments() == [wal.active_segment] == [int(name[:-4]) for name in files.listdir("wal")]
    if who != "the same process":
        files = files.crash_clone("process")
        wal = Wal(files, "wal", 1024, ("engine",), sync_found=who == "the next process, at once")
    wal.append(16, b"last")
    if who != "the next process, at once":
        wal.sync()
    shown = contents(wal)
    assert shown[-1] == b"last" and len(shown) > 1
    if who == "the next process, at once":
        shown.pop()
    for seed in range(20):
        found = contents(Wal(files.crash_clone(mode, seed=seed), "wal", 1024, ("engine",)))
        assert [payload for payload in found if payload in shown] == shown


class WatchedFiles(CrashFiles):
    """Calls `on_sync` in the middle of each sync of a segment."""

    on_sync: Callable[[], None] | None = None

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> LogFile:
        return WatchedLog(self, super().open_log(path, capacity, recycle=recycle))


class WatchedLog:
    def __init__(self, files: WatchedFiles, file: LogFile) -> None:
        self.files, self.file, self.closed = files, file, False
        self.capacity = file.capacity

    def write(self, offset: int, data: Buffer, /) -> None:
        self.file.write(offset, data)

    def sync(self, start: int = 0, end: int | None = None, /) -> None:
        assert not self.closed
        if self.files.on_sync is not None:
            self.files.on_sync()
        assert not self.closed
        self.file.sync(start, end)

    def close(self) -> None:
        self.closed = True
        self.file.close()


def test_a_segment_that_is_being_synced_stays() -> None:
    files = WatchedFiles()
    wal = Wal(files, "wal", 1024, ("engine",))
    for _ in range(30):
        wal.append(16, b"x" * 50)
    before = wal.segments()

    def pass_by() -> None:
        wal.retain("engine", wal.active_segment)
        assert wal.segments() == before

    files.on_sync = pass_by
    wal.sync()
    files.on_sync = None
    wal.retain("engine", wal.active_segment)
    assert wal.segments() == before[-1:]
    wal.append(16, b"on it goes")
    wal.sync()
    assert contents(Wal(files.crash_clone("drop"), "wal", 1024))[-1] == b"on it goes"


def test_a_segment_that_cannot_be_removed_is_synced_later() -> None:
    """Its name is there for good, so what is in it must be, too."""
    below = CrashFiles()
    files = FaultFiles(below)
    files.fail("remove", path=".wal")
    wal = Wal(files, "wal", 1024, ("engine",))
    for number in range(30):
        wal.append(16, b"%d" % number * 50)
    everything, segments = contents(wal), wal.segments()
    with pytest.raises(OSError):
        wal.retain("engine", wal.active_segment)
    assert wal.segments() == segments
    wal.sync()
    assert contents(Wal(below.crash_clone("drop"), "wal", 1024)) == everything


@pytest.mark.parametrize("mode", CRASH_MODES)
@pytest.mark.parametrize("durability", ["process", "sync"])
def test_a_log_that_ends_before_the_segment_that_the_manifest_names(durability: str, mode: CrashMode) -> None:
    """Found by reading: after power loss took that segment, and one open more, it was missing for ever."""

    def open_db(files: CrashFiles, durability: str) -> nokv.DB:
        options: dict[str, Any] = {"wal_segment_bytes": 1 << 12, "write_buffer_bytes": 1 << 16}
        return nokv.open("db", files=files, executor=StepExecutor(inline=True), durability=durability, **options)

    for seed in range(5):
        files = CrashFiles(seed=seed)
        db = open_db(files, "process")
        for number in range(200):
            db.put(b"%05d" % number, b"x" * 100)
        db.flush()
        db.put(b"after", b"the flush")
        files = files.crash_clone(mode, seed=seed)
        with open_db(files, durability) as db:
            found = dict(db.scan())
            assert len(found) in (200, 201)
        for number in range(3):
            with open_db(files, durability) as db:
                assert dict(db.scan()) == found
                db.put(b"%d" % number, b"more")
                found[b"%d" % number] = b"more"


def test_a_manifest_that_forgets_every_flush_does_not_open_without_what_was_flushed() -> None:
    """Found by the corruption sweep: cut behind its first edit it looks as a crash may leave it."""
    files = CrashFiles()
    options: dict[str, Any] = {"files": files, "executor": StepExecutor(inline=True), "wal_segment_bytes": 1 << 12}
    with nokv.open("db", **options) as db:
        first = files.size("db/MANIFEST-000001")
        for number in range(100):
            db.put(b"%03d" % number, b"x" * 100)
        db.flush()
        db.put(b"after", b"the flush", sync=True)
        assert db.wal.segments()[0] > 1
    assert files.size("db/MANIFEST-000001") > first > 0
    files.rot("db/MANIFEST-000001", files.read_file("db/MANIFEST-000001")[:first])
    for read_only in (False, True):
        with pytest.raises(nokv.Corruption, match="is missing: the manifest needs it"):
            nokv.open("db", read_only=read_only, **options)
    problems = nokv.check("db", files=files).problems
    assert any("the log begins at" in problem for problem in problems), problems
    nokv.repair("db", files=files)
    with nokv.open("db", **options) as db:
        assert db[b"after"] == b"the flush"
        db.put(b"on it", b"goes")
    with nokv.open("db", **options) as db:
        assert db[b"on it"] == b"goes"
