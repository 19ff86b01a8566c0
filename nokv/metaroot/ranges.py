"""Which region covers a key: start keys in order, found by bisection. Pure; shared by the truth and by the
coordinator's view.

Holds only live, non-overlapping ranges; the caller checks for overlap with `overlapping` before it inserts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping

from nokv.region import Region

__all__ = ["RangeIndex"]


class RangeIndex:
    """`regions` is the owner's mapping id -> descriptor; the index keeps only start keys and ids."""

    __slots__ = ("_ids", "_regions", "_starts")

    def __init__(self, regions: Mapping[int, Region]) -> None:
        self._regions = regions
        self._starts: list[bytes] = []
        self._ids: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, regions: list[Region]) -> None:
        """Replace everything: `regions` in any order."""
        ordered = sorted((r.start_key, r.region_id) for r in regions)
        self._starts = [start for start, _ in ordered]
        self._ids = [region_id for _, region_id in ordered]

    def insert(self, region: Region) -> None:
        at = bisect_left(self._starts, region.start_key)
        self._starts.insert(at, region.start_key)
        self._ids.insert(at, region.region_id)

    def remove(self, region: Region) -> None:
        at = bisect_left(self._starts, region.start_key)
        assert self._ids[at] == region.region_id
        del self._starts[at]
        del self._ids[at]

    def find(self, key: bytes) -> Region | None:
        """The region that covers `key`, or None if there is a hole."""
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return None
        region = self._regions[self._ids[at]]
        return region if region.contains(key) else None

    def overlapping(self, start_key: bytes, end_key: bytes) -> Iterator[Region]:
        """Every region that shares a key with [start_key, end_key), in key order; an empty end means no bound."""
        at = max(0, bisect_right(self._starts, start_key) - 1)
        while at < len(self._ids):
            region = self._regions[self._ids[at]]
            if end_key and region.start_key >= end_key:
                return
            if not region.end_key or start_key < region.end_key:
                yield region
            at += 1
