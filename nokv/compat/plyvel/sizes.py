"""What is asked of a LevelDB about its files, from our tables."""

from __future__ import annotations

from typing import Any

from nokv.engine.db import DB as Engine

LEVELS = 7


def table_bytes(levels: Any, low: bytes, high: bytes) -> int:
    size = 0
    for meta in (meta for level in levels for meta in level if low < high):
        if low <= meta.smallest and meta.largest < high:
            size += meta.size
        elif low <= meta.largest and meta.smallest < high:
            size += meta.size // 2
    return size


def property_of(db: Engine, name: bytes) -> bytes | None:
    levels = db.view.version.files()
    levels = [levels[i] if i < len(levels) else [] for i in range(max(LEVELS, len(levels)))]
    head = b"leveldb.num-files-at-level"
    if name.startswith(head):
        text = name[len(head) :]
        if not text.isdigit() or int(text) >= LEVELS:
            return None
        return b"%d" % len(levels[int(text)])
    if name == b"leveldb.stats":
        columns = "Level  Files Size(MB) Time(sec) Read(MB) Write(MB)"
        lines = [f"{'Compactions':>42}", columns, "-" * len(columns)]
        lines += [f"{i:3} {len(x):8} {sum(m.size for m in x) / 1e6:8.0f}" for i, x in enumerate(levels) if x]
        return "\n".join([*lines, ""]).encode()
    if name == b"leveldb.sstables":
        return "".join(
            f"--- level {i} ---\n"
            + "".join(f" {m.number}:{m.size}[{m.smallest[1:]!r} .. {m.largest[1:]!r}]\n" for m in x)
            for i, x in enumerate(levels)
        ).encode()
    if name == b"leveldb.approximate-memory-usage":
        return b"%d" % db.stats()["flush"]["memtable_allocated_bytes"]
    return None
