"""Leader balance on paper: what is proposed, what is not, and how operations end."""

from __future__ import annotations

import random

import pytest

from nokv.coordinator.scheduler import Operation, Scheduler
from nokv.coordinator.view import ClusterView
from nokv.metaroot.events import (
    PeerRemovalPlanned,
    RegionBootstrapped,
    RegionTombstoned,
    RootEvent,
    StoreJoined,
    StoreLeft,
)
from nokv.region import Peer, PeerRole, Region, RegionEpoch, Store

SECOND = 1_000_000_000


class Cluster:
    """A view with heartbeats that carry out what the scheduler says, if asked to."""

    def __init__(self, stores: int, regions: int, *, replicas: int = 3, **options: int) -> None:
        self.view = ClusterView()
        self.scheduler = Scheduler(**options)
        self.scheduler.begin(7)
        self.now = SECOND
        self.stores = range(1, stores + 1)
        self.index = 0
        self.truth(*(StoreJoined(Store(s, f"s:{s}")) for s in self.stores))
        for r in range(1, regions + 1):
            peers = tuple(Peer(r * 100 + s, s) for s in list(self.stores)[:replicas])
            self.truth(RegionBootstrapped(Region(r, b"%04d" % r, b"%04d" % (r + 1), RegionEpoch(), peers)))
        self.lead = dict.fromkeys(range(1, regions + 1), 1)
        self.term = 1
        self.report()

    def truth(self, *events: RootEvent) -> None:
        self.index += 1
        records = self.view.truth.copy().apply(events, term=1, index=self.index)
        self.view.advance(records)

    def beat(self, store_id: int) -> list[Operation]:
        self.view.store_heartbeat(
            store_id, region_count=0, leader_count=0, used_bytes=0, mode="", now_ns=self.now, now_ms=0
        )
        return self.scheduler.operations_for(store_id, self.view, self.now, 5_000)

    def report(self) -> None:
        for store in self.stores:
            self.view.store_heartbeat(
                store, region_count=0, leader_count=0, used_bytes=0, mode="", now_ns=self.now, now_ms=0
            )
        for region_id, store in self.lead.items():
            region = self.view.truth.region(region_id)
            if region is not None:
                leader = region.peer_on(store)
                assert leader is not None
                self.view.region_heartbeat(region, leader, term=self.term, applied_index=0, now_ns=self.now)
                self.scheduler.leader_reported(region_id, store, self.now)

    def carry_out(self, operations: list[Operation]) -> None:
        for operation in operations:
            self.lead[operation.region_id] = operation.target_store
        self.term += 1
        self.report()

    def counts(self) -> list[int]:
        return [sum(store == s for store in self.lead.values()) for s in self.stores]


@pytest.mark.parametrize(("stores", "regions"), [(3, 9), (3, 10), (5, 101), (2, 1)])
def test_all_leaders_on_one_store_spread_to_within_one(stores: int, regions: int) -> None:  # CO-11
    cluster = Cluster(stores, regions, replicas=stores)
    for _ in range(regions * 3):
        for store in cluster.stores:
            cluster.carry_out(cluster.beat(store))
        cluster.now += SECOND
    assert max(cluster.counts()) - min(cluster.counts()) <= 1
    issued = cluster.scheduler.issued
    assert issued == cluster.scheduler.ended.get("done", 0)
    assert issued <= regions  # no leader moves twice
    for store in cluster.stores:  # balanced: nothing more to do
        cluster.now += 100 * SECOND
        cluster.report()
        assert cluster.beat(store) == []


def test_bursts_and_what_is_under_way_are_bounded() -> None:
    cluster = Cluster(3, 90, burst=4, pending_max=6)
    first = cluster.beat(1)
    assert len(first) == 4
    assert cluster.beat(1)[:4] == first  # sent again until it has ended
    assert len(cluster.beat(1)) == 6
    assert len({o.operation_id for o in cluster.scheduler.pending}) == 6
    assert all(o.operation_id >> 32 == o.era == 7 for o in cluster.scheduler.pending)
    assert cluster.beat(2) == [] == cluster.beat(3)


