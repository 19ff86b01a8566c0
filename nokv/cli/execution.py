"""`nokv execution`: what a store admitted and refused, its topology transitions, how it came back from a restart."""

from __future__ import annotations

from typing import Any

import click

from nokv.cli.output import emit, output_option, table
from nokv.cli.target import current_tls, tls_option

__all__ = ["execution"]


@click.command()
@click.option("--addr", required=True, metavar="HOST:PORT", help="The store.")
@click.option("--region", "region_id", type=click.IntRange(0), default=0, help="Only this region.")
@click.option("--transition", default="", help="Only this transition.")
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds.")
@tls_option
@output_option
def execution(addr: str, region_id: int, transition: str, timeout_s: float, output: str) -> None:
    """Last admissions, topology transitions and restart posture of the store at --addr."""
    from nokv.cli.client import region_json
    from nokv.client.operator.client import AdminClient, region_from_pb

    with AdminClient(addr, timeout_s=timeout_s, tls=current_tls()) as store:
        answer = store.execution_status(region_id, transition)
    payload: dict[str, Any] = {
        "address": addr,
        "store_id": answer.store_id,
        "mode": answer.mode,
        "last_admission": [
            {
                "kind": a.kind,
                "outcome": a.outcome,
                "region_id": a.region_id,
                "time_ms": a.time_ms,
                "detail": a.detail,
            }
            for a in answer.last_admission
        ],
        "topology": [
            {
                "transition_id": t.transition_id,
                "kind": t.kind,
                "region_id": t.region_id,
                "outcome": t.outcome,
                "publish": t.publish,
                "publish_attempts": t.publish_attempts,
                "detail": t.detail,
                "time_ms": t.time_ms,
            }
            for t in answer.topology
        ],
        "restart": {
            "state": answer.restart.state,
            "region_count": answer.restart.region_count,
            "raft_group_count": answer.restart.raft_group_count,
            "missing_raft_pointers": list(answer.restart.missing_raft_pointers),
            "pending_root_events": answer.restart.pending_root_events,
        },
        "regions": [region_json(region_from_pb(region)) for region in answer.regions],
        "leader_region_ids": list(answer.leader_region_ids),
    }
    emit("execution", payload, output, _text)


def _text(payload: dict[str, Any]) -> str:
    restart = payload["restart"]
    missing = restart["missing_raft_pointers"]
    lines = [
        f"store {payload['store_id']} at {payload['address']}, mode {payload['mode']}",
        f"hosts regions: {', '.join(str(r['id']) for r in payload['regions']) or 'none'}",
        f"leads regions: {', '.join(map(str, payload['leader_region_ids'])) or 'none'}",
        f"at start: {restart['state']}, {restart['region_count']} regions, {restart['raft_group_count']} raft groups, "
        f"{restart['pending_root_events']} root events pending" + (f", missing pointers {missing}" if missing else ""),
        "",
        table(
            ["admission", "outcome", "region", "detail"],
            [(a["kind"], a["outcome"], a["region_id"], a["detail"]) for a in payload["last_admission"]],
        ),
        "",
        table(
            ["transition", "kind", "region", "outcome", "publish", "detail"],
            [
                (t["transition_id"], t["kind"], t["region_id"], t["outcome"], t["publish"], t["detail"])
                for t in payload["topology"]
            ],
        ),
    ]
    return "\n".join(lines)
