"""Value files: which there are, what of them is garbage, which must go (docs/formats/value_file.md).

A value of `value_file_threshold` bytes and more lies in a value file once it leaves memory; tables hold a reference to
it. Until then the log has it, so nothing here needs a log of its own:

    flush        large values -> NNNNNN.val, synced; references -> the table; one manifest edit names both
    compaction   moves references, not values; what it leaves out is counted as garbage of its file, in the same edit
    garbage      a file with too much of it is rewritten by a compaction of the tables that refer to it; the same
                 happens to very small files when a compaction comes by
    removal      a file that no table refers to goes with the edit that made it so

Which files a table refers to is one of its properties, so removal never depends on the counters. A reader keeps the
files of its Version mapped, so what it walks stays readable. The bytes are `nokv/_ext/valuefile.pyx`. Threads: as
VersionSet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from nokv._ext.table import Table
from nokv._ext.valuefile import ValueFile, ValueSink, check_references
from nokv._ext.version import Version
from nokv.engine.compaction.picker import Compaction
from nokv.engine.manifest.edit import ValueFileMeta, VersionEdit
from nokv.engine.sst.options import LsmOptions
from nokv.env.ports import Files, WritableFile
from nokv.errors import Corruption

__all__ = ["ValueFiles", "open_value_file", "value_name", "value_number"]

SUFFIX = ".val"
SMALL_PART = 256  # a file of less than this part of value_file_bytes is not worth keeping apart


def value_name(number: int) -> str:
    return f"{number:06d}{SUFFIX}"


def value_number(name: str) -> int | None:
    stem = name.removesuffix(SUFFIX)
    return int(stem) if stem != name and len(stem) >= 6 and stem.isascii() and stem.isdigit() else None


def open_value_file(files: Files, path: str, meta: ValueFileMeta) -> ValueFile:
    """Corruption if the file is missing, or not the one that `meta` describes. Reads the header only."""
    try:
        data = files.map_file(path)
    except FileNotFoundError:
        raise Corruption(
            "a value file that the manifest names is missing", path=path, hint="restore the file; nothing was changed"
        ) from None
    return ValueFile(data, path, meta.number, meta.size)


class ValueFiles:
    def __init__(self, path: str, files: Files, options: LsmOptions) -> None:
        self.path = path
        self.files = files
        self.options = options
        self.metas: dict[int, ValueFileMeta] = {}
        self.opened: dict[int, ValueFile] = {}
        self.written_bytes = 0
        self.rewritten_bytes = 0
        self.removed = 0

    def _path(self, number: int) -> str:
        return f"{self.path}/{value_name(number)}" if self.path else value_name(number)

    # -- opening and changing -----------------------------------------------------------------------------------------
    def fold(self, edit: VersionEdit, manifest: str) -> None:
        """One edit of the manifest, in order. `metas` is replaced, not changed: another step may be walking it."""
        if not (edit.values_added or edit.values_dead or edit.values_removed):
            return
        metas = dict(self.metas)
        for meta in edit.values_added:
            if meta.number in metas:
                raise Corruption(f"the manifest adds value file {meta.number} twice", path=manifest)
            metas[meta.number] = meta
        for number, dead in edit.values_dead.items():
            if number not in metas:
                raise Corruption(
                    f"the manifest counts garbage of value file {number}, which is not there", path=manifest
                )
            metas[number] = dataclasses.replace(metas[number], dead_bytes=dead)
        for number in edit.values_removed:
            if metas.pop(number, None) is None:
                raise Corruption(f"the manifest removes value file {number}, which is not there", path=manifest)
        self.metas = metas

    def open_all(self) -> dict[int, ValueFile]:
        """Every file that the manifest names; those that are open already stay as they are."""
        self.opened = {number: self._open(meta) for number, meta in self.metas.items()}
        return self.opened

    def _open(self, meta: ValueFileMeta) -> ValueFile:
        known = self.opened.get(meta.number)
        if known is not None and known.size == meta.size:
            return known
        return open_value_file(self.files, self._path(meta.number), meta)

    def settle(self, edit: VersionEdit, tables: Iterable[Table]) -> dict[int, ValueFile]:
        """The files after `edit`, whose tables are `tables`: adds the removal of what none of them refers to. Changes
        nothing here: see `install`."""
        if not self.metas and not edit.values_added:
            return self.opened
        added = {meta.number: meta for meta in edit.values_added}
        referenced = {number for table in tables for number in table.properties["value_files"]}
        edit.values_removed = sorted(number for number in {**self.metas, **added} if number not in referenced)
        edit.values_dead = {n: dead for n, dead in edit.values_dead.items() if n in self.metas}
        gone = set(edit.values_removed)
        opened = {number: file for number, file in self.opened.items() if number not in gone}
        for number, meta in added.items():
            if number not in gone:
                opened[number] = self._open(meta)
        return opened

    def install(self, edit: VersionEdit, opened: dict[int, ValueFile]) -> list[str]:
        """`edit` is durable. The paths of the files that may go."""
        self.fold(edit, self.path)
        self.opened = opened
        self.removed += len(edit.values_removed)
        return [self._path(number) for number in edit.values_removed]

    # -- writing ------------------------------------------------------------------------------------------------------
    def sink(self, new_number: Callable[[], int], *, rewrite: Iterable[int] = ()) -> ValueSink | None:
        """Where a flush or compaction puts large values. None if there is nothing to separate and nothing to count."""
        if not self.options.value_file_threshold and not self.metas:
            return None

        def create() -> tuple[int, str, WritableFile]:
            number = new_number()
            return number, self._path(number), self.files.create(self._path(number))

        return ValueSink(
            self.opened,
            threshold=self.options.value_file_threshold,
            rewrite=frozenset(rewrite),
            file_bytes_max=self.options.value_file_bytes,
            create=create,
            remove=self.files.remove,
        )

    def take(self, sink: ValueSink | None, edit: VersionEdit) -> None:
        """Say in `edit` what the sink of its step did."""
        if sink is None:
            return
        for number, _path, size, records, value_bytes in sink.finish():
            edit.values_added.append(ValueFileMeta(number=number, size=size, records=records, value_bytes=value_bytes))
            self.written_bytes += value_bytes
        for number, dead in sink.dead_bytes().items():
            if number in self.metas:
                edit.values_dead[number] = self.metas[number].dead_bytes + dead
        self.rewritten_bytes += sink.rewritten_bytes

    # -- garbage ------------------------------------------------------------------------------------------------------
    def garbage(self, *, all_of_it: bool = False) -> list[int]:
        """Files that hold so much garbage that they are to be rewritten; with `all_of_it`, that hold any."""
        percent = 0 if all_of_it else self.options.value_garbage_percent
        return [n for n, m in self.metas.items() if m.dead_bytes * 100 > m.value_bytes * percent]

    def small(self) -> list[int]:
        bound = self.options.value_file_bytes // SMALL_PART
        return [number for number, meta in self.metas.items() if meta.size < bound]

    def garbage_of(self, lower: bytes, upper: bytes | None) -> list[int]:
        """Files that hold any garbage, and a value of a key in lower <= key < upper: whose it is is not known."""
        return [
            number
            for number in self.garbage(all_of_it=True)
            if any(lower <= key and (upper is None or key < upper) for _, key, *_ in self.opened[number].records())
        ]

    def pick(self, version: Version, files: Iterable[int] | None = None) -> Compaction | None:
        """Rewrite, in its own level, a table that refers to one of `files` (None: that hold too much garbage)."""
        garbage = set(self.garbage() if files is None else files)
        if not garbage:
            return None
        for level, tables in enumerate(version.levels):
            for table in tables:
                if garbage & table.properties["value_files"].keys():
                    return Compaction((table.meta,), level, False, False, level >= 2, "garbage in a value file")
        return None

    # -- looking ------------------------------------------------------------------------------------------------------
    def verify(self, version: Version) -> tuple[int, int, list[Corruption]]:
        """(values, bytes, damage): every byte of every file is read, and every reference must lead to its record."""
        records = size = 0
        damaged: list[Corruption] = []
        for number, file in version.values.items():
            size += file.size
            try:
                found = file.verify()
                meta = self.metas.get(number)
                if meta is not None and found != meta.records:
                    raise Corruption(
                        "the value file holds another number of values",
                        path=file.path,
                        offset=file.size,
                        expected=meta.records,
                        found=found,
                    )
                records += found
            except Corruption as error:
                damaged.append(error)
        bad = {error.path for error in damaged}
        for tables in version.levels:
            for table in tables:
                if table.properties["value_files"]:
                    try:
                        check_references(table.cursor(), version.values)
                    except Corruption as error:
                        if error.path not in bad:
                            damaged.append(error)
        return records, size, damaged

    def stats(self) -> dict[str, Any]:
        total = sum(meta.value_bytes for meta in self.metas.values())
        dead = sum(meta.dead_bytes for meta in self.metas.values())
        return {
            "files": len(self.metas),
            "file_bytes": sum(meta.size for meta in self.metas.values()),
            "live_bytes": total - dead,
            "dead_bytes": dead,
            "written_bytes": self.written_bytes,
            "rewritten_bytes": self.rewritten_bytes,
            "removed_files": self.removed,
        }
