"""The truth: a state that folds the rooted log. `state == fold(log)`, always.

Pure. `RootState.apply` takes a batch as it came out of the log and either accepts all of it or changes nothing and
raises. Every replica runs the same code on the same entries, so all of them accept and refuse alike. An event that is
true already is not an error and takes no revision: that is what makes a repeated append harmless.

The lease, as a life of eras (docs/rooted_truth.md):

    granted(n) -> confirmed(n) -> renewed(n)* -> [released(n)] -> sealed(n)
               -> granted(n+1) -> confirmed(n+1) -> closed(n+1)

    primacy       an era is granted only when the one before it is sealed
    inheritance   a successor confirms with frontiers that cover the sealed ones; allocators never go back
    silence       a sealed era can fence nothing any more
    finality      a hand-over ends by `closed`; one that a dead successor left open is reattached to the next one, and
                  closed with its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from nokv.errors import EpochNotMatch, InvariantError, NotFound, PreconditionFailed, UsageError
from nokv.metaroot.changes import (
    FINISHED_MAX,
    FinishedTransition,
    PendingPeerChange,
    PendingRangeChange,
    check_effect,
    covers,
    has_effect,
    overtaken,
    union,
)
from nokv.metaroot.events import (
    NO_TOKEN,
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
    HandoffReattached,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    PeerAdded,
    PeerAdditionCancelled,
    PeerAdditionPlanned,
    PeerRemovalCancelled,
    PeerRemovalPlanned,
    PeerRemoved,
    RegionBootstrapped,
    RegionMergeCancelled,
    RegionMergeCommitted,
    RegionMergePlanned,
    RegionPublished,
    RegionSplitCancelled,
    RegionSplitCommitted,
    RegionSplitPlanned,
    RegionTombstoned,
    RootEvent,
    RootRecord,
    RootToken,
    StoreJoined,
    StoreLeft,
    TransitionPhase,
)
from nokv.metaroot.ranges import RangeIndex
from nokv.region import Peer, Region, RegionState, Store, StoreState

__all__ = ["Lease", "RootState", "SealedEra", "fold"]

FENCE_LIMIT = 1 << 63
"""No allocator goes beyond this."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The era that is open now. `lease_until_ms` is for people; `lease_ttl_ms` is what a competitor waits out."""

    holder: str
    address: str
    era: int
    lease_ttl_ms: int
    lease_until_ms: int = 0
    confirmed: bool = False
    released: bool = False
    incarnation: str = ""
    revision: int = 0  # of the grant or the newest renewal: a competitor waits from when it first saw this one


@dataclass(frozen=True, slots=True)
class SealedEra:
    """The newest sealed era, until its successor closes the hand-over. `unended_era`: the oldest era whose hand-over it
    should have ended and did not (0: none); the successor has to reattach that one before it closes."""

    holder: str
    era: int
    id_frontier: int
    tso_frontier: int
    unended_era: int = 0
    reattached: bool = False


_ALREADY = False
_NEW = True
_K = TypeVar("_K")
_V = TypeVar("_V")
_Scalars = tuple[RootToken, int, int, int, int, int, "Lease | None", "SealedEra | None"]


