"""Three StoreNodes in one process over loopback gRPC: seed, serve, expand while writing, transfer, restart, remove.

RS-11 RS-13 RS-14 RS-15 RS-17 RS-20, MIG-22 MIG-23 MIG-25 MIG-26 MIG-32, EX-02 EX-03, TR-01. No sleeping: every wait
is for a condition, through the node's own `wait_until`, or for an answer.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import nokv
from nokv._ext import command
from nokv._ext.crc32c import crc32c
from nokv.engine.mode import ModeRecord, read_mode, write_mode
from nokv.env.files import OsFiles
from nokv.errors import InvariantError, ModeError, PreconditionFailed, Unavailable
from nokv.metaroot.events import PeerAdded, PeerAdditionPlanned, PeerRemoved, RegionBootstrapped, RootEvent
from nokv.metaroot.state import RootState
from nokv.pb import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc, meta_pb2, raft_pb2, raft_pb2_grpc
from nokv.raftstore import bootstrap
from nokv.raftstore.control import ControlPort, LeaderReport, StoreOperation, StoreReport
from nokv.raftstore.node import StoreConfig, StoreNode
from nokv.raftstore.snapshot import decode_manifest
from nokv.region import Peer, Region, Store

PLAIN = {b"key-%05d" % i: b"value-%d" % i for i in range(2000)}


class MemoryControl:
    """A ControlPort over the real rooted state, in memory. `down` makes it unreachable."""

    def __init__(self) -> None:
        self.state = RootState()
        self.events: list[RootEvent] = []
        self.leaders: dict[int, Peer] = {}
        self.operations: list[StoreOperation] = []
        self.down = False
        self.timestamp = 1_000_000 << 18

    def _check(self) -> None:
        if self.down:
            raise Unavailable("the coordinator is down")

    def _append(self, event: RootEvent) -> None:
        if self.state.apply([event], term=1, index=len(self.events) + 1):
            self.events.append(event)

    async def put_store(self, store: Store) -> None:
        self._check()
        self.state.stores[store.store_id] = store

    async def get_store(self, store_id: int) -> Store | None:
        self._check()
        return self.state.stores.get(store_id)

    async def store_heartbeat(self, report: StoreReport) -> tuple[int, list[StoreOperation]]:
        self._check()
        self.timestamp += 1 << 18
        mine, self.operations = self.operations, []
        return self.timestamp, mine

    async def region_heartbeat(self, reports: Sequence[LeaderReport]) -> None:
        self._check()
        self.leaders.update({report.region.region_id: report.leader for report in reports})

    async def publish(self, event: RootEvent) -> None:
        self._check()
        self._append(event)

    async def close(self) -> None:
        return


def seed(workdir: Path, pairs: dict[bytes, bytes], *, store_id: int = 1, peer_id: int = 101) -> None:
    with nokv.open(workdir) as db:
        db.put_many(pairs.items())
    region = Region(1, peers=(Peer(peer_id, store_id),))
    with nokv.open(workdir, wal_retainers=("raft",)) as db:
        bootstrap.write_seed_catalog(db, region, store_id)
        bootstrap.init_raft_seed(db, region)
    write_mode(str(workdir), ModeRecord("seeded", store_id, 1, peer_id), OsFiles())


def node(workdir: Path, store_id: int, control: ControlPort | None, address: str = "127.0.0.1:0") -> StoreNode:
    def fatal(error: BaseException) -> None:
        raise error

    config = StoreConfig(
        workdir=str(workdir),
        store_id=store_id,
        address=address,
        tick_interval_s=0.02,
        heartbeat_interval_s=0.05,
    )
    return StoreNode(config, control, on_fatal=fatal)


class Client:
    """A thin client of one store: the real stub, the real codec."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self.admin = admin_pb2_grpc.AdminStub(self.channel)
        self._kv = kv_pb2_grpc.KvStub(self.channel)

    async def batch(self, *groups: kv_pb2.RegionCommands) -> dict[int, kv_pb2.RegionReply]:
        replies: dict[int, kv_pb2.RegionReply] = {}
        call = self._kv.Batch()
        await call.write(kv_pb2.KvBatchRequest(groups=groups))
        await call.done_writing()
        async for response in call:
            replies.update({reply.request_id: reply for reply in response.replies})
        return replies

    def group(self, region: meta_pb2.Region, store_id: int, commands: bytes, *, write: bool, id: int = 1) -> Any:
        context = kv_pb2.RegionContext(region_id=region.region_id, epoch=region.epoch, store_id=store_id)
        return kv_pb2.RegionCommands(request_id=id, context=context, write=write, deadline_ms=8000, commands=commands)

    async def status(self) -> admin_pb2.RegionStatusResponse:
        return await self.admin.RegionStatus(admin_pb2.RegionStatusRequest(region_id=1))

    async def put(self, store_id: int, pairs: dict[bytes, bytes | None]) -> kv_pb2.RegionReply:
        region = (await self.status()).region
        commands = command.pack_writes(list(pairs.items()))
        return (await self.batch(self.group(region, store_id, commands, write=True)))[1]

    async def get(self, store_id: int, keys: list[bytes]) -> list[Any]:
        region = (await self.status()).region
        reply = (await self.batch(self.group(region, store_id, command.pack_gets(keys), write=False)))[1]
        assert not reply.HasField("error"), reply.error
        return command.unpack_results(reply.results)

    async def digest(self, at_least: int) -> admin_pb2.RegionDigestResponse:
        request = admin_pb2.RegionDigestRequest(region_id=1, at_least_applied_index=at_least, timeout_ms=10_000)
        return await self.admin.RegionDigest(request)


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.control = MemoryControl()
        self.nodes: dict[int, StoreNode] = {}
        self.clients: dict[int, Client] = {}

    async def start(self, store_id: int, address: str = "127.0.0.1:0") -> StoreNode:
        started = node(self.directory / f"store-{store_id}", store_id, self.control, address)
        await started.start()
        self.nodes[store_id] = started
        self.clients[store_id] = Client(started.address)
        return started

    async def stop(self, store_id: int) -> str:
        stopped = self.nodes.pop(store_id)
        await self.clients.pop(store_id).channel.close()
        await stopped.stop()
        return stopped.address

    async def close(self) -> None:
        for store_id in list(self.nodes):
            await self.stop(store_id)

    async def leads(self, store_id: int) -> None:
        def leading() -> bool:
            found = self.nodes[store_id].store.router.find(1)
            return found is not None and found.serves_own_term

        await self.nodes[store_id].wait_until(leading, 10, f"store {store_id} does not lead")

    async def expand(self, store_id: int, peer_id: int, leader: int = 1) -> None:
        target = self.nodes[store_id]
        admin = self.clients[leader].admin
        peer = meta_pb2.Peer(peer_id=peer_id, store_id=store_id, role=meta_pb2.PEER_ROLE_LEARNER)
        request = admin_pb2.AddPeerRequest(region_id=1, peer=peer, store_address=target.address)
        await admin.AddPeer(request, timeout=10)
        await target.wait_until(lambda: bool(target.regions()), 10, "the target hosts nothing")
        mine = self.nodes[leader].store.router.hosted(1)
        await target.wait_until(
            lambda: mine.raw.status().progress[peer_id].match >= mine.applied.index, 10, "the learner lags"
        )
        await admin.PromotePeer(admin_pb2.PromotePeerRequest(region_id=1, peer_id=peer_id), timeout=10)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    await cluster.close()


