"""What to do after a failed attempt. Pure: the table of region errors, and the backoff.

The rule for writes: a reply that says "nothing was proposed" may be retried at once; an attempt whose fate is unknown
(`Indeterminate`) never is. A put looks harmless to repeat, but between the two another client's write may have come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    KeyNotInRegion,
    NoKVError,
    NotLeader,
    NotSupported,
    ReadOnly,
    RegionNotFound,
    StoreNotMatch,
    UsageError,
)

__all__ = ["Action", "Backoff", "RegionErrorKind", "Verdict", "judge"]


class RegionErrorKind(Enum):
    """The numbers of `RegionErrorKind` in kv.proto."""

    NOT_LEADER = 1
    EPOCH_NOT_MATCH = 2
    REGION_NOT_FOUND = 3
    KEY_NOT_IN_REGION = 4
    STORE_NOT_MATCH = 5
    BUSY = 6
    DEADLINE = 7
    INDETERMINATE = 8
    INVALID = 9
    NOT_SUPPORTED = 10
    READ_ONLY = 11
    CORRUPTION = 12


class Action(Enum):
    FAIL = auto()  # tell the caller
    AGAIN = auto()  # nothing learnt: wait, then the same place
    LEADER = auto()  # the error named another leader, or none
    REGIONS = auto()  # the error carried newer regions, or none
    ROUTE = auto()  # the route is wrong: ask the coordinator


@dataclass(frozen=True, slots=True)
class Verdict:
    action: Action
    error: NoKVError


_TABLE: dict[RegionErrorKind, tuple[Action, type[NoKVError]]] = {
    RegionErrorKind.NOT_LEADER: (Action.LEADER, NotLeader),
    RegionErrorKind.EPOCH_NOT_MATCH: (Action.REGIONS, EpochNotMatch),
    RegionErrorKind.REGION_NOT_FOUND: (Action.ROUTE, RegionNotFound),
    RegionErrorKind.KEY_NOT_IN_REGION: (Action.ROUTE, KeyNotInRegion),
    RegionErrorKind.STORE_NOT_MATCH: (Action.ROUTE, StoreNotMatch),
    RegionErrorKind.BUSY: (Action.AGAIN, Busy),
    RegionErrorKind.DEADLINE: (Action.AGAIN, DeadlineExceeded),
    RegionErrorKind.INDETERMINATE: (Action.FAIL, Indeterminate),
    RegionErrorKind.INVALID: (Action.FAIL, UsageError),
    RegionErrorKind.NOT_SUPPORTED: (Action.FAIL, NotSupported),
    RegionErrorKind.READ_ONLY: (Action.FAIL, ReadOnly),
    RegionErrorKind.CORRUPTION: (Action.FAIL, Corruption),
}
assert set(_TABLE) == set(RegionErrorKind)


def judge(kind: int, message: str, *, write: bool) -> Verdict:
    """A kind this client does not know comes from a newer store: fail, since nobody knows whether it was proposed."""
    try:
        known = RegionErrorKind(kind)
    except ValueError:
        unknown = f"the store answered with an error of unknown kind {kind}: {message}"
        return Verdict(Action.FAIL, Indeterminate(unknown) if write else NotSupported(unknown))
    action, error = _TABLE[known]
    if known is RegionErrorKind.INDETERMINATE and not write:
        action = Action.AGAIN  # a read changes nothing
    return Verdict(action, error(message or known.name.lower().replace("_", " ")))


class Backoff:
    """Doubling waits with jitter: the n-th is between half and all of min(cap, base * 2**n)."""

    def __init__(self, randrange: Callable[[int], int], *, base_ms: int = 8, cap_ms: int = 400) -> None:
        assert 0 < base_ms <= cap_ms
        self._randrange = randrange
        self._limit_ms = base_ms
        self._cap_ms = cap_ms

    def next_s(self) -> float:
        limit_us = self._limit_ms * 1000
        self._limit_ms = min(self._cap_ms, self._limit_ms * 2)
        return (limit_us // 2 + self._randrange(limit_us // 2 + 1)) / 1_000_000
