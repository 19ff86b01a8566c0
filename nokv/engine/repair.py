"""`check`, `repair`, `destroy`: what is done to a directory that nobody has open (docs/repair.md).

`repair` never deletes. Whatever the repaired database does not use is moved to `lost/`. Its steps are ordered so that a
crash between any two leaves a directory that opens as repaired, or refuses to open and can be repaired again:

    new tables, new manifest     leftovers until CURRENT names them
    damaged files -> lost/       the old manifest now names missing tables: refused
    CURRENT                      the new manifest counts
    wal/ -> lost/, new wal/      only if the log is damaged: until then recovery refuses it, in between it is missing
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nokv._ext.batch import decode_batch
from nokv._ext.blockcache import BlockCache
from nokv._ext.crc32c import crc32c
from nokv._ext.merge import merge
from nokv._ext.ranges import Ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder, VersionFilter
from nokv._ext.valuefile import ValueFile, ValueSink, check_references, decode_reference, resolve_reference
from nokv._ext.wal import DATA_START, SegmentReader
from nokv.engine.checkpoint import FIRST_LOG_NUMBER, WAL_DIRECTORY, new_log, write_manifest
from nokv.engine.db import BATCH_RECORD
from nokv.engine.manifest.edit import FileMeta, ValueFileMeta
from nokv.engine.manifest.log import CURRENT, manifest_name, manifest_number, read_current, read_manifest
from nokv.engine.mode import MODE_FILE, STANDALONE, check_open, read_mode
from nokv.engine.opening import LOCK_FILE, directory_name, open_db, typed_os_errors
from nokv.engine.sst.options import LsmOptions
from nokv.engine.sst.table import WrittenTable, open_table, table_name, table_number, write_table, write_tables
from nokv.engine.values import value_name, value_number
from nokv.engine.versions import RESERVED_FAMILIES, VersionSet
from nokv.engine.wal.recovery import SegmentInfo, _read_info, _read_link, recover, segment_number
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import Corruption, Locked, NotFound, UsageError

__all__ = ["CheckReport", "RepairReport", "check", "destroy", "repair"]

LOST = "lost"
CHUNK = 1024
# kinds (docs/formats/sst.md)
DELETE, PUT, EXPIRING_PUT, RANGE_DELETE, REFERENCE, EXPIRING_REFERENCE = range(6)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """`problems`: one line each, none for a healthy directory."""

    path: str
    tables: int
    entries: int
    size_bytes: int
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair` found and did. `lost` names what now lies in `lost/`; `notes` say what that means."""

    path: str
    changed: bool
    problems: tuple[str, ...]
    tables_kept: int
    lost: tuple[str, ...]
    batches_recovered: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    manifest: str | None = None  # None: no manifest can be read
    current_ok: bool = True
    log_ok: bool = True
    log_gap: bool = False
    log_first: int = 0  # its oldest segment
    log_sequence: int = 0  # of the first write in it; 0: it holds none
    named: dict[int, FileMeta] = field(default_factory=dict)  # tables that the manifest names
    dropped: set[int] = field(default_factory=set)  # those of which it says that they are gone
    flushed: int = 0  # its last sequence
    incomplete: bool = False  # it has lost its last edits, and there are tables that they may have named
    mixed: bool = False  # one of these tables holds something that is as old as the manifest
    healthy: list[tuple[FileMeta, Table]] = field(default_factory=list)
    external: list[str] = field(default_factory=list)  # whole, but nobody knows their place in time
    damaged: list[str] = field(default_factory=list)
    families: dict[str, int] = field(default_factory=dict)
    last_sequence: int = 0
    log_number: int = 0
    values: dict[int, ValueFile] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)  # numbers of value files that are damaged or missing


def check(path: str | os.PathLike[str], *, files: Files | None = None) -> CheckReport:
    """Read every byte of a directory that nobody has open, and say what is wrong. Changes nothing.

    Raises NotFound (no database there), UsageError (a file), Locked, NotSupported (a newer format)."""
    path, files = directory_name(path), files or OsFiles()
    with typed_os_errors(path), _locked(files, path, shared=True):
        found = _inspect(files, path)
    return CheckReport(
        path,
        len(found.healthy) + len(found.damaged),
        sum(meta.entries for meta, _ in found.healthy),
        sum(meta.size for meta, _ in found.healthy),
        tuple(found.problems),
    )


