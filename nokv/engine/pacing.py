"""How long a writer pauses, so that it meets the flush instead of running into it. Pure.

A memtable is handed out in slices while another one waits for its flush. After each slice the writer pauses for as long
as it would have to wait later, in one piece, were it to go on at its pace: many pauses of a millisecond instead of one
of a hundred. (RocksDB's delayed write rate serves the same end with a token bucket.)
"""

from __future__ import annotations

__all__ = ["PAUSE_S_MAX", "SLICES", "pause_s"]

SLICES = 64  # of a memtable
PAUSE_S_MAX = 0.005  # a put never waits longer for its turn, whatever the estimate says


def pause_s(
    *, capacity: int, used: int, slice_s: float, flush_left_s: float, l0_files: int, l0_trigger: int, l0_slow: int
) -> float:
    """Seconds to pause after a slice that took `slice_s`.

    `flush_left_s` is the estimate of what the running flush still needs; `capacity - used` bytes are left to write
    meanwhile. From `l0_trigger` files in level 0 on (a compaction is due) up to `l0_slow` (it is waited for) the pause
    grows by up to the time of the slice itself, so that compaction gets its share before anybody waits for it."""
    left = max(capacity - used, 1)
    slices_left = max(left * SLICES / capacity, 1.0)
    pause = flush_left_s / slices_left - slice_s
    if l0_files > l0_trigger:
        pause = max(pause, 0.0) + slice_s * min((l0_files - l0_trigger) / max(l0_slow - l0_trigger, 1), 1.0)
    return min(max(pause, 0.0), PAUSE_S_MAX)
