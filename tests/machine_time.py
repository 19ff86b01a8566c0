"""Time as this machine grants it: what passed while our processes were stopped or starved does not count.

A thread wakes up every 50 ms. When it comes late, the machine had no time for us (a stopped process, a suspended
machine, busy processors), and only the ordinary part counts. Limits for real processes are in this time: the product is
not late if nobody let it run.

    with MachineTime() as time: time.now(); time.stood_still_s
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

TICK_S = 0.05
LATE_S = 0.03
"""A tick may come so late and still counts in full: other threads of this process want to run too."""
STOOD_STILL_S = 1.0
"""From so much on, it is a stop, not a slow machine."""


class MachineTime:
    """Any thread may ask. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = (clock(), 0.0)  # the last tick; what counts until then
        self.stood_still_s = 0.0
        self.last_stop = float("-inf")
        """When, in this time, the machine last stood still."""
        self._ending = threading.Event()
        self._ticker = threading.Thread(target=self._run, name="machine-time", daemon=True)

    def __enter__(self) -> Self:
        self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.set()
        self._ticker.join()

    def now(self) -> float:
        """Seconds since it was made, without what the machine kept from us."""
        ticked, counted = self._at
        return counted + min(self._clock() - ticked, TICK_S + LATE_S)

    def tick(self) -> None:
        now, (ticked, counted) = self._clock(), self._at
        took = now - ticked
        self._at = (now, counted + min(took, TICK_S + LATE_S))
        if took > STOOD_STILL_S:
            self.stood_still_s += took
            self.last_stop = self._at[1]

    def _run(self) -> None:
        while not self._ending.wait(TICK_S):
            self.tick()
