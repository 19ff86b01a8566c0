"""Every interleaving of a few coordinators that compete for the lease, on the code that the product runs.

A world is small: the folded rooted log (`RootState`), some processes (`LeaseCompetitor`, `IdAllocator`), appends on
their way, and one true time in quarters of a lease; the processes' own clocks may run apart and their wall clocks may
be wrong. A move is one thing that can happen next:

    tick           a quarter of a lease passes
    see n          the tail shows process n the log as it is now (between two of these it knows only older news)
    act n          process n sends the one append that is due by what it knows
    take n         process n hands out an id
    deliver f      the log decides about append f; its answer waits until
    answer f       it arrives, however late
    give up f      the caller stops waiting; the append may still take place later
    restart n      process n dies and another incarnation starts with nothing

`explore` walks breadth first, so that a counterexample is one of the shortest. Worlds that look alike (times count only
relative to now) are visited once. Checked after every move:

    primacy       an era does nothing in the log once a newer one is granted; at most one process serves
    inheritance   nothing is handed out twice, or below what an earlier era handed out
    silence       no process serves an era that the log has sealed; a sealed era fences nothing
    finality      whatever happened, any process that is left alone takes over, confirms and closes the hand-over

`VARIANTS` are protocols with one part taken out. Each must yield a counterexample: that is what the part is for.
`python -m nokv.testing.sim lease` prints all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nokv.coordinator.id_alloc import IdAllocator
from nokv.coordinator.lease import LeaseCompetitor, LeaseStep, LeaseTerms, LeaseView, StepKind
from nokv.errors import NoKVError
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    HandoffConfirmed,
    LeaseGranted,
    LeaseSealed,
    RootEvent,
    event_kind,
)
from nokv.metaroot.state import Lease, RootState

__all__ = ["VARIANTS", "Broken", "Exploration", "Protocol", "Setting", "World", "explore"]

TTL_MS = 1_000
QUANTUM_NS = 240_000_000
FAR_PAST_NS = 2_000_000_000
SETTLE_MOVES_MAX = 60
FINALITY_EVERY = 16
"""Whether a world settles takes dozens of moves to see: one world in so many is asked."""


class Broken(AssertionError):
    """A guarantee does not hold. `trace`: the moves that lead there, in words."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.trace: list[str] = []

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {n:2}. {line}" for n, line in enumerate(self.trace, 1))])


@dataclass(frozen=True, slots=True)
class Protocol:
    """Which code is played: the product's, or a weakened copy of one part of it."""

    root: type[RootState] = RootState
    competitor: type[LeaseCompetitor] = LeaseCompetitor


@dataclass(frozen=True, slots=True)
class Setting:
    """`rates`: how fast the monotonic clocks run, in percent. `skews_ms`: how wrong the wall clocks are."""

    coordinators: int = 2
    rates: tuple[int, ...] = (100, 100, 100)
    skews_ms: tuple[int, ...] = (0, 600, -600)
    restarts: int = 1
    late_appends_max: int = 1
    serving: bool = True
    """Begin when the first process serves, asks for its next window, and the others saw its grant three ticks ago."""


@dataclass(frozen=True, slots=True)
class Flight:
    """An append on its way to the log (`applied` None), or its answer on the way back. Owner -1: nobody waits."""

    owner: int
    events: tuple[RootEvent, ...]
    expected: int
    step: LeaseStep | None
    sent_ns: int
    fence: int = 0
    applied: bool | None = None
    answer: LeaseView | None = None

    def words(self) -> str:
        return " + ".join(event_kind(e).name.lower().replace("_", "-") + _era_of(e) for e in self.events)


def _era_of(event: RootEvent) -> str:
    era = getattr(event, "era", None)
    return "" if era is None else f"({era})"


@dataclass(slots=True)
class Process:
    lease: LeaseCompetitor
    ids: IdAllocator
    era: int = 0  # the era that `ids` belongs to
    busy: bool = False

    def copy(self) -> Process:
        lease = object.__new__(type(self.lease))
        for slot in LeaseCompetitor.__slots__:
            setattr(lease, slot, getattr(self.lease, slot))
        ids = IdAllocator(window=self.ids.window)
        ids._next, ids._fence = self.ids._next, self.ids._fence
        return Process(lease, ids, self.era, self.busy)


