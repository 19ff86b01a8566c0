"""Scans: what is theirs alone (ENG-17). What they show is in tests/model and test_db.py."""

from pathlib import Path

import pytest

import nokv


@pytest.mark.parametrize("flushed", [False, True])
def test_a_scan_keeps_to_its_family_where_neighbours_have_the_same_keys(tmp_path: Path, flushed: bool) -> None:
    with nokv.open(tmp_path / "db", families=("a", "b")) as db:
        for number, name in enumerate(("", "a", "b")):
            target = db.family(name) if name else db
            for key in (b"", b"k", b"\xff"):
                target.put(key, b"%d" % number)
        if flushed:
            db.flush()
        for number, name in enumerate(("", "a", "b")):
            target = db.family(name) if name else db
            expected = [(key, b"%d" % number) for key in (b"", b"k", b"\xff")]
            assert list(target.scan()) == expected
            assert list(target.scan(reverse=True)) == expected[::-1]
            assert list(target.scan(values=False, reverse=True)) == [b"\xff", b"k", b""]


def test_list_asks_how_long_a_scan_is_and_a_scan_is_read_once(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put_many([(b"%03d" % i, b"v") for i in range(600)])
        scan = db.scan(limit=10)
        assert scan.__length_hint__() == 10
        assert next(scan) == (b"000", b"v")
        assert scan.__length_hint__() == 9
        assert [key for key, _ in scan] == [b"%03d" % i for i in range(1, 10)]
        assert scan.__length_hint__() == 0
        assert list(scan) == []
        assert 0 < db.scan().__length_hint__() < 600
        assert len(list(db.scan())) == 600


def test_scans_at_once_over_one_view_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The cursors of an ended scan serve the next; those of a living one do not."""
    with nokv.open(tmp_path / "db") as db:
        keys = [b"%04d" % i for i in range(2000)]
        db.put_many([(key, key) for key in keys[::2]])
        db.flush()
        db.put_many([(key, key) for key in keys[1::2]])
        for step in (1, 7, 300):
            scans = [db.scan(keys[i], values=False) for i in range(0, 50, 10)]
            heads = [[next(scan) for _ in range(step)] for scan in scans]
            del scans[1]
            heads.pop(1)
            assert list(db.scan(limit=5, values=False)) == keys[:5]
            for scan, head, first in zip(scans, heads, (0, 20, 30, 40), strict=True):
                assert head + list(scan) == keys[first:]


def test_a_resting_cursor_sees_what_is_written_after_it(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        for i in range(300):
            key = b"%03d" % (i * 7 % 300)
            db.put(key, b"1")
            assert key in [k for k, _ in db.scan(key, limit=1)]
            if i % 50 == 49:
                db.delete_range(b"100", b"200")
                assert list(db.scan(b"100", b"200")) == []
            elif i % 50 == 25:
                db.flush()
        assert [k for k, _ in db.scan()] == [k for k, _ in db.scan(reverse=True)][::-1]


def test_a_scan_class_alone_makes_no_scan(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        made = type(db.scan())()
    for use in (lambda: next(made), lambda: made.fetch(3), lambda: list(made)):
        with pytest.raises(nokv.UsageError):
            use()
    made.close()


def test_what_fails_in_a_scan_is_not_kept_for_the_next(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db", compression="none") as db:
        db.put_many([(b"%04d" % i, b"v" * 100) for i in range(1000)])
        db.flush()
    table = next((tmp_path / "db").rglob("*.sst"))
    data = bytearray(table.read_bytes())
    data[5000] ^= 1
    table.write_bytes(data)
    with nokv.open(tmp_path / "db") as db:
        for _ in range(3):
            with pytest.raises(nokv.Corruption):
                list(db.scan())
            assert [k for k, _ in db.scan(b"0900", limit=2)] == [b"0900", b"0901"]


def test_a_scan_that_failed_does_not_look_like_one_that_ended(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db", upper_compression="none") as db:
        db.put_many([(b"%04d" % i, b"v" * 100) for i in range(1000)])
        db.flush()
    table = next((tmp_path / "db").rglob("*.sst"))
    sound = table.read_bytes()
    for place in (10, 50_000):  # the first block, and one that is reached later
        data = bytearray(sound)
        data[place] ^= 1
        table.write_bytes(data)
        with nokv.open(tmp_path / "db") as db, db.snapshot() as snapshot:
            for scan in (db.scan(), db.scan(reverse=True), snapshot.scan(), db.scan(values=False)):
                with pytest.raises(nokv.Corruption):
                    for _ in scan:
                        pass
                for again in (lambda: next(scan), lambda: list(scan), lambda: scan.fetch(1)):  # noqa: B023
                    with pytest.raises(nokv.UsageError, match=r"ended with an error before \(Corruption: ") as caught:
                        again()
                    assert caught.value.hint
                scan.close()
                assert list(scan) == []
