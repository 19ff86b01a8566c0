"""`nokv migrate remove-peer`: take one replica out of a region; leader and target must both stop advertising it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nokv.client.operator.client import AdminClient, RegionStatus
from nokv.errors import NoKVError, PreconditionFailed
from nokv.migrate.checkpoint import Rollout
from nokv.migrate.expand import membership
from nokv.migrate.rollout import RolloutLog, Waiter, find_leader, with_leader
from nokv.rpc.tls import Tls

__all__ = ["remove_peer"]


def remove_peer(
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
    """Repeatable. PreconditionFailed for the leader itself and for the last voter: nothing is changed then."""
    waiter = waiter or Waiter()
    log = log or RolloutLog(None)
    client, before = find_leader(address, region_id, tls)
    client.close()
    assert before.region is not None
    present = before.region.peer(peer_id) is not None
    if present and before.leader_peer_id == peer_id:
        others = [p.peer_id for p in before.region.peers if p.peer_id != peer_id]
        hint = (
            f"nokv migrate transfer-leader --addr {address} --region {region_id} --peer {others[0]}" if others else ""
        )
        what = "leads the region" if others else "is the only replica"
        raise PreconditionFailed(f"peer {peer_id} {what}: it cannot be removed", hint=hint)
    log.write(Rollout("remove-peer-started", region_id, command, current=str(peer_id)))

    def remove(leader: AdminClient, status: RegionStatus) -> None:
        assert status.region is not None
        if status.region.peer(peer_id) is not None:
            say(f"region {region_id}: removing peer {peer_id}")
            leader.remove_peer(region_id, peer_id, waiter.left())

    with_leader(address, region_id, waiter, remove, tls)
    result = {"region_id": region_id, "peer_id": peer_id, "membership_before": membership(before.region)}
    if not waiter.wait_s:
        return {**result, "outcome": "started"}
    last: list[RegionStatus] = []

    def waits_for() -> str:
        leader, status = find_leader(address, region_id, tls)
        leader.close()
        last.append(status)
        assert status.region is not None
        if status.region.peer(peer_id) is not None:
            return f"the leader still shows peer {peer_id}"
        if target_address:
            with AdminClient(target_address, tls=tls) as target:
                seen = target.region_status(region_id)
            if seen.hosted and seen.local_peer_id == peer_id:
                return f"the target disagrees: {target_address} still hosts peer {peer_id}"
        return ""

    waiter.until(waits_for)
    if not last:
        raise NoKVError("remove-peer was never confirmed")
    log.advance(stage="remove-peer-finished", last_finished=f"remove-peer {peer_id}")
    outcome = "removed" if present else "already"
    return {**result, "membership_after": membership(last[-1].region), "outcome": outcome}
