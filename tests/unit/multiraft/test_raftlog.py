"""The raft log over the real Wal: recovery, damage, retention, rewriting forward. RAFT-14, RAFT-16, RS-12, RS-19."""

from __future__ import annotations

from pathlib import Path

import pytest

from nokv._ext.raftcodec import OP_COMPACTED, OP_RESET
from nokv.engine.wal.log import Wal
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import Corruption, InvariantError, UsageError
from nokv.multiraft.raftlog import GroupLog, RaftLog
from nokv.multiraft.wire import CODEC
from nokv.raft.types import ConfState, Entry, EntryKind, HardState, SnapshotMetadata
from nokv.testing.files import CrashFiles

BIG = 1 << 30
CONF = ConfState(voters=(1, 2, 3))


def entries(first: int, last: int, term: int, size: int = 8) -> list[Entry]:
    return [Entry(term, i, EntryKind.NORMAL, bytes([i % 251]) * size) for i in range(first, last + 1)]


class Disk:
    """A Wal that can be closed, crashed and opened again."""

    def __init__(self, files: Files, path: str, segment_bytes: int = 64 << 10) -> None:
        self.files, self.path, self.segment_bytes = files, path, segment_bytes
        self.open()

    def open(self) -> None:
        self.wal = Wal(self.files, self.path, self.segment_bytes, retainers=("raft",))
        self.log = RaftLog.open(self.wal, rewrite_lag_segments=2)

    def reopen(self) -> RaftLog:
        self.wal.close()
        self.open()
        return self.log

    def crash(self) -> RaftLog:
        assert isinstance(self.files, CrashFiles)
        self.files = self.files.crash_clone()
        self.open()
        return self.log


