"""The digest of what a reader sees in a region: equal on replicas with equal applied index
(docs/formats/region_digest.md)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nokv._ext.mvcc import pack_pairs_for_digest
from nokv.mvcc import MvccReader
from nokv.mvcc.reader import ReadView
from nokv.region import Region

__all__ = ["RegionDigest", "region_digest"]

_PAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class RegionDigest:
    digest: str
    keys: int
    bytes: int


def region_digest(view: ReadView, region: Region) -> RegionDigest:
    """SHA-256 over every visible pair of the region, in key order, each length-prefixed. `view` must not change
    meanwhile."""
    reader = MvccReader(view)
    state = hashlib.sha256()
    keys = size = 0
    start, more = region.start_key, True
    while more:
        pairs, more = reader.scan(start, region.end_key, bytes_max=_PAGE_BYTES)
        state.update(pack_pairs_for_digest(pairs))
        keys += len(pairs)
        size += sum(len(key) + len(value) for key, value in pairs)
        if pairs:
            start = pairs[-1][0] + b"\x00"
    return RegionDigest(f"sha256:{state.hexdigest()}", keys, size)
