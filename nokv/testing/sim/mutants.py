"""Planted bugs (RELIABILITY R8): each must be found, or the simulator is blind to its kind.

A mutant is a class of the state machine with one rule broken, or a driver that breaks the contract of Ready, or a
storage that forgets a step. Most are bugs that real systems had.
"""

from __future__ import annotations

from nokv.raft import Entry, Message, MessageType, NodeRole, RaftSnapshot
from nokv.raft.core import RaftCore
from nokv.raft.log import RaftLog
from nokv.raft.progress import Progress
from nokv.raft.quorum import Configuration, VoteResult
from nokv.testing.sim.values import Bugs

__all__ = ["MUTANTS"]


class _VoteTwice(RaftCore):
    """Forgets that it voted in this term."""

    __slots__ = ()

    def _can_vote(self, message: Message) -> bool:
        return True


class _VoteForShorterLog(RaftCore):
    """Votes without comparing logs."""

    __slots__ = ()

    def _handle_vote(self, message: Message) -> None:
        message.log_term, message.index = 1 << 40, 1 << 40
        super()._handle_vote(message)


class _CommitOldTerm(RaftCore):
    """Counts replicas of entries of earlier terms (figure 8)."""

    __slots__ = ()

    def _maybe_commit(self) -> bool:
        matches = {node_id: one.match for node_id, one in self.progress.items()}
        index = self.membership.committed(matches)
        if index <= self.log.committed or index > self.log.last_index():
            return False
        self.log.commit_to(index)
        return True