@dataclass(slots=True)
class World:
    """Parts are shared between worlds and replaced, never changed, by a move."""

    setting: Setting
    protocol: Protocol
    root: RootState
    processes: list[Process]
    now: int = 1
    handed: int = 0
    handed_by: int = 0  # the era that handed out `handed`
    granted: int = 0  # the newest era granted, and the newest one sealed
    sealed: int = 0
    incarnations: int = 0
    flights: tuple[Flight, ...] = ()

    @classmethod
    def fresh(cls, setting: Setting, protocol: Protocol) -> World:
        world = cls(setting, protocol, protocol.root(), [])
        for n in range(setting.coordinators):
            world.processes.append(world._process(n))
        return world

    def _process(self, n: int) -> Process:
        self.incarnations += 1
        name = "abc"[n]
        return Process(
            self.protocol.competitor(name, name, str(self.incarnations), LeaseTerms(TTL_MS, 300)), IdAllocator(window=2)
        )

    def copy(self) -> World:
        return replace(self, processes=list(self.processes))

    def clock(self, n: int) -> int:
        """Process n's monotonic clock."""
        return 1 + (self.now - 1) * self.setting.rates[n] // 100

    def wall_ms(self, n: int) -> int:
        return 1_000_000 + self.now // 1_000_000 + self.setting.skews_ms[n]

    def serving(self, n: int) -> int:
        lease = self.processes[n].lease
        if isinstance(lease, _WallClockCompetitor):
            return lease.serving_by_wall(self.wall_ms(n))
        return lease.serving(self.clock(n))

    def key(self) -> tuple[object, ...]:
        """Everything that decides what may happen next, with times relative to now."""
        parts: list[object] = []
        for n, process in enumerate(self.processes):
            lease, ids, now = process.lease, process.ids, self.clock(n)
            view = lease.view
            parts.append(
                (
                    lease.incarnation,
                    None if view is None else view.revision,
                    lease._era,
                    max(-1, lease._deadline_ns - now),
                    max(-1, lease._renew_at_ns - now),
                    lease._seen_revision,
                    min(now - lease._seen_at_ns, FAR_PAST_NS),
                    ids._next,
                    ids._fence,
                    process.era,
                    process.busy,
                )
            )
        flights = tuple(
            (
                f.owner,
                tuple(map(type, f.events)),
                f.step.era if f.step is not None else f.fence,
                f.expected,
                max(self.now - f.sent_ns, -1),
                f.applied,
                None if f.answer is None else f.answer.revision,
            )
            for f in self.flights
        )
        root = self.root
        lease_now = root.lease
        open_era = None if lease_now is None else (lease_now.era, lease_now.confirmed, lease_now.revision)
        return (root.last.revision, open_era, root.sealed is None, root.id_fence, self.handed, *parts, flights)

    # -- moves --------------------------------------------------------------------------------------------------------
    def moves(self) -> Iterator[tuple[str, int]]:
        late = sum(f.owner < 0 for f in self.flights)
        for number, flight in enumerate(self.flights):
            yield ("answer" if flight.applied is not None else "deliver"), number
            if flight.owner >= 0 and (flight.applied is not None or late < self.setting.late_appends_max):
                yield "give up", number
        for n in range(len(self.processes)):
            yield "see", n
            yield "act", n
            yield "take", n
            if self.incarnations < self.setting.coordinators + self.setting.restarts:
                yield "restart", n
        yield "tick", 0

    def play(self, move: tuple[str, int]) -> tuple[World, str] | None:
        """The world after the move and what happened, in words; None if the move is not possible or changes nothing.
        Raises Broken."""
        kind, n = move
        world = self.copy()
        if kind == "tick":
            world.now += QUANTUM_NS
            return world, f"{QUANTUM_NS // 1_000_000} ms pass"
        if kind == "deliver":
            return world, world._deliver(n)
        flight = world.flights[n] if kind in ("answer", "give up") else None
        if flight is not None:
            return world, world._answer(n, flight) if kind == "answer" else world._give_up(n, flight)
        name = "abc"[n]
        process = world.processes[n] = world.processes[n].copy()
        if kind == "see":
            known = process.lease.view
            if known is not None and known.revision == world.root.last.revision:
                return None
            process.lease.observe(LeaseView.of(world.root), world.clock(n))
            return world, f"{name} sees revision {world.root.last.revision}"
        if kind == "restart":
            world.processes[n] = world._process(n)
            world.flights = tuple(
                replace(f, owner=-1) if f.owner == n else f for f in world.flights if f.owner != n or f.applied is None
            )
            return world, f"{name} dies; another process of that name starts"
        words = world._act(n, process) if kind == "act" else world._take(n, process)
        return None if words is None else (world, words)

    def _act(self, n: int, process: Process) -> str | None:
        """One turn of the runtime (CoordinatorNode._turn): the step of the lease that is due, else a window of ids."""
        if process.busy or process.lease.view is None:
            return None
        now = self.clock(n)
        step = process.lease.decide(now, self.wall_ms(n), id_start=1, tso_start=1)
        if step is not None:
            process.lease.sent(step, now)
            flight = Flight(n, step.events, step.expected_revision, step, now)
        else:
            era = self.serving(n)
            if not era:
                return None
            if era != process.era:
                process.era = era
                process.ids.begin(process.lease.view.id_fence)
            fence = process.ids.next_fence()
            if fence is None:
                return None
            flight = Flight(n, (AllocatorFenced(Allocator.ID, fence, era),), 0, None, now, fence)
        process.busy = True
        self.flights = (*self.flights, flight)
        return f"{'abc'[n]} sends {flight.words()}"

    def _take(self, n: int, process: Process) -> str | None:
        if not process.era or self.serving(n) != process.era:
            return None
        value = process.ids.take(1)
        if value is None:
            return None
        era = process.era
        words = f"{'abc'[n]} hands out {value} in era {era}"
        if value <= self.handed:
            what = "twice" if value == self.handed else f"after {self.handed}"
            raise Broken(f"inheritance: id {value} is handed out {what} (eras {self.handed_by} and {era}): {words}")
        self.handed, self.handed_by = value, era
        return words

    def _deliver(self, number: int) -> str:
        flight = self.flights[number]
        self.root = _fork(self.root)
        words = f"the log gets {flight.words()} of {'abc'[flight.owner] if flight.owner >= 0 else 'a caller gone'}"
        try:
            records = self.root.apply(
                flight.events, term=1, index=self.root.last.index + 1, expected_revision=flight.expected
            )
        except NoKVError as error:
            applied = False
            words += f": refused, {error}"
        else:
            applied = True
            words += ": accepted" if records else ": true already"
            for record in records:
                self._accepted(record.event)
        if flight.owner < 0:
            self.flights = self.flights[:number] + self.flights[number + 1 :]
        else:
            answered = replace(flight, applied=applied, answer=LeaseView.of(self.root))
            self.flights = (*self.flights[:number], answered, *self.flights[number + 1 :])
        return words

    def _accepted(self, event: RootEvent) -> None:
        match event:
            case LeaseGranted():
                self.granted = event.era
            case LeaseSealed():
                self.sealed = event.era
            case AllocatorFenced() if event.era <= self.sealed:
                raise Broken(f"silence: era {event.era} is sealed and fences ids up to {event.fence}")
            case AllocatorFenced() if event.era < self.granted:
                raise Broken(f"primacy: era {event.era} fences ids although era {self.granted} is granted")
            case HandoffConfirmed() if event.id_frontier <= self.handed:
                raise Broken(
                    f"inheritance: era {event.era} starts at {event.id_frontier}, "
                    f"era {self.handed_by} has handed out {self.handed}"
                )

    def _answer(self, number: int, flight: Flight) -> str:
        n = flight.owner
        process = self.processes[n] = self.processes[n].copy()
        process.busy = False
        self.flights = self.flights[:number] + self.flights[number + 1 :]
        assert flight.answer is not None
        if flight.applied:
            if flight.step is not None:
                process.lease.acknowledged(flight.step, flight.sent_ns)
            elif self.serving(n) == process.era:
                process.ids.extend(flight.fence)
            process.lease.observe(flight.answer, self.clock(n))
        return f"{'abc'[n]} learns that {flight.words()} was {'accepted' if flight.applied else 'refused'}"

    def _give_up(self, number: int, flight: Flight) -> str:
        n = flight.owner
        process = self.processes[n] = self.processes[n].copy()
        process.busy = False
        gone = flight.applied is not None
        left = () if gone else (replace(flight, owner=-1),)
        self.flights = self.flights[:number] + left + self.flights[number + 1 :]
        return f"{'abc'[n]} stops waiting for {flight.words()}" + (": the answer is lost" if gone else "")

    def words(self, move: tuple[str, int]) -> str:
        """A move before it is known what comes of it."""
        kind, n = move
        if kind in ("deliver", "answer", "give up"):
            return f"{kind}: {self.flights[n].words()}"
        return kind if kind == "tick" else f"{'abc'[n]}: {kind}"

    # -- checks -------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        if self.protocol.root is RootState:
            self.root.check()
        eras = [self.serving(n) for n in range(len(self.processes))]
        if sum(map(bool, eras)) > 1:
            who = ", ".join(f"{'abc'[n]} era {era}" for n, era in enumerate(eras) if era)
            raise Broken(f"primacy: two processes serve at once ({who})")
        for n, era in enumerate(eras):
            if era and era <= self.sealed:
                raise Broken(f"silence: {'abc'[n]} serves era {era}, which is sealed")

    def check_finality(self, n: int) -> None:
        """Leave process n alone with the log: it must come to serve, with the hand-over closed."""
        world, trace = self, []
        for _ in range(SETTLE_MOVES_MAX):
            if world.serving(n) and world.root.sealed is None and world.root.lease is not None:
                return
            own = next((i for i, f in enumerate(world.flights) if f.owner == n), None)
            moves = [("see", n), ("act", n), ("tick", 0)]
            if own is not None:
                moves.insert(0, ("deliver" if world.flights[own].applied is None else "answer", own))
            for move in moves:
                after = world.play(move)
                if after is not None:
                    world = after[0]
                    trace.append(after[1])
                    break
        broken = Broken(f"finality: {'abc'[n]} alone does not finish the hand-over in {SETTLE_MOVES_MAX} moves")
        broken.trace = trace
        raise broken


