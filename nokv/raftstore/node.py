"""StoreNode: binds directory, raft log, host, transport, store and services into one process with one listening
address.

    start   mode gate, open directory, raft log, peers from localmeta, listen, mode cluster, ready
    stop    tasks, host, answer what waits, transport, server, flush and close the directory

Owns: the order of life, the background thread, the loops that talk to the coordinator (registration, heartbeats,
publishing). None of these loops is needed by the data path: with the coordinator gone the store serves on (RS-17,
RS-20). One thread: the asyncio loop's; exports, digests and verification run on one background thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc.aio

import nokv
from nokv.engine.mode import CLUSTER, STANDALONE, ModeRecord, check_transition, read_mode, write_mode
from nokv.env import Clock, Files
from nokv.env.clock import SystemClock
from nokv.env.files import OsFiles
from nokv.errors import (
    Busy,
    DeadlineExceeded,
    InvariantError,
    ModeError,
    NoKVError,
    PreconditionFailed,
    ReadOnly,
    RetryError,
    Unavailable,
)
from nokv.multiraft.host import MultiRaftHost, exit_process
from nokv.multiraft.raftlog import RaftLog, WalPort
from nokv.multiraft.transport import SERVER_OPTIONS, RaftTransport
from nokv.pb import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc
from nokv.raftstore.client import PeerStores
from nokv.raftstore.control import ControlPort, StoreReport
from nokv.raftstore.diagnostics import PublishState
from nokv.raftstore.membership import MembershipChange
from nokv.raftstore.operations import OperationRunner
from nokv.raftstore.peer import StorePeer
from nokv.raftstore.reporting import LeaderReports
from nokv.raftstore.service import AdminService, KvService
from nokv.raftstore.store import RegionStore, StoreOptions
from nokv.region import Peer, Region, Store
from nokv.rpc.service import add_common_services
from nokv.rpc.tls import Tls
from nokv.rpc.transport import bind

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = ["StoreConfig", "StoreNode"]

logger = logging.getLogger("nokv.raftstore")

CONTROL_TIMEOUT_S = 3.0
PLANNED_PUBLISH_TIMEOUT_S = 2.0
RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0
STOP_GRACE_S = 0.5
LEADERLESS_TICKS_MAX = 30
"""A peer without a leader for so long asks the others whether it is still a member."""
ASK_TIMEOUT_S = 4.0
"""For all the peers of one region together; they are asked at the same time."""
POLL_S = 0.005
CLOCK_LAG_TS = 1 << 18
"""A heartbeat's timestamp is used one millisecond late, so that commits between two heartbeats stay below the next
TSO value."""

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class StoreConfig:
    workdir: str
    store_id: int
    address: str
    """host:port to listen on and to be known by; port 0 = any free one."""
    store_addresses: dict[int, str] = field(default_factory=dict)
    """Other stores that are known beforehand; the coordinator and AddPeer teach the rest."""
    tick_interval_s: float = 0.1
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    heartbeat_interval_s: float = 1.0
    allow_empty: bool = True
    """Turn a fresh directory into an empty store that waits for replicas."""
    options: StoreOptions | None = None
    engine_options: dict[str, Any] = field(default_factory=dict)
    tls: Tls | None = None


class StoreNode:
    """One store. `control` is the coordinator port; None runs without a control plane (tests, embedding)."""

    def __init__(
        self,
        config: StoreConfig,
        control: ControlPort | None = None,
        *,
        files: Files | None = None,
        clock: Clock | None = None,
        dice: random.Random | None = None,
        on_fatal: Callable[[BaseException], None] = exit_process,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.config = config
        self.control = control
        self.files: Files = files if files is not None else OsFiles()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.address = config.address
        self.ready = asyncio.Event()
        self._dice = dice if dice is not None else random.Random()
        self._on_fatal = on_fatal
        self._failpoint = failpoint
        self._peers = PeerStores(tls=config.tls)
        self._db: DB | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._store: RegionStore | None = None
        self._host: MultiRaftHost | None = None
        self._transport: RaftTransport | None = None
        self._server: grpc.aio.Server | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wake_publisher = asyncio.Event()
        self._wake_heartbeat = asyncio.Event()
        self._registered = False
        self._stopped = False
        self._mode = ""
        self._leader_reports = LeaderReports()
        self._leaderless: dict[int, int] = {}
        self._to_ask: dict[int, StorePeer] = {}  # in the order in which they became due
        self._asking: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        self.control_failures = 0
        self.last_control_error = ""
        self.operations = OperationRunner(self._transfer_leader, self.clock)

    # -- what others may look at --------------------------------------------------------------------------------------
    @property
    def store(self) -> RegionStore:
        assert self._store is not None
        return self._store

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def transport(self) -> RaftTransport:
        assert self._transport is not None
        return self._transport

    def regions(self) -> list[Region]:
        """What this store hosts."""
        return [peer.region for peer in self.store.hosted()]

    def stats(self) -> dict[str, Any]:
        store, host = self.store, self._host
        assert host is not None and self._db is not None
        return {
            "store": {
                "store_id": store.store_id,
                "regions": len(store.hosted()),
                "leaders": len(store.leaders()),
                "pending_root_events": len(store.publisher),
                "snapshots_exported": store.snapshots.exports,
                "snapshots_installed": store.snapshots.installs,
                "rejected_entries": sum(peer.rejected_entries for peer in store.router),
                "control_failures": self.control_failures,
            },
            "operations": dict(self.operations.counts),
            "admissions": {
                f"{kind.value}_{outcome.value}": count
                for (kind, outcome), count in sorted(
                    store.diagnostics.admissions.items(), key=lambda item: (item[0][0].value, item[0][1].value)
                )
            },
            "raft": host.stats(),
            "transport": self.transport.stats(),
            "engine": self._db.stats(),
        }

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Returns when the store serves. If it raises, everything is closed again."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        loop = self._loop = asyncio.get_running_loop()
        record = self._mode_gate()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"nokv-store-{config.store_id}")
        self._db = nokv.open(
            config.workdir,
            mode=CLUSTER,
            files=self.files,
            clock=self.clock,
            wal_retainers=("raft",),
            **config.engine_options,
        )
        raftlog = RaftLog.open(cast(WalPort, self._db.wal))
        await self._listen()
        options = config.options or StoreOptions(
            election_ticks=config.election_ticks, heartbeat_ticks=config.heartbeat_ticks
        )
        store = self._store = RegionStore(
            config.store_id,
            self.address,
            self._db,
            raftlog,
            files=self.files,
            clock=self.clock,
            randrange=self._dice.randrange,
            schedule=loop.call_soon,
            background=self._background,
            options=options,
            failpoint=self._failpoint,
        )
        transport = self._transport = RaftTransport(
            config.store_id, lambda number: store.address_of(number) or None, tls=config.tls
        )
        host = self._host = MultiRaftHost(
            raftlog,
            transport,
            loop,
            tick_interval_s=config.tick_interval_s,
            node_of=store.node_of,
            on_unknown_group=store.on_unknown_group,
            on_fatal=self._on_fatal,
            silent_ticks=options.election_ticks,
            beat_ticks=options.heartbeat_ticks,
        )
        transport.attach(host, store.snapshots)
        store.attach(host)
        store.open()
        store.learn_addresses(config.store_addresses)
        store.on_leadership = lambda peer: self._wake_heartbeat.set()
        store.publisher.wake = self._wake_publisher.set
        self._db.on_flush(self._after_flush)
        server = self._server
        assert server is not None
        transport.register(server)
        kv_pb2_grpc.add_KvServicer_to_server(KvService(store), server)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self), server)
        names = [kv_pb2.DESCRIPTOR.services_by_name["Kv"].full_name]
        names += [admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name]
        await add_common_services(server, *names)
        await server.start()
        host.start()
        self._start_task(self._tick_loop())
        if self.control is not None:
            self._start_task(self._heartbeat_loop(self.control))
            self._start_task(self._publish_loop(self.control))
        if record.mode != CLUSTER:  # MIG-23: it serves
            check_transition(record.mode, CLUSTER)
            write_mode(
                config.workdir, ModeRecord(CLUSTER, record.store_id, record.region_id, record.peer_id), self.files
            )
        self._mode = CLUSTER
        store.publish_bootstrap()
        self.ready.set()
        logger.info("store %d serves %d regions on %s", config.store_id, len(self.regions()), self.address)

    def _mode_gate(self) -> ModeRecord:
        """Which directory is this? A fresh one becomes an empty cluster store; a standalone one must be promoted
        first."""
        config, files = self.config, self.files
        record = read_mode(config.workdir, files) if files.exists(config.workdir) else ModeRecord()
        if record.mode == STANDALONE:
            if files.exists(f"{config.workdir}/CURRENT") or files.exists(f"{config.workdir}/wal"):
                raise ModeError(
                    f"{config.workdir} is a standalone directory with data",
                    mode=record.mode,
                    hint=f"promote it first: nokv migrate init --workdir {config.workdir}",
                )
            if not config.allow_empty:
                raise PreconditionFailed(f"{config.workdir} is empty")
            files.makedirs(config.workdir)
            record = ModeRecord(CLUSTER, config.store_id)
            write_mode(config.workdir, record, files)
        if record.role != "store":
            raise ModeError(f"{config.workdir} belongs to a {record.role}", mode=record.mode)
        if record.store_id != config.store_id:
            raise PreconditionFailed(
                f"{config.workdir} belongs to store {record.store_id}, not to store {config.store_id}",
                hint=f"use --store-id {record.store_id}, or another directory",
            )
        self._mode = record.mode
        return record

    async def _listen(self) -> None:
        server = self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self.address = bind(server, self.config.address, self.config.tls)

    async def stop(self) -> None:
        """Orderly (RS-15): nothing is left running or open. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.ready.clear()
        tasks = [*self._tasks, *(task for task in (self._asking, self._flushing) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._host is not None:
            self._host.stop()
        if self._store is not None and self._host is not None:
            self._store.close()
        if self._transport is not None:
            await self._transport.close()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self.control is not None:
            with contextlib.suppress(NoKVError):
                await self.control.close()
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        if self._db is not None:
            if self.failure is None and (self._host is None or self._host.failure is None):
                with contextlib.suppress(NoKVError):
                    self._db.flush()  # the next start then has little to replay
            self._db.close()

    # -- background ---------------------------------------------------------------------------------------------------
    def _background(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        assert self._thread is not None
        loop = asyncio.get_running_loop()

        def finished(future: Any) -> None:
            if self._stopped:
                return
            error = future.exception()
            loop.call_soon_threadsafe(done, None if error else future.result(), error)

        self._thread.submit(work).add_done_callback(finished)

    async def in_thread(self, work: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """DeadlineExceeded(otherwise) if it does not become true in time. For operator calls only: it polls."""
        deadline = self.clock.monotonic_ns() + int(timeout_s * 1e9)
        while not condition():
            if self.clock.monotonic_ns() >= deadline:
                raise DeadlineExceeded(f"{otherwise} within {timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """A loop that ends only with the store: to end earlier, in whatever way, is fatal."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._loop_ended)
        self._tasks.append(task)

    def _start_errand(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that ends by itself; only an exception is fatal."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._errand_ended)
        return task

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._fail(error or InvariantError("a background loop of the store ended"))

    def _errand_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Our own bug: without this loop the store would look ready and not be it. The replicas carry on."""
        if self._stopped or self.failure is not None:
            return
        self.failure = error
        self.ready.clear()
        if self._host is not None:
            self._host.stop()
        logger.critical("a background loop of the store failed", exc_info=error)
        if not isinstance(error, InvariantError):
            wrapped = InvariantError(f"a background loop of the store failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._on_fatal(error)

    def _after_flush(self) -> None:
        """On the engine's thread."""
        loop = self._loop
        if loop is not None and not self._stopped:
            with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
                loop.call_soon_threadsafe(self._flushed)

    def _flushed(self) -> None:
        if not self._stopped:
            self.store.compact_logs()

    # -- loops --------------------------------------------------------------------------------------------------------
    async def _tick_loop(self) -> None:
        """Waits for nothing but the next tick: deadlines and log cutting of every region depend on it."""
        ticks = 0
        while True:
            await asyncio.sleep(self.config.tick_interval_s)
            ticks += 1
            store = self.store
            try:
                store.tick()
            except (Busy, ReadOnly) as error:  # the clearing of removed data has to wait
                if ticks % 50 == 0:
                    logger.warning("the store cannot clear removed data: %s", error)
            if ticks % 50 == 0:
                store.compact_logs()
                if store.logs_need_flush() and (self._flushing is None or self._flushing.done()):
                    self._flushing = self._start_errand(self._flush())
            self._check_leaderless()

    async def _flush(self) -> None:
        assert self._db is not None
        try:
            await self.in_thread(self._db.flush)
        except (Busy, ReadOnly) as error:  # reads go on; the next round tries again
            logger.warning("the store cannot flush to cut its logs: %s", error)

    def _check_leaderless(self) -> None:
        """A peer that was removed while it was away is told by nobody: it has to ask (RS-13)."""
        leaderless = self.store.leaderless()
        self._leaderless = {peer.region_id: self._leaderless.get(peer.region_id, 0) + 1 for peer in leaderless}
        for peer in leaderless:
            if self._leaderless[peer.region_id] % LEADERLESS_TICKS_MAX == 0:
                self._to_ask[peer.region_id] = peer
        if self._to_ask and (self._asking is None or self._asking.done()):
            self._asking = self._start_errand(self._ask_memberships())

    async def _ask_memberships(self) -> None:
        while self._to_ask:
            peer = self._to_ask.pop(next(iter(self._to_ask)))
            if not peer.removed and peer.leader is None:
                await self._ask_membership(peer)

    async def _ask_membership(self, peer: StorePeer) -> None:
        stores = [other.store_id for other in peer.region.peers if other.store_id != self.store.store_id]
        addresses = [address for address in map(self.store.address_of, stores) if address]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_TIMEOUT_S), asyncio.TaskGroup() as asking:
                for address in addresses:
                    asking.create_task(self._ask_store(address, peer))

    async def _ask_store(self, address: str, peer: StorePeer) -> None:
        try:
            found = await self._peers.region(address, peer.region_id)
        except (NoKVError, ValueError):
            return
        if found is not None and not peer.removed:
            self.store.peer_was_removed(found)
            if peer.removed:
                logger.info("peer %d of region %d was removed meanwhile", peer.peer_id, peer.region_id)

    async def _heartbeat_loop(self, control: ControlPort) -> None:
        while True:
            self._wake_heartbeat.clear()
            try:
                await asyncio.wait_for(self._heartbeat(control), CONTROL_TIMEOUT_S)
                self.last_control_error = ""
            except (NoKVError, TimeoutError) as error:
                self._control_failed(error)
            except Exception as error:  # no answer of the control plane may cost the data path (RS-17)
                logger.exception("a heartbeat failed in a way that is not known")
                self._control_failed(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_heartbeat.wait(), self.config.heartbeat_interval_s)

    def _control_failed(self, error: Exception) -> None:
        self.control_failures += 1
        self.last_control_error = str(error) or type(error).__name__

    async def _heartbeat(self, control: ControlPort) -> None:
        store = self.store
        myself = Store(store.store_id, self.address)
        if not self._registered:
            await control.put_store(myself)
            self._registered = True
            self._wake_publisher.set()
        for number in store.unknown_stores():
            found = await control.get_store(number)
            if found is not None:
                store.learn_addresses({number: found.address})
        leaders = store.leaders()
        assert self._db is not None
        outcomes = self.operations.outcomes()
        report = StoreReport(myself, len(store.hosted()), len(leaders), 0, self._mode, tuple(outcomes))
        timestamp, operations = await control.store_heartbeat(report)
        if timestamp > CLOCK_LAG_TS:
            store.tso_hint = max(store.tso_hint, timestamp - CLOCK_LAG_TS)
        self.operations.reported(len(outcomes))
        self.operations.run(operations)
        for reports in self._leader_reports.due(leaders):
            await control.region_heartbeat(reports)
            self._leader_reports.told(reports)

    def _transfer_leader(self, region_id: int, peer_id: int) -> None:
        self.store.transfer_leader(region_id, peer_id)

    async def _publish_loop(self, control: ControlPort) -> None:
        """One event after the other, in order; retried for ever unless the truth plane refuses it."""
        publisher, delay_s = self.store.publisher, RETRY_MIN_S
        while True:
            pending = publisher.next()
            if pending is None or not self._registered:
                self._wake_publisher.clear()
                await self._wake_publisher.wait()
                continue
            try:
                await asyncio.wait_for(control.publish(pending.event), CONTROL_TIMEOUT_S)
            except (Unavailable, RetryError, TimeoutError) as error:
                publisher.failed(pending, str(error) or type(error).__name__, for_good=False)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)
            except NoKVError as error:
                logger.warning("the rooted log refuses %s: %s", pending.event, error)
                publisher.failed(pending, str(error), for_good=True)
            except Exception as error:  # as above: it stays visible as a pending event, and is tried again
                logger.exception("publishing %s failed in a way that is not known", pending.event)
                publisher.failed(pending, str(error) or type(error).__name__, for_good=False)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)
            else:
                publisher.succeeded(pending)
                delay_s = RETRY_MIN_S

    # -- for the admin service ----------------------------------------------------------------------------------------
    async def prepare_target(self, region: Region, peer: Peer, address: str) -> None:
        store = self.store
        addresses = {p.store_id: store.address_of(p.store_id) for p in region.peers}
        addresses = {number: where for number, where in addresses.items() if where}
        addresses[store.store_id] = self.address
        await self._peers.prepare_target(address, region, peer, addresses)
        store.learn_address(peer.store_id, address)

    async def publish_planned(self, change: MembershipChange, region: Region) -> None:
        """Publish the planned change if the coordinator answers; a refusal stops the change, silence does not
        (RS-20). It goes after what already waits to be published: truth refuses a plan for a region that it does not
        know yet."""
        if self.control is None:
            return
        diagnostics = self.store.diagnostics
        try:
            await self.wait_until(
                lambda: not len(self.store.publisher), PLANNED_PUBLISH_TIMEOUT_S, "earlier events were not published"
            )
            await asyncio.wait_for(self.control.publish(change.planned(region)), PLANNED_PUBLISH_TIMEOUT_S)
        except (Unavailable, RetryError, TimeoutError) as error:
            detail = f"planned event not published: {str(error) or type(error).__name__}"
            diagnostics.transition(change.transition_id, publish=PublishState.BLOCKED, detail=detail, attempts=1)
        except NoKVError as error:
            self.store.planned_publish_failed(change, error)
            raise
        else:
            diagnostics.transition(change.transition_id, publish=PublishState.PLANNED_PUBLISHED, attempts=1)
