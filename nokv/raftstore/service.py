"""The Kv and Admin services of one store: protobuf and gRPC on one side, plain values and callbacks on the other.

Kv: one bidirectional stream per client. No task, future or thread hop per command: a message's groups go to the store,
answers come back through a callback, and whatever has been answered by the end of a loop turn travels in one message.
Admin: unary calls; our errors become status codes with trailers `nokv-error` and, if known, `nokv-leader`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from nokv._ext.crc32c import crc32c
from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    Indeterminate,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    PreconditionFailed,
    RegionNotFound,
    Unavailable,
    UsageError,
)
from nokv.pb import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc, raft_pb2
from nokv.raftstore.digest import region_digest
from nokv.raftstore.membership import ChangeKind, MembershipChange
from nokv.raftstore.peer import KvRequest
from nokv.raftstore.snapshot import encode_manifest, export_region
from nokv.raftstore.wire import epoch_from_pb, error_to_pb, peer_from_pb, region_from_pb, region_to_pb
from nokv.region import Peer, PeerRole, Region
from nokv.rpc.transport import peer_name

if TYPE_CHECKING:
    from nokv.raftstore.node import StoreNode
    from nokv.raftstore.peer import StorePeer
    from nokv.raftstore.store import RegionStore

__all__ = ["AdminService", "KvService"]

UNANSWERED_MAX = 65_536
"""Groups of one stream that wait for their answer; beyond, nothing more is read from it."""
REPLIES_PER_MESSAGE_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20
logger = logging.getLogger("nokv.raftstore")
MEMBERSHIP_TIMEOUT_MS = 10_000


class _Outbox:
    """Answers of one stream. `reply` is called by the store; `take` by the stream's writer."""

    def __init__(self) -> None:
        self.replies: list[kv_pb2.RegionReply] = []
        self.unanswered = 0
        self.finished = False
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def reply(self, request: KvRequest, error: NoKVError | None, results: bytes, commit_ts: int) -> None:
        self.unanswered -= 1
        if error is None:
            message = kv_pb2.RegionReply(request_id=request.request_id, results=results, commit_ts=commit_ts)
        else:
            message = kv_pb2.RegionReply(request_id=request.request_id, error=error_to_pb(error))
        self.replies.append(message)
        self.wake()
        if self._room is not None and self.unanswered < UNANSWERED_MAX // 2:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def room(self) -> None:
        """Wait until the stream may read on."""
        if self.unanswered >= UNANSWERED_MAX:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def take(self) -> list[kv_pb2.RegionReply]:
        """What has been answered; empty when the client has ended and everything was answered."""
        while not self.replies:
            if self.finished and self.unanswered == 0:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        replies, self.replies = self.replies, []
        return replies


class KvService(kv_pb2_grpc.KvServicer):
    def __init__(self, store: RegionStore) -> None:
        self._store = store

    async def Batch(
        self, request_iterator: AsyncIterator[kv_pb2.KvBatchRequest], context: Any
    ) -> AsyncIterator[kv_pb2.KvBatchResponse]:
        outbox = _Outbox()
        reading = asyncio.create_task(self._read(request_iterator, outbox))
        try:
            while replies := await outbox.take():
                for part in _split(replies):
                    yield kv_pb2.KvBatchResponse(replies=part)
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[kv_pb2.KvBatchRequest], outbox: _Outbox) -> None:
        submit = self._store.submit
        try:
            async for message in requests:
                outbox.unanswered += len(message.groups)
                for group in message.groups:
                    context = group.context
                    submit(
                        request_id=group.request_id,
                        region_id=context.region_id,
                        store_id=context.store_id,
                        epoch=epoch_from_pb(context.epoch),
                        write=group.write,
                        commands=group.commands,
                        reply=outbox.reply,
                        deadline_ms=group.deadline_ms,
                        read_ts=group.read_ts,
                    )
                await outbox.room()
        finally:
            outbox.finished = True
            outbox.wake()


