"""The processes of a simulated control plane: real servers and services over simulated ports, life after life."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from nokv.coordinator.node import CoordinatorNode
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.metaroot.machine import AppliedBatch, RootMachine
from nokv.metaroot.server import ROOT_GROUP_ID, RootConfig, RootServer, ServerPorts
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles, CrashMode, CrashPoint
from nokv.testing.network import SimNetwork
from nokv.testing.sim.control.checker import Checker
from nokv.testing.sim.control.host import Life, SimClock, VirtualLoop, discard
from nokv.testing.sim.control.transport import RaftPort, RpcNetwork
from nokv.testing.sim.values import Violation

__all__ = ["CoordinatorProcess", "Process", "RootProcess"]


class _WatchedMachine(RootMachine):
    """Tells the checker what was applied."""

    __slots__ = ("_checker", "_who")

    def __init__(self, machine: RootMachine, checker: Checker, who: str) -> None:
        for name in RootMachine.__slots__:
            setattr(self, name, getattr(machine, name))
        self._checker = checker
        self._who = who

    def apply_entry(self, term: int, index: int, data: bytes) -> AppliedBatch | None:
        outcome = super().apply_entry(term, index, data)
        if outcome is not None and outcome.records:
            self._checker.applied(self._who, outcome.records, self.state)
        return outcome


class Process:
    """What is the same for both kinds. `life` is None while it is down."""

    def __init__(
        self, name: str, node_id: int, loop: VirtualLoop, rpc: RpcNetwork, clock: SimClock, dice: random.Random
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.loop = loop
        self.rpc = rpc
        self.clock = clock
        self.dice = dice
        self.life: Life | None = None
        self.lives = 0
        self.past: list[Life] = []
        self.starting = False
        self.stopping = False
        self.on_step: Callable[[Process], None] = lambda process: None

    @property
    def up(self) -> bool:
        return self.life is not None

    @property
    def running(self) -> bool:
        return self.life is not None and not self.starting and not self.stopping

    def start(self) -> None:
        if self.life is not None:
            return
        self.lives += 1
        life = self.life = Life(self.loop, f"{self.name}.{self.lives}", self.node_id)
        life.on_step = lambda: self.on_step(self)
        self.starting, self.stopping = True, False
        life.spawn(self._guard(self._start, life))

    def kill(self) -> None:
        life = self.life
        if life is None:
            return
        self.life = None
        life.kill()
        self.past.append(life)
        self.rpc.dead(life)
        self.died()

    def stop(self) -> None:
        """As SIGTERM would."""
        if self.life is not None and self.running:
            self.stopping = True
            self.life.spawn(self._guard(self._stop, self.life))

    async def _guard(self, work: Callable[[Life], Awaitable[None]], life: Life) -> None:
        try:
            await work(life)
        except Exception as error:
            self.loop.problems.append(f"{work.__name__} of {life.name}: {type(error).__name__}: {error}")

    async def _start(self, life: Life) -> None:
        raise NotImplementedError

    async def _shut_down(self) -> None:
        raise NotImplementedError

    async def _stop(self, life: Life) -> None:
        await self._shut_down()
        # From outside the life that ends here.
        self.loop.world_later(0.0, lambda: self.kill() if self.life is life else None)

    def died(self) -> None:
        """The process is gone."""

    def end(self) -> None:
        """The run is over: leave nothing behind."""
        self.kill()
        for life in self.past:
            discard(life)
        self.past.clear()

    def ports(self, life: Life, **more: Any) -> ServerPorts:
        server: Any = partial(self.rpc.server, life)  # of grpc.aio's shape, as far as the product uses it
        dial: Any = partial(self.rpc.channel, life)
        dice = random.Random(self.dice.getrandbits(64))
        return ServerPorts(clock=self.clock, dice=dice, server=server, dial=dial, **more)


class RootProcess(Process):
    """`files` is the machine's disk: it outlives the process."""

    def __init__(
        self,
        *arguments: Any,
        network: SimNetwork,
        checker: Checker,
        config: RootConfig,
    ) -> None:
        super().__init__(*arguments)
        self.network = network
        self.checker = checker
        self.config = config
        self.files = CrashFiles(seed=self.dice.getrandbits(32))
        self.server: RootServer | None = None
        self.dead_servers: list[RootServer] = []
        self.crash_mode: CrashMode = "process"
        self.fatal: BaseException | None = None

    async def _start(self, life: Life) -> None:
        ports = self.ports(
            life,
            files=self.files,
            executor=StepExecutor(inline=True),
            transport=lambda node_id, resolve: RaftPort(self.network, life),
            on_fatal=self._on_fatal,
        )
        server = self.server = RootServer(self.config, ports=ports)
        await server.start()
        assert server.node is not None
        server.node.machine = _WatchedMachine(server.node.machine, self.checker, life.name)
        self.checker.is_fold(f"{life.name} as it starts", server.node.machine.state)
        self.starting = False

    async def _shut_down(self) -> None:
        assert self.server is not None
        await self.server.stop()

    def _on_fatal(self, error: BaseException) -> None:
        if not self.files.crashed:
            raise Violation(f"{self.name} stops itself: {error}") from error

    def died(self) -> None:
        self.network.kill(self.node_id)
        self.files.kill()
        if self.server is not None:
            self.dead_servers.append(self.server)  # its destructors must not run now
            self.server = None
        self.files = self.files.crash_clone(self.crash_mode, seed=self.dice.getrandbits(32))
        self.crash_mode = "process"

    def end(self) -> None:
        super().end()
        for server in self.dead_servers:
            if server._db is not None:
                with suppress(CrashPoint):  # its disk is gone; it shall not be closed at exit
                    server._db.close()
        self.dead_servers.clear()

    @property
    def leads(self) -> bool:
        return self.running and self.server is not None and self.server.node is not None and self.server.node.leads

    def transfer_leader(self, node_id: int) -> None:
        def ask() -> None:
            if self.leads:
                assert self.server is not None and self.server._host is not None
                self.server._host.transfer_leader(ROOT_GROUP_ID, node_id)

        assert self.life is not None
        self.life.call_soon(ask)


class CoordinatorProcess(Process):
    def __init__(self, *arguments: Any, config: CoordinatorConfig) -> None:
        super().__init__(*arguments)
        self.config = config
        self.server: CoordinatorServer | None = None
        self.served = 0  # the newest revision that this life has shown

    @property
    def node(self) -> CoordinatorNode | None:
        return self.server.node if self.server is not None else None

    async def _start(self, life: Life) -> None:
        self.served = 0
        server = self.server = CoordinatorServer(self.config, ports=self.ports(life))
        await server.start()
        self.starting = False

    async def _shut_down(self) -> None:
        assert self.server is not None
        await self.server.stop()

    def died(self) -> None:
        self.server = None

    def check(self) -> None:
        """The view never goes back within one life."""
        node = self.node
        if node is None or node.view is None:
            return
        if node.failure is not None:
            raise Violation(f"{self.name}: {node.failure}")
        served = node.view.served.revision
        if served < self.served:
            raise Violation(f"the view of {self.name} went back from revision {self.served} to {served}")
        self.served = served

    def serving(self) -> int:
        """The era that this process would serve if it were asked now, paused or not."""
        node = self.node
        return node.lease.serving(self.clock.monotonic_ns()) if node is not None else 0
