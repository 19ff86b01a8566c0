"""The thread that makes memory ready ahead of the writer: what it may touch, and when it has to let go."""

from __future__ import annotations

import gc
import mmap
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import nokv
from nokv._ext.arena import ArenaPool
from nokv._ext.prefault import Prefaulter
from nokv.engine.wal import Wal
from nokv.env.files import OsFiles
from nokv.testing.files import CrashFiles
from tests.sanitizer import own_allocator

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no such thread elsewhere")
SEGMENT = 16 << 20


def faults() -> int:
    """Of this thread. A page of a file that nobody has had in memory yet counts as a major one."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt + usage.ru_majflt


def eventually(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Another thread's work, waited for: there is nothing that it would tell anybody."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    return true()


def resident_bytes(name: str) -> int:
    """Of the mappings of this file."""
    total, ours = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                ours = line.rstrip().endswith(name)
            elif ours and first == "Rss:":
                total += int(line.split()[1]) << 10
    return total


@linux_only
@own_allocator  # a sanitizer's allocator keeps what is freed, and each record meets fresh memory
def test_stores_of_a_writer_meet_few_page_faults(tmp_path: Path) -> None:
    """Some are not ours to prevent: the kernel protects a page that it writes to disk before the writer comes to it."""
    prefaulter = Prefaulter(ArenaPool(0))
    wal = Wal(OsFiles(), str(tmp_path / "wal"), SEGMENT, prefaulter=prefaulter)
    payload = b"p" * 1000
    while wal.active is None or wal.active.capacity < SEGMENT:
        wal.append(16, payload)
    assert prefaulter.running
    met: list[int] = []
    while wal.active.end < SEGMENT - (1 << 20):
        assert eventually(lambda: prefaulter.ahead > 120_000)  # bytes, of which the next records take less
        before = faults()
        for _ in range(100):
            wal.append(16, payload)
        met.append(faults() - before)
    assert len(met) > 100 and met.count(0) > len(met) // 10, met
    name = f"{wal.active_segment:06d}"
    assert any(name in entry for entry in os.listdir(tmp_path / "wal"))
    wal.close()
    prefaulter.close()
    assert not prefaulter.running


@linux_only
def test_pages_that_were_written_leave_the_mapping_and_stay_in_the_file(tmp_path: Path) -> None:
    prefaulter = Prefaulter(ArenaPool(0))
    wal = Wal(OsFiles(), str(tmp_path / "wal"), SEGMENT, prefaulter=prefaulter)
    records = []
    dice = random.Random(1)
    while wal.active is None or wal.active.capacity < SEGMENT or wal.active.end < SEGMENT * 3 // 4:
        records.append(dice.randbytes(3000))
        wal.append(16, records[-1])
    path = wal._segments[-1].path
    assert eventually(lambda: prefaulter.work(1) < 1 and resident_bytes(path) < 4 << 20), resident_bytes(path)
    assert [payload for _, _, payload in wal.replay({16})] == records
    wal.close()
    prefaulter.close()
    again = Wal(OsFiles(), str(tmp_path / "wal"), SEGMENT)
    assert [payload for _, _, payload in again.replay({16})] == records
    again.close()


@linux_only
def test_a_mapping_is_let_go_before_it_is_closed(tmp_path: Path) -> None:
    """What comes to lie at its address is nobody's business: anonymous memory would turn into zeros."""
    prefaulter = Prefaulter(ArenaPool(0))
    for turn in range(30):
        wal = Wal(OsFiles(), str(tmp_path / f"wal{turn}"), 4 << 20, ("test",), prefaulter=prefaulter)
        for number in range(4000):
            wal.append(16, b"%08d" % number * 100)
            if number % 1000 == 0:
                wal.sync()
                wal.retain("test", wal.active_segment)
        wal.close(sync=False)
        memory = [mmap.mmap(-1, 4 << 20) for _ in range(4)]  # may lie where the segments did
        for block in memory:
            block[:] = b"\xa5" * len(block)
        prefaulter.synced()
        prefaulter.work(0.001)
        assert all(block[:] == b"\xa5" * len(block) for block in memory)
        for block in memory:
            block.close()
    prefaulter.close()


