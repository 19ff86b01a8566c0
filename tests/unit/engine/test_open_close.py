"""R6: opening and closing a small database leaves nothing behind, however often."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nokv
from tests.counts import count
from tests.sanitizer import own_allocator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def footprint(path: Path) -> tuple[int, int, int]:
    """Resident KiB; descriptors and mappings of files in `path`."""
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    descriptors = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # somebody closes one meanwhile
            descriptors += os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(path))
    with open("/proc/self/maps") as maps:
        return resident, descriptors, sum(str(path) in line for line in maps)


def grows(cycle: Callable[[int], None], resident_kib: Callable[[], int], cycles: int, kib_max: int) -> str:
    """What is lost in every cycle is lost in every window of as many; what the background or the allocator takes at
    some moment is not. Empty if a window grew by less than `kib_max`."""
    numbers, windows = itertools.count(), []
    for number in itertools.islice(numbers, cycles // 2):
        cycle(number)
    for _ in range(5):
        sizes = [resident_kib()]
        for _ in range(10):
            for number in itertools.islice(numbers, cycles // 20):
                cycle(number)
            sizes.append(resident_kib())
        windows.append(min(sizes[-3:]) - min(sizes[:3]))
        if windows[-1] < kib_max:
            return ""
    return f"{windows} KiB in {cycles // 2} cycles each"


def test_what_is_lost_in_every_cycle_is_noticed() -> None:
    assert not grows(lambda number: None, lambda: 7, 100, 1)
    moment = iter([5, 5, 5, 5, 5, 5, 5, 5, 600, 600, 600, *[600] * 11])
    assert not grows(lambda number: None, lambda: next(moment), 100, 512)
    lost: list[int] = []
    assert grows(lost.append, lambda: len(lost), 1000, 300).startswith("[400, 400, 400, 400, 400]")


@own_allocator
@pytest.mark.counted
def test_cycles_of_open_and_close_cost_nothing(tmp_path: Path) -> None:
    cycles = count(500, 20_000, 200_000)
    path = tmp_path / "db"
    with nokv.open(path) as db:
        db.put_many((b"%05d" % n, b"v" * 100) for n in range(3000))
        db.flush()

    def cycle(number: int) -> None:
        db = nokv.open(path)
        assert db.get(b"00007") == b"v" * 100
        if number % 10 == 0:
            db.put(b"same", b"%d" % number)
        db.close()

    def resident() -> int:
        kib, descriptors, mapped = footprint(path)
        assert (descriptors, mapped) == (0, 0)
        assert len(os.listdir(path / "wal")) <= 3
        return kib

    assert not grows(cycle, resident, cycles, 512)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_closed_database_holds_no_file_while_it_is_referenced(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "db"
    with nokv.open(path, value_file_threshold=1000) as db:
        db.put(b"large", b"v" * 2000)
        db.put_many((b"%05d" % n, b"v" * 100) for n in range(3000))
        db.flush()
    db = nokv.open(path, read_only=read_only)
    assert db.get(b"00007") == b"v" * 100
    assert db.get(b"large") == b"v" * 2000
    scan = db.scan()
    assert next(scan) == (b"00000", b"v" * 100)
    snapshot = db.snapshot()
    open_files = footprint(path)[2]
    assert open_files >= 2
    db.close()
    del scan  # what it walks had to stay
    snapshot.close()
    del snapshot
    assert footprint(path)[1:] == (0, 0), "mapped although everything is closed"
    with pytest.raises(nokv.Closed):
        db.get(b"00007")
    with pytest.raises(nokv.Closed):
        db.stats()


@own_allocator
@pytest.mark.counted
@pytest.mark.timeout(5000)
def test_cycles_of_handles_cost_nothing(tmp_path: Path) -> None:
    """Reads, writes and everything that is opened and closed on an open database: less than 1 MiB a million cycles."""
    cycles = count(5_000, 200_000, 10_000_000)
    with nokv.open(tmp_path / "db", write_buffer_bytes=1 << 18, wal_segment_bytes=1 << 18) as db:
        db.put_many((b"%05d" % n, b"v" * 100) for n in range(3000))
        db.compact()
        other = db.family("other", create=True)

        def cycle(number: int) -> None:
            key = b"%05d" % (number * 7919 % 3000)
            db.put(key, b"w" * 100)
            assert db.get(key) == b"w" * 100
            with db.iterator(prefix=b"000") as it:
                assert it.seek(b"00010") and it.next() and it.key == b"00011"
            with db.snapshot() as view:
                assert view.get(key) == b"w" * 100
                half_used = view.scan(b"01000")
            assert next(half_used)[0] == b"01000"
            with db.write_batch() as batch:
                batch.put(b"b", b"%d" % number, other)
            with db.transaction() as txn:
                txn.put(b"t", txn.get(b"t", b"")[-20:] + b"x")
            with pytest.raises(nokv.Closed):
                view.get(key)
            with pytest.raises(nokv.BytesRequired):
                db.get("text")  # type: ignore[call-overload]

        assert not grows(
            cycle, lambda: footprint(tmp_path / "db")[0], cycles, max(512, cycles // 2 * 1024 // 1_000_000)
        )


@pytest.mark.parametrize("durability", ["interval", "process"])
def test_what_was_flushed_leaves_the_log(tmp_path: Path, durability: str) -> None:
    """Found by the cycles above: a process that never syncs kept every segment that it ever wrote."""
    options: dict[str, Any] = {"write_buffer_bytes": 1 << 16, "wal_segment_bytes": 1 << 16, "durability": durability}
    with nokv.open(tmp_path / "db", **options) as db:
        for number in range(20_000):
            db.put(b"%05d" % (number % 3000), b"w" * 100)
        db.flush()
        db.put(b"next", b"1")
        db.flush()
        log = db.stats()["wal"]
        assert log["freed"] > 0 and log["segments"] < 10, log
