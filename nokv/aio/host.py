"""Asyncio twins of DB, Family, Snapshot, Transaction, Scan and Iterator, over a few threads.

    loop     checks, hands a call to the pool, awaits it         (never touches a file, a lock or the log)
    pool     runs the call: the compiled engine lets go of the GIL while it decodes, compresses and syncs
    closer   one thread at the very end: waits for the pool, then closes the database

Every call that may look at the disk or wait for something goes to the pool, even one that memory alone would answer:
nobody can know before. `get_many`, `put_many`, batches and scans pay that price once for many keys. What only collects
in memory is a plain method: a batch's and a transaction's `put` and `delete`, `snapshot`, `scan`, `transaction`.

Cancellation. A call that no thread has begun is not made. One that has begun runs to its end and its answer is lost: a
cancelled write may or may not have happened, whole or not at all. A scan keeps the chunk that was on its way, so who
goes on with it misses nothing. A cancelled `open` gives the directory back. A cancelled `close` closes nevertheless.

`close` lets what was begun before it finish; later calls raise Closed. All methods belong to the loop that opened it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from nokv._ext.batch import WriteBatch
from nokv._ext.db import Family, Snapshot, SnapshotFamily
from nokv._ext.iterator import Iterator
from nokv.engine.db import DB
from nokv.engine.opening import open_db
from nokv.engine.sst.external import ExportedFile
from nokv.engine.transaction import Transaction
from nokv.engine.versions import VerifyReport
from nokv.env.ports import Buffer
from nokv.errors import Closed, Conflict, NotFound, UsageError

__all__ = [
    "AsyncDB",
    "AsyncFamily",
    "AsyncIterator",
    "AsyncScan",
    "AsyncSnapshot",
    "AsyncSnapshotFamily",
    "AsyncTransaction",
    "open",
]

T = TypeVar("T")
D = TypeVar("D")
P = ParamSpec("P")
Path = str | os.PathLike[str]
Pairs = Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes]

THREADS = 4
CHUNK_FIRST = 32
CHUNK_MAX = 512
COUNTED_AT_ONCE = 4096
_MISSING: Any = object()


class _Host:
    """The database, its threads, its loop."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads}: at least one is needed")
        self.loop = asyncio.get_running_loop()
        self.pool = ThreadPoolExecutor(threads, "nokv-aio")
        self.closing: asyncio.Future[None] | None = None

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        if self.closing is not None:
            raise Closed("the database is closed", hint="open it again with nokv.aio.open")
        if asyncio.get_running_loop() is not self.loop:
            raise UsageError("the database was opened in another event loop", hint="open it in the loop that uses it")
        return self.loop.run_in_executor(self.pool, functools.partial(function, *args, **kwargs))

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.submit(function, *args, **kwargs)

    async def close(self, last: Callable[[], None]) -> None:
        if self.closing is None:
            closer = ThreadPoolExecutor(1, "nokv-aio-close")

            def shut() -> None:
                try:
                    self.pool.shutdown(wait=True)
                    last()
                finally:
                    closer.shutdown(wait=False)

            self.closing = self.loop.run_in_executor(closer, shut)
            self.closing.add_done_callback(_seen)
        await asyncio.shield(self.closing)


def _seen(future: asyncio.Future[Any]) -> None:
    """Whoever awaited it has the exception; if nobody did any more, nobody wants it."""
    if not future.cancelled():
        future.exception()


def _plain(family: Any) -> Any:
    """What the engine calls this family."""
    return family._target if isinstance(family, AsyncFamily) else family