@dataclass(slots=True)
class RootState:
    """`regions` holds live regions and tombstones (ids are never used again); `ranges` indexes the live ones."""

    last: RootToken = NO_TOKEN
    cluster_epoch: int = 0  # goes up with every change of regions or their peers
    membership_epoch: int = 0  # goes up with every change of stores
    id_fence: int = 0
    tso_fence: int = 0
    era: int = 0  # the newest era ever granted
    lease: Lease | None = None
    sealed: SealedEra | None = None
    stores: dict[int, Store] = field(default_factory=dict)
    regions: dict[int, Region] = field(default_factory=dict)
    pending: dict[int, PendingPeerChange] = field(default_factory=dict)  # by region
    finished: dict[str, FinishedTransition] = field(default_factory=dict)  # oldest first
    pending_ranges: dict[int, PendingRangeChange] = field(default_factory=dict)  # under both regions' ids
    ranges: RangeIndex = field(init=False, compare=False, repr=False)
    _undo: list[Callable[[], object]] = field(init=False, compare=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        self.ranges = RangeIndex(self.regions)
        if self.regions:
            self.ranges.load([r for r in self.regions.values() if r.state is not RegionState.TOMBSTONE])

    # -- the two entry points -----------------------------------------------------------------------------------------
    def apply(
        self,
        events: Sequence[RootEvent],
        *,
        term: int,
        index: int,
        expected_revision: int = 0,
        time_ms: int = 0,
        author: str = "",
    ) -> list[RootRecord]:
        """Accept the whole batch and return the records of what was new (none: everything was true already), or raise a
        typed error and leave the state as it was. `expected_revision` other than 0 is compare-and-append."""
        before = self._scalars()
        records: list[RootRecord] = []
        revision = self.last.revision
        try:
            for event in events:
                if self._apply(event, revision + 1) is _NEW:
                    revision += 1
                    records.append(RootRecord(RootToken(revision, term, index), event, time_ms, author))
            if records and expected_revision and expected_revision != before[0].revision:
                raise PreconditionFailed(
                    f"the log is at revision {before[0].revision}, not at the expected {expected_revision}",
                    hint="read the state again and decide anew",
                )
        except BaseException:
            self._rollback(before)
            raise
        self._undo.clear()
        if records:
            self.last = records[-1].token
        self._trim()
        return records

    def _trim(self) -> None:
        while len(self.finished) > FINISHED_MAX:
            del self.finished[next(iter(self.finished))]

    def validate(self, events: Sequence[RootEvent], *, expected_revision: int = 0) -> bool:
        """What `apply` would do, without doing it: True if something is new, False if all is true already; or its
        error."""
        before = self._scalars()
        try:
            changed = [self._apply(event, self.last.revision + 1) for event in events]
        finally:
            self._rollback(before)
        if any(changed) and expected_revision and expected_revision != self.last.revision:
            raise PreconditionFailed(f"the log is at revision {self.last.revision}, not at {expected_revision}")
        return any(changed)

    def replay(self, record: RootRecord) -> None:
        """Fold one committed record. It was accepted once, so that a refusal here is our own bug, and the state of no
        use any more."""
        revision, folded = record.token.revision, record.folded
        if not revision - folded - 1 <= self.last.revision < revision:
            raise InvariantError(
                f"committed event {record.token} ({folded} folded) does not follow revision {self.last.revision}"
            )
        try:
            news = self._apply(record.event, revision)
        except (PreconditionFailed, EpochNotMatch, NotFound, UsageError) as error:
            raise InvariantError(f"committed event {record.token} does not fold: {error}") from error
        if not news:
            raise InvariantError(f"committed event {record.token} says nothing new after revision {self.last.revision}")
        self._undo.clear()
        self.last = record.token
        self._trim()

    # -- reads --------------------------------------------------------------------------------------------------------
    def region_by_key(self, key: bytes) -> Region | None:
        return self.ranges.find(key)

    def region(self, region_id: int) -> Region | None:
        """The live region of that id."""
        region = self.regions.get(region_id)
        return None if region is None or region.state is RegionState.TOMBSTONE else region

    def largest_id(self) -> int:
        """The largest id that any store, region or peer has: an allocator starts above it."""
        largest = max(self.stores, default=0)
        for region in self.regions.values():
            largest = max(largest, region.region_id, max((p.peer_id for p in region.peers), default=0))
        for change in self.pending.values():
            largest = max(largest, change.peer.peer_id)
        for planned in self.pending_ranges.values():
            largest = max(largest, planned.other.region_id, max((p.peer_id for p in planned.other.peers), default=0))
        return largest

    def copy(self) -> RootState:
        copied = RootState(
            self.last,
            self.cluster_epoch,
            self.membership_epoch,
            self.id_fence,
            self.tso_fence,
            self.era,
            self.lease,
            self.sealed,
            dict(self.stores),
            {},
            dict(self.pending),
            dict(self.finished),
            dict(self.pending_ranges),
        )
        copied.regions = dict(self.regions)
        copied.ranges = self.ranges.copy(copied.regions)
        return copied

    def summary(self) -> RootState:
        """The same without stores, regions and changes: tokens, epochs, fences, lease and seal."""
        return RootState(
            self.last,
            self.cluster_epoch,
            self.membership_epoch,
            self.id_fence,
            self.tso_fence,
            self.era,
            self.lease,
            self.sealed,
        )

    def check(self) -> None:
        """The state's invariants; tests call this after every step."""
        live = [r for r in self.regions.values() if r.state is not RegionState.TOMBSTONE]
        assert len(self.ranges) == len(live)
        ordered = list(self.ranges.overlapping(b"", b""))
        assert sorted(r.region_id for r in live) == sorted(r.region_id for r in ordered)
        for left, right in pairwise(ordered):
            assert left.end_key, "only the last region may be unbounded"
            assert left.end_key <= right.start_key
        for region_id, change in self.pending.items():
            assert region_id == change.region_id
            assert self.region(region_id) is not None
            assert region_id not in self.pending_ranges
        for region_id, planned in self.pending_ranges.items():
            assert region_id in (planned.target.region_id, planned.other.region_id)
            assert self.pending_ranges[planned.target.region_id] is self.pending_ranges[planned.other.region_id]
            assert self.region(planned.region_id) is not None
            assert (self.region(planned.other.region_id) is not None) is planned.merge
        assert self.lease is None or self.lease.era == self.era
        assert self.era == 0 or self.lease is not None or (self.sealed is not None and self.sealed.era == self.era)
        assert self.sealed is None or self.sealed.era <= self.era
        if self.sealed is not None:
            assert self.sealed.id_frontier <= self.id_fence
            assert self.sealed.tso_frontier <= self.tso_fence
        assert len(self.finished) <= FINISHED_MAX
        assert not self._undo

    # -- one event ----------------------------------------------------------------------------------------------------
    def _apply(self, event: RootEvent, revision: int) -> bool:
        match event:
            case StoreJoined():
                return self._store_joined(event.store)
            case StoreLeft():
                return self._store_left(event.store_id)
            case AllocatorFenced():
                return self._fenced(event)
            case RegionBootstrapped():
                return self._bootstrapped(event.region)
            case RegionPublished():
                return self._published(event.region, revision)
            case RegionTombstoned():
                return self._tombstoned(event.region, revision)
            case PeerAdditionPlanned():
                return self._planned(event.transition_id, event.peer, event.target, removal=False)
            case PeerRemovalPlanned():
                return self._planned(event.transition_id, event.peer, event.target, removal=True)
            case PeerAdded():
                return self._done(event.transition_id, event.peer, event.region, revision, removal=False)
            case PeerRemoved():
                return self._done(event.transition_id, event.peer, event.region, revision, removal=True)
            case PeerAdditionCancelled():
                return self._cancelled(event.transition_id, event.region_id, revision, removal=False)
            case PeerRemovalCancelled():
                return self._cancelled(event.transition_id, event.region_id, revision, removal=True)
            case RegionSplitPlanned():
                return self._split_planned(event)
            case RegionSplitCommitted():
                return self._split_committed(event, revision)
            case RegionSplitCancelled():
                return self._range_cancelled(event.transition_id, event.region_id, revision, merge=False)
            case RegionMergePlanned():
                return self._merge_planned(event)
            case RegionMergeCommitted():
                return self._merge_committed(event, revision)
            case RegionMergeCancelled():
                return self._range_cancelled(event.transition_id, event.region_id, revision, merge=True)
            case LeaseGranted():
                return self._granted(event, revision)
            case LeaseRenewed():
                return self._renewed(event, revision)
            case LeaseReleased():
                return self._released(event)
            case LeaseSealed():
                return self._sealed(event)
            case HandoffConfirmed():
                return self._confirmed(event)
            case HandoffClosed():
                return self._closed(event)
            case HandoffReattached():
                return self._reattached(event)
        raise UsageError(f"not an event of the rooted log: {event!r}")

    # stores
    def _store_joined(self, store: Store) -> bool:
        if store.store_id <= 0:
            raise UsageError("a store id is a positive number")
        if not store.address:
            raise UsageError(f"store {store.store_id} has no address")
        if store.state is not StoreState.UP:
            raise UsageError(f"store {store.store_id} joins as up, not as {store.state.value}")
        known = self.stores.get(store.store_id)
        if known == store:
            return _ALREADY
        if known is not None and known.state is StoreState.TOMBSTONE:
            raise PreconditionFailed(f"store {store.store_id} has left for good; its id is not used again")
        if known is not None and known.state is StoreState.OFFLINE:  # one that is leaving stays so, wherever it moves
            if known.address == store.address:
                return _ALREADY
            store = replace(store, state=StoreState.OFFLINE)
        self._put(self.stores, store.store_id, store)
        self.membership_epoch += 1
        return _NEW

    def _store_left(self, store_id: int) -> bool:
        """Offline while it still has peers; repeated without any, gone for good."""
        known = self.stores.get(store_id)
        if known is None:
            raise NotFound(f"no store {store_id}")
        if known.state is StoreState.TOMBSTONE:
            return _ALREADY
        has_peers = any(region.peer_on(store_id) is not None for region in self.ranges.overlapping(b"", b""))
        state = StoreState.OFFLINE if has_peers else StoreState.TOMBSTONE
        if known.state is state:
            return _ALREADY
        self._put(self.stores, store_id, replace(known, state=state))
        self.membership_epoch += 1
        return _NEW

    # allocators
    def _fenced(self, event: AllocatorFenced) -> bool:
        lease = self._open_era(event.era)
        if not lease.confirmed or lease.released:
            raise PreconditionFailed(f"era {event.era} is not serving: it cannot fence")
        if not 0 < event.fence <= FENCE_LIMIT:
            raise UsageError(f"fence {event.fence} is out of range")
        current = self.id_fence if event.allocator is Allocator.ID else self.tso_fence
        if event.fence == current:
            return _ALREADY
        if event.fence < current:
            raise PreconditionFailed(
                f"the {event.allocator.value} fence is {current}: it cannot go back to {event.fence}"
            )
        if event.allocator is Allocator.ID:
            self.id_fence = event.fence
        else:
            self.tso_fence = event.fence
        return _NEW

    # regions
    def _bootstrapped(self, region: Region) -> bool:
        self._check_descriptor(region)
        known = self.regions.get(region.region_id)
        if known is not None:
            moved_on = region.epoch <= known.epoch and known.state is not RegionState.TOMBSTONE
            if moved_on and (region.start_key, region.end_key) == (known.start_key, known.end_key):
                return _ALREADY
            raise PreconditionFailed(f"region {region.region_id} exists already, with another descriptor")
        self._check_no_pending(region.region_id)  # a split may mean to use this id
        self._check_free(region)
        self._put_region(region)
        return _NEW

    def _published(self, region: Region, revision: int) -> bool:
        known = self._known(region.region_id)
        if region == known:
            return _ALREADY
        self._check_descriptor(region)
        self._check_newer(known, region)
        self._put_region(region)
        self._settle(region, revision)
        return _NEW

    def _tombstoned(self, region: Region, revision: int) -> bool:
        known = self.regions.get(region.region_id)
        if known is None:
            raise NotFound(f"no region {region.region_id}")
        if known.state is RegionState.TOMBSTONE:
            return _ALREADY
        self._check_newer(known, region)
        self._abort(region.region_id, revision)
        self._put_region(replace(known, state=RegionState.TOMBSTONE))
        return _NEW

    # peer changes
    def _planned(self, transition_id: str, peer: Peer, target: Region, *, removal: bool) -> bool:
        if not transition_id:
            raise UsageError("a planned change needs a transition id")
        plan = PendingPeerChange(transition_id, target.region_id, peer, removal, target)
        known = self._known(target.region_id)
        current = self.pending.get(target.region_id)
        if current == plan:
            return _ALREADY
        ended = self.finished.get(transition_id)
        if ended is not None and ended.phase is TransitionPhase.COMPLETED:
            return _ALREADY
        self._check_no_pending(target.region_id)
        self._check_descriptor(target)
        if target.epoch.conf_version <= known.epoch.conf_version or target.epoch.version < known.epoch.version:
            raise EpochNotMatch(
                f"region {target.region_id} is at {known.epoch}; the plan aims at {target.epoch}", regions=(known,)
            )
        check_effect(target, peer, removal=removal)
        if not removal and self.stores[peer.store_id].state is StoreState.OFFLINE:
            raise PreconditionFailed(f"store {peer.store_id} is leaving: it takes no new peers")
        if removal and known.peer(peer.peer_id) is None:
            raise PreconditionFailed(f"region {target.region_id} has no peer {peer.peer_id} to remove")
        self._put(self.pending, target.region_id, plan)
        return _NEW

    def _done(self, transition_id: str, peer: Peer, region: Region, revision: int, *, removal: bool) -> bool:
        """What a region's own Raft log has applied is a fact. It is refused only if it contradicts what is known."""
        known = self._known(region.region_id)
        check_effect(region, peer, removal=removal)
        if region.epoch.conf_version <= known.epoch.conf_version:
            if region.epoch.conf_version == known.epoch.conf_version and region.peers != known.peers:
                raise EpochNotMatch(f"region {region.region_id} has other peers at {known.epoch}", regions=(known,))
            # a newer descriptor of the same log includes this change; what was thought of it before is set right
            return self._set_right(transition_id, region.region_id, revision)
        self._check_descriptor(region)
        self._check_newer(known, region)
        self._finish(transition_id, region.region_id, TransitionPhase.COMPLETED, revision)
        self._put_region(region)
        self._settle(region, revision)
        return _NEW

    def _cancelled(self, transition_id: str, region_id: int, revision: int, *, removal: bool) -> bool:
        change = self.pending.get(region_id)
        if change is None or change.transition_id != transition_id:
            return self._cancelled_before(transition_id, region_id)
        if change.removal is not removal:
            raise UsageError(f"the change {transition_id} is {'a removal' if change.removal else 'an addition'}")
        self._finish(transition_id, region_id, TransitionPhase.CANCELLED, revision)
        return _NEW

    def _cancelled_before(self, transition_id: str, region_id: int) -> bool:
        ended = self.finished.get(transition_id)
        if ended is not None and ended.phase is TransitionPhase.CANCELLED:
            return _ALREADY
        state = f"has ended already: {ended.phase.value}" if ended is not None else "is not pending"
        raise PreconditionFailed(f"the change {transition_id} of region {region_id} {state}")

    # splits and merges: the region whose log carries the change is `target`
    def _split_planned(self, event: RegionSplitPlanned) -> bool:
        parent, child = event.parent, event.child
        known = self._known(parent.region_id)
        plan = PendingRangeChange(event.transition_id, False, parent, child)
        if self._range_plan_known(plan):
            return _ALREADY
        if child.region_id in self.regions:
            raise PreconditionFailed(f"region {child.region_id} exists already: a split makes a new one")
        self._check_range_plan(plan, known, known.epoch.version)
        if union(parent, child) != (known.start_key, known.end_key):
            raise UsageError(f"the two parts are not what region {known.region_id} covers")
        if {p.store_id for p in child.peers} != {p.store_id for p in known.peers}:
            raise UsageError(f"region {child.region_id} would live on other stores than region {known.region_id}")
        if {p.peer_id for p in child.peers} & {p.peer_id for p in known.peers}:
            raise UsageError(f"regions {known.region_id} and {child.region_id} would share a peer id")
        self._plan_range(plan)
        return _NEW

    def _merge_planned(self, event: RegionMergePlanned) -> bool:
        target, source = event.target, event.source
        known, neighbour = self._known(target.region_id), self._known(source.region_id)
        plan = PendingRangeChange(event.transition_id, True, target, source)
        if self._range_plan_known(plan):
            return _ALREADY
        if source != neighbour:
            raise EpochNotMatch(
                f"region {source.region_id} is at {neighbour.epoch}: the plan does not show it as it is",
                regions=(neighbour,),
            )
        self._check_range_plan(plan, known, max(known.epoch.version, neighbour.epoch.version))
        if union(known, neighbour) != (target.start_key, target.end_key):
            raise UsageError(f"regions {known.region_id} and {neighbour.region_id} do not make up the planned range")
        if {p.store_id for p in neighbour.peers} != {p.store_id for p in known.peers}:
            raise PreconditionFailed(
                f"regions {known.region_id} and {neighbour.region_id} live on different stores",
                hint="move the peers of one of them first",
            )
        self._plan_range(plan)
        return _NEW

    def _range_plan_known(self, plan: PendingRangeChange) -> bool:
        if not plan.transition_id:
            raise UsageError("a planned change needs a transition id")
        ended = self.finished.get(plan.transition_id)
        return self.pending_ranges.get(plan.region_id) == plan or (
            ended is not None and ended.phase is TransitionPhase.COMPLETED
        )

    def _check_range_plan(self, plan: PendingRangeChange, known: Region, version: int) -> None:
        target, other = plan.target, plan.other
        if target.region_id == other.region_id:
            raise UsageError(f"region {target.region_id} cannot be both sides of a change")
        self._check_no_pending(target.region_id)
        self._check_no_pending(other.region_id)
        self._check_descriptor(target)
        self._check_descriptor(other)
        if target.epoch.version <= version or target.epoch.conf_version != known.epoch.conf_version:
            raise EpochNotMatch(
                f"region {known.region_id} is at {known.epoch}; the plan aims at {target.epoch}", regions=(known,)
            )
        if target.peers != known.peers:
            raise UsageError(f"a split or merge changes no peers of region {known.region_id}")

    def _plan_range(self, plan: PendingRangeChange) -> None:
        self._put(self.pending_ranges, plan.target.region_id, plan)
        self._put(self.pending_ranges, plan.other.region_id, plan)

    def _split_committed(self, event: RegionSplitCommitted, revision: int) -> bool:
        """A fact: the parent's log has applied it. The child appears, now or (if newer news of the parent came first)
        in the hole that the parent left."""
        parent, child, name = event.parent, event.child, event.transition_id
        known = self._known(parent.region_id)
        self._check_descriptor(parent)
        self._check_descriptor(child)
        union(parent, child)
        if parent.epoch.version <= known.epoch.version:
            if child.region_id in self.regions:
                return self._set_right(name, parent.region_id, revision)
            self._check_free(child)
        else:
            if child.region_id in self.regions:
                raise PreconditionFailed(f"region {child.region_id} exists already: a split makes a new one")
            if not (covers(known, parent) and covers(known, child)):
                raise EpochNotMatch(f"region {known.region_id} is at {known.epoch}, and smaller", regions=(known,))
            self._check_newer(known, parent)
            self._put_region(parent)
        self._finish(name, parent.region_id, TransitionPhase.COMPLETED, revision)
        self._put_region(child)
        self._settle(parent, revision)
        self._abort(child.region_id, revision)  # some other plan had meant to use this id
        return _NEW

    def _merge_committed(self, event: RegionMergeCommitted, revision: int) -> bool:
        target, source, name = event.target, event.source, event.transition_id
        known = self._known(target.region_id)
        if source.region_id == target.region_id:
            raise UsageError(f"region {target.region_id} cannot be both sides of a change")
        self._check_descriptor(target)
        neighbour = self.regions.get(source.region_id)
        gone = neighbour is not None and neighbour.state is RegionState.TOMBSTONE
        if target.epoch.version <= known.epoch.version:
            if neighbour is not None and not gone:
                raise EpochNotMatch(
                    f"region {known.region_id} is at {known.epoch}, and region {source.region_id} is not in it",
                    regions=(known,),
                )
            return self._set_right(name, target.region_id, revision)
        if not covers(target, source) or (neighbour is not None and not gone and not covers(target, neighbour)):
            raise UsageError(f"region {target.region_id} does not cover region {source.region_id}: that is no merge")
        self._finish(name, target.region_id, TransitionPhase.COMPLETED, revision)
        self._abort(source.region_id, revision)
        if not gone:
            self._put_region(replace(neighbour or source, state=RegionState.TOMBSTONE))
        self._check_newer(known, target)
        self._put_region(target)
        self._settle(target, revision)
        return _NEW

    def _range_cancelled(self, transition_id: str, region_id: int, revision: int, *, merge: bool) -> bool:
        change = self.pending_ranges.get(region_id)
        if change is None or change.transition_id != transition_id or change.region_id != region_id:
            return self._cancelled_before(transition_id, region_id)
        if change.merge is not merge:
            raise UsageError(f"the change {transition_id} is a {'merge' if change.merge else 'split'}")
        self._finish(transition_id, region_id, TransitionPhase.CANCELLED, revision)
        return _NEW

    # the lease
    def _granted(self, event: LeaseGranted, revision: int) -> bool:
        if not event.holder or event.lease_ttl_ms <= 0:
            raise UsageError("a lease needs a holder and a positive duration")
        lease = self.lease
        if lease is not None:
            if (lease.era, lease.holder, lease.incarnation) == (event.era, event.holder, event.incarnation):
                return _ALREADY
            raise PreconditionFailed(f"era {lease.era} of {lease.holder} is not sealed")
        if event.era != self.era + 1:
            raise PreconditionFailed(f"the next era is {self.era + 1}, not {event.era}")
        self.era = event.era
        self.lease = Lease(
            event.holder,
            event.address,
            event.era,
            event.lease_ttl_ms,
            event.lease_until_ms,
            incarnation=event.incarnation,
            revision=revision,
        )
        return _NEW

    def _renewed(self, event: LeaseRenewed, revision: int) -> bool:
        lease = self._held(event.holder, event.era)
        if lease.released:
            raise PreconditionFailed(f"era {event.era} was released: it cannot be renewed")
        if event.lease_ttl_ms <= 0:
            raise UsageError("a lease needs a positive duration")
        # never `already`: a renewal is a sign of life, and competitors wait from the newest one they see
        self.lease = replace(
            lease, lease_ttl_ms=event.lease_ttl_ms, lease_until_ms=event.lease_until_ms, revision=revision
        )
        return _NEW

    def _released(self, event: LeaseReleased) -> bool:
        lease = self._held(event.holder, event.era)
        if lease.released:
            return _ALREADY
        self.lease = replace(lease, released=True)
        return _NEW

    def _sealed(self, event: LeaseSealed) -> bool:
        if self.sealed is not None and self.sealed.era == event.era:
            return _ALREADY
        lease = self._open_era(event.era)
        if (event.id_frontier, event.tso_frontier) != (self.id_fence, self.tso_fence):
            raise PreconditionFailed(
                f"era {event.era} ends at id {self.id_fence}, tso {self.tso_fence}: the seal says otherwise",
                hint="read the state again and decide anew",
            )
        before = self.sealed  # a hand-over into this era that it never closed
        unended = 0 if before is None else before.unended_era or before.era
        self.sealed = SealedEra(lease.holder, lease.era, event.id_frontier, event.tso_frontier, unended)
        self.lease = None
        return _NEW

    def _confirmed(self, event: HandoffConfirmed) -> bool:
        lease = self._held(event.holder, event.era)
        if lease.confirmed:
            return _ALREADY
        if event.id_frontier < self.id_fence or event.tso_frontier < self.tso_fence:
            raise PreconditionFailed(f"era {event.era} would start below what was handed out before it")
        if max(event.id_frontier, event.tso_frontier) > FENCE_LIMIT:
            raise UsageError("a frontier is out of range")
        self.id_fence, self.tso_fence = event.id_frontier, event.tso_frontier
        self.lease = replace(lease, confirmed=True)
        return _NEW

    def _closed(self, event: HandoffClosed) -> bool:
        lease = self._held(event.holder, event.era)
        if not lease.confirmed:
            raise PreconditionFailed(f"era {event.era} has not confirmed the hand-over: it cannot close it")
        if self.sealed is None:
            return _ALREADY
        if self.sealed.unended_era and not self.sealed.reattached:
            raise PreconditionFailed(
                f"the hand-over of era {self.sealed.unended_era} has not ended: era {event.era} must reattach it first"
            )
        self.sealed = None
        return _NEW

    def _reattached(self, event: HandoffReattached) -> bool:
        lease = self._held(event.holder, event.era)
        if not lease.confirmed:
            raise PreconditionFailed(f"era {event.era} has not confirmed: it can take up no other hand-over")
        if self.sealed is None or self.sealed.reattached:
            return _ALREADY
        if not self.sealed.unended_era:
            raise PreconditionFailed(f"era {self.sealed.era} left no hand-over open: there is nothing to reattach")
        self.sealed = replace(self.sealed, reattached=True)
        return _NEW

    # -- checks -------------------------------------------------------------------------------------------------------
    def _open_era(self, era: int) -> Lease:
        if self.lease is None or self.lease.era != era:
            raise PreconditionFailed(f"era {era} is not open; the newest is {self.era}")
        return self.lease

    def _held(self, holder: str, era: int) -> Lease:
        lease = self._open_era(era)
        if lease.holder != holder:
            raise PreconditionFailed(f"era {era} belongs to {lease.holder}, not to {holder}")
        return lease

    def _known(self, region_id: int) -> Region:
        region = self.regions.get(region_id)
        if region is None:
            raise NotFound(f"no region {region_id}")
        if region.state is RegionState.TOMBSTONE:
            raise PreconditionFailed(f"region {region_id} is gone")
        return region

    def _check_descriptor(self, region: Region) -> None:
        if region.region_id <= 0:
            raise UsageError("a region id is a positive number")
        if region.end_key and region.start_key >= region.end_key:
            raise UsageError(f"region {region.region_id}: the range is empty or reversed")
        if region.state is RegionState.TOMBSTONE:
            raise UsageError(f"region {region.region_id}: tombstones have their own event")
        if not region.peers:
            raise UsageError(f"region {region.region_id} has no peers")
        peers: set[int] = set()
        homes: set[int] = set()
        for peer in region.peers:
            store = self.stores.get(peer.store_id)
            if store is None or store.state is StoreState.TOMBSTONE:
                raise PreconditionFailed(
                    f"region {region.region_id}: peer {peer.peer_id} is on store {peer.store_id}, which has not joined",
                    hint="register the store first",
                )
            peers.add(peer.peer_id)
            homes.add(peer.store_id)
        if len(peers) < len(region.peers):
            raise UsageError(f"region {region.region_id} names a peer twice")
        if len(homes) < len(region.peers):
            raise UsageError(f"region {region.region_id} has two peers on one store")

    def _check_newer(self, known: Region, region: Region) -> None:
        """Neither part of the epoch goes back, and one epoch means one descriptor."""
        old, new = known.epoch, region.epoch
        if new.conf_version < old.conf_version or new.version < old.version:
            raise EpochNotMatch(f"region {known.region_id} is at {old}, not at {new}", regions=(known,))
        if region.peers != known.peers and new.conf_version == old.conf_version:
            raise EpochNotMatch(f"region {known.region_id}: other peers need a higher conf_version", regions=(known,))
        if (region.start_key, region.end_key) != (known.start_key, known.end_key):
            if new.version == old.version:
                raise EpochNotMatch(f"region {known.region_id}: another range needs a higher version", regions=(known,))
            self._check_free(region)

    def _check_free(self, region: Region) -> None:
        for other in self.ranges.overlapping(region.start_key, region.end_key):
            if other.region_id != region.region_id:
                raise PreconditionFailed(f"region {region.region_id} would overlap region {other.region_id}")

    def _check_no_pending(self, region_id: int) -> None:
        current = self.pending.get(region_id) or self.pending_ranges.get(region_id)
        if current is not None:
            raise PreconditionFailed(
                f"region {region_id} already has the pending change {current.transition_id}",
                hint="wait for it to end, or cancel it",
            )

    # -- what a fact means for plans ----------------------------------------------------------------------------------
    def _settle(self, region: Region, revision: int) -> None:
        """`region` is what its own Raft log has made of it: is what was planned for it done, still possible, or
        overtaken?"""
        change = self.pending.get(region.region_id)
        if change is not None:
            aimed = change.target.epoch.conf_version
            if has_effect(region, change.peer, removal=change.removal):
                self._finish(change.transition_id, region.region_id, TransitionPhase.COMPLETED, revision)
            elif region.epoch.conf_version >= aimed:
                phase = overtaken(region.epoch.conf_version, aimed)
                self._finish(change.transition_id, region.region_id, phase, revision)
        planned = self.pending_ranges.get(region.region_id)
        if planned is None:
            return
        version, target = region.epoch.version, planned.target
        if region.region_id != target.region_id:
            if version != planned.other.epoch.version:  # the neighbour to be merged has another range now
                self._finish(planned.transition_id, target.region_id, TransitionPhase.SUPERSEDED, revision)
        elif version > target.epoch.version or (
            version == target.epoch.version and (region.start_key, region.end_key) != (target.start_key, target.end_key)
        ):
            phase = overtaken(version, target.epoch.version)
            self._finish(planned.transition_id, target.region_id, phase, revision)

    def _set_right(self, transition_id: str, region_id: int, revision: int) -> bool:
        """A change that the truth already shows turns out to be this one."""
        pending = self.pending.get(region_id) or self.pending_ranges.get(region_id)
        ended = self.finished.get(transition_id)
        if (pending is None or pending.transition_id != transition_id) and (
            ended is None or ended.phase is TransitionPhase.COMPLETED
        ):
            return _ALREADY
        self._finish(transition_id, region_id, TransitionPhase.COMPLETED, revision)
        return _NEW

    def _abort(self, region_id: int, revision: int) -> None:
        """The region is gone: so is what was planned for it."""
        for change in (self.pending.get(region_id), self.pending_ranges.get(region_id)):
            if change is not None:
                self._finish(change.transition_id, change.region_id, TransitionPhase.ABORTED, revision)

    # -- changes, each with its undo ----------------------------------------------------------------------------------
    def _put(self, mapping: dict[_K, _V], key: _K, value: _V) -> None:
        if key in mapping:
            old = mapping[key]
            self._undo.append(lambda: mapping.__setitem__(key, old))
        else:
            self._undo.append(lambda: mapping.__delitem__(key))
        mapping[key] = value

    def _put_region(self, region: Region) -> None:
        self._swap_region(region.region_id, region)
        self.cluster_epoch += 1

    def _swap_region(self, region_id: int, region: Region | None) -> None:
        old = self.regions.get(region_id)
        if old is not None and old.state is not RegionState.TOMBSTONE:
            self.ranges.remove(old)
        if region is None:
            del self.regions[region_id]
        else:
            self.regions[region_id] = region
            if region.state is not RegionState.TOMBSTONE:
                self.ranges.insert(region)
        self._undo.append(lambda: self._swap_region(region_id, old))

    def _finish(self, transition_id: str, region_id: int, phase: TransitionPhase, revision: int) -> None:
        change = self.pending.get(region_id)
        if change is not None and change.transition_id == transition_id:
            self._undo.append(lambda: self.pending.__setitem__(region_id, change))
            del self.pending[region_id]
        planned = self.pending_ranges.get(region_id)
        if planned is not None and planned.transition_id == transition_id:
            both = {planned.target.region_id: planned, planned.other.region_id: planned}
            self._undo.append(lambda: self.pending_ranges.update(both))
            for one in both:
                del self.pending_ranges[one]
        self._put(self.finished, transition_id, FinishedTransition(transition_id, region_id, phase, revision))

    def _scalars(self) -> _Scalars:
        return (
            self.last,
            self.cluster_epoch,
            self.membership_epoch,
            self.id_fence,
            self.tso_fence,
            self.era,
            self.lease,
            self.sealed,
        )

    def _rollback(self, before: _Scalars) -> None:
        undo, self._undo = self._undo, []
        for step in reversed(undo):
            step()
        self._undo = []
        (
            self.last,
            self.cluster_epoch,
            self.membership_epoch,
            self.id_fence,
            self.tso_fence,
            self.era,
            self.lease,
            self.sealed,
        ) = before


def fold(records: Iterable[RootRecord], state: RootState | None = None) -> RootState:
    """The state that a log makes, from the beginning or from a checkpoint."""
    state = RootState() if state is None else state
    for record in records:
        state.replay(record)
    return state
