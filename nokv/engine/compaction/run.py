"""Doing what the picker decided: tables in, tables out, a VersionEdit to apply. Changes nothing that anyone reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from nokv._ext.ranges import Ranges
from nokv._ext.tablebuilder import VersionFilter
from nokv._ext.valuefile import ValueSink
from nokv._ext.version import Version
from nokv.engine.compaction.picker import Compaction
from nokv.engine.manifest.edit import VersionEdit
from nokv.engine.sst.options import LsmOptions
from nokv.engine.sst.table import write_tables
from nokv.env.ports import Files

__all__ = ["run_compaction"]


def run_compaction(
    compaction: Compaction,
    version: Version,
    files: Files,
    options: LsmOptions,
    *,
    snapshots: Iterable[int],
    expired_ms: int,
    next_file: Callable[[], tuple[int, str]],
    created_ms: int,
    sink: ValueSink | None = None,
) -> tuple[VersionEdit, VersionFilter | None]:
    """The edit that replaces the inputs by what was written (synced, names not yet), and what decided about each entry
    (None: a move). `version` must hold the inputs."""
    numbers = [meta.number for meta in compaction.inputs]
    edit = VersionEdit(removed=numbers)
    if compaction.move:
        edit.added = [dataclasses.replace(compaction.inputs[0], level=compaction.output_level)]
        return edit, None
    wanted = set(numbers)
    inputs = Version([[t for t in tables if t.meta.number in wanted] for tables in version.levels])
    source = inputs.cursor()
    source.seek_first()
    snapshots = list(snapshots)
    parts = inputs.ranges()
    ranges = Ranges.merged(parts, snapshots) if parts else None
    versions = VersionFilter(
        snapshots,
        bottom=compaction.bottom,
        now_ms=expired_ms,
        ranges=ranges,
        newest=max(meta.max_sequence for meta in compaction.inputs),
    )
    written = write_tables(
        files,
        source,
        versions,
        options,
        next_file=next_file,
        compression=options.compression if compaction.compress else options.upper_compression,
        created_ms=created_ms,
        table_bytes=options.table_bytes,
        sink=sink,
        ranges=Ranges.merged(parts, snapshots, bottom=compaction.bottom) if parts else None,
    )
    edit.added = [table.meta(compaction.output_level) for table in written]
    return edit, versions
