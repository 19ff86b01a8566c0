"""Tables, versions of a directory and merging cursors against the obvious model: a sorted list of versions."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.blockcache import BlockCache
from nokv._ext.merge import OwnedCursor, merge
from nokv._ext.table import MAGIC, Table
from nokv._ext.tablebuilder import TableBuilder, VersionFilter
from nokv._ext.version import Version
from nokv.env.files import OsFiles
from nokv.env.ports import Buffer
from nokv.errors import Corruption, InvariantError, NotSupported, UsageError

Entry = tuple[bytes, int, int, bytes]  # family || user key, sequence, kind, value
CODECS = pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
MAX = (1 << 56) - 1


class MemoryFile:
    """A WritableFile in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer, /) -> int:
        part = memoryview(data)[: max(1, len(data) // 2)]  # a short write, as the port allows
        self.data += part
        return len(part)

    def sync(self) -> None: ...
    def close(self) -> None: ...


def build(entries: list[Entry], codec: str = "none", **options: int) -> bytes:
    file = MemoryFile()
    builder = TableBuilder(file, compression=codec, **({"block_bytes": 64, "restart_interval": 3} | options))
    for key, sequence, kind, value in entries:
        builder.add(key, value if kind else None, sequence)
    properties = builder.finish()
    assert properties["size"] == len(file.data)
    return bytes(file.data)


def opened(data: bytes, **keywords: int) -> Table:
    return Table(data, "t.sst", BlockCache(1 << 16), **keywords)


def internal(key: bytes, sequence: int, kind: int) -> bytes:
    return key + struct.pack(">Q", ~(sequence << 8 | kind) & (1 << 64) - 1)


def order(entry: Entry) -> tuple[bytes, int]:
    return entry[0], -(entry[1] << 8 | entry[2])


KEYS = st.binary(min_size=1, max_size=6) | st.sampled_from(
    [b"a", b"aa", b"aaa", b"aab", b"ab", b"b", b"\xff\xff", b"a\0"]
)
ENTRIES = st.dictionaries(
    st.tuples(KEYS, st.integers(0, 30)), st.none() | st.binary(max_size=40), min_size=1, max_size=80
).map(lambda d: sorted(((k, s, int(v is not None), v or b"") for (k, s), v in d.items()), key=order))


def forward(cursor: OwnedCursor) -> list[Entry]:
    found = []
    cursor.seek_first()
    while cursor.valid:
        found.append(cursor.entry)
        cursor.next()
    return found


def backward(cursor: OwnedCursor) -> list[Entry]:
    found = []
    cursor.seek_last()
    while cursor.valid:
        found.append(cursor.entry)
        cursor.prev()
    return found


def check_reads(entries: list[Entry], get: Callable[[bytes, int], object], cursor: OwnedCursor, extra: bytes) -> None:
    """Everything the model can be asked."""
    assert forward(cursor) == entries
    assert backward(cursor) == entries[::-1]
    keys = {e[0] for e in entries} | {extra, extra + b"\0", extra[:-1] or b"z"}
    for key in keys:
        for sequence in (0, 1, 7, 30, MAX):
            expected = next(((e[2], e[3]) for e in entries if e[0] == key and e[1] <= sequence), None)
            assert get(key, sequence) == expected, (key, sequence)
            target = internal(key, sequence, 255)
            rest = [e for e in entries if order(e) >= (key, -(sequence << 8 | 255))]
            cursor.seek(target)
            assert cursor.valid == bool(rest)
            if rest:
                assert cursor.entry == rest[0]


@CODECS
@given(entries=ENTRIES, extra=KEYS, bloom=st.sampled_from([0, 10]))
def test_table_agrees_with_the_model(codec: str, entries: list[Entry], extra: bytes, bloom: int) -> None:
    table = opened(build(entries, codec, bloom_bits=bloom))
    assert table.verify() == len(entries)
    check_reads(entries, table.get, table.cursor(), extra)
    p = table.properties
    assert (p["smallest"], p["largest"]) == (entries[0][0], entries[-1][0])
    assert (p["min_sequence"], p["max_sequence"]) == (min(e[1] for e in entries), max(e[1] for e in entries))
    assert (p["entries"], p["deletes"]) == (len(entries), sum(not e[2] for e in entries))


@given(
    entries=ENTRIES,
    steps=st.lists(st.one_of(st.sampled_from(["next", "prev", "first", "last"]), KEYS), max_size=40),
    parts=st.integers(1, 4),
)
@settings(deadline=None)
def test_cursors_turn_anywhere(entries: list[Entry], steps: list[str | bytes], parts: int) -> None:
    """A walk with turns over a table, and over a merge of the same entries dealt out to several tables."""
    dealt = [entries[i::parts] for i in range(parts)]
    single = opened(build(entries)).cursor()
    merged = merge([opened(build(part, "zstd")).cursor() for part in dealt if part])
    at: int | None = None
    for step in steps:
        for cursor in (single, merged):
            if step == "first":
                cursor.seek_first()
            elif step == "last":
                cursor.seek_last()
            elif isinstance(step, bytes):
                cursor.seek(step + bytes(8))
            elif at is not None:
                cursor.next() if step == "next" else cursor.prev()
        if step == "first":
            at = 0
        elif step == "last":
            at = len(entries) - 1
        elif isinstance(step, bytes):
            at = next((i for i, e in enumerate(entries) if e[0] >= step), None)
        elif at is not None:
            at += 1 if step == "next" else -1
            at = at if 0 <= at < len(entries) else None
        for cursor in (single, merged):
            assert cursor.valid == (at is not None)
            if at is not None:
                assert cursor.entry == entries[at]


@given(entries=ENTRIES, cuts=st.lists(st.integers(0, 30), max_size=3), extra=KEYS, data=st.data())
@settings(deadline=None)
def test_version_agrees_with_the_model(
    entries: list[Entry], cuts: list[int], extra: bytes, data: st.DataObject
) -> None:
    """Newest sequences in level 0, one table per span; the rest in levels 1 and 2, split by user key."""
    bounds = sorted({0, *cuts, 31})
    spans = [[e for e in entries if a <= e[1] < b] for a, b in itertools.pairwise(bounds)]
    levels: list[list[Table]] = [[], [], []]
    for depth, span in enumerate(reversed(spans)):
        if not span:
            continue
        last = depth == len(spans) - 1
        if not last:
            levels[0].append(opened(build(span)))
            continue
        keys = sorted({e[0] for e in span})
        pieces: list[list[Entry]] = [[]]
        for _, group in itertools.groupby(span, key=lambda e: e[0]):
            pieces[-1].extend(group)
            if data.draw(st.booleans()):
                pieces.append([])
        assert keys
        levels[data.draw(st.integers(1, 2))] = [opened(build(p, "zstd")) for p in pieces if p]
    version = Version(levels)
    check_reads(entries, version.lookup, version.cursor(), extra)


def test_an_empty_version() -> None:
    for version in (Version([]), Version([[], []])):
        assert version.lookup(b"\0a") is None
        cursor = version.cursor()
        cursor.seek_first()
        assert not cursor.valid
        cursor.seek(b"\0a" + bytes(8))
        assert not cursor.valid


def test_overlapping_tables_below_level_0_are_our_bug() -> None:
    a = opened(build([(b"a", 1, 1, b""), (b"m", 2, 1, b"")]))
    b = opened(build([(b"m", 1, 1, b""), (b"z", 1, 1, b"")]))
    with pytest.raises(InvariantError, match="overlap"):
        Version([[], [a, b]])


@given(entries=ENTRIES, snapshots=st.sets(st.integers(0, 31), max_size=4), bottom=st.booleans())
def test_filter_keeps_what_any_snapshot_sees(entries: list[Entry], snapshots: set[int], bottom: bool) -> None:
    cursor = opened(build(entries)).cursor()
    cursor.seek_first()
    file = MemoryFile()
    builder = TableBuilder(file)
    assert builder.fill(cursor, VersionFilter(snapshots, bottom=bottom), 1 << 40) is False
    kept: list[Entry] = []
    if builder.entries:
        builder.finish()
        kept = forward(opened(bytes(file.data)).cursor())
    assert [e for e in entries if e in kept] == kept
    for key in {e[0] for e in entries}:
        for at in (*snapshots, MAX):
            before = next((e for e in entries if e[0] == key and e[1] <= at), None)
            after = next((e for e in kept if e[0] == key and e[1] <= at), None)
            if bottom and before is not None and before[2] == 0:
                assert after is None or after[2] == 0
            else:
                assert after == before
    # nothing superfluous: at the bottom without snapshots, one put per key and no delete
    if bottom and not snapshots:
        assert len({e[0] for e in kept}) == len(kept)
        assert all(e[2] for e in kept)


@given(entries=ENTRIES, at=st.integers(0, 31), tombstones=st.booleans())
def test_export_writes_one_reader_s_view(entries: list[Entry], at: int, tombstones: bool) -> None:
    cursor = opened(build(entries)).cursor()
    cursor.seek_first()
    file = MemoryFile()
    builder = TableBuilder(file, external=True)
    builder.fill(cursor, VersionFilter([at], export=True, tombstones=tombstones), 1 << 40)
    expected = []
    for key, group in itertools.groupby(entries, key=lambda e: e[0]):
        newest = next((e for e in group if e[1] <= at), None)
        if newest is not None and newest[2]:
            expected.append((key, 0, 0, b"") if tombstones else (key, 0, 1, newest[3]))
    assert builder.entries == len(expected)
    if expected:
        builder.finish()
        assert forward(opened(bytes(file.data)).cursor()) == expected


@CODECS
@given(entries=ENTRIES, extra=KEYS, given_sequence=st.integers(0, 30))
def test_global_sequence(codec: str, entries: list[Entry], extra: bytes, given_sequence: int) -> None:
    newest = [next(group) for _, group in itertools.groupby(entries, key=lambda e: e[0])]
    table = opened(build([(k, 0, kind, v) for k, _, kind, v in newest], codec), global_sequence=given_sequence)
    assert table.verify() == len(newest)
    check_reads([(k, given_sequence, kind, v) for k, _, kind, v in newest], table.get, table.cursor(), extra)


@CODECS
def test_large_keys_and_values(codec: str) -> None:
    entries = [(b"\0" + bytes([i]) * (9000 * i + 1), 5, 1, bytes(300_000 * i)) for i in range(6)]
    table = opened(build(entries, codec, block_bytes=4096))
    assert forward(table.cursor()) == entries
    for key, _, _, value in entries:
        assert table.get(key) == (1, value)
    builder = TableBuilder(MemoryFile())
    with pytest.raises(UsageError, match="internal key"):
        builder.add(bytes(1 << 17), b"")


def test_long_keys_that_share_nearly_all() -> None:
    """A few bytes each in the file, 100 KB each in memory: a block must not hold many of them."""
    entries = [(b"\0" + bytes(100_000) + b"%04d" % i, 5, 1, b"value") for i in range(800)]
    table = opened(build(entries, block_bytes=4 << 20, restart_interval=1024))
    assert table.properties["blocks"] > 50
    assert forward(table.cursor()) == entries
    assert table.get(entries[600][0]) == (1, b"value")
    key = b"\0" + bytes(100_000) + b"x"
    payload = bytearray(varint(0) + varint(len(key) + 8) + varint(0) + key + internal(b"", 1000, 1))
    for i in range(1, 700):
        payload += varint(len(key)) + varint(8) + varint(0) + internal(b"", 1000 - i, 1)
    payload += struct.pack("<II", 0, 1)
    with pytest.raises(Corruption, match="limit"):
        opened(table_of(bytes(payload), "none")).get(key)


def test_zstd_makes_it_smaller_and_the_cache_stays_within_its_bound() -> None:  # ENG-13
    entries = [(b"\0key%08d" % i, i, 1, b"value value value %d" % i) for i in range(5000)]
    plain, small = build(entries, "none", block_bytes=4096), build(entries, "zstd", block_bytes=4096)
    assert len(small) < len(plain) / 3
    cache = BlockCache(20_000)
    table = Table(small, "t.sst", cache)
    assert forward(table.cursor()) == entries
    assert table.verify() == len(entries)
    assert cache.stats()["used_bytes"] == 0  # what reads everything once leaves the cache alone
    for key, sequence, kind, value in entries:
        assert table.get(key, sequence) == (kind, value)
        assert 0 < cache.stats()["used_bytes"] <= 20_000
    before = cache.stats()
    assert table.get(entries[4560][0]) == (1, entries[4560][3])
    assert table.get(entries[4560][0]) == (1, entries[4560][3])
    assert cache.stats()["hits"] > before["hits"]
    del table
    assert cache.stats()["used_bytes"] == 0


@CODECS
def test_a_cache_without_room_still_reads(codec: str) -> None:
    entries = [(b"\0key%08d" % i, i, 1, b"value %d" % i) for i in range(500)]
    cache = BlockCache(0)
    table = Table(build(entries, codec, block_bytes=1024), "t.sst", cache)
    for key, sequence, kind, value in entries * 2:
        assert table.get(key, sequence) == (kind, value)
        assert cache.stats()["used_bytes"] == 0


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("tail", [b"", b"in common with every other key"])
def test_a_point_read_is_right_however_often_it_is_made(codec: str, tail: bytes) -> None:
    # The first read of a block enters its keys in the point index; later ones use it. Versions of one key cross restart
    # points and blocks; a small cache makes blocks come and go.
    seed = 5
    rng = random.Random(seed)
    versions = {
        b"\0key%05d" % (n * 7) + tail: sorted({rng.randrange(1, 999) for _ in range(rng.choice([1, 1, 1, 2, 60]))})
        for n in range(1500)
    }
    entries = [(key, at, 1, b"%d" % at) for key, ats in versions.items() for at in reversed(ats)]
    table = Table(build(entries, codec, block_bytes=1024), "t.sst", BlockCache(20_000))
    probes = [(key, rng.randrange(1, 1000)) for key in versions] * 3
    probes += [(key[: -1 - len(tail)] + b"x" + tail, 999) for key in versions] * 2
    rng.shuffle(probes)
    for key, sequence in probes:
        seen = max((at for at in versions.get(key, []) if at <= sequence), default=None)
        assert table.get(key, sequence) == (None if seen is None else (1, b"%d" % seen)), f"seed {seed}"
    assert table.get(b"\0", 999) is None and table.get(b"\1", 999) is None


def test_the_filter_answers_most_misses() -> None:
    entries = [(b"\0key%08d" % i, i, 1, b"") for i in range(20000)]
    cache = BlockCache(1 << 24)
    table = Table(build(entries, "zstd", block_bytes=4096), "t.sst", cache)
    for i in range(20000):
        assert table.get(b"\0key%08d." % i) is None
    touched = cache.stats()["hits"] + cache.stats()["misses"]
    assert touched < 20000 * 0.03, "more than 3 % false positives at 10 bits a key"


def test_entries_must_rise() -> None:
    builder = TableBuilder(MemoryFile())
    builder.add(b"\0b", b"", 5)
    builder.add(b"\0b", b"", 4)
    for key, sequence in ((b"\0a", 9), (b"\0b", 4), (b"\0b", 5)):
        with pytest.raises(UsageError, match="rise"):
            builder.add(key, b"", sequence)
    with pytest.raises(InvariantError):
        TableBuilder(MemoryFile()).finish()


# -- damage (R3, R4) --------------------------------------------------------------------------------------------------
SAMPLE: list[Entry] = [
    (b"\0k%02d" % (i // 2), 60 - i, 1 if i % 5 else 0, b"value %d" % i if i % 5 else b"") for i in range(60)
]


def examine(data: bytes) -> str:
    """Open and read everything. "same", or the error; any other answer is a failure."""
    try:
        table = Table(data, "t.sst", BlockCache())
    except (Corruption, NotSupported) as error:
        assert "t.sst" in str(error)
        return type(error).__name__
    found = []
    try:
        assert forward(table.cursor()) == SAMPLE
        assert backward(table.cursor()) == SAMPLE[::-1]
        for key, sequence, kind, value in SAMPLE:
            assert table.get(key, sequence) == (kind, value)
        found.append("same")
    except Corruption as error:
        assert error.path == "t.sst"
        assert 0 <= error.offset < len(data)
        found.append("Corruption")
    try:
        table.verify()
    except Corruption as error:
        assert error.path == "t.sst"
        return "Corruption"
    return found[0]


@CODECS
def test_every_flipped_bit_is_found(codec: str) -> None:
    good = build(SAMPLE, codec, block_bytes=256)
    assert examine(good) == "same"
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << (place % 8)
        assert examine(bytes(data)) != "same", f"byte {place} of {len(good)}"


@CODECS
def test_cut_zeroed_and_swapped(codec: str) -> None:
    good = build(SAMPLE, codec, block_bytes=256)
    for size in range(len(good)):
        assert examine(good[:size]) == "Corruption"
    for start in range(0, len(good), 64):
        data = bytearray(good)
        data[start : start + 64] = bytes(len(data[start : start + 64]))
        assert bytes(data) == good or examine(bytes(data)) != "same"
    assert examine(good[512:1024] + good[:512] + good[1024:]) != "same"
    assert examine(good + b"\0") == "Corruption"


def test_fuzz_of_the_opening() -> None:
    @given(st.binary(max_size=300), st.integers(0, 6))
    @settings(max_examples=300)
    def any_bytes(noise: bytes, how: int) -> None:
        good = build(SAMPLE[:8])
        for data in (noise, noise + MAGIC, noise + good[-64:], good[: how * 20] + noise + good[-64:]):
            if data != good:
                assert examine(data) != "same"

    any_bytes()


def reseal(data: bytearray, start: int, end: int) -> None:
    """Make the checksum of the block data[start:end] (payload, codec, raw size) right again."""
    from nokv._ext.crc32c import crc32c

    data[end : end + 4] = struct.pack("<I", crc32c(bytes(data[start:end])))


@CODECS
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_hostile_blocks_with_right_checksums_never_crash(codec: str, changes: list[tuple[int, int]]) -> None:
    """Whoever can compute a CRC can write any block: lengths, restart points and frames must still be checked."""
    data = bytearray(build(SAMPLE, codec, block_bytes=256))
    first = Table(bytes(data), "t.sst", BlockCache())
    assert first.properties["blocks"] > 1
    index_offset, index_size = struct.unpack_from("<QQ", data, len(data) - 32)
    for place, value in changes:
        data[place % (len(data) - 64)] = value
    at, i = 0, index_offset
    sizes = []
    while i < index_offset + index_size and sum(sizes) < index_offset:  # our own reading of the (damaged) index
        key_size = data[i]
        i += 1 + key_size
        if i >= index_offset + index_size:
            break
        stored = data[i] & 127
        if data[i] >= 128:
            i += 1
            stored |= data[i] << 7
        i += 1
        sizes.append(stored)
        if at + stored + 9 <= len(data) - 64:
            reseal(data, at, at + stored + 5)
        at += stored + 9
    footer = struct.unpack_from("<6Q", data, len(data) - 64)
    for offset, size in zip(footer[::2], footer[1::2], strict=True):
        reseal(data, offset, offset + size + 5)
    try:
        table = Table(bytes(data), "t.sst", BlockCache())
        for read in (lambda: forward(table.cursor()), lambda: backward(table.cursor()), table.verify):
            try:
                read()
            except Corruption as error:
                assert error.path == "t.sst"
        for key, _, _, _ in SAMPLE:
            try:
                table.get(key)
            except Corruption as error:
                assert error.path == "t.sst"
    except (Corruption, NotSupported):
        pass


def varint(n: int) -> bytes:
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes((*out, n))


def table_of(payload: bytes, codec: str) -> bytes:
    """A sound table but for its only data block, which has this payload and a right checksum."""
    from nokv._ext.crc32c import crc32c
    from nokv._ext.lz4 import compress

    def sealed(data: bytes, number: int = 0, raw_size: int = -1) -> bytes:
        data += struct.pack("<BI", number, len(data) if raw_size < 0 else raw_size)
        return data + struct.pack("<I", crc32c(data))

    good = build(SAMPLE, "none", block_bytes=1 << 20, bloom_bits=0)
    footer = struct.unpack_from("<6Q", good, len(good) - 64)
    properties = good[footer[2] : footer[2] + footer[3]]
    last_key = b"\xff" * 20 + bytes(8)
    small = compress(payload, len(payload) + 100) if codec == "lz4" else None
    stored = payload if small is None else small
    out = sealed(stored, 0 if small is None else 2, len(payload))
    places = []
    for part in (b"", properties, varint(len(last_key)) + last_key + varint(len(stored))):
        places += [len(out), len(part)]
        out += sealed(part)
    out += struct.pack("<6QI", *places, 2)
    return out + struct.pack("<I", crc32c(out[-52:])) + MAGIC


def read_payload(payload: bytes) -> list[Entry] | None:
    """What docs/formats/sst.md says these bytes are; None: not a block."""
    at, key, found = 0, b"", []

    def number() -> int:
        nonlocal at
        n = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError
            n |= (payload[at] & 127) << shift
            at += 1
            if payload[at - 1] < 128:
                if n >> 64:
                    raise ValueError
                return n
        raise ValueError

    count = struct.unpack_from("<I", payload, len(payload) - 4)[0] if len(payload) >= 8 else 0
    end = len(payload) - 4 - 4 * count
    if count == 0 or end < 0:
        return None
    restarts = list(struct.unpack_from(f"<{count}I", payload, end))
    while at < end:
        stands_alone = at in restarts[:1]
        if stands_alone:
            restarts.pop(0)
        try:
            shared, unshared, size = number(), number(), number()
        except ValueError:
            return None
        if unshared < 8 or shared + unshared <= 8 or shared + unshared > 1 << 17 or unshared + size > end - at:
            return None
        if shared and (stands_alone or shared + 8 > len(key)):
            return None
        key = key[:shared] + payload[at : at + unshared]
        packed = ~struct.unpack(">Q", key[-8:])[0] & (1 << 64) - 1
        value = payload[at + unshared : at + unshared + size]
        found.append((key[:-8], packed >> 8, packed & 255, value))
        at += unshared + size
    rises = all(order(a) < order(b) for a, b in itertools.pairwise(found))
    return found if found and rises and not restarts else None


@pytest.mark.parametrize("codec", ["none", "lz4"])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3),
    cut=st.sampled_from([0, 0, 0, 0, 1, 4, 8, 30]),
    pieces=st.none()
    | st.lists(
        st.tuples(
            st.integers(0, 6),
            st.binary(max_size=3),
            st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
            st.binary(max_size=3),
            st.booleans(),
        ),
        max_size=6,
    ),
    restart=st.sampled_from([0, 0, 0, 1, 1 << 31]),
)
@settings(max_examples=400, deadline=None)
def test_any_payload_is_read_right_or_refused(
    codec: str,
    changes: list[tuple[int, int]],
    cut: int,
    pieces: list[tuple[int, bytes, int, bytes, bool]] | None,
    restart: int,
) -> None:
    """Only the checks of the layout stand between these bytes and the readers: every checksum is right."""
    if pieces is None:
        payload = bytearray(build(SAMPLE, "none", block_bytes=1 << 20))
        del payload[struct.unpack_from("<I", payload, struct.unpack_from("<Q", payload, len(payload) - 64)[0] - 8)[0] :]
    else:
        payload, key = bytearray(), b""
        restarts: list[int] = []
        for i, (shared, suffix, wrong, value, alone) in enumerate(pieces):
            shared = 0 if alone or not key else min(shared, len(key) - 8 + max(wrong, 0))
            if shared == 0 and (alone or not restarts):
                restarts.append(len(payload) + restart)
            added = bytes((i * 40,)) + suffix + internal(b"", len(payload) + 1, 1)
            payload += varint(shared) + varint(len(added)) + varint(max(0, len(value) + wrong)) + added + value
            key = key[:shared] + added
        payload += b"".join(struct.pack("<I", at) for at in restarts) + struct.pack("<I", len(restarts))
    for place, byte in changes:
        if payload:
            payload[place % len(payload)] = byte
    if cut:
        del payload[-cut:]
    expected = read_payload(bytes(payload))
    table = Table(table_of(bytes(payload), codec), "t.sst", BlockCache(1 << 20))

    def walk(cursor: OwnedCursor) -> list[list[Entry]]:
        walks = [forward(cursor), backward(cursor)[::-1]]
        for key, sequence, kind, _ in walks[0]:
            cursor.seek(internal(key, sequence, kind))
            assert cursor.entry[:3] == (key, sequence, kind)
        return walks

    if expected is None:
        for read in (lambda: walk(table.cursor()), lambda: table.get(SAMPLE[0][0]), lambda: table.get(b"\0")):
            with pytest.raises(Corruption) as caught:
                read()
            assert (caught.value.path, caught.value.offset) == ("t.sst", 0)
    else:
        assert walk(table.cursor()) == [expected, expected]
        for _ in range(2):
            for key, sequence, kind, value in expected:
                assert table.get(key, sequence) == (kind, value)


def test_a_frame_that_claims_another_size_is_refused() -> None:
    entries = [(b"\0k%04d" % i, 1, 1, bytes(50)) for i in range(100)]
    data = bytearray(build(entries, "zstd", block_bytes=65536))
    _, _, _, _, index_offset, _ = struct.unpack_from("<6Q", data, len(data) - 64)
    filter_offset = struct.unpack_from("<Q", data, len(data) - 64)[0]
    assert index_offset > filter_offset
    end = filter_offset - 4
    for claimed in (100, 4 << 20, (4 << 20) + 1, 0xFFFFFFFF):
        data[end - 4 : end] = struct.pack("<I", claimed)
        reseal(data, 0, end)
        with pytest.raises(Corruption) as caught:
            opened(bytes(data)).get(b"\0k0001")
        assert caught.value.offset == 0


def test_a_newer_format_is_not_called_damaged() -> None:
    from nokv._ext.crc32c import crc32c

    data = bytearray(build(SAMPLE))
    start = len(data) - 64
    data[start + 48] = 3
    data[start + 52 : start + 56] = struct.pack("<I", crc32c(bytes(data[start : start + 52])))
    with pytest.raises(NotSupported, match="version 3"):
        opened(bytes(data))


def test_a_failing_file_stops_the_build() -> None:
    class Full(MemoryFile):
        def write(self, data: Buffer, /) -> int:
            raise OSError(28, "no space left")

    cursor = opened(build([(b"\0%08d" % i, i, 1, bytes(100)) for i in range(60000)], block_bytes=4096)).cursor()
    cursor.seek_first()
    builder = TableBuilder(Full())
    with pytest.raises(OSError, match="no space left"):
        builder.fill(cursor, VersionFilter(), 1 << 40)


def test_the_collector_may_take_everything_at_once() -> None:
    """Tables, versions, cursors and their buffers in one garbage cycle, in whatever order the collector clears it."""
    data = build(SAMPLE, "zstd")
    for _ in range(5):
        cycle: list[object] = []
        table = Table(memoryview(data), "t.sst", BlockCache())
        version = Version([[table], [Table(memoryview(bytearray(data)), "u.sst", BlockCache())]])
        cursor = version.cursor()
        cursor.seek(SAMPLE[9][0] + bytes(8))
        other = merge([table.cursor(), version.cursor()])
        other.seek_last()
        cycle += [cycle, other, table, memoryview(data), cursor, version]
        try:
            raise Corruption("with a traceback", path="t.sst")
        except Corruption as error:
            cycle.append(error)
        del cycle, table, version, cursor, other
        gc.collect()


def test_an_object_without_a_buffer() -> None:
    with pytest.raises(TypeError):
        Table("text", "t.sst", BlockCache())  # type: ignore[arg-type]


def test_a_write_without_the_gil_that_fails_says_which_file_and_why(tmp_path: Path) -> None:
    """/dev/full refuses every byte; a table that is written to it names the file, and no error is swallowed."""
    path = tmp_path / "full.sst"
    files = OsFiles()
    file = files.create(str(path))
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, file.descriptor)
        builder = TableBuilder(file, compression="lz4")
        with pytest.raises(OSError, match="No space") as caught:
            for n in range(10_000):
                builder.add(b"\0%08d" % n, b"v" * 100)
            builder.finish()
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    finally:
        os.close(full)
        file.close()


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_table_is_the_same_with_and_without_a_descriptor(tmp_path: Path, compression: str) -> None:
    real = OsFiles().create(str(tmp_path / "real.sst"))

    class Plain:
        data = b""

        def write(self, data: Buffer) -> int:
            self.data += bytes(data)[:700_000]  # a short write, too
            return min(len(data), 700_000)

    plain = Plain()
    for file in (real, plain):
        builder = TableBuilder(file, compression=compression)
        for n in range(30_000):
            builder.add(b"\0%08d" % n, b"%d" % (n * n) * 20)
        size = builder.finish()["size"]
    real.close()
    assert (tmp_path / "real.sst").read_bytes() == plain.data and size == len(plain.data)


def _resident_bytes(path: Path) -> int:
    """Of the file's mappings: what counts as this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads /proc")
@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_who_reads_all_of_a_table_leaves_little_of_it_in_memory(tmp_path: Path, codec: str) -> None:
    dice = random.Random(5)
    entries = [(b"\0%06d" % n, n + 1, 1, dice.randbytes(2000)) for n in range(12_000)]
    path = tmp_path / "000001.sst"
    path.write_bytes(build(entries, codec))
    table = Table(OsFiles().map_file(str(path)), str(path), BlockCache(0))
    cursor = table.cursor()
    cursor.seek_first()
    most = count = 0
    while cursor.valid:
        if count % 500 == 0:
            most = max(most, _resident_bytes(path))
        assert cursor.entry == entries[count]
        cursor.next()
        count += 1
    assert count == len(entries)
    assert 0 < most < 8 << 20, f"{most} bytes of 24 million are mapped at once"
    cursor.seek_first()  # and back
    assert cursor.entry == entries[0]
    cursor.seek_last()
    for entry in reversed(entries):
        assert cursor.entry == entry
        cursor.prev()
    assert not cursor.valid


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_memory_that_is_no_map_is_left_alone(codec: str) -> None:
    dice = random.Random(6)
    entries = [(b"\0%06d" % n, n + 1, 1, dice.randbytes(1000)) for n in range(6_000)]
    data = build(entries, codec)
    before = bytes(bytearray(data))
    for buffer in (data, bytearray(data), memoryview(data)):
        cursor = Table(buffer, "memory.sst", BlockCache(0)).cursor()
        cursor.seek_first()
        for entry in entries:
            assert cursor.entry == entry
            cursor.next()
    assert data == before
