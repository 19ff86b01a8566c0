"""An asyncio event loop in virtual time, and processes on it that can be killed, paused and started again.

`VirtualLoop` is what `asyncio.get_running_loop()` answers inside the simulator. Nothing waits: when nothing is ready,
time jumps to the next timer. The same calls give the same order of callbacks, hence the same run.

`Life` is one life of one simulated process. Whatever runs in its `context` (and whatever that starts: asyncio hands
contexts on to callbacks, tasks and timers) belongs to it. So a life can be

    killed    none of its callbacks runs any more: no `finally`, no farewell, as with kill -9
    paused    its callbacks are held, and run in order when it goes on; its clocks go on meanwhile (SIGSTOP)
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

__all__ = ["Life", "SimClock", "VirtualHandle", "VirtualLoop"]

_LIFE: contextvars.ContextVar[Life] = contextvars.ContextVar("life")
THREAD_HOP_NS = 1_000_000
"""How long a call on another thread takes here."""


class Life:
    """One life of a process. `on_step` is called after each of its callbacks, in no life's context."""

    __slots__ = ("alive", "context", "held", "loop", "name", "node_id", "on_step", "paused", "tasks")

    def __init__(self, loop: VirtualLoop, name: str, node_id: int) -> None:
        self.loop = loop
        self.name = name
        self.node_id = node_id
        self.alive = True
        self.paused = False
        self.held: list[VirtualHandle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_step: Callable[[], None] | None = None
        self.context = contextvars.Context()
        self.context.run(_LIFE.set, self)

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run it as a part of this life."""
        self.loop.call_soon(callback, *args, context=self.context)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.context.run(self.loop.create_task, work)

    def kill(self) -> None:
        self.alive = False
        self.held.clear()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """What was held runs, in the order in which it became due."""
        if self.paused:
            self.paused = False
            held, self.held = self.held, []
            self.loop.requeue(held)


class VirtualHandle:
    __slots__ = ("args", "callback", "cancelled_", "context", "when_ns")

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when_ns: int
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.when_ns = when_ns
        self.cancelled_ = False

    def cancel(self) -> None:
        self.cancelled_ = True

    def cancelled(self) -> bool:
        return self.cancelled_

    def when(self) -> float:
        return self.when_ns / 1e9


class VirtualLoop:
    """Of an event loop, what coroutines without sockets need. Also a `multiraft.Scheduler`."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.events = 0
        self.problems: list[str] = []
        self._ready: deque[VirtualHandle] = deque()
        self._timers: list[tuple[int, int, VirtualHandle]] = []
        self._order = 0
        self._every: list[asyncio.Task[Any]] = []
        self._world = contextvars.Context()

    # -- what asyncio asks for ----------------------------------------------------------------------------------------
    def time(self) -> float:
        return self.now_ns / 1e9

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> VirtualHandle:
        handle = VirtualHandle(callback, args, context or contextvars.copy_context(), self.now_ns)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> VirtualHandle:
        return self._at(self.now_ns + max(0, ceil(delay * 1e9)), callback, args, context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> VirtualHandle:
        return self._at(max(self.now_ns, ceil(when * 1e9)), callback, args, context)

    def _at(
        self, when_ns: int, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> VirtualHandle:
        handle = VirtualHandle(callback, args, context or contextvars.copy_context(), when_ns)
        self._order += 1
        heapq.heappush(self._timers, (when_ns, self._order, handle))
        return handle

    def world_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> VirtualHandle:
        """For what no process can stop: the network, faults."""
        return self.call_later(delay_s, callback, *args, context=self._world)

    def world_at(self, when_ns: int, callback: Callable[..., Any], *args: Any) -> VirtualHandle:
        return self._at(when_ns, callback, args, self._world)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, coro: Any, *, name: object = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=None if name is None else str(name))  # type: ignore[arg-type]
        life = _LIFE.get(None)
        if life is not None:
            # Held, so that a dead life's coroutines are not closed (their `finally` would run) before the end.
            if len(life.tasks) > 256:
                life.tasks = [each for each in life.tasks if not each.done()]
            life.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """The other thread's work happens at one moment, a little later."""
        future = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
                return
            if not future.done():
                future.set_result(result)

        self._at(self.now_ns + THREAD_HOP_NS, run, (), None)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or type(error).__name__ != "CrashPoint":
            self.problems.append(f"{context.get('message')}: {error!r}")

    # -- time ---------------------------------------------------------------------------------------------------------
    def requeue(self, handles: list[VirtualHandle]) -> None:
        self._ready.extend(handles)

    def run_until(self, end_ns: int, done: Callable[[], bool] | None = None) -> bool:
        """Everything due up to `end_ns`; ends early once `done` (asked whenever time moves). False: not done."""
        ready, timers = self._ready, self._timers
        while True:
            while ready:
                self._run(ready.popleft())
            if done is not None and done():
                return True
            while timers and timers[0][2].cancelled_:
                heapq.heappop(timers)
            if not timers or timers[0][0] > end_ns:
                self.now_ns = max(self.now_ns, end_ns)
                return False
            now = self.now_ns = timers[0][0]
            while timers and timers[0][0] == now:
                ready.append(heapq.heappop(timers)[2])

    def _run(self, handle: VirtualHandle) -> None:
        if handle.cancelled_:
            return
        life = handle.context.get(_LIFE)
        if life is None:
            self.events += 1
            handle.context.run(handle.callback, *handle.args)
            return
        if not life.alive:
            return
        if life.paused:
            life.held.append(handle)
            return
        self.events += 1
        handle.context.run(handle.callback, *handle.args)
        if life.on_step is not None:
            life.on_step()

    @contextmanager
    def running(self) -> Iterator[None]:
        """This is the running loop of the thread inside."""
        before = asyncio.events._get_running_loop()
        asyncio.events._set_running_loop(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            asyncio.events._set_running_loop(before)


def discard(life: Life) -> None:
    """Close what a life has left behind, quietly. Only when nothing of it is looked at any more."""
    life.kill()
    for task in life.tasks:
        if not task.done():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
        elif not task.cancelled():
            task.exception()  # seen
    life.tasks.clear()


class SimClock:
    """`nokv.env.Clock` of one machine: its own rate, and a wall clock that may jump."""

    __slots__ = ("_base_ns", "_loop", "rate", "wall_ms")

    def __init__(self, loop: VirtualLoop, *, rate: float = 1.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._loop = loop
        self._base_ns = loop.now_ns
        self.rate = rate
        self.wall_ms = wall_ms

    def monotonic_ns(self) -> int:
        return self._base_ns + int((self._loop.now_ns - self._base_ns) * self.rate)

    def time_ms(self) -> int:
        return self.wall_ms + self.monotonic_ns() // 1_000_000

    def jump_ms(self, delta_ms: int) -> None:
        self.wall_ms = max(0, self.wall_ms + delta_ms)
