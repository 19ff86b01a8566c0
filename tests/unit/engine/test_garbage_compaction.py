"""Tables that are mostly garbage are compacted although no level is over its bound; none of them again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nokv
from nokv._ext.blockcache import BlockCache
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder
from nokv.engine.compaction.garbage import tables_garbage
from nokv.engine.compaction.picker import Compaction, Garbage, pick_garbage
from nokv.engine.manifest.edit import FileMeta
from nokv.engine.sst.options import LsmOptions
from nokv.errors import Corruption
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles
from tests.counts import count

COUNT = 2000
HOUR_MS = 3_600_000


# -- the picker: tables are written number:smallest-largest*entries -------------------------------------------------


def table(text: str, level: int) -> FileMeta:
    number, rest = text.split(":")
    keys, _, entries = rest.partition("*")
    smallest, largest = keys.split("-")
    return FileMeta(
        number=int(number),
        level=level,
        size=1,
        crc32c=0,
        entries=int(entries or 100),
        smallest=smallest.encode(),
        largest=largest.encode(),
        min_sequence=int(number),
        max_sequence=int(number),
    )


def pick(rows: tuple[str, ...], found: dict[int, Garbage], oldest: int | None = None, **options: int) -> Any:
    levels = [[table(t, level) for t in row.split()] for level, row in enumerate(rows)]
    levels += [[] for _ in range(4 - len(levels))]
    step = pick_garbage(levels, LsmOptions(levels_max=4, **options), found, oldest)
    if step is None:
        return None
    assert isinstance(step, Compaction)
    return sorted(f.number for f in step.inputs), step.output_level, step.bottom, step.move


@pytest.mark.parametrize(
    ("rows", "found", "expected"),
    [
        (("2:a-m 1:a-z",), {}, None),
        # level 0 as a whole: a delete counts for itself and for what it may hide, as far as there is that much
        (("2:a-m*20 1:a-z*80",), {2: Garbage(deletes=20)}, None),
        (("2:a-m*40 1:a-z*100",), {2: Garbage(deletes=40)}, ([1, 2], 1, True, False)),
        (("2:a-m*40 1:a-z*20", "3:a-z*60"), {2: Garbage(deletes=40)}, ([1, 2, 3], 1, True, False)),
        (("2:a-m*40 1:a-z*20", "3:a-z*90", "4:b-c"), {2: Garbage(deletes=40)}, ([1, 2, 3], 1, False, False)),
        (("2:a-m*40 1:a-z*20", "3:a-z*200"), {2: Garbage(deletes=40)}, None),  # too dear
        (("2:a-m*90",), {2: Garbage(deletes=40)}, None),
        (("2:a-m*90",), {2: Garbage(expired=46)}, ([2], 1, True, False)),
        # below: with what it overlaps, or one level down as it is, or, at the bottom, in place
        (("", "1:a-c*60 2:d-f", "3:b-e"), {1: Garbage(deletes=55)}, ([1, 3], 2, True, False)),
        (("", "1:a-c*60 2:d-f", "3:b-e*200"), {1: Garbage(deletes=55)}, None),
        (("", "1:a-c*60 2:d-f", "", "3:b-e*200"), {1: Garbage(deletes=55)}, ([1], 2, False, True)),
        (("", "1:a-c*60 2:d-f", "3:d-e"), {1: Garbage(deletes=16)}, ([1], 1, True, False)),
        (("", "1:a-c*60 2:d-f", "3:d-e"), {1: Garbage(deletes=15)}, None),
        (("", "", "", "1:a-c*60"), {1: Garbage(deletes=31)}, ([1], 3, True, False)),
        # values that have expired become deletes where something lies deeper, and cost no merge
        (("", "1:a-c*60", "3:b-e*900"), {1: Garbage(expired=31)}, ([1], 1, False, False)),
        (("", "1:a-c*60", "3:b-e*900"), {1: Garbage(expired=20, deletes=20)}, None),
        (("", "1:a-c*60", "3:d-e*900"), {1: Garbage(expired=20, deletes=20)}, ([1], 1, True, False)),
        # a range delete sinks for what it hides, wherever that is
        (("9:a-z*1", "3:a-e*100"), {9: Garbage(deletes=1, hides=100)}, ([3, 9], 1, True, False)),
        (("9:a-z*1", "3:a-e*300"), {9: Garbage(deletes=1, hides=100)}, None),
        (("9:a-z*1", "", "", "3:a-e*300"), {9: Garbage(deletes=1, hides=100)}, ([9], 1, False, False)),
        (("", "9:a-z*1", "", "3:a-e*300"), {9: Garbage(deletes=1, hides=100)}, ([9], 2, False, True)),
        (("", "9:a-z*1", "", ""), {9: Garbage(deletes=1)}, ([9], 1, True, False)),
    ],
)
def test_what_is_picked(rows: tuple[str, ...], found: dict[int, Garbage], expected: object) -> None:
    assert pick(rows, found) == expected
    assert pick(rows, found, table_garbage_percent=100) is None


def test_at_the_bottom_a_snapshot_keeps_deletes_from_being_picked() -> None:
    rows, found = ("", "7:a-c*60"), {7: Garbage(deletes=60)}
    assert pick(rows, found, oldest=6) is None
    assert pick(rows, found, oldest=7) == ([7], 1, True, False)
    # what has expired does not wait: it becomes a delete
    assert pick(rows, {7: Garbage(expired=60)}, oldest=6) == ([7], 1, True, False)


# -- the property ---------------------------------------------------------------------------------------------------
class MemoryFile:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any, /) -> int:
        self.data += data
        return len(data)

    def sync(self) -> None: ...
    def close(self) -> None: ...


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40), st.integers(0, (1 << 64) - 1))
def test_a_table_says_when_its_values_expire(moments: list[int], now: int) -> None:
    file = MemoryFile()
    builder = TableBuilder(file)
    for i, moment in enumerate(moments):
        builder.add(b"\0%06d" % i, moment.to_bytes(8, "little") + b"v", 5, kind=2)
    builder.add(b"\0z", b"stays", 5)
    written = builder.finish()
    found = Table(bytes(file.data), "t.sst", BlockCache(0)).properties
    assert found["expiries"] == written["expiries"] and found["expiring"] == len(moments)
    assert list(found["expiries"]) == sorted(found["expiries"]) and len(found["expiries"]) == 8
    assert found["expiries"][-1] == max(moments)
    for parts, moment in enumerate(found["expiries"], 1):
        assert sum(m <= moment for m in moments) * 8 >= len(moments) * parts


@pytest.mark.parametrize("bad", [b"\x80", b"\x05\x04", b"\xff" * 9 + b"\x7f"])
def test_bad_moments_are_damage(bad: bytes) -> None:
    import struct

    from nokv._ext.crc32c import crc32c
    from nokv._ext.table import MAGIC, PROPERTIES

    file = MemoryFile()
    builder = TableBuilder(file, bloom_bits=0)
    builder.add(b"\0k", (77).to_bytes(8, "little") + b"v", 5, kind=2)
    builder.finish()
    whole = bytes(file.data)
    footer = list(struct.unpack_from("<6Q", whole, len(whole) - 64))
    payload = whole[footer[2] : footer[2] + footer[3]]
    tag = {name: number for number, name in PROPERTIES.items()}["expiries"]
    sound = bytes([tag, 8, *[77] * 8])
    assert payload.count(sound) == 1

    def with_moments(moments: bytes | None) -> bytes:
        new = payload.replace(sound, b"" if moments is None else bytes([tag, len(moments)]) + moments)
        new += struct.pack("<BI", 0, len(new))
        new += struct.pack("<I", crc32c(new))
        index = whole[footer[4] : len(whole) - 64]
        places = [*footer[:3], len(new) - 9, footer[2] + len(new), footer[5]]
        end = struct.pack("<6QI", *places, 2)
        return whole[: footer[2]] + new + index + end + struct.pack("<I", crc32c(end)) + MAGIC

    assert Table(with_moments(b"\x05\x05\x06"), "t.sst", BlockCache(0)).properties["expiries"] == (5, 5, 6)
    older = Table(with_moments(None), "t.sst", BlockCache(0)).properties  # written before there was this property
    assert (older["expiring"], older["expiries"]) == (1, ())
    with pytest.raises(Corruption, match="moments of expiry") as caught:
        Table(with_moments(bad), "t.sst", BlockCache(0))
    assert (caught.value.path, caught.value.offset) == ("t.sst", footer[2])


# -- the engine -----------------------------------------------------------------------------------------------------
class Store:
    """A database on files in memory, whose background steps run when the test says so."""

    def __init__(self, **options: int) -> None:
        self.files, self.clock, self.executor = CrashFiles(), FakeClock(), StepExecutor()
        self.db = nokv.open(
            "db", files=self.files, clock=self.clock, executor=self.executor, durability="process", **options
        )

    def settle(self) -> int:
        """Flush, let compactions run until nothing is left to do. How many there were."""
        before = self.db.stats()["compaction"]["count"]
        self.db.flush()
        self.executor.drain()
        self.db._versions.check()
        return int(self.db.stats()["compaction"]["count"] - before)

    def size(self) -> int:
        return sum(
            len(self.files.read_file(f"db/{name}"))
            for name in self.files.listdir("db")
            if name.endswith((".sst", ".val"))
        )

    def tables(self) -> int:
        return sum(level["files"] for level in self.db.stats()["lsm"]["levels"])


def key(i: int) -> bytes:
    return b"key%06d" % i


def fill(db: nokv.DB, ttl: int | None = None) -> None:
    for i in range(COUNT):
        db.put(key(i), i.to_bytes(4, "big") * 25, ttl=ttl)


def test_space_of_deleted_keys_comes_back_by_itself() -> None:
    store = Store(upper_compression="none")
    fill(store.db)
    assert store.settle() == 0
    full = store.size()
    for i in range(COUNT):
        if i % 10:
            store.db.delete(key(i))
    assert store.settle() >= 1
    assert store.size() < full / 5
    assert list(store.db.scan(values=False)) == [key(i) for i in range(0, COUNT, 10)]
    assert not tables_garbage(store.db._versions.current, 0)
    store.db.put(b"other", b"1")
    assert store.settle() == 0  # nothing is picked twice


def test_a_few_deletes_cause_no_compaction() -> None:
    store = Store()
    fill(store.db)
    store.settle()
    for i in range(COUNT // 5):
        store.db.delete(key(i))
    assert store.settle() == 0


def test_a_snapshot_pins_deletes_but_causes_no_endless_picking() -> None:
    store = Store(upper_compression="none")
    fill(store.db)
    store.settle()
    full = store.size()
    with store.db.snapshot() as snapshot:
        for i in range(COUNT):
            store.db.delete(key(i))
        assert 1 <= store.settle() <= 2
        for i in range(5):
            store.db.put(b"other%d" % i, b"1")
            assert store.settle() == 0
        assert store.size() >= full
        assert len(list(snapshot.scan())) == COUNT
        assert list(store.db.scan(prefix=b"key")) == []
    store.db.put(b"after", b"1")
    assert store.settle() >= 1  # the next flush finds that nobody needs them
    assert store.size() < full / 5
    assert store.settle() == 0


@pytest.mark.parametrize("large", [False, True])
def test_space_of_expired_values_comes_back_by_itself(large: bool) -> None:
    store = Store(upper_compression="none", value_file_threshold=64 if large else 0)
    fill(store.db, ttl=HOUR_MS)
    for i in range(10):
        store.db.put(b"stays%d" % i, b"v" * 100)
    store.settle()
    full = store.size()
    store.clock.advance_ms(HOUR_MS - 1)
    store.db.put(b"a", b"1")
    assert store.settle() == 0
    store.clock.advance_ms(2)
    store.db.put(b"b", b"1")
    assert store.settle() >= 1
    assert store.size() < full / 5
    assert len(list(store.db.scan())) == 12
    store.db.put(b"c", b"1")
    assert store.settle() == 0


def test_half_of_the_values_expire_early() -> None:
    """What expires in a hundred years does not keep the rest."""
    store = Store(upper_compression="none")
    for i in range(COUNT):
        store.db.put(key(i), b"v" * 100, ttl=100 * 365 * 24 * HOUR_MS if i % 4 == 0 else HOUR_MS)
    store.settle()
    full = store.size()
    store.clock.advance_ms(HOUR_MS)
    store.db.put(b"a", b"1")
    assert store.settle() >= 1
    assert store.size() < full / 3
    assert len(list(store.db.scan())) == COUNT // 4 + 1


def test_an_open_view_keeps_what_expires_behind_it() -> None:
    store = Store()
    fill(store.db, ttl=HOUR_MS)
    store.settle()
    with store.db.snapshot() as snapshot:
        store.clock.advance_ms(2 * HOUR_MS)
        store.db.put(b"a", b"1")
        assert store.settle() == 0
        assert len(list(snapshot.scan())) == COUNT
    store.db.put(b"b", b"1")
    assert store.settle() >= 1


def test_space_of_a_deleted_range_comes_back_by_itself() -> None:
    store = Store(upper_compression="none")
    fill(store.db)
    store.db.put(b"z", b"stays")
    store.settle()
    full = store.size()
    store.db.delete_range(b"a", b"y")
    store.settle()
    assert store.size() > full / 2  # one table that also holds a key which stays: nobody knows how much is hidden
    store.db.delete_range(None, None)
    assert store.settle() >= 1
    assert (store.size(), store.tables()) == (0, 0)
    assert store.settle() == 0


def test_in_a_real_directory(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db", upper_compression="none") as db:

        def size() -> int:
            db.flush()
            db._flush_executor.drain()
            db._compaction_executor.drain()
            return sum(path.stat().st_size for path in (tmp_path / "db").glob("*.sst"))

        fill(db)
        full = size()
        for i in range(COUNT - 10):
            db.delete(key(i))
        assert size() < full / 20
        assert len(db) == 10


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 30), st.none() | st.integers(1, 30)),
        st.tuples(st.just("delete"), st.integers(0, 30), st.integers(1, 20)),
        st.tuples(st.just("range"), st.integers(0, 30), st.integers(0, 30)),
        st.tuples(st.just("flush"), st.integers(0, 30), st.none()),
        st.tuples(st.just("snapshot"), st.integers(0, 2), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=count(40, 300, 2000))
@given(CHANGES, st.sampled_from([1, 30, 50, 99]))
@pytest.mark.counted
def test_picking_ends_and_changes_nothing_that_anyone_reads(changes: list[tuple[Any, ...]], percent: int) -> None:
    store = Store(table_garbage_percent=percent, table_bytes=200, block_bytes=64, levels_max=3, l0_files_trigger=4)
    expected: dict[bytes, bytes] = {}
    expiry: dict[bytes, int] = {}
    held: list[Any] = []
    for verb, a, b in changes:
        if verb == "put":
            store.db.put(key(a), b"v" * a, ttl=b)
            expected[key(a)] = b"v" * a
            expiry.pop(key(a), None)
            if b is not None:
                expiry[key(a)] = store.clock.time_ms() + b
        elif verb == "delete":
            for i in range(a, a + b):
                store.db.delete(key(i))
                expected.pop(key(i), None)
        elif verb == "range":
            low, high = sorted((a, b))
            store.db.delete_range(key(low), key(high))
            for i in range(low, high):
                expected.pop(key(i), None)
        elif verb == "flush":
            store.clock.advance_ms(a)
            store.db.flush()
            store.db._submit_compaction()  # a flush of nothing does not ask for one
            before = store.db.stats()["compaction"]["count"]
            while store.executor.run_one():
                steps = store.db.stats()["compaction"]["count"] - before
                assert steps <= 10 * (store.tables() + 10), "the picker does not end"
            versions = store.db._versions
            assert versions.pick(store.db.snapshot_sequences(), store.db._expired_ms()) is None
            versions.check()
        elif held and a == 0:
            snapshot, seen = held.pop(0)
            assert dict(snapshot.scan()) == seen
            snapshot.close()
        else:
            held.append((store.db.snapshot(), dict(store.db.scan())))
        now = store.clock.time_ms()
        assert dict(store.db.scan()) == {k: v for k, v in expected.items() if k not in expiry or expiry[k] > now}
    for snapshot, seen in held:
        assert dict(snapshot.scan()) == seen
