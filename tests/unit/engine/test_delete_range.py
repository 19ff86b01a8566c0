"""delete_range and compact(start, end) (ENG-17): one record hides any number of keys, at every level."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nokv
from nokv._ext.batch import KEY_BYTES_LIMIT, decode_batch
from nokv._ext.blockcache import BlockCache
from nokv._ext.memtable import MemTable
from nokv._ext.ranges import Ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder
from nokv.errors import Conflict, Corruption, InvariantError, NoKVError, UsageError
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles


def open_db(files: Any, path: str = "db", **options: Any) -> nokv.DB:
    return nokv.open(path, files=files, executor=StepExecutor(), families=["other"], durability="process", **options)


@pytest.fixture
def db() -> nokv.DB:
    return open_db(CrashFiles())


def numbers(db: Any) -> list[int]:
    return [int(key) for key, _ in db.scan()]


def fill(db: Any, n: int = 100, value: bytes = b"v") -> None:
    db.put_many({b"%03d" % i: value for i in range(n)})


def tables(db: nokv.DB) -> list[tuple[int, Table]]:
    return [(level, t) for level, found in enumerate(db._versions.current.levels) for t in found]


@pytest.mark.parametrize("flush_data", [False, True])
@pytest.mark.parametrize("flush_range", [False, True])
def test_hides_what_is_older_wherever_it_is(db: nokv.DB, flush_data: bool, flush_range: bool) -> None:
    fill(db)
    db.family("other").put(b"015", b"")
    if flush_data:
        db.flush()
    snapshot = db.snapshot()
    db.delete_range(b"010", b"020")
    db.put(b"015", b"new")
    if flush_range:
        db.flush()
    left = [*range(10), 15, *range(20, 100)]
    assert numbers(db) == left and [int(k) for k in db.scan(values=False, reverse=True)] == left[::-1]
    assert db.get(b"012") is None and db.get(b"015") == b"new" and db.get(b"020") == b"v" and b"010" not in db
    assert db.get_many([b"009", b"010", b"015", b"019", b"020"]) == [b"v", None, b"new", None, b"v"]
    assert db.family("other").get(b"015") == b""
    assert numbers(snapshot) == list(range(100)) and snapshot.get(b"012") == b"v"
    it = db.iterator()
    assert it.seek(b"010") and it.key == b"015" and it.prev() and it.key == b"009" and it.next() and it.key == b"015"
    assert it.seek_for_prev(b"019") and it.key == b"015" and it.next() and it.key == b"020"
    it.close()
    db.compact()
    assert numbers(db) == left and numbers(snapshot) == list(range(100))
    snapshot.close()
    db.compact()
    ((_, table),) = tables(db)
    assert table.ranges() is None and table.version == 1 and table.properties["entries"] == len(left) + 1


def test_open_bounds_and_families(db: nokv.DB) -> None:
    other = db.family("other")
    for target in (db, other):
        target.put_many({b"": b"", b"a": b"", b"m": b"", b"\xff" * 9: b"", b"\xff" * KEY_BYTES_LIMIT: b""})
    db.delete_range(None, b"m")
    assert [k[:9] for k in db] == [b"m", b"\xff" * 9, b"\xff" * 9]
    db.delete_range(b"n", None)
    assert list(db) == [b"m"]
    assert len(list(other.scan())) == 5
    other.delete_range(None, None)
    assert list(other.scan()) == [] and list(db) == [b"m"]
    db.clear()
    assert list(db) == []
    db.flush()
    db.compact()
    assert tables(db) == []


def test_the_last_family_has_an_end_too() -> None:
    files = CrashFiles()
    db = open_db(files)
    for number in range(300):
        try:
            last = db.family(f"f{number}", create=True)
        except UsageError:
            break
    assert last.id == 255
    last.put_many({b"a": b"", b"\xff" * KEY_BYTES_LIMIT: b""})
    last.delete_range(b"b", None)
    assert [k for k, _ in last.scan()] == [b"a"]
    db.flush()
    db.close()
    db = open_db(files)
    assert [k for k, _ in db.family(last.name).scan()] == [b"a"]
    assert db.check().entries > 0


def test_a_batch_keeps_its_order(db: nokv.DB) -> None:
    fill(db, 5)
    with db.write_batch() as batch:
        batch.put(b"002", b"before")
        batch.delete_range(b"001", b"004")
        batch.put(b"003", b"after")
        batch.delete_range(None, None, family="other")
    assert list(db.scan()) == [(b"000", b"v"), (b"003", b"after"), (b"004", b"v")]
    assert len(batch) == 4
    assert decode_batch(batch.payload(1))[1][1] == (3, 0, b"001", b"\x00004")


def test_bad_ranges_change_nothing(db: nokv.DB) -> None:
    fill(db, 3)
    txn = db.transaction()
    for target in (db, db.family("other"), txn, nokv.WriteBatch()):
        with pytest.raises(UsageError, match="start is after its end"):
            target.delete_range(b"b", b"a")
        with pytest.raises(UsageError, match="bytes"):
            target.delete_range("a", b"b")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="too long"):
            target.delete_range(b"a", b"b" * (KEY_BYTES_LIMIT + 1))
        with pytest.raises(UsageError, match="too long"):
            target.delete_range(b"a" * (KEY_BYTES_LIMIT + 1), None)
        target.delete_range(b"a", b"a")  # nothing
    txn.commit()
    sequence = db.sequence
    assert db.sequence == sequence and numbers(db) == [0, 1, 2]
    db.close()
    with pytest.raises(nokv.Closed):
        db.delete_range(b"a", b"b")
    with pytest.raises(nokv.Closed):
        db.compact(b"a", b"b")


def test_it_costs_the_same_however_many_keys_there_are(db: nokv.DB) -> None:
    fill(db, 1000)
    before = db.stats()["write"]["bytes"]
    db.delete_range(b"0", b"9")
    assert db.stats()["write"]["bytes"] - before < 100 and len(db.view.mem) == 1001


@pytest.mark.parametrize("flush", [False, True])
def test_a_scan_jumps_over_a_deleted_range(flush: bool) -> None:
    """A few entries are stepped over, then the older tables are sought to the range's other end."""
    db = open_db(CrashFiles(), compressed_block_bytes=256, table_bytes=20_000, block_cache_bytes=0)
    db.put_many({b"%06d" % i: b"%06d" % i for i in range(20_000)})
    db.compact()
    db.delete_range(b"000100", b"019900")
    db.put(b"010000", b"new")
    if flush:
        db.flush()
    left = [*range(100), 10_000, *range(19_900, 20_000)]
    before = db.stats()["cache"]["misses"]
    assert numbers(db) == left and before < db.stats()["cache"]["misses"] < before + 60
    assert [int(k) for k in db.scan(values=False, reverse=True)] == left[::-1]
    assert db.stats()["cache"]["misses"] < before + 120
    it = db.iterator()
    assert it.seek(b"000100") and it.key == b"010000" and it.prev() and it.key == b"000099"
    assert it.seek(b"010001") and it.key == b"019900" and it.prev() and it.key == b"010000" and it.prev()
    assert db.stats()["cache"]["misses"] < before + 200
    assert it.key == b"000099" and it.next() and it.key == b"010000" and it.next() and it.key == b"019900"
    it.close()
    db.close()


