"""Timestamps per second from one coordinator, through the batched stream.

    PYTHONPATH=. python -m bench.tso [--count 1000] [--pipeline 32] [--clients 1] [--seconds 5]

A coordinator with a work directory of its own runs in a process; every client is a process with one stream, which keeps
`pipeline` requests for `count` timestamps each on their way. Every answer is checked to lie above the one before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time

import grpc.aio

from nokv.pb import coordinator_pb2 as pb
from nokv.pb import coordinator_pb2_grpc


async def ask(address: str, count: int, pipeline: int, seconds: float) -> dict[str, float]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        await stub.GetTimestamp(pb.TsoRequest(count=1), wait_for_ready=True)  # the lease is held
        call = stub.Tso()
        request = pb.TsoRequest(count=count)
        sent: list[int] = []
        for _ in range(pipeline):
            sent.append(time.perf_counter_ns())
            await call.write(request)
        last, answers, waits = 0, 0, []
        started = time.perf_counter()
        until = started + seconds
        while (now := time.perf_counter()) < until:
            response = await call.read()
            waits.append(time.perf_counter_ns() - sent.pop(0))
            assert response.first > last, "a timestamp went back"
            last = response.first + response.count - 1
            answers += 1
            sent.append(time.perf_counter_ns())
            await call.write(request)
        took = now - started
        call.cancel()
    waits.sort()
    return {
        "timestamps_per_s": answers * count / took,
        "messages_per_s": answers / took,
        "p50_ms": waits[len(waits) // 2] / 1e6,
        "p99_ms": waits[len(waits) * 99 // 100] / 1e6,
    }


def client(
    address: str, count: int, pipeline: int, seconds: float, answers: multiprocessing.Queue[dict[str, float]]
) -> None:
    answers.put(asyncio.run(ask(address, count, pipeline, seconds)))


async def ready(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        async with asyncio.timeout(30):
            while True:
                try:
                    await stub.GetTimestamp(pb.TsoRequest(count=1), wait_for_ready=True)
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--pipeline", type=int, default=32)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "nokv.cli.main", "coordinator", "--addr", address, "--workdir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asyncio.run(ready(address))
            answers = context.Queue()
            arguments = (address, options.count, options.pipeline, options.seconds, answers)
            clients = [context.Process(target=client, args=arguments) for _ in range(options.clients)]
            for process in clients:
                process.start()
            found = [answers.get(timeout=options.seconds + 30) for _ in clients]
            for process in clients:
                process.join()
        finally:
            server.terminate()
            server.wait(10)
    figures = {
        "count": options.count,
        "clients": options.clients,
        "timestamps_per_s": round(sum(f["timestamps_per_s"] for f in found)),
        "messages_per_s": round(sum(f["messages_per_s"] for f in found)),
        "p50_ms": round(max(f["p50_ms"] for f in found), 2),
        "p99_ms": round(max(f["p99_ms"] for f in found), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
