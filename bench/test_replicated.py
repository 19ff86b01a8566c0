"""Replicated rows: put and linearizable get with 1, 32 and 256 callers; our three stores beside a three-member etcd.

Every process of both systems and the load run on this machine, over loopback, with fsync on. Both clients are asyncio
Python; etcd's is unary grpc.aio, ours batches what meets in one turn of the loop. The Python client is part of what is
measured in both columns.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.etcd import EtcdClient, EtcdCluster
from bench.pysyncobj import PySyncObjCluster

VALUE = random.Random(1).randbytes(256)
KEYS = [b"bench/%06d" % i for i in range(10_000)]


class NoKVSystem:
    """Three meta-roots, one coordinator, three stores, region 1 on all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "cluster"

    def __enter__(self) -> NoKVSystem:
        self._nokv("cluster", "up", "--dir", str(self.directory), "--stores", "3", "--detach")
        status = json.loads(self._nokv("cluster", "status", "--dir", str(self.directory), "--output", "json"))
        self.coordinators = [p["address"] for p in status["processes"] if p["role"] == "coordinator"]
        return self

    def __exit__(self, *_: object) -> None:
        self._nokv("cluster", "down", "--dir", str(self.directory))

    def _nokv(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nokv.cli.main", *arguments], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"nokv {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    async def client(self) -> Any:
        from nokv.client.client import AsyncClusterClient

        client = AsyncClusterClient(self.coordinators)
        await client.put(b"ready", b"1")
        return client


class EtcdSystem(EtcdCluster):
    async def client(self) -> EtcdClient:
        client = EtcdClient(self.addresses[0])
        await client.wait_ready()
        return client


SYSTEMS: dict[str, Any] = {"nokv": NoKVSystem} | ({"etcd": EtcdSystem} if EtcdCluster.available else {})


@pytest.fixture(scope="module", params=list(SYSTEMS))
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with SYSTEMS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


async def closed_loop(operation: Any, callers: int, operations: int) -> None:
    """`callers` tasks, each one request at a time, until `operations` have been answered."""
    remaining = iter(range(operations))

    async def caller() -> None:
        for i in remaining:
            await operation(i)

    await asyncio.gather(*(caller() for _ in range(callers)))


@pytest.mark.parametrize("callers", [1, 32, 256])
@pytest.mark.parametrize("verb", ["put", "get"])
def test_replicated(benchmark: Any, system: Any, verb: str, callers: int) -> None:
    operations = {1: 300, 32: 3_000, 256: 10_000}[callers]
    order = [random.Random(callers).randrange(len(KEYS)) for _ in range(operations)]
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(system.client())

    async def put(i: int) -> None:
        await client.put(KEYS[order[i]], VALUE)

    async def get(i: int) -> None:
        await client.get(KEYS[order[i]])

    benchmark.group = f"replicated {verb}, {callers} callers"
    benchmark.extra_info["operations"] = operations
    benchmark.extra_info["engine"] = "nokv" if isinstance(system, NoKVSystem) else "etcd"
    try:
        benchmark.pedantic(
            lambda: loop.run_until_complete(closed_loop(put if verb == "put" else get, callers, operations)),
            rounds=3,
            warmup_rounds=1,
        )
    finally:
        loop.run_until_complete(client.close())
        loop.close()


@pytest.mark.skipif(not PySyncObjCluster.available, reason="pysyncobj is not installed")
@pytest.mark.parametrize("callers", [32, 256])
def test_replicated_put_by_pysyncobj(benchmark: Any, tmp_path: Path, callers: int) -> None:
    """Memory, no fsync, the caller inside the leading process: see bench/pysyncobj_peer.py."""
    operations = {32: 3_000, 256: 10_000}[callers]
    benchmark.group = f"replicated put, {callers} callers"
    benchmark.extra_info["operations"] = operations
    benchmark.extra_info["engine"] = "pysyncobj"
    with PySyncObjCluster(tmp_path, callers) as cluster:
        benchmark.pedantic(cluster.put_many, args=(operations,), rounds=3, warmup_rounds=1)
        complaints = cluster.complaints()
    benchmark.extra_info["replicas_diverged"] = "diverged" in complaints
