"""`RawNode`: what a driver holds. Ticks and messages in, `Ready` out; docs/raft.md has the contract.

    node.tick() / step(message) / propose(data)
    if node.has_ready():
        ready = node.ready()
        storage.save(ready.snapshot, ready.entries, ready.hard_state, sync=...)   # durable first,
        send(ready.messages)                                                      # then tell the others,
        apply(ready.snapshot, ready.committed_entries)                            # then change the data,
        node.advance(ready)                                                       # then ask for more

One thread. Between `ready` and `advance` the node may be stepped, but `ready` must not be called again (unless with
`async_storage_writes`, where there is no `advance` at all: the storage threads answer by messages).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nokv.errors import UsageError
from nokv.raft.confchange import ConfChange, ConfChangeV2, encode_conf_change
from nokv.raft.config import RaftConfig
from nokv.raft.core import RaftCore
from nokv.raft.errors import PeerNotFound, StepLocalMessage
from nokv.raft.progress import Progress
from nokv.raft.quiet import Activity
from nokv.raft.quorum import Configuration
from nokv.raft.storage import LogStorage, entry_size_bytes
from nokv.raft.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfState,
    Entry,
    Message,
    MessageType,
    NodeRole,
    Ready,
    SoftState,
)

__all__ = ["RaftStatus", "RawNode"]

_LOCAL_TYPES = frozenset(
    {
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.FORGET_LEADER,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
    }
)
_RESPONSE_TYPES = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.PRE_VOTE_RESP,
        MessageType.READ_INDEX_RESP,
    }
)
_LOCAL_THREADS = (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)


@dataclass(slots=True)
class RaftStatus:
    """A picture of one moment. `progress` is empty unless this node leads."""

    id: int
    term: int
    vote: int
    commit: int
    applied: int
    last_index: int
    first_index: int
    leader: int
    role: NodeRole
    is_learner: bool
    lead_transferee: int
    membership: Configuration
    progress: dict[int, Progress]
    quiet: bool = False


class RawNode:
    __slots__ = ("_async", "_on_advance", "_previous_hard_state", "_previous_leader", "_previous_role", "core")

    core_class: type[RaftCore] = RaftCore

    def __init__(self, config: RaftConfig, storage: LogStorage, randrange: Callable[[int], int]) -> None:
        """Start a member from what `storage` holds. `randrange(n)` gives an int in [0, n)."""
        self.core = core = self.core_class(config, storage, randrange)
        self._async = config.async_storage_writes
        self._previous_leader = core.leader
        self._previous_role = core.role
        self._previous_hard_state = core.hard_state()
        self._on_advance: list[Message] = []

    @property
    def id(self) -> int:
        return self.core.id

    @property
    def quiet(self) -> bool:
        """Hibernating: a tick does nothing, so a driver may leave it out."""
        return self.core.activity is not Activity.AWAKE

    # -- in ------------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """One unit of abstract time has passed."""
        self.core.tick()

    def wake(self, unheard_ticks: int = 0) -> None:
        """If quiet, be awake: the leader's process is silent, or the quorum's. `unheard_ticks`: how many ticks it was
        silent for, of those that would have come here since this member went quiet (never more: they count against the
        leader's lease)."""
        self.core.wake(unheard_ticks)

    def step(self, message: Message) -> None:
        """A message arrived. Raises StepRejected (drop the message) or ProposalDropped (answer who proposed)."""
        kind = message.type
        if kind in _RESPONSE_TYPES:
            if message.sender not in self.core.progress and message.sender not in _LOCAL_THREADS:
                raise PeerNotFound
        elif kind in _LOCAL_TYPES and message.sender not in _LOCAL_THREADS:
            raise StepLocalMessage
        self.core.step(message)

    def campaign(self) -> None:
        """Start an election now (a pre-vote first, if configured)."""
        self.core.step(Message(MessageType.HUP, sender=self.core.id))

    def propose(self, data: bytes) -> None:
        """Append `data` to the log, here or at the leader. Raises ProposalDropped.

        No exception does not mean that it will commit: follow it by what is in `data`.
        """
        self.propose_many((data,))

    def propose_many(self, batch: tuple[bytes, ...] | list[bytes]) -> None:
        """Several entries in one step: all are taken or none, and they travel together."""
        core = self.core
        core.step(Message(MessageType.PROP, sender=core.id, entries=[Entry(0, 0, data=data) for data in batch]))

    def propose_conf_change(self, change: ConfChange | ConfChangeV2) -> None:
        """Propose a membership change. If one may be pending, an empty entry takes its place.

        Raises ProposalDropped.
        """
        entry = Entry(0, 0, change.entry_kind, encode_conf_change(change))
        self.core.step(Message(MessageType.PROP, sender=self.core.id, entries=[entry]))

    def apply_conf_change(self, change: ConfChange | ConfChangeV2) -> ConfState:
        """Call for each committed configuration entry, when it is applied. Persist the answer with the index."""
        return self.core.apply_conf_change(change.as_v2())

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read; the answer comes in `Ready.read_states` with this context, or never.

        Never: no leader, or it lost its leadership. Ask again with a *new* context, so that a late answer to the first
        question is not taken for one to the second.
        """
        self.core.step(Message(MessageType.READ_INDEX, context=context))

    def transfer_leader(self, target: int) -> None:
        """Ask the leader to hand over. It refuses proposals meanwhile, for at most one election timeout."""
        self.core.step(Message(MessageType.TRANSFER_LEADER, sender=target))

    def forget_leader(self) -> None:
        """A follower forgets who leads, without a campaign: it may then vote although its lease has not expired."""
        self.core.step(Message(MessageType.FORGET_LEADER, sender=self.core.id))

    def report_unreachable(self, node_id: int) -> None:
        """The last messages to it were probably lost."""
        self.core.step(Message(MessageType.UNREACHABLE, sender=node_id))

    def report_snapshot(self, node_id: int, ok: bool) -> None:
        """The snapshot sent to it was received, or was not. Without a report nothing is sent to it until it answers."""
        self.core.step(Message(MessageType.SNAP_STATUS, sender=node_id, reject=not ok))

    # -- out -----------------------------------------------------------------------------------------------------------
    def has_ready(self) -> bool:
        core = self.core
        if core.messages or core.after_append or core.read_states:
            return True
        log = core.log
        if (
            log.has_next_unstable_entries()
            or log.has_next_committed(not self._async)
            or core.leader != self._previous_leader
            or core.role is not self._previous_role
        ):
            return True
        previous = self._previous_hard_state
        if core.term != previous.term or core.vote != previous.vote or log.committed != previous.commit:
            return True
        return log.has_next_snapshot()

    def ready(self) -> Ready:
        """What must happen next. Taking it is a promise to do it."""
        if self._on_advance:
            raise UsageError("ready() before advance() of the one before")
        ready = self._gather()
        self._accept(ready)
        return ready

    def _gather(self) -> Ready:
        core = self.core
        log = core.log
        ready = Ready(messages=core.messages, read_states=core.read_states)
        ready.entries = log.unstable.next_entries()
        ready.committed_entries = log.next_committed(not self._async)
        if core.leader != self._previous_leader or core.role is not self._previous_role:
            ready.soft_state = SoftState(core.leader, core.role)
        previous = self._previous_hard_state
        if core.term != previous.term or core.vote != previous.vote or log.committed != previous.commit:
            ready.hard_state = core.hard_state()
            ready.must_sync = core.term != previous.term or core.vote != previous.vote
        if ready.entries:
            ready.must_sync = True
        ready.snapshot = log.unstable.next_snapshot()
        if self._async:
            if ready.entries or ready.hard_state or ready.snapshot or core.after_append:
                ready.messages.append(self._storage_append(ready))
            if ready.committed_entries:
                ready.messages.append(self._storage_apply(ready.committed_entries))
        elif core.after_append:
            own = core.id
            for message in core.after_append:
                (self._on_advance if message.to == own else ready.messages).append(message)
        return ready

    def _accept(self, ready: Ready) -> None:
        core = self.core
        if ready.soft_state is not None:
            self._previous_leader = ready.soft_state.leader
            self._previous_role = ready.soft_state.role
        if ready.hard_state is not None:
            self._previous_hard_state = ready.hard_state
        if not self._async:
            if ready.snapshot is not None or core.log.has_unstable_entries():
                self._on_advance.append(self._storage_append_response(ready))
            if ready.committed_entries:
                self._on_advance.append(self._storage_apply_response(ready.committed_entries))
        core.messages = []
        core.after_append = []
        core.read_states = []
        core.read_rounds.open = False
        core.log.unstable.accept_in_progress()
        if ready.committed_entries:
            size = sum(map(entry_size_bytes, ready.committed_entries))
            core.log.accept_applying(ready.committed_entries[-1].index, size, not self._async)

    def advance(self, ready: Ready) -> None:
        """Everything in `ready` is done: durable, sent, applied."""
        if self._async:
            raise UsageError("advance() does not exist with async_storage_writes")
        steps, self._on_advance = self._on_advance, []
        for message in steps:
            self.core.step(message)

    def status(self) -> RaftStatus:
        core = self.core
        progress = {}
        if core.role is NodeRole.LEADER:
            progress = {node_id: core.progress[node_id].copy() for node_id in sorted(core.progress)}
        return RaftStatus(
            id=core.id,
            term=core.term,
            vote=core.vote,
            commit=core.log.committed,
            applied=core.log.applied,
            last_index=core.log.last_index(),
            first_index=core.log.first_index(),
            leader=core.leader,
            role=core.role,
            is_learner=core.is_learner,
            lead_transferee=core.lead_transferee,
            membership=core.membership.copy(),
            progress=progress,
            quiet=self.quiet,
        )

    # -- the local storage threads -----------------------------------------------------------------------------------
    def _storage_append(self, ready: Ready) -> Message:
        """Persist this, then deliver the responses. An absent hard state is one of zeros."""
        core = self.core
        message = Message(
            MessageType.STORAGE_APPEND,
            to=LOCAL_APPEND_THREAD,
            sender=core.id,
            entries=ready.entries,
            snapshot=ready.snapshot,
            responses=core.after_append,
        )
        if ready.hard_state is not None:
            message.term = ready.hard_state.term
            message.vote = ready.hard_state.vote
            message.commit = ready.hard_state.commit
        if ready.snapshot is not None or core.log.has_unstable_entries():
            message.responses.append(self._storage_append_response(ready))
        return message

    def _storage_append_response(self, ready: Ready) -> Message:
        """Tells that everything up to the present end of the log is stable.

        It names the end even if this Ready writes nothing itself: writes are done in order, so when this one is done
        the earlier ones are. The term makes it void if another term begins meanwhile: that term may have replaced
        entries, and put back the very same (index, term) only in memory (an ABA problem).
        """
        core = self.core
        message = Message(
            MessageType.STORAGE_APPEND_RESP,
            to=core.id,
            sender=LOCAL_APPEND_THREAD,
            term=core.term,
            snapshot=ready.snapshot,
        )
        if core.log.has_unstable_entries():
            message.log_term, message.index = core.log.last_id()
        return message

    def _storage_apply(self, entries: list[Entry]) -> Message:
        return Message(
            MessageType.STORAGE_APPLY,
            to=LOCAL_APPLY_THREAD,
            sender=self.core.id,
            entries=entries,
            responses=[self._storage_apply_response(entries)],
        )

    def _storage_apply_response(self, entries: list[Entry]) -> Message:
        return Message(MessageType.STORAGE_APPLY_RESP, to=self.core.id, sender=LOCAL_APPLY_THREAD, entries=entries)
