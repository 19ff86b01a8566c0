"""Which leaders should move: operations for the answers to store heartbeats. Pure; times and the view are passed in.

Leader balance: a store whose leaders outnumber those of another by two or more hands one over, until no two stores that
could take each other's differ by more than one. A store that is leaving hands all of them over. Only the lease holder
schedules. An operation is sent with every answer to its store until it has ended:

    done       another heartbeat of the region names the target as leader
    overtaken  it names somebody else, or the region is gone
    refused    the store says why (also: throttled, stale, unknown)
    expired    its deadline has passed

A region that an operation was for rests for the cooldown, unless the operation merely expired. Nothing here is durable:
an operation is a hint, and a successor decides anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from nokv.coordinator.view import ClusterView, Liveness
from nokv.region import PeerRole, StoreState

__all__ = ["TRANSFER_LEADER", "Operation", "Scheduler"]

TRANSFER_LEADER = "transfer-leader"
EXAMINED_MAX = 256
"""Regions looked at for one heartbeat; the next heartbeat goes on with others."""
COOLING_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Operation:
    operation_id: int
    kind: str
    region_id: int
    source_store: int
    target_store: int
    target_peer_id: int
    era: int
    deadline_ns: int
    deadline_ms: int  # the same by the wall clock, for the store


class Scheduler:
    """One thread. `burst`: new operations in one answer. `pending_max`: under way from one store."""

    __slots__ = (
        "_by_store",
        "_cooling",
        "_era",
        "_next",
        "_pending",
        "burst",
        "cooldown_ns",
        "deadline_ns",
        "ended",
        "issued",
        "pending_max",
    )

    def __init__(
        self, *, burst: int = 4, pending_max: int = 16, deadline_ms: int = 10_000, cooldown_ms: int = 30_000
    ) -> None:
        self.burst = burst
        self.pending_max = pending_max
        self.deadline_ns = deadline_ms * 1_000_000
        self.cooldown_ns = cooldown_ms * 1_000_000
        self.issued = 0
        self.ended: dict[str, int] = {}
        self._era = 0
        self._next = 0
        self._pending: dict[int, Operation] = {}  # by region
        self._by_store: dict[int, dict[int, Operation]] = {}  # by source store, then by region
        self._cooling: dict[int, int] = {}  # region -> until

    @property
    def pending(self) -> list[Operation]:
        return list(self._pending.values())

    def begin(self, era: int) -> None:
        """A new era of ours: ids start over above the era, and what was under way is forgotten."""
        if era != self._era:
            self._era, self._next = era, 0
            self._pending.clear()
            self._by_store.clear()

    # -- news ---------------------------------------------------------------------------------------------------------
    def leader_reported(self, region_id: int, store_id: int, now_ns: int) -> None:
        """A heartbeat of the region says that its leader is on `store_id`."""
        operation = self._pending.get(region_id)
        if operation is None or store_id == operation.source_store:
            return
        self._end(operation, "done" if store_id == operation.target_store else "overtaken", now_ns)

    def outcomes_reported(self, outcomes: Iterable[tuple[int, str]], now_ns: int) -> None:
        """(operation id, outcome) as the store says. `applied` means asked of Raft: the region's heartbeat decides."""
        known = {operation.operation_id: operation for operation in self._pending.values()}
        for operation_id, outcome in outcomes:
            operation = known.get(operation_id)
            if operation is not None and outcome != "applied":
                self._end(operation, outcome, now_ns)

    def _end(self, operation: Operation, outcome: str, now_ns: int) -> None:
        del self._pending[operation.region_id]
        del self._by_store[operation.source_store][operation.region_id]
        self.ended[outcome] = self.ended.get(outcome, 0) + 1
        if outcome != "expired":
            self._cooling[operation.region_id] = now_ns + self.cooldown_ns
        if len(self._cooling) > COOLING_MAX:
            self._cooling = {region: until for region, until in self._cooling.items() if until > now_ns}

    # -- decisions ----------------------------------------------------------------------------------------------------
    def operations_for(self, store_id: int, view: ClusterView, now_ns: int, now_ms: int) -> list[Operation]:
        """What that store should do: what is under way, and what is new."""
        assert self._era, "begin() first"
        for operation in list(self._pending.values()):
            if now_ns >= operation.deadline_ns:
                self._end(operation, "expired", now_ns)
            elif view.truth.region(operation.region_id) is None:
                self._end(operation, "overtaken", now_ns)
        store = view.truth.stores.get(store_id)
        if store is None or store.state is StoreState.TOMBSTONE:
            return []
        mine = self._by_store.setdefault(store_id, {})
        if len(mine) < self.pending_max:
            self._balance(store_id, store.state is StoreState.OFFLINE, view, now_ns, now_ms)
        return list(mine.values())

    def _balance(self, source: int, leaving: bool, view: ClusterView, now_ns: int, now_ms: int) -> None:
        led = view.leaders.get(source)
        if not led:
            return
        counts = self._counts(view, now_ns)
        new = 0
        room = min(self.burst, self.pending_max - len(self._by_store[source]))
        for region_id in list(islice(led, EXAMINED_MAX)):
            if new >= room:
                return
            led[region_id] = led.pop(region_id)  # the next heartbeat begins with the ones not looked at
            found = self._target(region_id, source, leaving, counts, view, now_ns)
            if found is None:
                continue
            target_store, target_peer = found
            self._next += 1
            operation = Operation(
                (self._era << 32) | self._next,
                TRANSFER_LEADER,
                region_id,
                source,
                target_store,
                target_peer,
                self._era,
                now_ns + self.deadline_ns,
                now_ms + self.deadline_ns // 1_000_000,
            )
            self._pending[region_id] = self._by_store[source][region_id] = operation
            self.issued += 1
            new += 1
            counts[source] = counts.get(source, 0) - 1
            counts[target_store] += 1

    def _counts(self, view: ClusterView, now_ns: int) -> dict[int, int]:
        """Leaders per store that may take more, as they will be once everything under way is done."""
        counts = {
            store_id: len(view.leaders.get(store_id, ()))
            for store_id, store in view.truth.stores.items()
            if store.state is StoreState.UP and view.liveness(store_id, now_ns) == Liveness.UP
        }
        for operation in self._pending.values():
            for store_id, change in ((operation.source_store, -1), (operation.target_store, 1)):
                if store_id in counts:
                    counts[store_id] += change
        return counts

    def _target(
        self, region_id: int, source: int, leaving: bool, counts: dict[int, int], view: ClusterView, now_ns: int
    ) -> tuple[int, int] | None:
        """(store, peer) that should lead the region instead, if any."""
        truth = view.truth
        region = truth.region(region_id)
        if region is None or region_id in self._pending or self._cooling.get(region_id, 0) > now_ns:
            return None
        if region_id in truth.pending or region_id in truth.pending_ranges:
            return None  # a change is under way: its leader has enough to do
        best: tuple[int, int, int] | None = None
        for peer in region.peers:
            if peer.store_id != source and peer.role is PeerRole.VOTER and peer.store_id in counts:
                candidate = (counts[peer.store_id], peer.store_id, peer.peer_id)
                best = candidate if best is None or candidate < best else best
        if best is None or (not leaving and counts.get(source, 0) - best[0] < 2):
            return None
        return best[1], best[2]