def test_a_memtable_of_range_deletes_alone(db: nokv.DB) -> None:
    fill(db, 10)
    db.flush()
    db.compact()
    db.delete_range(b"002", b"004")
    db.delete_range(b"006", b"008")
    db.flush()
    table = dict(tables(db))[0]
    assert table.version == 2 and table.properties["range_deletes"] == 2 and table.verify() == 1
    assert (table.properties["smallest"], table.properties["largest"]) == (b"\x00002", b"\x00008")
    assert numbers(db) == [0, 1, 4, 5, 8, 9]
    db.compact()
    assert numbers(db) == [0, 1, 4, 5, 8, 9]
    assert [t.properties["entries"] for _, t in tables(db)] == [6]


def test_split_where_tables_end() -> None:
    """One range over many small tables: the pieces touch, the tables do not overlap, nothing is left uncovered."""
    db = open_db(CrashFiles(), table_bytes=1, block_bytes=64)
    fill(db, 50)
    snapshot = db.snapshot()
    db.delete_range(b"005", b"045")
    db.put_many({b"%03d" % i: b"new" for i in range(0, 50, 7)})
    db.compact()  # the snapshot keeps all old versions, and the range delete
    found = [t for level, t in tables(db) if level]
    assert len(found) > 20
    for a, b in itertools.pairwise(found):
        assert a.properties["largest"] < b.properties["smallest"]
    covered = [r for t in found if (r := t.ranges()) is not None]
    assert len(covered) > 20
    whole = Ranges.merged(covered)
    assert [(start, end) for start, end, _ in whole.fragments()] == [(b"\x00005", b"\x00045")]
    assert numbers(db) == [*range(5), *range(7, 45, 7), *range(45, 50)] and numbers(snapshot) == list(range(50))
    assert db.verify().damaged == ()
    snapshot.close()
    db.compact()
    assert all(t.ranges() is None for _, t in tables(db))
    assert numbers(db) == [*range(5), *range(7, 45, 7), *range(45, 50)]


