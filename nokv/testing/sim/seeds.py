"""One seed, one outcome: what a process of the simulator's pool runs. (It cannot import names of a `__main__`.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nokv.testing.sim.control.mutants import CONTROL_MUTANTS, planted
from nokv.testing.sim.control.world import ControlReport, ControlSim
from nokv.testing.sim.mutants import MUTANTS
from nokv.testing.sim.raft import RaftSim
from nokv.testing.sim.values import SimReport, Violation

__all__ = ["SYSTEMS", "Outcome", "System", "first_found", "run_seed"]


@dataclass(slots=True)
class System:
    """`run(seed, mutant)` plays one schedule, with a planted bug if one is named; raises Violation."""

    run: Callable[[int, str], SimReport | ControlReport]
    mutants: Sequence[str]


@dataclass(slots=True)
class Outcome:
    """A report, or what was violated."""

    seed: int
    report: SimReport | ControlReport | None
    violation: str = ""


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
        return Outcome(seed, None, str(violation))
    return Outcome(seed, report)


def first_found(system: str, name: str, seeds: range) -> tuple[str, int, str]:
    """(mutant, seeds needed or 0, what was violated)."""
    for count, seed in enumerate(seeds, 1):
        try:
            SYSTEMS[system].run(seed, name)
        except Violation as violation:
            return name, count, str(violation)
    return name, 0, ""
