"""A failed call means the same to whoever made it, blocking or not."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from nokv.client.operator.client import RootAdmin
from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    InvariantError,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.client import RootClient
from nokv.metaroot.service import abort_with
from nokv.pb import root_pb2, root_pb2_grpc
from nokv.raftstore.service import abort
from nokv.region import Region, RegionEpoch
from nokv.rpc.transport import bind

REGION = Region(7, b"a", b"b", RegionEpoch(2, 3))
REPORTED = [
    NotLeader("not I", address="127.0.0.1:1"),
    EpochNotMatch("it was split", regions=(REGION,)),
    Busy("full"),
    PreconditionFailed("not now", hint="later"),
    NotFound("no such thing"),
    NotSupported("not here"),
    Indeterminate("maybe"),
    DeadlineExceeded("too late"),
    Unavailable("nobody"),
    UsageError("what?"),
    Corruption("rotten", path="f"),
    InvariantError("our own bug"),
]
BY_STORES = [error for error in REPORTED if not isinstance(error, (EpochNotMatch, InvariantError))]
BY_STATUS = [
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", Busy),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max", UsageError),
    (grpc.StatusCode.INVALID_ARGUMENT, "no", UsageError),
    (grpc.StatusCode.FAILED_PRECONDITION, "no", PreconditionFailed),
    (grpc.StatusCode.NOT_FOUND, "no", NotFound),
    (grpc.StatusCode.UNIMPLEMENTED, "no", NotSupported),
    (grpc.StatusCode.DATA_LOSS, "no", Corruption),
    (grpc.StatusCode.UNAVAILABLE, "no", Unavailable),
    (grpc.StatusCode.UNKNOWN, "no", Unavailable),  # the server fell over: it may have done it
    (grpc.StatusCode.INTERNAL, "no", Unavailable),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "no", DeadlineExceeded),
]


class Refuses(root_pb2_grpc.RootServicer):
    async def Status(self, request: root_pb2.RootStatusRequest, context: Any) -> root_pb2.RootStatusResponse:
        await self.end(context)
        raise AssertionError("it ends the call")

    async def end(self, context: Any) -> None:
        raise NotImplementedError


def both(end: Any) -> tuple[NoKVError, NoKVError]:
    """What an asyncio client and a blocking one make of a call that `end(context)` ends."""

    async def work() -> tuple[NoKVError, NoKVError]:
        server, service = grpc.aio.server(), Refuses()
        service.end = end  # type: ignore[method-assign]
        root_pb2_grpc.add_RootServicer_to_server(service, server)
        address = bind(server, "127.0.0.1:0")
        await server.start()
        client = RootClient([address])
        try:
            with pytest.raises(NoKVError) as waited:
                await client.status(address)

            def ask() -> NoKVError:
                with RootAdmin(address, timeout_s=30.0) as admin, pytest.raises(NoKVError) as blocked:
                    admin.status()
                return blocked.value

            return waited.value, await asyncio.to_thread(ask)
        finally:
            await client.close()
            await server.stop(None)

    return asyncio.run(work())


@pytest.mark.parametrize("error", REPORTED, ids=lambda error: type(error).__name__)
def test_what_a_server_reports(error: NoKVError) -> None:
    for found in both(lambda context: abort_with(context, error)):
        assert type(found) is type(error) and str(error) in str(found)
        assert found.hint == error.hint
        if isinstance(error, NotLeader):
            assert isinstance(found, NotLeader) and found.address == error.address
        if isinstance(error, EpochNotMatch):
            assert isinstance(found, EpochNotMatch) and found.regions == error.regions


@pytest.mark.parametrize("error", BY_STORES, ids=lambda error: type(error).__name__)
def test_what_a_store_reports(error: NoKVError) -> None:
    for found in both(lambda context: abort(context, error)):
        assert type(found) is type(error) and str(error) in str(found)


@pytest.mark.parametrize(("status", "details", "kind"), BY_STATUS)
def test_what_a_status_says(status: grpc.StatusCode, details: str, kind: type[NoKVError]) -> None:
    for found in both(lambda context: context.abort(status, details)):
        assert type(found) is kind
