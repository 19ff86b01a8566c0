"""Simulated groups under faults, and the planted bugs that must be found. The seed is in every failure."""

from __future__ import annotations

import pytest

from nokv.testing.sim.__main__ import main
from nokv.testing.sim.mutants import MUTANTS
from nokv.testing.sim.raft import RaftSim
from nokv.testing.sim.values import Violation

FOUND_BY: dict[int, str] = {
    2: "a restarted single voter read at a commit index older than what it had answered",
    827: "the votes of a candidate that died before its own vote was durable",
    1059: "a change that removed all voters entered the log",
}


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_seeds(first: int) -> None:  # R1, R1i, RAFT-01 to -04, -07, -09, -14
    for seed in range(first, first + 20):
        try:
            report = RaftSim(seed).run()
        except Violation as violation:
            pytest.fail(f"{violation}\nreplay: python -m nokv.testing.sim raft --seeds {seed}:{seed + 1}")
        assert report.events > 100


@pytest.mark.parametrize("seed", FOUND_BY)
def test_seeds_that_found_something(seed: int) -> None:
    RaftSim(seed).run()


def test_the_same_seed_gives_the_same_trace() -> None:
    traces = [[RaftSim(seed).run().trace for seed in range(5)] for _ in range(2)]
    assert traces[0] == traces[1]
    assert len(set(traces[0])) == 5


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name: str) -> None:  # R8; as a table: --mutants
    for seed in range(500):
        try:
            RaftSim(seed, bugs=MUTANTS[name]).run()
        except Violation:
            return
    pytest.fail(f"{name} survived 500 seeds")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["raft", "--seeds", "0:2", "--twice"]) == 0
    out = capsys.readouterr().out
    assert "2 seeds, 0 violations" in out
    assert main(["raft", "--seeds", "0:10", "--mutant", "vote_twice"]) == 1
    assert "--mutant vote_twice" in capsys.readouterr().out
