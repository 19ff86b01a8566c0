"""Ids and timestamps never go back, whatever restarts, hand-overs and wall clocks do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.coordinator.id_alloc import IdAllocator
from nokv.coordinator.lease import LeaseCompetitor, LeaseTerms, LeaseView, StepKind
from nokv.coordinator.tso import TSO_COUNT_MAX, TsoAllocator, compose, physical_ms
from nokv.errors import PreconditionFailed
from nokv.metaroot.events import Allocator, AllocatorFenced
from nokv.metaroot.state import RootState
from nokv.testing.clock import FakeClock


def test_nothing_before_the_first_fence() -> None:
    tso, ids = TsoAllocator(), IdAllocator()
    tso.begin(1, 0, 1_000)
    ids.begin(1)
    assert tso.take(1, 0) is None
    assert ids.take(1) is None


def test_tso_follows_the_monotonic_clock_not_the_wall() -> None:
    clock = FakeClock()
    tso = TsoAllocator(window_ms=3_000)
    tso.begin(1, clock.monotonic_ns(), clock.time_ms())
    fence = tso.next_fence(clock.monotonic_ns(), clock.time_ms())
    assert fence == compose(clock.time_ms() + 3_000)
    tso.extend(fence)
    first = tso.take(10, clock.monotonic_ns())
    assert first is not None and physical_ms(first) == clock.time_ms()
    clock.jump_wall_ms(-3_600_000)
    clock.advance_ms(5)
    second = tso.take(1, clock.monotonic_ns())
    assert second is not None and physical_ms(second) == physical_ms(first) + 5
    clock.advance_ms(2_999)
    assert tso.take(1, clock.monotonic_ns()) is None  # the window ends where the fence is
    assert tso.next_fence(clock.monotonic_ns(), clock.time_ms()) is not None


def test_an_idle_allocator_does_not_fill_the_log() -> None:
    clock = FakeClock()
    tso = TsoAllocator(window_ms=1_000)
    tso.begin(1, clock.monotonic_ns(), clock.time_ms())
    fence = tso.next_fence(clock.monotonic_ns(), clock.time_ms())
    assert fence is not None
    tso.extend(fence)
    clock.advance_ms(60_000)
    assert tso.next_fence(clock.monotonic_ns(), clock.time_ms()) is None
    assert tso.take(1, clock.monotonic_ns()) is None  # somebody asks: now it is worth a fence
    assert tso.next_fence(clock.monotonic_ns(), clock.time_ms()) is not None


def test_tso_follows_a_wall_clock_ahead_only_slowly() -> None:
    clock = FakeClock()
    tso = TsoAllocator(window_ms=3_000)
    tso.begin(1, clock.monotonic_ns(), clock.time_ms())
    clock.jump_wall_ms(86_400_000)
    fence = tso.next_fence(clock.monotonic_ns(), clock.time_ms())
    assert fence is not None
    assert physical_ms(fence) <= clock.time_ms() - 86_400_000 + 1_000 + 3_000


def test_more_timestamps_than_a_millisecond_has_spill_into_the_next() -> None:
    tso = TsoAllocator(window_ms=3_000)
    tso.begin(1, 0, 1_000)
    tso.extend(compose(4_000))
    first = tso.take(TSO_COUNT_MAX, 0)
    second = tso.take(TSO_COUNT_MAX, 0)
    assert first is not None and second == first + TSO_COUNT_MAX
    with pytest.raises(ValueError):
        tso.take(TSO_COUNT_MAX + 1, 0)


def test_ids_ask_for_a_window_in_time() -> None:
    ids = IdAllocator(window=10)
    ids.begin(5)
    assert ids.next_fence() == 15
    ids.extend(15)
    assert ids.next_fence() is None
    assert ids.take(6) == 5
    assert ids.next_fence() == 21
    assert ids.take(5) is None
    assert ids.next_fence(5) == 26


class Process:
    """One coordinator over a shared rooted state, its appends immediate: allocators and lease as the runtime wires
    them."""

    def __init__(self, root: RootState, name: str, incarnation: int, clock: FakeClock) -> None:
        self.root = root
        self.clock = clock
        self.lease = LeaseCompetitor(name, f"{name}:1", str(incarnation), LeaseTerms(ttl_ms=1_000, renew_before_ms=300))
        self.tso = TsoAllocator(window_ms=500)
        self.ids = IdAllocator(window=7)
        self.era = 0

    def append(self, *events: object, expected_revision: int = 0) -> None:
        self.root.apply(events, term=1, index=self.root.last.index + 1, expected_revision=expected_revision)  # type: ignore[arg-type]

    def turn(self) -> None:
        now = self.clock.monotonic_ns()
        self.lease.observe(LeaseView.of(self.root), now)
        step = self.lease.decide(now, self.clock.time_ms(), id_start=1, tso_start=1)
        if step is not None:
            self.lease.sent(step, now)
            try:
                self.append(*step.events, expected_revision=step.expected_revision)
            except PreconditionFailed:
                return
            self.lease.acknowledged(step, now)
            self.lease.observe(LeaseView.of(self.root), now)
        era = self.lease.serving(now)
        if era and era != self.era:
            self.era = era
            self.tso.begin(self.root.tso_fence, now, self.clock.time_ms())
            self.ids.begin(self.root.id_fence)
        if era:
            self.refill(now)

    def refill(self, now: int) -> None:
        try:
            if (fence := self.tso.next_fence(now, self.clock.time_ms())) is not None:
                self.append(AllocatorFenced(Allocator.TSO, fence, self.era))
                self.tso.extend(fence)
            if (id_fence := self.ids.next_fence()) is not None:
                self.append(AllocatorFenced(Allocator.ID, id_fence, self.era))
                self.ids.extend(id_fence)
        except PreconditionFailed:
            pass  # sealed meanwhile: the next turn sees it

    def take(self) -> tuple[int | None, int | None]:
        now = self.clock.monotonic_ns()
        if self.lease.serving(now) != self.era or not self.era:
            return None, None
        return self.ids.take(1), self.tso.take(3, now)


@pytest.mark.parametrize("seed", range(5))
def test_strictly_increasing_over_a_hundred_restarts(seed: int) -> None:  # CO-06
    print(f"seed {seed}")
    rng = random.Random(seed)
    clock = FakeClock()
    root = RootState()
    names = ["c1", "c2", "c3"]
    running = {name: Process(root, name, 0, clock) for name in names}
    last_id = last_ts = 0
    restarts = served = 0
    while restarts < 100:
        for name in names:
            process = running[name]
            if rng.random() < 0.8:  # else it is paused, and may wake up much later
                process.turn()
            for _ in range(rng.randrange(4)):
                new_id, ts = process.take()
                if new_id is not None:
                    assert new_id > last_id
                    last_id = new_id
                    served += 1
                if ts is not None:
                    assert ts > last_ts
                    last_ts = ts + 2
        clock.advance_ms(rng.choice([1, 20, 100, 400]))
        if rng.random() < 0.2:
            clock.jump_wall_ms(rng.choice([-3_600_000, -500, 500, 60_000]))
        if rng.random() < 0.3:
            name = rng.choice(names)
            restarts += 1
            running[name] = Process(root, name, restarts, clock)
        assert sum(1 for p in running.values() if p.lease.serving(clock.monotonic_ns())) <= 1
        root.check()
    assert served > 50
    assert root.era > 10


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 4_000), st.integers(-10_000, 10_000)), max_size=40))
def test_tso_is_monotone_under_any_clock(steps: list[tuple[int, int, int]]) -> None:
    clock = FakeClock()
    tso = TsoAllocator(window_ms=1_000)
    tso.begin(1, clock.monotonic_ns(), clock.time_ms())
    last, fenced = 0, 0
    for count, advance, jump in steps:
        clock.advance_ms(advance)
        clock.jump_wall_ms(jump)
        if (fence := tso.next_fence(clock.monotonic_ns(), clock.time_ms())) is not None:
            assert fence > fenced
            tso.extend(fence)
            fenced = fence
        first = tso.take(count, clock.monotonic_ns())
        if first is not None:
            assert first > last
            last = first + count - 1
            assert last < fenced


def test_a_released_lease_is_taken_at_once() -> None:
    clock = FakeClock()
    root = RootState()
    one, two = Process(root, "c1", 0, clock), Process(root, "c2", 0, clock)
    for _ in range(4):
        one.turn()
        two.turn()
    assert one.lease.serving(clock.monotonic_ns()) == 1
    step = one.lease.release()
    assert step is not None and step.kind is StepKind.RELEASE
    assert one.lease.serving(clock.monotonic_ns()) == 0  # silent before the log knows
    one.append(*step.events)
    for _ in range(3):
        two.turn()
    assert two.lease.serving(clock.monotonic_ns()) == 2


def test_two_processes_of_one_name_do_not_share_an_era() -> None:
    clock = FakeClock()
    root = RootState()
    one, twin = Process(root, "c1", 0, clock), Process(root, "c1", 1, clock)
    for _ in range(10):
        one.turn()
        twin.turn()
        clock.advance_ms(50)
        assert not (one.lease.serving(clock.monotonic_ns()) and twin.lease.serving(clock.monotonic_ns()))
    assert one.lease.serving(clock.monotonic_ns()) == 1
