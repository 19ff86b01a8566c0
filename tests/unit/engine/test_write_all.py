"""Writing all of it: what a signal cuts short."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nokv._ext.disk import write_all

pytestmark = pytest.mark.timeout(60)


class Interrupted(Exception):
    pass


def test_a_handler_that_raises_ends_a_write_that_was_cut_short() -> None:
    """The kernel says how much a pipe took, not EINTR."""
    reading, writing = os.pipe()

    def interrupt() -> None:
        os.read(reading, 1)  # so it has begun
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(Interrupted):
            write_all(writing, b"x" * (1 << 20))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
        os.close(writing)
