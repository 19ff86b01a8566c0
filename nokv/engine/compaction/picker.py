"""What to compact next. Pure: levels and options in, a Compaction or None out.

Leveled, as in LevelDB: level 0 by the number of tables, because each of them is asked by every read; the levels below
by bytes, each `level_growth` times the one above. The level that exceeds its bound the most goes first. Below level
0 tables take turns in key order (`turns`: the largest key compacted last, per level), so that the whole range is
visited.

A level within its bound may still be mostly garbage: deletes with what they hide, values that have expired. Where a
step would leave out more than `table_garbage_percent` of what it reads, it is taken (`pick_garbage`). RocksDB has a
collector that marks tables with many deletes when they are written (CompactOnDeletionCollector), and options that
rewrite tables by age (`ttl`, `periodic_compaction_seconds`); here the tables' properties are asked, against what the
step costs, so that a delete pays for a bounded number of rewritten entries per level. No table can be picked for ever:
a step moves deletes down, or, where nothing lies deeper, is taken only if no snapshot keeps any of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nokv.engine.manifest.edit import FileMeta
from nokv.engine.sst.options import LsmOptions

__all__ = [
    "Compaction",
    "Garbage",
    "level_bytes_max",
    "pick_compaction",
    "pick_everything",
    "pick_garbage",
    "pick_range",
    "touching",
]

Levels = Sequence[Sequence[FileMeta]]


@dataclass(frozen=True, slots=True)
class Compaction:
    """Merge `inputs` into level `output_level`. `bottom`: below it nothing overlaps, so deletes may go.
    `move`: the one input overlaps nothing there and may change its level without being rewritten. `compress`: the
    output is old enough to be compressed (if the options want that)."""

    inputs: tuple[FileMeta, ...]
    output_level: int
    bottom: bool
    move: bool
    compress: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """What can go from one table, or from below it: how many `deletes` it holds, how many values that `expired`, how
    many entries of other tables its range deletes `hide`."""

    deletes: int = 0
    expired: int = 0
    hides: int = 0


NONE = Garbage()


def level_bytes_max(level: int, options: LsmOptions) -> int:
    return int(options.level_base_bytes * options.level_growth ** (level - 1))


def overlapping(files: Sequence[FileMeta], smallest: bytes, largest: bytes) -> Sequence[FileMeta]:
    """`files` is a level below 0: in order, and disjoint."""
    first = bisect_left(files, smallest, key=lambda f: f.largest)
    return files[first : bisect_right(files, largest, lo=first, key=lambda f: f.smallest)]


def _range(files: Sequence[FileMeta]) -> tuple[bytes, bytes]:
    return min(f.smallest for f in files), max(f.largest for f in files)


def _is_bottom(levels: Levels, level: int, files: Sequence[FileMeta]) -> bool:
    """Nothing below `level` overlaps the range of `files`."""
    smallest, largest = _range(files)
    return not any(overlapping(deeper, smallest, largest) for deeper in levels[level + 1 :])


def _merge(levels: Levels, upper: Sequence[FileMeta], output_level: int, reason: str) -> Compaction:
    lower = overlapping(levels[output_level], *_range(upper)) if output_level < len(levels) else ()
    inputs = (*upper, *lower)
    bottom = _is_bottom(levels, output_level, inputs)
    move = len(upper) == 1 and not lower and upper[0].level > 0 and upper[0].global_sequence is None
    return Compaction(inputs, output_level, bottom, move, output_level >= 2, reason)


def pick_compaction(levels: Levels, options: LsmOptions, turns: Mapping[int, bytes] | None = None) -> Compaction | None:
    """The most urgent step, or None if every level is within its bound."""
    if not levels:
        return None
    best, best_score = 0, len(levels[0]) / options.l0_files_trigger
    for level in range(1, min(len(levels), options.levels_max - 1)):  # the last level has no bound
        score = sum(f.size for f in levels[level]) / level_bytes_max(level, options)
        if score > best_score and score > 1:
            best, best_score = level, score
    if best_score < 1:
        return None
    if best == 0:
        return _merge(levels, levels[0], 1, f"level 0 holds {len(levels[0])} tables")
    last = (turns or {}).get(best, b"")
    chosen = next((f for f in levels[best] if f.smallest > last), levels[best][0])
    return _merge(levels, [chosen], best + 1, f"level {best} is at {best_score:.2f} of its bound")


def pick_garbage(
    levels: Levels, options: LsmOptions, found: Mapping[int, Garbage], oldest: int | None = None
) -> Compaction | None:
    """A step of which more than `table_garbage_percent` of the input would go, the upper levels first. `found`: what
    the tables say, by number; `oldest`: the sequence of the oldest live snapshot."""
    for level, files in enumerate(levels):
        candidates = [files] if level == 0 else [[f] for f in files if f.number in found]
        for upper in candidates:
            if any(f.number in found for f in upper):
                step = _collect(levels, level, upper, [found.get(f.number, NONE) for f in upper], options, oldest)
                if step is not None:
                    return step
    return None


def _collect(
    levels: Levels,
    level: int,
    upper: Sequence[FileMeta],
    garbage: Sequence[Garbage],
    options: LsmOptions,
    oldest: int | None,
) -> Compaction | None:
    def worth_it(gone: int, inputs: Sequence[FileMeta]) -> bool:
        total = sum(f.entries for f in inputs)
        return min(gone, total) * 100 > total * options.table_garbage_percent

    deletes = sum(g.deletes for g in garbage)
    expired = sum(g.expired for g in garbage)
    hides = sum(g.hides for g in garbage)
    if level:
        # In place, values that have expired are dropped or become deletes; deletes go if nothing and nobody needs them,
        # with what they hide in their own table: a snapshot kept both.
        bottom = _is_bottom(levels, level, upper)
        free = bottom and (oldest is None or all(f.max_sequence <= oldest for f in upper))
        if worth_it(expired + (2 * deletes if free else 0), upper):
            return Compaction(tuple(upper), level, bottom, False, level >= 2, "deleted or expired")
        if bottom:
            return None
    if level + 1 >= options.levels_max or not worth_it(2 * deletes + expired + hides, upper):
        return None
    step = _merge(levels, upper, level + 1, "deleted or expired")
    total = sum(f.entries for f in step.inputs)
    # a delete hides one entry at most, and none of its own table: the memtable has dropped that
    hidden = sum(min(g.deletes, total - f.entries) for f, g in zip(upper, garbage, strict=True))
    return step if worth_it(deletes + hidden + expired + hides, step.inputs) else None


def pick_everything(levels: Levels) -> Compaction | None:
    """All tables into the deepest level in use."""
    inputs = tuple(f for level in levels for f in level)
    if not inputs:
        return None
    deepest = max(1, *(f.level for f in inputs))
    return Compaction(inputs, deepest, True, False, True, "asked for")


def touching(files: Sequence[FileMeta], lower: bytes, upper: bytes | None) -> list[FileMeta]:
    """Those with keys in lower <= key < upper (None: open)."""
    return [f for f in files if f.largest >= lower and (upper is None or f.smallest < upper)]


def pick_range(levels: Levels, level: int, lower: bytes, upper: bytes | None) -> Compaction | None:
    """The tables of `level` that touch the range into the next level, always rewritten; None if there are none. At the
    deepest level in use they are rewritten in place."""
    found = touching(levels[level], lower, upper)
    if not found:
        return None
    if level and not any(touching(deeper, lower, upper) for deeper in levels[level + 1 :]):
        return Compaction(tuple(found), level, _is_bottom(levels, level, found), False, True, "asked for")
    if level == 0:
        found = list(levels[0])  # they overlap: none may sink below an older one
    return replace(_merge(levels, found, level + 1, "asked for"), move=False, compress=True)
