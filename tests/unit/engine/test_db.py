"""The database's own surface: verbs, errors with hints, modes, durability, failure, threads."""

from __future__ import annotations

import errno
import gc
import os
import random
import shelve
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.batch import decode_batch
from nokv.engine.mode import (
    CLUSTER,
    MODES,
    PREPARING,
    SEEDED,
    STANDALONE,
    ModeRecord,
    check_transition,
    read_mode,
    write_mode,
)
from nokv.env.files import OsFiles
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles, FaultFiles
from tests.sanitizer import without_leaks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db")


@pytest.fixture
def db(path: str) -> Iterator[nokv.DB]:
    with nokv.open(path, durability="process") as db:
        yield db


def test_round_trip_and_reopen(path: str) -> None:
    """ENG-01"""
    with nokv.open(path) as db:
        db.put(b"a", b"1")
        db.put(b"", b"the empty key")
        db.put(b"b", b"")
        db.delete(b"absent")
        db.put_many({b"c": b"3", b"d": b"4"})
        assert db.get_many([b"d", b"x", b"a"]) == [b"4", None, b"1"]
        assert db.get(b"x", b"default") == b"default"
    for _ in range(2):
        with nokv.open(path, create=False) as db:
            assert list(db.scan()) == [(b"", b"the empty key"), (b"a", b"1"), (b"b", b""), (b"c", b"3"), (b"d", b"4")]
            db.flush()
    assert db.closed
    db.close()


def test_is_a_mapping(db: nokv.DB) -> None:
    db[b"k"] = b"v"
    db.update({b"a": b"1", b"b": b"2"})
    assert db[b"k"] == b"v" and b"k" in db and b"z" not in db and len(db) == 3
    assert list(db) == [b"a", b"b", b"k"] and next(iter(db.items())) == (b"a", b"1") and next(iter(db.values())) == b"1"
    assert db.pop(b"a") == b"1" and db.setdefault(b"n", b"m") == b"m"
    for missing in (lambda: db[b"zz"], lambda: db.__delitem__(b"zz")):
        with pytest.raises(KeyError):
            missing()
    del db[b"k"]
    db.clear()
    assert len(db) == 0 and bool(db)
    shelf = shelve.Shelf(db)  # type: ignore[arg-type, var-annotated]
    shelf["a"] = {"b": 1}
    shelf.sync()
    assert shelf["a"] == {"b": 1} and list(shelf) == ["a"]
    db.close()
    shelf.close()  # as at interpreter exit, where databases end before shelves do: nothing is left to sync


def test_wrong_arguments_are_named(db: nokv.DB) -> None:
    # type: ignore[arg-type, call-overload]
    for call in (lambda: db.put("k", b"v"), lambda: db.put(b"k", 1), lambda: db.get("k"), lambda: db.scan("a")):
        with pytest.raises(TypeError) as wrong:
            call()  # type: ignore[no-untyped-call]
        assert isinstance(wrong.value, nokv.UsageError) and wrong.value.hint
    for call in (
        lambda: db.put(b"k" * 65537, b""),
        lambda: db.scan(b"b", b"a"),
        lambda: db.scan(limit=-1),
        lambda: db.scan(keys=False, values=False),  # type: ignore[call-overload]
        lambda: db.family(""),
    ):
        with pytest.raises(nokv.UsageError):
            call()  # type: ignore[no-untyped-call]
    db.put(b"k" * 65536, b"long")
    assert db.get(b"k" * 65536) == b"long" and db.get(b"k" * 65537) is None
    db.put(bytearray(b"ba"), memoryview(b"mv"))
    assert db.get(b"ba") == b"mv"
    with pytest.raises(nokv.NotFound) as missing:
        db.family("nothing")
    assert "create=True" in missing.value.hint
    assert len(list(db.scan())) == 2


