"""The MVCC codec and reader against a dict of versions. ENG-07, ENG-12, KV-07, KV-10."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext import command, mvcc
from nokv._ext.batch import WriteBatch, decode_batch
from nokv.errors import Corruption, KeyLocked
from nokv.mvcc import FAMILY_DEFAULT, FAMILY_LOCK, FAMILY_WRITE, TS_MAX, MvccReader

KEYS = st.binary(max_size=20)
SMALL_KEYS = st.sampled_from([b"", b"a", b"a\x00", b"ab", b"b", b"abcdefgh", b"abcdefgh\x00", b"c" * 17])


def slow_encode(key: bytes) -> bytes:
    out = b""
    for at in range(0, len(key) + 1, 8):
        group = key[at : at + 8]
        out += group.ljust(8, b"\x00") + bytes([255 - (8 - len(group))])
    return out


class DictView:
    """The engine's read verbs over dicts: the specification, not a mock of a behaviour."""

    def __init__(self, families: dict[str, dict[bytes, bytes]], name: str = "plain") -> None:
        self.families = families
        self.id = {FAMILY_WRITE: 2, FAMILY_DEFAULT: 3}.get(name, 0)
        self.rows = families.setdefault(name, {})

    def family(self, name: str) -> DictView:
        return DictView(self.families, name)

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        return self.rows.get(key, default)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def scan(
        self, start: bytes | None = None, end: bytes | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(self.rows)
        keys = keys[
            bisect.bisect_left(keys, start or b"") : len(keys) if end is None else bisect.bisect_left(keys, end)
        ]
        if reverse:
            keys.reverse()
        return iter([(key, self.rows[key]) for key in keys[:limit]])


FAMILY_IDS = {2: FAMILY_WRITE, 3: FAMILY_DEFAULT}


def apply(view: DictView, payload: bytes) -> tuple[int, list[int], int] | None:
    """apply_batch, and then what the engine would do with the batch."""
    batch = WriteBatch()
    outcome = mvcc.apply_batch(payload, batch, 2, 3)
    if len(batch):
        for _kind, family, key, value in decode_batch(batch.payload(1))[1]:
            assert value is not None
            view.family(FAMILY_IDS[family]).rows[key] = value
    return outcome


@given(KEYS)
def test_key_codec_agrees_with_the_slow_model(key: bytes) -> None:
    assert mvcc.encode_key(key) == slow_encode(key)
    assert mvcc.decode_key(mvcc.encode_key(key)) == key


@given(KEYS, KEYS, st.integers(0, TS_MAX), st.integers(0, TS_MAX))
def test_encoded_keys_order_like_keys_and_newest_first(a: bytes, b: bytes, ts_a: int, ts_b: int) -> None:
    assert (a < b) == (mvcc.encode_key(a) < mvcc.encode_key(b))
    assert (mvcc.versioned_key(a, ts_a) < mvcc.versioned_key(b, ts_b)) == ((a, -ts_a) < (b, -ts_b))
    assert mvcc.split_versioned_key(mvcc.versioned_key(a, ts_a)) == (a, ts_a)


@given(st.binary(max_size=40))
def test_hostile_keys_and_records(data: bytes) -> None:  # R4
    for parse in (mvcc.decode_key, mvcc.split_versioned_key, mvcc.decode_write, mvcc.lock_start_ts):
        try:
            parse(data)
        except Corruption:
            continue
        if parse is mvcc.decode_key:
            assert mvcc.encode_key(mvcc.decode_key(data)) == data


@given(st.sampled_from([1, 2, 3, 4]), st.integers(0, TS_MAX), st.none() | st.binary(max_size=50))
def test_write_record_round_trip(kind: int, start_ts: int, value: bytes | None) -> None:
    assert mvcc.decode_write(mvcc.encode_write(kind, start_ts, value)) == (kind, start_ts, value)


OPERATIONS = st.lists(
    st.tuples(
        st.integers(1, 30), st.lists(st.tuples(SMALL_KEYS, st.none() | st.sampled_from([b"", b"v", b"L" * 2000])))
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(st.dictionaries(SMALL_KEYS, st.binary(max_size=4)), OPERATIONS, st.integers(0, 35))
def test_reader_agrees_with_a_dict_of_versions(plain: dict[bytes, bytes], operations: list, ts: int) -> None:  # ENG-07
    view = DictView({})
    view.rows.update(plain)
    versions: dict[bytes, dict[int, bytes | None]] = {key: {-1: value} for key, value in plain.items()}
    for commit_ts, writes in operations:
        payload = command.pack_batch(1, 0, [(commit_ts, command.pack_writes(writes))])
        assert apply(view, payload) == (
            1,
            [len(writes)],
            commit_ts,
        )
        for key, value in writes:
            versions.setdefault(key, {})[commit_ts] = value
    expected = {}
    for key, by_ts in versions.items():
        seen = [t for t in by_ts if t <= ts]
        if seen and by_ts[max(seen)] is not None:
            expected[key] = by_ts[max(seen)]

    reader = MvccReader(view)
    keys = [*versions, b"never"]
    assert reader.get_many(keys, ts) == [expected.get(key) for key in keys]
    assert [reader.get(key, ts) for key in keys] == [expected.get(key) for key in keys]
    ordered = sorted(expected.items())
    assert reader.scan(ts=ts) == (ordered, False)
    assert reader.scan(ts=ts, reverse=True) == (ordered[::-1], False)  # KV-10
    assert reader.scan(b"a\x00", b"b", ts) == ([(k, v) for k, v in ordered if b"a\x00" <= k < b"b"], False)
    assert reader.scan(ts=ts, limit=2) == (ordered[:2], len(ordered) > 2)
    assert reader.scan(ts=ts, keys_only=True)[0] == [(key, b"") for key, _ in ordered]


def test_promoted_keys_are_readable_at_any_timestamp_and_hidden_by_newer_commits() -> None:
    view = DictView({})
    view.rows[b"k"] = b"old"
    reader = MvccReader(view)
    assert [reader.get(b"k", ts) for ts in (0, 1, TS_MAX)] == [b"old"] * 3
    view.family(FAMILY_WRITE).rows[mvcc.versioned_key(b"k", 10)] = mvcc.encode_write(2, 10)
    assert [reader.get(b"k", ts) for ts in (9, 10, TS_MAX)] == [b"old", None, None]


def test_rollback_and_lock_records_are_skipped() -> None:  # KV-07
    view = DictView({})
    rows = view.family(FAMILY_WRITE).rows
    rows[mvcc.versioned_key(b"k", 5)] = mvcc.encode_write(1, 4, b"v")
    for ts in range(6, 80):
        rows[mvcc.versioned_key(b"k", ts)] = mvcc.encode_write(3 + ts % 2, ts)
    reader = MvccReader(view)
    assert reader.get(b"k") == b"v"
    assert reader.scan() == ([(b"k", b"v")], False)
    assert reader.scan(reverse=True) == ([(b"k", b"v")], False)
    assert reader.get(b"k", 4) is None


def test_a_lock_at_or_below_the_timestamp_stops_the_reader() -> None:  # KV-07
    view = DictView({})
    view.rows.update({b"a": b"1", b"k": b"2"})
    view.family(FAMILY_LOCK).rows[mvcc.encode_key(b"k")] = bytes([0x11]) + (20).to_bytes(8, "big")
    reader = MvccReader(view)
    assert reader.get(b"k", 19) == b"2"
    with pytest.raises(KeyLocked):
        reader.get(b"k", 20)
    first, second = reader.get_many([b"a", b"k"])
    assert first == b"1" and isinstance(second, KeyLocked)
    with pytest.raises(KeyLocked):
        reader.scan()
    assert reader.scan(end=b"b") == ([(b"a", b"1")], False)


def test_a_missing_long_value_is_corruption() -> None:
    view = DictView({})
    view.family(FAMILY_WRITE).rows[mvcc.versioned_key(b"k", 5)] = mvcc.encode_write(1, 4)
    with pytest.raises(Corruption, match="missing from the family default"):
        MvccReader(view).get(b"k")


GOOD_GROUP = command.pack_puts([(b"k", b"v")])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"raw key value",
        GOOD_GROUP,
        command.pack_batch(1, 0, [(5, GOOD_GROUP), (6, b"junk")]),
        command.pack_batch(1, 0, [(0, GOOD_GROUP)]),
        command.pack_batch(1, 0, [(5, command.pack_gets([b"k"]))]),
        command.pack_batch(1, 0, [(5, GOOD_GROUP)])[:-1],
    ],
)
def test_apply_rejects_everything_else_and_adds_nothing(payload: bytes) -> None:  # RS-08
    view = DictView({})
    assert apply(view, payload) is None
    assert not any(view.families.values())


def test_apply_floor_and_last_write_wins() -> None:
    view = DictView({})
    group = command.pack_writes([(b"k", b"1"), (b"k", b"2")])
    payload = command.pack_batch(9, 100, [(5, group)])
    assert apply(view, payload) == (9, [2], 100)
    assert MvccReader(view).get(b"k") == b"2"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(SMALL_KEYS, st.binary(max_size=4)), OPERATIONS, st.integers(0, 35), st.integers(0, 12))
