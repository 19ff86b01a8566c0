"""RootServer: one meta-root process's insides, wired together. Everything that decides lies below this file.

directory   an engine directory of its own (mode cluster, role meta-root): its WAL carries the Raft log,
            root/ the checkpoints. Nothing else of the engine is used.
start       open, load the newest good checkpoint, hand the committed rest of the log to the machine, serve.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from nokv.env.clock import SystemClock
from nokv.env.files import OsFiles
from nokv.env.ports import Clock, Executor, Files
from nokv.errors import Corruption, ModeError, PreconditionFailed, UsageError
from nokv.metaroot.checkpoints import CheckpointFiles
from nokv.metaroot.client import MESSAGE_BYTES_MAX, Dial, dial_plain, dial_with
from nokv.metaroot.directory import INITIAL_INDEX, ROOT_GROUP_ID, restore
from nokv.metaroot.machine import RootMachine
from nokv.metaroot.node import RootNode
from nokv.metaroot.service import RootService
from nokv.metaroot.wire import decode_checkpoint, encode_checkpoint
from nokv.multiraft.host import MultiRaftHost, exit_process
from nokv.multiraft.raftlog import GroupLog, RaftLog
from nokv.multiraft.transport import RaftTransport
from nokv.pb import root_pb2, root_pb2_grpc
from nokv.raft.confchange import decode_conf_change
from nokv.raft.config import RaftConfig
from nokv.raft.errors import SnapshotTemporarilyUnavailable
from nokv.raft.rawnode import RaftStatus, RawNode
from nokv.raft.types import ConfState, Entry, RaftSnapshot, SnapshotMetadata
from nokv.rpc.service import add_common_services
from nokv.rpc.tls import Tls
from nokv.rpc.transport import bind, server_options

__all__ = ["ROOT_GROUP_ID", "ROOT_SERVICE", "SERVER_OPTIONS", "RootConfig", "RootServer", "ServerPorts"]

ROOT_SERVICE = root_pb2.DESCRIPTOR.services_by_name["Root"].full_name
SERVER_OPTIONS = server_options(MESSAGE_BYTES_MAX)
log = logging.getLogger("nokv.metaroot")


@dataclass(slots=True)
class RootConfig:
    """`peers`: id and address of every member, this one included; empty: it is the only one. Fixed for life."""

    node_id: int
    address: str
    workdir: str
    peers: Mapping[int, str] = field(default_factory=dict)
    tick_interval_s: float = 0.05
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    retain_events: int = 100_000
    checkpoint_every: int = 10_000
    tail_heartbeat_s: float = 0.5

    def validate(self) -> None:
        if self.node_id <= 0:
            raise UsageError("a meta-root's id is a positive number")
        if self.peers:
            if self.node_id not in self.peers:
                raise UsageError(f"meta-root {self.node_id} is not among its peers {sorted(self.peers)}")
            if len(self.peers) not in (1, 3, 5):
                raise UsageError(f"a rooted log has 1, 3 or 5 peers, not {len(self.peers)}")
            if len(set(self.peers.values())) < len(self.peers):
                raise UsageError("two meta-roots have the same address")
        if self.retain_events < 1 or self.checkpoint_every < 1:
            raise UsageError("retain_events and checkpoint_every are positive")


@dataclass(slots=True)
class ServerPorts:
    """What joins a control-plane process to the world; the simulator passes its own. `executor` runs the engine's
    background steps (None: threads), `transport(node_id, resolve)` carries Raft's messages."""

    files: Files = field(default_factory=OsFiles)
    clock: Clock = field(default_factory=SystemClock)
    dice: random.Random = field(default_factory=random.SystemRandom)
    executor: Executor | None = None
    server: Callable[[], grpc.aio.Server] = lambda: grpc.aio.server(options=SERVER_OPTIONS)
    dial: Dial = dial_plain
    transport: Callable[[int, Callable[[int], str | None]], RaftTransport] = RaftTransport
    on_fatal: Callable[[BaseException], None] = exit_process
    tls: Tls | None = None
    """Of the listening port."""

    @classmethod
    def over(cls, tls: Tls | None) -> ServerPorts:
        """The real world, with TLS on all that comes in and goes out."""
        return cls(dial=dial_with(tls), transport=partial(RaftTransport, tls=tls), tls=tls)


