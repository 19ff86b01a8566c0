"""`nokv.open(path, read_only=True)` beside a writer: prefixes of history, monotone, nothing written."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles

ROOT = Path(__file__).resolve().parents[3]
SMALL: dict[str, Any] = {
    "write_buffer_bytes": 8192,
    "wal_segment_bytes": 16384,
    "l0_files_trigger": 2,
    "table_bytes": 8192,
    "level_base_bytes": 16384,
    "manifest_bytes_max": 2048,
}
KEYS = 40
TARGET = 4001  # not an ingest: those take two steps

# What operation n does; `expected` below is its sum.
WRITER = """
import os, sys, nokv
from nokv.engine.wal import Wal
Wal.__init__.__kwdefaults__["recycle_syncs"] = 1
path, options = sys.argv[1], eval(sys.argv[2])
db = nokv.open(path, durability="process", families=["even"], **options)
even = db.family("even")
print("ready", flush=True)
travel = path + ".travel"
for n in range(int(sys.argv[4]), int(sys.argv[3]) + 1):
    if n % 250 == 0:
        with nokv.open(travel, durability="process") as other:
            other.put(b"k%02d" % (n % 40), b"%d" % n)
            other.put(b"n", b"%d" % n)
            tables = other.export_sst(travel + "/out%d" % n, [("plain", None, None)])
            for key in list(other):
                other.delete(key)
        db.ingest_sst([[travel + "/out%d/%s" % (n, t.name) for t in tables]])
        even.put(b"n", b"%d" % n)
        continue
    with db.write_batch(sync=n % 50 == 0) as batch:
        batch.put(b"n", b"%d" % n)
        if n % 7 == 0:
            batch.delete(b"k%02d" % (n % 40))
        else:
            batch.put(b"k%02d" % (n % 40), b"%d" % n + b"." * (n % 300))
        batch.put(b"n", b"%d" % n, even)
