"""What the coordinator knows: the rooted truth folded from the tail, and beside it views learnt from heartbeats.

Pure; times are passed in. All of it can be lost at any moment: the truth is folded again, and heartbeats come back.
Nothing learnt from a heartbeat changes the truth, and every answer says which of the two it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nokv.metaroot.changes import Transition, transitions
from nokv.metaroot.events import (
    NO_TOKEN,
    PeerAdded,
    PeerAdditionPlanned,
    RegionBootstrapped,
    RegionMergeCommitted,
    RegionPublished,
    RegionSplitCommitted,
    RegionSplitPlanned,
    RegionTombstoned,
    RootEvent,
    RootRecord,
    RootToken,
    StoreJoined,
    TransitionPhase,
)
from nokv.metaroot.state import RootState
from nokv.region import Peer, Region, RegionEpoch, Store, StoreState

__all__ = ["ClusterView", "Liveness", "RegionReport", "Route", "StoreReportView"]

DISCONNECTED_AFTER_NS = 20_000_000_000
DOWN_AFTER_NS = 300_000_000_000


@dataclass(frozen=True, slots=True)
class Route:
    """`region` is truth; `leader` is a view (None: unknown); `stores` are the rooted records of the peers' stores."""

    region: Region
    leader: Peer | None
    stores: tuple[Store, ...]


@dataclass(slots=True)
class StoreReportView:
    """The newest heartbeat of a store. A view."""

    store_id: int
    region_count: int
    leader_count: int
    used_bytes: int
    mode: str
    seen_ns: int
    seen_ms: int


@dataclass(slots=True)
class RegionReport:
    """Who leads a region, by the newest heartbeat of the highest term. A view."""

    leader: Peer
    epoch: RegionEpoch
    term: int
    applied_index: int
    seen_ns: int


class Liveness:
    """The words for a store's liveness."""

    UNKNOWN = "unknown"
    UP = "up"
    DISCONNECTED = "disconnected"
    DOWN = "down"
    OFFLINE = "offline"  # truth: it is leaving
    TOMBSTONE = "tombstone"  # truth: it has left


