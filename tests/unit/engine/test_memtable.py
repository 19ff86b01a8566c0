"""ENG-12: the compiled memtable against a dict of version lists."""

from __future__ import annotations

import random
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.arena import ARENA_CHUNK_BYTES, ArenaPool
from nokv._ext.memtable import MemTable
from tests.sanitizer import own_allocator

DELETE, PUT = 0, 1
KEYS = st.one_of(st.binary(max_size=4), st.integers(0, 40).map(lambda n: b"key%02d" % n))
OPERATIONS = st.lists(
    st.tuples(KEYS, st.sampled_from([PUT, PUT, PUT, DELETE]), st.binary(max_size=30), st.integers(1, 3)), max_size=200
)
Versions = dict[bytes, list[tuple[int, int, bytes]]]


def fill(operations: list[tuple[bytes, int, bytes, int]], newest_snapshot: int) -> tuple[MemTable, Versions]:
    table, model = MemTable(), Versions()
    sequence = 0
    for key, kind, value, step in operations:
        sequence += step
        value = value if kind == PUT else b""
        table.insert(sequence, kind, key, value, newest_snapshot)
        chain = model.setdefault(key, [])
        if chain and chain[0][0] > newest_snapshot:
            chain[0] = (sequence, kind, value)  # nobody sees what it replaces
        else:
            chain.insert(0, (sequence, kind, value))
    return table, model


@given(operations=OPERATIONS, newest_snapshot=st.integers(0, 300), probe=st.lists(KEYS, max_size=10))
@settings(max_examples=200, deadline=None)
def test_agrees_with_the_model(
    operations: list[tuple[bytes, int, bytes, int]], newest_snapshot: int, probe: list[bytes]
) -> None:
    table, model = fill(operations, newest_snapshot)
    entries = [(key, *version) for key in sorted(model) for version in model[key]]
    assert table.walk() == entries
    assert table.walk(reverse=True) == entries[::-1]
    unasked, _ = fill(operations, newest_snapshot)  # nobody has made its order yet
    assert unasked.walk(flush=True) == unasked.walk(flush=True) == entries
    assert unasked.walk(flush=True, reverse=True) == entries[::-1]
    for key, sequence, kind, _ in entries:
        trailer = (~(sequence << 8 | kind) & (1 << 64) - 1).to_bytes(8, "big")
        found = entries.index(next(entry for entry in entries if entry[:2] == (key, sequence)))
        assert unasked.walk(flush=True, seek=key + trailer) == table.walk(seek=key + trailer) == entries[found:]
    assert len(table) == len(entries) and table.keys == len(model)
    for key in [*probe, *model]:
        assert unasked.walk(flush=True, seek=key + bytes(8)) == table.walk(seek=key + bytes(8))
        assert unasked.walk(flush=True, seek=key + b"\xff" * 8) == table.walk(seek=key + b"\xff" * 8)
        for sequence in (0, 1, newest_snapshot, 10**6):
            seen = next(((kind, value) for at, kind, value in model.get(key, []) if at <= sequence), None)
            assert table.find(key, sequence) == seen
        first = next((i for i, entry in enumerate(entries) if entry[0] >= key), len(entries))
        assert table.walk(seek=key + bytes(8)) == entries[first:]
        assert table.walk(seek=key + b"\xff" * 8) == [entry for entry in entries if entry[0] > key]


