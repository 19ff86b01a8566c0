"""Whole nodes (real Wal, RaftLog, host, a dict as data) over a simulated network, for the tests beside this file."""

from __future__ import annotations

import random
from collections.abc import Callable

from nokv.engine.wal.log import Wal
from nokv.env.ports import Files
from nokv.multiraft.host import MultiRaftHost
from nokv.multiraft.ports import GroupCallbacks, SnapshotOffer, SnapshotPayload, SnapshotStaging
from nokv.multiraft.raftlog import RaftLog
from nokv.raft.confchange import decode_conf_change
from nokv.raft.config import RaftConfig
from nokv.raft.rawnode import RawNode
from nokv.raft.types import (
    ConfState,
    Entry,
    EntryKind,
    Message,
    NodeRole,
    RaftSnapshot,
    ReadState,
    SnapshotMetadata,
    SoftState,
)
from nokv.testing.files import CrashFiles
from nokv.testing.network import SimLoop, SimNetwork

TICK_S = 0.01


class Machine(GroupCallbacks):
    """A list of applied commands. Kept in memory: after a restart the log is applied again from its start."""

    def __init__(self, node: Node, group_id: int) -> None:
        self.node = node
        self.group_id = group_id
        self.applied: list[bytes] = []
        self.applied_index = 0
        self.applied_term = 0
        self.dropped: list[bytes] = []
        self.reads: list[ReadState] = []
        self.soft = SoftState(0, NodeRole.FOLLOWER)
        self.slow_install = False
        self.conf_state = ConfState()

    def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            assert entry.index == self.applied_index + 1
            self.applied_index, self.applied_term = entry.index, entry.term
            if entry.kind is not EntryKind.NORMAL:
                change = decode_conf_change(entry.kind, entry.data)
                self.conf_state = self.node.host.node(self.group_id).apply_conf_change(change)
            elif entry.data:
                self.applied.append(entry.data)

    def on_snapshot(self, snapshot: RaftSnapshot) -> bool:
        staged = self.node.staged.pop((self.group_id, snapshot.metadata.index), snapshot.data)
        self.applied = staged.split(b"\n") if staged else []
        self.applied_index, self.applied_term = snapshot.metadata.index, snapshot.metadata.term
        self.conf_state = snapshot.metadata.conf_state
        return not self.slow_install

    def on_soft_state(self, state: SoftState) -> None:
        self.soft = state

    def on_read_states(self, states: list[ReadState]) -> None:
        self.reads.extend(states)

    def on_dropped(self, proposals: list[bytes]) -> None:
        self.dropped.extend(proposals)

    def make_snapshot(self) -> RaftSnapshot:
        return RaftSnapshot(SnapshotMetadata(self.applied_index, self.applied_term, self.conf_state))

    def snapshot_payload(self, message: Message) -> SnapshotPayload:
        data = b"\n".join(self.applied)
        half = len(data) // 2
        return SnapshotPayload(b"list", len(data), lambda: iter([("list", data[:half]), ("list", data[half:])]))


class Staging(SnapshotStaging):
    def __init__(self, node: Node, offer: SnapshotOffer) -> None:
        self.node, self.offer, self.data = node, offer, b""

    def write(self, file: str, data: bytes) -> None:
        assert file == "list"
        self.data += data

    def finish(self) -> None:
        assert self.offer.message.snapshot is not None
        assert self.offer.manifest == b"list" and len(self.data) == self.offer.total_bytes
        self.node.staged[self.offer.group_id, self.offer.message.snapshot.metadata.index] = self.data

    def abort(self) -> None:
        self.node.aborted += 1


class Node:
    def __init__(self, cluster: Cluster, node_id: int, files: Files, path: str) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.files = files
        self.path = path
        self.staged: dict[tuple[int, int], bytes] = {}
        self.aborted = 0
        self.fatal: BaseException | None = None
        self.machines: dict[int, Machine] = {}
        self.refuse_snapshots = 0
        self.wal = Wal(files, path, 64 << 10, retainers=("raft",))
        self.log = RaftLog.open(self.wal)
        endpoint = cluster.network.endpoint(node_id)
        self.host = MultiRaftHost(
            self.log,
            endpoint,
            cluster.loop,
            tick_interval_s=TICK_S,
            on_fatal=self._fatal,
            on_unknown_group=self._unknown,
        )
        endpoint.attach(self.host, self)
        self.host.start()

    def begin(self, offer: SnapshotOffer) -> Staging:
        return Staging(self, offer)

    def add_group(self, group_id: int, voters: tuple[int, ...] = ()) -> Machine:
        storage = self.log.group(group_id)
        if not storage.stored and voters:
            storage.initialise(10, 5, ConfState(voters))
        machine = self.machines[group_id] = Machine(self, group_id)
        # No data survives a restart here: start again from where the log starts.
        machine.applied_index = storage.first_index() - 1
        machine.applied_term = storage.term(machine.applied_index)
        machine.conf_state = storage.initial_state()[1]
        storage.snapshot_source = machine.make_snapshot
        config = RaftConfig(
            id=self.node_id,
            applied=machine.applied_index,
            max_inflight_msgs=16,
            quiet_after_ticks=self.cluster.quiet_after_ticks,
        )
        dice = random.Random(self.cluster.seed * 1000 + self.node_id * 100 + group_id)
        self.host.add_group(group_id, RawNode(config, storage, dice.randrange), machine)
        return machine

    def _unknown(self, from_node: int, group_id: int, message: Message) -> None:
        if group_id in self.cluster.joinable:
            self.add_group(group_id)

    def _fatal(self, error: BaseException) -> None:
        self.fatal = error


