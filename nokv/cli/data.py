"""`nokv get | put | del | scan | stats`: the same verbs on a directory and on a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from nokv.cli.output import emit, emit_rows, output_option, table
from nokv.cli.target import Target, open_directory, open_target, parse_bytes, target_options
from nokv.errors import NotFound, Unavailable, UsageError
from nokv.literal import format_literal

__all__ = ["delete", "get", "put", "scan", "stats"]

timeout_option = click.option("--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Seconds.")


@click.command()
@click.argument("key")
@target_options
@click.option("--raw", is_flag=True, help="Write exactly the value's bytes, no newline after it.")
@timeout_option
@output_option
def get(key: str, target: Target, raw: bool, timeout_s: float, output: str) -> None:
    """Print the value of KEY. Exit code 3 if there is none.

    KEY may be text, hex:..., 0x..., b64:... or @file.
    """
    wanted = parse_bytes(key, "key")
    with open_target(target, write=False, timeout_s=timeout_s) as db:
        value = db.get(wanted)
    if value is None:
        raise NotFound(f"no key {format_literal(wanted, limit=80)}")
    if output != "table":
        emit("value", {"key": wanted, "value": value}, output, str)
        return
    out = sys.stdout.buffer
    if sys.stdout.isatty() and not raw:
        text = value.decode("utf-8", "replace")
        click.echo(text if text.isprintable() and text.encode() == value else format_literal(value))
        return
    out.write(value if raw else value + b"\n")
    out.flush()


@click.command()
@click.argument("key")
@click.argument("value")
@target_options
@timeout_option
def put(key: str, value: str, target: Target, timeout_s: float) -> None:
    """Write VALUE under KEY; durable when the command returns.

    Both may be text, hex:..., 0x..., b64:... or @file; VALUE may be - for standard input.
    """
    wanted, content = parse_bytes(key, "key"), parse_bytes(value, "value", stdin=True)
    with open_target(target, write=True, timeout_s=timeout_s) as db:
        if target.workdir is not None:
            db.put(wanted, content, sync=True)
        else:
            db.put(wanted, content)


@click.command("del")
@click.argument("key")
@target_options
@timeout_option
def delete(key: str, target: Target, timeout_s: float) -> None:
    """Delete KEY; durable when the command returns. Deleting a key that does not exist is no error."""
    wanted = parse_bytes(key, "key")
    with open_target(target, write=True, timeout_s=timeout_s) as db:
        if target.workdir is not None:
            db.delete(wanted, sync=True)
        else:
            db.delete(wanted)


@click.command()
@target_options
@click.option("--prefix", help="Only keys that begin with this.")
@click.option("--start", help="First key.")
@click.option("--end", help="Stop before this key.")
@click.option("--reverse", is_flag=True, help="Descending order (directory only).")
@click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="At most so many; 0 = all.")
@click.option("--keys-only", is_flag=True, help="Leave out the values.")
@timeout_option
@output_option
def scan(
    target: Target,
    prefix: str | None,
    start: str | None,
    end: str | None,
    reverse: bool,
    limit: int,
    keys_only: bool,
    timeout_s: float,
    output: str,
) -> None:
    """List keys and values in order."""
    bounds: dict[str, Any] = {}
    if prefix is not None:
        if start is not None or end is not None:
            raise UsageError("--prefix and --start/--end exclude each other")
        bounds["prefix"] = parse_bytes(prefix, "prefix")
    else:
        bounds["start"] = parse_bytes(start, "start") if start is not None else None
        bounds["end"] = parse_bytes(end, "end") if end is not None else None
    if reverse:
        bounds["reverse"] = True
    with open_target(target, write=False, timeout_s=timeout_s) as db:

        def rows() -> Iterator[dict[str, Any]]:
            for key, value in db.scan(**bounds, limit=limit or None):
                yield {"key": key} if keys_only else {"key": key, "value": value}

        def human(row: dict[str, Any]) -> str:
            shown = format_literal(row["key"])
            return shown if keys_only else f"{shown}  {format_literal(row['value'], limit=100)}"

        emit_rows("entries", rows(), output, human)


@click.command()
@click.option("--workdir", type=click.Path(), help="Look into this directory, offline.")
@click.option("--expvar", metavar="URL", help="Ask a running process: http://METRICS_ADDR/debug/vars.")
@click.option("--dir", "directory", type=click.Path(), help="Ask every process of this local cluster.")
@click.option("--no-region-metrics", is_flag=True, help="Leave out what is counted per region.")
@output_option
def stats(workdir: str | None, expvar: str | None, directory: str | None, no_region_metrics: bool, output: str) -> None:
    """Figures of a directory (offline) or of running processes (online)."""
    if sum(x is not None for x in (workdir, expvar, directory)) != 1:
        raise UsageError("nothing to look at", hint="give exactly one of --workdir, --expvar URL and --dir")
    payload: dict[str, Any]
    if workdir is not None:
        with open_directory(workdir, write=False) as db:
            payload = {"source": "workdir", "workdir": workdir, "mode": db.mode, "stats": dict(db.stats())}
    elif expvar is not None:
        payload = {"source": "expvar", "url": expvar, "stats": _fetch(expvar)}
    else:
        from nokv.cli.launcher import LocalCluster

        assert directory is not None
        answers = {}
        for record in LocalCluster.load(directory).records:
            if record.state == "running":
                answers[record.name] = _fetch(record.metrics_address)
        payload = {"source": "cluster", "directory": directory, "stats": answers}
    if no_region_metrics:
        payload["stats"] = _without_regions(payload["stats"])
    emit("stats", payload, output, lambda p: table(["name", "value"], _flat(p["stats"])))


def _fetch(address: str) -> dict[str, Any]:
    import urllib.error
    import urllib.request

    url = address if "://" in address else f"http://{address}"
    url = url if url.endswith("/debug/vars") else url.rstrip("/") + "/debug/vars"
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{address!r} is not an http address")
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            found = json.loads(answer.read())
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        hint = "was the process started with --metrics-addr?"
        raise Unavailable(f"no figures from {url}: {error}", hint=hint) from None
    return dict(found)


def _without_regions(stats: Any) -> Any:
    if isinstance(stats, dict):
        return {k: _without_regions(v) for k, v in stats.items() if k not in ("regions", "groups")}
    return stats


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(x, (dict, list)) for x in value):
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}[{position}]")
    else:
        yield prefix, value