async def test_the_whole_life_of_a_region(cluster: Cluster) -> None:
    seed(cluster.directory / "store-1", PLAIN)
    first = await cluster.start(1)
    await cluster.leads(1)
    assert read_mode(first.config.workdir, OsFiles()).mode == "cluster"  # MIG-23
    assert first.ready.is_set()
    client = cluster.clients[1]
    assert await client.get(1, [b"key-00000", b"key-01999", b"none"]) == [b"value-0", b"value-1999", None]
    await first.wait_until(lambda: bool(cluster.control.events), 5, "nothing was published")
    assert isinstance(cluster.control.events[0], RegionBootstrapped)

    # Expand while a writer keeps writing.
    acknowledged: dict[bytes, bytes] = {}
    expanding = True

    async def writer() -> None:
        number = 0
        while expanding:
            pairs: dict[bytes, bytes | None] = {b"w-%05d" % number: b"x" * (number % 3000)}
            reply = await client.put(1, pairs)
            if not reply.HasField("error"):
                acknowledged.update({key: value for key, value in pairs.items() if value is not None})
            number += 1

    writing = asyncio.create_task(writer())
    for store_id in (2, 3):
        await cluster.start(store_id)
        await cluster.expand(store_id, store_id * 100 + 1)
    expanding = False
    await writing
    assert len(acknowledged) > 5

    async def even_digests() -> None:
        at_least = max(n.store.router.hosted(1).applied.index for n in cluster.nodes.values())
        found = [await c.digest(at_least) for c in cluster.clients.values()]
        assert len({d.digest for d in found}) == 1, found
        assert found[0].keys == 2000 + len(acknowledged)

    await even_digests()
    kinds = [type(event) for event in cluster.control.events]
    await first.wait_until(lambda: not len(first.store.publisher), 5, "events are not published")
    assert cluster.control.state.pending == {}
    assert PeerAdditionPlanned in kinds
    assert [p.peer_id for p in cluster.control.state.regions[1].peers] == [101, 201, 301]

    # The payload of the admin export is what raft sends (MIG-32).
    chunks = [chunk async for chunk in client.admin.ExportSnapshot(admin_pb2.ExportSnapshotRequest(region_id=1))]
    manifest = decode_manifest(chunks[0].header.manifest)
    sizes: dict[str, int] = {}
    for chunk in chunks[1:]:
        assert chunk.crc32c == crc32c(chunk.data)
        sizes[chunk.file] = sizes.get(chunk.file, 0) + len(chunk.data)
    assert sizes == {file.name: file.size for file in manifest.files}

    # Transfer, by the coordinator gone (RS-17, RS-20).
    cluster.control.down = True
    request = admin_pb2.TransferLeaderRequest(region_id=1, peer_id=201)
    await client.admin.TransferLeader(request, timeout=10)
    await cluster.leads(2)
    key = next(iter(acknowledged))
    assert await cluster.clients[2].get(2, [key, b"key-00007"]) == [acknowledged[key], b"value-7"]
    region = (await client.status()).region
    refused = (await client.batch(client.group(region, 1, command.pack_gets([b"k"]), write=False)))[1]
    assert refused.error.kind == kv_pb2.REGION_ERROR_NOT_LEADER
    assert refused.error.not_leader.address == cluster.nodes[2].address

    # A store stops, misses writes, and comes back at the same address.
    address = await cluster.stop(3)
    for number in range(5):
        reply = await cluster.clients[2].put(2, {b"away-%d" % number: b"v"})
        assert not reply.HasField("error"), reply.error
        acknowledged[b"away-%d" % number] = b"v"
    await cluster.start(3, address)
    await even_digests()

    # A membership change without a coordinator works; its event waits visibly, and is published later.
    await cluster.clients[2].admin.RemovePeer(admin_pb2.RemovePeerRequest(region_id=1, peer_id=301), timeout=10)
    third = cluster.nodes[3]
    await third.wait_until(lambda: not third.regions(), 10, "the removed peer is still hosted")
    status = await cluster.clients[2].admin.ExecutionStatus(admin_pb2.ExecutionStatusRequest(region_id=1))
    assert status.restart.pending_root_events >= 1
    assert any(t.outcome == "applied" and t.publish == "terminal-pending" for t in status.topology)
    cluster.control.down = False
    second = cluster.nodes[2]
    await second.wait_until(lambda: not len(second.store.publisher), 10, "the event is still pending")
    assert isinstance(cluster.control.events[-1], PeerRemoved)
    assert any(isinstance(event, PeerAdded) for event in cluster.control.events)
    await cluster.stop(3)
    again = await cluster.start(3, address)
    assert again.regions() == []  # RS-13
    assert (await cluster.clients[3].status()).hosted is False


