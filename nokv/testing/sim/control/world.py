"""A control plane under fire: three meta-roots, three coordinators, clients; one seed, one thread, virtual time.

The processes run the product's own code, from the services down to the log on a disk that forgets (`CrashFiles`);
only channels, Raft's network, clocks, dice and the event loop are the simulator's. Everything is drawn from the seed,
which faults there are too, so a seed is a schedule: `trace` proves it.

After every callback of a process the checker looks at what it did. At the end all but one meta-root (and, in some
schedules, one coordinator) heal; that one is dead, cut off or stopped for good, and service must be back within
SERVICE_S. Then it heals too, and within LIVENESS_S every view must show what the log says.
"""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from nokv.coordinator.client import CoordinatorClient
from nokv.coordinator.node import Degraded
from nokv.coordinator.server import CoordinatorConfig
from nokv.metaroot.client import RootClient
from nokv.metaroot.server import RootConfig
from nokv.testing.network import SimNetwork
from nokv.testing.sim.control.checker import Checker
from nokv.testing.sim.control.client import SimClient
from nokv.testing.sim.control.host import Life, SimClock, VirtualLoop, discard
from nokv.testing.sim.control.node import CoordinatorProcess, Process, RootProcess
from nokv.testing.sim.control.transport import Links, RpcNetwork, WorldScheduler
from nokv.testing.sim.values import Violation

__all__ = ["ControlReport", "ControlSim"]

NS = 1_000_000_000
FAULTS_S = 7.0
SERVICE_S = 8.0
"""Two lease times and eight election timeouts, from when the last fault but one ended."""
LIVENESS_S = 15.0
TICK_S = 0.05
ELECTION_TICKS = 10
TTL_S = 2.0
DRIFT = 0.07
"""Each clock's rate lies so far from 1: two of them differ by 15 %, what the lease is promised for."""


@dataclass(slots=True)
class ControlReport:
    seed: int
    trace: int
    events: int
    faults: dict[str, int]
    operations: int
    revisions: int
    eras: int
    served_after_ms: int
    healed_after_ms: int

    def __str__(self) -> str:
        return (
            f"{self.events} events, {self.revisions} revisions, {self.eras} eras, service back after "
            f"{self.served_after_ms} ms, views converged after {self.healed_after_ms} ms"
        )