class _SmallQuorum(RaftCore):
    """Half is taken for a majority."""

    __slots__ = ()

    def _maybe_commit(self) -> bool:
        voters = sorted(self.progress[i].match for i in self.membership.incoming if i in self.progress)
        if not voters:
            return False
        return self.log.maybe_commit(self.term, voters[-(len(voters) // 2)] if len(voters) > 1 else voters[0])


class _ReadWithoutQuorum(RaftCore):
    """A leader answers reads because it thinks that it leads."""

    __slots__ = ()

    def _start_read(self, message: Message) -> None:
        self._answer_read(message, self.log.committed)


class _ReadBeforeOwnCommit(RaftCore):
    """A new leader reads at its commit index before it knows what the last one committed."""

    __slots__ = ()

    def _has_committed_in_term(self) -> bool:
        return True


class _ConfChangeTooEarly(RaftCore):
    """Takes a membership change while another is in the log and not applied."""

    __slots__ = ()

    def _conf_change_refusal(self, leaves_joint: bool) -> str:
        return ""


class _OneHalfOfJoint(Configuration):
    __slots__ = ()

    def committed(self, acked: object) -> int:
        return Configuration(incoming=self.incoming).committed(acked)  # type: ignore[arg-type]

    def vote_result(self, votes: object) -> VoteResult:
        return Configuration(incoming=self.incoming).vote_result(votes)  # type: ignore[arg-type]


class _JointNeedsOneHalf(RaftCore):
    """Asks only the incoming half of a joint configuration."""

    __slots__ = ()

    def _switch_to(self, membership: Configuration, progress: object) -> object:  # type: ignore[override]
        half = _OneHalfOfJoint(
            membership.incoming,
            membership.outgoing,
            membership.learners,
            membership.learners_next,
            membership.auto_leave,
        )
        return super()._switch_to(half, progress)  # type: ignore[arg-type]


class _SnapshotForgetsMembers(RaftCore):
    """Restores the state of a snapshot, and keeps the old membership."""

    __slots__ = ()

    def _restore(self, snapshot: RaftSnapshot) -> bool:
        kept = self.membership, self.progress
        restored = super()._restore(snapshot)
        if restored:
            self.membership, self.progress = kept
        return restored


class _CommitPastMatch(RaftCore):
    """Heartbeats carry the commit index to followers that may hold something else there."""

    __slots__ = ()

    def _send_heartbeats(self, context: bytes) -> None:
        for node_id in sorted(self.progress):
            if node_id != self.id:
                self._send(
                    Message(MessageType.HEARTBEAT, to=node_id, commit=self.log.committed, context=context),
                )


class _FollowerCommitsAll(RaftCore):
    """Commits up to the leader's index, beyond what the message proved to match."""

    __slots__ = ()

    def _handle_append(self, message: Message) -> None:
        super()._handle_append(message)
        self.log.commit_to(min(message.commit, self.log.last_index()))


class _TruncatingLog(RaftLog):
    __slots__ = ()

    def find_conflict(self, entries: list[Entry]) -> int:
        return next((entry.index for entry in entries if entry.index > self.committed), 0)


class _AlwaysTruncate(RaftCore):
    """An old MsgApp cuts off what was acknowledged after it."""

    __slots__ = ()

    def _handle_append(self, message: Message) -> None:
        self.log.__class__ = _TruncatingLog
        super()._handle_append(message)


class _AcceptOldTerm(RaftCore):
    """Takes appends of a leader of an earlier term."""

    __slots__ = ()

    def _step_lower_term(self, message: Message) -> None:
        if message.type == MessageType.APP and self.leader != self.id:
            self._handle_append(message)
        else:
            super()._step_lower_term(message)


class _OldAcksCount(RaftCore):
    """Takes an acknowledgement of an earlier term for one of its own: the entries may have been replaced since."""

    __slots__ = ()

    def _step_lower_term(self, message: Message) -> None:
        if message.type == MessageType.APP_RESP and not message.reject and self.role is NodeRole.LEADER:
            message.index = min(message.index, self.log.last_index())
            self._step_leader(message)
        else:
            super()._step_lower_term(message)


class _AnyAnswerConfirmsRead(RaftCore):
    """Takes the answer to an old heartbeat for one to the newest: it tells nothing of who leads now."""

    __slots__ = ()

    def _handle_heartbeat_response(self, message: Message, progress: Progress) -> None:
        message.context = self.read_rounds.newest_context()
        super()._handle_heartbeat_response(message, progress)


class _LeaderCountsUnstable(RaftCore):
    """Counts its own copy of an entry before that is durable."""

    __slots__ = ()

    def _append(self, entries: list[Entry]) -> bool:
        done = super()._append(entries)
        if done and self.id in self.progress:
            self.progress[self.id].maybe_update(self.log.last_index())
        return done


class _AppendWithoutCheck(RaftCore):
    """Appends behind an entry of another term than the leader's."""

    __slots__ = ()

    def _handle_append(self, message: Message) -> None:
        if self.log.committed <= message.index <= self.log.last_index():
            message.log_term = self.log.term_or_zero(message.index)
        super()._handle_append(message)


class _SnapshotGoesBack(RaftCore):
    """Restores a snapshot that is older than what it has committed."""

    __slots__ = ()

    def _restore(self, snapshot: RaftSnapshot) -> bool:
        self.log.committed = min(self.log.committed, snapshot.metadata.index - 1)
        return super()._restore(snapshot)


class _LearnersCount(RaftCore):
    """Learners' copies are counted like those of voters."""

    __slots__ = ()

    def _maybe_commit(self) -> bool:
        members = self.membership
        counted = Configuration(members.incoming | members.learners, members.outgoing)
        matches = {node_id: one.match for node_id, one in self.progress.items()}
        return self.log.maybe_commit(self.term, counted.committed(matches))


class _FollowerReadsLocally(RaftCore):
    """A follower answers reads at its own commit index, without asking the leader."""

    __slots__ = ()

    def _step_follower(self, message: Message) -> None:
        if message.type == MessageType.READ_INDEX:
            self._answer_read(message, self.log.committed)
        else:
            super()._step_follower(message)


class _LeaseAfterTransfer(RaftCore):
    """Keeps reading under a lease that a leader transfer has broken, and counts no drift."""

    __slots__ = ()

    def lease_valid(self) -> bool:
        return self.lease_since >= 0


class _QuietLeaderReads(RaftCore):
    """Counts its lease in ticks, and there are none while it is quiet."""

    __slots__ = ()

    def check(self) -> None:
        self.log.check()  # or its own assertion would find it at once

    def _rest(self) -> None:
        since = self.lease_since
        super()._rest()
        self.lease_since = since

    def wake(self, unheard_ticks: int = 0) -> None:
        since = self.lease_since
        super().wake(unheard_ticks)
        self.lease_since = since


class _SleepsOn(RaftCore):
    """A quiet follower that nothing wakes: it keeps refusing its vote for the sake of a leader that may be gone."""

    __slots__ = ()

    def wake(self, unheard_ticks: int = 0) -> None:
        if self.role is NodeRole.LEADER:
            super().wake(unheard_ticks)

    def check(self) -> None:
        self.log.check()


MUTANTS: dict[str, Bugs] = {
    "vote_twice": Bugs(core=_VoteTwice),
    "vote_for_shorter_log": Bugs(core=_VoteForShorterLog),
    "no_sync_before_vote": Bugs(never_sync_votes=True),
    "restart_forgets_vote": Bugs(restart_forgets_vote=True),
    "answer_before_sync": Bugs(answer_before_sync=True),
    "commit_old_term": Bugs(core=_CommitOldTerm),
    "small_quorum": Bugs(core=_SmallQuorum),
    "read_without_quorum": Bugs(core=_ReadWithoutQuorum),
    "read_before_own_commit": Bugs(core=_ReadBeforeOwnCommit),
    "conf_change_too_early": Bugs(core=_ConfChangeTooEarly),
    "joint_needs_one_half": Bugs(core=_JointNeedsOneHalf, joint=True),
    "snapshot_forgets_members": Bugs(core=_SnapshotForgetsMembers),
    "commit_past_match": Bugs(core=_CommitPastMatch),
    "follower_commits_all": Bugs(core=_FollowerCommitsAll),
    "always_truncate": Bugs(core=_AlwaysTruncate),
    "accept_old_term": Bugs(core=_AcceptOldTerm, storm=True),
    "old_acks_count": Bugs(core=_OldAcksCount, echo=True),
    "any_answer_confirms_read": Bugs(core=_AnyAnswerConfirmsRead, storm=True),
    "leader_counts_unstable": Bugs(core=_LeaderCountsUnstable),
    "append_without_check": Bugs(core=_AppendWithoutCheck),
    "snapshot_goes_back": Bugs(core=_SnapshotGoesBack),
    "learners_count": Bugs(core=_LearnersCount, learners=True),
    "follower_reads_locally": Bugs(core=_FollowerReadsLocally),
    "restart_forgets_members": Bugs(restart_forgets_members=True),
    "forget_directory_sync": Bugs(lies=("sync_dir",)),
    "recover_without_sync": Bugs(recover_without_sync=True),
    "log_before_data": Bugs(log_before_data=True),
    "start_over_when_damaged": Bugs(start_over_when_damaged=True),
    "lease_without_bound": Bugs(core=_LeaseAfterTransfer, lease=True),
    "lease_through_pauses": Bugs(lease=True, lease_reads_with_pauses=True),
    "quiet_leader_reads": Bugs(core=_QuietLeaderReads, lease=True, quiet=True, left_behind=True),
    "quiet_follower_sleeps_on": Bugs(core=_SleepsOn, quiet=True),
    "quiet_host_is_deaf": Bugs(quiet=True, deaf_host=True),
}