def test_without_a_thread_the_log_is_the_same(tmp_path: Path) -> None:
    """After close, for files that are no memory, and for segments too small to be worth it."""
    closed = Prefaulter(ArenaPool(0))
    closed.close()
    closed.close()
    for files, directory in ((OsFiles(), str(tmp_path / "wal")), (CrashFiles(), "wal")):
        wal = Wal(files, directory, 4 << 20, prefaulter=closed)
        for number in range(3000):
            wal.append(16, b"%08d" % number * 200)
        assert wal.stats()["rotations"] >= 2
        assert not closed.running and closed.work(1.0) == 0
        wal.close()
    small = Prefaulter(ArenaPool(0))
    wal = Wal(OsFiles(), str(tmp_path / "small"), 1 << 20, prefaulter=small)
    for number in range(3000):
        wal.append(16, b"%08d" % number * 200)
    assert not small.running
    wal.close()
    small.close()


@linux_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_has_no_such_thread_and_does_not_wait_for_it(tmp_path: Path) -> None:
    db = nokv.open(str(tmp_path / "db"), durability="process")
    for number in range(30_000):
        db.put(b"%08d" % number, b"v" * 200)
    assert db._prefaulter is not None and db._prefaulter.running
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 2 if db._prefaulter.running else 0
            db.close()
            del db
            gc.collect()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert db._prefaulter.running
    db.close()
    assert not db._prefaulter.running


@linux_only
def test_a_database_that_is_dropped_ends_its_threads(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    for turn in range(3):
        db = nokv.open(str(tmp_path / str(turn)), durability="interval")
        for number in range(30_000):
            db.put(b"%08d" % number, b"v" * 200)
        assert len(os.listdir("/proc/self/task")) > before
        if turn == 2:
            db.close()
        del db
        gc.collect()
    assert eventually(lambda: len(os.listdir("/proc/self/task")) <= before)


def test_making_a_segment_holds_up_neither_appends_nor_syncs(tmp_path: Path) -> None:
    """The disk may take its time for the new file: only who has no room left waits for it."""
    made, go_on = threading.Event(), threading.Event()

    class SlowFiles(OsFiles):
        def open_log(self, path: str, capacity: int, recycle: str | None = None):  # type: ignore[no-untyped-def]
            if threading.current_thread() is not threading.main_thread():
                made.set()
                assert go_on.wait(60)
            return super().open_log(path, capacity, recycle=recycle)

    wal = Wal(SlowFiles(), str(tmp_path / "wal"), 256 << 10)
    wal.append(16, b"before")
    thread = threading.Thread(target=wal.prepare)
    thread.start()
    assert made.wait(60)
    wal.append(16, b"meanwhile")
    wal.make_room(100)
    wal.sync()
    assert wal._spare is None
    go_on.set()
    thread.join()
    assert wal._spare is not None
    number = wal.active_segment
    wal.append(16, b"x" * (200 << 10))
    wal.append(16, b"y" * (200 << 10))
    assert wal.active_segment == number + 1 and wal._spare is None
    assert [payload[:9] for _, _, payload in wal.replay({16})] == [b"before", b"meanwhile", b"x" * 9, b"y" * 9]
    wal.close()


def test_removing_a_segment_holds_up_no_append(tmp_path: Path) -> None:
    """Nor the switch to another one: the file system takes its time for a large file."""
    removing, go_on = threading.Event(), threading.Event()

    class SlowFiles(OsFiles):
        def remove(self, path: str) -> None:
            removing.set()
            assert go_on.wait(60)
            super().remove(path)

    wal = Wal(SlowFiles(), str(tmp_path / "wal"), 64 << 10, retainers=("test",))
    for number in range(3):
        wal.append(16, b"%d" % number * (60 << 10))
    first = wal.segments()
    thread = threading.Thread(target=wal.retain, args=("test", first[-1]))
    thread.start()
    assert removing.wait(60)
    for number in range(3):
        wal.append(16, b"%d" % number * (60 << 10))
    assert wal.segments() == [first[-1] + number for number in range(4)] and wal.stats()["freed"] == 0
    go_on.set()
    thread.join()
    wal.sync()
    assert wal.stats()["freed"] == 2
    wal.close()