def repair(path: str | os.PathLike[str], *, files: Files | None = None) -> RepairReport:
    """Make a damaged standalone directory open again, with everything that can still be read. Damaged files go to
    `lost/` inside it; nothing is deleted. A healthy directory is left as it is.

    What is lost is gone from the database: a key of a damaged table may be missing, or show an older value. Without a
    readable manifest all readable tables count, and behind one that lost its last edits those that it cannot know, so
    that deleted keys may come back. The report says so.

    Raises NotFound, Locked, ModeError (a cluster's store is not repaired but replaced), NotSupported (a newer format).
    """
    path, files = directory_name(path), files or OsFiles()
    with typed_os_errors(path), _locked(files, path, shared=False):
        check_open(path, STANDALONE, read_mode(path, files))
        found = _inspect(files, path)
        if not found.problems:
            return RepairReport(path, False, (), len(found.healthy), (), 0, ())
        report = _Repair(files, path, found).run()
    open_db(path, read_only=True, files=files).close()  # the proof
    return report


def destroy(path: str | os.PathLike[str], *, files: Files | None = None) -> None:
    """Remove the database in directory `path`: its tables, log, manifest. Files that are not its own stay, so do
    `lost/` and the directory itself unless it is empty then.

    Raises NotFound, Locked, ModeError (part of a cluster)."""
    path, files = directory_name(path), files or OsFiles()
    with typed_os_errors(path), _locked(files, path, shared=False):
        check_open(path, STANDALONE, read_mode(path, files))
        for folder in (WAL_DIRECTORY, "ingest"):
            if files.exists(f"{path}/{folder}"):
                for name in files.listdir(f"{path}/{folder}"):
                    files.remove(f"{path}/{folder}/{name}")
                files.rmdir(f"{path}/{folder}")
        for name in files.listdir(path):
            if _is_ours(name) or name in (CURRENT, CURRENT + ".tmp", MODE_FILE):
                files.remove(f"{path}/{name}")
        files.remove(f"{path}/{LOCK_FILE}")
        files.sync_dir(path)
        if not files.listdir(path):
            files.rmdir(path)


def _is_ours(name: str) -> bool:
    return any(parse(name) is not None for parse in (table_number, value_number, manifest_number))


@contextmanager
def _locked(files: Files, path: str, *, shared: bool) -> Iterator[None]:
    names: list[str] = []
    if files.exists(path):
        try:
            names = files.listdir(path)
        except NotADirectoryError:
            raise UsageError(f"{path} is a file, not a directory", hint="a database is a directory") from None
    if not any(map(_is_ours, names)) and CURRENT not in names and WAL_DIRECTORY not in names:
        raise NotFound(f"{path} holds no database", hint="check the path")
    try:
        lock = files.lock(f"{path}/{LOCK_FILE}", shared=shared)
    except BlockingIOError:
        raise Locked(f"{path} is open in another process, or in this one", hint="close it first") from None
    try:
        yield
    finally:
        lock.release()


# -- looking ----------------------------------------------------------------------------------------------------------
def _inspect(files: Files, path: str) -> _Findings:
    found = _Findings()
    _inspect_manifest(files, path, found)
    _inspect_log(files, path, found)
    if found.manifest is not None:
        _inspect_unnamed(files, path, found)
    _inspect_references(found)
    found.broken &= {number for _, table in found.healthy for number in table.properties["value_files"]}
    return found


