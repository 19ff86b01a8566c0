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
import traceback
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nokv.errors import Corruption, InvariantError, ReadOnly
from nokv.raft import (
    ConfChangeError,
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
    SnapshotMetadata,
    StepRejected,
    decode_conf_change,
)
from nokv.raft.core import RaftCore
from nokv.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD
from nokv.testing.files import CrashPoint
from nokv.testing.sim.checks import Checks
from nokv.testing.sim.clients import Clients
from nokv.testing.sim.disk import CRASHES, FileDisk, WalDisk
from nokv.testing.sim.faults import Nemesis
from nokv.testing.sim.options import Options
from nokv.testing.sim.quiet import Hibernation
from nokv.testing.sim.values import (
    ELECTION,
    ELECTION_TICKS,
    HEARTBEAT_TICKS,
    TICK,
    Bugs,
    Machine,
    SimNode,
    SimReport,
    Violation,
)

__all__ = ["RaftSim"]

LIVENESS_ELECTIONS = 20
REFUSALS = (InvariantError, Corruption, ConfChangeError)
"""What stops a process before harm is done: a state that cannot be, a log with a hole, a committed change that cannot
be applied. A node that raises one has found a bug. Any other exception is an error of the simulator or of what it
runs, and is never taken for a planted bug that was found."""


