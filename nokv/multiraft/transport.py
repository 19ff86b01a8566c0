"""RaftTransport: carries Raft messages and snapshots between processes over gRPC.

Owns: one channel and one Step stream per peer process, their bounded queues, reconnecting, counters; the server side
that hands arriving messages to the host. Does not own: the gRPC server (register on yours), addresses (`resolve`,
`set_peer`), or what messages mean. One thread: that of the asyncio loop it was made on. Metadata of the wire:
proto/nokv/pb/raft.proto; payloads: docs/formats/raft_message.md.

    transport = RaftTransport(store_id, resolve)      # resolve(node_id) -> "host:port" or None
    transport.attach(host, snapshot_receiver)
    server = grpc.aio.server(options=SERVER_OPTIONS); transport.register(server)
    ...
    await transport.close()                           # before the server stops

A peer's life: idle -> (send) -> dial -> streaming -> (write failed or timed out) -> back off, retry the batch a few
times, then drop it and tell the host (`undelivered`) -> dial. Whatever meets while a write is on its way travels as one
message after it. When a queue is full the newest messages are dropped and counted: Raft repeats what matters.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import grpc.aio

from nokv._ext.crc32c import crc32c
from nokv._ext.raftcodec import BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BATCH_MESSAGES_MAX
from nokv.errors import Corruption, NoKVError, UsageError
from nokv.multiraft.ports import (
    SNAPSHOT_CHUNK_BYTES_MAX,
    MessageSink,
    SnapshotOffer,
    SnapshotPayload,
    SnapshotReceiver,
    SnapshotStaging,
)
from nokv.multiraft.wire import GroupMessage, decode_messages, encode_messages, message_bytes
from nokv.pb import raft_pb2, raft_pb2_grpc
from nokv.raft.types import Message, MessageType
from nokv.rpc.tls import Tls
from nokv.rpc.transport import open_channel, server_options

__all__ = ["CHANNEL_OPTIONS", "SERVER_OPTIONS", "RaftTransport", "TransportOptions"]

GRPC_MESSAGE_BYTES_MAX = BATCH_BYTES_MAX + (1 << 20)
FILE_NAME_BYTES_MAX = 255

_SIZES: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
)
SERVER_OPTIONS: tuple[tuple[str, Any], ...] = tuple(server_options(GRPC_MESSAGE_BYTES_MAX))
"""For the server that this registers on."""
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    *_SIZES,
    ("grpc.use_local_subchannel_pool", 1),  # its connection, and its backoff, are this transport's alone
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """TR-03. A peer that is down costs one dial per backoff and a queue of at most these sizes."""

    send_timeout_s: float = 2.0
    """For one write, the dial included. A peer that does not read for so long counts as failed."""
    backoff_initial_s: float = 0.05
    backoff_max_s: float = 1.0
    retries_max: int = 2
    """How often a failed batch is sent again before it is dropped."""
    queue_messages_max: int = 16_384
    queue_bytes_max: int = 64 << 20
    batch_bytes_max: int = 4 << 20
    """A batch is closed at this size (one message may be larger)."""
    snapshot_timeout_s: float = 600.0
    snapshots_max: int = 2
    """Snapshots sent at the same time."""
    watchdog_threshold: int = 5
    """Failures in a row of one peer after which the watchdog is active."""

    def __post_init__(self) -> None:
        for name in ("send_timeout_s", "backoff_initial_s", "backoff_max_s", "snapshot_timeout_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be positive")
        for name in ("queue_messages_max", "queue_bytes_max", "batch_bytes_max", "snapshots_max", "watchdog_threshold"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1")
        if self.retries_max < 0 or self.batch_bytes_max > BATCH_BYTES_MAX // 2:
            raise UsageError("retries_max or batch_bytes_max is out of range")


_FAILURES = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError, OSError)


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Peer:
    """The sending side towards one process."""

    def __init__(self, transport: RaftTransport, node_id: int) -> None:
        self.transport = transport
        self.node_id = node_id
        self.queue: deque[tuple[GroupMessage, int]] = deque()
        self.queued_bytes = 0
        self.address: str | None = None
        self.channel: grpc.aio.Channel | None = None
        self.stub: Any = None
        self.call: Any = None
        self.consecutive_failures = 0
        self.last_failure = ""
        self.dropped = 0
        self.last_batch: list[GroupMessage] = []
        self.writing = False
        self.wake = asyncio.Event()
        self.kick = asyncio.Event()  # ends a backoff early
        self.task = transport.loop.create_task(self._run(), name=f"raft-transport-{node_id}")

    # -- queue --------------------------------------------------------------------------------------------------------
    def put(self, messages: list[GroupMessage]) -> None:
        options, refused = self.transport.options, []
        for item in messages:
            size = message_bytes(item[1])
            if len(self.queue) >= options.queue_messages_max or (
                self.queued_bytes + size > options.queue_bytes_max and self.queue
            ):
                refused.append(item)
            else:
                self.queue.append((item, size))
                self.queued_bytes += size
        if refused:
            self.dropped += len(refused)
            self.transport.counters["dropped_messages"] += len(refused)
            # Later, so that a caller in the middle of a turn is not called back.
            self.transport.loop.call_soon(self.transport.report_undelivered, self.node_id, refused)
        self.wake.set()

    def _take(self) -> list[GroupMessage]:
        batch: list[GroupMessage] = []
        size = entries = 0
        while self.queue and len(batch) < BATCH_MESSAGES_MAX:
            item, item_size = self.queue[0]
            if batch and (
                size + item_size > self.transport.options.batch_bytes_max
                or entries + len(item[1].entries) > BATCH_ENTRIES_MAX
            ):
                break
            self.queue.popleft()
            self.queued_bytes -= item_size
            size += item_size
            entries += len(item[1].entries)
            batch.append(item)
        return batch

    def drop_all(self) -> list[GroupMessage]:
        dropped = [item for item, _ in self.queue]
        self.queue.clear()
        self.queued_bytes = 0
        return dropped

    # -- stream -------------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.queue:
                batch = self._take()
                try:
                    payload = encode_messages(batch)
                except ValueError as error:
                    self._count_failure(f"cannot be encoded: {error}")
                    self._give_up(batch)
                    continue
                await self._send(batch, payload)

    async def _send(self, batch: list[GroupMessage], payload: bytes) -> None:
        transport, options = self.transport, self.transport.options
        counters = transport.counters
        message = raft_pb2.RaftBatch(from_node=transport.node_id, to_node=self.node_id, payload=payload)
        for attempt in range(options.retries_max + 1):
            if self.node_id in transport.blocked:
                counters["blocked_messages"] += len(batch)
                transport.report_undelivered(self.node_id, batch)
                return
            if attempt:
                counters["retries"] += 1
            counters["sends"] += 1
            fresh = self.call is None
            self.writing = True
            try:
                async with asyncio.timeout(options.send_timeout_s):
                    if fresh:
                        await self._dial()
                    await self.call.write(message)
            except _FAILURES as error:
                if fresh:
                    counters["dial_failures"] += 1
                self._count_failure(_reason(error))
                # Not kept for the next dial: after a failure a channel waits as long as it likes, we decide that here.
                await self._close_channel()
                await self._back_off()
                continue
            finally:
                self.writing = False
            counters["successes"] += 1
            counters["sent_messages"] += len(batch)
            self.consecutive_failures = 0
            self.last_batch = batch
            return
        counters["retry_exhausted"] += 1
        self._give_up(batch)

    async def _dial(self) -> None:
        self.transport.counters["dials"] += 1
        address = self.transport.address_of(self.node_id)
        if address is None:
            raise OSError(f"no address for node {self.node_id}")
        if address != self.address or self.channel is None:
            await self._close_channel()
            self.address = address
            self.channel = self.transport.open_channel(address)
            self.stub = raft_pb2_grpc.RaftTransportStub(self.channel)
        # Writing to a stream that is not connected yet would succeed: find out first.
        await self._connected(self.channel)
        call = self.call = self.stub.Step()
        call.add_done_callback(lambda ended: self._on_stream_end(call))

    def _on_stream_end(self, call: Any) -> None:
        """The other side ended the stream while nothing was being written: what went last is probably lost."""
        if call is self.call and not self.writing and not self.transport.closed:
            self.call = None
            self.transport.spawn(self._note_stream_end(call))

    async def _note_stream_end(self, call: Any) -> None:
        self._count_failure(f"{(await call.code()).name}: {await call.details()}")
        last, self.last_batch = self.last_batch, []
        self.transport.report_undelivered(self.node_id, last)

    async def _connected(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                raise OSError(f"cannot connect to {self.address}")
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)

    def _hang_up(self) -> None:
        call, self.call = self.call, None  # first forgotten, so that its end is not taken for the other side's doing
        if call is not None:
            call.cancel()

    async def _close_channel(self) -> None:
        self._hang_up()
        if self.channel is not None:
            channel, self.channel = self.channel, None
            await channel.close(None)

    async def _back_off(self) -> None:
        options = self.transport.options
        doubling = min(self.consecutive_failures - 1, 16)
        delay = min(options.backoff_max_s, options.backoff_initial_s * (1 << max(doubling, 0)))
        delay *= 0.5 + self.transport.dice.random() / 2
        self.kick.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self.kick.wait()

    def _count_failure(self, reason: str) -> None:
        self.consecutive_failures += 1
        self.last_failure = reason
        self.transport.counters["failures"] += 1
        self.transport.last_failure = f"node {self.node_id}: {reason}"

    def _give_up(self, batch: list[GroupMessage]) -> None:
        """What waited behind the batch is as old as the failure: Raft would rather start afresh."""
        dropped = batch + self.drop_all()
        self.dropped += len(dropped)
        self.transport.counters["dropped_messages"] += len(dropped)
        self.transport.report_undelivered(self.node_id, dropped)

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self._close_channel()


class RaftTransport:
    """See the module. A `multiraft.Network` for the host, and a servicer for the server."""

    def __init__(
        self,
        node_id: int,
        resolve: Callable[[int], str | None],
        *,
        options: TransportOptions | None = None,
        tls: Tls | None = None,
        dice: Random | None = None,
    ) -> None:
        """Inside a running loop. `tls` is for the connections to the peers; the server's port is the server's."""
        self.node_id = node_id
        self.loop = asyncio.get_running_loop()
        self.options = options if options is not None else TransportOptions()
        self.dice = dice if dice is not None else Random(node_id)  # only spreads retries
        self.blocked: set[int] = set()
        self.last_failure = ""
        self.counters: dict[str, int] = dict.fromkeys(
            (
                "dials",
                "dial_failures",
                "sends",
                "successes",
                "failures",
                "retries",
                "retry_exhausted",
                "sent_messages",
                "dropped_messages",
                "blocked_messages",
                "received_batches",
                "received_messages",
                "rejected_batches",
                "snapshots_sent",
                "snapshots_failed",
                "snapshots_received",
                "snapshots_refused",
            ),
            0,
        )
        self._resolve = resolve
        self._tls = tls
        self._addresses: dict[int, str] = {}
        self._peers: dict[int, _Peer] = {}
        self._sink: MessageSink | None = None
        self._receiver: SnapshotReceiver | None = None
        self._snapshot_turns = asyncio.Semaphore(self.options.snapshots_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    def attach(self, sink: MessageSink, receiver: SnapshotReceiver | None = None) -> None:
        """Where arriving messages and snapshots go. Without a receiver, snapshots with files are refused."""
        self._sink = sink
        self._receiver = receiver

    def register(self, server: grpc.aio.Server) -> None:
        """Before the server starts. It should have been made with SERVER_OPTIONS."""
        raft_pb2_grpc.add_RaftTransportServicer_to_server(_Servicer(self), server)

    # -- peers (TR-02) ------------------------------------------------------------------------------------------------
    def set_peer(self, node_id: int, address: str | None) -> None:
        """Override what `resolve` says; None: ask `resolve` again. An open stream to another address is replaced."""
        if address is None:
            self._addresses.pop(node_id, None)
        else:
            self._addresses[node_id] = address
        peer = self._peers.get(node_id)
        if peer is not None:
            if peer.address is not None and peer.address != self.address_of(node_id):
                peer._hang_up()
            peer.kick.set()

    def block_peer(self, node_id: int) -> None:
        """Nothing passes to or from that process until `unblock_peer`: for tests and chaos tools."""
        self.blocked.add(node_id)

    def unblock_peer(self, node_id: int) -> None:
        self.blocked.discard(node_id)
        if node_id in self._peers:
            self._peers[node_id].kick.set()

    def address_of(self, node_id: int) -> str | None:
        return self._addresses.get(node_id) or self._resolve(node_id)

    def open_channel(self, address: str) -> grpc.aio.Channel:
        return open_channel(address, CHANNEL_OPTIONS, self._tls)

    # -- Network ------------------------------------------------------------------------------------------------------
    def send(self, node_id: int, messages: list[GroupMessage]) -> None:
        if self.closed:
            return
        if node_id == self.node_id:
            self.loop.call_soon(self._loopback, messages)
            return
        if node_id in self.blocked:
            self.counters["blocked_messages"] += len(messages)
            self.loop.call_soon(self.report_undelivered, node_id, messages)
            return
        self._peer(node_id).put(messages)

    def send_snapshot(
        self,
        node_id: int,
        group_id: int,
        message: Message,
        payload: SnapshotPayload | None,
        done: Callable[[bool], None],
    ) -> None:
        self.spawn(self._run_snapshot(node_id, (group_id, message), payload, done))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside the streams until `close`."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _peer(self, node_id: int) -> _Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = _Peer(self, node_id)
        return peer

    def _loopback(self, messages: list[GroupMessage]) -> None:
        if self._sink is not None and not self.closed:
            self._sink.receive(self.node_id, messages)

    def report_undelivered(self, node_id: int, messages: list[GroupMessage]) -> None:
        if self._sink is not None and not self.closed:
            self._sink.undelivered(node_id, messages)

    # -- snapshots, sending -------------------------------------------------------------------------------------------
    async def _run_snapshot(
        self, node_id: int, message: GroupMessage, payload: SnapshotPayload | None, done: Callable[[bool], None]
    ) -> None:
        accepted = False
        try:
            async with self._snapshot_turns:
                if node_id in self.blocked:
                    raise OSError("peer is blocked")
                accepted = await self._stream_snapshot(node_id, message, payload)
        except (*_FAILURES, NoKVError, ValueError) as error:
            self.counters["failures"] += 1
            self.last_failure = f"node {node_id}: snapshot of group {message[0]}: {_reason(error)}"
        finally:
            if payload is not None:
                payload.close()
        self.counters["snapshots_sent" if accepted else "snapshots_failed"] += 1
        if not self.closed:
            done(accepted)

    async def _stream_snapshot(self, node_id: int, message: GroupMessage, payload: SnapshotPayload | None) -> bool:
        """A connection of its own, so that bulk data never stands before heartbeats."""
        address = self.address_of(node_id)
        if address is None:
            raise OSError("no address")
        header = raft_pb2.SnapshotHeader(
            group_id=message[0],
            from_node=self.node_id,
            to_node=node_id,
            message=encode_messages([message]),
            manifest=payload.manifest if payload is not None else b"",
            total_bytes=payload.total_bytes if payload is not None else 0,
        )
        async with self.open_channel(address) as channel:
            call = raft_pb2_grpc.RaftTransportStub(channel).InstallSnapshot(timeout=self.options.snapshot_timeout_s)
            try:
                await call.write(raft_pb2.SnapshotChunk(header=header))
                await self._snapshot_answer(call)
                for file, data in payload.chunks() if payload is not None else ():
                    if len(data) > SNAPSHOT_CHUNK_BYTES_MAX:
                        raise ValueError(f"snapshot chunk of {len(data)} bytes")
                    await call.write(raft_pb2.SnapshotChunk(file=file, data=data, crc32c=crc32c(data)))
                await call.done_writing()
                await self._snapshot_answer(call)
            finally:
                call.cancel()
        return True

    @staticmethod
    async def _snapshot_answer(call: Any) -> None:
        ack = await call.read()
        if not isinstance(ack, raft_pb2.SnapshotAck):
            raise OSError("the receiver went away")
        if not ack.accepted:
            raise OSError(f"refused: {ack.reason}")

    # -- receiving ----------------------------------------------------------------------------------------------------
    async def serve_step(self, requests: AsyncIterator[Any], context: Any) -> Any:
        async for batch in requests:
            if self.closed:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "closing")
            if batch.to_node != self.node_id:
                self.counters["rejected_batches"] += 1
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, f"this is node {self.node_id}, not {batch.to_node}"
                )
            try:
                messages = decode_messages(batch.payload)
            except Corruption as error:
                self.counters["rejected_batches"] += 1
                self.last_failure = f"from node {batch.from_node}: {error}"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if batch.from_node in self.blocked:
                self.counters["blocked_messages"] += len(messages)
                continue
            self.counters["received_batches"] += 1
            self.counters["received_messages"] += len(messages)
            if self._sink is not None:
                self._sink.receive(batch.from_node, messages)
        return raft_pb2.RaftBatchAck()

    async def serve_snapshot(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        staging: SnapshotStaging | None = None
        try:
            first = await anext(requests, None)
            if first is None or not first.HasField("header"):
                raise Corruption("snapshot stream: the first chunk has no header")
            offer = self._offer(first.header)
            if self._receiver is not None:
                staging = self._receiver.begin(offer)
            elif offer.total_bytes:
                raise UsageError("this process takes no snapshot files")
            yield raft_pb2.SnapshotAck(accepted=True)
            await self._stage(requests, offer, staging)
            if staging is not None:
                staging.finish()
                staging = None
        except (NoKVError, OSError) as error:
            self.counters["snapshots_refused"] += 1
            self.last_failure = f"arriving snapshot: {error}"
            if staging is not None:
                staging.abort()
                staging = None
            yield raft_pb2.SnapshotAck(accepted=False, reason=str(error))
            return
        finally:
            if staging is not None:
                staging.abort()
        self.counters["snapshots_received"] += 1
        if self._sink is not None:
            self._sink.receive(offer.from_node, [(offer.group_id, offer.message)])
        yield raft_pb2.SnapshotAck(accepted=True)

    def _offer(self, header: Any) -> SnapshotOffer:
        if header.to_node != self.node_id:
            raise UsageError(f"this is node {self.node_id}, not {header.to_node}")
        if header.from_node in self.blocked:
            raise UsageError(f"node {header.from_node} is blocked")
        messages = decode_messages(header.message)
        if len(messages) != 1 or messages[0][0] != header.group_id or messages[0][1].type is not MessageType.SNAP:
            raise Corruption("snapshot stream: the header holds no single MsgSnap of its group")
        return SnapshotOffer(
            header.from_node, header.group_id, messages[0][1], bytes(header.manifest), header.total_bytes
        )

    async def _stage(self, requests: AsyncIterator[Any], offer: SnapshotOffer, staging: SnapshotStaging | None) -> None:
        total = 0
        async for chunk in requests:
            name, data = chunk.file, chunk.data
            if chunk.HasField("header") or len(data) > SNAPSHOT_CHUNK_BYTES_MAX:
                raise Corruption(f"snapshot stream: bad chunk after {total} bytes")
            if not _is_base_name(name):
                raise Corruption(f"snapshot stream: bad file name {name[:80]!r}")
            found = crc32c(data)
            if found != chunk.crc32c:
                raise Corruption("snapshot stream: checksum mismatch", path=name, expected=chunk.crc32c, found=found)
            total += len(data)
            if total > offer.total_bytes:
                raise Corruption(f"snapshot stream: more than the {offer.total_bytes} bytes announced")
            if staging is not None:
                staging.write(name, data)
        if total != offer.total_bytes:
            raise Corruption(f"snapshot stream: {total} of {offer.total_bytes} bytes arrived")

    # -- the rest -----------------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """TR-07."""
        worst = max(self._peers.values(), key=lambda peer: peer.consecutive_failures, default=None)
        consecutive = worst.consecutive_failures if worst is not None else 0
        active = consecutive >= self.options.watchdog_threshold
        return {
            **self.counters,
            "blocked_peers": sorted(self.blocked),
            "last_failure": self.last_failure,
            "queued_messages": sum(len(peer.queue) for peer in self._peers.values()),
            "queued_bytes": sum(peer.queued_bytes for peer in self._peers.values()),
            "peers": {
                node_id: {
                    "address": peer.address,
                    "connected": peer.call is not None,
                    "queued_messages": len(peer.queue),
                    "dropped_messages": peer.dropped,
                    "consecutive_failures": peer.consecutive_failures,
                    "last_failure": peer.last_failure,
                }
                for node_id, peer in sorted(self._peers.items())
            },
            "watchdog": {
                "active": active,
                "consecutive": consecutive,
                "threshold": self.options.watchdog_threshold,
                "reason": f"node {worst.node_id}: {worst.last_failure}" if active and worst is not None else "",
            },
        }

    async def close(self) -> None:
        """Drop what is queued, end streams and snapshots. Nothing is delivered or reported after this."""
        self.closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self._peers.values():
            await peer.close()
        self._peers.clear()


def _is_base_name(name: str) -> bool:
    return (
        0 < len(name.encode()) <= FILE_NAME_BYTES_MAX
        and name not in (".", "..")
        and not any(c in "/\\\0" for c in name)
        and name.isprintable()
    )


class _Servicer(raft_pb2_grpc.RaftTransportServicer):
    def __init__(self, transport: RaftTransport) -> None:
        self._transport = transport

    async def Step(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        return await self._transport.serve_step(request_iterator, context)

    async def InstallSnapshot(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for answer in self._transport.serve_snapshot(request_iterator):
            yield answer
