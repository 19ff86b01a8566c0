"""Real processes, real clients, one fault after the other: every history must be linearizable (R5, first cut).

The harness and the command that replays a seed are in tests/e2e/faults.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.counts import count
from tests.e2e.faults import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("seed", "small"), [(1, False), (2, True)])
def test_short(tmp_path: Path, seed: int, small: bool) -> None:
    adversary = run(seed, tmp_path / "c", seconds=8, small=small)
    assert adversary.history.outcomes["put ok"] > 50


@pytest.mark.long
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("seed", range(10, 10 + count(3, 3, 30)))
def test_matrix(tmp_path: Path, seed: int, small: bool) -> None:
    run(seed, tmp_path / "c", seconds=count(20, 20, 90), small=small)