@pytest.fixture(params=["real", "crash"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "real":
        return Disk(OsFiles(), str(tmp_path / "wal"))
    files = CrashFiles(seed=1)
    files.makedirs("d")
    return Disk(files, "d/wal")


def image(group: GroupLog) -> tuple[object, ...]:
    state, conf = group.initial_state()
    first, last = group.first_index(), group.last_index()
    return state, conf, first, group.term(first - 1), group.entries(first, last + 1, BIG) if last >= first else []


def check(log: RaftLog, *expected: tuple[int, tuple[object, ...]]) -> None:
    assert not log.damaged()
    assert [(i, image(log.group(i))) for i in log.group_ids()] == list(expected)


# -- recovery ---------------------------------------------------------------------------------------------------------
def test_many_groups_come_back(disk: Disk) -> None:
    disk.log.group(1).initialise(10, 5, CONF)
    disk.log.save([(1, HardState(6, 1, 10), entries(11, 14, 6), None), (2, HardState(1, 2, 0), [], None)], sync=True)
    disk.log.save([(1, HardState(6, 1, 13), [], None)], sync=True)
    expected = (
        (1, (HardState(6, 1, 13), CONF, 11, 5, entries(11, 14, 6))),
        (2, (HardState(1, 2, 0), ConfState(), 1, 0, [])),
    )
    check(disk.log, *expected)
    check(disk.reopen(), *expected)


def test_one_append_and_one_sync_for_all_groups(disk: Disk) -> None:
    before = disk.log.syncs
    disk.log.save([(g, HardState(1, 1, 0), entries(1, 3, 1), None) for g in range(1, 101)], sync=True)
    assert disk.log.syncs == before + 1
    assert disk.reopen().group_ids() == list(range(1, 101))


def test_what_was_not_synced_may_go_but_nothing_else(tmp_path: Path) -> None:
    disk = Disk(CrashFiles(seed=3), "wal")
    disk.log.save([(1, HardState(1, 1, 0), entries(1, 3, 1), None)], sync=True)
    disk.log.save([(1, None, entries(4, 6, 1), None)], sync=False)
    log = disk.crash()
    assert not log.damaged()
    assert log.group(1).last_index() in (3, 6)
    assert log.group(1).entries(1, 4, BIG) == entries(1, 3, 1)


def test_initialise_refuses_a_group_with_a_log(disk: Disk) -> None:
    disk.log.group(1).initialise(10, 5, CONF)
    with pytest.raises(UsageError):
        disk.log.group(1).initialise(10, 5, CONF)


def test_removed_group_stays_removed_and_may_come_back_empty(disk: Disk) -> None:
    disk.log.save([(1, HardState(4, 1, 2), entries(1, 3, 4), None)], sync=True)
    disk.log.group(1).remove()
    assert disk.reopen().group_ids() == []
    disk.log.group(1).initialise(10, 5, CONF)
    check(disk.reopen(), (1, (HardState(5, 0, 10), CONF, 11, 5, [])))


def test_append_with_a_hole_is_our_own_bug(disk: Disk) -> None:
    with pytest.raises(InvariantError):
        disk.log.save([(1, None, entries(2, 3, 1), None)], sync=False)


# -- damage -----------------------------------------------------------------------------------------------------------
def _records(*records: tuple[int, bytes] | list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    flat: list[tuple[int, bytes]] = []
    for record in records:
        flat.extend(record if isinstance(record, list) else [record])
    return flat


START = CODEC.encode_mark(OP_RESET, 1, SnapshotMetadata(10, 5, CONF))


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (_records(START, CODEC.encode_entries(1, None, entries(12, 13, 5))), "entries 11 to 11 are missing"),
        (_records(START, CODEC.encode_entries(1, None, entries(11, 11, 5) + entries(13, 13, 5))), "follows"),
        (_records(START, CODEC.encode_entries(1, None, entries(11, 11, 5) + entries(12, 12, 4))), "follows"),
        (_records(START, CODEC.encode_entries(1, None, entries(11, 12, 4))), "older term"),
        (_records(START, CODEC.encode_entries(1, HardState(5, 0, 12), entries(11, 11, 5))), "commit index 12"),
        (
            _records(
                START,
                CODEC.encode_entries(1, HardState(5, 0, 12), entries(11, 13, 5)),
                CODEC.encode_entries(1, None, entries(12, 12, 6)),
            ),
            "committed",
        ),
        (
            _records(
                START,
                CODEC.encode_entries(1, HardState(7, 1, 10), []),
                CODEC.encode_entries(1, HardState(6, 1, 10), []),
            ),
            "term goes back",
        ),
        (
            _records(
                START,
                CODEC.encode_entries(1, HardState(7, 1, 10), []),
                CODEC.encode_entries(1, HardState(7, 2, 10), []),
            ),
            "two votes",
        ),
        (_records(CODEC.encode_entries(1, None, entries(11, 13, 5))), "older segments are missing"),
        (
            _records(
                CODEC.encode_entries(1, None, entries(30, 33, 5)),
                CODEC.encode_mark(OP_COMPACTED, 1, SnapshotMetadata(20, 5, CONF)),
            ),
            "no mark leads up to entry 30",
        ),
    ],
)
def test_damaged_group_refuses_and_the_others_go_on(disk: Disk, records: list[tuple[int, bytes]], words: str) -> None:
    disk.log.save([(2, HardState(1, 1, 0), entries(1, 2, 1), None)], sync=True)
    disk.wal.append_many(records)
    disk.wal.sync()
    log = disk.reopen()
    assert words in str(log.damaged()[1])
    with pytest.raises(Corruption, match="raft group 1"):
        log.group(1)
    assert log.group(2).last_index() == 2
    log.remove(1)
    assert disk.reopen().damaged() == {}


def test_applied_index_beyond_the_log_refuses(disk: Disk) -> None:  # RS-19
    disk.log.group(1).initialise(10, 5, CONF)
    disk.log.save([(1, HardState(5, 0, 11), entries(11, 14, 5), None)], sync=True)
    group = disk.reopen().group(1)
    group.recover_applied(13, 5)
    assert group.initial_state()[0].commit == 13  # flushed data proves it was committed
    for index, term, words in ((15, 5, "before the applied index 15"), (9, 5, "starts after 10"), (12, 4, "term 5")):
        with pytest.raises(Corruption, match=words):
            group.recover_applied(index, term)


def test_wal_truncated_behind_flushed_data_refuses(tmp_path: Path) -> None:  # RS-19
    disk = Disk(OsFiles(), str(tmp_path / "wal"))
    disk.log.group(1).initialise(10, 5, CONF)
    keep = disk.wal.append(16, CODEC.encode_entries(1, None, entries(11, 12, 5))[0][1])
    disk.wal.close()
    # Not even a sync mark is behind the cut: to the WAL it looks like a torn tail, only the data knows better.
    path = next((tmp_path / "wal").glob("*.wal"))
    raw = path.read_bytes()
    path.write_bytes(raw[: keep.offset] + bytes(len(raw) - keep.offset))
    try:
        disk.open()
    except Corruption:
        return  # the WAL itself saw it
    with pytest.raises(Corruption, match="before the applied index 12"):
        disk.log.group(1).recover_applied(12, 5)


def test_crash_between_publishing_a_snapshot_and_its_mark(disk: Disk) -> None:
    disk.log.save([(1, HardState(4, 2, 3), entries(1, 3, 4), None)], sync=True)
    log = disk.reopen()
    log.group(1).recover_applied(50, 6, CONF, from_snapshot=True)
    expected = (1, (HardState(6, 0, 50), CONF, 51, 6, []))
    check(log, expected)
    check(disk.reopen(), expected)


# -- retention --------------------------------------------------------------------------------------------------------
def test_segments_go_after_compaction_and_quiet_groups_are_written_forward(disk: Disk) -> None:
    log = disk.log
    log.group(1).initialise(10, 5, CONF)  # the quiet one
    log.save([(1, HardState(6, 3, 11), entries(11, 13, 6), None)], sync=True)
    quiet = image(log.group(1))
    last = 0
    for _ in range(400):
        log.save([(2, HardState(1, 2, last), entries(last + 1, last + 4, 1, 2000), None)], sync=False)
        last += 4
        if last % 40 == 0:
            log.group(2).compact(last - 10)
    log.sync()
    assert disk.wal.active_segment > 20
    assert log.rewrites > 0
    assert len(disk.wal.segments()) <= 6
    busy = image(log.group(2))
    log = disk.reopen()
    check(log, (1, quiet), (2, busy))
    oldest = log.oldest_needed()
    assert oldest is not None and oldest >= disk.wal.segments()[0]


def test_removing_the_last_group_frees_everything(disk: Disk) -> None:
    for first in range(1, 400, 4):
        disk.log.save([(1, None, entries(first, first + 3, 1, 2000), None)], sync=False)
    disk.log.group(1).remove()
    disk.log.maintain()
    assert disk.log.oldest_needed() is None
    assert disk.wal.segments() == [disk.wal.active_segment]
