"""The durable log of every Raft group of this process, as typed records in the engine's write-ahead log.

Owns: what has been appended for which group, where it lies, and which WAL segments are still needed. Does not own:
segments, checksums and syncing (the engine's Wal), nor what entries mean. One thread. Layout: docs/formats/raft_log.md.

    save       all groups of one turn: one `append_many`, at most one `sync`; only then may answers leave the process
    recovery   replay in order; entries overwrite from their first index on (last write wins); a mark says where a log
               starts. A hole, an index or term that goes back, a commit index beyond the log: that group is *damaged*:
               `group` raises its Corruption, so it cannot vote, and every other group goes on.
    retention  the WAL keeps segments from `oldest_needed()` on. A group that lags more than `rewrite_lag_segments`
               behind is written forward (checkpoint mark, hard state, live entries): a quiet group pins no old segment.

With applied data in the engine (a store): persist the applied index in the same batch as the data, and after a restart
call `group.recover_applied(index, term, ...)` before building the RawNode; it refuses to start from a log that does not
reach that far (RS-19). Compact only up to an applied index that a crash would find (`db.flushed_get`). An installed
snapshot: publish the data durably first, remember in the same step that the applied index came from a snapshot, then
`save` (the host does); after a crash between the two, `recover_applied(..., from_snapshot=True)` finishes the job.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from nokv._ext.raftcodec import (
    OP_CHECKPOINT,
    OP_COMPACTED,
    OP_ENTRIES,
    OP_REMOVED,
    OP_RESET,
    RECORD_ENTRIES,
    RECORD_HARD_STATE,
    RECORD_MARK,
    RECORD_REMOVED,
)
from nokv.errors import Corruption, InvariantError, UsageError
from nokv.multiraft.wire import CODEC
from nokv.raft.errors import Compacted, LogUnavailable
from nokv.raft.storage import limit_size
from nokv.raft.types import ConfState, Entry, HardState, RaftSnapshot, SnapshotMetadata

__all__ = ["GroupLog", "LogPositionLike", "RaftLog", "SaveItem", "WalPort"]

RECORD_TYPES = {RECORD_ENTRIES, RECORD_HARD_STATE, RECORD_MARK, RECORD_REMOVED}
RETAINER = "raft"
NOWHERE = -1

SaveItem = tuple[int, HardState | None, list[Entry], SnapshotMetadata | None]
"""(group_id, changed hard state, new entries, metadata of an installed snapshot): what one Ready wants durable."""


class LogPositionLike(Protocol):
    @property
    def segment(self) -> int: ...
    @property
    def offset(self) -> int: ...


class WalPort(Protocol):
    """What the raft log asks of the engine's Wal. `append` survives the process's death; `sync` power loss."""

    def append(self, record_type: int, payload: bytes, /) -> LogPositionLike: ...
    def append_many(self, records: Sequence[tuple[int, bytes]], /) -> Sequence[LogPositionLike]: ...
    def sync(self) -> None: ...
    def replay(self, types: set[int], /) -> Iterator[tuple[LogPositionLike, int, bytes]]: ...
    def retain(self, name: str, oldest_segment_needed: int | None, /) -> None: ...
    @property
    def active_segment(self) -> int: ...


class GroupLog:
    """The log of one group: a `raft.LogStorage`, all live entries in memory. Made by `RaftLog.group`."""

    __slots__ = (
        "_conf_state",
        "_connected",
        "_entries",
        "_hard_state",
        "_log",
        "_mark_segment",
        "_newest_mark",
        "_offset",
        "_places",
        "_state_segment",
        "_term",
        "_whole",
        "damaged",
        "group_id",
        "snapshot_source",
        "stored",
    )

    def __init__(self, log: RaftLog, group_id: int) -> None:
        self._log = log
        self.group_id = group_id
        self.snapshot_source: Callable[[], RaftSnapshot] | None = None
        """Makes the snapshot that a lagging follower needs; may raise SnapshotTemporarilyUnavailable. Without it the
        snapshot is the log's start, with no data."""
        self.damaged: Corruption | None = None
        self.stored = False  # something about this group lies in the WAL
        self._hard_state = HardState()
        self._conf_state = ConfState()
        self._offset = 0  # index and term of what precedes the first live entry
        self._term = 0
        # Only recovery makes these False. When a group's oldest records lie in freed segments, what is left may begin
        # anywhere and have holes that a later mark makes irrelevant: `_whole` says that this cannot be (any more),
        # `_connected` that the live entries begin right behind a mark.
        self._whole = True
        self._connected = True
        self._newest_mark: tuple[int, int] | None = None
        self._entries: list[Entry] = []
        self._places: list[tuple[int, int]] = []  # (first index, segment) of each run of entries, rising indexes
        self._mark_segment = 0
        self._state_segment = NOWHERE

    # -- raft.LogStorage ----------------------------------------------------------------------------------------------
    def initial_state(self) -> tuple[HardState, ConfState]:
        return dataclasses.replace(self._hard_state), self._conf_state

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        if lo <= self._offset:
            raise Compacted
        if hi > self._offset + len(self._entries) + 1:
            raise LogUnavailable
        start = self._offset + 1
        return limit_size(self._entries[lo - start : hi - start], max_size)

    def term(self, index: int) -> int:
        position = index - self._offset
        if position < 0:
            raise Compacted
        if position == 0:
            return self._term
        if position > len(self._entries):
            raise LogUnavailable
        return self._entries[position - 1].term

    def last_index(self) -> int:
        return self._offset + len(self._entries)

    def first_index(self) -> int:
        return self._offset + 1

    def snapshot(self) -> RaftSnapshot:
        if self.snapshot_source is not None:
            return self.snapshot_source()
        return RaftSnapshot(SnapshotMetadata(self._offset, self._term, self._conf_state))

    # -- what the owner of the group does -----------------------------------------------------------------------------
    @property
    def hard_state(self) -> HardState:
        return self._hard_state

    def initialise(self, index: int, term: int, conf_state: ConfState, *, sync: bool = True) -> None:
        """Seed an empty group as if a snapshot at (index, term) had been installed. Durable on return if `sync`.

        UsageError if anything was stored for the group before.
        """
        if self.stored:
            raise UsageError(f"raft group {self.group_id} has a log already: it cannot be initialised again")
        metadata = SnapshotMetadata(index, term, conf_state)
        self._log.save([(self.group_id, HardState(term, 0, index), [], metadata)], sync=sync)

    def set_conf_state(self, conf_state: ConfState) -> None:
        """Membership as of the applied index, which the owner persists; before the RawNode is built. In memory."""
        self._conf_state = conf_state

    def recover_applied(
        self, index: int, term: int, conf_state: ConfState | None = None, *, from_snapshot: bool = False
    ) -> None:
        """Line the log up with what the owner's data already contains, after a restart (RS-19).

        The commit index is raised to `index` (it is synced less often than data is flushed). `from_snapshot` says that
        (index, term) is where an installed snapshot ended: if the process died between publishing that data and
        `save`, the log is behind and starts again after it. Otherwise a log that ends before `index`, starts after it,
        or has another term there is Corruption, and the group must not start.
        """
        if from_snapshot and (index > self.last_index() or index < self._offset or self.term(index) != term):
            if index < self._offset:
                raise self._corrupt(f"the log starts after {self._offset}, the data ends at {index}")
            metadata = SnapshotMetadata(index, term, conf_state if conf_state is not None else self._conf_state)
            old = self._hard_state
            hard_state = HardState(max(old.term, term), old.vote if old.term >= term else 0, max(old.commit, index))
            self._log.save([(self.group_id, hard_state, [], metadata)], sync=True)
        if index > self.last_index():
            raise self._corrupt(f"the log ends at {self.last_index()}, before the applied index {index}")
        if index < self._offset:
            raise self._corrupt(f"the log starts after {self._offset}, after the applied index {index}")
        if self.term(index) != term:
            raise self._corrupt(f"entry {index} has term {self.term(index)}, it was applied with term {term}")
        if conf_state is not None:
            self._conf_state = conf_state
        if self._hard_state.commit < index:
            self._hard_state.commit = index

    def compact(self, index: int, conf_state: ConfState | None = None) -> bool:
        """Forget entries up to and including `index`. False if that was done before. Not synced: losing it is harmless.

        `conf_state` is the membership as of `index` or of any later applied index.
        """
        if index <= self._offset:
            return False
        if index > self.last_index():
            raise InvariantError(f"raft group {self.group_id}: compaction to {index}, last index {self.last_index()}")
        metadata = SnapshotMetadata(index, self.term(index), conf_state or self._conf_state)
        self._log.write_mark(self, OP_COMPACTED, metadata)
        return True

    def remove(self, *, sync: bool = True) -> None:
        """Forget the group: a tombstone record makes it stay forgotten (RS-13)."""
        self._log.remove(self.group_id, sync=sync)

    # -- what RaftLog does --------------------------------------------------------------------------------------------
    def oldest_segment(self) -> int:
        """First segment that still holds something needed to rebuild this group."""
        oldest = self._mark_segment
        if self._state_segment != NOWHERE and self._state_segment < oldest:
            oldest = self._state_segment
        for _, segment in self._places:
            if segment < oldest:
                oldest = segment
        return oldest

    def replay(self, op: int, metadata: SnapshotMetadata | None, state: HardState | None, entries: list[Entry]) -> None:
        """One record during recovery. Sets `damaged` instead of raising, so that the other groups go on."""
        if op == OP_ENTRIES:
            self._replay_entries(entries)
        elif op == OP_COMPACTED and not self._whole and metadata is not None:
            self._replay_partial_mark(metadata)
        elif metadata is not None:
            self.set_mark(op, metadata)
        if state is not None:
            if state.term < self._hard_state.term:
                self.damage(f"the term goes back from {self._hard_state.term} to {state.term}")
            elif state.term == self._hard_state.term and self._hard_state.vote not in (0, state.vote):
                self.damage(f"two votes in term {state.term}")
            elif state.commit < self._hard_state.commit:
                self.damage(f"the commit index goes back from {self._hard_state.commit} to {state.commit}")
            self._hard_state = state

    def _replay_entries(self, entries: list[Entry]) -> None:
        for previous, entry in itertools.pairwise(entries):
            if entry.index != previous.index + 1 or entry.term < previous.term:
                self.damage(f"entry {entry.index} of term {entry.term} follows {previous.index} of {previous.term}")
                return
        if not entries:
            return
        first = entries[0].index
        hole = first > self.last_index() + 1
        if not self._whole and (hole or (not self._connected and (not self._entries or first <= self._offset))):
            self._entries.clear()
            self._places.clear()
            self._connected = self._newest_mark is not None and first <= self._newest_mark[0] + 1
            if self._connected and self._newest_mark is not None:
                self._offset, self._term = self._newest_mark
            else:
                self._offset, self._term = first - 1, 0
        elif hole:
            self.damage(f"entries {self.last_index() + 1} to {first - 1} are missing")
            return
        self.append(entries)

    def _replay_partial_mark(self, metadata: SnapshotMetadata) -> None:
        """A compaction, while the records before lie in segments that are freed in part."""
        index = metadata.index
        self._conf_state = metadata.conf_state
        self._newest_mark = (index, metadata.term)
        if self._entries and index < self._offset:
            return  # a later mark must reach the entries: what is between was live then, and is not any more
        if self._entries and index == self._offset and not self._connected:
            self._term = metadata.term
        elif self._offset < index <= self.last_index() and self.term(index) != metadata.term:
            self.damage(f"entry {index} has another term than the mark behind it")
        self._connected = True
        self.set_mark(OP_COMPACTED, metadata)

    def check_recovered(self) -> None:
        """After the last record: does the group stand on its own feet?"""
        if not self._connected:
            self.damage(f"no mark leads up to entry {self._offset + 1}: older segments are missing")
        elif self._hard_state.commit > self.last_index():
            self.damage(f"the log ends at {self.last_index()}, before the commit index {self._hard_state.commit}")
        elif self._entries and self._entries[0].term < self._term:
            self.damage(f"entry {self._offset + 1} has an older term than what precedes it")

    def set_mark(self, op: int, metadata: SnapshotMetadata) -> None:
        """The log starts after `metadata.index` from now on."""
        index = metadata.index
        keeps = op != OP_RESET and self._connected and self._offset <= index <= self.last_index()
        if keeps and self.term(index) == metadata.term:
            del self._entries[: index - self._offset]
            self._offset = index
            self._cut_places_before(index + 1)
        else:
            self._entries.clear()
            self._places.clear()
        self._connected = True
        if op != OP_COMPACTED:
            self._whole = True
        self._offset, self._term = index, metadata.term
        self._conf_state = metadata.conf_state
        if op == OP_RESET and self._hard_state.commit < index:
            self._hard_state.commit = index

    def append(self, entries: list[Entry]) -> None:
        """Replace from entries[0].index on, unless what is there is the same. The caller has checked for a hole."""
        skip = self._offset + 1 - entries[0].index
        if skip > 0:
            entries = entries[skip:]
            if not entries:
                return
        position = entries[0].index - self._offset - 1
        mine = self._entries
        if position < len(mine):
            same = 0
            limit = min(len(entries), len(mine) - position)
            while same < limit and mine[position + same].term == entries[same].term:
                same += 1
            if same == len(entries):
                return
            entries = entries[same:]
            position += same
            if position < len(mine):
                if entries[0].index <= self._hard_state.commit:
                    raise self._corrupt(f"entry {entries[0].index} is committed and cannot change")
                del mine[position:]
        mine.extend(entries)

    def place(self, first: int, last: int, segment: int) -> None:
        """Entries [first, last] now lie in `segment`, and nothing behind `last_index` lies anywhere."""
        places = self._places
        end = self.last_index()
        first = max(first, self._offset + 1)
        last = min(last, end)
        if first > last:
            return
        if places and places[-1][1] == segment and places[-1][0] <= first and last == end:
            return  # the common case: the same segment goes on
        kept = [(start, where) for start, where in places if start < first]
        if last < end:
            # A rewrite of older entries: what lies behind `last` stays where it was.
            after = [(start, where) for start, where in places if start <= last + 1]
            kept.append((first, segment))
            if after:
                kept.append((last + 1, after[-1][1]))
            kept.extend((start, where) for start, where in places if start > last + 1)
        else:
            kept.append((first, segment))
        self._places = kept

    def _cut_places_before(self, first: int) -> None:
        places = self._places
        while len(places) > 1 and places[1][0] <= first:
            del places[0]
        if first > self.last_index():
            places.clear()
        elif places and places[0][0] < first:
            places[0] = (first, places[0][1])

    def mark_at(self, segment: int) -> None:
        self._mark_segment = segment

    def state_at(self, segment: int) -> None:
        self._state_segment = segment

    def set_hard_state(self, hard_state: HardState) -> None:
        self._hard_state = HardState(hard_state.term, hard_state.vote, hard_state.commit)

    def begin_partial(self) -> None:
        """The group's first record that is left is not where its story begins."""
        self._whole = self._connected = False

    def damage(self, message: str) -> None:
        if self.damaged is None:
            self.damaged = self._corrupt(message)

    def live(self) -> tuple[SnapshotMetadata, HardState, list[Entry]]:
        """Everything needed to write this group down again."""
        return SnapshotMetadata(self._offset, self._term, self._conf_state), self._hard_state, self._entries

    def _corrupt(self, message: str) -> Corruption:
        return Corruption(
            f"raft group {self.group_id}: {message}",
            hint="this replica cannot vote: remove it from its group and add a new one",
        )


