"""Protobuf of the control plane <-> plain values. Regions, peers, stores, events and tokens: `nokv.metaroot.wire`."""

from __future__ import annotations

from nokv.coordinator.view import Route, StoreReportView
from nokv.metaroot.events import RootToken
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

__all__ = ["route_from_pb", "route_to_pb", "store_view_to_pb", "view_info_to_pb"]


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
    *, served: RootToken, current: RootToken, degraded: str, holder: bool, source: str = "truth"
) -> coordinator_pb2.ViewInfo:
    return coordinator_pb2.ViewInfo(
        served=token_to_pb(served),
        current=token_to_pb(current),
        root_lag=max(0, current.revision - served.revision),
        degraded=degraded,
        served_by_lease_holder=holder,
        source=source,
    )


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
