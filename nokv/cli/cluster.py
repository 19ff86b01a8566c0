"""`nokv cluster up | status | kill | start | down`: a local cluster of real processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nokv.cli.launcher import LocalCluster
from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, note, output_option, table
from nokv.cli.processes import sigterm_is_interrupt
from nokv.errors import NoKVError, UsageError
from nokv.rpc.tls import load_tls

__all__ = ["cluster", "cluster_status", "status_text"]

COMMANDS = {
    "up": ("nokv.cli.cluster:up", "Start a cluster in DIR, or what is missing of the one that is there."),
    "status": ("nokv.cli.cluster:status", "Processes, leaders, lease holder, regions."),
    "kill": ("nokv.cli.cluster:kill", "kill -9 one process."),
    "start": ("nokv.cli.cluster:start", "Start one process again, on the same ports."),
    "down": ("nokv.cli.cluster:down", "Stop every process in order."),
}
dir_option = click.option("--dir", "directory", required=True, type=click.Path(), help="The cluster's directory.")


@click.group(cls=LazyGroup, lazy=COMMANDS)
def cluster() -> None:
    """A local cluster of real processes, named meta-root-1, coordinator-1, store-1, ...

    Only processes that `up` or `start` started are ever touched.
    """


@click.command()
@dir_option
@click.option("--meta-roots", type=int, default=3, show_default=True, help="1, 3 or 5.")
@click.option("--coordinators", type=int, default=1, show_default=True)
@click.option("--stores", type=int, default=3, show_default=True, help="0 is allowed.")
@click.option("--seed", type=click.Path(), help="Serve this promoted directory as store-1.")
@click.option("--replicas", type=int, help="Replicas of the first region  [default: up to 3; 1 with --seed].")
@click.option("--config", "topology", type=click.Path(), help="Addresses, directories and region 1 of a topology file.")
@click.option("--tls-dir", type=click.Path(), help="Mutual TLS everywhere, with certificates of the CA in here.")
@click.option("--detach", is_flag=True, help="Return when all is ready; stop it with `nokv cluster down`.")
@output_option
@click.pass_context
def up(ctx: click.Context, /, directory: str, detach: bool, output: str, **wishes: Any) -> None:
    """Start a cluster in DIR; if one is described there already, start what does not run.

    Without --seed, store-1 begins as one empty region over the whole key space and is expanded to --replicas. The CA
    and the certificates of --tls-dir are made if they are not there.
    """
    sigterm_is_interrupt()
    given = {name for name in wishes if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    if (Path(directory) / "cluster.json").exists():
        found = LocalCluster.load(directory)
        if given:
            options = ", ".join(sorted(f"--{'config' if n == 'topology' else n.replace('_', '-')}" for n in given))
            note(f"the cluster in {found.directory} stays as it was described: {options} not looked at")
        with found.locked():
            note(f"starting what does not run of the cluster in {found.directory}")
            found.start_all()
    else:
        found, members = _describe(directory, given=given, **wishes)
        with found.locked():
            try:
                _first_start(found, wishes["seed"], members)
            except BaseException:
                found.stop_all()
                raise
    emit("cluster-status", cluster_status(found), output, status_text)
    if detach:
        return
    note("Ctrl-C stops the cluster")
    wait_for_signal()
    note("stopping")
    with found.locked():
        _say_killed(found.stop_all())


def check_seed(seed: str) -> None:
    """The seed must be promoted, and as store 1: that is the id its process gets."""
    from nokv.migrate.status import status as migrate_status

    now = migrate_status(seed)
    if now.mode not in ("seeded", "cluster"):
        raise UsageError(f"--seed {seed} is {now.mode}, not promoted", hint=now.resume_hint)
    if now.store_id != 1:
        raise UsageError(f"--seed {seed} is store {now.store_id}; a local cluster serves its seed as store 1")


def _describe(
    directory: str,
    *,
    given: set[str],
    meta_roots: int,
    coordinators: int,
    stores: int,
    seed: str | None,
    replicas: int | None,
    topology: str | None,
    tls_dir: str | None,
) -> tuple[LocalCluster, list[tuple[int, int]]]:
    """A new cluster, described and not started; and (store id, peer id) of region 1, the seed first."""
    counts = {"meta-root": meta_roots, "coordinator": coordinators, "store": stores}
    if topology is not None:
        from nokv.cli.topology import first_region, load_topology, places

        if seed is not None or replicas is not None:
            raise UsageError("--config says where the region lives: leave out --seed and --replicas")
        file = load_topology(topology)
        wanted = {role: n for role, n in counts.items() if f"{role.replace('-', '_')}s" in given}
        plan = LocalCluster.resized(places(file), wanted)
        members = [(peer.store_id, peer.peer_id) for peer in first_region(file)]
        if missing := {store for store, _ in members} - {p.id for p in plan if p.role == "store"}:
            raise UsageError(f"region 1 of {topology} lives on store {min(missing)}", hint="leave out --stores")
        return LocalCluster.describe_new(Path(directory).absolute(), plan, tls_dir=tls_dir), members
    if seed is not None:
        if stores < 1:
            raise UsageError("--seed needs at least one store")
        check_seed(seed)
    if replicas is not None and not 1 <= replicas <= max(stores, 1):
        raise UsageError(f"--replicas {replicas} does not fit {stores} stores")
    size = replicas if replicas is not None else (1 if seed is not None else min(3, stores))
    found = LocalCluster.create(
        directory, meta_roots=meta_roots, coordinators=coordinators, stores=stores, seed=seed, tls_dir=tls_dir
    )
    return found, [(number, number * 100 + 1) for number in range(1, min(size, stores) + 1)]


def _first_start(found: LocalCluster, seed: str | None, members: list[tuple[int, int]]) -> None:
    if members and seed is None:
        import nokv
        from nokv.migrate.init import init

        store, peer = members[0]
        workdir = found.get(f"store-{store}").workdir
        nokv.open(workdir).close()
        init(workdir, store_id=store, region_id=1, peer_id=peer)
    for role in ("meta-root", "coordinator", "store"):
        names = [record.name for record in found.role(role)]
        if names:
            note(f"starting {', '.join(names)}")
        for name in names:
            found.start(name, wait=False)
        found.wait_ready(names)
    if len(members) > 1:
        from nokv.migrate.expand import expand
        from nokv.migrate.rollout import Target, Waiter

        note(f"expanding region 1 to {len(members)} replicas")
        first = found.get(f"store-{members[0][0]}").address
        targets = [Target(store, peer, found.get(f"store-{store}").address) for store, peer in members[1:]]
        tls = load_tls(found.client_tls_dir)
        expand(first, 1, targets, command="nokv migrate expand", waiter=Waiter(60.0, 0.05), tls=tls)


def wait_for_signal() -> None:
    """Returns on SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def cluster_status(found: LocalCluster) -> dict[str, Any]:
    """Every process, and what the planes say about leaders; a plane that does not answer is null, never an error."""
    from nokv.cli.client import region_json
    from nokv.client.operator.client import AdminClient, CoordinatorAdmin, RootAdmin, region_from_pb

    tls = load_tls(found.client_tls_dir)
    running = {record.name: record for record in found.records if record.state == "running"}
    payload: dict[str, Any] = {
        "directory": str(found.directory),
        "processes": found.describe(),
        "coordinators": found.coordinator_addresses,
        "tls_dir": found.client_tls_dir,
        "root_leader": None,
        "lease_holder": None,
        "regions": [],
    }
    for record in found.role("meta-root"):
        if record.name in running and payload["root_leader"] is None:
            try:
                with RootAdmin(record.address, timeout_s=1.0, tls=tls) as root:
                    leader = root.status().leader_id
            except NoKVError:
                continue
            if f"meta-root-{leader}" in running:
                payload["root_leader"] = f"meta-root-{leader}"
    for record in found.role("coordinator"):
        if record.name not in running or payload["lease_holder"] is not None:
            continue
        try:
            with CoordinatorAdmin(record.address, timeout_s=1.0, tls=tls) as coordinator:
                status_now = coordinator.status()
                holder = record.name if status_now.lease_holder else status_now.lease.holder
                payload["lease_holder"] = holder if holder in running else None
                routes = coordinator.routes().routes
        except NoKVError:
            continue
        payload["regions"] = [_named(region_json(region_from_pb(r.region), r.leader)) for r in routes]
    # A region's leader is what the stores themselves say: the coordinator's picture of it is a view, some heartbeats
    # old.
    for region in payload["regions"]:
        best_term = 0
        for record in found.role("store"):
            if record.name not in running:
                continue
            try:
                with AdminClient(record.address, timeout_s=1.0, tls=tls) as store:
                    answer = store.region_status(region["id"])
            except NoKVError:
                continue
            if answer.is_leader and answer.term > best_term:
                best_term = answer.term
                region.update(leader=record.name, leader_peer=answer.leader_peer_id, term=answer.term)
    return payload