def _split(replies: list[kv_pb2.RegionReply]) -> list[list[kv_pb2.RegionReply]]:
    """Messages of bounded size: gRPC refuses larger ones than the receiver allows."""
    parts: list[list[kv_pb2.RegionReply]] = [[]]
    size = 0
    for reply in replies:
        if parts[-1] and size + len(reply.results) > REPLIES_PER_MESSAGE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(reply)
        size += len(reply.results)
    return parts


_CODES: tuple[tuple[type[NoKVError], grpc.StatusCode, str], ...] = (
    (NotLeader, grpc.StatusCode.FAILED_PRECONDITION, "not-leader"),
    (RegionNotFound, grpc.StatusCode.NOT_FOUND, "region-not-found"),
    (NotFound, grpc.StatusCode.NOT_FOUND, "not-found"),
    (PreconditionFailed, grpc.StatusCode.FAILED_PRECONDITION, "precondition-failed"),
    (NotSupported, grpc.StatusCode.UNIMPLEMENTED, "not-supported"),
    (Corruption, grpc.StatusCode.DATA_LOSS, "corruption"),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT, "invalid"),
    (Indeterminate, grpc.StatusCode.DEADLINE_EXCEEDED, "indeterminate"),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline-exceeded"),
    (Busy, grpc.StatusCode.UNAVAILABLE, "busy"),
    (Unavailable, grpc.StatusCode.UNAVAILABLE, "unavailable"),
)


async def abort(context: Any, error: NoKVError) -> NoReturn:
    """End the call with the code of our error; its kind and the leader's address travel as trailers."""
    code, name = next(
        ((code, name) for known, code, name in _CODES if isinstance(error, known)), (grpc.StatusCode.UNKNOWN, "error")
    )
    trailers = [("nokv-error", name)]
    if isinstance(error, NotLeader) and error.address:
        trailers.append(("nokv-leader", error.address))
    details = str(error) + (f" ({error.hint})" if error.hint else "")
    await context.abort(code, details, tuple(trailers))
    raise AssertionError("abort returned")


