"""The database: one directory, one LSM tree, one WAL. Policy only: the foreground is compiled (nokv/_ext/db.pyx).

    write   log, insert, publish (compiled)  ->  memtable full: switch, flush in the background  ->  SST, manifest edit,
    WAL freed
    open    lock, mode gate, manifest, WAL recovery, replay of what no SST holds

Locks, in the order they may be taken: `_write_lock` (memtable switch, WAL rotation, unmapped appends) before
`_flush_mutex` (one flush at a time), `_compaction_mutex` (one compaction at a time) before `_view_lock` (the view's
replacement; held for an instant) and the WAL's own. A background step never takes `_write_lock`: a writer may hold it
while it waits for that step. What is called from outside looks first whether its thread holds one of them already: a
signal handler may run in the middle of anything (`_check_not_inside`).

States: open -> read-only (a sync failed, or memory ran out half-way: reads go on, writes raise ReadOnly) -> closed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nokv._ext.batch import WriteBatch
from nokv._ext.db import Family, Snapshot, View
from nokv._ext.iterator import family_bounds
from nokv._ext.memtable import MemTable
from nokv._ext.wal import SegmentReader
from nokv.engine.background import ENGINE, Background, LiveSequences
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.mode import STANDALONE, read_mode
from nokv.engine.options import EngineOptions
from nokv.engine.sst.external import ExportedFile
from nokv.engine.sst.options import LsmOptions
from nokv.engine.stats import engine_stats
from nokv.engine.syncer import IntervalSyncer
from nokv.engine.versions import VerifyReport, VersionSet
from nokv.engine.wal import Wal
from nokv.env.ports import Clock, DirectoryLock, Executor, Files
from nokv.errors import (
    Conflict,
    NoKVError,
    NotFound,
    NotSupported,
    ReadOnly,
    UsageError,
)

if TYPE_CHECKING:
    from nokv.engine.transaction import Transaction

__all__ = ["BATCH_RECORD", "DB", "DURABILITIES", "WAL_DIRECTORY"]

T = TypeVar("T")

DURABILITIES = ("process", "interval", "sync")
FAMILY_NAME_BYTES_MAX = 255
WAL_DIRECTORY = "wal"
BATCH_RECORD = 1
OLD_SEGMENTS_MAX = 5  # an open that had to read more than this flushes, so that they can go

_open_databases: weakref.WeakSet[DB] = weakref.WeakSet()


class DB(Background, MutableMapping[bytes, bytes]):
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
        self._compaction_mutex = threading.RLock()
        self._view_lock = threading.RLock()
        self._read_only = read_only
        self._poisoned = "it was opened with read_only=True" if read_only else ""
        self._closed_synced = False
        self._init_background(executor)
        self.durability = DURABILITIES.index(durability)
        self.room_bytes = options.write_buffer_bytes
        self._recover()
        self._syncer = IntervalSyncer(self, options.sync_interval_ms / 1000) if executor is None else None
        self.state = 0
        self.ready = not read_only
        if not self._wal.settled:  # what a killed process left is synced as what it wrote would have been
            self.dirty = True
            self._became_dirty()
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
        versions = self._versions = VersionSet(self.path, self._files, self._lsm_options, clock=self._clock)
        if not fresh:
            versions.recover(create=False)
        log_number = versions.log_number
        flushed = versions.last_sequence  # everything up to here is in tables
        mem = MemTable(1, pool=self._arena)
        self.view = View(mem, (), versions.current)
        self.sequence = flushed
        self.expiring = versions.expiring
        self.family_count = max(versions.families.values(), default=0) + 1

        def replay(reader: SegmentReader, stop: int, path: str) -> None:
            if reader.number < log_number:
                reader.skip_valid(stop)
            else:
                self._replay_segment(reader, stop, flushed, path)

        self._wal = self.wal = Wal(
            self._files,
            wal_path,
            self._options.wal_segment_bytes,
            (ENGINE, *self._options.wal_retainers),
            create=fresh,
            walk=replay,
            # With "sync" nothing is shown that power loss could take back, and others' records count as synced.
            first_needed=log_number,
            sync_found=self.durability == DURABILITIES.index("sync") or bool(self._options.wal_retainers),
            prefaulter=self._prefaulter,
        )
        segments = self._wal.segments()
        if not fresh:
            self._wal.check_beginning(log_number)
            versions.remove_leftovers()
        mem.first_segment = max(log_number, segments[0])
        if mem.first_segment not in segments:  # power loss took it: the log ended before it, and goes on after it
            mem.first_segment = max(number for number in segments if number < log_number)
        if segments[0] < log_number:
            versions.make_durable()  # before what it does not need goes
        self._wal.retain(ENGINE, mem.first_segment)
        if fresh:  # after the log: a directory with a manifest and no log has lost it
            versions.recover()
            self.view = View(mem, (), versions.current)

    # -- what the compiled foreground asks for ------------------------------------------------------------------------
    def _now_ms(self) -> int:
        return self._clock.time_ms()

    def _append_unmapped(self, batch: WriteBatch, log: bool) -> None:
        """The log is no memory (a test's files): appends go one at a time."""
        with self._write_lock:
            while True:
                self._check_writable()
                if self._has_room(batch.size_bytes, log):
                    break
                self._room_for(batch.size_bytes if log else 0)
            try:
                self._write_locked(batch, log)
            except OSError as error:
                self._wal.failure = f"append failed: {error}"
                raise ReadOnly(f"{self.path} is read-only: {self._wal.failure}", cause=str(error)) from error

    def _sync_log(self) -> None:
        self._wal.sync()

    def flush(self) -> None:
        """Write everything in memory to SSTs. Durable when it returns."""
        self._check_not_inside()
        with self._write_lock:
            self._check_writable()
            if len(self.view.mem):
                self._switch_memtable()
        try:
            while self._flush_oldest():
                pass
        except OSError as error:
            raise self._failed("flush", error) from error

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

    def _compact_with(self, step: Callable[[Iterable[int], int], bool]) -> None:
        self._check_not_inside(self._compaction_mutex)
        self.flush()
        with self._compaction_mutex:
            try:
                if step(LiveSequences(self), self._expired_ms()):
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
        self._check_not_inside()
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
            self._check_not_inside()
            with self._write_lock:
                self._check_writable()
                if name not in self._versions.families:
                    try:
                        number = self._versions.add_family(name)
                    except OSError as error:
                        raise self._failed("naming a family", error) from error
                    self.family_count = max(self.family_count, number + 1)
        return Family(self, name, self._family_id(name))

    def families(self) -> dict[str, int]:
        """Names and ids of the families beside the plain one."""
        return dict(self._versions.families)

    # -- tables that travel -------------------------------------------------------------------------------------------
    def export_sst(
        self,
        directory: str | os.PathLike[str],
        ranges: Sequence[tuple[str, bytes | None, bytes | None]] | None = None,
        *,
        snapshot: Snapshot | None = None,
        tombstones: bool = False,
    ) -> list[ExportedFile]:
        """What `snapshot` (or this moment) sees of these (family, start, end) ranges (None: of everything), as external
        tables in `directory`, which holds none yet. With `tombstones`: tables that delete these keys instead, to be
        ingested before what replaces them.

        Raises UsageError (a path or range that is none), PreconditionFailed (it holds tables), NotFound (of a family),
        Unavailable (the directory's disk failed or is full: no table is left), ReadOnly, Closed."""
        from nokv.engine.opening import directory_name, typed_os_errors

        self._check_open()
        directory = directory_name(directory)
        if ranges is None:
            ranges = [(name, None, None) for name in self.families()]
        if any(not isinstance(item, (tuple, list)) or len(item) != 3 for item in ranges):
            raise UsageError("a range to export is (family, start, end)", hint='[("plain", b"a", None)]')
        with contextlib.ExitStack() as stack:
            if snapshot is None:
                snapshot = stack.enter_context(self.snapshot())
            self.flush()
            with typed_os_errors(directory, "exported to"):
                return self._versions.export(
                    directory, ranges, snapshot.sequence, version=self.view.version, tombstones=tombstones
                )

    def link_tables(self, directory: str) -> list[ExportedFile]:
        """Flush, then hard-link every live SST into `directory`. Nothing is copied. Raises as `export_sst` does."""
        from nokv.engine.opening import directory_name, typed_os_errors

        directory = directory_name(directory)
        self._check_not_inside(self._compaction_mutex)
        self.flush()
        # or a table could be dropped and removed between listing and linking
        with self._compaction_mutex, typed_os_errors(directory, "linked to"):
            return self._versions.link_tables(directory)

    def ingest_sst(self, tables: Sequence[str | os.PathLike[str] | Sequence[str]]) -> None:
        """Publish external tables: each hides earlier ones and everything written before. A list in the list is a group
        of tables that do not overlap. Atomic and durable; on any error nothing has changed. Writers wait meanwhile.

        Raises UsageError (no such file, not to be read, no exported table), Corruption (of a file),
        PreconditionFailed (its families have other ids here), Unavailable (its disk failed), ReadOnly (ours failed or
        is full), Closed."""
        try:
            if isinstance(tables, (str, bytes, os.PathLike)):
                raise TypeError(f"one path, {tables!r}")
            groups = [
                [os.fsdecode(table)] if isinstance(table, (str, bytes, os.PathLike)) else [*map(os.fsdecode, table)]
                for table in tables
            ]
        except TypeError as error:
            raise UsageError(f"ingest_sst takes a list of paths, not {error}", hint='["tables/000001.sst"]') from error
        self._check_not_inside()
        with self._write_lock:
            self._check_writable()
            self.ready = False  # every writer now comes to _make_room, and waits for the lock
            step = "flush"
            try:
                if len(self.view.mem):
                    self._switch_memtable()
                while self._flush_oldest():
                    pass
                first = self.sequence + 1
                sequences = list(range(first, first + len(groups)))
                step = "ingest"
                self._versions.ingest(groups, sequences)
                self.expiring = self.expiring or self._versions.expiring
                self._install_version()
                if sequences:
                    self.sequence = sequences[-1]
            except OSError as error:
                raise self._failed(step, error) from error
            finally:
                self.ready = not self._poisoned
        self._submit_compaction()

    def refresh(self) -> bool:
        """With read_only=True: see what the writer has done since. False if that is nothing. A database that is open
        for writing sees everything at once."""
        self._check_open()
        return False

    def verify(self) -> VerifyReport:
        """Read and check every byte of every table and value file. Damage is in the report, not raised; Unavailable if
        the system cannot read a file."""
        from nokv.engine.opening import typed_os_errors

        self._check_open()
        with typed_os_errors(self.path, "read"):
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

        Raises PreconditionFailed (the directory is there and not empty), NotSupported (part of a cluster), Unavailable
        (its disk failed or is full: nothing of it is left), ReadOnly, Closed."""
        from nokv.engine.checkpoint import write_checkpoint
        from nokv.engine.opening import directory_name, typed_os_errors

        self._check_open()
        target = directory_name(directory)
        if self.mode != STANDALONE:
            raise NotSupported(
                f"{self.path} is {self.mode}: a store's data is not a database without its cluster",
                hint="replicas and region snapshots serve this purpose",
            )
        self._check_not_inside(self._compaction_mutex)
        self.flush()
        # No table may be dropped between listing and linking.
        with self._flush_mutex, self._compaction_mutex, typed_os_errors(target, "made"):
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
        return engine_stats(self)

    def __repr__(self) -> str:
        return f"<nokv.DB {self.path!r} {'closed' if self.closed else 'open'}>"

    # -- the end ------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Let go of everything: memory and files, but what open iterators walk. What is in memory goes to an SST, or
        stays in the synced log if it is little (or its flush fails): the next open replays it. `on_flush` is not
        called. Idempotent."""
        if self.state != 0:  # before the lock: in the child of a fork, its holder may not exist
            return
        self._wal.check_outside_sync()  # before anything is given up
        self._check_not_inside(self._compaction_mutex)
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
                    if self._prefaulter is not None:
                        self._prefaulter.close()
                    self._versions.close()
                    with self._view_lock:
                        self.view = View(MemTable(1), (), self._versions.current)
                    self._arena.close()
        finally:
            self._on_flush.clear()
            self._lock.release()

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
            if self._prefaulter is not None:
                self._prefaulter.close()
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
