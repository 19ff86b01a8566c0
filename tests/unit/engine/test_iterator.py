"""An iterator against a sorted list: any mix of moves over memtables and tables, with deletes and overwrites."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv


@pytest.fixture
def db(tmp_path: Path) -> Iterator[nokv.DB]:
    with nokv.open(tmp_path / "db", durability="process") as db:
        yield db


def _fill(db: nokv.DB, rng: random.Random, model: dict[bytes, bytes], rounds: int = 5) -> None:
    for turn in range(rounds):
        for _ in range(80):
            key = b"k%03d" % rng.randrange(120)
            if rng.random() < 0.35:
                db.delete(key)
                model.pop(key, None)
            else:
                model[key] = b"%d/%d" % (turn, rng.randrange(1000))
                db.put(key, model[key])
        if turn == 1:
            db.compact()
        elif turn < rounds - 1:
            db.flush()


class _Model:
    def __init__(self, pairs: dict[bytes, bytes], start: bytes | None, end: bytes | None) -> None:
        self.keys = sorted(k for k in pairs if (start is None or k >= start) and (end is None or k < end))
        self.pairs = pairs
        self.at = -1

    @property
    def item(self) -> tuple[bytes, bytes] | None:
        if not 0 <= self.at < len(self.keys):
            return None
        return self.keys[self.at], self.pairs[self.keys[self.at]]


@pytest.mark.parametrize("seed", range(12))
def test_moves_agree_with_a_sorted_list(db: nokv.DB, seed: int) -> None:
    """ENG-05"""
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}
    _fill(db, rng, model)
    frozen = dict(model)
    snapshot = db.snapshot()
    _fill(db, rng, model, 2)  # invisible from the snapshot
    for start, end in ((None, None), (b"k020", b"k080"), (b"k0", b"k050x"), (b"k1", None), (b"x", None)):
        for source, pairs in ((db, model), (snapshot, frozen)):
            want = _Model(pairs, start, end)
            with source.iterator(start, end) as it:
                assert not it.valid
                for step in range(150):
                    move = rng.choice(("next", "prev", "next", "prev", "seek", "seek_for_prev", "first", "last"))
                    if move in ("next", "prev") and want.item is None:
                        with pytest.raises(nokv.UsageError):
                            it.next() if move == "next" else it.prev()
                        move = "seek"
                    target = b"k%03d" % rng.randrange(125) + rng.choice((b"", b"", b"x"))
                    if move == "next":
                        want.at += 1
                        found = it.next()
                    elif move == "prev":
                        want.at -= 1
                        found = it.prev()
                    elif move == "seek":
                        want.at = bisect.bisect_left(want.keys, target)
                        found = it.seek(target)
                    elif move == "seek_for_prev":
                        want.at = bisect.bisect_right(want.keys, target) - 1
                        found = it.seek_for_prev(target)
                    elif move == "first":
                        want.at = 0
                        found = it.seek_first()
                    else:
                        want.at = len(want.keys) - 1
                        found = it.seek_last()
                    context = (seed, start, end, step, move, target)
                    assert found is it.valid is (want.item is not None), context
                    if found:
                        assert it.item == want.item == (it.key, it.value), context
    snapshot.close()


def test_prefix_and_families(db: nokv.DB) -> None:
    other = db.family("other", create=True)
    db.put_many({b"a": b"1", b"p\xff": b"2", b"p\xff\xff": b"3", b"q": b"4"})
    other.put_many({b"b": b"5", b"c": b"6"})
    it = db.iterator(prefix=b"p\xff")
    assert it.seek_first() and it.key == b"p\xff" and it.next() and it.key == b"p\xff\xff" and not it.next()
    assert it.seek_last() and it.key == b"p\xff\xff" and it.seek_for_prev(b"p") is False
    walk = other.iterator()
    assert walk.seek(b"") and walk.item == (b"b", b"5") and walk.next() and not walk.next()
    assert walk.seek_last() and walk.prev() and not walk.prev()
    with db.snapshot() as snapshot:
        other.delete(b"b")
        again = snapshot.family("other").iterator()
        assert again.seek_first() and again.key == b"b"


def test_it_keeps_its_view(db: nokv.DB) -> None:
    db.put_many({b"%04d" % i: b"old" for i in range(500)})
    it = db.iterator()
    assert it.seek(b"0100")
    for i in range(500):
        db.put(b"%04d" % i, b"new")
    db.compact()
    assert it.value == b"old"
    assert it.next() and it.item == (b"0101", b"old")
    assert it.prev() and it.prev() and it.item == (b"0099", b"old")
    it.close()
    assert db.snapshot_sequences() == []


def test_errors(db: nokv.DB) -> None:
    with pytest.raises(nokv.UsageError):
        db.iterator(b"b", b"a")
    with pytest.raises(nokv.BytesRequired):
        db.iterator("a")  # type: ignore[arg-type]
    it = db.iterator()
    with pytest.raises(nokv.BytesRequired):
        it.seek("a")  # type: ignore[arg-type]
    for read in (lambda: it.key, lambda: it.value, it.next, it.prev):
        with pytest.raises(nokv.UsageError):
            read()
    it.close()
    it.close()
    assert it.closed
    with pytest.raises(nokv.Closed):
        it.seek(b"")
    snapshot = db.snapshot()
    bound = snapshot.iterator()
    snapshot.close()
    with pytest.raises(nokv.Closed):
        bound.seek_first()
    left = db.iterator()
    db.put(b"a", b"1")
    assert not left.seek_first()  # the view of when it was made
    db.close()
    with pytest.raises(nokv.Closed):
        left.seek_first()
    left.close()


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_what_an_iterator_stands_on_stays(tmp_path: Path, cache_bytes: int) -> None:  # ENG-13
    """A small cache: the blocks under iterators, scans and values that expire leave it while they are in use."""
    data = {b"key%05d" % i: b"value %d" % i for i in range(3000)}
    with nokv.open(tmp_path / "db", durability="process", block_cache_bytes=cache_bytes) as db:
        db.put_many(data.items())
        for i in range(0, 3000, 7):
            db.put(b"soon%05d" % i, b"gone %d" % i, ttl=10_000_000)
        db.compact()
        held = [db.iterator() for _ in range(20)]
        for i, it in enumerate(held):
            it.seek(b"key%05d" % (i * 140))
        scans = [db.scan(b"key%05d" % (i * 140)) for i in range(20)]
        assert [next(scan)[0] for scan in scans] == [b"key%05d" % (i * 140) for i in range(20)]
        for key, value in data.items():
            assert db.get(key) == value
        for i in range(0, 3000, 7):
            assert db.get(b"soon%05d" % i) == b"gone %d" % i
        for i, it in enumerate(held):
            assert it.item == (b"key%05d" % (i * 140), b"value %d" % (i * 140))
            it.next()
            assert it.item == (b"key%05d" % (i * 140 + 1), b"value %d" % (i * 140 + 1))
            if i:
                it.prev()
                it.prev()
                assert it.key == b"key%05d" % (i * 140 - 1)
        for i, scan in enumerate(scans):
            assert sum(1 for key, _ in scan if key in data) == 2999 - i * 140
        assert db.get_many([*data, b"none"]) == [*data.values(), None]
        assert db.stats()["cache"]["used_bytes"] <= cache_bytes
