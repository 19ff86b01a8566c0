"""The database: one directory, one LSM tree, one WAL. Policy only: the foreground is compiled (nokv/_ext/db.pyx).

    write   log, insert, publish (compiled)  ->  memtable full: switch, flush in the background  ->  SST, manifest edit,
    WAL freed
    open    lock, mode gate, manifest, WAL recovery, replay of what no SST holds

Locks, in the order they may be taken: `_write_lock` (memtable switch, WAL rotation, unmapped appends) before
`_flush_mutex` (one
flush at a time), `_compaction_mutex` (one compaction at a time) before `_view_lock` (the view's replacement; held for
an instant) and the WAL's own. A background step never takes
`_write_lock`: a writer may hold it while it waits for that step.

States: open -> read-only (a sync failed, or memory ran out half-way: reads go on, writes raise ReadOnly) -> closed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nokv._ext.batch import WriteBatch
from nokv._ext.db import Core, Family, Snapshot, View
from nokv._ext.iterator import family_bounds
from nokv._ext.memtable import MemTable
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.mode import MODES, STANDALONE, check_open, read_mode
from nokv.engine.options import EngineOptions, make_options
from nokv.engine.pacing import SLICES, pause_s
from nokv.engine.sst.external import ExportedFile
from nokv.engine.sst.options import LsmOptions
from nokv.engine.versions import VerifyReport, VersionSet
from nokv.engine.wal import Wal
from nokv.engine.wal.log import changed
from nokv.env.clock import SystemClock
from nokv.env.executor import ThreadExecutor
from nokv.env.files import OsFiles
from nokv.env.ports import Clock, DirectoryLock, Executor, Files
from nokv.errors import (
    Closed,
    Conflict,
    Corruption,
    Locked,
    NoKVError,
    NotFound,
    NotSupported,
    ReadOnly,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from nokv.engine.transaction import Transaction

__all__ = ["DB", "open_db"]

T = TypeVar("T")

DURABILITIES = ("process", "interval", "sync")
ENGINE = "engine"  # our name among the WAL's retainers
FAMILY_NAME_BYTES_MAX = 255
LOCK_FILE = "LOCK"
WAL_DIRECTORY = "wal"
BATCH_RECORD = 1
OLD_SEGMENTS_MAX = 5  # an open that had to read more than this flushes, so that they can go
CLOSE_FLUSH_BYTES = 64 << 10  # a close leaves less than this to be replayed by the next open

_open_databases: weakref.WeakSet[DB] = weakref.WeakSet()


class DB(Core, MutableMapping[bytes, bytes]):
    """An open directory. Made by `nokv.open`; any thread; `with` closes it. As a mapping it is family 0, bytes to
    bytes."""

    wal: Wal

    def __init__(
        self,
        path: str,
        *,
        files: Files,
        clock: Clock,
        executor: Executor | None,
        durability: str,
        mode: str,
        options: EngineOptions,
        lsm_options: LsmOptions,
        lock: DirectoryLock,
        read_only: bool,
    ) -> None:
        self.path = path
        self._files = files
        self._clock = clock
        self._options = options
        self._lsm_options = lsm_options
        self._lock = lock
        self._claimed_mode = mode
        self._write_lock = threading.RLock()
        self._flush_mutex = threading.RLock()
        self._compaction_mutex = threading.Lock()
        self._view_lock = threading.Lock()
        self._read_only = read_only
        self._poisoned = "it was opened with read_only=True" if read_only else ""
        self._flush_error: BaseException | None = None
        self._closed_synced = False
        self._flush_queued = False
        self._compaction_queued = False
        self._on_flush: list[Callable[[], None]] = []
        self._flushes = 0
        self._flushed_bytes = 0
        self._write_waits = 0
        self._own_executors: list[ThreadExecutor] = []
        if executor is None:
            self._own_executors = [ThreadExecutor(f"nokv-{work}") for work in ("flush", "compaction", "log")]
            self._flush_executor: Executor = self._own_executors[0]
            self._compaction_executor: Executor = self._own_executors[1]
            self._log_executor: Executor = self._own_executors[2]
        else:
            self._flush_executor = self._compaction_executor = self._log_executor = executor
        self.durability = DURABILITIES.index(durability)
        self.room_bytes = options.write_buffer_bytes
        self._paced_ns = 0  # when the slice that is being written was handed out
        self._flush_rate = 0.0  # bytes a second, smoothed; 0: not known yet
        self._flush_began_ns = 0
        self._flush_progress = threading.Event()  # set while no memtable waits
        self._pauses = 0
        self._paused_s = 0.0
        self._recover()
        self._syncer = _IntervalSyncer(self, options.sync_interval_ms / 1000) if executor is None else None
        self.state = 0
        self.ready = not read_only
        _open_databases.add(self)
        if not read_only and len(self._wal.segments()) > OLD_SEGMENTS_MAX:
            with self._write_lock:
                if len(self.view.mem):
                    self._switch_memtable()
                else:
                    self.view.mem.first_segment = self._wal.active_segment
                    self._versions.apply(VersionEdit(log_number=self._wal.active_segment))
                    self._wal.retain(ENGINE, self._wal.active_segment)

    def _recover(self) -> None:
        fresh = not self._files.exists(f"{self.path}/CURRENT")
        wal_path = f"{self.path}/{WAL_DIRECTORY}"
        retainers = (ENGINE, *self._options.wal_retainers)
        self._wal: Wal
        if fresh:
            # The log comes first: a directory with a manifest and no log has lost it.
            self._wal = Wal(self._files, wal_path, self._options.wal_segment_bytes, retainers)
        self._versions = VersionSet(self.path, self._files, self._lsm_options, clock=self._clock)
        self._versions.recover(create=fresh)
        if not fresh:
            self._wal = Wal(self._files, wal_path, self._options.wal_segment_bytes, retainers, create=False)
        self.wal = self._wal
        log_number = self._versions.log_number
        segments = self._wal.segments()
        if log_number and segments[0] > log_number:
            raise Corruption(
                f"WAL segment {log_number} is missing: the manifest needs it", path=wal_path, found=segments[0]
            )
        mem = MemTable(1)
        mem.first_segment = max(log_number, segments[0])
        self.view = View(mem, (), self._versions.current)
        self.sequence = self._versions.last_sequence
        self.expiring = self._versions.expiring
        self.family_count = max(self._versions.families.values(), default=0) + 1
        flushed = self._versions.last_sequence  # everything up to here is in tables
        for reader, end, segment_path in self._wal.readers(log_number):
            self._replay_segment(reader, end, flushed, segment_path)
            if reader.offset < end:
                raise changed(reader, segment_path)
        self._wal.retain(ENGINE, mem.first_segment)

    # -- what the compiled foreground asks for ------------------------------------------------------------------------
    def _now_ms(self) -> int:
        return self._clock.time_ms()

    def _check_writable(self) -> None:
        self._check_open()
        if self._poisoned:
            hint = "open it without read_only" if self._read_only else "close and reopen"
            raise ReadOnly(f"{self.path} is read-only: {self._poisoned}", cause=self._poisoned, hint=hint)
        if self._wal.failure is not None:
            raise ReadOnly(
                f"{self.path} is read-only: {self._wal.failure}", cause=self._wal.failure, hint="close and reopen"
            )

    def _poison(self, reason: str) -> None:
        self._poisoned = self._poisoned or reason
        self.ready = False

    def _make_room(self, size: int) -> None:
        """Until a record of `size` bytes (0: none) and its operations fit: rotate the log, switch the memtable,
        wait."""
        with self._write_lock:
            self._check_writable()
            if self.view.mem.used_bytes >= self._options.write_buffer_bytes:
                self._switch_memtable()
            elif self.view.mem.used_bytes >= self.room_bytes:
                self._pace()
            if size:
                try:
                    self._wal.make_room(size)
                except OSError as error:
                    raise ReadOnly(
                        f"{self.path}: no new WAL segment: {error}",
                        cause=str(error),
                        hint="free some space, then retry",
                    ) from error

    def _switch_memtable(self) -> None:
        """The caller holds `_write_lock`. A fresh memtable takes the writes; the full one waits for its flush."""
        while self._backlog_is_full():
            self._write_waits += 1
            self._flush_error = None
            self._submit_flush()
            self._flush_executor.drain()
            self._check_writable()
            if self._flush_error is not None:
                raise ReadOnly(
                    f"{self.path}: flush failed: {self._flush_error}",
                    cause=str(self._flush_error),
                    hint="reads go on; free some space, then retry",
                )
        if len(self._versions.current.levels[0]) >= self._options.l0_files_slow:
            self._write_waits += 1
            self._submit_compaction()
            self._compaction_executor.drain()
        # no growing of the hash index under a writer's feet
        fresh = MemTable(self._flushes + 2, self.view.mem.slots)
        fresh.first_segment = self._wal.active_segment
        with self._view_lock:
            view = self.view
            self.view = View(fresh, (view.mem, *view.immutables), view.version)
        self._flush_progress.clear()
        self._hand_out_room()
        self._submit_flush()

    def _pace(self) -> None:
        """The caller holds `_write_lock` and has used up its slice of the memtable."""
        now = self._clock.monotonic_ns()
        view = self.view
        waiting = sum(m.used_bytes for m in view.immutables)
        if waiting and self._flush_rate and not self._flush_progress.is_set():
            pause = pause_s(
                capacity=self._options.write_buffer_bytes,
                used=view.mem.used_bytes,
                slice_s=(now - self._paced_ns) / 1e9,
                flush_left_s=1.3 * waiting / self._flush_rate - (now - self._flush_began_ns) / 1e9,
                l0_files=len(self._versions.current.levels[0]),
                l0_trigger=self._lsm_options.l0_files_trigger,
                l0_slow=self._options.l0_files_slow,
            )
            if pause:
                self._pauses += 1
                self._paused_s += pause
                self._flush_progress.wait(pause)  # the end of the flush ends the pause
        self._hand_out_room()

    def _hand_out_room(self) -> None:
        capacity = self._options.write_buffer_bytes
        if self.view.immutables and self._own_executors:
            self.room_bytes = min(capacity, self.view.mem.used_bytes + max(capacity // SLICES, 1))
            self._paced_ns = self._clock.monotonic_ns()
        else:
            self.room_bytes = capacity

    def _backlog_is_full(self) -> bool:
        """Too many memtables wait for their flush, or, with very large values in them, too many bytes."""
        immutables = self.view.immutables
        most = self._options.immutables_max
        return (
            len(immutables) >= most
            or sum(m.used_bytes for m in immutables) > 2 * most * self._options.write_buffer_bytes
        )

    def _append_unmapped(self, batch: WriteBatch, log: bool) -> None:
        """The log is no memory (a test's files): appends go one at a time."""
        with self._write_lock:
            while True:
                self._check_writable()
                if self._has_room(batch.size_bytes, log):
                    break
                self._make_room(batch.size_bytes if log else 0)
            try:
                self._write_locked(batch, log)
            except OSError as error:
                self._wal.failure = f"append failed: {error}"
                raise ReadOnly(f"{self.path} is read-only: {self._wal.failure}", cause=str(error)) from error

    def _prepare_segment(self) -> None:
        self._wal.soft_limit = (1 << 64) - 1  # until the step has been done
        self._submit(self._log_executor, self._prepare_step)

    def _prepare_step(self) -> None:
        # No space: the append that needs the segment reports it. A failed sync: the next write raises.
        with contextlib.suppress(OSError, ReadOnly):
            self._wal.attend()

    def _became_dirty(self) -> None:
        if self.durability != 1:
            return
        if self._syncer is not None:
            self._syncer.wake()
        else:
            self._submit(self._flush_executor, self._interval_step)

    def _interval_step(self) -> None:
        self.dirty = False
        with contextlib.suppress(ReadOnly, Closed):  # the log remembers why; the next write raises it
            self._wal.sync()

    def _sync_log(self) -> None:
        self._wal.sync()

    def _submit(self, executor: Executor, step: Callable[[], None]) -> bool:
        try:
            executor.submit(step)
        except (Closed, RuntimeError):
            if self.state == 0:
                raise
            return False
        return True

    # -- flush and compaction -----------------------------------------------------------------------------------------
    def _submit_flush(self) -> None:
        if not self._flush_queued:
            self._flush_queued = True  # before the step, which may run at once
            if not self._submit(self._flush_executor, self._flush_step):
                self._flush_queued = False

    def _flush_step(self) -> None:
        self._flush_queued = False
        try:
            while self.state == 0 and not self._poisoned and self._flush_oldest():
                pass
        except (OSError, NoKVError, MemoryError) as error:
            self._flush_error = error  # if it may pass, writers carry on until the bound, then try again and report it
            if not may_pass(error):
                self._poison(f"flush failed: {error}")

    def _flush_oldest(self) -> bool:
        """Write the oldest immutable memtable to level 0. False if there is none."""
        with self._flush_mutex:
            immutables = self.view.immutables
            if not immutables:
                return False
            mem = immutables[-1]
            following = immutables[-2] if len(immutables) > 1 else self.view.mem
            edit = VersionEdit(log_number=following.first_segment, last_sequence=mem.largest_sequence)
            began = self._flush_began_ns = self._clock.monotonic_ns()
            meta = self._versions.write_level0(
                self._memtable_cursor(mem),
                ranges=mem.ranges(),
                snapshots=self.snapshot_sequences(),
                expired_ms=self._expired_ms(),
                edit=edit,
            )
            if meta is not None:
                edit.added = [meta]
            self._versions.apply(edit)
            with self._view_lock:
                view = self.view
                self.view = View(view.mem, view.immutables[:-1], self._versions.current)
            if not self.view.immutables:
                self.room_bytes = self._options.write_buffer_bytes
                self._flush_progress.set()
            if mem.used_bytes > self._options.write_buffer_bytes // 2:  # a small one says little
                rate = mem.used_bytes * 1e9 / max(self._clock.monotonic_ns() - began, 1)
                self._flush_rate = (self._flush_rate + rate) / 2 if self._flush_rate else rate
            self._flushes += 1
            self._flushed_bytes += mem.used_bytes
            self._flush_error = None
            self._wal.retain(ENGINE, following.first_segment)
        self._submit_compaction()
        for callback in list(self._on_flush):
            callback()
        return True

    def _submit_compaction(self) -> None:
        if not self._compaction_queued:
            self._compaction_queued = True  # before the step, which may run at once
            if not self._submit(self._compaction_executor, self._compaction_step):
                self._compaction_queued = False

    def _compaction_step(self) -> None:
        self._compaction_queued = False
        try:
            more = True
            while more and self.state == 0 and not self._poisoned:
                with self._compaction_mutex:
                    more = self._versions.maybe_compact(self.snapshot_sequences(), self._expired_ms())
                    self._install_version()
        except (OSError, NoKVError, MemoryError) as error:
            self._flush_error = error  # nothing was changed; if it may pass, the next flush tries again
            if not may_pass(error):
                self._poison(f"compaction failed: {error}")

    def _install_version(self) -> None:
        with self._view_lock:
            view = self.view
            self.view = View(view.mem, view.immutables, self._versions.current)

    def flush(self) -> None:
        """Write everything in memory to SSTs. Durable when it returns."""
        with self._write_lock:
            self._check_writable()
            if len(self.view.mem):
                self._switch_memtable()
        try:
            while self._flush_oldest():
                pass
        except OSError as error:
            raise self._failed("flush", error) from error

    def _failed(self, what: str, error: OSError) -> ReadOnly:
        hint = "reads go on; free some space, then retry"
        if not may_pass(error):
            self._poison(f"{what} failed: {error}")
            hint = "close and reopen"
        return ReadOnly(f"{self.path}: {what} failed: {error}", cause=str(error), hint=hint)

    def compact(self, start: bytes | None = None, end: bytes | None = None) -> None:
        """Flush, then merge all tables into one level, compressed, without superseded versions and what is deleted or
        has expired. With a bound: only tables that touch start <= key < end of the plain family, level by level."""
        if start is None and end is None:
            self._compact_with(self._versions.compact_all)
        else:
            self._compact_family(0, start, end)

    def _compact_family(self, number: int, start: bytes | None, end: bytes | None) -> None:
        lower, upper = family_bounds(number, start, end)
        self._compact_with(partial(self._versions.compact_range, lower, upper))

    def _compact_with(self, step: Callable[[list[int], int], bool]) -> None:
        self.flush()
        with self._compaction_mutex:
            try:
                if step(self.snapshot_sequences(), self._expired_ms()):
                    self._install_version()
            except OSError as error:
                raise self._failed("compaction", error) from error

    def on_flush(self, callback: Callable[[], None]) -> None:
        """`callback()` on the thread that finished a flush, after the manifest edit is durable."""
        self._on_flush.append(callback)

    # -- writes -------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def write_batch(self, sync: bool | None = None) -> Iterator[WriteBatch]:
        """Collect operations; they apply atomically at the end of the block, or not at all if it raises."""
        self._check_open()
        batch = WriteBatch(resolve=self._family_id, now_ms=self._now_ms)
        yield batch
        self.write(batch, sync=sync)

    def write_if(self, batch: WriteBatch, check: Callable[[], None], *, sync: bool | None = None) -> None:
        """Write the batch if `check()` returns; what it raises comes out, and nothing was written. No other write comes
        between. `check` may read; it must not write. Raises ReadOnly, Closed, NotFound (of a family) too."""
        with self._write_lock:
            self._check_writable()
            self.ready = False  # every other writer now comes to _make_room, and waits for the lock
            try:
                check()
                if len(batch):
                    self._append_unmapped(batch, True)
            finally:
                self.ready = self.state == 0 and not self._poisoned
        self._logged(sync)

    def _logged(self, sync: bool | None) -> None:
        """What the compiled foreground does after a record is in the log."""
        if not self.dirty:
            self.dirty = True
            self._became_dirty()
        if sync or (sync is None and self.durability == DURABILITIES.index("sync")):
            self._sync_log()

    @property
    def stored_sequence(self) -> int:
        """No table holds anything newer."""
        return self._versions.last_sequence

    # -- transactions -------------------------------------------------------------------------------------------------
    def transaction(self, *, sync: bool | None = None) -> Transaction:
        """An optimistic transaction over all families, serializable within this process.

            with db.transaction() as txn:
                txn.put(b"balance", str(int(txn.get(b"balance", b"0")) + 1).encode())

        The end of the block commits: Conflict if what it read was written meanwhile (nothing was done then). A block
        that raises writes nothing. Raises Closed."""
        from nokv.engine.transaction import Transaction

        self._check_open()
        return Transaction(self, sync)

    def run(self, function: Callable[[Transaction], T], *, attempts_max: int = 1000, sync: bool | None = None) -> T:
        """`function(transaction)`, committed; again from the start after each Conflict, so it must be repeatable. Its
        answer. The last Conflict comes out after `attempts_max` attempts; any other exception at once, nothing
        written."""
        if attempts_max < 1:
            raise UsageError(f"attempts_max={attempts_max} allows no attempt")
        attempt = 1
        while True:
            with self.transaction(sync=sync) as transaction:
                answer = function(transaction)
                try:
                    if not transaction.closed:
                        transaction.commit()
                    return answer
                except Conflict:
                    if attempt >= attempts_max:
                        raise
            attempt += 1

    def sync(self) -> None:
        """Everything written so far is on disk when this returns. After an orderly close it is there already, so that
        `shelve` may sync as late as it likes."""
        if self._closed_synced:
            return
        self._check_writable()
        self._wal.sync()

    # -- families -----------------------------------------------------------------------------------------------------
    def _family_id(self, name: str) -> int:
        number = self._versions.families.get(name)
        if number is None:
            raise NotFound(f"family {name!r} does not exist", hint="db.family(name, create=True) makes it")
        return number

    def family(self, name: str, *, create: bool = False) -> Family:
        """The keyspace of this name. NotFound unless it exists or `create`."""
        self._check_open()
        if not isinstance(name, str) or not name or len(name.encode()) > FAMILY_NAME_BYTES_MAX:
            raise UsageError(f"bad family name {name!r}", hint=f"a text of 1 to {FAMILY_NAME_BYTES_MAX} bytes")
        if create and name not in self._versions.families:
            with self._write_lock:
                self._check_writable()
                if name not in self._versions.families:
                    number = self._versions.add_family(name)
                    self.family_count = max(self.family_count, number + 1)
        return Family(self, name, self._family_id(name))

    def families(self) -> dict[str, int]:
        """Names and ids of the families beside the plain one."""
        return dict(self._versions.families)

    # -- tables that travel -------------------------------------------------------------------------------------------
    def export_sst(
        self,
        directory: str,
        ranges: Sequence[tuple[str, bytes | None, bytes | None]],
        *,
        snapshot: Snapshot | None = None,
        tombstones: bool = False,
    ) -> list[ExportedFile]:
        """What `snapshot` (or this moment) sees of these (family, start, end) ranges, as external tables in
        `directory`. With `tombstones`: tables that delete these keys instead, to be ingested before what replaces
        them."""
        self._check_open()
        with contextlib.ExitStack() as stack:
            if snapshot is None:
                snapshot = stack.enter_context(self.snapshot())
            self.flush()
            return self._versions.export(
                directory, ranges, snapshot.sequence, version=self.view.version, tombstones=tombstones
            )

    def link_tables(self, directory: str) -> list[ExportedFile]:
        """Flush, then hard-link every live SST into `directory`. Nothing is copied."""
        self.flush()
        with self._compaction_mutex:  # or a table could be dropped and removed between listing and linking
            return self._versions.link_tables(directory)

    def ingest(self, groups: Sequence[Sequence[str]]) -> None:
        """Publish external tables: later groups hide earlier ones and everything written before. Atomic and durable; on
        any error nothing has changed. Writers wait meanwhile."""
        with self._write_lock:
            self._check_writable()
            self.ready = False  # every writer now comes to _make_room, and waits for the lock
            try:
                if len(self.view.mem):
                    self._switch_memtable()
                while self._flush_oldest():
                    pass
                first = self.sequence + 1
                sequences = list(range(first, first + len(groups)))
                self._versions.ingest(groups, sequences)
                self.expiring = self.expiring or self._versions.expiring
                self._install_version()
                if sequences:
                    self.sequence = sequences[-1]
            finally:
                self.ready = not self._poisoned
        self._submit_compaction()

    def refresh(self) -> bool:
        """With read_only=True: see what the writer has done since. False if that is nothing. A database that is open
        for writing sees everything at once."""
        self._check_open()
        return False

    def verify(self) -> VerifyReport:
        """Read and check every byte of every table and value file. Damage is in the report, not raised."""
        self._check_open()
        return self._versions.verify()

    def check(self) -> VerifyReport:
        """`verify`, but the first damage is raised as Corruption (path, offset)."""
        report = self.verify()
        if report.damaged:
            raise report.damaged[0]
        return report

    def checkpoint(self, directory: str | os.PathLike[str]) -> None:
        """Make `directory` a database of its own with everything written before this call: hard links, no table is
        copied unless it lies on another file system. Durable when it returns; reads and writes go on meanwhile.

        Raises PreconditionFailed (the directory is there and not empty), NotSupported (part of a cluster), ReadOnly,
        Closed."""
        from nokv.engine.checkpoint import write_checkpoint

        self._check_open()
        target = os.fsdecode(os.fspath(directory)).rstrip("/") or "/"
        if self.mode != STANDALONE:
            raise NotSupported(
                f"{self.path} is {self.mode}: a store's data is not a database without its cluster",
                hint="replicas and region snapshots serve this purpose",
            )
        self.flush()
        with self._flush_mutex, self._compaction_mutex:  # no table may be dropped between listing and linking
            versions = self._versions
            tables = [meta for level in versions.current.files() for meta in level]
            write_checkpoint(
                self._files,
                self.path,
                target,
                tables,
                dict(versions.families),
                versions.last_sequence,
                list(versions.values.metas.values()),
            )

    # -- the mapping --------------------------------------------------------------------------------------------------
    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise NotFound(f"no key {key!r}")
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.put(key, value)

    def __delitem__(self, key: bytes) -> None:
        if self.get(key) is None:
            raise NotFound(f"no key {key!r}")
        self.delete(key)

    def __contains__(self, key: object) -> bool:
        return self.get(cast(bytes, key)) is not None

    def __iter__(self) -> Iterator[bytes]:
        return self.scan(values=False)

    def __len__(self) -> int:
        """Counts by scanning."""
        return sum(1 for _ in self.scan(values=False))

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def clear(self) -> None:
        """Delete every key of the plain family, atomically."""
        self.delete_range(None, None)

    # -- looking ------------------------------------------------------------------------------------------------------
    @property
    def closed(self) -> bool:
        return self.state != 0

    @property
    def mode(self) -> str:
        return read_mode(self.path, self._files).mode

    def stats(self) -> dict[str, Any]:
        """Counters and gauges, in groups. Cheap: nothing is read from disk."""
        self._check_open()
        view = self.view
        immutables = view.immutables
        wal = self._wal.stats()
        return {
            "entries": {
                "memtable": len(view.mem) + sum(len(table) for table in immutables),
                "sequence": self.sequence,
                "snapshots": len(self.snapshot_sequences()),
                "families": self.family_count,
            },
            "write": {
                "puts": self.puts,
                "deletes": self.deletes,
                "batches": self.batches,
                "bytes": self.written_bytes,
                "waits": self._write_waits,
                "pauses": self._pauses,
                "paused_ms": int(self._paused_s * 1000),
                "read_only": bool(self._poisoned or self._wal.failure),
            },
            "read": {"gets": self.gets, "scans": self.scans},
            "flush": {
                "count": self._flushes,
                "bytes": self._flushed_bytes,
                "pending": len(immutables),
                "memtable_bytes": view.mem.used_bytes,
                "memtable_allocated_bytes": view.mem.allocated_bytes + sum(t.allocated_bytes for t in immutables),
                "last_error": str(self._flush_error or ""),
            },
            "wal": wal,
            **_table_groups(self._versions.stats()),
        }

    def __repr__(self) -> str:
        return f"<nokv.DB {self.path!r} {'closed' if self.closed else 'open'}>"

    # -- the end ------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Let go of everything. What is in memory goes to an SST, or stays in the synced log if it is little (or its
        flush fails): the next open replays it. `on_flush` is not called. Idempotent."""
        if self.state != 0:  # before the lock: in the child of a fork, its holder may not exist
            return
        with self._write_lock:
            if self.state != 0:
                return
            self.state = 1
            self.ready = False
        _open_databases.discard(self)
        try:
            if self._syncer is not None:
                self._syncer.stop()
            for executor in self._own_executors:
                executor.close()
            with self._flush_mutex, self._compaction_mutex:
                self._on_flush.clear()
                self._last_flush()
                try:
                    self._wal.close(sync=not self._poisoned)
                    self._closed_synced = not self._poisoned
                finally:
                    self._versions.close()
        finally:
            self._on_flush.clear()
            self._lock.release()

    def _last_flush(self) -> None:
        view = self.view
        if self._poisoned or self._wal.failure is not None:
            return
        if not view.immutables and view.mem.used_bytes < CLOSE_FLUSH_BYTES and not self._wal.grown:
            return
        try:
            self._wal.shrink()
            fresh = MemTable(self._flushes + 2)
            fresh.first_segment = self._wal.active_segment
            self.view = View(fresh, (view.mem, *view.immutables), view.version)  # an empty one moves the log number on
            while self._flush_oldest():
                pass
        except (OSError, NoKVError, MemoryError) as error:
            self._flush_error = error  # the log has it all

    def __del__(self) -> None:
        """Dropped without a close: let go of threads, memory, the lock. With injected ports, no further operation."""
        if self.state != 0:
            return
        self.state = 1
        self.ready = False
        with contextlib.suppress(NoKVError, OSError):  # nobody is left to tell
            if self._syncer is not None:
                self._syncer.stop()
            for executor in self._own_executors:
                executor.close()
            self._wal.close(sync=bool(self._own_executors) and not self._poisoned)
        self._lock.release()

    def _forked(self) -> None:
        """In the child of a fork: this handle is dead, and the parent's lock stays the parent's."""
        self.state = 2
        self.ready = False
        abandon = getattr(self._lock, "abandon", None)
        if abandon is not None:
            abandon()

    def __enter__(self) -> DB:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _table_groups(found: dict[str, Any]) -> dict[str, Any]:
    """The VersionSet's figures, in the groups of FEATURES 1.12."""
    cache = found.pop("block_cache")
    compaction = {
        "count": found.pop("compactions"),
        "bytes_read": found.pop("compaction_bytes_read"),
        "bytes_written": found.pop("compaction_bytes_written"),
    }
    return {"compaction": compaction, "cache": cache, "values": found.pop("values"), "lsm": found}


