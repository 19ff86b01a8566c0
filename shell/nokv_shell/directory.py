"""A directory as the shell's target: the embedded engine, no server. Opened for reading until writes are allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import nokv
from nokv.engine.mode import read_mode
from nokv.env.files import OsFiles
from nokv.errors import NotSupported

__all__ = ["DirectoryTarget"]


class DirectoryTarget:
    def __init__(self, path: str) -> None:
        self.name = path
        self.path = path
        self.mode = read_mode(path, OsFiles()).mode
        self.db = self._open(read_only=True)

    def _open(self, *, read_only: bool) -> nokv.DB:
        return nokv.open(self.path, create=False, read_only=read_only, mode=self.mode)

    def set_writable(self, writable: bool) -> None:
        """Reopen for writing or for reading. A promoted directory is written through the cluster only."""
        if writable and self.mode != "standalone":
            raise NotSupported(
                f"{self.path} is in mode {self.mode}: its writes go through the cluster",
                hint="nokv-shell nokv://COORDINATOR",
            )
        self.db.close()
        try:
            self.db = self._open(read_only=not writable)
        except Exception:
            self.db = self._open(read_only=True)  # stay usable: somebody else may hold the write lock
            raise

    def get(self, key: bytes) -> bytes | None:
        return self.db.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=True)

    def delete(self, key: bytes) -> None:
        self.db.delete(key, sync=True)

    def scan(
        self, start: bytes | None, end: bytes | None, *, reverse: bool, limit: int | None
    ) -> Iterable[tuple[bytes, bytes]]:
        return self.db.scan(start, end, reverse=reverse, limit=limit)

    def status(self) -> dict[str, Any]:
        return {"target": self.path, "mode": self.mode, "version": nokv.__version__}

    def stats(self) -> dict[str, Any]:
        return self.db.stats()

    def regions(self) -> list[dict[str, Any]]:
        raise NotSupported("a directory has no regions of its own here", hint=f"nokv regions --workdir {self.path}")

    def stores(self) -> list[dict[str, Any]]:
        raise NotSupported("a directory has no stores", hint="nokv-shell nokv://COORDINATOR")

    def execution(self, address: str, region_id: int) -> list[dict[str, Any]]:
        raise NotSupported("a directory executes nothing", hint="nokv-shell nokv://COORDINATOR")

    def root_log(self, address: str, from_revision: int, limit: int) -> list[dict[str, Any]]:
        raise NotSupported("a directory has no rooted log", hint="nokv-shell nokv://COORDINATOR")

    def close(self) -> None:
        self.db.close()
