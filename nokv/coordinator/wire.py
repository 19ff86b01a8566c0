"""Protobuf of the control plane <-> plain values. Regions, peers, stores, events and tokens: `nokv.metaroot.wire`."""

from __future__ import annotations

from nokv.coordinator.scheduler import Operation
from nokv.coordinator.view import Route, StoreReportView
from nokv.errors import UsageError
from nokv.metaroot.changes import Transition
from nokv.metaroot.events import RootToken, TransitionPhase
from nokv.metaroot.wire import (
    peer_from_pb,
    peer_to_pb,
    region_from_pb,
    region_to_pb,
    store_from_pb,
    store_to_pb,
    token_to_pb,
)
from nokv.pb import coordinator_pb2
from nokv.region import Store

__all__ = [
    "operation_to_pb",
    "route_from_pb",
    "route_to_pb",
    "store_view_to_pb",
    "transition_from_pb",
    "transition_to_pb",
    "view_info_to_pb",
]


def route_to_pb(route: Route) -> coordinator_pb2.Route:
    return coordinator_pb2.Route(
        region=region_to_pb(route.region),
        leader=None if route.leader is None else peer_to_pb(route.leader),
        stores=[store_to_pb(store) for store in route.stores],
    )


def route_from_pb(message: coordinator_pb2.Route) -> Route:
    return Route(
        region_from_pb(message.region),
        peer_from_pb(message.leader) if message.HasField("leader") else None,
        tuple(store_from_pb(store) for store in message.stores),
    )


def view_info_to_pb(
    *,
    served: RootToken,
    current: RootToken,
    degraded: str,
    holder: bool,
    source: str = "truth",
    catch_up: str = "",
    freshness: int = coordinator_pb2.FRESHNESS_BEST_EFFORT,
) -> coordinator_pb2.ViewInfo:
    return coordinator_pb2.ViewInfo(
        served=token_to_pb(served),
        current=token_to_pb(current),
        root_lag=max(0, current.revision - served.revision),
        degraded=degraded,
        served_by_lease_holder=holder,
        source=source,
        catch_up=catch_up,
        freshness=freshness,  # type: ignore[arg-type]
    )


def operation_to_pb(operation: Operation) -> coordinator_pb2.Operation:
    return coordinator_pb2.Operation(
        operation_id=operation.operation_id,
        kind=operation.kind,
        region_id=operation.region_id,
        target_peer_id=operation.target_peer_id,
        deadline_ms=operation.deadline_ms,
        era=operation.era,
    )


def transition_to_pb(change: Transition, source: str) -> coordinator_pb2.Transition:
    return coordinator_pb2.Transition(
        transition_id=change.transition_id,
        kind=change.kind,
        region_id=change.region_id,
        phase=change.phase.value,
        revision=change.revision,
        source=source,
        target=None if change.target is None else region_to_pb(change.target),
    )


def transition_from_pb(message: coordinator_pb2.Transition) -> tuple[Transition, str]:
    """(change, source)."""
    try:
        phase = TransitionPhase(message.phase)
    except ValueError:
        raise UsageError(f"unknown phase {message.phase[:64]!r} of a transition") from None
    target = region_from_pb(message.target) if message.HasField("target") else None
    change = Transition(message.transition_id, message.kind, message.region_id, phase, message.revision, target)
    return change, message.source


def store_view_to_pb(store: Store, liveness: str, report: StoreReportView | None) -> coordinator_pb2.StoreView:
    message = coordinator_pb2.StoreView(store=store_to_pb(store), liveness=liveness)
    if report is not None:
        message.last_heartbeat_ms = report.seen_ms
        message.stats.CopyFrom(
            coordinator_pb2.StoreStats(
                store_id=store.store_id,
                region_count=report.region_count,
                leader_count=report.leader_count,
                used_bytes=report.used_bytes,
                mode=report.mode,
            )
        )
    return message
