"""Timestamps: physical milliseconds << 18 | logical counter, strictly increasing over restarts, hand-overs and bad
clocks.

Pure. The caller has made sure that it holds the lease, and passes the clocks in. Nothing is handed out at or above the
fence that the rooted log has for our era; a successor starts at that fence, whatever its clock says. Within an era time
advances with the monotonic clock, so a wall clock that is set back changes nothing; one that is ahead is followed by at
most a second per window.
"""

from __future__ import annotations

__all__ = ["LOGICAL_BITS", "TSO_COUNT_MAX", "TsoAllocator", "compose", "physical_ms"]

LOGICAL_BITS = 18
TSO_COUNT_MAX = 1 << LOGICAL_BITS
FOLLOW_WALL_MS_MAX = 1_000


def compose(physical: int, logical: int = 0) -> int:
    return (physical << LOGICAL_BITS) | logical


def physical_ms(timestamp: int) -> int:
    return timestamp >> LOGICAL_BITS


class TsoAllocator:
    """One era at a time: `begin`, then `next_fence` -> (append) -> `extend`, and `take` in between."""

    __slots__ = ("_base_ms", "_base_ns", "_fence", "_last", "_unused", "window_ms")

    def __init__(self, *, window_ms: int = 3_000) -> None:
        assert window_ms > 0
        self.window_ms = window_ms
        self._last = 0
        self._fence = 0
        self._base_ms = 0
        self._base_ns = 0
        self._unused = False  # nobody has asked since the window was extended: do not fill the log with fences

    @property
    def last(self) -> int:
        """The newest timestamp handed out (or the one before the first)."""
        return self._last

    def begin(self, frontier: int, now_ns: int, now_ms: int) -> None:
        """A new era: nothing below `frontier`, and nothing at all before the first `extend`."""
        self._last = max(self._last, frontier - 1)
        self._fence = 0
        self._base_ms = max(now_ms, physical_ms(self._last + 1))
        self._base_ns = now_ns

    def _physical(self, now_ns: int) -> int:
        return self._base_ms + (now_ns - self._base_ns) // 1_000_000

    def next_fence(self, now_ns: int, now_ms: int) -> int | None:
        """The fence to append now, or None while more than half of the window is left, or nobody asks for
        timestamps."""
        if self._fence and self._unused:
            return None
        ahead = now_ms - self._physical(now_ns)
        if ahead > 0:
            self._base_ms += min(ahead, FOLLOW_WALL_MS_MAX)
        physical = max(self._physical(now_ns), physical_ms(self._last + 1))
        if self._fence > compose(physical + self.window_ms // 2):
            return None
        return compose(physical + self.window_ms)

    def extend(self, fence: int) -> None:
        """The rooted log has this fence for our era."""
        self._fence = max(self._fence, fence)
        self._unused = True

    def take(self, count: int, now_ns: int) -> int | None:
        """The first of `count` consecutive timestamps, or None if the window does not reach that far."""
        if not 0 < count <= TSO_COUNT_MAX:
            raise ValueError(f"between 1 and {TSO_COUNT_MAX} timestamps at a time, not {count}")
        self._unused = False
        first = max(self._last + 1, compose(self._physical(now_ns)))
        if first + count > self._fence:
            return None
        self._last = first + count - 1
        return first
