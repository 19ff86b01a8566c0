"""`nokv serve | coordinator | meta-root`: wire the servers of the planes into processes. Nothing else lives here.

A server process logs to stderr, prints one line that begins with "ready " to stdout once it works, stops in order on
SIGTERM or SIGINT (exit code 0), and refuses to listen beyond loopback without --tls-dir, unless --insecure-listen says
that the network is trusted. What a topology file (--config) says is overridden by the options.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from nokv.cli.main import LazyGroup
from nokv.cli.metrics import MetricsServer
from nokv.cli.target import coordinators_of
from nokv.errors import InvariantError, UsageError
from nokv.rpc.tls import Tls, load_tls, split_address

if TYPE_CHECKING:
    from nokv.cli.topology import Topology

__all__ = ["check_listen", "coordinator", "meta_root", "parse_peers", "run_daemon", "serve"]

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
POSITIVE = click.IntRange(1, (1 << 64) - 1)
logger = logging.getLogger("nokv.cli")


class Daemon(Protocol):
    """What a plane's server offers: `start` returns when it works; `stop` is idempotent and returns when all is
    closed.
    """

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...


def check_listen(address: str, insecure: bool, option: str = "--addr") -> None:
    """UsageError for an address that others could reach in plain text, unless the operator says so."""
    host, _ = split_address(address, option)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost" and not insecure:
        raise UsageError(
            f"refusing to listen on {address} in plain text: everybody who reaches it could read and write",
            hint="--tls-dir DIR, or listen on 127.0.0.1, or say --insecure-listen on a trusted network"
            if option == "--addr"
            else "listen on 127.0.0.1, or say --insecure-listen on a trusted network",
        )


def parse_peers(texts: tuple[str, ...], option: str) -> dict[int, str]:
    """`id=host:port`, repeatable or separated by commas."""
    found: dict[int, str] = {}
    for part in (piece.strip() for text in texts for piece in text.split(",")):
        number, _, address = part.partition("=")
        if not number.isdigit() or int(number) == 0:
            raise UsageError(f"{option} {part!r} is not id=host:port", hint=f"for example {option} 1=127.0.0.1:2380")
        split_address(address, option)
        if int(number) in found:
            raise UsageError(f"{option}: id {number} appears twice")
        found[int(number)] = address
    return found


async def run_daemon(
    server: Daemon, ready: Callable[[], str], metrics_address: str | None, waits_for: Callable[[], str] = lambda: ""
) -> None:
    """Start, say so, wait for SIGTERM or SIGINT, stop. Whatever happens, `stop` runs.

    `waits_for` says, once the server has started, what work still waits for; empty: nothing. A broken invariant in any
    task ends the process at once, without another write: the replicas carry on.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    phase = "starting"
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logger.error("unhandled: %s", context.get("message"), exc_info=error)
        if isinstance(error, InvariantError):
            os._exit(1)

    loop.set_exception_handler(unhandled)

    def on_loop(function: Callable[[], _T]) -> _T:
        async def run() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), loop).result(timeout=5.0)

    metrics: MetricsServer | None = None
    try:
        if metrics_address is not None:  # before the start, which may have a long log to replay
            metrics = MetricsServer(
                metrics_address,
                lambda: on_loop(lambda: {} if phase else server.stats()),
                alive=lambda: on_loop(str),
                ready=lambda: on_loop(lambda: phase or waits_for()),
            )
        await server.start()
        phase = ""
        where = f" metrics={metrics.address}" if metrics is not None else ""
        click.echo(f"ready {ready()}{where} pid={os.getpid()}")
        await stop.wait()
        phase = "stopping"
        logger.info("stopping")
    finally:
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
        await server.stop()


@dataclass(slots=True, frozen=True)
class DaemonOptions:
    """What every server is told alike."""

    metrics_addr: str | None
    tls: Tls | None

    @classmethod
    def settle(
        cls, addr: str, *, metrics_addr: str | None, tls_dir: str | None, insecure_listen: bool, log_level: str
    ) -> DaemonOptions:
        """Check addresses and certificates, and set logging up. UsageError."""
        tls = load_tls(tls_dir)
        if tls is None:
            check_listen(addr, insecure_listen)
        else:
            split_address(addr, "--addr")
        if metrics_addr is not None:
            check_listen(metrics_addr, insecure_listen, "--metrics-addr")

        from nokv.cli.logs import configure_logging

        configure_logging(log_level)
        return cls(metrics_addr, tls)


