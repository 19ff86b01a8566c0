"""Whole stores on one thread: real engine, real Raft, simulated network and time. For the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nokv
from nokv._ext import command
from nokv.engine.mode import CLUSTER, ModeRecord, write_mode
from nokv.env.files import OsFiles
from nokv.errors import NoKVError
from nokv.multiraft.host import MultiRaftHost
from nokv.multiraft.raftlog import RaftLog
from nokv.raftstore import bootstrap
from nokv.raftstore.digest import region_digest
from nokv.raftstore.membership import ChangeKind
from nokv.raftstore.peer import StorePeer
from nokv.raftstore.store import RegionStore, StoreOptions
from nokv.region import Peer, PeerRole, Region
from nokv.testing.executor import StepExecutor
from nokv.testing.network import SimLoop, SimNetwork

TICK_S = 0.1


class SimStore:
    """One store's process: `start` opens the directory, `crash` forgets everything that is not in it."""

    def __init__(self, sim: Sim, store_id: int, workdir: Path) -> None:
        self.sim = sim
        self.store_id = store_id
        self.workdir = str(workdir)
        self.fatal: BaseException | None = None
        self.failpoints: dict[str, Exception] = {}
        self.alive = False
        self.may_die = False
        self.options = StoreOptions()

    def start(self) -> None:
        sim, files = self.sim, OsFiles()
        self.db = nokv.open(self.workdir, mode=CLUSTER, executor=StepExecutor(), wal_retainers=("raft",))
        self.raftlog = RaftLog.open(self.db.wal)
        self.store = RegionStore(
            self.store_id,
            f"store-{self.store_id}",
            self.db,
            self.raftlog,
            files=files,
            clock=sim.loop.clock,
            randrange=sim.dice.randrange,
            schedule=sim.loop.call_soon,
            background=self._background,
            options=self.options,
            failpoint=self._failpoint,
        )
        endpoint = sim.network.endpoint(self.store_id)
        self.host = MultiRaftHost(
            self.raftlog,
            endpoint,
            sim.loop,
            tick_interval_s=TICK_S,
            node_of=self.store.node_of,
            on_unknown_group=self.store.on_unknown_group,
            on_fatal=self._on_fatal,
        )
        endpoint.attach(self.host, self.store.snapshots)
        self.store.attach(self.host)
        self.store.open()
        self.host.start()
        self.alive = True
        self._tick(self.host)

    def _tick(self, host: MultiRaftHost) -> None:
        if self.alive and self.host is host:
            self.store.tick()
            self.check_lists()
            self.sim.loop.call_later(TICK_S, self._tick, host)

    def _background(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        def run() -> None:
            if not self.alive:
                return
            try:
                result = work()
            except Exception as error:
                done(None, error)
            else:
                done(result, None)

        self.sim.loop.call_later(0.01, run)

    def _failpoint(self, name: str) -> None:
        if name in self.failpoints:
            raise self.failpoints.pop(name)

    def _on_fatal(self, error: BaseException) -> None:
        self.fatal = error
        if not self.may_die:
            raise error

    def crash(self) -> None:
        """What was in memtables without a log record is gone; the WAL file has what was written to it."""
        self.alive = False
        self.host.stop()
        self.sim.network.kill(self.store_id)
        self.db.close()

    def restart(self) -> None:
        self.crash()
        self.start()

    def check_lists(self) -> None:
        """What the store keeps up to date is what a walk over all peers would find."""
        peers = [peer for peer in self.store.router if peer.hosted]
        ids = [sorted(peer.region_id for peer in found) for found in (self.store.leaders(), self.store.leaderless())]
        assert ids[0] == sorted(peer.region_id for peer in peers if peer.is_leader)
        assert ids[1] == sorted(peer.region_id for peer in peers if peer.leader is None)

    def peer(self, region_id: int = 1) -> StorePeer:
        return self.store.router.hosted(region_id)

    def hosts(self, region_id: int = 1) -> bool:
        peer = self.store.router.find(region_id)
        return peer is not None and peer.hosted

    def digest(self, region_id: int = 1) -> str:
        return region_digest(self.db, self.peer(region_id).region).digest


class Sim:
    def __init__(self, directory: Path, *, seed: int = 1, loss: float = 0.0) -> None:
        print(f"seed {seed}")
        self.directory = directory
        self.dice = random.Random(seed)
        self.loop = SimLoop()
        self.network = SimNetwork(self.loop, seed=seed, loss=loss)
        self.stores: dict[int, SimStore] = {}
        self._request_id = 0

    def seed(self, pairs: dict[bytes, bytes], *, store_id: int = 1, peer_id: int = 101) -> SimStore:
        """A directory that a program filled, promoted in place."""
        workdir = self.directory / f"store-{store_id}"
        with nokv.open(workdir) as db:
            db.put_many(pairs.items())
        region = Region(1, peers=(Peer(peer_id, store_id),))
        with nokv.open(workdir, wal_retainers=("raft",)) as db:
            bootstrap.write_seed_catalog(db, region, store_id)
            bootstrap.init_raft_seed(db, region)
            bootstrap.check_raft_seed(db, region)
        write_mode(str(workdir), ModeRecord("seeded", store_id, 1, peer_id), OsFiles())
        return self._add(store_id, workdir)

    def empty(self, store_id: int) -> SimStore:
        workdir = self.directory / f"store-{store_id}"
        workdir.mkdir()
        write_mode(str(workdir), ModeRecord(CLUSTER, store_id), OsFiles())
        return self._add(store_id, workdir)

    def _add(self, store_id: int, workdir: Path) -> SimStore:
        store = self.stores[store_id] = SimStore(self, store_id, workdir)
        store.start()
        return store

    def leader(self, region_id: int = 1) -> SimStore:
        def leading() -> list[SimStore]:
            return [
                s for s in self.stores.values() if s.alive and s.hosts(region_id) and s.peer(region_id).serves_own_term
            ]

        self.loop.run_until(lambda: bool(leading()))
        return max(leading(), key=lambda s: s.peer(region_id).term)

    def submit(self, at: SimStore, *, write: bool, commands: bytes, **changes: Any) -> list[Any]:
        """The answer appears in the returned list: (error, results, commit_ts)."""
        answer: list[Any] = []
        self._request_id += 1
        region = at.peer().region if at.hosts() else Region(1)
        fields: dict[str, Any] = {"region_id": 1, "store_id": at.store_id, "epoch": region.epoch} | changes
        at.store.submit(
            request_id=self._request_id,
            write=write,
            commands=commands,
            reply=lambda request, error, results, ts: answer.append((error, results, ts)),
            **fields,
        )
        return answer

    def call(self, at: SimStore, *, write: bool, commands: bytes, **changes: Any) -> tuple[bytes, int]:
        answer = self.submit(at, write=write, commands=commands, **changes)
        self.loop.run_until(lambda: bool(answer))
        error, results, ts = answer[0]
        if error is not None:
            raise error
        return results, ts

    def put(self, pairs: dict[bytes, bytes | None], at: SimStore | None = None) -> int:
        at = at or self.leader()
        return self.call(at, write=True, commands=command.pack_writes(list(pairs.items())))[1]

    def get(self, keys: list[bytes], at: SimStore | None = None, ts: int = 0) -> list[Any]:
        at = at or self.leader()
        return command.unpack_results(self.call(at, write=False, commands=command.pack_gets(keys), read_ts=ts)[0])

    def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 0, **options: Any) -> Any:
        packed = command.pack_scan(start, end, limit, **options)
        return command.unpack_results(self.call(self.leader(), write=False, commands=packed)[0])[0]

    def change(self, kind: ChangeKind, peer: Peer, address: str = "") -> Region:
        """One membership change through the leader, as the admin service makes it."""
        outcome: list[tuple[NoKVError | None, Region | None]] = []
        at = self.leader()
        change = at.store.plan(1, kind, peer, address)
        at.store.change(change, 1, 10_000, lambda error, region: outcome.append((error, region)))
        self.loop.run_until(lambda: bool(outcome))
        error, region = outcome[0]
        if error is not None:
            raise error
        assert region is not None
        return region

    def expand(self, store_id: int, peer_id: int) -> None:
        target = self.stores[store_id]
        peer = Peer(peer_id, store_id, PeerRole.LEARNER)
        region = self.leader().peer().region
        addresses = {p.store_id: f"store-{p.store_id}" for p in region.peers}
        target.store.prepare_target(region, peer, addresses)
        self.change(ChangeKind.ADD_LEARNER, peer, f"store-{store_id}")
        self.loop.run_until(target.hosts)
        applied = self.leader().peer().applied.index
        self.loop.run_until(lambda: target.peer().applied.index >= applied)
        self.loop.run_for(0.5)
        self.change(ChangeKind.PROMOTE, Peer(peer_id, 0))

    def settle(self) -> None:
        """Everybody that lives has applied the same."""

        def even() -> bool:
            found = {s.peer().applied.index for s in self.stores.values() if s.alive and s.hosts()}
            return len(found) == 1

        self.loop.run_until(even)

    def check(self) -> None:
        for store in self.stores.values():
            if store.alive:
                assert store.fatal is None, store.fatal
                for peer in store.store.router:
                    peer.check()

    def close(self) -> None:
        for store in self.stores.values():
            if store.alive:
                store.crash()
