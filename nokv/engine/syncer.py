"""durability="interval": who syncs the log, and when."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from nokv._ext import gilturn

if TYPE_CHECKING:
    from nokv.engine.background import Background

__all__ = ["IntervalSyncer"]

IDLE_S = 10.0  # without a write: then spare memory goes back to the system


class IntervalSyncer:
    """durability="interval": a thread that syncs the log, one interval after the first write since the last sync."""

    def __init__(self, db: Background, interval_s: float, idle_s: float = IDLE_S) -> None:
        self._db = weakref.ref(db)
        self._idle_s = idle_s
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._pending = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="nokv-sync", daemon=True)
                try:
                    self._thread.start()
                except Exception:  # the system has no more of them: the next write tries again
                    self._thread = None
                    raise
            self._pending = True
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                idle = not self._changed.wait_for(lambda: self._pending or self._stopping, self._idle_s)
            db = self._db() if idle else None
            if db is not None:
                db._arena.trim()
                del db
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                # the interval runs from the first write on; only the end cuts it short
                if self._changed.wait_for(lambda: self._stopping, self._interval_s):
                    return
                self._pending = False
            db = self._db()
            if db is None:
                return
            gilturn.begin()
            try:
                db._interval_step()
            finally:
                gilturn.end()
            del db
