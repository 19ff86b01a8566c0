"""Percolator's data model over an engine snapshot and a batch: key codec, reader, one-phase commits.

Owns: how versions, locks and values lie in the families `lock`, `write`, `default`, and the fallback to plain records
that makes promoted data readable. Pure. Does not own: timestamps, routing. Read `reader.py` first.
"""

from nokv.mvcc.reader import FAMILY_DEFAULT, FAMILY_LOCK, FAMILY_PLAIN, FAMILY_WRITE, MVCC_FAMILIES, TS_MAX, MvccReader

__all__ = [
    "FAMILY_DEFAULT",
    "FAMILY_LOCK",
    "FAMILY_PLAIN",
    "FAMILY_WRITE",
    "MVCC_FAMILIES",
    "TS_MAX",
    "MvccReader",
]
