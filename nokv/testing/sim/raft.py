"""One Raft group under fire: real RawNodes, virtual time, a bad network, disks that forget, clients that watch.

Everything is drawn from one seed, so a seed is a schedule: run it again and the same things happen (`trace` proves it).
Which faults a seed has is drawn too (swarm testing): a schedule with every fault at once hides what two of them do.

A step is one event: a tick, a message, a write that became durable, a client, a fault. After each, the invariants of
the node it touched are checked against what the whole group ever promised:

    election safety        one leader a term, one vote a term and node (votes that left the node, across crashes)
    log matching           an entry (index, term) has one content and one predecessor, wherever it was ever written
    leader completeness    a new leader has everything that was ever committed
    state-machine safety   one entry, one membership and one digest of the state per applied index
    no way back            term and commit index never fall while a node lives; the term not across a crash either

At the end the histories of the clients must be linearizable; then everything heals, and the group must elect a leader
and agree within 20 election timeouts.
"""

from __future__ import annotations

import heapq
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nokv.raft import (
    ConfChange,
    ConfChangeKind,
    ConfChangeTransition,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NodeRole,
    ProposalDropped,
    RaftConfig,
    RaftSnapshot,
    RawNode,
    ReadMode,
    Ready,
    SingleChange,
    SnapshotMetadata,
    StepRejected,
    decode_conf_change,
)
from nokv.raft.core import RaftCore
from nokv.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD
from nokv.testing.linearizability import Operation, find_violation, versioned_register_step
from nokv.testing.sim.disk import SimDisk

__all__ = ["Bugs", "RaftSim", "SimReport", "Violation"]

TICK = 100
ELECTION_TICKS = 10
HEARTBEAT_TICKS = 2
ELECTION = TICK * ELECTION_TICKS
KEYS = 2
LIVENESS_ELECTIONS = 20
_REQUEST = struct.Struct("<IIB I")


class Violation(AssertionError):
    """An invariant does not hold. The message says which, and what was seen."""


@dataclass(slots=True)
class Bugs:
    """What a planted bug changes outside the state machine itself, and the class that it puts in its place."""

    core: type[RaftCore] = RaftCore
    never_sync_votes: bool = False
    answer_before_sync: bool = False
    restart_forgets_vote: bool = False
    lease: bool = False
    """Only schedules with lease reads show it."""
    lease_reads_with_pauses: bool = False


@dataclass(slots=True)
class SimReport:
    seed: int
    trace: int
    events: int
    faults: dict[str, int]
    operations: int
    entries: int
    healed_after: int


@dataclass(slots=True)
class _Pending:
    """An operation that a client waits for."""

    process: int
    number: int
    key: int
    value: int | None
    operation: Operation
    deadline: int


class _Machine:
    """The replicated registers: (value, version) per key, and the last request of each client (requests may repeat)."""

    __slots__ = ("answers", "registers")

    def __init__(self) -> None:
        self.registers: list[tuple[int, int]] = [(0, 0)] * KEYS
        self.answers: dict[int, int] = {}

    def apply(self, data: bytes) -> tuple[int, int, int] | None:
        """(process, number, version), or None for an entry without a request or one seen before."""
        if not data:
            return None
        process, number, key, value = _REQUEST.unpack(data)
        if self.answers.get(process, 0) >= number:
            return None
        version = self.registers[key][1] + 1
        self.registers[key] = (value, version)
        self.answers[process] = number
        return process, number, version

    def dump(self) -> bytes:
        return repr((self.registers, self.answers)).encode()

    @classmethod
    def load(cls, data: bytes) -> _Machine:
        machine = cls()
        if data:
            # The simulator's own bytes, made by `dump` of this process.
            registers, answers = data.decode().split("], {", 1)
            numbers = [int(n) for n in registers.replace("([", "").replace("(", "").replace(")", "").split(",")]
            machine.registers = list(zip(numbers[::2], numbers[1::2], strict=True))
            pairs = answers.rstrip("})")
            machine.answers = dict(tuple(map(int, pair.split(":"))) for pair in pairs.split(",") if pair)  # type: ignore[misc]
        return machine

    def digest(self) -> int:
        return zlib.crc32(repr(self.registers).encode())


@dataclass(slots=True)
class _Node:
    id: int
    disk: SimDisk
    raw: RawNode | None = None
    machine: _Machine = field(default_factory=_Machine)
    applied: int = 0
    applied_term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)
    life: int = 0
    """Counts starts; events of an earlier life are void."""
    paused_until: int = 0
    held: list[Callable[[], None]] = field(default_factory=list)
    tick_interval: int = TICK
    busy: bool = False
    """A Ready was taken and is not done yet."""
    reads: dict[bytes, _Pending] = field(default_factory=dict)
    confirmed: list[tuple[int, _Pending]] = field(default_factory=list)
    puts: dict[tuple[int, int], _Pending] = field(default_factory=dict)
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)
    seen_term: int = 0
    seen_commit: int = 0
    checked_commit: int = 0


