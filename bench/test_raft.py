"""The consensus machine alone: three members on memory storage in one process. Figures only, no limits."""

from __future__ import annotations

from typing import Any

import pytest

from nokv.raft import MemoryStorage, RaftConfig, RaftSnapshot, RawNode, SnapshotMetadata
from nokv.raft.types import ConfState, NodeRole

pytest.importorskip("pytest_benchmark")


class Group:
    def __init__(self) -> None:
        self.nodes: list[tuple[RawNode, MemoryStorage]] = []
        self.readies = 0
        self.applied = 0
        for node_id in (1, 2, 3):
            storage = MemoryStorage()
            storage.apply_snapshot(RaftSnapshot(SnapshotMetadata(10, 1, ConfState((1, 2, 3)))))
            self.nodes.append((RawNode(RaftConfig(id=node_id, applied=10), storage, lambda n: n // 2), storage))
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
        benchmark.extra_info["proposals_per_second"] = round(commands / benchmark.stats.stats.mean)
        benchmark.extra_info["us_per_ready"] = round(
            benchmark.stats.stats.mean * 1e6 * rounds / (group.readies - before), 1
        )


def test_tick_of_a_leader_with_nothing_to_do(benchmark: Any) -> None:
    group = Group()

    def tick() -> None:
        for node, _ in group.nodes:
            node.tick()
        group.settle()

    benchmark(tick)
    assert group.nodes[0][0].status().role is NodeRole.LEADER