def test_snapshots_between_range_deletes(db: nokv.DB) -> None:
    seen = []
    fill(db, 10)
    for i in range(5):
        seen.append((db.snapshot(), numbers(db)))
        db.delete_range(b"%03d" % i, b"%03d" % (10 - i))
        seen.append((db.snapshot(), numbers(db)))
        db.put(b"%03d" % (i + 2), b"again")
    steps: list[Any] = [int, db.flush, db.compact, db.compact]
    for step in steps:
        step()
        for snapshot, expected in seen:
            assert numbers(snapshot) == expected
            assert [i for i in range(10) if snapshot.get(b"%03d" % i) is not None] == expected


def test_survives_crashes_and_reopening() -> None:
    files = CrashFiles()
    db = open_db(files)
    fill(db, 10)
    db.flush()
    db.delete_range(b"002", b"005")
    db = open_db(files := files.crash_clone("process"))
    assert numbers(db) == [0, 1, 5, 6, 7, 8, 9]
    db.flush()
    db = open_db(files := files.crash_clone("process"))
    assert numbers(db) == [0, 1, 5, 6, 7, 8, 9]
    db.checkpoint("copy")
    with open_db(files, "copy") as copy:
        assert numbers(copy) == [0, 1, 5, 6, 7, 8, 9]


def test_transactions(db: nokv.DB) -> None:
    fill(db, 10)
    with db.transaction() as txn:
        txn.put(b"002", b"mine, and gone")
        txn.delete_range(b"002", b"008")
        txn.put(b"005", b"mine")
        assert txn.get(b"002") is None and txn.get(b"003", b"none") == b"none" and txn.get(b"005") == b"mine"
        assert txn.get(b"008") == b"v"
        assert [int(k) for k, _ in txn.scan()] == [0, 1, 5, 8, 9]
        assert [int(k) for k, _ in txn.scan(reverse=True)] == [9, 8, 5, 1, 0]
        assert numbers(db) == list(range(10))
    assert list(db.scan(b"002", b"009")) == [(b"005", b"mine"), (b"008", b"v")]
    with db.transaction() as txn:
        txn.delete_range(b"002", b"008")
        db.put(b"004", b"written meanwhile, not read")
    assert list(db.scan(b"002", b"009")) == [(b"008", b"v")]  # the commit came later


