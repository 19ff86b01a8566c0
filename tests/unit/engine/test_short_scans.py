"""Seeks and short scans over many tables and memtables against a sorted dict (ENG-17): every way a search narrows."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.memtable import MemTable
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles

# what all keys of a block have in common: nothing, less than a block's header keeps, more than it keeps
PREFIXES = [b"", b"user:", b"a prefix that is longer than sixteen bytes:"]

runs = st.builds(
    lambda prefix, first, count, stride, tail: [prefix + b"%05d" % (first + i * stride) + tail for i in range(count)],
    st.sampled_from(PREFIXES),
    st.integers(0, 300),
    st.integers(1, 120),
    st.integers(1, 50),
    st.sampled_from([b"", b"\0", b"\xff\xff"]),
)
loose = st.lists(st.builds(bytes.__add__, st.sampled_from(PREFIXES), st.binary(max_size=5)), max_size=20)
rounds = st.lists(st.tuples(st.one_of(runs, loose), st.sampled_from(["put", "put", "delete"])), min_size=1, max_size=6)


def open_db(**options: Any) -> nokv.DB:
    return nokv.open("db", files=CrashFiles(), executor=StepExecutor(), durability="process", **options)


def starts_around(keys: list[bytes]) -> list[bytes]:
    some = keys[:: max(1, len(keys) // 12)] + keys[-1:]
    found = [b"", b"\xff" * 4, *PREFIXES]
    for key in some:
        found += [key, key[:-1], key + b"\0", key[:-1] + b"\xff"]
    return found


@settings(max_examples=60, deadline=None)
@given(
    rounds,
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.sampled_from([64, 300, 4096, 49152]),
    st.sampled_from([0, 9000, 8 << 20]),
    st.booleans(),
)
def test_a_short_scan_from_anywhere_is_a_slice_of_the_dict(
    written: list[tuple[list[bytes], str]], flushes: list[bool], block_bytes: int, cache_bytes: int, compact: bool
) -> None:
    expected: dict[bytes, bytes] = {}
    with open_db(block_bytes=block_bytes, compressed_block_bytes=block_bytes, block_cache_bytes=cache_bytes) as db:
        for n, ((keys, what), flush) in enumerate(zip(written, flushes, strict=False)):
            for key in keys:
                if what == "put":
                    expected[key] = b"%d " % n * (len(key) % 40)
                    db.put(key, expected[key])
                else:
                    expected.pop(key, None)
                    db.delete(key)
            if flush:
                db.flush()
        if compact:
            db.compact()
            for key in list(expected)[::3]:  # again, newer than the table
                expected[key] = b"newer"
                db.put(key, b"newer")
        order = sorted(expected)
        waiting = db.scan()  # has the cursors that the next scans would use, and blocks that must stay
        held = [next(waiting, None) for _ in range(3)]
        assert held == ([(key, expected[key]) for key in order[:3]] + [None] * 3)[:3]
        for start in starts_around(order or [b"k"]):
            at = bisect.bisect_left(order, start)
            for limit in (1, 7, 300):
                found = order[at : at + limit]
                assert list(db.scan(start, limit=limit)) == [(key, expected[key]) for key in found]
            before = order[max(0, at - 4) : at]
            assert list(db.scan(end=start, reverse=True, limit=4, values=False)) == before[::-1]
            with db.iterator() as it:
                it.seek(start)
                assert it.valid == (at < len(order)) and (not it.valid or it.key == order[at])
                it.seek_for_prev(start)
                last = bisect.bisect_right(order, start) - 1
                assert it.valid == (last >= 0) and (not it.valid or it.key == order[last])
        assert list(waiting) == [(key, expected[key]) for key in order[3:]]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 33, 400])
@pytest.mark.parametrize("equal", [False, True])
def test_a_search_in_a_block_of_any_number_of_entries(count: int, equal: bool) -> None:
    """`equal`: the four bytes behind the common part of the keys are the same for all but the outermost."""
    middle = b"same" if equal else b""
    keys = [b"block " + (b"aaaa" if i == 0 else middle) + b"%05d" % i for i in range(count - 1)]
    keys += [b"block " + b"zzzz%05d" % count] if equal else [b"block %05d" % count]
    keys.sort()
    with open_db(block_bytes=1 << 20, compressed_block_bytes=1 << 20) as db:
        db.put_many([(key, b"v") for key in keys])
        db.compact()
        for i, key in enumerate(keys):
            for start, at in ((key, i), (key + b"\0", i + 1), (key[:-1], bisect.bisect_left(keys, key[:-1]))):
                assert list(db.scan(start, limit=3, values=False)) == keys[at : at + 3]
            assert db.get(key) == b"v" and db.get(key + b"\0") is None


def batches(dice: random.Random) -> Iterator[list[bytes]]:
    """What a memtable is made of and what comes later: everywhere, at the end, or crowded between two neighbours."""
    yield [b"key%06d" % dice.randrange(10**6) for _ in range(dice.choice([250, 260, 1000]))]
    for _ in range(6):
        kind = dice.choice(["everywhere", "end", "gap", "prefix", "few"])
        count = dice.choice([1, 100, 400])
        if kind == "everywhere":
            yield [b"key%06d" % dice.randrange(10**6) for _ in range(count)]
        elif kind == "end":
            yield [b"kez%06d" % (dice.randrange(1000) + i) for i in range(count)]
        elif kind == "gap":
            yield [b"key500000%04d" % dice.randrange(10**4) for _ in range(count)]
        elif kind == "prefix":  # nothing in common any more
            yield [
                dice.choice([b"", b"a", b"key", b"z" * 70]) + dice.randbytes(dice.randrange(4)) for _ in range(count)
            ]
        else:
            yield [dice.randbytes(2) for _ in range(3)]


@pytest.mark.parametrize("seed", range(12))
def test_a_search_in_a_memtable_that_grows_where_it_likes(seed: int) -> None:
    dice = random.Random(seed)
    mem, sequence, keys = MemTable(seed + 1), 0, set[bytes]()
    with open_db() as db:
        for batch in batches(dice):
            for key in batch:
                sequence += 1
                mem.insert(sequence, 1, b"\0" + key, b"v")
                db.put(key, b"v")
            keys.update(batch)
            order = sorted(keys)
            probes = [dice.choice(order) for _ in range(40)] + [dice.randbytes(3), b"", b"key", b"\xff" * 9, *batch[:3]]
            for probe in [*probes, *(p + b"\0" for p in probes), *(p[:-1] for p in probes)]:
                at = bisect.bisect_left(order, probe)
                assert list(db.scan(probe, limit=2, values=False)) == order[at : at + 2], f"seed {seed}, {probe!r}"
            for probe in probes[-4:]:
                found = mem.walk(seek=b"\0" + probe + bytes(8))
                assert [entry[0][1:] for entry in found] == order[bisect.bisect_left(order, probe) :], f"seed {seed}"


def test_the_memory_of_a_memtable_s_order_is_counted() -> None:
    mem = MemTable(1)
    for i in range(4000):
        mem.insert(i + 1, 1, b"\0%08d" % (i * 7919 % 4000), b"v")
    before = mem.allocated_bytes
    assert len(mem.walk()) == 4000
    assert 4000 // 32 * 16 < mem.allocated_bytes - before < 4000 * 4
