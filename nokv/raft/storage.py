"""The port through which the state machine reads what is already stable, and its in-memory version.

Sync and at memory speed: the machine calls it in the middle of a step. Only the driver writes to it, between `ready`
and `advance`. One thread.
"""

from __future__ import annotations

from typing import Protocol

from nokv.errors import InvariantError
from nokv.raft.errors import Compacted, LogUnavailable, SnapshotOutOfDate
from nokv.raft.types import ConfState, Entry, HardState, RaftSnapshot, SnapshotMetadata

__all__ = ["LogStorage", "MemoryStorage", "entry_size_bytes", "limit_size"]


def entry_size_bytes(entry: Entry) -> int:
    """What an entry counts against size limits: as a field-tagged record with variable-length integers.

    That is how etcd-io/raft counts, whose cases show where a batch is cut.
    """
    size = 2 + (entry.term.bit_length() + 6) // 7 + (entry.index.bit_length() + 6) // 7
    if entry.kind:
        size += 2
    length = len(entry.data)
    return size + 1 + (length.bit_length() + 6) // 7 + length if length else size


def limit_size(entries: list[Entry], max_size: int) -> list[Entry]:
    """The longest head of `entries` within `max_size` bytes, but at least one entry."""
    total = 0
    for position, entry in enumerate(entries):
        total += entry_size_bytes(entry)
        if total > max_size and position:
            return entries[:position]
    return entries


class LogStorage(Protocol):
    """The stable log of one group, indexes `first_index()` .. `last_index()`, plus the term of `first_index() - 1`."""

    def initial_state(self) -> tuple[HardState, ConfState]: ...

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """Entries [lo, hi), cut at `max_size` bytes but at least one. Raises Compacted, LogUnavailable."""
        ...

    def term(self, index: int) -> int:
        """Term of `index` in [first_index - 1, last_index]. Raises Compacted, LogUnavailable."""
        ...

    def last_index(self) -> int: ...
    def first_index(self) -> int: ...

    def snapshot(self) -> RaftSnapshot:
        """The newest snapshot, at least at first_index - 1. Raises SnapshotTemporarilyUnavailable."""
        ...


class MemoryStorage:
    """A LogStorage in a list. Position 0 holds a marker with the index and term that precede the first entry."""

    __slots__ = ("_entries", "_hard_state", "_snapshot")

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._snapshot = RaftSnapshot(SnapshotMetadata())
        self._entries: list[Entry] = [Entry(0, 0)]

    # -- what the machine reads ---------------------------------------------------------------------------------------
    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._hard_state, self._snapshot.metadata.conf_state

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        offset = self._entries[0].index
        if lo <= offset:
            raise Compacted
        if hi > offset + len(self._entries):
            raise LogUnavailable
        return limit_size(self._entries[lo - offset : hi - offset], max_size)

    def term(self, index: int) -> int:
        offset = self._entries[0].index
        if index < offset:
            raise Compacted
        if index - offset >= len(self._entries):
            raise LogUnavailable
        return self._entries[index - offset].term

    def last_index(self) -> int:
        return self._entries[0].index + len(self._entries) - 1

    def first_index(self) -> int:
        return self._entries[0].index + 1

    def snapshot(self) -> RaftSnapshot:
        return self._snapshot

    # -- what the driver writes ---------------------------------------------------------------------------------------
    def set_hard_state(self, hard_state: HardState) -> None:
        self._hard_state = HardState(hard_state.term, hard_state.vote, hard_state.commit)

    def append(self, entries: list[Entry]) -> None:
        """Replace everything from entries[0].index on. Entries already compacted are skipped."""
        if not entries:
            return
        first = self.first_index()
        if entries[-1].index < first:
            return
        if entries[0].index < first:
            entries = entries[first - entries[0].index :]
        position = entries[0].index - self._entries[0].index
        if position > len(self._entries):
            raise InvariantError(f"log has a hole: last index {self.last_index()}, append at {entries[0].index}")
        del self._entries[position:]
        self._entries.extend(entries)

    def apply_snapshot(self, snapshot: RaftSnapshot) -> None:
        """Replace everything by the snapshot. Raises SnapshotOutOfDate."""
        if self._snapshot.metadata.index >= snapshot.metadata.index:
            raise SnapshotOutOfDate
        self._snapshot = snapshot
        self._entries = [Entry(snapshot.metadata.term, snapshot.metadata.index)]

    def create_snapshot(self, index: int, conf_state: ConfState | None, data: bytes) -> RaftSnapshot:
        """Remember state as of `index`, without touching the log. Raises SnapshotOutOfDate."""
        if index <= self._snapshot.metadata.index:
            raise SnapshotOutOfDate
        if index > self.last_index():
            raise InvariantError(f"snapshot at {index} is behind the last index {self.last_index()}")
        if conf_state is None:
            conf_state = self._snapshot.metadata.conf_state
        self._snapshot = RaftSnapshot(SnapshotMetadata(index, self.term(index), conf_state), data)
        return self._snapshot

    def compact(self, index: int) -> None:
        """Drop everything up to and including `index`. Raises Compacted if that was done before."""
        offset = self._entries[0].index
        if index <= offset:
            raise Compacted
        if index > self.last_index():
            raise InvariantError(f"compaction to {index} is behind the last index {self.last_index()}")
        kept = self._entries[index - offset :]
        kept[0] = Entry(kept[0].term, kept[0].index)
        self._entries = kept
