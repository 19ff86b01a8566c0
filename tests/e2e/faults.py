"""An adversary with real processes (R5): clients write and read while one fault after the other is injected.

    python -m tests.e2e.faults SEED [--seconds 20] [--small] [--keep DIR]

One seed draws the faults and the operations; the scheduling of processes is not drawn, so a seed that fails once may
have to be repeated. `--small` gives the stores tiny write buffers and short logs: flushes, cut logs, snapshots, kill -9
interleave, and at the end every store is killed and must come back with the digest it had.

Limits are in the time that the machine grants (tests/machine_time.py): a run that was stopped for a minute goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nokv
from nokv.cli import processes
from nokv.cli.cluster import _first_start
from nokv.cli.launcher import LocalCluster, ProcessRecord
from nokv.client import AsyncClusterClient
from nokv.client.operator.client import AdminClient, RegionStatus, RootAdmin
from nokv.errors import Indeterminate, NoKVError, PreconditionFailed, Unavailable
from nokv.migrate.expand import expand
from nokv.migrate.remove_peer import remove_peer
from nokv.migrate.rollout import Target, Waiter
from nokv.testing.history import History
from tests.machine_time import MachineTime

REGION = 1
CLIENT_TIMEOUT_S = 3.0
OVERRUN_S = 2.0
"""A call may end this much after its deadline (the machine is busy, the loop shared)."""
RESUME_S = 20.0
"""Writes must be acknowledged again so long after a fault began. Generous: a restart on a busy machine."""
SMALL = "write_buffer_bytes=65536,log_entries_max=60,log_entries_slack=10"


class Adversary:
    def __init__(self, directory: Path, seed: int, *, seconds: float, small: bool, clients: int = 5) -> None:
        self.seed = seed
        self.seconds = seconds
        self.small = small
        self.dice = random.Random(seed)
        self.directory = directory
        self.keys = [b"register-%d" % number for number in range(4)]
        self.clients = clients
        self.history = History()
        self.problems: list[str] = []
        self.log: list[str] = []
        self.slowest_resume_s = 0.0
        self._peer_id = 1000
        self._said_still_s = 0.0
        self.machine = MachineTime()
        self._environment = {"NOKV_STORE_OPTIONS": SMALL} if small else {}
        self.cluster = LocalCluster.create(directory, meta_roots=3, coordinators=1 + seed % 2, stores=3)
        self.cluster.monotonic = self.machine.now

    @property
    def replay(self) -> str:
        small = " --small" if self.small else ""
        return f"python -m tests.e2e.faults {self.seed} --seconds {self.seconds:g}{small}"

    # -- the run ------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """AssertionError with the command that replays it, if anything does not hold."""
        with self._small_stores(), self.machine:
            try:
                _first_start(self.cluster, None, [(number, number * 100 + 1) for number in (1, 2, 3)])
                asyncio.run(self._run())
            except NoKVError as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            finally:
                for record in self.cluster.records:
                    processes.send_signal(record.pid, record.identity, signal.SIGCONT)
                self.cluster.stop_all()
        if self.problems:
            shown = "\n".join([*self.problems, "", *self.log, str(dict(self.history.outcomes))])
            raise AssertionError(f"seed {self.seed}: {shown}\nreplay: {self.replay}")

    @contextlib.contextmanager
    def _small_stores(self) -> Iterator[None]:
        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def say(self, text: str) -> None:
        if self.machine.stood_still_s > self._said_still_s:
            text += f" (the machine stood still for {self.machine.stood_still_s - self._said_still_s:.1f} s)"
            self._said_still_s = self.machine.stood_still_s
        self.log.append(f"{self.machine.now():7.2f} {text}")

    async def _run(self) -> None:
        stop = asyncio.Event()
        workers = [asyncio.create_task(self._client(number, stop)) for number in range(self.clients)]
        try:
            await self._writes_since(self.history.now())
            end = self.machine.now() + self.seconds
            while self.machine.now() < end and not self.problems:
                await self._one_fault()
        finally:
            stop.set()
            await asyncio.gather(*workers)
        if not self.problems:
            await self._final_reads()
            await asyncio.to_thread(self._check_replicas)
        if (why := await asyncio.to_thread(self.history.violation)) is not None:
            self.problems.append(f"history: {why}")

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        dice = random.Random(f"{self.seed}/{number}")
        count = 0
        async with AsyncClusterClient(
            self.cluster.coordinator_addresses, timeout_s=CLIENT_TIMEOUT_S, randrange=dice.randrange
        ) as client:
            while not stop.is_set():
                count += 1
                await self._operation(client, dice, number, count)
                await asyncio.sleep(dice.random() * 0.03)

    async def _operation(self, client: AsyncClusterClient, dice: random.Random, number: int, count: int) -> None:
        key, choice = dice.choice(self.keys), dice.random()
        began = self.machine.now()
        if choice < 0.5:
            call = self.history.begin(key, ("get",), number)
        elif choice < 0.95:
            value = b"%d/%d/" % (number, count) + b"x" * dice.choice([0, 100, 4000 if self.small else 300])
            call = self.history.begin(key, ("put", value), number)
        else:
            call = self.history.begin(key, ("delete",), number)
        try:
            if choice < 0.5:
                self.history.ok(call, await client.get(key))
            elif choice < 0.95:
                await client.put(key, call.operation.argument[1])
                self.history.ok(call)
            else:
                await client.delete(key)
                self.history.ok(call)
        except Indeterminate:
            self.history.unknown(call)
        except NoKVError:
            self.history.refused(call)
        took = self.machine.now() - began
        if took > CLIENT_TIMEOUT_S + OVERRUN_S:
            self.problems.append(
                f"a {call.operation.argument[0]} took {took:.1f} s, its deadline was {CLIENT_TIMEOUT_S}"
            )

    async def _writes_since(self, time_ns: int) -> None:
        deadline = self.machine.now() + RESUME_S
        while not self.history.acknowledged_since(time_ns):
            if self.machine.now() > deadline:
                self.problems.append(f"no write was acknowledged for {RESUME_S:g} s after {self.log[-1:]}")
                return
            await asyncio.sleep(0.02)

    # -- faults -------------------------------------------------------------------------------------------------------
    async def _one_fault(self) -> None:
        faults: list[tuple[int, Callable[[], None]]] = [
            (3, self.kill_leader), (2, self.kill_store), (1, self.kill_coordinator), (1, self.kill_root_leader),
            (3, self.pause_leader), (2, self.transfer), (2, self.move_peer),
        ]  # fmt: skip
        fault = self.dice.choice([fault for weight, fault in faults for _ in range(weight)])
        self.say(fault.__name__)
        began, since = self.history.now(), self.machine.now()
        injecting = asyncio.create_task(asyncio.to_thread(fault))
        await asyncio.sleep(0)
        await self._writes_since(began + 100_000_000)
        resumed_s = self.machine.now() - since
        self.slowest_resume_s = max(self.slowest_resume_s, resumed_s)
        await injecting
        since = self.machine.now()
        await self._writes_since(self.history.now())
        self.say(f"  writes after {resumed_s:.2f} s, and {self.machine.now() - since:.2f} s after it was over")
        for record in self.cluster.records:
            if record.state != "running":
                self.problems.append(f"{record.name} ended by itself after {fault.__name__}; see {record.log}")
        await asyncio.sleep(self.dice.random() * 0.5)

    def leader(self) -> tuple[ProcessRecord, RegionStatus]:
        deadline = self.machine.now() + RESUME_S
        while self.machine.now() < deadline:
            found: list[tuple[int, ProcessRecord, RegionStatus]] = []
            for record in self.cluster.role("store"):
                with contextlib.suppress(NoKVError), AdminClient(record.address, timeout_s=1.0) as store:
                    status = store.region_status(REGION)
                    if status.is_leader:
                        found.append((status.term, record, status))
            if found:
                return max(found, key=lambda each: each[0])[1:]
            time.sleep(0.05)
        raise AssertionError(f"region {REGION} has no leader for {RESUME_S:g} s")

    def _kill(self, name: str) -> None:
        self.cluster.kill(name)
        down_s = self.dice.choice([0.0, 0.3, 1.5])
        self.say(f"  killed {name}, back in {down_s} s")
        time.sleep(down_s)
        self.cluster.start(name)

    def kill_leader(self) -> None:
        self._kill(self.leader()[0].name)

    def kill_store(self) -> None:
        self._kill(self.dice.choice(self.cluster.role("store")).name)

    def kill_coordinator(self) -> None:
        self._kill(self.dice.choice(self.cluster.role("coordinator")).name)

    def kill_root_leader(self) -> None:
        for record in self.cluster.role("meta-root"):
            with contextlib.suppress(NoKVError), RootAdmin(record.address) as root:
                if leader := root.status().leader_id:
                    self._kill(f"meta-root-{leader}")
                    return

    def pause_leader(self) -> None:
        record, _ = self.leader()
        paused_s = 1.0 + self.dice.random() * 2.0
        self.say(f"  SIGSTOP {record.name} for {paused_s:.2f} s")
        processes.send_signal(record.pid, record.identity, signal.SIGSTOP)
        try:
            time.sleep(paused_s)
        finally:
            processes.send_signal(record.pid, record.identity, signal.SIGCONT)

    def transfer(self) -> None:
        record, status = self.leader()
        assert status.region is not None
        others = [peer for peer in status.region.peers if peer.peer_id != status.local_peer_id]
        target = self.dice.choice(others)
        self.say(f"  leadership to store {target.store_id}")
        try:
            with AdminClient(record.address) as store:
                store.transfer_leader(REGION, target.peer_id, 3.0)
        except NoKVError as error:
            self.say(f"  {type(error).__name__}: {error}")

    def move_peer(self) -> None:
        """Remove one replica, add it again under a new id; its process may be killed while it installs the snapshot."""
        record, status = self.leader()
        assert status.region is not None
        victim = self.dice.choice([peer for peer in status.region.peers if peer.peer_id != status.local_peer_id])
        target = self.cluster.get(f"store-{victim.store_id}")
        delay_s = self.dice.choice([None, 0.0, 0.05, 0.15, 0.4])
        self._peer_id += 1
        self.say(f"  store {victim.store_id}: peer {victim.peer_id} leaves, {self._peer_id} comes, killed {delay_s}")
        command = "(by the adversary)"
        waiter = Waiter(30.0, 0.05, monotonic=self.machine.now)
        try:
            self._finish(partial(
                remove_peer,
                record.address, REGION, victim.peer_id, command=command, target_address=target.address, waiter=waiter,
            ))  # fmt: skip
        except PreconditionFailed as error:  # elections are not drawn: the victim may have become the leader
            _, status = self.leader()
            if status.local_peer_id != victim.peer_id:
                raise
            self.say(f"  {error}")
            return
        targets = [Target(victim.store_id, self._peer_id, target.address)]

        def add() -> None:
            with contextlib.suppress(NoKVError):  # its target dies; below it is repeated, and must succeed
                expand(
                    record.address,
                    REGION,
                    targets,
                    command=command,
                    waiter=Waiter(5.0, 0.05, monotonic=self.machine.now),
                )

        if delay_s is not None:
            adding = threading.Thread(target=add)
            adding.start()
            time.sleep(delay_s)
            self.cluster.kill(target.name)
            self.cluster.start(target.name)
            adding.join()
        self._finish(partial(expand, record.address, REGION, targets, command=command, waiter=waiter))

    def _finish(self, verb: Callable[[], object]) -> None:
        """Again until it is done, as its hint says: the region may be without a leader, calls may run out."""
        deadline = self.machine.now() + RESUME_S
        while True:
            try:
                verb()
                return
            except Unavailable as error:
                if self.machine.now() > deadline:
                    raise
                self.say(f"  again: {type(error).__name__}: {error}")
            time.sleep(0.1)  # an operator's pause between two tries, not a guess about time

    # -- afterwards ---------------------------------------------------------------------------------------------------
    async def _final_reads(self) -> None:
        async with AsyncClusterClient(self.cluster.coordinator_addresses, timeout_s=RESUME_S) as client:
            for key in self.keys:
                await self._final_read(client, key)

    async def _final_read(self, client: AsyncClusterClient, key: bytes) -> None:
        deadline = self.machine.now() + RESUME_S
        while True:
            call = self.history.begin(key, ("get",))
            try:
                self.history.ok(call, await client.get(key))
                return
            except Unavailable:
                if self.machine.now() > deadline:
                    raise

    def _check_replicas(self) -> None:
        before = self._digests()
        if len(set(before.values())) != 1 or len(before) != 3:
            self.problems.append(f"replicas differ: {before}")
        if self.small:
            for record in self.cluster.role("store"):
                self.cluster.kill(record.name)
            for record in self.cluster.role("store"):
                self.cluster.start(record.name, wait=False)
            self.cluster.wait_ready([record.name for record in self.cluster.role("store")])
            after = self._digests()
            if after != before:
                self.problems.append(f"after kill -9 of all stores the digests are {after}, before {before}")

    def _digests(self) -> dict[str, str]:
        deadline = self.machine.now() + RESUME_S
        while True:
            _, status = self.leader()
            found: dict[str, str] = {}
            try:
                for record in self.cluster.role("store"):
                    with AdminClient(record.address) as store:
                        found[record.name] = store.digest(REGION, status.commit_index, timeout_s=10.0).digest
                return found
            except NoKVError as error:
                if self.machine.now() > deadline:
                    self.problems.append(f"no digest: {error}")
                    return found
                time.sleep(0.1)


def run(seed: int, directory: Path, *, seconds: float, small: bool) -> Adversary:
    adversary = Adversary(directory, seed, seconds=seconds, small=small)
    print(f"seed {seed}; replay: {adversary.replay}")
    adversary.run()
    return adversary


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--keep", type=Path, help="the cluster's directory; it stays")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nokv-faults-") as directory:
        adversary = run(
            options.seed, options.keep or Path(directory) / "c", seconds=options.seconds, small=options.small
        )
    print("\n".join(adversary.log))
    print(
        f"nokv {nokv.__version__}: {dict(adversary.history.outcomes)};"
        f" slowest resume {adversary.slowest_resume_s:.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
