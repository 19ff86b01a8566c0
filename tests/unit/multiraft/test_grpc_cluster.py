"""Three hosts over real sockets and real files: RAFT-14, RAFT-15, TR-08."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from nokv.engine.wal.log import Wal
from nokv.env.files import OsFiles
from nokv.multiraft.host import MultiRaftHost
from nokv.multiraft.ports import GroupCallbacks, SnapshotOffer, SnapshotPayload
from nokv.multiraft.raftlog import RaftLog
from nokv.multiraft.transport import SERVER_OPTIONS, RaftTransport, TransportOptions
from nokv.raft.config import RaftConfig
from nokv.raft.rawnode import RawNode
from nokv.raft.types import ConfState, Entry, Message, NodeRole, RaftSnapshot, SnapshotMetadata, SoftState

OPTIONS = TransportOptions(backoff_initial_s=0.01, backoff_max_s=0.1, retries_max=0)
VOTERS = ConfState((1, 2, 3))


class World:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.addresses: dict[int, str] = {}
        self.nodes: dict[int, Node] = {}
        self.changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def start(self, node_id: int) -> Node:
        node = self.nodes[node_id] = Node(self, node_id)
        await node.start()
        return node

    def leader(self) -> Node | None:
        leading = [n for n in self.nodes.values() if n.host.status(1).role is NodeRole.LEADER]
        return max(leading, key=lambda n: n.host.status(1).term, default=None)

    async def propose(self, data: bytes, among: tuple[int, ...] = (1, 2, 3)) -> None:
        for _ in range(100):
            await self.until(lambda: (n := self.leader()) is not None and n.node_id in among)
            leader = self.leader()
            assert leader is not None
            term, dropped = leader.host.status(1).term, leader.dropped
            leader.host.propose(1, data)
            await self.until(
                lambda node=leader, term=term, dropped=dropped: (
                    data in node.applied or node.dropped > dropped or node.host.status(1).term != term
                )
            )
            if data in leader.applied:
                return
        raise AssertionError("not applied")

    async def converge(self) -> list[bytes]:
        await self.until(lambda: len({(n.applied_index, tuple(n.applied)) for n in self.nodes.values()}) == 1)
        return next(iter(self.nodes.values())).applied


class Node(GroupCallbacks):
    def __init__(self, world: World, node_id: int) -> None:
        self.world = world
        self.node_id = node_id
        self.applied: list[bytes] = []
        self.applied_index = self.applied_term = 0
        self.dropped = 0
        self.staged = b""
        self.wal = Wal(OsFiles(), str(world.home / str(node_id)), 64 << 10, retainers=("raft",))
        self.log = RaftLog.open(self.wal)
        self.transport = RaftTransport(node_id, world.addresses.get, options=OPTIONS)
        self.host = MultiRaftHost(
            self.log, self.transport, asyncio.get_running_loop(), tick_interval_s=0.02, on_fatal=self._fatal
        )
        self.transport.attach(self.host, self)
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.transport.register(self.server)

    async def start(self) -> None:
        old = self.world.addresses.get(self.node_id)
        port = self.server.add_insecure_port(old or "127.0.0.1:0")
        self.world.addresses[self.node_id] = f"127.0.0.1:{port}"
        await self.server.start()
        storage = self.log.group(1)
        if not self.log.has_group(1):
            storage.initialise(10, 5, VOTERS)
        self.applied_index = storage.first_index() - 1
        self.applied_term = storage.term(self.applied_index)
        storage.snapshot_source = lambda: RaftSnapshot(SnapshotMetadata(self.applied_index, self.applied_term, VOTERS))
        config = RaftConfig(id=self.node_id, applied=self.applied_index)
        self.host.add_group(1, RawNode(config, storage, random.Random(self.node_id).randrange), self)
        self.host.start()

    async def stop(self) -> None:
        """As abrupt as it gets within one process: nothing is flushed or said to the others."""
        del self.world.nodes[self.node_id]
        self.host.stop()
        await self.transport.close()
        await self.server.stop(None)
        self.wal.close(sync=False)

    def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            assert entry.index == self.applied_index + 1
            self.applied_index, self.applied_term = entry.index, entry.term
            if entry.data:
                self.applied.append(entry.data)
        self.world.changed.set()

    def on_soft_state(self, state: SoftState) -> None:
        self.world.changed.set()

    def on_dropped(self, proposals: list[bytes]) -> None:
        self.dropped += len(proposals)
        self.world.changed.set()

    def on_snapshot(self, snapshot: RaftSnapshot) -> bool:
        """Installed later, on another turn of the loop, as a store would."""
        asyncio.get_running_loop().call_soon(self._installed, snapshot)
        return False

    def _installed(self, snapshot: RaftSnapshot) -> None:
        self.applied = self.staged.split(b"\n")
        self.applied_index, self.applied_term = snapshot.metadata.index, snapshot.metadata.term
        self.host.snapshot_installed(1)
        self.world.changed.set()

    def snapshot_payload(self, message: Message) -> SnapshotPayload:
        data = b"\n".join(self.applied)
        return SnapshotPayload(b"", len(data), lambda: iter([("list", data)]))

    def begin(self, offer: SnapshotOffer) -> Node:
        self.staged = b""
        return self

    def write(self, file: str, data: bytes) -> None:
        self.staged += data

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        self.staged = b""

    def _fatal(self, error: BaseException) -> None:
        raise AssertionError(f"node {self.node_id} failed") from error


@asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    made = World(home)
    try:
        for node_id in VOTERS.voters:
            await made.start(node_id)
        yield made
    finally:
        for node in list(made.nodes.values()):
            await node.stop()


async def test_elect_replicate_kill_and_reopen(tmp_path: Path) -> None:
    async with world(tmp_path) as cluster:
        for i in range(20):
            await cluster.propose(b"%d" % i)
        leader = cluster.leader()
        assert leader is not None
        await leader.stop()
        rest = tuple(sorted(cluster.nodes))
        await cluster.propose(b"without it", among=rest)
        await cluster.start(leader.node_id)
        await cluster.propose(b"with it")
        expected = [b"%d" % i for i in range(20)] + [b"without it", b"with it"]
        assert await cluster.converge() == expected
        for node in list(cluster.nodes.values()):
            await node.stop()
        for node_id in VOTERS.voters:
            await cluster.start(node_id)
        await cluster.propose(b"after all died")
        assert await cluster.converge() == [*expected, b"after all died"]


async def test_partition_with_blocked_peers_heals(tmp_path: Path) -> None:
    async with world(tmp_path) as cluster:
        await cluster.propose(b"before")
        old = cluster.leader()
        assert old is not None
        rest = tuple(n for n in cluster.nodes if n != old.node_id)
        for other in rest:
            old.transport.block_peer(other)
            cluster.nodes[other].transport.block_peer(old.node_id)
        old.host.propose(1, b"lost")
        await cluster.propose(b"won", among=rest)
        assert b"lost" not in old.applied and b"won" not in old.applied
        for other in rest:
            old.transport.unblock_peer(other)
            cluster.nodes[other].transport.unblock_peer(old.node_id)
        assert await cluster.converge() == [b"before", b"won"]


async def test_snapshot_over_the_wire(tmp_path: Path) -> None:
    async with world(tmp_path) as cluster:
        await cluster.propose(b"first")
        leader = cluster.leader()
        assert leader is not None
        behind = next(n for n in cluster.nodes.values() if n is not leader)
        await behind.stop()
        rest = tuple(sorted(cluster.nodes))
        for i in range(30):
            await cluster.propose(b"%d" % i, among=rest)
        await cluster.converge()
        for node in cluster.nodes.values():
            node.log.group(1).compact(node.applied_index)
        back = await cluster.start(behind.node_id)
        assert await cluster.converge() == [b"first"] + [b"%d" % i for i in range(30)]
        assert back.host.snapshots_installed == 1 and back.transport.counters["snapshots_received"] == 1
        await cluster.propose(b"last")
        assert (await cluster.converge())[-1] == b"last"
