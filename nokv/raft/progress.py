"""What the leader knows of one member, and how much it may send it.

PROBE       next is a guess: one MsgApp at a time, until an answer or a heartbeat answer
REPLICATE   match is known: optimistic, bounded by the window of messages and bytes in flight
SNAPSHOT    the log before `next` is gone: a snapshot is on its way, nothing else is sent

PROBE --accepted--> REPLICATE --rejected, unreachable--> PROBE
PROBE, REPLICATE --entries compacted--> SNAPSHOT --applied--> REPLICATE,  --reported done or failed--> PROBE
"""

from __future__ import annotations

import enum
from collections import deque

from nokv.errors import InvariantError

__all__ = ["PROGRESS_TRANSITIONS", "Inflights", "Progress", "ProgressMap", "ProgressState"]


class ProgressState(enum.IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {
    ProgressState.PROBE: "StateProbe",
    ProgressState.REPLICATE: "StateReplicate",
    ProgressState.SNAPSHOT: "StateSnapshot",
}
_PROBE, _REPLICATE, _SNAPSHOT = ProgressState

PROGRESS_TRANSITIONS: dict[tuple[ProgressState, ProgressState], str] = {
    (_PROBE, _REPLICATE): "an append was accepted, or this is the leader itself",
    (_PROBE, _SNAPSHOT): "what it needs was compacted",
    (_REPLICATE, _PROBE): "rejected, or unreachable",
    (_REPLICATE, _SNAPSHOT): "what it needs was compacted",
    (_SNAPSHOT, _PROBE): "reported as done or failed, or it has caught up with the log (and goes on to replicate)",
}
"""Every change of state there is, and why; any other is a bug. docs/raft.md is drawn from this."""


class Inflights:
    """The sliding window of MsgApp sent and not yet acknowledged: last index and bytes of each."""

    __slots__ = ("_window", "bytes", "bytes_max", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._window: deque[tuple[int, int]] = deque()

    def add(self, last_index: int, size_bytes: int) -> None:
        self._window.append((last_index, size_bytes))
        self.bytes += size_bytes

    def free_to(self, index: int) -> None:
        """Acknowledged up to and including `index`."""
        window = self._window
        while window and window[0][0] <= index:
            self.bytes -= window.popleft()[1]

    @property
    def full(self) -> bool:
        # One message may take the bytes over the limit: it closes the window, it is not cut.
        return len(self._window) >= self.messages_max or self.bytes >= self.bytes_max

    def __len__(self) -> int:
        return len(self._window)

    def clear(self) -> None:
        self._window.clear()
        self.bytes = 0

    def copy(self) -> Inflights:
        other = Inflights(self.messages_max, self.bytes_max)
        other.bytes = self.bytes
        other._window = self._window.copy()
        return other


class Progress:
    """match < next always. `sent_commit` is the highest commit index the member was told, as far as it could use it."""

    __slots__ = (
        "flow_paused",
        "inflights",
        "is_learner",
        "match",
        "next",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        *,
        match: int,
        next: int,
        inflights: Inflights,
        is_learner: bool = False,
        recent_active: bool = False,
    ) -> None:
        self.match = match
        self.next = next
        self.sent_commit = 0
        self.state = _PROBE
        self.pending_snapshot = 0
        self.recent_active = recent_active
        self.flow_paused = False
        self.inflights = inflights
        self.is_learner = is_learner

    def copy(self) -> Progress:
        other = Progress(
            match=self.match,
            next=self.next,
            inflights=self.inflights.copy(),
            is_learner=self.is_learner,
            recent_active=self.recent_active,
        )
        other.sent_commit = self.sent_commit
        other.state = self.state
        other.pending_snapshot = self.pending_snapshot
        other.flow_paused = self.flow_paused
        return other

    # -- transitions ---------------------------------------------------------------------------------------------------
    def become_probe(self) -> None:
        if self.state is _SNAPSHOT:
            # The snapshot arrived (if it did not, the caller cleared pending_snapshot): go on behind it.
            pending = self.pending_snapshot
            self._reset(_PROBE)
            self.next = max(self.match + 1, pending + 1)
        else:
            self._reset(_PROBE)
            self.next = self.match + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        self._reset(_REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._reset(_SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def _reset(self, state: ProgressState) -> None:
        if (self.state, state) not in PROGRESS_TRANSITIONS:
            raise InvariantError(f"invalid transition [{self.state.label} -> {state.label}]")
        self.flow_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.clear()

    # -- events --------------------------------------------------------------------------------------------------------
    def sent_entries(self, count: int, size_bytes: int) -> None:
        if self.state is _REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size_bytes)
            # With a full window even an empty MsgApp counts as a probe: the next one waits for an answer.
            self.flow_paused = self.inflights.full
        elif count:
            self.flow_paused = True

    def can_bump_commit(self, commit: int) -> bool:
        """Would telling `commit` move the member's commit index? It can use it only up to next - 1."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """The member has everything up to `index`. False if that is old news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        self.flow_paused = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """The member refused the MsgApp that follows `rejected`; `hint` may match. False if the refusal is stale."""
        if self.state is _REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.flow_paused = False
        return True

    @property
    def is_paused(self) -> bool:
        return self.flow_paused or self.state is _SNAPSHOT

    def __str__(self) -> str:
        text = f"{self.state.label} match={self.match} next={self.next}"
        if self.is_learner:
            text += " learner"
        if self.is_paused:
            text += " paused"
        if self.pending_snapshot:
            text += f" pendingSnap={self.pending_snapshot}"
        if not self.recent_active:
            text += " inactive"
        if self.inflights:
            text += f" inflight={len(self.inflights)}"
            if self.inflights.full:
                text += "[full]"
        return text


class ProgressMap(dict[int, Progress]):
    """Member id -> progress. Copied on membership changes, iterated in order of ids where the order is seen."""

    __slots__ = ()