def _named(region: dict[str, Any]) -> dict[str, Any]:
    """Processes by name, like root_leader and lease_holder; a leader that is not running is none."""
    for peer in region["peers"]:
        peer["name"] = f"store-{peer['store_id']}"
    return {**region, "leader": None, "leader_peer": None, "term": None}


def status_text(payload: dict[str, Any]) -> str:
    from nokv.cli.client import bound

    rows = [(p["name"], p["state"], p["pid"] or "-", p["address"], p["metrics_address"]) for p in payload["processes"]]
    text = table(["name", "state", "pid", "address", "metrics"], rows)
    text += f"\n\nroot leader   {payload['root_leader'] or '-'}\nlease holder  {payload['lease_holder'] or '-'}\n"
    regions = [
        (
            r["id"],
            f"[{bound(r['start_key'])}, {bound(r['end_key'])})",
            r["leader"] or "-",
            ", ".join(f"{p['store_id']}:{p['peer_id']}" + ("" if p["voter"] else " learner") for p in r["peers"]),
        )
        for r in payload["regions"]
    ]
    if regions:
        text += "\n" + table(["region", "range", "leader", "peers (store:peer)"], regions) + "\n"
    directory = payload["directory"]
    return text + f"\nuse it:   nokv put KEY VALUE --dir {directory}\nstop it:  nokv cluster down --dir {directory}"


