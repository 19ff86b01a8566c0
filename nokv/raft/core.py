"""The consensus state machine of one member of one group. `RawNode` wraps it; nobody else should hold it.

                     election timeout                    quorum of votes
    FOLLOWER ----------------------------> CANDIDATE ----------------------> LEADER
       ^  \\--pre-vote--> PRE_CANDIDATE --quorum--/  |                          |
       |                        |                   |                          |
       +---- a leader, a higher term, a lost vote --+-- a higher term, no quorum within an election timeout

One thread; every entry point runs to completion. Messages to others gather in `messages`; those that promise something
about stable storage (answers to votes and appends, also the machine's answers to itself) gather in `after_append` and
may leave only when the state and entries of that moment are durable. The behaviour, down to its log lines, follows
etcd-io/raft, whose interaction cases it passes; sections of the Raft paper and of Ongaro's thesis are named where they
explain a rule.
"""

from __future__ import annotations

from collections.abc import Callable

from nokv.errors import InvariantError
from nokv.raft.confchange import Changer, ConfChangeV2, decode_conf_change, describe_conf_change, restore
from nokv.raft.config import RaftConfig, ReadMode
from nokv.raft.errors import Compacted, ConfChangeError, ProposalDropped, SnapshotTemporarilyUnavailable
from nokv.raft.log import RaftLog
from nokv.raft.progress import Inflights, Progress, ProgressMap, ProgressState
from nokv.raft.quiet import QUIET_TRANSITIONS, Activity, follower_may_rest, leader_may_rest, leaves_quiet
from nokv.raft.quorum import Configuration, VoteResult
from nokv.raft.reads import ReadRounds
from nokv.raft.storage import LogStorage, entry_size_bytes
from nokv.raft.types import (
    NO_NODE,
    ROLE_TRANSITIONS,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NodeRole,
    RaftSnapshot,
    ReadState,
)

__all__ = ["CAMPAIGN_TRANSFER", "RaftCore"]

CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""Context of a MsgVote that the old leader asked for: it is answered even within the leader's lease."""

# Module names are found faster than attributes of a class, and these are compared on every message.
_HUP = MessageType.HUP
_BEAT = MessageType.BEAT
_PROP = MessageType.PROP
_APP = MessageType.APP
_APP_RESP = MessageType.APP_RESP
_VOTE = MessageType.VOTE
_VOTE_RESP = MessageType.VOTE_RESP
_SNAP = MessageType.SNAP
_HEARTBEAT = MessageType.HEARTBEAT
_HEARTBEAT_RESP = MessageType.HEARTBEAT_RESP
_PRE_VOTE = MessageType.PRE_VOTE
_PRE_VOTE_RESP = MessageType.PRE_VOTE_RESP
_READ_INDEX = MessageType.READ_INDEX
_STORAGE_APPEND_RESP = MessageType.STORAGE_APPEND_RESP
_STORAGE_APPLY_RESP = MessageType.STORAGE_APPLY_RESP
_FOLLOWER, _CANDIDATE, _LEADER, _PRE_CANDIDATE = NodeRole
_PROBE, _REPLICATE, _SNAPSHOT = ProgressState
_AWAKE, _QUIET_LEADER, _QUIET_FOLLOWER = Activity
_FROM_LEADER = (_APP, _HEARTBEAT, _SNAP)
_VOTES = (_VOTE, _PRE_VOTE)
_VOTE_ANSWERS = (_VOTE_RESP, _PRE_VOTE_RESP)
_WITHOUT_OWN_TERM = (_VOTE, _PRE_VOTE, _PROP, _READ_INDEX)
_VOTE_ANSWER = {_VOTE: _VOTE_RESP, _PRE_VOTE: _PRE_VOTE_RESP}


