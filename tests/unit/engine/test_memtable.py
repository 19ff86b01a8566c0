"""ENG-12: the compiled memtable against a dict of version lists."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.memtable import MemTable

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
    assert len(table) == len(entries) and table.keys == len(model)
    for key in [*probe, *model]:
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
