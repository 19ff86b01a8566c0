"""How a coordinator competes for the rooted lease: what it sees and what time it is in, the next append out. Pure.

    observe    what the rooted log says now (from the tail, or from the answer to an append)
    decide     the next step, if any: campaign (seal the old era and grant ours), confirm, close, renew
    sent / acknowledged    bracket the append of a step with the local monotonic time *before* it was sent

Why no two coordinators serve at the same time (silence): a holder serves until `sent + 0.80 * ttl`, where `sent` is
when it sent the grant or renewal that the log has. A competitor first sees that grant or renewal after it was sent,
waits `0.95 * ttl` from then, and its seal is refused if the log has moved on meanwhile (compare-and-append). Only the
*rates* of the two monotonic clocks matter, and they may differ by 15 %. Wall clocks play no part. Should even that
fail, what an era hands out still lies below its fences, and a successor starts at them: values stay unique.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nokv.metaroot.events import (
    HandoffClosed,
    HandoffConfirmed,
    HandoffReattached,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    RootEvent,
)
from nokv.metaroot.state import Lease, RootState, SealedEra

__all__ = ["LeaseCompetitor", "LeaseStep", "LeaseTerms", "LeaseView", "StepKind"]


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """`renew_before_ms`: renew when less than this is left of the time we may serve (at least a third of it)."""

    ttl_ms: int = 10_000
    renew_before_ms: int = 3_000

    @property
    def serve_ns(self) -> int:
        return self.ttl_ms * 800_000

    @property
    def renew_after_ns(self) -> int:
        return self.serve_ns - min(max(self.renew_before_ms * 1_000_000, self.serve_ns // 3), self.serve_ns * 2 // 3)


def takeover_ns(ttl_ms: int) -> int:
    """How long a competitor waits from when it first saw the newest grant or renewal."""
    return ttl_ms * 950_000


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The part of the rooted state that decides about the lease."""

    revision: int
    era: int
    lease: Lease | None
    sealed: SealedEra | None
    id_fence: int
    tso_fence: int

    @classmethod
    def of(cls, state: RootState) -> LeaseView:
        return cls(state.last.revision, state.era, state.lease, state.sealed, state.id_fence, state.tso_fence)


class StepKind(Enum):
    CAMPAIGN = "campaign"
    CONFIRM = "confirm"
    CLOSE = "close"
    RENEW = "renew"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class LeaseStep:
    kind: StepKind
    era: int
    events: tuple[RootEvent, ...]
    expected_revision: int = 0


