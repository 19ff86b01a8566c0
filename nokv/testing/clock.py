"""A clock that moves when the test says so, never by itself."""

from __future__ import annotations

import threading

__all__ = ["FakeClock"]


class FakeClock:
    """`nokv.env.Clock`. The two clocks move together with `advance_*`; `jump_wall_ms` moves only the wall clock."""

    def __init__(self, *, monotonic_ns: int = 1_000_000_000, time_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ns = time_ms * 1_000_000
        self._mutex = threading.Lock()

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def time_ms(self) -> int:
        return self._wall_ns // 1_000_000

    def advance_ns(self, delta_ns: int) -> None:
        if delta_ns < 0:
            raise ValueError("a monotonic clock does not go back; use jump_wall_ms")
        with self._mutex:
            self._monotonic_ns += delta_ns
            self._wall_ns += delta_ns

    def advance_ms(self, delta_ms: int) -> None:
        self.advance_ns(delta_ms * 1_000_000)

    def jump_wall_ms(self, delta_ms: int) -> None:
        """What NTP or an operator may do; may be negative."""
        with self._mutex:
            self._wall_ns += delta_ms * 1_000_000
