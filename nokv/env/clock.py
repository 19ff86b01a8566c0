"""The real clock."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """`nokv.env.Clock` over the operating system."""

    __slots__ = ()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def time_ms(self) -> int:
        return time.time_ns() // 1_000_000
