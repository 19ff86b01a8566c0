"""What must hold in the control plane, whatever happens to it. Pure: told what is seen, it says what is wrong.

log                one event a revision, on every replica and for ever; `state == fold(log)`
acknowledged       an event acknowledged with a token stands in the log at or before it
ids, timestamps    each once; below the fence that the log has; a request after an acknowledged one gets larger ones
lease              values come from one era after the other; at most one coordinator serves; the log passes its audit
tails              tokens never go back, no event is skipped
routes             what the truth was at the revision they name, and as fresh as was asked
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Sequence
from dataclasses import fields, replace

from nokv.coordinator.view import Route
from nokv.metaroot.audit import audit
from nokv.metaroot.events import EventKind, RootEvent, RootRecord, RootToken, event_kind
from nokv.metaroot.state import RootState
from nokv.testing.sim.values import Violation

__all__ = ["Checker", "TailChecker"]


FOLDABLE = frozenset({EventKind.ALLOCATOR_FENCED, EventKind.LEASE_RENEWED})
"""What a later event of the same kind may make meaningless."""


class Values:
    """Ids or timestamps: who was promised which."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.starts: list[int] = []  # of ranges handed out, in order
        self.ends: list[int] = []
        self.acknowledged = 0  # the largest one that a client has
        self.era = 0
        self.count = 0

    def handed_out(self, first: int, count: int, era: int, fence: int, who: str) -> None:
        last = first + count - 1
        if era < self.era:
            raise Violation(f"{who} hands out {self.what} {first} in era {era}, after era {self.era} has begun to")
        self.era = era
        if last >= fence:
            raise Violation(f"{who} hands out {self.what} {first}+{count}, and the log is fenced at {fence}")
        where = bisect.bisect_right(self.starts, first)
        if (where and self.ends[where - 1] >= first) or (where < len(self.starts) and self.starts[where] <= last):
            raise Violation(f"{who} hands out {self.what} {first}+{count} a second time")
        self.starts.insert(where, first)
        self.ends.insert(where, last)
        self.count += count

    def received(self, first: int, count: int, floor: int) -> None:
        """`floor`: `acknowledged` when the request was sent."""
        if first <= floor:
            raise Violation(f"{self.what} {first} was asked for after {floor} had been received")
        self.acknowledged = max(self.acknowledged, first + count - 1)


