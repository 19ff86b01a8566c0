"""Background steps on a thread of their own: the real `Executor`."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

from nokv._ext import gilturn
from nokv._ext.scheduling import step_aside
from nokv.errors import Closed

__all__ = ["ThreadExecutor"]


class ThreadExecutor:
    """`nokv.env.Executor` on one daemon thread, started at the first step. Steps run in order, never two at a time.

    The queue has no bound of its own: its users submit at most a few steps at a time (the engine: one per kind of
    work).
    """

    def __init__(self, name: str = "nokv-background", *, aside: bool = True) -> None:
        """`aside`: its steps are long, and threads that wake up go before it."""
        self._name = name
        self._aside = aside
        self._steps: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._running = 0  # steps taken off the queue and not finished: 0 or 1
        self._idle = False  # the thread waits for a step
        self._expected = False  # the thread was told to wake up, and writers know
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, step: Callable[[], None]) -> None:
        """Raises Closed, and RuntimeError if the system has no thread to run it; then it has not been queued."""
        with self._changed:
            if self._closed:
                raise Closed("the executor is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except Exception:  # the system has no more of them: perhaps it has for the next step
                    self._thread = None
                    raise
            self._steps.append(step)
            if self._idle and not self._expected:
                self._expected = True
                gilturn.expect()
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until nothing is queued or running. Not from inside a step: it would wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("drain() inside a background step would wait for itself")
        with self._changed:
            self._changed.wait_for(lambda: not self._steps and not self._running)

    def close(self) -> None:
        """Drop what is queued, wait for the running step, end the thread."""
        with self._changed:
            self._closed = True
            self._steps.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        if self._aside:
            step_aside()
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._steps or self._closed)
                self._idle = False
                expected, self._expected = self._expected, False
                gilturn.begin(expected)
                if self._closed:
                    gilturn.end()
                    return
                step = self._steps.popleft()
                self._running = 1
            try:
                step()
            except Exception:  # a bug of the step's owner, who must not raise: report it and serve the others
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
            finally:
                del step
                with self._changed:
                    self._running = 0
                    self._changed.notify_all()
                gilturn.end()
