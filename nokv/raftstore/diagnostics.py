"""What the execution plane says about itself: admissions, topology transitions, restart posture (EX-01 to EX-05).

Owns: bounded, in-memory records of what was decided. No decision reads them. One thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from nokv.env import Clock

__all__ = [
    "Admission",
    "AdmissionKind",
    "AdmissionOutcome",
    "Diagnostics",
    "PublishState",
    "RestartPosture",
    "Topology",
    "TopologyOutcome",
]

TOPOLOGY_MAX = 256
"""Transitions remembered; the oldest is forgotten first."""


class AdmissionKind(Enum):
    READ = "read"
    WRITE = "write"
    TOPOLOGY = "topology"


class AdmissionOutcome(Enum):
    ACCEPTED = "accepted"
    INVALID = "invalid"
    STORE_NOT_MATCH = "store-not-match"
    NOT_HOSTED = "not-hosted"
    EPOCH_MISMATCH = "epoch-mismatch"
    KEY_NOT_IN_REGION = "key-not-in-region"
    NOT_LEADER = "not-leader"
    CANCELED = "canceled"
    TIMED_OUT = "timed-out"
    QUEUE_SATURATED = "queue-saturated"


class TopologyOutcome(Enum):
    REJECTED = "rejected"
    QUEUED = "queued"
    PROPOSED = "proposed"
    APPLIED = "applied"
    FAILED = "failed"


class PublishState(Enum):
    NOT_REQUIRED = "not-required"
    PLANNED_PUBLISHED = "planned-published"
    TERMINAL_PENDING = "terminal-pending"
    TERMINAL_PUBLISHED = "terminal-published"
    TERMINAL_FAILED = "terminal-failed"
    BLOCKED = "blocked"


@dataclass(slots=True)
class Admission:
    kind: AdmissionKind
    outcome: AdmissionOutcome
    region_id: int
    time_ms: int
    detail: str = ""


@dataclass(slots=True)
class Topology:
    transition_id: str
    kind: str
    region_id: int
    outcome: TopologyOutcome
    publish: PublishState
    detail: str = ""
    time_ms: int = 0
    publish_attempts: int = 0


@dataclass(slots=True)
class RestartPosture:
    """How the store came back: from `localmeta` and the raft log alone."""

    region_count: int = 0
    raft_group_count: int = 0
    missing_raft_pointers: list[int] = field(default_factory=list)

    @property
    def state(self) -> str:
        return "degraded" if self.missing_raft_pointers else "ready"


class Diagnostics:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last_admission: dict[AdmissionKind, Admission] = {}
        self.last_refusal: dict[AdmissionKind, Admission] = {}
        self.admissions: dict[tuple[AdmissionKind, AdmissionOutcome], int] = {}
        self.topology: OrderedDict[str, Topology] = OrderedDict()
        self.restart = RestartPosture()

    def admit(self, kind: AdmissionKind, outcome: AdmissionOutcome, region_id: int, detail: str = "") -> None:
        admission = Admission(kind, outcome, region_id, self._clock.time_ms(), detail)
        self.last_admission[kind] = admission
        if outcome is not AdmissionOutcome.ACCEPTED:
            self.last_refusal[kind] = admission
        key = (kind, outcome)
        self.admissions[key] = self.admissions.get(key, 0) + 1

    def transition(
        self,
        transition_id: str,
        *,
        kind: str = "",
        region_id: int = 0,
        outcome: TopologyOutcome | None = None,
        publish: PublishState | None = None,
        detail: str | None = None,
        attempts: int = 0,
    ) -> Topology:
        """Create or update the record of one transition; what is None stays as it is."""
        found = self.topology.get(transition_id)
        if found is None:
            found = Topology(transition_id, kind, region_id, TopologyOutcome.QUEUED, PublishState.NOT_REQUIRED)
            self.topology[transition_id] = found
            while len(self.topology) > TOPOLOGY_MAX:
                self.topology.popitem(last=False)
        found.kind = kind or found.kind
        found.outcome = outcome or found.outcome
        found.publish = publish or found.publish
        found.detail = found.detail if detail is None else detail
        found.publish_attempts += attempts
        found.time_ms = self._clock.time_ms()
        return found
