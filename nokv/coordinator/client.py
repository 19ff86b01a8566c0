"""CoordinatorClient: the control plane from afar, over several coordinators. The store's `ControlPort` among its
methods.

What only the lease holder may do is redirected to it; the rest is answered by whoever is there. Every call here may be
repeated: events and registrations are idempotent, ids and timestamps that got lost are gaps. Heartbeats go to all
coordinators, so that standbys are warm; they count as delivered if one took them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from nokv.coordinator.node import Freshness
from nokv.coordinator.view import Route
from nokv.coordinator.wire import route_from_pb, transition_from_pb
from nokv.errors import NoKVError, NotFound, Unavailable
from nokv.metaroot.changes import Transition
from nokv.metaroot.client import Dial, Redirector, dial_plain
from nokv.metaroot.events import NO_TOKEN, RootEvent, RootToken
from nokv.metaroot.wire import (
    Assessment,
    assessment_from_pb,
    event_to_pb,
    peer_to_pb,
    region_to_pb,
    store_from_pb,
    store_to_pb,
    token_from_pb,
    token_to_pb,
)
from nokv.pb import coordinator_pb2 as pb
from nokv.pb import coordinator_pb2_grpc, root_pb2
from nokv.region import Peer, Region, Store

__all__ = ["CoordinatorClient", "CoordinatorStatus", "RoutedView", "StoreInfo"]

_FRESHNESS = {
    Freshness.BEST_EFFORT: pb.FRESHNESS_BEST_EFFORT,
    Freshness.BOUNDED: pb.FRESHNESS_BOUNDED,
    Freshness.STRONG: pb.FRESHNESS_STRONG,
}


_FRESHNESS_FROM_PB = {value: key for key, value in _FRESHNESS.items()}


class OutcomeLike(Protocol):
    @property
    def operation_id(self) -> int: ...
    @property
    def outcome(self) -> str: ...
    @property
    def detail(self) -> str: ...


SILENCE_S = 2.0
"""Who let an attempt run out is not asked again for so long: about the time in which another takes over its lease."""


class StoreReportLike(Protocol):
    """A store's heartbeat, as `nokv.raftstore.control.StoreReport` has it."""

    store: Store
    region_count: int
    leader_count: int
    used_bytes: int
    mode: str
    outcomes: Sequence[OutcomeLike]


class LeaderReportLike(Protocol):
    """As `nokv.raftstore.control.LeaderReport` has it."""

    @property
    def region(self) -> Region: ...
    @property
    def leader(self) -> Peer: ...
    @property
    def term(self) -> int: ...
    @property
    def applied_index(self) -> int: ...


@dataclass(slots=True)
class StoreOperation:
    """What a coordinator asks a store to do. The same fields as `nokv.raftstore.control.StoreOperation`."""

    operation_id: int
    kind: str
    region_id: int
    target_peer_id: int
    deadline_ms: int = 0
    era: int = 0


@dataclass(slots=True)
class RoutedView:
    """How fresh an answer was."""

    served: RootToken
    current: RootToken
    root_lag: int
    degraded: str
    by_lease_holder: bool
    catch_up: str = ""
    freshness: Freshness = Freshness.BEST_EFFORT


@dataclass(slots=True)
class StoreInfo:
    """`store` is truth; the rest a view."""

    store: Store
    liveness: str
    last_heartbeat_ms: int
    region_count: int
    leader_count: int
    used_bytes: int


@dataclass(slots=True)
class CoordinatorStatus:
    coordinator_id: str
    lease_holder: bool
    holder: str
    era: int
    view: RoutedView
    id_next: int
    tso_last: int
    reads_served: int
    region_count: int
    store_count: int


def _view(message: pb.ViewInfo) -> RoutedView:
    return RoutedView(
        token_from_pb(message.served),
        token_from_pb(message.current),
        message.root_lag,
        message.degraded,
        message.served_by_lease_holder,
        message.catch_up,
        _FRESHNESS_FROM_PB.get(message.freshness, Freshness.BEST_EFFORT),
    )