class _Group:
    """RaftGroup over a MultiRaftHost."""

    def __init__(self, host: MultiRaftHost, raw: RawNode) -> None:
        self._host = host
        self._raw = raw

    def propose(self, data: bytes) -> None:
        self._host.propose(ROOT_GROUP_ID, data)

    def read_index(self, context: bytes) -> None:
        self._host.read_index(ROOT_GROUP_ID, context)

    def apply_conf_change(self, entry: Entry) -> None:
        self._raw.apply_conf_change(decode_conf_change(entry.kind, entry.data))

    def status(self) -> RaftStatus:
        return self._raw.status()


class RootServer:
    """start() and stop() once each, on the event loop that serves."""

    def __init__(self, config: RootConfig, *, ports: ServerPorts | None = None, listen: bool = True) -> None:
        """`listen=False`: no port of its own; whoever made it serves `service` (a coordinator that is its own root)."""
        config.validate()
        self.config = config
        self._listen = listen
        self.address = config.address
        self.node: RootNode | None = None
        self.damage: list[Corruption] = []
        self._ports = ports if ports is not None else ServerPorts()
        self._db: Any = None
        self._raftlog: RaftLog | None = None
        self._host: MultiRaftHost | None = None
        self._transport: RaftTransport | None = None
        self._server: grpc.aio.Server | None = None
        self.service: RootService | None = None
        self._checkpoints: CheckpointFiles | None = None
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._newest: tuple[int, int, bytes] | None = None  # index, term, bytes of the newest checkpoint

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        self._open_directory()
        members = dict(config.peers) or {config.node_id: config.address}
        machine = RootMachine(retain_max=config.retain_events)
        self._raftlog = RaftLog.open(self._db.wal)
        group_log = self._recover(self._raftlog, machine, ConfState(voters=tuple(sorted(members))))
        self.node = RootNode(
            config.node_id,
            members,
            machine,
            self._ports.clock,
            self._ports.dice.getrandbits(31) << 32,
            on_applied=self._maybe_checkpoint,
            on_install=self._install,
        )
        raw = RawNode(
            RaftConfig(
                id=config.node_id,
                election_ticks=config.election_ticks,
                heartbeat_ticks=config.heartbeat_ticks,
                applied=machine.applied_index,
                disable_proposal_forwarding=True,
            ),
            group_log,
            self._ports.dice.randrange,
        )
        if self._listen:
            self._server = self._ports.server()
            self.address = bind(self._server, config.address, self._ports.tls)
        if not config.peers:
            self.node.members[config.node_id] = self.address
        self._transport = self._ports.transport(config.node_id, members.get)
        self._host = MultiRaftHost(
            self._raftlog,
            self._transport,
            asyncio.get_running_loop(),
            tick_interval_s=config.tick_interval_s,
            on_fatal=self._ports.on_fatal,
        )
        self.node.group = _Group(self._host, raw)
        self._transport.attach(self._host, None)
        self.service = RootService(self.node, tail_heartbeat_s=config.tail_heartbeat_s)
        if self._server is not None:
            self._transport.register(self._server)
            root_pb2_grpc.add_RootServicer_to_server(self.service, self._server)
            await add_common_services(self._server, ROOT_SERVICE)
            await self._server.start()
        self._host.add_group(ROOT_GROUP_ID, raw, self.node)
        self._host.start()
        if len(members) == 1:
            self._host.campaign(ROOT_GROUP_ID)

    async def stop(self) -> None:
        """Idempotent. Answers what is running with Unavailable, then closes the directory."""
        if self.node is not None:
            self.node.stop()
        if self._checkpoint_task is not None:
            await asyncio.wait([self._checkpoint_task])
            self._checkpoint_task = None
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._server = None
        if self._host is not None:
            self._host.stop()
            self._host = None
        if self._transport is not None:
            await self._transport.close()
            self._transport = None
        if self._db is not None:
            self._db.close()
            self._db = None

    # -- the directory ------------------------------------------------------------------------------------------------
    def _open_directory(self) -> None:
        import nokv
        from nokv.engine.mode import CLUSTER, STANDALONE, ModeRecord, read_mode, write_mode

        workdir, files = self.config.workdir, self._ports.files
        files.makedirs(workdir)
        record = read_mode(workdir, files)
        if record.mode == STANDALONE:
            if [name for name in files.listdir(workdir) if not name.startswith("MODE.json")]:
                raise PreconditionFailed(f"{workdir} holds something else: a meta-root needs an empty directory")
            write_mode(workdir, ModeRecord(CLUSTER, store_id=self.config.node_id, role="meta-root"), files)
        elif record.role != "meta-root":
            raise ModeError(f"{workdir} belongs to a store, not to a meta-root", mode=record.mode)
        elif record.store_id != self.config.node_id:
            raise PreconditionFailed(f"{workdir} belongs to meta-root {record.store_id}, not {self.config.node_id}")
        self._db = nokv.open(
            workdir, mode="cluster", files=files, executor=self._ports.executor, wal_retainers=("raft",)
        )
        self._checkpoints = CheckpointFiles(f"{workdir}/root", files)

    def _recover(self, raftlog: RaftLog, machine: RootMachine, conf_state: ConfState) -> GroupLog:
        """The newest good checkpoint, then the log behind it. Fails loudly if the two do not meet (MR-05)."""
        assert self._checkpoints is not None
        restored = restore(self.config.workdir, self._checkpoints, raftlog, machine, conf_state)
        group, self.damage = restored.group, restored.damage
        for error in self.damage:
            log.warning("checkpoint ignored: %s", error)
        if sorted(group.initial_state()[1].voters) != sorted(conf_state.voters):
            raise PreconditionFailed(
                f"{self.config.workdir} was made for the meta-roots {sorted(group.initial_state()[1].voters)}, "
                f"not {sorted(conf_state.voters)}",
                hint="the members of a rooted log are fixed",
            )
        if restored.found is not None:
            checkpoint = restored.found.checkpoint
            self._newest = (checkpoint.index, checkpoint.term, restored.found.data)
        group.snapshot_source = self._snapshot
        return group

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def _snapshot(self) -> RaftSnapshot:
        """For a follower whose next entry is gone."""
        if self._newest is None:
            raise SnapshotTemporarilyUnavailable
        index, term, data = self._newest
        return RaftSnapshot(SnapshotMetadata(index, term, self._conf_state()), data)

    def _conf_state(self) -> ConfState:
        assert self._raftlog is not None
        return self._raftlog.group(ROOT_GROUP_ID).initial_state()[1]

    def _install(self, snapshot: RaftSnapshot) -> None:
        """From the leader: durable here before the log forgets what it replaces."""
        assert self.node is not None and self._checkpoints is not None
        checkpoint = decode_checkpoint(snapshot.data, "root snapshot")
        if checkpoint.index != snapshot.metadata.index:
            raise Corruption("another index than announced", path="root snapshot", found=checkpoint.index)
        self._checkpoints.write(checkpoint.index, snapshot.data, installed=True)
        self.node.machine.restore(checkpoint)
        self._newest = (checkpoint.index, checkpoint.term, snapshot.data)

    def _maybe_checkpoint(self) -> None:
        if self.node is None or self._checkpoint_task is not None:
            return
        newest = self._newest[0] if self._newest is not None else INITIAL_INDEX
        if self.node.machine.applied_index >= newest + self.config.checkpoint_every:
            self._checkpoint_task = asyncio.get_running_loop().create_task(self._checkpoint())

    async def _checkpoint(self) -> None:
        assert self.node is not None and self._checkpoints is not None and self._raftlog is not None
        try:
            checkpoint = self.node.machine.checkpoint()
            data = await asyncio.to_thread(encode_checkpoint, checkpoint)
            if self._newest is not None and self._newest[0] >= checkpoint.index:
                return  # a snapshot was installed meanwhile
            await asyncio.to_thread(self._checkpoints.write, checkpoint.index, data)
            self._newest = (checkpoint.index, checkpoint.term, data)
            self._raftlog.group(ROOT_GROUP_ID).compact(self._checkpoints.compactable_index())
        except OSError:
            log.exception("checkpoint failed; the log stays as it is, the next one tries again")
        finally:
            self._checkpoint_task = None

    # -- what operators see -------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        if self.node is None:
            return {}
        machine = self.node.machine
        return {
            "node_id": self.config.node_id,
            "address": self.address,
            "leader_id": self.node.leader_id,
            "leads": self.node.leads,
            "applied_index": machine.applied_index,
            "revision": machine.last.revision,
            "first_revision": machine.first_revision,
            "appends": self.node.appends,
            "refusals": self.node.refusals,
            "tails": self.service.tails if self.service is not None else 0,
            "checkpoint_index": self._newest[0] if self._newest is not None else 0,
            "damaged_checkpoints": len(self.damage),
            "raft": self._host.stats() if self._host is not None else {},
        }
