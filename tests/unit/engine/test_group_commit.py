"""Group commit (ENG-12): writers that wait for the disk share its syncs, and nobody is told too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv._ext.syncturn import SyncTurn
from nokv.engine.wal import ReadOnlyWal, Wal
from nokv.env.files import MappedLogFile, OsFiles

PATIENCE_S = 30.0


class _Log:
    """A mapped log file that tells its disk of each sync."""

    def __init__(self, disk: Disk, inner: MappedLogFile) -> None:
        self._disk = disk
        self._inner = inner
        self.map = inner.map
        self.capacity = inner.capacity

    def write(self, offset: int, data: bytes, /) -> None:
        self._inner.write(offset, data)

    def sync(self, *between: Any) -> None:
        self._disk.syncs += 1
        seen = self._disk.on_sync()
        self._inner.sync(*between)
        self._disk.synced.append(seen)

    def close(self) -> None:
        self._inner.close()


class Disk(OsFiles):
    syncs = 0

    def __init__(self) -> None:
        self.on_sync: Callable[[], object] = lambda: None
        self.synced: list[Any] = []  # what `on_sync` saw when a sync began that has ended

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> Any:
        return _Log(self, super().open_log(path, capacity, recycle=recycle))


def until(condition: Callable[[], bool]) -> None:
    """Let others run until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0)


