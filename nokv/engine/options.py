"""Options of the write side: what `nokv.open(path, **options)` takes beside its named arguments and `LsmOptions`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

from nokv.engine.sst.options import LsmOptions
from nokv.errors import UsageError

__all__ = ["EngineOptions", "make_options"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    write_buffer_bytes: int = 20 << 20  # a memtable that has this much memory is flushed
    wal_segment_bytes: int = 16 << 20  # at most; a new log starts smaller
    wal_retainers: tuple[str, ...] = ()  # who, besides the engine, keeps WAL segments
    sync_interval_ms: int = 100  # durability="interval": at most this much is lost to power failure
    immutables_max: int = 1  # memtables waiting for their flush; then writers wait
    l0_files_slow: int = 32  # every write that fills a memtable waits for a compaction step


DEFAULTS = (EngineOptions(), LsmOptions())

_MINIMUM = {
    "write_buffer_bytes": 4096,
    "wal_segment_bytes": 1024,
    "sync_interval_ms": 1,
    "immutables_max": 1,
    "l0_files_slow": 2,
}


def make_options(given: dict[str, Any]) -> tuple[EngineOptions, LsmOptions]:
    """What is ours and what belongs to the tables; UsageError for an unknown name or a value that makes no sense."""
    if not given:
        return DEFAULTS
    given = dict(given)
    known = {field.name for field in fields(EngineOptions)}
    below = {field.name for field in fields(LsmOptions)}
    lsm = LsmOptions(**{name: given.pop(name) for name in below & given.keys()})
    every = known | below
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, every, 1)
            raise UsageError(
                f"unknown option {name!r}",
                hint=f"did you mean {close[0]}?" if close else "known: " + ", ".join(sorted(every)),
            )
        if name in _MINIMUM and (not isinstance(value, int) or isinstance(value, bool) or value < _MINIMUM[name]):
            raise UsageError(f"option {name}={value!r} must be an int of at least {_MINIMUM[name]}")
    if "wal_retainers" in given:
        given = {**given, "wal_retainers": tuple(given["wal_retainers"])}
    return EngineOptions(**given), lsm
