"""Value files: large values outside the tables, their garbage, damage, and everything that must know of them."""

from __future__ import annotations

import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.blockcache import BlockCache
from nokv._ext.crc32c import crc32c
from nokv._ext.tablebuilder import TableBuilder
from nokv._ext.valuefile import ValueFile, ValueSink
from nokv.engine.compaction.picker import pick_everything
from nokv.engine.sst.external import check_group
from nokv.engine.values import value_name
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles

SMALL: dict[str, Any] = {"value_file_threshold": 100, "value_file_bytes": 4096, "durability": "process"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db")


def value_files(path: str) -> list[str]:
    return sorted(name for name in os.listdir(path) if name.endswith(".val"))


def fill(db: nokv.DB, count: int = 30, size: int = 500) -> dict[bytes, bytes]:
    expected = {}
    for n in range(count):
        expected[b"k%03d" % n] = b"%d:" % n + bytes([n % 251]) * (size if n % 3 else 20)
        db.put(b"k%03d" % n, expected[b"k%03d" % n])
    return expected


def check(db: nokv.DB, expected: dict[bytes, bytes]) -> None:
    db._versions.check()
    assert dict(db.scan()) == expected
    assert list(db.scan(reverse=True)) == sorted(expected.items(), reverse=True)
    assert db.get_many(list(expected)) == list(expected.values())
    assert list(db.scan(values=False)) == sorted(expected)
    it = db.iterator()
    assert not expected or (it.seek_last() and it.value == expected[it.key])
    assert not db.verify().damaged


def test_large_values_leave_the_tables_and_read_the_same(path: str) -> None:
    with nokv.open(path, **SMALL) as db:
        expected = fill(db)
        check(db, expected)
        assert db.stats()["values"]["files"] == 0
        db.flush()
        assert len(value_files(path)) == db.stats()["values"]["files"] == 3  # 20 of 500 bytes each, 4 KiB a file
        table = sum(os.path.getsize(f"{path}/{name}") for name in os.listdir(path) if name.endswith(".sst"))
        assert table < 3000
        check(db, expected)
        assert db.verify().values == 20
        with db.snapshot() as before:
            db.put(b"k001", b"x" * 300)
            db.delete(b"k002")
            db.compact()
            assert before.get(b"k001") == expected[b"k001"] and dict(before.scan()) == expected
        expected[b"k001"] = b"x" * 300
        del expected[b"k002"]
        check(db, expected)
        db.compact()
        check(db, expected)
    for options in (SMALL, {"value_file_threshold": 0}, {}):
        with nokv.open(path, **options) as db:
            check(db, expected)
            db.compact()
            check(db, expected)


def test_families_of_the_transaction_layer_keep_their_records_in_tables(path: str) -> None:
    with nokv.open(path, families=["default", "lock", "write", "local", "mine"], **SMALL) as db:
        for name in ("default", "lock", "write", "local", "mine"):
            db.family(name).put(b"k", b"v" * 200)
        db.flush()
        assert db.stats()["values"]["live_bytes"] == 400  # default and mine
        assert all(db.family(name).get(b"k") == b"v" * 200 for name in ("default", "lock", "write", "local", "mine"))


def test_values_that_expire(path: str) -> None:
    clock = FakeClock()
    with nokv.open(path, clock=clock, **SMALL) as db:
        db.put(b"short", b"s" * 200, ttl=1000)
        db.put(b"long", b"l" * 200, ttl=1_000_000)
        db.flush()
        assert db.stats()["values"]["live_bytes"] == 400
        assert db[b"short"] == b"s" * 200 and db[b"long"] == b"l" * 200
        it = db.iterator()
        assert it.seek(b"long") and it.value == b"l" * 200 and it.expires_at_ms == clock.time_ms() + 1_000_000
        it.close()
        clock.advance_ms(1001)
        assert db.get(b"short") is None and dict(db) == {b"long": b"l" * 200}
        db.put(b"another", b"a")
        db.compact()
        assert db.stats()["values"]["live_bytes"] == 200
        check(db, {b"long": b"l" * 200, b"another": b"a"})


def test_garbage_goes_and_nothing_else(path: str) -> None:
    with nokv.open(path, **SMALL, l0_files_trigger=2, executor=StepExecutor(inline=True)) as db:
        expected: dict[bytes, bytes] = {}
        dice = random.Random(1)
        written = 0
        for n in range(1500):
            key = b"k%02d" % dice.randrange(60)
            if dice.random() < 0.2:
                db.delete(key)
                expected.pop(key, None)
            else:
                expected[key] = dice.randbytes(dice.choice([10, 99, 100, 300, 900]))
                written += len(expected[key]) if len(expected[key]) >= 100 else 0
                db.put(key, expected[key])
            if n % 25 == 24:
                db.flush()
                db._versions.check()
        check(db, expected)
        stats = db.stats()["values"]
        live = sum(len(v) for v in expected.values() if len(v) >= 100)
        assert stats["written_bytes"] > 200_000 > 30 * live / 10 > stats["file_bytes"] > live
        assert stats["dead_bytes"] <= stats["live_bytes"] + stats["dead_bytes"] // 2
        db.compact()
        stats = db.stats()["values"]
        assert (stats["live_bytes"], stats["dead_bytes"]) == (live, 0)
        check(db, expected)
        assert len(value_files(path)) == stats["files"]
        for key in list(expected):
            db.delete(key)
        db.compact()
        assert value_files(path) == [] and db.stats()["values"]["files"] == 0


def test_a_file_of_garbage_is_rewritten_where_its_tables_lie(path: str) -> None:
    with nokv.open(path, **{**SMALL, "value_file_bytes": 1 << 20}, executor=StepExecutor(inline=True)) as db:
        expected = fill(db, 60)
        db.compact()
        (first,) = value_files(path)
        for n in range(45):
            expected[b"k%03d" % n] = b"small"
            db.put(b"k%03d" % n, b"small")
        db.flush()
        db.compact()
        assert value_files(path) != [first]
        check(db, expected)


@pytest.mark.parametrize("noticed", ["by the compaction itself", "before"])
def test_compact_of_a_range_gives_the_space_of_its_values_back(path: str, noticed: str) -> None:
    options = {**SMALL, "value_file_bytes": 1 << 20, "value_garbage_percent": 100, "table_bytes": 1 << 20}
    with nokv.open(path, **options, executor=StepExecutor(inline=True), families=["other"]) as db:
        other = db.family("other")
        expected = {letter + b"%02d" % n: bytes([n]) * 1000 for letter in (b"a", b"b", b"c") for n in range(20)}
        db.put_many(expected)
        other.put_many(expected)
        db.compact()
        (shared,) = value_files(path)
        for n in range(5):
            db.delete(b"b%02d" % n)
            del expected[b"b%02d" % n]
        if noticed == "before":  # the range's tables do not refer to the lost values any more
            db.flush()
            everything = pick_everything(db._versions.current.files())
            assert everything is not None
            db._versions.run(everything, ())
            db._install_version()
            assert db.stats()["values"]["dead_bytes"] == 5000
        db.compact(b"d")
        db.compact(None, b"a")
        other.compact(b"x")
        assert value_files(path) == [shared]  # none of theirs
        with db.snapshot():
            db.compact(b"b", b"c")
        if noticed == "before":
            assert shared not in value_files(path)
        db.compact(b"b", b"c")
        assert shared not in value_files(path)
        stats = db.stats()["values"]
        assert (stats["live_bytes"], stats["dead_bytes"]) == (115_000, 0)
        assert stats["file_bytes"] < 125_000
        check(db, expected)
        assert len(list(other.scan())) == 60


def test_what_a_reader_walks_stays_readable_though_the_file_goes(path: str) -> None:
    with nokv.open(path, **SMALL) as db:
        expected = fill(db)
        db.flush()
        files = value_files(path)
        with nokv.open(path, read_only=True) as reader:
            scan, snapshot, iterator = db.scan(), db.snapshot(), reader.iterator()
            first = next(scan)
            for key in expected:
                db.put(key, b"new")
            snapshot_state = snapshot
            db.compact()
            assert dict(reader.scan()) == expected  # the other process' files are unlinked, not unmapped
            assert dict([first, *scan]) == expected == dict(snapshot_state.scan())
            assert iterator.seek(b"k001") and iterator.value == expected[b"k001"]
            snapshot.close()
            db.compact()
            assert not set(files) & set(value_files(path))
            assert iterator.next() and iterator.value == expected[b"k002"]
            assert reader.refresh() and set(reader.values()) == {b"new"}


def test_checkpoint_export_and_ingest(path: str, tmp_path: Path) -> None:
    with nokv.open(path, **SMALL) as db:
        expected = fill(db)
        db.put(b"t", b"ttl" * 100, ttl=10**9)
        expected[b"t"] = b"ttl" * 100
        db.flush()
        db.checkpoint(tmp_path / "copy")
        tables = db.export_sst(str(tmp_path / "out"), [("plain", None, None)])
        for name in value_files(path):
            assert os.stat(f"{path}/{name}").st_ino == os.stat(tmp_path / "copy" / name).st_ino
        db.link_tables(str(tmp_path / "linked"))
        assert value_files(str(tmp_path / "linked")) == value_files(path)
    shutil.rmtree(path)
    with nokv.open(tmp_path / "copy", **SMALL) as db:
        check(db, expected)
        db.put(b"more", b"m" * 400)
        db.compact()
        check(db, {**expected, b"more": b"m" * 400})
    with nokv.open(tmp_path / "other", **SMALL) as db:
        db.ingest_sst([[str(tmp_path / "out" / table.name) for table in tables]])
        check(db, expected)
        assert db.stats()["values"]["files"] == 0
        db.compact()  # a compaction separates what came in whole
        assert db.stats()["values"]["live_bytes"] == sum(len(v) for v in expected.values() if len(v) >= 100)
        check(db, expected)


# -- damage -----------------------------------------------------------------------------------------------------------
def test_a_missing_file_fails_the_open_and_changes_nothing(path: str) -> None:  # ENG-14
    with nokv.open(path, **SMALL) as db:
        fill(db)
        db.flush()
    name = value_files(path)[1]
    os.rename(f"{path}/{name}", f"{path}.away")
    before = {p.name: p.read_bytes() for p in Path(path).iterdir() if p.is_file()}
    for read_only in (False, True):
        with pytest.raises(nokv.Corruption, match="missing") as caught:
            nokv.open(path, read_only=read_only, **SMALL)
        assert caught.value.path == f"{path}/{name}"
    assert before == {p.name: p.read_bytes() for p in Path(path).iterdir() if p.is_file()}


def test_every_flipped_bit_is_found_or_harmless(path: str) -> None:  # R3
    with nokv.open(path, **SMALL) as db:
        expected = {b"a": b"1" * 150, b"b": b"2" * 130}
        db.put_many(expected)
        db.flush()
    (name,) = value_files(path)
    file = Path(path, name)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            with nokv.open(path, read_only=True) as db:
                report = db.verify()
                assert report.damaged and report.damaged[0].path == str(file)
                for key, value in expected.items():
                    try:
                        assert db[key] == value
                    except nokv.Corruption as error:
                        assert error.path == str(file) and error.offset >= 32
        except (nokv.Corruption, nokv.NotSupported) as error:
            assert at < 32, at
            assert str(file) in str(error)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(nokv.Corruption) as caught:
            nokv.open(path, read_only=True)
        assert caught.value.path == str(file)


@pytest.mark.parametrize("harm", ["flip", "missing", "cut", "header"])
@pytest.mark.parametrize("manifest", [True, False])
def test_repair_keeps_what_can_be_read(path: str, harm: str, manifest: bool) -> None:
    with nokv.open(path, **{**SMALL, "value_file_bytes": 2048}) as db:
        expected = fill(db)
        db.flush()
        files = value_files(path)
        assert len(files) > 2
    victim = Path(path, files[1])
    whole = victim.read_bytes()
    in_victim = {record[1][1:] for record in ValueFile(whole, "f").records()}
    if harm == "flip":
        victim.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    elif harm == "missing":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(whole[:-1])
    else:
        victim.write_bytes(b"X" + whole[1:])
    if not manifest:
        for p in Path(path).glob("MANIFEST-*"):
            p.unlink()
    report = nokv.check(path)
    assert not report.healthy and (any(str(victim) in line for line in report.problems) or harm == "missing")
    done = nokv.repair(path)
    assert done.changed
    with nokv.open(path, **SMALL) as db:
        found = dict(db)
        assert found.items() <= expected.items()
        lost = expected.keys() - found.keys()
        assert lost <= in_victim and len(lost) == (1 if harm in ("flip", "cut") else len(in_victim))
        check(db, found)
        db.compact()
        check(db, found)
    assert nokv.check(path).healthy


def test_repair_leaves_healthy_value_files_alone_and_destroy_removes_them(path: str) -> None:
    with nokv.open(path, **SMALL) as db:
        fill(db)
        db.flush()
    assert nokv.check(path).healthy and not nokv.repair(path).changed
    nokv.destroy(path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("stated", [True, False])
def test_an_external_table_refers_to_no_value_file(stated: bool) -> None:
    """It would be another directory's file."""
    files = CrashFiles()
    with nokv.open("db", files=files, executor=StepExecutor(), **SMALL) as db:
        db.put(b"k", b"v" * 200)
        db.flush()
        cursor = db._versions.current.cursor()
        cursor.seek_first()
        prefix, _, kind, reference = cursor.entry
        builder = TableBuilder(file := files.create("t.sst"), external=True)
        builder.add(prefix, reference, 0, kind)
        builder.finish()
        file.sync()
        file.close()
        if not stated:
            data = bytearray(files.read_file("t.sst"))
            footer = len(data) - 64
            at, size = struct.unpack_from("<QQ", data, footer + 16)
            place = data.index(b"\x14", at)  # the tag of `value_files`: readers pass over one that they do not know
            assert data[place + 1] == 3
            data[place] = 0x7F
            struct.pack_into("<I", data, at + size + 5, crc32c(bytes(data[at : at + size + 5])))
            changed = files.create("u.sst")
            changed.write(bytes(data))
            changed.close()
        with pytest.raises((nokv.UsageError, nokv.Corruption), match=r"value file|files that do not travel"):
            check_group(files, ["t.sst" if stated else "u.sst"], BlockCache(0))


# -- the parser -------------------------------------------------------------------------------------------------------
def made_file() -> bytes:
    files = CrashFiles()
    files.makedirs("d")
    sink = ValueSink({}, threshold=1, create=lambda: (7, "d/000007.val", files.create("d/000007.val")))
    from nokv._ext.db import Core
    from nokv._ext.memtable import MemTable
    from nokv._ext.tablebuilder import TableBuilder, VersionFilter

    mem = MemTable(1)
    for n in range(5):
        mem.insert(n + 1, 1, b"\0key%d" % n, b"v" * (n * 40 + 1))
    builder = TableBuilder(files.create("d/t"), sink=sink)
    source = Core._memtable_cursor(Core.__new__(Core), mem)
    source.seek_first()
    builder.fill(source, VersionFilter(), 1 << 40)
    builder.finish()
    assert [item[0] for item in sink.finish()] == [7]
    return files.read_file("d/000007.val")


WHOLE = made_file()


def walk(data: bytes) -> list[Any]:
    try:
        return list(ValueFile(data, "f").records(check=True))
    except (nokv.Corruption, nokv.NotSupported):
        return []


def test_the_layout_is_what_the_page_says() -> None:
    assert WHOLE[:8] == b"NOKVVAL\x01" and int.from_bytes(WHOLE[12:20], "little") == 7
    records = ValueFile(WHOLE, "f", 7, len(WHOLE)).records(check=True)
    at, key, sequence, size, crc = next(records)
    assert (at, key, sequence, size, crc) == (32, b"\0key0", 1, 1, crc32c(b"v"))
    assert WHOLE[32 + 24 : 32 + 24 + 6] == b"\0key0v"
    assert [record[3] for record in records] == [41, 81, 121, 161]
    with pytest.raises(nokv.Corruption):
        ValueFile(WHOLE, "f", 8)
    newer = WHOLE[:8] + (2).to_bytes(4, "little") + WHOLE[12:28]
    with pytest.raises(nokv.NotSupported):
        ValueFile(newer + crc32c(newer).to_bytes(4, "little") + WHOLE[32:], "f")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_hostile_bytes(data: st.DataObject) -> None:  # R4
    made = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(made) - 1))
        junk = data.draw(st.binary(max_size=12))
        made[at : at + len(junk)] = junk
    cut = bytes(made[: data.draw(st.integers(0, len(made)))])
    found = walk(cut)
    assert not found or cut == WHOLE or cut == WHOLE[: len(cut)]
    walk(data.draw(st.binary(max_size=200)))
    ok = WHOLE[:32] + data.draw(st.binary(max_size=200))
    walk(ok)


