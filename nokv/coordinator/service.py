"""nokv.v1.Coordinator over one CoordinatorNode: protobuf in and out, errors as status and trailers. Decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from nokv.coordinator.node import CoordinatorNode, Freshness, NotLeaseHolder
from nokv.coordinator.wire import operation_to_pb, route_to_pb, store_view_to_pb, transition_to_pb, view_info_to_pb
from nokv.env.ports import Clock
from nokv.errors import NoKVError, NotFound, UsageError
from nokv.metaroot.events import TransitionPhase
from nokv.metaroot.service import abort_with
from nokv.metaroot.wire import (
    EVENTS_PER_BATCH_MAX,
    assessment_to_pb,
    event_from_pb,
    lease_to_pb,
    peer_from_pb,
    region_from_pb,
    store_from_pb,
    store_to_pb,
    token_from_pb,
    token_to_pb,
)
from nokv.pb import coordinator_pb2 as pb
from nokv.pb import coordinator_pb2_grpc, root_pb2

__all__ = ["CoordinatorService"]

SCAN_ROUTES_MAX = 10_000
WINDOW_WAIT_S = 2.0
OUTCOMES_MAX = 1_024
REPORTS_MAX = 10_000
_PHASES = [phase.value for phase in TransitionPhase]
_FRESHNESS: dict[int, Freshness] = {
    pb.FRESHNESS_BEST_EFFORT: Freshness.BEST_EFFORT,
    pb.FRESHNESS_BOUNDED: Freshness.BOUNDED,
    pb.FRESHNESS_STRONG: Freshness.STRONG,
}
Context = grpc.aio.ServicerContext[Any, Any]


async def _abort(context: Context, error: NoKVError) -> NoReturn:
    await abort_with(context, error, code="not-lease-holder" if isinstance(error, NotLeaseHolder) else "")


def _patience(context: Context) -> float:
    """How long to wait for a window: our "too late" must reach a caller before it takes us for dead."""
    remaining: float | None = context.time_remaining()
    return WINDOW_WAIT_S if remaining is None else min(WINDOW_WAIT_S, 0.9 * remaining)


def _freshness(value: int) -> Freshness:
    found = _FRESHNESS.get(value)
    if found is None:
        raise UsageError(f"unknown freshness {value}")
    return found


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, node: CoordinatorNode, clock: Clock) -> None:
        self._node = node
        self._clock = clock

    def _info(self, source: str = "truth", freshness: int = pb.FRESHNESS_BEST_EFFORT) -> pb.ViewInfo:
        """How fresh the answer is: `freshness` was asked for, and `ensure` has kept it or raised."""
        node = self._node
        return view_info_to_pb(
            catch_up=node.catch_up().value,
            freshness=freshness,
            served=node.view.served,
            current=node.view.current,
            degraded=node.degraded().value,
            holder=node.holds_lease(),
            source=source,
        )

    # -- routes -------------------------------------------------------------------------------------------------------
    async def GetRegionByKey(self, request: pb.GetRegionByKeyRequest, context: Context) -> pb.RouteResponse:
        try:
            await self._node.ensure(
                _freshness(request.freshness), at_least=token_from_pb(request.at_least), max_lag=request.max_lag
            )
            route = self._node.route_by_key(request.key)
        except NoKVError as error:
            await _abort(context, error)
        return pb.RouteResponse(route=route_to_pb(route), view=self._info(freshness=request.freshness))

    async def GetRegionById(self, request: pb.GetRegionByIdRequest, context: Context) -> pb.RouteResponse:
        try:
            await self._node.ensure(
                _freshness(request.freshness), at_least=token_from_pb(request.at_least), max_lag=request.max_lag
            )
            route = self._node.route_by_id(request.region_id)
        except NoKVError as error:
            await _abort(context, error)
        return pb.RouteResponse(route=route_to_pb(route), view=self._info(freshness=request.freshness))

    async def ScanRegions(self, request: pb.ScanRegionsRequest, context: Context) -> pb.ScanRegionsResponse:
        try:
            await self._node.ensure(
                _freshness(request.freshness), at_least=token_from_pb(request.at_least), max_lag=request.max_lag
            )
        except NoKVError as error:
            await _abort(context, error)
        limit = min(request.limit or SCAN_ROUTES_MAX, SCAN_ROUTES_MAX)
        routes = self._node.view.scan(request.start_key, request.end_key, limit)
        return pb.ScanRegionsResponse(
            routes=[route_to_pb(r) for r in routes], view=self._info(freshness=request.freshness)
        )

    # -- heartbeats ---------------------------------------------------------------------------------------------------
    async def StoreHeartbeat(self, request: pb.StoreHeartbeatRequest, context: Context) -> pb.StoreHeartbeatResponse:
        stats = request.stats
        try:
            timestamp, operations = self._node.store_heartbeat(
                store_from_pb(request.store),
                region_count=stats.region_count,
                leader_count=stats.leader_count,
                used_bytes=stats.used_bytes,
                mode=stats.mode,
                outcomes=[(o.operation_id, o.outcome) for o in request.outcomes[:OUTCOMES_MAX]],
            )
        except NoKVError as error:
            await _abort(context, error)
        return pb.StoreHeartbeatResponse(timestamp=timestamp, operations=[operation_to_pb(o) for o in operations])

    async def RegionHeartbeat(self, request: pb.RegionHeartbeatRequest, context: Context) -> pb.RegionHeartbeatResponse:
        try:
            if len(request.regions) > REPORTS_MAX:
                raise UsageError(f"a heartbeat reports at most {REPORTS_MAX:,} regions, not {len(request.regions):,}")
            for report in request.regions:
                self._node.region_heartbeat(
                    region_from_pb(report.region),
                    peer_from_pb(report.leader),
                    term=report.term,
                    applied_index=report.applied_index,
                )
        except NoKVError as error:
            await _abort(context, error)
        return pb.RegionHeartbeatResponse()

    # -- ids and timestamps -------------------------------------------------------------------------------------------
    async def AllocId(self, request: pb.AllocIdRequest, context: Context) -> pb.AllocIdResponse:
        count = request.count or 1
        try:
            first, era = await self._node.alloc_id(count, timeout_s=_patience(context))
        except NoKVError as error:
            await _abort(context, error)
        return pb.AllocIdResponse(first=first, count=count, era=era)

    async def GetTimestamp(self, request: pb.TsoRequest, context: Context) -> pb.TsoResponse:
        count = request.count or 1
        try:
            first, era = await self._node.tso(count, timeout_s=_patience(context))
        except NoKVError as error:
            await _abort(context, error)
        return pb.TsoResponse(first=first, count=count, era=era)

    async def Tso(
        self, request_iterator: AsyncIterator[pb.TsoRequest], context: Context
    ) -> AsyncIterator[pb.TsoResponse]:
        try:
            async for request in request_iterator:
                count = request.count or 1
                first, era = await self._node.tso(count)
                yield pb.TsoResponse(first=first, count=count, era=era)
        except NoKVError as error:
            await _abort(context, error)

    # -- truth --------------------------------------------------------------------------------------------------------
    async def PutStore(self, request: pb.PutStoreRequest, context: Context) -> pb.PutStoreResponse:
        try:
            store = store_from_pb(request.store)
            published = await self._node.put_store(store)
        except NoKVError as error:
            await _abort(context, error)
        return pb.PutStoreResponse(store=store_to_pb(store), token=token_to_pb(published.token))

    async def PublishRootEvent(
        self, request: pb.PublishRootEventRequest, context: Context
    ) -> pb.PublishRootEventResponse:
        try:
            if not 0 < len(request.events) <= EVENTS_PER_BATCH_MAX:
                raise UsageError(f"a publication has 1 to {EVENTS_PER_BATCH_MAX} events, not {len(request.events)}")
            published = await self._node.publish([event_from_pb(e) for e in request.events])
        except NoKVError as error:
            await _abort(context, error)
        return pb.PublishRootEventResponse(token=token_to_pb(published.token), already=published.already)

    async def AssessRootEvent(
        self, request: pb.AssessRootEventRequest, context: Context
    ) -> root_pb2.RootAssessResponse:
        try:
            if not 0 < len(request.events) <= EVENTS_PER_BATCH_MAX:
                raise UsageError(f"between 1 and {EVENTS_PER_BATCH_MAX} events, not {len(request.events)}")
            events = [event_from_pb(e) for e in request.events]
            found = await self._node.assess(events, expected_revision=request.expected_revision)
        except NoKVError as error:
            await _abort(context, error)
        return assessment_to_pb(found)

    async def ListTransitions(self, request: pb.ListTransitionsRequest, context: Context) -> pb.ListTransitionsResponse:
        try:
            await self._node.ensure(_freshness(request.freshness))
            if request.phase and request.phase not in _PHASES:
                raise UsageError(f"unknown phase {request.phase[:64]!r}", hint=f"one of {', '.join(_PHASES)}")
        except NoKVError as error:
            await _abort(context, error)
        found = [
            transition_to_pb(change, source)
            for change, source in self._node.view.transitions()
            if request.region_id in (0, change.region_id) and request.phase in ("", change.phase.value)
        ]
        return pb.ListTransitionsResponse(transitions=found, view=self._info(freshness=request.freshness))

    async def RemoveRegion(self, request: pb.RemoveRegionRequest, context: Context) -> pb.RemoveRegionResponse:
        try:
            await self._node.remove_region(request.region_id)
        except NoKVError as error:
            await _abort(context, error)
        return pb.RemoveRegionResponse()

    async def GetStore(self, request: pb.GetStoreRequest, context: Context) -> pb.GetStoreResponse:
        try:
            await self._node.ensure(Freshness.BEST_EFFORT)
            store = self._node.view.truth.stores.get(request.store_id)
            if store is None:
                raise NotFound(f"no store {request.store_id}")
        except NoKVError as error:
            await _abort(context, error)
        return pb.GetStoreResponse(store=store_to_pb(store), view=self._info())

    async def ListStores(self, request: pb.ListStoresRequest, context: Context) -> pb.ListStoresResponse:
        try:
            await self._node.ensure(Freshness.BEST_EFFORT)
        except NoKVError as error:
            await _abort(context, error)
        view, now = self._node.view, self._clock.monotonic_ns()
        stores = [
            store_view_to_pb(store, view.store_state(store, now), view.stores.get(store_id))
            for store_id, store in sorted(view.truth.stores.items())
        ]
        return pb.ListStoresResponse(stores=stores, view=self._info())

    async def Status(self, request: pb.CoordinatorStatusRequest, context: Context) -> pb.CoordinatorStatusResponse:
        figures = self._node.figures()
        truth = self._node.view.truth
        return pb.CoordinatorStatusResponse(
            coordinator_id=self._node.coordinator_id,
            lease_holder=self._node.holds_lease(),
            lease=lease_to_pb(truth.lease) if truth.lease is not None else None,
            view=self._info(),
            id_next=int(str(figures["id_next"])),
            tso_last=int(str(figures["tso_last"])),
            reads_served=self._node.reads_served,
            region_count=len(truth.ranges),
            store_count=len(truth.stores),
            operations_pending=len(self._node.scheduler.pending),
            operations_issued=self._node.scheduler.issued,
            operations_ended=self._node.scheduler.ended,
        )
