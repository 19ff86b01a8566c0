"""Region, Peer, RegionEpoch, Store: the plain values that every layer speaks.

Owns nothing but these values and the arithmetic of ranges and epochs. No encoding: each folder's `wire.py` does that.
A region covers [start_key, end_key); an empty start_key means "from the first key", an empty end_key "to the last".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

__all__ = ["Peer", "PeerRole", "Region", "RegionEpoch", "RegionState", "Store", "StoreState"]


class PeerRole(Enum):
    VOTER = "voter"
    LEARNER = "learner"


class RegionState(Enum):
    NEW = "new"
    RUNNING = "running"
    REMOVING = "removing"
    TOMBSTONE = "tombstone"


class StoreState(Enum):
    UP = "up"
    OFFLINE = "offline"
    TOMBSTONE = "tombstone"


@dataclass(frozen=True, slots=True)
class Peer:
    """One replica of a region. `peer_id` is its Raft id, never reused; `store_id` says where it lives."""

    peer_id: int
    store_id: int
    role: PeerRole = PeerRole.VOTER


@dataclass(frozen=True, slots=True, order=True)
class RegionEpoch:
    """`conf_version` goes up with each membership change, `version` with each range change."""

    conf_version: int = 1
    version: int = 1


@dataclass(frozen=True, slots=True)
class Region:
    region_id: int
    start_key: bytes = b""
    end_key: bytes = b""
    epoch: RegionEpoch = RegionEpoch()
    peers: tuple[Peer, ...] = ()
    state: RegionState = RegionState.RUNNING

    def contains(self, key: bytes) -> bool:
        return self.start_key <= key and (not self.end_key or key < self.end_key)

    def overlaps(self, other: Region) -> bool:
        return (not other.end_key or self.start_key < other.end_key) and (
            not self.end_key or other.start_key < self.end_key
        )

    def peer_on(self, store_id: int) -> Peer | None:
        return next((p for p in self.peers if p.store_id == store_id), None)

    def peer(self, peer_id: int) -> Peer | None:
        return next((p for p in self.peers if p.peer_id == peer_id), None)

    def with_peers(self, peers: tuple[Peer, ...]) -> Region:
        """The region after one membership change: new peers, `conf_version` one higher."""
        epoch = replace(self.epoch, conf_version=self.epoch.conf_version + 1)
        return replace(self, peers=peers, epoch=epoch)


@dataclass(frozen=True, slots=True)
class Store:
    """A stable store record: id -> address. Heartbeat-derived facts are views and live in the coordinator."""

    store_id: int
    address: str
    state: StoreState = StoreState.UP
