"""Planted bugs of the control plane (RELIABILITY R8): each must be found, or the simulator is blind to its kind.

A mutant replaces a few functions of the product while one schedule runs. Each breaks one rule that the lease, the
allocators, the log or the tail stand on. Two rules have a second one behind them and no mutant here: a fence of an era
that is not open is refused (its holder's clock has stopped it before; tests/unit/metaroot/test_state.py), and a barrier
asks a quorum (a leader steps down within an election timeout; the raft simulator plants that bug).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nokv.coordinator import lease as lease_module
from nokv.coordinator.id_alloc import IdAllocator
from nokv.coordinator.lease import LeaseCompetitor, LeaseStep
from nokv.coordinator.node import CoordinatorNode
from nokv.coordinator.tso import TsoAllocator
from nokv.metaroot.client import Redirector, RootClient, TailUpdate
from nokv.metaroot.events import LeaseGranted, LeaseSealed, RootEvent
from nokv.metaroot.machine import RootMachine
from nokv.metaroot.node import AppendResult, RootNode
from nokv.metaroot.service import RootService
from nokv.metaroot.state import RootState
from nokv.metaroot.wire import Checkpoint, RootBatch, encode_batch
from nokv.multiraft.raftlog import RaftLog

__all__ = ["CONTROL_MUTANTS", "planted"]

Patch = tuple[Any, str, Callable[[Any], Any]]
"""(owner, attribute, what makes the replacement out of the original)."""


def _serve_past_deadline(original: Any) -> Any:
    """The holder asks the log that it knows, not its clock: woken up, it serves an era that was sealed meanwhile."""

    def serving(self: LeaseCompetitor, now_ns: int) -> int:
        lease = self._mine()
        served = lease is not None and lease.confirmed and not lease.released and not self._released
        return self._era if served and lease is not None and lease.era == self._era else 0

    return serving


def _grant_without_seal(original: Any) -> Any:
    def decide(self: LeaseCompetitor, now_ns: int, now_ms: int, **starts: int) -> LeaseStep | None:
        step: LeaseStep | None = original(self, now_ns, now_ms, **starts)
        if step is None:
            return None
        return replace(step, events=tuple(event for event in step.events if not isinstance(event, LeaseSealed)))

    return decide


def _grant_over_open_era(original: Any) -> Any:
    def granted(self: RootState, event: LeaseGranted, revision: int) -> bool:
        if self.lease is not None and self.lease.era != event.era:
            self.lease = None
        return bool(original(self, event, revision))

    return granted


def _extend_before_append(original: Any) -> Any:
    def next_fence(self: Any, *arguments: int) -> int | None:
        fence: int | None = original(self, *arguments)
        if fence is not None:
            self.extend(fence)
        return fence

    return next_fence


def _take_beyond_fence(original: Any) -> Any:
    def take(self: IdAllocator, count: int) -> int | None:
        first = self._next
        self._next += count
        return first

    return take


def _begin_anywhere(original: Any) -> Any:
    """A successor starts where it likes, not at the frontier of its predecessor."""

    def begin(self: IdAllocator, frontier: int) -> None:
        self._fence = 0

    return begin


def _expiry_by_wall_clock(original: Any) -> Any:
    def decide(self: LeaseCompetitor, now_ns: int, now_ms: int, **starts: int) -> LeaseStep | None:
        lease = self._view.lease if self._view is not None else None
        if lease is not None and self._mine() is None and now_ms >= lease.lease_until_ms:
            self._seen_at_ns = now_ns - 10 * lease_module.takeover_ns(lease.lease_ttl_ms)
        step: LeaseStep | None = original(self, now_ns, now_ms, **starts)
        return step

    return decide


def _take_over_early(original: Any) -> Any:
    def takeover_ns(ttl_ms: int) -> int:
        return ttl_ms * 500_000

    return takeover_ns


def _forgetful_tail(original: Any) -> Any:
    """A subscriber forgets its token now and then, and takes what the next replica has."""

    async def tail(self: RootClient, from_revision: int = 0, *, silence_s: float = 2.0) -> AsyncIterator[TailUpdate]:
        while True:
            inner = original(self, 0, silence_s=silence_s)
            left = 20
            async for update in inner:
                yield update
                left -= 1
                if not left:
                    break
            await inner.aclose()

    return tail


def _tail_skips_after_state(original: Any) -> Any:
    """The first event after a state is left out."""

    async def tail(self: RootService, revision: int) -> AsyncIterator[Any]:
        after_state = False
        async for response in original(self, revision):
            if after_state and response.events:
                del response.events[0]
                after_state = False
            after_state = after_state or response.outcome != "advance"
            yield response

    return tail


def _stale_view(original: Any) -> Any:
    async def ensure(self: CoordinatorNode, freshness: object, **options: object) -> None:
        self.reads_served += 1

    return ensure


def _acknowledge_when_proposed(original: Any) -> Any:
    async def append(
        self: RootNode,
        events: Sequence[RootEvent],
        *,
        expected_revision: int = 0,
        author: str = "",
        time_ms: int = 0,
    ) -> AppendResult:
        self._check_leads()
        if not self.machine.state.validate(events, expected_revision=expected_revision):
            return AppendResult([])
        self._request_id += 1
        batch = RootBatch(self.node_id, self._request_id, list(events), expected_revision, time_ms, author)
        assert self.group is not None
        self.group.propose(encode_batch(batch))
        return AppendResult([])

    return append


def _log_not_synced(original: Any) -> Any:
    def save(self: RaftLog, items: Any, *, sync: bool = True) -> None:
        original(self, items, sync=False)

    return save


def _always_begin_at_the_first(original: Any) -> Any:
    """A client whose time is one attempt asks the first server each time; stopped, that one hides the others."""

    def other(self: Redirector[Any], failed: str, now: float) -> str:
        return next((address for address in self.addresses if address != failed), failed)

    return other


def _restore_forgets_changes(original: Any) -> Any:
    """A checkpoint or snapshot comes back without the changes that were planned."""

    def restore(self: RootMachine, checkpoint: Checkpoint) -> None:
        original(self, checkpoint)
        self.state.pending.clear()

    return restore


CONTROL_MUTANTS: dict[str, tuple[Patch, ...]] = {
    "serve_past_deadline": ((LeaseCompetitor, "serving", _serve_past_deadline),),
    "grant_without_seal": (
        (LeaseCompetitor, "decide", _grant_without_seal),
        (RootState, "_granted", _grant_over_open_era),
    ),
    "extend_ids_before_append": ((IdAllocator, "next_fence", _extend_before_append),),
    "extend_tso_before_append": ((TsoAllocator, "next_fence", _extend_before_append),),
    "take_beyond_fence": ((IdAllocator, "take", _take_beyond_fence),),
    "begin_below_frontier": ((IdAllocator, "begin", _begin_anywhere),),
    "expiry_by_wall_clock": ((LeaseCompetitor, "decide", _expiry_by_wall_clock),),
    "take_over_early": ((lease_module, "takeover_ns", _take_over_early),),
    "token_goes_back": ((RootClient, "tail", _forgetful_tail),),
    "tail_skips_after_state": ((RootService, "_tail", _tail_skips_after_state),),
    "stale_view": ((CoordinatorNode, "ensure", _stale_view),),
    "acknowledge_when_proposed": ((RootNode, "append", _acknowledge_when_proposed),),
    "log_not_synced": ((RaftLog, "save", _log_not_synced),),
    "always_begin_at_the_first": ((Redirector, "_other", _always_begin_at_the_first),),
    "restore_forgets_changes": ((RootMachine, "restore", _restore_forgets_changes),),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with this bug, inside; "" is the product as it is."""
    patches = CONTROL_MUTANTS[name] if name else ()
    before = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in patches]
    try:
        for owner, attribute, make in patches:
            setattr(owner, attribute, make(owner.__dict__[attribute]))
        yield
    finally:
        for owner, attribute, original in before:
            setattr(owner, attribute, original)
