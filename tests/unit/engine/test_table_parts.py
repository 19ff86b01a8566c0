"""Filter and index of a table are checked when they are first needed: by whom, how often, and what damage then does."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import nokv

KEYS = [b"%05d" % n for n in range(6000)]
OPTIONS = {"table_bytes": 40_000, "upper_compression": "none", "compression": "none", "durability": "process"}


def value(key: bytes) -> bytes:
    return key * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Tables of level 1 that do not overlap, five at least."""
    with nokv.open(tmp_path / "db", **OPTIONS) as db:  # type: ignore[arg-type]
        db.put_many((key, value(key)) for key in KEYS)
        db.compact()
        assert db.stats()["lsm"]["l0_files"] == 0
    assert len(list((tmp_path / "db").glob("*.sst"))) >= 5
    return tmp_path / "db"


def spoil(path: Path, part: str) -> tuple[str, int]:
    """One bit of the filter or the index of the second table. Its path, and where the part begins."""
    file = sorted(path.glob("*.sst"))[1]
    data = bytearray(file.read_bytes())
    filter_at, filter_size, _, _, index_at, index_size = struct.unpack("<6Q", data[-64:-16])
    at, size = (filter_at, filter_size) if part == "filter" else (index_at, index_size)
    data[at + size // 2] ^= 8
    file.write_bytes(data)
    return str(file), at


def everywhere(db: nokv.DB) -> tuple[set[bytes], nokv.Corruption | None]:
    """Keys that cannot be read, one by one, and the last error."""
    lost, last = set(), None
    for key in KEYS:
        try:
            assert db.get(key) == value(key)
        except nokv.Corruption as error:
            lost.add(key)
            last = error
    return lost, last


@pytest.mark.parametrize("part", ["filter", "index"])
@pytest.mark.parametrize("read_only", [False, True])
def test_damage_is_found_by_who_needs_it_and_by_nobody_else(path: Path, part: str, read_only: bool) -> None:
    """R3"""
    spoiled, offset = spoil(path, part)
    with nokv.open(path, read_only=read_only, **OPTIONS) as db:  # type: ignore[arg-type]
        lost, error = everywhere(db)
        assert 100 < len(lost) < len(KEYS) // 2  # one table's worth
        assert error is not None and (error.path, error.offset) == (spoiled, offset)
        assert part in str(error) and "\n" not in str(error)
        again, _ = everywhere(db)
        assert again == lost
        sound = [key for key in KEYS if key not in lost]
        assert db.get_many(sound) == [value(key) for key in sound]
        with pytest.raises(nokv.Corruption):
            db.get_many(KEYS)
        if part == "index":
            with pytest.raises(nokv.Corruption) as caught:
                list(db.scan())
            assert caught.value.offset == offset
            end = KEYS[KEYS.index(min(lost)) - 1]  # a scan ends at a key that it sees
            assert list(db.scan(end=end)) == [(k, value(k)) for k in KEYS if k < end]
            assert list(db.scan(start=max(lost) + b"\0")) == [(k, value(k)) for k in KEYS if k > max(lost)]
        else:
            assert list(db.scan()) == [(key, value(key)) for key in KEYS]  # a scan needs no filter
        assert [(e.path, e.offset) for e in db.verify().damaged] == [(spoiled, offset)]
        if not read_only:
            db.put(b"new", b"1")
            db.flush()
            assert db.get(b"new") == b"1" and db.get(sound[0]) == value(sound[0])


def test_a_compaction_stops_at_a_damaged_index_and_mends_a_filter(path: Path) -> None:
    spoiled, _ = spoil(path, "filter")
    with nokv.open(path, **OPTIONS) as db:  # type: ignore[arg-type]
        db.compact()
        assert everywhere(db) == (set(), None) and not db.verify().damaged
    spoiled, offset = spoil(path, "index")
    before = {file.name: file.read_bytes() for file in path.glob("*.sst")}
    with nokv.open(path, **OPTIONS) as db:  # type: ignore[arg-type]
        with pytest.raises(nokv.Corruption) as caught:
            db.compact()
        assert (caught.value.path, caught.value.offset) == (spoiled, offset)
        lost, _ = everywhere(db)
        assert 100 < len(lost) < len(KEYS) // 2
    assert {file.name: file.read_bytes() for file in path.glob("*.sst")} == before


@pytest.mark.parametrize("part", ["none", "filter", "index"])
def test_several_threads_need_the_same_table_first(path: Path, part: str) -> None:
    if part != "none":
        spoil(path, part)
    for _ in range(5):
        with nokv.open(path, **OPTIONS) as db:  # type: ignore[arg-type]
            start = threading.Barrier(8)
            results: list[object] = [None] * 8

            def run(
                number: int,
                work: Callable[[], object],
                start: threading.Barrier = start,
                results: list[object] = results,
            ) -> None:
                start.wait(60)
                try:
                    results[number] = work()
                except nokv.Corruption as error:
                    results[number] = (error.path, error.offset)

            works: list[Callable[[], object]] = [
                lambda: everywhere(db)[0],
                lambda: list(db.scan()),
                lambda: list(db.scan(reverse=True))[::-1],
                lambda: db.get_many(KEYS),
            ]
            threads = [threading.Thread(target=run, args=(n, works[n % 4])) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results[:4] == results[4:]
            pairs = [(key, value(key)) for key in KEYS]
            if part == "none":
                assert results[:4] == [set(), pairs, pairs, [value(key) for key in KEYS]]
            elif part == "filter":
                assert results[1] == results[2] == pairs and isinstance(results[3], tuple)
            else:
                assert results[1] == results[2] == results[3] and isinstance(results[1], tuple)


def test_an_open_reads_no_filter_and_no_index(path: Path) -> None:
    """All of it damaged, and what needs neither still works."""
    for file in path.glob("*.sst"):
        data = bytearray(file.read_bytes())
        filter_at, filter_size, _, _, index_at, index_size = struct.unpack("<6Q", data[-64:-16])
        data[filter_at : filter_at + filter_size] = bytes(filter_size)
        data[index_at : index_at + index_size] = bytes(index_size)
        file.write_bytes(data)
    with nokv.open(path, **OPTIONS) as db:  # type: ignore[arg-type]
        assert db.stats()["lsm"]["levels"][1]["entries"] == len(KEYS)
        db.put(b"new", b"1")
        assert db.get(b"new") == b"1"
        assert len(db.verify().damaged) == len(list(path.glob("*.sst")))


@pytest.mark.parametrize("size", ["short", "long", "gone", "footer"])
def test_what_an_open_checks(path: Path, size: str) -> None:
    """That every table is there, is as long as the manifest says, and ends in a sound footer."""
    file = sorted(path.glob("*.sst"))[2]
    data = file.read_bytes()
    changed = {"short": data[:-1], "long": data + b"\0", "gone": b"", "footer": data[:-20] + b"\xff" + data[-19:]}[size]
    if size == "gone":
        file.unlink()
    else:
        file.write_bytes(changed)
    before = {f.name: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    for read_only in (False, True):
        with pytest.raises(nokv.Corruption) as caught:
            nokv.open(path, read_only=read_only)
        assert caught.value.path == str(file)
    assert {f.name: f.read_bytes() for f in path.rglob("*") if f.is_file()} == before