def server_options(function: _F) -> _F:
    """Collected as `config`, `scope` and `settle(addr)`, which makes the DaemonOptions."""

    def collect(**kwargs: Any) -> Any:
        names = ("metrics_addr", "tls_dir", "insecure_listen", "log_level")
        common = {name: kwargs.pop(name) for name in names}
        path, scope = kwargs.pop("config"), kwargs.pop("scope")
        topology = None
        if path is not None:
            from nokv.cli.topology import load_scoped

            topology = load_scoped(path, scope)
        return function(topology=topology, settle=lambda addr: DaemonOptions.settle(addr, **common), **kwargs)

    collect.__name__ = function.__name__
    collect.__doc__ = function.__doc__
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--metrics-addr", metavar="HOST:PORT", help="Serve /metrics, /healthz, /readyz here."),
        click.option("--tls-dir", type=click.Path(), help="ca.crt, tls.crt, tls.key: mutual TLS on every connection."),
        click.option("--insecure-listen", is_flag=True, help="Allow an address that others can reach, in plain text."),
        click.option("--config", type=click.Path(), help="Addresses and directories of a topology file."),
        click.option(
            "--scope", type=click.Choice(["host", "docker"]), default="host", show_default=True, help="Which ones."
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
            help="What goes to stderr.",
        ),
    ):
        collect = option(collect)
    return cast(_F, collect)


Settle = Callable[[str], DaemonOptions]


@click.command("meta-root")
@click.option("--addr", metavar="HOST:PORT", show_default="127.0.0.1:2380", help="Listen here.")
@click.option("--workdir", type=click.Path(), help="This peer's directory; created if it is missing.")
@click.option("--node-id", type=POSITIVE, default=1, show_default=True, help="This peer's id.")
@click.option("--peer", "peers", multiple=True, metavar="ID=HOST:PORT", help="Every peer, this one too (repeatable).")
@click.option("--tick-interval", "tick_ms", type=click.IntRange(1), default=50, show_default=True, help="Milliseconds.")
@server_options
def meta_root(
    addr: str | None,
    workdir: str | None,
    node_id: int,
    peers: tuple[str, ...],
    tick_ms: int,
    topology: Topology | None,
    settle: Settle,
) -> None:
    """Run one peer of the meta-root: 1, 3 or 5 of them hold the truth."""
    members = parse_peers(peers, "--peer")
    if topology is not None:
        from nokv.cli.topology import root_peer

        mine = root_peer(topology, node_id)
        addr, workdir = addr or mine.addr, workdir or mine.work_dir
        members = members or {p.node_id: p.addr for p in topology.meta_root.peers} | {node_id: addr}
    addr = addr or "127.0.0.1:2380"
    members = members or {node_id: addr}
    if not workdir:
        raise UsageError("a meta-root needs a directory", hint="--workdir DIR, or --config FILE with a work_dir")
    if node_id not in members:
        raise UsageError(f"--peer does not name this node: {node_id}", hint=f"add --peer {node_id}={addr}")
    if len(members) not in (1, 3, 5):
        raise UsageError(f"{len(members)} peers: 1, 3 or 5 make sense")
    asyncio.run(_meta_root(addr, workdir, node_id, members, tick_ms, settle(addr)))


async def _meta_root(
    addr: str, workdir: str, node_id: int, members: dict[int, str], tick_ms: int, options: DaemonOptions
) -> None:
    from nokv.metaroot.server import RootConfig, RootServer, ServerPorts

    config = RootConfig(workdir=workdir, node_id=node_id, address=addr, peers=members, tick_interval_s=tick_ms / 1000)
    server = RootServer(config, ports=ServerPorts.over(options.tls))

    def waits_for() -> str:
        return "" if server.node is not None and server.node.leader_id else "no leader is known"

    await run_daemon(server, lambda: f"meta-root node={node_id} addr={addr}", options.metrics_addr, waits_for)


