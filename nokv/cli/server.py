"""`nokv serve | coordinator | meta-root`: wire the servers of the planes into processes. Nothing else lives here.

A server process logs to stderr, prints one line that begins with "ready " to stdout once it works, stops in order on
SIGTERM or SIGINT (exit code 0), and refuses to listen beyond loopback unless --insecure-listen says that the network
is trusted: this version has no TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import click

from nokv.cli.metrics import MetricsServer, split_address
from nokv.cli.target import coordinators_of
from nokv.errors import InvariantError, UsageError

__all__ = ["check_listen", "coordinator", "meta_root", "parse_peers", "run_daemon", "serve"]

_F = TypeVar("_F", bound=Callable[..., Any])
POSITIVE = click.IntRange(1, (1 << 64) - 1)
logger = logging.getLogger("nokv.cli")


class Daemon(Protocol):
    """What a plane's server offers: `start` returns when it works; `stop` is idempotent and returns when all is
    closed.
    """

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...


def check_listen(address: str, insecure: bool) -> None:
    """UsageError for an address that others could reach, unless the operator says so."""
    host, _ = split_address(address, "--addr")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost" and not insecure:
        raise UsageError(
            f"refusing to listen on {address}: there is no TLS or authentication yet",
            hint="listen on 127.0.0.1, or say --insecure-listen on a trusted network",
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


async def run_daemon(server: Daemon, ready: Callable[[], str], metrics_address: str | None) -> None:
    """Start, say so, wait for SIGTERM or SIGINT, stop. Whatever happens, `stop` runs.

    A broken invariant in any task ends the process at once, without another write: the replicas carry on.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logger.error("unhandled: %s", context.get("message"), exc_info=error)
        if isinstance(error, InvariantError):
            os._exit(1)

    loop.set_exception_handler(unhandled)

    async def figures() -> dict[str, Any]:
        return server.stats()

    def collect() -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(figures(), loop).result(timeout=5.0)

    metrics: MetricsServer | None = None
    try:
        await server.start()
        if metrics_address is not None:
            metrics = MetricsServer(metrics_address, collect, lambda: "")
        where = f" metrics={metrics.address}" if metrics is not None else ""
        click.echo(f"ready {ready()}{where} pid={os.getpid()}")
        await stop.wait()
        logger.info("stopping")
    finally:
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
        await server.stop()


def server_options(function: _F) -> _F:
    for option in (
        click.option("--metrics-addr", metavar="HOST:PORT", help="Serve /metrics, /debug/vars and /healthz here."),
        click.option(
            "--insecure-listen", is_flag=True, help="Allow an address that others can reach. There is no TLS."
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
            help="What goes to stderr.",
        ),
    ):
        function = option(function)
    return function


def _prepare(log_level: str, addresses: list[str], insecure: bool) -> None:
    from nokv.cli.logs import configure_logging

    for address in addresses:
        check_listen(address, insecure)
    configure_logging(log_level)


@click.command("meta-root")
@click.option("--addr", default="127.0.0.1:2380", show_default=True, metavar="HOST:PORT", help="Listen here.")
@click.option("--workdir", required=True, type=click.Path(), help="This peer's directory; created if it is missing.")
@click.option("--node-id", type=POSITIVE, default=1, show_default=True, help="This peer's id.")
@click.option("--peer", "peers", multiple=True, metavar="ID=HOST:PORT", help="Every peer, this one too (repeatable).")
@click.option("--tick-interval", "tick_ms", type=click.IntRange(1), default=50, show_default=True, help="Milliseconds.")
@server_options
def meta_root(
    addr: str,
    workdir: str,
    node_id: int,
    peers: tuple[str, ...],
    tick_ms: int,
    metrics_addr: str | None,
    insecure_listen: bool,
    log_level: str,
) -> None:
    """Run one peer of the meta-root: 1, 3 or 5 of them hold the truth."""
    members = parse_peers(peers, "--peer") or {node_id: addr}
    if node_id not in members:
        raise UsageError(f"--peer does not name this node: {node_id}", hint=f"add --peer {node_id}={addr}")
    if len(members) not in (1, 3, 5):
        raise UsageError(f"{len(members)} peers: 1, 3 or 5 make sense")
    _prepare(log_level, [addr], insecure_listen)
    asyncio.run(_meta_root(addr, workdir, node_id, members, tick_ms, metrics_addr))


async def _meta_root(
    addr: str, workdir: str, node_id: int, members: dict[int, str], tick_ms: int, metrics_addr: str | None
) -> None:
    from nokv.metaroot.server import RootConfig, RootServer

    config = RootConfig(workdir=workdir, node_id=node_id, address=addr, peers=members, tick_interval_s=tick_ms / 1000)
    server = RootServer(config)
    await run_daemon(server, lambda: f"meta-root node={node_id} addr={addr}", metrics_addr)


