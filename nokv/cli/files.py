"""`nokv wal dump` and `nokv manifest`: look into a directory's files, changing nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, emit_rows, output_option, table
from nokv.errors import NotFound
from nokv.literal import format_literal

__all__ = ["manifest", "wal"]

RECORD_NAMES = {1: "batch", 16: "raft-entries", 17: "raft-hard-state", 18: "raft-mark", 19: "raft-removed"}
CHUNK = 256
COMMANDS = {"dump": ("nokv.cli.files:dump", "Every record of the write-ahead log, oldest first.")}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def wal() -> None:
    """The write-ahead log of a directory."""


@click.command("dump")
@click.option("--workdir", required=True, type=click.Path(), help="The directory.")
@click.option("--payload", is_flag=True, help="Also the bytes of each record.")
@output_option
def dump(workdir: str, payload: bool, output: str) -> None:
    """Every record: segment, offset, type, size. Corruption (exit code 6) says where."""
    from nokv.engine.wal.recovery import recover
    from nokv.env.files import OsFiles

    files = OsFiles()
    directory = os.path.join(workdir, "wal")
    if not files.exists(directory):
        raise NotFound(f"{workdir} has no wal directory", hint="check --workdir")
    recovered = recover(files, directory)

    def rows() -> Iterator[dict[str, Any]]:
        for position, kind, data in records(recovered, files):
            row: dict[str, Any] = {
                "segment": position.segment,
                "offset": position.offset,
                "type": kind,
                "name": RECORD_NAMES.get(kind, "unknown"),
                "size": len(data),
            }
            yield {**row, "payload": data} if payload else row

    def human(row: dict[str, Any]) -> str:
        line = f"{row['segment']:>10} {row['offset']:>10} {row['name']:<16} {row['size']:>9}"
        return f"{line} {row['payload'].hex()}" if payload else line

    emit_rows("wal-records", rows(), output, human)


def records(recovered: Any, files: Any) -> Iterator[tuple[Any, int, bytes]]:
    """What recovery would replay, in its order. The segment's own header record is left out."""
    from nokv._ext.wal import DATA_START, SegmentReader
    from nokv.engine.wal.log import LogPosition

    for info in recovered.segments:
        reader = SegmentReader(files.map_file(info.path), info.number, DATA_START)
        while reader.offset < info.end:
            found = reader.records(None, info.end, CHUNK)
            for offset, kind, payload in found:
                yield LogPosition(info.number, offset), kind, payload
            if len(found) < CHUNK:
                break


@click.command()
@click.option("--workdir", required=True, type=click.Path(), help="The directory.")
@output_option
def manifest(workdir: str, output: str) -> None:
    """Levels, tables and families that the manifest names. Corruption (exit code 6) says where."""
    from nokv.engine.manifest.log import manifest_number, read_current, read_manifest
    from nokv.env.files import OsFiles
    from nokv.migrate.plan import require_directory

    files = OsFiles()
    require_directory(workdir, files)
    name = read_current(files, f"{workdir}/CURRENT")
    path = f"{workdir}/{name}"
    edits, torn_at = read_manifest(files.read_file(path), path, manifest_number(name) or 0)
    families: dict[str, int] = {}
    tables: dict[int, Any] = {}
    numbers: dict[str, int] = {"log_number": 0, "last_sequence": 0, "next_file_number": 0}
    for edit in edits:
        families.update(edit.families)
        for number in edit.removed:
            tables.pop(number, None)
        tables.update({meta.number: meta for meta in edit.added})
        numbers.update({k: getattr(edit, k) for k in numbers if getattr(edit, k) is not None})
    rows = [
        {
            "level": meta.level,
            "number": meta.number,
            "size": meta.size,
            "entries": meta.entries,
            "max_sequence": meta.max_sequence,
            "smallest": meta.smallest,
            "largest": meta.largest,
        }
        for meta in sorted(tables.values(), key=lambda meta: (meta.level, meta.number))
    ]
    payload = {"path": path, "edits": len(edits), "torn_at": torn_at, **numbers, "families": families, "tables": rows}

    def human(p: dict[str, Any]) -> str:
        columns = ["level", "table", "size", "entries", "smallest", "largest"]
        shown = [
            (r["level"], r["number"], r["size"], r["entries"], *(format_literal(r[k], limit=24) for k in columns[4:]))
            for r in p["tables"]
        ]
        named = ", ".join(f"{family}={number}" for family, number in p["families"].items())
        return f"{path}: {p['edits']} edits, last sequence {p['last_sequence']}\nfamilies: {named}\n" + table(
            columns, shown
        )

    emit("manifest", payload, output, human)
