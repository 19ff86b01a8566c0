"""Configurations: which changes may enter the log, and what happens when one is applied."""

from __future__ import annotations

from nokv.raft.confchange import Changer, ConfChangeV2, decode_conf_change, describe_conf_change, restore
from nokv.raft.errors import ConfChangeError, ProposalDropped
from nokv.raft.progress import ProgressMap
from nokv.raft.quorum import Configuration
from nokv.raft.readindex import ReadIndex
from nokv.raft.types import NO_NODE, ConfState, Entry, EntryKind, Message, MessageType, NodeRole

__all__ = ["Membership"]

_PROP = MessageType.PROP
_LEADER = NodeRole.LEADER


class Membership(ReadIndex):
    __slots__ = ()

    # -- may it enter the log? -----------------------------------------------------------------------------------------
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

    # -- applying it ---------------------------------------------------------------------------------------------------
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
