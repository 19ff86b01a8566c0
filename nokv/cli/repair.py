"""`nokv check | repair`: read every byte of a directory, and make a damaged one open again."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from nokv.cli.output import emit, output_option
from nokv.errors import Corruption

__all__ = ["check", "repair"]

workdir_option = click.option("--workdir", required=True, type=click.Path(), help="The directory; nobody has it open.")


@click.command()
@workdir_option
@output_option
def check(workdir: str, output: str) -> None:
    """Read every byte of a directory and change nothing. Exit code 6 if something is damaged."""
    import nokv

    report = nokv.check(workdir)

    def human(p: dict[str, Any]) -> str:
        head = f"{workdir}: {p['tables']} tables, {p['entries']} entries, {p['size_bytes']} bytes"
        return "\n".join(
            [head, *(f"damaged: {line}" for line in p["problems"])] if p["problems"] else [head + ": healthy"]
        )

    emit("check", {**dataclasses.asdict(report), "healthy": report.healthy}, output, human)
    if not report.healthy:
        count = len(report.problems)
        raise Corruption(
            f"{workdir} has {count} problem{'s' if count > 1 else ''}",
            hint=f"restore a backup, or keep what can be read: nokv repair --workdir {workdir}",
        )


@click.command()
@workdir_option
@output_option
def repair(workdir: str, output: str) -> None:
    """Make a damaged directory open again with what can still be read.

    Nothing is deleted: damaged files are moved to lost/ inside the directory. What they alone held is gone from the
    database; the report says what that means. A healthy directory is left alone.
    """
    import nokv

    report = nokv.repair(workdir)

    def human(p: dict[str, Any]) -> str:
        if not p["changed"]:
            return f"{workdir}: healthy, nothing was changed"
        head = f"{workdir}: repaired, {p['tables_kept']} tables, {p['batches_recovered']} batches from the damaged log"
        lines = [f"found: {line}" for line in p["problems"]] + [f"moved: {name}" for name in p["lost"]]
        return "\n".join([head, *lines, *(f"note:  {note}" for note in p["notes"])])

    emit("repair", dataclasses.asdict(report), output, human)
