"""What the tables of a version say about their garbage, for the picker. Asks properties and range deletes; reads no
data.

How much has expired comes from the property `expiries`, rounded down, so that what is counted is there. How much a
range delete hides is a guess: all of a table whose first and last key are both covered by newer ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nokv._ext.table import Table
from nokv._ext.version import Version
from nokv.engine.compaction.picker import Garbage, overlapping

__all__ = ["tables_garbage"]


def tables_garbage(version: Version, expired_ms: int) -> dict[int, Garbage]:
    """By number, of the tables that have any. `expired_ms`: a moment that no reader looks behind (0: none)."""
    levels = version.files()
    found = {}
    for level, tables in enumerate(version.levels):
        for table in tables:
            p = table.properties
            garbage = Garbage(
                p["deletes"], _expired(p, expired_ms), _hides(levels, level, table) if p["range_deletes"] else 0
            )
            if garbage != Garbage():
                found[table.meta.number] = garbage
    return found


def _expired(properties: dict[str, Any], expired_ms: int) -> int:
    moments = properties["expiries"]
    if not moments:
        return 0  # none expires, or its writer did not say when
    passed = sum(moment <= expired_ms for moment in moments)
    return int(properties["expiring"] * passed // len(moments))


def _hides(levels: list[list[Any]], level: int, table: Table) -> int:
    ranges = table.ranges()
    if ranges is None:
        return 0
    smallest, largest = table.meta.smallest, table.meta.largest
    others: Iterable[Any] = [f for f in levels[0] if f.number != table.meta.number] if level == 0 else ()
    hidden = 0
    for files in (others, *(overlapping(deeper, smallest, largest) for deeper in levels[level + 1 :])):
        for f in files:
            if ranges.cover(f.smallest) > f.max_sequence and ranges.cover(f.largest) > f.max_sequence:
                hidden += f.entries
    return hidden
