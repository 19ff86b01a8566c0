"""Start again what dies without us while a long run goes on, as an operator would, and resume the verb it disturbed.

Somebody may kill -9 any process at any moment. A thread looks for dead processes and starts them again on their
recorded ports; `enduring` runs a repeatable verb and begins it anew when a restart disturbed it. A verb's waiting ends
at once at a restart (`sleep` raises `Disturbed`), so it never waits for what the dead process had promised.

Threads: `enduring`, `kill`, `start` and `sleep` belong to the thread that made the supervisor; while it watches, no
one else may start or kill the cluster's processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nokv.cli import processes
from nokv.cli.launcher import LocalCluster
from nokv.cli.output import note
from nokv.errors import NoKVError, PreconditionFailed, Unavailable

__all__ = ["Disturbed", "Supervisor"]

POLL_S = 0.1
RESTARTS_MAX = 10  # of one process: above it the process itself is at fault
AFTERMATH_S = 20.0  # an election and a new lease after a restart may still refuse a verb

_T = TypeVar("_T")


class Disturbed(Unavailable):
    """A process was started again meanwhile: begin the verb anew."""


class Supervisor:
    """`told(name)` is called, from the watching thread, after each restart."""

    def __init__(self, cluster: LocalCluster, told: Callable[[str], None] = lambda _name: None) -> None:
        self._cluster = cluster
        self._told = told
        self._lock = threading.Lock()  # the cluster's records, _held, restarts
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._failure: BaseException | None = None
        self._seen = 0  # restarts that the verb under way knows of
        self._last_restart = float("-inf")
        self.restarts: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[Supervisor]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def check(self) -> None:
        """Start again what is dead now. Raises what stopped the watching thread."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            for record in self._cluster.records:
                if record.name in self._held or not record.pid:
                    continue
                if not processes.wait_gone(record.pid, record.identity, 0.0):
                    continue
                if self.restarts.count(record.name) >= RESTARTS_MAX:
                    raise Unavailable(
                        f"{record.name} died {RESTARTS_MAX + 1} times: not started again", hint=f"read {record.log}"
                    )
                note(f"    {record.name} died: starting it again")
                self._cluster.start(record.name, wait=False)
                self.restarts.append(record.name)
                self._last_restart = time.monotonic()
                self._told(record.name)

    def kill(self, name: str) -> bool:
        """kill -9, and it stays down until `start`. False if somebody else was faster."""
        with self._lock:
            self._held.add(name)
            try:
                self._cluster.kill(name)
            except PreconditionFailed:
                return False
            return True

    def start(self, name: str) -> None:
        """End what `kill` began; returns when it is ready."""
        with self._lock:
            self._cluster.start(name, wait=False)
            self._held.discard(name)
        self.enduring(lambda: self._cluster.wait_ready([name]))

    def sleep(self, seconds: float) -> None:
        """For `Waiter`: ends a verb's waiting with `Disturbed` if a process was started again since the verb began."""
        if not self._thread.is_alive() and self._failure is None:
            time.sleep(seconds)
            return
        self.check()
        if len(self.restarts) > self._seen:
            raise Disturbed(f"{self.restarts[-1]} died and was started again")
        self._stop.wait(seconds)

    def enduring(self, verb: Callable[[], _T]) -> _T:
        """What the repeatable `verb` returns; run again after each failure that a restart explains."""
        while True:
            self._seen = len(self.restarts)
            try:
                return verb()
            except NoKVError as error:
                self.check()
                disturbed = len(self.restarts) > self._seen
                if not disturbed and time.monotonic() > self._last_restart + AFTERMATH_S:
                    raise
                if not isinstance(error, Disturbed):
                    note(f"    resuming after: {error}")
                self._stop.wait(POLL_S)

    def _watch(self) -> None:
        try:
            while not self._stop.wait(POLL_S):
                self.check()
        except BaseException as error:  # handed to the thread that runs the verbs
            self._failure = error
