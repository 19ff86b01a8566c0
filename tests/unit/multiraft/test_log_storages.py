"""What every log storage must do: memory, a plain file, the shared write-ahead log. RAFT-16, RAFT-14.

Each durable one runs on real files and on a disk that forgets, and is opened again (or loses power) after every write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nokv.engine.wal.log import Wal
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import InvariantError, UsageError
from nokv.multiraft.filelog import FileLog
from nokv.multiraft.raftlog import RaftLog
from nokv.raft.config import RaftConfig
from nokv.raft.errors import Compacted, LogUnavailable
from nokv.raft.rawnode import RawNode
from nokv.raft.storage import LogStorage, MemoryStorage, entry_size_bytes
from nokv.raft.types import ConfState, Entry, EntryKind, HardState, NodeRole, RaftSnapshot, SnapshotMetadata
from nokv.testing.files import CrashFiles

BIG = 1 << 30
GROUP = 7
CONF = ConfState(voters=(1, 2, 3), learners=(4,))


def entries(first: int, last: int, term: int, size: int = 8) -> list[Entry]:
    return [Entry(term, i, EntryKind.NORMAL, bytes([i % 251]) * size) for i in range(first, last + 1)]


class Memory:
    def __init__(self) -> None:
        self.log = MemoryStorage()

    @property
    def read(self) -> LogStorage:
        return self.log

    def save(self, state: HardState | None, items: list[Entry], snapshot: SnapshotMetadata | None = None) -> None:
        if snapshot is not None:
            self.log.apply_snapshot(RaftSnapshot(snapshot))
        self.log.append(items)
        if state is not None:
            self.log.set_hard_state(state)

    def compact(self, index: int, conf: ConfState = CONF) -> None:
        self.log.create_snapshot(index, conf, b"")
        self.log.compact(index)


class OnFile:
    def __init__(self, files: Files, home: str) -> None:
        self.files, self.home = files, home
        self.log = FileLog.open(files, home, GROUP)

    @property
    def read(self) -> LogStorage:
        return self.log

    def _again(self) -> None:
        if isinstance(self.files, CrashFiles):
            self.files.kill()
            self.files = self.files.crash_clone("drop")
        else:
            self.log.close()
        self.log = FileLog.open(self.files, self.home, GROUP)

    def save(self, state: HardState | None, items: list[Entry], snapshot: SnapshotMetadata | None = None) -> None:
        self.log.save(state, items, None if snapshot is None else RaftSnapshot(snapshot), sync=True)
        self._again()

    def compact(self, index: int, conf: ConfState = CONF) -> None:
        self.log.compact(RaftSnapshot(SnapshotMetadata(index, self.log.term(index), conf)), index)
        self._again()


class OnWal:
    def __init__(self, files: Files, home: str) -> None:
        self.files, self.home = files, home
        self._open()

    def _open(self) -> None:
        self.wal = Wal(self.files, self.home, 64 << 10, retainers=("raft",))
        self.log = RaftLog.open(self.wal, rewrite_lag_segments=2)

    @property
    def read(self) -> LogStorage:
        return self.log.group(GROUP)

    def _again(self) -> None:
        if isinstance(self.files, CrashFiles):
            self.files.kill()
            self.files = self.files.crash_clone("drop")
        else:
            self.wal.close()
        self._open()

    def save(self, state: HardState | None, items: list[Entry], snapshot: SnapshotMetadata | None = None) -> None:
        self.log.save([(GROUP, state, items, snapshot)], sync=True)
        self._again()

    def compact(self, index: int, conf: ConfState = CONF) -> None:
        self.log.group(GROUP).compact(index, conf)
        self.log.sync()  # not needed for safety: so that the mark is there after the crash
        self._again()


Storage = Memory | OnFile | OnWal
STORAGES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda home: Memory(),
    "file": lambda home: OnFile(OsFiles(), str(home / "log")),
    "file_losing_power": lambda home: OnFile(CrashFiles(seed=2), "log"),
    "wal": lambda home: OnWal(OsFiles(), str(home / "wal")),
    "wal_losing_power": lambda home: OnWal(CrashFiles(seed=2), "wal"),
}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return STORAGES[request.param](tmp_path)


def test_empty(storage: Storage) -> None:
    assert (storage.read.first_index(), storage.read.last_index(), storage.read.term(0)) == (1, 0, 0)
    assert storage.read.initial_state() == (HardState(), ConfState())
    assert storage.read.snapshot().metadata.index == 0


def test_append_read_and_limits(storage: Storage) -> None:
    storage.save(HardState(1, 2, 3), entries(1, 5, 1))
    read = storage.read
    size = entry_size_bytes(entries(1, 1, 1)[0])
    assert read.entries(1, 6, BIG) == entries(1, 5, 1)
    assert read.entries(2, 4, BIG) == entries(2, 3, 1)
    assert read.entries(1, 6, 0) == entries(1, 1, 1)  # at least one
    assert read.entries(1, 6, 2 * size) == entries(1, 2, 1)
    assert read.entries(1, 6, 3 * size - 1) == entries(1, 2, 1)
    assert [read.term(index) for index in range(6)] == [0, 1, 1, 1, 1, 1]
    assert read.initial_state()[0] == HardState(1, 2, 3)
    with pytest.raises(LogUnavailable):
        read.entries(1, 7, BIG)
    with pytest.raises(LogUnavailable):
        read.term(6)


def test_every_kind_and_size_of_entry(storage: Storage) -> None:
    wanted = [
        Entry(1, 1, EntryKind.NORMAL, b""),
        Entry(1, 2, EntryKind.CONF_CHANGE, b"\0" * 300),
        Entry(2, 3, EntryKind.CONF_CHANGE_V2, bytes(range(256))),
        Entry(1 << 40, 4, EntryKind.NORMAL, b"x" * 70_000),
    ]
    if isinstance(storage, OnWal):
        wanted[3] = Entry(1 << 40, 4, EntryKind.NORMAL, b"x" * 30_000)  # the segments here are small
    storage.save(HardState((1 << 63) + 1, 1 << 62, 0), wanted)
    assert storage.read.entries(1, 5, BIG) == wanted
    assert storage.read.initial_state()[0] == HardState((1 << 63) + 1, 1 << 62, 0)


def test_hard_state_alone(storage: Storage) -> None:
    storage.save(HardState(3, 2, 0), [])
    storage.save(HardState(4, 0, 0), [])
    storage.save(HardState(4, 1, 0), [])
    assert storage.read.initial_state() == (HardState(4, 1, 0), ConfState())
    assert storage.read.last_index() == 0


def test_conflict_replaces_the_tail(storage: Storage) -> None:
    storage.save(None, entries(1, 5, 1))
    storage.save(None, entries(4, 4, 2))
    assert storage.read.last_index() == 4
    assert storage.read.entries(1, 5, BIG) == entries(1, 3, 1) + entries(4, 4, 2)


def test_a_hole_is_refused(storage: Storage) -> None:
    storage.save(None, entries(1, 5, 1))
    with pytest.raises(InvariantError):
        storage.save(None, entries(7, 8, 1))


def test_compact(storage: Storage) -> None:
    storage.save(HardState(3, 1, 9), entries(1, 9, 3))
    storage.compact(6)
    read = storage.read
    assert (read.first_index(), read.last_index(), read.term(6)) == (7, 9, 3)
    assert read.initial_state() == (HardState(3, 1, 9), CONF)
    for call in (lambda: read.entries(6, 8, BIG), lambda: read.term(5)):
        with pytest.raises(Compacted):
            call()
    storage.save(None, entries(10, 12, 4))
    assert storage.read.entries(7, 13, BIG) == entries(7, 9, 3) + entries(10, 12, 4)
    storage.compact(12)
    assert (storage.read.first_index(), storage.read.last_index(), storage.read.term(12)) == (13, 12, 4)


def test_entries_that_were_compacted_meanwhile_are_skipped(storage: Storage) -> None:
    storage.save(HardState(3, 1, 9), entries(1, 9, 3))
    storage.compact(6)
    storage.save(None, entries(5, 10, 3))
    assert storage.read.entries(7, 11, BIG) == entries(7, 10, 3)
    storage.save(None, entries(2, 4, 3))
    assert storage.read.last_index() == 10


def test_snapshot_replaces_everything(storage: Storage) -> None:
    storage.save(HardState(1, 3, 2), entries(1, 5, 1))
    storage.save(HardState(3, 0, 20), [], SnapshotMetadata(20, 3, CONF))
    read = storage.read
    assert (read.first_index(), read.last_index(), read.term(20)) == (21, 20, 3)
    assert read.initial_state() == (HardState(3, 0, 20), CONF)
    assert read.snapshot().metadata == SnapshotMetadata(20, 3, CONF)
    with pytest.raises(Compacted):
        read.entries(20, 21, BIG)
    storage.save(None, entries(21, 22, 3))
    assert storage.read.last_index() == 22


def test_a_node_lives_on_it(storage: Storage) -> None:
    """A group of one, driven by the contract of Ready, started again from what is stored after each turn."""
    storage.save(HardState(1, 0, 5), [], SnapshotMetadata(5, 1, ConfState((1,))))
    seen: list[bytes] = []
    applied = 5
    for turn in range(4):
        raw = RawNode(RaftConfig(id=1, applied=applied), storage.read, lambda n: 0)
        raw.campaign()
        proposed = False
        while raw.has_ready():
            if raw.core.role is NodeRole.LEADER and not proposed:
                raw.propose(b"turn %d" % turn)
                proposed = True
            ready = raw.ready()
            storage.save(ready.hard_state, ready.entries)
            raw.core.log.storage = storage.read  # opened again
            for entry in ready.committed_entries:
                applied = entry.index
                if entry.data:
                    seen.append(entry.data)
            raw.advance(ready)
        if turn == 1:
            storage.compact(applied, ConfState((1,)))
    assert seen == [b"turn 0", b"turn 1", b"turn 2", b"turn 3"]
    assert storage.read.initial_state()[0].term == 5


def test_a_group_is_seeded_once(tmp_path: Path) -> None:
    start = SnapshotMetadata(10, 5, CONF)
    log = OnFile(OsFiles(), str(tmp_path / "log")).log
    log.initialise(RaftSnapshot(start, b"state"))
    with pytest.raises(UsageError, match="already"):
        log.initialise(RaftSnapshot(start, b"state"))
    group = OnWal(OsFiles(), str(tmp_path / "wal")).log.group(GROUP)
    group.initialise(10, 5, CONF)
    with pytest.raises(UsageError, match="already"):
        group.initialise(10, 5, CONF)
    assert log.initial_state() == group.initial_state() == (HardState(5, 0, 10), CONF)
