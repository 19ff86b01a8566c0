"""CoordinatorServer: one coordinator process's insides, wired together.

With `root_peers` it is stateless. With `workdir` and no root peers the log has one voter, inside this process
(PD-lite): the same files, the same lease, one directory, and the log's own service on the coordinator's port, so that
`nokv root` reads it there. The directory's exclusive lock then proves that an earlier process of this coordinator is
dead, so its lease need not be waited out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from nokv.coordinator.lease import LeaseTerms
from nokv.coordinator.node import CoordinatorNode
from nokv.coordinator.service import CoordinatorService
from nokv.errors import UsageError
from nokv.metaroot.client import RootClient
from nokv.metaroot.node import LocalRoot
from nokv.metaroot.ports import RootLog
from nokv.metaroot.server import ROOT_SERVICE, RootConfig, RootServer, ServerPorts
from nokv.pb import coordinator_pb2, coordinator_pb2_grpc, root_pb2_grpc
from nokv.rpc.service import add_common_services
from nokv.rpc.transport import bind

__all__ = ["CoordinatorConfig", "CoordinatorServer"]


@dataclass(slots=True)
class CoordinatorConfig:
    """`root_peers`: id -> address of the meta-roots. Without them, `workdir` holds a single-peer one in this
    process."""

    coordinator_id: str
    address: str
    root_peers: Mapping[int, str] | None = None
    workdir: str | None = None
    lease_ttl_s: float = 10.0
    lease_renew_before_s: float = 3.0
    id_start: int = 1
    ts_start: int = 1
    id_window: int = 1_000
    tso_window_ms: int = 3_000
    root_timeout_s: float = 5.0
    root: dict[str, Any] = field(default_factory=dict)  # options of the inner RootConfig

    def validate(self) -> None:
        if not self.coordinator_id:
            raise UsageError("a coordinator needs an id")
        if bool(self.root_peers) == (self.workdir is not None):
            raise UsageError("a coordinator needs the addresses of the meta-roots, or a workdir of its own")
        if self.lease_ttl_s < 0.1 or not 0 < self.lease_renew_before_s < self.lease_ttl_s:
            raise UsageError("lease_renew_before_s must lie between 0 and lease_ttl_s, and that be at least 0.1")
        if self.id_start < 1 or self.ts_start < 1:
            raise UsageError("id_start and ts_start are positive")


class CoordinatorServer:
    """start() and stop() once each, on the event loop that serves."""

    def __init__(self, config: CoordinatorConfig, *, ports: ServerPorts | None = None) -> None:
        config.validate()
        self.config = config
        self.address = config.address
        self.node: CoordinatorNode | None = None
        self.root_server: RootServer | None = None
        self._ports = ports if ports is not None else ServerPorts()
        self._root: RootLog | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Returns once it answers; the lease may come later."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config, ports = self.config, self._ports
        self._server = ports.server()
        self.address = bind(self._server, config.address, ports.tls)
        names = [coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name]
        if config.root_peers:
            self._root = RootClient(
                list(config.root_peers.values()),
                timeout_s=config.root_timeout_s,
                rng=random.Random(ports.dice.getrandbits(64)),
                dial=ports.dial,
            )
        else:
            assert config.workdir is not None
            inner = RootConfig(1, self.address, config.workdir, **config.root)
            self.root_server = RootServer(inner, ports=ports, listen=False)
            await self.root_server.start()
            assert self.root_server.node is not None and self.root_server.service is not None
            self._root = LocalRoot(self.root_server.node, timeout_s=config.root_timeout_s)
            root_pb2_grpc.add_RootServicer_to_server(self.root_server.service, self._server)
            names.append(ROOT_SERVICE)
        self.node = CoordinatorNode(
            self._root,
            ports.clock,
            coordinator_id=config.coordinator_id,
            address=self.address,
            incarnation=f"{ports.dice.getrandbits(64):016x}",
            terms=LeaseTerms(int(config.lease_ttl_s * 1000), int(config.lease_renew_before_s * 1000)),
            take_over_own=config.workdir is not None,
            id_start=config.id_start,
            ts_start=config.ts_start,
            id_window=config.id_window,
            tso_window_ms=config.tso_window_ms,
        )
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(CoordinatorService(self.node, ports.clock), self._server)
        await add_common_services(self._server, *names)
        await self._server.start()
        self.node.start()

    async def stop(self) -> None:
        """Idempotent. Gives up the lease first, so that another one need not wait for it."""
        if self.node is not None:
            await self.node.stop()
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._server = None
        if self._root is not None:
            await self._root.close()
            self._root = None
        if self.root_server is not None:
            await self.root_server.stop()
            self.root_server = None

    async def abandon(self) -> None:
        """Stop as a crash would: nothing is released. For tests and drills."""
        if self.node is not None:
            await self.node.abandon()
        await self.stop()

    def stats(self) -> dict[str, Any]:
        if self.node is None:
            return {}
        figures: dict[str, Any] = self.node.figures()
        if self.root_server is not None:
            figures["root"] = self.root_server.stats()
        return figures
