"""What Tab offers: verbs, options of the verb, then keys of the store (a bounded scan, kept for two seconds)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from nokv.errors import NoKVError
from nokv.literal import format_literal, parse_literal
from nokv_shell.grammar import tokenize
from nokv_shell.verbs import VERBS

__all__ = ["ShellCompleter"]

KEYS_MAX = 50
KEEP_NS = 2_000_000_000


class ShellCompleter(Completer):
    """`keys(prefix, limit)` reads the target and may block: wrap this in a ThreadedCompleter."""

    def __init__(self, keys: Callable[[bytes, int], list[bytes]], monotonic_ns: Callable[[], int]) -> None:
        self._keys = keys
        self._monotonic_ns = monotonic_ns
        self._kept: dict[bytes, tuple[int, list[bytes]]] = {}

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        tokens = tokenize(line)
        typing = tokens[-1] if tokens and not line.endswith((" ", "\n")) else None
        if not tokens or (typing and len(tokens) == 1):
            word = typing.text if typing else ""
            for name, candidate in VERBS.items():
                if name.startswith(word):
                    yield Completion(name, start_position=-len(word), display_meta=candidate.summary)
            return
        verb = VERBS.get(tokens[0].text)
        if verb is None:
            return
        word = typing.text if typing else ""
        if word.startswith("-"):
            for option in verb.options:
                if f"--{option}".startswith(word):
                    yield Completion(f"--{option}", start_position=-len(word))
            return
        if verb.name == "help":
            yield from (Completion(n, start_position=-len(word)) for n in VERBS if n.startswith(word))
            return
        if verb.key_argument and len(tokens) - (typing is not None) == 1:
            for key in self._matching_keys(word):
                yield Completion(format_literal(key), start_position=-len(word))

    def _matching_keys(self, word: str) -> list[bytes]:
        try:
            prefix = parse_literal(word + '"' if word.startswith(('"', 'b"')) and not word.endswith('"') else word)
        except NoKVError:
            return []  # half-typed: nothing to offer yet
        now = self._monotonic_ns()
        kept = self._kept.get(prefix)
        if kept and now - kept[0] < KEEP_NS:
            return kept[1]
        try:
            keys = self._keys(prefix, KEYS_MAX)
        except NoKVError:
            return []  # the target does not answer; typing must go on, and the verb itself will say so
        self._kept = {prefix: (now, keys)}
        return keys
