"""One seed, one outcome: what a process of the simulator's pool runs. (It cannot import names of a `__main__`.)"""

from __future__ import annotations

from dataclasses import dataclass

from nokv.testing.sim.mutants import MUTANTS
from nokv.testing.sim.raft import RaftSim
from nokv.testing.sim.values import SimReport, Violation

__all__ = ["Outcome", "first_found", "run_seed"]


@dataclass(slots=True)
class Outcome:
    """A report, or what was violated."""

    seed: int
    report: SimReport | None
    violation: str = ""


def run_seed(seed: int, mutant: str, twice: bool) -> Outcome:
    bugs = MUTANTS[mutant] if mutant else None
    try:
        report = RaftSim(seed, bugs=bugs).run()
        if twice and RaftSim(seed, bugs=bugs).run().trace != report.trace:
            raise Violation("the same seed gave another trace")
    except Violation as violation:
        return Outcome(seed, None, str(violation))
    return Outcome(seed, report)


def first_found(name: str, seeds: range) -> tuple[str, int, str]:
    """(mutant, seeds needed or 0, what was violated)."""
    for count, seed in enumerate(seeds, 1):
        try:
            RaftSim(seed, bugs=MUTANTS[name]).run()
        except Violation as violation:
            return name, count, str(violation)
    return name, 0, ""
