"""gRPC without gRPC: channels and servers in virtual time, and Raft's messages beside them.

Generated stubs and `add_..._to_server` take these objects as if they were `grpc.aio`'s, so that services and clients
run unmodified: the same serializers, status codes and trailers, deadlines and cancellation that reach the handler.
What the network may do to a call:

    late        a drawn delay each way; messages of one stream keep their order, calls do not
    lost        the request, or the answer of a call that was executed; found by the deadline, or told as UNAVAILABLE;
                a lost request may turn up seconds later all the same, when its caller has gone elsewhere
    repeated    a request is executed twice; the second answer is dropped
    blocked     one direction between two processes
    reset       the server dies: open calls end with UNAVAILABLE, or in silence
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from nokv.multiraft.ports import MessageSink, SnapshotPayload, SnapshotReceiver
from nokv.multiraft.wire import GroupMessage
from nokv.raft.types import Message
from nokv.testing.network import SimEndpoint, SimNetwork
from nokv.testing.sim.control.host import Life, VirtualLoop

__all__ = ["Links", "RaftPort", "RpcChannel", "RpcNetwork", "RpcServer"]

STREAM_WINDOW = 8
LATE_S_MAX = 5.0
Observer = Callable[[str, str, Any], None]
"""(server's process, method, response message), when a handler of a living server has answered."""


class Links:
    """What the network does right now, between any two processes."""

    def __init__(self, loop: VirtualLoop, dice: random.Random) -> None:
        self.loop = loop
        self.dice = dice
        self.loss = 0.0
        self.duplication = 0.0
        self.delay_s = (0.0005, 0.002)
        self.blocked: set[tuple[int, int]] = set()
        self.lost = 0
        self.repeated = 0
        self.late = 0

    def delay(self) -> float:
        return self.dice.uniform(*self.delay_s)

    def open(self, sender: int, receiver: int) -> bool:
        return (sender, receiver) not in self.blocked

    def carries(self, sender: int, receiver: int) -> bool:
        """Does the next message get through?"""
        if not self.open(sender, receiver):
            return False
        if self.loss and self.dice.random() < self.loss:
            self.lost += 1
            return False
        return True


class RpcNetwork:
    """All servers by their address."""

    def __init__(self, links: Links, observe: Observer) -> None:
        self.links = links
        self.loop = links.loop
        self.observe = observe
        self.servers: dict[str, RpcServer] = {}

    def server(self, life: Life) -> RpcServer:
        return RpcServer(self, life)

    def channel(self, life: Life, address: str) -> RpcChannel:
        return RpcChannel(self, life, address)

    def dead(self, life: Life) -> None:
        """The process is gone: its kernel resets connections, unless the machine went with it."""
        for address, server in list(self.servers.items()):
            if server.life is life:
                del self.servers[address]
                server.reset()


def _status(code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> Exception:
    error: Exception = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)
    return error


class _Abort(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...]) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailers = trailers


class _Context:
    """Of a ServicerContext, what the services use."""

    def __init__(self, loop: VirtualLoop, timeout_s: float | None) -> None:
        self._loop = loop
        self._ends_at = None if timeout_s is None else loop.time() + timeout_s

    def time_remaining(self) -> float | None:
        return None if self._ends_at is None else max(0.0, self._ends_at - self._loop.time())

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> NoReturn:
        raise _Abort(code, details, trailing_metadata)


# -- servers ----------------------------------------------------------------------------------------------------------
class RpcServer:
    """In place of a `grpc.aio.Server`."""

    def __init__(self, network: RpcNetwork, life: Life) -> None:
        self._network = network
        self.life = life
        self.handlers: dict[str, Any] = {}
        self.open_calls: dict[_Call, None] = {}
        self._address = ""

    def add_insecure_port(self, address: str) -> int:
        if address in self._network.servers:
            return 0
        self._address = address
        return int(address.rpartition(":")[2])

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The registered handlers are the same ones."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self.handlers[f"/{service}/{name}"] = handler

    async def start(self) -> None:
        self._network.servers[self._address] = self

    async def stop(self, grace: float | None = None) -> None:
        if self._network.servers.get(self._address) is self:
            del self._network.servers[self._address]
        self.reset()

    def reset(self) -> None:
        calls, self.open_calls = self.open_calls, {}
        for call in calls:
            call.connection_lost()