def _fork(state: RootState) -> RootState:
    last = (state.last, state.cluster_epoch, state.membership_epoch, state.id_fence, state.tso_fence, state.era)
    return type(state)(*last, state.lease, state.sealed)


@dataclass(slots=True)
class Exploration:
    """What was seen. `depth`: all interleavings of so many moves were played; one more was begun if `cut`."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    cut: bool = False
    settled: int = 0
    broken: Broken | None = None
    levels: list[int] = field(default_factory=list)


def _start(setting: Setting, protocol: Protocol) -> tuple[World, list[str]]:
    world, trace = World.fresh(setting, protocol), []

    def play(*moves: tuple[str, int]) -> None:
        nonlocal world
        for move in moves:
            after = world.play(move)
            if after is not None:
                world = after[0]
                trace.append(after[1])

    if setting.serving:
        play(("see", 0))
        for _ in range(3):  # grant, confirm, fence
            play(("act", 0), ("deliver", 0), ("answer", 0))
        play(*(("see", n) for n in range(1, setting.coordinators)), ("take", 0), ("take", 0), ("act", 0))
        play(*[("tick", 0)] * 3)
    else:
        play(*(("see", n) for n in range(setting.coordinators)))
    return world, trace


def explore(
    setting: Setting, protocol: Protocol | None = None, *, depth: int = 12, states_max: int = 1 << 62
) -> Exploration:
    """Every interleaving up to `depth` moves, or until `states_max` worlds were seen. Stops at the first broken
    guarantee and returns it."""
    start, opening = _start(setting, protocol or Protocol())
    found = Exploration(states=1, levels=[1])
    parents: dict[int, tuple[int, str]] = {}
    seen = {start.key(): 0}
    frontier = [(0, start)]
    try:
        for level in range(1, depth + 1):
            following: list[tuple[int, World]] = []
            for number, world in frontier:
                for move in world.moves():
                    found.transitions += 1
                    parent, words = number, world.words(move)
                    after = world.play(move)
                    if after is None:
                        continue
                    parent, words = number, after[1]
                    after[0].check()
                    key = after[0].key()
                    if key in seen:
                        continue
                    identity = seen[key] = len(seen)
                    parents[identity] = (number, words)
                    following.append((identity, after[0]))
                    if identity % FINALITY_EVERY == 0 and after[0].protocol.root is RootState:
                        after[0].check_finality(identity // FINALITY_EVERY % setting.coordinators)
                        found.settled += 1
                if len(seen) >= states_max:
                    found.cut = True
                    return found
            found.depth = level
            found.levels.append(len(following))
            frontier = following
    except Broken as broken:
        moves = [words]
        while parent in parents:
            parent, words = parents[parent]
            moves.append(words)
        broken.trace = [*opening, *reversed(moves), *broken.trace]
        found.broken = broken
    finally:
        found.states = len(seen)
    return found


# -- protocols with one part taken out ---------------------------------------------------------------------------------
class _RootWithoutSeal(RootState):
    """A grant simply replaces the era before it; what that era still sends is taken for good."""

    __slots__ = ()

    def _granted(self, event: LeaseGranted, revision: int) -> bool:
        if event.era != self.era + 1:
            return super()._granted(event, revision)
        self.lease = None
        return super()._granted(event, revision)

    def _open_era(self, era: int) -> Lease:
        lease = super()._open_era(self.era)
        return lease if era == self.era else replace(lease, era=era, confirmed=True)


class _CompetitorWithoutSeal(LeaseCompetitor):
    __slots__ = ()

    def decide(self, now_ns: int, now_ms: int, *, id_start: int = 1, tso_start: int = 1) -> LeaseStep | None:
        step = super().decide(now_ns, now_ms, id_start=id_start, tso_start=tso_start)
        if step is None or step.kind is not StepKind.CAMPAIGN:
            return step
        return replace(step, events=tuple(e for e in step.events if not isinstance(e, LeaseSealed)))


class _TokenOnlyCompetitor(LeaseCompetitor):
    """Eras are numbered and sealed, but nobody keeps time: who was granted an era serves until it hears of a newer."""

    __slots__ = ()

    def serving(self, now_ns: int) -> int:
        lease = self._mine()
        return lease.era if lease is not None and lease.confirmed and lease.era == self._era else 0

    def _may_take(self, lease: Lease, now_ns: int) -> bool:
        return self._mine() is None


class _RootWithoutCoverage(RootState):
    """A successor may confirm with any frontier."""

    __slots__ = ()

    def _confirmed(self, event: HandoffConfirmed) -> bool:
        lease = self._held(event.holder, event.era)
        if lease.confirmed:
            return False
        self.id_fence, self.tso_fence = event.id_frontier, event.tso_frontier
        self.lease = replace(lease, confirmed=True)
        return True


class _CompetitorWithoutCoverage(LeaseCompetitor):
    """States the frontiers that it remembers itself."""

    __slots__ = ()

    def decide(self, now_ns: int, now_ms: int, *, id_start: int = 1, tso_start: int = 1) -> LeaseStep | None:
        step = super().decide(now_ns, now_ms, id_start=id_start, tso_start=tso_start)
        if step is None or step.kind is not StepKind.CONFIRM:
            return step
        return replace(step, events=(HandoffConfirmed(self.coordinator_id, step.era, id_start, tso_start),))


class _WallClockCompetitor(_CompetitorWithoutSeal):
    """An era ends when the wall clock says so, on every machine by its own."""

    __slots__ = ()

    def serving_by_wall(self, wall_ms: int) -> int:
        lease = self._mine()
        if lease is None or not lease.confirmed or lease.era != self._era:
            return 0
        return lease.era if wall_ms < lease.lease_until_ms else 0

    def decide(self, now_ns: int, now_ms: int, *, id_start: int = 1, tso_start: int = 1) -> LeaseStep | None:
        lease = self._view.lease if self._view is not None else None
        if lease is not None and self._mine() is None:
            # `_may_take` compares with this: due now, or not for a long time.
            overdue = now_ms >= lease.lease_until_ms
            self._seen_at_ns = now_ns - FAR_PAST_NS if overdue else now_ns
        return super().decide(now_ns, now_ms, id_start=id_start, tso_start=tso_start)


VARIANTS: dict[str, Protocol] = {
    "lease without seal": Protocol(_RootWithoutSeal, _CompetitorWithoutSeal),
    "token only": Protocol(RootState, _TokenOnlyCompetitor),
    "no coverage of the predecessor's frontier": Protocol(_RootWithoutCoverage, _CompetitorWithoutCoverage),
    "clock-only expiry": Protocol(_RootWithoutSeal, _WallClockCompetitor),
}

SETTINGS: dict[str, Setting] = {
    "two, one serving": Setting(),
    "two, fresh": Setting(serving=False),
    "two, clocks 15 % apart": Setting(rates=(93, 107, 100)),
    "three, one serving": Setting(coordinators=3),
    "three, fresh": Setting(coordinators=3, serving=False),
}
