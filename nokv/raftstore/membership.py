"""Membership changes of a region, as they travel in the context of a Raft configuration entry. Pure.

Owns: which change makes which descriptor, and the encoding (docs/formats/localmeta.md, "Membership change"). The change
names the `conf_version` it was decided on: on a replica that has moved on it has no effect, the same on every replica.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum

from nokv._ext.crc32c import crc32c
from nokv.errors import Corruption, PreconditionFailed
from nokv.metaroot.events import (
    PeerAdded,
    PeerAdditionPlanned,
    PeerRemovalPlanned,
    PeerRemoved,
    RootEvent,
    addition_id,
    removal_id,
)
from nokv.raft import ConfChangeKind
from nokv.region import Peer, PeerRole, Region

__all__ = ["ChangeKind", "MembershipChange", "decode_change", "encode_change", "plan_change"]


class ChangeKind(Enum):
    ADD_LEARNER = "add-learner"
    PROMOTE = "promote"
    REMOVE = "remove"


_NUMBERS = {ChangeKind.ADD_LEARNER: 1, ChangeKind.PROMOTE: 2, ChangeKind.REMOVE: 3}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}
_HEAD = struct.Struct("<BBBQQQHH")
_VERSION = 1
_TEXT_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """`peer` is the peer as it is after the change (for a removal: as it was before)."""

    kind: ChangeKind
    peer: Peer
    conf_version: int
    transition_id: str
    address: str = ""

    @property
    def conf_change_kind(self) -> ConfChangeKind:
        if self.kind is ChangeKind.REMOVE:
            return ConfChangeKind.REMOVE
        return ConfChangeKind.ADD_LEARNER if self.kind is ChangeKind.ADD_LEARNER else ConfChangeKind.ADD_VOTER

    def apply_to(self, region: Region) -> Region:
        others = tuple(peer for peer in region.peers if peer.peer_id != self.peer.peer_id)
        if self.kind is ChangeKind.REMOVE:
            return region.with_peers(others)
        if self.kind is ChangeKind.PROMOTE:  # keeps its place in the list
            return region.with_peers(tuple(self.peer if p.peer_id == self.peer.peer_id else p for p in region.peers))
        return region.with_peers((*others, self.peer))

    def planned(self, region: Region) -> RootEvent:
        target = self.apply_to(region)
        if self.kind is ChangeKind.REMOVE:
            return PeerRemovalPlanned(self.transition_id, self.peer, target)
        return PeerAdditionPlanned(self.transition_id, self.peer, target)

    def event(self, region: Region) -> RootEvent:
        """The terminal event; `region` is the descriptor after the change."""
        region = replace(region, state=region.state.RUNNING)
        if self.kind is ChangeKind.REMOVE:
            return PeerRemoved(self.transition_id, self.peer, region)
        return PeerAdded(self.transition_id, self.peer, region)


def plan_change(region: Region, kind: ChangeKind, peer: Peer, *, leader_peer_id: int, address: str) -> MembershipChange:
    """Check the change against the descriptor. PreconditionFailed says what is in the way."""
    known = region.peer(peer.peer_id)
    if kind is ChangeKind.ADD_LEARNER:
        if peer.peer_id <= 0 or peer.store_id <= 0:
            raise PreconditionFailed("peer id and store id are positive numbers")
        if known is not None:
            raise PreconditionFailed(f"peer {peer.peer_id} is a member of region {region.region_id} already")
        if region.peer_on(peer.store_id) is not None:
            raise PreconditionFailed(f"store {peer.store_id} has a peer of region {region.region_id} already")
        learner = replace(peer, role=PeerRole.LEARNER)
        name = addition_id(region, learner)
        return MembershipChange(kind, learner, region.epoch.conf_version, name, address)
    if known is None:
        raise PreconditionFailed(f"peer {peer.peer_id} is not a member of region {region.region_id}")
    if kind is ChangeKind.PROMOTE:
        if known.role is PeerRole.VOTER:
            raise PreconditionFailed(f"peer {peer.peer_id} is a voter already")
        voter = replace(known, role=PeerRole.VOTER)
        return MembershipChange(kind, voter, region.epoch.conf_version, addition_id(region, voter), address)
    voters = [p for p in region.peers if p.role is PeerRole.VOTER]
    if known.role is PeerRole.VOTER and len(voters) == 1:
        raise PreconditionFailed(f"peer {peer.peer_id} is the only voter of region {region.region_id}")
    if known.peer_id == leader_peer_id:
        raise PreconditionFailed(
            f"peer {peer.peer_id} leads region {region.region_id}", hint="transfer the leadership first"
        )
    return MembershipChange(kind, known, region.epoch.conf_version, removal_id(region, known), "")


def encode_change(change: MembershipChange) -> bytes:
    name, address = change.transition_id.encode(), change.address.encode()
    if len(name) > _TEXT_BYTES_MAX or len(address) > _TEXT_BYTES_MAX:
        raise PreconditionFailed("the name or address of the change is too long")
    body = (
        _HEAD.pack(
            _VERSION,
            _NUMBERS[change.kind],
            change.peer.role is PeerRole.VOTER,
            change.peer.peer_id,
            change.peer.store_id,
            change.conf_version,
            len(name),
            len(address),
        )
        + name
        + address
    )
    return body + struct.pack("<I", crc32c(body))


def decode_change(data: bytes) -> MembershipChange:
    """Corruption if the bytes are not a change."""
    if len(data) < _HEAD.size + 4 or struct.unpack("<I", data[-4:])[0] != crc32c(data[:-4]):
        raise Corruption("malformed membership change")
    version, number, voter, peer_id, store_id, conf_version, name_size, address_size = _HEAD.unpack_from(data)
    if (
        version != _VERSION
        or number not in _KINDS
        or voter > 1
        or len(data) != _HEAD.size + name_size + address_size + 4
    ):
        raise Corruption("malformed membership change")
    text = data[_HEAD.size : -4]
    try:
        name, address = text[:name_size].decode(), text[name_size:].decode()
    except UnicodeDecodeError as error:
        raise Corruption("malformed membership change: not text") from error
    peer = Peer(peer_id, store_id, PeerRole.VOTER if voter else PeerRole.LEARNER)
    return MembershipChange(_KINDS[number], peer, conf_version, name, address)
