"""VersionSet over a disk that forgets: flush, compaction, ingest, export, what the directory holds after a crash
anywhere."""

from __future__ import annotations

import dataclasses
import errno
import gc
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from nokv._ext.blockcache import BlockCache
from nokv._ext.merge import OwnedCursor
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.sst.external import write_external
from nokv.engine.sst.options import LsmOptions
from nokv.engine.versions import VersionSet
from nokv.env.files import OsFiles
from nokv.env.ports import Buffer, Files, WritableFile
from nokv.errors import Corruption, NotFound, PreconditionFailed, ReadOnly, UsageError
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint, FaultFiles


class StrictFiles(CrashFiles):
    """`create` refuses a name that exists, as the real one does; so does every clone."""

    def create(self, path: str) -> WritableFile:
        if self.exists(path):
            raise FileExistsError(17, "File exists", path)
        return super().create(path)

    def crash_clone(self, mode: CrashMode = "drop", *, seed: int | None = None) -> StrictFiles:
        clone = super().crash_clone(mode, seed=seed)
        clone.__class__ = StrictFiles
        assert isinstance(clone, StrictFiles)
        return clone


SMALL = LsmOptions(
    block_bytes=128, compressed_block_bytes=256, table_bytes=2048, level_base_bytes=8192, l0_files_trigger=3
)