def _inspect_manifest(files: Files, path: str, found: _Findings) -> None:
    names = files.listdir(path)
    try:
        candidates = [read_current(files, f"{path}/{CURRENT}")]
        if candidates[0] not in names:
            raise Corruption(f"CURRENT names {candidates[0]}, which is missing", path=f"{path}/{CURRENT}")
    except (Corruption, FileNotFoundError) as error:
        found.current_ok = False
        found.problems.append(str(error) if isinstance(error, Corruption) else f"{path}/{CURRENT} is missing")
        # The newest manifest that reads well says everything: the first edit of each is a full state.
        candidates = sorted((n for n in names if manifest_number(n) is not None), key=_number, reverse=True)
    cache = BlockCache(0)
    for name in candidates:
        versions = VersionSet(path, files, read_only=True)
        try:
            edits, _torn = read_manifest(files.read_file(f"{path}/{name}"), f"{path}/{name}", _number(name))
            metas: dict[int, FileMeta] = {}
            for edit in edits:
                versions._fold(edit, metas, f"{path}/{name}")
        except Corruption as error:
            found.problems.append(str(error))
            continue
        found.manifest = name
        found.families, found.log_number = dict(versions.families), versions.log_number
        found.last_sequence = found.flushed = versions.last_sequence
        found.named, found.dropped = metas, {number for edit in edits for number in edit.removed} - metas.keys()
        for meta in metas.values():
            _inspect_table(files, f"{path}/{table_name(meta.number)}", cache, meta, found)
        for value in versions.values.metas.values():
            _inspect_values(files, f"{path}/{value_name(value.number)}", value.number, value.size, found)
        return
    found.families = {"plain": 0}
    for name in names:
        number = value_number(name)
        if table_number(name) is not None:
            _inspect_table(files, f"{path}/{name}", cache, None, found)
        elif number is not None:
            _inspect_values(files, f"{path}/{name}", number, None, found)
    _place_settled(files, found)


def _inspect_unnamed(files: Files, path: str, found: _Findings) -> None:
    """Tables that the manifest does not name are leftovers of a step that a crash cut short, unless it has lost its
    last edits. That shows where the log does not reach back to it, or where tables that it names are gone: compactions
    remove their inputs. While neither is so, manifest and log hold everything.

    Nothing is missing that is as old as the manifest if all of its tables are sound. Else it may be in a table that was
    made of the lost ones, which has a greater number."""
    names = files.listdir(path)
    missing = any(table_name(number) not in names for number in found.named)
    if not missing and not found.log_gap and found.log_ok:
        return
    unnamed = _Findings()
    for name in names:
        number = table_number(name)
        if number is not None and number not in found.named and number not in found.dropped:
            _inspect_table(files, f"{path}/{name}", BlockCache(0), None, unnamed)
    found.external = unnamed.external
    first_lost = min(found.named.keys() - {meta.number for meta, _ in found.healthy}, default=None)
    returning = [
        (meta, table)
        for meta, table in unnamed.healthy
        if meta.max_sequence > found.flushed or (first_lost is not None and meta.number > first_lost)
    ]
    if not returning:
        return
    found.incomplete = True
    found.problems.append(
        f"{path}/{found.manifest}: its last edits are lost: it does not name "
        + ", ".join(table_name(meta.number) for meta, _ in returning)
    )
    found.problems += unnamed.problems
    found.damaged += unnamed.damaged
    found.mixed = any(table.properties["min_sequence"] <= found.flushed for _, table in returning)
    found.healthy += returning
    if found.mixed:
        _place_settled(files, found)
    found.last_sequence = max(found.last_sequence, *(meta.max_sequence for meta, _ in returning))
    for name in names:
        number = value_number(name)
        if number is not None and number not in found.values and number not in found.broken:
            _inspect_values(files, f"{path}/{name}", number, None, found)


def _number(name: str) -> int:
    return manifest_number(name) or 0


def _inspect_table(files: Files, path: str, cache: BlockCache, meta: FileMeta | None, found: _Findings) -> None:
    name = path.rpartition("/")[2]
    try:
        table = open_table(files, path, cache, meta)
        table.verify()
        if meta is not None and crc32c(files.map_file(path)) != meta.crc32c:
            raise Corruption("the file's checksum differs from the manifest's", path=path, offset=0)
    except (Corruption, OSError) as error:
        found.problems.append(str(error))
        found.damaged.append(name)
        return
    if meta is None:
        if table.properties["external"]:
            found.external.append(name)
            return
        size = files.size(path)
        p = table.properties
        meta = FileMeta(
            number=table_number(name) or 0,
            level=1,
            size=size,
            crc32c=crc32c(files.map_file(path)),
            entries=p["entries"],
            smallest=p["smallest"],
            largest=p["largest"],
            min_sequence=p["min_sequence"],
            max_sequence=p["max_sequence"],
        )
        found.last_sequence = max(found.last_sequence, p["max_sequence"])
    found.healthy.append((meta, table))


