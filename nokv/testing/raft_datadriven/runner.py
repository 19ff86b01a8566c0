"""One script, from its text to the text with real outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nokv.testing.raft_datadriven.calculators import ConfChangeScript, QuorumScript
from nokv.testing.raft_datadriven.interaction import Interaction
from nokv.testing.raft_datadriven.script import Case, ScriptError, parse

__all__ = ["KINDS", "Result", "run_file", "run_text"]


@dataclass(slots=True)
class Result:
    text: str
    cases: int
    mismatches: list[tuple[Case, str]]


def run_text(kind: str, text: str) -> Result:
    """The script with real outputs in place of the expected ones. State lasts for one text."""
    handle = KINDS[kind]()
    out: list[str] = []
    count = 0
    mismatches = []
    for item in parse(text):
        if isinstance(item, str):
            out.append(item + "\n")
            continue
        count += 1
        try:
            actual = handle(item)
        except ScriptError as error:
            raise ScriptError(f"line {item.line}: {item.command}: {error}") from error
        if actual and not actual.endswith("\n"):
            actual += "\n"
        if actual != item.expected:
            mismatches.append((item, actual))
        out.extend(line + "\n" for line in item.before)
        if "" in actual.split("\n")[:-1]:
            out.append(f"----\n{actual}----\n----\n")
        else:
            out.append(actual)
    return Result("".join(out), count, mismatches)


def run_file(kind: str, path: Path) -> Result:
    return run_text(kind, path.read_text(encoding="utf-8"))


KINDS: dict[str, Callable[[], Callable[[Case], str]]] = {
    "interaction": Interaction,
    "confchange": ConfChangeScript,
    "quorum": QuorumScript,
}