class AdminService(admin_pb2_grpc.AdminServicer):
    def __init__(self, node: StoreNode) -> None:
        self._node = node

    @property
    def _store(self) -> RegionStore:
        return self._node.store

    # -- membership ---------------------------------------------------------------------------------------------------
    async def AddPeer(self, request: admin_pb2.AddPeerRequest, context: Any) -> admin_pb2.MembershipResponse:
        async def work() -> Region:
            peer = peer_from_pb(request.peer)
            if peer.role is not PeerRole.LEARNER:
                raise PreconditionFailed(
                    "a peer joins as a learner, and is promoted when it has the data (a new voter without data would "
                    "count for the quorum)",
                    hint="add it as a learner, then promote it",
                )
            store, address = self._store, request.store_address
            change = store.plan(request.region_id, ChangeKind.ADD_LEARNER, peer, address)
            if not (address or store.address_of(peer.store_id)):
                raise PreconditionFailed(
                    f"the address of store {peer.store_id} is not known", hint="give store_address"
                )
            region = store.router.hosted(request.region_id).region
            await self._node.prepare_target(region, change.peer, address or store.address_of(peer.store_id))
            return await self._change(change, request.region_id, context)

        return await self._membership(work, context, f"add-peer {request.peer.peer_id} of region {request.region_id}")

    async def PromotePeer(self, request: admin_pb2.PromotePeerRequest, context: Any) -> admin_pb2.MembershipResponse:
        async def work() -> Region:
            change = self._store.plan(request.region_id, ChangeKind.PROMOTE, Peer(request.peer_id, 0))
            return await self._change(change, request.region_id, context)

        return await self._membership(work, context, f"promote-peer {request.peer_id} of region {request.region_id}")

    async def RemovePeer(self, request: admin_pb2.RemovePeerRequest, context: Any) -> admin_pb2.MembershipResponse:
        async def work() -> Region:
            change = self._store.plan(request.region_id, ChangeKind.REMOVE, Peer(request.peer_id, 0))
            return await self._change(change, request.region_id, context)

        return await self._membership(work, context, f"remove-peer {request.peer_id} of region {request.region_id}")

    async def TransferLeader(
        self, request: admin_pb2.TransferLeaderRequest, context: Any
    ) -> admin_pb2.MembershipResponse:
        async def work() -> Region:
            self._store.transfer_leader(request.region_id, request.peer_id)
            peer = self._store.router.hosted(request.region_id)
            timeout_s = min(context.time_remaining() or MEMBERSHIP_TIMEOUT_MS / 1000, MEMBERSHIP_TIMEOUT_MS / 1000)
            await self._node.wait_until(
                lambda: peer.leader is not None and peer.leader.peer_id == request.peer_id,
                timeout_s * 0.9,
                f"peer {request.peer_id} did not become the leader of region {request.region_id}",
            )
            return peer.region

        return await self._membership(work, context, f"transfer-leader {request.peer_id} of region {request.region_id}")

    async def _change(self, change: MembershipChange, region_id: int, context: Any) -> Region:
        """Planned truth first, as far as the coordinator can be reached; then the region's own log decides."""
        await self._node.publish_planned(change, self._store.router.hosted(region_id).region)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Region] = loop.create_future()

        def done(error: NoKVError | None, region: Region | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                assert region is not None
                future.set_result(region)

        remaining = context.time_remaining()
        timeout_ms = MEMBERSHIP_TIMEOUT_MS if remaining is None else min(int(remaining * 900), MEMBERSHIP_TIMEOUT_MS)
        self._store.change(change, region_id, max(timeout_ms, 1), done)
        return await future

    async def _membership(
        self, work: Callable[[], Awaitable[Region]], context: Any, what: str
    ) -> admin_pb2.MembershipResponse:
        """Do it and say in the log who asked and how it ended."""
        who = peer_name(context) or context.peer()
        try:
            region = await work()
        except (NoKVError, ValueError) as error:
            logger.warning("%s, asked by %s: %s", what, who, error)
            await abort(context, error if isinstance(error, NoKVError) else UsageError(str(error)))
        logger.info("%s, asked by %s: done", what, who)
        return admin_pb2.MembershipResponse(region=region_to_pb(region))

    async def PrepareTarget(
        self, request: admin_pb2.PrepareTargetRequest, context: Any
    ) -> admin_pb2.PrepareTargetResponse:
        try:
            addresses = {store.store_id: store.address for store in request.stores}
            self._store.prepare_target(region_from_pb(request.region), peer_from_pb(request.peer), addresses)
        except (NoKVError, ValueError) as error:
            await abort(context, error if isinstance(error, NoKVError) else UsageError(str(error)))
        return admin_pb2.PrepareTargetResponse()

    # -- looking ------------------------------------------------------------------------------------------------------
    async def RegionStatus(
        self, request: admin_pb2.RegionStatusRequest, context: Any
    ) -> admin_pb2.RegionStatusResponse:
        peer = self._store.router.find(request.region_id)
        if peer is None or not peer.hosted:
            return admin_pb2.RegionStatusResponse(hosted=False, mode=self._node.mode)
        status = peer.raw.status()
        leader = peer.leader
        response = admin_pb2.RegionStatusResponse(
            hosted=True,
            region=region_to_pb(peer.region),
            local_peer_id=peer.peer_id,
            leader_peer_id=leader.peer_id if leader else 0,
            leader_store_id=leader.store_id if leader else 0,
            leader_address=peer.address_of(leader),
            term=status.term,
            commit_index=status.commit,
            applied_index=peer.applied.index,
            applied_term=peer.applied.term,
            mode=self._node.mode,
        )
        for peer_id, progress in status.progress.items():
            response.progress.add(
                peer_id=peer_id,
                state=progress.state.name.lower(),
                match_index=progress.match,
                next_index=progress.next,
                learner=progress.is_learner,
                active=progress.recent_active or peer_id == peer.peer_id,
            )
        return response

    async def RegionDigest(
        self, request: admin_pb2.RegionDigestRequest, context: Any
    ) -> admin_pb2.RegionDigestResponse:
        try:
            peer = self._store.router.hosted(request.region_id)
            await self._node.wait_until(
                lambda: peer.applied.index >= request.at_least_applied_index,
                (request.timeout_ms or 10_000) / 1000,
                f"region {request.region_id} has not applied index {request.at_least_applied_index}",
            )
            applied, region = peer.applied, peer.region
            view = self._store.db.snapshot()
            try:
                digest = await self._node.in_thread(lambda: region_digest(view, region))  # type: ignore[arg-type]
            finally:
                view.close()
        except NoKVError as error:
            await abort(context, error)
        return admin_pb2.RegionDigestResponse(
            digest=digest.digest, keys=digest.keys, bytes=digest.bytes, applied_index=applied.index
        )

    async def ExecutionStatus(
        self, request: admin_pb2.ExecutionStatusRequest, context: Any
    ) -> admin_pb2.ExecutionStatusResponse:
        store, diagnostics = self._store, self._store.diagnostics
        response = admin_pb2.ExecutionStatusResponse(store_id=store.store_id, mode=self._node.mode)
        for admission in (*diagnostics.last_admission.values(), *diagnostics.last_refusal.values()):
            if request.region_id in (0, admission.region_id):
                message = admin_pb2.Admission(
                    kind=admission.kind.value,
                    outcome=admission.outcome.value,
                    region_id=admission.region_id,
                    time_ms=admission.time_ms,
                    detail=admission.detail,
                )
                if message not in response.last_admission:
                    response.last_admission.append(message)
        for topology in diagnostics.topology.values():
            if request.region_id not in (0, topology.region_id):
                continue
            if request.transition_id in ("", topology.transition_id):
                response.topology.add(
                    transition_id=topology.transition_id,
                    kind=topology.kind,
                    region_id=topology.region_id,
                    outcome=topology.outcome.value,
                    publish=topology.publish.value,
                    detail=topology.detail,
                    time_ms=topology.time_ms,
                    publish_attempts=topology.publish_attempts,
                )
        posture = diagnostics.restart
        response.restart.state = posture.state
        response.restart.region_count = posture.region_count
        response.restart.raft_group_count = posture.raft_group_count
        response.restart.missing_raft_pointers.extend(posture.missing_raft_pointers)
        response.restart.pending_root_events = len(store.publisher)
        response.regions.extend(region_to_pb(peer.region) for peer in store.hosted())
        response.leader_region_ids.extend(peer.region_id for peer in store.leaders())
        return response

    async def ExportSnapshot(
        self, request: admin_pb2.ExportSnapshotRequest, context: Any
    ) -> AsyncIterator[raft_pb2.SnapshotChunk]:
        """The payload that raft would send (MIG-32), from the leader, linearizable as of its applied index."""
        store = self._store
        try:
            peer: StorePeer = store.router.hosted(request.region_id)
            if not peer.is_leader:
                raise store.router.not_leader(peer)
            directory = store.snapshots.export_directory(peer)
            view, region, applied = store.db.snapshot(), peer.region, peer.applied
            try:
                manifest = await self._node.in_thread(
                    lambda: export_region(store.db, self._node.files, directory, view, region, applied)
                )
            finally:
                view.close()
        except NoKVError as error:
            await abort(context, error)
        try:
            yield raft_pb2.SnapshotChunk(
                header=raft_pb2.SnapshotHeader(
                    group_id=peer.region_id,
                    manifest=encode_manifest(manifest),
                    total_bytes=manifest.total_bytes,
                )
            )
            for file in manifest.files:
                data = memoryview(self._node.files.map_file(os.path.join(directory, file.name)))
                for at in range(0, file.size, CHUNK_BYTES):
                    chunk = bytes(data[at : at + CHUNK_BYTES])
                    yield raft_pb2.SnapshotChunk(file=file.name, data=chunk, crc32c=crc32c(chunk))
        finally:
            store.snapshots.discard(directory)
