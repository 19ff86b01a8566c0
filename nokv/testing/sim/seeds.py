"""One seed, one outcome: what a process of the simulator's pool runs. (It cannot import names of a `__main__`.)"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nokv.testing.sim.control.mutants import CONTROL_MUTANTS, planted
from nokv.testing.sim.control.world import ControlReport, ControlSim
from nokv.testing.sim.mutants import MUTANTS
from nokv.testing.sim.raft import RaftSim
from nokv.testing.sim.values import SimReport, Violation

__all__ = ["SYSTEMS", "Found", "Outcome", "System", "first_found", "run_seed"]


@dataclass(slots=True)
class System:
    """`run(seed, mutant)` plays one schedule, with a planted bug if one is named. Raises Violation; anything else that
    it raises is an error of the simulator or of what it runs, with or without the bug."""

    run: Callable[[int, str], SimReport | ControlReport]
    mutants: Sequence[str]


@dataclass(slots=True)
class Outcome:
    """A report, or what was violated, or the traceback of an error."""

    seed: int
    report: SimReport | ControlReport | None
    violation: str = ""
    error: str = ""


@dataclass(slots=True)
class Found:
    """A planted bug, and what found it; or the traceback of what should not have happened on the way."""

    mutant: str
    seeds: int = 0
    """How many were needed; 0 if it survived them all."""
    violation: str = ""
    error: str = ""


def _run_raft(seed: int, mutant: str) -> SimReport:
    return RaftSim(seed, bugs=MUTANTS[mutant] if mutant else None).run()


def _run_control(seed: int, mutant: str) -> ControlReport:
    with planted(mutant):
        return ControlSim(seed).run()


SYSTEMS = {
    "raft": System(_run_raft, tuple(MUTANTS)),
    "control": System(_run_control, tuple(CONTROL_MUTANTS)),
}


def run_seed(system: str, seed: int, mutant: str, twice: bool) -> Outcome:
    run = SYSTEMS[system].run
    try:
        report = run(seed, mutant)
        if twice and run(seed, mutant).trace != report.trace:
            raise Violation("the same seed gave another trace")
    except Violation as violation:
        return Outcome(seed, None, violation=str(violation))
    except Exception:
        return Outcome(seed, None, error=traceback.format_exc())
    return Outcome(seed, report)


def first_found(system: str, name: str, seeds: Iterable[int]) -> Found:
    for count, seed in enumerate(seeds, 1):
        outcome = run_seed(system, seed, name, False)
        if outcome.report is None:
            error = f"seed {seed}: {outcome.error}" if outcome.error else ""
            return Found(name, count, outcome.violation, error)
    return Found(name)
