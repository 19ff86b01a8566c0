"""`nokv coordinator status`: what each coordinator says of itself."""

from __future__ import annotations

from typing import Any

import click

from nokv.cli.output import emit, output_option, table
from nokv.cli.root import message_json
from nokv.cli.target import coordinators_of, current_tls, tls_option
from nokv.client.operator.client import CoordinatorAdmin
from nokv.errors import NoKVError, UsageError

__all__ = ["status"]


@click.command()
@click.option("--addr", multiple=True, metavar="HOST:PORT", help="A coordinator (repeatable).  [env: NOKV_COORDINATOR]")
@click.option("--dir", "directory", type=click.Path(), help="A local cluster.")
@tls_option
@output_option
def status(addr: tuple[str, ...], directory: str | None, output: str) -> None:
    """Each coordinator: who holds the lease, how far its view lags the root, what it served. Exit code 5 if none
    answers."""
    addresses = coordinators_of(addr, directory)
    if not addresses:
        raise UsageError("no coordinator to ask", hint="--addr HOST:PORT, or --dir of a local cluster")
    found: list[dict[str, Any]] = []
    last: NoKVError | None = None
    for address in addresses:
        try:
            with CoordinatorAdmin(address, tls=current_tls()) as coordinator:
                answer = coordinator.status()
                found.append({"address": address, "lease_holder": answer.lease_holder, **message_json(answer)})
        except NoKVError as error:
            last = error
            found.append({"address": address, "error": str(error)})
    if last is not None and all("error" in one for one in found):
        raise last
    emit("coordinator-status", {"coordinators": found}, output, lambda p: _table(p["coordinators"]))


def _table(found: list[dict[str, Any]]) -> str:
    rows = []
    for one in found:
        view = one.get("view", {})
        lease = one.get("lease", {})
        rows.append(
            (
                one["address"],
                one.get("coordinator_id", one.get("error", "-")),
                "holds it" if one.get("lease_holder") else lease.get("holder", "-"),
                lease.get("era", "-"),
                view.get("degraded", "-"),
                view.get("root_lag", 0) if view else "-",
                one.get("region_count", 0) if view else "-",
                one.get("store_count", 0) if view else "-",
                one.get("reads_served", 0) if view else "-",
            )
        )
    return table(["address", "coordinator", "lease", "era", "state", "lag", "regions", "stores", "reads"], rows)
