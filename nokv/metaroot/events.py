"""The typed events of the rooted log: one small frozen class per kind, and the record that the log makes of each.

Pure. No encoding here: `wire.py` turns these into bytes (docs/formats/root_event.md). An event says what its author
wants to become true; the log gives it a place (`RootToken`) once a quorum has it and `state.py` has accepted it.
Times are for people who read the log: no decision depends on `time_ms` or `lease_until_ms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from nokv.region import Peer, Region, Store

__all__ = [
    "NO_TOKEN",
    "Allocator",
    "AllocatorFenced",
    "EventKind",
    "HandoffClosed",
    "HandoffConfirmed",
    "HandoffReattached",
    "LeaseGranted",
    "LeaseReleased",
    "LeaseRenewed",
    "LeaseSealed",
    "PeerAdded",
    "PeerAdditionCancelled",
    "PeerAdditionPlanned",
    "PeerRemovalCancelled",
    "PeerRemovalPlanned",
    "PeerRemoved",
    "RegionBootstrapped",
    "RegionMergeCancelled",
    "RegionMergeCommitted",
    "RegionMergePlanned",
    "RegionPublished",
    "RegionSplitCancelled",
    "RegionSplitCommitted",
    "RegionSplitPlanned",
    "RegionTombstoned",
    "RootEvent",
    "RootRecord",
    "RootToken",
    "StoreJoined",
    "StoreLeft",
    "TransitionPhase",
    "addition_id",
    "event_kind",
    "merge_id",
    "removal_id",
    "split_id",
]


class EventKind(IntEnum):
    """Numbers are stored: they never change meaning."""

    STORE_JOINED = 1
    STORE_LEFT = 2
    ALLOCATOR_FENCED = 3
    REGION_BOOTSTRAPPED = 10
    REGION_PUBLISHED = 11
    REGION_TOMBSTONED = 12
    PEER_ADDITION_PLANNED = 20
    PEER_ADDED = 21
    PEER_ADDITION_CANCELLED = 22
    PEER_REMOVAL_PLANNED = 23
    PEER_REMOVED = 24
    PEER_REMOVAL_CANCELLED = 25
    SPLIT_PLANNED = 30
    SPLIT_COMMITTED = 31
    SPLIT_CANCELLED = 32
    MERGE_PLANNED = 33
    MERGE_COMMITTED = 34
    MERGE_CANCELLED = 35
    LEASE_GRANTED = 40
    LEASE_RENEWED = 41
    LEASE_RELEASED = 42
    LEASE_SEALED = 43
    HANDOFF_CONFIRMED = 44
    HANDOFF_CLOSED = 45
    HANDOFF_REATTACHED = 46


class Allocator(Enum):
    ID = "id"
    TSO = "tso"


class TransitionPhase(Enum):
    """Where a planned change stands. A change ends exactly once. `ADMITTED` is a view, never in the truth."""

    PLANNED = "planned"
    ADMITTED = "admitted"  # the region's leader reports it as done; the terminal event is on its way
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # by its author
    CONFLICTED = "conflicted"  # the region used the very epoch that the plan aimed at for another change
    SUPERSEDED = "superseded"  # the region is past the epoch that the plan aimed at
    ABORTED = "aborted"  # the region is gone


@dataclass(frozen=True, slots=True, order=True)
class RootToken:
    """A place in the rooted log. Revisions are dense (1, 2, 3, ...) and alone decide the order; `term` and `index`
    name the Raft entry that carried the event. Revision 0 is the empty log."""

    revision: int = 0
    term: int = 0
    index: int = 0


NO_TOKEN = RootToken()


# -- stores -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class StoreJoined:
    """A store registers, or an existing one moves to another address."""

    store: Store


@dataclass(frozen=True, slots=True)
class StoreLeft:
    """A store is gone for good. Its id is never used again."""

    store_id: int


# -- allocators -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AllocatorFenced:
    """The holder of `era` may hand out values below `fence`; whoever comes after starts at `fence`."""

    allocator: Allocator
    fence: int
    era: int


# -- regions ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class RegionBootstrapped:
    """The first descriptor of a region over a range that no region covers yet."""

    region: Region


@dataclass(frozen=True, slots=True)
class RegionPublished:
    """A newer descriptor of a known region: what its own Raft log has made of it."""

    region: Region


@dataclass(frozen=True, slots=True)
class RegionTombstoned:
    """The region is gone; its range is free. `region` carries the last descriptor."""

    region: Region


@dataclass(frozen=True, slots=True)
class PeerAdditionPlanned:
    """`target` is the descriptor that the change would lead to. A learner that becomes a voter is an addition too."""

    transition_id: str
    peer: Peer
    target: Region


@dataclass(frozen=True, slots=True)
class PeerAdded:
    """Terminal: the region's Raft log applied the change; `region` is the descriptor after it."""

    transition_id: str
    peer: Peer
    region: Region


