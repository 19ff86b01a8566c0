"""What a member of a group is: its fields, its rest, and the way out for what it says.

The state machine is a stack of classes, one a concern; each knows those before it:

    MemberState    fields, rest, `_send`
    Sending        what a leader sends to each member, and what it may commit
    ReadIndex      linearizable reads
    Membership     configurations and their changes
    Replication    proposals, appends, snapshots and their answers, transfer
    Elections      votes, roles, and what candidates and followers do
    RaftCore       time, and where each message goes
"""

from __future__ import annotations

from collections.abc import Callable

from nokv.errors import InvariantError
from nokv.raft.config import RaftConfig
from nokv.raft.log import RaftLog
from nokv.raft.progress import ProgressMap
from nokv.raft.quiet import QUIET_TRANSITIONS, Activity
from nokv.raft.quorum import Configuration
from nokv.raft.reads import ReadRounds
from nokv.raft.storage import LogStorage
from nokv.raft.types import NO_NODE, ConfState, HardState, Message, MessageType, NodeRole, ReadState

__all__ = ["MemberState", "members_of"]

# Module names are found faster than attributes of a class, and these are compared on every message.
_PROP = MessageType.PROP
_APP_RESP = MessageType.APP_RESP
_VOTE = MessageType.VOTE
_VOTE_RESP = MessageType.VOTE_RESP
_HEARTBEAT = MessageType.HEARTBEAT
_PRE_VOTE = MessageType.PRE_VOTE
_PRE_VOTE_RESP = MessageType.PRE_VOTE_RESP
_READ_INDEX = MessageType.READ_INDEX
_FOLLOWER = NodeRole.FOLLOWER
_AWAKE = Activity.AWAKE
_QUIET_LEADER = Activity.QUIET_LEADER
_VOTE_ANSWERS = (_VOTE_RESP, _PRE_VOTE_RESP)
_WITHOUT_OWN_TERM = (_VOTE, _PRE_VOTE, _PROP, _READ_INDEX)


class MemberState:
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
        self.boot_ticks = 0
        self.votes: dict[int, bool] = {}
        self.progress = ProgressMap()
        self.membership = Configuration()
        self.read_rounds = ReadRounds(self.id)
        self.lease_since = -1
        self._transfer_sent = False
        # The membership that a snapshot replaced, until that is applied: entries handed out before still change it.
        self._superseded: tuple[Configuration, ProgressMap] | None = None
        self._role_step: Callable[[Message], None] = self.step

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    # -- what the layers below ask of those above ----------------------------------------------------------------------
    def step(self, message: Message) -> None:
        raise NotImplementedError

    def _step_leader(self, message: Message) -> None:
        raise NotImplementedError

    def _become_follower(self, term: int, leader: int) -> None:
        raise NotImplementedError

    # -- rest ----------------------------------------------------------------------------------------------------------
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


def members_of(state: ConfState) -> tuple[int, ...]:
    return (*state.voters, *state.learners, *state.voters_outgoing)