@click.group(
    "coordinator",
    cls=LazyGroup,
    lazy={"status": ("nokv.cli.coordinator:status", "Each coordinator: the lease, its view, what it did.")},
    invoke_without_command=True,
)
@click.option("--addr", metavar="HOST:PORT", show_default="127.0.0.1:2379", help="Listen here.")
@click.option("--coordinator-id", default="coordinator-1", show_default=True, help="Its name in the lease.")
@click.option("--root-peer", "root_peers", multiple=True, metavar="ID=HOST:PORT", help="A meta-root peer (repeatable).")
@click.option("--workdir", type=click.Path(), help="Without --root-peer: run a single meta-root peer in here.")
@click.option(
    "--lease-ttl", "lease_ttl_s", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds."
)
@click.option(
    "--lease-renew-before", "renew_s", type=click.FloatRange(0.01), default=3.0, show_default=True, help="Seconds."
)
@click.option("--id-start", type=POSITIVE, default=1, show_default=True, help="First id, unless the fence is higher.")
@click.option(
    "--ts-start", type=POSITIVE, default=1, show_default=True, help="First timestamp, unless the fence is higher."
)
@server_options
def coordinator(
    addr: str | None,
    coordinator_id: str,
    root_peers: tuple[str, ...],
    workdir: str | None,
    lease_ttl_s: float,
    renew_s: float,
    id_start: int,
    ts_start: int,
    topology: Topology | None,
    settle: Settle,
) -> None:
    """Run a coordinator: routes, ids, timestamps. It keeps nothing durable; the meta-root does.

    With --workdir and no --root-peer, one process is both, for development.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    roots = parse_peers(root_peers, "--root-peer")
    if topology is not None:
        addr = addr or topology.coordinator.addr
        if not roots and workdir is None:
            roots = {peer.node_id: peer.addr for peer in topology.meta_root.peers}
            workdir = None if roots else topology.coordinator.work_dir or None
    addr = addr or "127.0.0.1:2379"
    if bool(roots) == (workdir is not None):
        raise UsageError(
            "a coordinator needs a meta-root",
            hint="--root-peer ID=HOST:PORT, or --workdir DIR for one inside this process",
        )
    if renew_s >= lease_ttl_s:
        raise UsageError("--lease-renew-before must be smaller than --lease-ttl")
    options = {"lease_ttl_s": lease_ttl_s, "lease_renew_before_s": renew_s, "id_start": id_start, "ts_start": ts_start}
    asyncio.run(_coordinator(addr, coordinator_id, roots, workdir, options, settle(addr)))


async def _coordinator(
    addr: str,
    coordinator_id: str,
    roots: dict[int, str],
    workdir: str | None,
    options: dict[str, Any],
    daemon: DaemonOptions,
) -> None:
    from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
    from nokv.metaroot.server import ServerPorts

    config = CoordinatorConfig(
        coordinator_id=coordinator_id, address=addr, root_peers=roots or None, workdir=workdir, **options
    )
    server = CoordinatorServer(config, ports=ServerPorts.over(daemon.tls))

    def waits_for() -> str:
        return "" if server.node is not None and server.node.figures()["holder"] else "nobody holds the lease"

    await run_daemon(server, lambda: f"coordinator id={coordinator_id} addr={addr}", daemon.metrics_addr, waits_for)


@click.command()
@click.option("--addr", metavar="HOST:PORT", show_default="127.0.0.1:20160", help="Listen here.")
@click.option("--workdir", type=click.Path(), help="A promoted directory, or an empty or missing one.")
@click.option("--store-id", type=POSITIVE, required=True, help="Must match the directory.")
@click.option(
    "--coordinator-addr",
    "--coordinator",
    "--pd-addr",
    "coordinators",
    multiple=True,
    metavar="HOST:PORT",
    help="A coordinator (repeatable).  [env: NOKV_COORDINATOR]",
)
@click.option("--store-addr", "store_addrs", multiple=True, metavar="ID=HOST:PORT", help="Another store (repeatable).")
@click.option(
    "--raft-tick-interval", "tick_ms", type=click.IntRange(1), default=50, show_default=True, help="Milliseconds."
)
@click.option(
    "--election-tick", type=click.IntRange(2), default=10, show_default=True, help="Ticks before an election."
)
@click.option(
    "--heartbeat-tick", type=click.IntRange(1), default=2, show_default=True, help="Ticks between heartbeats."
)
@server_options
def serve(
    addr: str | None,
    workdir: str | None,
    store_id: int,
    coordinators: tuple[str, ...],
    store_addrs: tuple[str, ...],
    tick_ms: int,
    election_tick: int,
    heartbeat_tick: int,
    topology: Topology | None,
    settle: Settle,
) -> None:
    """Run a store over a promoted directory, or over an empty one that waits for replicas."""
    found = coordinators_of(coordinators)
    peers = parse_peers(store_addrs, "--store-addr")
    if topology is not None:
        from nokv.cli.topology import store_section

        mine = store_section(topology, store_id)
        addr, workdir = addr or mine.addr, workdir or mine.work_dir
        found = found or [topology.coordinator.addr]
        peers = {s.store_id: s.addr for s in topology.stores if s.store_id != store_id} | peers
    addr = addr or "127.0.0.1:20160"
    if not workdir:
        raise UsageError("a store needs a directory", hint="--workdir DIR, or --config FILE with a work_dir")
    if not found:  # CO-10
        raise UsageError(
            "serve needs a coordinator: it routes clients and knows the other stores",
            hint="--coordinator-addr HOST:PORT; start one with: nokv coordinator --workdir DIR",
        )
    for address in found:
        split_address(address, "--coordinator-addr")
    if heartbeat_tick >= election_tick:
        raise UsageError("--heartbeat-tick must be smaller than --election-tick")
    options = {"tick_interval_s": tick_ms / 1000, "election_ticks": election_tick, "heartbeat_ticks": heartbeat_tick}
    asyncio.run(_serve(addr, Path(workdir), store_id, found, peers, options, settle(addr)))


async def _serve(
    addr: str,
    workdir: Path,
    store_id: int,
    coordinators: list[str],
    peers: dict[int, str],
    options: dict[str, Any],
    daemon: DaemonOptions,
) -> None:
    from nokv.coordinator.client import CoordinatorClient
    from nokv.metaroot.client import dial_with
    from nokv.raftstore.control import ControlPort
    from nokv.raftstore.node import StoreConfig, StoreNode

    options |= store_options(os.environ.get("NOKV_STORE_OPTIONS", ""), **options)
    config = StoreConfig(
        workdir=str(workdir), store_id=store_id, address=addr, store_addresses=peers, tls=daemon.tls, **options
    )
    client = CoordinatorClient(coordinators, dial=dial_with(daemon.tls))
    node = StoreNode(config, cast(ControlPort, client))  # siblings: each has its own StoreOperation, field for field

    def ready() -> str:
        for line in catalog_summary(node.regions()):
            click.echo(line)
        return f"store id={store_id} addr={addr} regions={len(node.regions())}"

    def waits_for() -> str:
        return "" if node.ready.is_set() else "recovering"

    await run_daemon(node, ready, daemon.metrics_addr, waits_for)


def store_options(text: str, *, election_ticks: int, heartbeat_ticks: int, **_: Any) -> dict[str, Any]:
    """NOKV_STORE_OPTIONS, `name=number,...`: limits of the store and the engine, for tests that need small ones."""
    from dataclasses import fields

    from nokv.raftstore.store import StoreOptions

    known = {field.name for field in fields(StoreOptions)}
    values: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _equals, number = part.partition("=")
        if not number.isdigit() or not (name in known or name == "write_buffer_bytes"):
            raise UsageError(f"NOKV_STORE_OPTIONS: {part!r} is not name=number of a known limit")
        values[name] = int(number)
    engine = {name: value for name, value in values.items() if name not in known}
    ticks = {"election_ticks": election_ticks, "heartbeat_ticks": heartbeat_ticks}
    limits = StoreOptions(**ticks | {name: value for name, value in values.items() if name in known})
    return {"options": limits, "engine_options": engine}


def catalog_summary(regions: Any) -> list[str]:
    """CLI-02: what this store hosts, one line per region."""
    from nokv.cli.client import bound

    lines = [f"catalog: {len(regions)} regions"]
    for region in regions:
        bounds = f"[{bound(region.start_key)}, {bound(region.end_key)})"
        peers = ", ".join(f"{p.store_id}:{p.peer_id} {p.role.value}" for p in region.peers)
        lines.append(
            f"  region {region.region_id} {bounds} epoch {region.epoch.conf_version}.{region.epoch.version} {peers}"
        )
    return lines