# -- reads ------------------------------------------------------------------------------------------------------------
class AsyncScan(Generic[T]):
    """`async for` over a consistent view, in chunks. One task at a time."""

    def __init__(self, host: _Host, fetch: Callable[[int], list[T]], close: Callable[[], None]) -> None:
        self._host = host
        self._fetch = fetch
        self._close = close
        self._chunk: deque[T] = deque()
        self._size = CHUNK_FIRST
        self._pending: asyncio.Future[list[T]] | None = None
        self._ended = False
        self._failed = ""

    def __aiter__(self) -> AsyncScan[T]:
        return self

    async def __anext__(self) -> T:
        while not self._chunk:
            if self._ended:
                raise StopAsyncIteration
            await self._more()
        return self._chunk.popleft()

    async def _more(self) -> None:
        if self._failed:
            raise UsageError(f"the scan ended with an error before ({self._failed})", hint="begin a new scan")
        if self._pending is None:
            self._pending = self._host.submit(self._fetch, self._size)
            self._pending.add_done_callback(_seen)
        pending, size = self._pending, self._size
        try:
            found = await asyncio.shield(pending)
        except asyncio.CancelledError:
            raise  # the chunk stays on its way: the next call takes it
        except BaseException as error:
            self._pending = None
            self._failed = f"{type(error).__name__}: {error}"
            raise
        if self._pending is pending:
            self._pending = None
            self._ended = len(found) < size
            self._size = min(size * 4, CHUNK_MAX)
            self._chunk.extend(found)

    async def fetch(self, count: int) -> list[T]:
        """Up to `count` of the next items; fewer only at the end."""
        found: list[T] = []
        while len(found) < count and not (self._ended and not self._chunk):
            if not self._chunk:
                await self._more()
            while self._chunk and len(found) < count:
                found.append(self._chunk.popleft())
        return found

    async def close(self) -> None:
        """Let go of what the scan holds; also happens at its end, and when it is garbage."""
        self._chunk.clear()
        self._ended = True
        if self._pending is not None:
            pending, self._pending = self._pending, None
            await asyncio.wait([pending])
        await self._host.call(self._close)

    async def __aenter__(self) -> AsyncScan[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncIterator:
    """A position to move by hand. Each move tells whether it stands on an entry, and has read that entry."""

    def __init__(self, host: _Host, inner: Iterator) -> None:
        self._host = host
        self._inner = inner
        self._mutex = threading.Lock()
        self._item: tuple[bytes, bytes] | None = None
        self._expires_at_ms: int | None = None

    def _move(self, step: Callable[[], bool]) -> tuple[tuple[bytes, bytes] | None, int | None]:
        with self._mutex:  # a cancelled move may still be running
            return (self._inner.item, self._inner.expires_at_ms) if step() else (None, None)

    async def _moved(self, step: Callable[[], bool]) -> bool:
        self._item = self._expires_at_ms = None
        self._item, self._expires_at_ms = await self._host.call(self._move, step)
        return self._item is not None

    async def seek_first(self) -> bool:
        return await self._moved(self._inner.seek_first)

    async def seek_last(self) -> bool:
        return await self._moved(self._inner.seek_last)

    async def seek(self, key: Buffer) -> bool:
        """To the first entry whose key is >= `key`."""
        return await self._moved(functools.partial(self._inner.seek, key))

    async def seek_for_prev(self, key: Buffer) -> bool:
        """To the last entry whose key is <= `key`."""
        return await self._moved(functools.partial(self._inner.seek_for_prev, key))

    async def next(self) -> bool:
        return await self._moved(self._inner.next)

    async def prev(self) -> bool:
        return await self._moved(self._inner.prev)

    @property
    def valid(self) -> bool:
        """Does it stand on an entry?"""
        return self._item is not None

    @property
    def item(self) -> tuple[bytes, bytes]:
        if self._item is None:
            raise UsageError("the iterator stands on no entry")
        return self._item

    @property
    def key(self) -> bytes:
        return self.item[0]

    @property
    def value(self) -> bytes:
        return self.item[1]

    @property
    def expires_at_ms(self) -> int | None:
        """The Unix millisecond from which on this entry is absent, or None."""
        if self._item is None:
            raise UsageError("the iterator stands on no entry")
        return self._expires_at_ms

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def _end(self) -> None:
        with self._mutex:
            self._inner.close()

    async def close(self) -> None:
        self._item = None
        await self._host.call(self._end)

    async def __aenter__(self) -> AsyncIterator:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Reads:
    _host: _Host
    _target: Any  # a DB, Family, Snapshot or SnapshotFamily

    @overload
    async def get(self, key: Buffer) -> bytes | None: ...
    @overload
    async def get(self, key: Buffer, default: D) -> bytes | D: ...
    async def get(self, key: Buffer, default: Any = None) -> Any:
        """The value under `key`, or `default`."""
        return await self._host.call(self._target.get, key, default)

    async def get_many(self, keys: Iterable[Buffer]) -> list[bytes | None]:
        """Values in the order of the keys, None where there is none; one consistent view."""
        found: list[bytes | None] = await self._host.call(self._target.get_many, list(keys))
        return found

    async def contains(self, key: Buffer) -> bool:
        """Is there a value under `key`?"""
        return await self._host.call(self._target.get, key) is not None

    async def count(
        self, start: Buffer | None = None, end: Buffer | None = None, *, prefix: Buffer | None = None
    ) -> int:
        """How many keys there are in start <= key < end, by scanning."""
        scan = self._target.scan(start, end, prefix=prefix, values=False)  # the view of this moment

        def count_all() -> int:
            total = 0
            while found := len(scan.fetch(COUNTED_AT_ONCE)):
                total += found
            return total

        return await self._host.call(count_all)

    def __aiter__(self) -> AsyncScan[bytes]:
        """The keys: `async for key in db`."""
        return self.scan(values=False)

    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[True] = True,
        values: Literal[True] = True,
    ) -> AsyncScan[tuple[bytes, bytes]]: ...
    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[True] = True,
        values: Literal[False],
    ) -> AsyncScan[bytes]: ...
    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[False],
        values: Literal[True] = True,
    ) -> AsyncScan[bytes]: ...
    def scan(self, start: Buffer | None = None, end: Buffer | None = None, **options: Any) -> Any:
        """Over the view of this moment: `async for key, value in db.scan()`."""
        inner = self._target.scan(start, end, **options)
        return AsyncScan(self._host, inner.fetch, inner.close)

    async def iterator(
        self, start: Buffer | None = None, end: Buffer | None = None, *, prefix: Buffer | None = None
    ) -> AsyncIterator:
        return AsyncIterator(self._host, await self._host.call(self._target.iterator, start, end, prefix=prefix))