class RaftSim:
    """One schedule. `run()` raises Violation, or returns what happened."""

    def __init__(self, seed: int, *, bugs: Bugs | None = None, elections: int = 20) -> None:
        self.seed = seed
        self.bugs = bugs or Bugs()
        self.random = random.Random(seed)
        self.now = 0
        self.trace = 0
        self.events = 0
        self.faults: dict[str, int] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._draw_options(elections)
        # What the group ever promised.
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.written: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: dict[int, tuple[int, int, bytes]] = {}
        self.committed_by: dict[int, int] = {}
        self.last_committed = 0
        self.digests: dict[int, int] = {}
        self.memberships: dict[int, ConfState] = {}
        self.history: list[list[Operation]] = [[] for _ in range(KEYS)]
        self.outstanding: list[_Pending | None] = [None] * self.client_count
        self.process_of = list(range(1, self.client_count + 1))
        self.next_process = self.client_count + 1
        self.numbers: dict[int, int] = {}
        self.next_value = 1
        self.next_read = 1
        self.blocked: set[tuple[int, int]] = set()
        self.calm = False
        self.nodes = {node_id: _Node(node_id, SimDisk()) for node_id in range(1, self.node_count + 1)}
        voters = tuple(range(1, self.voter_count + 1))
        start = RaftSnapshot(SnapshotMetadata(5, 1, ConfState(voters)), _Machine().dump())
        for node in self.nodes.values():
            node.tick_interval = TICK + (self._pick(2 * self.skew + 1) - self.skew if self.skew else 0)
            if node.id <= self.voter_count:
                node.disk.write(HardState(1, 0, 5), [], start)
                node.disk.sync()
            self._start(node)
        for client in range(self.client_count):
            self._at(self._pick(200), partial(self._client_turn, client))
        self._at(self._pick(600), self._nemesis)
        self.end = elections * ELECTION

    # -- options of this seed ------------------------------------------------------------------------------------------
    def _draw_options(self, elections: int) -> None:
        draw = self.random
        self.voter_count = draw.choice((1, 2, 3, 3, 3, 3, 5, 5))
        self.changes = draw.random() < 0.5
        self.node_count = min(self.voter_count + (2 if self.changes else 0), 6)
        self.lease = draw.random() < 0.2 or self.bugs.lease
        self.asynchronous = draw.random() < 0.3
        self.early_appends = draw.random() < 0.5
        self.disk_latency = draw.choice((0, 20, 100, 300))
        self.safe_elections = self.changes or self.lease or draw.random() < 0.7
        self.loss = draw.choice((0, 0, 3, 10, 30))
        self.duplication = draw.choice((0, 0, 10, 50))
        self.long_delay = draw.choice((0, 0, 2, 10))
        self.keep_entries = draw.choice((0, 2, 10))
        self.compact_every = draw.choice((4, 10, 30, 1 << 30))
        self.skew = draw.choice((0, 5, 10))
        self.client_count = draw.choice((3, 5, 8))
        self.crash_in_ready = draw.choice((0, 0, 3, 15))
        self.message_size = draw.choice((1, 1, 64, 1 << 20))
        self.inflight = draw.choice((1, 1, 4, 256))
        self.strike = draw.random() < 0.3
        kinds = [
            "crash",
            "cut_one",
            "cut_half",
            "cut_one_way",
            "pause",
            "transfer",
            "campaign",
            "forget",
            "unreachable",
        ]
        self.kinds = [kind for kind in kinds if draw.random() < 0.6] or ["crash"]
        if self.changes:
            self.kinds += ["change", "change"]
        if self.lease and not self.bugs.lease_reads_with_pauses:
            # A pause is a clock that stands still: outside the bound that lease reads are promised under.
            self.kinds = [kind for kind in self.kinds if kind != "pause"] or ["crash"]
        elif self.bugs.lease_reads_with_pauses:
            self.kinds += ["pause", "pause", "pause"]
        self.fault_gap = draw.choice((150, 400, 800, 1500))
        # A leader that is removed from two voters and steps down at once may leave the other with a shorter log than
        # its own, unable to win and unable to learn that it is alone now. So: never below three, or no stepping down.
        self.step_down = self.voter_count >= 3 and draw.random() < 0.6
        self.voters_min = 3 if self.step_down else 1
        if self.strike:
            self._draw_strikes(draw)

    def _draw_strikes(self, draw: random.Random) -> None:
        """A profile of its own: leaders live a few message delays, and reach only some of the others."""
        if not self.changes:
            self.voter_count = self.node_count = draw.choice((3, 5, 5))
        elif self.voter_count < 3:
            self.voter_count, self.node_count = 3, 5
        if not self.changes and not self.lease:
            self.safe_elections = False
        self.message_size = self.inflight = 1
        self.loss = draw.choice((0, 3))
        self.disk_latency = draw.choice((0, 20, 100))
        self.long_delay = draw.choice((0, 10, 20))
        self.fault_gap = 300 if self.changes else 1500
        self.leader_life = draw.choice((150, 400, 1500)) if self.changes else 400

    def _pick(self, bound: int) -> int:
        return int(self.random.random() * bound)

    # -- time ----------------------------------------------------------------------------------------------------------
    def _at(self, delay: int, call: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, call))

    def _note(self, *numbers: int) -> None:
        self.trace = zlib.crc32(repr((self.now, numbers)).encode(), self.trace)

    def _until(self, end: int, done: Callable[[], bool] | None = None) -> bool:
        while self._queue and self._queue[0][0] <= end:
            self.now, _, call = heapq.heappop(self._queue)
            self.events += 1
            call()
            if done is not None and self.events % 16 == 0 and done():
                return True
        return done is not None and done()

    def run(self) -> SimReport:
        try:
            return self._run()
        except Violation:
            raise
        except Exception as error:
            # The machine's own assertions count: in a release they stop the process before harm is done. So does any
            # other exception: nothing may raise here.
            raise Violation(f"{type(error).__name__}: {error}") from error

    def _run(self) -> SimReport:
        self._until(self.end)
        self._heal()
        healed_at = self.now
        if not self._until(self.now + LIVENESS_ELECTIONS * ELECTION, self._converged):
            raise Violation(f"no convergence within {LIVENESS_ELECTIONS} election timeouts: {self._picture()}")
        effects = self._effects()
        for key, history in enumerate(self.history):
            # Where an unanswered put stands is known from the log (whose safety was checked all along): nowhere,
            # or at a version. Without this the search is exponential in the number of such puts.
            for operation in history:
                if operation.ret is None:
                    operation.result = effects.get((key, operation.argument[1]))
            done = [op for op in history if op.result is not None]
            problem = find_violation(done, versioned_register_step, (0, 0))
            if problem is not None:
                raise Violation(f"register {key}: {problem}")
        operations = sum(op.ret is not None for history in self.history for op in history)
        return SimReport(
            self.seed,
            self.trace,
            self.events,
            self.faults,
            operations,
            self.last_committed,
            self.now - healed_at,
        )

    def _effects(self) -> dict[tuple[int, int], int]:
        """(key, value) -> version, of every put in the committed log."""
        effects = {}
        machine = _Machine()
        for index in sorted(self.committed):
            _, kind, data = self.committed[index]
            if kind == EntryKind.NORMAL and data:
                answer = machine.apply(data)
                if answer is not None:
                    _, _, key, value = _REQUEST.unpack(data)
                    effects[key, value] = answer[2]
        return effects

    def _picture(self) -> str:
        out = []
        for node in self.nodes.values():
            if node.raw is None:
                out.append(f"{node.id}: down")
            else:
                core = node.raw.core
                out.append(
                    f"{node.id}: {core.role.name} term {core.term} leader {core.leader} commit {core.log.committed} "
                    f"applied {node.applied} last {core.log.last_index()} {core.membership}"
                )
        return "; ".join(out)

    # -- nodes ---------------------------------------------------------------------------------------------------------
    def _start(self, node: _Node) -> None:
        storage = node.disk.live
        hard_state, conf_state = storage.initial_state()
        if self.bugs.restart_forgets_vote and hard_state.vote:
            storage.set_hard_state(HardState(hard_state.term, 0, hard_state.commit))
        snapshot = storage.stored_snapshot()
        storage.make_snapshot = lambda: self._make_snapshot(node)
        node.applied = snapshot.metadata.index
        node.applied_term = snapshot.metadata.term
        node.machine = _Machine.load(snapshot.data)
        node.conf_state = conf_state
        node.life += 1
        node.busy = False
        node.held = []
        node.reads, node.confirmed, node.puts = {}, [], {}
        node.append_work, node.apply_work = [], []
        config = RaftConfig(
            id=node.id,
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=HEARTBEAT_TICKS,
            applied=node.applied,
            pre_vote=self.safe_elections,
            check_quorum=self.safe_elections,
            read_mode=ReadMode.LEASE if self.lease else ReadMode.SAFE,
            lease_drift_ticks=3,
            max_size_per_msg=self.message_size,
            max_committed_size_per_ready=self.message_size if self.message_size > 1 else 0,
            max_inflight_msgs=self.inflight,
            async_storage_writes=self.asynchronous,
            step_down_on_removal=self.step_down,
        )
        node.raw = raw = _make_node(self.bugs.core, config, storage, self._pick)
        if raw.core.term < node.seen_term:
            raise Violation(f"node {node.id} restarted in term {raw.core.term} after it was in {node.seen_term}")
        node.seen_commit = node.checked_commit = raw.core.log.committed
        self._note(1, node.id, node.life)
        life = node.life
        self._at(self._pick(node.tick_interval), lambda: self._tick(node, life))

    def _stop(self, node: _Node) -> None:
        if node.raw is None:
            return
        self._note(2, node.id)
        node.raw = None
        node.life += 1
        node.paused_until = 0
        node.disk.crash(self._pick)

    def _when_awake(self, node: _Node, life: int, call: Callable[[], None]) -> None:
        """Run `call` on the node unless it died since; a paused node does it when it wakes up."""
        if node.life != life or node.raw is None:
            return
        if node.paused_until > self.now:
            node.held.append(call)
            return
        call()

    def _tick(self, node: _Node, life: int) -> None:
        if node.life != life or node.raw is None:
            return
        self._at(node.tick_interval, lambda: self._tick(node, life))
        if node.paused_until > self.now:
            return
        if node.held:
            held, node.held = node.held, []
            for call in held:
                self._when_awake(node, life, call)
            if node.life != life or node.raw is None:
                return
        node.raw.tick()
        self._after(node)

    def _after(self, node: _Node) -> None:
        """The node did something: check it, and take what it asks for."""
        raw = node.raw
        if raw is None:
            return
        self._check(node, raw)
        while node.raw is raw and not node.busy and raw.has_ready():
            self._take_ready(node, raw)
            if node.raw is raw:
                self._check(node, raw)

    def _take_ready(self, node: _Node, raw: RawNode) -> None:
        ready = raw.ready()
        if ready.soft_state is not None and ready.soft_state.role is NodeRole.LEADER:
            self._check_new_leader(node, raw)
            if self.strike and not self.calm:
                self._strike_soon(node)
        life = node.life
        if self.asynchronous:
            self._take_ready_async(node, ready)
            self._hand_reads(node, ready)
            return
        messages = ready.messages
        if self.bugs.answer_before_sync:
            self._send(messages)
            messages = []
        elif self.early_appends and raw.core.role is NodeRole.LEADER:
            self._send([message for message in messages if message.type == MessageType.APP])
            messages = [message for message in messages if message.type != MessageType.APP]
        node.disk.write(ready.hard_state, ready.entries, ready.snapshot)
        self._check_written(node, ready.entries)
        self._hand_reads(node, ready)
        if self._dies(node):
            return
        node.busy = True

        def finish() -> None:
            self._finish_ready(node, raw, ready, messages)

        if self.disk_latency:
            self._at(self._pick(self.disk_latency), lambda: self._when_awake(node, life, finish))
        else:
            finish()

    def _finish_ready(self, node: _Node, raw: RawNode, ready: Ready, messages: list[Message]) -> None:
        if (ready.must_sync and not self._skips_sync(ready)) or ready.snapshot is not None:
            node.disk.sync()
        if self._dies(node):
            return
        self._send(messages)
        if self._dies(node):
            return
        self._apply(node, raw, ready.snapshot, ready.committed_entries)
        if self._dies(node):
            return
        node.busy = False
        raw.advance(ready)
        self._answer_reads(node)
        self._maybe_compact(node)
        if self.disk_latency:
            self._after(node)

    def _skips_sync(self, ready: Ready) -> bool:
        return self.bugs.never_sync_votes and not ready.entries

    def _dies(self, node: _Node) -> bool:
        """A crash between two steps of one Ready (RAFT-07)."""
        if self.crash_in_ready and not self.calm and self._pick(1000) < self.crash_in_ready and self._may_lose_one():
            self._crash(node)
            return True
        return False

    # -- asynchronous storage writes: two queues that the process would give to threads --------------------------------
    def _take_ready_async(self, node: _Node, ready: Ready) -> None:
        life = node.life
        out = []
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
                if len(node.append_work) == 1:
                    self._at(self._pick(60), lambda: self._when_awake(node, life, lambda: self._append_turn(node)))
            elif message.to == LOCAL_APPLY_THREAD:
                node.apply_work.append(message)
                if len(node.apply_work) == 1:
                    self._at(self._pick(60), lambda: self._when_awake(node, life, lambda: self._apply_turn(node)))
            else:
                out.append(message)
        self._send(out)

    def _append_turn(self, node: _Node) -> None:
        raw = node.raw
        assert raw is not None
        work, node.append_work = node.append_work, []
        responses = []
        for message in work:
            state = HardState(message.term, message.vote, message.commit)
            node.disk.write(state if message.term else None, message.entries, message.snapshot)
            self._check_written(node, message.entries)
            if message.snapshot is not None:
                self._apply(node, raw, message.snapshot, [])
            responses += message.responses
        if not (self.bugs.never_sync_votes and not any(message.entries for message in work)):
            node.disk.sync()
        if not self._dies(node):
            self._deliver_local(node, raw, responses)

    def _apply_turn(self, node: _Node) -> None:
        raw = node.raw
        assert raw is not None
        work, node.apply_work = node.apply_work, []
        responses = []
        for message in work:
            self._apply(node, raw, None, message.entries)
            responses += message.responses
        if not self._dies(node):
            self._answer_reads(node)
            self._deliver_local(node, raw, responses)
            if node.raw is raw:
                self._maybe_compact(node)

    def _deliver_local(self, node: _Node, raw: RawNode, responses: list[Message]) -> None:
        own = [message for message in responses if message.to == node.id]
        self._send([message for message in responses if message.to != node.id])
        for message in own:
            if message.type == MessageType.VOTE_RESP:
                self._check_vote(node.id, message.term, node.id)
            self._step(node, raw, message)
        self._after(node)

    # -- applying ------------------------------------------------------------------------------------------------------
    def _apply(self, node: _Node, raw: RawNode, snapshot: RaftSnapshot | None, entries: list[Entry]) -> None:
        if snapshot is not None and snapshot.metadata.index > node.applied:
            node.applied = snapshot.metadata.index
            node.applied_term = snapshot.metadata.term
            node.machine = _Machine.load(snapshot.data)
            node.conf_state = snapshot.metadata.conf_state
            self._check_applied(node)
        for entry in entries:
            if entry.index <= node.applied:
                if self.asynchronous:
                    continue  # queued before a snapshot that covers it
                raise Violation(f"node {node.id} applies {entry.index} again after {node.applied}")
            if entry.index != node.applied + 1:
                raise Violation(f"node {node.id} applies {entry.index} after {node.applied}")
            node.applied = entry.index
            node.applied_term = entry.term
            if entry.kind != EntryKind.NORMAL:
                change = decode_conf_change(entry.kind, entry.data)
                node.conf_state = raw.apply_conf_change(change)
                known = self.memberships.setdefault(entry.index, node.conf_state)
                if known != node.conf_state:
                    raise Violation(f"membership at {entry.index}: {known}, but {node.conf_state} on {node.id}")
            else:
                answer = node.machine.apply(entry.data)
                if answer is not None:
                    process, number, version = answer
                    pending = node.puts.pop((process, number), None)
                    if pending is not None:
                        self._complete(pending, version)
            self._check_applied(node)

    def _maybe_compact(self, node: _Node) -> None:
        live = node.disk.live
        if node.applied - live.stored_snapshot().metadata.index < self.compact_every or node.busy:
            return
        if node.applied > live.last_index():
            return
        node.disk.compact(self._make_snapshot(node), self.keep_entries)
        self._count("snapshot")

    def _make_snapshot(self, node: _Node) -> RaftSnapshot:
        metadata = SnapshotMetadata(node.applied, node.applied_term, node.conf_state)
        return RaftSnapshot(metadata, node.machine.dump())

    # -- the network ---------------------------------------------------------------------------------------------------
    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            if message.type == MessageType.VOTE_RESP and not message.reject:
                self._check_vote(message.sender, message.term, message.to)
            elif message.type == MessageType.VOTE and not self.asynchronous:
                self._check_vote(message.sender, message.term, message.sender)
            self._post(message)
            if self.duplication and not self.calm and self._pick(100) < self.duplication:
                self._post(replace(message))
                self._count("duplicate")

    def _post(self, message: Message) -> None:
        lost = not self.calm and self.loss and self._pick(100) < self.loss
        if message.type == MessageType.SNAP:
            sender = self.nodes[message.sender]
            ok = not lost and (message.sender, message.to) not in self.blocked
            life = sender.life
            self._at(300, lambda: self._when_awake(sender, life, lambda: self._report(sender, message.to, ok)))
        if lost:
            self._count("loss")
            return
        if (message.sender, message.to) in self.blocked:
            return  # what had left before the cut still arrives
        delay = 5 + self._pick(50)
        if self.long_delay and not self.calm and self._pick(100) < self.long_delay:
            delay += self._pick(3 * ELECTION)
            self._count("delay")
        self._at(delay, lambda: self._arrive(message))

    def _report(self, node: _Node, target: int, ok: bool) -> None:
        if node.raw is not None:
            node.raw.report_snapshot(target, ok)
            self._after(node)

    def _arrive(self, message: Message) -> None:
        node = self.nodes.get(message.to)
        if node is None or node.raw is None:
            return
        raw = node.raw

        def step() -> None:
            self._note(3, message.sender, message.to, message.type, message.term, message.index)
            self._step(node, raw, message)
            self._after(node)

        self._when_awake(node, node.life, step)

    def _step(self, node: _Node, raw: RawNode, message: Message) -> None:
        if node.raw is not raw:
            return
        try:
            raw.step(message)
        except (StepRejected, ProposalDropped):
            pass  # counted as lost: whoever waits for it times out

    # -- clients -------------------------------------------------------------------------------------------------------
    def _client_turn(self, client: int) -> None:
        self._at((ELECTION if self.calm else 10) + self._pick(60), lambda: self._client_turn(client))
        pending = self.outstanding[client]
        if pending is not None:
            if self.now < pending.deadline:
                return
            # Nobody will answer. What a put did is not known: it stays in the history, open; the client is a new one.
            self.outstanding[client] = None
            if pending.value is not None:
                self.process_of[client] = self.next_process
                self.next_process += 1
        node = self._some_node()
        if node is None:
            return
        if self._pick(2):
            self._start_put(client, node)
        else:
            self._start_read(client, node)

    def _some_node(self) -> _Node | None:
        up = [node for node in self.nodes.values() if node.raw is not None and node.paused_until <= self.now]
        if not up:
            return None
        leaders = [node for node in up if node.raw is not None and node.raw.core.role is NodeRole.LEADER]
        pool = leaders if leaders and self._pick(4) else up
        return pool[self._pick(len(pool))]

    def _start_put(self, client: int, node: _Node) -> None:
        assert node.raw is not None
        process = self.process_of[client]
        number = self.numbers[process] = self.numbers.get(process, 0) + 1
        key, value = self._pick(KEYS), self.next_value
        self.next_value += 1
        operation = Operation(self.now, ("put", value), process=process)
        pending = _Pending(process, number, key, value, operation, self.now + 600)
        node.puts[(process, number)] = pending
        try:
            node.raw.propose(_REQUEST.pack(process, number, key, value))
        except ProposalDropped:
            del node.puts[(process, number)]
            return  # it surely did not happen
        self.history[key].append(operation)
        self.outstanding[client] = pending
        self._after(node)

    def _start_read(self, client: int, node: _Node) -> None:
        assert node.raw is not None
        key = self._pick(KEYS)
        operation = Operation(self.now, ("get",), process=self.process_of[client])
        pending = _Pending(operation.process, 0, key, None, operation, self.now + 800)
        context = self.next_read.to_bytes(8, "big")
        self.next_read += 1
        node.reads[context] = pending
        self.outstanding[client] = pending
        node.raw.read_index(context)
        self._after(node)

    def _hand_reads(self, node: _Node, ready: Ready) -> None:
        for state in ready.read_states:
            pending = node.reads.pop(state.context, None)
            if pending is not None:
                node.confirmed.append((state.index, pending))
        if ready.read_states:
            self._answer_reads(node)

    def _answer_reads(self, node: _Node) -> None:
        if not node.confirmed:
            return
        waiting = []
        for index, pending in node.confirmed:
            if index <= node.applied:
                self._complete(pending, node.machine.registers[pending.key])
            else:
                waiting.append((index, pending))
        node.confirmed = waiting

    def _complete(self, pending: _Pending, result: Any) -> None:
        operation = pending.operation
        if pending not in self.outstanding:
            return  # the client gave up; a read is forgotten, a put stays open
        operation.ret = self.now
        operation.result = result
        self._note(4, pending.process, pending.number)
        if pending.value is None:
            self.history[pending.key].append(operation)
        self.outstanding[self.outstanding.index(pending)] = None

    # -- faults --------------------------------------------------------------------------------------------------------
    def _count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def _nemesis(self) -> None:
        if self.calm:
            return
        self._at(self.fault_gap // 2 + self._pick(self.fault_gap), self._nemesis)
        kind = self.kinds[self._pick(len(self.kinds))]
        up = [node for node in self.nodes.values() if node.raw is not None]
        leader = [node for node in up if node.raw is not None and node.raw.core.role is NodeRole.LEADER]
        if not up:
            return
        # Faults hit the leader more often than chance would: that is where they hurt.
        node = leader[0] if leader and self._pick(2) else up[self._pick(len(up))]
        self._count(kind)
        getattr(self, f"_fault_{kind}")(node)

    def _strike_soon(self, node: _Node) -> None:
        """A leader that lives just long enough to begin something, the schedules of figure 8 of the Raft paper."""
        if not self._pick(2 if self.changes else 8):
            return  # this one may live
        deaf = [other for other in self.nodes if other != node.id and self._pick(2)]
        self._cut({(node.id, other) for other in deaf}, 50 + self._pick(400))

        self._at(10 + self._pick(self.leader_life), lambda: self._strike(node))

    def _strike(self, node: _Node) -> None:
        if self.calm or node.raw is None or node.raw.core.role is not NodeRole.LEADER:
            return
        self._count("strike")
        if self._pick(2) and self._may_lose_one():
            self._crash(node, 300)
        else:
            self._isolate(node, 100 + self._pick(1500))
        self._at(20 + self._pick(100), lambda: self._fault_campaign(self.nodes[1 + self._pick(self.node_count)]))

    def _may_lose_one(self) -> bool:
        down = sum(node.raw is None for node in self.nodes.values())
        return down <= (self.node_count - 1) // 2

    def _crash(self, node: _Node, down: int = ELECTION) -> None:
        self._count("crash")
        self._stop(node)
        self._at(50 + self._pick(down), lambda: self._restart(node))

    def _restart(self, node: _Node) -> None:
        if node.raw is None:
            self._start(node)
            self._after(node)

    def _fault_crash(self, node: _Node) -> None:
        if not self._pick(8):
            for one in list(self.nodes.values()):  # all at once: what is durable is all there is (RAFT-14)
                if one.raw is not None:
                    self._crash(one)
        elif self._may_lose_one():
            self._crash(node)

    def _cut(self, pairs: set[tuple[int, int]], duration: int) -> None:
        self.blocked |= pairs

        def mend() -> None:
            self.blocked -= pairs

        self._at(duration, mend)

    def _isolate(self, node: _Node, duration: int) -> None:
        others = [other for other in self.nodes if other != node.id]
        self._cut({(node.id, other) for other in others} | {(other, node.id) for other in others}, duration)

    def _some_time(self) -> int:
        return 100 + self._pick(2 * ELECTION)

    def _fault_cut_one(self, node: _Node) -> None:
        self._isolate(node, self._some_time())

    def _fault_cut_half(self, node: _Node) -> None:
        side = {other for other in self.nodes if self._pick(2)}
        self._cut({(a, b) for a in self.nodes for b in self.nodes if (a in side) != (b in side)}, self._some_time())

    def _fault_cut_one_way(self, node: _Node) -> None:
        others = [other for other in self.nodes if other != node.id and self._pick(3)]
        inward = self._pick(2)
        self._cut({(other, node.id) if inward else (node.id, other) for other in others}, self._some_time())

    def _fault_pause(self, node: _Node) -> None:
        node.paused_until = self.now + 50 + self._pick(3 * ELECTION)

    def _fault_transfer(self, node: _Node) -> None:
        assert node.raw is not None
        if node.paused_until <= self.now:
            node.raw.transfer_leader(1 + self._pick(self.node_count))
            self._after(node)

    def _fault_campaign(self, node: _Node) -> None:
        if node.raw is not None and node.paused_until <= self.now and not self.lease:
            node.raw.campaign()
            self._after(node)

    def _fault_forget(self, node: _Node) -> None:
        assert node.raw is not None
        if node.paused_until <= self.now:
            node.raw.forget_leader()
            self._after(node)

    def _fault_unreachable(self, node: _Node) -> None:
        assert node.raw is not None
        if node.paused_until <= self.now:
            node.raw.report_unreachable(1 + self._pick(self.node_count))
            self._after(node)

    def _fault_change(self, node: _Node) -> None:
        if node.paused_until > self.now or node.raw is None:
            return
        if self.step_down and node.raw.core.role is not NodeRole.LEADER:
            return  # its picture of the membership may be old, and voters_min must hold
        change = self._draw_change(node.raw.core.membership.conf_state())
        if change is None:
            return
        try:
            node.raw.propose_conf_change(change)
        except ProposalDropped:
            return
        self._after(node)
        if self._pick(2) and not self.calm:
            self._at(10 + self._pick(150), lambda: self._fault_cut_half(node))

    def _draw_change(self, state: ConfState) -> ConfChange | ConfChangeV2 | None:
        """Something that leaves at least one voter, whatever of it is applied."""
        if state.voters_outgoing:
            return ConfChangeV2() if not state.auto_leave else None
        voters, others = list(state.voters), [i for i in self.nodes if i not in state.voters]
        changes = []
        for _ in range(1 + self._pick(4)):
            if others and (len(voters) <= self.voters_min or self._pick(2)):
                target = others.pop(self._pick(len(others)))
                kind = ConfChangeKind.ADD_LEARNER if not self._pick(3) else ConfChangeKind.ADD_VOTER
                changes.append(SingleChange(kind, target))
            elif len(voters) > self.voters_min:
                target = voters.pop(self._pick(len(voters)))
                kind = ConfChangeKind.ADD_LEARNER if not self._pick(4) else ConfChangeKind.REMOVE
                changes.append(SingleChange(kind, target))
        if not changes:
            return None
        if len(changes) == 1 and self._pick(2):
            return ConfChange(changes[0].kind, changes[0].node_id)
        transition = ConfChangeTransition.JOINT_EXPLICIT if not self._pick(4) else ConfChangeTransition.AUTO
        return ConfChangeV2(tuple(changes), transition)

    # -- healing -------------------------------------------------------------------------------------------------------
    def _heal(self) -> None:
        self.calm = True
        self.blocked = set()
        self.disk_latency = min(self.disk_latency, 20)
        self._note(5)
        for node in self.nodes.values():
            node.paused_until = 0
            if node.raw is None:
                self._restart(node)

    def _converged(self) -> bool:
        leaders = [node for node in self.nodes.values() if node.raw and node.raw.core.role is NodeRole.LEADER]
        if not leaders:
            return False
        leader = max(leaders, key=lambda node: node.raw.core.term if node.raw else 0)
        assert leader.raw is not None
        core = leader.raw.core
        if core.membership.is_joint and not core.membership.auto_leave:
            if core.pending_conf_index <= core.log.applied:
                self._fault_change(leader)  # an explicit joint configuration waits for its owner
            return False
        if leader.id not in core.membership.voters and core.lead_transferee == 0:
            core_voters = sorted(core.membership.voters)
            leader.raw.transfer_leader(core_voters[self._pick(len(core_voters))])  # as its owner would
            self._after(leader)
            return False
        if core.membership.is_joint or core.log.term_or_zero(leader.applied) != core.term:
            return False
        for node_id in core.membership.voters | core.membership.learners:
            node = self.nodes[node_id]
            # The clients never stop, so "the same index" is too much to ask of one instant; a short tail is not.
            if node.raw is None or node.applied + 4 < leader.applied or node.raw.core.term != core.term:
                return False
        return True

    # -- invariants ----------------------------------------------------------------------------------------------------
    def _check(self, node: _Node, raw: RawNode) -> None:
        core = raw.core
        core.check()
        term, commit = core.term, core.log.committed
        if term < node.seen_term:
            raise Violation(f"term of {node.id} fell from {node.seen_term} to {term}")
        if not self.asynchronous and not node.busy and not raw.has_ready():
            node.seen_term = term  # durable by now
        if commit < node.seen_commit:
            raise Violation(f"commit of {node.id} fell from {node.seen_commit} to {commit}")
        if self.strike and commit > node.seen_commit and core.role is NodeRole.LEADER and not self._pick(4):
            self._at(0, lambda: self._strike(node))  # it knows of a commit, and hardly anybody else does
        node.seen_commit = commit
        if core.role is NodeRole.LEADER:
            known = self.leaders.setdefault(term, node.id)
            if known != node.id:
                raise Violation(f"two leaders in term {term}: {known} and {node.id}")
        if commit > node.checked_commit:
            self._check_committed(node, core)

    def _check_committed(self, node: _Node, core: RaftCore) -> None:
        log = core.log
        first = max(node.checked_commit + 1, log.first_index())
        for entry in log.slice(first, log.committed + 1, 1 << 62):
            content = (entry.term, int(entry.kind), entry.data)
            known = self.committed.setdefault(entry.index, content)
            self.committed_by.setdefault(entry.index, core.term)
            if known != content:
                raise Violation(f"index {entry.index} committed as {known}, and as {content} on {node.id}")
        node.checked_commit = log.committed
        self.last_committed = max(self.last_committed, log.committed)

    def _check_new_leader(self, node: _Node, raw: RawNode) -> None:
        log = raw.core.log
        for index in range(max(log.first_index(), self.last_committed - 16), self.last_committed + 1):
            known = self.committed.get(index)
            if known is None or raw.core.term <= self.committed_by[index]:
                continue  # a leader of the past, elected late: it will commit nothing
            if log.term_or_zero(index) != known[0]:
                raise Violation(
                    f"leader {node.id} of term {raw.core.term} lacks committed entry {index} of term {known[0]}"
                )

    def _check_written(self, node: _Node, entries: list[Entry]) -> None:
        if not entries:
            return
        live = node.disk.live
        previous = live.term(entries[0].index - 1)
        for entry in entries:
            content = (previous, int(entry.kind), entry.data)
            known = self.written.setdefault((entry.index, entry.term), content)
            if known != content:
                raise Violation(
                    f"entry {entry.index} of term {entry.term} is {known} somewhere, and {content} on {node.id}"
                )
            previous = entry.term

    def _check_applied(self, node: _Node) -> None:
        digest = node.machine.digest()
        known = self.digests.setdefault(node.applied, digest)
        if known != digest:
            raise Violation(f"state at {node.applied} differs on {node.id}")

    def _check_vote(self, voter: int, term: int, candidate: int) -> None:
        known = self.votes.setdefault((voter, term), candidate)
        if known != candidate:
            raise Violation(f"{voter} voted for {known} and for {candidate} in term {term}")


def _make_node(core: type[RaftCore], config: RaftConfig, storage: Any, randrange: Callable[[int], int]) -> RawNode:
    if core is RaftCore:
        return RawNode(config, storage, randrange)
    node: RawNode = type("RawNode", (RawNode,), {"__slots__": (), "core_class": core})(config, storage, randrange)
    return node
