"""The gRPC transport on the loopback interface: TR-01..TR-08. With CHAOS_TRACE_METRICS=1 the counters are printed."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nokv._ext.crc32c import crc32c
from nokv.errors import Busy, UsageError
from nokv.multiraft.ports import SnapshotOffer, SnapshotPayload
from nokv.multiraft.transport import CHANNEL_OPTIONS, SERVER_OPTIONS, RaftTransport, TransportOptions
from nokv.multiraft.wire import GroupMessage, encode_messages
from nokv.pb import raft_pb2, raft_pb2_grpc
from nokv.raft.types import ConfState, Entry, Message, MessageType, RaftSnapshot, SnapshotMetadata
from nokv.rpc.certificates import init_ca, issue
from nokv.rpc.tls import Tls
from nokv.rpc.transport import bind

FAST = TransportOptions(send_timeout_s=1.0, backoff_initial_s=0.01, backoff_max_s=0.05, retries_max=1)


class Sink:
    """Remembers what arrived; `until` waits for a change, not for time."""

    def __init__(self) -> None:
        self.received: list[tuple[int, GroupMessage]] = []
        self.lost: list[tuple[int, GroupMessage]] = []
        self.changed = asyncio.Event()

    def receive(self, from_node: int, messages: list[GroupMessage]) -> None:
        self.received.extend((from_node, m) for m in messages)
        self.changed.set()

    def undelivered(self, node_id: int, messages: list[GroupMessage]) -> None:
        self.lost.extend((node_id, m) for m in messages)
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Process:
    """One transport with its server."""

    def __init__(self, node_id: int, addresses: dict[int, str], options: TransportOptions, **kwargs: Any) -> None:
        self.node_id = node_id
        self.addresses = addresses
        self.sink = Sink()
        self.transport = RaftTransport(node_id, addresses.get, options=options, **kwargs)
        self.receiver: Any = None
        self.server: Any = None

    async def start(self, port: int = 0, tls: Tls | None = None) -> None:
        self.transport.attach(self.sink, self.receiver)
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.transport.register(self.server)
        self.addresses[self.node_id] = bind(self.server, f"127.0.0.1:{port}", tls)
        await self.server.start()

    async def stop(self) -> None:
        await self.transport.close()
        if self.server is not None:
            await self.server.stop(None)
        if os.environ.get("CHAOS_TRACE_METRICS") == "1":
            print(f"node {self.node_id}: {json.dumps(self.transport.stats())}")

    @property
    def port(self) -> int:
        return int(self.addresses[self.node_id].rsplit(":", 1)[1])


@asynccontextmanager
async def processes(count: int = 2, options: TransportOptions = FAST) -> AsyncIterator[list[Process]]:
    addresses: dict[int, str] = {}
    made = [Process(i, addresses, options) for i in range(1, count + 1)]
    try:
        for process in made:
            await process.start()
        yield made
    finally:
        for process in made:
            await process.stop()


def heartbeat(number: int, group: int = 7) -> GroupMessage:
    return group, Message(MessageType.HEARTBEAT, to=2, sender=1, term=1, commit=number)


def append(number: int, size: int = 100) -> GroupMessage:
    entries = [Entry(1, number + 1, data=b"x" * size)]
    return 7, Message(MessageType.APP, to=2, sender=1, term=1, index=number, entries=entries)


async def send_until_one_arrives(sender: Process, receiver: Process) -> None:
    """As Raft would: again whenever one is reported lost."""
    for number in range(1000, 1100):
        lost, received = len(sender.sink.lost), len(receiver.sink.received)
        sender.transport.send(receiver.node_id, [append(number)])
        waiting = {
            asyncio.create_task(receiver.sink.until(lambda count=received: len(receiver.sink.received) > count)),
            asyncio.create_task(sender.sink.until(lambda count=lost: len(sender.sink.lost) > count)),
        }
        _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if len(receiver.sink.received) > received:
            return
    raise AssertionError("nothing arrives")


async def test_messages_arrive_in_order_and_batched() -> None:
    async with processes() as (one, two):
        sent = [heartbeat(i) for i in range(500)]
        for item in sent:
            one.transport.send(2, [item])
        await two.sink.until(lambda: len(two.sink.received) == 500)
        assert two.sink.received == [(1, item) for item in sent]
        assert two.transport.counters["received_batches"] <= 2  # one turn's messages travel together
        two.transport.send(1, [heartbeat(1)])
        await one.sink.until(lambda: len(one.sink.received) == 1)


async def test_one_port_serves_other_services_too() -> None:  # TR-01, TR-06
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    addresses: dict[int, str] = {}
    process = Process(1, addresses, FAST)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    process.transport.register(server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await process.stop()
    await server.stop(None)


async def test_dead_peer_counts_failures_and_watchdog() -> None:  # TR-03, TR-07, TR-08
    async with processes() as (one, two):
        await two.server.stop(None)
        two.server = None
        for number in range(3):
            one.transport.send(2, [append(number)])
            await one.sink.until(lambda number=number: len(one.sink.lost) >= number + 1)
        stats = one.transport.stats()
        assert stats["failures"] >= 6 and stats["dial_failures"] >= 6
        assert stats["retries"] >= 3 and stats["retry_exhausted"] == 3
        assert stats["watchdog"]["active"] and stats["watchdog"]["consecutive"] >= 5
        assert "node 2" in stats["watchdog"]["reason"] and "node 2" in stats["last_failure"]
        await two.start(two.port)
        await send_until_one_arrives(one, two)
        watchdog = one.transport.stats()["watchdog"]
        assert not watchdog["active"] and watchdog["consecutive"] == 0 and watchdog["reason"] == ""


async def test_peer_restarts_on_the_same_address() -> None:
    async with processes() as (one, two):
        one.transport.send(2, [heartbeat(1)])
        await two.sink.until(lambda: len(two.sink.received) == 1)
        await two.server.stop(None)
        await two.start(two.port)
        await send_until_one_arrives(one, two)


async def test_set_peer_moves_the_stream() -> None:  # TR-02
    async with processes(3) as (one, two, three):
        one.transport.send(2, [heartbeat(1)])
        await two.sink.until(lambda: len(two.sink.received) == 1)
        one.transport.set_peer(2, three.addresses[3])
        one.transport.send(2, [append(2)])
        await one.sink.until(lambda: len(one.sink.lost) == 1)  # node 3 refuses what is meant for node 2
        assert three.sink.received == [] and three.transport.counters["rejected_batches"] > 0
        assert "this is node 3, not 2" in one.transport.stats()["last_failure"]
        one.transport.set_peer(2, None)
        one.transport.send(2, [heartbeat(3)])
        await two.sink.until(lambda: len(two.sink.received) == 2)


async def test_unknown_address_is_reported() -> None:
    async with processes(1) as (one,):
        one.transport.send(99, [append(1)])
        await one.sink.until(lambda: len(one.sink.lost) == 1)
        assert "no address for node 99" in one.transport.stats()["last_failure"]


async def test_blocked_peers_both_directions() -> None:  # TR-02, TR-08
    async with processes() as (one, two):
        one.transport.block_peer(2)
        assert one.transport.stats()["blocked_peers"] == [2]
        one.transport.send(2, [append(1)])
        await one.sink.until(lambda: len(one.sink.lost) == 1)

        async def arriving() -> AsyncIterator[Any]:
            yield raft_pb2.RaftBatch(from_node=2, to_node=1, payload=encode_messages([heartbeat(1)]))

        await one.transport.serve_step(arriving(), None)
        assert one.sink.received == [] and one.transport.counters["blocked_messages"] == 2
        one.transport.unblock_peer(2)
        one.transport.send(2, [append(3)])
        await two.sink.until(lambda: len(two.sink.received) == 1)
        two.transport.send(1, [heartbeat(9)])
        await one.sink.until(lambda: any(m.commit == 9 for _, (_, m) in one.sink.received))
        assert one.transport.stats()["blocked_peers"] == []


class Stalled(raft_pb2_grpc.RaftTransportServicer):
    """Accepts the stream and never reads."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def Step(self, request_iterator: Any, context: Any) -> Any:
        await self.over.wait()
        return raft_pb2.RaftBatchAck()


