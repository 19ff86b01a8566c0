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
    finality      a hand-over ends by `closed`, or by sealing the successor, which takes the frontiers over
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from nokv.errors import EpochNotMatch, InvariantError, NotFound, PreconditionFailed, UsageError
from nokv.metaroot.events import (
    NO_TOKEN,
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
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
    RegionPublished,
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

__all__ = ["FinishedTransition", "Lease", "PendingPeerChange", "RootState", "SealedEra", "fold"]

FINISHED_MAX = 1024
"""How many ended changes the state remembers; the oldest is forgotten first (the log still has it)."""

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
    """The newest sealed era, until its successor closes the hand-over."""

    holder: str
    era: int
    id_frontier: int
    tso_frontier: int


@dataclass(frozen=True, slots=True)
class PendingPeerChange:
    """A planned membership change that has not ended. A region has at most one."""

    transition_id: str
    region_id: int
    peer: Peer
    removal: bool
    target: Region


@dataclass(frozen=True, slots=True)
class FinishedTransition:
    transition_id: str
    region_id: int
    phase: TransitionPhase
    revision: int


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
    ranges: RangeIndex = field(init=False, compare=False, repr=False)
    _undo: list[Callable[[], object]] = field(init=False, compare=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        self.ranges = RangeIndex(self.regions)
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
        while len(self.finished) > FINISHED_MAX:
            del self.finished[next(iter(self.finished))]
        return records

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
        """Fold one committed record. It was accepted once, so that a refusal here is our own bug."""
        try:
            records = self.apply([record.event], term=record.token.term, index=record.token.index)
        except (PreconditionFailed, EpochNotMatch, NotFound, UsageError) as error:
            raise InvariantError(f"committed event {record.token} does not fold: {error}") from error
        if not records or records[0].token != record.token:
            raise InvariantError(f"committed event {record.token} does not follow revision {self.last.revision}")

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
        return largest

    def copy(self) -> RootState:
        return RootState(
            self.last,
            self.cluster_epoch,
            self.membership_epoch,
            self.id_fence,
            self.tso_fence,
            self.era,
            self.lease,
            self.sealed,
            dict(self.stores),
            dict(self.regions),
            dict(self.pending),
            dict(self.finished),
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
        self._put(self.stores, store.store_id, store)
        self.membership_epoch += 1
        return _NEW

    def _store_left(self, store_id: int) -> bool:
        known = self.stores.get(store_id)
        if known is None:
            raise NotFound(f"no store {store_id}")
        if known.state is StoreState.TOMBSTONE:
            return _ALREADY
        for region in self.ranges.overlapping(b"", b""):
            if region.peer_on(store_id) is not None:
                raise PreconditionFailed(
                    f"store {store_id} still has a peer of region {region.region_id}", hint="remove its peers first"
                )
        self._put(self.stores, store_id, replace(known, state=StoreState.TOMBSTONE))
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
        self._check_free(region)
        self._put_region(region)
        return _NEW

    def _published(self, region: Region, revision: int) -> bool:
        known = self._known(region.region_id)
        if region == known:
            return _ALREADY
        self._check_descriptor(region)
        self._check_newer(known, region)
        if region.peers != known.peers:
            self._settle_pending(region, revision)
        self._put_region(region)
        return _NEW

    def _tombstoned(self, region: Region, revision: int) -> bool:
        known = self.regions.get(region.region_id)
        if known is None:
            raise NotFound(f"no region {region.region_id}")
        if known.state is RegionState.TOMBSTONE:
            return _ALREADY
        self._check_newer(known, region)
        change = self.pending.get(region.region_id)
        if change is not None:
            self._finish(change.transition_id, region.region_id, TransitionPhase.CANCELLED, revision)
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
        if current is not None:
            raise PreconditionFailed(
                f"region {target.region_id} already has the pending change {current.transition_id}",
                hint="wait for it to end, or cancel it",
            )
        self._check_descriptor(target)
        if target.epoch.conf_version <= known.epoch.conf_version or target.epoch.version < known.epoch.version:
            raise EpochNotMatch(
                f"region {target.region_id} is at {known.epoch}; the plan aims at {target.epoch}", regions=(known,)
            )
        _check_effect(target, peer, removal=removal)
        if removal and known.peer(peer.peer_id) is None:
            raise PreconditionFailed(f"region {target.region_id} has no peer {peer.peer_id} to remove")
        self._put(self.pending, target.region_id, plan)
        return _NEW

    def _done(self, transition_id: str, peer: Peer, region: Region, revision: int, *, removal: bool) -> bool:
        """What a region's own Raft log has applied is a fact. It is refused only if it contradicts what is known."""
        known = self._known(region.region_id)
        _check_effect(region, peer, removal=removal)
        change = self.pending.get(region.region_id)
        ours = change is not None and change.transition_id == transition_id
        if region.epoch.conf_version <= known.epoch.conf_version:
            if region.epoch.conf_version == known.epoch.conf_version and region.peers != known.peers:
                raise EpochNotMatch(f"region {region.region_id} has other peers at {known.epoch}", regions=(known,))
            if not ours:
                return _ALREADY  # a newer descriptor of the same log includes this change
            self._finish(transition_id, region.region_id, TransitionPhase.COMPLETED, revision)
            return _NEW
        if change is not None and not ours:
            raise PreconditionFailed(
                f"region {region.region_id} has the pending change {change.transition_id}, not {transition_id}"
            )
        self._check_descriptor(region)
        self._check_newer(known, region)
        self._finish(transition_id, region.region_id, TransitionPhase.COMPLETED, revision)
        self._put_region(region)
        return _NEW

    def _cancelled(self, transition_id: str, region_id: int, revision: int, *, removal: bool) -> bool:
        change = self.pending.get(region_id)
        if change is None or change.transition_id != transition_id:
            ended = self.finished.get(transition_id)
            if ended is not None and ended.phase is TransitionPhase.CANCELLED:
                return _ALREADY
            state = "has ended already" if ended is not None else "is not pending"
            raise PreconditionFailed(f"the change {transition_id} of region {region_id} {state}")
        if change.removal is not removal:
            raise UsageError(f"the change {transition_id} is {'a removal' if change.removal else 'an addition'}")
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
        self.sealed = SealedEra(lease.holder, lease.era, event.id_frontier, event.tso_frontier)
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
        self.sealed = None
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
        if len({p.peer_id for p in region.peers}) < len(region.peers):
            raise UsageError(f"region {region.region_id} names a peer twice")
        if len({p.store_id for p in region.peers}) < len(region.peers):
            raise UsageError(f"region {region.region_id} has two peers on one store")
        for peer in region.peers:
            store = self.stores.get(peer.store_id)
            if store is None or store.state is StoreState.TOMBSTONE:
                raise PreconditionFailed(
                    f"region {region.region_id}: peer {peer.peer_id} is on store {peer.store_id}, which has not joined",
                    hint="register the store first",
                )

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

    def _settle_pending(self, region: Region, revision: int) -> None:
        """New peers were published outside a plan: fine if there is no plan, or if this is what it asked for."""
        change = self.pending.get(region.region_id)
        if change is None:
            return
        if not _has_effect(region, change.peer, removal=change.removal):
            raise PreconditionFailed(f"region {region.region_id} has the pending change {change.transition_id}")
        self._finish(change.transition_id, region.region_id, TransitionPhase.COMPLETED, revision)

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


def _has_effect(region: Region, peer: Peer, *, removal: bool) -> bool:
    """Is `region` a descriptor after the change: the peer is in it with its role, or it is not in it any more?"""
    found = region.peer(peer.peer_id)
    return found is None if removal else found == peer


def _check_effect(region: Region, peer: Peer, *, removal: bool) -> None:
    if not _has_effect(region, peer, removal=removal):
        what = "still names" if removal else "does not name"
        raise UsageError(f"region {region.region_id} {what} peer {peer.peer_id}: that is not how the change ends")


def fold(records: Iterable[RootRecord], state: RootState | None = None) -> RootState:
    """The state that a log makes, from the beginning or from a checkpoint."""
    state = RootState() if state is None else state
    for record in records:
        state.replay(record)
    return state