class CoordinatorClient:
    """One per event loop."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_s: float = 5.0,
        rng: random.Random | None = None,
        dial: Dial = dial_plain,
    ) -> None:
        self._timeout_s = timeout_s
        self._coordinators: Redirector[Any] = Redirector(
            addresses,
            coordinator_pb2_grpc.CoordinatorStub,
            "coordinator",
            timeout_s=timeout_s,
            rng=rng if rng is not None else random.Random(),
            dial=dial,
            silence_s=SILENCE_S,
        )

    async def close(self) -> None:
        await self._coordinators.close()

    # -- what a store needs (ControlPort) -----------------------------------------------------------------------------
    async def put_store(self, store: Store) -> None:
        request = pb.PutStoreRequest(store=store_to_pb(store))
        await self._coordinators.call(lambda stub, limit: stub.PutStore(request, timeout=limit), write=True)

    async def get_store(self, store_id: int) -> Store | None:
        request = pb.GetStoreRequest(store_id=store_id)
        try:
            response: pb.GetStoreResponse = await self._coordinators.call(
                lambda stub, limit: stub.GetStore(request, timeout=limit)
            )
        except NotFound:
            return None
        return store_from_pb(response.store)

    async def store_heartbeat(self, report: StoreReportLike) -> tuple[int, list[StoreOperation]]:
        """(a recent timestamp or 0, operations)."""
        request = pb.StoreHeartbeatRequest(
            store=store_to_pb(report.store),
            stats=pb.StoreStats(
                store_id=report.store.store_id,
                region_count=report.region_count,
                leader_count=report.leader_count,
                used_bytes=report.used_bytes,
                mode=report.mode,
            ),
            outcomes=[
                pb.OperationOutcome(operation_id=o.operation_id, outcome=o.outcome, detail=o.detail[:256])
                for o in report.outcomes
            ],
        )
        answers: list[pb.StoreHeartbeatResponse] = await self._everywhere("StoreHeartbeat", request)
        operations = [
            StoreOperation(o.operation_id, o.kind, o.region_id, o.target_peer_id, o.deadline_ms, o.era)
            for answer in answers
            for o in answer.operations
        ]
        return max(answer.timestamp for answer in answers), operations

    async def region_heartbeat(self, reports: Sequence[LeaderReportLike]) -> None:
        request = pb.RegionHeartbeatRequest(
            regions=[
                pb.LeaderReport(
                    region=region_to_pb(report.region),
                    leader=peer_to_pb(report.leader),
                    term=report.term,
                    applied_index=report.applied_index,
                )
                for report in reports
            ]
        )
        await self._everywhere("RegionHeartbeat", request)

    async def publish(self, event: RootEvent) -> None:
        """Durable in the rooted log on return, or true there before."""
        await self.publish_all([event])

    async def publish_all(self, events: Sequence[RootEvent]) -> tuple[RootToken, bool]:
        """All or none. (token, whether everything was true before)."""
        request = pb.PublishRootEventRequest(events=[event_to_pb(e) for e in events])
        response: pb.PublishRootEventResponse = await self._coordinators.call(
            lambda stub, limit: stub.PublishRootEvent(request, timeout=limit), write=True
        )
        return token_from_pb(response.token), response.already

    async def assess(self, events: Sequence[RootEvent], *, expected_revision: int = 0) -> Assessment:
        """Would the log take these events, all together, as it is now? Nothing is written."""
        request = pb.AssessRootEventRequest(
            events=[event_to_pb(e) for e in events], expected_revision=expected_revision
        )
        response: root_pb2.RootAssessResponse = await self._coordinators.call(
            lambda stub, limit: stub.AssessRootEvent(request, timeout=limit)
        )
        return assessment_from_pb(response)

    async def transitions(
        self, region_id: int = 0, *, phase: str = "", freshness: Freshness = Freshness.BEST_EFFORT
    ) -> tuple[list[tuple[Transition, str]], RoutedView]:
        """(change, `truth` or `view`) of one region or all, in one phase or any."""
        request = pb.ListTransitionsRequest(region_id=region_id, phase=phase, freshness=_FRESHNESS[freshness])
        response: pb.ListTransitionsResponse = await self._coordinators.call(
            lambda stub, limit: stub.ListTransitions(request, timeout=limit)
        )
        return [transition_from_pb(t) for t in response.transitions], _view(response.view)

    # -- routes -------------------------------------------------------------------------------------------------------
    async def region_by_key(
        self,
        key: bytes,
        *,
        freshness: Freshness = Freshness.BEST_EFFORT,
        at_least: RootToken = NO_TOKEN,
        max_lag: int = 0,
        address: str | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Route, RoutedView]:
        """`address` asks that coordinator and no other."""
        request = pb.GetRegionByKeyRequest(
            key=key, freshness=_FRESHNESS[freshness], at_least=token_to_pb(at_least), max_lag=max_lag
        )
        ask = self._coordinators.call if address is None else partial(self._coordinators.at, address)
        response = await ask(lambda stub, limit: stub.GetRegionByKey(request, timeout=limit), timeout_s)
        return route_from_pb(response.route), _view(response.view)

    async def region_by_id(
        self,
        region_id: int,
        *,
        freshness: Freshness = Freshness.BEST_EFFORT,
        at_least: RootToken = NO_TOKEN,
        max_lag: int = 0,
    ) -> tuple[Route, RoutedView]:
        request = pb.GetRegionByIdRequest(
            region_id=region_id, freshness=_FRESHNESS[freshness], at_least=token_to_pb(at_least), max_lag=max_lag
        )
        response: pb.RouteResponse = await self._coordinators.call(
            lambda stub, limit: stub.GetRegionById(request, timeout=limit)
        )
        return route_from_pb(response.route), _view(response.view)

    async def scan_regions(
        self,
        start_key: bytes = b"",
        end_key: bytes = b"",
        limit: int = 0,
        *,
        freshness: Freshness = Freshness.BEST_EFFORT,
        at_least: RootToken = NO_TOKEN,
        max_lag: int = 0,
    ) -> tuple[list[Route], RoutedView]:
        request = pb.ScanRegionsRequest(
            start_key=start_key,
            end_key=end_key,
            limit=limit,
            freshness=_FRESHNESS[freshness],
            at_least=token_to_pb(at_least),
            max_lag=max_lag,
        )
        response: pb.ScanRegionsResponse = await self._coordinators.call(
            lambda stub, seconds: stub.ScanRegions(request, timeout=seconds)
        )
        return [route_from_pb(r) for r in response.routes], _view(response.view)

    async def remove_region(self, region_id: int) -> None:
        request = pb.RemoveRegionRequest(region_id=region_id)
        await self._coordinators.call(lambda stub, limit: stub.RemoveRegion(request, timeout=limit), write=True)

    async def list_stores(self) -> list[StoreInfo]:
        response: pb.ListStoresResponse = await self._coordinators.call(
            lambda stub, limit: stub.ListStores(pb.ListStoresRequest(), timeout=limit)
        )
        return [
            StoreInfo(
                store_from_pb(s.store),
                s.liveness,
                s.last_heartbeat_ms,
                s.stats.region_count,
                s.stats.leader_count,
                s.stats.used_bytes,
            )
            for s in response.stores
        ]

    # -- ids and timestamps -------------------------------------------------------------------------------------------
    async def alloc_id(self, count: int = 1, *, timeout_s: float | None = None) -> int:
        """The first of `count` consecutive ids."""
        request = pb.AllocIdRequest(count=count)
        response: pb.AllocIdResponse = await self._coordinators.call(
            lambda stub, limit: stub.AllocId(request, timeout=limit), timeout_s
        )
        return response.first

    async def tso(self, count: int = 1, *, timeout_s: float | None = None) -> int:
        """The first of `count` consecutive timestamps."""
        request = pb.TsoRequest(count=count)
        response: pb.TsoResponse = await self._coordinators.call(
            lambda stub, limit: stub.GetTimestamp(request, timeout=limit), timeout_s
        )
        return response.first

    async def status(self, address: str | None = None, *, timeout_s: float | None = None) -> CoordinatorStatus:
        """Of the coordinator at `address`, or of any."""
        request = pb.CoordinatorStatusRequest()
        ask = self._coordinators.call if address is None else partial(self._coordinators.at, address)
        response = await ask(lambda stub, limit: stub.Status(request, timeout=limit), timeout_s)
        return CoordinatorStatus(
            response.coordinator_id,
            response.lease_holder,
            response.lease.holder,
            response.lease.era,
            _view(response.view),
            response.id_next,
            response.tso_last,
            response.reads_served,
            response.region_count,
            response.store_count,
        )

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _everywhere(self, method: str, request: object) -> list[Any]:
        """To every coordinator at once; the answers of those that answered. Unavailable (or the refusal) if none
        did."""
        limit_s = min(1.0, self._timeout_s)

        def send(stub: Any, limit: float) -> Awaitable[Any]:
            call: Awaitable[Any] = getattr(stub, method)(request, timeout=limit)
            return call

        async def outcome(address: str) -> Any:
            try:
                return await self._coordinators.at(address, send, limit_s)
            except NoKVError as error:
                return error

        outcomes = await asyncio.gather(*map(outcome, self._coordinators.addresses))
        answers = [found for found in outcomes if not isinstance(found, NoKVError)]
        if not answers:
            raise next((found for found in outcomes if not isinstance(found, Unavailable)), outcomes[0])
        return answers
