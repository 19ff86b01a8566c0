"""Getting entries to every member: proposals, appends and snapshots, their answers, and handing the lead over."""

from __future__ import annotations

from nokv.errors import InvariantError
from nokv.raft.errors import ProposalDropped
from nokv.raft.membership import Membership
from nokv.raft.progress import Progress, ProgressState
from nokv.raft.state import members_of
from nokv.raft.types import NO_NODE, Entry, EntryKind, Message, MessageType, NodeRole, RaftSnapshot

__all__ = ["Replication"]

_APP_RESP = MessageType.APP_RESP
_FOLLOWER = NodeRole.FOLLOWER
_PROBE = ProgressState.PROBE
_REPLICATE = ProgressState.REPLICATE
_SNAPSHOT = ProgressState.SNAPSHOT


class Replication(Membership):
    __slots__ = ()

    # -- proposals -----------------------------------------------------------------------------------------------------
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

    # -- what a leader hears -------------------------------------------------------------------------------------------
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

    # -- handing the lead over -----------------------------------------------------------------------------------------
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

    # -- what a follower hears -----------------------------------------------------------------------------------------
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
        if self.id not in members_of(conf_state):
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
