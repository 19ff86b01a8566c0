"""Making and opening tables through the file port. The byte layout and the loops are in `nokv._ext.table` and
`tablebuilder`.

A table is written to its final name from front to back, synced, and exists for the engine once the manifest names it;
until then it is a leftover that the next open removes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nokv._ext.blockcache import BlockCache
from nokv._ext.merge import OwnedCursor
from nokv._ext.ranges import Ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder, VersionFilter
from nokv._ext.valuefile import ValueSink
from nokv.engine.manifest.edit import FileMeta
from nokv.engine.sst.options import LsmOptions
from nokv.env.ports import Files
from nokv.errors import Corruption

__all__ = [
    "WrittenTable",
    "join",
    "new_builder",
    "open_table",
    "table_name",
    "table_number",
    "write_table",
    "write_tables",
]

SUFFIX = ".sst"
EVERYTHING = 1 << 62


def join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def table_name(number: int) -> str:
    return f"{number:06d}{SUFFIX}"


def table_number(name: str) -> int | None:
    stem = name.removesuffix(SUFFIX)
    return int(stem) if stem != name and len(stem) >= 6 and stem.isascii() and stem.isdigit() else None


@dataclass(slots=True)
class WrittenTable:
    """A finished, synced file that nothing refers to yet."""

    number: int
    path: str
    properties: dict[str, Any]

    def meta(self, level: int) -> FileMeta:
        p = self.properties
        return FileMeta(
            number=self.number,
            level=level,
            size=p["size"],
            crc32c=p["crc32c"],
            entries=p["entries"],
            smallest=p["smallest"],
            largest=p["largest"],
            min_sequence=p["min_sequence"],
            max_sequence=p["max_sequence"],
            global_sequence=None,
        )


def new_builder(
    file: Any,
    options: LsmOptions,
    *,
    compression: str,
    created_ms: int,
    external: bool = False,
    families: bytes = b"",
    sink: ValueSink | None = None,
) -> TableBuilder:
    return TableBuilder(
        file,
        compression=compression,
        level=options.zstd_level,
        block_bytes=options.compressed_block_bytes if compression == "zstd" else options.block_bytes,
        restart_interval=options.restart_interval,
        bloom_bits=options.bloom_bits,
        created_ms=created_ms,
        external=external,
        families=families,
        sink=sink,
    )


@contextlib.contextmanager
def write_table(
    files: Files,
    number: int,
    path: str,
    options: LsmOptions,
    *,
    compression: str,
    created_ms: int,
    external: bool = False,
    families: bytes = b"",
    sink: ValueSink | None = None,
) -> Iterator[tuple[TableBuilder, WrittenTable]]:
    """Fill the builder inside the block. After it the file is complete and synced (its name is not), or, if nothing was
    added or the block raised, gone."""
    file = files.create(path)
    written = WrittenTable(number, path, {})
    try:
        builder = new_builder(
            file,
            options,
            compression=compression,
            created_ms=created_ms,
            external=external,
            families=families,
            sink=sink,
        )
        yield builder, written
        if builder.entries:
            written.properties = builder.finish()
            file.sync()
        file.close()
    except Exception:
        with contextlib.suppress(OSError):  # what cannot be removed now is a leftover that the next open removes
            file.close()
            files.remove(path)
        raise
    if not written.properties:
        files.remove(path)


def write_tables(
    files: Files,
    source: OwnedCursor,
    versions: VersionFilter,
    options: LsmOptions,
    *,
    next_file: Callable[[], tuple[int, str]],
    compression: str,
    created_ms: int,
    table_bytes: int = EVERYTHING,
    sink: ValueSink | None = None,
    ranges: Ranges | None = None,
) -> list[WrittenTable]:
    """Everything from where `source` stands, and the range deletes, cut where one table ends and the next begins, in
    tables of about `table_bytes` that do not overlap; large values go to `sink`, whose files are synced too. If it
    raises, no file is left."""
    made: list[WrittenTable] = []
    more = source.valid or bool(ranges)
    lower: bytes | None = None
    try:
        while more:
            number, path = next_file()
            with write_table(
                files, number, path, options, compression=compression, created_ms=created_ms, sink=sink
            ) as (builder, written):
                more = source.valid and builder.fill(source, versions, table_bytes)
                if ranges:
                    upper = builder.after if more else None
                    builder.set_ranges(ranges.cut(lower, upper))
                    lower = upper
            if written.properties:
                made.append(written)
        if sink is not None:
            sink.finish()
    except Exception:
        if sink is not None:
            sink.abort()
        with contextlib.suppress(OSError):
            for written in made:
                files.remove(written.path)
        raise
    return made


def open_table(files: Files, path: str, cache: BlockCache, meta: FileMeta | None = None) -> Table:
    """Corruption if the file is missing, is not a whole table, or is not the one that `meta` describes."""
    try:
        data = files.map_file(path)
    except FileNotFoundError:
        raise Corruption(
            "a table that the manifest names is missing", path=path, hint="restore the file; nothing was changed"
        ) from None
    return Table(data, path, cache, meta=meta, global_sequence=None if meta is None else meta.global_sequence)
