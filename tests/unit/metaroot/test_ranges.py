"""The range index against the obvious model: a sorted list."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.metaroot import ranges
from nokv.metaroot.ranges import RangeIndex
from nokv.region import Region

KEYS = [b"%02d" % n for n in range(40)]


@pytest.mark.parametrize("block", [4, 8, 1024])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_agrees_with_a_sorted_list(block: int, data: st.DataObject) -> None:
    before, ranges.BLOCK_MAX = ranges.BLOCK_MAX, block
    try:
        regions: dict[int, Region] = {}
        index = RangeIndex(regions)
        for _ in range(data.draw(st.integers(0, 60))):
            at = data.draw(st.integers(0, 39))
            if at in regions:
                index.remove(regions.pop(at))
            else:
                regions[at] = Region(at, KEYS[at], KEYS[at + 1] if at < 39 else b"")
                index.insert(regions[at])
            check(index, regions)
        loaded = RangeIndex(regions)
        shuffled = list(regions.values())
        random.Random(1).shuffle(shuffled)
        loaded.load(shuffled)
        check(loaded, regions)
        copied = index.copy(dict(regions))
        for region in shuffled:
            index.remove(region)
        assert len(index) == 0
        assert index.find(b"05") is None
        check(copied, regions)
    finally:
        ranges.BLOCK_MAX = before


def check(index: RangeIndex, regions: dict[int, Region]) -> None:
    ordered = sorted(regions.values(), key=lambda r: r.start_key)
    assert len(index) == len(ordered)
    assert list(index.overlapping(b"", b"")) == ordered
    for start, end in ((b"", b"10"), (b"075", b"21"), (b"20", b"20x"), (b"39", b""), (b"17", b"17")):
        model = [r for r in ordered if (not end or r.start_key < end) and (not r.end_key or start < r.end_key)]
        assert list(index.overlapping(start, end)) == model
    for key in (b"", b"00", b"005", b"12x", b"38", b"39", b"zz"):
        assert index.find(key) == next((r for r in ordered if r.contains(key)), None)
