"""kill -9 and SIGSTOP of the lease holder and of the root leader: service is back within 3 s, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from tests.e2e.control_faults import BACK_S, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_two_rounds(tmp_path: Path) -> None:  # R5
    adversary = run(1, tmp_path / "c", rounds=2, back_s=6.0)  # other tests run beside this one
    assert len(adversary.outages) == 2 and len(adversary.stores) > 10


@pytest.mark.long
def test_twenty_rounds(tmp_path: Path) -> None:
    """Beside other tests an election may fail once: most of each kind take 3 s at most, and none twice that."""
    adversary = run(2, tmp_path / "c", rounds=20, back_s=2 * BACK_S)
    kinds: dict[str, list[float]] = {}
    for seconds, what in adversary.outages:  # round 3: SIGSTOP of the root leader (meta-root-2)
        kinds.setdefault(what.partition(": ")[2].partition(" (")[0], []).append(seconds)
    assert {len(found) for found in kinds.values()} == {5} and len(kinds) == 4, kinds
    assert all(median(found) <= BACK_S for found in kinds.values()), kinds
