"""Coordinators over real meta-roots and real sockets: rebuild, hand-over, standby reads, freshness, PD-lite."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nokv.cli.main import run
from nokv.coordinator.client import CoordinatorClient, OutcomeLike
from nokv.coordinator.node import Freshness, NotLeaseHolder
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.errors import (
    DeadlineExceeded,
    EpochNotMatch,
    NoKVError,
    NotFound,
    NotLeader,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.events import (
    EventKind,
    LeaseReleased,
    PeerAdded,
    PeerAdditionPlanned,
    RegionBootstrapped,
    RegionPublished,
    RegionSplitCancelled,
    RegionSplitPlanned,
    RootToken,
    addition_id,
    split_id,
)
from nokv.raftstore.control import LeaderReport
from nokv.region import Peer, Region, RegionEpoch, Store
from nokv.testing.clock import FakeClock
from tests.machine_time import MachineTime
from tests.unit.metaroot.harness import Roots, eventually, free_addresses, healthy_services

P1, P2 = Peer(11, 1), Peer(12, 2)
LEFT = Region(1, b"", b"m", RegionEpoch(1, 2), (P1,))
RIGHT = Region(2, b"m", b"", RegionEpoch(1, 2), (P2,))
TTL_S = 1.0


class Report:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.region_count, self.leader_count, self.used_bytes, self.mode = 2, 1, 3, "cluster"
        self.outcomes: tuple[OutcomeLike, ...] = ()


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
        await client.region_heartbeat([LeaderReport(RIGHT, P2, 3, 9)])
        await client.region_heartbeat([LeaderReport(RIGHT, P1, 2, 9)])  # an older term changes nothing
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


async def test_assessing_writes_nothing_and_says_why(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client()
        await fill(client)
        root = roots.client()
        revision = (await root.snapshot()).last.revision
        with_p3 = LEFT.with_peers((P1, Peer(13, 2)))
        plan = PeerAdditionPlanned("t", Peer(13, 2), with_p3)
        rival = PeerAdditionPlanned("u", Peer(14, 2), LEFT.with_peers((P1, Peer(14, 2))))
        found = await client.assess([plan])
        assert (found.verdict, found.error) == ("admitted", None)
        assert found.token.revision >= revision
        assert (await client.assess([RegionBootstrapped(LEFT)])).verdict == "already"
        for events, error, text in (
            ([RegionBootstrapped(Region(9, b"a", b"b", peers=(P1,)))], PreconditionFailed, "overlap region 1"),
            ([plan, rival], PreconditionFailed, "pending change t"),
            ([RegionPublished(Region(1, b"", b"m", RegionEpoch(1, 1), (P1,)))], EpochNotMatch, "is at"),
            ([RegionPublished(Region(7, peers=(P1,)))], NotFound, "no region 7"),
            ([LeaseReleased("c1", 1)], UsageError, "not published"),
        ):
            found = await client.assess(events)
            assert found.verdict == "refused"
            assert type(found.error) is error
            assert text in str(found.error)
            if isinstance(found.error, EpochNotMatch):
                assert found.error.regions == (LEFT,)
        assert (await client.assess([plan], expected_revision=revision + 1_000)).verdict == "refused"
        state = await root.snapshot()
        assert not state.pending
        assert state.region(1) == LEFT
        await roots.stop(1)
        with pytest.raises((Unavailable, DeadlineExceeded)):  # not a guess from the view
            await client.assess([plan])
        await root.close()
        await client.close()


async def test_transitions_have_their_phases_everywhere(  # MR-10, CO-12
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client()
        await fill(client)
        peer = Peer(13, 2)
        grown = LEFT.with_peers((P1, peer))
        name, split = addition_id(LEFT, peer), split_id(RIGHT, b"t")
        low = Region(2, b"m", b"t", RegionEpoch(1, 3), (P2,))
        high = Region(3, b"t", b"", RegionEpoch(1, 3), (Peer(31, 2),))
        await client.publish(PeerAdditionPlanned(name, peer, grown))
        await client.publish(RegionSplitPlanned(split, low, high))
        found, _ = await client.transitions()
        assert [(c.transition_id, c.kind, c.phase.value, s) for c, s in found] == [
            (name, "add-peer", "planned", "truth"),
            (split, "split", "planned", "truth"),
        ]
        await client.region_heartbeat([LeaderReport(grown, P1, 3, 9)])  # its log has it; the event is under way
        found, view = await client.transitions(1, freshness=Freshness.STRONG)
        assert [(c.phase.value, s) for c, s in found] == [("admitted", "view")]
        assert found[0][0].target == grown
        assert view.freshness is Freshness.STRONG
        await client.publish(PeerAdded(name, peer, grown))
        await client.publish(RegionSplitCancelled(split, 2))
        assert [c.phase.value for c, _ in (await client.transitions())[0]] == ["completed", "cancelled"]
        assert [c.region_id for c, _ in (await client.transitions(phase="cancelled"))[0]] == [2]
        with pytest.raises(UsageError, match="phase"):
            await client.transitions(phase="vanished")
        assert await asyncio.to_thread(run, ["root", "transitions", "--addr", roots.peers[1], "--output", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)["transitions"]
        assert [(r["transition_id"], r["kind"], r["phase"], r["revision"]) for r in rows] == [
            (c.transition_id, c.kind, c.phase.value, c.revision) for c, _ in (await client.transitions())[0]
        ]
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
        with MachineTime() as machine:
            await old.abandon()
            await coordinators.holder(but=holder)
            assert machine.now() - max(0.0, machine.last_stop) < ttl_s
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


ASK = {
    "by key": lambda client, **how: client.region_by_key(b"a", **how),
    "by id": lambda client, **how: client.region_by_id(1, **how),
    "scan": lambda client, **how: client.scan_regions(limit=1, **how),
}


@pytest.mark.parametrize("call", ASK)
async def test_freshness_is_never_downgraded(tmp_path: Path, call: str) -> None:  # CO-14
    ask = ASK[call]
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1, lease_ttl_s=3.0) as coordinators:
        client, hasty = coordinators.client(), coordinators.client(timeout_s=1.0)  # the other is refused
        await fill(client)
        await coordinators.holder()
        node = coordinators.servers["c1"].node
        assert node is not None
        await eventually(lambda: node.degraded().value == "healthy" and not node.view.lag, "healthy")
        for freshness in Freshness:  # healthy
            found, view = await ask(client, freshness=freshness)
            assert found
            assert view.freshness is freshness
            assert (view.degraded, view.by_lease_holder) == ("healthy", True)
            assert view.served.revision >= 4
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await ask(hasty, at_least=RootToken(10_000))

        node.view.heard_of(RootToken(node.view.served.revision + 200))  # lagging: the truth is known to be ahead
        found, view = await ask(client)
        assert found
        assert (view.degraded, view.catch_up) == ("root-lagging", "catching-up")
        assert view.root_lag == view.current.revision - view.served.revision > 100
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await ask(hasty, freshness=Freshness.BOUNDED, max_lag=10)
        found, view = await ask(client, freshness=Freshness.BOUNDED, max_lag=500)
        assert found
        found, view = await ask(client, freshness=Freshness.STRONG)  # what was acknowledged is here
        assert view.served.revision >= 4

        seen: list[str] = []

        def view_only() -> bool:
            mode = node.degraded().value
            if not seen or seen[-1] != mode:
                seen.append(mode)
            return mode == "view-only"

        with MachineTime() as machine:
            watching = asyncio.create_task(eventually(view_only, "the last lease must have run out", 30.0))
            await roots.stop(1)  # out of reach
            await watching
            if not machine.stood_still_s:  # then nobody could see what was in between
                assert seen[-2:] == ["root-unavailable", "view-only"]
        found, view = await ask(client)
        assert found
        assert (view.degraded, view.catch_up, view.by_lease_holder) == ("view-only", "stalled", False)
        for freshness in (Freshness.BOUNDED, Freshness.STRONG):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await ask(hasty, freshness=freshness, max_lag=10_000)
        with pytest.raises(NotLeader):
            await node.tso(1)
        await client.close()
        await hasty.close()


async def test_service_comes_back_with_the_truth(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        client = coordinators.client()
        await fill(client)
        await coordinators.holder()
        node = coordinators.servers["c1"].node
        assert node is not None
        await roots.stop(1)
        await eventually(lambda: not node.holds_lease(), "without the log the lease runs out")
        await roots.start(1)
        await client.region_by_key(b"a", freshness=Freshness.STRONG)
        assert await client.tso() > 0
        await eventually(lambda: node.catch_up().value == "current", "it has caught up")
        await client.close()


async def test_a_coordinator_that_never_saw_the_truth_says_so(tmp_path: Path) -> None:
    (nobody,) = free_addresses(1)
    server = CoordinatorServer(CoordinatorConfig("c1", "127.0.0.1:0", root_peers={1: nobody}, root_timeout_s=0.5))
    await server.start()
    client = CoordinatorClient([server.address], timeout_s=1.0)
    status = await client.status()
    assert (status.view.degraded, status.view.catch_up) == ("root-unavailable", "bootstrapping")
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await client.region_by_key(b"a")
    await client.close()
    await server.stop()


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
    async with Roots(tmp_path, 1) as roots, Coordinators(roots, 1) as coordinators:
        for address, name in ((roots.peers[1], "nokv.v1.Root"), (coordinators.addresses["c1"], "nokv.v1.Coordinator")):
            assert {name, "grpc.health.v1.Health"} <= await healthy_services(address)


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
