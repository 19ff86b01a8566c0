"""Synchronous calls of operator commands to meta-roots and coordinators, and the readiness probe of each role."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from nokv.errors import NoKVError, Unavailable
from nokv.migrate.client import AdminClient, call, open_channel
from nokv.pb import coordinator_pb2, coordinator_pb2_grpc, meta_pb2, root_pb2, root_pb2_grpc
from nokv.region import PeerRole, Region

__all__ = ["CoordinatorAdmin", "RootAdmin", "first_answer", "probe", "region_json"]


class _Channel:
    def __init__(self, address: str, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.channel = open_channel(address)

    def close(self) -> None:
        self.channel.close()

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()


class RootAdmin(_Channel):
    """One meta-root peer."""

    def __init__(self, address: str, *, timeout_s: float = 3.0) -> None:
        super().__init__(address, timeout_s)
        self._stub = root_pb2_grpc.RootStub(self.channel)

    def __enter__(self) -> RootAdmin:
        return self

    def status(self) -> root_pb2.RootStatusResponse:
        return self._call(self._stub.Status, root_pb2.RootStatusRequest())  # type: ignore[no-any-return]

    def read(self, from_revision: int, limit: int) -> root_pb2.RootReadResponse:
        request = root_pb2.RootReadRequest(from_revision=from_revision, limit=limit)
        return self._call(self._stub.Read, request)  # type: ignore[no-any-return]

    def snapshot(self, *, linearizable: bool) -> root_pb2.RootSnapshotResponse:
        request = root_pb2.RootSnapshotRequest(linearizable=linearizable)
        return self._call(self._stub.Snapshot, request)  # type: ignore[no-any-return]

    def _call(self, method: Any, request: object) -> Any:
        return call(method, request, self.address, "meta-root", self.timeout_s)


class CoordinatorAdmin(_Channel):
    """One coordinator."""

    def __init__(self, address: str, *, timeout_s: float = 3.0) -> None:
        super().__init__(address, timeout_s)
        self._stub = coordinator_pb2_grpc.CoordinatorStub(self.channel)

    def __enter__(self) -> CoordinatorAdmin:
        return self

    def status(self) -> coordinator_pb2.CoordinatorStatusResponse:
        return self._call(self._stub.Status, coordinator_pb2.CoordinatorStatusRequest())  # type: ignore[no-any-return]

    def routes(self, limit: int = 0) -> coordinator_pb2.ScanRegionsResponse:
        request = coordinator_pb2.ScanRegionsRequest(limit=limit)
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

    def _call(self, method: Any, request: object) -> Any:
        return call(method, request, self.address, "coordinator", self.timeout_s)


def first_answer(addresses: list[str], ask: Any) -> Any:
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


def probe(role: str, address: str, *, timeout_s: float = 1.0) -> str:
    """Empty if the process is ready for work, else one line that says what it still waits for. Raises no NoKVError."""
    try:
        if role == "meta-root":
            with RootAdmin(address, timeout_s=timeout_s) as root:
                return "" if root.status().leader_id else "no leader elected yet"
        if role == "coordinator":
            with CoordinatorAdmin(address, timeout_s=timeout_s) as coordinator:
                status = coordinator.status()
                return "" if status.lease_holder or status.lease.holder else "no lease yet"
        with AdminClient(address, timeout_s=timeout_s) as store:
            state = store.execution_status().restart.state
            return "" if state == "ready" else f"restart posture {state or 'unknown'}"
    except NoKVError as error:
        return str(error)


def region_json(region: Region, leader: meta_pb2.Peer | None = None) -> dict[str, Any]:
    return {
        "id": region.region_id,
        "start_key": region.start_key,
        "end_key": region.end_key,
        "epoch": {"conf_version": region.epoch.conf_version, "version": region.epoch.version},
        "state": region.state.value,
        "leader": None
        if leader is None or not leader.peer_id
        else {"peer_id": leader.peer_id, "store_id": leader.store_id},
        "peers": [
            {"peer_id": p.peer_id, "store_id": p.store_id, "role": p.role.value, "voter": p.role is PeerRole.VOTER}
            for p in region.peers
        ],
    }
