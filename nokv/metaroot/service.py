"""nokv.v1.Root over one RootNode: protobuf in and out, errors as status and trailers. No decision is made here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from nokv.errors import EpochNotMatch, NoKVError, NotLeader, UsageError
from nokv.metaroot.node import RootNode
from nokv.metaroot.wire import (
    EVENTS_PER_BATCH_MAX,
    assessment_to_pb,
    error_code,
    event_from_pb,
    record_to_pb,
    region_to_pb,
    state_chunks,
    state_to_pb,
    token_to_pb,
)
from nokv.pb import root_pb2, root_pb2_grpc

__all__ = ["RootService", "abort_with"]

READ_EVENTS_MAX = 1000
STATUS_OF = {
    "not-leader": grpc.StatusCode.FAILED_PRECONDITION,
    "not-lease-holder": grpc.StatusCode.FAILED_PRECONDITION,
    "epoch-not-match": grpc.StatusCode.FAILED_PRECONDITION,
    "precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "not-found": grpc.StatusCode.NOT_FOUND,
    "not-supported": grpc.StatusCode.UNIMPLEMENTED,
    "usage": grpc.StatusCode.INVALID_ARGUMENT,
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
    "corruption": grpc.StatusCode.DATA_LOSS,
    "invariant": grpc.StatusCode.INTERNAL,
}


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: NoKVError, *, code: str = "") -> NoReturn:
    """End the call with our error: its class as the trailer `nokv-error`, where to go as `nokv-leader`."""
    code = code or error_code(error)
    trailers: list[tuple[str, str | bytes]] = [("nokv-error", code)]
    if error.hint:
        trailers.append(("nokv-hint", error.hint.encode("ascii", "replace").decode()))
    if isinstance(error, NotLeader) and error.address:
        trailers.append(("nokv-leader", error.address))
    if isinstance(error, EpochNotMatch) and error.regions:
        trailers.append(("nokv-region-bin", region_to_pb(error.regions[0]).SerializeToString()))
    await context.abort(STATUS_OF.get(code, grpc.StatusCode.UNAVAILABLE), str(error), tuple(trailers))
    raise AssertionError("abort raises")


class RootService(root_pb2_grpc.RootServicer):
    """`tail_heartbeat_s`: how often a quiet tail says that it is alive, and what the newest token is."""

    def __init__(self, node: RootNode, *, tail_heartbeat_s: float = 0.5, tail_batch: int = 500) -> None:
        self._node = node
        self._tail_heartbeat_s = tail_heartbeat_s
        self._tail_batch = tail_batch
        self.tails = 0

    async def Append(
        self, request: root_pb2.RootAppendRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> root_pb2.RootAppendResponse:
        try:
            if not 0 < len(request.events) <= EVENTS_PER_BATCH_MAX:
                raise UsageError(f"an append has 1 to {EVENTS_PER_BATCH_MAX} events, not {len(request.events)}")
            events = [event_from_pb(event) for event in request.events]
            first = request.events[0]
            result = await self._node.append(
                events, expected_revision=request.expected_revision, author=first.author, time_ms=first.time_ms
            )
        except NoKVError as error:
            await abort_with(context, error)
        return root_pb2.RootAppendResponse(
            events=[record_to_pb(r) for r in result.records],
            state=state_to_pb(self._node.machine.state, catalog=False),
            already=result.already,
        )

    async def Assess(
        self, request: root_pb2.RootAssessRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> root_pb2.RootAssessResponse:
        try:
            if not 0 < len(request.events) <= EVENTS_PER_BATCH_MAX:
                raise UsageError(f"between 1 and {EVENTS_PER_BATCH_MAX} events, not {len(request.events)}")
            events = [event_from_pb(event) for event in request.events]
            found = await self._node.assess(events, expected_revision=request.expected_revision)
        except NoKVError as error:
            await abort_with(context, error)
        return assessment_to_pb(found)

    async def Read(
        self, request: root_pb2.RootReadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> root_pb2.RootReadResponse:
        machine = self._node.machine
        limit = min(request.limit or READ_EVENTS_MAX, READ_EVENTS_MAX)
        try:
            records = machine.read(request.from_revision or machine.first_revision, limit)
        except NoKVError as error:
            await abort_with(context, error)
        return root_pb2.RootReadResponse(
            events=[record_to_pb(r) for r in records],
            last=token_to_pb(machine.last),
            first_revision=machine.first_revision,
        )

    async def Snapshot(
        self, request: root_pb2.RootSnapshotRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> root_pb2.RootSnapshotResponse:
        try:
            if request.linearizable:
                await self._node.barrier()
        except NoKVError as error:
            await abort_with(context, error)
        state = state_to_pb(self._node.machine.state, catalog=not request.without_catalog)
        return root_pb2.RootSnapshotResponse(state=state)

    async def Tail(
        self, request: root_pb2.RootTailRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[root_pb2.RootTailResponse]:
        """From `from_revision` (exclusive) on. Never goes back: a replica that is behind waits until it is not."""
        self.tails += 1
        try:
            async for response in self._tail(request.from_revision):
                yield response
        except NoKVError as error:
            await abort_with(context, error)
        finally:
            self.tails -= 1

    async def _tail(self, revision: int) -> AsyncIterator[root_pb2.RootTailResponse]:
        async for update in self._node.follow(revision, heartbeat_s=self._tail_heartbeat_s, batch=self._tail_batch):
            last = token_to_pb(update.last)
            if update.state is None:
                events = [record_to_pb(r) for r in update.records]
                yield root_pb2.RootTailResponse(outcome=update.outcome, events=events, last=last)
                continue
            for chunk, more in state_chunks(update.state):  # one at a time: Raft ticks in between
                yield root_pb2.RootTailResponse(outcome=update.outcome, state=chunk, last=last, more=more)
                await asyncio.sleep(0)

    async def Status(
        self, request: root_pb2.RootStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> root_pb2.RootStatusResponse:
        node = self._node
        status = node.raft_status()
        return root_pb2.RootStatusResponse(
            node_id=node.node_id,
            leader_id=node.leader_id,
            leader_address=node.leader_address,
            term=status.term,
            commit_index=status.commit,
            applied_index=node.machine.applied_index,
            last=token_to_pb(node.machine.last),
            members=[
                root_pb2.RootMember(node_id=i, address=address, voter=True) for i, address in node.members.items()
            ],
            first_revision=node.machine.first_revision,
        )
