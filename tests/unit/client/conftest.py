"""A cluster in a dict behind real gRPC: stores that check region, epoch, leader and range; and a coordinator.

What it does not do: replicate. All stores share the data, so that any of them can be made leader at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from nokv._ext.command import pack_done, pack_results, unpack_reads, unpack_writes
from nokv.errors import KeyNotInRegion, UsageError
from nokv.metaroot.wire import peer_to_pb, region_to_pb
from nokv.pb import coordinator_pb2, coordinator_pb2_grpc, kv_pb2, kv_pb2_grpc, meta_pb2
from nokv.region import Peer, Region, RegionEpoch

ANSWER_ROWS = 3  # a scan stops early after this many


class FakeCluster:
    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.leaders: dict[int, int] = {}  # region id -> store id
        self.told_leaders: dict[int, int] = {}  # what the coordinator says, if it is wrong
        self.told_regions: list[Region] | None = None
        self.versions: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self.clock = 100
        self.floors: list[int] = []  # what writers had seen
        self.stores: dict[int, FakeStore] = {}
        self.coordinator_calls: list[str] = []
        self.coordinator_address = ""
        self._servers: list[grpc.aio.Server] = []

    async def start(self, stores: int) -> None:
        for store_id in range(1, stores + 1):
            await self.start_store(store_id)
        server = grpc.aio.server()
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(FakeCoordinator(self), server)
        self.coordinator_address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._servers.append(server)
        peers = tuple(Peer(10 + store_id, store_id) for store_id in range(1, stores + 1))
        self.regions = [Region(1, b"", b"", RegionEpoch(1, 1), peers)]
        self.leaders = {1: 1}

    async def start_store(self, store_id: int, address: str = "127.0.0.1:0") -> None:
        store = FakeStore(self, store_id)
        store.server = grpc.aio.server()
        kv_pb2_grpc.add_KvServicer_to_server(store, store.server)
        port = store.server.add_insecure_port(address)
        store.address = f"127.0.0.1:{port}"
        await store.server.start()
        self.stores[store_id] = store

    async def stop(self) -> None:
        for store in self.stores.values():
            await store.server.stop(None)
        for server in self._servers:
            await server.stop(None)

    def split(self, key: bytes) -> None:
        """The left part keeps the id, as etcd-like stores do."""
        at = next(i for i, region in enumerate(self.regions) if region.contains(key))
        old = self.regions[at]
        epoch = RegionEpoch(old.epoch.conf_version, old.epoch.version + 1)
        new_id = max(region.region_id for region in self.regions) + 1
        left = replace(old, end_key=key, epoch=epoch)
        right = replace(old, region_id=new_id, start_key=key, epoch=epoch)
        self.regions[at : at + 1] = [left, right]
        self.leaders[new_id] = self.leaders[old.region_id]

    def read(self, key: bytes, ts: int) -> bytes | None:
        found = [value for at, value in self.versions.get(key, []) if not ts or at <= ts]
        return found[-1] if found else None

    def data(self) -> dict[bytes, bytes]:
        read = {key: self.read(key, 0) for key in sorted(self.versions)}
        return {key: value for key, value in read.items() if value is not None}


class FakeStore(kv_pb2_grpc.KvServicer):
    def __init__(self, cluster: FakeCluster, store_id: int) -> None:
        self.cluster = cluster
        self.store_id = store_id
        self.address = ""
        self.server: Any = None
        self.messages: list[int] = []  # groups in each message
        self.groups = 0
        self.hook: Callable[[kv_pb2.RegionCommands], kv_pb2.RegionError | str | None] = lambda group: None

    async def Batch(self, requests: Any, context: Any) -> AsyncIterator[kv_pb2.KvBatchResponse]:
        async for request in requests:
            self.messages.append(len(request.groups))
            replies = []
            for group in request.groups:
                self.groups += 1
                told = self.hook(group)
                if told == "silence":
                    continue
                if told == "break":
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
                if told == "apply and break":
                    self.answer(group)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
                reply = kv_pb2.RegionReply(error=told) if told is not None else self.answer(group)
                reply.request_id = group.request_id
                replies.append(reply)
            if replies:
                yield kv_pb2.KvBatchResponse(replies=replies)

    def answer(self, group: kv_pb2.RegionCommands) -> kv_pb2.RegionReply:
        cluster = self.cluster
        region = next((r for r in cluster.regions if r.region_id == group.context.region_id), None)
        if group.context.store_id != self.store_id:
            return error(kv_pb2.REGION_ERROR_STORE_NOT_MATCH)
        if region is None or region.peer_on(self.store_id) is None:
            return error(kv_pb2.REGION_ERROR_REGION_NOT_FOUND)
        leader = cluster.leaders.get(region.region_id)
        if leader != self.store_id:
            info = kv_pb2.NotLeaderInfo(region_id=region.region_id)
            if leader is not None and (peer := region.peer_on(leader)) is not None:
                info.leader.CopyFrom(peer_to_pb(peer))
                info.address = cluster.stores[leader].address
            return error(kv_pb2.REGION_ERROR_NOT_LEADER, not_leader=info)
        epoch = group.context.epoch
        if (epoch.conf_version, epoch.version) != (region.epoch.conf_version, region.epoch.version):
            return error(kv_pb2.REGION_ERROR_EPOCH_NOT_MATCH, current_regions=map(region_to_pb, cluster.regions))
        try:
            results = self.write(group) if group.write else self.read(group, region)
        except KeyNotInRegion as problem:
            return error(kv_pb2.REGION_ERROR_KEY_NOT_IN_REGION, message=str(problem))
        except UsageError as problem:
            return error(kv_pb2.REGION_ERROR_INVALID, message=str(problem))
        return kv_pb2.RegionReply(results=results, commit_ts=cluster.clock if group.write else 0)

    def write(self, group: kv_pb2.RegionCommands) -> bytes:
        writes = unpack_writes(group.commands)
        self.cluster.clock += 1
        self.cluster.floors.append(group.read_ts)
        for key, value in writes:
            self.cluster.versions.setdefault(key, []).append((self.cluster.clock, value))
        return pack_done(len(writes))

    def read(self, group: kv_pb2.RegionCommands, region: Region) -> bytes:
        commands, _ = unpack_reads(group.commands, region.start_key, region.end_key)
        results: list[Any] = []
        for command in commands:
            if isinstance(command, bytes):
                results.append(self.cluster.read(command, group.read_ts))
                continue
            start, end, limit, flags = command
            keys = [
                key
                for key in sorted(self.cluster.versions, reverse=bool(flags & 1))
                if start <= key and (not end or key < end) and self.cluster.read(key, group.read_ts) is not None
            ]
            shown = keys[: min(limit or ANSWER_ROWS, ANSWER_ROWS)]
            pairs = [(key, self.cluster.read(key, group.read_ts)) for key in shown]
            results.append((pairs, len(shown) < len(keys), bool(flags & 2)))
        return pack_results(results)


def error(kind: Any, **fields: Any) -> kv_pb2.RegionReply:
    return kv_pb2.RegionReply(error=kv_pb2.RegionError(kind=kind, **fields))


class FakeCoordinator(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster

    def _route(self, region: Region) -> coordinator_pb2.Route:
        cluster = self.cluster
        leader = cluster.told_leaders.get(region.region_id, cluster.leaders.get(region.region_id, 0))
        peer = region.peer_on(leader)
        return coordinator_pb2.Route(
            region=region_to_pb(region),
            leader=peer_to_pb(peer) if peer else None,
            stores=[
                meta_pb2.Store(store_id=p.store_id, address=cluster.stores[p.store_id].address) for p in region.peers
            ],
        )

    def _regions(self) -> list[Region]:
        return self.cluster.told_regions if self.cluster.told_regions is not None else self.cluster.regions

    async def GetRegionByKey(self, request: Any, context: Any) -> coordinator_pb2.RouteResponse:
        self.cluster.coordinator_calls.append("GetRegionByKey")
        for region in self._regions():
            if region.contains(request.key):
                return coordinator_pb2.RouteResponse(route=self._route(region))
        await context.abort(grpc.StatusCode.NOT_FOUND, "no region")
        raise AssertionError

    async def ScanRegions(self, request: Any, context: Any) -> coordinator_pb2.ScanRegionsResponse:
        self.cluster.coordinator_calls.append("ScanRegions")
        wanted = Region(9999, request.start_key, request.end_key)
        routes = [self._route(region) for region in self._regions() if region.overlaps(wanted)]
        return coordinator_pb2.ScanRegionsResponse(routes=routes[:2])  # the caller asks again

    async def GetTimestamp(self, request: Any, context: Any) -> coordinator_pb2.TsoResponse:
        self.cluster.coordinator_calls.append("GetTimestamp")
        first, self.cluster.clock = self.cluster.clock + 1, self.cluster.clock + max(1, request.count)
        return coordinator_pb2.TsoResponse(first=first, count=max(1, request.count))


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    fake = FakeCluster()
    await fake.start(3)
    try:
        yield fake
    finally:
        await fake.stop()
        await asyncio.sleep(0)