class Cluster:
    def __init__(
        self,
        seed: int = 1,
        nodes: int = 3,
        groups: int = 1,
        *,
        files: Callable[[int], tuple[Files, str]] | None = None,
        loss: float = 0.0,
        duplication: float = 0.0,
        quiet_after_ticks: int = 0,
    ) -> None:
        self.seed = seed
        self.quiet_after_ticks = quiet_after_ticks
        self.loop = SimLoop()
        self.network = SimNetwork(self.loop, seed=seed, loss=loss, duplication=duplication)
        self.joinable: set[int] = set()
        self.nodes: dict[int, Node] = {}
        self.voters = tuple(range(1, nodes + 1))
        self.groups = tuple(range(1, groups + 1))
        for node_id in self.voters:
            disk, path = files(node_id) if files is not None else (CrashFiles(seed=seed * 10 + node_id), "wal")
            node = self.nodes[node_id] = Node(self, node_id, disk, path)
            for group_id in self.groups:
                node.add_group(group_id, self.voters)

    def kill(self, node_id: int) -> Node:
        """Power loss if the disk can forget, else kill -9."""
        node = self.nodes.pop(node_id)
        node.host.stop()
        self.network.kill(node_id)
        return node

    def restart(self, dead: Node) -> Node:
        files = dead.files
        if isinstance(files, CrashFiles):
            files = files.crash_clone()
        else:
            dead.wal.close(sync=False)
        node = self.nodes[dead.node_id] = Node(self, dead.node_id, files, dead.path)
        for group_id in node.log.group_ids():
            node.add_group(group_id)
        return node

    def leader(self, group_id: int = 1) -> Node | None:
        """The node that leads in the highest term, if a majority is with it."""
        best: tuple[int, Node] | None = None
        for node in self.nodes.values():
            if node.fatal is None and node.host.has_group(group_id):
                status = node.host.status(group_id)
                if status.role is NodeRole.LEADER and (best is None or status.term > best[0]):
                    best = (status.term, node)
        return None if best is None else best[1]

    def elect(self, group_id: int = 1, *, among: tuple[int, ...] | None = None) -> Node:
        def ready() -> bool:
            leader = self.leader(group_id)
            return leader is not None and (among is None or leader.node_id in among)

        self.loop.run_until(ready)
        leader = self.leader(group_id)
        assert leader is not None
        return leader

    def propose(self, data: bytes, group_id: int = 1, *, among: tuple[int, ...] | None = None) -> None:
        """Until the leader has applied it, again when it was dropped or leadership moved."""
        while True:
            leader = self.elect(group_id, among=among)
            machine = leader.machines[group_id]
            before = len(machine.dropped)
            term = leader.host.status(group_id).term
            leader.host.propose(group_id, data)

            def settled(
                leader: Node = leader, machine: Machine = machine, before: int = before, term: int = term
            ) -> bool:
                moved = leader.host.status(group_id).term != term
                return data in machine.applied or len(machine.dropped) > before or moved

            self.loop.run_until(settled)
            if data in machine.applied:
                return

    def converge(self, group_id: int = 1) -> list[bytes]:
        """Until every live node has applied the same; that list."""

        def same() -> bool:
            machines = [node.machines[group_id] for node in self.nodes.values()]
            return len({tuple(m.applied) for m in machines}) == 1 and len({m.applied_index for m in machines}) == 1

        self.loop.run_until(same)
        return next(iter(self.nodes.values())).machines[group_id].applied

    def check(self) -> None:
        """At equal positions the same command was applied; nobody failed."""
        for group_id in self.groups:
            lists = [node.machines[group_id].applied for node in self.nodes.values() if group_id in node.machines]
            longest = max(lists, key=len)
            for applied in lists:
                assert applied == longest[: len(applied)], f"seed {self.seed}: replicas differ"
        for node in self.nodes.values():
            assert node.fatal is None, f"seed {self.seed}: {node.fatal}"
