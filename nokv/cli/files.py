"""`nokv wal dump`, `manifest`, `sst show`, `blob show`: look into a directory's files, changing nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, emit_rows, output_option, table
from nokv.errors import Corruption, NotFound, UsageError
from nokv.literal import format_literal

if TYPE_CHECKING:
    from nokv.engine.wal.log import LogPosition
    from nokv.engine.wal.recovery import RecoveredLog
    from nokv.env.ports import Buffer, Files

__all__ = ["blob", "manifest", "sst", "wal"]

RECORD_NAMES = {
    1: "batch",
    2: "segment-header",
    3: "synced",
    4: "link",
    5: "filler",
    16: "raft-entries",
    17: "raft-hard-state",
    18: "raft-mark",
    19: "raft-removed",
}
KIND_NAMES = {0: "delete", 1: "put", 2: "expiring-put", 3: "range-delete", 4: "reference", 5: "expiring-reference"}
UNREADABLE = -1
DETAILS = ("sequence", "operations", "group", "entries", "reason", "expected", "found")
CHUNK = 256
KEY_CHARACTERS = 40

workdir_option = click.option("--workdir", type=click.Path(), help="The directory.")
limit_option = click.option("--limit", type=click.IntRange(0), default=0, help="At most so many; 0 = all.")


@click.group(
    cls=LazyGroup, lazy={"dump": ("nokv.cli.files:dump", "Every record of the write-ahead log, oldest first.")}
)
def wal() -> None:
    """The write-ahead log of a directory."""


@click.group(cls=LazyGroup, lazy={"show": ("nokv.cli.files:sst_show", "What one table holds.")})
def sst() -> None:
    """Sorted tables (NNNNNN.sst)."""


@click.group(cls=LazyGroup, lazy={"show": ("nokv.cli.files:blob_show", "The values in one value file.")})
def blob() -> None:
    """Value files (NNNNNN.val)."""


@click.group(
    cls=LazyGroup,
    lazy={"show": ("nokv.cli.files:manifest_show", "Levels, tables, value files and families of a directory.")},
    invoke_without_command=True,
)
@workdir_option
@output_option
@click.pass_context
def manifest(context: click.Context, workdir: str | None, output: str) -> None:
    """The manifest of a directory: levels, tables, value files and families. Corruption (exit code 6) says where."""
    if context.invoked_subcommand is None:
        show_manifest(workdir, output)


def _map(path: str) -> tuple[Files, Buffer]:
    from nokv.env.files import OsFiles

    files = OsFiles()
    if not os.path.exists(path):
        raise NotFound(f"{path} does not exist", hint="check the path")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory, not a file", hint=f"nokv manifest show {path} names its files")
    return files, files.map_file(path)


# -- wal dump ---------------------------------------------------------------------------------------------------------
@click.command("dump")
@workdir_option
@click.argument("directory", required=False, type=click.Path())
@click.option("--payload", is_flag=True, help="Also the bytes of each record.")
@click.option("--counts", is_flag=True, help="Only how many records and bytes there are, by type and Raft group.")
@output_option
def dump(workdir: str | None, directory: str | None, payload: bool, counts: bool, output: str) -> None:
    """Every record: segment, offset, type, size, and what it is about.

    Of a log that somebody is writing: up to its end at this moment. Of a damaged one: what can be read of every segment
    that is there, and where it cannot be read; then the exit code is 6.
    """
    from nokv.engine.wal.recovery import recover
    from nokv.env.files import OsFiles

    files = OsFiles()
    directory = _directory(workdir, directory)
    log = os.path.join(directory, "wal")
    if not files.exists(log):
        raise NotFound(f"{directory} has no wal directory", hint="check the path")
    damage: Corruption | None = None
    try:
        found = records(recover(files, log), files)
    except Corruption as error:
        damage, found = error, survey(files, log)
    if counts:
        _show_counts(found, output)
    else:
        _show_records(found, output, payload)
    if damage is not None:
        raise damage


def _show_records(found: Iterator[tuple[LogPosition, int, Any]], output: str, payload: bool) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for position, kind, data in found:
            place: dict[str, Any] = {"segment": position.segment, "offset": position.offset}
            if kind == UNREADABLE:
                yield {**place, "type": None, **data}
                continue
            row = {
                **place,
                "type": kind,
                "name": RECORD_NAMES.get(kind, "unknown"),
                "size": len(data),
                **about(kind, data),
            }
            yield {**row, "payload": data} if payload else row

    def human(row: dict[str, Any]) -> str:
        more = " ".join(f"{key}={row[key]}" for key in DETAILS if key in row)
        size = "-" if row["size"] is None else row["size"]
        line = f"{row['segment']:>10} {row['offset']:>10} {row['name']:<16} {size:>9} {more}".rstrip()
        return f"{line} {row['payload'].hex()}" if "payload" in row else line

    emit_rows("wal-records", rows(), output, human)


def about(kind: int, data: bytes) -> dict[str, Any]:
    """What a record is about, without its content."""
    if kind == 1 and len(data) >= 12:
        return {"sequence": int.from_bytes(data[:8], "little"), "operations": int.from_bytes(data[8:12], "little")}
    if kind >= 16:
        from nokv.multiraft.wire import CODEC

        try:
            group, _op, _metadata, _state, entries = CODEC.decode_record(kind, data)
        except Corruption:
            return {"readable": False}
        found = {"group": group}
        if entries:
            found |= {"entries": len(entries), "first_index": entries[0].index, "last_index": entries[-1].index}
        return found
    return {}


def _show_counts(found: Iterator[tuple[LogPosition, int, Any]], output: str) -> None:
    counts: Counter[tuple[int, int]] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable = 0
    for _, kind, data in found:
        if kind == UNREADABLE:
            unreadable += 1
            continue
        key = (kind, about(kind, data).get("group", 0))
        counts[key] += 1
        sizes[key] += len(data)
    rows = [
        {"type": kind, "name": RECORD_NAMES.get(kind, "unknown"), "group": group, "records": n, "bytes": size}
        for ((kind, group), n), (_, size) in zip(sorted(counts.items()), sorted(sizes.items()), strict=True)
    ]
    by_type: Counter[str] = Counter()
    for row in rows:
        by_type[str(row["name"])] += int(str(row["records"]))
    payload = {"types": dict(by_type), "records": sum(counts.values()), "unreadable": unreadable, "rows": rows}
    columns = ["name", "type", "group", "records", "bytes"]

    def human(p: dict[str, Any]) -> str:
        shown = table(columns, ([r[c] for c in columns] for r in p["rows"]))
        return f"{shown}\nplaces that cannot be read: {unreadable}" if unreadable else shown

    emit("wal-counts", payload, output, human)


def records(recovered: RecoveredLog, files: Files) -> Iterator[tuple[LogPosition, int, Any]]:
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


def survey(files: Files, log: str) -> Iterator[tuple[LogPosition, int, Any]]:
    """What a log that recovery refuses holds, segment by segment. Where a record does not check out: UNREADABLE, with a
    name, a reason, and how many bytes it is to the next record that does (None: there is none in this segment)."""
    from nokv._ext.wal import DATA_START, SegmentReader
    from nokv.engine.wal.log import LogPosition
    from nokv.engine.wal.recovery import segment_number

    for name in sorted(files.listdir(log)):
        number = segment_number(name)
        if number is None:
            continue
        data = files.map_file(f"{log}/{name}")
        size = memoryview(data).nbytes
        reader = SegmentReader(data, number)
        while reader.offset < size:
            for offset, kind, payload in reader.records(None, size, CHUNK):
                if offset >= DATA_START:
                    yield LogPosition(number, offset), kind, payload
            at, state = reader.offset, reader.state()
            if state == "record" or at >= size:
                continue
            row: dict[str, Any] = {"name": "unwritten" if state == "end" else "damaged", "reason": state}
            if state != "end":
                row["expected"], row["found"] = reader.checksums()
            more = reader.resync()
            if more or state != "end":
                yield LogPosition(number, at), UNREADABLE, {**row, "size": reader.offset - at if more else None}


def _directory(workdir: str | None, directory: str | None) -> str:
    if (workdir is None) == (directory is None):
        raise UsageError("which directory?", hint="give DIR, or --workdir DIR")
    return str(workdir or directory)


# -- manifest show ----------------------------------------------------------------------------------------------------
@click.command("show")
@click.argument("directory", type=click.Path())
@output_option
def manifest_show(directory: str, output: str) -> None:
    """Levels, tables, value files and families that the manifest names. Corruption (exit code 6) says where."""
    show_manifest(directory, output)


def show_manifest(workdir: str | None, output: str) -> None:
    from nokv.engine.manifest.log import manifest_number, read_current, read_manifest
    from nokv.env.files import OsFiles
    from nokv.migrate.plan import require_directory

    files = OsFiles()
    if workdir is None:
        raise UsageError("which directory?", hint="nokv manifest show DIR")
    require_directory(workdir, files)
    name = read_current(files, f"{workdir}/CURRENT")
    path = f"{workdir}/{name}"
    edits, torn_at = read_manifest(files.read_file(path), path, manifest_number(name) or 0)
    families: dict[str, int] = {}
    tables: dict[int, Any] = {}
    values: dict[int, Any] = {}
    dead: dict[int, int] = {}
    numbers: dict[str, int] = {"log_number": 0, "last_sequence": 0, "next_file_number": 0}
    for edit in edits:
        families.update(edit.families)
        for number in edit.removed:
            tables.pop(number, None)
        tables.update({meta.number: meta for meta in edit.added})
        values.update({meta.number: meta for meta in edit.values_added})
        dead.update({meta.number: meta.dead_bytes for meta in edit.values_added})
        dead.update(edit.values_dead)
        for number in edit.values_removed:
            values.pop(number, None)
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
    value_rows = [
        {
            "number": meta.number,
            "size": meta.size,
            "records": meta.records,
            "value_bytes": meta.value_bytes,
            "dead_bytes": dead[meta.number],
        }
        for meta in sorted(values.values(), key=lambda meta: int(meta.number))
    ]
    payload = {
        "path": path,
        "edits": len(edits),
        "torn_at": torn_at,
        **numbers,
        "families": families,
        "tables": rows,
        "value_files": value_rows,
    }

    def human(p: dict[str, Any]) -> str:
        columns = ["level", "table", "size", "entries", "smallest", "largest"]
        shown = [
            (r["level"], r["number"], r["size"], r["entries"], *(_key(r[k]) for k in columns[4:])) for r in p["tables"]
        ]
        named = ", ".join(f"{family}={number}" for family, number in p["families"].items())
        parts = [f"{path}: {p['edits']} edits, last sequence {p['last_sequence']}", f"families: {named}"]
        parts.append(table(columns, shown))
        if p["value_files"]:
            keys = ["number", "size", "records", "value_bytes", "dead_bytes"]
            parts.append(table(["value file", *keys[1:]], ([r[k] for k in keys] for r in p["value_files"])))
        return "\n".join(parts)

    emit("manifest", payload, output, human)


def _key(prefix: bytes) -> str:
    """family:key, the key in the grammar of `nokv.literal`."""
    return f"{prefix[0]}:{format_literal(prefix[1:], limit=KEY_CHARACTERS)}" if prefix else "-"


# -- sst show ---------------------------------------------------------------------------------------------------------
@click.command("show")
@click.argument("file", type=click.Path())
@click.option("--entries", is_flag=True, help="Every entry: family, key, sequence, kind, size.")
@click.option("--check", is_flag=True, help="Read and check every byte.")
@limit_option
@output_option
def sst_show(file: str, entries: bool, check: bool, limit: int, output: str) -> None:
    """A table's properties, or its entries. Corruption (exit code 6) says where."""
    from nokv._ext.blockcache import BlockCache
    from nokv._ext.table import Table

    _, data = _map(file)
    opened = Table(data, file, BlockCache(0))
    if check:
        opened.verify()
    if entries:
        emit_rows("table-entries", _entries(opened, limit), output, _entry_line)
        return
    p = opened.properties
    size = len(data)
    payload = {
        "path": file,
        "format_version": opened.version,
        "size": size,
        "ratio": round(p["raw_bytes"] / size, 3),
        **{key: value for key, value in p.items() if key not in ("families", "value_files")},
        "families": p["families"].decode("utf-8", "replace").splitlines(),
        "value_files": {str(number): count for number, count in p["value_files"].items()},
        "checked": check,
    }

    def human(shown: dict[str, Any]) -> str:
        return table(
            ["property", "value"],
            [(key, _key(value) if isinstance(value, bytes) else value) for key, value in shown.items()],
        )

    emit("table", payload, output, human)


