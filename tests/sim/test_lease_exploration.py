"""Every interleaving of two and three coordinators up to a bound, and what each part of the protocol is for."""

from __future__ import annotations

import pytest

from nokv.testing.sim.__main__ import main
from nokv.testing.sim.lease import SETTINGS, VARIANTS, Setting, explore

STATES = 20_000
STATES_LONG = 400_000
EXPECTED = {
    "lease without seal": "primacy",
    "token only": "silence",
    "no coverage of the predecessor's frontier": "inheritance",
    "clock-only expiry": "primacy",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_interleaving_keeps_the_four_guarantees(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explore(SETTINGS[name], depth=30, states_max=STATES)
    with capsys.disabled():  # what was explored is the point of the run: shown although it passes
        print(f"\n{name}: {found.states} states, {found.transitions} transitions, depth {found.depth}")
    assert found.broken is None, str(found.broken)
    assert found.states >= STATES and found.settled > STATES // 100
    assert found.depth >= 5


@pytest.mark.long
@pytest.mark.parametrize("name", SETTINGS)
def test_deeper(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explore(SETTINGS[name], depth=60, states_max=STATES_LONG)
    with capsys.disabled():
        print(f"\n{name}: {found.states} states, {found.transitions} transitions, depth {found.depth}")
    assert found.broken is None, str(found.broken)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_weakened_protocol_has_a_counterexample(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explore(Setting(), VARIANTS[name], depth=30, states_max=STATES)
    assert found.broken is not None
    with capsys.disabled():
        print(f"\nweakened: {name}, {found.states} states: {found.broken}")
    assert found.broken.message.startswith(EXPECTED[name])
    assert 10 < len(found.broken.trace) < 40


def test_the_command_prints_states_and_traces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lease", "--states", "3000"]) == 0
    output = capsys.readouterr().out
    assert output.count(" states, ") == len(SETTINGS)
    assert output.count("weakened: ") == len(VARIANTS)
    assert "NO COUNTEREXAMPLE" not in output and "NOT SAFE" not in output
