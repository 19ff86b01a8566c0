"""What a leader sends to each member, and what it may commit."""

from __future__ import annotations

from nokv.errors import InvariantError
from nokv.raft.config import ReadMode
from nokv.raft.errors import Compacted, SnapshotTemporarilyUnavailable
from nokv.raft.progress import Progress, ProgressState
from nokv.raft.state import MemberState, members_of
from nokv.raft.types import Entry, Message, MessageType

__all__ = ["Sending"]

_APP = MessageType.APP
_SNAP = MessageType.SNAP
_HEARTBEAT = MessageType.HEARTBEAT
_REPLICATE = ProgressState.REPLICATE


class Sending(MemberState):
    __slots__ = ()

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
        if to not in members_of(metadata.conf_state):
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
