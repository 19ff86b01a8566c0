"""`nokv regions`: the cluster's routes, or one store's own catalog."""

from __future__ import annotations

from typing import Any

import click

from nokv.cli.output import emit, output_option, table
from nokv.cli.target import Target, current_tls, target_options

__all__ = ["catalog_rows", "regions", "regions_text"]


@click.command()
@target_options
@output_option
def regions(target: Target, output: str) -> None:
    """Regions: id, range, epoch, peers, state. With --workdir the store-local view of one directory."""
    if target.workdir is not None:
        payload = {"source": "store-local", "workdir": target.workdir, "regions": catalog_rows(target.workdir)}
    else:
        from nokv.cli.client import region_json
        from nokv.client.operator.client import CoordinatorAdmin, first_answer, region_from_pb

        def ask(address: str) -> Any:
            with CoordinatorAdmin(address, tls=current_tls()) as coordinator:
                return coordinator.routes()

        answer = first_answer(target.coordinators, ask)
        payload = {
            "source": answer.view.source or "view",
            "degraded": answer.view.degraded,
            "regions": [region_json(region_from_pb(r.region), r.leader) for r in answer.routes],
        }
    emit("regions", payload, output, lambda p: regions_text(p["regions"]))


def catalog_rows(workdir: str) -> list[dict[str, Any]]:
    """What localmeta of `workdir` says, offline."""
    from nokv.cli.client import region_json
    from nokv.cli.target import open_directory
    from nokv.errors import NotFound
    from nokv.raftstore.localmeta import LocalMeta

    with open_directory(workdir, write=False) as db:
        try:
            db.family("local")
        except NotFound:
            return []
        return [region_json(region) for region in LocalMeta(db).regions()]


def regions_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no regions"
    from nokv.cli.client import bound

    return table(
        ["region", "start", "end", "epoch", "state", "leader", "peers (store:peer)"],
        [
            (
                r["id"],
                bound(r["start_key"]),
                bound(r["end_key"]),
                f"{r['epoch']['conf_version']}.{r['epoch']['version']}",
                r["state"],
                r["leader"]["peer_id"] if r["leader"] else "-",
                ", ".join(f"{p['store_id']}:{p['peer_id']}" + ("" if p["voter"] else " learner") for p in r["peers"]),
            )
            for r in rows
        ],
    )
