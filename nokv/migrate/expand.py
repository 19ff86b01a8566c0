"""`nokv migrate expand`: one new replica after the other, through a learner.

Per target: leader adds a learner -> it streams the SST snapshot -> target installs and publishes it -> target reports
the region as hosted and has applied what the leader had -> the leader promotes it to voter -> both sides agree. A
target that dies before it votes costs nothing: the quorum never depended on it (MIG-25).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nokv.client.operator.client import AdminClient, RegionStatus
from nokv.errors import PreconditionFailed, UsageError
from nokv.migrate.checkpoint import Rollout
from nokv.migrate.rollout import RolloutLog, Target, Waiter, disagree, find_leader, format_target, with_leader
from nokv.region import PeerRole, Region
from nokv.rpc.tls import Tls

__all__ = ["ExpandResult", "expand"]

Say = Callable[[str], None]


@dataclass(slots=True)
class ExpandResult:
    region_id: int
    targets: list[dict[str, Any]] = field(default_factory=list)
    membership_before: list[dict[str, Any]] = field(default_factory=list)
    membership_after: list[dict[str, Any]] = field(default_factory=list)


def membership(region: Region | None) -> list[dict[str, Any]]:
    peers = region.peers if region is not None else ()
    return [{"peer_id": p.peer_id, "store_id": p.store_id, "role": p.role.value} for p in peers]


def expand(
    address: str,
    region_id: int,
    targets: Sequence[Target],
    *,
    command: str,
    waiter: Waiter | None = None,
    log: RolloutLog | None = None,
    resolve: Callable[[int], str] | None = None,
    say: Say = lambda _line: None,
    tls: Tls | None = None,
) -> ExpandResult:
    """Sequential, repeatable: a target that is already a hosted voter is passed over. `command` is what to run again.

    `resolve(store_id)` finds an address that a target leaves out.
    """
    waiter = waiter or Waiter()
    log = log or RolloutLog(None)
    targets = [_resolved(target, resolve) for target in targets]
    if not targets:
        raise UsageError("expand needs at least one --target", hint="--target 2:201@127.0.0.1:20161")
    if len({t.store_id for t in targets}) < len(targets) or len({t.peer_id for t in targets}) < len(targets):
        raise UsageError("two targets name the same store or the same peer")
    client, before = find_leader(address, region_id, tls)
    client.close()
    result = ExpandResult(region_id, membership_before=membership(before.region))
    names = tuple(format_target(target) for target in targets)
    log.write(Rollout("expand-rollout-started", region_id, command, names))
    for done, target in enumerate(targets):
        name = format_target(target)
        log.advance(stage="expand-target-pending", current=name, completed=done)
        outcome = _one_target(address, region_id, target, waiter, say, tls)
        result.targets.append({"store_id": target.store_id, "peer_id": target.peer_id, "outcome": outcome})
        if outcome != "started":
            log.advance(stage="expand-target-hosted", completed=done + 1, last_finished=f"expand {name}")
    client, after = find_leader(address, region_id, tls)
    client.close()
    result.membership_after = membership(after.region)
    return result


def _resolved(target: Target, resolve: Callable[[int], str] | None) -> Target:
    if target.address:
        return target
    if resolve is None:
        raise UsageError(
            f"target {format_target(target)} has no address",
            hint=f"{format_target(target)}@HOST:PORT, or --coordinator",
        )
    return replace(target, address=resolve(target.store_id))


def _one_target(address: str, region_id: int, target: Target, waiter: Waiter, say: Say, tls: Tls | None) -> str:
    """ "already", "hosted", or "started" if `--wait 0` asked not to wait."""
    name = format_target(target)
    with AdminClient(target.address, tls=tls) as client:
        _check_target(client, region_id, target, waiter)
        added: list[str] = []

        def add(leader: AdminClient, status: RegionStatus) -> None:
            assert status.region is not None
            peer = status.region.peer(target.peer_id)
            on_store = status.region.peer_on(target.store_id)
            if peer is None and on_store is None:
                say(f"{name}: leader store {status.leader_store_id} adds a learner and streams the snapshot")
                leader.add_learner(region_id, target.peer_id, target.store_id, target.address, waiter.left())
                added.append("learner")
            elif peer is None or peer.store_id != target.store_id:
                raise PreconditionFailed(
                    f"{name}: region {region_id} already has peer {(on_store or peer)} there",
                    hint="use the ids that the region has, or remove that peer first",
                )
            elif peer.role is PeerRole.VOTER:
                added.append("voter")
            else:
                say(f"{name}: is a learner already, continuing")
                added.append("learner")

        leader_then = with_leader(address, region_id, waiter, add, tls)
        if not waiter.wait_s:
            return "started"
        waiter.until(lambda: _hosted(client, region_id, target, leader_then.applied_index))
        if added[-1] == "voter":
            _agreed(address, region_id, target, client, waiter, tls)
            say(f"{name}: already a hosted voter")
            return "already"
        say(f"{name}: hosted, applied {client.region_status(region_id).applied_index}; promoting to voter")

        def promote(leader: AdminClient, status: RegionStatus) -> None:
            assert status.region is not None
            peer = status.region.peer(target.peer_id)
            if peer is None:
                raise disagree("the leader", f"peer {target.peer_id} is hosted on {target.address} but not a member")
            if peer.role is not PeerRole.VOTER:
                leader.promote(region_id, target.peer_id, waiter.left())

        with_leader(address, region_id, waiter, promote, tls)
        _agreed(address, region_id, target, client, waiter, tls)
        say(f"{name}: voter; leader and target agree")
    return "hosted"


def _check_target(client: AdminClient, region_id: int, target: Target, waiter: Waiter) -> None:
    """MIG-26: it is the store it should be, and it is empty (or already hosts exactly this peer)."""
    execution = client.execution_status()
    if execution.store_id != target.store_id:
        raise PreconditionFailed(
            f"the store at {target.address} is store {execution.store_id}, not {target.store_id}",
            hint="check the ids and addresses: nokv cluster status, or nokv execution --addr",
        )
    for region in client.hosted_regions():
        peer = region.peer_on(target.store_id)
        if region.region_id != region_id or (peer is not None and peer.peer_id != target.peer_id):
            raise PreconditionFailed(
                f"target {format_target(target)} is not empty: it hosts region {region.region_id}",
                hint="expand to an empty store, or remove that peer first",
            )


def _hosted(client: AdminClient, region_id: int, target: Target, applied_at_least: int) -> str:
    status = client.region_status(region_id)
    if not status.hosted:
        return f"target {format_target(target)} does not host region {region_id} yet"
    if status.local_peer_id != target.peer_id:
        raise disagree("the target", f"it hosts peer {status.local_peer_id}, not {target.peer_id}")
    if status.applied_index < max(1, applied_at_least):
        return f"target {format_target(target)} has applied {status.applied_index} of {applied_at_least}"
    return ""


def _agreed(address: str, region_id: int, target: Target, client: AdminClient, waiter: Waiter, tls: Tls | None) -> None:
    """MIG-27: both the leader's membership and the target's own show the peer as a voter."""

    def waits_for() -> str:
        leader, status = find_leader(address, region_id, tls)
        leader.close()
        for side, region in (("leader", status.region), ("target", client.region_status(region_id).region)):
            peer = region.peer(target.peer_id) if region is not None else None
            if peer is None or peer.role is not PeerRole.VOTER:
                return f"the {side} does not show peer {target.peer_id} as a voter"
        return ""

    waiter.until(waits_for)
