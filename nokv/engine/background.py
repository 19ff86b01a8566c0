"""What happens to a memtable once it is full: the switch, the pace of writers meanwhile, its flush, compaction.

Owns: the steps that the executors run, and what a writer does that meets a full memtable or log. Does not own: the
foreground (nokv/_ext/db.pyx), what a step writes (versions.py), opening and closing (db.py, whose locks these are).
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

from nokv._ext import gilturn
from nokv._ext.arena import ArenaPool
from nokv._ext.db import Core, View
from nokv._ext.memtable import MemTable
from nokv._ext.prefault import Prefaulter
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.options import EngineOptions
from nokv.engine.pacing import FLUSH_RATE_GUESS, OVERSHOOT, SLICES, due_s, longest_pause_s, pause_s
from nokv.engine.signal import Signal
from nokv.engine.sst.options import LsmOptions
from nokv.engine.syncer import IntervalSyncer
from nokv.engine.versions import VersionSet
from nokv.engine.wal import Wal
from nokv.env.executor import ThreadExecutor
from nokv.env.ports import Clock, Executor
from nokv.errors import Closed, NoKVError, ReadOnly, UsageError

__all__ = ["ENGINE", "Background", "LiveSequences", "may_pass"]

ENGINE = "engine"  # our name among the WAL's retainers
SLEEP_S_MIN = 0.00005  # the system's timers are no finer (prctl(2), PR_SET_TIMERSLACK); the next pause makes up for it
FLUSH_MARGIN = 1.15  # of the time that a flush is expected to take
CLOSE_FLUSH_BYTES = 64 << 10  # a close leaves less than this to be replayed by the next open


class LiveSequences:
    """The sequences that snapshots, scans and transactions read at, whenever it is walked. A compaction walks it when
    its inputs have been chosen: what is flushed after that is not among them, and who begins to read after that reads
    behind all of them."""

    def __init__(self, db: Core) -> None:
        self._db = db

    def __iter__(self) -> Iterator[int]:
        return iter(self._db.snapshot_sequences())


class Background(Core):
    path: str
    _clock: Clock
    _options: EngineOptions
    _lsm_options: LsmOptions
    _versions: VersionSet
    _wal: Wal
    _write_lock: threading.RLock
    _flush_mutex: threading.RLock
    _compaction_mutex: threading.RLock
    _view_lock: threading.RLock
    _poisoned: str
    _read_only: bool
    _syncer: IntervalSyncer | None

    def _init_background(self, executor: Executor | None) -> None:
        self._flush_error: BaseException | None = None
        self._flush_queued = False
        self._compaction_queued = False
        self._on_flush: list[Callable[[], None]] = []
        self._flushes = 0
        self._flushed_bytes = 0
        self._write_waits = 0
        self._own_executors: list[ThreadExecutor] = []
        if executor is None:
            self._own_executors = [
                ThreadExecutor("nokv-flush"),
                ThreadExecutor("nokv-compaction"),
                ThreadExecutor("nokv-log", aside=False),
            ]
            self._flush_executor: Executor = self._own_executors[0]
            self._compaction_executor: Executor = self._own_executors[1]
            self._log_executor: Executor = self._own_executors[2]
        else:
            self._flush_executor = self._compaction_executor = self._log_executor = executor
        # a freed memtable's memory, for the next one; a memtable may have grown past its size
        self._arena = ArenaPool(self._options.write_buffer_bytes * 5 // 4, self._options.write_buffer_bytes)
        self._prefaulter = Prefaulter(self._arena) if executor is None else None
        self._paced_ns = 0  # when the slice that is being written was handed out
        self._paced_bytes = 0  # of the memtable, then
        self._owed_s = 0.0  # pauses that have not been made yet
        self._flush_rate = 0.0  # bytes a second, smoothed; 0: not known yet
        self._flush_began_ns = 0
        self._flush_progress = Signal()  # set while no memtable waits
        self._pauses = 0
        self._paused_s = 0.0

    def _check_writable(self) -> None:
        self._check_open()
        if self._poisoned:
            hint = "open it without read_only" if self._read_only else "close and reopen"
            raise ReadOnly(f"{self.path} is read-only: {self._poisoned}", cause=self._poisoned, hint=hint)
        if self._wal.failure is not None:
            raise ReadOnly(
                f"{self.path} is read-only: {self._wal.failure}", cause=self._wal.failure, hint="close and reopen"
            )

    def _check_not_inside(self, *others: threading.RLock) -> None:
        """UsageError on a thread that holds a lock of writes and flushes, or one of `others`: in a signal handler, or
        a finalizer. Its change would come into the middle of another, or wait for it for ever. (A lock that is just
        being taken or given up is not held yet, or no longer needed.)"""
        if any(map(held, (*self._locks(), *others))):
            raise UsageError(
                f"{self.path}: a write, flush, compaction, checkpoint or close inside another one of this thread",
                hint="in a signal handler or finalizer neither write nor close: leave that to whoever it interrupts",
            )

    def _locks(self) -> tuple[threading.RLock, ...]:
        return self._write_lock, self._flush_mutex, self._view_lock, self._versions.lock

    def _poison(self, reason: str) -> None:
        self._poisoned = self._poisoned or reason
        self.ready = False

    # -- room for the next record -------------------------------------------------------------------------------------
    def _make_room(self, size: int) -> None:
        """Until a record of `size` bytes (0: none) and its operations fit: rotate the log, switch the memtable,
        wait."""
        self._check_not_inside()
        self._room_for(size)

    def _room_for(self, size: int) -> None:
        with self._write_lock:
            self._check_writable()
            if self.view.mem.used_bytes >= self._options.write_buffer_bytes:
                if not self._overshoots():
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
        gilturn.hold_on()

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
        # no growing of the hash index under a writer's feet; and not one that fills the buffer by itself
        slots = min(self.view.mem.slots, self._options.write_buffer_bytes // 32)
        fresh = MemTable(self._flushes + 2, slots, self._arena)
        fresh.first_segment = self._wal.active_segment
        with self._view_lock:
            view = self.view
            self.view = View(fresh, (view.mem, *view.immutables), view.version)
        self._flush_progress.clear()
        self._owed_s = 0.0
        self._hand_out_room()
        self._submit_flush()

    def _pace(self) -> None:
        """The caller holds `_write_lock` and has used up its slice of the memtable."""
        now = self._clock.monotonic_ns()
        view = self.view
        waiting = sum(m.used_bytes for m in view.immutables)
        if waiting and not self._flush_progress.is_set():
            rate = self._flush_rate or FLUSH_RATE_GUESS
            pause = pause_s(
                capacity=self._options.write_buffer_bytes,
                used=view.mem.used_bytes,
                written=view.mem.used_bytes - self._paced_bytes,
                took_s=(now - self._paced_ns) / 1e9,
                flush_left_s=FLUSH_MARGIN * waiting / rate - (now - self._flush_began_ns) / 1e9,
                l0_files=len(self._versions.current.levels[0]),
                l0_trigger=self._lsm_options.l0_files_trigger,
                l0_slow=self._options.l0_files_slow,
            )
            self._owed_s += pause
            pause = due_s(self._owed_s, pause)
            if pause:
                self._owed_s -= pause
                self._pause(pause)
        self._hand_out_room()

    def _pause(self, pause: float) -> None:
        self._pauses += 1
        self._paused_s += pause
        if self._prefaulter is not None:
            pause -= self._prefaulter.work(pause)
        if pause > SLEEP_S_MIN:
            self._flush_progress.wait(pause)  # the end of the flush ends the pause

    def _overshoots(self) -> bool:
        """The caller holds `_write_lock`; the memtable is full. While the flush that it would have to wait for goes on,
        and there is some room left above its size, the writer pauses and gets another slice."""
        used, capacity = self.view.mem.used_bytes, self._options.write_buffer_bytes
        most = capacity + capacity // OVERSHOOT
        if not self._own_executors or used >= most or self._flush_error is not None or not self._backlog_is_full():
            return False
        self._pause(longest_pause_s(capacity, used - self._paced_bytes))
        if not self._backlog_is_full():
            return False
        self._hand_out_room(most - capacity)
        return True

    def _hand_out_room(self, more: int = 0) -> None:
        capacity = self._options.write_buffer_bytes
        used = self.view.mem.used_bytes
        if self.view.immutables and self._own_executors:
            self.room_bytes = min(capacity + more, used + max(capacity // SLICES, 1))
            self._paced_ns = self._clock.monotonic_ns()
            self._paced_bytes = used
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

    # -- the log ------------------------------------------------------------------------------------------------------
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
        try:
            if self._syncer is not None:
                self._syncer.wake()
            else:
                self._submit(self._flush_executor, self._interval_step)
        except RuntimeError:  # there is no thread to be had: the next write asks again
            self.dirty = False
            raise

    def _interval_step(self) -> None:
        self.dirty = False
        with contextlib.suppress(ReadOnly, Closed):  # the log remembers why; the next write raises it
            self._wal.sync(background=True)

    def _submit(self, executor: Executor, step: Callable[[], None]) -> bool:
        """False: the database is being closed. RuntimeError: there is no thread to be had."""
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
            submitted = False
            try:
                submitted = self._submit(self._flush_executor, self._flush_step)
            finally:
                if not submitted:
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
            used, log_number = mem.used_bytes, following.first_segment
            with self._view_lock:
                view = self.view
                self.view = View(view.mem, view.immutables[:-1], self._versions.current)
            del immutables, mem, following, view  # the pool has its memory before a writer asks for more
            if not self.view.immutables:
                self.room_bytes = self._options.write_buffer_bytes
                self._flush_progress.set()
            if used > self._options.write_buffer_bytes // 2:  # a small one says little
                rate = used * 1e9 / max(self._clock.monotonic_ns() - began, 1)
                self._flush_rate = (self._flush_rate + rate) / 2 if self._flush_rate else rate
            self._flushes += 1
            self._flushed_bytes += used
            self._flush_error = None
            self._wal.retain(ENGINE, log_number)
        self._submit_compaction()
        for callback in list(self._on_flush):
            callback()
        return True

    def _submit_compaction(self) -> None:
        if not self._compaction_queued:
            self._compaction_queued = True  # before the step, which may run at once
            submitted = False
            try:
                submitted = self._submit(self._compaction_executor, self._compaction_step)
            finally:
                if not submitted:
                    self._compaction_queued = False

    def _compaction_step(self) -> None:
        self._compaction_queued = False
        try:
            more = True
            while more and self.state == 0 and not self._poisoned:
                with self._compaction_mutex:
                    more = self._versions.maybe_compact(LiveSequences(self), self._expired_ms())
                    self._install_version()
        except (OSError, NoKVError, MemoryError) as error:
            self._flush_error = error  # nothing was changed; if it may pass, the next flush tries again
            if not may_pass(error):
                self._poison(f"compaction failed: {error}")

    def _install_version(self) -> None:
        with self._view_lock:
            view = self.view
            self.view = View(view.mem, view.immutables, self._versions.current)

    def _last_flush(self) -> None:
        view = self.view
        if self._poisoned or self._wal.failure is not None:
            return
        if not view.immutables and view.mem.used_bytes < CLOSE_FLUSH_BYTES and not self._wal.grown:
            return
        try:
            self._wal.shrink()
            fresh = MemTable(self._flushes + 2, pool=self._arena)
            fresh.first_segment = self._wal.active_segment
            self.view = View(fresh, (view.mem, *view.immutables), view.version)  # an empty one moves the log number on
            while self._flush_oldest():
                pass
        except (OSError, NoKVError, MemoryError) as error:
            self._flush_error = error  # the log has it all

    def _failed(self, what: str, error: OSError) -> ReadOnly:
        hint = "reads go on; free some space, then retry"
        if not may_pass(error):
            self._poison(f"{what} failed: {error}")
            hint = "close and reopen"
        return ReadOnly(f"{self.path}: {what} failed: {error}", cause=str(error), hint=hint)


def held(lock: threading.RLock) -> bool:
    """By this thread."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # what threading.Condition asks it, too


def may_pass(error: BaseException) -> bool:
    """Whether what a flush or a compaction met may be better next time: no space, no descriptors, no memory. Not so a
    failed sync, write or read: what the disk holds is not known then, and trying again would only hide it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(error, MemoryError)
