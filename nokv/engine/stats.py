"""`db.stats()`: counters and gauges, in the groups of FEATURES 1.12. Nothing is read from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = ["engine_stats"]


def engine_stats(db: DB) -> dict[str, Any]:
    view = db.view
    immutables = view.immutables
    wal = db._wal.stats()
    return {
        "entries": {
            "memtable": len(view.mem) + sum(len(table) for table in immutables),
            "sequence": db.sequence,
            "snapshots": len(db.snapshot_sequences()),
            "families": len(db.families()),
        },
        "write": {
            "puts": db.puts,
            "deletes": db.deletes,
            "range_deletes": db.range_deletes,
            "batches": db.batches,
            "bytes": db.written_bytes,
            "waits": db._write_waits,
            "pauses": db._pauses,
            "paused_ms": int(db._paused_s * 1000),
            "read_only": bool(db._poisoned or db._wal.failure),
        },
        "read": {"gets": db.gets, "scans": db.scans},
        "flush": {
            "count": db._flushes,
            "bytes": db._flushed_bytes,
            "pending": len(immutables),
            "memtable_bytes": view.mem.used_bytes,
            "memtable_spare_bytes": db._arena.stats()["free_bytes"],
            "memtable_allocated_bytes": view.mem.allocated_bytes + sum(t.allocated_bytes for t in immutables),
            "last_error": str(db._flush_error or ""),
        },
        "wal": wal,
        **_table_groups(db._versions.stats()),
    }


def _table_groups(found: dict[str, Any]) -> dict[str, Any]:
    """The VersionSet's figures, in the groups of FEATURES 1.12."""
    cache = found.pop("block_cache")
    compaction = {
        "count": found.pop("compactions"),
        "bytes_read": found.pop("compaction_bytes_read"),
        "bytes_written": found.pop("compaction_bytes_written"),
        "entries_dropped": found.pop("entries_dropped"),
        "entries_expired": found.pop("entries_expired"),
    }
    cache["point_index_bytes"] = found.pop("point_index_bytes")
    return {"compaction": compaction, "cache": cache, "values": found.pop("values"), "lsm": found}