class _Writes:
    _host: _Host
    _target: Any  # a DB or a Family
    _inside: DB  # the database, or the family's

    async def _run(self, function: Callable[[Transaction], T], sync: bool | None) -> T:
        return await self._host.call(self._inside.run, function, sync=sync)

    @overload
    async def pop(self, key: Buffer, *, sync: bool | None = None) -> bytes: ...
    @overload
    async def pop(self, key: Buffer, default: D, *, sync: bool | None = None) -> bytes | D: ...
    async def pop(self, key: Buffer, default: Any = _MISSING, *, sync: bool | None = None) -> Any:
        """Forget `key`; the value that was under it, or `default`: without one, NotFound (a KeyError). Atomic: of
        several who pop a key one gets the value."""
        family = None if self._target is self._inside else self._target

        def take(transaction: Transaction) -> Any:
            value = transaction.get(key, family=family)
            if value is not None:
                transaction.delete(key, family=family)
                return value
            if default is _MISSING:
                raise NotFound(f"no key {key!r}")
            return default

        return await self._run(take, sync)

    async def setdefault(self, key: Buffer, default: Buffer, *, sync: bool | None = None) -> bytes:
        """The value under `key`; if there is none, `default`, which is then stored. Atomic: all who ask get one."""
        family = None if self._target is self._inside else self._target

        def keep(transaction: Transaction) -> bytes:
            value = transaction.get(key, family=family)
            if value is None:
                transaction.put(key, default, family=family)
                value = bytes(default)
            return value

        return await self._run(keep, sync)

    async def clear(self, *, sync: bool | None = None) -> None:
        """Delete every key, atomically, at the cost of one."""
        await self._host.call(self._target.delete_range, None, None, sync=sync)

    async def put(self, key: Buffer, value: Buffer, *, ttl: int | None = None, sync: bool | None = None) -> None:
        """Store `value` under `key`; for `ttl` milliseconds, if given."""
        await self._host.call(self._target.put, key, value, ttl=ttl, sync=sync)

    async def delete(self, key: Buffer, *, sync: bool | None = None) -> None:
        """Forget `key`, which need not exist."""
        await self._host.call(self._target.delete, key, sync=sync)

    async def delete_range(self, start: Buffer | None, end: Buffer | None, *, sync: bool | None = None) -> None:
        """Forget every key in start <= key < end (None: open), at the cost of one."""
        await self._host.call(self._target.delete_range, start, end, sync=sync)

    async def compact(self, start: bytes | None = None, end: bytes | None = None) -> None:
        """Rewrite what touches start <= key < end (None: open), without what is deleted or has expired."""
        await self._host.call(self._target.compact, start, end)

    async def put_many(self, pairs: Pairs, *, sync: bool | None = None) -> None:
        """Store all pairs atomically."""
        await self._host.call(self._target.put_many, pairs, sync=sync)


class AsyncFamily(_Reads, _Writes):
    """One keyspace of a database."""

    def __init__(self, host: _Host, db: DB, inner: Family) -> None:
        self._host = host
        self._inside = db
        self._target = inner
        self.name = inner.name
        self.id = inner.id


