"""Rooted events that this store owes the truth plane: a visible retry queue that never blocks the data path (EX-02,
EX-03).

Owns: order and state of what is to be published. Terminal events are also durable in `localmeta` until they are
published, so a crash between apply and publish loses none. The node drives it: `next()`, publish, then `succeeded` or
`failed`. One thread, no clock: the node decides when to retry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nokv.metaroot.events import RootEvent
from nokv.raftstore.diagnostics import Diagnostics, PublishState

__all__ = ["PendingEvent", "Publisher"]

PENDING_EVENTS_MAX = 4096
"""At the bound the oldest *planned* event gives way (its terminal event says more); terminal events are never
dropped."""


@dataclass(slots=True)
class PendingEvent:
    event: RootEvent
    transition_id: str = ""
    terminal: bool = False
    published: Callable[[], None] | None = None  # forget the durable copy
    attempts: int = 0
    last_error: str = ""


class Publisher:
    def __init__(self, diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._queue: deque[PendingEvent] = deque()
        self.wake: Callable[[], None] = lambda: None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: PendingEvent) -> None:
        """Queue an event, unless the same one waits already."""
        if any(other.event == pending.event for other in self._queue):
            return
        if len(self._queue) >= PENDING_EVENTS_MAX:
            planned = next((other for other in self._queue if not other.terminal), None)
            if planned is not None:
                self._queue.remove(planned)
                self.dropped += 1
        self._queue.append(pending)
        if pending.transition_id and pending.terminal:
            self._diagnostics.transition(pending.transition_id, publish=PublishState.TERMINAL_PENDING)
        self.wake()

    def next(self) -> PendingEvent | None:
        return self._queue[0] if self._queue else None

    def succeeded(self, pending: PendingEvent) -> None:
        self._remove(pending)
        if pending.transition_id:
            state = PublishState.TERMINAL_PUBLISHED if pending.terminal else PublishState.PLANNED_PUBLISHED
            self._diagnostics.transition(pending.transition_id, publish=state, attempts=1)
        if pending.published is not None:
            pending.published()

    def failed(self, pending: PendingEvent, error: str, *, for_good: bool) -> None:
        """`for_good`: the truth plane refuses the event. A refused terminal event stays visible and is not retried."""
        pending.attempts += 1
        pending.last_error = error
        if pending.transition_id:
            state = PublishState.TERMINAL_FAILED if pending.terminal else PublishState.BLOCKED
            if not for_good:
                state = PublishState.TERMINAL_PENDING if pending.terminal else PublishState.BLOCKED
            self._diagnostics.transition(pending.transition_id, publish=state, detail=error, attempts=1)
        if for_good:
            self._remove(pending)
            if pending.published is not None:
                pending.published()

    def _remove(self, pending: PendingEvent) -> None:
        if pending in self._queue:
            self._queue.remove(pending)
