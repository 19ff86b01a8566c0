"""A cluster as the shell's target, by its coordinators: data through the client, the planes through their services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nokv.client.sync import ClusterClient
from nokv.rpc.tls import load_tls
from nokv_shell.client import Planes

__all__ = ["ClusterTarget"]


class ClusterTarget:
    def __init__(self, coordinators: list[str], *, timeout_s: float = 5.0, tls_dir: str | None = None) -> None:
        self.db = ClusterClient(coordinators, timeout_s=timeout_s, tls_dir=tls_dir)
        self.planes = Planes(list(self.db.coordinators), load_tls(tls_dir))
        self.name = f"nokv://{','.join(self.db.coordinators)}"

    def get(self, key: bytes) -> bytes | None:
        return self.db.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value)

    def delete(self, key: bytes) -> None:
        self.db.delete(key)

    def scan(
        self, start: bytes | None, end: bytes | None, *, reverse: bool, limit: int | None
    ) -> Iterable[tuple[bytes, bytes]]:
        return self.db.scan(start, end, reverse=reverse, limit=limit)

    def set_writable(self, writable: bool) -> None:
        """Nothing to reopen: the session itself refuses writes until they are allowed."""

    def status(self) -> dict[str, Any]:
        return {"target": self.name, "mode": "cluster", **self.planes.status()}

    def stats(self) -> dict[str, Any]:
        return {"coordinator": self.planes.stats(), "client": self.db.stats()}

    def regions(self) -> list[dict[str, Any]]:
        return self.planes.regions()

    def stores(self) -> list[dict[str, Any]]:
        return self.planes.stores()

    def execution(self, address: str, region_id: int) -> list[dict[str, Any]]:
        return self.planes.execution(address, region_id)

    def root_log(self, address: str, from_revision: int, limit: int) -> list[dict[str, Any]]:
        return self.planes.root_log(address, from_revision, limit)

    def close(self) -> None:
        self.planes.close()
        self.db.close()
