"""Checkpoint, check, repair, destroy: on real directories, and crashing at every operation."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.manifest.log import manifest_number, read_manifest
from nokv.engine.mode import CLUSTER, ModeRecord, write_mode
from nokv.engine.wal.recovery import recover, segment_number
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles, CrashPoint, FaultFiles


def make(path: Path | str, **options: Any) -> dict[bytes, bytes]:
    """Two levels, level 0, and a tail that only the log has."""
    with nokv.open(path, durability="process", families=("other",), **options) as db:
        for i in range(300):
            db.put(b"deep%03d" % i, b"1")
        db.delete(b"deep000")
        db.compact()
        db.put_many({b"flat%03d" % i: b"2" for i in range(300)})
        db.flush()
        db.family("other").put(b"x", b"3")
        for i in range(50):
            db.put(b"tail%03d" % i, b"4")
        db.delete(b"deep001")
        return dict(db.scan())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def content(path: Path | str, files: Files | None = None) -> dict[bytes, bytes]:
    with nokv.open(path, create=False, files=files) as db:
        assert db.verify().damaged == ()
        return dict(db.scan())


def all_bytes(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# -- checkpoint -------------------------------------------------------------------------------------------------------
def test_checkpoint(tmp_path: Path) -> None:
    """ENG-12"""
    make(tmp_path / "db")
    with nokv.open(tmp_path / "db") as db:
        want = dict(db.scan())
        db.checkpoint(tmp_path / "copy")
        assert {p.stat().st_nlink for p in (tmp_path / "copy").glob("*.sst")} == {2}
        db.put(b"later", b"5")
        db.compact()
        assert content(tmp_path / "copy") == want
        with pytest.raises(nokv.PreconditionFailed):
            db.checkpoint(tmp_path / "copy")
    with nokv.open(tmp_path / "copy") as copy:
        assert copy.family("other").get(b"x") == b"3"
        copy.put(b"own", b"6")
        copy.compact()
    assert content(tmp_path / "copy") == {**want, b"own": b"6"}
    assert content(tmp_path / "db") == {**want, b"later": b"5"}
    with nokv.open(tmp_path / "empty") as db:
        db.checkpoint(tmp_path / "deep" / "down")
    assert content(tmp_path / "deep" / "down") == {}


@pytest.mark.parametrize("kind", ["sync_dir", "sync", "create", "write", "link", "open_log", "rename"])
def test_a_checkpoint_on_a_bad_disk_is_a_typed_error_and_leaves_nothing(kind: str) -> None:
    """Found by tests/crash/test_engine_syscalls.py: an OSError came out of it as it was."""
    files = FaultFiles(CrashFiles())
    db = nokv.open("db", files=files, executor=StepExecutor())
    db.put(b"a", b"1")
    db.flush()
    failed = 0
    for at in range(1, 100):
        fault = files.fail(kind, at=at, error=errno.ENOSPC, path="" if kind == "link" else "copy")
        target = f"copy{at}"
        try:
            db.checkpoint(target)
        except (nokv.Unavailable, nokv.ReadOnly) as error:
            assert "No space left" in str(error) and "\n" not in str(error)
            assert not files.exists(target)
            failed += 1
        else:
            files.heal()
            assert content(target, files) == {b"a": b"1"}
        files.heal()
        if fault.calls < at:
            break
    assert failed > 0
    db.put(b"b", b"2")
    db.close()


def test_checkpoint_crash_leaves_all_or_nothing() -> None:
    at = 0
    while True:
        at += 1
        files = CrashFiles()
        db = nokv.open("db", files=files, executor=StepExecutor())
        db.put_many({b"a": b"1", b"b": b"2"})
        db.flush()
        db.put(b"c", b"3")
        files.crash_at = files.operation_count + at
        done = False
        try:
            db.checkpoint("copy")
            done = True
        except CrashPoint:
            pass
        after = files.crash_clone()
        try:
            found = dict(nokv.open("copy", create=False, files=after, executor=StepExecutor()).scan())
            assert found == {b"a": b"1", b"b": b"2", b"c": b"3"}, at
        except (nokv.NotFound, nokv.Corruption):
            assert not done, at
        if done:
            break
    assert at > 10


# -- check and repair -------------------------------------------------------------------------------------------------
def test_a_healthy_directory_is_left_alone(tmp_path: Path) -> None:
    want = make(tmp_path / "db")
    before = all_bytes(tmp_path / "db")
    report = nokv.check(tmp_path / "db")
    assert report.healthy and report.tables == 2 and report.entries > 500
    assert not nokv.repair(tmp_path / "db").changed
    assert all_bytes(tmp_path / "db") == before
    assert content(tmp_path / "db") == want


def test_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "db"
    want = make(path)
    tables = sorted(path.glob("*.sst"))
    before = tables[0].read_bytes()
    flip(tables[0], 100)
    damaged = tables[0].read_bytes()
    assert any(tables[0].name in line for line in nokv.check(path).problems)
    report = nokv.repair(path)
    assert report.changed and f"lost/{tables[0].name}" in report.lost and report.tables_kept == 1
    assert (path / "lost" / tables[0].name).read_bytes() == damaged != before
    found = content(path)
    assert found == {k: v for k, v in want.items() if not k.startswith(b"deep")}
    assert nokv.check(path).healthy
    with nokv.open(path) as db:
        assert db.family("other").get(b"x") == b"3"
        db.put(b"new", b"1")
        db.compact()


@pytest.mark.parametrize("what", ["CURRENT missing", "CURRENT damaged"])
def test_current(tmp_path: Path, what: str) -> None:
    path = tmp_path / "db"
    want = make(path)
    if what == "CURRENT missing":
        (path / "CURRENT").unlink()
    else:
        flip(path / "CURRENT", 3)
    with pytest.raises(nokv.Corruption):
        nokv.open(path)
    report = nokv.repair(path)
    assert report.changed and report.tables_kept == 2
    assert content(path) == want
    assert (path / "lost" / "CURRENT").exists() is (what == "CURRENT damaged")


def test_manifest_lost(tmp_path: Path) -> None:
    path = tmp_path / "db"
    want = make(path)
    (manifest,) = path.glob("MANIFEST-*")
    flip(manifest, 60)
    report = nokv.repair(path)
    assert f"lost/{manifest.name}" in report.lost and len([n for n in report.lost if n.endswith(".sst")]) == 2
    found = content(path)
    assert found == want
    with nokv.open(path) as db:
        (name,) = set(db.families()) - {"plain"}
        assert name.startswith("family-")
        assert db.family(name).get(b"x") == b"3"
    assert any("lost its name" in note for note in report.notes)


def test_without_a_manifest_a_leftover_input_hides_nothing_that_its_compaction_wrote(tmp_path: Path) -> None:
    """At the bottom entries lose their sequences; the tables that they came from keep theirs."""
    path = tmp_path / "db"
    with nokv.open(path) as db:
        for n in range(300):
            db.put(b"%04d" % n, b"old")
        db.flush()
        leftover = next(path.glob("*.sst"))
        kept = leftover.read_bytes()
        for n in range(300):
            db.put(b"%04d" % n, b"new")
        db.compact()
    leftover.write_bytes(kept)
    for manifest in [*path.glob("MANIFEST-*"), path / "CURRENT"]:
        manifest.unlink()
    nokv.repair(path)
    with nokv.open(path) as db:
        assert set(db.values()) == {b"new"} and len(db) == 300
        db.put(b"0007", b"newer")
        db.compact()
        assert db[b"0007"] == b"newer" and db[b"0008"] == b"new"


def test_without_a_manifest_the_bottom_hides_nothing_newer(tmp_path: Path) -> None:
    """Level 1 holds a new "b" when a new "a" goes down into the old "a" and "b" at the bottom. That table counted as
    being as new as its "a", and the old "b" hid the new one."""
    tables = []
    for name, writes, bottom in (
        ("upper", {b"b": b"new"}, False),
        ("bottom", {b"b": b"old", b"c": b"old", b"a": b"new"}, True),
        ("last", {b"x": b"1", b"y": b"2", b"z": b"3", b"zz": b"4"}, True),
    ):
        with nokv.open(tmp_path / name) as db:
            for key, value in writes.items():
                db.put(key, value)
            db.compact() if bottom else db.flush()
        tables.append(next((tmp_path / name).glob("*.sst")).read_bytes())
    path = tmp_path / "last"
    for file in [*path.glob("*.sst"), *path.glob("MANIFEST-*"), path / "CURRENT"]:
        file.unlink()
    for number, data in enumerate(tables, 2):
        (path / f"{number:06}.sst").write_bytes(data)
    nokv.repair(path)
    found = content(path)
    assert {key: found[key] for key in (b"a", b"b", b"c")} == {b"a": b"new", b"b": b"new", b"c": b"old"}
    assert len(found) == 7


def test_damaged_log(tmp_path: Path) -> None:
    """What precedes the damage stays."""
    path = tmp_path / "db"
    want = make(path)
    segments = sorted(p for p in (path / "wal").iterdir() if segment_number(p.name) is not None)
    data = segments[-1].read_bytes()
    at = data.rindex(b"tail030")
    flip(segments[-1], at)
    with pytest.raises(nokv.Corruption):
        nokv.open(path)
    report = nokv.repair(path)
    assert report.batches_recovered >= 30 and "lost/wal" in report.lost
    found = content(path)
    gone = {b"tail%03d" % i for i in range(30, 50)}
    assert found == {**{k: v for k, v in want.items() if k not in gone}, b"deep001": b"1"}
    assert not nokv.repair(path).changed
    with nokv.open(path) as db:
        assert db.family("other").get(b"x") == b"3"
        db.put(b"tail030", b"again")
    assert content(path)[b"tail030"] == b"again"


def test_everything_damaged(tmp_path: Path) -> None:
    path = tmp_path / "db"
    make(path)
    for table in path.glob("*.sst"):
        flip(table, table.stat().st_size // 2)
    for manifest in path.glob("MANIFEST-*"):
        flip(manifest, 5)
    flip(path / "CURRENT", 0)
    for name in (path / "wal").iterdir():
        flip(name, 0)
    before = sorted(all_bytes(path).values())
    report = nokv.repair(path)
    assert len(report.problems) >= 4
    content(path)
    after = sorted(all_bytes(path / "lost").values())
    assert all(data in after for data in before if data)


def test_a_damaged_log_whose_links_pass_over_marks() -> None:
    """A cut is named by what was on disk, and a mark was not. Repair took the marks for the end of what belongs
    together, and lost all that followed them."""
    options: dict[str, Any] = {"executor": StepExecutor(inline=True), "wal_segment_bytes": 1 << 12}
    files = CrashFiles()
    db = nokv.open("db", files=files, **options)
    db.put(b"first", b"1", sync=True)
    files = files.crash_clone("keep")
    (before,) = recover(files, "db/wal").segments
    torn = bytearray(files.read_file(before.path))
    torn[before.end + 64 : before.end + 80] = b"torn" * 4
    files.rot(before.path, bytes(torn))
    db = nokv.open("db", files=files, **options)
    db.put(b"second", b"2", sync=True)
    for number in range(100):
        db.put(b"%d" % number, b"x" * 50)
    db.sync()
    files = files.crash_clone("keep")
    cut, _, *later = recover(files, "db/wal").segments
    assert cut.end < before.end and len(later) > 1
    data = bytearray(files.read_file(later[0].path))
    data[200] ^= 1
    files.rot(later[0].path, bytes(data))
    assert nokv.repair("db", files=files).batches_recovered > 20
    with nokv.open("db", files=files, **options) as db:
        assert db[b"first"] == b"1" and db[b"second"] == b"2" and db[b"10"] == b"x" * 50


def test_a_missing_log(tmp_path: Path) -> None:
    path = tmp_path / "db"
    want = make(path)
    for name in (path / "wal").iterdir():
        name.unlink()
    (path / "wal").rmdir()
    assert nokv.repair(path).changed
    found = content(path)
    assert found == {**{k: v for k, v in want.items() if not k.startswith(b"tail")}, b"deep001": b"1"}


def test_refused(tmp_path: Path) -> None:
    for call in (nokv.check, nokv.repair, nokv.destroy):
        with pytest.raises(nokv.NotFound):
            call(tmp_path / "absent")
        with pytest.raises(nokv.NotFound):
            call(tmp_path)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(nokv.UsageError, match="is a file"):
            call(tmp_path / "file")
    with nokv.open(tmp_path / "db") as db:
        for call in (nokv.check, nokv.repair, nokv.destroy):
            with pytest.raises(nokv.Locked):
                call(db.path)
    write_mode(str(tmp_path / "db"), ModeRecord(CLUSTER, 1, 1, 1), OsFiles())
    for call in (nokv.repair, nokv.destroy):
        with pytest.raises(nokv.ModeError):
            call(tmp_path / "db")
    assert nokv.check(tmp_path / "db").healthy


def test_repair_survives_a_crash_at_every_operation() -> None:
    """Log and CURRENT are damaged; wherever the repair stops, the next one ends with the same content."""

    def damaged() -> CrashFiles:
        files = CrashFiles()
        db = nokv.open("db", files=files, executor=StepExecutor())
        db.put_many({b"a": b"1", b"b": b"2"}, sync=True)
        db.flush()
        db.put(b"c", b"3", sync=True)
        db.put(b"dddd", b"4", sync=True)
        db.close()
        for name in files.listdir("db/wal"):
            data = files.read_file(f"db/wal/{name}")
            if b"dddd" in data:
                at = data.index(b"dddd")
                files.remove(f"db/wal/{name}")
                log = files.open_log(f"db/wal/{name}", len(data))
                log.write(0, data[:at] + b"DDDD" + data[at + 4 :])
                log.sync()
                log.close()
        file = files.create("db/CURRENT")
        file.write(b"garbage")
        file.sync()
        file.close()
        files.sync_dir("db/wal")
        files.sync_dir("db")
        return files

    at = 0
    while True:
        at += 1
        files = damaged()
        files.crash_at = files.operation_count + at
        done = False
        try:
            nokv.repair("db", files=files)
            done = True
        except CrashPoint:
            pass
        after = files.crash_clone()
        try:
            with nokv.open("db", create=False, files=after.crash_clone(), executor=StepExecutor()) as db:
                assert dict(db.scan()) == {b"a": b"1", b"b": b"2", b"c": b"3"}, at
        except nokv.Corruption:
            assert not done, at
        nokv.repair("db", files=after)
        with nokv.open("db", create=False, files=after, executor=StepExecutor()) as db:
            assert dict(db.scan()) == {b"a": b"1", b"b": b"2", b"c": b"3"}, at
        lost = after.listdir("db/lost")
        assert any(n.startswith("CURRENT") for n in lost) and any(n.startswith("wal") for n in lost), (at, lost)
        if done:
            break
    assert at > 15


# -- a manifest that lost its last edits -----------------------------------------------------------------------------


def cut(path: Path, edits: int) -> None:
    """The newest manifest ends behind so many edits."""
    manifest = max(path.glob("MANIFEST-*"))
    data = manifest.read_bytes()
    at = next(size for size in range(len(data) + 1) if size > 32 and len(read_whole(data[:size], manifest)) == edits)
    manifest.write_bytes(data[:at])


def read_whole(data: bytes, manifest: Path) -> list[VersionEdit]:
    try:
        edits, torn = read_manifest(data, str(manifest), manifest_number(manifest.name) or 0)
    except nokv.Corruption:
        return []
    return edits if torn is None else []


def write_more(path: Path) -> None:
    """Enough is written and flushed for old segments to go."""
    with nokv.open(path, durability="process", wal_segment_bytes=4096) as db:
        for n in range(100):
            db.put(b"more%03d" % n, b"m" * 100)
        db.flush()
        for n in range(100):
            db.put(b"more%03d" % n, b"n" * 100)
        db.flush()
        db.put(b"log", b"only")


@pytest.mark.parametrize("edits", [1, 2, 3])
def test_a_manifest_that_lost_its_last_flushes(tmp_path: Path, edits: int) -> None:
    """Repair believed it, and moved the tables that it no longer named to lost/."""
    path = tmp_path / "db"
    want = make(path, wal_segment_bytes=4096)
    with nokv.open(path, durability="process", wal_segment_bytes=4096) as db:
        for turn in (b"one", b"two", b"three"):
            for n in range(100):
                db.put(b"deep%03d" % n, turn * 40)
                want[b"deep%03d" % n] = turn * 40
            db.delete(b"flat%03d" % len(turn))
            want.pop(b"flat%03d" % len(turn), None)
            db.flush()
        db.put(b"end", b"log")
        want[b"end"] = b"log"
    tables = {p.name: p.read_bytes() for p in path.glob("*.sst")}
    cut(path, edits)
    with pytest.raises(nokv.Corruption):
        nokv.open(path)
    assert any("last edits are lost" in line for line in nokv.check(path).problems)
    report = nokv.repair(path)
    assert any("last edits" in note for note in report.notes) and not any("large values" in n for n in report.notes)
    assert not any("part of the log" in note for note in report.notes)  # the tables hold what it held
    assert content(path) == want
    with nokv.open(path) as db:
        assert db.family("other").get(b"x") == b"3"  # names are kept
    assert nokv.check(path).healthy
    for name, data in tables.items():
        assert any(p.read_bytes() == data for p in (path / name, path / "lost" / name) if p.exists())


def test_a_manifest_that_lost_a_compaction(tmp_path: Path) -> None:
    """The log reaches back to it; the tables that it names went when they had been merged."""
    path = tmp_path / "db"
    make(path)
    with nokv.open(path) as db:
        db.flush()
        db.put_many({b"flat%03d" % i: b"newer" for i in range(100)})
        db.delete(b"deep007")
        db.flush()
        edits = len(read_whole(next(path.glob("MANIFEST-*")).read_bytes(), next(path.glob("MANIFEST-*"))))
        db.compact()
        db.put(b"end", b"log")
        want = dict(db.scan())
    cut(path, edits)
    with pytest.raises(nokv.Corruption, match="missing"):
        nokv.open(path)
    nokv.repair(path)
    assert content(path) == want
    with nokv.open(path) as db:
        assert db.family("other").get(b"x") == b"3"


def test_a_manifest_that_lost_edits_with_large_values(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with nokv.open(path, value_file_threshold=1000) as db:
        db.put(b"a", b"A" * 5000)
        db.put(b"b", b"B" * 5000)
        db.flush()
        edits = len(read_whole(next(path.glob("MANIFEST-*")).read_bytes(), next(path.glob("MANIFEST-*"))))
        db.put(b"b", b"C" * 5000)
        db.flush()
        db.compact()
        want = dict(db.scan())
    assert list(path.glob("*.val"))
    cut(path, edits)
    report = nokv.repair(path)
    assert content(path) == want
    assert not any("large values" in note for note in report.notes)


def test_leftovers_of_a_whole_manifest_bring_nothing_back(tmp_path: Path) -> None:
    """What is older than all that is missing cannot have been made of it."""
    path = tmp_path / "db"
    with nokv.open(path, wal_segment_bytes=4096) as db:
        db.put(b"gone", b"1")
        db.put(b"kept", b"1")
        db.flush()
        (leftover,) = path.glob("*.sst")
        data = leftover.read_bytes()
        db.delete(b"gone")
        db.flush()
        db.compact()
    write_more(path)
    leftover.write_bytes(data)  # as a crash leaves it behind
    newest = max(path.glob("*.sst"))
    newest.unlink()
    assert nokv.repair(path).changed
    found = content(path)
    assert b"gone" not in found and found[b"kept"] == b"1" and found[b"log"] == b"only"
    assert (path / "lost" / leftover.name).read_bytes() == data


def test_what_the_manifest_dropped_stays_dropped(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with nokv.open(path) as db:
        db.put(b"kept", b"1")
        db.compact()
        lost = max(path.glob("*.sst"))
        db.put(b"gone", b"1")
        db.flush()
        dropped = max(path.glob("*.sst"))
        data = dropped.read_bytes()
        db.delete(b"gone")
        db.compact(b"g", b"h")
    assert lost.exists() and not dropped.exists()
    lost.unlink()
    dropped.write_bytes(data)
    assert nokv.repair(path).changed
    assert content(path) == {} and (path / "lost" / dropped.name).read_bytes() == data


def test_a_leftover_of_a_whole_manifest_and_a_gap_in_the_log(tmp_path: Path) -> None:
    """The manifest has everything that is as old as it is; only newer tables count again."""
    path = tmp_path / "db"
    with nokv.open(path, wal_segment_bytes=4096) as db:
        db.put(b"gone", b"1")
        db.flush()
        (leftover,) = path.glob("*.sst")
        data = leftover.read_bytes()
        db.delete(b"gone")
        db.compact()
    write_more(path)
    with nokv.open(path, durability="process", wal_segment_bytes=4096) as db:
        for n in range(100):
            db.put(b"tail%03d" % n, b"t" * 100)
    min(path.glob("wal/*.wal")).unlink()
    leftover.write_bytes(data)
    report = nokv.repair(path)
    assert any("part of the log" in note for note in report.notes)
    assert b"gone" not in content(path) and (path / "lost" / leftover.name).read_bytes() == data


def test_repair_of_a_short_manifest_survives_a_crash_at_every_operation() -> None:
    options: dict[str, Any] = {"executor": StepExecutor(inline=True), "wal_segment_bytes": 4096}
    files = CrashFiles()
    db = nokv.open("db", files=files, families=("other",), **options)
    db.family("other").put(b"x", b"3")
    for turn in range(4):
        for n in range(60):
            db.put(b"%03d" % n, b"%d" % turn * 80)
        db.delete(b"%03d" % turn)
        db.flush()
        if turn == 1:
            db.compact()
    db.put(b"end", b"log", sync=True)
    want = dict(db.scan())
    db.close()
    manifest = next(f"db/{n}" for n in files.listdir("db") if manifest_number(n))
    data = files.read_file(manifest)
    size = next(n for n in range(len(data)) if len(read_whole(data[:n], Path(manifest))) == 2)
    files.rot(manifest, data[:size])
    at, done = 0, False
    while not done:
        at += 1
        disk = files.crash_clone("keep")
        disk.crash_at = disk.operation_count + at
        try:
            nokv.repair("db", files=disk)
            done = True
        except CrashPoint:
            pass
        after = disk.crash_clone()
        try:
            with nokv.open("db", create=False, files=after.crash_clone(), **options) as db:
                assert dict(db.scan()) == want, at
        except nokv.Corruption:
            assert not done, at
        nokv.repair("db", files=after)
        with nokv.open("db", create=False, files=after, **options) as db:
            assert dict(db.scan()) == want and db.family("other").get(b"x") == b"3", at
    assert at > 15


# -- destroy ----------------------------------------------------------------------------------------------------------
def test_destroy(tmp_path: Path) -> None:
    make(tmp_path / "db")
    (tmp_path / "db" / "mine.txt").write_text("not yours")
    nokv.destroy(tmp_path / "db")
    assert os.listdir(tmp_path / "db") == ["mine.txt"]
    make(tmp_path / "other")
    nokv.destroy(tmp_path / "other")
    assert not (tmp_path / "other").exists()