class _Complaints(logging.Handler):
    """What a server logs with a traceback is something that nobody expected."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._problems.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


class ControlSim:
    """One schedule. `run()` raises Violation, or returns what happened."""

    def __init__(self, seed: int, *, seconds: float = FAULTS_S) -> None:
        self.seed = seed
        self.seconds = seconds
        self.random = random.Random(seed)
        self.loop = VirtualLoop()
        self.checker = Checker()
        self.faults: dict[str, int] = {}
        self.healing = False
        self._draw_options()
        self.links = Links(self.loop, random.Random(seed + 1))
        self.network = SimNetwork(WorldScheduler(self.loop), seed=seed)  # type: ignore[arg-type]
        self.network._blocked = self.links.blocked
        self._carry(self.loss, self.duplication, self.delay_s)
        self.rpc = RpcNetwork(self.links, self._observe)
        addresses = {n: f"root-{n}:{2380 + n}" for n in (1, 2, 3)}
        self.roots = [self._root(n, addresses) for n in addresses]
        self.coordinators = [self._coordinator(n, addresses) for n in (11, 12, 13)]
        self.processes: dict[int, Process] = {p.node_id: p for p in (*self.roots, *self.coordinators)}
        served = [p.config.address for p in self.coordinators]
        self.clients = [self._client(n, list(addresses.values()), served) for n in range(1, self.client_count + 1)]

    # -- options of this seed -----------------------------------------------------------------------------------------
    def _draw_options(self) -> None:
        draw = self.random
        self.client_count = draw.choice((2, 3, 4))
        self.client_pause_s = draw.choice((0.02, 0.05, 0.1))
        self.loss = draw.choice((0.0, 0.0, 0.01, 0.05, 0.3))
        self.duplication = draw.choice((0.0, 0.0, 0.1, 0.3))
        self.delay_s = draw.choice(((0.0002, 0.001), (0.0005, 0.005), (0.001, 0.05)))
        self.retain_events = draw.choice((20, 60, 100_000))
        self.checkpoint_every = draw.choice((5, 30, 200))
        self.id_window = draw.choice((5, 50, 1000))
        self.tso_window_ms = draw.choice((100, 500, 3000))
        self.drift = draw.choice((0.0, DRIFT, DRIFT))
        self.kinds = [kind for kind in self._fault_table() if draw.random() < 0.5] or ["crash_coordinator"]
        self.fault_gap_s = draw.choice((0.15, 0.3, 0.7))

    def _fault_table(self) -> dict[str, Callable[[], None]]:
        return {
            "crash_root": self._crash_root,
            "crash_root_in_write": self._crash_root_in_write,
            "crash_all_roots": self._crash_all_roots,
            "stop_root": self._stop_root,
            "pause_root": self._pause_root,
            "transfer_leader": self._transfer_leader,
            "crash_coordinator": self._crash_coordinator,
            "crash_holder": self._crash_holder,
            "stop_coordinator": self._stop_coordinator,
            "pause_coordinator": self._pause_coordinator,
            "pause_holder": self._pause_holder,
            "jump_clock": self._jump_clock,
            "cut_one": self._cut_one,
            "cut_half": self._cut_half,
            "cut_one_way": self._cut_one_way,
            "slow_network": self._slow_network,
        }

    def _between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    # -- the processes ------------------------------------------------------------------------------------------------
    def _clock(self) -> SimClock:
        return SimClock(self.loop, rate=1.0 + self._between(-self.drift, self.drift))

    def _root(self, number: int, addresses: dict[int, str]) -> RootProcess:
        config = RootConfig(
            number,
            addresses[number],
            "root",
            addresses,
            tick_interval_s=TICK_S,
            election_ticks=ELECTION_TICKS,
            retain_events=self.retain_events,
            checkpoint_every=self.checkpoint_every,
            tail_heartbeat_s=0.25,
        )
        dice = random.Random(self.random.getrandbits(64))
        process = RootProcess(
            f"root-{number}", number, self.loop, self.rpc, self._clock(), dice,
            network=self.network, checker=self.checker, config=config,
        )  # fmt: skip
        process.on_step = self._root_stepped
        return process

    def _coordinator(self, number: int, addresses: dict[int, str]) -> CoordinatorProcess:
        config = CoordinatorConfig(
            f"c{number}",
            f"c{number}:{2379 + number}",
            root_peers=addresses,
            lease_ttl_s=TTL_S,
            lease_renew_before_s=TTL_S * 0.3,
            id_window=self.id_window,
            tso_window_ms=self.tso_window_ms,
        )
        dice = random.Random(self.random.getrandbits(64))
        process = CoordinatorProcess(f"c{number}", number, self.loop, self.rpc, self._clock(), dice, config=config)
        process.on_step = self._coordinator_stepped
        return process

    def _client(self, number: int, roots: list[str], coordinators: list[str]) -> SimClient:
        life = Life(self.loop, f"client-{number}", 20 + number)
        dice = random.Random(self.random.getrandbits(64))

        def dial(address: str) -> Any:
            return self.rpc.channel(life, address)

        return SimClient(
            number,
            life,
            self.loop,
            self.checker,
            CoordinatorClient(coordinators, rng=random.Random(dice.getrandbits(64)), dial=dial),
            RootClient(roots, rng=random.Random(dice.getrandbits(64)), dial=dial),
            dice,
            self.client_pause_s,
        )

    def _carry(self, loss: float, duplication: float, delay_s: tuple[float, float]) -> None:
        for network in (self.links, self.network):
            network.loss, network.duplication, network.delay_s = loss, duplication, delay_s

    # -- watching -----------------------------------------------------------------------------------------------------
    def _observe(self, who: str, path: str, response: Any) -> None:
        method = path.rpartition("/")[2]
        checker = self.checker
        if method == "AllocId":
            checker.ids.handed_out(response.first, response.count, response.era, checker.state.id_fence, who)
        elif method == "GetTimestamp":
            checker.timestamps.handed_out(response.first, response.count, response.era, checker.state.tso_fence, who)
        checker.note(self.loop.now_ns, who, method, response.ByteSize())

    def _root_stepped(self, process: Process) -> None:
        assert isinstance(process, RootProcess)
        if process.files.crashed:
            self._down(process, self._between(0.1, 1.5))

    def _coordinator_stepped(self, process: Process) -> None:
        assert isinstance(process, CoordinatorProcess)
        process.check()
        holders = [(each.name, era) for each in self.coordinators if (era := each.serving())]
        if holders:
            self.checker.serving(holders)

    # -- the run ------------------------------------------------------------------------------------------------------
    def run(self) -> ControlReport:
        logger = logging.getLogger("nokv")
        complaints = _Complaints(self.loop.problems)
        before = logger.level, logger.propagate
        with ExitStack() as stack:
            stack.enter_context(self.loop.running())
            logger.addHandler(complaints)
            logger.setLevel(logging.ERROR)
            logger.propagate = False
            stack.callback(logger.removeHandler, complaints)
            stack.callback(logger.setLevel, before[0])
            stack.callback(setattr, logger, "propagate", before[1])
            try:
                return self._run()
            except Violation:
                raise
            except Exception as error:
                raise Violation(f"{type(error).__name__}: {error}") from error
            finally:
                self._end()

    def _end(self) -> None:
        for process in self.processes.values():
            process.end()
        for client in self.clients:
            discard(client.life)

    def _run(self) -> ControlReport:
        for process in self.processes.values():
            self.loop.world_later(self._between(0, 0.2), process.start)
        for client in self.clients:
            self.loop.world_later(self._between(0, 0.5), client.start)
        self.loop.world_later(self._between(0.5, 2.0), self._nemesis)
        self._until(self.loop.now_ns + round(self.seconds * NS), lambda: False)
        self._heal()
        quiet = self._lame()
        lame_at = self.loop.now_ns
        if not self._until(lame_at + round(SERVICE_S * NS), lambda: self._served(lame_at)):
            raise Violation(f"no service {SERVICE_S:g} s after healing, without {quiet}: {self._picture(lame_at)}")
        served_after = self.loop.now_ns - lame_at
        self._heal()
        healed_at = self.loop.now_ns
        if not self._until(healed_at + round(LIVENESS_S * NS), lambda: self._converged(healed_at)):
            raise Violation(f"service is not back {LIVENESS_S:g} s after healing: {self._picture(healed_at)}")
        healed_after = self.loop.now_ns - healed_at
        self._final_checks()
        trace = zlib.crc32(
            repr((self.network.trace_hash, self.loop.events, self.loop.now_ns)).encode(), self.checker.trace
        )
        return ControlReport(
            self.seed,
            trace,
            self.loop.events,
            self.faults,
            sum(client.operations for client in self.clients),
            len(self.checker.records),
            self.checker.state.era,
            served_after // 1_000_000,
            healed_after // 1_000_000,
        )

    def _until(self, end_ns: int, done: Callable[[], bool]) -> bool:
        problems = self.loop.problems
        found = self.loop.run_until(end_ns, lambda: bool(problems) or done())
        if problems:
            raise Violation("; ".join(problems[:3]))
        return found

    def _lame(self) -> str:
        """One meta-root, and maybe a coordinator, stay away. Says which, and how."""
        lame: list[Process] = []
        leaders = [root for root in self.roots if root.leads]
        lame.append(leaders[0] if leaders and self.random.random() < 0.6 else self.random.choice(self.roots))
        if self.random.random() < 0.6:
            lame.append(self._holder() or self.random.choice(self.coordinators))
        ways = [self.random.choice(("dead", "cut off", "stopped")) for _ in lame]
        for process, way in zip(lame, ways, strict=True):
            if way == "dead":
                process.kill()
            elif way == "stopped" and process.life is not None:
                process.life.pause()
            else:
                others = [each for each in self._everybody() if each != process.node_id]
                self.links.blocked.update(pair for other in others for pair in self._both(process.node_id, other))
        text = ", ".join(f"{process.name} ({way})" for process, way in zip(lame, ways, strict=True))
        self.checker.note(self.loop.now_ns, text)
        return text

    @staticmethod
    def _both(a: int, b: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (a, b), (b, a)

    def _served(self, since_ns: int) -> bool:
        return all(
            min(client.last_id_ns, client.last_timestamp_ns, client.last_publish_ns) > since_ns
            for client in self.clients
        )

    def _converged(self, since_ns: int) -> bool:
        if not all(process.running for process in self.processes.values()):
            return False
        leaders = [root for root in self.roots if root.leads]
        if len(leaders) != 1:
            return False
        newest = self.checker.state.last.revision
        for root in self.roots:
            assert root.server is not None and root.server.node is not None
            if root.server.node.machine.last.revision != newest:
                return False
        for coordinator in self.coordinators:
            node = coordinator.node
            if node is None or node.view.served.revision != newest or node.degraded() is not Degraded.HEALTHY:
                return False
        return self._served(since_ns) and all(client.tail.revision == newest for client in self.clients)

    def _picture(self, since_ns: int) -> str:
        out = [f"the log is at {self.checker.state.last.revision}, lease {self.checker.state.lease}"]
        for root in self.roots:
            node = root.server.node if root.server is not None else None
            at = f"leads {node.leads}, knows {node.leader_id}, at {node.machine.last.revision}" if node else "down"
            out.append(f"{root.name}: {at}")
        for coordinator in self.coordinators:
            control = coordinator.node
            if control is None:
                out.append(f"{coordinator.name}: down")
            else:
                out.append(f"{coordinator.name}: {control.degraded().value}, {control.figures()}")
        for client in self.clients:
            seconds = [
                round((at - since_ns) / NS, 2)
                for at in (client.last_id_ns, client.last_timestamp_ns, client.last_publish_ns)
            ]
            out.append(f"client {client.number}: id, timestamp, publication {seconds}, tail {client.tail.revision}")
        return "; ".join(out)

    def _final_checks(self) -> None:
        for root in self.roots:
            assert root.server is not None and root.server.node is not None
            self.checker.is_fold(root.name, root.server.node.machine.state)
        for coordinator in self.coordinators:
            assert coordinator.node is not None
            self.checker.is_fold(f"the view of {coordinator.name}", coordinator.node.view.truth)
        self.checker.audit()

    # -- faults -------------------------------------------------------------------------------------------------------
    def _nemesis(self) -> None:
        if self.healing:
            return
        kind = self.random.choice(self.kinds)
        self._fault_table()[kind]()
        self.loop.world_later(self._between(0.2, 1.8) * self.fault_gap_s, self._nemesis)

    def _count(self, kind: str) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.checker.note(self.loop.now_ns, kind)

    def _back(self, process: Process) -> None:
        if process.stopping and process.up:
            self.loop.world_later(0.1, self._back, process)
        elif not process.up:
            process.start()

    def _down(self, process: Process, seconds: float) -> None:
        process.kill()
        self.loop.world_later(0.0 if self.healing else seconds, self._back, process)

    def _crash_one_root(self, root: RootProcess, seconds: float) -> None:
        if root.up:
            root.crash_mode = self.random.choice(("process", "keep", "drop", "names", "torn", "random", "random"))
            self._count(f"crash_root_{root.crash_mode}")
            self._down(root, seconds)

    def _crash_root(self) -> None:
        leaders = [root for root in self.roots if root.leads]
        root = leaders[0] if leaders and self.random.random() < 0.5 else self.random.choice(self.roots)
        self._crash_one_root(root, self._between(0.05, 1.5))

    def _crash_root_in_write(self) -> None:
        """The process dies in the middle of one of its next operations on the disk."""
        root = self.random.choice(self.roots)
        if root.up and root.files.crash_at is None:
            root.crash_mode = self.random.choice(("process", "drop", "torn", "random"))
            root.files.crash_at = root.files.operation_count + 1 + self.random.randrange(12)
            self._count("crash_root_in_write")

    def _crash_all_roots(self) -> None:
        for root in self.roots:
            self._crash_one_root(root, self._between(0.05, 0.6))

    def _stop_root(self) -> None:
        self._stop(self.random.choice(self.roots))

    def _stop_coordinator(self) -> None:
        self._stop(self.random.choice(self.coordinators))

    def _stop(self, process: Process) -> None:
        if process.running:
            self._count("stop")
            process.stop()
            self.loop.world_later(self._between(1.5, 2.5), self._back, process)

    def _pause(self, process: Process, seconds: float) -> None:
        life = process.life
        if life is not None and not life.paused:
            self._count("pause")
            life.pause()
            self.loop.world_later(seconds, life.resume)

    def _pause_root(self) -> None:
        self._pause(self.random.choice(self.roots), self._between(0.05, 3.0))

    def _transfer_leader(self) -> None:
        for root in self.roots:
            if root.leads:
                self._count("transfer_leader")
                root.transfer_leader(self.random.choice([r.node_id for r in self.roots if r is not root]))

    def _holder(self) -> CoordinatorProcess | None:
        return next((each for each in self.coordinators if each.serving()), None)

    def _crash_one_coordinator(self, coordinator: CoordinatorProcess | None) -> None:
        if coordinator is not None and coordinator.up:
            self._count("crash_coordinator")
            self._down(coordinator, self._between(0.05, 2.5))

    def _crash_coordinator(self) -> None:
        self._crash_one_coordinator(self.random.choice(self.coordinators))

    def _crash_holder(self) -> None:
        self._crash_one_coordinator(self._holder())

    def _pause_coordinator(self) -> None:
        self._pause(self.random.choice(self.coordinators), self._between(0.05, 5.0))

    def _pause_holder(self) -> None:
        holder = self._holder()
        if holder is not None:
            self._pause(holder, self._between(0.5, 5.0))

    def _jump_clock(self) -> None:
        process = self.random.choice((*self.roots, *self.coordinators, *self.coordinators))
        process.clock.jump_ms(self.random.choice((-60_000, -3_000, -50, 50, 3_000, 60_000)))
        self._count("jump_clock")

    def _everybody(self) -> list[int]:
        return [*self.processes, *(20 + client.number for client in self.clients)]

    def _cut(self, kind: str, pairs: list[tuple[int, int]]) -> None:
        self._count(kind)
        self.links.blocked.update(pairs)
        self.loop.world_later(self._between(0.2, 3.0), self._mend, pairs)

    def _mend(self, pairs: list[tuple[int, int]]) -> None:
        if not self.healing:  # what is cut after that was cut anew, and stays so
            self.links.blocked.difference_update(pairs)

    def _cut_one(self) -> None:
        one = self.random.choice(list(self.processes))
        self._cut("cut_one", [pair for other in self._everybody() for pair in ((one, other), (other, one))])

    def _cut_half(self) -> None:
        everybody = self._everybody()
        side = {node_id for node_id in everybody if self.random.random() < 0.5}
        self._cut("cut_half", [(a, b) for a in everybody for b in everybody if (a in side) != (b in side)])

    def _cut_one_way(self) -> None:
        one = self.random.choice(list(self.processes))
        others = self.random.sample(self._everybody(), self.random.randrange(1, 5))
        inward = self.random.random() < 0.5
        self._cut("cut_one_way", [(other, one) if inward else (one, other) for other in others])

    def _slow_network(self) -> None:
        self._count("slow_network")
        self._carry(self.loss, self.duplication, (0.01, self._between(0.05, 0.4)))
        self.loop.world_later(self._between(0.2, 1.5), lambda: self._carry(self.loss, self.duplication, self.delay_s))

    def _heal(self) -> None:
        self.healing = True
        self.links.blocked.clear()
        self.loss = self.duplication = 0.0
        self.delay_s = (0.0005, 0.002)
        self._carry(0.0, 0.0, self.delay_s)
        self.faults["lost_messages"] = self.links.lost + self.network.lost
        self.faults["repeated_calls"] = self.links.repeated
        self.faults["late_calls"] = self.links.late
        for process in self.processes.values():
            if isinstance(process, RootProcess):
                process.files.crash_at = None
            if process.life is not None:
                process.life.resume()
            elif not process.up:
                process.start()