class MemoryFile:
    """A WritableFile in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer, /) -> int:
        self.data += data
        return len(data)

    def sync(self) -> None: ...
    def close(self) -> None: ...


def source(entries: list[tuple[bytes, int, bytes | None]]) -> OwnedCursor:
    """A cursor over (family || key, sequence, value or None) in any order: stands in for a memtable."""
    file = MemoryFile()
    builder = TableBuilder(file)
    for key, sequence, value in sorted(entries, key=lambda e: (e[0], -e[1])):
        builder.add(key, value, sequence)
    builder.finish()
    return Table(bytes(file.data), "memory", BlockCache(0)).cursor()


def fresh(files: Files | None = None, options: LsmOptions = SMALL) -> VersionSet:
    files = files or CrashFiles()
    files.makedirs("db")
    versions = VersionSet("db", files, options)
    assert versions.recover() is True
    return versions


def reopen(versions: VersionSet, files: Files | None = None) -> VersionSet:
    again = VersionSet("db", files or versions.files, versions.options)
    assert again.recover() is False
    again.check()
    return again


def flush(versions: VersionSet, entries: list[tuple[bytes, int, bytes | None]], log_number: int | None = None) -> None:
    meta = versions.write_level0(source(entries))
    assert meta is not None
    versions.apply(VersionEdit(added=[meta], log_number=log_number))


def contents(versions: VersionSet, sequence: int = (1 << 56) - 1) -> dict[bytes, bytes]:
    """What a reader at `sequence` sees."""
    seen: dict[bytes, bytes | None] = {}
    cursor = versions.current.cursor()
    cursor.seek_first()
    while cursor.valid:
        key, at, kind, value = cursor.entry
        if at <= sequence:
            seen.setdefault(key, value if kind == 1 else None)
        cursor.next()
    for key, expected in seen.items():
        found = versions.current.lookup(key, sequence)
        assert found is not None
        assert found == ((1, expected) if expected is not None else (0, b""))
    return {key: value for key, value in seen.items() if value is not None}


def key(i: int) -> bytes:
    return b"\0key%06d" % i


def sst_names(files: Files) -> list[str]:
    return [name for name in files.listdir("db") if name.endswith(".sst")]


def test_flush_and_reopen() -> None:
    versions = fresh()
    flush(versions, [(key(i), i + 1, b"v%d" % i) for i in range(100)], log_number=7)
    flush(versions, [(key(i), 200 + i, b"w%d" % i if i % 2 else None) for i in range(50)])
    expected = contents(versions)
    assert len(expected) == 75
    assert contents(versions, sequence=100) == {key(i): b"v%d" % i for i in range(100)}
    again = reopen(versions, versions.files.crash_clone("drop"))  # type: ignore[attr-defined]
    assert contents(again) == expected
    assert (again.log_number, again.last_sequence) == (7, 249)
    assert again.new_file()[0] > max(f.number for f in again.current.files()[0])


def test_empty_source_makes_no_file() -> None:
    versions = fresh()
    assert versions.write_level0(versions.current.cursor()) is None
    assert sst_names(versions.files) == []


def test_opening_needs_a_database() -> None:
    files = CrashFiles()
    files.makedirs("db")
    with pytest.raises(NotFound):
        VersionSet("db", files).recover(create=False)
    assert files.listdir("db") == []


def test_families_keep_their_ids() -> None:
    versions = fresh()
    assert [versions.add_family(n) for n in ("plain", "lock", "mine", "write", "yours", "mine")] == [
        0,
        2,
        16,
        3,
        17,
        16,
    ]
    again = reopen(versions)
    assert again.families == {"plain": 0, "lock": 2, "mine": 16, "write": 3, "yours": 17}
    with pytest.raises(UsageError):
        again.add_family("")


def test_compaction_keeps_what_snapshots_see() -> None:
    versions = fresh()
    for round_ in range(5):
        flush(versions, [(key(i), 100 * round_ + i + 1, b"r%d-%d" % (round_, i)) for i in range(100)])
    flush(versions, [(key(i), 600 + i, None) for i in range(0, 100, 3)])
    before = {s: contents(versions, s) for s in (150, 305, 1000)}
    assert versions.maybe_compact([150, 305])
    while versions.maybe_compact([150, 305]):
        pass
    assert {s: contents(versions, s) for s in (150, 305, 1000)} == before
    assert versions.current.files()[0] == []
    assert versions.compact_all()  # no snapshot any more: one version of each key, no deletes
    entries = sum(f.entries for level in versions.current.files() for f in level)
    assert entries == len(before[1000]) == len(contents(versions))
    assert contents(reopen(versions)) == before[1000]


def test_at_the_bottom_entries_settle_unless_somebody_holds_a_snapshot() -> None:
    def sequences(versions: VersionSet) -> list[int]:
        found = []
        for table in (t for level in versions.current.levels for t in level):
            cursor = table.cursor()
            cursor.seek_first()
            while cursor.valid:
                found.append(cursor.entry[1])
                cursor.next()
        return found

    versions = fresh()
    flush(versions, [(key(i), i + 1, b"old %d" % i) for i in range(100)])
    before = contents(versions)
    assert versions.compact_all([40])
    assert sorted(sequences(versions)) == list(range(1, 101))
    flush(versions, [(key(i), 200 + i, b"new %d" % i) for i in range(0, 100, 2)])
    before.update({key(i): b"new %d" % i for i in range(0, 100, 2)})
    assert versions.compact_all()
    assert set(sequences(versions)) == {0} and contents(versions) == before
    metas = [f for level in versions.current.files() for f in level]
    assert {f.max_sequence for f in metas} == {298} and {f.min_sequence for f in metas} == {0}
    # what comes later hides them, also for a compaction that has to keep them for a snapshot, and once more without one
    flush(versions, [(key(i), 300 + i, None if i % 4 else b"last") for i in range(0, 100, 2)])
    at = {s: contents(versions, s) for s in (299, 350, 1000)}
    assert at[299] == before
    assert versions.compact_all([299, 350])
    assert {s: contents(versions, s) for s in at} == at
    assert contents(reopen(versions)) == at[1000]
    versions.check()
    assert versions.compact_all()
    assert contents(versions) == at[1000] and set(sequences(versions)) == {0}
    assert max(f.max_sequence for level in versions.current.files() for f in level) == 398


def test_tables_split_between_user_keys() -> None:
    versions = fresh()
    entries = [(key(i), 100 * i + s, b"x" * 100) for i in range(30) for s in range(1, 20)]
    meta = versions.write_level0(source(entries), snapshots=range(3000))
    assert meta is not None
    assert meta.entries == 30 * 19
    versions.apply(VersionEdit(added=[meta]))
    versions.compact_all(range(3000))
    level = versions.current.files()[1]
    assert len(level) > 10
    for before, after in itertools.pairwise(level):
        assert before.largest < after.smallest


def test_deletes_of_everything_leave_no_table() -> None:
    versions = fresh()
    flush(versions, [(key(1), 1, b"a")])
    flush(versions, [(key(1), 2, None)])
    versions.compact_all()
    assert versions.current.files() == [[] for _ in range(7)]
    assert sst_names(versions.files) == []


def test_moving_a_table_rewrites_nothing() -> None:
    versions = fresh(options=LsmOptions(table_bytes=2048, level_base_bytes=1024, l0_files_trigger=1))
    flush(versions, [(key(i), i + 1, b"v" * 50) for i in range(300)])
    assert versions.maybe_compact()
    written = versions.compacted_bytes_written
    assert versions.maybe_compact()  # level 1 is over its bound, level 2 is empty
    assert versions.compacted_bytes_written == written
    assert [len(level) > 0 for level in versions.current.files()[:3]] == [False, True, True]
    assert len(contents(reopen(versions))) == 300


def test_a_dropped_table_stays_while_it_is_read() -> None:
    versions = fresh()
    flush(versions, [(key(i), i + 1, b"v") for i in range(10)])
    old = sst_names(versions.files)
    cursor = versions.current.cursor()
    cursor.seek_first()
    versions.compact_all()
    assert set(old) < set(sst_names(versions.files))
    assert versions.remove_obsolete() == 1
    cursor.next()
    assert cursor.entry[0] == key(1)
    del cursor
    gc.collect()
    assert versions.remove_obsolete() == 0
    assert not set(old) & set(sst_names(versions.files))


def test_manifest_rolls_over() -> None:
    versions = fresh(options=LsmOptions(manifest_bytes_max=300))
    for i in range(30):
        flush(versions, [(key(i), i + 1, b"v%d" % i)])
    manifests = [name for name in versions.files.listdir("db") if name.startswith("MANIFEST")]
    assert len(manifests) == 1
    assert len(contents(reopen(versions))) == 30


def test_missing_table_fails_the_open_and_changes_nothing() -> None:  # ENG-14
    versions = fresh()
    flush(versions, [(key(1), 1, b"a")])
    name = sst_names(versions.files)[0]
    versions.files.remove(f"db/{name}")
    before = {n: versions.files.read_file(f"db/{n}") for n in versions.files.listdir("db")}
    with pytest.raises(Corruption) as caught:
        VersionSet("db", versions.files, SMALL).recover()
    assert caught.value.path == f"db/{name}"
    assert before == {n: versions.files.read_file(f"db/{n}") for n in versions.files.listdir("db")}


def test_missing_current_is_not_a_new_database() -> None:
    versions = fresh()
    flush(versions, [(key(1), 1, b"a")])
    versions.files.remove("db/CURRENT")
    with pytest.raises(Corruption, match="CURRENT is missing"):
        VersionSet("db", versions.files, SMALL).recover()


def test_a_lost_current_is_told_from_an_unfinished_creation() -> None:
    versions = fresh()
    versions.files.remove("db/CURRENT")
    assert VersionSet("db", versions.files, SMALL).recover() is True  # nothing was ever written under it
    versions = fresh()
    versions.add_family("mine")
    versions.files.remove("db/CURRENT")
    with pytest.raises(Corruption, match="CURRENT is missing"):
        VersionSet("db", versions.files, SMALL).recover()


# -- crashes ----------------------------------------------------------------------------------------------------------
def workload(files: Files, acknowledged: list[int]) -> None:
    """Flushes with overwrites, compactions and manifest rolls. `acknowledged` gets each round whose edit was
    applied."""
    versions = VersionSet(
        "db", files, LsmOptions(table_bytes=1500, l0_files_trigger=2, level_base_bytes=4000, manifest_bytes_max=600)
    )
    versions.recover()
    for round_ in range(8):
        flush(versions, [(key(i), 100 * round_ + i + 1, b"%d:%d" % (round_, i)) for i in range(round_, round_ + 30)])
        acknowledged.append(round_)
        while versions.maybe_compact():
            pass


def model(rounds: int) -> dict[bytes, bytes]:
    return {key(i): b"%d:%d" % (r, i) for r in range(rounds) for i in range(r, r + 30)}


def test_crash_at_every_operation() -> None:  # R2: flush, compaction, manifest roll
    files = StrictFiles()
    files.makedirs("db")
    workload(files, [])
    total = files.operation_count
    assert total > 80
    for k in range(2, total + 1):
        files = StrictFiles(seed=k, crash_at=k)
        files.makedirs("db")
        acknowledged: list[int] = []
        with pytest.raises(CrashPoint):
            workload(files, acknowledged)
        for mode in CRASH_MODES:
            disk = files.crash_clone(mode, seed=k)
            versions = VersionSet("db", disk, SMALL)
            versions.recover()
            versions.check()
            found = contents(versions)
            acked = len(acknowledged)
            assert found in (model(acked), model(acked + 1)), f"crash at operation {k}, image {mode}"
            assert not versions.verify().damaged
            versions.apply(VersionEdit(log_number=99))  # and it goes on from there
            assert contents(reopen(versions, disk.crash_clone("drop"))) == found


def test_after_a_failed_sync_nothing_is_applied_any_more() -> None:
    files = CrashFiles()
    versions = fresh(files)
    flush(versions, [(key(1), 1, b"a")])
    meta = versions.write_level0(source([(key(2), 2, b"b")]))
    assert meta is not None
    writer = versions._manifest
    assert writer is not None

    class FailingFile(MemoryFile):
        def sync(self) -> None:
            raise OSError(5, "the disk says no")

    writer._file = FailingFile()
    with pytest.raises(OSError, match="the disk says no"):
        versions.apply(VersionEdit(added=[meta]))
    with pytest.raises(ReadOnly) as caught:
        versions.apply(VersionEdit(log_number=3))
    assert "the disk says no" in caught.value.cause
    assert contents(versions) == {key(1): b"a"}


CALLS = ("create", "write", "sync", "sync_dir", "rename", "remove", "map_file", "read_file")
FAULTS = [
    *((kind, error) for kind in CALLS for error in (errno.EIO, errno.ENOSPC)),
    ("write", "short"),
    ("sync", "lie"),
    ("sync_dir", "lie"),
]


@pytest.mark.parametrize(("kind", "error"), FAULTS)
def test_a_fault_at_every_call(kind: str, error: int | Literal["short", "lie"]) -> None:  # R2f
    """One failing call: the step raises or succeeds; what is readable, now and after a reopen, is a prefix of
    history."""
    at = 0
    while True:
        at += 1
        disk = CrashFiles()
        disk.makedirs("db")
        files = FaultFiles(disk)
        files.fail(kind, at=at, error=error)
        acknowledged: list[int] = []
        failed = False
        try:
            workload(files, acknowledged)
        except OSError:
            failed = True
        if not files.struck:
            break
        assert failed or error in ("short", "lie") or kind == "remove", f"{kind} number {at} failed unnoticed"
        if error == "lie":
            assert len(acknowledged) == 8  # nothing to notice, and no power loss here
        versions = VersionSet("db", disk, SMALL)
        versions.recover()
        versions.check()
        found = contents(versions)
        assert found in (model(len(acknowledged)), model(len(acknowledged) + 1)), f"{kind} number {at}"
        assert not versions.verify().damaged
    assert at > 1 or kind == "read_file"


def test_no_space_in_a_flush_or_compaction_leaves_nothing_behind() -> None:
    files = FaultFiles(CrashFiles())
    versions = fresh(files)
    flush(versions, [(key(i), i + 1, b"v") for i in range(100)])
    before, names = contents(versions), sst_names(files)
    files.fail("write", error=errno.ENOSPC, times=None, path=".sst")
    with pytest.raises(OSError, match="space"):
        versions.compact_all()
    with pytest.raises(OSError, match="space"):
        versions.write_level0(source([(key(1), 500, b"x")]))
    assert (contents(versions), sst_names(files)) == (before, names)
    files.heal()
    versions.compact_all()
    assert contents(versions) == before


def test_readers_while_tables_come_and_go() -> None:
    """Threads read views while flushes and compactions replace them; decoded blocks fight for a small cache."""
    versions = fresh(options=dataclasses.replace(SMALL, block_cache_bytes=4000))
    flush(versions, [(key(i), i + 1, b"%d" % i * 9) for i in range(400)])
    versions.compact_all()
    done = threading.Event()
    problems: list[str] = []
    counts = [0, 0, 0]

    def read(me: int) -> None:
        dice = random.Random(me)
        while not done.is_set() or counts[me] < 3:
            version = versions.current
            cursor = version.cursor()
            cursor.seek(key(dice.randrange(400)) + bytes(8))
            for _ in range(30):
                if not cursor.valid:
                    break
                name, at, _, value = cursor.entry
                i = int(name[4:])
                if value != b"%d" % i * 9:
                    problems.append(f"{name!r} at {at}: {value!r}")
                cursor.next() if dice.random() < 0.6 else cursor.prev()
            i = dice.randrange(400)
            if version.lookup(key(i)) != (1, b"%d" % i * 9):
                problems.append(f"lookup of {i}")
            counts[me] += 1

    threads = [threading.Thread(target=read, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(1, 25):
            flush(versions, [(key(i), 1000 * round_ + i, b"%d" % i * 9) for i in range(round_, 400, 7)])
            versions.compact_all() if round_ % 3 == 0 else versions.maybe_compact()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not problems
    gc.collect()
    assert versions.remove_obsolete() == 0
    assert len(sst_names(versions.files)) == sum(len(level) for level in versions.current.files())


# -- tables that travel -----------------------------------------------------------------------------------------------
@pytest.fixture
def donor() -> Iterator[VersionSet]:
    versions = fresh()
    versions.add_family("write")
    flush(versions, [(key(i), i + 1, b"v%d" % i) for i in range(100)])
    flush(versions, [(key(i), 200 + i, None) for i in range(10)])
    flush(versions, [(b"\3w%d" % i, 300 + i, b"w" * 40) for i in range(50)])
    flush(versions, [(key(20), 500, b"too new")])
    yield versions


def test_export_ingest_round_trip(donor: VersionSet) -> None:  # ENG-08
    exported = donor.export("out", [("plain", b"key000005", b"key000050"), ("write", None, None)], 400)
    assert sum(f.entries for f in exported) == 40 + 50
    files = donor.files
    assert all(files.size(f"out/{f.name}") == f.size for f in exported)
    files.makedirs("other")
    receiver = VersionSet("other", files, SMALL)
    receiver.recover()
    flush_old = receiver.write_level0(source([(key(7), 3, b"old"), (key(60), 4, b"stays")]))
    assert flush_old is not None
    receiver.apply(VersionEdit(added=[flush_old]))
    added = receiver.ingest([[f"out/{f.name}" for f in exported]], [10])
    assert {f.global_sequence for f in added} == {10}
    assert receiver.last_sequence == 10
    assert receiver.families["write"] == 3
    expected = {k: v for k, v in contents(donor, 400).items() if k[:1] == b"\3" or key(5) <= k < key(50)}
    expected |= {key(7): b"old", key(60): b"stays"}
    assert contents(receiver) == expected
    assert contents(receiver, 9) == {key(7): b"old", key(60): b"stays"}
    receiver.compact_all()
    assert contents(receiver) == expected
    again = VersionSet("other", files, SMALL)
    again.recover()
    assert contents(again) == expected


def test_two_groups_replace_a_range_at_once(donor: VersionSet) -> None:
    tombstones = donor.export("gone", [("plain", None, None)], 1000, tombstones=True)
    assert write_external(donor.files, "new.sst", [(0, b"key000050", b"new")], families={"plain": 0}) is not None
    donor.ingest([[f"gone/{f.name}" for f in tombstones], ["new.sst"]], [600, 601])
    assert {k: v for k, v in contents(donor).items() if k[:1] == b"\0"} == {key(50): b"new"}
    assert contents(donor, 600) == {b"\3w%d" % i: b"w" * 40 for i in range(50)}
    assert contents(donor, 599)[key(20)] == b"too new"


@pytest.mark.parametrize("what", ["flip", "internal", "overlap", "missing", "families"])
def test_ingest_refuses_and_changes_nothing(donor: VersionSet, what: str) -> None:  # ENG-08
    files = donor.files
    exported = donor.export("out", [("plain", None, None)], 400)
    paths = [f"out/{f.name}" for f in exported]
    error: type[Exception] = UsageError
    if what == "flip":
        data = bytearray(files.read_file(paths[0]))
        data[len(data) // 3] ^= 16
        file = files.create(paths[0])
        file.write(data)
        error = Corruption
    elif what == "internal":
        paths.append(f"db/{sst_names(files)[0]}")
    elif what == "overlap":
        paths.append(paths[0])
    elif what == "missing":
        paths.append("out/nothing.sst")
    else:
        write_external(files, "out/f.sst", [(20, b"a", b"b")], families={"write": 20})
        paths.append("out/f.sst")
        error = PreconditionFailed
    before = {n: files.read_file(f"db/{n}") for n in files.listdir("db")}
    with pytest.raises(error):
        donor.ingest([paths], [1000])
    assert before == {n: files.read_file(f"db/{n}") for n in files.listdir("db")}
    assert key(50) in contents(donor)


def test_ingest_is_all_or_nothing_under_a_crash(donor: VersionSet) -> None:
    exported = donor.export("out", [("plain", None, None)], 400)
    base = donor.files.crash_clone("keep")  # type: ignore[attr-defined]
    before, after = contents(donor), None
    k = 1
    while True:
        disk = base.crash_clone("keep")
        versions = reopen(donor, disk)
        start = disk.operation_count
        disk.crash_at = start + k
        try:
            versions.ingest([[f"out/{f.name}" for f in exported]], [1000])
            after = contents(versions)
            break
        except CrashPoint:
            pass
        for mode in CRASH_MODES:
            found = contents(reopen(donor, disk.crash_clone(mode, seed=k)))
            assert found == before or found == {**before, **contents(donor, 400)}, f"operation {k}, image {mode}"
        k += 1
    assert k > 5
    assert after == {**before, **contents(donor, 400)}


def test_reversed_and_overlapping_ranges(donor: VersionSet) -> None:
    with pytest.raises(UsageError):
        donor.export("out", [("plain", b"b", b"a")], 400)
    with pytest.raises(UsageError):
        donor.export("out", [("plain", b"a", None), ("plain", b"b", b"c")], 400)
    with pytest.raises(NotFound):
        donor.export("out", [("nobody", None, None)], 400)


def test_linked_tables_are_the_same_inodes(tmp_path: Path) -> None:  # ENG-10
    files = OsFiles()
    versions = VersionSet(str(tmp_path), files, SMALL)
    versions.recover()
    for r in range(3):
        flush(versions, [(key(i), 100 * r + i + 1, b"v") for i in range(20)])
    before = {p.name: p.stat().st_ino for p in tmp_path.glob("*.sst")}
    linked = versions.link_tables(str(tmp_path / "checkpoint"))
    assert len(linked) == 3
    assert {f.name: (tmp_path / "checkpoint" / f.name).stat().st_ino for f in linked} == before
    versions.compact_all()
    gc.collect()
    versions.remove_obsolete()
    for f in linked:  # still whole after the engine has let go of its names
        Table((tmp_path / "checkpoint" / f.name).read_bytes(), f.name, BlockCache()).verify()


def test_verify_names_the_damaged_file(donor: VersionSet) -> None:
    report = donor.verify()
    assert (report.tables, report.damaged) == (4, ())
    files = donor.files
    name = f"db/{sst_names(files)[0]}"
    data = bytearray(files.read_file(name))
    data[10] ^= 1
    file = files.create(name)
    file.write(data)
    report = reopen(donor).verify()
    assert [(e.path, e.offset) for e in report.damaged] == [(name, 0)]


def test_options_are_checked_and_taken_from_the_caller_s() -> None:
    given = {"table_bytes": 5000, "compression": "none", "write_buffer_bytes": 7}
    options = LsmOptions.take(given)
    assert (options.table_bytes, options.compression, given) == (5000, "none", {"write_buffer_bytes": 7})
    for name, value in (
        ("compression", "snappy"),
        ("upper_compression", ""),
        ("block_bytes", 1),
        ("bloom_bits", "10"),
        ("level_growth", True),
    ):
        with pytest.raises(UsageError, match=str(name).split("_")[0]):
            LsmOptions.take({name: value})
