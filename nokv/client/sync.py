"""`ClusterClient`: `AsyncClusterClient` for callers that block. Any thread; requests of threads share messages."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from nokv._ext.batch import checked_pairs
from nokv.client.client import AsyncClusterClient, AsyncClusterSnapshot, Pair
from nokv.client.host import LoopThread
from nokv.errors import Closed

__all__ = ["ClusterClient", "ClusterSnapshot"]

SCAN_CHUNK = 512  # rows handed from the event loop to the caller at once

_D = TypeVar("_D")


class ClusterClient:
    """The verbs of the embedded engine over a cluster. `nokv.connect` makes one."""

    def __init__(
        self,
        coordinators: str | Sequence[str],
        *,
        timeout_s: float = 5.0,
        tls_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._client = AsyncClusterClient(coordinators, timeout_s=timeout_s, tls_dir=tls_dir)
        self._thread: LoopThread | None = LoopThread("nokv client")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {','.join(self.coordinators)}{' closed' if self._thread is None else ''}>"

    @property
    def coordinators(self) -> tuple[str, ...]:
        return self._client.coordinators

    @property
    def closed(self) -> bool:
        return self._thread is None

    def get(self, key: bytes, default: _D | None = None, *, timeout_s: float | None = None) -> bytes | _D | None:
        return self._live().run(self._client.get(key, default, timeout_s=timeout_s))

    def get_many(self, keys: Iterable[bytes], *, timeout_s: float | None = None) -> list[bytes | None]:
        return self._live().run(self._client.get_many(list(keys), timeout_s=timeout_s))

    def put(self, key: bytes, value: bytes, *, timeout_s: float | None = None) -> None:
        self._live().run(self._client.put(key, value, timeout_s=timeout_s))

    def put_many(self, pairs: Mapping[bytes, bytes] | Iterable[Pair], *, timeout_s: float | None = None) -> None:
        """Atomic for each region's part of each megabyte, not as a whole."""
        items = checked_pairs(pairs.items() if isinstance(pairs, Mapping) else pairs)
        self._live().run(self._client.put_many(items, timeout_s=timeout_s))

    def delete(self, key: bytes, *, timeout_s: float | None = None) -> None:
        self._live().run(self._client.delete(key, timeout_s=timeout_s))

    def scan(
        self,
        start: bytes | None = None,
        end: bytes | None = None,
        *,
        prefix: bytes | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: bool = True,
        values: bool = True,
        timeout_s: float | None = None,
    ) -> Iterator[Any]:
        return self._walk(
            self._client.scan(
                start,
                end,
                prefix=prefix,
                reverse=reverse,
                limit=limit,
                keys=keys,
                values=values,
                timeout_s=timeout_s,
            )
        )

    def snapshot(self, *, timeout_s: float | None = None) -> ClusterSnapshot:
        return ClusterSnapshot(self, self._live().run(self._client.snapshot(timeout_s=timeout_s)))

    def at(self, timestamp: int) -> ClusterSnapshot:
        return ClusterSnapshot(self, self._client.at(timestamp))

    def timestamp(self, *, timeout_s: float | None = None) -> int:
        return self._live().run(self._client.timestamp(timeout_s=timeout_s))

    def stats(self) -> dict[str, int]:
        return dict(self._client.stats)

    def close(self) -> None:
        """Idempotent, from any thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.run(self._client.close())
            except Closed:
                return  # after a fork: the parent's loop is not ours to stop
            thread.stop()

    def __enter__(self) -> ClusterClient:
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()

    def _live(self) -> LoopThread:
        thread = self._thread
        if thread is None:
            raise Closed("the client is closed")
        return thread

    def _walk(self, rows: AsyncIterator[Any]) -> Iterator[Any]:
        """A generator of `rows`, fetched in chunks. The first error comes from the first `next`."""

        async def take() -> list[Any]:
            chunk = []
            async for row in rows:
                chunk.append(row)
                if len(chunk) >= SCAN_CHUNK:
                    break
            return chunk

        while chunk := self._live().run(take()):
            yield from chunk


class ClusterSnapshot:
    """Reads at one timestamp."""

    def __init__(self, client: ClusterClient, snapshot: AsyncClusterSnapshot) -> None:
        self._client = client
        self._snapshot = snapshot

    @property
    def timestamp(self) -> int:
        return self._snapshot.timestamp

    def get(self, key: bytes, default: _D | None = None, *, timeout_s: float | None = None) -> bytes | _D | None:
        return self._client._live().run(self._snapshot.get(key, default, timeout_s=timeout_s))

    def get_many(self, keys: Iterable[bytes], *, timeout_s: float | None = None) -> list[bytes | None]:
        return self._client._live().run(self._snapshot.get_many(list(keys), timeout_s=timeout_s))

    def scan(
        self,
        start: bytes | None = None,
        end: bytes | None = None,
        *,
        prefix: bytes | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: bool = True,
        values: bool = True,
        timeout_s: float | None = None,
    ) -> Iterator[Any]:
        return self._client._walk(
            self._snapshot.scan(
                start,
                end,
                prefix=prefix,
                reverse=reverse,
                limit=limit,
                keys=keys,
                values=values,
                timeout_s=timeout_s,
            )
        )

    def close(self) -> None:
        """Nothing is held on the servers; here so that it can be used like the embedded snapshot."""

    def __enter__(self) -> ClusterSnapshot:
        return self

    def __exit__(self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None) -> None:
        return None