print("done", flush=True)
sys.stdin.read()
db.close()
"""


def expected(n: int) -> dict[bytes, bytes]:
    state = {b"n": b"%d" % n} if n else {}
    for i in range(max(1, n - KEYS + 1), n + 1):
        if i % 250 == 0:
            state[b"k%02d" % (i % KEYS)] = b"%d" % i
        elif i % 7:
            state[b"k%02d" % (i % KEYS)] = b"%d" % i + b"." * (i % 300)
    return state


def start_writer(path: str, operations: int, first: int = 1) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, repr(SMALL), str(operations), str(first)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    return writer


def look(db: nokv.DB) -> int:
    """The operation after which the directory looked like this; fails unless it looked exactly so."""
    n = int(db.get(b"n", b"0"))
    with db.snapshot() as snapshot:
        state = dict(snapshot.scan())
    assert state == dict(db.scan()) == expected(n)
    assert db.get_many(sorted(state)) == [state[key] for key in sorted(state)]
    assert list(db.scan(reverse=True)) == sorted(state.items(), reverse=True)
    # An ingest is an operation of its own: the other family follows with the next write.
    assert n - int(db.family("even").get(b"n", b"0")) in ((0, 1) if n % 250 == 0 else (0,))
    return n


@pytest.mark.parametrize("target", [TARGET, pytest.param(30_001, marks=pytest.mark.long)])
def test_every_refresh_beside_a_busy_writer_is_a_later_prefix(tmp_path: Path, target: int) -> None:
    path = str(tmp_path / "db")
    writer = start_writer(path, target)
    try:
        with nokv.open(path, read_only=True, **SMALL) as one, nokv.open(path, read_only=True, **SMALL) as two:
            seen = [look(one), look(two)]
            held: list[tuple[int, Any, Any]] = []
            progressed = 0
            while min(seen) < target:
                for index, db in enumerate((one, two)):
                    changed = db.refresh()
                    n = look(db)
                    assert n >= seen[index]
                    assert changed or n == seen[index]
                    progressed += n > seen[index]
                    seen[index] = n
                if len(held) < 20 and progressed % 5 == 0:
                    held.append((seen[0], one.snapshot(), one.scan()))
            assert progressed > 20
            for n, snapshot, scan in held:  # tables and log segments below them have long been removed
                assert dict(snapshot.scan()) == expected(n) == dict(scan)
                assert snapshot.get(b"n", b"0") == b"%d" % n
                assert snapshot.family("even").get(b"n", b"0") in (b"%d" % n, b"%d" % (n - 1))
            stats = one.stats()
            assert stats["reader"]["refreshes"] > 20 and stats["entries"]["snapshots"] == len(held)
            assert writer.stdout is not None and writer.stdout.readline() == "done\n"
            one.refresh()  # the last operation, an ingest, is followed by a write
            assert not one.refresh()
        with pytest.raises(nokv.Locked):
            nokv.open(path)
    finally:
        assert writer.stdin is not None
        writer.stdin.close()
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    with nokv.open(path, read_only=True) as db:
        assert look(db) == target


@pytest.mark.parametrize("rounds", [3])
def test_a_reader_outlives_killed_writers(tmp_path: Path, rounds: int) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path, families=["even"]):
        pass
    with nokv.open(path, read_only=True, **SMALL) as db:
        n = 0
        for _ in range(rounds):
            start = n
            writer = start_writer(path, 10**9, start + 1)
            while n < start + 300:
                db.refresh()
                assert look(db) >= n
                n = look(db)
            writer.kill()
            writer.communicate()
            db.refresh()
            assert look(db) >= n
            n = look(db)
            with nokv.open(path, read_only=True) as other:
                assert dict(other) == dict(db)


def test_a_frozen_view_until_refresh(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path) as db:
        db.put(b"a", b"1")
        with nokv.open(path, read_only=True) as reader:
            iterator, snapshot = reader.iterator(), reader.snapshot()
            db.put(b"a", b"2")
            db.put(b"b", b"2")
            db.family("later", create=True).put(b"x", b"y")
            assert dict(reader) == {b"a": b"1"} and reader.refresh() and dict(reader) == {b"a": b"2", b"b": b"2"}
            assert reader.family("later").get(b"x") == b"y"
            db.compact()
            db.put(b"a", b"3")
            assert reader.refresh() and reader[b"a"] == b"3" and not reader.refresh()
            assert reader.stats()["lsm"]["last_sequence"] == 4
            iterator.seek(b"")
            assert (iterator.key, iterator.value) == (b"a", b"1") and snapshot.get(b"b") is None
            assert snapshot.get_many([b"a", b"b"]) == [b"1", None]
            with reader.transaction() as txn:
                assert txn.get(b"a") == b"3"
            assert db.refresh() is False
            late = reader.snapshot()
        for call in (snapshot.get, late.get, reader.get):
            with pytest.raises(nokv.Closed):
                call(b"a")
        with pytest.raises(nokv.Closed):
            reader.refresh()
        with pytest.raises(nokv.Closed):
            reader.snapshot()
    del reader, late, snapshot, iterator
    gc.collect()


def test_unlogged_writes_show_when_they_are_flushed(tmp_path: Path) -> None:
    """They leave holes in the log: what the log says of their neighbours must not hide them."""
    path = str(tmp_path / "db")
    with nokv.open(path) as db, nokv.open(path, read_only=True) as reader:
        for n in range(30):
            db.put(b"k", b"logged %d" % n)
            batch = nokv.WriteBatch()
            batch.put(b"k", b"unlogged %d" % n)
            db.write(batch, log=False)
            reader.refresh()
            assert reader[b"k"] == b"logged %d" % n
            if n % 3 == 0:
                db.flush()
                reader.refresh()
                assert reader[b"k"] == b"unlogged %d" % n
            db.put(b"other", b"%d" % n)
            reader.refresh()
            assert reader[b"other"] == b"%d" % n
            if n % 3 == 0:
                assert reader[b"k"] == b"unlogged %d" % n


def image(directory: str) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for base, folders, names in os.walk(directory):
        for name in [*names, *folders]:
            p = Path(base, name)
            found[str(p)] = (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes() if p.is_file() else b"")
    return found


def test_a_reader_needs_no_permission_to_write(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with nokv.open(path, **SMALL) as db:
        for n in range(500):
            db.put(b"%d" % n, bytes(100))
    expected_keys = sorted(b"%d" % n for n in range(500))
    os.remove(f"{path}/LOCK")
    before = image(path)
    for base, folders, names in os.walk(path):
        for name in [*names, *folders]:
            os.chmod(os.path.join(base, name), 0o555)
    os.chmod(path, 0o555)
    code = f"""
