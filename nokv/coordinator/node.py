"""One coordinator at work: follow the rooted log, compete for the lease, hand out ids and timestamps, answer routes.

Two tasks on the event loop, and otherwise plain methods over plain values:

    follow     the tail of the rooted log into the view (and into the lease competitor's eyes)
    compete    one append at a time: the next step of the lease, or new windows for the allocators

Nothing durable is here. Stop it, start another one, and it knows the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from nokv.coordinator.id_alloc import ID_COUNT_MAX, IdAllocator
from nokv.coordinator.lease import LeaseCompetitor, LeaseStep, LeaseTerms, LeaseView, StepKind
from nokv.coordinator.scheduler import Operation, Scheduler
from nokv.coordinator.tso import TSO_COUNT_MAX, TsoAllocator
from nokv.coordinator.view import ClusterView, Route
from nokv.env.ports import Clock
from nokv.errors import (
    DeadlineExceeded,
    InvariantError,
    NoKVError,
    NotFound,
    NotLeader,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.events import (
    NO_TOKEN,
    Allocator,
    AllocatorFenced,
    EventKind,
    RegionTombstoned,
    RootEvent,
    RootToken,
    StoreJoined,
    event_kind,
)
from nokv.metaroot.ports import RootLog
from nokv.metaroot.wire import Assessment
from nokv.region import Peer, Region, Store, StoreState

__all__ = ["CatchUp", "CoordinatorNode", "Degraded", "Freshness", "NotLeaseHolder", "Published"]

log = logging.getLogger("nokv.coordinator")

ROOT_SILENCE_NS = 2_000_000_000
"""The tail says something twice a second; without news for this long the truth counts as out of reach."""

LAGGING_REVISIONS = 100
PUBLISHABLE = frozenset(k for k in EventKind if k < 40 and k is not EventKind.ALLOCATOR_FENCED)
"""Only the lease holder itself writes fences and lease events."""


class Freshness(Enum):
    BEST_EFFORT = "best-effort"  # what is here, and how old it may be
    BOUNDED = "bounded"  # refused if the truth is out of reach or more than `max_lag` revisions ahead
    STRONG = "strong"  # everything acknowledged before the call


class Degraded(Enum):
    HEALTHY = "healthy"
    COORDINATOR_DEGRADED = "coordinator-degraded"  # no coordinator holds the lease: no ids, no timestamps
    ROOT_LAGGING = "root-lagging"
    ROOT_UNAVAILABLE = "root-unavailable"  # no news of the truth for two seconds; a holder may still be serving
    VIEW_ONLY = "view-only"  # for longer than any lease lasts: nobody serves ids or timestamps, only views are left


class CatchUp(Enum):
    """Where this view stands against the newest token that it has heard of."""

    BOOTSTRAPPING = "bootstrapping"  # nothing is known yet
    CATCHING_UP = "catching-up"
    CURRENT = "current"
    STALLED = "stalled"  # no news: whether there is more to know is not known


class NotLeaseHolder(NotLeader):
    """This coordinator stands by. `address`: who holds the lease, if known."""


@dataclass(slots=True)
class Published:
    token: RootToken
    already: bool


class CoordinatorNode:
    """`start` and `stop` once each; everything on one event loop."""

    def __init__(
        self,
        root: RootLog,
        clock: Clock,
        *,
        coordinator_id: str,
        address: str,
        incarnation: str,
        terms: LeaseTerms,
        take_over_own: bool = False,
        id_start: int = 1,
        ts_start: int = 1,
        id_window: int = 1_000,
        tso_window_ms: int = 3_000,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.view = ClusterView()
        self.scheduler = scheduler if scheduler is not None else Scheduler()
        self.lease = LeaseCompetitor(coordinator_id, address, incarnation, terms, take_over_own=take_over_own)
        self.reads_served = 0
        self._root = root
        self._clock = clock
        self._id_start = id_start
        self._ts_start = ts_start
        self._ids = IdAllocator(window=id_window)
        self._tso = TsoAllocator(window_ms=tso_window_ms)
        self._ids_wanted = 0
        self._era = 0  # the era that the allocators belong to
        self._heard_ns = -ROOT_SILENCE_NS
        self._changed = asyncio.Event()  # set, and replaced, when the view, the lease or a window moved
        self._kick = asyncio.Event()  # the compete task has something to do
        self._tasks: list[asyncio.Task[None]] = []
        self._abandoned = False
        self._stopping = False
        self.failure: BaseException | None = None

    @property
    def coordinator_id(self) -> str:
        return self.lease.coordinator_id

    # -- life ---------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(self._follow)), loop.create_task(self._run(self._compete))]

    async def stop(self) -> None:
        """Stop serving at once, tell the log (so that nobody has to wait), and end."""
        step = self.lease.release()
        await self._end_tasks()
        self._notify()
        if step is not None and not self._abandoned:
            try:
                await self._append(step.events, timeout_s=1.0)
            except NoKVError as error:
                log.info("the lease was not released, it will run out: %s", error)

    async def abandon(self) -> None:
        """End as a crash would: no word to anybody."""
        await self._end_tasks()
        self.lease.release()
        self._abandoned = True

    async def _end_tasks(self) -> None:
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        """The outermost loop of a task: what nobody expected is shown, and the task begins again."""
        while not self._stopping:
            try:
                await work()
            except InvariantError as error:
                self.failure = error
                log.exception("the view does not follow the log; it is rebuilt")
                self.view = ClusterView()
            except Exception:  # the outermost loop of a server
                log.exception("a task of the coordinator failed; it starts again")
            await asyncio.sleep(0.2)

    # -- following the truth ------------------------------------------------------------------------------------------
    async def _follow(self) -> None:
        revision = self.view.served.revision if self.view.known else 0
        async for update in self._root.tail(revision):
            if self._stopping:
                return
            if update.state is not None:
                self.view.reset(update.state)
            else:
                self.view.advance(update.records)
            self.view.heard_of(update.last)
            self._heard_ns = self._clock.monotonic_ns()
            self.lease.observe(LeaseView.of(self.view.truth), self._heard_ns)
            self._notify()
            self._kick.set()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until_seen(self, revision: int, timeout_s: float) -> bool:
        """Wait until the view has folded `revision`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.view.served.revision < revision:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # -- the lease ----------------------------------------------------------------------------------------------------
    async def _compete(self) -> None:
        while not self._stopping:
            self._kick.clear()
            now = self._clock.monotonic_ns()
            try:
                progress = await self._turn(now)
            except PreconditionFailed as error:
                log.debug("the log has moved on: %s", error)
                progress = False  # the tail will show how
            except (Unavailable, NotLeader) as error:
                log.info("meta-root out of reach: %s", error)
                progress = False
                await asyncio.sleep(0.05)
            if not progress:
                await self._idle()

    async def _idle(self) -> None:
        """Until something was observed or asked for, or the lease needs attention, or a window runs low."""
        now = self._clock.monotonic_ns()
        wait_ns = min(max(self.lease.wake_at_ns(now) - now, 10_000_000), self._tso.window_ms * 250_000)
        try:
            async with asyncio.timeout(wait_ns / 1e9):  # not wait_for: in 3.11 it may swallow a cancellation
                await self._kick.wait()
        except TimeoutError:
            pass

    async def _turn(self, now: int) -> bool:
        """One append at most. True if there may be more to do at once."""
        step = self.lease.decide(now, self._clock.time_ms())
        if step is not None and step.kind is StepKind.CONFIRM:
            assert self.lease.view is not None
            if self.view.served.revision < self.lease.view.revision:
                return False  # the ids in use are not all known yet
            step = self.lease.decide(
                now,
                self._clock.time_ms(),
                id_start=max(self._id_start, self.view.largest_id + 1),
                tso_start=self._ts_start,
            )
        if step is not None:
            await self._take(step)
            return True
        return await self._refill(now)

    async def _take(self, step: LeaseStep) -> None:
        sent = self._clock.monotonic_ns()
        self.lease.sent(step, sent)
        state = await self._append(step.events, expected_revision=step.expected_revision)
        self.lease.acknowledged(step, sent)
        self.lease.observe(state, self._clock.monotonic_ns())
        if step.kind is not StepKind.RENEW:
            log.info("lease: %s era %d", step.kind.value, step.era)
        self._notify()

    async def _append(
        self, events: Sequence[RootEvent], *, expected_revision: int = 0, timeout_s: float | None = None
    ) -> LeaseView:
        limit = self.lease.terms.ttl_ms / 4_000 if timeout_s is None else timeout_s
        appended = await self._root.append(
            events,
            expected_revision=expected_revision,
            author=self.coordinator_id,
            time_ms=self._clock.time_ms(),
            timeout_s=limit,
        )
        return LeaseView.of(appended.state)

    async def _refill(self, now: int) -> bool:
        era = self.lease.serving(now)
        if not era:
            return False
        view = self.lease.view
        assert view is not None
        if era != self._era:
            self._era = era
            self._tso.begin(view.tso_fence, now, self._clock.time_ms())
            self._ids.begin(view.id_fence)
        tso_fence = self._tso.next_fence(now, self._clock.time_ms())
        self._ids.skip_to(self.view.largest_id + 1)
        id_fence = self._ids.next_fence(self._ids_wanted)
        events: list[RootEvent] = []
        if tso_fence is not None:
            events.append(AllocatorFenced(Allocator.TSO, tso_fence, era))
        if id_fence is not None:
            events.append(AllocatorFenced(Allocator.ID, id_fence, era))
        if not events:
            return False
        state = await self._append(events)
        if tso_fence is not None:
            self._tso.extend(tso_fence)
        if id_fence is not None:
            self._ids.extend(id_fence)
            self._ids_wanted = 0
        self.lease.observe(state, self._clock.monotonic_ns())
        self._notify()
        return True

    def holds_lease(self) -> bool:
        return self.lease.serving(self._clock.monotonic_ns()) != 0

    def _serving_or_raise(self, now: int) -> int:
        era = self.lease.serving(now)
        if not era:
            lease = self.view.truth.lease
            other = lease is not None and lease.holder != self.coordinator_id
            who = f"{lease.holder} does" if lease is not None and other else "nobody is known to"
            raise NotLeaseHolder(
                f"{self.coordinator_id} does not hold the lease; {who}",
                address=lease.address if lease is not None and other else "",
            )
        return era

    # -- ids and timestamps -------------------------------------------------------------------------------------------
    async def alloc_id(self, count: int, *, timeout_s: float = 2.0) -> tuple[int, int]:
        """(first id, era). Raises NotLeaseHolder; DeadlineExceeded if no window could be fenced in time."""
        if not 0 < count <= ID_COUNT_MAX:
            raise UsageError(f"between 1 and {ID_COUNT_MAX} ids at a time, not {count}")
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    era = self._serving_or_raise(self._clock.monotonic_ns())
                    self._ids.skip_to(self.view.largest_id + 1)
                    first = self._ids.take(count) if era == self._era else None
                    if self._ids.next_fence() is not None:
                        self._kick.set()
                    if first is not None:
                        return first, era
                    self._ids_wanted = max(self._ids_wanted, count)
                    self._kick.set()
                    await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceeded("no window of ids could be fenced in time") from None

    def try_tso(self, count: int) -> tuple[int, int] | None:
        """(first timestamp, era), or None while there is no window. One reading of the clock decides both whether the
        lease holds and what is handed out."""
        now = self._clock.monotonic_ns()
        era = self._serving_or_raise(now)
        first = self._tso.take(count, now) if era == self._era else None
        return None if first is None else (first, era)

    async def tso(self, count: int, *, timeout_s: float = 2.0) -> tuple[int, int]:
        """(first timestamp, era). Raises NotLeaseHolder; DeadlineExceeded if no window could be fenced in time."""
        if not 0 < count <= TSO_COUNT_MAX:
            raise UsageError(f"between 1 and {TSO_COUNT_MAX} timestamps at a time, not {count}")
        found = self.try_tso(count)
        if found is not None:
            return found
        try:
            async with asyncio.timeout(timeout_s):
                while found is None:
                    self._kick.set()
                    await self._changed.wait()
                    found = self.try_tso(count)
        except TimeoutError:
            raise DeadlineExceeded("no window of timestamps could be fenced in time") from None
        return found

    def recent_timestamp(self) -> int:
        """For heartbeats: a timestamp of now, or 0 from a standby."""
        now = self._clock.monotonic_ns()
        if not self._era or self.lease.serving(now) != self._era:
            return 0
        found = self._tso.take(1, now)
        if found is None:
            self._kick.set()
        return found or 0

    # -- truth --------------------------------------------------------------------------------------------------------
    async def publish(self, events: Sequence[RootEvent], *, timeout_s: float = 4.0) -> Published:
        """Append what a store reports. Returns once it is durable, and if possible once this view shows it."""
        self._check_publishable(events)
        appended = await self._root.append(
            events, author=self.coordinator_id, time_ms=self._clock.time_ms(), timeout_s=timeout_s
        )
        token = appended.records[-1].token if appended.records else appended.state.last
        await self._until_seen(token.revision, 0.5)
        return Published(token, appended.already)

    @staticmethod
    def _check_publishable(events: Sequence[RootEvent]) -> None:
        for event in events:
            if event_kind(event) not in PUBLISHABLE:
                raise UsageError(f"{event_kind(event).name} is not published through a coordinator")

    async def assess(self, events: Sequence[RootEvent], *, expected_revision: int = 0) -> Assessment:
        """What `publish` would answer, against the truth itself and not this view; nothing is written. Raises
        Unavailable if the truth is out of reach: an older view would not do."""
        try:
            self._check_publishable(events)
        except UsageError as error:
            return Assessment("refused", self.view.served, error)
        return await self._root.assess(events, expected_revision=expected_revision, timeout_s=2.0)

    async def put_store(self, store: Store) -> Published:
        return await self.publish([StoreJoined(store)])

    async def remove_region(self, region_id: int) -> Published:
        region = self.view.truth.regions.get(region_id)
        if region is None:
            raise NotFound(f"no region {region_id}")
        return await self.publish([RegionTombstoned(region)])

    # -- heartbeats: views --------------------------------------------------------------------------------------------
    def store_heartbeat(
        self,
        store: Store,
        *,
        region_count: int,
        leader_count: int,
        used_bytes: int,
        mode: str,
        outcomes: Sequence[tuple[int, str]] = (),
    ) -> tuple[int, list[Operation]]:
        """Returns (a recent timestamp or 0, what the store should do: nothing, unless we hold the lease)."""
        known = self.view.truth.stores.get(store.store_id)
        if known is not None and known.state is StoreState.TOMBSTONE:
            raise PreconditionFailed(f"store {store.store_id} has left for good")
        now = self._clock.monotonic_ns()
        self.view.store_heartbeat(
            store.store_id,
            region_count=region_count,
            leader_count=leader_count,
            used_bytes=used_bytes,
            mode=mode,
            now_ns=now,
            now_ms=self._clock.time_ms(),
        )
        operations: list[Operation] = []
        era = self.lease.serving(now)
        if era:
            self.scheduler.begin(era)
            self.scheduler.outcomes_reported(outcomes, now)
            operations = self.scheduler.operations_for(store.store_id, self.view, now, self._clock.time_ms())
        return self.recent_timestamp(), operations

    def region_heartbeat(self, region: Region, leader: Peer, *, term: int, applied_index: int) -> None:
        now = self._clock.monotonic_ns()
        if self.view.region_heartbeat(region, leader, term=term, applied_index=applied_index, now_ns=now):
            self.scheduler.leader_reported(region.region_id, leader.store_id, now)

    # -- routes -------------------------------------------------------------------------------------------------------
    def degraded(self) -> Degraded:
        now = self._clock.monotonic_ns()
        silent_ns = now - self._heard_ns
        if silent_ns > ROOT_SILENCE_NS or not self.view.known:
            if not self.view.known:
                return Degraded.ROOT_UNAVAILABLE
            known = self.view.truth.lease
            lease_ms = known.lease_ttl_ms if known is not None else 0
            return Degraded.VIEW_ONLY if silent_ns > lease_ms * 1_000_000 else Degraded.ROOT_UNAVAILABLE
        if self.view.lag > LAGGING_REVISIONS:
            return Degraded.ROOT_LAGGING
        lease = self.view.truth.lease
        if lease is None or not lease.confirmed or lease.released:
            return Degraded.COORDINATOR_DEGRADED
        if lease.era == self._era and not self.lease.serving(now):
            return Degraded.COORDINATOR_DEGRADED
        return Degraded.HEALTHY

    def catch_up(self) -> CatchUp:
        if not self.view.known:
            return CatchUp.BOOTSTRAPPING
        if self._clock.monotonic_ns() - self._heard_ns > ROOT_SILENCE_NS:
            return CatchUp.STALLED
        return CatchUp.CATCHING_UP if self.view.lag else CatchUp.CURRENT

    async def ensure(
        self,
        freshness: Freshness,
        *,
        at_least: RootToken = NO_TOKEN,
        max_lag: int = 0,
        timeout_s: float = 2.0,
    ) -> None:
        """Make the view as fresh as asked, or raise Unavailable: never a silent downgrade (CO-14)."""
        self.reads_served += 1
        needed = at_least.revision
        if freshness is Freshness.STRONG:
            state = await self._root.snapshot(linearizable=True, without_catalog=True, timeout_s=timeout_s)
            self.view.heard_of(state.last)
            needed = max(needed, state.last.revision)
        if not self.view.known and not await self._until_seen(max(needed, 1), timeout_s) and not self.view.known:
            raise Unavailable("this coordinator has not heard from any meta-root yet")
        if self.view.served.revision < needed and not await self._until_seen(needed, timeout_s):
            raise Unavailable(f"the view is at revision {self.view.served.revision}, asked for {needed}")
        if freshness is Freshness.BOUNDED:
            if self._clock.monotonic_ns() - self._heard_ns > ROOT_SILENCE_NS:
                raise Unavailable("the meta-root is out of reach: a bounded read cannot tell how old it would be")
            if self.view.lag > max_lag and not await self._until_seen(self.view.current.revision - max_lag, timeout_s):
                raise Unavailable(f"the view lags {self.view.lag} revisions, more than {max_lag}")

    def route_by_key(self, key: bytes) -> Route:
        route = self.view.route_by_key(key)
        if route is None:
            raise NotFound(f"no region covers the key {key[:64]!r}")
        return route

    def route_by_id(self, region_id: int) -> Route:
        route = self.view.route_by_id(region_id)
        if route is None:
            raise NotFound(f"no region {region_id}")
        return route

    # -- what operators see -------------------------------------------------------------------------------------------
    def figures(self) -> dict[str, object]:
        lease = self.view.truth.lease
        return {
            "coordinator_id": self.coordinator_id,
            "address": self.lease.address,
            "lease_holder": self.holds_lease(),
            "era": lease.era if lease is not None else self.view.truth.era,
            "holder": lease.holder if lease is not None else "",
            "degraded": self.degraded().value,
            "catch_up": self.catch_up().value,
            "served_revision": self.view.served.revision,
            "root_lag": self.view.lag,
            "regions": len(self.view.truth.ranges),
            "stores": len(self.view.truth.stores),
            "reads_served": self.reads_served,
            "id_next": self._ids.next,
            "tso_last": self._tso.last,
            "operations_pending": len(self.scheduler.pending),
            "operations_issued": self.scheduler.issued,
            "operations_ended": dict(self.scheduler.ended),
        }
