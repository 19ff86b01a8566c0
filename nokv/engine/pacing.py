"""How long a writer pauses, so that it meets the flush instead of running into it. Pure.

A memtable is handed out in slices while another one waits for its flush. After each slice the writer pauses for as long
as it would have to wait later, in one piece, were it to go on at its pace: many short pauses instead of one of a
hundred milliseconds. (RocksDB's delayed write rate serves the same end with a token bucket.) A flush that takes longer
than was thought meets a writer that goes on past the memtable's size, by OVERSHOOT of it, at the slowest pace.
"""

from __future__ import annotations

__all__ = [
    "FLUSH_RATE_GUESS",
    "OVERSHOOT",
    "PAUSE_S_MAX",
    "PAUSE_S_MIN",
    "PAUSE_S_SHORT",
    "SLICES",
    "due_s",
    "longest_pause_s",
    "pause_s",
]

SLICES = 512  # of a memtable
PAUSE_S_MAX = 0.0004  # for each slice: a put never waits longer for its turn, whatever the estimate says
PAUSE_S_SHORT = 0.0002  # and not even that long while the flush will end before the memtable has overshot by this
PAUSE_S_MIN = 0.00015  # shorter ones are saved up: of a thousand puts, one at most should meet one
SLICES_AT_ONCE = 8  # that one pause makes up for: a put must not pay for the growth of an index
OVERSHOOT = 8  # a memtable may grow by this part of its size while the one before is still being flushed
FLUSH_RATE_GUESS = 150e6  # bytes a second, before the first flush has been measured


def longest_pause_s(capacity: int, written: int) -> float:
    return PAUSE_S_MAX * min(max(written * SLICES / capacity, 1.0), SLICES_AT_ONCE)


def due_s(owed_s: float, pause_s: float) -> float:
    """What to pause now, if the pauses that have not been made add up to `owed_s`, `pause_s` of it for the last
    slice."""
    return 0.0 if owed_s < PAUSE_S_MIN else max(pause_s, PAUSE_S_MIN)


def pause_s(
    *,
    capacity: int,
    used: int,
    written: int,
    took_s: float,
    flush_left_s: float,
    l0_files: int,
    l0_trigger: int,
    l0_slow: int,
) -> float:
    """Seconds of pause that `written` bytes cost (a slice, or more if one batch was larger), which took `took_s`.

    `flush_left_s` is the estimate of what the running flush still needs; `capacity - used` bytes are left to write
    meanwhile. From `l0_trigger` files in level 0 on (a compaction is due) up to `l0_slow` (it is waited for) the pause
    grows by up to the time of the writing itself, so that compaction gets its share before anybody waits for it."""
    slice_bytes = max(capacity / SLICES, 1.0)
    left = max(capacity - used, slice_bytes)
    pause = flush_left_s * min(written / left, 1.0) - took_s
    if l0_files > l0_trigger:
        pause = max(pause, 0.0) + took_s * min((l0_files - l0_trigger) / max(l0_slow - l0_trigger, 1), 1.0)
    longest = longest_pause_s(capacity, written)
    if flush_left_s <= (left / slice_bytes + SLICES / OVERSHOOT) * PAUSE_S_SHORT:
        longest *= PAUSE_S_SHORT / PAUSE_S_MAX
    return min(max(pause, 0.0), longest)
