"""The control plane of real processes under kill -9 and SIGSTOP (R5): ids and timestamps are asked for all the time.

    python -m tests.e2e.control_faults SEED [--rounds 20] [--keep DIR]

Each round strikes the holder of the lease or the leader of the meta-root, kills or stops it, and measures how long no
id, timestamp or publication was acknowledged. Then the process comes back. What clients were told must stay true: ids
and timestamps only grow, and each acknowledged store is in the log at the end. Times are those that the machine grants
(tests/machine_time.py); where it stood still, leases have run out, calls been given up: an outage
counts from its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from nokv.cli import processes
from nokv.cli.cluster import _first_start
from nokv.cli.launcher import LocalCluster, ProcessRecord
from nokv.client.operator.client import CoordinatorAdmin, RootAdmin
from nokv.coordinator.client import CoordinatorClient
from nokv.errors import NoKVError
from nokv.metaroot.audit import audit
from nokv.metaroot.client import RootClient
from nokv.region import Store
from tests.machine_time import MachineTime

BACK_S = 3.0
"""Service must be back so long after a fault."""
GIVE_UP_S = 30.0
STOPPED_S = 6.0
"""A stopped process wakes up when its lease has long been somebody else's."""
TARGETS = ("lease holder", "root leader")


@dataclass(slots=True)
class Service:
    """One kind of request, asked again as soon as it is answered. `acknowledged`: when each answer came."""

    what: str
    ask: Callable[[int], Awaitable[int]]
    machine: MachineTime
    acknowledged: list[float] = field(default_factory=lambda: [0.0])
    last: int = 0
    problems: list[str] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(NoKVError):
                value = await self.ask(self.last)
                if value <= self.last:
                    self.problems.append(f"{self.what} {value} was given after {self.last}")
                self.last = value
                self.acknowledged.append(self.machine.now())
            await asyncio.sleep(0.01)

    def outage_since(self, began: float) -> float | None:
        """From the fault, or the last answer before it, to the second answer after it (the first may have been on its
        way). A stop of the whole machine is another fault."""
        fault = max(began, self.machine.last_stop)
        if sum(at > fault for at in self.acknowledged) < 2:
            return None
        before = max(at for at in self.acknowledged if at <= began)
        times = sorted([max(before, began), fault, *(at for at in self.acknowledged if at > began)])
        return max(later - earlier for earlier, later in pairwise(times))