class AsyncSnapshotFamily(_Reads):
    def __init__(self, host: _Host, inner: SnapshotFamily) -> None:
        self._host = host
        self._target = inner


class AsyncSnapshot(_Reads):
    """A consistent read view; `async with` closes it."""

    def __init__(self, host: _Host, inner: Snapshot) -> None:
        self._host = host
        self._target = inner
        self.sequence = inner.sequence

    def family(self, name: str | int) -> AsyncSnapshotFamily:
        return AsyncSnapshotFamily(self._host, self._target.family(name))

    async def close(self) -> None:
        self._target.close()

    @property
    def closed(self) -> bool:
        return bool(self._target.closed)

    async def __aenter__(self) -> AsyncSnapshot:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


# -- writes that belong together ---------------------------------------------------------------------------------------
class _BatchBlock:
    def __init__(self, db: AsyncDB, sync: bool | None) -> None:
        self._db = db
        self._sync = sync
        self._batch = WriteBatch(resolve=db._target._family_id, now_ms=db._target._now_ms)

    async def __aenter__(self) -> WriteBatch:
        return self._batch

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._db.write(self._batch, sync=self._sync)


class AsyncTransaction:
    """Optimistic: `async with` commits at the end of the block, or rolls back if it raises. `put` and `delete` only
    collect and are plain methods. Its calls run one after another, whoever makes them."""

    def __init__(self, host: _Host, inner: Transaction) -> None:
        self._host = host
        self._inner = inner
        self._mutex = threading.Lock()

    def _locked(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._mutex:  # a cancelled call may still be running
            return function(*args, **kwargs)

    @overload
    async def get(self, key: Buffer, default: None = None, *, family: Any = None) -> bytes | None: ...
    @overload
    async def get(self, key: Buffer, default: D, *, family: Any = None) -> bytes | D: ...
    async def get(self, key: Buffer, default: Any = None, *, family: Any = None) -> Any:
        return await self._host.call(self._locked, self._inner.get, key, default, family=_plain(family))

    async def get_many(self, keys: Iterable[Buffer], *, family: Any = None) -> list[bytes | None]:
        return await self._host.call(self._locked, self._inner.get_many, list(keys), family=_plain(family))

    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        family: Any = None,
    ) -> AsyncScan[tuple[bytes, bytes]]:
        """Pairs in key order, with this transaction's own writes up to now."""
        walk = self._inner.scan(start, end, prefix=prefix, reverse=reverse, limit=limit, family=_plain(family))

        def fetch(count: int) -> list[tuple[bytes, bytes]]:
            return self._locked(list, itertools.islice(walk, count))

        return AsyncScan(self._host, fetch, lambda: None)

    def put(self, key: Buffer, value: Buffer, family: Any = None, *, ttl: int | None = None) -> None:
        self._inner.put(key, value, family=_plain(family), ttl=ttl)

    def put_many(self, pairs: Pairs, family: Any = None) -> None:
        self._inner.put_many(pairs, family=_plain(family))

    def delete(self, key: Buffer, family: Any = None) -> None:
        self._inner.delete(key, family=_plain(family))

    def delete_range(self, start: Buffer | None, end: Buffer | None, family: Any = None) -> None:
        self._inner.delete_range(start, end, family=_plain(family))

    async def commit(self) -> None:
        """Conflict: nothing was written; run it again. If this is cancelled, it may or may not have been committed."""
        await self._host.call(self._locked, self._inner.commit)

    async def rollback(self) -> None:
        await self._host.call(self._locked, self._inner.rollback)

    @property
    def closed(self) -> bool:
        return self._inner.closed

    async def __aenter__(self) -> AsyncTransaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._inner.closed:
            await self.commit()
        elif not self._inner.closed:
            await self.rollback()


