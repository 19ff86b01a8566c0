"""The consensus machine alone, three members on memory storage in one process; and a host of 10,000 groups."""

from __future__ import annotations

from typing import Any

import pytest

from nokv.raft import MemoryStorage, RaftConfig, RaftSnapshot, RawNode, SnapshotMetadata
from nokv.raft.types import ConfState, NodeRole
from tests.unit.multiraft.cluster import TICK_S, Cluster

pytest.importorskip("pytest_benchmark")

GROUPS = 10_000


class Group:
    def __init__(self, **options: Any) -> None:
        self.nodes: list[tuple[RawNode, MemoryStorage]] = []
        self.readies = 0
        self.applied = 0
        for node_id in (1, 2, 3):
            storage = MemoryStorage()
            storage.apply_snapshot(RaftSnapshot(SnapshotMetadata(10, 1, ConfState((1, 2, 3)))))
            self.nodes.append(
                (RawNode(RaftConfig(id=node_id, applied=10, **options), storage, lambda n: n // 2), storage)
            )
        self.nodes[0][0].campaign()
        self.settle()
        assert self.nodes[0][0].status().role is NodeRole.LEADER

    def settle(self) -> None:
        """Until nobody has anything to do."""
        busy = True
        while busy:
            busy = False
            for node, storage in self.nodes:
                if not node.has_ready():
                    continue
                busy = True
                ready = node.ready()
                if ready.hard_state is not None:
                    storage.set_hard_state(ready.hard_state)
                storage.append(ready.entries)
                if node.id == 1:
                    self.applied += sum(bool(entry.data) for entry in ready.committed_entries)
                self.readies += 1
                for message in ready.messages:
                    self.nodes[message.to - 1][0].step(message)
                node.advance(ready)

    def propose(self, batch: list[bytes]) -> None:
        self.nodes[0][0].propose_many(batch)
        self.settle()


@pytest.mark.parametrize("commands", [1, 16, 256])
def test_proposals(benchmark: Any, commands: int) -> None:
    group = Group()
    batch = [b"x" * 100] * commands
    before = group.readies
    benchmark(group.propose, batch)
    assert group.applied > 0 and group.applied % commands == 0
    if benchmark.stats:
        rounds = group.applied // commands
        benchmark.extra_info["proposals_per_second"] = round(commands / benchmark.stats.stats.median)
        benchmark.extra_info["us_per_ready"] = round(
            benchmark.stats.stats.median * 1e6 * rounds / (group.readies - before), 1
        )


def test_tick_of_a_leader_with_nothing_to_do(benchmark: Any) -> None:
    group = Group()

    def tick() -> None:
        for node, _ in group.nodes:
            node.tick()
        group.settle()

    benchmark(tick)
    assert group.nodes[0][0].status().role is NodeRole.LEADER


def test_tick_of_a_quiet_group(benchmark: Any) -> None:
    """What a driver pays that ticks quiet groups all the same; a MultiRaftHost does not."""
    group = Group(quiet_after_ticks=5)
    for _ in range(10):
        for node, _ in group.nodes:
            node.tick()
        group.settle()
    assert all(node.quiet for node, _ in group.nodes)

    def tick() -> None:
        for node, _ in group.nodes:
            node.tick()

    benchmark(tick)
    assert not any(node.has_ready() for node, _ in group.nodes)


@pytest.mark.parametrize("quiet", [True, False], ids=["quiet", "awake"])
def test_tick_of_10000_groups_with_1_percent_active(benchmark: Any, quiet: bool) -> None:
    """A host's tick and the turn after it. Goal: 5 ms (quiet). The active groups have three voters and are led here;
    the others have one each, which flatters the awake row: theirs have nobody to write to."""
    after = 20 if quiet else 0
    cluster = Cluster(groups=GROUPS // 100, quiet_after_ticks=after)
    leader = cluster.nodes[1]
    for group_id in range(len(cluster.groups) + 1, GROUPS + 1):
        leader.add_group(group_id, (1,))
    for group_id in leader.host.group_ids():
        leader.host.campaign(group_id)
    cluster.loop.run_until(lambda: leader.host.stats()["groups_leading"] == GROUPS)
    if quiet:
        cluster.loop.run_until(lambda: leader.host.stats()["groups_quiet"] == GROUPS)
    active = cluster.groups

    def setup() -> None:
        for group_id in active:
            leader.host.propose(group_id, b"x" * 100)
        cluster.loop.run_for(TICK_S * 0.9)

    def tick() -> None:
        leader.host.tick()
        leader.host.turn()

    benchmark.pedantic(tick, setup=setup, rounds=20, warmup_rounds=2)
    stats = leader.host.stats()
    assert stats["groups_leading"] == GROUPS
    assert stats["groups_quiet"] == (GROUPS - len(active) if quiet else 0)
    if benchmark.stats:
        benchmark.extra_info["ms"] = round(benchmark.stats.stats.median * 1e3, 2)