class RaftCore:
    __slots__ = (
        "_randrange",
        "_role_step",
        "_superseded",
        "_transfer_sent",
        "activity",
        "after_append",
        "boot_ticks",
        "config",
        "election_elapsed",
        "heartbeat_elapsed",
        "id",
        "idle_ticks",
        "is_learner",
        "lead_transferee",
        "leader",
        "leading_ticks",
        "lease_since",
        "log",
        "logger",
        "membership",
        "messages",
        "pending_conf_index",
        "pending_read_requests",
        "progress",
        "randomized_election_ticks",
        "read_rounds",
        "read_states",
        "role",
        "term",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, config: RaftConfig, storage: LogStorage, randrange: Callable[[int], int]) -> None:
        config.validate()
        hard_state, conf_state = storage.initial_state()
        self.id = config.id
        self.config = config
        self.logger = config.logger
        self._randrange = randrange
        self.log = RaftLog(storage, config.logger, config.max_committed_size_per_ready or config.max_size_per_msg)
        self.messages: list[Message] = []
        self.after_append: list[Message] = []
        self.read_states: list[ReadState] = []
        self.pending_read_requests: list[Message] = []
        self.term = 0
        self.vote = NO_NODE
        self.leader = NO_NODE
        self.role = _FOLLOWER
        self.is_learner = False
        self.lead_transferee = NO_NODE
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.leading_ticks = 0
        self.activity = _AWAKE
        self.idle_ticks = 0
        self.randomized_election_ticks = 0
        # A node that was part of a term may have promised a lease before it started again: it waits that promise out.
        promised = config.read_mode is ReadMode.LEASE and (hard_state.term > 0 or config.async_storage_writes)
        self.boot_ticks = config.election_ticks if promised else 0
        self.votes: dict[int, bool] = {}
        self.progress = ProgressMap()
        self.membership = Configuration()
        self.read_rounds = ReadRounds(self.id)
        self.lease_since = -1
        self._transfer_sent = False
        # The membership that a snapshot replaced, until that is applied: entries handed out before still change it.
        self._superseded: tuple[Configuration, ProgressMap] | None = None
        self._role_step: Callable[[Message], None] = self._step_follower
        self._restore_membership(conf_state)
        self.term = hard_state.term
        self.vote = hard_state.vote
        # A commit index need not be synced, so the one stored may be older than what was applied or compacted since.
        commit = max(hard_state.commit, config.applied, self.log.committed)
        if commit > self.log.last_index():
            raise InvariantError(
                f"{self.id:x} stored commit {commit} is behind the last index {self.log.last_index()}: the log lost "
                "entries"
            )
        self.log.committed = commit
        if config.applied:
            self.log.applied_to(config.applied, 0)
        self._become_follower(self.term, NO_NODE)
        if self.logger is not None:
            peers = ",".join(f"{node_id:x}" for node_id in sorted(self.membership.voters))
            last_term, last_index = self.log.last_id()
            self.logger.info(
                f"newRaft {self.id:x} [peers: [{peers}], term: {self.term}, commit: {self.log.committed}, "
                f"applied: {self.log.applied}, lastindex: {last_index}, lastterm: {last_term}]"
            )

    def check(self) -> None:
        """Invariants that hold between any two calls."""
        self.log.check()
        assert self.role is not _LEADER or self.leader == self.id
        assert self.role is not _FOLLOWER or self.leader != self.id
        assert self.activity is not _QUIET_LEADER or (self.role is _LEADER and not self.lease_valid())
        assert self.activity is not _QUIET_FOLLOWER or (self.role is _FOLLOWER and self.leader != NO_NODE)
        for progress in self.progress.values():
            assert progress.match < progress.next

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    # -- time ----------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        if self.activity is not _AWAKE:
            return
        if self.boot_ticks:
            self.boot_ticks -= 1
        if self.role is _LEADER:
            self._tick_leader()
            return
        self.election_elapsed += 1
        if self.election_elapsed >= self.randomized_election_ticks and self._is_promotable():
            self.election_elapsed = 0
            self.step(Message(_HUP, sender=self.id))

    def _tick_leader(self) -> None:
        self.heartbeat_elapsed += 1
        self.election_elapsed += 1
        self.leading_ticks += 1
        if self.election_elapsed >= self.config.election_ticks:
            self.election_elapsed = 0
            if self.config.check_quorum:
                self._check_quorum()
                if self.role is not _LEADER:
                    return
            # The transfer had a whole election timeout. Take proposals again.
            self.lead_transferee = NO_NODE
        if self.config.quiet_after_ticks:
            self.idle_ticks += 1
            if self.idle_ticks >= self.config.quiet_after_ticks and leader_may_rest(self):
                self._rest()
                return
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            self._broadcast_heartbeat()

    def _rest(self) -> None:
        """Tell the members that nothing will come, and go quiet. Whoever misses it asks, and that wakes us."""
        self._enter_activity(_QUIET_LEADER)
        # A lease is counted in ticks, and there are none now. Neither may a late answer to an earlier round renew it.
        self.lease_since = -1
        self.read_rounds.abandon()
        last_term, last_index = self.log.last_id()
        for node_id in sorted(self.progress):
            if node_id != self.id:
                notice = Message(_HEARTBEAT, to=node_id, index=last_index, log_term=last_term, commit=last_index)
                self._send(notice)

    def wake(self, unheard_ticks: int = 0) -> None:
        """End the rest, if there is one. `unheard_ticks` of our own have passed without news of the leader."""
        if self.activity is _AWAKE:
            return
        leads = self.activity is _QUIET_LEADER
        self._enter_activity(_AWAKE)
        self.idle_ticks = 0
        if not leads:
            # They count against the leader, but a member's dice still decide who is first.
            limit = max(self.election_elapsed, self.config.election_ticks)
            self.election_elapsed = min(self.election_elapsed + unheard_ticks, limit)
            return
        self.lease_since = -1
        self.election_elapsed = 0
        self.heartbeat_elapsed = self.config.heartbeat_ticks - 1  # the next tick tells the others
        for node_id, progress in self.progress.items():
            if node_id != self.id:
                progress.recent_active = False  # a quorum has to show itself within one election timeout

    def _enter_activity(self, activity: Activity) -> None:
        if (self.activity, activity) not in QUIET_TRANSITIONS:
            raise InvariantError(f"invalid transition [{self.activity.name} -> {activity.name}]")
        self.activity = activity

    def _check_quorum(self) -> None:
        active = {i: p.recent_active for i, p in self.progress.items() if not p.is_learner}
        if self.membership.vote_result(active) is not VoteResult.WON:
            if self.logger is not None:
                self.logger.warning(f"{self.id:x} stepped down to follower since quorum is not active")
            self._become_follower(self.term, NO_NODE)
        for node_id, progress in self.progress.items():
            if node_id != self.id:
                progress.recent_active = False

    def _is_promotable(self) -> bool:
        own = self.progress.get(self.id)
        return own is not None and not own.is_learner and not self.log.has_unstable_snapshot()

    # -- one message ---------------------------------------------------------------------------------------------------
    def step(self, message: Message) -> None:
        """Raises ProposalDropped for a proposal that found no taker."""
        if self.activity is not _AWAKE and leaves_quiet(self, message):
            self.wake()
        term = message.term
        if term != self.term and term != 0:
            if term < self.term:
                self._step_lower_term(message)
                return
            if not self._step_higher_term(message):
                return
        kind = message.type
        if kind == _HUP:
            self._hup(transfer=False)
        elif kind == _STORAGE_APPEND_RESP:
            if message.index:
                self.log.unstable.stable_to(message.index, message.log_term)
            if message.snapshot is not None:
                self._applied_snapshot(message.snapshot)
        elif kind == _STORAGE_APPLY_RESP:
            if message.entries:
                self._applied_to(message.entries[-1].index, sum(map(entry_size_bytes, message.entries)))
                self._reduce_uncommitted(message.entries)
        elif kind in _VOTES:
            self._handle_vote(message)
        else:
            self._role_step(message)

    def _step_higher_term(self, message: Message) -> bool:
        """Follow it into its term, unless it is one that must not disturb us. False: done with it."""
        kind = message.type
        logger = self.logger
        if kind in _VOTES and message.context != CAMPAIGN_TRANSFER and self._in_lease():
            # Within the leader's lease no election can be needed: whoever asks has lost touch (thesis, section 4.2.3).
            if logger is not None:
                last_term, last_index = self.log.last_id()
                logger.info(
                    f"{self.id:x} [logterm: {last_term}, index: {last_index}, vote: {self.vote:x}] ignored "
                    f"{kind.label} from {message.sender:x} [logterm: {message.log_term}, index: {message.index}] at "
                    f"term {self.term}: lease is not expired (remaining ticks: "
                    f"{self.config.election_ticks - self.election_elapsed})"
                )
            return False
        # A pre-vote asks about a term that nobody entered; a granted answer to it carries that term back.
        if kind == _PRE_VOTE or (kind == _PRE_VOTE_RESP and not message.reject):
            return True
        if logger is not None:
            logger.info(
                f"{self.id:x} [term: {self.term}] received a {kind.label} message with higher term from "
                f"{message.sender:x} [term: {message.term}]"
            )
        self._become_follower(message.term, message.sender if kind in _FROM_LEADER else NO_NODE)
        return True

    def _in_lease(self) -> bool:
        if not self.config.check_quorum:
            return False
        if self.boot_ticks:
            return True
        return self.leader != NO_NODE and self.election_elapsed < self.config.election_ticks

    def _step_lower_term(self, message: Message) -> None:
        kind = message.type
        logger = self.logger
        if kind in _FROM_LEADER and kind != _SNAP and (self.config.check_quorum or self.config.pre_vote):
            # A leader of the past. With pre-vote or check-quorum our own campaign would not tell it about our term (it
            # ignores us), and it would never let us back in. This answer does.
            self._send(Message(_APP_RESP, to=message.sender))
        elif kind == _PRE_VOTE:
            # Answer, or two nodes that each wait for the other's vote could wait forever (mixed-version groups).
            if logger is not None:
                self._log_vote(message, granted=False)
            self._send(Message(_PRE_VOTE_RESP, to=message.sender, term=self.term, reject=True))
        elif kind == _STORAGE_APPEND_RESP:
            if message.index and logger is not None:
                # Another term may have replaced these entries meanwhile: not proof that what we have now is stable.
                logger.info(
                    f"{self.id:x} [term: {self.term}] ignored entry appends from a {kind.label} message with lower "
                    f"term [term: {message.term}]"
                )
            if message.snapshot is not None:
                self._applied_snapshot(message.snapshot)  # a snapshot holds committed state: true in any term
        elif logger is not None:
            logger.info(
                f"{self.id:x} [term: {self.term}] ignored a {kind.label} message with lower term from "
                f"{message.sender:x} [term: {message.term}]"
            )

    # -- elections -----------------------------------------------------------------------------------------------------
    def _can_vote(self, message: Message) -> bool:
        """One vote a term, and none against a leader of this term. A pre-vote for a later term costs nothing."""
        return (
            self.vote == message.sender
            or (self.vote == NO_NODE and self.leader == NO_NODE)
            or (message.type == _PRE_VOTE and message.term > self.term)
        )

    def _handle_vote(self, message: Message) -> None:
        # Learners vote too: one that is asked was made a voter by a configuration that it may not have seen yet.
        granted = self._can_vote(message) and self.log.is_up_to_date(message.log_term, message.index)
        if self.logger is not None:
            self._log_vote(message, granted)
        answer = _VOTE_ANSWER[message.type]
        if not granted:
            self._send(Message(answer, to=message.sender, term=self.term, reject=True))
            return
        # The term of the request, not ours: a pre-candidate would ignore the term that it is about to leave.
        self._send(Message(answer, to=message.sender, term=message.term))
        if message.type == _VOTE:
            self.election_elapsed = 0
            self.vote = message.sender

    def _log_vote(self, message: Message, granted: bool) -> None:
        assert self.logger is not None
        last_term, last_index = self.log.last_id()
        self.logger.info(
            f"{self.id:x} [logterm: {last_term}, index: {last_index}, vote: {self.vote:x}] "
            f"{'cast' if granted else 'rejected'} {message.type.label} {'for' if granted else 'from'} "
            f"{message.sender:x} [logterm: {message.log_term}, index: {message.index}] at term {self.term}"
        )

    def _hup(self, *, transfer: bool) -> None:
        logger = self.logger
        if self.role is _LEADER:
            if logger is not None:
                logger.debug(f"{self.id:x} ignoring MsgHup because already leader")
            return
        if not self._is_promotable():
            if logger is not None:
                logger.warning(f"{self.id:x} is unpromotable and can not campaign")
            return
        if self._has_unapplied_conf_change():
            # It would count the votes of a configuration that is no longer the current one.
            if logger is not None:
                logger.warning(
                    f"{self.id:x} cannot campaign at term {self.term} since there are still pending configuration "
                    "changes to apply"
                )
            return
        if logger is not None:
            logger.info(f"{self.id:x} is starting a new election at term {self.term}")
        # A transfer never pre-votes: the old leader is alive and asked for this.
        self._campaign(pre=self.config.pre_vote and not transfer, transfer=transfer)

    def _has_unapplied_conf_change(self) -> bool:
        log = self.log
        if log.applied >= log.committed:
            return False
        return log.has_conf_change(log.applied + 1, log.committed + 1, self.config.max_size_per_msg)

    def _campaign(self, *, pre: bool, transfer: bool = False) -> None:
        if pre:
            self._become_pre_candidate()
            kind, term = _PRE_VOTE, self.term + 1
        else:
            self._become_candidate()
            kind, term = _VOTE, self.term
        last_term, last_index = self.log.last_id()
        for node_id in sorted(self.membership.voters):
            if node_id == self.id:
                # Our own vote counts when it is durable, like everybody's.
                self._send(Message(_VOTE_ANSWER[kind], to=node_id, term=term))
                continue
            if self.logger is not None:
                self.logger.info(
                    f"{self.id:x} [logterm: {last_term}, index: {last_index}] sent {kind.label} request to "
                    f"{node_id:x} at term {self.term}"
                )
            context = CAMPAIGN_TRANSFER if transfer else b""
            self._send(
                Message(kind, to=node_id, term=term, index=last_index, log_term=last_term, context=context),
            )

    def _poll(self, message: Message) -> VoteResult:
        kind, sender = message.type, message.sender
        self.votes.setdefault(sender, not message.reject)
        if self.logger is not None:
            votes = [v for i, v in self.votes.items() if i in self.progress and not self.progress[i].is_learner]
            rejection = " rejection" if message.reject else ""
            self.logger.info(f"{self.id:x} received {kind.label}{rejection} from {sender:x} at term {self.term}")
            granted = sum(votes)
            self.logger.info(
                f"{self.id:x} has received {granted} {kind.label} votes and {len(votes) - granted} vote rejections"
            )
        return self.membership.vote_result(self.votes)

    # -- roles ---------------------------------------------------------------------------------------------------------
    def _reset(self, term: int) -> None:
        if self.term != term:
            self.term = term
            self.vote = NO_NODE
        self.leader = NO_NODE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.leading_ticks = 0
        self.idle_ticks = 0
        self._randomize_election_timeout()
        self.lead_transferee = NO_NODE
        self._transfer_sent = False
        self.votes = {}
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        if len(self.read_rounds):
            self.read_rounds = ReadRounds(self.id)
        self.pending_read_requests = []
        self.lease_since = -1
        last_index = self.log.last_index()
        config = self.config
        for node_id, old in self.progress.items():
            self.progress[node_id] = Progress(
                match=last_index if node_id == self.id else 0,
                next=last_index + 1,
                inflights=Inflights(config.max_inflight_msgs, config.max_inflight_bytes),
                is_learner=old.is_learner,
            )

    def _randomize_election_timeout(self) -> None:
        self.randomized_election_ticks = self.config.election_ticks + self._randrange(self.config.election_ticks)

    def _enter(self, role: NodeRole) -> None:
        if (self.role, role) not in ROLE_TRANSITIONS:
            raise InvariantError(f"invalid transition [{self.role.label} -> {role.label}]")
        self.role = role

    def _become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self._enter(_FOLLOWER)
        self._role_step = self._step_follower
        self.leader = leader
        if self.logger is not None:
            self.logger.info(f"{self.id:x} became follower at term {self.term}")

    def _become_pre_candidate(self) -> None:
        # Neither the term nor the vote changes: nothing is promised to anybody yet.
        self._enter(_PRE_CANDIDATE)
        self._role_step = self._step_candidate
        self.votes = {}
        self.leader = NO_NODE
        if self.logger is not None:
            self.logger.info(f"{self.id:x} became pre-candidate at term {self.term}")

    def _become_candidate(self) -> None:
        self._reset(self.term + 1)
        self._enter(_CANDIDATE)
        self._role_step = self._step_candidate
        self.vote = self.id
        if self.logger is not None:
            self.logger.info(f"{self.id:x} became candidate at term {self.term}")

    def _become_leader(self) -> None:
        self._reset(self.term)
        self._enter(_LEADER)
        self._role_step = self._step_leader
        self.leader = self.id
        own = self.progress[self.id]
        own.become_replicate()
        own.recent_active = True
        # There may be a change in the uncommitted tail. Looking would cost; waiting until all of it is applied is safe.
        self.pending_conf_index = self.log.last_index()
        # Earlier terms commit only under an entry of this one, so there must be one (paper, section 8).
        if not self._append([Entry(0, 0)]):
            raise InvariantError("the empty entry of a new leader was dropped")
        if self.logger is not None:
            self.logger.info(f"{self.id:x} became leader at term {self.term}")

    # -- candidate and follower ----------------------------------------------------------------------------------------
    def _step_candidate(self, message: Message) -> None:
        kind = message.type
        if kind in _FROM_LEADER:
            self._become_follower(message.term, message.sender)
            self._handle_from_leader(message)
        elif kind == (_PRE_VOTE_RESP if self.role is _PRE_CANDIDATE else _VOTE_RESP):
            result = self._poll(message)
            if result is VoteResult.WON:
                if self.role is _PRE_CANDIDATE:
                    self._campaign(pre=False)
                else:
                    self._become_leader()
                    self._broadcast_append()
            elif result is VoteResult.LOST:
                # A pre-vote's rejection may carry our own term; no term changes here.
                self._become_follower(self.term, NO_NODE)
        elif kind == _PROP:
            if self.logger is not None:
                self.logger.info(f"{self.id:x} no leader at term {self.term}; dropping proposal")
            raise ProposalDropped
        elif kind == MessageType.TIMEOUT_NOW and self.logger is not None:
            self.logger.debug(
                f"{self.id:x} [term {self.term} state {self.role.label}] ignored MsgTimeoutNow from {message.sender:x}"
            )

    def _step_follower(self, message: Message) -> None:
        kind = message.type
        if kind in _FROM_LEADER:
            self.election_elapsed = 0
            self.leader = message.sender
            self._handle_from_leader(message)
        elif kind == _PROP:
            self._forward_proposal(message)
        elif kind == _READ_INDEX or kind == MessageType.TRANSFER_LEADER:
            if self.leader == NO_NODE:
                if self.logger is not None:
                    what = "index reading" if kind == _READ_INDEX else "leader transfer"
                    self.logger.info(f"{self.id:x} no leader at term {self.term}; dropping {what} msg")
                return
            message.to = self.leader
            self._send(message)
        elif kind == MessageType.READ_INDEX_RESP:
            self.read_states.append(ReadState(message.index, message.context))
        elif kind == MessageType.FORGET_LEADER:
            self._forget_leader()
        elif kind == MessageType.TIMEOUT_NOW:
            if self.logger is not None:
                self.logger.info(
                    f"{self.id:x} [term {self.term}] received MsgTimeoutNow from {message.sender:x} and starts an "
                    "election to get leadership."
                )
            self._hup(transfer=True)

    def _handle_from_leader(self, message: Message) -> None:
        if message.type == _APP:
            self._handle_append(message)
        elif message.type == _HEARTBEAT:
            self.log.commit_to(message.commit)
            if not message.index:
                self._send(Message(_HEARTBEAT_RESP, to=message.sender, context=message.context))
            elif not follower_may_rest(self, message):
                self._send(Message(_HEARTBEAT_RESP, to=message.sender, reject=True))
            elif self.activity is _AWAKE:
                self._enter_activity(_QUIET_FOLLOWER)
        else:
            self._handle_snapshot(message)

    def _forward_proposal(self, message: Message) -> None:
        if self.leader == NO_NODE:
            if self.logger is not None:
                self.logger.info(f"{self.id:x} no leader at term {self.term}; dropping proposal")
            raise ProposalDropped
        if self.config.disable_proposal_forwarding:
            if self.logger is not None:
                self.logger.info(
                    f"{self.id:x} not forwarding to leader {self.leader:x} at term {self.term}; dropping proposal"
                )
            raise ProposalDropped
        message.to = self.leader
        self._send(message)

    def _forget_leader(self) -> None:
        if self.config.read_mode is ReadMode.LEASE:
            # Without a leader we would vote, and the leader may be serving reads on our promise not to.
            if self.logger is not None:
                self.logger.error("ignoring MsgForgetLeader due to ReadOnlyLeaseBased")
            return
        if self.leader != NO_NODE:
            if self.logger is not None:
                self.logger.info(f"{self.id:x} forgetting leader {self.leader:x} at term {self.term}")
            self.leader = NO_NODE

    def _handle_append(self, message: Message) -> None:
        log = self.log
        if message.index < log.committed:
            # An old message. What is committed is settled: tell the leader to go on from there.
            self._send(Message(_APP_RESP, to=message.sender, index=log.committed))
            return
        last_new = log.maybe_append(message.log_term, message.index, message.entries, message.commit)
        if last_new is not None:
            self._send(Message(_APP_RESP, to=message.sender, index=last_new))
            return
        if self.logger is not None:
            self.logger.debug(
                f"{self.id:x} [logterm: {log.term_or_zero(message.index)}, index: {message.index}] rejected MsgApp "
                f"[logterm: {message.log_term}, index: {message.index}] from {message.sender:x}"
            )
        # Everything of ours above the leader's term at that point cannot match: skip whole terms (paper, section 5.3).
        hint_index, hint_term = log.find_conflict_by_term(min(message.index, log.last_index()), message.log_term)
        self._send(
            Message(
                _APP_RESP,
                to=message.sender,
                index=message.index,
                reject=True,
                reject_hint=hint_index,
                log_term=hint_term,
            )
        )

    # -- snapshots -----------------------------------------------------------------------------------------------------
    def _handle_snapshot(self, message: Message) -> None:
        assert message.snapshot is not None
        metadata = message.snapshot.metadata
        restored = self._restore(message.snapshot)
        if self.logger is not None:
            self.logger.info(
                f"{self.id:x} [commit: {self.log.committed}] {'restored' if restored else 'ignored'} snapshot "
                f"[index: {metadata.index}, term: {metadata.term}]"
            )
        index = self.log.last_index() if restored else self.log.committed
        self._send(Message(_APP_RESP, to=message.sender, index=index))

    def _restore(self, snapshot: RaftSnapshot) -> bool:
        metadata = snapshot.metadata
        log, logger = self.log, self.logger
        if metadata.index <= log.committed:
            return False
        if self.role is not _FOLLOWER:
            # Cannot happen: whoever leads refuses MsgSnap. Leave the term rather than overwrite a leader's log.
            if logger is not None:
                logger.warning(f"{self.id:x} attempted to restore snapshot as leader; should never happen")
            self._become_follower(self.term + 1, NO_NODE)
            return False
        conf_state = metadata.conf_state
        if self.id not in _members(conf_state):
            if logger is not None:
                logger.warning(
                    f"{self.id:x} attempted to restore snapshot but it is not in the ConfState {conf_state}; "
                    "should never happen"
                )
            return False
        if log.matches(metadata.index, metadata.term):
            # We have these entries already: keep them, they may be more.
            if logger is not None:
                last_term, last_index = log.last_id()
                logger.info(
                    f"{self.id:x} [commit: {log.committed}, lastindex: {last_index}, lastterm: {last_term}] "
                    f"fast-forwarded commit to snapshot [index: {metadata.index}, term: {metadata.term}]"
                )
            log.commit_to(metadata.index)
            return False
        log.restore(snapshot)
        self._superseded = self._superseded or (self.membership, self.progress)
        self._restore_membership(conf_state)
        if logger is not None:
            last_term, last_index = log.last_id()
            logger.info(
                f"{self.id:x} [commit: {log.committed}, lastindex: {last_index}, lastterm: {last_term}] restored "
                f"snapshot [index: {metadata.index}, term: {metadata.term}]"
            )
        return True

    def _applied_snapshot(self, snapshot: RaftSnapshot) -> None:
        self.log.unstable.stable_snapshot_to(snapshot.metadata.index)
        if not self.log.has_unstable_snapshot():
            self._superseded = None
        self._applied_to(snapshot.metadata.index, 0)

    # -- leader --------------------------------------------------------------------------------------------------------
    def _step_leader(self, message: Message) -> None:
        kind = message.type
        if kind == _PROP:
            self.idle_ticks = 0
            self._propose(message)
            return
        if kind == _READ_INDEX:
            self.idle_ticks = 0
            self._handle_read_request(message)
            return
        if kind == _BEAT:
            self._broadcast_heartbeat()
            return
        if kind == MessageType.CHECK_QUORUM:
            self._check_quorum()
            return
        if kind == MessageType.FORGET_LEADER:
            return
        progress = self.progress.get(message.sender)
        if progress is None:
            if self.logger is not None:
                self.logger.debug(f"{self.id:x} no progress available for {message.sender:x}")
        elif kind == _APP_RESP:
            progress.recent_active = True
            if message.reject:
                self._handle_append_rejected(message, progress)
            else:
                self._handle_append_accepted(message, progress)
        elif kind == _HEARTBEAT_RESP:
            self._handle_heartbeat_response(message, progress)
        elif kind == MessageType.SNAP_STATUS:
            self._handle_snapshot_status(message, progress)
        elif kind == MessageType.UNREACHABLE:
            # What was in flight is probably lost: find out before sending more.
            if progress.state is _REPLICATE:
                progress.become_probe()
            if self.logger is not None:
                self.logger.debug(
                    f"{self.id:x} failed to send message to {message.sender:x} because it is unreachable [{progress}]"
                )
        elif kind == MessageType.TRANSFER_LEADER:
            self._handle_transfer(message, progress)

    def _propose(self, message: Message) -> None:
        if not message.entries:
            raise InvariantError(f"{self.id:x} stepped empty MsgProp")
        if self.id not in self.progress:
            raise ProposalDropped  # removed while leading: new entries could no longer count on us
        if self.lead_transferee != NO_NODE:
            if self.logger is not None:
                self.logger.debug(
                    f"{self.id:x} [term {self.term}] transfer leadership to {self.lead_transferee:x} is in progress; "
                    "dropping proposal"
                )
            raise ProposalDropped
        for position, entry in enumerate(message.entries):
            if entry.kind != EntryKind.NORMAL:
                self._check_conf_change(message.entries, position, entry)
        if not self._append(message.entries):
            raise ProposalDropped
        self._broadcast_append()

    def _conf_change_refusal(self, leaves_joint: bool) -> str:
        """Why a membership change must not enter the log now; empty if it may."""
        if self.pending_conf_index > self.log.applied:
            return f"possible unapplied conf change at index {self.pending_conf_index} (applied to {self.log.applied})"
        if self.membership.is_joint and not leaves_joint:
            return "must transition out of joint config first"
        if not self.membership.is_joint and leaves_joint:
            return "not in joint state; refusing empty conf change"
        return ""

    def _check_conf_change(self, entries: list[Entry], position: int, entry: Entry) -> None:
        change = decode_conf_change(entry.kind, entry.data)
        refusal = self._conf_change_refusal(not change.as_v2().changes)
        if not refusal:
            # Nothing is pending, so this is what it will be applied to. If that fails, every replica would stop there.
            try:
                self._after_change(change.as_v2())
            except ConfChangeError as error:
                refusal = str(error)
        if refusal and not self.config.disable_conf_change_validation:
            if self.logger is not None:
                self.logger.info(
                    f"{self.id:x} ignoring conf change {describe_conf_change(change)} at config {self.membership}: "
                    f"{refusal}"
                )
            # It becomes an empty entry: whoever waits for that index still gets an answer.
            entries[position] = Entry(0, 0)
        else:
            self.pending_conf_index = self.log.last_index() + position + 1

    def _append(self, entries: list[Entry]) -> bool:
        """Give them term and index. False if too much is uncommitted."""
        if not self._increase_uncommitted(entries):
            if self.logger is not None:
                self.logger.warning(
                    f"{self.id:x} appending new entries to log would exceed uncommitted entry size limit; "
                    "dropping proposal"
                )
            return False
        index = self.log.last_index()
        term = self.term
        placed = []
        for entry in entries:
            index += 1
            # A new one: the proposal may be a message that arrives twice.
            placed.append(Entry(term, index, entry.kind, entry.data))
        self.log.append(placed)
        # We acknowledge our own entries when they are durable, like everybody.
        self._send(Message(_APP_RESP, to=self.id, index=index))
        return True

    def _increase_uncommitted(self, entries: list[Entry]) -> bool:
        size = 0
        for entry in entries:
            size += len(entry.data)
        if size and self.uncommitted_bytes and self.uncommitted_bytes + size > self.config.max_uncommitted_entries_size:
            return False  # but one proposal of any size always fits, or it could never be made
        self.uncommitted_bytes += size
        return True

    def _reduce_uncommitted(self, entries: list[Entry]) -> None:
        if self.uncommitted_bytes:
            # Entries of earlier terms were not counted: never below zero.
            self.uncommitted_bytes = max(0, self.uncommitted_bytes - sum(len(e.data) for e in entries))

    def _handle_append_rejected(self, message: Message, progress: Progress) -> None:
        logger = self.logger
        if logger is not None:
            logger.debug(
                f"{self.id:x} received MsgAppResp(rejected, hint: (index {message.reject_hint}, term "
                f"{message.log_term})) from {message.sender:x} for index {message.index}"
            )
        next_probe = message.reject_hint
        if message.log_term:
            # The follower skipped its terms above ours; skip ours above its.
            next_probe, _ = self.log.find_conflict_by_term(message.reject_hint, message.log_term)
        if progress.maybe_decrease(message.index, next_probe):
            if logger is not None:
                logger.debug(f"{self.id:x} decreased progress of {message.sender:x} to [{progress}]")
            if progress.state is _REPLICATE:
                progress.become_probe()
            self._send_append(message.sender, progress)

    def _handle_append_accepted(self, message: Message, progress: Progress) -> None:
        sender = message.sender
        # An answer with nothing new still tells that a probed member matches (heartbeat_resp_recovers_from_probing).
        if not progress.maybe_update(message.index) and not (
            progress.match == message.index and progress.state is _PROBE
        ):
            return
        if progress.state is _REPLICATE:
            progress.inflights.free_to(message.index)
        elif progress.state is _PROBE:
            progress.become_replicate()
        elif progress.match + 1 >= self.log.first_index():
            # Whatever snapshot it applied, from here the log can take it further.
            if self.logger is not None:
                self.logger.debug(
                    f"{self.id:x} recovered from needing snapshot, resumed sending replication messages to "
                    f"{sender:x} [{progress}]"
                )
            progress.become_probe()
            progress.become_replicate()
        if self._maybe_commit():
            self._answer_waiting_read_requests()
            self._broadcast_append()
        elif sender != self.id and progress.can_bump_commit(self.log.committed):
            self._send_append(sender, progress)
        if sender != self.id:
            # The window moved: fill it.
            while self._maybe_send_append(sender, progress, send_if_empty=False):
                pass
        if sender == self.lead_transferee and progress.match == self.log.last_index():
            if self.logger is not None:
                self.logger.info(f"{self.id:x} sent MsgTimeoutNow to {sender:x} after received MsgAppResp")
            self._send_timeout_now(sender)

    def _handle_heartbeat_response(self, message: Message, progress: Progress) -> None:
        progress.recent_active = True
        progress.flow_paused = False
        # Everything in flight may have been lost; this one append (empty, if the window is full) finds out.
        if progress.match < self.log.last_index() or progress.state is _PROBE:
            self._send_append(message.sender, progress)
        if message.context and len(self.read_rounds):
            done = self.read_rounds.acknowledge(message.sender, message.context, self._has_read_quorum)
            if done is not None:
                tick, reads = done
                self.lease_since = max(self.lease_since, tick)
                for request, index in reads:
                    self._answer_read(request, index)

    def _handle_snapshot_status(self, message: Message, progress: Progress) -> None:
        if progress.state is not _SNAPSHOT:
            return
        if message.reject:
            progress.pending_snapshot = 0  # before the transition: it must not probe behind what never arrived
        progress.become_probe()
        if self.logger is not None:
            self.logger.debug(
                f"{self.id:x} snapshot {'failed' if message.reject else 'succeeded'}, resumed sending replication "
                f"messages to {message.sender:x} [{progress}]"
            )
        # Done: its MsgAppResp comes next. Failed: leave it alone until a heartbeat.
        progress.flow_paused = True

    def _handle_transfer(self, message: Message, progress: Progress) -> None:
        logger = self.logger
        target, previous = message.sender, self.lead_transferee
        if progress.is_learner:
            if logger is not None:
                logger.debug(f"{self.id:x} is learner. Ignored transferring leadership")
            return
        if previous != NO_NODE:
            if previous == target:
                if logger is not None:
                    logger.info(
                        f"{self.id:x} [term {self.term}] transfer leadership to {target:x} is in progress, ignores "
                        f"request to same node {target:x}"
                    )
                return
            self.lead_transferee = NO_NODE
            if logger is not None:
                logger.info(f"{self.id:x} [term {self.term}] abort previous transferring leadership to {previous:x}")
        if target == self.id:
            if logger is not None:
                logger.debug(f"{self.id:x} is already leader. Ignored transferring leadership to self")
            return
        if logger is not None:
            logger.info(f"{self.id:x} [term {self.term}] starts to transfer leadership to {target:x}")
        # It should be over within one election timeout; count from here.
        self.election_elapsed = 0
        self.lead_transferee = target
        if progress.match == self.log.last_index():
            self._send_timeout_now(target)
            if logger is not None:
                logger.info(
                    f"{self.id:x} sends MsgTimeoutNow to {target:x} immediately as {target:x} already has "
                    "up-to-date log"
                )
        else:
            self._send_append(target, progress)

    def _send_timeout_now(self, target: int) -> None:
        # From now on, at any time, it may be elected within our lease.
        self._transfer_sent = True
        self._send(Message(MessageType.TIMEOUT_NOW, to=target))

    # -- replication ---------------------------------------------------------------------------------------------------
    def _broadcast_append(self) -> None:
        own = self.id
        for node_id in sorted(self.progress):
            if node_id != own:
                self._maybe_send_append(node_id, self.progress[node_id], send_if_empty=True)

    def _send_append(self, to: int, progress: Progress) -> None:
        self._maybe_send_append(to, progress, send_if_empty=True)

    def _maybe_send_append(self, to: int, progress: Progress, *, send_if_empty: bool) -> bool:
        """One MsgApp with what follows, or a MsgSnap if that is gone from the log. False if nothing was sent."""
        if progress.is_paused:
            return False
        log = self.log
        previous = progress.next - 1
        entries: list[Entry] = []
        try:
            previous_term = log.term(previous)
            if progress.state is not _REPLICATE or not progress.inflights.full:
                entries = log.entries(progress.next, self.config.max_size_per_msg)
        except Compacted:
            return self._maybe_send_snapshot(to, progress)
        if not entries and not send_if_empty:
            return False
        committed = log.committed
        self._send(
            Message(_APP, to=to, index=previous, log_term=previous_term, entries=entries, commit=committed),
        )
        size = 0
        for entry in entries:
            size += len(entry.data)
        progress.sent_entries(len(entries), size)
        progress.sent_commit = committed
        return True

    def _maybe_send_snapshot(self, to: int, progress: Progress) -> bool:
        logger = self.logger
        if not progress.recent_active:
            if logger is not None:
                logger.debug(f"ignore sending snapshot to {to:x} since it is not recently active")
            return False
        try:
            snapshot = self.log.snapshot()
        except SnapshotTemporarilyUnavailable:
            if logger is not None:
                logger.debug(
                    f"{self.id:x} failed to send snapshot to {to:x} because snapshot is temporarily unavailable"
                )
            return False
        metadata = snapshot.metadata
        if metadata.index == 0:
            raise InvariantError("storage gave an empty snapshot for a log that was compacted")
        if to not in _members(metadata.conf_state):
            # Older than the change that added it: it would be refused there. Wait for a newer one.
            if logger is not None:
                logger.debug(f"{self.id:x} failed to send snapshot to {to:x} because the newest one is older than it")
            return False
        if logger is not None:
            logger.debug(
                f"{self.id:x} [firstindex: {self.log.first_index()}, commit: {self.log.committed}] sent "
                f"snapshot[index: {metadata.index}, term: {metadata.term}] to {to:x} [{progress}]"
            )
        progress.become_snapshot(metadata.index)
        if logger is not None:
            logger.debug(f"{self.id:x} paused sending replication messages to {to:x} [{progress}]")
        self._send(Message(_SNAP, to=to, snapshot=snapshot))
        return True

    def _maybe_commit(self) -> bool:
        membership, progress = self.membership, self.progress
        matches = {node_id: one.match for node_id, one in progress.items()}
        return self.log.maybe_commit(self.term, membership.committed(matches))

    def _broadcast_heartbeat(self) -> None:
        context = self.read_rounds.newest_context()
        if self.config.read_mode is ReadMode.LEASE:
            context = self.read_rounds.begin(self.leading_ticks) or context
        self._send_heartbeats(context)

    def _send_heartbeats(self, context: bytes) -> None:
        committed = self.log.committed
        for node_id in sorted(self.progress):
            if node_id == self.id:
                continue
            progress = self.progress[node_id]
            # Not above match: a follower takes this index without looking at its log.
            commit = min(progress.match, committed)
            self._send(Message(_HEARTBEAT, to=node_id, commit=commit, context=context))
            progress.sent_commit = commit

    # -- reads ---------------------------------------------------------------------------------------------------------
    def _has_read_quorum(self, acks: dict[int, bool]) -> bool:
        return self.membership.vote_result(acks) is VoteResult.WON

    def _handle_read_request(self, message: Message) -> None:
        if self._has_committed_in_term():
            self._start_read(message)
        else:
            # Until then we may not know everything that was committed before us (thesis, section 6.4). That holds for
            # a group of one, too: the commit index it restarted with may be older than what it had answered.
            self.pending_read_requests.append(message)

    def _has_committed_in_term(self) -> bool:
        return self.log.term_or_zero(self.log.committed) == self.term

    def _start_read(self, message: Message) -> None:
        commit = self.log.committed
        alone = self.membership.is_singleton and self.id in self.membership.incoming
        if alone or (self.config.read_mode is ReadMode.LEASE and self.lease_valid()):
            self._answer_read(message, commit)
            return
        rounds = self.read_rounds
        if not rounds.open:
            context = rounds.begin(self.leading_ticks)
            if context is None:
                if self.logger is not None:
                    self.logger.warning(f"{self.id:x} too many reads wait for a quorum; dropping index reading msg")
                return
            self._send_heartbeats(context)
        rounds.add(message, commit)

    def _answer_waiting_read_requests(self) -> None:
        if self.pending_read_requests and self._has_committed_in_term():
            requests, self.pending_read_requests = self.pending_read_requests, []
            for request in requests:
                self._start_read(request)

    def _answer_read(self, request: Message, index: int) -> None:
        if request.sender in (NO_NODE, self.id):
            self.read_states.append(ReadState(index, request.context))
        else:
            self._send(
                Message(MessageType.READ_INDEX_RESP, to=request.sender, index=index, context=request.context),
            )

    def lease_valid(self) -> bool:
        """May a read be answered now without asking anybody?

        A quorum answered heartbeats sent at tick `lease_since`; each of them then refuses to vote for election_ticks
        of its own ticks, the first of which may come at once; ours may be late by almost one. A transfer breaks the
        promise.
        """
        if self.lease_since < 0 or self._transfer_sent or self.lead_transferee != NO_NODE:
            return False
        elapsed = self.leading_ticks - self.lease_since
        return elapsed + 1 + self.config.lease_drift_ticks < self.config.election_ticks

    # -- membership ----------------------------------------------------------------------------------------------------
    def apply_conf_change(self, change: ConfChangeV2) -> ConfState:
        """Raises ConfChangeError, having changed nothing, if the change is impossible from here."""
        self.wake()
        result = self._after_change(change)
        if self._superseded is not None:
            self._superseded = result
            return result[0].conf_state()
        return self._switch_to(*result)

    def _after_change(self, change: ConfChangeV2) -> tuple[Configuration, ProgressMap]:
        config = self.config
        # While a snapshot waits nothing new is handed out: a change that comes now was handed out before, and belongs
        # to the time before the snapshot, whose membership has it already.
        membership, progress = self._superseded or (self.membership, self.progress)
        changer = Changer(
            membership,
            progress,
            last_index=self.log.last_index(),
            inflight_max=config.max_inflight_msgs,
            inflight_bytes_max=config.max_inflight_bytes,
        )
        if change.leaves_joint:
            return changer.leave_joint()
        auto_leave, joint = change.joint()
        return changer.enter_joint(auto_leave, change.changes) if joint else changer.simple(change.changes)

    def _restore_membership(self, conf_state: ConfState) -> None:
        config = self.config
        restored = restore(
            conf_state,
            last_index=self.log.last_index(),
            inflight_max=config.max_inflight_msgs,
            inflight_bytes_max=config.max_inflight_bytes,
        )
        result = self._switch_to(*restored)
        wanted = ConfState(
            tuple(sorted(conf_state.voters)),
            tuple(sorted(conf_state.learners)),
            tuple(sorted(conf_state.voters_outgoing)),
            tuple(sorted(conf_state.learners_next)),
            conf_state.auto_leave,
        )
        if result != wanted:
            raise ConfChangeError(f"conf state {conf_state} does not describe a configuration, nearest is {result}")

    def _switch_to(self, membership: Configuration, progress: ProgressMap) -> ConfState:
        self.membership = membership
        self.progress = progress
        if self.logger is not None:
            self.logger.info(f"{self.id:x} switched to configuration {membership}")
        conf_state = membership.conf_state()
        own = progress.get(self.id)
        self.is_learner = own is not None and own.is_learner
        if self.role is not _LEADER:
            return conf_state
        self.lease_since = -1  # its quorum was one of the old configuration
        if own is None or own.is_learner:
            # It goes on leading (thesis, section 4.2.2) until the others elect one, unless told to step down.
            if self.config.step_down_on_removal:
                self._become_follower(self.term, NO_NODE)
            return conf_state
        if not conf_state.voters:
            return conf_state
        if self._maybe_commit():
            self._answer_waiting_read_requests()
            self._broadcast_append()
        else:
            # New members: let them not wait for a heartbeat.
            for node_id in sorted(progress):
                if node_id != self.id:
                    self._maybe_send_append(node_id, progress[node_id], send_if_empty=False)
        for request, index in self.read_rounds.recheck(self._has_read_quorum):
            self._answer_read(request, index)
        if self.lead_transferee not in membership.voters:
            self.lead_transferee = NO_NODE
        return conf_state

    def _applied_to(self, index: int, size_bytes: int) -> None:
        applied = max(index, self.log.applied)
        self.log.applied_to(applied, size_bytes)
        if self.membership.auto_leave and self.role is _LEADER and applied >= self.pending_conf_index:
            # Nothing was proposed to that end before, or pending_conf_index would be ahead. No data: no size limit can
            # refuse it. A transfer can; then the next leader does it.
            try:
                self.step(Message(_PROP, sender=self.id, entries=[Entry(0, 0, EntryKind.CONF_CHANGE_V2)]))
            except ProposalDropped as error:
                if self.logger is not None:
                    self.logger.debug(
                        f"not initiating automatic transition out of joint configuration {self.membership}: {error}"
                    )
            else:
                if self.logger is not None:
                    self.logger.info(f"initiating automatic transition out of joint configuration {self.membership}")

    # -- sending -------------------------------------------------------------------------------------------------------
    def _send(self, message: Message) -> None:
        kind = message.type
        if message.sender == NO_NODE:
            message.sender = self.id
        if kind == _APP_RESP:
            message.term = self.term
            self.after_append.append(message)
        elif kind in _VOTE_ANSWERS:
            # A promise about stable storage: leaves only when that is durable.
            self.after_append.append(message)
        else:
            # Votes carry the term that they are for; forwarded requests belong to no term.
            if kind not in _WITHOUT_OWN_TERM:
                message.term = self.term
            if message.to == self.id:
                raise InvariantError(f"{kind.label} must not be addressed to its sender")
            self.messages.append(message)


def _members(state: ConfState) -> tuple[int, ...]:
    return (*state.voters, *state.learners, *state.voters_outgoing)
