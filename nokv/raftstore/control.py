"""The coordinator as a store sees it: a port with plain values. `nokv.coordinator.client` implements it over gRPC.

Everything here is optional for the data path: a store whose coordinator is gone keeps serving, and what it has to
publish waits in a visible retry queue (`publisher.py`). All methods are called from the store's event loop. Errors:
`Unavailable` (and its subclasses) or `RetryError` mean "later"; any other NoKVError: the coordinator refuses for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nokv.metaroot.events import RootEvent
from nokv.region import Peer, Region, Store

__all__ = ["ControlPort", "LeaderReport", "OperationOutcome", "StoreOperation", "StoreReport"]


@dataclass(frozen=True, slots=True)
class OperationOutcome:
    """What became of an operation: applied, refused, expired, throttled, stale, unknown."""

    operation_id: int
    outcome: str
    detail: str = ""


@dataclass(slots=True)
class StoreReport:
    """What a store heartbeat carries: facts of this moment, never truth."""

    store: Store
    region_count: int = 0
    leader_count: int = 0
    used_bytes: int = 0
    mode: str = "cluster"
    outcomes: tuple[OperationOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaderReport:
    """A region that this store leads, as of now."""

    region: Region
    leader: Peer
    term: int
    applied_index: int


@dataclass(slots=True)
class StoreOperation:
    """What the coordinator asks a store to do. Kinds: transfer-leader."""

    operation_id: int
    kind: str
    region_id: int
    target_peer_id: int
    deadline_ms: int = 0
    era: int = 0


@runtime_checkable
class ControlPort(Protocol):
    async def put_store(self, store: Store) -> None:
        """Register store id -> address (a stable, rooted record). Idempotent."""
        ...

    async def get_store(self, store_id: int) -> Store | None: ...

    async def store_heartbeat(self, report: StoreReport) -> tuple[int, list[StoreOperation]]:
        """Returns (a recent timestamp of the TSO or 0, operations to execute)."""
        ...

    async def region_heartbeat(self, reports: Sequence[LeaderReport]) -> None: ...

    async def publish(self, event: RootEvent) -> None:
        """Append the event to the rooted log. Returns once it is durable there, or was true already (idempotent)."""
        ...

    async def close(self) -> None: ...
