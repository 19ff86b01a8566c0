"""python -m nokv.testing.raft_diagrams FILE: redraw a page's state diagrams from the tables that the code obeys."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from nokv.raft.progress import PROGRESS_TRANSITIONS
from nokv.raft.quiet import QUIET_TRANSITIONS
from nokv.raft.types import ROLE_TRANSITIONS

__all__ = ["redraw"]

_BEGIN, _END = "<!-- diagrams: begin -->", "<!-- diagrams: end -->"


_S = TypeVar("_S", bound=enum.Enum)


def _draw(table: Mapping[tuple[_S, _S], str]) -> str:
    lines = [f"    {before.name} --> {after.name}: {why}" for (before, after), why in table.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def redraw(page: str) -> str:
    """The page with fresh diagrams between its two markers. Raises ValueError if it has none."""
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    return (
        f"{before}{_BEGIN}\nA member's role:\n\n{_draw(ROLE_TRANSITIONS)}\n\nWhat a leader thinks of a member:\n\n"
        f"{_draw(PROGRESS_TRANSITIONS)}\n\nWhether a member is quiet:\n\n{_draw(QUIET_TRANSITIONS)}\n{_END}{after}"
    )


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(redraw(path.read_text(encoding="utf-8")), encoding="utf-8")
