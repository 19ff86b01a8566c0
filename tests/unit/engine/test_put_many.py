"""put_many: plain lists go straight into the log; whatever else is given ends up the same, or is refused as a whole."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.arena import ARENA_CHUNK_BYTES
from nokv._ext.batch import KEY_BYTES_LIMIT, WriteBatch
from nokv._ext.wal import TYPE_BATCH
from nokv.engine.syncer import IntervalSyncer
from tests.sanitizer import own_allocator

PAIRS = st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=300)), max_size=60)
Pairs = list[tuple[bytes, bytes]]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[nokv.DB]:
    with nokv.open(str(tmp_path / "db"), families=["other"]) as opened:
        yield opened


class Bytes(bytes):
    pass


SHAPES: dict[str, Callable[[Pairs], Iterable[Any]]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda pairs: (pair for pair in pairs),
    "lists as pairs": lambda pairs: [list(pair) for pair in pairs],
    "bytearrays": lambda pairs: [(bytearray(key), memoryview(value)) for key, value in pairs],
    "one odd one at the end": lambda pairs: [*pairs[:-1], *((Bytes(k), v) for k, v in pairs[-1:])],
    "a subclass of list": type("L", (list,), {}),
}


@given(batches=st.lists(PAIRS, max_size=4), shape=st.sampled_from(sorted(SHAPES)))
@settings(max_examples=60, deadline=None)
def test_every_shape_logs_and_stores_the_same(
    tmp_path_factory: pytest.TempPathFactory, batches: list[Pairs], shape: str
) -> None:
    path = str(tmp_path_factory.mktemp("shape") / "db")
    model: dict[bytes, bytes] = {}
    with nokv.open(path, durability="process", write_buffer_bytes=16_384) as db:
        first = db.sequence + 1
        for pairs in batches:
            db.put_many(SHAPES[shape](pairs))
            model.update(pairs)
            expected = WriteBatch()
            expected.put_many(pairs)
            if pairs:
                logged = [payload for _, _, payload in db.wal.replay({TYPE_BATCH})]
                assert logged[-1] == expected.payload(first)
                first += len(pairs)
        assert dict(db.scan()) == model and db.sequence == first - 1
    with nokv.open(path) as db:
        assert dict(db.scan()) == model


MALFORMED: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "pair 3 is NoneType, not (key, value)"),
    (7, TypeError, "pair 3 is int, not (key, value)"),
    (b"ab", TypeError, "pair 3 is bytes, not (key, value)"),  # two parts, but numbers
    ("ab", TypeError, "pair 3 is str, not (key, value)"),
    ((), ValueError, "pair 3 is tuple of another length than 2"),
    ((b"k",), ValueError, "pair 3 is tuple of another length than 2"),
    ([b"k", b"v", b"more"], ValueError, "pair 3 is list of another length than 2"),
    (("k", b"v"), TypeError, "pair 3: key must be bytes, not str"),
    ((b"k", None), TypeError, "pair 3: value must be bytes, not NoneType"),
    ((bytes(KEY_BYTES_LIMIT + 1), b"v"), ValueError, "pair 3: a key of 65537 bytes is too long"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), MALFORMED, ids=[message for _, _, message in MALFORMED])
@pytest.mark.parametrize("shape", ["list", "generator"])
def test_the_error_names_the_pair(db: nokv.DB, bad: Any, kind: type[Exception], message: str, shape: str) -> None:
    def pairs() -> Any:
        return SHAPES[shape]([*((b"k%d" % n, b"v") for n in range(3)), bad, None])  # type: ignore[list-item]

    batch = WriteBatch()
    batch.put(b"before", b"1")
    batch.delete(b"gone")
    with db.transaction() as transaction:
        for put_many in (db.put_many, db.family("other").put_many, batch.put_many, transaction.put_many):
            with pytest.raises(nokv.UsageError) as caught:
                put_many(pairs())
            assert isinstance(caught.value, kind) and str(caught.value) == message and caught.value.hint
    assert list(db.scan()) == list(db.family("other").scan()) == []
    assert len(batch) == 2
    db.write(batch)
    assert list(db.scan()) == [(b"before", b"1")]


def test_no_pairs_at_all(db: nokv.DB) -> None:
    for put_many in (db.put_many, WriteBatch().put_many):
        with pytest.raises(nokv.BytesRequired, match="put_many takes pairs, not int") as caught:
            put_many(7)  # type: ignore[arg-type]
        assert caught.value.hint
    batch = WriteBatch()
    batch.put_many({b"k": b"v"})
    db.write(batch)
    assert dict(db.scan()) == {b"k": b"v"}


def test_what_the_iterable_raises_comes_out_and_a_cleared_batch_stays_as_it_is(db: nokv.DB) -> None:
    batch = WriteBatch()

    def pairs(clear: bool) -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        if clear:
            batch.clear()
            batch.put(b"own", b"2" * 1000)
        raise LookupError("theirs")

    batch.put(b"before", b"1" * 1000)
    with pytest.raises(LookupError, match="theirs"):
        batch.put_many(pairs(False))
    assert len(batch) == 1
    with pytest.raises(LookupError, match="theirs"):
        batch.put_many(pairs(True))
    db.write(batch)
    assert dict(db.scan()) == {b"own": b"2" * 1000}


def test_pairs_that_end_the_transaction_are_not_lost_in_silence(db: nokv.DB) -> None:
    transaction = db.transaction()

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        transaction.commit()
        yield b"b", b"2"

    with pytest.raises(nokv.Closed):
        transaction.put_many(pairs())
    assert list(db.scan()) == []


def test_a_bad_pair_leaves_nothing_behind(db: nokv.DB) -> None:
    appended = db.wal.appended
    good = [(b"%03d" % n, b"v") for n in range(100)]
    for bad in [
        [*good, (b"k", "text")],
        [*good, ("text", b"v")],
        [*good, (bytes(KEY_BYTES_LIMIT + 1), b"v")],
        [*good, (b"k", b"v", b"more")],
        [*good, (b"k",)],
        [*good, None],
        [*good, 7],
    ]:
        with pytest.raises(nokv.UsageError):
            db.put_many(bad)  # type: ignore[arg-type]
    assert list(db.scan()) == [] and db.wal.appended == appended
    db.put_many([])
    assert db.wal.appended == appended
    db.put_many([(b"", b""), (bytes(KEY_BYTES_LIMIT), b"longest")])
    assert db.get(bytes(KEY_BYTES_LIMIT)) == b"longest" and db.get(b"") == b""


def test_the_same_key_twice_and_other_families(db: nokv.DB) -> None:
    other = db.family("other")
    db.put_many([(b"k", b"1"), (b"k", b"22"), (b"k", b"3")])
    other.put_many([(b"k", b"theirs")])
    with db.snapshot() as before:
        db.put_many([(b"k", b"4"), (b"k", b"5")])
        assert before.get(b"k") == b"3" and db.get(b"k") == b"5" and other.get(b"k") == b"theirs"
    assert db.puts == 6


def test_a_list_that_others_change_while_we_wait_for_room(tmp_path: Path) -> None:
    """Whoever waits for room lets other threads run; what is written is the list of one moment, as a whole."""
    path = str(tmp_path / "db")
    pairs = [(b"%06d" % n, b"a" * 100) for n in range(400)]
    versions = [[(key, letter * 100) for key, _ in pairs] for letter in (b"b", b"c")]
    stop = threading.Event()

    def change() -> None:
        dice = random.Random(5)
        while not stop.is_set():
            pairs[:] = versions[dice.randrange(2)][: dice.choice([1, 200, 400])]

    with nokv.open(path, durability="process", write_buffer_bytes=65_536) as db:
        changer = threading.Thread(target=change)
        changer.start()
        try:
            for _ in range(300):
                before = dict(db.scan())
                db.put_many(pairs)
                after = dict(db.scan())
                fresh = {value for key, value in after.items() if before.get(key) != value}
                assert len(fresh) <= 1
        finally:
            stop.set()
            changer.join()
        found = dict(db.scan())
    with nokv.open(path) as db:
        assert dict(db.scan()) == found


@own_allocator
def test_memory_of_a_flushed_memtable_serves_the_next_and_is_given_back(tmp_path: Path) -> None:
    """The pool keeps at most one memtable; idle, and closed, it keeps nothing."""
    limit = 8 * ARENA_CHUNK_BYTES
    dice = random.Random(3)
    with nokv.open(str(tmp_path / "db"), durability="process", write_buffer_bytes=limit) as db:
        for _ in range(120):
            db.put_many([(b"%016d" % dice.randrange(1 << 40), b"v" * 900) for _ in range(1_000)])
            flush = db.stats()["flush"]
            assert 0 <= flush["memtable_spare_bytes"] <= limit * 5 // 4 + ARENA_CHUNK_BYTES  # one is being made ready
            assert flush["memtable_allocated_bytes"] <= 2 * (limit * 9 // 8 + 2 * ARENA_CHUNK_BYTES)
        db.flush()  # else the writer may be ahead of the flush, and nothing has been given back yet
        before = db._arena.stats()
        for _ in range(10):
            db.put_many([(b"%016d" % dice.randrange(1 << 40), b"v" * 900) for _ in range(1_000)])
        used = db._arena.stats()
        reused, fresh = (used[name] - before[name] for name in ("reused_chunks", "fresh_chunks"))
        assert reused > fresh, (reused, fresh)
        db.flush()
        assert db.stats()["flush"]["memtable_spare_bytes"] > 0
        syncer = IntervalSyncer(db, 0.001, idle_s=0.01)
        syncer.wake()
        deadline = time.monotonic() + 60
        while db.stats()["flush"]["memtable_spare_bytes"] and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert db.stats()["flush"]["memtable_spare_bytes"] == 0
        syncer.stop()
        for _ in range(10):
            db.put_many([(b"%016d" % dice.randrange(1 << 40), b"v" * 900) for _ in range(1_000)])
        db.flush()
        assert db.stats()["flush"]["memtable_spare_bytes"] > 0
        arena = db._arena
    assert arena.stats()["free_bytes"] == 0