async def test_a_peer_removed_while_it_was_away_finds_out(cluster: Cluster) -> None:  # RS-13
    seed(cluster.directory / "store-1", {b"k": b"v"})
    await cluster.start(1)
    await cluster.leads(1)
    for store_id in (2, 3):
        await cluster.start(store_id)
        await cluster.expand(store_id, store_id * 100 + 1)
    address = await cluster.stop(3)
    await cluster.clients[1].admin.RemovePeer(admin_pb2.RemovePeerRequest(region_id=1, peer_id=301), timeout=10)
    third = await cluster.start(3, address)
    await third.wait_until(lambda: not third.regions(), 15, "the removed peer still believes in itself")


async def test_targets_that_cannot_take_the_peer(cluster: Cluster) -> None:  # MIG-26
    seed(cluster.directory / "store-1", {b"k": b"v"})
    seed(cluster.directory / "store-2", {b"other": b"data"}, store_id=2, peer_id=201)
    await cluster.start(1)
    await cluster.leads(1)
    await cluster.start(2)
    admin = cluster.clients[1].admin

    async def add(store_id: int, address: str, role: int = meta_pb2.PEER_ROLE_LEARNER) -> grpc.aio.AioRpcError:
        peer = meta_pb2.Peer(peer_id=999, store_id=store_id, role=role)  # type: ignore[arg-type]
        request = admin_pb2.AddPeerRequest(region_id=1, peer=peer, store_address=address)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin.AddPeer(request, timeout=10)
        return caught.value

    error = await add(2, cluster.nodes[2].address)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION and "hosts peer 201" in str(error.details())
    error = await add(3, cluster.nodes[2].address)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION and "not store 3" in str(error.details())
    error = await add(3, "127.0.0.1:1")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    error = await add(3, cluster.nodes[2].address, meta_pb2.PEER_ROLE_VOTER)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION and "learner" in str(error.details())
    region = (await cluster.clients[1].status()).region
    assert [p.peer_id for p in region.peers] == [101]


