"""Time to live (ENG-17): absent from its moment on, in every read, and gone after a compaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nokv
from nokv._ext.batch import EXPIRY_MS_LIMIT, TTL_MS_LIMIT, decode_batch
from nokv.errors import Conflict, Corruption, UsageError
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles


class Store:
    """A database on crashable files, with a clock that moves when told."""

    def __init__(self) -> None:
        self.files = CrashFiles()
        self.clock = FakeClock()
        self.open()

    def open(self) -> nokv.DB:
        self.db = nokv.open(
            "db", files=self.files, clock=self.clock, executor=StepExecutor(), families=["other"], durability="process"
        )
        return self.db

    def crash(self) -> nokv.DB:
        self.files = self.files.crash_clone("process")
        return self.open()


@pytest.fixture
def store() -> Store:
    return Store()


def keys_in_tables(db: nokv.DB) -> list[tuple[bytes, int]]:
    cursor = db._versions.current.cursor()
    cursor.seek_first()
    found = []
    while cursor.valid:
        prefix, _, kind, _ = cursor.entry
        found.append((prefix[1:], kind))
        cursor.next()
    return found


def reads(db: Any) -> list[list[bytes]]:
    """The keys by every way to read."""
    keys = [b"a", b"b", b"c"]
    it = db.iterator()
    forward, backward = [], []
    on = it.seek_first()
    while on:
        forward.append(it.key)
        on = it.next()
    on = it.seek_last()
    while on:
        backward.append(it.key)
        on = it.prev()
    it.close()
    return [
        [key for key in keys if db.get(key) is not None],
        [key for key, value in zip(keys, db.get_many(keys), strict=True) if value is not None],
        [key for key, _ in db.scan()],
        list(db.scan(values=False)),
        list(db.scan(values=False, reverse=True))[::-1],
        forward,
        backward[::-1],
    ]


@pytest.mark.parametrize("where", ["memtable", "table", "family", "batch", "transaction", "replayed"])
def test_absent_from_its_moment_on(store: Store, where: str) -> None:  # ENG-17
    db = store.db
    target: Any = db.family("other") if where == "family" else db
    target.put(b"a", b"1")
    target.put(b"c", b"3")
    if where == "batch":
        with db.write_batch() as batch:
            batch.put(b"b", b"2", ttl=100)
    elif where == "transaction":
        with db.transaction() as txn:
            txn.put(b"b", b"2", ttl=100)
            assert txn.get(b"b") == b"2"
            assert list(txn.scan()) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    else:
        target.put(b"b", b"2", ttl=100)
    if where == "table":
        db.flush()
    if where == "replayed":
        db = target = store.crash()
    store.clock.advance_ms(99)
    assert target.get(b"b") == b"2"
    assert all(found == [b"a", b"b", b"c"] for found in reads(target))
    store.clock.advance_ms(1)
    assert target.get(b"b", b"gone") == b"gone"
    assert all(found == [b"a", b"c"] for found in reads(target))
    if target is db:
        assert b"b" not in db and len(db) == 2
        with pytest.raises(KeyError):
            db[b"b"]


def test_a_view_judges_expiry_at_one_moment(store: Store) -> None:
    """Snapshots, scans, iterators and transactions: what was alive when they began stays, also through a compaction."""
    db = store.db
    db.put(b"a", b"1", ttl=100)
    db.put(b"b", b"2")
    db.flush()
    snapshot, scan, iterator, txn = db.snapshot(), db.scan(), db.iterator(), db.transaction()
    store.clock.advance_ms(200)
    db.compact()
    assert db.get(b"a") is None and list(db.scan()) == [(b"b", b"2")]
    assert snapshot.get(b"a") == b"1" and txn.get(b"a") == b"1"
    assert list(scan) == list(snapshot.scan()) == list(txn.scan()) == [(b"a", b"1"), (b"b", b"2")]
    assert iterator.seek_first() and iterator.item == (b"a", b"1") and iterator.expires_at_ms == 1_700_000_000_100
    assert iterator.next() and iterator.expires_at_ms is None
    snapshot.close()
    iterator.close()
    txn.rollback()
    db.compact()
    assert keys_in_tables(db) == [(b"b", 1)]


def test_an_expired_value_hides_what_is_older(store: Store) -> None:
    db = store.db
    db.put(b"k", b"old")
    db.flush()
    db.compact()
    db.put(b"k", b"new", ttl=10)
    store.clock.advance_ms(10)
    assert db.get(b"k") is None
    db.flush()  # it becomes a delete here
    assert keys_in_tables(db) == [(b"k", 0), (b"k", 1)]
    assert db.get(b"k") is None
    db.compact()
    assert keys_in_tables(db) == [] and db.get(b"k") is None


def test_a_new_put_ends_the_time_to_live(store: Store) -> None:
    db = store.db
    db.put(b"k", b"1", ttl=10)
    db.put(b"k", b"2")
    store.clock.advance_ms(1000)
    assert db.get(b"k") == b"2"
    db.put(b"k", b"3", ttl=10)
    db.put(b"k", b"4", ttl=20)
    store.clock.advance_ms(15)
    assert db.get(b"k") == b"4"


def test_the_clock_goes_back(store: Store) -> None:
    """What is still stored shows again; what a compaction has dropped stays away, and nothing older appears."""
    db = store.db
    db.put(b"a", b"older")
    db.put(b"a", b"1", ttl=100)
    db.flush()
    store.clock.jump_wall_ms(500)
    assert db.get(b"a") is None
    store.clock.jump_wall_ms(-500)
    assert db.get(b"a") == b"1"
    store.clock.jump_wall_ms(500)
    db.compact()
    store.clock.jump_wall_ms(-500)
    assert db.get(b"a") is None


def test_a_transaction_sees_that_an_expiring_key_was_written(store: Store) -> None:
    db = store.db
    db.put(b"k", b"1", ttl=10)
    txn = db.transaction()
    store.clock.advance_ms(20)
    assert txn.get(b"k") == b"1"
    txn.put(b"seen", b"x")
    txn.commit()  # expiring is no write
    txn = db.transaction()
    assert txn.get(b"k") is None
    txn.put(b"seen", b"y")
    db.put(b"k", b"2", ttl=10)
    with pytest.raises(Conflict):
        txn.commit()
    with db.transaction() as txn:
        txn.put(b"t", b"1", ttl=10)
        txn.put(b"t", b"2")
        txn.put(b"u", b"1", ttl=10)
        txn.delete(b"u")
    store.clock.advance_ms(100)
    assert db.get(b"t") == b"2" and db.get(b"u") is None


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "10", TTL_MS_LIMIT + 1, 1 << 64])
def test_bad_ttl(store: Store, ttl: Any) -> None:
    db = store.db
    for put in (db.put, db.family("other").put):
        with pytest.raises(UsageError, match="no time to live") as caught:
            put(b"k", b"v", ttl=ttl)
        assert "milliseconds" in caught.value.hint
    with pytest.raises(UsageError), db.write_batch() as batch:
        batch.put(b"k", b"v", ttl=ttl)
    with pytest.raises(UsageError), db.transaction() as txn:
        txn.put(b"k", b"v", ttl=ttl)
    assert list(db.scan()) == []
    db.put(b"k", b"v", ttl=TTL_MS_LIMIT)
    assert db.get(b"k") == b"v"


def test_a_batch_of_its_own_has_no_clock(store: Store) -> None:
    batch = nokv.WriteBatch()
    with pytest.raises(UsageError, match="does not know the time"):
        batch.put(b"k", b"v", ttl=5)
    bad_moments: list[Any] = [0, -1, EXPIRY_MS_LIMIT + 1, 1.0]
    for bad in bad_moments:
        with pytest.raises(UsageError, match="no moment"):
            batch.put(b"k", b"v", expires_at_ms=bad)
    with pytest.raises(UsageError, match="twice"):
        batch.put(b"k", b"v", ttl=5, expires_at_ms=5)
    assert len(batch) == 0
    batch.put(b"k", b"v", expires_at_ms=store.clock.time_ms() + 5)
    store.db.write(batch)
    assert store.db.get(b"k") == b"v"
    store.clock.advance_ms(5)
    assert store.db.get(b"k") is None


def test_largest_value_may_expire(store: Store) -> None:
    with pytest.raises(UsageError, match="1073741824 bytes is too long"):
        store.db.put(b"k", bytes(1 << 30), ttl=5)


def test_what_has_expired_does_not_travel(store: Store) -> None:
    """The reader of the source did not see it, so the copy hides nothing in the target."""
    store.db.put(b"k", b"old", ttl=10)
    store.db.put(b"other", b"x")
    store.db.flush()
    store.clock.advance_ms(10)
    exported = store.db.export_sst("out", [("plain", None, None)])
    with nokv.open("target", files=store.files, clock=store.clock, executor=StepExecutor()) as target:
        target.put(b"k", b"mine")
        target.ingest_sst([[f"out/{table.name}" for table in exported]])
        assert dict(target) == {b"k": b"mine", b"other": b"x"}


def test_expiry_travels_with_exported_tables(store: Store, tmp_path: Path) -> None:
    db = store.db
    db.put(b"a", b"1", ttl=100)
    db.put(b"b", b"2", ttl=10)
    db.put(b"c", b"3")
    store.clock.advance_ms(50)
    exported = db.export_sst("out", [("plain", None, None)])
    target = nokv.open("copy", files=store.files, clock=store.clock, executor=StepExecutor())
    target.ingest_sst([[f"out/{table.name}" for table in exported]])
    assert [key for key, _ in target.scan()] == [b"a", b"c"]
    store.clock.advance_ms(50)
    assert [key for key, _ in target.scan()] == [b"c"]
    target.close()


def test_formats(store: Store) -> None:
    """Tables without expiring values keep the first format version; with them an older reader refuses the file."""
    store.db.close()
    db = nokv.open("db", files=store.files, clock=store.clock, executor=StepExecutor(), upper_compression="none")
    db.put(b"a", b"1")
    db.flush()
    db.put(b"b", b"2", ttl=5)
    db.flush()
    newer, older = db._versions.current.levels[0]
    assert (older.version, older.properties["expiring"]) == (1, 0)
    assert (newer.version, newer.properties["expiring"]) == (2, 1)
    assert newer.verify() == 1
    db.close()
    assert store.open().get(b"b") == b"2"


@given(st.binary(max_size=20), st.binary(max_size=7))
def test_batch_records_that_are_too_short(key: bytes, value: bytes) -> None:
    batch = nokv.WriteBatch()
    batch.put(key, b"", expires_at_ms=77)
    whole = batch.payload(9)
    assert decode_batch(whole) == (9, [(2, 0, key, (77).to_bytes(8, "little"))])
    cut = whole[:-9] + bytes([len(value)]) + value
    with pytest.raises(Corruption, match="none of its kind"):
        decode_batch(cut)
