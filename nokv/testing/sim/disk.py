"""The storage of one simulated node: the real log formats and their real recovery, on a disk that forgets and lies.

Two kinds, the seed chooses:

    FileDisk   the plain-file log, which holds the snapshot as well
    WalDisk    the raft log in the engine's write-ahead log, and a state file that stands for the engine's data: its
               applied index and where it came from are compared with the log at each start (`recover_applied`)

Faults of the disk: power loss in every mode of CrashFiles, a stop at any operation (`crash_after`), an error of a write
or a sync, syncs that lie, bytes that change. A node whose storage is Corruption does not start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nokv._ext.crc32c import crc32c
from nokv._ext.raftcodec import OP_RESET, RECORD_MARK
from nokv.engine.wal.log import Wal
from nokv.errors import Corruption
from nokv.multiraft.filelog import FILE_NAME, FileLog, decode_file
from nokv.multiraft.raftlog import GroupLog, RaftLog
from nokv.multiraft.wire import CODEC
from nokv.raft import ConfState, Entry, HardState, RaftSnapshot, SnapshotMetadata
from nokv.raft.storage import LogStorage
from nokv.testing.files import CrashFiles, CrashMode, FaultFiles

__all__ = ["CRASHES", "FileDisk", "NodeDisk", "Stored", "Violation", "WalDisk"]

GROUP = 1
HOME = "raft"
STATE = f"{HOME}/state"
WAL = f"{HOME}/wal"
SEGMENT_BYTES = 2048
CRASHES: tuple[CrashMode, ...] = ("process", "drop", "drop", "keep", "names", "torn", "random", "random")


class Violation(AssertionError):
    """An invariant does not hold. The message says which, and what was seen."""


@dataclass(slots=True)
class Stored:
    """What a start would find."""

    hard_state: HardState
    conf_state: ConfState
    snapshot: SnapshotMetadata
    first: int
    terms: list[int]

    def lacks(self, promised: Stored) -> bool:
        """Whether something is gone that `promised` had."""
        mine, theirs = self.hard_state, promised.hard_state
        if mine.term < theirs.term or (mine.term == theirs.term and mine.vote != theirs.vote and theirs.vote):
            return True
        if self.first + len(self.terms) < promised.first + len(promised.terms):
            return True
        start = max(self.first, promised.first)
        return self.terms[start - self.first :] != promised.terms[start - promised.first :]


class NodeDisk:
    """`open` runs the recovery; then `log` is what the process reads and the verbs below are what it writes."""

    log: LogStorage

    def __init__(self, seed: int) -> None:
        self.disk = CrashFiles(seed=seed)
        self.disk.makedirs(HOME)
        self.files = FaultFiles(self.disk)
        self.lies = False
        """Whether some sync of this life lied."""
        self.log_first = False
        """A planted bug."""

    # -- what the process does -----------------------------------------------------------------------------------------
    def open(self, make_snapshot: Callable[[], RaftSnapshot] | None = None) -> None:
        raise NotImplementedError

    def stored_snapshot(self) -> RaftSnapshot:
        raise NotImplementedError

    def write(self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None) -> None:
        """Not durable before `sync`, unless there is a snapshot."""
        raise NotImplementedError

    def sync(self) -> None:
        raise NotImplementedError

    def compact(self, snapshot: RaftSnapshot, keep: int) -> None:
        """A snapshot of applied state, durable first; then the log up to `keep` entries before it goes."""
        raise NotImplementedError

    def stored(self) -> Stored:
        state, conf = self.log.initial_state()
        first, last = self.log.first_index(), self.log.last_index()
        terms = [self.log.term(index) for index in range(first, last + 1)]
        return Stored(
            HardState(state.term, state.vote, state.commit), conf, self.stored_snapshot().metadata, first, terms
        )

    # -- what happens to it --------------------------------------------------------------------------------------------
    def crash(self, mode: CrashMode, dice: Callable[[int], int]) -> None:
        """The process is gone; what the next one finds depends on `mode`."""
        self.disk = self.disk.crash_clone(mode, seed=dice(1 << 30))
        self.files = FaultFiles(self.disk)
        self.lies = False

    def crash_after(self, operations: int) -> None:
        """CrashPoint at the n-th operation on the disk from now."""
        self.disk.crash_at = self.disk.operation_count + operations

    def fail(self, kind: str, error: int) -> None:
        self.files.fail(kind, error=error)

    def lie(self, times: int) -> None:
        """The next syncs do nothing, and say that they did."""
        self.lies = True
        self.files.fail("sync", error="lie", times=times)

    def lie_about(self, kind: str) -> None:
        """A planted bug: for ever, and not known to be a lie."""
        self.files.fail(kind, error="lie", times=None)

    def heal(self) -> None:
        self.files.heal()
        self.disk.crash_at = None

    def rot(self, dice: Callable[[int], int]) -> bool:
        """Change bytes that were durable, while the node is down. True if `open` must now refuse, or has refused.

        Violation of the log's promise if it opens, and says something else than before.
        """
        self.open()  # what was synced last can be told from a torn tail only by what a later life wrote behind it
        expected = self.stored()
        self._next_life(dice)
        path, end = self._durable_bytes(dice)
        self._overwrite(path, dice(end), end, dice)
        try:
            self.open()
        except Corruption:
            return True
        if self.stored() != expected:
            raise Violation(f"a changed byte of {path} went unnoticed: {self.stored()} instead of {expected}")
        self._next_life(dice)
        return False

    def _next_life(self, dice: Callable[[int], int]) -> None:
        self.disk.kill()
        self.crash("keep", dice)

    def _durable_bytes(self, dice: Callable[[int], int]) -> tuple[str, int]:
        """A file, and how many of its bytes no crash may take."""
        raise NotImplementedError

    def _overwrite(self, path: str, offset: int, end: int, dice: Callable[[int], int]) -> None:
        kind = dice(3)
        if kind == 0:
            data = bytes([self.disk.read_file(path)[offset] ^ (1 << dice(8))])
        else:
            size = min(1 + dice(512), end - offset)
            source = dice(max(end - size, 1))
            data = bytes(size) if kind == 1 else self.disk.read_file(path)[source : source + size]  # misdirected
        content = bytearray(self.disk.read_file(path))
        content[offset : offset + len(data)] = data
        self.disk.rot(path, bytes(content))


class FileDisk(NodeDisk):
    log: FileLog

    def open(self, make_snapshot: Callable[[], RaftSnapshot] | None = None) -> None:
        self.log = FileLog.open(self.files, HOME, GROUP)
        self.log.snapshot_source = make_snapshot

    def stored_snapshot(self) -> RaftSnapshot:
        return self.log.stored_snapshot()

    def write(self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None) -> None:
        self.log.save(hard_state, entries, snapshot, sync=False)

    def sync(self) -> None:
        self.log.sync()

    def compact(self, snapshot: RaftSnapshot, keep: int) -> None:
        self.log.compact(snapshot, max(snapshot.metadata.index - keep, 0))

    def _durable_bytes(self, dice: Callable[[int], int]) -> tuple[str, int]:
        path = f"{HOME}/{FILE_NAME}"
        return path, decode_file(self.disk.read_file(path), GROUP).synced


class WalDisk(NodeDisk):
    log: GroupLog

    def open(self, make_snapshot: Callable[[], RaftSnapshot] | None = None) -> None:
        self._wal = Wal(self.files, WAL, SEGMENT_BYTES, retainers=("raft",))
        self._raftlog = RaftLog.open(self._wal, rewrite_lag_segments=2)
        self.log = self._raftlog.group(GROUP)  # Corruption if it is damaged
        self._snapshot = RaftSnapshot(SnapshotMetadata())
        if self.files.exists(STATE):
            # The process before may have died between the rename and this: the log must not rely on less.
            self.files.sync_dir(HOME)
            self._snapshot, installed = _decode_state(self.files.read_file(STATE))
            metadata = self._snapshot.metadata
            self.log.recover_applied(metadata.index, metadata.term, metadata.conf_state, from_snapshot=installed)
        self.log.snapshot_source = make_snapshot

    def stored_snapshot(self) -> RaftSnapshot:
        return self._snapshot

    def write(self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None) -> None:
        if snapshot is not None and not self.log_first:
            self._publish(snapshot, installed=True)  # durable before the log forgets what came before it
        metadata = None if snapshot is None else snapshot.metadata
        if hard_state is not None or entries or metadata is not None:
            self._raftlog.save([(GROUP, hard_state, entries, metadata)], sync=snapshot is not None)
        if snapshot is not None and self.log_first:
            self._publish(snapshot, installed=True)

    def sync(self) -> None:
        self._raftlog.sync()

    def compact(self, snapshot: RaftSnapshot, keep: int) -> None:
        self._publish(snapshot, installed=False)
        self.log.compact(max(snapshot.metadata.index - keep, 0), snapshot.metadata.conf_state)

    def _publish(self, snapshot: RaftSnapshot, *, installed: bool) -> None:
        file = self.files.create(f"{STATE}.new")
        file.write(_encode_state(snapshot, installed))
        file.sync()
        file.close()
        self.files.rename(f"{STATE}.new", STATE)
        self.files.sync_dir(HOME)
        self._snapshot = snapshot

    def _durable_bytes(self, dice: Callable[[int], int]) -> tuple[str, int]:
        # The newest segment is empty; the one before was read and sealed by a recovery, as those before that.
        paths = [f"{WAL}/{name}" for name in self.disk.listdir(WAL) if name.endswith(".wal")][:-1]
        if self.disk.exists(STATE):
            paths.append(STATE)
        path = paths[dice(len(paths))]
        return path, max(len(self.disk.read_file(path).rstrip(b"\0")), 1)


def _encode_state(snapshot: RaftSnapshot, installed: bool) -> bytes:
    _, mark = CODEC.encode_mark(OP_RESET, GROUP, snapshot.metadata)
    body = bytes([installed]) + len(mark).to_bytes(4, "little") + mark + snapshot.data
    return crc32c(body).to_bytes(4, "little") + body


def _decode_state(data: bytes) -> tuple[RaftSnapshot, bool]:
    if len(data) < 9 or int.from_bytes(data[:4], "little") != crc32c(data[4:]):
        raise Corruption("the state does not match its checksum", path=STATE, offset=0)
    end = 9 + int.from_bytes(data[5:9], "little")
    _, _, metadata, _, _ = CODEC.decode_record(RECORD_MARK, data[9:end])
    return RaftSnapshot(metadata, data[end:]), bool(data[4])
