"""The log as the machine sees it: what storage holds, and behind it what is not stable yet.

    first_index        applied   applying   committed            offset    in_progress      last_index
    |                        |          |           |                 |              |               |
    [ storage .........................................................][ unstable ....................]
                                                                      handed out      not handed out

`offset` is the first index that is not known to be stable; entries below `in_progress` were handed out in a Ready and
are being written. applied <= applying <= committed <= last_index. A snapshot that is not stable yet replaces all of
storage.
"""

from __future__ import annotations

from nokv.errors import InvariantError
from nokv.raft.config import RaftLogger
from nokv.raft.errors import Compacted, LogUnavailable, StorageError
from nokv.raft.storage import LogStorage, entry_size_bytes, limit_size
from nokv.raft.types import Entry, EntryKind, RaftSnapshot

__all__ = ["RaftLog", "Unstable"]


class Unstable:
    """Entries and at most one snapshot that storage does not have yet."""

    __slots__ = ("_logger", "entries", "in_progress", "offset", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int, logger: RaftLogger | None) -> None:
        self.snapshot: RaftSnapshot | None = None
        self.entries: list[Entry] = []
        self.offset = offset
        self.snapshot_in_progress = False
        self.in_progress = offset
        self._logger = logger

    def maybe_term(self, index: int) -> int | None:
        if index < self.offset:
            snapshot = self.snapshot
            if snapshot is not None and snapshot.metadata.index == index:
                return snapshot.metadata.term
            return None
        position = index - self.offset
        return self.entries[position].term if position < len(self.entries) else None

    def next_entries(self) -> list[Entry]:
        """Those not handed out yet."""
        return self.entries[self.in_progress - self.offset :]

    def next_snapshot(self) -> RaftSnapshot | None:
        return None if self.snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        if self.entries:
            self.in_progress = self.offset + len(self.entries)
        if self.snapshot is not None:
            self.snapshot_in_progress = True

    def stable_to(self, index: int, term: int) -> None:
        found = self.maybe_term(index)
        logger = self._logger
        if found is None:
            if logger is not None:
                logger.info(f"entry at index {index} missing from unstable log; ignoring")
            return
        if index < self.offset:
            if logger is not None:
                logger.info(f"entry at index {index} matched unstable snapshot; ignoring")
            return
        if found != term:
            # Part of the log was replaced while it was being written: a later write will cover what is there now.
            if logger is not None:
                logger.info(
                    f"entry at (index,term)=({index},{term}) mismatched with entry at ({index},{found}) "
                    "in unstable log; ignoring"
                )
            return
        del self.entries[: index + 1 - self.offset]
        self.offset = index + 1
        if self.in_progress < self.offset:
            self.in_progress = self.offset

    def stable_snapshot_to(self, index: int) -> None:
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: RaftSnapshot) -> None:
        self.offset = self.in_progress = snapshot.metadata.index + 1
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: list[Entry]) -> None:
        start = entries[0].index
        end = self.offset + len(self.entries)
        logger = self._logger
        if start == end:
            self.entries.extend(entries)
        elif start <= self.offset:
            if logger is not None:
                logger.info(f"replace the unstable entries from index {start}")
            self.entries = list(entries)
            self.offset = self.in_progress = start
        elif start < end:
            if logger is not None:
                logger.info(f"truncate the unstable entries before index {start}")
            del self.entries[start - self.offset :]
            self.entries.extend(entries)
            if self.in_progress > start:
                self.in_progress = start
        else:
            raise InvariantError(f"log has a hole: entries up to {end - 1}, append at {start}")

    def slice(self, lo: int, hi: int) -> list[Entry]:
        if lo < self.offset or hi > self.offset + len(self.entries):
            raise InvariantError(f"unstable slice [{lo}, {hi}) out of [{self.offset}, +{len(self.entries)})")
        return self.entries[lo - self.offset : hi - self.offset]


