"""MultiRaftHost: runs many Raft groups over one log and one network. Meta-root runs one group on it, a store many.

    log = RaftLog.open(db.wal)
    transport = RaftTransport(node_id, resolve)
    host = MultiRaftHost(log, transport, asyncio.get_running_loop(), tick_interval_s=0.1)
    transport.attach(host, snapshot_receiver)         # and transport.register(grpc_server)

    storage = log.group(7)                            # raises Corruption if its log has a hole
    storage.initialise(10, 5, conf_state)             # only a new group
    storage.recover_applied(applied, term, conf)      # only after a restart with applied data
    node = RawNode(RaftConfig(id=peer_id, applied=applied), storage, randrange)
    host.add_group(7, node, MyCallbacks(...))         # MyCallbacks subclasses ports.GroupCallbacks
    host.start(); ...; host.stop()

    host.propose(7, data)            queued for the next turn; comes to `apply` if it commits, to `on_dropped` if it was
                                     appended nowhere, to neither if leadership moves: match results by content
    host.read_index(7, context)      answered by `on_read_states`; a new context per attempt
    host.campaign / transfer_leader / propose_conf_change / status / node
    host.remove_group(7)             stops the group; `log.remove(7)` then forgets its log
    host.snapshot_installed(7)       after `on_snapshot` answered False

One turn, for every group that has something to do (durable first, then tell, then change data, then ask for more):

    propose -> Ready -> leaders' MsgApp out -> one RaftLog.save, one sync -> other messages -> apply -> advance

Everything that meets in one iteration of the event loop becomes one turn; the next gathers while this one is synced.
A leader's MsgApp leaves before its own sync (thesis 10.2.1) but only in a term that is durable already; votes and
answers never do. A quiet group (`RaftConfig.quiet_after_ticks`) costs nothing at all: no tick, and one beat per pair
of processes stands for the heartbeats of all of them (`liveness.py`). One thread: the scheduler's. The sync runs on
that thread by default (measured to be as fast as a thread hop); pass `offload` to run it elsewhere.

A failure while saving or applying calls `on_fatal` and stops the host for good; the default prints the error and ends
the process with status 70, before anything else can be written or promised.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from nokv.errors import Corruption, InvariantError, UsageError
from nokv.multiraft.liveness import BEAT_GROUP_ID, StoreLiveness, decode_beat
from nokv.multiraft.ports import GroupCallbacks, Network, Scheduler, TimerHandle
from nokv.multiraft.raftlog import RaftLog, SaveItem
from nokv.multiraft.wire import GroupMessage
from nokv.raft.confchange import ConfChange, ConfChangeV2
from nokv.raft.errors import ProposalDropped, StepRejected
from nokv.raft.quorum import VoteResult
from nokv.raft.rawnode import RaftStatus, RawNode
from nokv.raft.types import Message, MessageType, NodeRole, Ready

__all__ = ["MultiRaftHost", "Offload", "exit_process"]

Offload = Callable[[Callable[[], None], Callable[[BaseException | None], None]], None]
"""`offload(work, done)`: run `work` on another thread, then call `done(error or None)` on the scheduler's thread."""

EXIT_STATUS_FATAL = 70


