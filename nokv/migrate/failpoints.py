"""Where a test may stop a migration: a port that every step passes through. Production passes `NO_FAILPOINTS`.

`parse_failpoints` understands what the command line reads from NOKV_FAILPOINT: `name:kill` or `name:error`, separated
by commas. Names are the milestones and stages of `checkpoint.py`, with `before-` in front for the moment before it is
written.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Protocol

from nokv.errors import NoKVError, UsageError

__all__ = ["NO_FAILPOINTS", "FailpointHit", "Failpoints", "parse_failpoints"]


class FailpointHit(NoKVError):
    """A test asked for this failure."""


class Failpoints(Protocol):
    def hit(self, name: str) -> None:
        """Returns, raises FailpointHit, or never returns."""
        ...


class _None:
    def hit(self, name: str) -> None:
        return


class _Parsed:
    def __init__(self, actions: Mapping[str, str]) -> None:
        self.actions = actions

    def hit(self, name: str) -> None:
        action = self.actions.get(name)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "error":
            raise FailpointHit(f"failpoint {name}")


NO_FAILPOINTS: Failpoints = _None()


def parse_failpoints(text: str) -> Failpoints:
    """`NOKV_FAILPOINT` -> Failpoints. UsageError if it is not `name:kill` or `name:error`."""
    actions = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, action = part.rpartition(":")
        if not name or action not in ("kill", "error"):
            raise UsageError(f"failpoint {part!r} is not name:kill or name:error")
        actions[name] = action
    return _Parsed(actions) if actions else NO_FAILPOINTS
