"""A server that is stopped keeps its connections: what a client with little time does then. Virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nokv.errors import DeadlineExceeded, NotLeader
from nokv.metaroot.client import RootClient
from nokv.metaroot.service import abort_with
from nokv.pb import root_pb2, root_pb2_grpc
from nokv.testing.sim.control.host import Life, VirtualLoop
from nokv.testing.sim.control.transport import Links, RpcNetwork

ADDRESSES = ["one:1", "two:2", "three:3"]


class Answers(root_pb2_grpc.RootServicer):
    """Knows its id, and maybe somebody that it takes for the leader."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.leader = ""

    async def Status(self, request: root_pb2.RootStatusRequest, context: Any) -> root_pb2.RootStatusResponse:
        if self.leader:
            await abort_with(context, NotLeader("not I", address=self.leader))
        return root_pb2.RootStatusResponse(node_id=self.node_id)


class Three:
    def __init__(self) -> None:
        self.loop = VirtualLoop()
        network = RpcNetwork(Links(self.loop, random.Random(1)), lambda *seen: None)
        self.lives = [Life(self.loop, address, n) for n, address in enumerate(ADDRESSES, 1)]
        self.services = [Answers(life.node_id) for life in self.lives]
        for life, service, address in zip(self.lives, self.services, ADDRESSES, strict=True):
            server: Any = network.server(life)
            root_pb2_grpc.add_RootServicer_to_server(service, server)
            server.add_insecure_port(address)
            network.servers[address] = server
        me = Life(self.loop, "client", 9)
        self.life = me
        self.client = RootClient(ADDRESSES, rng=random.Random(2), dial=lambda address: network.channel(me, address))

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        with self.loop.running():

            async def body() -> Any:
                return await work()

            task = self.life.spawn(body())
            assert self.loop.run_until(self.loop.now_ns + 60_000_000_000, task.done)
        return task.result()


def test_calls_of_one_attempt_come_round_to_a_server_that_answers() -> None:
    three = Three()
    three.lives[0].pause()

    async def work() -> list[int]:
        found = []
        for _ in range(4):
            try:
                found.append((await three.client.status(timeout_s=0.3)).node_id)
            except DeadlineExceeded:
                found.append(0)
        return found

    found = three.run(work)
    assert found[0] == 0 and 0 not in found[1:]


def test_nobody_is_followed_to_a_server_that_has_just_been_silent() -> None:
    three = Three()
    three.lives[0].pause()
    three.services[1].leader = ADDRESSES[0]
    three.services[2].leader = ADDRESSES[0]
    began = three.loop.time()

    async def work() -> int:
        asyncio.get_running_loop().call_later(0.9, setattr, three.services[2], "leader", "")
        return (await three.client.status(timeout_s=10.0)).node_id

    assert three.run(work) == 3
    assert three.loop.time() - began < 1.5  # one attempt in vain, then only those that answer


def test_an_attempt_that_its_caller_gives_up_counts_as_silence() -> None:
    three = Three()
    three.lives[0].pause()

    async def work() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await three.client.status(timeout_s=10.0)
        began = three.loop.time()
        found = (await three.client.status(timeout_s=10.0)).node_id
        assert three.loop.time() - began < 0.1
        return found

    assert three.run(work) in (2, 3)


def test_a_server_that_woke_up_is_asked_again() -> None:
    three = Three()
    for service in three.services[1:]:
        service.leader = ADDRESSES[0]
    three.lives[0].pause()

    async def work() -> int:
        asyncio.get_running_loop().call_later(2.0, three.loop.world_later, 0.0, three.lives[0].resume)
        return (await three.client.status(timeout_s=10.0)).node_id

    assert three.run(work) == 1
