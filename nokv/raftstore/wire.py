"""Plain values to protobuf and back, for everything this folder puts on the wire; the table of errors. Pure."""

from __future__ import annotations

from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    KeyNotInRegion,
    NoKVError,
    NotLeader,
    NotSupported,
    ReadOnly,
    RegionNotFound,
    StoreNotMatch,
    Unavailable,
)
from nokv.pb import kv_pb2, meta_pb2
from nokv.region import Peer, PeerRole, Region, RegionEpoch, RegionState

__all__ = ["epoch_from_pb", "error_to_pb", "peer_from_pb", "peer_to_pb", "region_from_pb", "region_to_pb"]

_ROLE_TO_PB = {PeerRole.VOTER: meta_pb2.PEER_ROLE_VOTER, PeerRole.LEARNER: meta_pb2.PEER_ROLE_LEARNER}
_ROLE_FROM_PB: dict[int, PeerRole] = {int(number): role for role, number in _ROLE_TO_PB.items()}
_STATE_TO_PB = {
    RegionState.NEW: meta_pb2.REGION_STATE_NEW,
    RegionState.RUNNING: meta_pb2.REGION_STATE_RUNNING,
    RegionState.REMOVING: meta_pb2.REGION_STATE_REMOVING,
    RegionState.TOMBSTONE: meta_pb2.REGION_STATE_TOMBSTONE,
}
_STATE_FROM_PB: dict[int, RegionState] = {int(number): state for state, number in _STATE_TO_PB.items()}


def peer_to_pb(peer: Peer) -> meta_pb2.Peer:
    return meta_pb2.Peer(peer_id=peer.peer_id, store_id=peer.store_id, role=_ROLE_TO_PB[peer.role])


def peer_from_pb(message: meta_pb2.Peer) -> Peer:
    """ValueError if the role is one we do not know."""
    role = _ROLE_FROM_PB.get(int(message.role))
    if role is None:
        raise ValueError(f"unknown peer role {message.role}")
    return Peer(message.peer_id, message.store_id, role)


def region_to_pb(region: Region) -> meta_pb2.Region:
    return meta_pb2.Region(
        region_id=region.region_id,
        start_key=region.start_key,
        end_key=region.end_key,
        epoch=meta_pb2.RegionEpoch(conf_version=region.epoch.conf_version, version=region.epoch.version),
        peers=[peer_to_pb(peer) for peer in region.peers],
        state=_STATE_TO_PB[region.state],
    )


def region_from_pb(message: meta_pb2.Region) -> Region:
    """ValueError if an enum has a value we do not know."""
    state = _STATE_FROM_PB.get(int(message.state))
    if state is None:
        raise ValueError(f"unknown region state {message.state}")
    return Region(
        region_id=message.region_id,
        start_key=message.start_key,
        end_key=message.end_key,
        epoch=epoch_from_pb(message.epoch),
        peers=tuple(peer_from_pb(peer) for peer in message.peers),
        state=state,
    )


def epoch_from_pb(message: meta_pb2.RegionEpoch) -> RegionEpoch:
    return RegionEpoch(message.conf_version, message.version)


_ERRORS: tuple[tuple[type[NoKVError], int], ...] = (
    (NotLeader, kv_pb2.REGION_ERROR_NOT_LEADER),
    (EpochNotMatch, kv_pb2.REGION_ERROR_EPOCH_NOT_MATCH),
    (RegionNotFound, kv_pb2.REGION_ERROR_REGION_NOT_FOUND),
    (KeyNotInRegion, kv_pb2.REGION_ERROR_KEY_NOT_IN_REGION),
    (StoreNotMatch, kv_pb2.REGION_ERROR_STORE_NOT_MATCH),
    (Busy, kv_pb2.REGION_ERROR_BUSY),
    (Indeterminate, kv_pb2.REGION_ERROR_INDETERMINATE),
    (DeadlineExceeded, kv_pb2.REGION_ERROR_DEADLINE),
    (Unavailable, kv_pb2.REGION_ERROR_BUSY),
    (NotSupported, kv_pb2.REGION_ERROR_NOT_SUPPORTED),
    (ReadOnly, kv_pb2.REGION_ERROR_READ_ONLY),
    (Corruption, kv_pb2.REGION_ERROR_CORRUPTION),
)


def error_to_pb(error: NoKVError) -> kv_pb2.RegionError:
    """Every refusal of the data path has its own kind; what is left is the caller's mistake."""
    kind = next((number for known, number in _ERRORS if isinstance(error, known)), kv_pb2.REGION_ERROR_INVALID)
    message = kv_pb2.RegionError(kind=kind, message=str(error))  # type: ignore[arg-type]
    if isinstance(error, NotLeader):
        message.not_leader.region_id = error.region_id
        message.not_leader.address = error.address
        if error.leader is not None:
            message.not_leader.leader.CopyFrom(peer_to_pb(error.leader))
    elif isinstance(error, EpochNotMatch):
        message.current_regions.extend(region_to_pb(region) for region in error.regions)
    return message