@click.command()
@dir_option
@output_option
def status(directory: str, output: str) -> None:
    """Processes, root leader, lease holder, regions."""
    emit("cluster-status", cluster_status(LocalCluster.load(directory)), output, status_text)


@click.command()
@click.argument("name")
@dir_option
def kill(name: str, directory: str) -> None:
    """kill -9 the process NAME of the cluster in DIR."""
    found = LocalCluster.load(directory)
    with found.locked():
        found.kill(name)
    click.echo(f"killed {name}")


@click.command()
@click.argument("name")
@dir_option
@click.option("--no-wait", is_flag=True, help="Return at once, not when it is ready.")
def start(name: str, directory: str, no_wait: bool) -> None:
    """Start the process NAME again, on the same ports."""
    found = LocalCluster.load(directory)
    with found.locked():
        record = found.start(name, wait=not no_wait)
    click.echo(f"started {name} (pid {record.pid})")


@click.command()
@dir_option
def down(directory: str) -> None:
    """Stop stores, then coordinators, then meta-roots. Data and description stay; `up` starts them again."""
    found = LocalCluster.load(directory)
    with found.locked():
        _say_killed(found.stop_all())
    click.echo(f"stopped the cluster in {found.directory}")


def _say_killed(names: list[str]) -> None:
    if names:
        note(f"had to be killed, because SIGTERM was not enough: {', '.join(names)}")