import os, nokv, nokv.engine.opening, nokv.engine.reader
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
with nokv.open({path!r}, read_only=True) as db:
    assert not os.access({path!r}, os.W_OK)
    print(len(db), db.refresh(), len(db))
"""
    for parent in tmp_path.parents:
        if parent != Path("/") and os.stat(parent).st_uid == os.getuid() and len(parent.parts) > 2:
            os.chmod(parent, 0o755)
    os.chmod(tmp_path, 0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    finally:
        for base, _folders, _names in os.walk(path):
            os.chmod(base, 0o755)
    assert done.returncode == 0 and done.stdout == "500 False 500\n", done.stderr
    assert image(path) == before
    with nokv.open(path, read_only=True) as db:
        assert list(db) == expected_keys


def damage_table(path: Path) -> None:
    table = sorted(path.glob("*.sst"))[0]
    table.unlink()


def damage_log(path: Path) -> None:
    segment = sorted((path / "wal").glob("*.wal"))[-1]
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)


def damage_current(path: Path) -> None:
    (path / "CURRENT").write_bytes(b"nokv 1 MANIFEST-000099 crc32c 00000000\n")


@pytest.mark.parametrize("damage", [damage_table, damage_log, damage_current])
def test_damage_is_an_error_and_the_view_stays(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "db"
    with nokv.open(path) as db:
        db.put(b"flushed", b"1")
        db.flush()
        for n in range(20):
            db.put(b"logged", b"%d" % n * 100)
        shutil.copytree(path, tmp_path / "copy")
    copy = tmp_path / "copy"
    with nokv.open(copy, read_only=True) as reader:
        before = dict(reader)
        damage(copy)
        with pytest.raises(nokv.Corruption):
            nokv.open(copy, read_only=True)
        if damage is damage_current:
            with pytest.raises(nokv.Corruption):
                reader.refresh()
        assert dict(reader) == before


def crashed_images() -> Iterator[tuple[int, CrashFiles]]:
    for k in range(1, 400):
        files = CrashFiles(seed=k, crash_at=k)
        try:
            db = nokv.open("db", files=files, executor=StepExecutor(inline=True), durability="process", **SMALL)
            for n in range(1, 60):
                db.put(b"n", b"%d" % n + b"." * 300)
                if n % 20 == 0:
                    db.compact()
            return
        except BaseException as error:
            if not files.crashed:
                raise error
        yield k, files


def test_a_reader_and_a_recovering_writer_agree() -> None:
    """Whatever a crash leaves, a reader sees what the next writer recovers, and changes nothing."""
    checked = 0
    for k, files in crashed_images():
        image = files.crash_clone("process", seed=k)
        if not image.exists("db/CURRENT"):
            continue
        count = image.operation_count
        with nokv.open("db", files=image, read_only=True) as reader:
            seen = dict(reader)
            assert image.operation_count == count, k
            with nokv.open("db", files=image, executor=StepExecutor(inline=True), **SMALL) as db:
                assert dict(db) == seen, k
                db.put(b"after", b"1")
                reader.refresh()
                assert dict(reader) == {**seen, b"after": b"1"}, k
        checked += 1
    assert checked > 100


def test_range_deletes_and_expiring_values_reach_a_reader(tmp_path: Path) -> None:
    clock = FakeClock()
    with nokv.open(tmp_path / "db", clock=clock) as writer:
        writer.put_many({b"%03d" % i: b"v" for i in range(10)})
        reader = nokv.open(tmp_path / "db", read_only=True, clock=clock)
        before = reader.snapshot()
        writer.delete_range(b"002", b"005")
        writer.put(b"003", b"new", ttl=100)
        for flush in (False, True):
            if flush:
                writer.flush()
            reader.refresh()
            assert [int(k) for k, _ in reader.scan()] == [0, 1, 3, 5, 6, 7, 8, 9]
            assert reader.get_many([b"001", b"002", b"003"]) == [b"v", None, b"new"]
            assert len(list(before.scan())) == 10 and before.get(b"002") == b"v"
        clock.advance_ms(100)
        assert reader.get(b"003") is None and len(list(reader.scan())) == 7
        before.close()
        reader.close()