# -- the database -----------------------------------------------------------------------------------------------------
class AsyncDB(_Reads, _Writes):
    """An open directory. Made by `nokv.aio.open`; `async with` closes it."""

    _target: DB

    def __init__(self, host: _Host, inner: DB) -> None:
        self._host = host
        self._inside = self._target = inner
        self.path = inner.path

    def write_batch(self, sync: bool | None = None) -> _BatchBlock:
        """`async with db.write_batch() as batch`: its operations apply atomically at the end, or not at all."""
        return _BatchBlock(self, sync)

    async def write(self, batch: WriteBatch, *, sync: bool | None = None) -> None:
        """Apply all operations of the batch, in order, atomically."""
        await self._host.call(self._target.write, batch, sync=sync)

    def snapshot(self) -> AsyncSnapshot:
        """A read view of this moment."""
        return AsyncSnapshot(self._host, self._target.snapshot())

    def transaction(self, *, sync: bool | None = None) -> AsyncTransaction:
        """An optimistic transaction over all families, serializable within this process."""
        return AsyncTransaction(self._host, self._target.transaction(sync=sync))

    async def run(
        self,
        function: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        attempts_max: int = 1000,
        sync: bool | None = None,
    ) -> T:
        """`await function(transaction)`, committed; again from the start after each Conflict, so it must be
        repeatable. Its answer."""
        if attempts_max < 1:
            raise UsageError(f"attempts_max={attempts_max} allows no attempt")
        for attempt in itertools.count(1):
            async with self.transaction(sync=sync) as transaction:
                answer = await function(transaction)
                try:
                    if not transaction.closed:
                        await transaction.commit()
                    break
                except Conflict:
                    if attempt >= attempts_max:
                        raise
        return answer

    async def family(self, name: str, *, create: bool = False) -> AsyncFamily:
        """The keyspace of this name. NotFound unless it exists or `create`."""
        return AsyncFamily(self._host, self._target, await self._host.call(self._target.family, name, create=create))

    def families(self) -> dict[str, int]:
        return self._target.families()

    async def flush(self) -> None:
        await self._host.call(self._target.flush)

    async def refresh(self) -> bool:
        """With read_only=True: see what the writer has done since. False if that is nothing."""
        return await self._host.call(self._target.refresh)

    async def sync(self) -> None:
        """Everything written so far is on disk when this returns."""
        await self._host.call(self._target.sync)

    async def checkpoint(self, directory: Path) -> None:
        await self._host.call(self._target.checkpoint, directory)

    async def export_sst(
        self,
        directory: str | Path,
        ranges: Sequence[tuple[str, bytes | None, bytes | None]] | None = None,
        **options: Any,
    ) -> list[ExportedFile]:
        return await self._host.call(self._target.export_sst, directory, ranges, **options)

    async def ingest_sst(self, tables: Sequence[str | Path | Sequence[str]]) -> None:
        await self._host.call(self._target.ingest_sst, tables)

    async def verify(self) -> VerifyReport:
        return await self._host.call(self._target.verify)

    async def check(self) -> VerifyReport:
        return await self._host.call(self._target.check)

    async def stats(self) -> dict[str, Any]:
        """Counters and gauges, in groups."""
        return await self._host.call(self._target.stats)

    @property
    def closed(self) -> bool:
        return self._host.closing is not None

    async def close(self) -> None:
        """Let go of everything, after what was begun has ended. Idempotent."""
        await self._host.close(self._target.close)

    async def __aenter__(self) -> AsyncDB:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<nokv.aio.AsyncDB {self.path!r} {'closed' if self.closed else 'open'}>"


class _Opening:
    """`await` it, or `async with` it."""

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self._path = path
        self._threads = threads
        self._options = options
        self._db: AsyncDB | None = None

    def __await__(self) -> Generator[Any, None, AsyncDB]:
        return self._open().__await__()

    async def _open(self) -> AsyncDB:
        host = _Host(self._threads)
        mutex = threading.Lock()
        opened: list[DB] = []
        abandoned = False

        def make() -> DB:
            db = open_db(self._path, **self._options)
            with mutex:
                opened.append(db)
                if abandoned:
                    db.close()
            return db

        made = host.submit(make)
        made.add_done_callback(_seen)
        try:
            db = await asyncio.shield(made)
        except asyncio.CancelledError:
            with mutex:
                abandoned = True
            if opened:
                await host.close(opened[0].close)
            host.pool.shutdown(wait=False)
            raise
        except BaseException:
            host.pool.shutdown(wait=False)
            raise
        return AsyncDB(host, db)

    async def __aenter__(self) -> AsyncDB:
        self._db = await self._open()
        return self._db

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._db is not None
        await self._db.close()


def open(path: Path, *, threads: int = THREADS, **options: Any) -> _Opening:
    """`async with nokv.aio.open(path) as db`, or `db = await nokv.aio.open(path)`. Options and errors as `nokv.open`.

    threads: how many calls may run at once; the others wait their turn."""
    return _Opening(path, threads, options)
