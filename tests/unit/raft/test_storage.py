"""What every LogStorage must do (RAFT-16); the memory version here."""

from __future__ import annotations

import pytest

from nokv.errors import InvariantError, UsageError
from nokv.raft import (
    Compacted,
    ConfState,
    Entry,
    HardState,
    LogUnavailable,
    MemoryStorage,
    RaftConfig,
    RaftSnapshot,
    RawNode,
    ReadMode,
    SnapshotMetadata,
    SnapshotOutOfDate,
)
from nokv.raft.log import RaftLog
from nokv.raft.storage import entry_size_bytes


@pytest.fixture
def storage() -> MemoryStorage:
    one = MemoryStorage()
    one.apply_snapshot(RaftSnapshot(SnapshotMetadata(10, 3, ConfState((1,)))))
    one.append([Entry(4, 11, data=b"a"), Entry(4, 12, data=b"b"), Entry(5, 13, data=b"c")])
    return one


def test_bounds(storage: MemoryStorage) -> None:
    assert (storage.first_index(), storage.last_index()) == (11, 13)
    assert [storage.term(index) for index in (10, 11, 13)] == [3, 4, 5]
    with pytest.raises(Compacted):
        storage.term(9)
    with pytest.raises(LogUnavailable):
        storage.term(14)
    with pytest.raises(Compacted):
        storage.entries(10, 12, 1000)
    with pytest.raises(LogUnavailable):
        storage.entries(11, 15, 1000)


def test_entries_are_cut_at_a_size_but_never_to_none(storage: MemoryStorage) -> None:
    size = entry_size_bytes(Entry(1, 1, data=b"a"))
    assert [entry.index for entry in storage.entries(11, 14, 0)] == [11]
    assert [entry.index for entry in storage.entries(11, 14, 2 * size)] == [11, 12]
    assert [entry.index for entry in storage.entries(11, 14, 3 * size - 1)] == [11, 12]


def test_append_replaces_the_tail(storage: MemoryStorage) -> None:
    storage.append([Entry(6, 12)])
    assert storage.last_index() == 12
    assert storage.term(12) == 6
    storage.append([Entry(3, 9), Entry(3, 10)])  # long gone
    assert storage.last_index() == 12
    with pytest.raises(InvariantError):
        storage.append([Entry(6, 14)])


def test_snapshot_and_compaction(storage: MemoryStorage) -> None:
    storage.create_snapshot(12, ConfState((1, 2)), b"state")
    storage.compact(12)
    assert (storage.first_index(), storage.last_index(), storage.term(12)) == (13, 13, 4)
    assert storage.initial_state() == (HardState(), ConfState((1, 2)))
    with pytest.raises(Compacted):
        storage.compact(12)
    with pytest.raises(SnapshotOutOfDate):
        storage.create_snapshot(11, None, b"")
    with pytest.raises(SnapshotOutOfDate):
        storage.apply_snapshot(RaftSnapshot(SnapshotMetadata(12, 4)))
    storage.apply_snapshot(RaftSnapshot(SnapshotMetadata(20, 7)))
    assert (storage.first_index(), storage.last_index(), storage.term(20)) == (21, 20, 7)


def test_log_joins_stable_and_unstable(storage: MemoryStorage) -> None:
    log = RaftLog(storage, None, 1 << 20)
    log.append([Entry(5, 14), Entry(6, 15)])
    assert [entry.index for entry in log.slice(11, 16, 1 << 20)] == [11, 12, 13, 14, 15]
    assert log.last_id() == (6, 15)
    log.unstable.accept_in_progress()
    log.append([Entry(7, 14)])  # replaces what is being written
    assert log.unstable.in_progress == 14
    log.unstable.stable_to(15, 6)  # the old write is done: it says nothing about the new entry
    log.unstable.stable_to(14, 5)
    assert log.unstable.offset == 14
    log.unstable.stable_to(14, 7)
    assert log.unstable.offset == 15


def test_back_up_by_terms(storage: MemoryStorage) -> None:
    log = RaftLog(storage, None, 1 << 20)
    assert log.find_conflict_by_term(13, 5) == (13, 5)
    assert log.find_conflict_by_term(13, 4) == (12, 4)
    assert log.find_conflict_by_term(13, 2) == (9, 0)  # before what is kept: it may match there


def test_a_log_shorter_than_its_commit_does_not_start(storage: MemoryStorage) -> None:
    storage.set_hard_state(HardState(5, 0, 14))
    with pytest.raises(InvariantError, match="lost entries"):
        RawNode(RaftConfig(id=1), storage, lambda n: 0)


@pytest.mark.parametrize(
    "options",
    [
        {"id": 0},
        {"id": (1 << 64) - 1},
        {"heartbeat_ticks": 0},
        {"election_ticks": 2},
        {"max_inflight_msgs": 0},
        {"max_inflight_bytes": 1},
        {"read_mode": ReadMode.LEASE, "check_quorum": False},
        {"read_mode": ReadMode.LEASE, "lease_drift_ticks": 10},
    ],
)
def test_bad_options(storage: MemoryStorage, options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        RawNode(RaftConfig(**{"id": 1, **options}), storage, lambda n: 0)  # type: ignore[arg-type]
