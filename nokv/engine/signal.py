"""A flag that one thread waits for, and that no failed allocation can lock up. Owns: nothing but itself."""

from __future__ import annotations

import queue

__all__ = ["Signal"]


class Signal:
    """Like threading.Event, for one waiter at a time. An Event takes its lock in Python code: where that runs out of
    memory between the lock's acquisition and its release, the next `set` waits for ever. Here the only lock is inside
    SimpleQueue, whose operations are single steps of C code."""

    def __init__(self) -> None:
        self._set = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._wakes.put(None)

    def clear(self) -> None:
        self._set = False
        while not self._wakes.empty():
            self._wakes.get_nowait()  # nobody else takes: the one waiter is the caller

    def wait(self, timeout_s: float) -> None:
        """Until it is set, for `timeout_s` seconds at most; a `set` that is followed by a `clear` may go unseen."""
        if not self._set:
            try:
                self._wakes.get(timeout=timeout_s)
            except queue.Empty:
                return
