"""Votes and roles, and what candidates and followers do with a message."""

from __future__ import annotations

from nokv.errors import InvariantError
from nokv.raft.config import ReadMode
from nokv.raft.errors import ProposalDropped
from nokv.raft.progress import Inflights, Progress
from nokv.raft.quiet import Activity, follower_may_rest
from nokv.raft.quorum import VoteResult
from nokv.raft.reads import ReadRounds
from nokv.raft.replication import Replication
from nokv.raft.types import NO_NODE, ROLE_TRANSITIONS, Entry, Message, MessageType, NodeRole, ReadState

__all__ = ["CAMPAIGN_TRANSFER", "Elections"]

_PROP = MessageType.PROP
_APP = MessageType.APP
_VOTE = MessageType.VOTE
_VOTE_RESP = MessageType.VOTE_RESP
_SNAP = MessageType.SNAP
_HEARTBEAT = MessageType.HEARTBEAT
_HEARTBEAT_RESP = MessageType.HEARTBEAT_RESP
_PRE_VOTE = MessageType.PRE_VOTE
_PRE_VOTE_RESP = MessageType.PRE_VOTE_RESP
_READ_INDEX = MessageType.READ_INDEX
_FOLLOWER = NodeRole.FOLLOWER
_CANDIDATE = NodeRole.CANDIDATE
_LEADER = NodeRole.LEADER
_PRE_CANDIDATE = NodeRole.PRE_CANDIDATE
_AWAKE = Activity.AWAKE
_QUIET_FOLLOWER = Activity.QUIET_FOLLOWER
_FROM_LEADER = (_APP, _HEARTBEAT, _SNAP)
_VOTE_ANSWER = {_VOTE: _VOTE_RESP, _PRE_VOTE: _PRE_VOTE_RESP}


CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""Context of a MsgVote that the old leader asked for: it is answered even within the leader's lease."""


class Elections(Replication):
    __slots__ = ()

    # -- votes ---------------------------------------------------------------------------------------------------------
    def _is_promotable(self) -> bool:
        own = self.progress.get(self.id)
        return own is not None and not own.is_learner and not self.log.has_unstable_snapshot()

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