def exit_process(error: BaseException) -> None:
    """The default `on_fatal`: say why, and stop at once. The other replicas carry on."""
    traceback.print_exception(error)
    print(f"nokv: stopping, a Raft invariant or the log failed: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_STATUS_FATAL)


class _Group:
    __slots__ = (
        "callbacks",
        "dirty",
        "group_id",
        "held",
        "installed",
        "leads",
        "log",
        "node",
        "proposals",
        "removed",
        "resting",
    )

    def __init__(self, group_id: int, node: RawNode, callbacks: GroupCallbacks) -> None:
        self.group_id = group_id
        self.node = node
        self.callbacks = callbacks
        self.proposals: list[bytes] = []
        self.dirty = False
        self.removed = False
        self.leads = False
        self.held: Ready | None = None  # waits for its snapshot to be installed
        self.installed = False
        self.resting = False  # quiet, and known to be: not ticked, vouched for by beats


class MultiRaftHost:
    def __init__(
        self,
        raftlog: RaftLog,
        network: Network,
        scheduler: Scheduler,
        *,
        tick_interval_s: float = 0.1,
        node_of: Callable[[int, int], int | None] | None = None,
        on_unknown_group: Callable[[int, int, Message], None] | None = None,
        on_fatal: Callable[[BaseException], None] = exit_process,
        offload: Offload | None = None,
        silent_ticks: int = 10,
        beat_ticks: int = 2,
    ) -> None:
        """`node_of(group_id, peer_id)` names the process a peer lives in (default: peer ids are node ids); None if it
        is not known, then the process that the peer last wrote from. `on_unknown_group(from_node, group_id, message)`
        may `add_group`; the message is stepped if it did. `silent_ticks` (an election timeout) without a word from a
        process wake the quiet groups that are led from there; `beat_ticks` is how often processes write for them."""
        if tick_interval_s <= 0:
            raise UsageError("tick_interval_s must be positive")
        self.raftlog = raftlog
        self.failure: BaseException | None = None
        self._network = network
        self._scheduler = scheduler
        self._tick_interval_s = tick_interval_s
        self._node_of = node_of if node_of is not None else lambda group_id, peer_id: peer_id
        self._on_unknown_group = on_unknown_group
        self._on_fatal = on_fatal
        self._offload = offload
        self._groups: dict[int, _Group] = {}
        self._awake: dict[int, _Group] = {}
        self._liveness = StoreLiveness(silent_ticks=silent_ticks, beat_ticks=beat_ticks)
        self._routes: dict[tuple[int, int], int] = {}
        self._dirty: list[_Group] = []
        self._batch: list[tuple[_Group, Ready]] = []
        self._late: dict[int, list[GroupMessage]] = {}
        self._in_flight = False
        self._scheduled = False
        self._stopped = False
        self._timer: TimerHandle | None = None
        self.ticks = 0
        self.group_ticks = 0
        self.beats_sent = 0
        self.beats_received = 0
        self.turns = 0
        self.readies = 0
        self.synced_turns = 0
        self.messages_received = 0
        self.messages_rejected = 0
        self.messages_unroutable = 0
        self.proposals_dropped = 0
        self.snapshots_sent = 0
        self.snapshots_failed = 0
        self.snapshots_installed = 0

    # -- life ---------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to tick."""
        if self._timer is None and not self._stopped:
            self._timer = self._scheduler.call_later(self._tick_interval_s, self._on_timer)

    def stop(self) -> None:
        """No tick, turn or callback runs after this. What was not saved is lost, as in a crash."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        if self._stopped:
            return
        # After a stall one tick is enough: to catch up would start elections that nobody needs.
        self._timer = self._scheduler.call_later(self._tick_interval_s, self._on_timer)
        try:
            self.tick()
        except BaseException as error:
            self._fail(error)

    def tick(self) -> None:
        """One unit of Raft time for every group that is awake."""
        self.ticks += 1
        self.group_ticks += len(self._awake)
        for group in self._awake.values():
            group.node.tick()
            if not group.dirty and (group.node.has_ready() or group.node.quiet):
                self._mark(group)
        verdict = self._liveness.tick()
        for node_id, beat in verdict.beats:
            self._network.send(node_id, [(BEAT_GROUP_ID, Message(MessageType.HEARTBEAT, to=node_id, context=beat))])
        self.beats_sent += len(verdict.beats)
        for group_id in verdict.wake:
            self._wake(self._groups[group_id])
        for group_id in verdict.doubt:
            if not self._hears_quorum(self._groups[group_id]):
                self._wake(self._groups[group_id])

    # -- quiet groups -------------------------------------------------------------------------------------------------
    def _wake(self, group: _Group) -> None:
        group.node.wake(self._liveness.unheard_ticks(group.group_id))
        self._mark(group)

    def _hears_quorum(self, group: _Group) -> bool:
        core = group.node.core
        heard = {}
        for peer_id in core.progress:
            process = self._process_of(group.group_id, peer_id)
            heard[peer_id] = peer_id == core.id or (process is not None and not self._liveness.is_silent(process))
        return core.membership.vote_result(heard) is VoteResult.WON

    def _follow_activity(self, group: _Group) -> None:
        """The node went quiet or woke up: stop or begin to tick it, and tell for whom we vouch."""
        node = group.node
        if node.quiet is group.resting or group.removed:
            return
        group.resting = not group.resting
        if not group.resting:
            self._awake[group.group_id] = group
            self._liveness.wake(group.group_id)
            return
        core = node.core
        others = [i for i in core.progress if i != core.id] if core.leader == core.id else [core.leader]
        processes = {peer_id: self._process_of(group.group_id, peer_id) for peer_id in others}
        known = {peer_id: process for peer_id, process in processes.items() if process is not None}
        if len(known) < len(others):  # then nobody could vouch
            group.resting = False
            node.wake()
            return
        if core.leader == core.id:
            self._liveness.rest_as_leader(group.group_id, core.term, core.id, known)
        else:
            self._liveness.rest_as_follower(group.group_id, core.term, core.leader, core.id, known[core.leader])
        del self._awake[group.group_id]

    def _on_beat(self, from_node: int, message: Message) -> None:
        try:
            beat = decode_beat(message.context)
        except Corruption:
            self.messages_rejected += 1
            return
        self.beats_received += 1
        for group_id in self._liveness.beat(from_node, beat):
            self._wake(self._groups[group_id])

    # -- groups -------------------------------------------------------------------------------------------------------
    def add_group(self, group_id: int, node: RawNode, callbacks: GroupCallbacks) -> None:
        if group_id in self._groups:
            raise UsageError(f"raft group {group_id} runs already")
        if group_id == BEAT_GROUP_ID:
            raise UsageError("raft group ids begin at 1: messages of group 0 are between two processes")
        group = self._groups[group_id] = self._awake[group_id] = _Group(group_id, node, callbacks)
        group.leads = node.status().role is NodeRole.LEADER
        self._mark(group)

    def remove_group(self, group_id: int) -> None:
        """Stop the group; a Ready in progress is abandoned. Its log stays until `raftlog.remove(group_id)`."""
        group = self._groups.pop(group_id, None)
        if group is not None:
            group.removed = True
            self._awake.pop(group_id, None)
            self._liveness.wake(group_id)
            for route in [route for route in self._routes if route[0] == group_id]:
                del self._routes[route]

    def has_group(self, group_id: int) -> bool:
        return group_id in self._groups

    def group_ids(self) -> list[int]:
        return sorted(self._groups)

    def node(self, group_id: int) -> RawNode:
        return self._find(group_id).node

    def status(self, group_id: int) -> RaftStatus:
        return self._find(group_id).node.status()

    # -- asking -------------------------------------------------------------------------------------------------------
    def propose(self, group_id: int, data: bytes) -> None:
        """Queue for the next turn, where all that met become one `propose_many`. See the module's first page."""
        group = self._find(group_id)
        group.proposals.append(data)
        self._mark(group)

    def propose_conf_change(self, group_id: int, change: ConfChange | ConfChangeV2) -> None:
        """Raises ProposalDropped. A change that may not be made now becomes an empty entry."""
        group = self._find(group_id)
        group.node.propose_conf_change(change)
        self._mark(group)

    def read_index(self, group_id: int, context: bytes) -> None:
        group = self._find(group_id)
        group.node.read_index(context)
        self._mark(group)

    def campaign(self, group_id: int) -> None:
        group = self._find(group_id)
        group.node.campaign()
        self._mark(group)

    def transfer_leader(self, group_id: int, peer_id: int) -> None:
        group = self._find(group_id)
        group.node.transfer_leader(peer_id)
        self._mark(group)

    def snapshot_installed(self, group_id: int) -> None:
        """The snapshot that `on_snapshot` answered False for is installed, durably: the group goes on."""
        group = self._find(group_id)
        if group.held is None or group.installed:
            raise UsageError(f"raft group {group_id} waits for no snapshot")
        group.installed = True
        self._mark(group)

    # -- MessageSink --------------------------------------------------------------------------------------------------
    def receive(self, from_node: int, messages: list[GroupMessage]) -> None:
        if self._stopped or self.failure is not None:
            return
        self.messages_received += len(messages)
        self._liveness.heard(from_node)
        groups = self._groups
        for group_id, message in messages:
            group = groups.get(group_id)
            if group is None:
                if group_id == BEAT_GROUP_ID:
                    self._on_beat(from_node, message)
                    continue
                if self._on_unknown_group is not None:
                    self._on_unknown_group(from_node, group_id, message)
                group = groups.get(group_id)
                if group is None:
                    self.messages_rejected += 1
                    continue
            if message.to != group.node.id:
                self.messages_rejected += 1  # for an earlier or a later incarnation of this replica
                continue
            self._routes[group_id, message.sender] = from_node
            self._step(group, message)

    def step(self, group_id: int, message: Message) -> None:
        """A message from within this process."""
        self._step(self._find(group_id), message)

    def undelivered(self, node_id: int, messages: list[GroupMessage]) -> None:
        if self._stopped:
            return
        reported: set[tuple[int, int]] = set()
        for group_id, message in messages:
            group = self._groups.get(group_id)
            if group is not None and message.type is MessageType.APP and (group_id, message.to) not in reported:
                reported.add((group_id, message.to))
                group.node.report_unreachable(message.to)
                self._mark(group)

    # -- the turn -----------------------------------------------------------------------------------------------------
    def turn(self) -> None:
        """First half: take the Ready of every dirty group and let leaders' appends out. Called by the scheduler."""
        self._scheduled = False
        if self._in_flight or self._stopped or self.failure is not None:
            return
        self.turns += 1
        early: dict[int, list[GroupMessage]] = {}
        dirty, self._dirty = self._dirty, []
        self._in_flight = True
        try:
            for group in dirty:
                group.dirty = False
                if not group.removed:
                    ready = self._take_ready(group)
                    self._follow_activity(group)
                    if ready is not None:
                        self._batch.append((group, ready))
                        self._sort_messages(group, ready, early)
        except BaseException as error:
            self._fail(error)
            return
        if not self._batch:
            self._in_flight = False
            return
        if early:
            for node_id, messages in early.items():
                self._network.send(node_id, messages)
            # Let the network's writers run before the sync holds the thread.
            self._scheduler.call_soon(self._persist)
        else:
            self._persist()

    def _take_ready(self, group: _Group) -> Ready | None:
        if group.held is not None:
            if not group.installed:
                return None
            ready, group.held = group.held, None
            self.snapshots_installed += 1
            return ready
        if group.proposals:
            proposals, group.proposals = group.proposals, []
            try:
                group.node.propose_many(proposals)
            except ProposalDropped:
                self.proposals_dropped += len(proposals)
                group.callbacks.on_dropped(proposals)
        if not group.node.has_ready():
            return None
        ready = group.node.ready()
        if ready.soft_state is not None:
            group.leads = ready.soft_state.role is NodeRole.LEADER
            group.callbacks.on_soft_state(ready.soft_state)
            if group.removed:
                return None
        if ready.snapshot is not None:
            group.held, group.installed = ready, False
            if not group.callbacks.on_snapshot(ready.snapshot):
                return None
            group.held = None
            self.snapshots_installed += 1
        return ready

    def _sort_messages(self, group: _Group, ready: Ready, early: dict[int, list[GroupMessage]]) -> None:
        """Which may leave before this turn's sync, and which must wait."""
        state = ready.hard_state
        durable_term = True
        if state is not None:
            saved = self.raftlog.group(group.group_id).hard_state
            durable_term = state.term == saved.term and state.vote == saved.vote
        appends_may_go = group.leads and durable_term
        nothing_to_save = state is None and not ready.entries and ready.snapshot is None
        for message in ready.messages:
            if message.type is MessageType.SNAP:
                self._send_snapshot(group, message)
                continue
            node_id = self._process_of(group.group_id, message.to)
            if node_id is None:
                self.messages_unroutable += 1
                continue
            goes = nothing_to_save or (appends_may_go and message.type is MessageType.APP)
            (early if goes else self._late).setdefault(node_id, []).append((group.group_id, message))

    def _send_snapshot(self, group: _Group, message: Message) -> None:
        node_id = self._process_of(group.group_id, message.to)
        peer_id = message.to

        def done(accepted: bool) -> None:
            if accepted:
                self.snapshots_sent += 1
            else:
                self.snapshots_failed += 1
            if not (group.removed or self._stopped or self.failure is not None):
                group.node.report_snapshot(peer_id, accepted)
                self._mark(group)

        if node_id is None:
            self.messages_unroutable += 1
            self._scheduler.call_soon(done, False)
            return
        payload = group.callbacks.snapshot_payload(message)
        self._network.send_snapshot(node_id, group.group_id, message, payload, done)

    def _persist(self) -> None:
        """Second half: one save and at most one sync for all groups of this turn."""
        if self._stopped:
            return
        items: list[SaveItem] = []
        sync = False
        for group, ready in self._batch:
            if group.removed:
                continue
            snapshot = ready.snapshot
            if ready.hard_state is not None or ready.entries or snapshot is not None:
                metadata = snapshot.metadata if snapshot is not None else None
                items.append((group.group_id, ready.hard_state, ready.entries, metadata))
                sync = sync or ready.must_sync or snapshot is not None
        try:
            if items:
                self.raftlog.save(items, sync=sync and self._offload is None)
        except BaseException as error:
            self._fail(error)
            return
        if sync:
            self.synced_turns += 1
            if self._offload is not None:
                self._offload(self.raftlog.sync, self._synced)
                return
        self._finish()

    def _synced(self, error: BaseException | None) -> None:
        if self._stopped:
            return
        if error is not None:
            self._fail(error)
            return
        self._finish()

    def _finish(self) -> None:
        """What may happen only now that the turn is durable."""
        late, self._late = self._late, {}
        for node_id, messages in late.items():
            self._network.send(node_id, messages)
        batch, self._batch = self._batch, []
        self.readies += len(batch)
        try:
            for group, ready in batch:
                if group.removed:
                    continue
                if ready.committed_entries:
                    group.callbacks.apply(ready.committed_entries)
                if group.removed:
                    continue
                group.node.advance(ready)
                self._follow_activity(group)
                if ready.read_states:
                    group.callbacks.on_read_states(ready.read_states)
                if not group.dirty and (group.proposals or group.node.has_ready()):
                    self._mark(group)
        except BaseException as error:
            self._fail(error)
            return
        self._in_flight = False
        if self._dirty:
            self._schedule()

    def _process_of(self, group_id: int, peer_id: int) -> int | None:
        node_id = self._node_of(group_id, peer_id)
        return node_id if node_id is not None else self._routes.get((group_id, peer_id))

    # -- inside -------------------------------------------------------------------------------------------------------
    def _find(self, group_id: int) -> _Group:
        if self.failure is not None:
            raise InvariantError(f"the raft host stopped: {self.failure}")
        group = self._groups.get(group_id)
        if group is None:
            raise UsageError(f"raft group {group_id} does not run here")
        return group

    def _step(self, group: _Group, message: Message) -> None:
        node = group.node
        try:
            if group.resting and node.core.leader not in (node.id, message.sender):
                # Somebody else than the leader: how long the leader's process has been silent decides what we answer.
                node.wake(self._liveness.unheard_ticks(group.group_id))
            node.step(message)
        except (StepRejected, ProposalDropped):
            self.messages_rejected += 1
        except BaseException as error:
            self._fail(error)
            return
        self._mark(group)

    def _mark(self, group: _Group) -> None:
        if group.resting:
            self._follow_activity(group)
        if not group.dirty:
            group.dirty = True
            self._dirty.append(group)
            self._schedule()

    def _schedule(self) -> None:
        if not (self._scheduled or self._in_flight or self._stopped):
            self._scheduled = True
            self._scheduler.call_soon(self.turn)

    def _fail(self, error: BaseException) -> None:
        """Nothing is saved, sent or applied any more."""
        self.failure = error
        self.stop()
        if not isinstance(error, InvariantError):
            wrapped = InvariantError(f"the raft host failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._on_fatal(error)

    def stats(self) -> dict[str, int]:
        return {
            "groups": len(self._groups),
            "groups_leading": sum(group.leads for group in self._groups.values()),
            "groups_quiet": len(self._groups) - len(self._awake),
            "ticks": self.ticks,
            "group_ticks": self.group_ticks,
            "beats_sent": self.beats_sent,
            "beats_received": self.beats_received,
            "turns": self.turns,
            "readies": self.readies,
            "saves": self.raftlog.saves,
            "syncs": self.raftlog.syncs,
            "log_records": self.raftlog.records,
            "log_rewrites": self.raftlog.rewrites,
            "messages_received": self.messages_received,
            "messages_rejected": self.messages_rejected,
            "messages_unroutable": self.messages_unroutable,
            "proposals_dropped": self.proposals_dropped,
            "snapshots_sent": self.snapshots_sent,
            "snapshots_failed": self.snapshots_failed,
            "snapshots_installed": self.snapshots_installed,
        }
