"""Linearizable reads: a leader proves that it still leads, or reads under its lease (thesis, section 6.4)."""

from __future__ import annotations

from nokv.raft.config import ReadMode
from nokv.raft.quorum import VoteResult
from nokv.raft.sending import Sending
from nokv.raft.types import NO_NODE, Message, MessageType, ReadState

__all__ = ["ReadIndex"]


class ReadIndex(Sending):
    __slots__ = ()

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