def together(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a writer hangs"
    if failures:
        raise failures[0]


def test_nobody_is_told_before_a_sync_that_began_after_his_append(tmp_path: Path) -> None:
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    disk.synced = []

    def on_sync() -> int:
        appended = wal.appended
        time.sleep(0)  # others append now: this sync does not cover them
        return appended

    disk.on_sync = on_sync
    early: list[str] = []

    def work(number: int) -> None:
        for n in range(150):
            wal.append(16 + number, b"%d" % n)
            mine = wal.appended  # or more: others may have appended
            wal.sync()
            if max(disk.synced, default=0) < mine:
                early.append(f"writer {number} record {n}: {mine} appended, syncs of {disk.synced[-3:]} have ended")

    together(work, 6)
    assert not early, early[0]
    assert len([*wal.replay({16, 17, 18, 19, 20, 21})]) == 900
    wal.close()


def test_what_is_appended_while_a_sync_runs_needs_another(tmp_path: Path) -> None:
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    wal.sync()
    wal.append(16, b"first")
    disk.on_sync = lambda: wal.append(16, b"late")
    wal.sync()
    disk.on_sync = lambda: None
    assert wal.stats()["unsynced_records"] == 1
    before = disk.syncs
    wal.sync()
    assert disk.syncs == before + 1
    wal.sync()
    assert disk.syncs == before + 1, "everything was on disk"
    wal.close()


def blocked_group(
    disk: Disk, wal: Wal, writers: int, records: Callable[[int], int] = lambda _: 1
) -> tuple[threading.Event, list[threading.Thread], list[object]]:
    """One writer syncs and is held up; all others wait for him, each with a record that his sync does not cover.
    `records`: how many each of them writes and syncs, one after the other."""
    release, entered = threading.Event(), threading.Event()

    def on_sync() -> None:
        entered.set()
        assert release.wait(PATIENCE_S)

    disk.on_sync = on_sync
    outcomes: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(records(number)):
                wal.append(16 + number, b"record")
                wal.sync()
                outcomes.append("synced")
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    threads[0].start()
    assert entered.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    until(lambda: wal._turn.waiting == writers - 1)
    return release, threads, outcomes


def finish(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a writer hangs"


def test_those_who_wait_share_the_next_sync(tmp_path: Path) -> None:
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    release, threads, outcomes = blocked_group(disk, wal, 5)
    before = disk.syncs
    release.set()
    finish(threads)
    assert outcomes == ["synced"] * 5
    assert disk.syncs == before + 1
    wal.close()


def test_a_failed_sync_reaches_every_writer_of_the_group(tmp_path: Path) -> None:
    """R2f: nobody of the group is told that his record is safe, and nobody tries again."""
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    release, threads, outcomes = blocked_group(disk, wal, 5)
    before = disk.syncs
    waits = disk.on_sync

    def fail() -> None:
        waits()
        raise OSError(5, "Input/output error")

    disk.on_sync = fail  # of the sync after the one that is held up: the group's
    release.set()
    finish(threads)
    failed = [outcome for outcome in outcomes if outcome != "synced"]
    assert len(failed) == 4
    assert all(isinstance(error, nokv.ReadOnly) for error in failed), failed
    assert disk.syncs == before + 1
    wal.close()


def test_a_sync_that_was_interrupted_gives_the_turn_away(tmp_path: Path) -> None:
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    release, threads, outcomes = blocked_group(disk, wal, 3)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    disk.on_sync = interrupt
    release.set()
    finish(threads)
    assert sorted(str(outcome) for outcome in outcomes) == ["", "synced", "synced"]
    wal.append(20, b"goes on")
    wal.sync()
    wal.close()


def test_a_close_waits_for_the_sync_and_those_who_waited_are_told(tmp_path: Path) -> None:
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    release, threads, outcomes = blocked_group(disk, wal, 4)
    closer = threading.Thread(target=wal.close, kwargs={"sync": False})
    closer.start()
    until(lambda: wal._closed)
    assert closer.is_alive()
    release.set()
    finish([closer, *threads])
    assert len(outcomes) == 4
    assert outcomes.count("synced") == 1
    assert sum(isinstance(outcome, nokv.Closed) for outcome in outcomes) == 3


def test_writers_that_come_back_are_waited_for(tmp_path: Path) -> None:
    """Five writers in a loop: each sync serves all five. Whoever came first would otherwise sync alone."""
    rounds, disk = 40, Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    wal._turn = SyncTurn(-1, gather_ns=int(PATIENCE_S * 1e9))  # else as long as a sync takes: too short to count on
    release, threads, outcomes = blocked_group(disk, wal, 5, lambda number: rounds + (number == 0))
    before = disk.syncs
    release.set()
    finish(threads)
    assert outcomes == ["synced"] * (5 * rounds + 1)
    assert disk.syncs == before + rounds
    assert wal._turn.gathers == rounds
    wal.close()


def test_who_waits_for_others_in_vain_tries_it_ever_more_rarely() -> None:
    turn = SyncTurn(0, gather_ns=1)
    for target in range(100):  # each time another one waits, is served, and does not come back
        assert turn.enter(2 * target + 1)
        other = threading.Thread(target=turn.enter, args=(2 * target + 1,))
        other.start()
        until(lambda: turn.waiting == 1)
        turn.leave(2 * target + 1)
        finish([other])
    assert 3 <= turn.gathers <= 8
    assert turn.enter(1000)  # may still wait for the last of them
    turn.leave(1000)
    before = turn.gathers
    for target in range(1001, 2000):
        assert turn.enter(target)
        turn.leave(target)
    assert turn.gathers == before, "nobody else is there"
    assert not turn.enter(1999)


def test_a_turn_is_left_by_who_has_it_and_taken_once() -> None:
    turn = SyncTurn(-1)
    assert turn.enter(0)
    with pytest.raises(nokv.UsageError, match="inside"):
        turn.enter(0)
    other = threading.Thread(target=turn.leave, args=(7,))
    other.start()
    other.join()
    assert turn.covered == -1
    turn.leave(0)
    assert turn.covered == 0
    assert not turn.enter(0)
    turn.unfinished = True
    assert turn.enter(0), "there is something to sync whatever is covered"
    turn.unfinished = False
    turn.leave(0)
    turn.leave(9)
    assert turn.covered == 0
    turn.settle()


def test_a_sync_inside_a_sync_leaves_the_outer_one_its_turn(tmp_path: Path) -> None:
    """A signal handler, or a finalizer, may run in the middle of a sync, on its thread: it is refused, and so is a
    close there; nobody else syncs, or takes the files away, before the outer one has ended."""
    disk = Disk()
    wal = Wal(disk, str(tmp_path / "wal"), 1 << 20)
    refused: list[BaseException] = []
    others: list[threading.Thread] = []
    running = most = 0

    def write(payload: bytes) -> None:
        wal.append(16, payload)
        wal.sync()

    def on_sync() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if not others:
            for call in (wal.sync, wal.close, wal.sync):
                try:
                    call()
                except BaseException as error:
                    refused.append(error)
            others.append(threading.Thread(target=write, args=(b"other",)))
            others[0].start()
            until(lambda: wal._turn.waiting == 1 or running > 1)
        running -= 1

    disk.on_sync = on_sync
    write(b"record")
    finish(others)
    assert [type(error) for error in refused] == [nokv.UsageError] * 3, refused
    assert most == 1, "two syncs at once"
    assert wal.stats()["unsynced_records"] == 0
    wal.close()
    again = Wal(OsFiles(), str(tmp_path / "wal"), 1 << 20)
    assert [payload for _, _, payload in again.replay({16})] == [b"record", b"other"]
    again.close()


def test_a_database_that_a_signal_handler_may_not_close_stays_open(tmp_path: Path) -> None:
    disk = Disk()
    db = nokv.open(tmp_path / "db", files=disk, durability="process")
    refused: list[BaseException] = []

    def on_sync() -> None:
        disk.on_sync = lambda: None
        try:
            db.close()
        except nokv.UsageError as error:
            refused.append(error)

    disk.on_sync = on_sync
    db.put(b"k", b"v", sync=True)
    assert len(refused) == 1 and "inside a sync" in str(refused[0])
    db.put(b"more", b"v", sync=True)
    db.close()
    with nokv.open(tmp_path / "db") as again:
        assert dict(again) == {b"k": b"v", b"more": b"v"}


def test_a_log_that_is_only_read_says_so(tmp_path: Path) -> None:
    Wal(OsFiles(), str(tmp_path / "wal"), 1 << 20).close()
    wal = ReadOnlyWal(OsFiles(), str(tmp_path / "wal"))
    for call in (wal.sync, lambda: wal.append(16, b"no")):
        with pytest.raises(nokv.ReadOnly):
            call()
    wal.close()
