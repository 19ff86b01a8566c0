"""`nokv-config stores | regions | coordinator | pd | catalog`: parts of the topology file, for scripts.

`simple` prints one line an entry, the fields in the order of the functions below, separated by tabs; `json` a list of
objects. `--field` keeps one field.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import click

from nokv.cli.topology import Topology, load_scoped
from nokv.errors import UsageError

__all__ = ["config_query", "main", "run"]

Row = dict[str, Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def config_query() -> None:
    """Parts of a topology file, for scripts."""


def _stores(found: Topology) -> list[Row]:
    return [{"store_id": store.store_id, "addr": store.addr, "work_dir": store.work_dir} for store in found.stores]


def _regions(found: Topology) -> list[Row]:
    return [
        {
            "id": region.id,
            "start_key": region.start_key,
            "end_key": region.end_key,
            "peers": [f"{peer.store_id}:{peer.peer_id}" for peer in region.peers],
        }
        for region in found.regions
    ]


def _coordinator(found: Topology) -> list[Row]:
    return [{"addr": found.coordinator.addr, "work_dir": found.coordinator.work_dir}]


def _catalog(found: Topology) -> list[Row]:
    """What each store begins with: one row a peer."""
    return [
        {
            "store_id": peer.store_id,
            "region_id": region.id,
            "peer_id": peer.peer_id,
            "start_key": region.start_key,
            "end_key": region.end_key,
        }
        for region in found.regions
        for peer in region.peers
    ]


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value) or "-"


def _print(rows: list[Row], form: str, field: str | None) -> None:
    if field is not None:
        if rows and field not in rows[0]:
            raise UsageError(f"no field {field!r} here", hint=f"one of: {', '.join(rows[0])}")
        rows = [{field: row[field]} for row in rows]
    if form == "json":
        click.echo(json.dumps(rows if field is None else [row[field] for row in rows], indent=2))
        return
    for row in rows:
        click.echo("\t".join(_text(value) for value in row.values()))


def _command(name: str, rows: Callable[[Topology], list[Row]], text: str, *, hidden: bool = False) -> None:
    @config_query.command(name, help=text, hidden=hidden)
    @click.option("--config", "path", required=True, type=click.Path(), help="The topology file.")
    @click.option(
        "--format", "form", type=click.Choice(["simple", "json"]), default="simple", show_default=True, help="Output."
    )
    @click.option("--scope", type=click.Choice(["host", "docker"]), default="host", show_default=True, help="Whose.")
    @click.option("--field", help="Only this field.")
    def command(path: str, form: str, scope: str, field: str | None) -> None:
        _print(rows(load_scoped(path, scope)), form, field)


_command("stores", _stores, "Stores: store_id, addr, work_dir.")
_command("regions", _regions, "First regions: id, start_key, end_key, peers (store:peer).")
_command("coordinator", _coordinator, "The coordinator: addr, work_dir.")
_command("pd", _coordinator, "Alias of coordinator.", hidden=True)
_command("catalog", _catalog, "What each store begins with: store_id, region_id, peer_id, start_key, end_key.")


def run(argv: list[str] | None = None) -> int:
    from nokv.cli.main import run_command

    return run_command(config_query, argv, "nokv-config")


def main() -> NoReturn:
    raise SystemExit(run())