class ControlAdversary:
    def __init__(self, directory: Path, seed: int, *, rounds: int, back_s: float = BACK_S) -> None:
        self.seed = seed
        self.back_s = back_s
        self.rounds = rounds
        self.dice = random.Random(seed)
        self.machine = MachineTime()
        self.cluster = LocalCluster.create(directory, meta_roots=3, coordinators=3, stores=0)
        self.cluster.monotonic = self.machine.now
        self.outages: list[tuple[float, str]] = []
        self.problems: list[str] = []
        self.stores: list[int] = []
        self.services: list[Service] = []

    @property
    def replay(self) -> str:
        return f"python -m tests.e2e.control_faults {self.seed} --rounds {self.rounds}"

    @property
    def worst_s(self) -> float:
        return max(seconds for seconds, _ in self.outages)

    def run(self) -> None:
        """AssertionError with the command that replays it, if anything does not hold."""
        try:
            with self.machine:
                _first_start(self.cluster, None, [])
                asyncio.run(self._run())
        finally:
            for record in self.cluster.records:
                processes.send_signal(record.pid, record.identity, signal.SIGCONT)
            self.cluster.stop_all()
        late = [f"{what}: no service for {seconds:.2f} s" for seconds, what in self.outages if seconds > self.back_s]
        wrong = [*self.problems, *(p for service in self.services for p in service.problems), *late]
        if wrong:
            raise AssertionError("\n".join([f"seed {self.seed}:", *wrong, f"replay: {self.replay}"]))

    async def _run(self) -> None:
        clients = [CoordinatorClient(self.cluster.coordinator_addresses) for _ in range(3)]
        self.services = [
            Service("id", lambda last: clients[0].alloc_id(), self.machine),
            Service("timestamp", lambda last: clients[1].tso(), self.machine),
            Service("store", lambda last: self._publish(clients[2], last + 1), self.machine),
        ]
        try:
            for service in self.services:
                service.last = await service.ask(service.last)
            workers = [asyncio.create_task(service.run()) for service in self.services]
            for number in range(self.rounds):
                await self._round(number)
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            for worker in workers:
                if not worker.cancelled():
                    worker.result()  # raises what ended it
            await self._check_log()
        finally:
            for client in clients:
                await client.close()

    async def _publish(self, client: CoordinatorClient, store_id: int) -> int:
        await client.put_store(Store(store_id, f"127.0.0.1:{store_id}"))
        self.stores.append(store_id)
        return store_id

    async def _check_log(self) -> None:
        roots = RootClient([record.address for record in self.cluster.role("meta-root")])
        try:
            state = await roots.snapshot()
            lost = [store_id for store_id in self.stores if store_id not in state.stores]
            if lost:
                self.problems.append(f"acknowledged stores are not in the log: {lost[:10]}")
            records = []
            while found := await roots.read(records[-1].token.revision + 1 if records else 0):
                records += found
            verdict = audit(records)
            if not verdict.holds:
                self.problems.append(f"the log fails its audit: {verdict.problems}")
        finally:
            await roots.close()

    # -- rounds -------------------------------------------------------------------------------------------------------
    async def _round(self, number: int) -> None:
        target, stopped = TARGETS[number % 2], number // 2 % 2 == 1
        record = await asyncio.to_thread(self._find, target)
        await asyncio.sleep(self.dice.random())  # anywhere between two renewals
        began = self.machine.now()
        if stopped:
            processes.send_signal(record.pid, record.identity, signal.SIGSTOP)
        else:
            processes.send_signal(record.pid, record.identity, signal.SIGKILL)
        what = f"round {number}: {'SIGSTOP' if stopped else 'kill -9'} of the {target} ({record.name})"
        outage = await self._back(began, what)
        self.outages.append((outage, what))
        print(f"{what}: {outage:.2f} s", flush=True)
        if stopped:
            await asyncio.sleep(max(0.0, began + STOPPED_S - self.machine.now()))
            processes.send_signal(record.pid, record.identity, signal.SIGCONT)
        else:
            await asyncio.to_thread(processes.wait_gone, record.pid, record.identity, GIVE_UP_S)
            await asyncio.to_thread(self.cluster.start, record.name)
        await self._back(self.machine.now(), f"{what}, and it came back")

    async def _back(self, began: float, what: str) -> float:
        """The longest outage of any service."""
        while True:
            outages = [service.outage_since(began) for service in self.services]
            if all(outage is not None for outage in outages):
                return max(outage for outage in outages if outage is not None)
            if self.machine.now() > began + GIVE_UP_S:
                silent = [s.what for s, outage in zip(self.services, outages, strict=True) if outage is None]
                raise AssertionError(f"{what}: no {', '.join(silent)} for {GIVE_UP_S:g} s\nreplay: {self.replay}")
            await asyncio.sleep(0.02)

    def _find(self, target: str) -> ProcessRecord:
        deadline = self.machine.now() + GIVE_UP_S
        while self.machine.now() < deadline:
            for record in self.cluster.role("coordinator" if target == "lease holder" else "meta-root"):
                with contextlib.suppress(NoKVError):
                    if target == "lease holder":
                        with CoordinatorAdmin(record.address, timeout_s=1.0) as coordinator:
                            if coordinator.status().lease_holder:
                                return record
                    else:
                        with RootAdmin(record.address, timeout_s=1.0) as root:
                            if leader := root.status().leader_id:
                                return self.cluster.get(f"meta-root-{leader}")
            time.sleep(0.05)
        raise AssertionError(f"nobody is the {target} for {GIVE_UP_S:g} s")


def run(seed: int, directory: Path, *, rounds: int, back_s: float = BACK_S) -> ControlAdversary:
    adversary = ControlAdversary(directory, seed, rounds=rounds, back_s=back_s)
    print(f"seed {seed}; replay: {adversary.replay}")
    adversary.run()
    return adversary


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="the cluster's directory; it stays")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nokv-control-") as directory:
        adversary = run(options.seed, options.keep or Path(directory) / "c", rounds=options.rounds)
    print(f"{options.rounds} rounds, the longest outage {adversary.worst_s:.2f} s")
    print(", ".join(f"{service.what}: {len(service.acknowledged)} answers" for service in adversary.services))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
