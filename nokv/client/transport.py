"""Streams to stores and calls to coordinators: the client's only contact with gRPC. One event loop.

Requests that are submitted in one turn of the loop travel in one message, and while a message is being written the next
one gathers. A stream that breaks fails everything it carries with `StreamBroken`, which says whether the request may
have reached the store; the pool then opens a new one on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from nokv.client.routes import Route
from nokv.errors import Busy, DeadlineExceeded, NoKVError, NotTrusted, Unavailable
from nokv.metaroot.wire import peer_from_pb, region_from_pb
from nokv.pb import coordinator_pb2, coordinator_pb2_grpc, kv_pb2, kv_pb2_grpc
from nokv.rpc.tls import Tls, refusal
from nokv.rpc.transport import Channels, Dialer

__all__ = ["Coordinators", "StorePool", "StoreStream", "StreamBroken"]

IN_FLIGHT_MAX = 16_384  # requests of one stream; above it `submit` raises Busy, and the caller backs off
MESSAGE_BYTES = 4 << 20  # a message takes no further request beyond this
MESSAGE_BYTES_MAX = 80 << 20  # one value may have 64 MiB
CONNECT_TIMEOUT_S = 1.0
COORDINATOR_ATTEMPT_S = 1.0

_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class StreamBroken(NoKVError):
    """`sent`: the request may have reached the store."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class _Pending:
    __slots__ = ("future", "sent")

    def __init__(self, future: asyncio.Future[kv_pb2.RegionReply]) -> None:
        self.future = future
        self.sent = False


class StoreStream:
    """One bidirectional stream to one store."""

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        on_broken: Callable[[StoreStream], None],
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.messages_sent = 0
        self._channel = channel
        self._tls = tls
        self._on_broken = on_broken
        self._waiting: dict[int, _Pending] = {}
        self._queue: list[kv_pb2.RegionCommands] = []
        self._wake = asyncio.Event()
        self._last_id = 0
        self._broken = False
        self._task = asyncio.create_task(self._run(), name=f"nokv stream to {address}")

    def submit(self, group: kv_pb2.RegionCommands) -> asyncio.Future[kv_pb2.RegionReply]:
        """The reply's future; `request_id` is set here. The caller may cancel it (see `forget`)."""
        future: asyncio.Future[kv_pb2.RegionReply] = asyncio.get_running_loop().create_future()
        if self._broken:
            future.set_exception(StreamBroken(f"the stream to {self.address} is closed", sent=False))
            return future
        if len(self._waiting) >= IN_FLIGHT_MAX:
            raise Busy(f"{IN_FLIGHT_MAX} requests to {self.address} are under way")
        self._last_id += 1
        group.request_id = self._last_id
        self._waiting[group.request_id] = _Pending(future)
        self._queue.append(group)
        self._wake.set()
        return future

    def forget(self, request_id: int) -> bool:
        """Nobody waits any more. True if the request may have reached the store; else it never will."""
        pending = self._waiting.pop(request_id, None)
        if pending is not None and not pending.sent:
            self._queue = [group for group in self._queue if group.request_id != request_id]
            return False
        return True

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail("the client was closed")

    async def _run(self) -> None:
        reason = "the stream ended"
        call: Any = None
        reader: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect()
            call = kv_pb2_grpc.KvStub(self._channel).Batch()
            reader = asyncio.create_task(self._read(call), name=f"nokv replies of {self.address}")
            reader.add_done_callback(lambda _: self._wake.set())
            while True:
                await self._wake.wait()
                if reader.done():
                    reader.result()
                    break
                await self._write(call)
        except TimeoutError:
            reason = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        except ConnectionError as error:
            untrusted = await asyncio.to_thread(refusal, self.address, self._tls, "failed to connect")
            reason = f"{untrusted}; {untrusted.hint}" if untrusted is not None else str(error)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:  # the call ended under a write
            reason = str(error) or "the stream ended under a write"
        finally:
            self._fail(reason)
            if call is not None:
                call.cancel()
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _connect(self) -> None:
        """Wait for the connection before anything is written: what fails here was surely not sent."""
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                raise ConnectionError("no connection")
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)

    async def _write(self, call: Any) -> None:
        self._wake.clear()
        while self._queue:
            groups, self._queue = self._queue, []
            size = 0
            for at, group in enumerate(groups):
                size += len(group.commands)
                if size > MESSAGE_BYTES and at:
                    self._queue = groups[at:]
                    del groups[at:]
                    break
            for group in groups:
                if (pending := self._waiting.get(group.request_id)) is not None:
                    pending.sent = True
            self.messages_sent += 1
            await call.write(kv_pb2.KvBatchRequest(groups=groups))

    async def _read(self, call: Any) -> None:
        async for response in call:
            for reply in response.replies:
                pending = self._waiting.pop(reply.request_id, None)
                if pending is not None and not pending.future.done():
                    pending.future.set_result(reply)

    def _fail(self, reason: str) -> None:
        self._broken = True
        self._on_broken(self)
        waiting, self._waiting = self._waiting, {}
        self._queue.clear()
        for pending in waiting.values():
            if not pending.future.done():
                pending.future.set_exception(StreamBroken(f"{self.address}: {reason}", sent=pending.sent))
                pending.future.exception()  # seen, even if the caller has gone away


