"""The replicated state machine: committed Raft entries in, accepted events and the folded state out.

No IO and no clock. One thread. Every replica feeds it the same entries, so all of them hold the same state and the
same log. It keeps the newest events for readers and for the tail (retention.py); older ones live on only in the state.
"""

from __future__ import annotations

from dataclasses import dataclass

from nokv.errors import EpochNotMatch, NoKVError, NotFound, PreconditionFailed, UsageError
from nokv.metaroot.events import RootRecord, RootToken
from nokv.metaroot.retention import RecordLog
from nokv.metaroot.state import RootState
from nokv.metaroot.wire import Checkpoint, RootBatch, decode_batch

__all__ = ["AppliedBatch", "RootMachine"]

REFUSALS = (PreconditionFailed, EpochNotMatch, NotFound, UsageError)
"""How the state says no. A refusal is an outcome like any other: every replica comes to it."""


@dataclass(slots=True)
class AppliedBatch:
    """What became of one entry: the new records (none if all was true already), or the refusal."""

    batch: RootBatch
    records: list[RootRecord]
    error: NoKVError | None


class RootMachine:
    """`applied_index` is the Raft index of the newest entry that went in, accepted or not."""

    __slots__ = ("applied_index", "applied_term", "records", "state")

    def __init__(self, *, retain_max: int = 100_000) -> None:
        self.state = RootState()
        self.applied_index = 0
        self.applied_term = 0
        self.records = RecordLog(retain_max=retain_max)

    @property
    def last(self) -> RootToken:
        return self.state.last

    @property
    def first_revision(self) -> int:
        """The oldest event that `read` can return; one past the last revision if none is kept."""
        return self.records.first_revision or self.state.last.revision + 1

    def apply_entry(self, term: int, index: int, data: bytes) -> AppliedBatch | None:
        """Feed one committed entry; empty ones (a new leader's) and those already in are skipped. Raises Corruption."""
        if index <= self.applied_index:
            return None
        outcome = None
        if data:
            batch = decode_batch(data, f"root entry {index}")
            outcome = AppliedBatch(batch, [], None)
            try:
                outcome.records = self.state.apply(
                    batch.events,
                    term=term,
                    index=index,
                    expected_revision=batch.expected_revision,
                    time_ms=batch.time_ms,
                    author=batch.author,
                )
            except REFUSALS as error:
                outcome.error = error
            self.records.extend(outcome.records)
        self.applied_index = index
        self.applied_term = term
        return outcome

    def read(self, from_revision: int, limit: int) -> list[RootRecord]:
        """Up to `limit` events from `from_revision` on; empty past the end. NotFound below `first_revision`."""
        if not len(self.records) and from_revision <= self.state.last.revision:
            raise NotFound(f"revision {from_revision} is no longer kept")
        return self.records.read(from_revision, limit)

    def checkpoint(self) -> Checkpoint:
        """A picture of now that later entries do not change; encoding it (elsewhere, if one likes) is the dear part."""
        return Checkpoint(self.applied_index, self.applied_term, self.state.copy(), list(self.records))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Replace everything."""
        self.state = checkpoint.state
        self.records.load(checkpoint.records)
        self.applied_index = checkpoint.index
        self.applied_term = checkpoint.term
