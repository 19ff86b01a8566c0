"""The write-ahead log that the engine and the raft log share.

    append  -> the record survives kill -9 when it returns (a store into a mapped segment; no system call)
    sync    -> everything appended before the call survives power loss when it returns; concurrent callers share one
    fdatasync
    retain  -> a segment goes only when every registered retainer is past it

States: open -> failed (a sync failed: nothing is appended or synced any more, ReadOnly) -> closed.
Threads: any. `append` of a mapped log needs no lock (the GIL is held from the check for room to the new end); rotation,
retention
and the unmapped path hold `_lock`; the sync leader holds no lock while it waits for the disk.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nokv._ext.prefault import Prefaulter
from nokv._ext.syncturn import SyncTurn
from nokv._ext.wal import (
    DATA_START,
    HEADER_SIZE,
    PAYLOAD_BYTES_MAX,
    TYPE_LINK,
    TYPE_SEGMENT,
    TYPE_SYNCED,
    SegmentReader,
    SegmentWriter,
    WalCore,
)
from nokv.engine.wal.recovery import (
    FREE_SUFFIX,
    LINK_RECORD_BYTES,
    SegmentInfo,
    Walk,
    encode_link,
    encode_segment_header,
    recover,
    segment_name,
    skip,
)
from nokv.env.ports import Files
from nokv.errors import Closed, Corruption, InvariantError, ReadOnly, UsageError

__all__ = ["LogPosition", "ReadOnlyWal", "Wal"]

SEGMENT_BYTES_MIN = 1024
FIRST_SEGMENT_BYTES = 256 << 10  # a log starts small and grows to segment_bytes: an empty directory stays cheap
GROWTH = 4
FREE_SEGMENTS_MAX = 1
RECYCLE_SYNCS = 1000  # in a segment's life
PAGE = 4096
MUCH_BYTES = 256 << 10  # to sync at a time: then the writer goes on in a page of its own
OVERHEAD = DATA_START + LINK_RECORD_BYTES + HEADER_SIZE  # of a segment that holds one record
REPLAY_CHUNK = 256
READY_BYTES = 256 << 10  # of the next segment, in memory before it is written to
AHEAD_BYTES = 8 << 20  # of a segment are left when the next one is made
RAPID_BYTES = 1 << 20  # appended between two syncs: then all of the next segment is
NEVER = (1 << 64) - 1

_SYNCED = struct.Struct("<QQ")


class LogPosition(NamedTuple):
    segment: int
    offset: int


class _FoundSegment:
    """A segment of a former process, nothing of which need be on disk. Its own file, for whoever syncs it."""

    def __init__(self, files: Files, info: SegmentInfo) -> None:
        self._files = files
        self._path = info.path
        self.number = info.number
        self.file = self

    def sync(self) -> None:
        self._files.sync_file(self._path)

    def close(self) -> None:
        """Nothing is held open."""


class Wal(WalCore):
    """One directory of segments. `retainers` must each call `retain` before anything is freed."""

    def __init__(
        self,
        files: Files,
        directory: str,
        segment_bytes: int = 64 << 20,
        retainers: Iterable[str] = (),
        *,
        create: bool = True,
        recycle_syncs: int = RECYCLE_SYNCS,
        much_bytes: int = MUCH_BYTES,
        walk: Walk = skip,
        sync_found: bool = True,
        first_needed: int = 0,
        prefaulter: Prefaulter | None = None,
    ) -> None:
        """`walk` sees the records that are there. `sync_found`: they are on disk when this returns; else after the next
        `sync`, like what is appended. Nothing is appended to a segment before `first_needed`: somebody has written down
        that he will not look there. `prefaulter`: who keeps pages ready ahead of the appends; the caller closes it
        after this."""
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise UsageError(
                f"wal segments of {segment_bytes} bytes are too small", hint=f"at least {SEGMENT_BYTES_MIN}"
            )
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._freeing = threading.RLock()  # of who removes segments; before the others
        self._making = threading.RLock()  # of who makes, takes or drops a segment; before `_lock`
        self._lock = threading.RLock()
        # `appended` when the last sync began; below zero: not even what was here before is on disk
        self._turn = SyncTurn(-1)
        self._sync_count = 0
        self._recycle_syncs = recycle_syncs
        self._much_bytes = much_bytes
        self._syncs_at_release = 0
        self._syncs_at_switch = 0
        self._prefaulter = prefaulter
        self._unsynced: list[SegmentWriter | _FoundSegment] = []  # rotated away, not synced yet, oldest first
        self._syncing_from = NEVER  # the oldest segment that a sync is at work on
        self._names_gone = 0  # segments that went unsynced
        self._names_synced = 0  # of them: power loss does not give their names back
        self._retained: dict[str, int | None] = dict.fromkeys(retainers, 0)  # 0: unknown, keeps everything
        self._spare: SegmentWriter | None = None
        self._free: list[str] = []
        self._closed = False
        self._rotations = 0
        self._freed = 0
        self._recycled = 0

        if not files.exists(directory):
            if not create:
                raise Corruption(
                    "the write-ahead log is missing", path=directory, hint="restore wal/ from where it went"
                )
            files.makedirs(directory)
        log = recover(files, directory, walk, first_needed)
        if not create and not log.segments:
            raise Corruption("the write-ahead log is missing", path=directory, hint="restore wal/ from where it went")
        self._segments: list[SegmentInfo] = log.segments
        self._highest = log.highest_number
        previous = log.segments[-1] if log.segments else None
        # What a killed process left in the page cache has been read and will be built upon.
        found = log.unsynced
        oldest_found = self._segments[0] if self._segments else None
        if oldest_found is not None and oldest_found.previous and oldest_found in found:
            self._names_gone = 1  # perhaps: the one before it, and by a process that was killed at once
        if sync_found:
            for info in found:
                files.sync_file(info.path)
            self._sync_names()
            found = []
        self.settled = not found  # when the log was opened, all that was there was known to be on disk
        if log.may_go_on and previous is not None:
            self._unsynced = [_FoundSegment(files, info) for info in found if info is not previous]
            if not found:
                self._turn = SyncTurn(0)
            self._go_on(previous)
        else:
            self._unsynced = [_FoundSegment(files, info) for info in found]
            self._switch(self._create(min(segment_bytes, FIRST_SEGMENT_BYTES), previous), previous)
            if previous is not None:
                self._sync_cut()
        # Whatever is not in the log stays outside: a new segment's header is durable and names its predecessor, and one
        # that was never used is skipped by the next recovery too. So it may go.
        oldest = self._segments[0].number
        self._older = [
            (number, path) for number, path in log.leftovers if number < oldest
        ]  # go when `retain` passes them
        # The newest first, and gone for good before the next: each names the one before it, and where the log goes on
        # in its last segment no header of a newer one says that they are not part of it.
        newer = [path for number, path in reversed(log.leftovers) if number > oldest]
        for path in newer:
            files.remove(path)
            if path != newer[-1]:
                files.sync_dir(directory)
        for path in log.free:
            files.remove(path)

    # -- appending ----------------------------------------------------------------------------------------------------
    def append(self, record_type: int, payload: bytes) -> LogPosition:
        if not 0 < record_type < 256:
            raise UsageError(f"record type {record_type} is out of range", hint="1..255; 16 and up are free for others")
        while True:
            writer = self.active
            if self.failure is None and writer is not None and writer.mapped:
                offset = writer.try_append(record_type, payload)
                if offset >= 0:
                    self.appended += 1
                    self.appended_bytes += len(payload)
                    return LogPosition(writer.number, offset)
            self.make_room(len(payload))
            with self._lock:
                writer = self.active
                if writer is not None and not writer.mapped and writer.fits(len(payload)):
                    position = LogPosition(writer.number, writer.append(record_type, payload))
                    self.appended += 1
                    self.appended_bytes += len(payload)
                    return position

    def append_many(self, records: Sequence[tuple[int, bytes]]) -> list[LogPosition]:
        """Append in order. Not atomic: a crash may keep a prefix."""
        return [self.append(record_type, payload) for record_type, payload in records]

    def make_room(self, payload_size: int) -> None:
        """Rotate until the active segment takes a payload of this size. Raises if nothing may be written."""
        writer = self.active
        if writer is not None and self.failure is None and writer.fits(payload_size):
            return  # no lock: a segment that is being made holds one while it waits for the disk
        self.waiting += 1
        try:
            with self._making, self._lock:
                self._check_usable()
                if payload_size > PAYLOAD_BYTES_MAX:
                    raise UsageError(
                        f"a WAL record of {payload_size} bytes is too large", hint=f"at most {PAYLOAD_BYTES_MAX}"
                    )
                assert self.active is not None
                if self.active.fits(payload_size):
                    return
                if self._spare is not None and self._spare.capacity < OVERHEAD + payload_size:
                    self._drop_spare()
                spare, self._spare = self._spare, None
                self._rotate(spare or self._create(self._next_capacity(payload_size), self._segments[-1]))
        finally:
            self.waiting -= 1

    def _rotate(self, writer: SegmentWriter) -> None:
        assert self.active is not None
        current = self._segments[-1]
        self.active.seal()
        current.end = self.active.end
        if self.active not in self._unsynced:  # else a switch has failed before
            self._unsynced.append(self.active)
        self._turn.unfinished = True
        self._switch(writer, current)
        self._rotations += 1

    def shrink(self) -> None:
        """Before a close: go on in a segment of the smallest size, and sync what came before, so that a retainer can
        free the large one."""
        with self._making, self._lock:
            self._check_usable()
            self._drop_spare()
            self._rotate(self._create(min(self._segment_bytes, FIRST_SEGMENT_BYTES), self._segments[-1]))
        self.sync()

    @property
    def grown(self) -> bool:
        """Whether the log holds more of the disk than `shrink` would leave."""
        return self._segments[-1].capacity > FIRST_SEGMENT_BYTES

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
            self._files.remove(f"{self._directory}/{segment_name(spare.number)}")

    def attend(self) -> None:
        """A background step, asked for when the active segment has been filled up to `soft_limit`: the next segment is
        made ready."""
        writer = self.active
        if writer is None:
            return
        if writer.end > self._soft_limit(writer):
            syncs = self._sync_count - self._syncs_at_switch
            self.prepare(rapid=writer.end >= min(RAPID_BYTES, writer.capacity // 8) * (1 + syncs))
        with self._lock:
            if self.active is writer:
                self.soft_limit = self._soft_limit(writer)

    def _soft_limit(self, writer: SegmentWriter) -> int:
        """Where the next background step is due."""
        if self._spare is not None:
            return NEVER
        if writer.capacity <= FIRST_SEGMENT_BYTES:
            return writer.capacity // 2
        # Early enough to be done in time, but not earlier: what is ready and never written to was made in vain.
        return max(writer.capacity - AHEAD_BYTES, writer.capacity // 8)

    def prepare(self, *, rapid: bool = False) -> None:
        """Make the next segment ready, so that the append that needs it does not wait. `rapid`: it will be full before
        it has been synced often."""
        with self._making:  # and not `_lock`: appends and syncs go on
            if self._closed or self.failure is not None or self._spare is not None:
                return
            spare = self._create(self._next_capacity(0), self._segments[-1])
            grown = self._segments[-1].capacity >= spare.capacity  # else it takes longer than the writer leaves for it
            much = rapid and grown and spare.capacity >= RAPID_BYTES
            spare.make_ready(READY_BYTES, zeros_for=self if much else None)
            self._spare = spare

    def _next_capacity(self, payload_size: int) -> int:
        full = self._segments[-1].capacity * GROWTH if self._segments else FIRST_SEGMENT_BYTES
        capacity = min(self._segment_bytes, max(full, FIRST_SEGMENT_BYTES))
        need = OVERHEAD + payload_size
        return capacity if need <= capacity else (need + PAGE - 1) // PAGE * PAGE

    def _create(self, capacity: int, previous: SegmentInfo | None) -> SegmentWriter:
        """A new segment, its header (which names its predecessor) and its name durable. It holds no record yet."""
        number = self._highest + 1
        self._highest = number
        recycle = None
        if capacity == self._segment_bytes and self._free:
            recycle = self._free.pop()
            self._recycled += 1
            # Power loss must not give the old name back to a file of zeroes: that would look like a damaged segment.
            self._files.sync_dir(self._directory)
        path = f"{self._directory}/{segment_name(number)}"
        writer = SegmentWriter(self._files.open_log(path, capacity, recycle=recycle), number)
        writer.append(TYPE_SEGMENT, encode_segment_header(capacity, previous.number if previous is not None else 0))
        if writer.end != DATA_START:
            raise InvariantError(f"the header of segment {number} has a wrong size")
        gone = self._names_gone
        try:
            writer.file.sync()
            self._files.sync_dir(self._directory)
        except OSError as error:
            raise self._sync_failed(error) from error
        self._names_synced = max(self._names_synced, gone)
        return writer

    def _switch(self, writer: SegmentWriter, previous: SegmentInfo | None) -> None:
        """Make `writer` the active segment. Its first record says where the segment before it ended."""
        number, end = (previous.number, previous.end) if previous is not None else (0, 0)
        path = f"{self._directory}/{segment_name(writer.number)}"
        info, soft_limit = SegmentInfo(writer.number, path, writer.capacity, number), self._soft_limit(writer)
        writer.append(TYPE_LINK, encode_link(number, end))
        # All or nothing, also without memory: the last of `_segments` is the active one.
        self._segments.append(info)
        self.active = writer
        self.soft_limit = soft_limit
        self._syncs_at_switch = self._sync_count
        if self._prefaulter is not None:
            writer.keep_ahead(self._prefaulter)

    def _sync_cut(self) -> None:
        """The log has been cut before a record that is damaged, with nothing behind it. Now something will be, and
        without the link that says where the cut is, power loss would make it corruption."""
        assert self.active is not None
        try:
            self.active.file.sync()
        except OSError as error:
            raise self._sync_failed(error) from error

    def _go_on(self, last: SegmentInfo) -> None:
        """Append to the segment that a former process appended to."""
        writer = SegmentWriter(self._files.reopen_log(last.path, last.capacity), last.number)
        writer.resume(last.end)
        self.soft_limit = self._soft_limit(writer)
        self.active = writer
        if self._prefaulter is not None:
            writer.keep_ahead(self._prefaulter)

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("the WAL is closed")
        if self.failure is not None:
            raise ReadOnly(f"the WAL is read-only: {self.failure}", cause=str(self.failure), hint="close and reopen")

    # -- durability ---------------------------------------------------------------------------------------------------
    def sync(self, *, background: bool = False) -> None:
        """Everything appended before this call is on disk when it returns. Waiting callers share the next fdatasync.

        `background`: nobody waits for it, and writers should not notice."""
        self._check_usable()
        self.check_outside_sync()
        target = self.appended
        covered = -1
        try:
            if self._turn.enter(target, not background):
                self._check_usable()  # it may have failed, or been closed, while we waited for our turn
                covered = self._sync_now(background)
                self._sync_count += 1
        except OSError as error:
            raise self._sync_failed(error) from error
        finally:
            self._turn.leave(covered)

    def check_outside_sync(self) -> None:
        """UsageError on a thread that is in the middle of a sync: in a signal handler, or a finalizer."""
        self._turn.check()

    def _sync_failed(self, error: OSError) -> ReadOnly:
        """Nobody knows what the disk holds now, and a second sync that succeeds would not tell: writing ends here."""
        self.failure = f"sync failed: {error}"
        return ReadOnly(f"the WAL is read-only: {self.failure}", cause=str(error), hint="close and reopen")

    def _sync_now(self, background: bool) -> int:
        """A sync writes a file's dirty pages and write-protects them: the next store into one waits for the file
        system. Synced for somebody, pages that are ready and still empty are written, too, which spares later syncs the
        journal. A background sync of a busy log takes only what has been written; the writer goes on behind it."""
        with self._lock:
            active = self.active
            assert active is not None
            exact = background and active.end - active.synced >= self._much_bytes
            if exact:
                active.fill_page()
            covered = self.appended
            older = list(self._unsynced)
            through = (active.number, active.end)
            self._syncing_from = min([active.number] + [writer.number for writer in older])
        try:
            for writer in older:
                if background and isinstance(writer, SegmentWriter):
                    writer.file.sync(0, writer.end)
                else:
                    writer.file.sync()
            if exact:
                active.file.sync(active.synced, through[1])
            else:
                active.file.sync()
            self._sync_names()
            active.synced = through[1]
            active.unprotect()
            if self._prefaulter is not None:
                self._prefaulter.synced()
            with self._lock:
                for writer in older:
                    self._unsynced.remove(writer)
                if older:
                    self._turn.unfinished = bool(self._unsynced)
                # The mark lets recovery tell bit rot from a torn tail. It needs no sync of its own, and no room is made
                # for it.
                mark = _SYNCED.pack(*through)
                if self.active is not None and self.active.fits(len(mark)):
                    self.active.append(TYPE_SYNCED, mark)
        finally:
            self._syncing_from = NEVER
        for writer in older:
            writer.close()
        return covered

    def _sync_names(self) -> None:
        """A segment that went unsynced is gone for good when this returns. Before a mark says, or a caller is told,
        that what follows is on disk: if power loss gave its name back, the log would end inside it."""
        with self._freeing:  # what is no longer ours to sync has been removed
            gone = self._names_gone
        if self._names_synced < gone:
            self._files.sync_dir(self._directory)
            self._names_synced = max(self._names_synced, gone)

    # -- reading back -------------------------------------------------------------------------------------------------
    def replay(self, types: set[int] | None) -> Iterator[tuple[LogPosition, int, bytes]]:
        """Records of these types over all live segments, oldest first, up to what was appended when the call was
        made."""
        return replay_segments(self._files, types, self._plan())

    def _plan(self) -> list[tuple[int, str, int]]:
        with self._lock:
            if self._closed:
                raise Closed("the WAL is closed")
            assert self.active is not None
            self._segments[-1].end = self.active.end
            return [(info.number, info.path, info.end) for info in self._segments]

    # -- retention ----------------------------------------------------------------------------------------------------
    def retain(self, name: str, oldest_segment_needed: int | None) -> None:
        """`name` needs this segment and all later ones; None: needs nothing. Frees what nobody needs any more: what it
        held is on disk elsewhere, and that is written down there, so that it need not have been synced here."""
        with self._freeing:
            with self._lock:
                if self._closed:
                    raise Closed("the WAL is closed")
                self._retained[name] = oldest_segment_needed
                assert self.active is not None
                floor = min([self.active.number] + [needed for needed in self._retained.values() if needed is not None])
                floor = min(floor, self._syncing_from)
                segments = [info for info in self._segments if info.number < floor]
                unsynced = [writer for writer in self._unsynced if writer.number < floor]
                del self._segments[: len(segments)], self._unsynced[: len(unsynced)]
                self._turn.unfinished = bool(self._unsynced)
            try:  # and not under `_lock`: appends and syncs go on
                while segments:
                    self._release(segments[0])
                    number = segments.pop(0).number
                    if unsynced and unsynced[0].number == number:
                        self._names_gone += 1
                        unsynced.pop(0).close()
                for item in [item for item in self._older if item[0] < floor]:
                    self._files.remove(item[1])
                    self._older.remove(item)
            finally:
                if segments:  # they could not be removed, and are the log's oldest as before
                    with self._lock:
                        self._segments[:0] = segments
                        self._unsynced[:0] = unsynced
                        self._turn.unfinished = bool(self._unsynced)

    def _release(self, info: SegmentInfo) -> None:
        # Its name may come back after power loss. It is outside the chain then, or still a valid part of it; or it had
        # not been synced and the log ends inside it, which must not be before something that was (`_sync_names`).
        # Recycling makes later syncs cheaper (no extent to convert), but zeroing costs as much disk as the log itself.
        syncs, self._syncs_at_release = self._sync_count - self._syncs_at_release, self._sync_count
        worth = syncs >= self._recycle_syncs
        if worth and info.capacity == self._segment_bytes and len(self._free) < FREE_SEGMENTS_MAX:
            target = info.path.removesuffix(".wal") + FREE_SUFFIX
            self._files.rename(info.path, target)
            self._free.append(target)
        else:
            self._files.remove(info.path)
        self._freed += 1

    def check_beginning(self, log_number: int) -> None:
        """Corruption if a segment is missing that a manifest with this log number needs; 0: nothing was ever flushed,
        it needs all that there were."""
        first = self._segments[0]
        missing = first.previous if log_number == 0 else log_number if first.number > log_number else 0
        if missing:
            path = first.path.rpartition("/")[0]
            raise Corruption(f"WAL segment {missing} is missing: the manifest needs it", path=path, found=first.number)

    def segments(self) -> list[int]:
        with self._lock:
            return [info.number for info in self._segments]

    @property
    def active_segment(self) -> int:
        assert self.active is not None
        return self.active.number

    @property
    def retainers(self) -> dict[str, int | None]:
        with self._lock:
            return dict(self._retained)

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                "segments": len(self._segments),
                "active_segment": self._segments[-1].number,
                "bytes": sum(info.capacity for info in self._segments),
                "appended_records": self.appended,
                "appended_bytes": self.appended_bytes,
                "syncs": self._sync_count,
                "rotations": self._rotations,
                "freed": self._freed,
                "recycled": self._recycled,
                "unsynced_records": self.appended - max(self._turn.covered, 0),
            }

    # -- the end ------------------------------------------------------------------------------------------------------
    def close(self, *, sync: bool = True) -> None:
        """Sync (unless the log has failed) and let go of the files. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
        self.check_outside_sync()
        try:
            if sync and self.failure is None:
                self.sync()
        finally:
            self._closed = True
            self._turn.settle()
            with self._freeing, self._making, self._lock:
                self.soft_limit = 0
                writers = [*self._unsynced, *([self.active] if self.active is not None else [])]
                if self._spare is not None:
                    writers.append(self._spare)
                self.active = None
                self._spare = None
                self._unsynced = []
                for writer in writers:
                    writer.close()


