"""R6: opening and closing a small database leaves nothing behind, however often."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
    cycles = count(500, 2_000, 20_000)
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
