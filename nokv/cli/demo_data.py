"""What the demo loads: every file of a directory, or the records of a JSONL or CSV file, as key -> value.

Keys are relative paths (directory), the field `key` or the line number (JSONL), the first column (CSV). A file larger
than 1 MiB becomes several keys, `path#0000`, `path#0001`, ... What cannot be read is counted, never silently left
out.
"""

from __future__ import annotations

import csv
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nokv.errors import NotFound, UsageError

__all__ = ["Counts", "default_source", "read_entries"]

VALUE_MAX = 1 << 20
SKIPPED_DIRECTORIES = ("site-packages", "dist-packages")


@dataclass(slots=True)
class Counts:
    files: int = 0
    unreadable: int = 0
    not_regular: int = 0  # sockets, pipes, broken links
    chunked: int = 0  # files cut into several keys


def default_source() -> Path:
    """The running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_entries(source: Path, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    """Entries one by one, so that a large source needs no memory. NotFound, UsageError naming file and line."""
    if source.is_dir():
        yield from _directory(source, counts)
    elif not source.exists():
        raise NotFound(f"no {source}", hint="DEMO_DATA names a directory, a .jsonl file or a .csv file")
    elif source.suffix in (".jsonl", ".ndjson"):
        yield from _jsonl(source, counts)
    elif source.suffix == ".csv":
        yield from _csv(source, counts)
    else:
        raise UsageError(f"{source} is neither a directory nor .jsonl nor .csv")


def chunks(key: bytes, value: bytes, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    if len(value) <= VALUE_MAX:
        yield key, value
        return
    counts.chunked += 1
    for number, begin in enumerate(range(0, len(value), VALUE_MAX)):
        yield key + b"#%04d" % number, value[begin : begin + VALUE_MAX]


def _directory(source: Path, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    def cannot_list(_error: OSError) -> None:
        counts.unreadable += 1

    for folder, names, files in os.walk(source, onerror=cannot_list):
        names[:] = sorted(name for name in names if name not in SKIPPED_DIRECTORIES)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if not os.path.isfile(path):
                counts.not_regular += 1
                continue
            try:
                with open(path, "rb") as file:
                    value = file.read()
            except OSError:
                counts.unreadable += 1
                continue
            counts.files += 1
            yield from chunks(os.fsencode(os.path.relpath(path, source)), value, counts)


def _jsonl(source: Path, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    counts.files = 1
    with open(source, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{source} line {number}: {error}") from None
            name = record.get("key") if isinstance(record, dict) else None
            key = str(name).encode() if name is not None else b"line/%010d" % number
            yield from chunks(key, line.rstrip(b"\r\n"), counts)


def _csv(source: Path, counts: Counts) -> Iterator[tuple[bytes, bytes]]:
    counts.files = 1
    with open(source, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                if row:
                    value = json.dumps(row[1:], ensure_ascii=True).encode()
                    yield from chunks(row[0].encode("utf-8", "surrogateescape"), value, counts)
        except csv.Error as error:
            raise UsageError(f"{source} line {reader.line_num}: {error}") from None
