"""Real meta-roots and coordinators on loopback, in one process and one event loop; conditions with deadlines, no
sleeps."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nokv.errors import NoKVError
from nokv.metaroot.client import RootClient
from nokv.metaroot.server import RootConfig, RootServer, ServerPorts

T = TypeVar("T")


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on (held open together, so that they differ)."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


ROUND_S = 2.0


async def eventually(condition: Callable[[], Awaitable[T] | T], what: str, timeout_s: float = 15.0) -> T:
    """Poll until `condition` is truthy; NoKVErrors on the way count as "not yet". One round of it counts for at most
    ROUND_S: where the processes were stopped, nothing is late."""
    last: object = None
    loop, spent_s = asyncio.get_running_loop(), 0.0
    while spent_s < timeout_s:
        began = loop.time()
        try:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            last = found
        except NoKVError as error:
            last = error
        await asyncio.sleep(0.01)  # the polling interval of a condition, not a guess about time
        spent_s += min(loop.time() - began, ROUND_S)
    raise AssertionError(f"never came true: {what}; last seen: {last!r}")


class Roots:
    """`count` meta-roots in `directory`. `kill` abandons one; `start` brings it back from its disk."""

    def __init__(self, directory: Path, count: int, **options: object) -> None:
        self.directory = directory
        self.peers = dict(enumerate(free_addresses(count), start=1))
        self.options: dict[str, object] = {"tick_interval_s": 0.02, "tail_heartbeat_s": 0.1, **options}
        self.servers: dict[int, RootServer] = {}

    async def __aenter__(self) -> Roots:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.close)
            for node_id in self.peers:
                await self.start(node_id)
            stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        for node_id in list(self.servers):
            await self.stop(node_id)

    def config(self, node_id: int) -> RootConfig:
        return RootConfig(
            node_id=node_id,
            address=self.peers[node_id],
            workdir=str(self.directory / f"root-{node_id}"),
            peers=self.peers,
            **self.options,  # type: ignore[arg-type]
        )

    async def start(self, node_id: int) -> RootServer:
        server = RootServer(self.config(node_id), ports=ServerPorts(dice=random.Random(node_id)))
        await server.start()
        self.servers[node_id] = server
        return server

    async def stop(self, node_id: int) -> None:
        await self.servers.pop(node_id).stop()

    async def leader(self) -> int:
        def leading() -> int:
            found = [i for i, s in self.servers.items() if s.node is not None and s.node.leads]
            return found[0] if len(found) == 1 else 0

        return await eventually(leading, "one meta-root leads")

    def client(self, timeout_s: float = 10.0) -> RootClient:
        return RootClient(list(self.peers.values()), timeout_s=timeout_s)


async def healthy_services(address: str) -> set[str]:
    """The services that a server reflects, each of which its health service must call serving."""
    async with grpc.aio.insecure_channel(address) as channel:
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await info.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer: Any = await info.read()
        info.cancel()
        names = {service.name for service in answer.list_services_response.service}
        for name in ("", *(n for n in names if n.startswith("nokv."))):
            found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        return names
