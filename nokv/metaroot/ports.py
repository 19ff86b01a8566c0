"""The rooted log as a coordinator sees it: a port with two backends.

    replicated   `RootClient`: meta-root processes, 1, 3 or 5 of them, over the network
    local        `LocalRoot`: a log with one voter in this process (PD-lite), called directly, no socket in between

Both write the same log in the same files, so that `nokv root` reads either, and both keep the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from nokv.metaroot.events import RootEvent, RootRecord, RootToken
from nokv.metaroot.state import RootState
from nokv.metaroot.wire import Assessment

__all__ = ["Appended", "RootLog", "TailUpdate"]


@dataclass(slots=True)
class Appended:
    """`state` is without stores and regions. No records: everything was true already."""

    records: list[RootRecord]
    state: RootState
    already: bool


@dataclass(slots=True)
class TailUpdate:
    """`advance`: `records` follow on (none: a sign of life). `reload`, `bootstrap`: start over from `state`."""

    outcome: str
    records: list[RootRecord]
    state: RootState | None
    last: RootToken


class RootLog(Protocol):
    async def append(
        self,
        events: Sequence[RootEvent],
        *,
        expected_revision: int = 0,
        author: str = "",
        time_ms: int = 0,
        timeout_s: float | None = None,
    ) -> Appended:
        """All or none of the events, durable on a quorum on return. Raises the refusal; Unavailable if nothing was
        done, Indeterminate if that is not known."""
        ...

    async def assess(
        self, events: Sequence[RootEvent], *, expected_revision: int = 0, timeout_s: float | None = None
    ) -> Assessment:
        """What `append` would answer now, without writing."""
        ...

    async def snapshot(
        self, *, linearizable: bool = True, without_catalog: bool = False, timeout_s: float | None = None
    ) -> RootState:
        """Linearizable: has everything acknowledged before the call."""
        ...

    def tail(self, from_revision: int = 0) -> AsyncIterator[TailUpdate]:
        """Follow the log for ever; the token never goes back."""
        ...

    async def close(self) -> None: ...
