"""Synchronous calls to coordinators, stores and meta-roots for the shell's cluster verbs: plain rows come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from nokv.client.operator.client import AdminClient, CoordinatorAdmin, RootAdmin
from nokv.errors import Unavailable
from nokv.literal import json_bytes
from nokv.pb import meta_pb2, root_pb2
from nokv.rpc.tls import Tls

__all__ = ["Planes"]

TIMEOUT_S = 3.0
PAGE = 500
_C = TypeVar("_C", RootAdmin, CoordinatorAdmin, AdminClient)
_T = TypeVar("_T")


class Planes:
    """One channel for each address, opened on demand. `coordinators` are asked in turn until one answers."""

    def __init__(self, coordinators: list[str], tls: Tls | None = None) -> None:
        self._coordinators = coordinators
        self._tls = tls
        self._clients: dict[tuple[type, str], Any] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # -- control plane ------------------------------------------------------------------------------------------------
    def status(self) -> dict[str, Any]:
        address, answer = self._coordinator(lambda one: one.status())
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
        _, answer = self._coordinator(lambda one: one.status())
        return {"id_next": answer.id_next, "tso_last": answer.tso_last, "reads_served": answer.reads_served}

    def regions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        start = b""
        while True:
            _, answer = self._coordinator(partial(CoordinatorAdmin.routes, start_key=start, limit=PAGE))
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
        _, answer = self._coordinator(lambda one: one.stores())
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
        rows: list[dict[str, Any]] = []
        for one in addresses:
            try:
                answer = self._client(AdminClient, one).execution_status(region_id)
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
        answer = self._client(RootAdmin, address).read(from_revision, limit)
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
    def _coordinator(self, ask: Callable[[CoordinatorAdmin], _T]) -> tuple[str, _T]:
        """(address, answer) of the first coordinator that answers."""
        last: Unavailable | None = None
        for address in self._coordinators:
            try:
                return address, ask(self._client(CoordinatorAdmin, address))
            except Unavailable as error:
                last = error
        assert last is not None
        raise last

    def _client(self, kind: type[_C], address: str) -> _C:
        client = self._clients.get((kind, address))
        if client is None:
            client = self._clients[kind, address] = kind(address, timeout_s=TIMEOUT_S, tls=self._tls)
        return client


def _peer(peer: meta_pb2.Peer) -> str:
    learner = " (learner)" if peer.role == meta_pb2.PEER_ROLE_LEARNER else ""
    return f"{peer.peer_id}@{peer.store_id}{learner}"
