"""`nokv migrate transfer-leader`: move a region's leadership, and believe it when both sides say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.client.operator.client import AdminClient, RegionStatus
from nokv.errors import PreconditionFailed
from nokv.migrate.checkpoint import Rollout
from nokv.migrate.rollout import RolloutLog, Waiter, find_leader, with_leader
from nokv.region import PeerRole
from nokv.rpc.tls import Tls

__all__ = ["transfer_leader"]


def transfer_leader(
    address: str,
    region_id: int,
    peer_id: int,
    *,
    command: str,
    target_address: str = "",
    waiter: Waiter | None = None,
    log: RolloutLog | None = None,
    say: Callable[[str], None] = lambda _line: None,
    tls: Tls | None = None,
) -> dict[str, Any]:
    """Repeatable. With `target_address` the target itself must agree that it leads (MIG-27)."""
    waiter = waiter or Waiter()
    log = log or RolloutLog(None)
    client, before = find_leader(address, region_id, tls)
    client.close()
    assert before.region is not None
    peer = before.region.peer(peer_id)
    if peer is None or peer.role is not PeerRole.VOTER:
        members = ", ".join(str(p.peer_id) for p in before.region.peers if p.role is PeerRole.VOTER)
        raise PreconditionFailed(f"peer {peer_id} is not a voter of region {region_id}", hint=f"one of: {members}")
    log.write(Rollout("transfer-leader-started", region_id, command, current=str(peer_id)))

    def transfer(leader: AdminClient, status: RegionStatus) -> None:
        if status.leader_peer_id == peer_id:
            say(f"region {region_id}: peer {peer_id} leads")
            return
        say(f"region {region_id}: peer {status.leader_peer_id} hands over to peer {peer_id}")
        leader.transfer_leader(region_id, peer_id, waiter.left())

    with_leader(address, region_id, waiter, transfer, tls)
    result = {"region_id": region_id, "leader_before": before.leader_peer_id, "leader": 0, "outcome": "started"}
    if not waiter.wait_s:
        return result

    def waits_for() -> str:
        leader, status = find_leader(address, region_id, tls)
        leader.close()
        if status.leader_peer_id != peer_id:
            return f"the elected leader is still peer {status.leader_peer_id}"
        if target_address:
            with AdminClient(target_address, tls=tls) as target:
                seen = target.region_status(region_id)
            if not seen.is_leader or seen.local_peer_id != peer_id:
                return f"the target disagrees: at {target_address} peer {seen.leader_peer_id} leads"
        return ""

    waiter.until(waits_for)
    log.advance(stage="transfer-leader-finished", last_finished=f"transfer-leader {peer_id}")
    return {**result, "leader": peer_id, "outcome": "already" if before.leader_peer_id == peer_id else "transferred"}
