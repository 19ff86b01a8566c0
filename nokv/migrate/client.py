"""A small synchronous client of a store's admin service, for operator commands. One thread at a time.

Turns protobuf into plain values and gRPC failures into `nokv.errors`: trailers `nokv-error` and `nokv-leader` first,
then the status code. It never retries: the verbs decide that, because each of their steps is safe to repeat and says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from nokv.errors import (
    Corruption,
    DeadlineExceeded,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.pb import admin_pb2, admin_pb2_grpc, meta_pb2
from nokv.region import Peer, PeerRole, Region, RegionEpoch, RegionState

__all__ = ["AdminClient", "Progress", "RegionDigest", "RegionStatus", "call", "open_channel", "region_from_pb"]

_ROLES = {meta_pb2.PEER_ROLE_VOTER: PeerRole.VOTER, meta_pb2.PEER_ROLE_LEARNER: PeerRole.LEARNER}
_STATES = {
    meta_pb2.REGION_STATE_NEW: RegionState.NEW,
    meta_pb2.REGION_STATE_RUNNING: RegionState.RUNNING,
    meta_pb2.REGION_STATE_REMOVING: RegionState.REMOVING,
    meta_pb2.REGION_STATE_TOMBSTONE: RegionState.TOMBSTONE,
}
_BY_CODE: dict[grpc.StatusCode, type[NoKVError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ALREADY_EXISTS: PreconditionFailed,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}


def open_channel(address: str) -> grpc.Channel:
    """A lazy channel; nothing is dialled before the first call. UsageError if `address` is not host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"address {address!r} is not host:port", hint="for example 127.0.0.1:20160")
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0)]
    return grpc.insecure_channel(address, options=options)


def call(method: Callable[..., Any], request: object, address: str, what: str, timeout_s: float) -> Any:
    """One unary call; `what` names the service for the message ("store", "coordinator")."""
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise _translate(error, address, what, timeout_s) from None


def _translate(error: grpc.RpcError, address: str, what: str, timeout_s: float) -> NoKVError:
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ()) if isinstance(error, grpc.Call) else {}
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else "") or str(code)
    if trailers.get("nokv-error") == "not-leader":
        return NotLeader(f"{what} at {address}: {details}", address=str(trailers.get("nokv-leader", "")))
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"no {what} answers at {address}: {details}", hint=f"check that the {what} runs and the address"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"{what} at {address} did not answer within {timeout_s:g} s", hint=f"read the {what}'s log"
        )
    if code is grpc.StatusCode.DATA_LOSS:
        return Corruption(f"{what} at {address}: {details}")
    return _BY_CODE.get(code, NoKVError)(f"{what} at {address}: {details}")


def peer_from_pb(peer: meta_pb2.Peer) -> Peer:
    return Peer(peer.peer_id, peer.store_id, _ROLES.get(peer.role, PeerRole.VOTER))


def region_from_pb(region: meta_pb2.Region) -> Region:
    return Region(
        region_id=region.region_id,
        start_key=region.start_key,
        end_key=region.end_key,
        epoch=RegionEpoch(region.epoch.conf_version, region.epoch.version),
        peers=tuple(peer_from_pb(peer) for peer in region.peers),
        state=_STATES.get(region.state, RegionState.RUNNING),
    )


@dataclass(slots=True, frozen=True)
class Progress:
    peer_id: int
    state: str
    match_index: int
    next_index: int
    learner: bool
    active: bool


@dataclass(slots=True, frozen=True)
class RegionStatus:
    """What one store says about one region. `region` is None if the store does not host it."""

    address: str
    hosted: bool
    region: Region | None
    local_peer_id: int
    leader_peer_id: int
    leader_store_id: int
    leader_address: str
    term: int
    commit_index: int
    applied_index: int
    applied_term: int
    progress: tuple[Progress, ...]
    mode: str

    @property
    def is_leader(self) -> bool:
        return self.hosted and self.local_peer_id == self.leader_peer_id != 0


@dataclass(slots=True, frozen=True)
class RegionDigest:
    digest: str
    keys: int
    bytes: int
    applied_index: int


class AdminClient:
    """The admin service of the store at `address`."""

    def __init__(self, address: str, *, timeout_s: float = 5.0) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._channel = open_channel(address)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float = 0.0) -> Any:
        return call(method, request, self.address, "store", timeout_s or self.timeout_s)

    def region_status(self, region_id: int) -> RegionStatus:
        answer = self._call(self._stub.RegionStatus, admin_pb2.RegionStatusRequest(region_id=region_id))
        return RegionStatus(
            address=self.address,
            hosted=answer.hosted,
            region=region_from_pb(answer.region) if answer.hosted else None,
            local_peer_id=answer.local_peer_id,
            leader_peer_id=answer.leader_peer_id,
            leader_store_id=answer.leader_store_id,
            leader_address=answer.leader_address,
            term=answer.term,
            commit_index=answer.commit_index,
            applied_index=answer.applied_index,
            applied_term=answer.applied_term,
            progress=tuple(
                Progress(p.peer_id, p.state, p.match_index, p.next_index, p.learner, p.active) for p in answer.progress
            ),
            mode=answer.mode,
        )

    def execution_status(self, region_id: int = 0, transition_id: str = "") -> admin_pb2.ExecutionStatusResponse:
        request = admin_pb2.ExecutionStatusRequest(region_id=region_id, transition_id=transition_id)
        answer = self._call(self._stub.ExecutionStatus, request)
        assert isinstance(answer, admin_pb2.ExecutionStatusResponse)
        return answer

    def hosted_regions(self) -> tuple[Region, ...]:
        return tuple(region_from_pb(region) for region in self.execution_status().regions)

    def add_learner(self, region_id: int, peer_id: int, store_id: int, store_address: str, timeout_s: float) -> Region:
        peer = meta_pb2.Peer(peer_id=peer_id, store_id=store_id, role=meta_pb2.PEER_ROLE_LEARNER)
        request = admin_pb2.AddPeerRequest(region_id=region_id, peer=peer, store_address=store_address)
        return region_from_pb(self._call(self._stub.AddPeer, request, timeout_s).region)

    def promote(self, region_id: int, peer_id: int, timeout_s: float) -> Region:
        request = admin_pb2.PromotePeerRequest(region_id=region_id, peer_id=peer_id)
        return region_from_pb(self._call(self._stub.PromotePeer, request, timeout_s).region)

    def remove_peer(self, region_id: int, peer_id: int, timeout_s: float) -> Region:
        request = admin_pb2.RemovePeerRequest(region_id=region_id, peer_id=peer_id)
        return region_from_pb(self._call(self._stub.RemovePeer, request, timeout_s).region)

    def transfer_leader(self, region_id: int, peer_id: int, timeout_s: float) -> Region:
        request = admin_pb2.TransferLeaderRequest(region_id=region_id, peer_id=peer_id)
        return region_from_pb(self._call(self._stub.TransferLeader, request, timeout_s).region)

    def digest(self, region_id: int, at_least_applied_index: int = 0, *, timeout_s: float = 60.0) -> RegionDigest:
        request = admin_pb2.RegionDigestRequest(
            region_id=region_id, at_least_applied_index=at_least_applied_index, timeout_ms=int(timeout_s * 1000)
        )
        answer = self._call(self._stub.RegionDigest, request, timeout_s + 1.0)
        return RegionDigest(answer.digest, answer.keys, answer.bytes, answer.applied_index)