class ClusterView:
    """`known`: some truth has arrived. `served` is the token of that truth; `current` the newest token heard of."""

    __slots__ = ("_current", "known", "largest_id", "leaders", "regions", "stores", "truth")

    def __init__(self) -> None:
        self.truth = RootState()
        self.known = False
        self.largest_id = 0  # of any store, region or peer that the truth has ever named to us
        self._current = NO_TOKEN
        self.stores: dict[int, StoreReportView] = {}
        self.regions: dict[int, RegionReport] = {}
        self.leaders: dict[int, dict[int, None]] = {}  # store -> regions that it leads, by those reports

    # -- truth --------------------------------------------------------------------------------------------------------
    @property
    def served(self) -> RootToken:
        return self.truth.last

    @property
    def current(self) -> RootToken:
        return max(self._current, self.truth.last)

    @property
    def lag(self) -> int:
        return self.current.revision - self.served.revision

    def reset(self, state: RootState) -> bool:
        """Start over from a state (bootstrap, reload). False, and nothing changes, if it is older than what we have."""
        if self.known and state.last.revision < self.truth.last.revision:
            return False
        self.truth = state
        self.known = True
        self.largest_id = max(self.largest_id, state.largest_id())
        for region_id in [r for r in self.regions if state.region(r) is None]:
            self._forget(region_id)
        return True

    def advance(self, records: Sequence[RootRecord]) -> None:
        """Fold what follows; records that are in already are skipped. Raises InvariantError on a gap."""
        for record in records:
            if record.token.revision > self.truth.last.revision:
                self.truth.replay(record)
                self.largest_id = max(self.largest_id, largest_id_of(record.event))
                match record.event:
                    case RegionTombstoned():
                        self._forget(record.event.region.region_id)
                    case RegionMergeCommitted():
                        self._forget(record.event.source.region_id)
        self.known = True

    def heard_of(self, token: RootToken) -> None:
        self._current = max(self._current, token)

    def _forget(self, region_id: int) -> None:
        report = self.regions.pop(region_id, None)
        if report is not None:
            self.leaders[report.leader.store_id].pop(region_id, None)

    # -- heartbeats ---------------------------------------------------------------------------------------------------
    def store_heartbeat(
        self,
        store_id: int,
        *,
        region_count: int,
        leader_count: int,
        used_bytes: int,
        mode: str,
        now_ns: int,
        now_ms: int,
    ) -> None:
        self.stores[store_id] = StoreReportView(store_id, region_count, leader_count, used_bytes, mode, now_ns, now_ms)

    def region_heartbeat(self, region: Region, leader: Peer, *, term: int, applied_index: int, now_ns: int) -> bool:
        """False if the report is of an older term than the newest known, or of a region that does not exist (any
        more)."""
        if self.known and self.truth.region(region.region_id) is None:
            return False
        known = self.regions.get(region.region_id)
        if known is not None and term < known.term:
            return False
        if known is None or known.leader.store_id != leader.store_id:
            self._forget(region.region_id)
            self.leaders.setdefault(leader.store_id, {})[region.region_id] = None
        self.regions[region.region_id] = RegionReport(leader, region.epoch, term, applied_index, now_ns)
        return True

    def liveness(self, store_id: int, now_ns: int) -> str:
        report = self.stores.get(store_id)
        if report is None:
            return Liveness.UNKNOWN
        silent_ns = now_ns - report.seen_ns
        if silent_ns >= DOWN_AFTER_NS:
            return Liveness.DOWN
        return Liveness.DISCONNECTED if silent_ns >= DISCONNECTED_AFTER_NS else Liveness.UP

    def store_state(self, store: Store, now_ns: int) -> str:
        """What operators see: `offline` and `tombstone` are truth, everything else a view."""
        if store.state is StoreState.TOMBSTONE:
            return Liveness.TOMBSTONE
        return Liveness.OFFLINE if store.state is StoreState.OFFLINE else self.liveness(store.store_id, now_ns)

    # -- transitions --------------------------------------------------------------------------------------------------
    def transitions(self) -> Iterator[tuple[Transition, str]]:
        """(change, source). A planned one that the region's leader reports as reached is `admitted`: a view."""
        for change in transitions(self.truth):
            report = self.regions.get(change.region_id)
            if change.phase is TransitionPhase.PLANNED and change.target is not None and report is not None:
                if change.kind in ("split", "merge"):
                    reached = report.epoch.version >= change.target.epoch.version
                else:
                    reached = report.epoch.conf_version >= change.target.epoch.conf_version
                if reached:
                    yield replace(change, phase=TransitionPhase.ADMITTED), "view"
                    continue
            yield change, "truth"

    # -- routes -------------------------------------------------------------------------------------------------------
    def _route(self, region: Region) -> Route:
        report = self.regions.get(region.region_id)
        leader = report.leader if report is not None else None
        store_ids = [p.store_id for p in region.peers]
        if leader is not None and leader.store_id not in store_ids:
            store_ids.append(leader.store_id)  # a peer that the truth does not know yet
        stores = tuple(store for store in map(self.truth.stores.get, store_ids) if store is not None)
        return Route(region, leader, stores)

    def route_by_key(self, key: bytes) -> Route | None:
        region = self.truth.region_by_key(key)
        return None if region is None else self._route(region)

    def route_by_id(self, region_id: int) -> Route | None:
        region = self.truth.region(region_id)
        return None if region is None else self._route(region)

    def scan(self, start_key: bytes, end_key: bytes, limit: int) -> list[Route]:
        """Routes of every region that shares a key with [start_key, end_key), in key order, at most `limit`."""
        routes: list[Route] = []
        for region in self.truth.ranges.overlapping(start_key, end_key):
            if len(routes) >= limit:
                break
            routes.append(self._route(region))
        return routes


def largest_id_of(event: RootEvent) -> int:
    """The largest id that an event names."""
    match event:
        case StoreJoined():
            return event.store.store_id
        case RegionBootstrapped() | RegionPublished():
            return max(event.region.region_id, *(p.peer_id for p in event.region.peers))
        case RegionSplitPlanned() | RegionSplitCommitted():
            return max(event.child.region_id, *(p.peer_id for p in event.child.peers))
        case PeerAdditionPlanned() | PeerAdded():
            return event.peer.peer_id
    return 0