class StorePool:
    """One channel and at most one live stream for each store's address."""

    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls
        self._channels = Channels(Dialer(_OPTIONS, tls))
        self._streams: dict[str, StoreStream] = {}

    def stream(self, address: str) -> StoreStream:
        stream = self._streams.get(address)
        if stream is None:
            channel = self._channels.get(address)
            stream = self._streams[address] = StoreStream(address, channel, self._forget, self._tls)
        return stream

    def _forget(self, stream: StoreStream) -> None:
        if self._streams.get(stream.address) is stream:
            del self._streams[stream.address]
            self._channels.failed(stream.address)

    async def close(self) -> None:
        for stream in list(self._streams.values()):
            await stream.close()
        await self._channels.close()


class Coordinators:
    """The coordinators' addresses, tried in turn; the one that answered last is tried first."""

    def __init__(self, addresses: list[str], tls: Tls | None = None) -> None:
        assert addresses
        self._addresses = list(addresses)
        self._channels = Channels(Dialer(_OPTIONS, tls))

    async def route(self, key: bytes, timeout_s: float) -> Route | None:
        """None if no region covers the key (yet)."""
        request = coordinator_pb2.GetRegionByKeyRequest(key=key)
        answer = await self._call("GetRegionByKey", request, timeout_s)
        return _route(answer.route) if answer is not None and answer.HasField("route") else None

    async def routes(self, start: bytes, end: bytes, timeout_s: float) -> list[Route]:
        """Routes that overlap [start, end), in key order; perhaps only the first ones."""
        request = coordinator_pb2.ScanRegionsRequest(start_key=start, end_key=end)
        answer = await self._call("ScanRegions", request, timeout_s)
        return [_route(route) for route in answer.routes] if answer is not None else []

    async def timestamp(self, timeout_s: float) -> int:
        answer = await self._call("GetTimestamp", coordinator_pb2.TsoRequest(count=1), timeout_s)
        if answer is None:
            raise Unavailable("no coordinator gives out timestamps")
        return int(answer.first)

    async def close(self) -> None:
        await self._channels.close()

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        """One round over all addresses. None: the coordinator answered that there is no such thing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        reasons: list[str] = []
        untrusted: list[NotTrusted] = []
        asked: set[str] = set()
        todo = list(self._addresses)
        while todo:
            address = todo.pop(0)
            if address in asked:
                continue
            asked.add(address)
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            try:
                stub = coordinator_pb2_grpc.CoordinatorStub(self._channels.get(address))
                answer = await getattr(stub, method)(request, timeout=min(remaining, COORDINATOR_ATTEMPT_S))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                if (found := await self._channels.refusal(address, error)) is not None:
                    untrusted.append(found)
                    reasons.append(str(found))
                    continue
                reasons.append(f"{address}: {error.code().name.lower().replace('_', ' ')}: {error.details()}")
                if leader := _trailer(error, "nokv-leader"):
                    todo.insert(0, leader)
                continue
            if address in self._addresses:
                self._addresses.remove(address)
            self._addresses.insert(0, address)
            return answer
        if not reasons:
            raise DeadlineExceeded(f"no coordinator answered within {timeout_s:.3g} s: {', '.join(self._addresses)}")
        if len(untrusted) == len(reasons):
            raise untrusted[0]
        raise Unavailable("; ".join(reasons), hint="is a coordinator running at this address?")


def _trailer(error: grpc.aio.AioRpcError, name: str) -> str:
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == name:
            return value if isinstance(value, str) else str(value, "ascii", "replace")
    return ""


def _route(message: coordinator_pb2.Route) -> Route:
    return Route(
        region_from_pb(message.region),
        peer_from_pb(message.leader) if message.HasField("leader") and message.leader.peer_id else None,
        {store.store_id: store.address for store in message.stores},
    )