@pytest.mark.parametrize("flush", [False, True])
def test_a_range_delete_conflicts_with_what_was_read(db: nokv.DB, flush: bool) -> None:
    fill(db, 10)

    def commits(read: Any, start: bytes | None, end: bytes | None) -> bool:
        txn = db.transaction()
        read(txn)
        txn.put(b"x", b"y")
        db.delete_range(start, end)
        if flush:
            db.flush()
        try:
            txn.commit()
        except Conflict:
            return False
        return True

    assert commits(lambda txn: txn.get(b"003"), b"004", b"006")
    assert not commits(lambda txn: txn.get(b"003"), b"003", b"004")
    assert not commits(lambda txn: txn.get(b"absent"), b"a", b"b")
    assert commits(lambda txn: txn.get(b"b"), b"a", b"b")
    assert not commits(lambda txn: list(txn.scan(b"007", b"009")), b"008", b"zzz")
    assert not commits(lambda txn: list(txn.scan(b"007", b"009")), None, None)
    assert commits(lambda txn: list(txn.scan(b"007", b"009")), b"009", None)
    assert commits(lambda txn: None, None, None)


def test_exported_tables_hold_no_range_deletes(db: nokv.DB) -> None:
    fill(db, 20)
    db.flush()
    snapshot = db.snapshot()
    db.delete_range(b"005", b"010")
    db.export_sst("now", [("plain", None, None)])
    db.export_sst("then", [("plain", None, None)], snapshot=snapshot)
    target = open_db(db._files, "target")
    fill(target, 30, b"old")
    target.delete_range(b"000", b"030")
    target.ingest_sst([["now/000001.sst"]])
    assert numbers(target) == [*range(5), *range(10, 20)]
    target.delete_range(b"010", None)
    target.ingest_sst([["then/000001.sst"]])  # newer than the range delete as a whole
    assert numbers(target) == list(range(20))
    target.compact()
    assert numbers(target) == list(range(20))
    names = db.export_sst("gone", [("plain", None, None)], tombstones=True)
    assert [t.entries for t in names] == [15]
    with pytest.raises(UsageError, match="not an external table"):
        target.ingest_sst([[f"db/{t.meta.number:06d}.sst" for _, t in tables(db)][:1]])


def test_repair_keeps_range_deletes(tmp_path: Path) -> None:
    """In tables without a manifest, and in the readable part of a damaged log."""
    with nokv.open(tmp_path / "db") as db:
        fill(db, 20)
        db.flush()
        snapshot = db.snapshot()
        db.delete_range(b"005", b"010")
        db.compact()
        snapshot.close()
    for name in (*tmp_path.glob("db/MANIFEST*"), tmp_path / "db" / "CURRENT"):
        name.unlink()
    nokv.repair(tmp_path / "db")
    with nokv.open(tmp_path / "db") as db:
        assert numbers(db) == [*range(5), *range(10, 20)]
        db.compact()
        db.put(b"012", b"newer", sync=True)
        db.delete_range(b"010", b"015", sync=True)
        db.put(b"013", b"newest", sync=True)
        db.put(b"damaged", b"x" * 100, sync=True)
        db.put(b"after", b"", sync=True)
        segment = tmp_path / "db" / "wal" / f"{db._wal.active_segment:010d}.wal"
    log = bytearray(segment.read_bytes())
    log[log.index(b"x" * 100)] ^= 1
    segment.write_bytes(log)
    with pytest.raises(Corruption):
        nokv.open(tmp_path / "db")
    report = nokv.repair(tmp_path / "db")
    assert report.batches_recovered == 3
    with nokv.open(tmp_path / "db") as db:
        assert numbers(db) == [*range(5), 13, *range(15, 20)]


