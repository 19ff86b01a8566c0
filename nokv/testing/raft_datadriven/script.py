"""The format of script files: cases, their arguments, and the outputs that they expect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nokv.errors import NoKVError

__all__ = ["Case", "ScriptError", "number", "parse"]


class ScriptError(NoKVError, ValueError):
    """The script itself is wrong: an unknown command or argument."""


@dataclass(slots=True)
class Case:
    """One case. `before` are the lines up to and including the first `----`, as written."""

    line: int
    command: str
    arguments: list[tuple[str, list[str]]]
    """(key, values) in order; a bare word has no values."""
    input: str
    expected: str
    before: list[str] = field(default_factory=list)

    def find(self, key: str) -> list[str] | None:
        for name, values in self.arguments:
            if name == key:
                return values
        return None

    def value(self, key: str, default: str = "") -> str:
        values = self.find(key)
        return values[0] if values else default

    def flag(self, key: str) -> bool:
        return self.value(key, "false") == "true"

    def words(self) -> list[str]:
        return [name for name, values in self.arguments if not values]

    def word(self, position: int = 0) -> str:
        words = self.words()
        if position >= len(words):
            raise ScriptError(f"argument {position + 1} is missing")
        return words[position]

    def node_ids(self) -> list[int]:
        return [number(word) for word in self.words()]


def number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ScriptError(f"{text!r} is not a number")
    return int(text)


_TOKEN = re.compile(r"\s*([^\s=()]+)(?:=(?:\(([^)]*)\)|(\S*)))?")


def _parse_command(text: str) -> tuple[str, list[tuple[str, list[str]]]]:
    words: list[tuple[str, list[str]]] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ScriptError(f"cannot read {text[position:]!r} in {text!r}")
        key, many, one = match.groups()
        if many is not None:
            words.append((key, [part.strip() for part in re.split(r"[,\s]+", many.strip()) if part.strip()]))
        else:
            words.append((key, [one] if one is not None else []))
        position = match.end()
    return words[0][0], words[1:]


def parse(text: str) -> Iterator[Case | str]:
    """Cases, and between them the lines (comments, blanks) that belong to none."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    at = 0
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            yield lines[at]
            at += 1
            continue
        start = at
        command = lines[at]
        while command.endswith("\\") and at + 1 < len(lines):
            at += 1
            command = command[:-1] + " " + lines[at].strip()
        at += 1
        first_input = at
        while at < len(lines) and lines[at] != "----":
            at += 1
        if at == len(lines):
            raise ScriptError(f"line {start + 1}: no ---- after {command!r}")
        name, arguments = _parse_command(command)
        given = "\n".join(lines[first_input:at])
        at += 1
        before = lines[start:at]
        first_expected = at
        if at < len(lines) and lines[at] == "----":
            first_expected = at = at + 1
            while lines[at : at + 2] != ["----", "----"]:
                if at >= len(lines):
                    raise ScriptError(f"line {start + 1}: the doubled ---- is not closed")
                at += 1
            expected = lines[first_expected:at]
            at += 2
        else:
            while at < len(lines) and lines[at].strip():
                at += 1
            expected = lines[first_expected:at]
        yield Case(start + 1, name, arguments, given, "".join(line + "\n" for line in expected), before)