async def test_refusals_at_start_change_nothing(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "plain") as db:
        db.put(b"k", b"v")
    with pytest.raises(ModeError, match="standalone") as caught:
        await node(tmp_path / "plain", 1, None).start()
    assert "migrate init" in caught.value.hint
    with nokv.open(tmp_path / "plain") as db:
        assert db[b"k"] == b"v"

    seed(tmp_path / "seeded", {b"k": b"v"}, store_id=1)
    with pytest.raises(PreconditionFailed, match="belongs to store 1"):
        await node(tmp_path / "seeded", 2, None).start()
    assert read_mode(str(tmp_path / "seeded"), OsFiles()).mode == "seeded"

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Unavailable, match="cannot listen"):
            await node(tmp_path / "seeded", 1, None, f"127.0.0.1:{taken.getsockname()[1]}").start()
    assert read_mode(str(tmp_path / "seeded"), OsFiles()).mode == "seeded"
    works = node(tmp_path / "seeded", 1, None)
    await works.start()
    await works.stop()


async def test_stop_leaves_nothing_behind(tmp_path: Path) -> None:  # RS-15
    seed(tmp_path / "s", {b"k": b"v"})
    threads = set(threading.enumerate())
    started = node(tmp_path / "s", 1, None)
    await started.start()
    await started.stop()
    await started.stop()
    mine = {t for t in set(threading.enumerate()) - threads if t.name.startswith("nokv")}
    assert not mine
    with nokv.open(tmp_path / "s", mode="cluster") as db:  # the lock is free
        assert db.get(b"k") == b"v"


async def test_a_snapshot_stream_that_lies_is_refused(cluster: Cluster) -> None:  # S6, MIG-33
    await cluster.start(2)
    stub = raft_pb2_grpc.RaftTransportStub(cluster.clients[2].channel)
    header = raft_pb2.SnapshotHeader(group_id=1, message=b"junk", manifest=b"{}")

    async def lying() -> AsyncIterator[raft_pb2.SnapshotChunk]:
        yield raft_pb2.SnapshotChunk(header=header)
        yield raft_pb2.SnapshotChunk(file="../../escape.sst", data=b"x", crc32c=crc32c(b"x"))

    try:
        answers = [answer async for answer in stub.InstallSnapshot(lying(), timeout=5)]
        assert not answers[-1].accepted
    except grpc.aio.AioRpcError as error:
        assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert cluster.nodes[2].regions() == []
    assert not list(cluster.directory.rglob("escape*"))


async def test_a_peer_that_never_answers_does_not_stop_the_ticks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(cluster.directory / "store-1", {b"k": b"v"})
    first = await cluster.start(1)
    await cluster.leads(1)
    await cluster.start(2)
    await cluster.expand(2, 201)
    asked: list[str] = []
    cancelled = asyncio.Event()
    ticks = 0
    tick = first.store.tick

    async def silent(address: str, region_id: int) -> Region | None:
        asked.append(address)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    def counting() -> None:
        nonlocal ticks
        ticks += 1
        tick()

    monkeypatch.setattr(first._peers, "region", silent)
    monkeypatch.setattr(first.store, "tick", counting)
    await cluster.stop(2)  # without a quorum the leader steps down
    await first.wait_until(lambda: bool(asked), 10, "nobody was asked")
    before = ticks
    await first.wait_until(lambda: ticks > before + 40, 3, "the ticks stand still")
    assert len(asked) == 1  # one round at a time
    await cluster.stop(1)
    assert cancelled.is_set()


async def test_a_tick_loop_that_fails_stops_the_process(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(cluster.directory / "store-1", {b"k": b"v"})
    first = await cluster.start(1)
    fatal: list[BaseException] = []
    monkeypatch.setattr(first, "_on_fatal", fatal.append)

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(first.store, "tick", broken)
    await first.wait_until(lambda: bool(fatal), 5, "the store carries on without its ticks")
    assert isinstance(fatal[0], InvariantError) and isinstance(fatal[0].__cause__, ZeroDivisionError)
    assert len(fatal) == 1 and not first.ready.is_set()


async def test_no_answer_of_the_control_plane_costs_the_data_path(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:  # RS-17
    seed(cluster.directory / "store-1", {b"k": b"v"})
    first = await cluster.start(1)
    await cluster.leads(1)

    async def garbled(*_: object) -> None:
        raise ZeroDivisionError("a bug in what reads the answer")

    monkeypatch.setattr(first.control, "store_heartbeat", garbled)
    monkeypatch.setattr(first.control, "publish", garbled)
    before = first.control_failures
    await first.wait_until(lambda: first.control_failures > before + 1, 10, "no heartbeat was tried again")
    assert first.failure is None and first.ready.is_set()
    assert "a bug in what reads" in first.last_control_error