def _place_settled(files: Files, found: _Findings) -> None:
    """Where no level tells their place in time: tables whose sequences a compaction took away. They are the bottom, any
    sequence is newer. But the inputs of the very last compaction may still be there, and must not hide what it wrote:
    then its tables count as being as new as the newest of these."""
    settled = [meta for meta, table in found.healthy if _is_settled(meta, table)]
    if not settled:
        return
    end = max(settled, key=lambda meta: meta.number)
    if any(meta.number > end.number and meta.min_sequence <= end.max_sequence for meta, _ in found.healthy):
        return  # no flush: another compaction came after it
    for at, (meta, table) in enumerate(found.healthy):
        if meta in settled and meta.max_sequence == end.max_sequence:
            meta = dataclasses.replace(meta, min_sequence=meta.max_sequence, global_sequence=meta.max_sequence)
            found.healthy[at] = meta, open_table(files, table.path, BlockCache(0), meta)


def _is_settled(meta: FileMeta, table: Table) -> bool:
    """Did a compaction take all sequences away?"""
    if meta.min_sequence or not meta.max_sequence or meta.global_sequence is not None:
        return False
    cursor = table.cursor()
    cursor.seek_first()
    while cursor.valid:
        if cursor.entry[1]:
            return False
        cursor.next()
    return True


def _inspect_values(files: Files, path: str, number: int, size: int | None, found: _Findings) -> None:
    """A damaged value file stays among the findings, for the values that can still be read."""
    try:
        found.values[number] = ValueFile(files.map_file(path), path, number)
        if size is not None and found.values[number].size != size:
            raise Corruption(
                "the value file has another size", path=path, expected=size, found=found.values[number].size
            )
        found.values[number].verify()
    except FileNotFoundError:
        found.broken.add(number)
        found.problems.append(f"{path}: a value file that the manifest names is missing")
    except (Corruption, OSError) as error:
        found.broken.add(number)
        found.problems.append(str(error))


def _inspect_references(found: _Findings) -> None:
    for _, table in found.healthy:
        numbers = table.properties["value_files"].keys()
        if not numbers or numbers & found.broken:
            continue
        try:
            check_references(table.cursor(), found.values)
        except Corruption as error:
            found.problems.append(str(error))
            found.broken |= {n for n in numbers if n not in found.values or found.values[n].path == error.path}


def _inspect_log(files: Files, path: str, found: _Findings) -> None:
    directory = f"{path}/{WAL_DIRECTORY}"
    try:
        segments = recover(files, directory).segments if files.exists(directory) else []
        if not segments:
            raise Corruption("the write-ahead log is missing", path=directory)
        for payload in _batches(files, segments):
            first, _ = decode_batch(payload)
            found.log_sequence = found.log_sequence or first
    except Corruption as error:
        found.log_ok = False
        found.problems.append(str(error))
        return
    first = found.log_first = segments[0].number
    missing = found.log_number or segments[0].previous  # 0: the manifest needs all segments that there were
    if found.manifest is not None and missing and first > missing:
        found.log_gap = True
        found.problems.append(f"{directory}: segment {missing} is missing, the log begins at {first}")


def _batches(files: Files, segments: list[SegmentInfo]) -> Iterator[bytes]:
    for info in segments:
        reader = SegmentReader(files.map_file(info.path), info.number, DATA_START)
        found: list[tuple[int, int, bytes]] = []
        while not found or len(found) == CHUNK:
            found = reader.records({BATCH_RECORD}, info.end, CHUNK)
            for _, _, payload in found:
                yield payload
            if not found:
                break