async def test_stalled_peer_bounds_memory_and_counts_drops() -> None:  # TR-05, RAFT-17
    options = TransportOptions(
        send_timeout_s=0.2, backoff_initial_s=0.01, retries_max=0, queue_messages_max=50, queue_bytes_max=1 << 20
    )
    servicer = Stalled()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    raft_pb2_grpc.add_RaftTransportServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    one = Process(1, {2: f"127.0.0.1:{port}"}, options)
    one.transport.attach(one.sink)
    for number in range(1000):
        one.transport.send(2, [append(number, 40_000)])
        assert one.transport.stats()["queued_messages"] <= 50
        assert one.transport.stats()["queued_bytes"] <= 1 << 20
    await one.sink.until(lambda: len(one.sink.lost) >= 900)
    while not one.transport.stats()["failures"]:  # then nothing is read for longer than the timeout
        one.transport.send(2, [append(number, 40_000) for number in range(30)])
        count = len(one.sink.lost)
        await one.sink.until(lambda count=count: len(one.sink.lost) > count)
    stats = one.transport.stats()
    assert stats["dropped_messages"] >= 900 and "TimeoutError" in stats["last_failure"]
    servicer.over.set()
    await one.stop()
    await server.stop(None)


async def test_what_cannot_be_encoded_is_dropped_and_the_stream_goes_on() -> None:
    async with processes() as (one, two):
        one.transport.send(2, [(7, Message(MessageType.HUP, to=2, sender=1))])
        await one.sink.until(lambda: len(one.sink.lost) == 1)
        one.transport.send(2, [heartbeat(1)])
        await two.sink.until(lambda: len(two.sink.received) == 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "long"])
