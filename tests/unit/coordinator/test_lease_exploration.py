"""Every interleaving of two coordinators up to a depth, on the real transition code: decide, deliver, answer, expire,
crash.

A world is small: a rooted log, two processes, one clock in quarters of a lease, and appends on their way. Checked in
every world that can be reached: primacy (one open era), inheritance (a new era starts at or above all that was handed
out), silence (two processes never serve at once, a sealed era fences nothing), and that no value is handed out twice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest

from nokv.coordinator import lease as lease_module
from nokv.coordinator.id_alloc import IdAllocator
from nokv.coordinator.lease import LeaseCompetitor, LeaseStep, LeaseTerms, LeaseView
from nokv.errors import NoKVError
from nokv.metaroot.events import Allocator, AllocatorFenced, RootEvent
from nokv.metaroot.state import RootState

TTL_MS = 1_000
QUANTUM_NS = 240_000_000
DEPTH = 12
WORLDS_MAX = 4_000


@dataclass
class Flight:
    """An append on its way to the log, or its answer on the way back."""

    owner: int
    events: tuple[RootEvent, ...]
    expected: int
    step: LeaseStep | None
    sent_ns: int
    fence: int = 0
    applied: bool | None = None


@dataclass
class Process:
    lease: LeaseCompetitor
    ids: IdAllocator
    era: int = 0
    busy: bool = False


@dataclass
class World:
    root: RootState
    processes: list[Process]
    now: int = 1
    handed: int = 0
    incarnations: int = 2
    flights: list[Flight] = field(default_factory=list)

    def key(self) -> tuple[object, ...]:
        """Everything that decides what may happen next, with times relative to now."""
        processes = []
        for p in self.processes:
            lease = p.lease
            view = lease.view
            processes.append(
                (
                    lease.incarnation,
                    None if view is None else view.revision,
                    lease._era,
                    max(-1, lease._deadline_ns - self.now),
                    max(-1, lease._renew_at_ns - self.now),
                    lease._seen_revision,
                    min(self.now - lease._seen_at_ns, 2_000_000_000),
                    p.ids._next,
                    p.ids._fence,
                    p.era,
                    p.busy,
                )
            )
        flights = tuple((f.owner, f.events, f.expected, self.now - f.sent_ns, f.applied) for f in self.flights)
        return (self.root.last.revision, self.root.lease, self.root.sealed, self.handed, tuple(processes), flights)


def new_process(name: str, incarnation: int) -> Process:
    return Process(LeaseCompetitor(name, name, str(incarnation), LeaseTerms(TTL_MS, 300)), IdAllocator(window=2))


def moves(world: World) -> list[tuple[str, int]]:
    result: list[tuple[str, int]] = [("tick", 0)]
    for i in range(len(world.processes)):
        result += [("act", i), ("take", i)]
        if world.incarnations < 3:
            result.append(("restart", i))
    for n, flight in enumerate(world.flights):
        result.append(("deliver", n) if flight.applied is None else ("answer", n))
        result.append(("lose", n))
    return result


def play(old: World, move: tuple[str, int]) -> World | None:
    world = copy.deepcopy(old)
    kind, n = move
    if kind == "tick":
        world.now += QUANTUM_NS
    elif kind == "restart":
        world.processes[n] = new_process(world.processes[n].lease.coordinator_id, world.incarnations)
        world.incarnations += 1
        world.flights = [f for f in world.flights if f.owner != n or f.applied is None]
        for flight in world.flights:
            if flight.owner == n:
                flight.owner = -1  # still on its way, but nobody waits for the answer
    elif kind == "act":
        return world if act(world, n) else None
    elif kind == "take":
        return world if take(world, n) else None
    elif kind == "deliver":
        flight = world.flights[n]
        try:
            world.root.apply(flight.events, term=1, index=world.root.last.index + 1, expected_revision=flight.expected)
            flight.applied = True
        except NoKVError:
            flight.applied = False
        if flight.owner < 0:
            del world.flights[n]
    else:
        flight = world.flights.pop(n)
        if flight.owner >= 0:
            process = world.processes[flight.owner]
            process.busy = False
            if kind == "answer" and flight.applied:
                if flight.step is not None:
                    process.lease.acknowledged(flight.step, flight.sent_ns)
                elif flight.fence:
                    process.ids.extend(flight.fence)
                process.lease.observe(LeaseView.of(world.root), world.now)
    return world


def act(world: World, n: int) -> bool:
    """One turn of the runtime: look at the log, then send the one append that is due."""
    process = world.processes[n]
    if process.busy:
        return False
    process.lease.observe(LeaseView.of(world.root), world.now)
    step = process.lease.decide(world.now, 0, id_start=1, tso_start=1)
    if step is not None:
        process.lease.sent(step, world.now)
        world.flights.append(Flight(n, step.events, step.expected_revision, step, world.now))
        process.busy = True
        return True
    era = process.lease.serving(world.now)
    if era and era != process.era:
        process.era = era
        process.ids.begin(world.root.id_fence)
    if era and (fence := process.ids.next_fence()) is not None:
        event = AllocatorFenced(Allocator.ID, fence, era)
        world.flights.append(Flight(n, (event,), 0, None, world.now, fence))
        process.busy = True
    return True


def take(world: World, n: int) -> bool:
    process = world.processes[n]
    if not process.era or process.lease.serving(world.now) != process.era:
        return False
    value = process.ids.take(1)
    if value is None:
        return False
    assert value > world.handed, f"{value} handed out after {world.handed}"
    assert value < world.root.id_fence, "handed out beyond the fence"
    world.handed = value
    return True


def check(world: World) -> None:
    world.root.check()
    serving = [p.lease.serving(world.now) for p in world.processes]
    assert sum(map(bool, serving)) <= 1, f"two eras serve at once: {serving}"
    for era in serving:
        assert not era or (world.root.lease is not None and world.root.lease.era == era), "a sealed era serves"
    if world.root.sealed is not None:
        assert world.handed <= world.root.id_fence, "inheritance"


def explore(start: World, depth: int, worlds_max: int) -> int:
    seen = {start.key()}
    frontier: list[tuple[World, tuple[tuple[str, int], ...]]] = [(start, ())]
    for _ in range(depth):
        following: list[tuple[World, tuple[tuple[str, int], ...]]] = []
        for world, trace in frontier:
            for move in moves(world):
                try:
                    after = play(world, move)
                    if after is None:
                        continue
                    check(after)
                except AssertionError as error:
                    raise AssertionError(f"{error}: trace {(*trace, move)}") from error
                key = after.key()
                if key not in seen:
                    seen.add(key)
                    following.append((after, (*trace, move)))
            if len(seen) >= worlds_max:
                return len(seen)
        frontier = following
    return len(seen)


def near_expiry() -> World:
    """The first process serves; the second has seen its grant three quarters of a lease ago."""
    world = World(RootState(), [new_process("a", 0), new_process("b", 1)])
    for _ in range(3):  # grant, confirm, fence
        for move in (("act", 0), ("deliver", 0), ("answer", 0)):
            world = stepped(world, move)
    assert world.processes[0].lease.serving(world.now) == 1
    for move in (("act", 1), ("tick", 0), ("tick", 0), ("tick", 0)):
        world = stepped(world, move)
    return world


def stepped(world: World, move: tuple[str, int]) -> World:
    after = play(world, move)
    assert after is not None
    check(after)
    return after


@pytest.mark.parametrize("start", ["fresh", "near expiry"])
def test_every_interleaving_keeps_the_guarantees(start: str) -> None:
    fresh = World(RootState(), [new_process("a", 0), new_process("b", 1)])
    seen = explore(fresh if start == "fresh" else near_expiry(), DEPTH, WORLDS_MAX)
    print(f"{seen} states explored")
    assert seen >= WORLDS_MAX


def test_clockless_take_over_has_a_counterexample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exploration has teeth: a competitor that does not wait the lease out is caught."""
    monkeypatch.setattr(lease_module, "takeover_ns", lambda ttl_ms: 0)
    with pytest.raises(AssertionError, match="trace") as found:
        explore(near_expiry(), DEPTH, WORLDS_MAX)
    print(found.value)
