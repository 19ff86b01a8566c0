"""What the client believes about who serves which keys. Pure; a cache, never truth. One thread (the event loop's)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace

from nokv.region import Peer, PeerRole, Region

__all__ = ["Route", "RouteCache"]

ROUTES_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Route:
    """A region, who leads it if that is known, and where the stores of its peers are."""

    region: Region
    leader: Peer | None = None
    addresses: dict[int, str] = field(default_factory=dict)

    def candidates(self) -> list[tuple[int, str]]:
        """(store id, address) in the order to try: the leader, then the other voters. Only stores with an address."""
        peers = [peer for peer in self.region.peers if peer.role is PeerRole.VOTER]
        if self.leader is not None:
            peers.sort(key=lambda peer: peer.store_id != self.leader.store_id)  # type: ignore[union-attr]
            if not peers or peers[0].store_id != self.leader.store_id:
                peers.insert(0, self.leader)
        return [(peer.store_id, self.addresses[peer.store_id]) for peer in peers if self.addresses.get(peer.store_id)]


class RouteCache:
    """Routes by start key; ranges in it never overlap. At `ROUTES_MAX` the cache starts anew."""

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._routes: list[Route] = []

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, key: bytes) -> Route | None:
        at = bisect_right(self._starts, key) - 1
        if at < 0 or not self._routes[at].region.contains(key):
            return None
        return self._routes[at]

    def find_before(self, end: bytes) -> Route | None:
        """The route that holds the keys just below `end` (empty: the last keys of all)."""
        at = bisect_left(self._starts, end) - 1 if end else len(self._starts) - 1
        if at < 0:
            return None
        region = self._routes[at].region
        return self._routes[at] if not region.end_key or (end and end <= region.end_key) else None

    def by_id(self, region_id: int) -> Route | None:
        return next((route for route in self._routes if route.region.region_id == region_id), None)

    def insert(self, route: Route) -> bool:
        """Take the route in, and drop those it overlaps. False (and no change) if a known one is newer than it.

        Another region's range only moves with its version, the same region's peers only with its conf_version.
        """
        region = route.region
        first = max(0, bisect_right(self._starts, region.start_key) - 1)
        last = bisect_left(self._starts, region.end_key) if region.end_key else len(self._starts)
        overlapped = [at for at in range(first, last) if self._routes[at].region.overlaps(region)]
        for at in overlapped:
            known = self._routes[at].region
            if known.region_id == region.region_id and (
                known.epoch.version > region.epoch.version or known.epoch.conf_version > region.epoch.conf_version
            ):
                return False
            if known.region_id != region.region_id and known.epoch.version > region.epoch.version:
                return False
        for at in reversed(overlapped):
            del self._starts[at], self._routes[at]
        if (stale := self.by_id(region.region_id)) is not None:
            self._drop(stale)
        if len(self._routes) >= ROUTES_MAX:
            self._starts.clear()
            self._routes.clear()
        at = bisect_left(self._starts, region.start_key)
        self._starts.insert(at, region.start_key)
        self._routes.insert(at, route)
        return True

    def invalidate(self, region_id: int) -> None:
        if (route := self.by_id(region_id)) is not None:
            self._drop(route)

    def set_leader(self, region_id: int, leader: Peer | None, address: str = "") -> None:
        """`leader` None: nobody is known to lead, try the voters in turn."""
        route = self.by_id(region_id)
        if route is None:
            return
        addresses = route.addresses
        if leader is not None and address:
            addresses = {**addresses, leader.store_id: address}
        at = bisect_left(self._starts, route.region.start_key)
        self._routes[at] = replace(route, leader=leader, addresses=addresses)

    def update_regions(self, regions: list[Region]) -> None:
        """A store said what the regions are now: keep the addresses we know, also across a split."""
        made = []
        for region in regions:
            addresses: dict[int, str] = {}
            leader = None
            for route in self._routes:
                if route.region.region_id == region.region_id or route.region.overlaps(region):
                    addresses |= route.addresses
                    if route.leader is not None:
                        leader = region.peer_on(route.leader.store_id) or leader
            made.append(Route(region, leader, addresses))
        for route in made:
            self.insert(route)

    def _drop(self, route: Route) -> None:
        at = bisect_left(self._starts, route.region.start_key)
        del self._starts[at], self._routes[at]

    def check(self) -> None:
        """Invariants, for tests."""
        assert self._starts == [route.region.start_key for route in self._routes]
        assert self._starts == sorted(set(self._starts))
        for route, following in zip(self._routes, self._routes[1:], strict=False):
            assert route.region.end_key
            assert route.region.end_key <= following.region.start_key
        assert len({route.region.region_id for route in self._routes}) == len(self._routes)
