"""`nokv import | export`: JSON lines and CSV, into and out of a directory or a cluster.

JSON lines: `{"key": K, "value": V}`, each either text or `{"b64": "..."}`; what `nokv scan --output jsonl` prints is
read too. CSV: a header line `key,value`, then text; bytes that are not UTF-8, or text that would read as such, are
written as `b64:...`; a literal text that begins with `b64:` or `text:` gets `text:` in front. Export writes exactly
what import reads back.

A value with a time to live has a third field, `expires_at_ms`: the Unix millisecond from which on it is absent. In CSV
the column is there if the directory ever held such a value.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from nokv.cli.output import emit, output_option
from nokv.cli.target import Target, open_target, parse_bytes, target_options
from nokv.errors import NoKVError, NotSupported, PreconditionFailed, UsageError

__all__ = ["export", "import_", "read_rows", "write_rows"]

Row = tuple[bytes, bytes, int | None]  # key, value, and the Unix millisecond from which on it is absent
FORMATS = ("jsonl", "csv")
CSV_COLUMNS = ["key", "value", "expires_at_ms"]
EXPIRY_MS_LIMIT = 1 << 53  # the engine's, which is not loaded for a cluster
KEY_BYTES_MAX = 1 << 16  # likewise
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 20
FIELD_CHARACTERS_MAX = 2**31 - 1
PROGRESS_INTERVAL_S = 0.2

format_option = click.option(
    "--format", "kind", type=click.Choice(FORMATS), help="Default: by the file's ending, else jsonl."
)
timeout_option = click.option("--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Seconds.")


def _kind(kind: str | None, path: str) -> str:
    return kind or ("csv" if path.endswith(".csv") else "jsonl")


# -- the two formats --------------------------------------------------------------------------------------------------
def _to_json(value: bytes) -> Any:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def _from_json(value: Any, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, dict) and isinstance(value.get("b64"), str):
        return base64.b64decode(value["b64"], validate=True)
    raise ValueError(f'{what} must be text or {{"b64": "..."}}')


def _to_csv(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or "\r" in text:  # a CSV reader may change these
        return "b64:" + base64.b64encode(value).decode("ascii")
    return f"text:{text}" if text.startswith(("b64:", "text:")) else text


def _from_csv(text: str) -> bytes:
    kind, _, rest = text.partition(":")
    if kind == "b64":
        return base64.b64decode(rest, validate=True)
    return (rest if kind == "text" else text).encode("utf-8")


def _fits(key: bytes) -> bytes:
    if len(key) > KEY_BYTES_MAX:
        raise ValueError(f"a key of {len(key)} bytes is too long (at most {KEY_BYTES_MAX})")
    return key


def _moment(value: Any) -> int | None:
    if value is None or value == "":
        return None
    moment = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(moment) is not int or not 0 < moment <= EXPIRY_MS_LIMIT:
        raise ValueError("expires_at_ms must be Unix time in milliseconds")
    return moment


def read_rows(stream: TextIO, kind: str, name: str) -> Iterator[Row]:
    """(key, value, expiry or None) of a JSON lines or CSV text; UsageError names the file and the line."""
    line = columns = 0
    try:
        if kind == "jsonl":
            for line, text in enumerate(stream, 1):  # noqa: B007  (the error below names it)
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict) or "key" not in row or "value" not in row:
                    raise ValueError('expected {"key": ..., "value": ...}')
                key, value = _from_json(row["key"], "key"), _from_json(row["value"], "value")
                yield _fits(key), value, _moment(row.get("expires_at_ms"))
            return
        csv.field_size_limit(FIELD_CHARACTERS_MAX)
        reader = csv.reader(stream, strict=True)
        for cells in reader:
            first, line = line == 0, reader.line_num
            if first:
                if cells not in (CSV_COLUMNS[:2], CSV_COLUMNS):
                    raise ValueError("the first line must be: key,value or key,value,expires_at_ms")
                columns = len(cells)
                continue
            if not cells:
                continue
            if len(cells) != columns:
                raise ValueError(f"{len(cells)} columns instead of {columns}")
            yield _fits(_from_csv(cells[0])), _from_csv(cells[1]), _moment("".join(cells[2:]))
    except (ValueError, csv.Error, binascii.Error) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        if isinstance(error, NoKVError):
            raise
        what = "this is not UTF-8" if isinstance(error, UnicodeError) else error
        raise UsageError(f"{name}:{line}: {what}", hint=f"is it {kind}? --format says what it is") from None


def write_rows(rows: Iterable[Row], stream: TextIO, kind: str, *, expiring: bool = False) -> Iterator[Row]:
    """Writes each row, then hands it on. `expiring`: some may expire."""
    if kind == "jsonl":
        for row in rows:
            key, value, expiry = row
            fields = {"key": _to_json(key), "value": _to_json(value)}
            if expiry is not None:
                fields["expires_at_ms"] = expiry
            stream.write(json.dumps(fields, ensure_ascii=False) + "\n")
            yield row
        return
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS if expiring else CSV_COLUMNS[:2])
    for row in rows:
        key, value, expiry = row
        writer.writerow((_to_csv(key), _to_csv(value), *(("" if expiry is None else expiry,) if expiring else ())))
        yield row


# -- progress ---------------------------------------------------------------------------------------------------------
class _Progress:
    """One line on stderr, rewritten, only if that is a terminal. With a size it is a bar."""

    def __init__(self, verb: str, size: int | None) -> None:
        self.verb = verb
        self.size = size
        self.shown = sys.stderr.isatty()
        self.began = self.last = time.monotonic()

    def update(self, rows: int, done: int | None, *, final: bool = False) -> None:
        now = time.monotonic()
        if not self.shown or (not final and now - self.last < PROGRESS_INTERVAL_S):
            return
        self.last = now
        rate = rows / max(now - self.began, 1e-9)
        bar = ""
        if self.size and done is not None:
            part = 1.0 if final else min(done / self.size, 1.0)
            bar = f"[{'#' * int(part * 30):<30}] {part:4.0%} "
        sys.stderr.write(f"\r{bar}{self.verb} {rows:,} rows, {rate:,.0f}/s\x1b[K" + ("\n" if final else ""))
        sys.stderr.flush()


@contextmanager
def _reading(path: str) -> Iterator[tuple[Any, TextIO, int | None]]:
    if path == "-":
        yield None, io.TextIOWrapper(sys.stdin.buffer, "utf-8", "surrogateescape", newline=""), None
        return
    with open(path, "rb") as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        yield raw, io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline=""), size


@click.command("import")
@click.argument("file", type=click.Path(allow_dash=True))
@target_options
@format_option
@timeout_option
@output_option
def import_(file: str, target: Target, kind: str | None, timeout_s: float, output: str) -> None:
    """Store every row of FILE (- for standard input): JSON lines or CSV, as `nokv export` writes them.

    Rows are written in batches of a thousand, in order; with --workdir everything is durable when the command returns.
    A bad row stops the import and is named; the batches before it stay. Importing again is harmless. A --family that is
    not there is made.
    """
    kind = _kind(kind, file)
    rows = size = 0
    with (
        _reading(file) as (raw, stream, total),
        open_target(target, write=True, timeout_s=timeout_s, create_family=True) as db,
    ):
        progress = _Progress("imported", total)
        batch: list[Row] = []

        def store() -> None:
            nonlocal rows, size
            if batch:
                _put_many(db, batch)
                rows += len(batch)
                batch.clear()
                size = 0
                progress.update(rows, raw.tell() if raw is not None else None)

        try:
            for row in read_rows(stream, kind, file):
                key, value, _ = row
                batch.append(row)
                size += len(key) + len(value)
                if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                    store()
            store()
        finally:
            progress.update(rows, None if raw is None else raw.tell(), final=True)
            if target.workdir is not None:
                db.sync()
    emit("import", {"file": file, "format": kind, "rows": rows}, output, lambda p: f"{p['rows']} rows imported")


def _put_many(db: Any, rows: list[Row]) -> None:
    if any(expiry is not None for _, _, expiry in rows):
        if not hasattr(db, "write_batch"):
            raise NotSupported("a cluster has no times to live", hint="take expires_at_ms out of the rows")
        with db.write_batch() as batch:
            for key, value, expiry in rows:
                batch.put(key, value, expires_at_ms=expiry)
        return
    put_many = getattr(db, "put_many", None)
    if put_many is not None:
        put_many([(key, value) for key, value, _ in rows])
        return
    for key, value, _ in rows:
        db.put(key, value)


def _rows(db: Any, expiring: bool, bounds: dict[str, bytes]) -> Iterator[Row]:
    if not expiring:
        for key, value in db.scan(**bounds):
            yield key, value, None
        return
    with db.iterator(bounds.get("start"), bounds.get("end"), prefix=bounds.get("prefix")) as it:
        on = it.seek_first()
        while on:
            yield it.key, it.value, it.expires_at_ms
            on = it.next()


@click.command()
@click.argument("file", type=click.Path(allow_dash=True))
@target_options
@click.option("--prefix", help="Only keys that begin with this.")
@click.option("--start", help="First key.")
@click.option("--end", help="Stop before this key.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
@format_option
@timeout_option
def export(
    file: str,
    target: Target,
    prefix: str | None,
    start: str | None,
    end: str | None,
    force: bool,
    kind: str | None,
    timeout_s: float,
) -> None:
    """Write keys and values in order to FILE (- for standard output), as JSON lines or CSV.

    What is written is what `nokv import` reads back, every byte. An existing FILE is refused without --force.
    Rows go to FILE.partial, which becomes FILE when all are there. Of a directory with families each is exported by
    itself (--family).
    """
    if prefix is not None and (start is not None or end is not None):
        raise UsageError("--prefix and --start/--end exclude each other")
    bounds = {
        name: parse_bytes(text, name)
        for name, text in (("prefix", prefix), ("start", start), ("end", end))
        if text is not None
    }
    kind = _kind(kind, file)
    with open_target(target, write=False, timeout_s=timeout_s) as db:
        if file == "-":
            stream: TextIO = io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="", write_through=False)
        else:
            if not force and os.path.lexists(file):
                raise PreconditionFailed(f"{file} is there already", hint="--force overwrites it")
            partial = f"{file}.partial"
            stream = open(partial, "w", encoding="utf-8", newline="")  # noqa: SIM115
        progress = _Progress("exported", None)
        rows = 0
        try:
            expiring = getattr(db, "expiring", False)
            for rows, _ in enumerate(write_rows(_rows(db, expiring, bounds), stream, kind, expiring=expiring), 1):
                progress.update(rows, None)
            stream.flush()
        finally:
            if file == "-":
                stream.detach()  # type: ignore[attr-defined]
            else:
                stream.close()
        if file != "-":
            os.replace(partial, file)
        progress.update(rows, None, final=True)
        others = [name for name in getattr(db, "families", dict)() if name != "plain"]
    click.echo(f"{rows} rows exported", err=True)
    if others and target.family is None:
        click.echo(f"not exported: the families {', '.join(others)} (--family exports one)", err=True)
