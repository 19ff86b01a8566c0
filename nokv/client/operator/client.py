"""Blocking clients of the meta-root, the coordinator and a store's admin service. One thread at a time each.

Turns protobuf into plain values and gRPC failures into `nokv.errors`, as every client of these planes does
(`metaroot.client.error_from_rpc`); a connection that failed over certificates is `NotTrusted`. It never retries: the
verbs decide that, because each of their steps is safe to repeat and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from nokv.errors import DeadlineExceeded, NoKVError, Unavailable
from nokv.metaroot.client import error_from_rpc, is_reported
from nokv.metaroot.wire import peer_from_pb, region_from_pb
from nokv.pb import admin_pb2, admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc, meta_pb2, root_pb2, root_pb2_grpc
from nokv.region import Region
from nokv.rpc.tls import Tls, refusal
from nokv.rpc.transport import open_blocking_channel

__all__ = [
    "AdminClient",
    "CoordinatorAdmin",
    "Progress",
    "RegionDigest",
    "RegionStatus",
    "RootAdmin",
    "error_from_call",
    "first_answer",
    "peer_from_pb",
    "region_from_pb",
]

MESSAGE_BYTES_MAX = 64 << 20
_OPTIONS = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.enable_retries", 0)]
_P = TypeVar("_P", bound="_Plane")
_T = TypeVar("_T")


def error_from_call(error: grpc.RpcError, address: str, what: str, timeout_s: float, tls: Tls | None) -> NoKVError:
    """Our error for a failed call to the `what` ("store", "coordinator", "meta-root") at `address`."""
    if not isinstance(error, grpc.Call):
        return NoKVError(f"{what} at {address}: {error}")
    status, details = error.code(), error.details() or ""
    if not is_reported(error) and status is grpc.StatusCode.UNAVAILABLE:
        untrusted = refusal(address, tls, details)
        if untrusted is not None:
            return untrusted
        hint = f"check that the {what} runs and the address"
        return Unavailable(f"no {what} answers at {address}: {details or 'unavailable'}", hint=hint)
    if not is_reported(error) and status is grpc.StatusCode.DEADLINE_EXCEEDED:
        hint = f"read the {what}'s log"
        return DeadlineExceeded(f"{what} at {address} did not answer within {timeout_s:g} s", hint=hint)
    return error_from_rpc(error, f"{what} at {address}")


class _Plane:
    """One lazy channel; nothing is dialled before the first call. UsageError if `address` is not host:port."""

    what = "server"

    def __init__(self, address: str, *, timeout_s: float = 3.0, tls: Tls | None = None) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._tls = tls
        self._channel = open_blocking_channel(address, _OPTIONS, tls)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self: _P) -> _P:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float = 0.0) -> Any:
        limit = timeout_s or self.timeout_s
        try:
            return method(request, timeout=limit)
        except grpc.RpcError as error:
            raise error_from_call(error, self.address, self.what, limit, self._tls) from None


class RootAdmin(_Plane):
    """One meta-root peer."""

    what = "meta-root"

    def __init__(self, address: str, *, timeout_s: float = 3.0, tls: Tls | None = None) -> None:
        super().__init__(address, timeout_s=timeout_s, tls=tls)
        self._stub = root_pb2_grpc.RootStub(self._channel)

    def status(self) -> root_pb2.RootStatusResponse:
        return self._call(self._stub.Status, root_pb2.RootStatusRequest())  # type: ignore[no-any-return]

    def read(self, from_revision: int, limit: int) -> root_pb2.RootReadResponse:
        request = root_pb2.RootReadRequest(from_revision=from_revision, limit=limit)
        return self._call(self._stub.Read, request)  # type: ignore[no-any-return]

    def snapshot(self, *, linearizable: bool) -> root_pb2.RootSnapshotResponse:
        request = root_pb2.RootSnapshotRequest(linearizable=linearizable)
        return self._call(self._stub.Snapshot, request)  # type: ignore[no-any-return]


class CoordinatorAdmin(_Plane):
    """One coordinator."""

    what = "coordinator"

    def __init__(self, address: str, *, timeout_s: float = 3.0, tls: Tls | None = None) -> None:
        super().__init__(address, timeout_s=timeout_s, tls=tls)
        self._stub = coordinator_pb2_grpc.CoordinatorStub(self._channel)

    def status(self) -> coordinator_pb2.CoordinatorStatusResponse:
        return self._call(self._stub.Status, coordinator_pb2.CoordinatorStatusRequest())  # type: ignore[no-any-return]

    def routes(self, start_key: bytes = b"", limit: int = 0) -> coordinator_pb2.ScanRegionsResponse:
        request = coordinator_pb2.ScanRegionsRequest(start_key=start_key, limit=limit)
        return self._call(self._stub.ScanRegions, request)  # type: ignore[no-any-return]

    def stores(self) -> coordinator_pb2.ListStoresResponse:
        return self._call(self._stub.ListStores, coordinator_pb2.ListStoresRequest())  # type: ignore[no-any-return]

    def store_address(self, store_id: int) -> str:
        for view in self.stores().stores:
            if view.store.store_id == store_id:
                return str(view.store.address)
        raise NoKVError(
            f"coordinator at {self.address} knows no store {store_id}",
            hint=f"start it: nokv serve --store-id {store_id} --coordinator-addr {self.address}",
        )


def first_answer(addresses: list[str], ask: Callable[[str], _T]) -> _T:
    """`ask(address)` of the first address that answers; Unavailable with the last reason if none does."""
    last: NoKVError | None = None
    for address in addresses:
        try:
            return ask(address)
        except NoKVError as error:
            last = error
    if last is None:
        raise Unavailable("no address to ask")
    raise last


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


class AdminClient(_Plane):
    """The admin service of the store at `address`."""

    what = "store"

    def __init__(self, address: str, *, timeout_s: float = 5.0, tls: Tls | None = None) -> None:
        super().__init__(address, timeout_s=timeout_s, tls=tls)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

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