@dataclass(frozen=True, slots=True)
class PeerAdditionCancelled:
    transition_id: str
    region_id: int


@dataclass(frozen=True, slots=True)
class PeerRemovalPlanned:
    transition_id: str
    peer: Peer
    target: Region


@dataclass(frozen=True, slots=True)
class PeerRemoved:
    """Terminal: the region's Raft log applied the change; `region` is the descriptor after it."""

    transition_id: str
    peer: Peer
    region: Region


@dataclass(frozen=True, slots=True)
class PeerRemovalCancelled:
    transition_id: str
    region_id: int


@dataclass(frozen=True, slots=True)
class RegionSplitPlanned:
    """`parent` keeps its id and one part of its range; `child` is new and gets the rest."""

    transition_id: str
    parent: Region
    child: Region


@dataclass(frozen=True, slots=True)
class RegionSplitCommitted:
    """Terminal: the parent's Raft log applied the split; both descriptors as they are after it."""

    transition_id: str
    parent: Region
    child: Region


@dataclass(frozen=True, slots=True)
class RegionSplitCancelled:
    transition_id: str
    region_id: int


@dataclass(frozen=True, slots=True)
class RegionMergePlanned:
    """`target` is the descriptor that would cover both ranges; `source` is the neighbour that would be gone."""

    transition_id: str
    target: Region
    source: Region


@dataclass(frozen=True, slots=True)
class RegionMergeCommitted:
    """Terminal: the target's Raft log applied the merge. `source` is gone; its id is never used again."""

    transition_id: str
    target: Region
    source: Region


@dataclass(frozen=True, slots=True)
class RegionMergeCancelled:
    """`region_id` is the target's."""

    transition_id: str
    region_id: int


# -- the coordinator's lease ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """Opens an era for `holder`. The era before it must be sealed. The holder serves nothing until it has confirmed.

    `incarnation` tells one process of that name from another: an era belongs to exactly one process.
    """

    holder: str
    address: str
    era: int
    lease_ttl_ms: int
    lease_until_ms: int = 0
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    holder: str
    era: int
    lease_ttl_ms: int
    lease_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """The holder has stopped serving of its own will: nobody needs to wait for the lease to run out."""

    holder: str
    era: int


@dataclass(frozen=True, slots=True)
class LeaseSealed:
    """Ends an era. Every value it handed out lies below the frontiers; it can fence nothing any more."""

    era: int
    id_frontier: int
    tso_frontier: int


@dataclass(frozen=True, slots=True)
class HandoffConfirmed:
    """The successor states the frontiers that it starts from. They cover the sealed era's. From here it serves."""

    holder: str
    era: int
    id_frontier: int
    tso_frontier: int


@dataclass(frozen=True, slots=True)
class HandoffClosed:
    """The hand-over into `era` is finished; the sealed predecessor is history."""

    holder: str
    era: int


@dataclass(frozen=True, slots=True)
class HandoffReattached:
    """The sealed predecessor had itself not ended the hand-over that it was part of: `era` takes that one up too, and
    ends both with its `HandoffClosed`."""

    holder: str
    era: int


