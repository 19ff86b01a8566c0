"""Do the four guarantees of the lease hold in what the rooted log keeps? And is the state what the log folds to?

Pure, and on purpose not built on `state.py`: an audit that asked the code that accepted the events would agree with
it. It walks the records once and remembers which era is open, what was fenced and which hand-over has not ended. A log
whose beginning is no longer kept is audited from the first thing that it says about the lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from nokv.errors import InvariantError
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
    HandoffReattached,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    RootRecord,
)
from nokv.metaroot.state import RootState, fold

__all__ = ["GUARANTEES", "Audit", "Verification", "audit", "verify"]

GUARANTEES = {
    "primacy": "one era is open at a time",
    "inheritance": "each era starts at or above what was handed out before it, and no fence goes back",
    "silence": "a sealed era does nothing any more",
    "finality": "every hand-over but the newest has ended",
}


_ACTS = AllocatorFenced | HandoffConfirmed | HandoffClosed | HandoffReattached | LeaseRenewed | LeaseReleased


@dataclass(slots=True)
class Audit:
    """`problems`: what was seen against each guarantee, with the revision. `complete`: from the first event on."""

    problems: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in GUARANTEES})
    complete: bool = True
    first_revision: int = 0
    last_revision: int = 0
    events: int = 0
    folded: int = 0  # superseded fences and renewals that are no longer kept
    eras: int = 0
    handovers: int = 0
    open_handover: int = 0  # the era that is taking over now, or 0

    @property
    def holds(self) -> bool:
        return not any(self.problems.values())


def audit(records: Iterable[RootRecord]) -> Audit:
    result = Audit()
    open_era: int | None = None  # None: not known yet; 0: none is open
    confirmed = True
    sealed = 0
    taking_over = 0  # granted after a seal, not closed yet
    unended = reattached = False  # a successor was sealed before it closed its hand-over; the next one took it up
    fences = {Allocator.ID: 0, Allocator.TSO: 0}

    def problem(guarantee: str, text: str) -> None:
        result.problems[guarantee].append(f"revision {revision}: {text}")

    for record in records:
        revision, event = record.token.revision, record.event
        if not result.events:
            result.first_revision = revision
            result.complete = revision - record.folded == 1
            open_era = 0 if result.complete else None
        elif revision - record.folded != result.last_revision + 1:
            raise InvariantError(f"revision {revision} follows {result.last_revision}: the log has a gap")
        result.events += 1
        result.folded += record.folded
        result.last_revision = revision
        match event:
            case LeaseGranted():
                if open_era:
                    problem("primacy", f"era {event.era} is granted while era {open_era} is open")
                if sealed and event.era != sealed + 1:
                    problem("primacy", f"era {event.era} follows era {sealed}")
                if taking_over and sealed != taking_over:
                    problem("finality", f"the hand-over into era {taking_over} has not ended, era {event.era} begins")
                open_era, confirmed = event.era, False
                taking_over = event.era if sealed else 0
                reattached = False
                result.eras += 1
                result.handovers += bool(sealed)
            case LeaseSealed():
                if open_era not in (None, event.era):
                    problem("silence", f"era {event.era} is sealed, open is {open_era or 'none'}")
                if event.id_frontier < fences[Allocator.ID] or event.tso_frontier < fences[Allocator.TSO]:
                    problem("inheritance", f"the seal of era {event.era} covers less than it fenced")
                open_era, sealed = 0, max(sealed, event.era)
                unended = unended or taking_over == event.era
                fences = {Allocator.ID: event.id_frontier, Allocator.TSO: event.tso_frontier}
            case HandoffConfirmed():
                if event.id_frontier < fences[Allocator.ID] or event.tso_frontier < fences[Allocator.TSO]:
                    problem("inheritance", f"era {event.era} starts below what was handed out before it")
                fences = {Allocator.ID: event.id_frontier, Allocator.TSO: event.tso_frontier}
            case AllocatorFenced():
                if event.fence < fences[event.allocator]:
                    problem("inheritance", f"the {event.allocator.value} fence goes back to {event.fence}")
                fences[event.allocator] = event.fence
        if isinstance(event, _ACTS):
            if open_era is None and event.era > sealed:
                open_era = event.era
            if event.era != open_era:
                problem("silence", f"era {event.era} acts, open is {open_era or 'none'}")
            if isinstance(event, HandoffConfirmed):
                confirmed = True
            elif isinstance(event, AllocatorFenced) and not confirmed:
                problem("silence", f"era {event.era} fences before it has confirmed")
            elif isinstance(event, HandoffClosed):
                if not confirmed:
                    problem("finality", f"era {event.era} closes a hand-over that it has not confirmed")
                if unended and not reattached:
                    problem("finality", f"era {event.era} closes, and forgets the hand-over that was open before it")
                taking_over, unended = 0, False
            elif isinstance(event, HandoffReattached):
                reattached = True
    result.open_handover = taking_over
    return result


@dataclass(slots=True)
class Verification:
    """`differences`: the fields in which the state is not what the log folds to."""

    revision: int
    events: int
    differences: list[str]


def verify(records: Iterable[RootRecord], state: RootState) -> Verification:
    """state == fold(log), for a log that is kept from its beginning. Raises InvariantError if it does not fold."""
    kept = list(records)
    folded = fold(kept)
    differences = [f.name for f in fields(RootState) if f.compare and getattr(folded, f.name) != getattr(state, f.name)]
    return Verification(state.last.revision, len(kept), differences)