class RaftSim:
    """One schedule. `run()` raises Violation, or returns what happened."""

    def __init__(self, seed: int, *, bugs: Bugs | None = None, elections: int = 20) -> None:
        self.seed = seed
        self.bugs = bugs or Bugs()
        self.random = random.Random(seed)
        self.now = 0
        self.trace = 0
        self.events = 0
        self.injected: dict[str, int] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._newest_arrival: dict[tuple[int, int], int] = {}
        self.options = Options(seed, self.random, self.bugs)
        self.quiet = Hibernation(self) if self.bugs.quiet or Hibernation.drawn(seed) else None
        if self.quiet is not None:  # a group rests when all its members answer, and a damaged one never does
            self.options.kinds = [kind for kind in self.options.kinds if kind not in ("rot", "lie")]
        self.checks = Checks(self)
        self.clients = Clients(self)
        self.faults = Nemesis(self)
        self.calm = False
        self.nodes = {node_id: self._make_node(node_id) for node_id in range(1, self.options.node_count + 1)}
        for node in self.nodes.values():
            node.tick_interval = TICK + (
                self.pick(2 * self.options.skew + 1) - self.options.skew if self.options.skew else 0
            )
            if node.id <= self.options.voter_count:
                self._seed(node)
            if node.tick_interval != TICK:
                self.count("skewed_clock")
            self.start(node)
        self.clients.start()
        self.at(self.pick(600), self.faults.turn)
        self.end = elections * ELECTION

    def _first_members(self) -> ConfState:
        return ConfState(tuple(range(1, self.options.voter_count + 1)))

    def _seed(self, node: SimNode) -> None:
        node.disk = type(node.disk)(self.pick(1 << 30))
        node.disk.open()
        start = RaftSnapshot(SnapshotMetadata(5, 1, self._first_members()), Machine().dump())
        node.disk.write(HardState(1, 0, 5), [], start)
        node.disk.crash("keep", self.pick)

    def _make_node(self, node_id: int) -> SimNode:
        kinds = {"file": (FileDisk,), "wal": (WalDisk,), "both": (FileDisk, WalDisk)}[self.options.storage]
        return SimNode(node_id, kinds[self.pick(len(kinds))](self.seed * 16 + node_id))

    # -- time ----------------------------------------------------------------------------------------------------------
    def pick(self, bound: int) -> int:
        return int(self.random.random() * bound)

    def at(self, delay: int, call: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, call))

    def note(self, *numbers: int) -> None:
        self.trace = zlib.crc32(repr((self.now, numbers)).encode(), self.trace)

    def until(self, end: int, done: Callable[[], bool] | None = None) -> bool:
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
        except REFUSALS as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        except AssertionError as error:
            if not _asserted_by_the_machine(error):
                raise
            raise Violation(f"an assertion of the machine: {_last_line(error)}") from error

    def _run(self) -> SimReport:
        self.until(self.end)
        self._heal()
        healed_at = self.now
        if not self.until(self.now + LIVENESS_ELECTIONS * ELECTION, self.converged):
            raise Violation(f"no convergence within {LIVENESS_ELECTIONS} election timeouts: {self.picture()}")
        healed_after = self.now - healed_at
        if self.quiet is not None:
            self.quiet.finish(LIVENESS_ELECTIONS * ELECTION)
        operations = self.clients.check_histories()
        return SimReport(
            self.seed,
            self.trace,
            self.events,
            self.injected,
            operations,
            self.checks.last_committed,
            healed_after,
        )

    def picture(self) -> str:
        out = []
        for node in self.nodes.values():
            if node.raw is None:
                out.append(f"{node.id}: {'damaged' if node.damaged else 'down'}")
            else:
                core = node.raw.core
                out.append(
                    f"{node.id}: {core.role.name} term {core.term} leader {core.leader} commit {core.log.committed} "
                    f"applied {node.applied} last {core.log.last_index()} {core.membership}"
                )
        return "; ".join(out)

    # -- nodes ---------------------------------------------------------------------------------------------------------
    def start(self, node: SimNode) -> None:
        if not self._recover(node):
            return
        _, conf_state = node.disk.log.initial_state()
        snapshot = node.disk.stored_snapshot()
        node.applied = snapshot.metadata.index
        node.applied_term = snapshot.metadata.term
        node.machine = Machine.load(snapshot.data)
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
            pre_vote=self.options.safe_elections,
            check_quorum=self.options.safe_elections,
            read_mode=ReadMode.LEASE if self.options.lease else ReadMode.SAFE,
            lease_drift_ticks=3,
            max_size_per_msg=self.options.message_size,
            max_committed_size_per_ready=self.options.message_size if self.options.message_size > 1 else 0,
            max_inflight_msgs=self.options.inflight,
            async_storage_writes=self.options.asynchronous,
            step_down_on_removal=self.options.step_down,
            quiet_after_ticks=self.quiet.quiet_after_ticks if self.quiet is not None else 0,
        )
        if self.quiet is not None:
            self.quiet.started(node)
        node.raw = raw = _make_raw_node(self.bugs.core, config, node.disk.log, self.pick)
        if self.bugs.restart_forgets_vote:
            raw.core.vote = 0
        if self.bugs.restart_forgets_members and node.applied > 5:
            raw.core._restore_membership(self._first_members())
        if raw.core.term < node.seen_term:
            raise Violation(f"node {node.id} restarted in term {raw.core.term} after it was in {node.seen_term}")
        node.seen_commit = node.checked_commit = raw.core.log.committed
        self.note(1, node.id, node.life)
        life = node.life
        self.at(self.pick(node.tick_interval), lambda: self._tick(node, life))

    def _recover(self, node: SimNode) -> bool:
        """Open what the crash left. False if the node stays down: its storage refuses, or it died again on the way."""
        if node.rots:
            node.rots = False
            self.count("rot")
            if node.disk.rot(self.pick):
                self._retire(node, "refused_after_rot")
                return False
        for kind in self.bugs.lies:
            node.disk.lie_about(kind)
        node.disk.log_first = self.bugs.log_before_data
        try:
            if self.bugs.recover_without_sync:
                node.disk.lie_about("sync")
            node.disk.open(lambda: self._make_snapshot(node))
            if self.bugs.recover_without_sync:
                node.disk.heal()
        except CrashPoint:
            self.count("crash_in_recovery")
            node.disk.crash(CRASHES[self.pick(len(CRASHES))], self.pick)
            self.at(50 + self.pick(200), lambda: self.faults.restart(node))
            return False
        except Corruption:
            if node.promised is None:
                raise
            self._retire(node, "refused_after_lie")
            return False
        promised, node.promised = node.promised, None
        if promised is not None and node.disk.stored().lacks(promised):
            # All that was written behind the lie is gone, too: nobody but its owner can know.
            self._retire(node, "forgot_after_lie")
            return False
        return True

    def _retire(self, node: SimNode, why: str) -> None:
        if self.bugs.start_over_when_damaged:
            self._seed(node)
            self.at(50, lambda: self.faults.restart(node))
            return
        node.damaged = True
        self.count(why)
        self.note(6, node.id)

    def on_disk(self, node: SimNode, call: Callable[[], None]) -> bool:
        """What the process does to its disk. False if it died of it."""
        try:
            call()
        except CrashPoint:
            self.count("crash_in_io")
        except (OSError, ReadOnly):
            self.count("stopped_by_disk")
        else:
            return True
        self.faults.crash(node)
        return False

    def stop(self, node: SimNode) -> None:
        if node.raw is None:
            return
        self.note(2, node.id)
        node.raw = None
        node.life += 1
        node.paused_until = 0
        mode = CRASHES[self.pick(len(CRASHES))]
        self.count(f"crash_{mode}")
        if node.disk.lies and mode != "process":
            node.promised = node.disk.stored()
        node.disk.crash(mode, self.pick)

    def when_awake(self, node: SimNode, life: int, call: Callable[[], None]) -> None:
        """Run `call` on the node unless it died since; a paused node does it when it wakes up."""
        if node.life != life or node.raw is None:
            return
        if node.paused_until > self.now:
            node.held.append(call)
            return
        call()

    def _tick(self, node: SimNode, life: int) -> None:
        if node.life != life or node.raw is None:
            return
        self.at(node.tick_interval, lambda: self._tick(node, life))
        if node.paused_until > self.now:
            return
        if node.held:
            held, node.held = node.held, []
            for call in held:
                self.when_awake(node, life, call)
            if node.life != life or node.raw is None:
                return
        node.raw.tick()
        if self.quiet is not None:
            for beat in self.quiet.tick(node.raw):
                self._post(beat)
        self.after(node)

    def after(self, node: SimNode) -> None:
        """The node did something: check it, and take what it asks for."""
        raw = node.raw
        if raw is None:
            return
        self._check(node, raw)
        while node.raw is raw and not node.busy and raw.has_ready():
            self._take_ready(node, raw)
            if node.raw is raw:
                self._check(node, raw)

    def _check(self, node: SimNode, raw: RawNode) -> None:
        if self.checks.check(node, raw) and self.options.strike and not self.pick(4):
            self.at(0, lambda: self.faults.strike(node))  # it knows of a commit, and hardly anybody else does

    def _take_ready(self, node: SimNode, raw: RawNode) -> None:
        ready = raw.ready()
        if ready.soft_state is not None and ready.soft_state.role is NodeRole.LEADER:
            self.checks.new_leader(node, raw)
            if self.options.strike and not self.calm:
                self.faults.strike_soon(node)
            if self.options.echo:
                self.at(300 + self.pick(700), lambda: self.faults.echo(node))
        life = node.life
        if self.options.asynchronous:
            self._take_ready_async(node, ready)
            self.clients.hand_reads(node, ready)
            return
        messages = ready.messages
        if self.bugs.answer_before_sync:
            self._send(messages)
            messages = []
        elif self.options.early_appends and raw.core.role is NodeRole.LEADER:
            self._send([message for message in messages if message.type == MessageType.APP])
            messages = [message for message in messages if message.type != MessageType.APP]
        if not self.on_disk(node, lambda: node.disk.write(ready.hard_state, ready.entries, ready.snapshot)):
            return
        self.checks.written_entries(node, ready.entries)
        self.clients.hand_reads(node, ready)
        if self._dies(node):
            return
        node.busy = True

        def finish() -> None:
            self._finish_ready(node, raw, ready, messages)

        if self.options.disk_latency:
            self.at(self.pick(self.options.disk_latency), lambda: self.when_awake(node, life, finish))
        else:
            finish()

    def _finish_ready(self, node: SimNode, raw: RawNode, ready: Ready, messages: list[Message]) -> None:
        if ready.must_sync and not self._skips_sync(ready) and not self.on_disk(node, node.disk.sync):
            return
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
        self.clients.answer_reads(node)
        self._maybe_compact(node)
        if self.options.disk_latency:
            self.after(node)

    def _skips_sync(self, ready: Ready) -> bool:
        return self.bugs.never_sync_votes and not ready.entries

    def _dies(self, node: SimNode) -> bool:
        """A crash between two steps of one Ready (RAFT-07)."""
        if (
            self.options.crash_in_ready
            and not self.calm
            and self.pick(1000) < self.options.crash_in_ready
            and self.faults.may_lose_one()
        ):
            self.faults.crash(node)
            return True
        return False

    # -- asynchronous storage writes: two queues that the process would give to threads --------------------------------
    def _take_ready_async(self, node: SimNode, ready: Ready) -> None:
        life = node.life
        out = []
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
                if len(node.append_work) == 1:
                    self.at(self.pick(60), lambda: self.when_awake(node, life, lambda: self._append_turn(node)))
            elif message.to == LOCAL_APPLY_THREAD:
                node.apply_work.append(message)
                if len(node.apply_work) == 1:
                    self.at(self.pick(60), lambda: self.when_awake(node, life, lambda: self._apply_turn(node)))
            else:
                out.append(message)
        self._send(out)

    def _append_turn(self, node: SimNode) -> None:
        raw = node.raw
        assert raw is not None
        work, node.append_work = node.append_work, []
        responses = []
        for message in work:
            state = HardState(message.term, message.vote, message.commit) if message.term else None
            write = partial(node.disk.write, state, message.entries, message.snapshot)
            if not self.on_disk(node, write):
                return
            self.checks.written_entries(node, message.entries)
            if message.snapshot is not None:
                self._apply(node, raw, message.snapshot, [])
            responses += message.responses
        skip = self.bugs.never_sync_votes and not any(message.entries for message in work)
        if not skip and not self.on_disk(node, node.disk.sync):
            return
        if not self._dies(node):
            self._deliver_local(node, raw, responses)

    def _apply_turn(self, node: SimNode) -> None:
        raw = node.raw
        assert raw is not None
        work, node.apply_work = node.apply_work, []
        responses = []
        for message in work:
            self._apply(node, raw, None, message.entries)
            responses += message.responses
        if not self._dies(node):
            self.clients.answer_reads(node)
            self._deliver_local(node, raw, responses)
            if node.raw is raw:
                self._maybe_compact(node)

    def _deliver_local(self, node: SimNode, raw: RawNode, responses: list[Message]) -> None:
        own = [message for message in responses if message.to == node.id]
        self._send([message for message in responses if message.to != node.id])
        for message in own:
            if message.type == MessageType.VOTE_RESP:
                self.checks.vote(node.id, message.term, node.id)
            self._step(node, raw, message)
        self.after(node)

    # -- applying ------------------------------------------------------------------------------------------------------
    def _apply(self, node: SimNode, raw: RawNode, snapshot: RaftSnapshot | None, entries: list[Entry]) -> None:
        if snapshot is not None and snapshot.metadata.index > node.applied:
            node.applied = snapshot.metadata.index
            node.applied_term = snapshot.metadata.term
            node.machine = Machine.load(snapshot.data)
            node.conf_state = snapshot.metadata.conf_state
            self.checks.applied(node)
        for entry in entries:
            if entry.index <= node.applied:
                if self.options.asynchronous:
                    continue  # queued before a snapshot that covers it
                raise Violation(f"node {node.id} applies {entry.index} again after {node.applied}")
            if entry.index != node.applied + 1:
                raise Violation(f"node {node.id} applies {entry.index} after {node.applied}")
            node.applied = entry.index
            node.applied_term = entry.term
            if entry.kind != EntryKind.NORMAL:
                change = decode_conf_change(entry.kind, entry.data)
                node.conf_state = raw.apply_conf_change(change)
                if raw.core.role is NodeRole.LEADER:
                    self._cut_at_change(node)
                known = self.checks.memberships.setdefault(entry.index, node.conf_state)
                if known != node.conf_state:
                    raise Violation(f"membership at {entry.index}: {known}, but {node.conf_state} on {node.id}")
            else:
                answer = node.machine.apply(entry.data)
                if answer is not None:
                    process, number, version = answer
                    pending = node.puts.pop((process, number), None)
                    if pending is not None:
                        self.clients.complete(pending, version)
            self.checks.applied(node)

    def _cut_at_change(self, leader: SimNode) -> None:
        members = leader.conf_state
        if members.voters_outgoing:
            if not self.pick(2 if self.options.replacements else 3):
                self.faults.cut_joint(members)
        elif self.options.learners:
            self.at(self.pick(600), lambda: self.faults.cut_learners(leader, members))  # they catch up first, or not

    def _maybe_compact(self, node: SimNode) -> None:
        if node.applied - node.disk.stored_snapshot().metadata.index < self.options.compact_every or node.busy:
            return
        if node.applied > node.disk.log.last_index():
            return
        snapshot = self._make_snapshot(node)
        if self.on_disk(node, lambda: node.disk.compact(snapshot, self.options.keep_entries)):
            self.count("snapshot")

    def _make_snapshot(self, node: SimNode) -> RaftSnapshot:
        metadata = SnapshotMetadata(node.applied, node.applied_term, node.conf_state)
        return RaftSnapshot(metadata, node.machine.dump())

    # -- the network ---------------------------------------------------------------------------------------------------
    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            if message.type == MessageType.VOTE_RESP and not message.reject:
                self.checks.vote(message.sender, message.term, message.to)
            elif message.type == MessageType.VOTE and not self.options.asynchronous:
                self.checks.vote(message.sender, message.term, message.sender)
            self._post(message)
            if self.options.duplication and not self.calm and self.pick(100) < self.options.duplication:
                self._post(replace(message))
                self.count("duplicate")

    def _post(self, message: Message) -> None:
        lost = not self.calm and self.options.loss and self.pick(100) < self.options.loss
        if message.type == MessageType.SNAP:
            sender = self.nodes[message.sender]
            ok = not lost and (message.sender, message.to) not in self.faults.blocked
            life = sender.life
            self.at(300, lambda: self.when_awake(sender, life, lambda: self._report(sender, message.to, ok)))
        if lost:
            self.count("loss")
            return
        if (message.sender, message.to) in self.faults.blocked:
            return  # what had left before the cut still arrives
        delay = 5 + self.pick(50)
        if self.options.long_delay and not self.calm and self.pick(100) < self.options.long_delay:
            delay += self.pick(3 * ELECTION)
            self.count("delay")
        elif (message.sender, message.to) in self.faults.slow:
            delay += self.pick(3 * ELECTION)
            self.count("slow")
        arrival = self.now + delay
        if arrival < self._newest_arrival.get((message.sender, message.to), 0):
            self.count("reorder")
        else:
            self._newest_arrival[message.sender, message.to] = arrival
        self.at(delay, lambda: self._arrive(message))

    def _report(self, node: SimNode, target: int, ok: bool) -> None:
        if node.raw is not None:
            node.raw.report_snapshot(target, ok)
            self.after(node)

    def _arrive(self, message: Message) -> None:
        node = self.nodes.get(message.to)
        if node is None or node.raw is None:
            return
        raw = node.raw

        def step() -> None:
            self.note(3, message.sender, message.to, message.type, message.term, message.index)
            self._step(node, raw, message)
            self.after(node)

        self.when_awake(node, node.life, step)

    def _step(self, node: SimNode, raw: RawNode, message: Message) -> None:
        if node.raw is not raw or (self.quiet is not None and self.quiet.takes(raw, message)):
            return
        try:
            raw.step(message)
        except (StepRejected, ProposalDropped):
            pass  # counted as lost: whoever waits for it times out

    def count(self, fault: str) -> None:
        self.injected[fault] = self.injected.get(fault, 0) + 1

    # -- healing -------------------------------------------------------------------------------------------------------
    def _heal(self) -> None:
        self.calm = True
        self.faults.blocked = set()
        self.options.disk_latency = min(self.options.disk_latency, 20)
        self.note(5)
        for node in self.nodes.values():
            node.paused_until = 0
            node.disk.heal()
            node.rots = False
            if node.raw is None:
                self.faults.restart(node)

    def converged(self) -> bool:
        leaders = [node for node in self.nodes.values() if node.raw and node.raw.core.role is NodeRole.LEADER]
        if not leaders:
            return False
        leader = max(leaders, key=lambda node: node.raw.core.term if node.raw else 0)
        assert leader.raw is not None
        core = leader.raw.core
        if core.membership.is_joint and not core.membership.auto_leave:
            if core.pending_conf_index <= core.log.applied:
                self.faults.change(leader)  # an explicit joint configuration waits for its owner
            return False
        if leader.id not in core.membership.voters and core.lead_transferee == 0:
            core_voters = sorted(core.membership.voters)
            leader.raw.transfer_leader(core_voters[self.pick(len(core_voters))])  # as its owner would
            self.after(leader)
            return False
        if core.membership.is_joint or core.log.term_or_zero(leader.applied) != core.term:
            return False
        for node_id in core.membership.voters | core.membership.learners:
            node = self.nodes[node_id]
            if node.damaged:
                continue  # down for good
            # The clients never stop, so "the same index" is too much to ask of one instant; a short tail is not.
            if node.raw is None or node.applied + 4 < leader.applied or node.raw.core.term != core.term:
                return False
        return True


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}"


def _asserted_by_the_machine(error: AssertionError) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).startswith("nokv.raft.")


def _make_raw_node(core: type[RaftCore], config: RaftConfig, storage: Any, randrange: Callable[[int], int]) -> RawNode:
    if core is RaftCore:
        return RawNode(config, storage, randrange)
    node: RawNode = type("RawNode", (RawNode,), {"__slots__": (), "core_class": core})(config, storage, randrange)
    return node
