"""A three-member etcd on loopback and a small asyncio client of it: the anchor of the replicated rows.

Only field numbers of the public etcd v3 API are used (PutRequest: 1 key, 2 value; RangeRequest: 1 key). Left out of the
run where no `etcd` program is installed.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _field(number: int, value: bytes) -> bytes:
    length, out = len(value), bytearray([number << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out) + value


class EtcdCluster:
    """Context manager: three members in `directory`, stopped on exit."""

    available = shutil.which("etcd") is not None

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = free_ports(6)
        self.client_ports, self.peer_ports = ports[:3], ports[3:]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> EtcdCluster:
        initial = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(self.peer_ports))
        for i in range(3):
            with open(self.directory / f"etcd-{i}.log", "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [
                            "etcd",
                            f"--name=m{i}",
                            f"--data-dir={self.directory / f'etcd-{i}'}",
                            f"--listen-client-urls=http://127.0.0.1:{self.client_ports[i]}",
                            f"--advertise-client-urls=http://127.0.0.1:{self.client_ports[i]}",
                            f"--listen-peer-urls=http://127.0.0.1:{self.peer_ports[i]}",
                            f"--initial-advertise-peer-urls=http://127.0.0.1:{self.peer_ports[i]}",
                            f"--initial-cluster={initial}",
                        ],
                        stdout=log,
                        stderr=log,
                    )
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.client_ports]


class EtcdClient:
    """Unary put and linearizable get over grpc.aio, requests encoded by hand: the cheapest client Python offers."""

    def __init__(self, address: str) -> None:
        import grpc.aio

        self.channel = grpc.aio.insecure_channel(address)
        raw = {"request_serializer": None, "response_deserializer": None}
        self._put = self.channel.unary_unary("/etcdserverpb.KV/Put", **raw)
        self._range = self.channel.unary_unary("/etcdserverpb.KV/Range", **raw)

    async def put(self, key: bytes, value: bytes) -> None:
        await self._put(_field(1, key) + _field(2, value))

    async def get(self, key: bytes) -> bytes:
        return bytes(await self._range(_field(1, key)))

    async def wait_ready(self, timeout_s: float = 20) -> None:
        """Return once a put succeeds. TimeoutError otherwise."""
        import grpc

        end = time.monotonic() + timeout_s
        while True:
            try:
                await self._put(_field(1, b"ready") + _field(2, b"1"), timeout=1, wait_for_ready=True)
                return
            except grpc.RpcError as error:
                if time.monotonic() > end:
                    raise TimeoutError("etcd did not become ready") from error
                await asyncio.sleep(0.1)  # a poll with a deadline, outside of anything measured

    async def close(self) -> None:
        await self.channel.close()
