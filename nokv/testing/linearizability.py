"""Is a history explained by an order in which each operation happened at one instant between its call and return?

Wing and Gong's search with Lowe's memory of (operations done, state) already tried ("Testing for linearizability",
2017). An operation whose outcome is unknown has no return: it may happen at any time after its call, or never.

    history = [Operation(call=1, ret=4, argument=("put", 5), result=1), ...]
    find_violation(history, register_step, initial_state)      # None, or a short explanation
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Operation", "find_violation", "versioned_register_step"]


@dataclass(slots=True)
class Operation:
    """Times are any integers; `ret` is None if nobody was told that it happened (its result may be known otherwise)."""

    call: int
    argument: Any
    ret: int | None = None
    result: Any = None
    process: int = 0


Step = Callable[[Hashable, Any, Any, bool], "tuple[bool, Hashable]"]
"""step(state, argument, result, known) -> (possible, next state); `known` is False if the result is not known."""


def versioned_register_step(state: Hashable, argument: Any, result: Any, known: bool) -> tuple[bool, Hashable]:
    """State and read result: (value, version). ("put", value) answers the new version."""
    assert isinstance(state, tuple)
    if argument[0] == "get":
        return result == state, state
    version = state[1] + 1
    return (not known or result == version), (argument[1], version)


class _Node:
    """A call or a return in a doubly linked list, in order of time."""

    __slots__ = ("match", "next", "number", "previous")

    def __init__(self, number: int) -> None:
        self.number = number
        self.match: _Node | None = None  # of a call: its return
        self.next: _Node | None = None
        self.previous: _Node | None = None


def find_violation(history: Sequence[Operation], step: Step, initial: Hashable) -> str | None:
    """None if the history is linearizable. Exponential in the worst case, quick on histories of a few open calls."""
    head, tail = _Node(-1), _link(history)
    head.next = tail
    if tail is not None:
        tail.previous = head
    state = initial
    done = 0
    stack: list[tuple[_Node, Hashable]] = []
    seen: set[tuple[int, Hashable]] = set()
    missing = sum(operation.ret is not None for operation in history)
    deepest = 0
    entry = head.next
    while missing:
        if entry is not None and entry.match is not None:
            operation = history[entry.number]
            returned = operation.ret is not None
            known = returned or operation.result is not None
            possible, after = step(state, operation.argument, operation.result, known)
            key = (done | 1 << entry.number, after)
            if possible and key not in seen:
                seen.add(key)
                stack.append((entry, state))
                state = after
                done |= 1 << entry.number
                missing -= returned
                deepest = max(deepest, len(stack))
                _lift(entry)
                entry = head.next
            else:
                entry = entry.next
            continue
        # A return whose call could not be placed before it (or the end): the last choice was wrong.
        if not stack:
            blocked = "" if entry is None else f"; no place for {history[entry.number]}"
            return f"not linearizable after {deepest} of {len(history)} operations{blocked}"
        entry, state = stack.pop()
        done &= ~(1 << entry.number)
        missing += history[entry.number].ret is not None
        _unlift(entry)
        entry = entry.next
    return None


def _link(history: Sequence[Operation]) -> _Node | None:
    events: list[tuple[float, int, int, _Node]] = []
    for number, operation in enumerate(history):
        call, ret = _Node(number), _Node(number)
        call.match = ret
        # At equal times calls come first: the operations then overlap, which allows more orders.
        events.append((operation.call, 0, number, call))
        events.append((float("inf") if operation.ret is None else operation.ret, 1, number, ret))
    events.sort(key=lambda event: event[:3])
    nodes = [event[3] for event in events]
    for left, right in itertools.pairwise(nodes):
        left.next, right.previous = right, left
    return nodes[0] if nodes else None


def _lift(entry: _Node) -> None:
    for node in (entry, entry.match):
        assert node is not None and node.previous is not None
        node.previous.next = node.next
        if node.next is not None:
            node.next.previous = node.previous


def _unlift(entry: _Node) -> None:
    for node in (entry.match, entry):
        assert node is not None and node.previous is not None
        node.previous.next = node
        if node.next is not None:
            node.next.previous = node
