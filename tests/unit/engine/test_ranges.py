"""Range deletes as fragments (docs/formats/sst.md): against the obvious list, and hostile bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.ranges import Ranges, decode_ranges
from nokv.errors import Corruption, UsageError

KEYS = st.binary(min_size=1, max_size=2).map(lambda b: bytes(c & 3 for c in b))
RANGES = st.lists(
    st.tuples(KEYS, KEYS, st.integers(1, 12)).filter(lambda r: r[0] < r[1]), max_size=8, unique_by=lambda r: r[2]
)
EVERY_KEY = sorted({bytes((a,)) for a in range(5)} | {bytes((a, b)) for a in range(5) for b in range(5)})


def cover(items: list[tuple[bytes, bytes, int]], key: bytes, sequence: int) -> int:
    return max((s for start, end, s in items if start <= key < end and s <= sequence), default=0)


def check_shape(ranges: Ranges) -> None:
    fragments = ranges.fragments()
    assert len(ranges) == len(fragments)
    for start, end, sequences in fragments:
        assert start < end and sequences and list(sequences) == sorted(set(sequences), reverse=True)
    for (_, end, a), (start, _, b) in itertools.pairwise(fragments):
        assert end < start or (end == start and a != b)


@settings(max_examples=300)
@given(RANGES, st.lists(st.integers(0, 13), max_size=4), st.booleans())
def test_agrees_with_the_ranges(items: list[tuple[bytes, bytes, int]], snapshots: list[int], bottom: bool) -> None:
    """For now and for every snapshot; with `bottom`, what every snapshot sees is gone."""
    ranges = Ranges.of(items, snapshots, bottom=bottom)
    check_shape(ranges)
    oldest = min(snapshots, default=99)
    for key in EVERY_KEY:
        for sequence in (*snapshots, 99):
            expected = cover(items, key, sequence)
            if not (bottom and expected <= oldest):
                assert ranges.cover(key, sequence) == expected
            else:
                assert ranges.cover(key, sequence) == 0
    assert len(ranges) <= max(0, 2 * len(items) - 1)
    assert decode_ranges(ranges.encode()).fragments() == ranges.fragments()


@given(st.lists(RANGES, max_size=4), st.none() | KEYS, st.none() | KEYS)
def test_merge_and_cut(parts: list[list[tuple[bytes, bytes, int]]], lower: bytes | None, upper: bytes | None) -> None:
    merged = Ranges.merged((Ranges.of(part, range(20)) for part in parts), range(20))
    check_shape(merged)
    items = [item for part in parts for item in part]
    cut = merged.cut(lower, upper)
    for key in EVERY_KEY:
        inside = (lower is None or key >= lower) and (upper is None or key < upper)
        for sequence in range(14):
            assert merged.cover(key, sequence) == cover(items, key, sequence)
            assert cut.cover(key, sequence) == (cover(items, key, sequence) if inside else 0)
    covered = [key for key in EVERY_KEY if cut.cover(key)]
    if len(cut):
        assert cut.smallest is not None and cut.largest is not None
        assert all(cut.smallest <= key <= cut.largest for key in covered)
        found = [s for _, _, sequences in cut.fragments() for s in sequences]
        assert (cut.smallest_sequence, cut.largest_sequence) == (min(found), max(found))
    else:
        assert not covered and cut.smallest is cut.largest is None


def test_nested_ranges_stay_small() -> None:
    """Without snapshots each fragment has one sequence, however many ranges cover it."""
    n = 20_000
    nested = [(b"a%08d" % i, b"b%08d" % (n - i), i + 1) for i in range(n)]
    ranges = Ranges.of(nested)
    assert len(ranges) == 2 * n - 1 and ranges.cover(b"a99") == n
    assert ranges.size_bytes < 200 * n


def test_bad_ranges() -> None:
    for bad in ((b"b", b"a", 1), (b"a", b"a", 1), (b"a", b"b", 0), (b"a", b"b", 1 << 56)):
        with pytest.raises(UsageError):
            Ranges.of([bad])


@given(st.binary(max_size=60))
def test_hostile_bytes(payload: bytes) -> None:  # R4
    try:
        ranges = decode_ranges(payload, path="t", offset=7)
    except Corruption as error:
        assert error.path == "t" and error.offset == 7
        return
    assert decode_ranges(ranges.encode()).fragments() == ranges.fragments()


@given(RANGES.filter(bool), st.data())
def test_damaged_bytes(items: list[tuple[bytes, bytes, int]], data: st.DataObject) -> None:  # R4
    """A flipped bit or a cut is refused, or reads as other ranges that are in order."""
    payload = bytearray(Ranges.of(items).encode())
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del payload[data.draw(st.integers(0, len(payload) - 1)) :]
    try:
        ranges = decode_ranges(payload)
    except Corruption:
        return
    for start, end, sequences in ranges.fragments():
        assert start < end and list(sequences) == sorted(set(sequences), reverse=True)


def test_an_empty_list_made_by_hand() -> None:
    nothing = Ranges()
    assert len(nothing) == 0 and nothing.fragments() == [] and nothing.cover(b"\0k") == 0
    assert Ranges.merged([nothing, Ranges.of([(b"\0a", b"\0b", 1)])]).fragments() == [(b"\0a", b"\0b", (1,))]