class RaftLog:
    __slots__ = (
        "_applying_bytes",
        "_applying_bytes_max",
        "_applying_paused",
        "_logger",
        "applied",
        "applying",
        "committed",
        "storage",
        "unstable",
    )

    def __init__(self, storage: LogStorage, logger: RaftLogger | None, applying_bytes_max: int) -> None:
        first = storage.first_index()
        self.storage = storage
        self.unstable = Unstable(storage.last_index() + 1, logger)
        self._logger = logger
        # Whatever was compacted had been committed and applied.
        self.committed = self.applying = self.applied = first - 1
        self._applying_bytes = 0
        self._applying_bytes_max = applying_bytes_max
        self._applying_paused = False

    def __str__(self) -> str:
        unstable = self.unstable
        return (
            f"committed={self.committed}, applied={self.applied}, applying={self.applying}, "
            f"unstable.offset={unstable.offset}, unstable.offsetInProgress={unstable.in_progress}, "
            f"len(unstable.Entries)={len(unstable.entries)}"
        )

    def check(self) -> None:
        """The log's invariants; tests and the simulator call this after every step."""
        assert self.applied <= self.applying <= self.committed <= self.last_index()
        assert self.first_index() <= self.committed + 1
        assert self.unstable.offset <= self.unstable.in_progress <= self.unstable.offset + len(self.unstable.entries)

    # -- what there is -------------------------------------------------------------------------------------------------
    def first_index(self) -> int:
        snapshot = self.unstable.snapshot
        return snapshot.metadata.index + 1 if snapshot is not None else self.storage.first_index()

    def last_index(self) -> int:
        # Storage ends where unstable begins: offset is always one past the last stable index.
        unstable = self.unstable
        return unstable.offset + len(unstable.entries) - 1

    def last_id(self) -> tuple[int, int]:
        """(term, index) of the last entry."""
        index = self.last_index()
        return self.term(index), index

    def term(self, index: int) -> int:
        """Raises Compacted or LogUnavailable outside [first_index - 1, last_index]."""
        found = self.unstable.maybe_term(index)
        if found is not None:
            return found
        if index + 1 < self.first_index():
            raise Compacted
        if index > self.last_index():
            raise LogUnavailable
        return self.storage.term(index)

    def term_or_zero(self, index: int) -> int:
        try:
            return self.term(index)
        except (Compacted, LogUnavailable):
            return 0

    def matches(self, index: int, term: int) -> bool:
        try:
            return self.term(index) == term
        except StorageError:
            return False

    def is_up_to_date(self, last_term: int, last_index: int) -> bool:
        """Is a log that ends so at least as complete as ours? (Raft paper, section 5.4.1)"""
        our_term, our_index = self.last_id()
        return last_term > our_term or (last_term == our_term and last_index >= our_index)

    def entries(self, lo: int, max_size: int) -> list[Entry]:
        """From `lo` to the end, cut at `max_size` bytes but at least one. Raises Compacted."""
        last = self.last_index()
        return [] if lo > last else self.slice(lo, last + 1, max_size)

    def slice(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        if lo < self.first_index():
            raise Compacted
        if hi > self.last_index() + 1 or lo > hi:
            raise InvariantError(f"slice [{lo}, {hi}) out of [{self.first_index()}, {self.last_index()}]")
        if lo == hi:
            return []
        offset = self.unstable.offset
        if lo >= offset:
            return limit_size(self.unstable.slice(lo, hi), max_size)
        cut = min(hi, offset)
        stable = self.storage.entries(lo, cut, max_size)
        if hi <= offset or len(stable) < cut - lo:
            return stable
        size = sum(map(entry_size_bytes, stable))
        if size >= max_size:
            return stable
        tail = limit_size(self.unstable.slice(offset, hi), max_size - size)
        if len(tail) == 1 and size + entry_size_bytes(tail[0]) > max_size:
            return stable
        return stable + tail

    def snapshot(self) -> RaftSnapshot:
        return self.unstable.snapshot or self.storage.snapshot()

    def has_conf_change(self, lo: int, hi: int, page_size: int) -> bool:
        """Is there a configuration change in [lo, hi)?"""
        while lo < hi:
            page = self.slice(lo, hi, page_size)
            for entry in page:
                if entry.kind != EntryKind.NORMAL:
                    return True
            lo += len(page)
        return False

    # -- appending -----------------------------------------------------------------------------------------------------
    def append(self, entries: list[Entry]) -> int:
        """Put `entries` at their indexes, dropping what conflicts. Returns the last index."""
        if entries:
            if entries[0].index <= self.committed:
                raise InvariantError(f"append at {entries[0].index} would change committed entries ({self.committed})")
            self.unstable.truncate_and_append(entries)
        return self.last_index()

    def maybe_append(self, prev_term: int, prev_index: int, entries: list[Entry], committed: int) -> int | None:
        """Append what follows (prev_term, prev_index). The last index covered, or None if that entry is not ours."""
        if not self.matches(prev_index, prev_term):
            return None
        last_new = prev_index + len(entries)
        conflict = self.find_conflict(entries)
        if conflict:
            if conflict <= self.committed:
                raise InvariantError(f"entry {conflict} conflicts with a committed entry (committed {self.committed})")
            self.append(entries[conflict - prev_index - 1 :])
        # Only as far as this message proves: what we have behind it may come from another leader.
        self.commit_to(min(committed, last_new))
        return last_new

    def find_conflict(self, entries: list[Entry]) -> int:
        """Index of the first entry that we do not have in the same term; 0 if there is none."""
        for entry in entries:
            if not self.matches(entry.index, entry.term):
                if entry.index <= self.last_index() and self._logger is not None:
                    self._logger.info(
                        f"found conflict at index {entry.index} [existing term: {self.term_or_zero(entry.index)}, "
                        f"conflicting term: {entry.term}]"
                    )
                return entry.index
        return 0

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """Largest (index, term) at or before `index` whose term is at most `term`: everything behind it cannot match.

        Term 0 if the log does not know (compacted, or before its start): a match is then still possible there.
        """
        while index > 0:
            try:
                ours = self.term(index)
            except StorageError:
                return index, 0
            if ours <= term:
                return index, ours
            index -= 1
        return 0, 0

    def commit_to(self, index: int) -> None:
        if self.committed < index:
            if index > self.last_index():
                raise InvariantError(
                    f"commit index {index} is behind the last index {self.last_index()}: was the log lost or damaged?"
                )
            self.committed = index

    def maybe_commit(self, term: int, index: int) -> bool:
        """Commit up to `index` if the entry there is of `term` (Raft paper, section 5.4.2: never count older ones)."""
        if index > self.committed and term and self.matches(index, term):
            self.commit_to(index)
            return True
        return False

    def restore(self, snapshot: RaftSnapshot) -> None:
        if self._logger is not None:
            metadata = snapshot.metadata
            self._logger.info(
                f"log [{self}] starts to restore snapshot [index: {metadata.index}, term: {metadata.term}]"
            )
        self.committed = snapshot.metadata.index
        self.unstable.restore(snapshot)

    # -- handing out and taking back ----------------------------------------------------------------------------------
    def has_next_unstable_entries(self) -> bool:
        unstable = self.unstable
        return unstable.in_progress < unstable.offset + len(unstable.entries)

    def has_unstable_entries(self) -> bool:
        """Handed out or not."""
        return bool(self.unstable.entries)

    def has_next_snapshot(self) -> bool:
        return self.unstable.snapshot is not None and not self.unstable.snapshot_in_progress

    def has_unstable_snapshot(self) -> bool:
        return self.unstable.snapshot is not None

    def _appliable_to(self, allow_unstable: bool) -> int:
        return self.committed if allow_unstable else min(self.committed, self.unstable.offset - 1)

    def has_next_committed(self, allow_unstable: bool) -> bool:
        if self.applying >= self.committed or self._applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self._appliable_to(allow_unstable)

    def next_committed(self, allow_unstable: bool) -> list[Entry]:
        """What may be applied next. Nothing while a snapshot waits: it goes first."""
        if not self.has_next_committed(allow_unstable):
            return []
        size = self._applying_bytes_max - self._applying_bytes
        return self.slice(self.applying + 1, self._appliable_to(allow_unstable) + 1, size)

    def accept_applying(self, index: int, size_bytes: int, allow_unstable: bool) -> None:
        if self.committed < index:
            raise InvariantError(f"applying {index} is behind the commit index {self.committed}")
        self.applying = index
        self._applying_bytes += size_bytes
        # The second half: the limit cut this batch short, so another would not fit either.
        self._applying_paused = self._applying_bytes >= self._applying_bytes_max or index < self._appliable_to(
            allow_unstable
        )

    def applied_to(self, index: int, size_bytes: int) -> None:
        if not self.applied <= index <= self.committed:
            raise InvariantError(f"applied {index} is out of [{self.applied}, {self.committed}]")
        self.applied = index
        if self.applying < index:
            self.applying = index
        self._applying_bytes = max(self._applying_bytes - size_bytes, 0)
        self._applying_paused = self._applying_bytes >= self._applying_bytes_max