def test_opening_badly_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(nokv.NotFound):
        nokv.open(tmp_path / "no", create=False)
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(nokv.UsageError, match="not a directory"):
        nokv.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(nokv.NotFound):
        nokv.open(tmp_path / "empty", create=False)
    for options in ({"durability": "perhaps"}, {"mode": "x"}, {"wal_segmnt_bytes": 1}, {"write_buffer_bytes": 1}):
        with pytest.raises(nokv.UsageError) as caught:
            nokv.open(tmp_path / "new", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists() and caught.value
    assert list((tmp_path / "empty").iterdir()) == []


def test_one_process_at_a_time(path: str, db: nokv.DB) -> None:
    """ENG-11"""
    with pytest.raises(nokv.Locked):
        nokv.open(path)
    code = f"import nokv\ntry: nokv.open({path!r})\nexcept nokv.Locked: print('locked')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert done.stdout == b"locked\n"


@pytest.mark.parametrize("mode", [PREPARING, SEEDED, CLUSTER])
def test_other_modes_are_refused(path: str, mode: str) -> None:
    """ENG-09"""
    nokv.open(path).close()
    record = ModeRecord(mode, store_id=1, region_id=1, peer_id=101)
    write_mode(path, record, OsFiles())
    assert read_mode(path, OsFiles()) == record
    before = sorted(os.listdir(path))
    with pytest.raises(nokv.ModeError) as caught:
        nokv.open(path)
    assert caught.value.mode == mode and "nokv " in caught.value.hint and sorted(os.listdir(path)) == before
    with nokv.open(path, mode=mode) as db:
        assert db.mode == mode
    if mode == SEEDED:
        nokv.open(path, mode=CLUSTER).close()


def test_mode_transitions() -> None:
    """MIG-09"""
    allowed = {(STANDALONE, PREPARING), (PREPARING, SEEDED), (SEEDED, CLUSTER), (CLUSTER, CLUSTER)}
    for old in MODES:
        for new in MODES:
            if (old, new) in allowed:
                check_transition(old, new)
            else:
                with pytest.raises(nokv.PreconditionFailed):
                    check_transition(old, new)


def test_every_damage_of_the_mode_file_is_found(path: str) -> None:
    files = OsFiles()
    os.mkdir(path)
    record = ModeRecord(SEEDED, 1, 2, 3, "meta-root")
    write_mode(path, record, files)
    good = files.read_file(f"{path}/MODE.json")
    for offset in range(len(good)):
        for bit in (1, 16, 128):
            bad = bytearray(good)
            bad[offset] ^= bit
            Path(path, "MODE.json").write_bytes(bad)
            try:
                assert read_mode(path, files) == record
            except (nokv.Corruption, nokv.NotSupported) as error:
                assert "MODE.json" in str(error)
    for size in range(len(good) - 1):
        Path(path, "MODE.json").write_bytes(good[:size])
        with pytest.raises(nokv.Corruption):
            read_mode(path, files)


def test_batches_apply_whole_or_not_at_all(db: nokv.DB) -> None:
    """ENG-17"""
    other = db.family("other", create=True)
    with db.write_batch(sync=True) as batch:
        batch.put(b"a", b"1")
        batch.put(b"a", b"2")
        batch.put(b"x", b"3", "other")
        batch.put(b"y", b"4", other)
        batch.delete(b"a")
    assert list(db.scan()) == [] and list(other.scan()) == [(b"x", b"3"), (b"y", b"4")]
    with pytest.raises(RuntimeError), db.write_batch() as batch:
        batch.put(b"never", b"")
        raise RuntimeError
    with pytest.raises(nokv.UsageError):
        nokv.WriteBatch().put(b"k", b"v", "other")  # this one knows no names
    with pytest.raises(nokv.NotFound):
        stranger = nokv.WriteBatch()
        stranger.put(b"k", b"v", 200)
        db.write(stranger)
    assert list(db.scan()) == []
    batch = nokv.WriteBatch()
    batch.put_many([(b"1", b"1"), (b"2", b"2")])
    db.write(batch)
    db.write(batch)
    batch.clear()
    db.write(batch)
    assert len(db) == 2 and len(batch) == 0


OPERATIONS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300), st.none() | st.binary(max_size=200)))


