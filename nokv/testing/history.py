"""What several clients did to registers, and whether one order of instants explains it.

    history = History()
    call = history.begin(b"k", ("put", b"v1"))
    history.ok(call)              # or history.ok(call, value) of a get, or history.unknown(call); refused: neither
    history.violation()           # None, or which key and why

Each key is a register of its own. Values put must be unique: a read then names the write that it saw. That makes the
search short: a put of unknown fate that nobody saw is left out (it may have happened unseen, or never), one that was
seen happened before the first read of it returned. What was refused must not have happened: no read may show it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from nokv.testing.linearizability import Operation, find_violation

__all__ = ["Call", "History", "register_step"]


def register_step(state: Hashable, argument: Any, result: Any, known: bool) -> tuple[bool, Hashable]:
    """State and read result: the value, None if there is none. ("put", value), ("delete",) or ("get",)."""
    if argument[0] == "get":
        return result == state, state
    return True, argument[1] if argument[0] == "put" else None


@dataclass(slots=True)
class Call:
    key: bytes
    operation: Operation


class History:
    """Not thread safe. `now` gives nanoseconds that never go back."""

    def __init__(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        self.now = now
        self.outcomes: Counter[str] = Counter()
        self._done: dict[bytes, list[Operation]] = {}
        self._acknowledged: list[int] = []  # when writes were called that were acknowledged, in order of their return

    def begin(self, key: bytes, argument: tuple[Any, ...], process: int = 0) -> Call:
        return Call(key, Operation(self.now(), argument, process=process))

    def ok(self, call: Call, result: bytes | None = None) -> None:
        call.operation.ret = self.now()
        call.operation.result = result
        self._record(call, "ok")
        if call.operation.argument[0] != "get":
            self._acknowledged.append(call.operation.call)

    def unknown(self, call: Call) -> None:
        """It may have happened, or may happen later, or never."""
        self._record(call, "unknown")

    def refused(self, call: Call) -> None:
        """It did not happen and will not."""
        self.outcomes[f"{call.operation.argument[0]} refused"] += 1

    def acknowledged_since(self, time_ns: int) -> bool:
        """Was a write acknowledged that was called after `time_ns`?"""
        return any(call > time_ns for call in self._acknowledged[-64:])

    def _record(self, call: Call, outcome: str) -> None:
        self.outcomes[f"{call.operation.argument[0]} {outcome}"] += 1
        self._done.setdefault(call.key, []).append(call.operation)

    def operations(self, key: bytes) -> list[Operation]:
        """What the search needs of one key's history."""
        seen: dict[bytes, int] = {}
        for operation in self._done.get(key, []):
            if operation.argument[0] == "get" and operation.ret is not None and operation.result is not None:
                first = seen.get(operation.result, operation.ret)
                seen[operation.result] = min(first, operation.ret)
        found = []
        for operation in self._done.get(key, []):
            if operation.ret is None and operation.argument[0] == "put":
                if operation.argument[1] not in seen:
                    continue
                operation = replace(operation, ret=max(operation.call, seen[operation.argument[1]]))
            if operation.argument[0] != "get" or operation.ret is not None:
                found.append(operation)
        return found

    def violation(self) -> str | None:
        for key in sorted(self._done):
            operations = self.operations(key)
            why = find_violation(operations, register_step, None)
            if why is not None:
                return f"key {key!r}: {why}"
        return None
