"""The knobs of everything below the memtable."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nokv.errors import UsageError

__all__ = ["LsmOptions"]

COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class LsmOptions:
    """`compression` is that of level 2 and below, of a full compaction and of exported tables; the newest levels are
    always plain, because they are read and rewritten soonest."""

    block_bytes: int = 4096  # of a plain block
    compressed_block_bytes: int = 16384  # of a block that is then compressed: larger ones compress better
    restart_interval: int = 16
    bloom_bits: int = 10  # per key; 0: no filter
    compression: str = "zstd"
    zstd_level: int = 1
    block_cache_bytes: int = 64 << 20  # decoded zstd blocks
    table_bytes: int = 32 << 20  # about where a compaction ends a table
    l0_files_trigger: int = 4
    level_base_bytes: int = 128 << 20  # what level 1 may hold
    level_growth: int = 10
    levels_max: int = 7
    manifest_bytes_max: int = 1 << 20  # a longer manifest is replaced by a fresh one

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"unknown compression {self.compression!r}", hint="use 'none' or 'zstd'")
        for name in ("block_bytes", "compressed_block_bytes", "table_bytes", "level_base_bytes", "l0_files_trigger"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive")
        if self.level_growth < 2 or not 2 <= self.levels_max <= 16:
            raise UsageError("level_growth must be at least 2, levels_max between 2 and 16")

    @classmethod
    def of(cls, options: object) -> LsmOptions:
        """Made from the attributes of `options` that have these names; the rest keeps its default."""
        return cls(**{f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)})