async def test_hostile_batch_is_refused_and_others_served(damage: str) -> None:
    async with processes() as (one, two):
        payload = encode_messages([heartbeat(1)])
        bad = {
            "flip": payload[:-1] + bytes([payload[-1] ^ 1]),
            "cut": payload[:-1],
            "empty": b"",
            "long": payload + b"x",
        }[damage]
        async with grpc.aio.insecure_channel(two.addresses[2], options=CHANNEL_OPTIONS) as channel:
            call = raft_pb2_grpc.RaftTransportStub(channel).Step()
            await call.write(raft_pb2.RaftBatch(from_node=9, to_node=2, payload=bad))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "raft message batch" in str(caught.value.details())
        assert two.sink.received == [] and two.transport.counters["rejected_batches"] == 1
        one.transport.send(2, [heartbeat(1)])
        await two.sink.until(lambda: len(two.sink.received) == 1)


# -- TLS -----------------------------------------------------------------------------------------------
async def test_tls_carries_and_plaintext_is_refused(tmp_path: Path) -> None:  # TR-04
    now = datetime.datetime.now(datetime.UTC)
    init_ca(tmp_path / "ca", now=now)
    for name in ("one", "two"):
        issue(tmp_path / "ca", name, ["127.0.0.1"], now=now)
    addresses: dict[int, str] = {}
    two = Process(2, addresses, FAST)
    await two.start(tls=Tls(tmp_path / "ca" / "two"))
    one = Process(1, addresses, FAST, tls=Tls(tmp_path / "ca" / "one"))
    plain = Process(3, addresses, FAST)
    plain.transport.attach(plain.sink)
    one.transport.send(2, [heartbeat(1)])
    await two.sink.until(lambda: len(two.sink.received) == 1)
    plain.transport.send(2, [append(2)])
    await plain.sink.until(lambda: len(plain.sink.lost) == 1)
    assert len(two.sink.received) == 1
    for process in (one, plain, two):
        await process.stop()


# -- snapshots -----------------------------------------------------------------------------------------
class Staging:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.offer: SnapshotOffer | None = None
        self.state = "open"
        self.refuse: Exception | None = None

    def begin(self, offer: SnapshotOffer) -> Staging:
        if self.refuse is not None:
            raise self.refuse
        self.offer = offer
        return self

    def write(self, file: str, data: bytes) -> None:
        self.files[file] = self.files.get(file, b"") + data

    def finish(self) -> None:
        self.state = "finished"

    def abort(self) -> None:
        self.state = "aborted"


def snap(data: bytes = b"") -> Message:
    metadata = SnapshotMetadata(50, 3, ConfState((1, 2)))
    return Message(MessageType.SNAP, to=2, sender=1, term=3, snapshot=RaftSnapshot(metadata, data))


FILES = {"000001.sst": os.urandom(3_000_000), "000002.sst": b"", "manifest": b"m" * 10}


def payload(total: int | None = None, closed: list[int] | None = None) -> SnapshotPayload:
    def chunks() -> Iterator[tuple[str, bytes]]:
        for name, data in FILES.items():
            for start in range(0, max(len(data), 1), 1 << 20):
                yield name, data[start : start + (1 << 20)]

    size = sum(map(len, FILES.values())) if total is None else total
    return SnapshotPayload(b"about", size, chunks, lambda: closed.append(1) if closed is not None else None)


async def ship(one: Process, message: Message, files: SnapshotPayload | None) -> bool:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    one.transport.send_snapshot(2, 7, message, files, answer.set_result)
    return await asyncio.wait_for(answer, 20)


async def test_snapshot_files_arrive_whole_then_the_message() -> None:
    async with processes() as (one, two):
        staging, closed = Staging(), []
        two.transport.attach(two.sink, staging)
        assert await ship(one, snap(), payload(closed=closed)) is True
        assert staging.files == FILES and staging.state == "finished" and closed == [1]
        assert staging.offer is not None and staging.offer.manifest == b"about" and staging.offer.from_node == 1
        assert two.sink.received == [(1, (7, snap()))]
        assert one.transport.counters["snapshots_sent"] == two.transport.counters["snapshots_received"] == 1