def test_compiled_reads_of_a_real_engine_agree(
    tmp_path: Path, plain: dict[bytes, bytes], operations: list, ts: int, flush_at: int
) -> None:  # ENG-07, ENG-12
    """The same answers from the memtable, from tables, from both, and from a snapshot."""
    with nokv.open(tmp_path / str(time.monotonic_ns())) as db:
        db.put_many(plain.items())
        model = DictView({})
        model.rows.update(plain)
        for name in (FAMILY_LOCK, FAMILY_WRITE, FAMILY_DEFAULT):
            db.family(name, create=True)
        for number, (commit_ts, writes) in enumerate(operations):
            payload = command.pack_batch(1, 0, [(commit_ts, command.pack_writes(writes))])
            apply(model, payload)
            batch = WriteBatch()
            mvcc.apply_batch(payload, batch, db.family(FAMILY_WRITE).id, db.family(FAMILY_DEFAULT).id)
            db.write(batch, log=False)
            if number == flush_at:
                db.flush()
        expected = MvccReader(model)
        keys = [b"", b"a", b"a\x00", b"ab", b"b", b"abcdefgh", b"abcdefgh\x00", b"c" * 17, b"never", b"x" * 70_000]
        with db.snapshot() as snapshot:
            for view in (db, snapshot):
                reader = MvccReader(view)
                assert reader.get_many(keys, ts) == expected.get_many(keys, ts)
                assert reader.scan(ts=ts) == expected.scan(ts=ts)
                assert reader.scan(ts=ts, reverse=True) == expected.scan(ts=ts, reverse=True)