# -- a crash at every operation ---------------------------------------------------------------------------------------
def crash_images(count: int) -> Iterator[tuple[int, CrashFiles]]:
    for k in range(1, count):
        files = CrashFiles(seed=k, crash_at=k)
        yield k, files


def test_the_reference_names_a_file_that_is_there_after_any_crash() -> None:
    crashed = 0
    for k, files in crash_images(10_000):
        state: dict[bytes, bytes] = {}
        history = [dict(state)]
        try:
            db = nokv.open("db", files=files, executor=StepExecutor(inline=True), **SMALL, l0_files_trigger=2)
            for n in range(24):
                state[b"k%d" % (n % 5)] = b"%d" % n * 150
                history.append(dict(state))
                db.put(b"k%d" % (n % 5), state[b"k%d" % (n % 5)], sync=True)
                if n % 4 == 3:
                    db.flush()
                if n % 10 == 9:
                    db.compact()
            db.close()
        except BaseException as error:
            if not files.crashed:
                raise error
        if not files.crashed:
            break
        crashed += 1
        for mode in ("drop", "random", "torn"):
            image = files.crash_clone(mode, seed=k)
            with nokv.open("db", files=image, executor=StepExecutor(inline=True), **SMALL) as db:
                found = dict(db)
                assert found in history[-2:], (k, mode)
                check(db, found)
                assert {value_name(n) for n in db._versions.values.metas} <= set(image.listdir("db")), (k, mode)
    assert crashed > 100


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [5 << 20, pytest.param((1 << 30) - 1, marks=pytest.mark.long)])
def test_very_large_values(path: str, size: int) -> None:
    value = random.Random(size).randbytes(1 << 20) * (size >> 20) + bytes(size & (1 << 20) - 1)
    assert len(value) == size
    with nokv.open(path, durability="process", write_buffer_bytes=1 << 20, wal_segment_bytes=2 << 20) as db:
        db.put(b"k", value)
        assert db[b"k"] == value
        db.put(b"after", b"1")
        db.flush()
        assert db[b"k"] == value and db.stats()["values"]["live_bytes"] == size
        with pytest.raises(nokv.UsageError):
            db.put(b"k", bytes(1 << 30))
    del value
    with nokv.open(path) as db:
        assert len(db[b"k"]) == size and not db.verify().damaged


def test_a_scan_of_large_values_holds_few_of_them(path: str) -> None:
    with nokv.open(path, durability="process") as db:
        expected = {b"%02d" % n: bytes([n]) * (400 << 10) for n in range(20)}
        expected |= {b"s%03d" % n: b"small" for n in range(100)}
        db.put_many(expected)
        db.flush()
        for reverse in (False, True):
            for limit in (None, 1, 3, 50):
                items = sorted(expected.items(), reverse=reverse)[:limit]
                assert list(db.scan(reverse=reverse, limit=limit)) == items
                assert db.scan(reverse=reverse, limit=limit).fetch(1000) == items
        tracemalloc.start()
        try:
            count = sum(1 for _ in db.scan())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 120 and peak < 4 << 20, peak