class LeaseCompetitor:
    """One process's part in the competition. All times are its own monotonic clock in nanoseconds.

    `take_over_own`: a lease of the same coordinator id but another incarnation need not be waited out. Only right if
    something else proves that the other process is dead (the exclusive lock of a work directory).
    """

    __slots__ = (
        "_deadline_ns",
        "_era",
        "_released",
        "_renew_at_ns",
        "_seen_at_ns",
        "_seen_revision",
        "_view",
        "address",
        "coordinator_id",
        "incarnation",
        "take_over_own",
        "terms",
    )

    def __init__(
        self,
        coordinator_id: str,
        address: str,
        incarnation: str,
        terms: LeaseTerms,
        *,
        take_over_own: bool = False,
    ) -> None:
        self.coordinator_id = coordinator_id
        self.address = address
        self.incarnation = incarnation
        self.terms = terms
        self.take_over_own = take_over_own
        self._view: LeaseView | None = None
        self._seen_revision = 0
        self._seen_at_ns = 0
        self._era = 0  # the era that we campaigned for last
        self._deadline_ns = 0  # we serve `_era` up to here, exclusively
        self._renew_at_ns = 0
        self._released = False

    # -- news ---------------------------------------------------------------------------------------------------------
    def observe(self, view: LeaseView, now_ns: int) -> None:
        """What the log says. Older news than what is known is ignored."""
        if self._view is not None and view.revision < self._view.revision:
            return
        self._view = view
        if view.lease is not None and view.lease.revision != self._seen_revision:
            self._seen_revision = view.lease.revision
            self._seen_at_ns = now_ns

    @property
    def view(self) -> LeaseView | None:
        return self._view

    def _mine(self) -> Lease | None:
        """The open lease, if it is this process's."""
        lease = self._view.lease if self._view is not None else None
        if lease is None or (lease.holder, lease.incarnation) != (self.coordinator_id, self.incarnation):
            return None
        return lease

    def serving(self, now_ns: int) -> int:
        """The era that this process may serve at `now_ns`, or 0. Read the clock once, ask, then hand out."""
        lease = self._mine()
        if lease is None or not lease.confirmed or lease.released or self._released or lease.era != self._era:
            return 0
        return self._era if now_ns < self._deadline_ns else 0

    def serving_for_ns(self, now_ns: int) -> int:
        return max(0, self._deadline_ns - now_ns) if self.serving(now_ns) else 0

    # -- the next step ------------------------------------------------------------------------------------------------
    def decide(self, now_ns: int, now_ms: int, *, id_start: int = 1, tso_start: int = 1) -> LeaseStep | None:
        """`id_start`, `tso_start`: where a new era begins at least. `now_ms` is only written down, for people."""
        view = self._view
        if view is None or self._released:
            return None
        lease = view.lease
        until_ms = now_ms + self.terms.ttl_ms
        if lease is None or self._may_take(lease, now_ns):
            events: list[RootEvent] = []
            if lease is not None:
                events.append(LeaseSealed(lease.era, view.id_fence, view.tso_fence))
            era = view.era + 1
            events.append(
                LeaseGranted(self.coordinator_id, self.address, era, self.terms.ttl_ms, until_ms, self.incarnation)
            )
            return LeaseStep(StepKind.CAMPAIGN, era, tuple(events), view.revision)
        if self._mine() is None or lease.era != self._era:
            return None
        if not lease.confirmed:
            confirmed = HandoffConfirmed(
                self.coordinator_id, lease.era, max(view.id_fence, id_start), max(view.tso_fence, tso_start)
            )
            return LeaseStep(StepKind.CONFIRM, lease.era, (confirmed,))
        if view.sealed is not None:
            closing: list[RootEvent] = [HandoffClosed(self.coordinator_id, lease.era)]
            if view.sealed.unended_era:  # our predecessor died on its way in: end its hand-over with ours
                closing.insert(0, HandoffReattached(self.coordinator_id, lease.era))
            return LeaseStep(StepKind.CLOSE, lease.era, tuple(closing))
        if now_ns >= self._renew_at_ns:
            renewed = LeaseRenewed(self.coordinator_id, lease.era, self.terms.ttl_ms, until_ms)
            return LeaseStep(StepKind.RENEW, lease.era, (renewed,))
        return None

    def _may_take(self, lease: Lease, now_ns: int) -> bool:
        if self._mine() is not None and lease.era == self._era:
            return lease.released
        if lease.released:
            return True
        if self.take_over_own and lease.holder == self.coordinator_id:
            return True
        return now_ns >= self._seen_at_ns + takeover_ns(lease.lease_ttl_ms)

    def wake_at_ns(self, now_ns: int) -> int:
        """When `decide` may have something to say although nothing was observed meanwhile."""
        lease = self._view.lease if self._view is not None else None
        if lease is None:
            return now_ns
        if self._mine() is not None:
            return self._renew_at_ns
        return self._seen_at_ns + takeover_ns(lease.lease_ttl_ms)

    def release(self) -> LeaseStep | None:
        """Stop serving for good, at once; the step tells the others that they need not wait."""
        self._released = True
        lease = self._mine()
        if lease is None or lease.era != self._era:
            return None
        return LeaseStep(StepKind.RELEASE, lease.era, (LeaseReleased(self.coordinator_id, lease.era),))

    # -- what became of a step ----------------------------------------------------------------------------------------
    def sent(self, step: LeaseStep, now_ns: int) -> None:
        """Call before the append goes out. A grant whose answer is lost may still turn out to be ours: what counts then
        is when we first asked."""
        if step.kind is StepKind.CAMPAIGN and step.era != self._era:
            self._era = step.era
            self._extend(now_ns)

    def acknowledged(self, step: LeaseStep, sent_ns: int) -> None:
        """The log has it. For a renewal this is what extends our time; everything else follows from `observe`."""
        if step.kind is StepKind.RENEW and step.era == self._era:
            self._extend(sent_ns)

    def _extend(self, sent_ns: int) -> None:
        self._deadline_ns = sent_ns + self.terms.serve_ns
        self._renew_at_ns = sent_ns + self.terms.renew_after_ns