class _IntervalSyncer:
    """durability="interval": a thread that syncs the log, one interval after the first write since the last sync."""

    def __init__(self, db: DB, interval_s: float) -> None:
        self._db = weakref.ref(db)
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._pending = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="nokv-sync", daemon=True)
                self._thread.start()
            self._pending = True
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                # the interval runs from the first write on; only the end cuts it short
                if self._changed.wait_for(lambda: self._stopping, self._interval_s):
                    return
                self._pending = False
            db = self._db()
            if db is None:
                return
            db._interval_step()
            del db


def open_db(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    durability: str = "interval",
    families: Iterable[str] = (),
    mode: str = STANDALONE,
    files: Files | None = None,
    clock: Clock | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> DB:
    """Open the database in directory `path`, or make one.

    durability: what a finished write survives without `sync=True`. "process": the death of this process. "interval":
    power loss too, but for the last 100 ms. "sync": power loss. `sync=True` on a call always means power loss.
    read_only: look at a directory, also while another process writes it: a frozen, consistent view of this moment,
    which `db.refresh()` moves forward. Takes no lock, changes nothing on disk; as many as you like.
    `mode` is the directory mode that the caller understands; an application leaves it alone.

    Raises NotFound (no database and create=False), Locked, ModeError, Corruption (with file and offset), UsageError.
    """
    name = os.fsdecode(os.fspath(path)).rstrip("/") or "/"
    if durability not in DURABILITIES:
        raise UsageError(f"unknown durability {durability!r}", hint=" | ".join(DURABILITIES))
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", hint=" | ".join(MODES))
    if isinstance(families, (str, bytes)):
        raise UsageError("families must be a list of names", hint=f"families=[{families!r}]")
    settings, lsm = make_options(options)
    files = files if files is not None else OsFiles()
    try:
        return _open(
            name,
            create and not read_only,
            read_only,
            durability,
            tuple(families),
            mode,
            files,
            clock,
            executor,
            settings,
            lsm,
        )
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnly(
                f"{name} cannot be written: {error}", cause=str(error), hint="check its permissions"
            ) from error
        if error.errno == errno.ENOTDIR:
            raise UsageError(f"{name}: a part of its path is a file", hint="a database is a directory") from error
        raise Unavailable(f"{name} cannot be opened: {error}", hint="free some space, or check the disk") from error


def _open(
    path: str,
    create: bool,
    read_only: bool,
    durability: str,
    families: tuple[str, ...],
    mode: str,
    files: Files,
    clock: Clock | None,
    executor: Executor | None,
    options: EngineOptions,
    lsm_options: LsmOptions,
) -> DB:
    if not files.exists(path):
        if not create:
            raise NotFound(f"{path} does not exist", hint="create=True makes it")
        files.makedirs(path)
    try:
        files.listdir(path)
    except NotADirectoryError:
        raise UsageError(f"{path} is a file, not a directory", hint="a database is a directory") from None
    if not create and not files.exists(f"{path}/CURRENT"):
        raise NotFound(f"{path} holds no database", hint="create=True makes one")
    check_open(path, mode, read_mode(path, files))
    lock: DirectoryLock
    kind: type[DB]
    if read_only:
        from nokv.engine.reader import NoLock, Reader

        lock, kind = NoLock(), Reader
    else:
        kind = DB
        try:
            lock = files.lock(f"{path}/{LOCK_FILE}")
        except BlockingIOError:
            raise Locked(
                f"{path} is open in another process, or twice in this one",
                hint="close the other one, or look at it with read_only=True",
            ) from None
    try:
        check_open(path, mode, read_mode(path, files))  # again: it may have changed before we held the lock
        db = kind(
            path,
            files=files,
            clock=clock if clock is not None else SystemClock(),
            executor=executor,
            durability=durability,
            mode=mode,
            options=options,
            lsm_options=lsm_options,
            lock=lock,
            read_only=read_only,
        )
    except BaseException:
        lock.release()
        raise
    try:
        for name in families:
            db.family(name, create=not read_only)
    except BaseException:
        db.close()
        raise
    return db


def may_pass(error: BaseException) -> bool:
    """Whether what a flush or a compaction met may be better next time: no space, no descriptors, no memory. Not so a
    failed sync, write or read: what the disk holds is not known then, and trying again would only hide it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(error, MemoryError)


def _after_fork_in_child() -> None:
    for db in list(_open_databases):
        db._forked()


def _at_exit() -> None:
    for db in list(_open_databases):
        with contextlib.suppress(NoKVError, OSError):  # the process ends: there is nobody left to tell
            db.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
