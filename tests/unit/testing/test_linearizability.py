"""The checker itself: against histories with a known answer, and against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nokv.testing.linearizability import Operation, find_violation, versioned_register_step

START = (0, 0)


def put(call: int, ret: int | None, value: int, version: int | None = None) -> Operation:
    return Operation(call, ("put", value), ret, version)


def get(call: int, ret: int, value: int, version: int) -> Operation:
    return Operation(call, ("get",), ret, (value, version))


def check(*history: Operation) -> str | None:
    return find_violation(history, versioned_register_step, START)


def test_sequential() -> None:
    assert check() is None
    assert check(put(1, 2, 7, 1), get(3, 4, 7, 1)) is None


def test_stale_read() -> None:
    assert check(put(1, 2, 7, 1), get(3, 4, 0, 0)) is not None


def test_overlapping_read_may_see_either() -> None:
    assert check(put(1, 10, 7, 1), get(2, 3, 0, 0), get(4, 5, 7, 1)) is None


def test_no_way_back() -> None:
    assert check(put(1, 10, 7, 1), get(2, 3, 7, 1), get(4, 5, 0, 0)) is not None


def test_lost_and_repeated_writes() -> None:
    assert check(put(1, 2, 7, 1), put(3, 4, 8, 1)) is not None
    assert check(put(1, 2, 7, 1), put(3, 4, 8, 3)) is not None


def test_an_open_write_may_happen_late_or_never() -> None:
    assert check(put(1, None, 7), get(2, 3, 0, 0), get(4, 5, 7, 1)) is None
    assert check(put(1, None, 7), get(2, 3, 0, 0)) is None
    assert check(put(5, None, 7), get(2, 3, 7, 1)) is not None  # but not before it was asked for


def brute_force(history: list[Operation]) -> bool:
    for count in range(len(history) + 1):
        for order in itertools.permutations(range(len(history)), count):
            rest = set(range(len(history))) - set(order)
            if any(history[number].ret is not None for number in rest):
                continue
            if any(
                (ret := history[later].ret) is not None and ret < history[earlier].call
                for earlier, later in itertools.combinations(order, 2)
            ):
                continue
            state: tuple[int, int] = START
            for number in order:
                one = history[number]
                possible, state = versioned_register_step(  # type: ignore[assignment]
                    state, one.argument, one.result, one.ret is not None or one.result is not None
                )
                if not possible:
                    break
            else:
                return True
    return False


OPERATIONS = st.builds(
    lambda call, length, kind, value, version: (
        get(call, call + length, value, version)
        if kind == 0
        else put(call, call + length if kind == 1 else None, value, version if kind == 1 else version or None)
    ),
    st.integers(0, 8),
    st.integers(1, 6),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 3),
)


@given(st.lists(OPERATIONS, max_size=5))
def test_agrees_with_brute_force(history: list[Operation]) -> None:
    assert (find_violation(history, versioned_register_step, START) is None) == brute_force(history)
