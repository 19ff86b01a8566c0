"""Which peer of this store serves a region, and what to tell a caller who asked for the wrong thing. One thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nokv.errors import EpochNotMatch, NotLeader, RegionNotFound, StoreNotMatch
from nokv.region import Region, RegionEpoch

if TYPE_CHECKING:
    from nokv.raftstore.peer import StorePeer

__all__ = ["Router"]


class Router:
    def __init__(self, store_id: int) -> None:
        self._store_id = store_id
        self._peers: dict[int, StorePeer] = {}

    def __iter__(self) -> Iterator[StorePeer]:
        return iter(list(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, peer: StorePeer) -> None:
        self._peers[peer.region_id] = peer

    def remove(self, region_id: int) -> None:
        self._peers.pop(region_id, None)

    def find(self, region_id: int) -> StorePeer | None:
        """The peer, hosted or still waiting for its first snapshot."""
        return self._peers.get(region_id)

    def hosted(self, region_id: int) -> StorePeer:
        """Raises RegionNotFound."""
        peer = self._peers.get(region_id)
        if peer is None or not peer.hosted:
            raise RegionNotFound(f"store {self._store_id} does not host region {region_id}", region_id=region_id)
        return peer

    def overlapping(self, region: Region) -> list[StorePeer]:
        """Hosted peers of other regions whose range overlaps."""
        return [
            peer
            for peer in self._peers.values()
            if peer.hosted and peer.region_id != region.region_id and peer.region.overlaps(region)
        ]

    def check(self, region_id: int, store_id: int, epoch: RegionEpoch) -> StorePeer:
        """The leading peer that may serve this request. Typed errors, in the order of RS-05."""
        if store_id != self._store_id:
            raise StoreNotMatch(f"this is store {self._store_id}, not {store_id}")
        peer = self.hosted(region_id)
        if epoch != peer.region.epoch:
            mine = peer.region.epoch
            raise EpochNotMatch(
                f"region {region_id} has epoch {mine.conf_version}.{mine.version}, "
                f"not {epoch.conf_version}.{epoch.version}",
                regions=(peer.region,),
            )
        if not peer.is_leader:
            raise self.not_leader(peer)
        return peer

    @staticmethod
    def not_leader(peer: StorePeer) -> NotLeader:
        leader = peer.leader
        return NotLeader(
            f"peer {peer.peer_id} does not lead region {peer.region_id}",
            region_id=peer.region_id,
            leader=leader,
            address=peer.address_of(leader) if leader is not None else "",
        )