@given(operations=OPERATIONS, every=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_order_made_now_and_then_is_the_order_made_at_the_end(
    operations: list[tuple[bytes, int, bytes, int]], every: int
) -> None:
    table = MemTable()
    newest: dict[bytes, bytes] = {}
    for sequence, (key, _, value, _) in enumerate(operations, 1):
        table.insert(sequence, PUT, key, value)
        newest[key] = value
        if sequence % every == 0:
            assert [(entry[0], entry[3]) for entry in table.walk()] == sorted(newest.items())
    assert [(entry[0], entry[3]) for entry in table.walk(reverse=True)] == sorted(newest.items(), reverse=True)


def test_writes_go_on_while_another_thread_makes_order() -> None:
    table = MemTable()
    keys = [b"%08d" % (n * 7919 % 100_003) for n in range(60_000)]
    for sequence, key in enumerate(keys[:20_000], 1):
        table.insert(sequence, PUT, key, b"")
    seen: list[list[bytes]] = []

    def walk() -> None:
        seen.extend([entry[0] for entry in table.walk()] for _ in range(20))

    walkers = [threading.Thread(target=walk) for _ in range(2)]
    for walker in walkers:
        walker.start()
    for sequence, key in enumerate(keys[20_000:], 20_001):
        table.insert(sequence, PUT, key, b"")
    for walker in walkers:
        walker.join()
    every = set(keys)
    for found in seen:
        assert len(found) >= 20_000 and every.issuperset(found)
        assert found == sorted(set(found))
    assert [entry[0] for entry in table.walk()] == sorted(keys)


def test_many_keys_keep_their_order_and_their_memory_is_counted() -> None:
    table = MemTable()
    keys = [b"%08d" % (n * 7919 % 100_003) for n in range(30_000)]
    for sequence, key in enumerate(keys, 1):
        table.insert(sequence, PUT, key, key)
    assert [entry[0] for entry in table.walk()] == sorted(keys)
    assert all(table.find(key, 10**6) == (PUT, key) for key in keys)
    assert 30_000 * 16 < table.used_bytes <= table.allocated_bytes


@pytest.mark.parametrize("prefix", [b"", b"p" * 20])
def test_a_flush_sorts_many_keys_of_any_shape(prefix: bytes) -> None:
    """More than are sorted by comparing: bytes that differ late, early, keys that begin others, equal heads."""
    dice = random.Random(9)
    keys = {prefix + dice.randbytes(dice.choice([0, 1, 2, 7, 8, 9, 12])) for _ in range(2_000)}
    keys |= {prefix + b"same-head" + b"\0" * n for n in range(30)} | {prefix + b"%08d" % n for n in range(500)}
    mixed = sorted(keys)
    dice.shuffle(mixed)
    table = MemTable()
    for sequence, key in enumerate(mixed, 1):
        table.insert(sequence, PUT, key, b"v")
    assert [entry[0] for entry in table.walk(flush=True)] == sorted(keys)
    assert table.unlinked == table.keys - 1  # a random first key continues the order of none
    assert [entry[0] for entry in table.walk()] == sorted(keys)
    assert table.unlinked == 0 and [entry[0] for entry in table.walk(reverse=True)] == sorted(keys, reverse=True)


@pytest.mark.parametrize("ascending", [0, 1, 10, 200, 400, 1_000])
def test_a_flush_takes_along_what_is_in_order_already(ascending: int) -> None:
    dice = random.Random(4)
    mixed = [b"b%06d" % n for n in range(ascending)] + [
        dice.choice([b"a", b"b", b"c"]) + b"%d" % n for n in range(1_000)
    ]
    table = MemTable()
    for sequence, key in enumerate(mixed, 1):
        table.insert(sequence, PUT, key, key)
        if sequence == 5:
            table.walk()
    for _ in range(2):
        assert [entry[0] for entry in table.walk(flush=True)] == sorted(mixed)
    assert [entry[0] for entry in table.walk(reverse=True)] == sorted(mixed, reverse=True)
    assert [entry[0] for entry in table.walk(flush=True)] == sorted(mixed)


def test_values_that_shrink_and_grow_back_take_their_place_again() -> None:
    table = MemTable()
    sizes = [100, 3, 0, 99, 100, 17, 104, 1]
    table.insert(1, PUT, b"k" * 17, b"a" * 100)
    used = table.used_bytes
    for sequence, size in enumerate(sizes, 2):
        table.insert(sequence, PUT, b"k" * 17, b"%d" % (sequence % 10) * size)
        assert table.find(b"k" * 17, 10**6) == (PUT, b"%d" % (sequence % 10) * size)
    grown = table.used_bytes - used
    assert grown <= 136  # at most one entry for the 104 bytes
    table.insert(50, PUT, b"large", b"x" * 40_000)  # a slack larger than what is remembered
    table.insert(51, PUT, b"large", b"y")
    table.insert(52, PUT, b"large", b"z" * 16_000)
    assert table.find(b"large", 60) == (PUT, b"z" * 16_000)
    table.insert(53, PUT, b"large", b"w" * 40_000)
    assert table.find(b"large", 60) == (PUT, b"w" * 40_000) and len(table) == 2


def test_the_next_memtable_takes_the_memory_of_the_last_one() -> None:
    pool = ArenaPool(8 * ARENA_CHUNK_BYTES)

    def filled(sequence: int) -> MemTable:
        table = MemTable(1, 1024, pool)
        while table.allocated_bytes < 7 * ARENA_CHUNK_BYTES:
            sequence += 1
            table.insert(sequence, PUT, b"%016d" % sequence, b"v" * 1_000)
        return table

    table = filled(0)
    fresh = pool.stats()["fresh_chunks"]
    assert fresh >= 5 and pool.stats()["free_bytes"] == 0
    del table
    assert pool.stats()["free_bytes"] == fresh * ARENA_CHUNK_BYTES
    table = filled(0)
    stats = pool.stats()
    assert stats["reused_chunks"] == fresh and stats["fresh_chunks"] <= fresh + 2
    assert table.find(b"%016d" % 9, 10**6) == (PUT, b"v" * 1_000)
    del table


def test_a_pool_keeps_no_more_than_its_limit() -> None:
    pool = ArenaPool(2 * ARENA_CHUNK_BYTES)
    tables = [MemTable(1, 1024, pool) for _ in range(3)]
    for table in tables:
        for sequence in range(1, 8_001):
            table.insert(sequence, PUT, b"%016d" % sequence, b"v" * 1_000)
    del table
    tables.clear()
    assert pool.stats()["free_bytes"] == 2 * ARENA_CHUNK_BYTES
    pool.trim()
    assert pool.stats()["free_bytes"] == 0
    kept = MemTable(1, 1024, pool)
    kept.insert(1, PUT, b"k", b"v")
    pool.close()
    assert pool.stats()["free_bytes"] == 0
    del pool  # the table goes on without it
    assert kept.find(b"k", 1) == (PUT, b"v")


def test_chunks_are_ready_before_a_memtable_asks_for_them() -> None:
    chunk = ARENA_CHUNK_BYTES
    pool = ArenaPool(10 * chunk, 8 * chunk)
    table = MemTable(1, 1024, pool)
    pool.prepare()
    assert pool.stats()["free_bytes"] == 0  # nothing for a small one
    sequence, seen = 0, set()
    while table.allocated_bytes < 8 * chunk:
        sequence += 1
        table.insert(sequence, PUT, b"%016d" % sequence, b"v" * 1_000)
        if sequence % 300 == 0:
            pool.prepare()
            missing = 8 * chunk - table.allocated_bytes
            assert pool.stats()["free_bytes"] <= max(0, missing) + 3 * chunk  # never much more than it will take
            seen.add(pool.stats()["free_bytes"] // chunk)
    assert seen >= {0, 3} and max(seen) == 3  # three at most, fewer towards the end:
    left = pool.stats()["free_bytes"]
    assert chunk <= left <= 2 * chunk  # the next memtable begins with one
    following = MemTable(1, 1024, pool)
    following.insert(1, PUT, b"k", b"v")
    assert pool.stats()["free_bytes"] == left - chunk and following.allocated_bytes >= chunk
    del following
    slots = MemTable(1, chunk // 8, pool)  # its hash index may be one of them: then it is zeros
    assert slots.find(b"k", 1) is None
    del slots
    assert [table.find(b"%016d" % n, sequence) for n in (1, sequence, sequence + 1)] == [
        (PUT, b"v" * 1_000),
        (PUT, b"v" * 1_000),
        None,
    ]
    pool.trim()
    assert pool.stats()["free_bytes"] == 0


def test_a_used_hash_index_begins_empty() -> None:
    pool = ArenaPool(8 * ARENA_CHUNK_BYTES, 16 * ARENA_CHUNK_BYTES)
    slots = ARENA_CHUNK_BYTES // 8
    for _ in range(3):
        pool.prepare()
        table = MemTable(1, slots, pool)
        for sequence in range(1, 30_001):
            table.insert(sequence, PUT, b"%016d" % sequence, b"v" * 100)
        assert len(table) == table.keys == 30_000
        assert table.find(b"%016d" % 30_001, 10**6) is None
        del table


@own_allocator
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_memtable_counts_is_what_it_has_of_the_system() -> None:
    """ENG-12: the write buffer's limit is one of memory."""
    pool = ArenaPool(64 * ARENA_CHUNK_BYTES)
    before = anonymous_bytes()
    table = MemTable(1, 1024, pool)
    for sequence in range(1, 100_001):
        table.insert(sequence, PUT, b"%016d" % (sequence * 7919 % 1_000_003), b"v" * 100)
    taken = anonymous_bytes() - before
    assert table.allocated_bytes - ARENA_CHUNK_BYTES <= table.used_bytes <= table.allocated_bytes
    assert abs(taken - table.used_bytes) < 3 * ARENA_CHUNK_BYTES
    assert table.used_bytes < 100_000 * (117 + 70)  # node, tower and slot


def anonymous_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def test_a_hot_key_does_not_grow_without_snapshots() -> None:
    table = MemTable()
    for sequence in range(1, 10_001):
        table.insert(sequence, PUT, b"hot", b"x" * 100)
    assert len(table) == 1 and table.used_bytes < 16_384


def test_sequences_must_rise() -> None:
    table = MemTable()
    table.insert(2, PUT, b"k", b"v")
    with pytest.raises(ValueError, match="rise"):
        table.insert(2, PUT, b"k", b"v")
