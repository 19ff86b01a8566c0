"""Which events of the rooted log are kept for readers, audit and the tail: the newest `retain_max`, and of what lies
behind a horizon no fence or renewal that a later one of the same era made meaningless.

Pure. A busy holder writes a fence every 1.5 s and a renewal every few seconds: kept whole, they would push region and
lease history out of the log within two days. Folding them away changes nothing that the log says: fences of one era
only grow, a renewal only restarts a waiting time, so that the log without them folds to the same state, and the audit
sees every grant, seal, confirmation and closure. The next record that stays says how many went (`RootRecord.folded`),
so that a hole is never taken for a fold.

What is kept is a function of the log alone: every replica, and one that was restored from a checkpoint, keeps the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from nokv.errors import NotFound
from nokv.metaroot.events import AllocatorFenced, LeaseRenewed, RootRecord

__all__ = ["RecordLog", "check_chain"]


def check_chain(records: Sequence[RootRecord], last_revision: int) -> bool:
    """Do the records follow each other without a hole (folds told), up to `last_revision`?"""
    for before, record in pairwise(records):
        if record.token.revision - record.folded - 1 != before.token.revision:
            return False
    return not records or (records[-1].token.revision == last_revision and records[0].folded >= 0)


def _superseding(record: RootRecord) -> tuple[object, ...] | None:
    """Records with the same key: only the newest matters. None: the record matters for ever."""
    event = record.event
    if isinstance(event, AllocatorFenced):
        return (event.allocator, event.era)
    if isinstance(event, LeaseRenewed):
        return (event.holder, event.era)
    return None


class RecordLog:
    """One thread. `horizon`: so many of the newest revisions are always whole."""

    __slots__ = ("_fold_every", "_head", "_records", "horizon", "retain_max")

    def __init__(self, *, retain_max: int = 100_000, horizon: int | None = None) -> None:
        assert retain_max > 0
        self.retain_max = retain_max
        self.horizon = max(1, retain_max // 10) if horizon is None else horizon
        self._fold_every = max(1, self.horizon // 8)
        self._records: list[RootRecord] = []
        self._head = 0  # records before this index were dropped

    def __len__(self) -> int:
        return len(self._records) - self._head

    def __iter__(self) -> Iterator[RootRecord]:
        return iter(self._records[self._head :])

    @property
    def first_revision(self) -> int:
        """The oldest event that `read` can return; 0 if none is kept."""
        return self._records[self._head].token.revision if len(self) else 0

    def load(self, records: Iterable[RootRecord]) -> None:
        self._records, self._head = list(records), 0

    def extend(self, records: Sequence[RootRecord]) -> None:
        """Add what follows; fold and drop what is due."""
        self._records.extend(records)
        if records:
            first, last = records[0].token.revision, records[-1].token.revision
            due = last - last % self._fold_every
            if due >= first:
                self._fold(due - self.horizon)
        if len(self) > self.retain_max:
            self._head = len(self._records) - self.retain_max
            if self._head > self.retain_max // 2:
                del self._records[: self._head]
                self._head = 0

    def read(self, from_revision: int, limit: int) -> list[RootRecord]:
        """Up to `limit` kept events from `from_revision` on. NotFound below the oldest that is kept."""
        first = self.first_revision
        if from_revision < first:
            raise NotFound(f"revision {from_revision} is no longer kept; the oldest is {first}")
        at = bisect_left(self._records, from_revision, self._head, key=lambda r: r.token.revision)
        return self._records[at : at + limit]

    def _fold(self, boundary: int) -> None:
        """Fold away what is superseded within the revisions up to `boundary`."""
        end = bisect_left(self._records, boundary + 1, self._head, key=lambda r: r.token.revision)
        old = self._records[self._head : end]
        seen: set[tuple[object, ...]] = set()
        gone: set[int] = set()
        for record in reversed(old):
            key = _superseding(record)
            if key is None:
                continue
            if key in seen:
                gone.add(record.token.revision)
            seen.add(key)
        if not gone:
            return
        kept: list[RootRecord] = []
        folded = 0
        for record in old:
            if record.token.revision in gone:
                folded += 1 + record.folded
            elif folded:
                kept.append(replace(record, folded=record.folded + folded))
                folded = 0
            else:
                kept.append(record)
        assert not folded, "the last of its kind stays, so that something follows what goes"
        self._records[:end] = kept
        self._head = 0
