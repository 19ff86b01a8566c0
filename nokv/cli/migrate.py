"""`nokv migrate plan | init | status | report | expand | transfer-leader | remove-peer | run`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, note, output_option, table
from nokv.cli.target import coordinators_of, current_tls, current_tls_dir, tls_option

__all__ = ["migrate"]

COMMANDS = {
    "plan": ("nokv.cli.migrate:plan", "May this directory be promoted? Changes nothing."),
    "init": ("nokv.cli.migrate:init", "Promote a standalone directory into a seed."),
    "status": ("nokv.cli.migrate:status", "Mode, checkpoint, what to run next."),
    "report": ("nokv.cli.migrate:report", "Status, plan and the cluster's view in one document."),
    "expand": ("nokv.cli.migrate:expand", "Add replicas, one after the other."),
    "transfer-leader": ("nokv.cli.migrate:transfer_leader", "Move a region's leadership."),
    "remove-peer": ("nokv.cli.migrate:remove_peer", "Take a replica out of a region."),
    "run": ("nokv.cli.run:run", "All of it on this machine: plan to three replicas, with a summary."),
}
_F = TypeVar("_F", bound=Callable[..., Any])
workdir_option = click.option("--workdir", required=True, type=click.Path(), help="The directory.")
POSITIVE = click.IntRange(1, (1 << 64) - 1)


@click.group(cls=LazyGroup, lazy=COMMANDS)
def migrate() -> None:
    """From a standalone directory to a replicated cluster, in place: plan, init, serve, expand.

    Writes must have stopped before init. Not promised: online cut-over, dual write, automatic split or rebalance.
    """


def failpoints() -> Any:
    from nokv.migrate.failpoints import parse_failpoints

    return parse_failpoints(os.environ.get("NOKV_FAILPOINT", ""))


def lines(payload: dict[str, Any], *names: str) -> str:
    width = max(len(name) for name in names)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {payload[name]}" for name in names if name in payload)


def _plan_text(payload: dict[str, Any]) -> str:
    text = lines(payload, "workdir", "mode", "eligible")
    text += "".join(f"\nblocker   {b['name']}: {b['detail']}" for b in payload["blockers"])
    text += "".join(f"\nwarning   {w}" for w in payload["warnings"])
    return text + f"\nnext      {payload['next']}"


@click.command()
@workdir_option
@output_option
def plan(workdir: str, output: str) -> int:
    """May this directory be promoted? Read-only. Exit code 4 if not, with every blocker named."""
    from nokv.migrate.plan import plan as make_plan

    found = make_plan(workdir)
    emit("migrate-plan", found.as_dict(), output, _plan_text)
    return 0 if found.eligible else 4


@click.command()
@workdir_option
@click.option("--store", "store_id", type=POSITIVE, help="Store id  [default: 1, or what an interrupted init used].")
@click.option("--region", "region_id", type=POSITIVE, help="Region id  [default: 1, or as before].")
@click.option("--peer", "peer_id", type=POSITIVE, help="Peer id  [default: 101, or as before].")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@output_option
def init(
    workdir: str, store_id: int | None, region_id: int | None, peer_id: int | None, dry_run: bool, output: str
) -> int:
    """Promote a standalone directory into a single-store seed. No data is rewritten; run it again if it is
    interrupted.
    """
    from nokv.migrate.init import init as promote
    from nokv.migrate.plan import plan as make_plan

    if dry_run:
        found = make_plan(workdir)
        emit("migrate-plan", found.as_dict(), output, _plan_text)
        return 0 if found.eligible else 4
    result = promote(
        workdir, store_id=store_id, region_id=region_id, peer_id=peer_id, failpoints=failpoints(), say=note
    )
    emit(
        "migrate-init",
        result.as_dict(),
        output,
        lambda p: lines(p, "outcome", "workdir", "mode", "store_id", "region_id", "peer_id", "snapshot_files", "next"),
    )
    return 0


def runtime_options(function: _F) -> _F:
    function = tls_option(function)
    function = click.option("--addr", metavar="HOST:PORT", help="Also ask this store.")(function)
    return click.option("--region", "region_id", type=POSITIVE, help="Which region.")(function)


def _view(addr: str | None, region_id: int) -> Any:
    if addr is None:
        return None
    from nokv.client.operator.client import AdminClient
    from nokv.migrate.status import cluster_view

    with AdminClient(addr, tls=current_tls()) as store:
        return cluster_view(store, region_id)


def _view_text(view: dict[str, Any] | None) -> str:
    if view is None:
        return ""
    if view["error"]:
        return f"\ncluster       {view['error']}"
    members = ", ".join(f"{m['store_id']}:{m['peer_id']} {m['role']}" for m in view["membership"])
    return (
        f"\nleader        peer {view['leader_peer']} on store {view['leader_store']}"
        f"\nlocal hosted  {view['local_hosted']}"
        f"\nmembership    {view['membership_size']}: {members}"
        f"\napplied       index {view['applied_index']}, term {view['applied_term']}"
    )


@click.command()
@workdir_option
@runtime_options
@output_option
def status(workdir: str, addr: str | None, region_id: int | None, output: str) -> None:
    """Mode, checkpoint, pending rollout and the command to run next. Works while the store runs."""
    from dataclasses import replace

    from nokv.migrate.status import status as make_status

    now = make_status(workdir)
    payload = replace(now, cluster=_view(addr, region_id or now.region_id or 1)).as_dict()

    def human(p: dict[str, Any]) -> str:
        text = lines(p, "workdir", "mode", "milestone", "store_id", "region_id", "peer_id")
        rollout = p["rollout"]
        if rollout is not None:
            text += f"\nrollout       {rollout['stage']} {rollout['current']}"
            if rollout["targets"]:
                text += f" ({rollout['completed']} of {len(rollout['targets'])} targets)"
        return text + _view_text(p["cluster"]) + f"\nresume hint   {p['resume_hint']}"

    emit("migrate-status", payload, output, human)


@click.command()
@workdir_option
@runtime_options
@output_option
def report(workdir: str, addr: str | None, region_id: int | None, output: str) -> None:
    """Everything an operator asks first, in one document."""
    from nokv.migrate.status import report as make_report
    from nokv.migrate.status import status as make_status

    region = region_id or make_status(workdir).region_id or 1
    payload = make_report(workdir, cluster=_view(addr, region)).as_dict()

    def human(p: dict[str, Any]) -> str:
        text = lines(p, "workdir", "mode", "stage", "summary", "ready_for_init", "ready_for_serve")
        return text + _view_text(p["cluster"]) + "".join(f"\nnext          {step}" for step in p["next_steps"])

    emit("migrate-report", payload, output, human)


def rollout_options(function: _F) -> _F:
    for option in (
        click.option("--addr", required=True, metavar="HOST:PORT", help="Any store that hosts the region."),
        click.option("--region", "region_id", type=POSITIVE, default=1, show_default=True),
        click.option("--workdir", type=click.Path(), help="Record progress in this directory's checkpoint."),
        click.option("--wait", "wait_s", type=click.FloatRange(0), default=30.0, help="Seconds; 0 = do not wait."),
        click.option("--poll-interval", "poll_s", type=click.FloatRange(0.001), default=0.2, help="Seconds."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        tls_option,
        output_option,
    ):
        function = option(function)
    return function


def _rerun(verb: str, *parts: str) -> str:
    directory = current_tls_dir()
    return shlex.join(["nokv", "migrate", verb, *parts, *(("--tls-dir", directory) if directory else ())])


def _tools(workdir: str | None, wait_s: float, poll_s: float) -> dict[str, Any]:
    from nokv.migrate.rollout import RolloutLog, Waiter

    log = RolloutLog(workdir, failpoints=failpoints())
    return {"waiter": Waiter(wait_s, poll_s), "log": log, "say": note, "tls": current_tls()}


def _members(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{m['store_id']}:{m['peer_id']} {m['role']}" for m in rows)


@click.command()
@rollout_options
@click.option("--target", "targets", multiple=True, required=True, metavar="STORE:PEER[@ADDR]", help="Repeatable.")
@click.option("--coordinator", multiple=True, metavar="HOST:PORT", help="Where to look up addresses left out.")
def expand(
    addr: str,
    region_id: int,
    workdir: str | None,
    wait_s: float,
    poll_s: float,
    dry_run: bool,
    output: str,
    targets: tuple[str, ...],
    coordinator: tuple[str, ...],
) -> None:
    """Add replicas to a region, one target after the other; run it again if it is interrupted.

    Each target becomes a learner, receives the snapshot, is hosted, and only then votes.
    """
    from nokv.migrate.expand import expand as run_expand
    from nokv.migrate.rollout import parse_target

    parsed = [parse_target(text) for text in targets]
    workdir_part = ("--workdir", workdir) if workdir else ()
    target_part = [part for text in targets for part in ("--target", text)]
    coordinators = coordinators_of(coordinator)
    coordinator_part = [part for text in coordinator for part in ("--coordinator", text)]
    command = _rerun(
        "expand", "--addr", addr, "--region", str(region_id), *workdir_part, *target_part, *coordinator_part
    )
    if dry_run:
        emit("migrate-expand", {"dry_run": True, "targets": list(targets), "command": command}, output, _dry)
        return

    def resolve(store_id: int) -> str:
        from nokv.client.operator.client import CoordinatorAdmin, first_answer

        def ask(address: str) -> str:
            with CoordinatorAdmin(address, tls=current_tls()) as client:
                return client.store_address(store_id)

        return str(first_answer(coordinators, ask))

    result = run_expand(
        addr,
        region_id,
        parsed,
        command=command,
        resolve=resolve if coordinators else None,
        **_tools(workdir, wait_s, poll_s),
    )
    payload = {
        "region_id": result.region_id,
        "targets": result.targets,
        "membership_before": result.membership_before,
        "membership_after": result.membership_after,
    }

    def human(p: dict[str, Any]) -> str:
        rows = [(t["store_id"], t["peer_id"], t["outcome"]) for t in p["targets"]]
        members = f"\n\nbefore  {_members(p['membership_before'])}\nafter   {_members(p['membership_after'])}"
        return table(["store", "peer", "outcome"], rows) + members

    emit("migrate-expand", payload, output, human)


def _dry(payload: dict[str, Any]) -> str:
    return f"would run: {payload['command']}"


def peer_options(which: str) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        function = click.option("--peer", "peer_id", type=POSITIVE, required=True, help=which)(function)
        return click.option("--target-addr", default="", metavar="HOST:PORT", help="That peer's store: it must agree.")(
            function
        )

    return decorate


def _peer_verb(
    verb: str,
    act: Callable[..., dict[str, Any]],
    shown: tuple[str, ...],
    *,
    addr: str,
    region_id: int,
    workdir: str | None,
    wait_s: float,
    poll_s: float,
    dry_run: bool,
    output: str,
    peer_id: int,
    target_addr: str,
) -> None:
    extra = [*(("--workdir", workdir) if workdir else ()), *(("--target-addr", target_addr) if target_addr else ())]
    command = _rerun(verb, "--addr", addr, "--region", str(region_id), "--peer", str(peer_id), *extra)
    if dry_run:
        emit(f"migrate-{verb}", {"dry_run": True, "command": command}, output, _dry)
        return
    tools = _tools(workdir, wait_s, poll_s)
    payload = act(addr, region_id, peer_id, command=command, target_address=target_addr, **tools)
    emit(f"migrate-{verb}", payload, output, lambda p: lines(p, *shown))


@click.command("transfer-leader")
@rollout_options
@peer_options("The peer that shall lead.")
def transfer_leader(**given: Any) -> None:
    """Move a region's leadership to --peer."""
    from nokv.migrate.transfer_leader import transfer_leader as act

    _peer_verb("transfer-leader", act, ("outcome", "region_id", "leader_before", "leader"), **given)


@click.command("remove-peer")
@rollout_options
@peer_options("The peer to remove.")
def remove_peer(**given: Any) -> None:
    """Take --peer out of a region. Refused for the leader and for the only replica."""
    from nokv.migrate.remove_peer import remove_peer as act

    _peer_verb("remove-peer", act, ("outcome", "region_id", "peer_id"), **given)
