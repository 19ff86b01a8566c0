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

What it does with them is in the classes below this one (`state.py` lists them).
"""

from __future__ import annotations

from collections.abc import Callable

from nokv.errors import InvariantError
from nokv.raft.config import RaftConfig, ReadMode
from nokv.raft.elections import CAMPAIGN_TRANSFER, Elections
from nokv.raft.progress import ProgressState
from nokv.raft.quiet import Activity, leader_may_rest, leaves_quiet
from nokv.raft.quorum import VoteResult
from nokv.raft.storage import LogStorage, entry_size_bytes
from nokv.raft.types import NO_NODE, Message, MessageType, NodeRole

__all__ = ["CAMPAIGN_TRANSFER", "RaftCore"]

_HUP = MessageType.HUP
_BEAT = MessageType.BEAT
_PROP = MessageType.PROP
_APP = MessageType.APP
_APP_RESP = MessageType.APP_RESP
_VOTE = MessageType.VOTE
_SNAP = MessageType.SNAP
_HEARTBEAT = MessageType.HEARTBEAT
_HEARTBEAT_RESP = MessageType.HEARTBEAT_RESP
_PRE_VOTE = MessageType.PRE_VOTE
_PRE_VOTE_RESP = MessageType.PRE_VOTE_RESP
_READ_INDEX = MessageType.READ_INDEX
_STORAGE_APPEND_RESP = MessageType.STORAGE_APPEND_RESP
_STORAGE_APPLY_RESP = MessageType.STORAGE_APPLY_RESP
_FOLLOWER = NodeRole.FOLLOWER
_LEADER = NodeRole.LEADER
_REPLICATE = ProgressState.REPLICATE
_AWAKE = Activity.AWAKE
_QUIET_LEADER = Activity.QUIET_LEADER
_QUIET_FOLLOWER = Activity.QUIET_FOLLOWER
_FROM_LEADER = (_APP, _HEARTBEAT, _SNAP)
_VOTES = (_VOTE, _PRE_VOTE)


class RaftCore(Elections):
    __slots__ = ()

    def __init__(self, config: RaftConfig, storage: LogStorage, randrange: Callable[[int], int]) -> None:
        config.validate()
        hard_state, conf_state = storage.initial_state()
        super().__init__(config, storage, randrange)
        # A node that was part of a term may have promised a lease before it started again: it waits that promise out.
        promised = config.read_mode is ReadMode.LEASE and (hard_state.term > 0 or config.async_storage_writes)
        self.boot_ticks = config.election_ticks if promised else 0
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

    def _check_quorum(self) -> None:
        active = {i: p.recent_active for i, p in self.progress.items() if not p.is_learner}
        if self.membership.vote_result(active) is not VoteResult.WON:
            if self.logger is not None:
                self.logger.warning(f"{self.id:x} stepped down to follower since quorum is not active")
            self._become_follower(self.term, NO_NODE)
        for node_id, progress in self.progress.items():
            if node_id != self.id:
                progress.recent_active = False

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
