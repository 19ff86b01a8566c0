"""R6: opening and closing a small database leaves nothing behind, however often."""

from __future__ import annotations

import os
import sys
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
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    descriptors = sum(os.path.islink(link) and os.readlink(link).startswith(str(path)) for link in links)
    with open("/proc/self/maps") as maps:
        return resident, descriptors, sum(str(path) in line for line in maps)


@own_allocator
@pytest.mark.counted
def test_cycles_of_open_and_close_cost_nothing(tmp_path: Path) -> None:
    cycles = count(500, 20_000, 200_000)
    path = tmp_path / "db"
    with nokv.open(path) as db:
        db.put_many((b"%05d" % n, b"v" * 100) for n in range(3000))
        db.flush()
    names, sizes = set(), []
    for number in range(cycles + 1):
        db = nokv.open(path)
        assert db.get(b"00007") == b"v" * 100
        if number % 10 == 0:
            db.put(b"same", b"%d" % number)
        db.close()
        del db
        if number * 2 >= cycles and number % (cycles // 10) == 0:
            sizes.append(footprint(path))
            names.add(len(os.listdir(path / "wal")))
    assert {size[1:] for size in sizes} == {(0, 0)}
    assert max(names) <= 3
    grown = sizes[-1][0] - sizes[0][0]
    assert grown < 512, f"{grown} KiB in {cycles // 2} cycles: {sizes}"


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
        sizes = []
        for number in range(cycles + 1):
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
            if number * 2 >= cycles and number % (cycles // 20) == 0:
                sizes.append(footprint(tmp_path / "db")[0])
    grown = min(sizes[-3:]) - min(sizes[:3])  # of several: what the background holds at a moment comes and goes
    assert grown < max(512, cycles // 2 * 1024 // 1_000_000), f"{grown} KiB in {cycles // 2} cycles: {sizes}"


@pytest.mark.parametrize(
    "durability",
    ["interval", pytest.param("process", marks=pytest.mark.xfail(strict=True, reason="without a sync nothing goes"))],
)
def test_what_was_flushed_leaves_the_log(tmp_path: Path, durability: str) -> None:
    """Found by the cycles above: a process that never syncs keeps every segment that it ever wrote."""
    options: dict[str, Any] = {"write_buffer_bytes": 1 << 16, "wal_segment_bytes": 1 << 16, "durability": durability}
    with nokv.open(tmp_path / "db", **options) as db:
        for number in range(20_000):
            db.put(b"%05d" % (number % 3000), b"w" * 100)
        db.flush()
        if durability == "interval":
            db.sync()  # instead of the one in the background, for which a test would have to wait
        db.put(b"next", b"1")
        db.flush()
        log = db.stats()["wal"]
        assert log["freed"] > 0 and log["segments"] < 10, log