RootEvent = (
    StoreJoined
    | StoreLeft
    | AllocatorFenced
    | RegionBootstrapped
    | RegionPublished
    | RegionTombstoned
    | PeerAdditionPlanned
    | PeerAdded
    | PeerAdditionCancelled
    | PeerRemovalPlanned
    | PeerRemoved
    | PeerRemovalCancelled
    | RegionSplitPlanned
    | RegionSplitCommitted
    | RegionSplitCancelled
    | RegionMergePlanned
    | RegionMergeCommitted
    | RegionMergeCancelled
    | LeaseGranted
    | LeaseRenewed
    | LeaseReleased
    | LeaseSealed
    | HandoffConfirmed
    | HandoffClosed
    | HandoffReattached
)

_KINDS: dict[type, EventKind] = {
    StoreJoined: EventKind.STORE_JOINED,
    StoreLeft: EventKind.STORE_LEFT,
    AllocatorFenced: EventKind.ALLOCATOR_FENCED,
    RegionBootstrapped: EventKind.REGION_BOOTSTRAPPED,
    RegionPublished: EventKind.REGION_PUBLISHED,
    RegionTombstoned: EventKind.REGION_TOMBSTONED,
    PeerAdditionPlanned: EventKind.PEER_ADDITION_PLANNED,
    PeerAdded: EventKind.PEER_ADDED,
    PeerAdditionCancelled: EventKind.PEER_ADDITION_CANCELLED,
    PeerRemovalPlanned: EventKind.PEER_REMOVAL_PLANNED,
    PeerRemoved: EventKind.PEER_REMOVED,
    PeerRemovalCancelled: EventKind.PEER_REMOVAL_CANCELLED,
    RegionSplitPlanned: EventKind.SPLIT_PLANNED,
    RegionSplitCommitted: EventKind.SPLIT_COMMITTED,
    RegionSplitCancelled: EventKind.SPLIT_CANCELLED,
    RegionMergePlanned: EventKind.MERGE_PLANNED,
    RegionMergeCommitted: EventKind.MERGE_COMMITTED,
    RegionMergeCancelled: EventKind.MERGE_CANCELLED,
    LeaseGranted: EventKind.LEASE_GRANTED,
    LeaseRenewed: EventKind.LEASE_RENEWED,
    LeaseReleased: EventKind.LEASE_RELEASED,
    LeaseSealed: EventKind.LEASE_SEALED,
    HandoffConfirmed: EventKind.HANDOFF_CONFIRMED,
    HandoffClosed: EventKind.HANDOFF_CLOSED,
    HandoffReattached: EventKind.HANDOFF_REATTACHED,
}
assert set(_KINDS.values()) == set(EventKind)


def event_kind(event: RootEvent) -> EventKind:
    return _KINDS[type(event)]


@dataclass(frozen=True, slots=True)
class RootRecord:
    """A committed event: what it says, where it lies in the log, who wrote it and when (by the author's wall clock).

    `folded`: so many records directly before this one are no longer kept, each a fence or renewal that a later one of
    the same era made meaningless (retention.py). The last of a log is never folded away.
    """

    token: RootToken
    event: RootEvent
    time_ms: int = 0
    author: str = ""
    folded: int = 0

    @property
    def kind(self) -> EventKind:
        return _KINDS[type(self.event)]


def addition_id(region: Region, peer: Peer) -> str:
    """The name of the change that adds `peer` to (or promotes it in) `region` as it is now: the same every time one
    asks."""
    return f"add-peer/{region.region_id}/{peer.peer_id}/{peer.role.value}/{region.epoch.conf_version}"


def removal_id(region: Region, peer: Peer) -> str:
    """The name of the change that removes `peer` from `region` as it is now."""
    return f"remove-peer/{region.region_id}/{peer.peer_id}/{region.epoch.conf_version}"


def split_id(region: Region, split_key: bytes) -> str:
    """The name of the split of `region` as it is now at `split_key`."""
    return f"split/{region.region_id}/{region.epoch.version}/{split_key.hex()[:512]}"


def merge_id(target: Region, source: Region) -> str:
    """The name of the merge of `source` into `target` as they are now."""
    return f"merge/{target.region_id}/{source.region_id}/{target.epoch.version}/{source.epoch.version}"