def test_an_operation_ends_in_one_of_five_ways() -> None:
    cluster = Cluster(3, 9, burst=1, deadline_ms=10_000, cooldown_ms=30_000)
    (one,) = cluster.beat(1)
    assert one.deadline_ms == 15_000
    cluster.now += 10 * SECOND
    cluster.report()
    (again,) = cluster.beat(1)  # expired: decided anew, with another id
    assert again.operation_id != one.operation_id
    assert cluster.scheduler.ended == {"expired": 1}
    cluster.scheduler.outcomes_reported([(again.operation_id, "applied"), (1, "refused")], cluster.now)
    assert cluster.scheduler.pending == [again]
    cluster.scheduler.outcomes_reported([(again.operation_id, "refused")], cluster.now)
    (third,) = cluster.beat(1)
    assert third.region_id != again.region_id  # that one rests
    other = next(s for s in (2, 3) if s != third.target_store)
    cluster.lead[third.region_id] = other
    cluster.term += 1
    cluster.report()
    (fourth,) = cluster.beat(1)
    cluster.truth(RegionTombstoned(cluster.view.truth.regions[fourth.region_id]))
    cluster.beat(1)
    assert cluster.scheduler.ended == {"expired": 1, "refused": 1, "overtaken": 2}
    cluster.now += 31 * SECOND
    cluster.report()
    assert cluster.beat(1)


def test_only_voters_on_living_stores_are_asked_to_lead() -> None:
    cluster = Cluster(3, 6, burst=1)
    cluster.now += 30 * SECOND  # stores 2 and 3 fall silent
    assert cluster.beat(1) == []
    cluster.beat(2)
    (operation,) = cluster.beat(1)
    assert operation.target_store == 2
    lonely = Cluster(3, 0)
    for r in range(1, 5):
        learners = [Peer(r * 100 + s, s, PeerRole.LEARNER) for s in (2, 3)]
        region = Region(r, b"%d" % r, b"%d" % (r + 1), peers=(Peer(r * 100 + 1, 1), *learners))
        lonely.truth(RegionBootstrapped(region))
        lonely.lead[r] = 1
    lonely.report()
    assert lonely.beat(1) == []


def test_a_leaving_store_hands_everything_over_and_gets_nothing() -> None:
    cluster = Cluster(3, 6)
    for r, store in zip(range(1, 7), (1, 1, 2, 2, 3, 3), strict=True):
        cluster.lead[r] = store
    cluster.term += 1
    cluster.report()
    assert cluster.beat(1) == []
    cluster.truth(StoreLeft(1))
    for _ in range(10):
        for store in cluster.stores:
            cluster.carry_out(cluster.beat(store))
        cluster.now += SECOND
    assert cluster.counts() == [0, 3, 3]


def test_a_region_under_change_is_left_alone() -> None:
    cluster = Cluster(3, 2)
    for region in list(cluster.view.truth.regions.values()):
        after = region.with_peers(region.peers[:2])
        cluster.truth(PeerRemovalPlanned(f"t{region.region_id}", region.peers[2], after))
    assert cluster.beat(1) == []


def test_a_new_era_starts_from_nothing() -> None:
    cluster = Cluster(3, 9)
    before = {o.operation_id for o in cluster.beat(1)}
    cluster.scheduler.begin(8)
    assert cluster.scheduler.pending == []
    after = cluster.beat(1)
    assert all(o.era == 8 and o.operation_id not in before for o in after)


@pytest.mark.parametrize("seed", range(5))
def test_random_placements_settle(seed: int) -> None:
    dice = random.Random(seed)
    cluster = Cluster(4, 40, replicas=4)
    for region in cluster.lead:
        cluster.lead[region] = dice.choice(list(cluster.stores))
    cluster.term += 1
    cluster.report()
    for _ in range(60):
        for store in cluster.stores:
            operations = cluster.beat(store)
            cluster.carry_out([o for o in operations if dice.random() < 0.7])  # the others are lost or refused
        cluster.now += 5 * SECOND
    assert max(cluster.counts()) - min(cluster.counts()) <= 1, f"seed {seed}"