def test_many_keys_are_read_at_one_moment(tmp_path: Path) -> None:
    """Whoever writes between two keys of one call: the answer is that of the beginning."""

    class Keys(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            for at, key in enumerate(list(super().__iter__())):
                if at == 1:
                    for name in (b"b", b"c"):
                        record = mvcc.encode_write(1, 3, b"new")
                        db.family(FAMILY_WRITE).put(mvcc.versioned_key(name, 5), record)
                    db.put(b"plain", b"new")
                    db.delete(b"gone")
                    db.delete_range(b"hid", b"hie")
                yield key

    with nokv.open(tmp_path / "db", families=(FAMILY_LOCK, FAMILY_WRITE, FAMILY_DEFAULT)) as db:
        for name in (b"a", b"b"):
            record = mvcc.encode_write(1, 3, b"old")
            db.family(FAMILY_WRITE).put(mvcc.versioned_key(name, 5), record)
        db.put_many([(b"plain", b"old"), (b"gone", b"old"), (b"hidden", b"old")])
        names = Keys([b"a", b"b", b"c", b"plain", b"gone", b"hidden"])
        assert MvccReader(db).get_many(names) == [b"old", b"old", None, b"old", b"old", b"old"]
        assert MvccReader(db).get_many(list(names)) == [b"old", b"new", b"new", b"new", None, None]
        assert db.snapshot_sequences() == []