class Checker:
    """The one log that all replicas agree on, folded as it grows."""

    def __init__(self) -> None:
        self.trace = 0
        self.state = RootState()
        self.records: list[RootRecord] = []
        self.where: dict[RootEvent, int] = {}  # an event's newest revision
        self.regions: dict[int, tuple[list[int], list[object]]] = {}  # region -> revisions, descriptor at each
        self.digests: dict[int, int] = {}
        self.ids = Values("id")
        self.timestamps = Values("timestamp")
        self.acknowledged_revision = 0
        self.served_by: str = ""

    def note(self, *what: object) -> None:
        self.trace = zlib.crc32(repr(what).encode(), self.trace)

    # -- the log ------------------------------------------------------------------------------------------------------
    def applied(self, who: str, records: Sequence[RootRecord], state: RootState) -> None:
        """`who` has folded these records, and its state is this."""
        for record in records:
            revision = record.token.revision
            if revision <= len(self.records):
                if self.records[revision - 1] != record:
                    raise Violation(
                        f"{who} has {record} at revision {revision}, others had {self.records[revision - 1]}"
                    )
                continue
            if revision != len(self.records) + 1:
                raise Violation(f"{who} folds revision {revision}; the log ended at {len(self.records)}")
            self._append(record)
        digest = _digest(state)
        known = self.digests.setdefault(state.last.revision, digest)
        if known != digest:
            raise Violation(f"the state of {who} at revision {state.last.revision} is not the others'")

    def _append(self, record: RootRecord) -> None:
        revision = record.token.revision
        self.records.append(record)
        self.where[record.event] = revision
        self.state.replay(record)
        self.note(revision, record.event)
        for region_id, region in self.state.regions.items():
            revisions, descriptors = self.regions.setdefault(region_id, ([], []))
            if not descriptors or descriptors[-1] is not region:
                revisions.append(revision)
                descriptors.append(region)

    def is_fold(self, who: str, state: RootState) -> None:
        """`state == fold(log)`, in full."""
        if state.last.revision > len(self.records):
            raise Violation(f"{who} is at revision {state.last.revision}; the log ends at {len(self.records)}")
        if state.last.revision == len(self.records):
            folded = self.state
        else:
            folded = RootState()
            for record in self.records[: state.last.revision]:
                folded.replay(record)
        if folded != state:
            raise Violation(
                f"the state of {who} at revision {state.last.revision} is not the fold of the log: "
                f"{_difference(folded, state)}"
            )

    def acknowledged(self, event: RootEvent, token: RootToken, new: bool) -> None:
        revision = self.where.get(event)
        if revision is None:
            raise Violation(f"{event} was acknowledged at {token} and is not in the log")
        if new and revision != token.revision and self.records[token.revision - 1].event != event:
            raise Violation(f"{event} was acknowledged at {token}, and stands at revision {revision}")
        self.acknowledged_revision = max(self.acknowledged_revision, token.revision)

    # -- the lease ----------------------------------------------------------------------------------------------------
    def serving(self, holders: Sequence[tuple[str, int]]) -> None:
        """(coordinator, era) of each that would serve now."""
        if len(holders) > 1:
            raise Violation(f"more than one era is served: {', '.join(f'{who}: {era}' for who, era in holders)}")
        if holders and holders[0][1] != self.state.era:
            sealed_by = f"era {self.state.era} was granted already"
            raise Violation(f"{holders[0][0]} serves era {holders[0][1]}, and {sealed_by}")

    def audit(self) -> None:
        found = audit(self.records)
        if not found.holds:
            raise Violation(f"the log fails its audit: {found.problems}")

    # -- routes -------------------------------------------------------------------------------------------------------
    def route(self, who: str, region_id: int, route: Route, served: int, at_least: int) -> None:
        if served < at_least:
            raise Violation(f"{who} answers at revision {served}, asked for {at_least}")
        if served > len(self.records):
            raise Violation(f"{who} claims to show revision {served}; the log ends at {len(self.records)}")
        revisions, descriptors = self.regions[region_id]
        at = bisect.bisect_right(revisions, served) - 1
        expected = descriptors[at] if at >= 0 else None
        if route.region != expected:
            raise Violation(f"{who} shows {route.region} at revision {served}; the truth was {expected}")


class TailChecker:
    """One subscription (it may reconnect): what comes must follow on what came."""

    def __init__(self, who: str, checker: Checker) -> None:
        self.who = who
        self.revision = 0
        self._checker = checker

    def update(self, records: Sequence[RootRecord], state: RootState | None) -> None:
        if state is not None:
            if state.last.revision < self.revision:
                raise Violation(f"{self.who}: the tail went back from {self.revision} to {state.last.revision}")
            self._checker.is_fold(self.who, state)
            self.revision = state.last.revision
        for record in records:
            revision = record.token.revision
            log = self._checker.records
            if not revision - record.folded - 1 <= self.revision < revision <= len(log):
                raise Violation(f"{self.who}: the tail went from {self.revision} to {revision}")
            for skipped in log[self.revision : revision - 1]:
                if event_kind(skipped.event) not in FOLDABLE:
                    raise Violation(f"{self.who}: the tail left out {skipped}")
            if log[revision - 1] != replace(record, folded=0):
                raise Violation(f"{self.who}: the tail tells {record}, the log {log[revision - 1]}")
            self.revision = revision


def _difference(expected: RootState, found: RootState) -> str:
    for field in fields(RootState):
        if field.compare and getattr(expected, field.name) != getattr(found, field.name):
            return f"{field.name} is {getattr(found, field.name)}, not {getattr(expected, field.name)}"
    return "nothing that shows"


def _digest(state: RootState) -> int:
    """Cheap, and of what decides: the full comparison is made now and then."""
    return hash(
        (
            state.last,
            state.cluster_epoch,
            state.membership_epoch,
            state.id_fence,
            state.tso_fence,
            state.era,
            state.lease,
            state.sealed,
            len(state.finished),
            tuple(sorted(state.regions.items())),
            tuple(sorted(state.pending.items())),
        )
    )