def _entries(opened: Any, limit: int) -> Iterator[dict[str, Any]]:
    from nokv._ext.valuefile import decode_reference

    cursor = opened.cursor()
    cursor.seek_first()
    count = 0
    while cursor.valid and (not limit or count < limit):
        prefix, sequence, kind, value = cursor.entry
        row: dict[str, Any] = {
            "family": prefix[0],
            "key": prefix[1:],
            "sequence": sequence,
            "kind": KIND_NAMES.get(kind, str(kind)),
            "size": len(value),
        }
        if kind in (2, 5):
            row["expires_at_ms"] = int.from_bytes(value[:8], "little")
            row["size"] = len(value) - 8
        if kind in (4, 5):
            number, offset, size, crc = decode_reference(value[8:] if kind == 5 else value)
            row |= {"value_file": number, "offset": offset, "size": size, "crc32c": crc}
        yield row
        count += 1
        cursor.next()


def _entry_line(row: dict[str, Any]) -> str:
    line = f"{row['family']:>3} {row['sequence']:>12} {row['kind']:<18} {row['size']:>10}  {format_literal(row['key'])}"
    if "value_file" in row:
        line += f"  in {row['value_file']:06d}.val at {row['offset']}"
    return line


# -- blob show --------------------------------------------------------------------------------------------------------
@click.command("show")
@click.argument("file", type=click.Path())
@click.option("--check", is_flag=True, help="Read and check every value too.")
@limit_option
@output_option
def blob_show(file: str, check: bool, limit: int, output: str) -> None:
    """Each value's place, family, key, sequence and size. Corruption (exit code 6) says where."""
    from nokv._ext.valuefile import ValueFile

    _, data = _map(file)
    opened = ValueFile(data, file)

    def rows() -> Iterator[dict[str, Any]]:
        for count, (offset, prefix, sequence, size, crc) in enumerate(opened.records(check=check), 1):
            yield {
                "file": opened.number,
                "offset": offset,
                "family": prefix[0],
                "key": prefix[1:],
                "sequence": sequence,
                "size": size,
                "crc32c": crc,
            }
            if count == limit:
                return

    def human(row: dict[str, Any]) -> str:
        return (
            f"{row['offset']:>12} {row['family']:>3} {row['sequence']:>12} {row['size']:>10} {row['crc32c']:08x}"
            f"  {format_literal(row['key'])}"
        )

    emit_rows("value-records", rows(), output, human)
