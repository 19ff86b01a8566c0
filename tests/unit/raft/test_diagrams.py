"""The diagrams in docs/raft.md are those of the tables that the code obeys."""

from __future__ import annotations

from pathlib import Path

import pytest

from nokv.errors import InvariantError
from nokv.raft.progress import Inflights, Progress
from nokv.testing.raft_diagrams import redraw

PAGE = Path(__file__).parents[3] / "docs" / "raft.md"


def test_the_page_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert redraw(page) == page, "run: python -m nokv.testing.raft_diagrams docs/raft.md"


def test_a_transition_that_is_not_in_the_table_is_refused() -> None:
    progress = Progress(match=0, next=1, inflights=Inflights(1, 1))
    progress.become_snapshot(5)
    with pytest.raises(InvariantError, match="StateSnapshot -> StateReplicate"):
        progress.become_replicate()
