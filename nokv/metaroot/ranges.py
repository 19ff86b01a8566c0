"""Which region covers a key: start keys in order, found by bisection. Pure; shared by the truth and by the
coordinator's view.

Holds only live, non-overlapping ranges; the caller checks for overlap with `overlapping` before it inserts. Start keys
lie in blocks of some hundreds, so that an insertion among a million of them moves a block and not everything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping

from nokv.region import Region

__all__ = ["RangeIndex"]

BLOCK_MAX = 1024


class RangeIndex:
    """`regions` is the owner's mapping id -> descriptor; the index keeps only start keys and ids."""

    __slots__ = ("_count", "_firsts", "_ids", "_regions", "_starts")

    def __init__(self, regions: Mapping[int, Region]) -> None:
        self._regions = regions
        self._count = 0
        self._firsts: list[bytes] = []  # the first start key of each block; no block is empty
        self._starts: list[list[bytes]] = []
        self._ids: list[list[int]] = []

    def __len__(self) -> int:
        return self._count

    def load(self, regions: Iterable[Region]) -> None:
        """Replace everything: `regions` in any order."""
        ordered = sorted((r.start_key, r.region_id) for r in regions)
        step = BLOCK_MAX // 2
        blocks = [ordered[at : at + step] for at in range(0, len(ordered), step)]
        self._starts = [[start for start, _ in block] for block in blocks]
        self._ids = [[region_id for _, region_id in block] for block in blocks]
        self._firsts = [block[0] for block in self._starts]
        self._count = len(ordered)

    def copy(self, regions: Mapping[int, Region]) -> RangeIndex:
        """The same ranges over another mapping with the same content."""
        copied = RangeIndex(regions)
        copied._count = self._count
        copied._firsts = self._firsts.copy()
        copied._starts = [block.copy() for block in self._starts]
        copied._ids = [block.copy() for block in self._ids]
        return copied

    def insert(self, region: Region) -> None:
        start = region.start_key
        self._count += 1
        if not self._firsts:
            self._firsts, self._starts, self._ids = [start], [[start]], [[region.region_id]]
            return
        block = max(0, bisect_right(self._firsts, start) - 1)
        starts, ids = self._starts[block], self._ids[block]
        at = bisect_left(starts, start)
        starts.insert(at, start)
        ids.insert(at, region.region_id)
        self._firsts[block] = starts[0]
        if len(starts) > BLOCK_MAX:
            half = BLOCK_MAX // 2
            self._starts[block : block + 1] = [starts[:half], starts[half:]]
            self._ids[block : block + 1] = [ids[:half], ids[half:]]
            self._firsts.insert(block + 1, starts[half])

    def remove(self, region: Region) -> None:
        block = bisect_right(self._firsts, region.start_key) - 1
        starts, ids = self._starts[block], self._ids[block]
        at = bisect_left(starts, region.start_key)
        assert ids[at] == region.region_id
        del starts[at], ids[at]
        self._count -= 1
        if starts:
            self._firsts[block] = starts[0]
        else:
            del self._firsts[block], self._starts[block], self._ids[block]

    def find(self, key: bytes) -> Region | None:
        """The region that covers `key`, or None if there is a hole."""
        block = bisect_right(self._firsts, key) - 1
        if block < 0:
            return None
        at = bisect_right(self._starts[block], key) - 1
        region = self._regions[self._ids[block][at]]
        return region if region.contains(key) else None

    def overlapping(self, start_key: bytes, end_key: bytes) -> Iterator[Region]:
        """Every region that shares a key with [start_key, end_key), in key order; an empty end means no bound. Not
        while the index changes."""
        block = max(0, bisect_right(self._firsts, start_key) - 1)
        at = max(0, bisect_right(self._starts[block], start_key) - 1) if self._firsts else 0
        while block < len(self._ids):
            ids = self._ids[block]
            while at < len(ids):
                region = self._regions[ids[at]]
                if end_key and region.start_key >= end_key:
                    return
                if not region.end_key or start_key < region.end_key:
                    yield region
                at += 1
            block, at = block + 1, 0