class RaftLog:
    """All groups over one Wal. Build it with `RaftLog.open`. One thread: that of the host."""

    def __init__(self, wal: WalPort, *, rewrite_lag_segments: int = 4) -> None:
        if rewrite_lag_segments < 1:
            raise UsageError("rewrite_lag_segments must be at least 1")
        self._wal = wal
        self._groups: dict[int, GroupLog] = {}
        self._rewrite_lag_segments = rewrite_lag_segments
        self._maintained_segment = -1
        self._retained: int | None = 0
        self._durable = False  # whether everything appended, also by the process before, survives power loss
        self.saves = 0
        self.syncs = 0
        self.records = 0
        self.rewrites = 0

    @classmethod
    def open(cls, wal: WalPort, *, rewrite_lag_segments: int = 4) -> RaftLog:
        """Replay every raft record. Corruption of the WAL itself raises; of one group, marks that group damaged."""
        log = cls(wal, rewrite_lag_segments=rewrite_lag_segments)
        for position, record_type, payload in wal.replay(RECORD_TYPES):
            log._replay(position.segment, record_type, payload)
        for group in log._groups.values():
            group.check_recovered()
        log.maintain()
        return log

    # -- groups -------------------------------------------------------------------------------------------------------
    def group(self, group_id: int) -> GroupLog:
        """The log of the group, made empty if there is none. Raises its Corruption if it is damaged."""
        found = self._groups.get(group_id)
        if found is None:
            found = self._groups[group_id] = GroupLog(self, group_id)
        if found.damaged is not None:
            raise found.damaged
        return found

    def has_group(self, group_id: int) -> bool:
        """Whether anything is stored for the group (damaged or not)."""
        found = self._groups.get(group_id)
        return found is not None and (found.stored or found.damaged is not None)

    def group_ids(self) -> list[int]:
        return sorted(group_id for group_id in self._groups if self.has_group(group_id))

    def damaged(self) -> dict[int, Corruption]:
        return {i: g.damaged for i, g in sorted(self._groups.items()) if g.damaged is not None}

    # -- writing ------------------------------------------------------------------------------------------------------
    def save(self, items: Iterable[SaveItem], *, sync: bool) -> None:
        """Append what all these groups want durable; sync once if asked. OSError or ReadOnly: stop the process."""
        records: list[tuple[int, bytes]] = []
        owners: list[tuple[GroupLog, int]] = []  # the group and the type of each record
        changes: list[tuple[GroupLog, HardState | None, list[Entry]]] = []
        for group_id, hard_state, entries, metadata in items:
            group = self.group(group_id)
            if metadata is None and not group.stored:
                metadata = SnapshotMetadata(0, 0, group.initial_state()[1])
            if metadata is not None:
                records.append(CODEC.encode_mark(OP_RESET, group_id, metadata))
                owners.append((group, RECORD_MARK))
                group.set_mark(OP_RESET, metadata)
                group.stored = True
            if entries and entries[0].index > group.last_index() + 1:
                raise InvariantError(
                    f"raft group {group_id}: append at {entries[0].index}, the log ends at {group.last_index()}"
                )
            for record in CODEC.encode_entries(group_id, hard_state, entries):
                records.append(record)
                owners.append((group, record[0]))
            changes.append((group, hard_state, entries))
        self.saves += 1
        if records:
            self._durable = False
            positions = self._wal.append_many(records)
            self.records += len(records)
            self._remember(changes, owners, [position.segment for position in positions])
        if sync:
            self.sync()
        if self._wal.active_segment != self._maintained_segment:
            self.maintain()

    def sync(self) -> None:
        """Make everything saved so far survive power loss."""
        self._wal.sync()
        self._durable = True
        self.syncs += 1

    def write_mark(self, group: GroupLog, op: int, metadata: SnapshotMetadata) -> None:
        self._durable = False
        position = self._wal.append(*CODEC.encode_mark(op, group.group_id, metadata))
        self.records += 1
        group.set_mark(op, metadata)
        group.mark_at(position.segment)
        group.stored = True

    def remove(self, group_id: int, *, sync: bool = True) -> None:
        """Forget the group, damaged or not. Its tombstone makes it stay forgotten."""
        group = self._groups.pop(group_id, None)
        if group is not None and (group.stored or group.damaged is not None):
            self._durable = False
            self._wal.append(*CODEC.encode_removed(group_id))
            self.records += 1
            if sync:
                self.sync()

    @staticmethod
    def _remember(
        changes: list[tuple[GroupLog, HardState | None, list[Entry]]],
        owners: list[tuple[GroupLog, int]],
        segments: list[int],
    ) -> None:
        """Move memory to where the WAL now is. Entries that span a change of segment count for the older one."""
        first_segment: dict[int, int] = {}
        last_segment: dict[int, int] = {}
        for (group, record_type), segment in zip(owners, segments, strict=True):
            if record_type == RECORD_MARK:
                group.mark_at(segment)
            else:
                first_segment.setdefault(group.group_id, segment)
                last_segment[group.group_id] = segment
        for group, hard_state, entries in changes:
            if entries:
                group.append(entries)
                group.place(entries[0].index, entries[-1].index, first_segment[group.group_id])
            if hard_state is not None:
                group.set_hard_state(hard_state)
                group.state_at(last_segment[group.group_id])

    # -- retention ----------------------------------------------------------------------------------------------------
    def oldest_needed(self) -> int | None:
        """First WAL segment that some group still needs; None if nothing is stored."""
        return min((g.oldest_segment() for g in self._groups.values() if g.stored), default=None)

    def maintain(self) -> None:
        """Write lagging groups forward; tell the WAL what is still needed. `save` calls it when a segment is full."""
        active = self._wal.active_segment
        limit = active - self._rewrite_lag_segments
        rewritten = [
            group
            for group in self._groups.values()
            if group.stored and not group.damaged and group.oldest_segment() < limit
        ]
        for group in rewritten:
            self._rewrite(group)
        self._maintained_segment = self._wal.active_segment
        oldest = self.oldest_needed()
        if any(group.damaged for group in self._groups.values()):
            oldest = 0  # keep the evidence until `remove`
        if not self._durable and oldest != self._retained:
            self.sync()  # a mark or copy that power loss takes back must not have freed anything
        self._retained = oldest
        self._wal.retain(RETAINER, oldest)

    def _rewrite(self, group: GroupLog) -> None:
        metadata, hard_state, entries = group.live()
        records = [CODEC.encode_mark(OP_CHECKPOINT, group.group_id, metadata, hard_state)]
        records.extend(CODEC.encode_entries(group.group_id, None, entries))
        self._durable = False
        positions = self._wal.append_many(records)
        self.records += len(records)
        self.rewrites += 1
        group.mark_at(positions[0].segment)
        group.state_at(positions[0].segment)
        if entries:
            group.place(entries[0].index, entries[-1].index, positions[min(1, len(positions) - 1)].segment)

    # -- recovery -----------------------------------------------------------------------------------------------------
    def _replay(self, segment: int, record_type: int, payload: bytes) -> None:
        group_id, op, metadata, hard_state, entries = CODEC.decode_record(record_type, payload)
        if op == OP_REMOVED:
            self._groups.pop(group_id, None)
            return
        group = self._groups.get(group_id)
        if group is None:
            group = self._groups[group_id] = GroupLog(self, group_id)
            group.stored = True
            if op != OP_RESET:
                group.begin_partial()
        if group.damaged is not None:
            return  # until a tombstone
        try:
            group.replay(op, metadata, hard_state, entries)
        except Corruption as error:
            group.damaged = error
            return
        if metadata is not None:
            group.mark_at(segment)
        if hard_state is not None:
            group.state_at(segment)
        if entries:
            group.place(entries[0].index, entries[-1].index, segment)
