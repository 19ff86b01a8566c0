"""Coordinators over real meta-roots and real sockets: rebuild, hand-over, standby reads, freshness, PD-lite."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nokv.coordinator.client import CoordinatorClient
from nokv.coordinator.node import Freshness, NotLeaseHolder
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.errors import EpochNotMatch, NoKVError, NotFound, NotLeader, Unavailable, UsageError
from nokv.metaroot.events import (
    EventKind,
    LeaseReleased,
    PeerAdded,
    PeerAdditionPlanned,
    RegionBootstrapped,
    RegionPublished,
    RootToken,
    addition_id,
)
from nokv.region import Peer, Region, RegionEpoch, Store
from nokv.testing.clock import FakeClock
from tests.unit.metaroot.harness import Roots, eventually, free_addresses

P1, P2 = Peer(11, 1), Peer(12, 2)
LEFT = Region(1, b"", b"m", RegionEpoch(1, 2), (P1,))
RIGHT = Region(2, b"m", b"", RegionEpoch(1, 2), (P2,))
TTL_S = 1.0


class Report:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.region_count, self.leader_count, self.used_bytes, self.mode = 2, 1, 3, "cluster"


class Coordinators:
    def __init__(self, roots: Roots, count: int, **options: object) -> None:
        self.roots = roots
        self.addresses = dict(zip((f"c{n}" for n in range(1, count + 1)), free_addresses(count), strict=True))
        self.options: dict[str, object] = {"lease_ttl_s": TTL_S, "lease_renew_before_s": 0.3, **options}
        self.servers: dict[str, CoordinatorServer] = {}

    async def __aenter__(self) -> Coordinators:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.close)
            for name in self.addresses:
                await self.start(name)
            stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        for name in list(self.servers):
            await self.servers.pop(name).stop()

    async def start(self, name: str) -> CoordinatorServer:
        config = CoordinatorConfig(name, self.addresses[name], root_peers=self.roots.peers, **self.options)  # type: ignore[arg-type]
        server = CoordinatorServer(config)
        await server.start()
        self.servers[name] = server
        return server

    def holders(self) -> list[str]:
        return [n for n, s in self.servers.items() if s.node is not None and s.node.holds_lease()]

    async def holder(self, but: str = "") -> str:
        def found() -> str:
            holders = [h for h in self.holders() if h != but]
            return holders[0] if len(holders) == 1 else ""

        return await eventually(found, "one coordinator holds the lease")

    def client(self, timeout_s: float = 10.0) -> CoordinatorClient:
        return CoordinatorClient(list(self.addresses.values()), timeout_s=timeout_s)


async def fill(client: CoordinatorClient) -> None:
    await client.put_store(Store(1, "127.0.0.1:20001"))
    await client.put_store(Store(2, "127.0.0.1:20002"))
    await client.publish(RegionBootstrapped(LEFT))
    await client.publish(RegionBootstrapped(RIGHT))


async def test_every_call_over_the_wire(tmp_path: Path) -> None:  # CO-01
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client()
        await fill(client)
        await fill(client)  # idempotent
        route, view = await client.region_by_key(b"zebra")
        assert route.region == RIGHT
        assert route.leader is None  # nobody has told yet: no invention
        assert route.stores == (Store(2, "127.0.0.1:20002"),)
        assert view.root_lag == 0
        await client.region_heartbeat(RIGHT, P2, term=3, applied_index=9)
        await client.region_heartbeat(RIGHT, P1, term=2, applied_index=9)  # an older term changes nothing
        assert (await client.region_by_id(2))[0].leader == P2
        assert [r.region.region_id for r in (await client.scan_regions())[0]] == [1, 2]
        assert [r.region.region_id for r in (await client.scan_regions(b"n"))[0]] == [2]
        assert [r.region.region_id for r in (await client.scan_regions(limit=1))[0]] == [1]
        assert await client.get_store(1) == Store(1, "127.0.0.1:20001")
        assert await client.get_store(9) is None
        await coordinators.holder()
        timestamp, operations = await eventually(
            lambda: client.store_heartbeat(Report(Store(1, "127.0.0.1:20001"))), "a heartbeat"
        )
        assert operations == []
        stores = await client.list_stores()
        assert [(s.store.store_id, s.liveness) for s in stores] == [(1, "up"), (2, "unknown")]  # CO-12
        first = await client.alloc_id(5)
        assert first > 12  # above every id in use
        assert await client.alloc_id() == first + 5
        assert await client.tso(10) > timestamp
        again, more = await client.tso(3), await client.tso()
        assert more >= again + 3
        with pytest.raises(NotFound):
            await client.region_by_id(77)
        planned = LEFT.with_peers((P1, Peer(13, 2)))
        name = addition_id(LEFT, Peer(13, 2))
        await client.publish(PeerAdditionPlanned(name, Peer(13, 2), planned))
        await client.publish(PeerAdded(name, Peer(13, 2), planned))
        assert (await client.region_by_key(b"a"))[0].region == planned
        with pytest.raises(EpochNotMatch):
            await client.publish(RegionPublished(LEFT))
        with pytest.raises(UsageError, match="not published"):
            await client.publish(LeaseReleased("c1", 1))
        await client.remove_region(2)
        with pytest.raises(NotFound):
            await client.region_by_key(b"zebra")
        status = await client.status()
        assert status.lease_holder and status.holder == "c1" and status.region_count == 1
        assert coordinators.servers["c1"].stats()["lease_holder"] is True
        await client.close()


async def test_a_restarted_coordinator_knows_the_same(tmp_path: Path) -> None:  # CO-03, CO-06
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client()
        await fill(client)
        before = (await client.scan_regions())[0]
        last_id, last_ts = await client.alloc_id(), await client.tso(100) + 99
        for _ in range(3):
            await coordinators.servers.pop("c1").stop()
            await coordinators.start("c1")
            assert (await client.scan_regions(freshness=Freshness.STRONG))[0] == before
            new_id, new_ts = await client.alloc_id(), await client.tso()
            assert new_id > last_id and new_ts > last_ts
            last_id, last_ts = new_id, new_ts
        await client.close()


async def test_a_standby_takes_over_within_the_lease_and_answers_before(tmp_path: Path) -> None:  # CO-04, CO-05, CO-13
    ttl_s = 3.0
    async with Roots(tmp_path, 3) as roots, Coordinators(roots, 3, lease_ttl_s=ttl_s) as coordinators:
        client = coordinators.client()
        await fill(client)
        holder = await coordinators.holder()
        standby = next(n for n in coordinators.addresses if n != holder)
        address = coordinators.addresses[standby]
        route, view = await client.region_by_key(b"a", address=address)
        assert route.region == LEFT and not view.by_lease_holder
        assert (await client.status(address)).reads_served > 0
        node = coordinators.servers[standby].node
        assert node is not None
        with pytest.raises(NotLeaseHolder) as refused:
            await node.alloc_id(1)
        assert refused.value.address == coordinators.addresses[holder]
        via_standby = CoordinatorClient([address])
        last_id, last_ts = await via_standby.alloc_id(), await via_standby.tso()  # redirected
        old = coordinators.servers.pop(holder)
        loop = asyncio.get_running_loop()
        killed = loop.time()
        await old.abandon()
        await coordinators.holder(but=holder)
        assert loop.time() - killed < ttl_s
        new_id, new_ts = await client.alloc_id(), await client.tso()
        assert new_id > last_id and new_ts > last_ts
        log = await roots.client().read(1)
        kinds = [r.kind for r in log if r.kind >= EventKind.LEASE_GRANTED]
        handoff = kinds[kinds.index(EventKind.LEASE_SEALED) :]
        steps = [k for k in handoff if k is not EventKind.LEASE_RENEWED]
        assert steps[:4] == [
            EventKind.LEASE_SEALED,
            EventKind.LEASE_GRANTED,
            EventKind.HANDOFF_CONFIRMED,
            EventKind.HANDOFF_CLOSED,
        ]
        await via_standby.close()
        await client.close()


async def test_a_graceful_stop_hands_over_at_once(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 2, lease_ttl_s=30.0) as coordinators:
        holder = await coordinators.holder()
        await coordinators.servers.pop(holder).stop()
        await coordinators.holder(but=holder)  # well before half a minute is over


async def test_at_most_one_serves_while_roots_and_coordinators_come_and_go(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3) as roots, Coordinators(roots, 2) as coordinators:
        client = coordinators.client(timeout_s=20.0)
        last_id, last_ts = 0, 0
        for turn in range(4):
            new_id, new_ts = await client.alloc_id(), await client.tso(10)
            assert new_id > last_id and new_ts > last_ts
            last_id, last_ts = new_id, new_ts + 9
            assert len(coordinators.holders()) <= 1
            if turn % 2:
                leader = await roots.leader()
                await roots.stop(leader)
                assert await client.alloc_id() > last_id
                await roots.start(leader)
            else:
                holder = await coordinators.holder()
                await coordinators.servers.pop(holder).abandon()
                await coordinators.start(holder)
        await client.close()


async def test_freshness_is_never_downgraded(tmp_path: Path) -> None:  # CO-14
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client(timeout_s=8.0)
        await fill(client)
        address = coordinators.addresses["c1"]
        for freshness in Freshness:
            route, view = await client.region_by_key(b"a", freshness=freshness)
            assert route.region == LEFT
            assert view.served.revision >= 4
        await coordinators.holder()
        _, view = await client.region_by_key(b"a")
        assert view.degraded == "healthy"
        with pytest.raises(Unavailable, match="asked for"):
            await client.region_by_key(b"a", at_least=RootToken(10_000), address=address)
        await roots.stop(1)
        route, view = await client.region_by_key(b"a")
        assert route.region == LEFT
        node = coordinators.servers["c1"].node
        assert node is not None
        await eventually(lambda: node.degraded().value == "root-unavailable", "it notices")
        _, view = await client.region_by_key(b"a")
        assert view.degraded == "root-unavailable"
        for freshness in (Freshness.BOUNDED, Freshness.STRONG):
            with pytest.raises(Unavailable):
                await client.region_by_key(b"a", freshness=freshness, address=address)
        await eventually(lambda: not node.holds_lease(), "without the log the lease runs out")
        with pytest.raises(NotLeader):
            await node.tso(1)
        await roots.start(1)
        await client.region_by_key(b"a", freshness=Freshness.STRONG)
        assert await client.tso() > 0
        await client.close()


async def test_pd_lite_keeps_regions_and_allocators(tmp_path: Path) -> None:  # CO-07
    last_id = last_ts = 0
    for turn in range(3):
        config = CoordinatorConfig("pd", "127.0.0.1:0", workdir=str(tmp_path / "pd"), id_start=500)
        server = CoordinatorServer(config)
        await server.start()
        client = CoordinatorClient([server.address], timeout_s=5.0)
        if turn == 0:
            await fill(client)
        routes = (await client.scan_regions(freshness=Freshness.STRONG))[0]
        assert [r.region for r in routes] == [LEFT, RIGHT]
        new_id, new_ts = await client.alloc_id(), await client.tso()
        assert new_id >= 500
        assert new_id > last_id and new_ts > last_ts
        last_id, last_ts = new_id, new_ts
        await client.close()
        await server.abandon()  # nothing released; the directory's lock says that the old process is gone


async def test_timestamps_in_one_stream(tmp_path: Path) -> None:
    import grpc

    from nokv.pb import coordinator_pb2, coordinator_pb2_grpc

    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        await coordinators.holder()
        async with grpc.aio.insecure_channel(coordinators.addresses["c1"]) as channel:
            stub = coordinator_pb2_grpc.CoordinatorStub(channel)
            call = stub.Tso()
            last = 0
            for count in (1, 1000, 7):
                await call.write(coordinator_pb2.TsoRequest(count=count))
                answer = await call.read()
                assert answer.count == count and answer.first > last
                last = answer.first + count - 1
            await call.done_writing()


async def test_health_and_reflection(tmp_path: Path) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        for address, name in ((roots.peers[1], "nokv.v1.Root"), (coordinators.addresses["c1"], "nokv.v1.Coordinator")):
            async with grpc.aio.insecure_channel(address) as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "config",
    [
        CoordinatorConfig("", "x:1", {1: "y:1"}),
        CoordinatorConfig("c", "x:1"),
        CoordinatorConfig("c", "x:1", {1: "y:1"}, workdir="w"),
        CoordinatorConfig("c", "x:1", {1: "y:1"}, lease_ttl_s=1.0, lease_renew_before_s=1.0),
        CoordinatorConfig("c", "x:1", {1: "y:1"}, id_start=0),
    ],
)
def test_bad_configurations(config: CoordinatorConfig) -> None:
    with pytest.raises(UsageError):
        CoordinatorServer(config)


def test_view_is_pure() -> None:
    from nokv.coordinator.view import DISCONNECTED_AFTER_NS, DOWN_AFTER_NS, ClusterView
    from nokv.metaroot.state import RootState

    clock = FakeClock()
    view = ClusterView()
    assert view.route_by_key(b"") is None and view.liveness(1, clock.monotonic_ns()) == "unknown"
    state = RootState(stores={1: Store(1, "a:1")}, regions={1: Region(1, peers=(P1,))}, last=RootToken(2))
    assert view.reset(state)
    assert not view.reset(RootState(last=RootToken(1)))  # never back
    view.heard_of(RootToken(5))
    assert view.lag == 3
    view.store_heartbeat(
        1, region_count=1, leader_count=1, used_bytes=1, mode="cluster", now_ns=clock.monotonic_ns(), now_ms=1
    )
    assert view.liveness(1, clock.monotonic_ns()) == "up"
    assert view.liveness(1, clock.monotonic_ns() + DISCONNECTED_AFTER_NS) == "disconnected"
    assert view.liveness(1, clock.monotonic_ns() + DOWN_AFTER_NS) == "down"
    away = Peer(99, 7)
    assert view.region_heartbeat(Region(1, peers=(P1, away)), away, term=4, applied_index=1, now_ns=0)
    assert not view.region_heartbeat(Region(9), away, term=4, applied_index=1, now_ns=0)
    route = view.route_by_key(b"k")
    assert route is not None and route.leader == away and route.stores == (Store(1, "a:1"),)
    assert issubclass(NotLeaseHolder, NoKVError)
