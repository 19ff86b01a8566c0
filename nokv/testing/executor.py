"""Background work without a thread: a step runs at once, or when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["StepExecutor"]


class StepExecutor:
    """`nokv.env.Executor`, all on the caller's thread.

    `inline=True` runs a step within `submit` (a step submitted by a step runs after it, not inside it: steps of one
    executor never overlap). `inline=False` queues it until `run_one`, `run_all` or `drain`.
    """

    def __init__(self, *, inline: bool = False) -> None:
        self.inline = inline
        self.ran = 0
        self._queue: deque[Callable[[], None]] = deque()
        self._running = False
        self._closed = False

    @property
    def pending(self) -> int:
        return len(self._queue)

    def submit(self, step: Callable[[], None]) -> None:
        if self._closed:
            raise RuntimeError("the executor is closed")
        self._queue.append(step)
        if self.inline:
            self.run_all()

    def run_one(self) -> bool:
        """Run the oldest step; False if there is none, or one is running now."""
        if self._running or not self._queue:
            return False
        step = self._queue.popleft()
        self._running = True
        try:
            step()
        finally:
            self._running = False
        self.ran += 1
        return True

    def run_all(self) -> int:
        """Run until nothing is left; returns how many steps ran."""
        count = 0
        while self.run_one():
            count += 1
        return count

    def drain(self) -> None:
        self.run_all()

    def close(self) -> None:
        """What was submitted runs; then nothing any more."""
        self.run_all()
        self._closed = True