class ReadOnlyWal(Wal):
    """A log to look at: what recovery finds, without a byte changed and without a segment of our own."""

    def __init__(self, files: Files, directory: str) -> None:
        # Not Wal.__init__: that one makes a segment to append to. Appends and syncs meet `failure` first.
        self._files = files
        self._making = threading.RLock()
        self._lock = threading.RLock()
        self._closed = False
        self._segments = recover(files, directory).segments if files.exists(directory) else []
        if not self._segments:
            raise Corruption("the write-ahead log is missing", path=directory, hint="restore wal/ from where it went")
        self.settled = True
        self.failure = "opened read-only"

    def _plan(self) -> list[tuple[int, str, int]]:
        return [(info.number, info.path, info.end) for info in self._segments]

    def segments(self) -> list[int]:
        return [info.number for info in self._segments]

    def retain(self, name: str, oldest_segment_needed: int | None) -> None:
        """Nothing is ever freed by a reader."""

    def stats(self) -> dict[str, int]:
        return {
            "segments": len(self._segments),
            "active_segment": self._segments[-1].number,
            "bytes": sum(info.capacity for info in self._segments),
        }

    def check_outside_sync(self) -> None:
        """It never syncs."""

    def close(self, *, sync: bool = True) -> None:
        """Nothing is held open."""


def replay_segments(
    files: Files, types: set[int] | None, plan: list[tuple[int, str, int]]
) -> Iterator[tuple[LogPosition, int, bytes]]:
    """Records of these types in (number, path, end) segments that recovery has checked."""
    for number, path, end in plan:
        reader = SegmentReader(files.map_file(path), number, DATA_START)
        while reader.offset < end:
            found = reader.records(types, end, REPLAY_CHUNK)
            for offset, record_type, payload in found:
                yield LogPosition(number, offset), record_type, payload
            if reader.offset < end and len(found) < REPLAY_CHUNK:
                raise changed(reader, path)


def changed(reader: SegmentReader, path: str) -> Corruption:
    """What stands at `reader.offset` was a valid record when recovery looked at it."""
    expected, found = reader.checksums() if reader.state().startswith("bad") else (None, None)
    return Corruption(
        f"record changed since the log was opened ({reader.state()})",
        path=path,
        offset=reader.offset,
        expected=expected,
        found=found,
    )
