"""What one store asks of another: two unary calls of the Admin service. Plain values in and out, errors are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from nokv.errors import NoKVError, PreconditionFailed, Unavailable
from nokv.pb import admin_pb2, admin_pb2_grpc, meta_pb2
from nokv.raftstore.wire import peer_to_pb, region_from_pb, region_to_pb
from nokv.region import Peer, Region
from nokv.rpc.tls import Tls
from nokv.rpc.transport import open_channel

__all__ = ["PeerStores"]


class PeerStores:
    """Short-lived channels: these calls are rare."""

    def __init__(self, *, timeout_s: float = 3.0, tls: Tls | None = None) -> None:
        self._timeout_s = timeout_s
        self._tls = tls

    async def prepare_target(self, address: str, region: Region, peer: Peer, addresses: Mapping[int, str]) -> None:
        """PreconditionFailed if the target refuses, Unavailable if it does not answer."""
        request = admin_pb2.PrepareTargetRequest(region=region_to_pb(region), peer=peer_to_pb(peer))
        request.stores.extend(meta_pb2.Store(store_id=number, address=where) for number, where in addresses.items())
        await self._call(address, "PrepareTarget", request)

    async def region(self, address: str, region_id: int) -> Region | None:
        """How that store describes the region; None if it does not host it."""
        answer = await self._call(address, "RegionStatus", admin_pb2.RegionStatusRequest(region_id=region_id))
        return region_from_pb(answer.region) if answer.hosted else None

    async def _call(self, address: str, method: str, request: Any) -> Any:
        async with open_channel(address, (("grpc.enable_retries", 0),), self._tls) as channel:
            try:
                return await getattr(admin_pb2_grpc.AdminStub(channel), method)(request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                raise _translate(error, address) from None


def _translate(error: grpc.aio.AioRpcError, address: str) -> NoKVError:
    details = f"store at {address}: {error.details()}"
    if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
        return PreconditionFailed(details)
    return Unavailable(details)
