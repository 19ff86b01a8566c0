"""The knobs of everything below the memtable."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from nokv.errors import UsageError

__all__ = ["LsmOptions"]

COMPRESSIONS = ("none", "lz4", "zstd")
BOUNDS = {
    "block_bytes": (64, 4 << 20),
    "compressed_block_bytes": (64, 4 << 20),
    "restart_interval": (1, 1024),
    "bloom_bits": (0, 64),
    "zstd_level": (1, 19),
    "block_cache_bytes": (0, 1 << 50),
    "table_bytes": (1, 1 << 40),
    "l0_files_trigger": (1, 1000),
    "level_base_bytes": (1, 1 << 50),
    "level_growth": (2, 1000),
    "levels_max": (2, 16),
    "table_garbage_percent": (1, 100),
    "manifest_bytes_max": (1, 1 << 30),
    "value_file_threshold": (0, 1 << 30),
    "value_file_bytes": (1024, 1 << 40),
    "value_garbage_percent": (1, 100),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LsmOptions:
    """`compression` is that of level 2 and below, of a full compaction and of exported tables. The newest levels are
    read and rewritten soonest: theirs is `upper_compression`, which costs little and halves what is written."""

    block_bytes: int = 4096  # of a block that is stored plain or as lz4
    compressed_block_bytes: int = 49152  # of a block that zstd then compresses: larger ones compress better
    restart_interval: int = 16
    bloom_bits: int = 10  # per key; 0: no filter
    compression: str = "zstd"
    upper_compression: str = "lz4"
    zstd_level: int = 1
    block_cache_bytes: int = 128 << 20  # decoded blocks
    table_bytes: int = 32 << 20  # about where a compaction ends a table
    l0_files_trigger: int = 16  # a table more costs a point read one filter, and merging sooner rewrites more
    level_base_bytes: int = 128 << 20  # what level 1 may hold
    level_growth: int = 10
    levels_max: int = 7
    table_garbage_percent: int = 50  # tables that would lose more than this are compacted early; 100: none is
    manifest_bytes_max: int = 1 << 20  # a longer manifest is replaced by a fresh one
    value_file_threshold: int = 64 << 10  # values this large lie outside the tables; 0: none does
    value_file_bytes: int = 256 << 20  # about where a value file ends
    value_garbage_percent: int = 50  # a value file with more garbage than this is rewritten

    def __post_init__(self) -> None:
        for name in ("compression", "upper_compression"):
            if getattr(self, name) not in COMPRESSIONS:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}", hint="use 'none', 'lz4' or 'zstd'")
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), BOUNDS.get(field.name, (0, 0))
            if not field.name.endswith("compression") and (type(value) is not int or not low <= value <= high):
                raise UsageError(f"option {field.name}={value!r} must be an int from {low} to {high}")

    @classmethod
    def take(cls, options: MutableMapping[str, Any]) -> LsmOptions:
        """Made from what `options` says about these names, which are removed from it."""
        return cls(**{f.name: options.pop(f.name) for f in fields(cls) if f.name in options})