def _readable_chain(files: Files, directory: str) -> list[SegmentInfo]:
    """The log up to its first damage: segments with the end of what can be read of each."""
    infos: dict[int, SegmentInfo] = {}
    for name in files.listdir(directory) if files.exists(directory) else []:
        number = segment_number(name)
        if number is None:
            continue
        path = f"{directory}/{name}"
        data = files.map_file(path)
        size = memoryview(data).nbytes
        try:
            info = _read_info(number, path, data)
        except Corruption:
            info = SegmentInfo(number, path, size, -1)  # its records carry checksums of their own
        if info is not None and size > DATA_START:
            infos[number] = info
    chain: list[SegmentInfo] = []
    number = max(infos, default=0)
    while number in infos:
        chain.append(infos[number])
        previous = infos[number].previous
        lower = [n for n in infos if n < number]
        number = max(lower, default=0) if previous < 0 else previous if previous < number else 0
    chain.reverse()
    readable: list[SegmentInfo] = []
    for info in chain:
        data = files.map_file(info.path)
        if readable:
            try:
                stop = _read_link(info, data, readable[-1].number)
            except Corruption:
                break
            if stop is None or stop != _readable_end(files, readable[-1], stop):
                break  # the one before ends too early
            readable[-1].end = stop  # marks may follow, which were not on disk
        info.end = _readable_end(files, info, info.capacity)
        readable.append(info)
    return readable


def _readable_end(files: Files, info: SegmentInfo, stop: int) -> int:
    """Where the segment's valid records end, or the first of them that is not before `stop` begins."""
    reader = SegmentReader(files.map_file(info.path), info.number, DATA_START)
    reader.skip_valid(stop)
    return reader.offset