@click.command("coordinator")
@click.option("--addr", default="127.0.0.1:2379", show_default=True, metavar="HOST:PORT", help="Listen here.")
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
    addr: str,
    coordinator_id: str,
    root_peers: tuple[str, ...],
    workdir: str | None,
    lease_ttl_s: float,
    renew_s: float,
    id_start: int,
    ts_start: int,
    metrics_addr: str | None,
    insecure_listen: bool,
    log_level: str,
) -> None:
    """Run a coordinator: routes, ids, timestamps. It keeps nothing durable; the meta-root does.

    With --workdir and no --root-peer, one process is both, for development.
    """
    roots = parse_peers(root_peers, "--root-peer")
    if bool(roots) == (workdir is not None):
        raise UsageError(
            "a coordinator needs a meta-root",
            hint="--root-peer ID=HOST:PORT, or --workdir DIR for one inside this process",
        )
    if renew_s >= lease_ttl_s:
        raise UsageError("--lease-renew-before must be smaller than --lease-ttl")
    _prepare(log_level, [addr], insecure_listen)
    options = {"lease_ttl_s": lease_ttl_s, "lease_renew_before_s": renew_s, "id_start": id_start, "ts_start": ts_start}
    asyncio.run(_coordinator(addr, coordinator_id, roots, workdir, options, metrics_addr))


async def _coordinator(
    addr: str,
    coordinator_id: str,
    roots: dict[int, str],
    workdir: str | None,
    options: dict[str, Any],
    metrics_addr: str | None,
) -> None:
    from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer

    config = CoordinatorConfig(
        coordinator_id=coordinator_id, address=addr, root_peers=roots or None, workdir=workdir, **options
    )
    server = CoordinatorServer(config)
    await run_daemon(server, lambda: f"coordinator id={coordinator_id} addr={addr}", metrics_addr)


@click.command()
@click.option("--addr", default="127.0.0.1:20160", show_default=True, metavar="HOST:PORT", help="Listen here.")
@click.option("--workdir", required=True, type=click.Path(), help="A promoted directory, or an empty or missing one.")
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
    addr: str,
    workdir: str,
    store_id: int,
    coordinators: tuple[str, ...],
    store_addrs: tuple[str, ...],
    tick_ms: int,
    election_tick: int,
    heartbeat_tick: int,
    metrics_addr: str | None,
    insecure_listen: bool,
    log_level: str,
) -> None:
    """Run a store over a promoted directory, or over an empty one that waits for replicas."""
    found = coordinators_of(coordinators)
    if not found:  # CO-10
        raise UsageError(
            "serve needs a coordinator: it routes clients and knows the other stores",
            hint="--coordinator-addr HOST:PORT; start one with: nokv coordinator --workdir DIR",
        )
    for address in found:
        split_address(address, "--coordinator-addr")
    if heartbeat_tick >= election_tick:
        raise UsageError("--heartbeat-tick must be smaller than --election-tick")
    peers = parse_peers(store_addrs, "--store-addr")
    _prepare(log_level, [addr], insecure_listen)
    options = {"tick_interval_s": tick_ms / 1000, "election_ticks": election_tick, "heartbeat_ticks": heartbeat_tick}
    asyncio.run(_serve(addr, Path(workdir), store_id, found, peers, options, metrics_addr))


async def _serve(
    addr: str,
    workdir: Path,
    store_id: int,
    coordinators: list[str],
    peers: dict[int, str],
    options: dict[str, Any],
    metrics_addr: str | None,
) -> None:
    from nokv.coordinator.client import CoordinatorClient
    from nokv.raftstore.control import ControlPort
    from nokv.raftstore.node import StoreConfig, StoreNode

    options |= store_options(os.environ.get("NOKV_STORE_OPTIONS", ""), **options)
    config = StoreConfig(workdir=str(workdir), store_id=store_id, address=addr, store_addresses=peers, **options)
    client = CoordinatorClient(coordinators)
    node = StoreNode(config, cast(ControlPort, client))  # siblings: each has its own StoreOperation, field for field

    def ready() -> str:
        for line in catalog_summary(node.regions()):
            click.echo(line)
        return f"store id={store_id} addr={addr} regions={len(node.regions())}"

    await run_daemon(node, ready, metrics_addr)


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
    from nokv.cli.output import printable

    lines = [f"catalog: {len(regions)} regions"]
    for region in regions:
        bounds = f"[{printable(region.start_key, limit=30) or '-'}, {printable(region.end_key, limit=30) or '-'})"
        peers = ", ".join(f"{p.store_id}:{p.peer_id} {p.role.value}" for p in region.peers)
        lines.append(
            f"  region {region.region_id} {bounds} epoch {region.epoch.conf_version}.{region.epoch.version} {peers}"
        )
    return lines
