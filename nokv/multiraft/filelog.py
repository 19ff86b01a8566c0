"""The log of one Raft group in one plain file, for a group without an engine. Layout: docs/formats/raft_file_log.md.

Owns: one directory with `raft.log`, which holds the newest snapshot (data included), the entries behind its log's start
and the hard state. Does not own: what entries mean, nor many groups at once (`raftlog` shares one log among them). One
thread, one process: the directory is locked.

    save      append entries and the hard state; with a snapshot, replace the file. Only a synced save may be answered
    compact   replace the file by: snapshot, the entries behind the new start, hard state. Durable on return
    open      read, check, and replace the file by what it says: a file is written by one life of one process, and what
              was read is durable before anybody builds upon it

A file is replaced as a whole: new file, sync, rename, sync of the directory. So its base (what it began with) is always
complete, and only what was appended later can be torn. Each record tells how much of the file was durable when it was
written, and an empty one is written behind each sync: bad bytes before such a mark are Corruption (this replica has
forgotten what it promised, so it must not vote), bad bytes behind the last one an ordinary crash.

After the first error of the disk nothing is written any more: ReadOnly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from nokv._ext.crc32c import crc32c
from nokv._ext.raftcodec import OP_RESET, RECORD_ENTRIES, RECORD_HARD_STATE, RECORD_MARK, SNAPSHOT_DATA_MAX
from nokv.env.ports import Files, WritableFile
from nokv.errors import Closed, Corruption, InvariantError, Locked, ReadOnly, UsageError
from nokv.multiraft.wire import CODEC
from nokv.raft.errors import SnapshotOutOfDate
from nokv.raft.storage import MemoryStorage
from nokv.raft.types import ConfState, Entry, HardState, RaftSnapshot

__all__ = ["FileLog", "LogImage", "decode_file", "encode_file"]

FILE_NAME = "raft.log"
NEW_NAME = "raft.log.new"
LOCK_NAME = "LOCK"
MAGIC = b"NoKVRLOG"
VERSION = 1
RECORD_BASE = 20
RECORD_SYNCED = 21
PAYLOAD_BYTES_MAX = 64 << 20

_HEADER = struct.Struct("<8sIQQI")  # magic, version, group id, bytes of header and base, crc32c of the above
_RECORD = struct.Struct(
    "<IIBQ"
)  # crc32c of position, the rest of this head, and the payload; payload bytes; kind; synced
_AFTER_CRC = struct.Struct("<IBQ")
_POSITION = struct.Struct("<Q")
_BASE = struct.Struct(
    "<QQI"
)  # index and term before the first entry, bytes of the metadata; then metadata, snapshot data
_KINDS = frozenset({RECORD_ENTRIES, RECORD_HARD_STATE, RECORD_BASE, RECORD_SYNCED})
_HINT = "this replica cannot vote: remove it from its group and add a new one"

assert SNAPSHOT_DATA_MAX < PAYLOAD_BYTES_MAX


class LogImage(MemoryStorage):
    """What a file says, checked record by record. Also what the state machine reads."""

    __slots__ = ("synced", "torn_at")

    def __init__(self) -> None:
        super().__init__()
        self.synced = 0
        """Bytes of the file that some record says were durable."""
        self.torn_at: int | None = None
        """Where the readable part of the file ends, if bytes follow that no sync had covered."""

    @property
    def hard_state(self) -> HardState:
        return self._hard_state

    @property
    def stored_snapshot(self) -> RaftSnapshot:
        return self._snapshot

    def start_at(self, snapshot: RaftSnapshot, index: int, term: int) -> None:
        """Nothing but this snapshot, and an empty log that starts after `index`."""
        self._snapshot = snapshot
        self._entries = [Entry(term, index)]

    def live_entries(self) -> list[Entry]:
        return self._entries[1:]


class FileLog:
    """A `raft.LogStorage`. Open it with `FileLog.open`."""

    __slots__ = (
        "_directory",
        "_end",
        "_failure",
        "_file",
        "_files",
        "_image",
        "_lock",
        "_marked",
        "_synced",
        "group_id",
        "rewrites",
        "snapshot_source",
        "syncs",
    )

    def __init__(self, files: Files, directory: str, group_id: int) -> None:
        self.group_id = group_id
        self.snapshot_source: Callable[[], RaftSnapshot] | None = None
        """Makes the snapshot that a lagging follower needs. Without it: the stored one."""
        self.rewrites = 0
        self.syncs = 0
        self._files = files
        self._directory = directory
        self._image = LogImage()
        self._file: WritableFile | None = None
        self._end = 0
        self._synced = 0  # all before it is durable
        self._marked = 0  # the end, if nothing but a sync mark came since
        self._failure: OSError | None = None
        files.makedirs(directory)
        try:
            self._lock = files.lock(f"{directory}/{LOCK_NAME}")
        except BlockingIOError as error:
            raise Locked(f"{directory}: another process holds this raft log") from error

    @classmethod
    def open(cls, files: Files, directory: str, group_id: int = 1) -> FileLog:
        """Read what is there, or start an empty log. Corruption: this replica must not take part."""
        log = cls(files, directory, group_id)
        try:
            path = f"{directory}/{FILE_NAME}"
            if files.exists(path):
                log._image = decode_file(files.read_file(path), group_id, path)
            log._replace_file()
        except BaseException:
            log._lock.release()
            raise
        return log

    def close(self, *, sync: bool = True) -> None:
        """May be called twice. `sync=False` leaves what was not synced to luck, as a crash would."""
        file, self._file = self._file, None
        if file is not None:
            try:
                if sync and self._failure is None and self._marked < self._end:
                    self._sync(file)
            finally:
                file.close()
                self._lock.release()

    # -- raft.LogStorage ----------------------------------------------------------------------------------------------
    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._image.initial_state()

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        return self._image.entries(lo, hi, max_size)

    def term(self, index: int) -> int:
        return self._image.term(index)

    def last_index(self) -> int:
        return self._image.last_index()

    def first_index(self) -> int:
        return self._image.first_index()

    def snapshot(self) -> RaftSnapshot:
        return self._image.stored_snapshot if self.snapshot_source is None else self.snapshot_source()

    # -- what the driver writes ---------------------------------------------------------------------------------------
    def stored_snapshot(self) -> RaftSnapshot:
        """The newest one in the file: what the state machine starts from."""
        return self._image.stored_snapshot

    def initialise(self, snapshot: RaftSnapshot) -> None:
        """Seed an empty log as if this snapshot had been installed. UsageError if there is anything already."""
        image = self._image
        if image.last_index() or image.hard_state != HardState():
            raise UsageError(f"{self._directory}: there is a raft log already: it cannot be initialised again")
        metadata = snapshot.metadata
        self.save(HardState(metadata.term, 0, metadata.index), [], snapshot, sync=True)

    def save(
        self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None = None, *, sync: bool
    ) -> None:
        """What one Ready wants durable. With a snapshot it is durable on return whatever `sync` says."""
        self._check_usable()
        if snapshot is not None:
            metadata = snapshot.metadata
            if metadata.index <= self._image.stored_snapshot.metadata.index:
                raise SnapshotOutOfDate
            image = LogImage()
            image.start_at(snapshot, metadata.index, metadata.term)
            image.append(entries)
            old = self._image.hard_state
            image.set_hard_state(hard_state or HardState(old.term, old.vote, max(old.commit, metadata.index)))
            self._image = image
            self._replace_file()
            return
        if entries and entries[0].index > self.last_index() + 1:
            raise InvariantError(
                f"{self._directory}: append at {entries[0].index}, the log ends at {self.last_index()}"
            )
        first = self.first_index()
        if entries and entries[0].index < first:
            entries = entries[first - entries[0].index :]  # compacted meanwhile
        records = CODEC.encode_entries(self.group_id, hard_state, entries)
        if records:
            self._append(records)
        self._image.append(entries)
        if hard_state is not None:
            self._image.set_hard_state(hard_state)
        if sync:
            self.sync()

    def sync(self) -> None:
        """Make everything saved so far survive power loss."""
        self._check_usable()
        assert self._file is not None
        self._sync(self._file)

    def compact(self, snapshot: RaftSnapshot, index: int) -> None:
        """Remember this snapshot of applied state; forget entries up to `index` (at most the snapshot's). Durable."""
        self._check_usable()
        metadata = snapshot.metadata
        if index > metadata.index:
            raise UsageError(f"compaction to {index}, but the snapshot ends at {metadata.index}")
        self._image.create_snapshot(metadata.index, metadata.conf_state, snapshot.data)
        if index >= self.first_index():
            self._image.compact(index)
        self._replace_file()

    # -- inside -------------------------------------------------------------------------------------------------------
    def _check_usable(self) -> None:
        if self._failure is not None:
            raise ReadOnly(
                f"{self._directory}: the raft log takes no writes after a failed one", cause=str(self._failure)
            )
        if self._file is None:
            raise Closed(f"{self._directory}: this raft log is closed")

    def _append(self, records: list[tuple[int, bytes]]) -> None:
        file = self._file
        assert file is not None
        data, end = _encode_records(records, self._end, self._synced)
        try:
            _write_all(file, data)
        except OSError as error:
            self._failure = error
            raise
        self._end = end

    def _sync(self, file: WritableFile) -> None:
        try:
            file.sync()
            self.syncs += 1
            if self._end == self._marked:
                return
            self._synced = self._end
            mark, end = _encode_records([(RECORD_SYNCED, b"")], self._end, self._synced)
            _write_all(file, mark)
            self._end = self._marked = end  # not durable itself: losing it loses nothing
        except OSError as error:
            self._failure = error
            raise

    def _replace_file(self) -> None:
        """Write what is in memory to a new file, and put it in the place of the old one."""
        self.rewrites += 1
        data = encode_file(self._image, self.group_id)
        new, path = f"{self._directory}/{NEW_NAME}", f"{self._directory}/{FILE_NAME}"
        try:
            if self._file is not None:
                self._file.close()
            file = self._file = self._files.create(new)
            _write_all(file, data)
            file.sync()
            self.syncs += 1
            self._files.rename(new, path)
            self._files.sync_dir(self._directory)
        except OSError as error:
            self._failure = error
            raise
        self._end = self._synced = self._marked = len(data)


def _write_all(file: WritableFile, data: bytes) -> None:
    written = file.write(data)
    while written < len(data):
        more = file.write(memoryview(data)[written:])
        if more <= 0:
            raise OSError(5, "a write made no progress")
        written += more


# -- bytes ------------------------------------------------------------------------------------------------------------
def _encode_records(records: list[tuple[int, bytes]], position: int, synced: int) -> tuple[bytes, int]:
    out = []
    for kind, payload in records:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise UsageError(
                f"a raft log record of {len(payload)} bytes is too large", hint=f"at most {PAYLOAD_BYTES_MAX}"
            )
        rest = _AFTER_CRC.pack(len(payload), kind, synced)
        crc = crc32c(payload, crc32c(rest, crc32c(_POSITION.pack(position))))
        out += [crc.to_bytes(4, "little"), rest, payload]
        position += _RECORD.size + len(payload)
    return b"".join(out), position


def encode_file(image: LogImage, group_id: int) -> bytes:
    """A whole file that says what `image` does; all of it is base."""
    snapshot = image.stored_snapshot
    if len(snapshot.data) > SNAPSHOT_DATA_MAX:
        raise UsageError(f"a snapshot of {len(snapshot.data)} bytes is too large", hint=f"at most {SNAPSHOT_DATA_MAX}")
    start = image.first_index() - 1
    _, metadata = CODEC.encode_mark(OP_RESET, group_id, snapshot.metadata)
    base = _BASE.pack(start, image.term(start), len(metadata)) + metadata + snapshot.data
    records = [(RECORD_BASE, base), *CODEC.encode_entries(group_id, image.hard_state, image.live_entries())]
    body, end = _encode_records(records, _HEADER.size, 0)
    head = _HEADER.pack(MAGIC, VERSION, group_id, end, 0)[:-4]
    return head + crc32c(head).to_bytes(4, "little") + body


def decode_file(data: bytes, group_id: int, path: str = "") -> LogImage:
    """Corruption, naming the offset, unless `data` is a file of this group, whole up to its last sync mark."""
    base_end = _decode_header(data, group_id, path)
    image = LogImage()
    image.synced = base_end
    position = _HEADER.size
    for offset, kind, synced, payload in _records(data, position):
        if (kind == RECORD_BASE) != (offset == _HEADER.size):
            raise Corruption("the snapshot is not the first record", path=path, offset=offset, hint=_HINT)
        if synced > offset:
            raise Corruption("a sync mark points behind itself", path=path, offset=offset, hint=_HINT)
        image.synced = max(image.synced, synced)
        try:
            _replay(image, kind, payload, group_id)
        except Corruption as error:
            raise Corruption(str(error), path=path, offset=offset, hint=_HINT) from error
        position = offset + _RECORD.size + len(payload)
    if position < base_end:
        raise Corruption("a record of the base does not match its checksum", path=path, offset=position, hint=_HINT)
    if position < len(data):
        mark = _sync_mark_behind(data, position)
        if mark is not None:
            raise Corruption(
                f"a synced record does not match its checksum (the one at {mark} says that it was durable)",
                path=path,
                offset=position,
                hint=_HINT,
            )
        image.torn_at = position
    last = image.last_index()
    if image.hard_state.commit > last:
        raise Corruption(
            f"the log ends at {last}, before the commit index {image.hard_state.commit}",
            path=path,
            offset=position,
            hint=_HINT,
        )
    return image


def _decode_header(data: bytes, group_id: int, path: str) -> int:
    if len(data) < _HEADER.size:
        raise Corruption("the file is shorter than its header", path=path, offset=len(data), hint=_HINT)
    magic, version, stored_group, base_end, crc = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Corruption("not a raft log", path=path, offset=0, expected=MAGIC, found=magic)
    if crc != crc32c(data[: _HEADER.size - 4]):
        raise Corruption("the header does not match its checksum", path=path, offset=_HEADER.size - 4, hint=_HINT)
    if version != VERSION:
        raise Corruption("unknown version", path=path, offset=8, expected=VERSION, found=version)
    if stored_group != group_id:
        raise Corruption("the log of another group", path=path, offset=12, expected=group_id, found=stored_group)
    if not _HEADER.size < base_end <= len(data):
        raise Corruption("the base is cut short", path=path, offset=20, expected=base_end, found=len(data), hint=_HINT)
    return int(base_end)


def _record_at(data: bytes, position: int) -> tuple[int, int, bytes] | None:
    """(kind, synced, payload) of the record there, or None if there is none."""
    if len(data) - position < _RECORD.size:
        return None
    crc, size, kind, synced = _RECORD.unpack_from(data, position)
    start = position + _RECORD.size
    if kind not in _KINDS or size > PAYLOAD_BYTES_MAX or size > len(data) - start:
        return None
    payload = data[start : start + size]
    if crc != crc32c(payload, crc32c(data[position + 4 : start], crc32c(_POSITION.pack(position)))):
        return None
    return kind, synced, payload


def _records(data: bytes, position: int) -> Iterator[tuple[int, int, int, bytes]]:
    while (found := _record_at(data, position)) is not None:
        kind, synced, payload = found
        yield position, kind, synced, payload
        position += _RECORD.size + len(payload)


def _sync_mark_behind(data: bytes, position: int) -> int | None:
    """Where a record lies that says that `position` was durable; it may begin anywhere behind the bad bytes."""
    for start in range(position + 1, len(data) - _RECORD.size + 1):
        if data[start + 8] in _KINDS:  # cheap: most places are not the beginning of a record
            found = _record_at(data, start)
            if found is not None and found[1] > position:
                return start
    return None


def _replay(image: LogImage, kind: int, payload: bytes, group_id: int) -> None:
    if kind == RECORD_SYNCED:
        if payload:
            raise Corruption("a sync mark with a payload")
        return
    if kind == RECORD_BASE:
        _replay_base(image, payload, group_id)
        return
    stored_group, _, _, state, entries = CODEC.decode_record(kind, payload)
    if stored_group != group_id:
        raise Corruption("a record of another group", expected=group_id, found=stored_group)
    if entries:
        _replay_entries(image, entries)
    if state is not None:
        old = image.hard_state
        if state.term < old.term:
            raise Corruption(f"the term goes back from {old.term} to {state.term}")
        if state.term == old.term and old.vote not in (0, state.vote):
            raise Corruption(f"two votes in term {state.term}")
        if state.commit < old.commit:
            raise Corruption(f"the commit index goes back from {old.commit} to {state.commit}")
        image.set_hard_state(state)


def _replay_base(image: LogImage, payload: bytes, group_id: int) -> None:
    if len(payload) < _BASE.size:
        raise Corruption("the snapshot record is cut short")
    index, term, size = _BASE.unpack_from(payload)
    if size > len(payload) - _BASE.size:
        raise Corruption("the snapshot's metadata is cut short")
    metadata_end = _BASE.size + size
    stored_group, op, metadata, state, _ = CODEC.decode_record(RECORD_MARK, payload[_BASE.size : metadata_end])
    if stored_group != group_id or op != OP_RESET or state is not None or metadata is None:
        raise Corruption("the snapshot record holds something else")
    if index > metadata.index or term > metadata.term:
        raise Corruption(f"the log starts after {index}, the snapshot ends at {metadata.index}")
    image.start_at(RaftSnapshot(metadata, payload[metadata_end:]), index, term)


def _replay_entries(image: LogImage, entries: list[Entry]) -> None:
    first = entries[0].index
    if not image.first_index() <= first <= image.last_index() + 1:
        raise Corruption(f"entries from {first} on, but the log spans {image.first_index()} to {image.last_index()}")
    previous_term = image.term(first - 1)
    for index, entry in enumerate(entries, first):
        if entry.index != index or entry.term < previous_term:
            raise Corruption(f"entry {entry.index} of term {entry.term} follows {index - 1} of {previous_term}")
        previous_term = entry.term
    for entry in entries:
        if entry.index > min(image.hard_state.commit, image.last_index()):
            break
        if image.term(entry.index) != entry.term:
            raise Corruption(f"entry {entry.index} is committed and cannot change")
    image.append(entries)