# -- repairing --------------------------------------------------------------------------------------------------------
class _Repair:
    def __init__(self, files: Files, path: str, found: _Findings) -> None:
        self.files = files
        self.path = path
        self.found = found
        self.options = LsmOptions()
        names = files.listdir(path)
        numbers = [table_number(n) or value_number(n) or manifest_number(n) or 0 for n in names]
        self.next_number = 1 + max([0, *numbers, *(meta.number for meta, _ in found.healthy)])
        self.lost: list[str] = []
        self.notes: list[str] = []
        self.recovered = 0

    def run(self) -> RepairReport:
        found = self.found
        if found.broken:
            self._mend()
        if found.manifest is not None:
            metas = [meta for meta, _ in found.healthy]
            if found.damaged:
                self.notes.append("keys of the damaged tables may be missing, or show an older value")
            if found.incomplete:
                self.notes.append(
                    "the manifest had lost its last edits: tables that it did not name count again, so that deleted "
                    "keys may have come back"
                )
                metas = self._take_back()
        else:
            self.notes.append(
                "no manifest could be read: all readable tables count, so deleted keys may have come back"
            )
            metas = self._rewrite(found.healthy, 1)
        if found.external:
            self.notes.append("ingested tables lie in lost/: their place in time is unknown; ingest them again")
        if not found.log_ok:
            metas += self._salvage_log()
        if found.log_gap and not 0 < found.log_sequence <= found.last_sequence + 1:
            self.notes.append("writes that only the missing part of the log held are lost")
        number = self._take_number()
        values = self._used_values(metas)
        keep = {table_name(meta.number) for meta in metas} | {manifest_name(number)}
        keep |= {value_name(meta.number) for meta in values}
        # Order: module docstring. The old CURRENT is replaced in place; a damaged one is kept under another name.
        if not found.current_ok and self.files.exists(f"{self.path}/{CURRENT}"):
            self.files.makedirs(f"{self.path}/{LOST}")
            self.files.link(f"{self.path}/{CURRENT}", self._free_name(CURRENT))
            self.files.sync_dir(f"{self.path}/{LOST}")
        log_number = max(found.log_number, found.log_first) if found.log_ok else FIRST_LOG_NUMBER
        self._move_away(keep)
        write_manifest(self.files, self.path, number, metas, found.families, found.last_sequence, log_number, values)
        if found.manifest is not None and self.files.exists(f"{self.path}/{found.manifest}"):
            self._lose(found.manifest)
        if not found.log_ok:
            if self.files.exists(f"{self.path}/{WAL_DIRECTORY}"):
                self._lose(WAL_DIRECTORY)
                self.files.sync_dir(f"{self.path}/{LOST}")  # its new name first, then the old one may go
                self.files.sync_dir(self.path)
            new_log(self.files, f"{self.path}/{WAL_DIRECTORY}")
        if self.lost:
            self.files.sync_dir(f"{self.path}/{LOST}")
        self.files.sync_dir(self.path)
        return RepairReport(
            self.path,
            True,
            tuple(found.problems),
            len(metas),
            tuple(self.lost),
            self.recovered,
            tuple(self.notes),
        )

    def _take_number(self) -> int:
        number = self.next_number
        self.next_number += 1
        return number

    def _next_file(self) -> tuple[int, str]:
        number = self._take_number()
        return number, f"{self.path}/{table_name(number)}"

    def _mend(self) -> None:
        """Tables that refer to broken value files are written anew: what can be read of these values moves into the
        table."""
        found = self.found
        healthy: list[tuple[FileMeta, Table]] = []
        lost = 0
        for meta, table in found.healthy:
            if not found.broken & table.properties["value_files"].keys():
                healthy.append((meta, table))
                continue
            number, path = self._next_file()
            with write_table(self.files, number, path, self.options, compression="none", created_ms=0) as (
                builder,
                written,
            ):
                lost += self._copy_readable(table, builder)
                if (ranges := table.ranges()) is not None:
                    builder.set_ranges(ranges)
            if written.properties:
                mended = written.meta(meta.level)
                healthy.append((mended, open_table(self.files, path, BlockCache(0), mended)))
        self.files.sync_dir(self.path)
        found.healthy = healthy
        self.notes.append(f"{lost} large values are lost: their keys are missing, or show an older value")

    def _copy_readable(self, table: Table, builder: TableBuilder) -> int:
        """How many entries could not be copied because their value cannot be read."""
        cursor = table.cursor()
        cursor.seek_first()
        lost = 0
        while cursor.valid:
            prefix, sequence, kind, value = cursor.entry
            cursor.next()
            if kind in (REFERENCE, EXPIRING_REFERENCE):
                head = value[:8] if kind == EXPIRING_REFERENCE else b""
                reference = value[len(head) :]
                if decode_reference(reference)[0] in self.found.broken:
                    try:
                        value = head + resolve_reference(self.found.values, reference)
                    except Corruption:
                        lost += 1
                        continue
                    kind = PUT if kind == REFERENCE else EXPIRING_PUT
            builder.add(prefix, None if kind == DELETE else value, sequence, PUT if kind == DELETE else kind)
        return lost

    def _used_values(self, metas: list[FileMeta]) -> list[ValueFileMeta]:
        """The value files that these tables refer to, counted anew."""
        live: dict[int, int] = {}
        for meta in metas:
            table = open_table(self.files, f"{self.path}/{table_name(meta.number)}", BlockCache(0), meta)
            for number, size in table.properties["value_files"].items():
                live[number] = live.get(number, 0) + size
        found = []
        for number, size in live.items():
            sizes = [record[3] for record in self.found.values[number].records()]
            found.append(
                ValueFileMeta(
                    number=number,
                    size=self.found.values[number].size,
                    records=len(sizes),
                    value_bytes=sum(sizes),
                    dead_bytes=sum(sizes) - size,
                )
            )
        return found

    def _take_back(self) -> list[FileMeta]:
        """What the manifest names, and above it what is newer. If a table is both, all are merged by sequence."""
        found = self.found
        if found.mixed:
            return self._rewrite(found.healthy, 1)
        newer = [(meta, table) for meta, table in found.healthy if meta.min_sequence > found.flushed]
        return [meta for meta, _ in found.healthy if meta.min_sequence <= found.flushed] + self._rewrite(newer, 0)

    def _rewrite(self, tables: list[tuple[FileMeta, Table]], level: int) -> list[FileMeta]:
        """Nobody knows the levels of these tables. Merge them by sequence into new ones that do not overlap."""
        found = self.found
        self._name_families()
        if not tables:
            return []
        # Settled entries of a leftover and of what was made of it are alike in sequence: the later table's comes first.
        source = merge([table.cursor() for _, table in sorted(tables, key=lambda t: t[0].number, reverse=True)])
        source.seek_first()
        ranges = Ranges.merged(r for _, table in tables if (r := table.ranges()) is not None)
        written = write_tables(
            self.files,
            source,
            VersionFilter((), ranges=ranges),
            self.options,
            next_file=self._next_file,
            compression=self.options.compression,
            created_ms=0,
            table_bytes=self.options.table_bytes,
            sink=ValueSink({n: file for n, file in found.values.items() if n not in found.broken}),
            ranges=ranges,
        )
        self.files.sync_dir(self.path)
        return [table.meta(level) for table in written]

    def _name_families(self) -> None:
        """The manifest knew the names. Reserved ids have theirs; others are called family-<id>."""
        found = self.found
        reserved = {number: name for name, number in RESERVED_FAMILIES.items()}
        for _, table in found.healthy:
            cursor = table.cursor()
            at = 0
            while at <= 255:
                cursor.seek(bytes((at,)) + bytes(8))
                if not cursor.valid:
                    break
                at = cursor.entry[0][0]
                self._name_family(at, reserved)
                at += 1
            ranges = table.ranges()
            for start, _, _ in [] if ranges is None else ranges.fragments():
                self._name_family(start[0], reserved)
        if found.log_ok:
            for payload in _batches(self.files, recover(self.files, f"{self.path}/{WAL_DIRECTORY}").segments):
                for _, family, _, _ in decode_batch(payload)[1]:
                    self._name_family(family, reserved)

    def _name_family(self, number: int, reserved: dict[int, str]) -> None:
        if number not in self.found.families.values():
            name = reserved.get(number, f"family-{number}")
            self.found.families[name] = number
            if number not in reserved:
                self.notes.append(f"the family with id {number} has lost its name: it is called {name}")

    def _salvage_log(self) -> list[FileMeta]:
        """What the readable part of the log holds beyond the tables, as a table of level 0."""
        found = self.found
        newest: dict[bytes, tuple[int, int, bytes | None]] = {}
        deleted: list[tuple[bytes, bytes, int]] = []
        flushed = found.last_sequence
        reserved = {number: name for name, number in RESERVED_FAMILIES.items()}
        try:
            for payload in _batches(self.files, _readable_chain(self.files, f"{self.path}/{WAL_DIRECTORY}")):
                first, operations = decode_batch(payload)
                if first + len(operations) - 1 <= flushed:
                    continue
                self.recovered += 1
                for offset, (kind, family, key, value) in enumerate(operations):
                    self._name_family(family, reserved)
                    if kind == RANGE_DELETE:
                        assert value is not None
                        deleted.append((bytes((family,)) + key, value, first + offset))
                    else:
                        newest[bytes((family,)) + key] = (first + offset, kind, value)
        except Corruption as error:  # a record whose checksum holds and whose content does not
            found.problems.append(str(error))
        self.notes.append("writes after the damage in the log are lost; the log lies in lost/")
        if not newest and not deleted:
            return []
        ranges = Ranges.of(deleted)
        number, path = self._next_file()
        written: WrittenTable
        with write_table(self.files, number, path, self.options, compression="none", created_ms=0) as (
            builder,
            written,
        ):
            for prefix in sorted(newest):
                sequence, kind, value = newest[prefix]
                if ranges.cover(prefix) > sequence:
                    continue
                if kind == DELETE:
                    builder.add(prefix, None, sequence)
                else:
                    builder.add(prefix, value, sequence, kind)
            builder.set_ranges(ranges)
        meta = written.meta(0)
        found.last_sequence = max(found.last_sequence, meta.max_sequence)
        return [meta]

    def _move_away(self, keep: set[str]) -> None:
        """Leftovers first: once a table is gone that the manifest names, they no longer count as such."""
        named = set(map(table_name, self.found.named))
        for turn in (False, True):
            for name in self.files.listdir(self.path):
                if name in keep or name == self.found.manifest or (name in named) is not turn:
                    continue
                if _is_ours(name):
                    self._lose(name)
            if self.lost:
                self.files.sync_dir(f"{self.path}/{LOST}")
                self.files.sync_dir(self.path)

    def _lose(self, name: str) -> None:
        self.files.makedirs(f"{self.path}/{LOST}")
        target = self._free_name(name)
        self.files.rename(f"{self.path}/{name}", target)
        self.lost.append(target.removeprefix(f"{self.path}/"))

    def _free_name(self, name: str) -> str:
        target, turn = f"{self.path}/{LOST}/{name}", 1
        while self.files.exists(target):
            target, turn = f"{self.path}/{LOST}/{name}.{turn}", turn + 1
        return target
