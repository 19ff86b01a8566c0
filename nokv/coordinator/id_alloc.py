"""Ids for regions, peers and stores: strictly increasing, never handed out twice, from windows fenced in the rooted
log.

Pure. What is left of a window when its holder goes is lost: ids have gaps. A successor starts at the fence.
"""

from __future__ import annotations

__all__ = ["ID_COUNT_MAX", "IdAllocator"]

ID_COUNT_MAX = 1 << 16


class IdAllocator:
    __slots__ = ("_fence", "_next", "window")

    def __init__(self, *, window: int = 1_000) -> None:
        assert window > 0
        self.window = window
        self._next = 1
        self._fence = 0

    @property
    def next(self) -> int:
        return self._next

    def begin(self, frontier: int) -> None:
        """A new era: nothing below `frontier`, and nothing at all before the first `extend`."""
        self._next = max(self._next, frontier)
        self._fence = 0

    def skip_to(self, floor: int) -> None:
        """Ids below `floor` are in use already (somebody chose them): never hand them out."""
        self._next = max(self._next, floor)

    def next_fence(self, count: int = 0) -> int | None:
        """The fence to append so that `count` ids (and a window more) can be taken; None if half a window is left."""
        if self._fence >= self._next + count + self.window // 2:
            return None
        return self._next + count + self.window

    def extend(self, fence: int) -> None:
        self._fence = max(self._fence, fence)

    def take(self, count: int) -> int | None:
        """The first of `count` consecutive ids, or None if the window does not reach that far."""
        if not 0 < count <= ID_COUNT_MAX:
            raise ValueError(f"between 1 and {ID_COUNT_MAX} ids at a time, not {count}")
        if self._next + count > self._fence:
            return None
        first = self._next
        self._next += count
        return first
