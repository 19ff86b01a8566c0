"""An event loop on a thread of its own, for callers that block."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from nokv.errors import Closed, UsageError

__all__ = ["LoopThread"]

_T = TypeVar("_T")


class LoopThread:
    """`run` may be called from any thread but the loop's own. Not usable after a fork."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """The coroutine's result; an interrupt (Ctrl-C) cancels it."""
        problem = self._problem()
        if problem is not None:
            coroutine.close()
            raise problem
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _problem(self) -> Exception | None:
        if os.getpid() != self._pid:
            return Closed("the process forked after this client was made", hint="connect again in the child")
        if threading.current_thread() is self._thread:
            return UsageError("a blocking call from the client's own event loop")
        if not self._thread.is_alive():
            return Closed("the client is closed")
        return None

    def stop(self) -> None:
        if os.getpid() == self._pid and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
