"""What the tables give the whole engine: export, ingest, link, compact and verify through `nokv.open`, on the real file
system."""

from __future__ import annotations

from pathlib import Path

import pytest

import nokv
from nokv.engine.sst.external import write_external
from nokv.env.files import OsFiles
from nokv.errors import Corruption, PreconditionFailed


def every(db: nokv.DB, family: str | None = None) -> dict[bytes, bytes]:
    return dict((db.family(family) if family else db).scan())


def listing(path: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in path.iterdir() if p.suffix == ".sst" or p.name.startswith(("MANIFEST", "CURR"))
    }


def fill(db: nokv.DB) -> None:
    with db.write_batch() as batch:
        for i in range(500):
            batch.put(b"k%04d" % i, b"v%d" % i)
            batch.put(b"w%04d" % i, b"x" * 50, family="write")
    db.flush()
    for i in range(0, 500, 5):
        db.delete(b"k%04d" % i)


def test_a_range_moves_to_another_directory(tmp_path: Path) -> None:  # ENG-08, MIG-15
    out = tmp_path / "out"
    with nokv.open(str(tmp_path / "a")) as a, nokv.open(str(tmp_path / "b")) as b:
        a.family("write", create=True)
        fill(a)
        with a.snapshot() as snapshot:
            expected = every(a), every(a, "write")
            a.put(b"k0001", b"later")
            exported = a.export_sst(str(out), [("plain", None, None), ("write", None, None)], snapshot=snapshot)
        assert sum(f.entries for f in exported) == 400 + 500
        b.family("lock", create=True)  # in another order than in a: reserved names have fixed ids
        b.put(b"k0003", b"in the memtable")
        b.put(b"stays", b"here")
        with b.snapshot() as before:
            b.ingest_sst([[str(out / f.name) for f in exported]])
            assert before.get(b"k0003") == b"in the memtable"
            assert before.get(b"k0001") is None
        assert every(b) == {**expected[0], b"stays": b"here"}
        assert every(b, "write") == expected[1]
        b.put(b"k0003", b"newer")
        assert b.get(b"k0003") == b"newer"
        b.compact()
        assert every(b) == {**expected[0], b"stays": b"here", b"k0003": b"newer"}
        assert not b.verify().damaged
    with nokv.open(str(tmp_path / "b")) as b:
        assert every(b, "write") == expected[1]
        assert b.get(b"k0003") == b"newer"


def test_a_snapshot_replaces_what_was_there(tmp_path: Path) -> None:  # as a region snapshot is installed
    with nokv.open(str(tmp_path / "a")) as a, nokv.open(str(tmp_path / "b")) as b:
        for i in range(100):
            a.put(b"r%03d" % i, b"new")
            b.put(b"r%03d" % (i + 50), b"old")
        b.put(b"outside", b"stays")
        data = a.export_sst(str(tmp_path / "data"), [("plain", b"r", b"s")])
        gone = b.export_sst(str(tmp_path / "gone"), [("plain", b"r", b"s")], tombstones=True)
        b.ingest_sst([[str(tmp_path / "gone" / f.name) for f in gone], [str(tmp_path / "data" / f.name) for f in data]])
        assert every(b) == {**every(a), b"outside": b"stays"}
        b.compact()
        assert every(b) == {**every(a), b"outside": b"stays"}


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_one_wrong_byte_is_refused(tmp_path: Path, place: float) -> None:  # ENG-08
    with nokv.open(str(tmp_path / "a")) as a, nokv.open(str(tmp_path / "b")) as b:
        for i in range(300):
            a.put(b"%04d" % i, b"v%d" % i)
        b.put(b"mine", b"here")
        b.flush()
        path = tmp_path / "out" / a.export_sst(str(tmp_path / "out"), [("plain", None, None)])[0].name
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 4
        path.write_bytes(data)
        before = listing(tmp_path / "b")
        with pytest.raises(Corruption) as caught:
            b.ingest_sst([[str(path)]])
        assert caught.value.path == str(path)
        assert listing(tmp_path / "b") == before
        assert every(b) == {b"mine": b"here"}
        b.put(b"goes", b"on")
        b.flush()


def test_a_family_that_means_something_else_is_refused(tmp_path: Path) -> None:
    with nokv.open(str(tmp_path / "b")) as b:
        number = b.family("mine", create=True).id
        write_external(OsFiles(), str(tmp_path / "x.sst"), [(number, b"k", b"v")], families={"theirs": number})
        with pytest.raises(PreconditionFailed, match="theirs"):
            b.ingest_sst([[str(tmp_path / "x.sst")]])


def test_links_are_the_same_files(tmp_path: Path) -> None:  # ENG-10
    with nokv.open(str(tmp_path / "a")) as a:
        a.family("write", create=True)
        fill(a)
        linked = a.link_tables(str(tmp_path / "out"))
        assert len(linked) >= 1
        for f in linked:
            assert (tmp_path / "out" / f.name).stat().st_ino == (tmp_path / "a" / f.name).stat().st_ino
        inodes = {p.name: p.stat().st_ino for p in (tmp_path / "a").glob("*.sst")}
    with nokv.open(str(tmp_path / "a")) as a:
        assert {p.name: p.stat().st_ino for p in (tmp_path / "a").glob("*.sst")} == inodes
        assert len(every(a)) == 400


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_wrong_table_fails_the_open_and_nothing_changes(tmp_path: Path, damage: str) -> None:  # ENG-14
    home = tmp_path / "a"
    with nokv.open(str(home)) as a:
        for i in range(2):
            a.put(b"%d" % i, b"v" * (50 + i))
            a.flush()
    first, second = sorted(home.glob("*.sst"))
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    else:
        first.write_bytes(second.read_bytes())
    before = listing(home)
    with pytest.raises(Corruption) as caught:
        nokv.open(str(home))
    assert caught.value.path == str(first)
    assert listing(home) == before


def test_files_that_no_edit_names_go_when_the_directory_is_opened(tmp_path: Path) -> None:
    with nokv.open(str(tmp_path / "a")) as db:
        db.put(b"k", b"v")
        db.flush()
        found = every(db)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    for name in ("000777.sst", "MANIFEST-000778", "CURRENT.tmp"):
        (tmp_path / "a" / name).write_bytes(b"of a step that was cut short")
    with nokv.open(str(tmp_path / "a")) as db:
        assert every(db) == found
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
