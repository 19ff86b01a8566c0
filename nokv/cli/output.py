"""How results are printed: tables for people, JSON and JSON lines for programs.

JSON always carries `schema_version` and `kind`. Bytes are as `nokv.literal` has them: `{"b64": "...", "text": "..."}`
in JSON, literals in tables, so that no control character reaches a terminal. Results go to stdout, everything else to
stderr. No colour, so NO_COLOR has nothing to turn off.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from nokv.literal import json_bytes

__all__ = ["SCHEMA_VERSION", "emit", "emit_rows", "note", "output_option", "table"]

SCHEMA_VERSION = 1
_F = TypeVar("_F", bound=Callable[..., Any])


def output_option(function: _F) -> _F:
    """Adds `--output table|json|jsonl` and its alias `--json`; the command gets one argument, `output`."""

    def alias(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(dict)["json"] = True

    def choose(ctx: click.Context, _param: click.Parameter, value: str) -> str:
        return "json" if ctx.ensure_object(dict).get("json") else value

    function = click.option(
        "--output",
        type=click.Choice(["table", "json", "jsonl"]),
        default="table",
        show_default=True,
        callback=choose,
        help="How to print the result.",
    )(function)
    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=alias, help="Same as --output json."
    )(function)


def _default(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return json_bytes(bytes(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def emit(kind: str, payload: dict[str, Any], output: str, human: Callable[[dict[str, Any]], str]) -> None:
    """One result: JSON with `schema_version` and `kind`, or what `human` makes of it."""
    if output == "table":
        click.echo(human(payload))
        return
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, **payload}
    indent = 2 if output == "json" else None
    click.echo(json.dumps(document, indent=indent, default=_default, ensure_ascii=False))


def emit_rows(
    kind: str,
    rows: Iterable[dict[str, Any]],
    output: str,
    human: Callable[[dict[str, Any]], str],
) -> int:
    """Many results, printed as they come; returns how many. `jsonl`: one document a line; `json`: one document."""
    count = 0
    write = sys.stdout.write
    if output == "table":
        for row in rows:
            write(human(row) + "\n")
            count += 1
        return count
    head = {"schema_version": SCHEMA_VERSION, "kind": kind}
    if output == "jsonl":
        for row in rows:
            write(json.dumps({**head, **row}, default=_default, ensure_ascii=False) + "\n")
            count += 1
        return count
    write(json.dumps(head)[:-1] + ', "rows": [')
    for row in rows:
        write(("," if count else "") + "\n  " + json.dumps(row, default=_default, ensure_ascii=False))
        count += 1
    write("\n]}\n")
    return count


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain aligned table. The last column is cut to the terminal's width when stdout is a terminal."""
    cells = [[str(c) for c in columns], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    width_max = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    lines = []
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        lines.append(line[: width_max - 1] + "…" if width_max and len(line) > width_max else line)
    return "\n".join(lines)


def note(text: str) -> None:
    """Progress for people: stderr, at once."""
    click.echo(text, err=True)
