"""The shell's language, pure: one line of text -> a `Command`, or a UsageError that says what is wrong and where.

    line    := [ "\\" ] verb { argument | option }
    option  := "--" name [ "=" literal ] | "--" name literal        (which options take a value: `verbs.py`)
    literal := see nokv.literal

A line whose quotes are not closed is incomplete: the prompt then asks for more (`is_complete`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

from nokv.errors import UsageError
from nokv.literal import parse_literal
from nokv_shell.verbs import VERBS, Verb

__all__ = ["Command", "Token", "is_complete", "parse", "tokenize"]

_TOKEN = re.compile(
    r"""(?P<blank>\s+)|(?P<option>--[a-z][a-z-]*=?)|(?P<literal>b?"(?:[^"\\]|\\.)*"|[^\s"]+)|(?P<open>b?"(?:[^"\\]|\\.)*\\?)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # literal, option, open
    text: str
    start: int


@dataclass(slots=True)
class Command:
    verb: Verb
    arguments: list[bytes] = field(default_factory=list)
    options: dict[str, bytes | bool] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """The option as a whole number >= 0. UsageError otherwise."""
        value = self.options.get(name)
        if value is None or isinstance(value, bool):
            return default
        if not value.isdigit():
            raise UsageError(f"--{name} takes a whole number, not {value.decode('utf-8', 'replace')!r}")
        return int(value)

    def literal(self, name: str) -> bytes | None:
        value = self.options.get(name)
        return value if isinstance(value, bytes) else None


def tokenize(line: str) -> list[Token]:
    """The tokens of a line, blanks dropped. An unclosed quote is one token of kind `open`."""
    tokens, position = [], 0
    while position < len(line):
        match = _TOKEN.match(line, position)
        assert match is not None, "the pattern covers every character"
        kind = match.lastgroup or ""
        if kind != "blank":
            tokens.append(Token(kind, match.group(), position))
        position = match.end()
    return tokens


def is_complete(line: str) -> bool:
    return all(token.kind != "open" for token in tokenize(line))


def parse(line: str) -> Command | None:
    """The command of a line; None if it is blank or a `#` comment. UsageError names the verb, option or literal."""
    tokens = tokenize(line)
    if not tokens or tokens[0].text.startswith("#"):
        return None
    if tokens[-1].kind == "open":
        raise UsageError(f"a quote opened at column {tokens[-1].start + 1} is not closed")
    name = tokens[0].text
    verb = VERBS.get(name)
    if verb is None:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else "help lists the verbs"
        raise UsageError(f"unknown verb {name!r}", hint=hint)
    command = Command(verb)
    rest = iter(tokens[1:])
    for token in rest:
        if token.kind != "option":
            command.arguments.append(parse_literal(token.text))
            continue
        option = token.text[2:].rstrip("=")
        if option not in verb.options:
            close = difflib.get_close_matches(option, verb.options, n=1)
            hint = f"did you mean --{close[0]}?" if close else f"usage: {verb.usage}"
            raise UsageError(f"{verb.name} has no option --{option}", hint=hint)
        if not verb.options[option]:
            command.options[option] = True
            continue
        value = next(rest, None)
        if value is None or value.kind == "option":
            raise UsageError(f"--{option} needs a value", hint=f"usage: {verb.usage}")
        command.options[option] = parse_literal(value.text)
    low, high = verb.arguments
    if not low <= len(command.arguments) <= high:
        raise UsageError(f"{verb.name} takes {verb.arguments_text}, not {len(command.arguments)}", hint=verb.usage)
    return command
