"""What a store does with operations: applied, or counted and reported as why not. RS-16"""

from __future__ import annotations

import pytest

from nokv.errors import NotLeader
from nokv.raftstore.control import StoreOperation
from nokv.raftstore.operations import OUTCOMES_MAX, OperationRunner
from nokv.testing.clock import FakeClock


class Store:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.moved: list[tuple[int, int]] = []
        self.refuse = False
        self.runner = OperationRunner(self.transfer, self.clock, burst=3)

    def transfer(self, region_id: int, peer_id: int) -> None:
        if self.refuse:
            raise NotLeader("this store does not lead it")
        self.moved.append((region_id, peer_id))

    def run(self, *operations: StoreOperation) -> list[str]:
        before = len(self.runner.outcomes())
        self.runner.run(operations)
        return [o.outcome for o in self.runner.outcomes()[before:]]

    def operation(self, number: int, *, region: int = 0, kind: str = "transfer-leader", era: int = 1) -> StoreOperation:
        return StoreOperation(number, kind, region or number, 9, self.clock.time_ms() + 1_000, era)


@pytest.fixture
def store() -> Store:
    return Store()


def test_an_operation_is_applied_once(store: Store) -> None:
    operation = store.operation(1)
    assert store.run(operation) == ["applied"]
    assert store.run(operation) == []
    assert store.moved == [(1, 9)]
    assert store.runner.counts["duplicate"] == 1


def test_every_drop_has_its_name(store: Store) -> None:
    late = store.operation(1)
    store.clock.advance_ms(1_000)
    assert store.run(late) == ["expired"]
    assert store.run(store.operation(2, kind="move-to-the-moon")) == ["unknown"]
    assert store.run(store.operation(3, era=5), store.operation(4, era=4)) == ["applied", "stale"]
    assert store.run(store.operation(5, region=3, era=5)) == ["throttled"]  # that region has just moved
    assert store.run(*(store.operation(n, era=5) for n in range(10, 13))) == ["applied", "applied", "throttled"]
    store.clock.advance_ms(1_000)
    store.refuse = True
    assert store.run(store.operation(20, era=5)) == ["refused"]
    assert "does not lead" in store.runner.last_refusal
    store.refuse = False
    store.clock.advance_ms(5_000)
    assert store.run(store.operation(21, region=3, era=5)) == ["applied"]
    counts = store.runner.counts
    assert (counts["applied"], counts["throttled"], counts["refused"]) == (4, 2, 1)
    assert (counts["expired"], counts["stale"], counts["unknown"]) == (1, 1, 1)
    assert sum(counts.values()) == 10  # none is silent


def test_outcomes_wait_for_a_heartbeat_that_got_through(store: Store) -> None:
    store.run(store.operation(1), store.operation(2))
    assert len(store.runner.outcomes()) == 2
    reported = store.runner.outcomes()
    store.run(store.operation(3))
    store.runner.reported(len(reported))
    assert [o.operation_id for o in store.runner.outcomes()] == [3]


def test_outcomes_nobody_takes_are_bounded(store: Store) -> None:
    for number in range(1, OUTCOMES_MAX + 11):
        store.run(store.operation(number, kind="?"))
    assert len(store.runner.outcomes()) == OUTCOMES_MAX
    assert store.runner.counts["unreported"] == 10
