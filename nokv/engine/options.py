"""The engine's options: what `nokv.open(path, **options)` takes beyond its named arguments."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

from nokv.errors import UsageError

__all__ = ["EngineOptions", "make_options"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    write_buffer_bytes: int = 32 << 20  # a memtable this large is flushed
    wal_segment_bytes: int = 64 << 20  # at most; a new log starts smaller
    wal_retainers: tuple[str, ...] = ()  # who, besides the engine, keeps WAL segments
    sync_interval_ms: int = 100  # durability="interval": at most this much is lost to power failure
    immutables_max: int = 2  # memtables waiting for their flush; then writers wait
    block_bytes: int = 4096
    table_bytes: int = 32 << 20  # of one SST made by compaction
    compression: str = "zstd"  # of levels 2 and down: "zstd" or "none"; the newest levels are never compressed
    bloom_bits: int = 10  # per key
    block_cache_bytes: int = 64 << 20
    l0_files_trigger: int = 4  # compaction starts
    l0_files_slow: int = 12  # every write that fills a memtable waits for a compaction step
    level_base_bytes: int = 128 << 20  # level 1; each further level is `level_growth` times larger
    level_growth: int = 10


_MINIMUM = {
    "write_buffer_bytes": 4096,
    "wal_segment_bytes": 1024,
    "sync_interval_ms": 1,
    "immutables_max": 1,
    "block_bytes": 256,
    "table_bytes": 4096,
    "bloom_bits": 0,
    "block_cache_bytes": 0,
    "l0_files_trigger": 1,
    "l0_files_slow": 2,
    "level_base_bytes": 4096,
    "level_growth": 2,
}


def make_options(given: dict[str, Any]) -> EngineOptions:
    known = {field.name for field in fields(EngineOptions)}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"unknown option {name!r}",
                hint=f"did you mean {close[0]}?" if close else "known: " + ", ".join(sorted(known)),
            )
        if name in _MINIMUM and (not isinstance(value, int) or isinstance(value, bool) or value < _MINIMUM[name]):
            raise UsageError(f"option {name}={value!r} must be an int of at least {_MINIMUM[name]}")
    if given.get("compression", "none") not in ("none", "zstd"):
        raise UsageError(f"option compression={given['compression']!r} is unknown", hint="zstd or none")
    if "wal_retainers" in given:
        given = {**given, "wal_retainers": tuple(given["wal_retainers"])}
    return EngineOptions(**given)
