"""Clients of a simulated control plane: they use the real clients, keep asking, and hold the answers to their word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from nokv.coordinator.client import CoordinatorClient
from nokv.coordinator.node import Freshness
from nokv.errors import Busy, DeadlineExceeded, Indeterminate, NotFound, NotLeader, PreconditionFailed, Unavailable
from nokv.metaroot.client import RootClient
from nokv.metaroot.events import (
    NO_TOKEN,
    PeerAdded,
    PeerAdditionCancelled,
    PeerAdditionPlanned,
    PeerRemovalPlanned,
    PeerRemoved,
    RegionBootstrapped,
    RegionPublished,
    RootEvent,
    RootToken,
    StoreJoined,
    addition_id,
    removal_id,
)
from nokv.region import Peer, Region, RegionEpoch, Store
from nokv.testing.sim.control.checker import Checker, TailChecker
from nokv.testing.sim.control.host import Life, VirtualLoop
from nokv.testing.sim.values import Violation

__all__ = ["SimClient"]

NOT_NOW = (Unavailable, DeadlineExceeded, Indeterminate, NotLeader, Busy)
TIMEOUT_S = 3.0


class SimClient:
    """Two tasks: `numbers` asks for ids and timestamps, `truth` publishes what becomes of its region and reads it."""

    def __init__(
        self,
        number: int,
        life: Life,
        loop: VirtualLoop,
        checker: Checker,
        coordinators: CoordinatorClient,
        roots: RootClient,
        dice: random.Random,
        pause_s: float,
    ) -> None:
        self.number = number
        self.life = life
        self.loop = loop
        self.checker = checker
        self.coordinators = coordinators
        self.roots = roots
        self.dice = dice
        self.pause_s = pause_s
        self.operations = 0
        self.refused = 0
        self.last_id_ns = 0  # when the newest answer of each kind was asked for
        self.last_timestamp_ns = 0
        self.last_publish_ns = 0
        self.tail = TailChecker(f"client {number}", checker)
        self.region = Region(
            100 * number, b"%03d" % number, b"%03d" % (number + 1), RegionEpoch(1, 1), (Peer(100 * number + 1, 1),)
        )
        self._next_peer = 100 * number + 2
        self._made = False
        self._cancelled: set[str] = set()

    def start(self) -> None:
        for work in (self._numbers, self._truth, self._follow):
            self.life.spawn(self._forever(work))

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            while True:
                try:
                    await work()
                except NOT_NOW:
                    self.refused += 1
                await asyncio.sleep(self.dice.uniform(0.5, 1.5) * self.pause_s)
        except Violation as violation:
            self.loop.problems.append(f"client {self.number}: {violation}")
        except Exception as error:
            self.loop.problems.append(f"client {self.number}: {type(error).__name__}: {error}")

    # -- ids and timestamps -------------------------------------------------------------------------------------------
    async def _numbers(self) -> None:
        asked = self.loop.now_ns
        if self.dice.random() < 0.4:
            count = self.dice.choice((1, 1, 5, 40))
            floor = self.checker.ids.acknowledged
            first = await self.coordinators.alloc_id(count, timeout_s=TIMEOUT_S)
            self.checker.ids.received(first, count, floor)
            self.last_id_ns = asked
        else:
            count = self.dice.choice((1, 1, 10, 1000))
            floor = self.checker.timestamps.acknowledged
            first = await self.coordinators.tso(count, timeout_s=TIMEOUT_S)
            self.checker.timestamps.received(first, count, floor)
            self.last_timestamp_ns = asked
        self.operations += 1

    # -- the truth ----------------------------------------------------------------------------------------------------
    async def _truth(self) -> None:
        if not self._made:
            await self._publish(StoreJoined(Store(1, "store-1:1")))
            await self._publish(StoreJoined(Store(2, "store-2:1")))
            await self._publish(RegionBootstrapped(self.region))
            self._made = True
        elif self.dice.random() < 0.5:
            await self._change()
        else:
            await self._read()

    async def _publish(self, event: RootEvent) -> None:
        """Until it is acknowledged: whatever became of the attempts before, it may be said again."""
        while True:
            asked = self.loop.now_ns
            try:
                token, already = await self.coordinators.publish_all([event])
            except NOT_NOW:
                self.refused += 1
                await asyncio.sleep(self.dice.uniform(0.5, 1.5) * self.pause_s)
                continue
            self.checker.acknowledged(event, token, new=not already)
            self.last_publish_ns = asked
            self.operations += 1
            return

    async def _change(self) -> None:
        region = self.region
        spare = next((peer for peer in region.peers if peer.store_id == 2), None)
        choice = self.dice.random()
        if choice < 0.3:
            self.region = Region(
                region.region_id,
                region.start_key,
                region.end_key,
                RegionEpoch(region.epoch.conf_version, region.epoch.version + 1),
                region.peers,
            )
            await self._publish(RegionPublished(self.region))
        elif spare is None:
            peer = Peer(self._next_peer, 2)
            self._next_peer += 1
            target = region.with_peers((*region.peers, peer))
            name = addition_id(region, peer)
            await self._plan(PeerAdditionPlanned(name, peer, target))
            if choice < 0.5:
                self._cancelled.add(name)
                await self._publish(PeerAdditionCancelled(name, region.region_id))
                return
            self.region = target
            await self._publish(PeerAdded(name, peer, target))
        else:
            target = region.with_peers(tuple(peer for peer in region.peers if peer is not spare))
            name = removal_id(region, spare)
            await self._plan(PeerRemovalPlanned(name, spare, target))
            self.region = target
            await self._publish(PeerRemoved(name, spare, target))

    async def _plan(self, event: PeerAdditionPlanned | PeerRemovalPlanned) -> None:
        """A call that was given up may still plan what was cancelled meanwhile; then it is cancelled again."""
        while True:
            try:
                await self._publish(event)
                return
            except PreconditionFailed as error:
                try:
                    pending = (await self.roots.snapshot(timeout_s=TIMEOUT_S)).pending.get(self.region.region_id)
                except NOT_NOW:
                    continue  # ask again: to leave now would leave what we planned to turn up later
                if pending is None or pending.transition_id == event.transition_id:
                    continue  # an earlier attempt of a cancellation, or of this plan, has arrived meanwhile
                if pending.transition_id not in self._cancelled:
                    raise Violation(f"{event} is refused: {error}") from error
                await self._publish(PeerAdditionCancelled(pending.transition_id, self.region.region_id))

    async def _read(self) -> None:
        freshness = self.dice.choice((Freshness.BEST_EFFORT, Freshness.BOUNDED, Freshness.STRONG))
        at_least = 0
        token = NO_TOKEN
        if freshness is Freshness.STRONG:
            at_least = self.checker.acknowledged_revision
        elif self.dice.random() < 0.5:
            at_least = self.checker.acknowledged_revision
            token = RootToken(at_least)
        try:
            route, view = await self.coordinators.region_by_key(
                self.region.start_key + b"x", freshness=freshness, at_least=token, timeout_s=TIMEOUT_S
            )
        except NotFound as error:
            if at_least:
                raise Violation(f"a {freshness.value} read at {at_least} does not find the region: {error}") from error
            return
        self.checker.route("a coordinator", self.region.region_id, route, view.served.revision, at_least)
        self.operations += 1

    # -- the tail -----------------------------------------------------------------------------------------------------
    async def _follow(self) -> None:
        async for update in self.roots.tail(self.tail.revision):
            self.tail.update(update.records, update.state)
