"""Synchronous calls to coordinators, stores and meta-roots for the shell's cluster verbs: plain rows come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from nokv.errors import DeadlineExceeded, NoKVError, NotFound, NotSupported, Unavailable, UsageError
from nokv.literal import json_bytes
from nokv.pb import (
    admin_pb2,
    admin_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    meta_pb2,
    root_pb2,
    root_pb2_grpc,
)

__all__ = ["Planes"]

TIMEOUT_S = 3.0

_BY_CODE: dict[grpc.StatusCode, type[NoKVError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}


class Planes:
    """One channel for each address, opened on demand. `coordinators` are asked in turn until one answers."""

    def __init__(self, coordinators: list[str]) -> None:
        self._coordinators = coordinators
        self._channels: dict[str, grpc.Channel] = {}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    # -- control plane ------------------------------------------------------------------------------------------------
    def status(self) -> dict[str, Any]:
        address, answer = self._coordinator("Status", coordinator_pb2.CoordinatorStatusRequest())
        return {
            "coordinator": address,
            "coordinator_id": answer.coordinator_id,
            "lease_holder": answer.lease_holder,
            "lease": answer.lease.holder,
            "view": {
                "degraded": answer.view.degraded,
                "root_lag": answer.view.root_lag,
                "revision": answer.view.served.revision,
            },
            "regions": answer.region_count,
            "stores": answer.store_count,
        }

    def stats(self) -> dict[str, Any]:
        _, answer = self._coordinator("Status", coordinator_pb2.CoordinatorStatusRequest())
        return {"id_next": answer.id_next, "tso_last": answer.tso_last, "reads_served": answer.reads_served}

    def regions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        start = b""
        while True:
            _, answer = self._coordinator("ScanRegions", coordinator_pb2.ScanRegionsRequest(start_key=start, limit=500))
            for route in answer.routes:
                region = route.region
                rows.append(
                    {
                        "id": region.region_id,
                        "start_key": json_bytes(region.start_key),
                        "end_key": json_bytes(region.end_key),
                        "epoch": f"{region.epoch.conf_version}/{region.epoch.version}",
                        "leader": route.leader.store_id or None,
                        "peers": [_peer(peer) for peer in region.peers],
                    }
                )
            if not answer.routes or not answer.routes[-1].region.end_key:
                return rows
            following = answer.routes[-1].region.end_key
            if following <= start:
                raise Unavailable("the coordinator's regions do not advance")
            start = following

    def stores(self) -> list[dict[str, Any]]:
        _, answer = self._coordinator("ListStores", coordinator_pb2.ListStoresRequest())
        return [
            {
                "id": view.store.store_id,
                "address": view.store.address,
                "liveness": view.liveness,
                "regions": view.stats.region_count,
                "leaders": view.stats.leader_count,
                "used_bytes": view.stats.used_bytes,
            }
            for view in answer.stores
        ]

    # -- execution plane ----------------------------------------------------------------------------------------------
    def execution(self, address: str, region_id: int) -> list[dict[str, Any]]:
        addresses = [address] if address else [row["address"] for row in self.stores() if row["address"]]
        request = admin_pb2.ExecutionStatusRequest(region_id=region_id)
        rows: list[dict[str, Any]] = []
        for one in addresses:
            try:
                answer = self._call(one, "store", admin_pb2_grpc.AdminStub, "ExecutionStatus", request)
            except Unavailable as error:
                if address:
                    raise
                rows.append({"address": one, "error": str(error)})  # the others still answer
                continue
            rows.append(
                {
                    "address": one,
                    "store_id": answer.store_id,
                    "mode": answer.mode,
                    "restart": {
                        "state": answer.restart.state,
                        "regions": answer.restart.region_count,
                        "raft_groups": answer.restart.raft_group_count,
                        "pending_root_events": answer.restart.pending_root_events,
                    },
                    "leads": list(answer.leader_region_ids),
                    "admission": [f"{a.kind} {a.outcome} region {a.region_id}" for a in answer.last_admission],
                    "topology": [f"{t.transition_id} {t.kind} {t.outcome}, {t.publish}" for t in answer.topology],
                }
            )
        return rows

    # -- truth plane --------------------------------------------------------------------------------------------------
    def root_log(self, address: str, from_revision: int, limit: int) -> list[dict[str, Any]]:
        request = root_pb2.RootReadRequest(from_revision=from_revision, limit=limit)
        answer = self._call(address, "meta-root", root_pb2_grpc.RootStub, "Read", request)
        rows = []
        for event in answer.events:
            kind = root_pb2.RootEventKind.Name(event.kind) if event.kind in root_pb2.RootEventKind.values() else ""
            rows.append(
                {
                    "revision": event.token.revision,
                    "term": event.token.term,
                    "kind": kind.removeprefix("ROOT_EVENT_").lower().replace("_", "-") or str(event.kind),
                }
            )
        return rows

    # -- calls --------------------------------------------------------------------------------------------------------
    def _coordinator(self, method: str, request: object) -> tuple[str, Any]:
        last: NoKVError | None = None
        for address in self._coordinators:
            try:
                stub = coordinator_pb2_grpc.CoordinatorStub
                return address, self._call(address, "coordinator", stub, method, request)
            except Unavailable as error:
                last = error
        assert last is not None
        raise last

    def _call(self, address: str, what: str, stub: Callable[[grpc.Channel], Any], method: str, request: object) -> Any:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"address {address!r} is not host:port", hint="for example 127.0.0.1:2379")
        channel = self._channels.get(address)
        if channel is None:
            options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
            channel = self._channels[address] = grpc.insecure_channel(address, options=options)
        try:
            return getattr(stub(channel), method)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            if code is grpc.StatusCode.UNAVAILABLE:
                message = f"no {what} answers at {address}: {details}"
                raise Unavailable(message, hint=f"does the {what} run, and is this its address?") from None
            raise _BY_CODE.get(code, NoKVError)(f"{what} at {address}: {details or code.name.lower()}") from None


def _peer(peer: meta_pb2.Peer) -> str:
    learner = " (learner)" if peer.role == meta_pb2.PEER_ROLE_LEARNER else ""
    return f"{peer.peer_id}@{peer.store_id}{learner}"
