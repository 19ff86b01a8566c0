"""A checkpoint: a directory that opens as a database of its own, made without copying a table.

    tables   and value files: hard links (a copy where the target is another file system); nobody ever writes into them
    wal/     an empty log: everything was flushed first
    MANIFEST what the source's manifest says, but for the log number; then CURRENT, last

A directory without CURRENT but with tables refuses to open, so a crash in the middle leaves nothing that looks whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from nokv.engine.manifest.edit import FileMeta, ValueFileMeta, VersionEdit
from nokv.engine.manifest.log import CURRENT, ManifestWriter, manifest_name, write_current
from nokv.engine.sst.external import place
from nokv.engine.sst.table import table_name
from nokv.engine.values import value_name
from nokv.engine.wal import Wal
from nokv.env.ports import Files
from nokv.errors import PreconditionFailed

__all__ = ["new_log", "write_checkpoint", "write_manifest"]

WAL_DIRECTORY = "wal"
FIRST_LOG_NUMBER = 1  # what a new log begins with


def write_checkpoint(
    files: Files,
    source: str,
    directory: str,
    tables: list[FileMeta],
    families: dict[str, int],
    last_sequence: int,
    values: list[ValueFileMeta],
) -> None:
    """Durable when it returns. On an error nothing of it is left. The caller keeps the tables where they are meanwhile.
    PreconditionFailed if `directory` is there and not empty."""
    if files.exists(directory) and files.listdir(directory):
        raise PreconditionFailed(f"{directory} is not empty", hint="give a directory that does not exist yet")
    try:
        files.makedirs(directory)
        new_log(files, f"{directory}/{WAL_DIRECTORY}")
        names = [table_name(meta.number) for meta in tables] + [value_name(meta.number) for meta in values]
        for name in names:
            place(files, f"{source}/{name}", f"{directory}/{name}")
        number = max([0, *(meta.number for meta in tables), *(meta.number for meta in values)]) + 1
        write_manifest(files, directory, number, tables, families, last_sequence, FIRST_LOG_NUMBER, values)
    except BaseException:
        with contextlib.suppress(OSError):  # what stays is no database: it has no CURRENT
            _remove(files, directory)
        raise
    parent = directory.rpartition("/")[0] or ("/" if directory.startswith("/") else ".")
    files.sync_dir(parent)


def new_log(files: Files, directory: str) -> None:
    """An empty write-ahead log, durable."""
    files.makedirs(directory)
    Wal(files, directory, 1 << 20, ()).close()


def write_manifest(
    files: Files,
    directory: str,
    number: int,
    tables: list[FileMeta],
    families: dict[str, int],
    last_sequence: int,
    log_number: int,
    values: Sequence[ValueFileMeta] = (),
) -> None:
    """A manifest of one edit, and CURRENT to name it. Durable when it returns."""
    name = manifest_name(number)
    writer = ManifestWriter(files, f"{directory}/{name}", number)
    try:
        writer.append(
            VersionEdit(
                log_number=log_number,
                next_file_number=number + 1,
                last_sequence=last_sequence,
                families=families,
                added=tables,
                values_added=list(values),
            )
        )
    finally:
        writer.close()
    files.sync_dir(directory)
    write_current(files, directory, f"{directory}/{CURRENT}", name)


def _remove(files: Files, directory: str) -> None:
    log = f"{directory}/{WAL_DIRECTORY}"
    if files.exists(log):
        for name in files.listdir(log):
            files.remove(f"{log}/{name}")
        files.rmdir(log)
    for name in files.listdir(directory):
        files.remove(f"{directory}/{name}")
    files.rmdir(directory)
