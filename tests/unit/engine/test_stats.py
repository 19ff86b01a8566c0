"""`db.stats()`: what was counted is what was done, and every number has a name that Prometheus takes. ENG-15, OBS-01"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import nokv
from nokv.cli.metrics import flatten
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles

GROUPS = {"entries", "write", "read", "flush", "wal", "compaction", "cache", "values", "lsm"}


@pytest.fixture
def db() -> Iterator[nokv.DB]:
    with nokv.open(
        "db",
        files=CrashFiles(),
        clock=FakeClock(),
        executor=StepExecutor(inline=True),
        families=["f"],
        value_file_threshold=1000,
    ) as db:
        yield db


def test_writes_are_counted_by_kind(db: nokv.DB) -> None:
    db.put(b"a", b"1")
    db.delete(b"a")
    db.delete_range(b"a", b"c")
    db.put_many([(b"k%d" % n, b"1") for n in range(5)])
    with db.write_batch() as batch:
        batch.put(b"x", b"1")
        batch.put(b"y", b"1", ttl=5)
        batch.delete(b"x")
        batch.delete_range(b"y", b"z", family="f")
        batch.delete_range(b"y", b"y")  # empty: nothing
    batch.clear()
    db.write(batch)
    with db.transaction() as txn:
        txn.put(b"t", b"1")
        txn.delete(b"u")
    found = db.stats()["write"]
    assert (found["puts"], found["deletes"], found["range_deletes"]) == (9, 3, 2)
    assert found["puts"] + found["deletes"] + found["range_deletes"] == db.stats()["entries"]["sequence"]


def test_what_compaction_drops_is_counted(db: nokv.DB) -> None:
    for n in range(10):
        db.put(b"%d" % n, b"v", ttl=5 if n < 4 else None)
    db.flush()
    assert db.stats()["compaction"]["entries_expired"] == 0
    db._clock.advance_ms(10)  # type: ignore[attr-defined]
    db.delete(b"9")
    db.compact()
    found = db.stats()["compaction"]
    assert found["entries_expired"] == 4
    assert found["entries_dropped"] == 6  # those, the delete, and what it hides


def test_the_point_index_is_counted(db: nokv.DB) -> None:
    db.put_many([(b"%05d" % n, b"v") for n in range(3000)])
    db.compact()
    assert db.stats()["cache"]["point_index_bytes"] == 0
    assert db.get(b"00007") == b"v"
    assert db.stats()["cache"]["point_index_bytes"] >= 3000 * 4


def test_every_number_has_a_name_of_its_own(db: nokv.DB) -> None:
    db.put(b"a", b"1" * 2000)
    db.flush()
    stats = db.stats()
    assert stats.keys() >= GROUPS
    assert stats["flush"]["memtable_allocated_bytes"] > 0
    assert stats["entries"]["families"] == len(db.families()) == 2

    def numbers(value: object) -> int:
        if isinstance(value, dict | list):
            return sum(map(numbers, value.values() if isinstance(value, dict) else value))
        return isinstance(value, bool | int | float)

    metrics = list(flatten({"engine": stats}))
    assert len(metrics) == numbers(stats)
    assert len({(name, tuple(labels.items())) for name, labels, _ in metrics}) == len(metrics)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_]*", name) for name, _, _ in metrics)
    assert ("nokv_engine_lsm_levels_files", {"level": "0"}, 1.0) in metrics