async def test_snapshot_without_files_carries_its_data() -> None:
    async with processes() as (one, two):
        big = os.urandom(8 << 20)
        assert await ship(one, snap(big), None) is True
        assert two.sink.received == [(1, (7, snap(big)))]


@pytest.mark.parametrize("case", ["refused", "total", "no_receiver", "blocked", "dead"])
async def test_snapshot_that_fails_is_reported_and_not_delivered(case: str) -> None:
    async with processes() as (one, two):
        staging, closed = Staging(), []
        if case != "no_receiver":
            two.transport.attach(two.sink, staging)
        if case == "refused":
            staging.refuse = Busy("too many snapshots")
        if case == "blocked":
            two.transport.block_peer(1)
        if case == "dead":
            await two.server.stop(None)
        files = payload(total=99 if case == "total" else None, closed=closed)
        assert await ship(one, snap(), files) is False
        assert two.sink.received == [] and closed == [1]
        assert staging.state in ("open", "aborted")
        assert one.transport.counters["snapshots_failed"] == 1
        if case == "refused":
            assert "too many snapshots" in one.transport.stats()["last_failure"]


@pytest.mark.parametrize(
    "chunk",
    [
        raft_pb2.SnapshotChunk(file="a", data=b"xy", crc32c=1),
        raft_pb2.SnapshotChunk(file="../a", data=b"x", crc32c=crc32c(b"x")),
        raft_pb2.SnapshotChunk(file="a/b", data=b"x", crc32c=crc32c(b"x")),
        raft_pb2.SnapshotChunk(file="..", data=b"x", crc32c=crc32c(b"x")),
        raft_pb2.SnapshotChunk(file="", data=b"x", crc32c=crc32c(b"x")),
        raft_pb2.SnapshotChunk(file="a" * 300, data=b"x", crc32c=crc32c(b"x")),
        raft_pb2.SnapshotChunk(file="a", data=b"x" * 20, crc32c=crc32c(b"x" * 20)),
        raft_pb2.SnapshotChunk(file="a", data=b"x" * ((1 << 20) + 1), crc32c=crc32c(b"x" * ((1 << 20) + 1))),
        raft_pb2.SnapshotChunk(header=raft_pb2.SnapshotHeader(to_node=2)),
        None,
    ],
    ids=["crc", "dotdot", "slash", "parent", "noname", "longname", "total", "size", "header", "noheader"],
)
async def test_hostile_snapshot_stream_is_refused_and_cleaned_up(chunk: Any) -> None:
    async with processes() as (_, two):
        staging = Staging()
        two.transport.attach(two.sink, staging)
        header = raft_pb2.SnapshotHeader(
            group_id=7, from_node=1, to_node=2, message=encode_messages([(7, snap())]), total_bytes=10
        )
        async with grpc.aio.insecure_channel(two.addresses[2], options=CHANNEL_OPTIONS) as channel:
            call = raft_pb2_grpc.RaftTransportStub(channel).InstallSnapshot()
            if chunk is not None:
                await call.write(raft_pb2.SnapshotChunk(header=header))
                assert (await call.read()).accepted
                await call.write(chunk)
            else:
                await call.write(raft_pb2.SnapshotChunk(file="a"))
            ack = await call.read()
        assert not ack.accepted and ack.reason
        assert staging.state == ("open" if chunk is None else "aborted")
        assert two.sink.received == []


async def test_snapshot_stream_that_breaks_is_cleaned_up() -> None:
    async with processes() as (_, two):
        staging = Staging()
        seen = asyncio.Event()
        staging.write = lambda file, data: seen.set()  # type: ignore[method-assign]
        aborted = asyncio.Event()
        staging.abort = aborted.set  # type: ignore[method-assign]
        two.transport.attach(two.sink, staging)
        header = raft_pb2.SnapshotHeader(
            group_id=7, from_node=1, to_node=2, message=encode_messages([(7, snap())]), total_bytes=10
        )
        async with grpc.aio.insecure_channel(two.addresses[2], options=CHANNEL_OPTIONS) as channel:
            call = raft_pb2_grpc.RaftTransportStub(channel).InstallSnapshot()
            await call.write(raft_pb2.SnapshotChunk(header=header))
            await call.write(raft_pb2.SnapshotChunk(file="a", data=b"x", crc32c=crc32c(b"x")))
            await asyncio.wait_for(seen.wait(), 10)
            call.cancel()
        await asyncio.wait_for(aborted.wait(), 10)
        assert two.sink.received == []


def test_options_are_checked() -> None:
    for bad in ({"send_timeout_s": 0}, {"queue_messages_max": 0}, {"retries_max": -1}, {"batch_bytes_max": 1 << 30}):
        with pytest.raises(UsageError):
            TransportOptions(**bad)