# -- compact(start, end) ----------------------------------------------------------------------------------------------
def test_compact_a_range() -> None:
    db = open_db(CrashFiles(), table_bytes=600, level_base_bytes=2000, level_growth=2, l0_files_trigger=2)
    for value in (b"1" * 40, b"2" * 40, b"3" * 40):
        fill(db, 200, value)
        db.flush()
        db.compact()
    outside = {t.meta.number for _, t in tables(db) if t.properties["smallest"] > b"\x00060"}
    assert outside
    db.delete_range(b"020", b"040")
    db.put(b"025", b"kept")
    db.compact(b"020", b"040")
    assert numbers(db) == [*range(20), 25, *range(40, 200)]
    stored = [key for key, *_ in db._scan_all(db.view) if b"\x00020" <= key < b"\x00040"]
    assert stored == [b"\x00025"]
    assert outside <= {t.meta.number for _, t in tables(db)}  # not touched
    assert all(t.ranges() is None for _, t in tables(db))
    numbers_before = {t.meta.number for _, t in tables(db)}
    db.compact(b"\xff", None)  # nothing there
    db.family("other").compact()
    assert {t.meta.number for _, t in tables(db)} == numbers_before
    with pytest.raises(UsageError):
        db.compact(b"b", b"a")
    db._versions.check()
    assert db.verify().damaged == ()


# -- the memtable and the table ---------------------------------------------------------------------------------------
def test_many_range_deletes_stay_cheap(db: nokv.DB) -> None:
    """Ten thousand lie in a few lists; the write buffer counts them."""
    with db.write_batch() as batch:
        for i in range(10_000):
            batch.delete_range(b"%05d" % i, b"%05d5" % i)
    mem: MemTable = db.view.mem
    assert len(mem.ranges()) <= 16 and len(mem) == 10_000
    assert mem.used_bytes > 1_000_000
    for key in (b"00000", b"123454", b"09999"):
        assert db.get(key) is None
    db.put(b"00017", b"v")
    assert db.get(b"00017") == b"v"


def built(ranges: Ranges, *keys: bytes, **options: Any) -> bytes:
    class Sink:
        data = b""

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    sink = Sink()
    builder = TableBuilder(sink, **options)  # type: ignore[arg-type]
    for key in keys:
        builder.add(key, b"value", 5)
    builder.set_ranges(ranges)
    builder.finish()
    return sink.data


def test_a_flipped_bit_in_every_byte() -> None:  # R3
    """Right data or Corruption with an offset: the range block is under a checksum as everything is."""
    data = built(Ranges.of([(b"\0b", b"\0d", 7), (b"\0c", b"\0e", 9)]), b"\0a", b"\0c", b"\0x")
    table = Table(data, "t", BlockCache(0))
    assert table.verify() == 3
    assert (table.properties["min_sequence"], table.properties["max_sequence"]) == (5, 9)
    assert [table.get(k) for k in (b"\0a", b"\0bb", b"\0c", b"\0e", b"\0x")] == [
        (1, b"value"), (0, b""), (0, b""), None, (1, b"value"),
    ]  # fmt: skip
    assert table.get(b"\0c", 6) == (1, b"value") and table.get(b"\0bb", 6) is None
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            Table(bytes(damaged), "t", BlockCache(0)).verify()
        except NoKVError as error:
            assert getattr(error, "offset", 0) is not None
        else:
            raise AssertionError(f"byte {at} may change unseen")


def test_external_tables_take_none() -> None:
    with pytest.raises(InvariantError):
        built(Ranges.of([(b"\0b", b"\0d", 7)]), b"\0a", external=True)


@given(st.binary(min_size=1, max_size=3), st.binary(max_size=3))
def test_batch_records_that_end_before_they_begin(start: bytes, end: bytes) -> None:
    batch = nokv.WriteBatch()
    batch.delete_range(b"", b"\1")
    whole = batch.payload(1)[:13] + bytes([len(start)]) + start + bytes([len(end)]) + end
    if start < end:
        assert decode_batch(whole)[1] == [(3, start[0], start[1:], end)]
    else:
        with pytest.raises(Corruption):
            decode_batch(whole)
