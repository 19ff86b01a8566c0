"""The control plane under faults in virtual time, and the planted bugs that must be found. The seed is in every
failure."""

from __future__ import annotations

import pytest

from nokv.testing.sim.__main__ import main
from nokv.testing.sim.control.mutants import CONTROL_MUTANTS, planted
from nokv.testing.sim.control.world import ControlSim
from nokv.testing.sim.values import Violation

FOUND_BY: dict[int, str] = {
    23: "calls whose time is short always began at the first meta-root: stopped, it hid the others for ever",
}
"""Seeds that found a bug of the product, and which."""
SLICE = {
    "serve_past_deadline": range(4, 5),
    "grant_without_seal": range(1),
    "take_beyond_fence": range(1),
    "tail_skips_after_state": range(1),
    "restore_forgets_changes": range(2),
}
"""Mutants and seeds known to find them soon; all of them against all seeds are long."""


def play(seed: int) -> None:
    try:
        report = ControlSim(seed).run()
    except Violation as violation:
        pytest.fail(f"{violation}\nreplay: python -m nokv.testing.sim control --seeds {seed}:{seed + 1}")
    assert report.events > 1000 and report.operations > 0


@pytest.mark.parametrize("seed", range(6))
def test_seeds(seed: int) -> None:  # R1, R1i, MR-01 to MR-09, CO-03 to CO-10
    play(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 500, 25))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 25):
        play(seed)


@pytest.mark.parametrize("seed", FOUND_BY)
def test_seeds_that_found_something(seed: int) -> None:
    play(seed)


def test_the_same_seed_gives_the_same_trace() -> None:
    traces = [[ControlSim(seed, seconds=1.0).run().trace for seed in range(2)] for _ in range(2)]
    assert traces[0] == traces[1]
    assert len(set(traces[0])) == 2


@pytest.mark.parametrize("name", SLICE)
def test_planted_bugs_are_found_at_once(name: str) -> None:  # R8
    for seed in SLICE[name]:
        try:
            with planted(name):
                ControlSim(seed).run()
        except Violation:
            return
    pytest.fail(f"{name} survived the seeds {SLICE[name]}")


@pytest.mark.long
@pytest.mark.parametrize("name", CONTROL_MUTANTS)
def test_planted_bugs_are_found(name: str) -> None:  # R8; as a table: --mutants
    for seed in range(500):
        try:
            with planted(name):
                ControlSim(seed).run()
        except Violation:
            return
    pytest.fail(f"{name} survived 500 seeds")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "--seeds", "3:4", "--twice"]) == 0
    out = capsys.readouterr().out
    assert "1 seeds, 0 violations" in out and "service back" in out and "faults injected: " in out
    assert main(["control", "--seeds", "0:1", "--mutant", "take_beyond_fence"]) == 1
    out = capsys.readouterr().out
    assert "replay: python -m nokv.testing.sim control --seeds 0:1 --mutant take_beyond_fence" in out
