"""The flag a paced writer waits for: a set ends a wait, an old set does not, and no wait outlives its time."""

from __future__ import annotations

import threading

from nokv.engine.signal import Signal


def test_a_set_ends_a_wait_that_would_last_for_hours() -> None:
    signal = Signal()
    waiter = threading.Thread(target=signal.wait, args=(3600.0,))
    waiter.start()
    signal.set()
    waiter.join(60)
    assert not waiter.is_alive() and signal.is_set()
    signal.wait(3600.0)  # it stays set


def test_an_earlier_set_does_not_end_a_later_wait() -> None:
    signal = Signal()
    for _ in range(3):
        signal.set()
    signal.clear()
    assert not signal.is_set()
    ended = threading.Event()

    def wait() -> None:
        while not signal.is_set():
            signal.wait(3600.0)
        ended.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not ended.is_set()
    signal.set()
    waiter.join(60)
    assert ended.is_set()


def test_a_wait_ends_with_its_time() -> None:
    signal = Signal()
    signal.wait(0.0)
    signal.wait(0.001)
    assert not signal.is_set()
