"""Tables that travel between directories: export, and the steps of ingest.

An external table holds one version of each key, all with sequence 0, and the names of the families its ids stand for.
The directory that takes it in gives it one sequence as a whole (`FileMeta.global_sequence`), so no byte of it is
rewritten.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nokv._ext.blockcache import BlockCache
from nokv._ext.crc32c import crc32c
from nokv._ext.ranges import Ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import VersionFilter
from nokv._ext.valuefile import ValueSink
from nokv._ext.version import Version
from nokv.engine.manifest.edit import FileMeta
from nokv.engine.manifest.log import write_all
from nokv.engine.sst.options import LsmOptions
from nokv.engine.sst.table import WrittenTable, join, table_name, table_number, write_table
from nokv.env.ports import Buffer, Files
from nokv.errors import Corruption, PreconditionFailed, Unavailable, UsageError

__all__ = [
    "ExportedFile",
    "check_group",
    "decode_families",
    "encode_families",
    "export",
    "ingested_meta",
    "place",
    "write_external",
]

COPY_BYTES = 1 << 20
LOWEST_TRAILER = bytes(8)  # below every real trailer of the same key


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """`smallest` and `largest` are family || user key."""

    name: str
    size: int
    crc32c: int
    entries: int
    smallest: bytes
    largest: bytes

    @classmethod
    def of(cls, name: str, meta: FileMeta) -> ExportedFile:
        return cls(name, meta.size, meta.crc32c, meta.entries, meta.smallest, meta.largest)


def encode_families(families: Mapping[str, int]) -> bytes:
    return "".join(f"{family} {name}\n" for name, family in families.items()).encode()


def decode_families(table: Table) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        for line in table.properties["families"].decode().splitlines():
            number, name = line.split(" ", 1)
            found[name] = int(number)
    except ValueError:
        raise Corruption("the families of an external table cannot be read", path=table.path) from None
    if any(not name or not 0 <= family <= 255 for name, family in found.items()):
        raise Corruption("an external table names an impossible family", path=table.path)
    return found


def export(
    files: Files,
    version: Version,
    directory: str,
    ranges: Sequence[tuple[int, bytes | None, bytes | None]],
    sequence: int,
    options: LsmOptions,
    *,
    families: Mapping[str, int],
    created_ms: int,
    expired_ms: int = 0,
    tombstones: bool = False,
) -> list[ExportedFile]:
    """See VersionSet.export. Files and their names are synced when it returns; if it raises, no file is left."""
    bounds = []
    for family, start, end in ranges:
        if start is not None and end is not None and start > end:
            raise UsageError(f"a reversed range: {start!r} > {end!r}", hint="a range is start <= key < end")
        first = bytes([family]) + (start or b"")
        last = bytes([family + 1]) if end is None and family < 255 else None if end is None else bytes([family]) + end
        bounds.append((first, last))
    bounds.sort(key=lambda b: b[0])
    for (_, end_before), (start_after, _) in itertools.pairwise(bounds):
        if end_before is None or end_before > start_after:
            raise UsageError("the ranges of an export overlap", hint="give each key once")
    named = {name: family for name, family in families.items() if any(family == r[0] for r in ranges)}
    files.makedirs(directory)
    if any(table_number(name) is not None for name in files.listdir(directory)):
        raise PreconditionFailed(f"{directory} holds tables already", hint="give a new or an empty directory")
    source = version.cursor()
    parts = version.ranges()
    ranges_below = Ranges.merged(parts, [sequence]) if parts else None
    made: list[WrittenTable] = []
    sink = ValueSink(version.values, inlines=True) if version.values else None  # what travels travels whole
    try:
        for first, last in bounds:
            source.seek(first + LOWEST_TRAILER)
            versions = VersionFilter(
                [sequence], export=True, tombstones=tombstones, ranges=ranges_below, now_ms=expired_ms
            )
            more = source.valid
            while more:
                number = len(made) + 1
                with write_table(
                    files,
                    number,
                    join(directory, table_name(number)),
                    options,
                    compression=options.compression,
                    created_ms=created_ms,
                    external=True,
                    families=encode_families(named),
                    sink=sink,
                ) as (builder, written):
                    more = builder.fill(source, versions, options.table_bytes, last)
                if written.properties:
                    made.append(written)
        files.sync_dir(directory)
    except Exception:
        with contextlib.suppress(OSError):
            for written in made:
                files.remove(written.path)
        raise
    return [ExportedFile.of(table_name(w.number), w.meta(0)) for w in made]


def write_external(
    files: Files,
    path: str,
    entries: Sequence[tuple[int, bytes, bytes | None]],
    options: LsmOptions | None = None,
    *,
    families: Mapping[str, int],
    created_ms: int = 0,
) -> ExportedFile | None:
    """One external table from (family id, user key, value or None for a delete), which rise strictly. Synced, the name
    too if the caller syncs the directory. None if there is nothing."""
    options = options or LsmOptions()
    with write_table(
        files,
        0,
        path,
        options,
        compression=options.compression,
        created_ms=created_ms,
        external=True,
        families=encode_families(families),
    ) as (builder, written):
        for family, key, value in entries:
            builder.add(bytes([family]) + key, value)
    return ExportedFile.of(path.rsplit("/", 1)[-1], written.meta(0)) if written.properties else None


def check_group(files: Files, paths: Sequence[str], cache: BlockCache) -> list[tuple[str, Table]]:
    """Open and verify every byte; refuse what is not an external table, and tables that overlap within the group."""
    tables = []
    for path in paths:
        if not files.exists(path):
            raise UsageError(f"{path}: there is no such file to ingest", hint="check the path")
        table = Table(_content(files, path), path, cache)
        table.verify()
        p = table.properties
        if not p["external"] or p["min_sequence"] or p["max_sequence"]:
            raise UsageError(f"{path}: not an external table", hint="make it with export_sst")
        if p["value_files"]:
            raise UsageError(
                f"{path}: its values lie in files that do not travel with it", hint="make it with export_sst"
            )
        data = _content(files, path)
        p["size"], p["crc32c"] = memoryview(data).nbytes, crc32c(data)
        tables.append((path, table))
    tables.sort(key=lambda item: item[1].properties["smallest"])
    for (path, before), (other, after) in itertools.pairwise(tables):
        if before.properties["largest"] >= after.properties["smallest"]:
            raise UsageError(f"{path} and {other} overlap", hint="put them into different groups")
    return tables


def _content(files: Files, path: str) -> Buffer:
    """Of a file that somebody gave us to read."""
    try:
        return files.map_file(path)
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory, not a table", hint="name the files in it") from None
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror or error}", hint="check the disk") from error


def place(files: Files, source: str, target: str) -> None:
    """`target` becomes another name of `source`, or a synced copy where links cannot be made."""
    try:
        files.link(source, target)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
    data = memoryview(files.map_file(source))
    file = files.create(target)
    try:
        for start in range(0, len(data), COPY_BYTES):
            write_all(file, data[start : start + COPY_BYTES])
        file.sync()
    finally:
        file.close()


def ingested_meta(table: Table, number: int, sequence: int) -> FileMeta:
    p = table.properties
    return FileMeta(
        number=number,
        level=0,
        size=p["size"],
        crc32c=p["crc32c"],
        entries=p["entries"],
        smallest=p["smallest"],
        largest=p["largest"],
        min_sequence=sequence,
        max_sequence=sequence,
        global_sequence=sequence,
    )
