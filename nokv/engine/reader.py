"""Looking at a directory that another process may be writing: `nokv.open(path, read_only=True)`.

Owns: what a reader sees and how it moves forward. Does not own: what the bytes mean (manifest, WAL, tables).

    open, refresh    the log up to its first incomplete record  ->  the manifest  ->  every table, mapped  ->  publish

What is published is what a crash of the writer at that moment would leave: everything that has returned from a
write so far, and batches as a whole. Each refresh shows a state of the writer's history not older than the one
before. Between refreshes nothing changes: what is mapped stays readable although the writer removes the files.
The order matters: the writer frees a log segment after the manifest says that its content is in tables, so reading the
log first misses nothing. Where the writer was faster (a table or a segment went between being named and being opened)
the step is done again.

A reader takes no lock, writes nothing and needs no permission to write: a writer may come and go beside it.

What the log gave waits in layers (memtables), newest first, until tables hold it. A layer that straddles what the
tables hold is right as long as no sequence is missing inside it; otherwise (an ingest, unlogged writes) the log is read
again.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

from nokv._ext.db import Core, Snapshot, View
from nokv._ext.memtable import MemTable
from nokv._ext.table import Table
from nokv.engine.db import DB, WAL_DIRECTORY
from nokv.engine.manifest.log import CURRENT, read_current
from nokv.engine.versions import VersionSet
from nokv.engine.wal import ReadOnlyWal
from nokv.engine.wal.follow import Follower
from nokv.errors import Busy, NoKVError

__all__ = ["NoLock", "Reader"]

ATTEMPTS_MAX = 1000  # in a row, each beaten by the writer
ATTEMPTS_SURE = 3  # an error that comes back this often in an unchanged directory is one
LAYER_BYTES = 8 << 20  # a memtable this large is followed by the next

Signature = tuple[object, ...]


class NoLock:
    """What a reader holds of the directory: nothing."""

    def release(self) -> None:
        """Nothing to release."""


@dataclass(slots=True)
class _Layer:
    mem: MemTable
    first: int = 0
    gap: bool = False  # sequences are missing between its first and its last


class _Moment(Core):
    """What a snapshot of a reader reads: the view of one moment, whatever is refreshed later."""

    def __init__(self, db: Reader) -> None:
        self._db = db
        db._keep(self)  # before it stands there: from then on refreshes spare what it sees
        self._stand_at(db)

    def _family_id(self, name: str) -> int:
        return self._db._family_id(name)

    def _now_ms(self) -> int:
        return self._db._now_ms()


class Reader(DB):
    """A database that only reads. Any thread; `refresh` may run beside reads."""

    def _recover(self) -> None:
        self._moments: set[weakref.ref[_Moment]] = set()  # each step on it is one of C code
        self._refresh_mutex = threading.RLock()
        self._opened: dict[int, Table] = {}
        self._layers: list[_Layer] = []  # newest first
        self._follower: Follower | None = None
        self._flushed = 0  # the log's batches up to here were left out: tables hold them
        self._last = 0  # newest sequence in the layers
        self._refreshes = 0
        self._restarts = 0
        self._versions_seen: Signature = ()
        self.expiring = False
        self._versions = VersionSet(self.path, self._files, self._lsm_options, clock=self._clock, read_only=True)
        self._catch_up()

    def refresh(self) -> bool:
        """See what the writer has done since. False if that is nothing. Iterators, scans and snapshots that are open
        stay where they are."""
        from nokv.engine.opening import typed_os_errors

        self._check_not_inside()
        with self._refresh_mutex:
            self._check_open()
            before = (self.sequence, self._versions.families)
            with typed_os_errors(self.path, "read"):
                self._catch_up()
            self._refreshes += 1
            return before != (self.sequence, self._versions.families)

    def _locks(self) -> tuple[threading.RLock, ...]:
        return (*super()._locks(), self._refresh_mutex)

    def snapshot(self) -> Snapshot:
        moment = _Moment(self)
        self._check_open()
        return Snapshot(moment)

    def _keep(self, moment: _Moment) -> None:
        self._moments.add(weakref.ref(moment, self._moments.discard))

    def _live_moments(self) -> list[_Moment]:
        moments = [moment() for moment in tuple(self._moments)]
        return [moment for moment in moments if moment is not None]

    def _catch_up(self) -> None:
        for attempt in range(ATTEMPTS_MAX):
            before = self._signature()
            try:
                if self._follower is None:
                    self._start_over()
                self._read_log()
                versions = self._read_versions()
            except (NoKVError, FileNotFoundError):
                self._follower = None
                if attempt + 1 >= ATTEMPTS_SURE and self._signature() == before:
                    raise
                continue
            except BaseException:
                self._follower = None
                raise
            flushed = versions.last_sequence
            self._layers = [layer for layer in self._layers if layer.mem.largest_sequence > flushed]
            if any(layer.gap and layer.first <= flushed for layer in self._layers):
                self._follower = None
                continue
            self._versions = versions
            self._opened = {table.meta.number: table for tables in versions.current.levels for table in tables}
            self.family_count = max(self.family_count, *(number + 1 for number in versions.families.values()))
            self.expiring = self.expiring or versions.expiring
            mems = [layer.mem for layer in self._layers] or [MemTable(1)]
            self._publish(View(mems[0], tuple(mems[1:]), versions.current), max(self.sequence, flushed, self._last))
            return
        raise Busy(f"{self.path} changes faster than it can be read", hint="try again")

    def _start_over(self) -> None:
        """Forget what the log gave, and stand at its beginning."""
        self._layers = []
        self._last = 0
        self._restarts += 1
        path = f"{self.path}/{WAL_DIRECTORY}"
        versions = self._read_versions()
        self._flushed = versions.last_sequence
        self._wal = self.wal = ReadOnlyWal(self._files, path)  # finds damage that reading forward alone would not
        self._wal.check_beginning(versions.log_number)
        self._follower = Follower(self._files, path)

    def _read_log(self) -> None:
        assert self._follower is not None
        held = [moment.sequence for moment in self._live_moments()]  # later ones stand where we stand
        for reader, end, path in self._follower.segments():
            while True:
                if not self._layers or self._layers[0].mem.used_bytes >= LAYER_BYTES:
                    self._layers.insert(0, _Layer(MemTable(self._last + 1)))
                layer = self._layers[0]
                known = layer.mem.largest_sequence
                first, last, gap = self._follow_segment(
                    reader, layer.mem, end, self._flushed, known, LAYER_BYTES, held, path
                )
                layer.first = layer.first or first
                layer.gap = layer.gap or gap
                if last:
                    self._last = last
                if layer.mem.used_bytes < LAYER_BYTES:
                    break

    def _read_versions(self) -> VersionSet:
        """What the manifest says now, its tables open. Again, as long as the writer is faster."""
        for _ in range(ATTEMPTS_MAX):
            seen = self._manifest_signature()
            if seen == self._versions_seen:
                return self._versions
            fresh = VersionSet(
                self.path,
                self._files,
                self._lsm_options,
                clock=self._clock,
                read_only=True,
                cache=self._versions.cache,
            )
            fresh.values.opened = self._versions.values.opened
            try:
                fresh.recover(create=False, opened=self._opened)
            except (NoKVError, FileNotFoundError):
                if self._manifest_signature() == seen:
                    raise
                continue
            self._versions, self._versions_seen = fresh, seen
            return fresh
        raise Busy(f"{self.path} changes faster than it can be read", hint="try again")

    def _manifest_signature(self) -> Signature:
        """Differs whenever the manifest has another record."""
        try:
            name = read_current(self._files, f"{self.path}/{CURRENT}")
            return (name, self._files.size(f"{self.path}/{name}"))
        except (NoKVError, OSError) as error:
            return (str(error),)

    def _signature(self) -> Signature:
        try:
            log = tuple(self._files.listdir(f"{self.path}/{WAL_DIRECTORY}"))
        except OSError as error:
            log = (str(error),)
        return (*self._manifest_signature(), *log)

    def stats(self) -> dict[str, Any]:
        found = super().stats()
        follower = self._follower
        found["entries"]["snapshots"] += sum(len(m.snapshot_sequences()) for m in self._live_moments())
        found["reader"] = {
            "refreshes": self._refreshes,
            "restarts": self._restarts,
            "segment": follower.number if follower is not None else 0,
            "offset": follower.offset if follower is not None else 0,
            "layers": len(self._layers),
        }
        return found

    def close(self) -> None:
        super().close()
        self._end_moments()
        with self._refresh_mutex:
            self._opened = {}
            self._layers = []
            self._follower = None

    def _forked(self) -> None:
        super()._forked()
        self._end_moments()

    def _end_moments(self) -> None:
        for moment in self._live_moments():
            moment.state = self.state