@given(operations=OPERATIONS, sequence=st.integers(0, 2**56 + 1), junk=st.binary(max_size=100))
@settings(deadline=None)
def test_batch_bytes_round_trip_and_junk_is_refused(
    operations: list[tuple[int, bytes, bytes | None]], sequence: int, junk: bytes
) -> None:
    batch = nokv.WriteBatch()
    for family, key, value in operations:
        if value is None:
            batch.delete(key, family)
        else:
            batch.put(key, value, family)
    payload = batch.payload(sequence)
    expected = [(0 if value is None else 1, family, key, value) for family, key, value in operations]
    if 0 < sequence <= 2**56 - len(operations):
        assert decode_batch(payload) == (sequence, expected)
    else:
        with pytest.raises(nokv.Corruption, match="impossible sequence"):
            decode_batch(payload)
    for bad in (junk, payload[: len(junk)], payload + junk, payload[: len(payload) // 2] + junk):
        try:
            decode_batch(bad)
        except nokv.Corruption as error:
            assert 0 <= error.offset <= len(bad)


def test_unlogged_writes_are_durable_after_a_flush() -> None:
    files = CrashFiles()
    db = nokv.open("db", files=files, executor=StepExecutor(), families=["local"])
    flushed: list[int] = []
    db.on_flush(lambda: flushed.append(1))
    batch = nokv.WriteBatch()
    batch.put(b"applied", b"7", db.family("local"))
    records = db.wal.stats()["appended_records"]
    db.write(batch, log=False)
    assert db.wal.stats()["appended_records"] == records
    assert db.family("local").get(b"applied") == b"7" and db.flushed_get("local", b"applied") is None
    lost = nokv.open("db", files=files.crash_clone("process"), executor=StepExecutor())
    assert lost.family("local").get(b"applied") is None
    db.flush()
    assert flushed and db.flushed_get("local", b"applied") == b"7"
    kept = nokv.open("db", files=files.crash_clone("drop"), executor=StepExecutor())
    assert kept.family("local").get(b"applied") == b"7"


def test_the_log_is_shared_and_kept_for_its_retainers(path: str) -> None:
    """ENG-03, ENG-05"""
    with nokv.open(path, wal_retainers=("raft",), wal_segment_bytes=4096, durability="process") as db:
        for n in range(200):
            db.put(b"%d" % n, b"x" * 50)
            db.wal.append(16, b"entry %d" % n)
        db.flush()
        assert db.wal.segments()[0] == 1
        assert [payload for _, _, payload in db.wal.replay({16})] == [b"entry %d" % n for n in range(200)]
        db.wal.retain("raft", None)
        db.wal.sync()
        db.wal.retain("raft", None)
        assert len(db.wal.segments()) <= 2


def test_interval_durability_syncs_by_itself() -> None:
    files = CrashFiles()
    executor = StepExecutor()
    db = nokv.open("db", files=files, executor=executor)
    db.put(b"k", b"v")
    executor.run_all()
    db.put(b"later", b"lost")
    found = nokv.open("db", files=files.crash_clone("drop"), executor=StepExecutor())
    assert dict(found) == {b"k": b"v"}


def test_a_failed_sync_makes_it_read_only() -> None:
    """R2f: at every sync of the log."""
    for at in range(1, 8):
        inner = CrashFiles()
        files = FaultFiles(inner)
        db = nokv.open("db", files=files, executor=StepExecutor(inline=True), durability="process")
        files.fail("sync", at=at, error=errno.EIO, path=".wal")
        acknowledged = 0
        with pytest.raises(nokv.ReadOnly):
            for n in range(10):
                db.put(b"%d" % n, b"v", sync=True)
                acknowledged += 1
        assert acknowledged == at - 1 and db.get(b"0") == (b"v" if at > 0 else None)
        # type: ignore[misc]
        for write in (lambda db=db: db.put(b"x", b""), lambda db=db: db.flush(), lambda db=db: db.sync()):
            with pytest.raises(nokv.ReadOnly):
                write()  # type: ignore[no-untyped-call]
        assert db.stats()["write"]["read_only"]
        db.close()
        found = dict(nokv.open("db", files=inner.crash_clone("drop"), executor=StepExecutor()))
        assert all(found.get(b"%d" % n) == b"v" for n in range(acknowledged))


def test_a_full_disk_stops_writes_and_not_reads() -> None:
    inner = CrashFiles()
    files = FaultFiles(inner)
    db = nokv.open(
        "db", files=files, executor=StepExecutor(inline=True), write_buffer_bytes=4096, wal_segment_bytes=4096
    )
    db.put(b"before", b"v")
    for kind in ("create", "open_log"):
        files.fail(kind, error=errno.ENOSPC, times=None)
    written = 0
    with pytest.raises(nokv.ReadOnly) as caught:
        for n in range(10_000):
            db.put(b"%05d" % n, b"x" * 100)
            written += 1
    assert "space" in caught.value.hint and db.get(b"before") == b"v"
    assert len(db) == written + 1
    files.heal()
    db.put(b"after", b"v")
    db.flush()
    db.close()
    assert len(nokv.open("db", files=inner.crash_clone("drop"), executor=StepExecutor())) == written + 2


def test_a_lost_log_or_table_is_reported_and_nothing_changes(path: str) -> None:
    """ENG-14"""
    with nokv.open(path) as db:
        db.put(b"k", b"v")
        db.flush()
    (table,) = Path(path).glob("*.sst")
    manifest = {file: file.read_bytes() for file in Path(path).glob("MANIFEST*")}
    table.rename(f"{path}/away")
    with pytest.raises(nokv.Corruption) as caught:
        nokv.open(path)
    assert table.name in str(caught.value)
    assert {file: file.read_bytes() for file in Path(path).glob("MANIFEST*")} == manifest
    Path(f"{path}/away").rename(table)
    Path(f"{path}/wal").rename(f"{path}/wal-away")
    with pytest.raises(nokv.Corruption, match="log is missing"):
        nokv.open(path)
    Path(f"{path}/wal-away").rename(f"{path}/wal")
    with nokv.open(path) as db:
        assert dict(db) == {b"k": b"v"}


def test_export_and_ingest(tmp_path: Path) -> None:
    """ENG-08"""
    with nokv.open(tmp_path / "a", durability="process") as source, nokv.open(tmp_path / "b") as target:
        source.put_many([(b"%03d" % n, b"v%d" % n) for n in range(100)])
        files = source.export_sst(str(tmp_path / "out"), [("plain", b"010", b"020")])
        target.put(b"015", b"old")
        target.put(b"500", b"stays")
        target.ingest_sst([[str(tmp_path / "out" / file.name) for file in files]])
        assert dict(target) == {**{b"%03d" % n: b"v%d" % n for n in range(10, 20)}, b"500": b"stays"}
        target.put(b"015", b"new")
        assert target.get(b"015") == b"new"
    with nokv.open(tmp_path / "b") as target:
        assert target.get(b"015") == b"new" and target.get(b"011") == b"v11"


def test_stats_have_their_groups(db: nokv.DB) -> None:
    """ENG-15"""
    db.put(b"k", b"v")
    db.flush()
    stats = db.stats()
    assert {"entries", "write", "read", "flush", "compaction", "wal", "lsm", "cache"} <= stats.keys()
    assert stats["flush"]["count"] == 1 and stats["write"]["puts"] == 1 and stats["lsm"]["l0_files"] == 1


def test_eight_threads_mixed(path: str) -> None:
    """R7: each thread owns some keys and agrees with its own dict; everybody reads everything."""
    seed = int(os.environ.get("NOKV_TEST_SEED", "3"))
    failures: list[BaseException] = []

    def work(db: nokv.DB, number: int) -> None:
        dice, mine = random.Random(seed * 100 + number), dict[bytes, bytes]()
        try:
            for step in range(400):
                key = b"t%d:%02d" % (number, dice.randrange(50))
                action = dice.randrange(8)
                if action < 4:
                    mine[key] = b"%d" % step * dice.choice([1, 50])
                    db.put(key, mine[key], sync=dice.random() < 0.01)
                elif action == 4:
                    db.delete(key)
                    mine.pop(key, None)
                elif action == 5:
                    with db.write_batch() as batch:
                        for part in range(3):
                            mine[b"t%d:%02d" % (number, part)] = b"batch%d" % step
                            batch.put(b"t%d:%02d" % (number, part), b"batch%d" % step)
                elif action == 6:
                    assert dict(db.scan(prefix=b"t%d:" % number)) == mine
                else:
                    assert db.get_many(list(mine)) == list(mine.values())
                if step % 97 == 0:
                    db.flush()
        except BaseException as error:
            failures.append(error)

    with nokv.open(path, write_buffer_bytes=20_000, wal_segment_bytes=1 << 16, l0_files_trigger=2) as db:
        threads = [threading.Thread(target=work, args=(db, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, f"seed {seed}: {failures[0]!r}"
        everything = dict(db.scan())
    with nokv.open(path) as db:
        assert dict(db.scan()) == everything


# -- handles: any order of closing (R6)
# ---------------------------------------------------------------------------------
def test_everything_raises_closed_after_close(path: str) -> None:
    db = nokv.open(path, durability="process", families=["f"])
    db.put_many([(b"%04d" % n, b"v") for n in range(3000)])
    family, snapshot = db.family("f"), db.snapshot()
    started, fresh, under = db.scan(), db.scan(reverse=True), snapshot.scan()
    next(started)
    db.close()
    db.close()
    calls: list[Any] = [
        lambda: db.get(b"k"), lambda: db.put(b"k", b""), lambda: db.delete(b"k"), lambda: db.get_many([b"k"]),
        lambda: db.put_many([]), lambda: db.scan(), db.snapshot, db.flush, db.compact, db.stats,
        lambda: db.family("f"), lambda: db.write(nokv.WriteBatch()), lambda: db.write_batch().__enter__(),
        lambda: family.get(b"k"), lambda: family.put(b"k", b""), lambda: list(family.scan()),
        lambda: snapshot.get(b"k"), snapshot.scan, lambda: snapshot.family("f"), snapshot.__enter__,
        lambda: next(started), lambda: next(fresh), lambda: next(under), lambda: started.fetch(1), lambda: db[b"k"],
        lambda: db.flushed_get(None, b"k"), lambda: db.wal.append(16, b""), lambda: list(db), db.__enter__,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(nokv.Closed):
            call()
    started.close()
    snapshot.close()
    snapshot.close()


def test_scans_and_snapshots_outlive_flush_compaction_and_the_names_of_their_files(path: str) -> None:
    with nokv.open(path, durability="process", write_buffer_bytes=65536) as db:
        db.put_many([(b"%05d" % n, b"old") for n in range(5000)])
        db.flush()
        scan, backwards, snapshot = db.scan(), db.scan(reverse=True), db.snapshot()
        assert next(scan) == (b"00000", b"old") and next(backwards) == (b"04999", b"old")
        for _ in range(3):
            db.put_many([(b"%05d" % n, b"new") for n in range(5000)])
            db.compact()
        assert [value for _, value in scan] == [b"old"] * 4999
        assert sum(1 for _ in backwards) == 4999
        assert snapshot.get(b"04999") == b"old" and set(snapshot.scan(keys=False)) == {b"old"}
        snapshot.close()
        db.compact()
        assert set(db.scan(keys=False)) == {b"new"} and not db.snapshot_sequences()


def test_a_dropped_database_gives_its_lock_back(path: str) -> None:
    db = nokv.open(path)
    db.put(b"k", b"v")
    del db
    gc.collect()
    with nokv.open(path) as again:
        assert dict(again) == {b"k": b"v"}


def test_read_only_opening_changes_nothing(path: str) -> None:
    with nokv.open(path, families=["f"]) as db:
        db.put(b"flushed", b"1")
        db.flush()
        db.family("f").put(b"logged", b"2")

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in Path(path).rglob("*"))

    before = state()
    with nokv.open(path, read_only=True) as one, nokv.open(path, read_only=True) as two:
        assert dict(one) == {b"flushed": b"1"} and two.family("f").get(b"logged") == b"2"
        assert one.stats()["wal"]["segments"] >= 1 and [p for _, _, p in one.wal.replay({1})]
        writes: list[Any] = [
            lambda: one.put(b"k", b"v"), one.flush, one.compact, one.sync, lambda: one.wal.append(16, b""),
            lambda: one.family("new", create=True), lambda: one.ingest_sst([]), lambda: one.put_many([(b"a", b"b")]),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(nokv.ReadOnly):
                write()
    assert state() == before


@pytest.mark.parametrize("end", ["db", "scan", "snapshot", "nothing", "exit"])
def test_the_interpreter_ends_cleanly_whatever_is_left_open(path: str, end: str) -> None:
    code = f"""
import gc, nokv, sys
db = nokv.open({path!r})
db.put_many([(b"%d" % n, b"v" * 50) for n in range(5000)])
db.flush()
db.put(b"x", b"y")
scan, snapshot = db.scan(), db.snapshot()
next(scan)
cycle = [db, scan, snapshot]
cycle.append(cycle)
if {end!r} == "db": db.close(); del db; gc.collect()
if {end!r} == "scan": del db; del scan; gc.collect()
if {end!r} == "snapshot": snapshot.close(); del db, snapshot, scan, cycle; gc.collect()
if {end!r} == "exit": sys.exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**without_leaks(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with nokv.open(path) as db:
        assert len(db) == 5001


def test_a_forked_child_cannot_use_it(path: str) -> None:
    code = f"""
import os, nokv
db = nokv.open({path!r})
db.put(b"k", b"v")
scan = db.scan()
child = os.fork()
if child == 0:
    for call in (lambda: db.get(b"k"), lambda: db.put(b"k", b"w"), lambda: next(scan), db.flush):
        try: call()
        except nokv.Closed as error: assert "fork" in str(error)
        else: os._exit(1)
    db.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
try: nokv.open({path!r})
except nokv.Locked: pass
else: raise SystemExit(3)
assert db.get(b"k") == b"v"
db.put(b"after", b"fork")
db.close()
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=60)


def test_a_close_leaves_no_large_log(tmp_path: Path) -> None:
    """Not even one that has nothing left to replay."""
    with nokv.open(tmp_path / "db") as db:
        db.put_many([(b"%06d" % n, b"v" * 1000) for n in range(20_000)])
        db.put_many([(b"%06d" % n, b"w" * 1000) for n in range(20_000)])
        db.compact()
    assert sum(file.stat().st_blocks * 512 for file in (tmp_path / "db" / "wal").iterdir()) < 4 << 20
    with nokv.open(tmp_path / "db") as db:
        assert len(db) == 20_000


def test_a_close_leaves_nothing_large_to_replay(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    pairs = [(b"%06d" % n, b"v" * 100) for n in range(20_000)]
    with nokv.open(path, durability="process") as db:
        for pair in pairs:
            db.put(*pair)
    with nokv.open(path, durability="process") as db:
        assert db.stats()["entries"]["memtable"] == 0
        assert list(db.scan()) == pairs
        assert db.stats()["wal"]["bytes"] <= 1 << 20
        db.put(b"little", b"stays in the log")
    with nokv.open(path, durability="process") as db:
        assert db.stats()["entries"]["memtable"] == 1
        assert db.get(b"little") == b"stays in the log"


def test_opening_and_closing_does_not_pile_up_segments(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path) as db:
        db.put_many([(b"%06d" % n, b"v" * 100) for n in range(5_000)])
    for _ in range(20):
        with nokv.open(path) as db:
            assert len(db.stats()["wal"]) and db.stats()["wal"]["segments"] <= 7
            assert db.get(b"004999") == b"v" * 100


def test_a_close_keeps_the_segments_that_others_need(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path, wal_retainers=("raft",)) as db:
        db.wal.append(16, b"an entry")
        db.put_many([(b"%06d" % n, b"v" * 100) for n in range(5_000)])
    with nokv.open(path, wal_retainers=("raft",)) as db:
        assert [payload for _, _, payload in db.wal.replay({16})] == [b"an entry"]
        assert len(db) == 5_000
