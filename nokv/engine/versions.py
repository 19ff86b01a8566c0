"""VersionSet: which tables make up the directory now, and every step that changes that.

Thread rules: `current` may be read by any thread at any time (it is replaced, never changed). Changes go through
`apply`, which takes the one lock here. One flush and one compaction may run at the same time, and ingest and new
families may come from any thread meanwhile: all of these only add to level 0, and a running compaction removes nothing
but its own inputs.

A table's file is removed once the edit that dropped it is durable and no Version, cursor or reader holds the table any
more. After a failed write or sync of the manifest nothing is applied any more (ReadOnly): nobody knows what the disk
holds.
"""

from __future__ import annotations

import contextlib
import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nokv._ext.blockcache import BlockCache
from nokv._ext.crc32c import crc32c
from nokv._ext.merge import OwnedCursor
from nokv._ext.ranges import Ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import VersionFilter
from nokv._ext.version import Version
from nokv.engine.compaction.garbage import tables_garbage
from nokv.engine.compaction.picker import Compaction, pick_compaction, pick_everything, pick_garbage, pick_range
from nokv.engine.compaction.run import run_compaction
from nokv.engine.manifest.edit import FAMILIES_MAX, FileMeta, VersionEdit
from nokv.engine.manifest.log import (
    CURRENT,
    ManifestWriter,
    manifest_name,
    manifest_number,
    read_current,
    read_manifest,
    write_current,
)
from nokv.engine.sst import external
from nokv.engine.sst.external import ExportedFile
from nokv.engine.sst.options import LsmOptions
from nokv.engine.sst.table import join, open_table, table_name, table_number, write_tables
from nokv.engine.values import ValueFiles, value_name
from nokv.env.ports import Clock, Files
from nokv.errors import Corruption, InvariantError, NotFound, PreconditionFailed, ReadOnly, UsageError

__all__ = ["RESERVED_FAMILIES", "VerifyReport", "VersionSet"]

