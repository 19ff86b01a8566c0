"""Linearizable reads without a log entry (Ongaro's thesis, section 6.4): rounds of heartbeats that prove leadership.

A read remembers the commit index at its arrival; once a quorum has answered a heartbeat that was sent *after* the
arrival, no other leader can have committed anything before it that we do not know. Reads that arrive before a round's
heartbeats have left share it. A round has a number of its own, never reused in a term: an old answer cannot vouch for a
new read, even if the caller uses a context twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nokv.errors import InvariantError
from nokv.raft.types import Message

__all__ = ["ReadRounds"]


class _Round:
    __slots__ = ("acks", "number", "reads", "tick")

    def __init__(self, number: int, tick: int, own_id: int) -> None:
        self.number = number
        self.tick = tick
        self.acks = {own_id: True}
        self.reads: list[tuple[Message, int]] = []


class ReadRounds:
    """Rounds of one leadership. Made anew at each term change."""

    __slots__ = ("_next_number", "_own_id", "_rounds", "open")

    ROUNDS_MAX = 1024
    """Rounds without an answer. At the bound the oldest is forgotten if it carries no read; else no new one begins, and
    a read that would need one is dropped (its caller retries)."""

    def __init__(self, own_id: int) -> None:
        self._own_id = own_id
        self._rounds: deque[_Round] = deque()
        self._next_number = 1
        self.open = False
        """The newest round's heartbeats have not been handed out: reads may still join it."""

    def __len__(self) -> int:
        return len(self._rounds)

    def begin(self, tick: int) -> bytes | None:
        """A new round; the context for its heartbeats. None at the bound."""
        rounds = self._rounds
        if len(rounds) >= self.ROUNDS_MAX:
            if rounds[0].reads:
                return None
            rounds.popleft()
        rounds.append(_Round(self._next_number, tick, self._own_id))
        self._next_number += 1
        self.open = True
        return self.newest_context()

    @property
    def waiting(self) -> bool:
        """Does any round carry a read?"""
        return any(one.reads for one in self._rounds)

    def abandon(self) -> None:
        """Forget rounds that carry no read: an answer to one of them means nothing any more."""
        if self.waiting:
            raise InvariantError("rounds with reads are not abandoned")
        self._rounds.clear()
        self.open = False

    def add(self, request: Message, commit: int) -> None:
        self._rounds[-1].reads.append((request, commit))

    def newest_context(self) -> bytes:
        return self._rounds[-1].number.to_bytes(8, "big") if self._rounds else b""

    def acknowledge(
        self, node_id: int, context: bytes, has_quorum: Callable[[dict[int, bool]], bool]
    ) -> tuple[int, list[tuple[Message, int]]] | None:
        """An answer. With a quorum: (tick at which that round began, reads of it and of all earlier rounds)."""
        number = int.from_bytes(context, "big")
        for one in self._rounds:
            if one.number == number:
                one.acks[node_id] = True
                return self._release(number) if has_quorum(one.acks) else None
        return None

    def recheck(self, has_quorum: Callable[[dict[int, bool]], bool]) -> list[tuple[Message, int]]:
        """After a membership change: reads that the answers so far now suffice for."""
        done = 0
        for one in self._rounds:
            if has_quorum(one.acks):
                done = one.number
        return self._release(done)[1] if done else []

    def _release(self, number: int) -> tuple[int, list[tuple[Message, int]]]:
        reads: list[tuple[Message, int]] = []
        tick = 0
        while self._rounds and self._rounds[0].number <= number:
            one = self._rounds.popleft()
            tick = one.tick
            reads += one.reads
        if not self._rounds:
            self.open = False
        return tick, reads