# -- clients ----------------------------------------------------------------------------------------------------------
class RpcChannel:
    """In place of a `grpc.aio.Channel`."""

    def __init__(self, network: RpcNetwork, life: Life, address: str) -> None:
        self.network = network
        self.life = life
        self.address = address
        self.closed = False

    def unary_unary(
        self,
        path: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = None,
    ) -> Callable[..., asyncio.Future[Any]]:
        def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> asyncio.Future[Any]:
            return _Unary(self, path, request_serializer(request), response_deserializer, timeout).answer

        return call

    def unary_stream(
        self,
        path: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = None,
    ) -> Callable[..., _Stream]:
        def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> _Stream:
            return _Stream(self, path, request_serializer(request), response_deserializer, timeout)

        return call

    def stream_stream(self, path: str, *serializers: Any, **named: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> NoReturn:
            raise NotImplementedError(f"{path}: the simulator carries no client streams")

        return call

    stream_unary = stream_stream

    async def close(self, grace: float | None = None) -> None:
        self.closed = True


class _Call:
    """One call: the client's half and the server's half, joined by messages."""

    repeatable = False

    def __init__(
        self, channel: RpcChannel, path: str, payload: bytes, deserialize: Callable[[bytes], Any], timeout: float | None
    ) -> None:
        self.network = channel.network
        self.links = self.network.links
        self.loop = self.network.loop
        self.client = channel.life
        self.address = channel.address
        self.path = path
        self.payload = payload
        self.deserialize = deserialize
        self.timeout = timeout
        self.ended = False  # for the client
        self.server: RpcServer | None = None
        self.tasks: list[asyncio.Task[None]] = []
        if timeout is not None:
            self.loop.call_later(timeout, self.fail, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")
        target = self.network.servers.get(self.address)
        self._server_id = target.life.node_id if target is not None else None
        if target is None:
            self._later(self.links.delay(), self.fail, grpc.StatusCode.UNAVAILABLE, "connection refused")
        elif not self.links.carries(self.client.node_id, target.life.node_id):
            self._vanished()
            if self.repeatable and self.links.dice.random() < 0.3:
                self.links.late += 1
                self.loop.world_later(self.links.dice.uniform(0.3, LATE_S_MAX), self._arrive)
        else:
            self.loop.world_later(self.links.delay(), self._arrive)
            if self.repeatable and self.links.duplication and self.links.dice.random() < self.links.duplication:
                self.links.repeated += 1
                self.loop.world_later(self.links.delay() * 8, self._arrive)

    def _later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """Something that the client's kernel hears of: it runs in the client's life."""
        self.loop.world_later(delay, lambda: self.client.call_soon(callback, *args))

    def _vanished(self) -> None:
        """A message got lost: the connection may be found broken before the deadline is over, or not."""
        if self.links.dice.random() < 0.5:
            self._later(self.links.delay() * 4, self.fail, grpc.StatusCode.UNAVAILABLE, "connection reset")

    def connection_lost(self) -> None:
        """The server's side is gone."""
        for task in self.tasks:
            task.cancel()
        told = self._server_id is not None and self.links.open(self._server_id, self.client.node_id)
        if told and self.links.dice.random() < 0.7:
            self._later(self.links.delay(), self.fail, grpc.StatusCode.UNAVAILABLE, "connection reset by peer")

    # -- the server's half --------------------------------------------------------------------------------------------
    def _arrive(self) -> None:
        server = self.network.servers.get(self.address)
        if server is None or not server.life.alive:
            self._later(self.links.delay(), self.fail, grpc.StatusCode.UNAVAILABLE, "connection refused")
            return
        if not self.links.open(self.client.node_id, server.life.node_id):
            self._vanished()
            return
        server.life.call_soon(self._begin, server)

    def _begin(self, server: RpcServer) -> None:
        handler = server.handlers.get(self.path)
        if handler is None:
            self.respond(server, self.fail, grpc.StatusCode.UNIMPLEMENTED, f"no {self.path}")
            return
        self.server = server
        server.open_calls[self] = None
        task = self.loop.create_task(self._serve(server, handler))
        self.tasks.append(task)
        if self.timeout is not None:
            self.loop.call_later(self.timeout, task.cancel)  # the deadline travels with the request

    async def _serve(self, server: RpcServer, handler: Any) -> None:
        request = handler.request_deserializer(self.payload)
        try:
            await self.handle(server, handler, request)
        except _Abort as abort:
            self.respond(server, self.fail, abort.code, abort.details, abort.trailers)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.loop.problems.append(f"{server.life.name} {self.path} raised {type(error).__name__}: {error}")
            self.respond(server, self.fail, grpc.StatusCode.UNKNOWN, str(error))
        finally:
            server.open_calls.pop(self, None)

    async def handle(self, server: RpcServer, handler: Any, request: Any) -> None:
        raise NotImplementedError

    def respond(self, server: RpcServer, callback: Callable[..., None], *args: Any) -> None:
        if self.links.carries(server.life.node_id, self.client.node_id):
            self._later(self.links.delay(), callback, *args)
        else:
            self._vanished()

    # -- the client's half --------------------------------------------------------------------------------------------
    def fail(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        """The client has given up; the handler hears of it, if the message gets through."""
        self.ended = True
        if self._server_id is not None and self.links.carries(self.client.node_id, self._server_id):
            self.loop.world_later(self.links.delay(), self._cancel_handlers)

    def _cancel_handlers(self) -> None:
        if self.server is not None:
            for task in self.tasks:
                if not task.done():
                    self.server.life.call_soon(task.cancel)


class _Unary(_Call):
    repeatable = True

    def __init__(self, channel: RpcChannel, path: str, payload: bytes, deserialize: Any, timeout: float | None) -> None:
        self.answer: asyncio.Future[Any] = channel.network.loop.create_future()
        super().__init__(channel, path, payload, deserialize, timeout)
        self.answer.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if not self.ended:  # cancelled by the caller
            self.hang_up()

    async def handle(self, server: RpcServer, handler: Any, request: Any) -> None:
        response = await handler.unary_unary(request, _Context(self.loop, self.timeout))
        self.network.observe(server.life.name, self.path, response)
        self.respond(server, self._answered, handler.response_serializer(response))

    def _answered(self, payload: bytes) -> None:
        if not self.answer.done():
            self.ended = True
            self.answer.set_result(self.deserialize(payload))

    def fail(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        if self.answer.done():
            return
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.hang_up()
        self.ended = True
        self.answer.set_exception(_status(code, details, trailers))


class _Stream(_Call):
    """A response stream, with a window: a reader that stands still stops the writer."""

    def __init__(self, channel: RpcChannel, path: str, payload: bytes, deserialize: Any, timeout: float | None) -> None:
        self._arrived: deque[Any] = deque()  # messages, then an exception or EOF
        self._waiting: asyncio.Future[None] | None = None
        self._due_ns = 0
        self._broken = False
        self._in_flight = 0
        self._room: asyncio.Future[None] | None = None
        super().__init__(channel, path, payload, deserialize, timeout)

    # the server's half
    async def handle(self, server: RpcServer, handler: Any, request: Any) -> None:
        answers: AsyncIterator[Any] = handler.unary_stream(request, _Context(self.loop, self.timeout))
        async for message in answers:
            while self._in_flight >= STREAM_WINDOW:
                self._room = self.loop.create_future()
                await self._room
            self._in_flight += 1
            self.respond(server, self._put, handler.response_serializer(message))
        self.respond(server, self._put, grpc.aio.EOF)

    def respond(self, server: RpcServer, callback: Callable[..., None], *args: Any) -> None:
        """In order; once a message is lost, all that follow are."""
        if self._broken:
            return
        if not self.links.open(server.life.node_id, self.client.node_id) or (
            self.links.loss and self.links.dice.random() < self.links.loss / 4
        ):
            self._broken = True
            self._vanished()
            return
        self._due_ns = max(self._due_ns + 1, self.loop.now_ns + round(self.links.delay() * 1e9))
        self.loop.world_at(self._due_ns, lambda: self.client.call_soon(callback, *args))

    def _more_room(self) -> None:
        self._in_flight -= 1
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # the client's half
    def _put(self, item: Any) -> None:
        if not self.ended:
            self._arrived.append(item)
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)

    def fail(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._put(_status(code, details, trailers))

    async def read(self) -> Any:
        while not self._arrived:
            self._waiting = self.loop.create_future()
            await self._waiting
        item = self._arrived[0]
        if item is grpc.aio.EOF:
            return item
        if isinstance(item, Exception):
            raise item
        self._arrived.popleft()
        server = self.server
        if server is not None:
            self.loop.world_later(self.links.delay(), lambda: server.life.call_soon(self._more_room))
        return self.deserialize(item)

    def cancel(self) -> None:
        if not self.ended:
            self.hang_up()


# -- Raft's messages --------------------------------------------------------------------------------------------------
class RaftPort:
    """In place of a `RaftTransport`: an endpoint of the simulated network, its deliveries within the life it serves."""

    def __init__(self, network: SimNetwork, life: Life) -> None:
        self._life = life
        self._endpoint: SimEndpoint = network.endpoint(life.node_id)
        self._sink: MessageSink | None = None

    def attach(self, sink: MessageSink, receiver: SnapshotReceiver | None = None) -> None:
        self._sink = sink
        self._endpoint.attach(self, receiver)

    def register(self, server: Any) -> None:
        """Raft's messages do not come through the server here."""

    def send(self, node_id: int, messages: list[GroupMessage]) -> None:
        self._endpoint.send(node_id, messages)

    def send_snapshot(
        self,
        node_id: int,
        group_id: int,
        message: Message,
        payload: SnapshotPayload | None,
        done: Callable[[bool], None],
    ) -> None:
        life = self._life
        self._endpoint.send_snapshot(
            node_id, group_id, message, payload, lambda accepted: life.call_soon(done, accepted)
        )

    # MessageSink
    def receive(self, from_node: int, messages: list[GroupMessage]) -> None:
        assert self._sink is not None
        self._life.call_soon(self._sink.receive, from_node, messages)

    def undelivered(self, node_id: int, messages: list[GroupMessage]) -> None:
        assert self._sink is not None
        self._life.call_soon(self._sink.undelivered, node_id, messages)

    async def close(self) -> None:
        self._endpoint.alive = False


class WorldScheduler:
    """What a SimNetwork runs on: no process can stop a message that has left."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.clock = self

    def monotonic_ns(self) -> int:
        return self._loop.now_ns

    def call_later(self, delay_s: float, callback: Callable[..., Any], /, *args: Any) -> Any:
        return self._loop.world_later(delay_s, callback, *args)