RESERVED_FAMILIES = {"plain": 0, "default": 1, "lock": 2, "write": 3, "local": 4}
"""Have the same id in every directory, so that tables can travel between them."""
FIRST_FREE_FAMILY = 16
NUMBERED = re.compile(r"(\d{6,})\.(sst|val)|MANIFEST-(\d{6,})", re.ASCII)  # as table_name and so on write them


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` read. `damaged` holds one Corruption per damaged table or value file; `values`: how many lie
    outside the tables."""

    tables: int
    entries: int
    size_bytes: int
    damaged: tuple[Corruption, ...]
    values: int = 0


class VersionSet:
    def __init__(
        self,
        path: str,
        files: Files,
        options: LsmOptions | None = None,
        *,
        clock: Clock | None = None,
        read_only: bool = False,
        cache: BlockCache | None = None,
    ) -> None:
        self.path = path
        self.files = files
        self.options = options or LsmOptions()
        self.read_only = read_only
        self.cache = cache if cache is not None else BlockCache(self.options.block_cache_bytes)
        self.values = ValueFiles(path, files, self.options)
        self.current = Version([[] for _ in range(self.options.levels_max)])
        self.families: dict[str, int] = {"plain": 0}
        self.log_number = 0
        self.last_sequence = 0
        self.compactions = 0
        self.compacted_bytes_read = 0
        self.dropped_entries = self.expired_entries = 0
        self.compacted_bytes_written = 0
        self.flushed_bytes_written = 0
        self._clock = clock
        self._next_file_number = 1
        self._manifest: ManifestWriter | None = None
        self._manifest_name = ""
        self._turns: dict[int, bytes] = {}
        self._obsolete: dict[int, weakref.ref[Table]] = {}  # dropped tables that somebody may still read
        self._unwanted: list[str] = []  # files to remove
        self._leftovers: list[str] = []  # of an earlier process
        self.remove_error = ""
        self.lock = threading.RLock()
        self._failed = ""

    # -- opening ------------------------------------------------------------------------------------------------------
    def recover(self, *, create: bool = True, opened: dict[int, Table] | None = None) -> bool:
        """Read CURRENT, the manifest and every table's frame (but of those in `opened`, which takes the others in).
        True if this made a new directory. Nothing that was on disk has changed: `remove_leftovers` comes after it."""
        names = self.files.listdir(self.path)
        try:
            self._manifest_name = read_current(self.files, join(self.path, CURRENT))
        except FileNotFoundError:
            return self._create(names, create)
        number = manifest_number(self._manifest_name)
        manifest_path = join(self.path, self._manifest_name)
        if number is None or self._manifest_name not in names:
            raise Corruption("CURRENT names a manifest that is missing", path=manifest_path)
        edits, torn = read_manifest(self.files.read_file(manifest_path), manifest_path, number)
        metas: dict[int, FileMeta] = {}
        for edit in edits:
            self._fold(edit, metas, manifest_path)
        values = self.values.open_all()
        self.current = Version(self._tables(metas.values(), {} if opened is None else opened), values)
        self._next_file_number = max(self._next_file_number, 1 + max([number, *_file_numbers(names), *metas, *values]))
        if torn is None and not self.read_only:
            self._leftovers = self._find_leftovers(names, metas)
        return False

    def _create(self, names: Sequence[str], create: bool) -> bool:
        tables = [name for name in names if table_number(name) is not None]
        manifests = [name for name in names if (manifest_number(name) or 0) > 1]
        if tables or manifests:
            raise Corruption(
                f"CURRENT is missing, but {(manifests or tables)[0]} is there", path=join(self.path, CURRENT)
            )
        unfinished = join(self.path, manifest_name(1))
        if manifest_name(1) in names and self._was_used(unfinished):
            raise Corruption("CURRENT is missing, but its manifest is there", path=join(self.path, CURRENT))
        if not create or self.read_only:
            raise NotFound(f"{self.path}: there is no database here", hint="create it by opening it with create=True")
        if manifest_name(1) in names:
            self.files.remove(unfinished)
        with self.lock:
            self._roll()
        return True

    def _was_used(self, path: str) -> bool:
        """Was the first manifest ever named by a durable CURRENT? A second edit is only written after that."""
        try:
            edits, torn = read_manifest(self.files.read_file(path), path, 1)
        except Corruption:
            return False  # a creation that a crash cut short
        return len(edits) > 1 or torn is not None

    def _fold(self, edit: VersionEdit, metas: dict[int, FileMeta], path: str) -> None:
        for number in edit.removed:
            if metas.pop(number, None) is None:
                raise Corruption(f"the manifest removes table {number}, which is not there", path=path)
        for meta in edit.added:
            if meta.number in metas:
                raise Corruption(f"the manifest adds table {meta.number} twice", path=path)
            metas[meta.number] = meta
        for name, family in edit.families.items():
            if self.families.get(name, family) != family:
                raise Corruption(f"the manifest gives the family {name!r} two ids", path=path)
        self.values.fold(edit, path)
        self._take_numbers(edit)

    def _take_numbers(self, edit: VersionEdit) -> None:
        if edit.families:
            self.families = {**self.families, **edit.families}
        if edit.log_number is not None:
            self.log_number = edit.log_number
        if edit.last_sequence is not None:
            self.last_sequence = max(self.last_sequence, edit.last_sequence)
        if edit.next_file_number is not None:
            self._next_file_number = max(self._next_file_number, edit.next_file_number)
        for meta in edit.added:
            self.last_sequence = max(self.last_sequence, meta.max_sequence)

    def _find_leftovers(self, names: Iterable[str], metas: dict[int, FileMeta]) -> list[str]:
        """Files of a step that a crash cut short. Only with a manifest that ends cleanly; never on a guess."""
        leftovers = []
        for name in names:
            found = NUMBERED.fullmatch(name)
            if found is None:
                orphan = name == CURRENT + ".tmp"
            elif found[1] is None:
                orphan = name != self._manifest_name
            else:
                orphan = int(found[1]) not in (metas if found[2] == "sst" else self.values.metas)
            if orphan:
                leftovers.append(join(self.path, name))
        return leftovers

    def remove_leftovers(self) -> None:
        """What no edit names. Call it when the log has been found to begin where the manifest says: a manifest that
        lost its last edits ends cleanly too, and its tables are no leftovers."""
        leftovers, self._leftovers = self._leftovers, []
        if leftovers:
            self.make_durable()
        for path in leftovers:
            self.files.remove(path)

    def make_durable(self) -> None:
        """What CURRENT and the manifest say is on disk when this returns. To find it in an open does not mean that: a
        process may have been killed before its sync. So call this before anything goes that they no longer need."""
        self.files.sync_file(join(self.path, self._manifest_name))
        self.files.sync_dir(self.path)

    def _tables(self, metas: Iterable[FileMeta], opened: dict[int, Table]) -> list[list[Table]]:
        levels: list[list[FileMeta]] = [[] for _ in range(self.options.levels_max)]
        for meta in metas:
            while meta.level >= len(levels):
                levels.append([])
            levels[meta.level].append(meta)
        levels[0].sort(key=lambda f: (f.max_sequence, f.number), reverse=True)
        for level in levels[1:]:
            level.sort(key=lambda f: f.smallest)
        return [[self._table(meta, opened) for meta in level] for level in levels]

    def _table(self, meta: FileMeta, opened: dict[int, Table]) -> Table:
        table = opened.get(meta.number)
        if table is not None and table.meta == meta:
            return table
        opened[meta.number] = open_table(self.files, join(self.path, table_name(meta.number)), self.cache, meta)
        return opened[meta.number]

    # -- changing -----------------------------------------------------------------------------------------------------
    def new_file(self) -> tuple[int, str]:
        """A number that no file in the directory has or had, and the path of the table with it."""
        with self.lock:
            number = self._next_file_number
            self._next_file_number += 1
        return number, join(self.path, table_name(number))

    def apply(self, edit: VersionEdit) -> None:
        """Make `edit` true: durable when this returns, visible through `current` at the same time. The files that it
        adds must be synced; their names are synced here. If this raises, the edit may or may not be found by the next
        open, and every later change raises ReadOnly."""
        with self.lock:
            if self.read_only:
                raise ReadOnly(f"{self.path}: opened read-only", hint="open it without read_only")
            if self._failed:
                raise ReadOnly(
                    f"{self.path}: a write of the manifest failed", cause=self._failed, hint="close and reopen"
                )
            opened = {t.meta.number: t for tables in self.current.levels for t in tables}
            metas = {number: table.meta for number, table in opened.items()}
            for number in edit.removed:
                if metas.pop(number, None) is None:
                    raise InvariantError(f"an edit removes table {number}, which is not there")
            for meta in edit.added:
                if meta.number in metas:
                    raise InvariantError(f"an edit adds table {meta.number} twice")
                metas[meta.number] = meta
            tables = self._tables(metas.values(), opened)  # opens what is new: damage shows before anything is said
            values = self.values.settle(edit, (table for level in tables for table in level))
            version = Version(tables, values)
            edit.next_file_number = self._next_file_number
            try:
                if edit.added or edit.values_added:
                    self.files.sync_dir(self.path)
                if self._manifest is None or self._manifest.size > self.options.manifest_bytes_max:
                    self._roll()
                assert self._manifest is not None
                self._manifest.append(edit)
            except BaseException as error:
                self._failed = f"{type(error).__name__}: {error}"
                raise
            self._take_numbers(edit)
            for number in edit.removed:
                if number not in metas:
                    self._obsolete[number] = weakref.ref(opened[number])
            self._unwanted += self.values.install(edit, values)
            self.current = version
            del opened, tables
        self.remove_obsolete()

    def _roll(self) -> None:
        """Begin a new manifest with one edit that says everything, then let CURRENT name it."""
        number, _ = self.new_file()
        name = manifest_name(number)
        writer = ManifestWriter(self.files, join(self.path, name), number)
        writer.append(
            VersionEdit(
                log_number=self.log_number,
                next_file_number=self._next_file_number,
                last_sequence=self.last_sequence,
                families=dict(self.families),
                added=[t.meta for tables in self.current.levels for t in tables],
                values_added=list(self.values.metas.values()),
            )
        )
        self.files.sync_dir(self.path)
        write_current(self.files, self.path, join(self.path, CURRENT), name)
        old, self._manifest_name = self._manifest_name, name
        if self._manifest is not None:
            self._manifest.close()
        self._manifest = writer
        if old:
            self._unwanted.append(join(self.path, old))

    def remove_obsolete(self) -> int:
        """Remove the files of dropped tables that nobody reads any more. How many still wait. A file that cannot be
        removed does not fail the step that dropped it: it waits for the next call, then for the next open
        (`stats()["remove_error"]`)."""
        with self.lock:
            for number in [n for n, ref in self._obsolete.items() if ref() is None]:
                del self._obsolete[number]
                self._unwanted.append(join(self.path, table_name(number)))
            paths, self._unwanted = self._unwanted, []
            for path in paths:
                try:
                    self.files.remove(path)
                except OSError as error:
                    self.remove_error = f"{path}: {error}"
                    self._unwanted.append(path)
            return len(self._obsolete) + len(self._unwanted)

    def add_family(self, name: str) -> int:
        """The family's id, given now if it has none. Durable when it returns."""
        with self.lock:
            known = self.families.get(name)
            if known is not None:
                return known
            self.apply(VersionEdit(families={name: self._free_family_id(name)}))
            return self.families[name]

    def _free_family_id(self, name: str) -> int:
        if not name or len(name.encode()) > 255 or "\n" in name:
            raise UsageError("a family's name has 1 to 255 bytes and no line break")
        if name in RESERVED_FAMILIES:
            return RESERVED_FAMILIES[name]
        taken = set(self.families.values())
        for family in range(FIRST_FREE_FAMILY, FAMILIES_MAX + 1):
            if family not in taken:
                return family
        raise UsageError(f"all {FAMILIES_MAX - FIRST_FREE_FAMILY + 1} families are in use")

    # -- flush and compaction -----------------------------------------------------------------------------------------
    def write_level0(
        self,
        source: OwnedCursor,
        *,
        ranges: Sequence[Ranges] = (),
        snapshots: Sequence[int] = (),
        expired_ms: int = 0,
        edit: VersionEdit | None = None,
    ) -> FileMeta | None:
        """Everything in `source` (a memtable, or a merge of some) and these range deletes as one level-0 table, synced.
        None if it is empty. The caller applies VersionEdit(added=[meta], log_number=...): with `edit`, that one, to
        which the value files are added that large values went to."""
        source.seek_first()
        merged = Ranges.merged(ranges, snapshots) if ranges else None
        sink = None if edit is None else self.values.sink(self._new_number)
        versions = VersionFilter(snapshots, now_ms=expired_ms, ranges=merged)
        written = write_tables(
            self.files,
            source,
            versions,
            self.options,
            next_file=self.new_file,
            compression=self.options.upper_compression,
            created_ms=self._now_ms(),
            sink=sink,
            ranges=merged,
        )
        self._count(versions)
        if edit is not None:
            self.values.take(sink, edit)
        if not written:
            return None
        self.flushed_bytes_written += written[0].properties["size"]
        return written[0].meta(0)

    def pick(self, snapshots: Iterable[int] = (), expired_ms: int = 0) -> Compaction | None:
        levels = self.current.files()
        compaction = pick_compaction(levels, self.options, self._turns)
        if compaction is None:
            garbage = tables_garbage(self.current, expired_ms)
            compaction = pick_garbage(levels, self.options, garbage, min(snapshots, default=None)) if garbage else None
        return compaction or self.values.pick(self.current)

    def maybe_compact(self, snapshots: Iterable[int] = (), expired_ms: int = 0) -> bool:
        """One compaction step if a level exceeds its bound or holds too much garbage. `snapshots`: the sequences of all
        live snapshots, walked again when the inputs have been chosen, so that who is not among them reads behind
        everything that is merged; `expired_ms`: a moment that no reader looks behind (0: none). True: something was
        done, ask again."""
        compaction = self.pick(snapshots, expired_ms)
        if compaction is None:
            self.remove_obsolete()
            return False
        self.run(compaction, snapshots, expired_ms)
        return True

    def compact_all(self, snapshots: Iterable[int] = (), expired_ms: int = 0) -> bool:
        """Everything into one level. False if there is nothing."""
        compaction = pick_everything(self.current.files())
        if compaction is None:
            return False
        self.run(compaction, snapshots, expired_ms)
        while files := self.values.garbage(all_of_it=True):
            self.collect_values(files, snapshots, expired_ms)
        return True

    def collect_values(self, files: Sequence[int], snapshots: Iterable[int], expired_ms: int) -> None:
        """Move what tables refer to out of these value files, which are then removed."""
        while (compaction := self.values.pick(self.current, files)) is not None:
            self.run(compaction, snapshots, expired_ms, rewrite=files)

    def compact_range(
        self, lower: bytes, upper: bytes | None, snapshots: Iterable[int] = (), expired_ms: int = 0
    ) -> bool:
        """All of lower <= key < upper (family || user key) into the deepest level that has any of it, level by level,
        and that level rewritten; then no value file holds garbage of the range but what snapshots see, for which other
        tables may have to be rewritten too. False if there was nothing to do."""
        written: set[int] = set()
        done = False
        for level in range(self.options.levels_max):
            compaction = pick_range(self.current.files(), level, lower, upper)
            if compaction is None or (
                compaction.output_level == level and written.issuperset(f.number for f in compaction.inputs)
            ):
                continue
            written = {f.number for f in self.run(compaction, snapshots, expired_ms).added}
            done = True
        files = self.values.garbage_of(lower, upper)
        self.collect_values(files, snapshots, expired_ms)
        return done or bool(files)

    def run(
        self, compaction: Compaction, snapshots: Iterable[int], expired_ms: int = 0, *, rewrite: Sequence[int] = ()
    ) -> VersionEdit:
        garbage = [*self.values.garbage(), *rewrite]
        in_place = compaction.inputs[0].level == compaction.output_level
        sink = self.values.sink(self._new_number, rewrite=garbage if in_place else [*garbage, *self.values.small()])
        edit, versions = run_compaction(
            compaction,
            self.current,
            self.files,
            self.options,
            snapshots=snapshots,
            expired_ms=expired_ms,
            next_file=self.new_file,
            created_ms=self._now_ms(),
            sink=sink,
        )
        self.values.take(sink, edit)
        self.apply(edit)
        self.compactions += 1
        if versions is not None:
            self._count(versions)
        if not compaction.move:
            self.compacted_bytes_read += sum(f.size for f in compaction.inputs)
            self.compacted_bytes_written += sum(f.size for f in edit.added)
        if compaction.inputs[0].level == compaction.output_level - 1 > 0:
            self._turns[compaction.inputs[0].level] = compaction.inputs[0].largest
        return edit

    def _count(self, versions: VersionFilter) -> None:
        self.dropped_entries += versions.dropped
        self.expired_entries += versions.expired

    def _new_number(self) -> int:
        return self.new_file()[0]

    # -- tables that travel -------------------------------------------------------------------------------------------
    def export(
        self,
        directory: str,
        ranges: Sequence[tuple[str, bytes | None, bytes | None]],
        sequence: int,
        *,
        version: Version | None = None,
        tombstones: bool = False,
    ) -> list[ExportedFile]:
        """What a reader at `sequence` sees of (family, start, end) in tables, as external tables in `directory`. The
        caller holds a snapshot at `sequence` and has flushed. With `tombstones`: a delete for each of these keys
        instead."""
        return external.export(
            self.files,
            version or self.current,
            directory,
            [(self._family(name), start, end) for name, start, end in ranges],
            sequence,
            self.options,
            families=self.families,
            created_ms=self._now_ms(),
            expired_ms=self._now_ms(),  # who reads the copy is later: absent there in any case, and must hide nothing
            tombstones=tombstones,
        )

    def _family(self, name: str) -> int:
        if name not in self.families:
            raise NotFound(f"there is no family {name!r}", hint=f"there are: {', '.join(self.families)}")
        return self.families[name]

    def link_tables(self, directory: str) -> list[ExportedFile]:
        """Hard-link every live table into `directory` under its own name. Nothing is read or written."""
        version = self.current
        self.files.makedirs(directory)
        linked = []
        for tables in version.levels:
            for table in tables:
                name = table_name(table.meta.number)
                self.files.link(table.path, join(directory, name))
                linked.append(ExportedFile.of(name, table.meta))
        for value in version.values.values():
            self.files.link(value.path, join(directory, value_name(value.number)))
        self.files.sync_dir(directory)
        return linked

    def ingest(self, groups: Sequence[Sequence[str]], sequences: Sequence[int]) -> list[FileMeta]:
        """Add external tables, group by group, each group at its own sequence; later groups hide earlier ones. One
        edit: all of it or nothing, durable on return. The caller has flushed what is older, and given sequences above
        all others. The files stay where they are (they become hard links, or copies on another file system)."""
        if len(groups) != len(sequences) or list(sequences) != sorted(set(sequences)):
            raise UsageError("ingest needs one rising sequence per group")
        if sequences and sequences[0] <= self.last_sequence:
            raise InvariantError(f"ingest at sequence {sequences[0]}, but {self.last_sequence} is already in a table")
        families: dict[str, int] = {}
        checked = [
            (path, sequence, table)
            for group, sequence in zip(groups, sequences, strict=True)
            for path, table in external.check_group(self.files, group, self.cache)
        ]
        for path, _, table in checked:
            families.update(self._new_families(path, external.decode_families(table)))
        placed: list[str] = []
        try:
            added = []
            for path, sequence, table in checked:
                number, target = self.new_file()
                placed.append(target)
                external.place(self.files, path, target)
                added.append(external.ingested_meta(table, number, sequence))
            if added:
                self.apply(VersionEdit(added=added, families=families, last_sequence=max(sequences)))
        except Exception:
            if not self._failed:  # else the edit may be on the disk: then these are its tables
                for target in placed:
                    with contextlib.suppress(OSError):  # a leftover then; the next open removes it
                        self.files.remove(target)
            raise
        return added

    def _new_families(self, path: str, stated: dict[str, int]) -> dict[str, int]:
        new = {}
        names = {family: name for name, family in self.families.items()}
        for name, family in stated.items():
            if self.families.get(name, family) != family or names.get(family, name) != name:
                raise PreconditionFailed(
                    f"{path}: its family {name!r} has the id {family}, which means something else here",
                    hint="export again from a directory whose families were made in the same order",
                )
            if name not in self.families:
                new[name] = family
        return new

    # -- looking ------------------------------------------------------------------------------------------------------
    def verify(self) -> VerifyReport:
        """Read every byte of every live table. Damage is reported, not raised."""
        entries = size = count = 0
        damaged: list[Corruption] = []
        version = self.current
        for tables in version.levels:
            for table in tables:
                count += 1
                size += table.meta.size
                try:
                    entries += table.verify()
                    found = crc32c(self.files.map_file(table.path))
                    if found != table.meta.crc32c:
                        raise Corruption("the file's checksum differs from the manifest's", path=table.path, offset=0)
                except Corruption as error:
                    damaged.append(error)
        values, value_bytes, found_bad = self.values.verify(version)
        return VerifyReport(count, entries, size + value_bytes, (*damaged, *found_bad), values)

    def stats(self) -> dict[str, Any]:
        levels = self.current.files()
        return {
            "levels": [
                {"files": len(level), "bytes": sum(f.size for f in level), "entries": sum(f.entries for f in level)}
                for level in levels
            ],
            "l0_files": len(levels[0]),
            "obsolete_files": len(self._obsolete) + len(self._unwanted),
            "remove_error": self.remove_error,
            "next_file_number": self._next_file_number,
            "log_number": self.log_number,
            "last_sequence": self.last_sequence,
            "manifest_bytes": self._manifest.size if self._manifest else 0,
            "flushed_bytes_written": self.flushed_bytes_written,
            "compactions": self.compactions,
            "compaction_bytes_read": self.compacted_bytes_read,
            "compaction_bytes_written": self.compacted_bytes_written,
            "entries_dropped": self.dropped_entries,
            "entries_expired": self.expired_entries,
            "point_index_bytes": sum(t.point_index_bytes for tables in self.current.levels for t in tables),
            "block_cache": self.cache.stats(),
            "values": self.values.stats(),
        }

    def check(self) -> None:
        """Invariants, for tests and the simulator."""
        numbers = [f.number for level in self.current.files() for f in level]
        assert len(numbers) == len(set(numbers))
        numbers += self.values.metas
        assert all(number < self._next_file_number for number in numbers)
        referenced: dict[int, int] = {}
        for table in (table for tables in self.current.levels for table in tables):
            for number, size in table.properties["value_files"].items():
                referenced[number] = referenced.get(number, 0) + size
        assert referenced == {n: m.value_bytes - m.dead_bytes for n, m in self.values.metas.items()}
        assert self.current.values.keys() == self.values.metas.keys()
        assert all(f.max_sequence <= self.last_sequence for level in self.current.files() for f in level)
        newest_first = [f.max_sequence for f in self.current.files()[0]]
        assert newest_first == sorted(newest_first, reverse=True)

    @property
    def expiring(self) -> bool:
        """Does any table hold a value that expires?"""
        return any(table.properties["expiring"] for tables in self.current.levels for table in tables)

    def _now_ms(self) -> int:
        return self._clock.time_ms() if self._clock is not None else 0

    def close(self) -> None:
        """Idempotent, and lets go of the tables. Files of dropped tables that are still read stay; the next open
        removes them."""
        with self.lock:
            if not self._failed and not self.read_only:
                self.remove_obsolete()
            if self._manifest is not None:
                self._manifest.close()
                self._manifest = None
            self._failed = self._failed or "closed"
            self.current = Version([[] for _ in range(self.options.levels_max)])
            self.values.opened = {}


def _file_numbers(names: Iterable[str]) -> list[int]:
    """Those that tables, value files and manifests have in their names."""
    return [int(found[1] or found[3]) for found in map(NUMBERED.fullmatch, names) if found is not None]
