"""What to compact next. Pure: levels and options in, a Compaction or None out.

Leveled, as in LevelDB: level 0 by the number of tables, because each of them is asked by every read; the levels below
by bytes, each `level_growth` times the one above. The level that exceeds its bound the most goes first. Below level
0 tables take turns in key order (`turns`: the largest key compacted last, per level), so that the whole range is
visited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nokv.engine.manifest.edit import FileMeta
from nokv.engine.sst.options import LsmOptions

__all__ = ["Compaction", "level_bytes_max", "pick_compaction", "pick_everything", "pick_range", "touching"]

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


def level_bytes_max(level: int, options: LsmOptions) -> int:
    return int(options.level_base_bytes * options.level_growth ** (level - 1))


def overlapping(files: Sequence[FileMeta], smallest: bytes, largest: bytes) -> list[FileMeta]:
    return [f for f in files if f.largest >= smallest and f.smallest <= largest]


def _range(files: Sequence[FileMeta]) -> tuple[bytes, bytes]:
    return min(f.smallest for f in files), max(f.largest for f in files)


def _merge(levels: Levels, upper: Sequence[FileMeta], output_level: int, reason: str) -> Compaction:
    lower = overlapping(levels[output_level], *_range(upper)) if output_level < len(levels) else []
    inputs = (*upper, *lower)
    smallest, largest = _range(inputs)
    bottom = not any(overlapping(level, smallest, largest) for level in levels[output_level + 1 :])
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
        smallest, largest = _range(found)
        bottom = not any(overlapping(deeper, smallest, largest) for deeper in levels[level + 1 :])
        return Compaction(tuple(found), level, bottom, False, True, "asked for")
    if level == 0:
        found = list(levels[0])  # they overlap: none may sink below an older one
    return replace(_merge(levels, found, level + 1, "asked for"), move=False, compress=True)
