"""`AsyncClusterClient`: the verbs of the embedded engine over a cluster. One event loop; `sync.py` is the blocking one.

    async with AsyncClusterClient(["127.0.0.1:2379"]) as db:
        await db.put(b"k", b"v")
        assert await db.get(b"k") == b"v"
        async for key, value in db.scan(prefix=b"user:"): ...

A call ends by its deadline (`timeout_s`). Within it, an attempt that surely changed nothing is repeated: the region
moved, another peer leads, a queue was full, no connection. A write whose fate is unknown raises `Indeterminate`, at
once or at the deadline. `put_many` is atomic for each region's part of each megabyte, not as a whole.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from nokv._ext.batch import checked_pairs
from nokv._ext.command import pack_gets, pack_scan, pack_writes, unpack_results
from nokv.client.retry import Action, Backoff, judge
from nokv.client.routes import Route, RouteCache
from nokv.client.transport import Coordinators, StorePool, StreamBroken
from nokv.errors import (
    Busy,
    BytesRequired,
    Closed,
    Corruption,
    DeadlineExceeded,
    Indeterminate,
    KeyLocked,
    NoKVError,
    NotTrusted,
    Unavailable,
    UsageError,
)
from nokv.metaroot.wire import peer_from_pb, region_from_pb
from nokv.pb import kv_pb2, meta_pb2
from nokv.rpc.tls import load_tls

__all__ = ["AsyncClusterClient", "AsyncClusterSnapshot"]

GROUP_BYTES_MAX = 1 << 20
GROUP_COMMANDS_MAX = 4096
GROUPS_UNDER_WAY_MAX = 16  # of one call
READ_ATTEMPT_S = 1.0  # then another peer may know better
READ_MISSES_BEFORE_ROUTE = 2

_D = TypeVar("_D")
Write = tuple[bytes, bytes | None]
Pair = tuple[bytes, bytes]


class _Again(Exception):
    """Nothing was done; try again after a pause (or at once, if something was learnt)."""

    def __init__(self, cause: NoKVError, *, at_once: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.at_once = at_once


class _Round:
    """One attempt at all parts of a call; after a failure for good no further part begins."""

    def __init__(self) -> None:
        self.again: list[int] = []
        self.causes: list[_Again] = []
        self.failures: list[NoKVError] = []
        self._limiter = asyncio.Semaphore(GROUPS_UNDER_WAY_MAX)

    async def run(self, act: Callable[[Route, list[int]], Awaitable[None]], route: Route, part: list[int]) -> None:
        try:
            async with self._limiter:
                if not self.failures:
                    await act(route, part)
        except _Again as cause:
            self.causes.append(cause)
            self.again.extend(part)
        except NoKVError as error:
            self.failures.append(error)


class AsyncClusterClient:
    """`coordinators`: one address or several ("host:port"). `timeout_s`: how long one call may take in all. `tls_dir`:
    a directory with ca.crt, tls.crt and tls.key. If no coordinator is trusted, or none trusts us, that is NotTrusted at
    once; a store like that is tried again, as one that moves would be, and the error at the deadline says why."""

    def __init__(
        self,
        coordinators: str | Sequence[str],
        *,
        timeout_s: float = 5.0,
        tls_dir: str | os.PathLike[str] | None = None,
        randrange: Callable[[int], int] = random.randrange,
    ) -> None:
        addresses = [coordinators] if isinstance(coordinators, str) else list(coordinators)
        addresses = [part.strip() for text in addresses for part in text.split(",") if part.strip()]
        for address in addresses:
            _check_address(address)
        if not addresses:
            raise UsageError("no coordinator to connect to", hint='coordinators=["127.0.0.1:2379"]')
        if not timeout_s > 0:
            raise UsageError(f"timeout_s must be positive, not {timeout_s!r}")
        self.coordinators = tuple(addresses)
        self.timeout_s = timeout_s
        self.stats = {"attempts": 0, "retries": 0, "route_lookups": 0}
        self._randrange = randrange
        self._cache = RouteCache()
        tls = load_tls(tls_dir)
        self._control = Coordinators(addresses, tls)
        self._pool = StorePool(tls)
        self._lookup = asyncio.Lock()
        self._seen_ts = 0  # the newest timestamp this client has read at, or committed at
        self._turn: dict[int, int] = {}  # region id -> which candidate to try when nobody is known to lead
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {','.join(self.coordinators)}{' closed' if self._closed else ''}>"

    # -- verbs --------------------------------------------------------------------------------------------------------
    async def get(self, key: bytes, default: _D | None = None, *, timeout_s: float | None = None) -> bytes | _D | None:
        values = await self._read_keys([_bytes(key)], 0, self._deadline(timeout_s))
        return default if values[0] is None else values[0]

    async def get_many(self, keys: Iterable[bytes], *, timeout_s: float | None = None) -> list[bytes | None]:
        """Values in the order of `keys`, None where there is none. Keys of several regions are not one snapshot."""
        return await self._read_keys([_bytes(key) for key in keys], 0, self._deadline(timeout_s))

    async def put(self, key: bytes, value: bytes, *, timeout_s: float | None = None) -> None:
        await self._write([(_bytes(key), _bytes(value))], self._deadline(timeout_s))

    async def delete(self, key: bytes, *, timeout_s: float | None = None) -> None:
        await self._write([(_bytes(key), None)], self._deadline(timeout_s))

    async def put_many(self, pairs: Mapping[bytes, bytes] | Iterable[Pair], *, timeout_s: float | None = None) -> None:
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        await self._write(checked_pairs(items), self._deadline(timeout_s))

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
    ) -> AsyncIterator[Any]:
        """Pairs of [start, end) at one timestamp, across regions. `timeout_s` bounds each step, not the whole walk.

        `values=False` yields keys, `keys=False` yields values, as the embedded `scan` does.
        """
        low, high = _range(start, end, prefix)
        return self._scan(low, high, reverse, limit, keys, values, None, timeout_s)

    async def snapshot(self, *, timeout_s: float | None = None) -> AsyncClusterSnapshot:
        """Reads at one timestamp of now. What commits later is not seen."""
        return AsyncClusterSnapshot(self, await self.timestamp(timeout_s=timeout_s))

    def at(self, timestamp: int) -> AsyncClusterSnapshot:
        """Reads at a timestamp of the past (`timestamp()` gave it)."""
        if timestamp <= 0:
            raise UsageError(f"a timestamp is positive, not {timestamp!r}")
        return AsyncClusterSnapshot(self, timestamp)

    async def timestamp(self, *, timeout_s: float | None = None) -> int:
        """physical milliseconds << 18 | logical, from the coordinator that holds the lease."""
        return await self._timestamp(self._deadline(timeout_s))

    async def close(self) -> None:
        """Idempotent. Calls under way end with Closed, Unavailable or Indeterminate."""
        if self._closed:
            return
        self._closed = True
        await self._pool.close()
        await self._control.close()

    async def __aenter__(self) -> AsyncClusterClient:
        return self

    async def __aexit__(
        self, _t: type[BaseException] | None, _v: BaseException | None, _tb: TracebackType | None
    ) -> None:
        await self.close()

    # -- reads --------------------------------------------------------------------------------------------------------
    async def _read_keys(self, keys: list[bytes], read_ts: int, deadline: float) -> list[bytes | None]:
        values: list[bytes | None] = [None] * len(keys)

        async def read(route: Route, positions: list[int]) -> None:
            reply = await self._attempt(
                route, pack_gets([keys[at] for at in positions]), write=False, read_ts=read_ts, deadline=deadline
            )
            results = _results(reply.results, len(positions))
            for at, result in zip(positions, results, strict=True):
                if result is not None and not isinstance(result, bytes):
                    raise Corruption(f"a point read was answered with {type(result).__name__}")
                values[at] = result

        await self._everywhere(list(range(len(keys))), lambda at: keys[at], lambda _: 0, read, deadline)
        return values

    async def _scan(
        self,
        low: bytes,
        high: bytes,
        reverse: bool,
        limit: int | None,
        keys: bool,
        values: bool,
        read_ts: int | None,
        timeout_s: float | None,
    ) -> AsyncIterator[Any]:
        if not keys and not values:
            raise UsageError("scan: keys=False and values=False leaves nothing")
        if limit is not None and limit < 0:
            raise UsageError(f"scan: limit must not be negative, not {limit}")
        left = limit
        if read_ts is None and left != 0:
            read_ts = await self._timestamp(self._deadline(timeout_s))
        while left != 0 and (not high or low < high):
            deadline = self._deadline(timeout_s)
            pairs, low, high, done = await self._scan_step(
                low, high, reverse, left or 0, values, read_ts or 0, deadline
            )
            if left is not None:
                del pairs[left:]
                left -= len(pairs)
            for key, value in pairs:
                yield (key, value) if keys and values else key if keys else value
            if done:
                return

    async def _scan_step(
        self, low: bytes, high: bytes, reverse: bool, limit: int, values: bool, read_ts: int, deadline: float
    ) -> tuple[list[Pair], bytes, bytes, bool]:
        """One answer of one region: (pairs, what is left of the range: low, high, whether nothing is)."""
        found: list[tuple[list[Pair], bool, Route]] = []

        async def read(route: Route, _: list[int]) -> None:
            region = route.region
            first = max(low, region.start_key)
            last = min(high, region.end_key) if high and region.end_key else high or region.end_key
            commands = pack_scan(first, last, limit, reverse=reverse, keys_only=not values)
            reply = await self._attempt(route, commands, write=False, read_ts=read_ts, deadline=deadline)
            (result,) = _results(reply.results, 1)
            if not isinstance(result, tuple):
                raise Corruption(f"a scan was answered with {type(result).__name__}")
            found.append((result[0], result[1], route))

        await self._everywhere([0], lambda _: low, lambda _: 0, read, deadline, before=high if reverse else None)
        pairs, more, route = found[0]
        if more and not pairs:
            raise Corruption("a scan stopped early without a pair")
        if reverse:
            new_high = pairs[-1][0] if more else route.region.start_key
            return pairs, low, new_high, not new_high or new_high <= low
        new_low = pairs[-1][0] + b"\0" if more else route.region.end_key
        return pairs, new_low, high, not new_low or bool(high and new_low >= high)

    # -- writes -------------------------------------------------------------------------------------------------------
    async def _write(self, writes: Sequence[Write], deadline: float) -> None:
        done = 0

        async def write(route: Route, positions: list[int]) -> None:
            nonlocal done
            # after what this client has seen: its own snapshots stay as they are, and its writes keep their order
            after = self._seen_ts
            reply = await self._attempt(
                route, pack_writes([writes[at] for at in positions]), write=True, read_ts=after, deadline=deadline
            )
            self._seen_ts = max(self._seen_ts, reply.commit_ts)
            (result,) = _results(reply.results, 1)
            if result != len(positions):
                raise Corruption(f"{len(positions)} writes were answered with {result!r}")
            done += len(positions)

        def size(at: int) -> int:
            key, value = writes[at]
            return len(key) + len(value or b"")

        try:
            await self._everywhere(list(range(len(writes))), lambda at: writes[at][0], size, write, deadline)
        except NoKVError as error:
            if len(writes) > 1:
                error.args = (f"{error} ({done} of {len(writes)} writes are certain)", *error.args[1:])
            raise

    # -- one call, all its regions ------------------------------------------------------------------------------------
    async def _everywhere(
        self,
        items: list[int],
        key_of: Callable[[int], bytes],
        size_of: Callable[[int], int],
        act: Callable[[Route, list[int]], Awaitable[None]],
        deadline: float,
        *,
        before: bytes | None = None,
    ) -> None:
        """Run `act(route, items of that route)` for all items, each part until it succeeds or fails for good.

        `before` (a reverse scan): the one item goes to the region with the keys just below it.
        """
        backoff = Backoff(self._randrange)
        while items:
            groups = await self._partition(items, key_of, size_of, deadline, backoff, before)
            step = _Round()
            if len(groups) == 1:
                await step.run(act, *groups[0])
            else:
                await asyncio.gather(*(step.run(act, route, part) for route, part in groups))
            if step.failures:
                raise next((error for error in step.failures if isinstance(error, Indeterminate)), step.failures[0])
            items = step.again
            if step.causes:
                self.stats["retries"] += len(step.causes)
                at_once = all(cause.at_once for cause in step.causes)
                await self._pause(backoff, deadline, step.causes[0].cause, at_once=at_once)

    async def _partition(
        self,
        items: list[int],
        key_of: Callable[[int], bytes],
        size_of: Callable[[int], int],
        deadline: float,
        backoff: Backoff,
        before: bytes | None,
    ) -> list[tuple[Route, list[int]]]:
        groups: list[tuple[Route, list[int]]] = []
        open_group: dict[int, tuple[list[int], int]] = {}
        for item in items:
            key = key_of(item)
            route = self._cache.find_before(before) if before is not None else self._cache.find(key)
            if route is None:
                route = await self._locate(key, before, deadline, backoff)
            size = size_of(item)
            part, used = open_group.get(route.region.region_id, ([], 0))
            if not part or len(part) >= GROUP_COMMANDS_MAX or used + size > GROUP_BYTES_MAX:
                part, used = [], 0
                groups.append((route, part))
            part.append(item)
            open_group[route.region.region_id] = (part, used + size)
        return groups

    async def _locate(self, key: bytes, before: bytes | None, deadline: float, backoff: Backoff) -> Route:
        cause: NoKVError | None = None
        while True:
            try:
                if before is not None:
                    route = await self._look_up_before(key, before, deadline)
                else:
                    route = await self._look_up(key, deadline)
                if route is not None:
                    return route
                cause = Unavailable("no region serves this key yet")
            except DeadlineExceeded as error:
                if cause is None:
                    raise
                why = f"the deadline passed; the last attempt said: {cause}"  # it tells more than the lack of time
                raise DeadlineExceeded(why, hint=cause.hint) from error
            except NotTrusted:
                raise
            except Unavailable as error:
                cause = error
            await self._pause(backoff, deadline, cause)

    async def _look_up(self, key: bytes, deadline: float) -> Route | None:
        """One lookup at a time: those who waited for it mostly find their key in its answer."""
        try:
            async with asyncio.timeout(self._left(deadline)):
                await self._lookup.acquire()
        except TimeoutError:
            coordinators = ", ".join(self.coordinators)
            raise DeadlineExceeded(f"the deadline passed while a route was looked up at {coordinators}") from None
        try:
            self._check_open()
            if (known := self._cache.find(key)) is not None:
                return known
            self.stats["route_lookups"] += 1
            route = await self._control.route(key, self._left(deadline))
        finally:
            self._lookup.release()
        if route is not None and not self._cache.insert(route):
            return self._cache.find(key) or route  # a store has told us something newer
        return route

    async def _look_up_before(self, low: bytes, before: bytes, deadline: float) -> Route | None:
        self.stats["route_lookups"] += 1
        position = low
        while True:
            routes = await self._control.routes(position, before, self._left(deadline))
            for route in routes:
                self._cache.insert(route)
            if not routes or not routes[-1].region.end_key or (before and routes[-1].region.end_key >= before):
                break
            if routes[-1].region.end_key <= position:
                raise Corruption("the coordinator's routes do not advance")
            position = routes[-1].region.end_key
        return self._cache.find_before(before) or (routes[-1] if routes else None)

    # -- one attempt --------------------------------------------------------------------------------------------------
    async def _attempt(
        self, route: Route, commands: bytes, *, write: bool, read_ts: int, deadline: float
    ) -> kv_pb2.RegionReply:
        """Returns the reply of a success. Raises _Again if nothing was done, else the error the caller shall see."""
        self._check_open()
        region = route.region
        candidates = route.candidates()
        if not candidates:
            self._cache.invalidate(region.region_id)
            raise _Again(Unavailable(f"no address is known for the stores of region {region.region_id}"))
        turn = 0 if route.leader is not None else self._turn.get(region.region_id, 0)
        store_id, address = candidates[turn % len(candidates)]
        left = self._left(deadline)
        group = kv_pb2.RegionCommands(
            context=kv_pb2.RegionContext(
                region_id=region.region_id,
                epoch=meta_pb2.RegionEpoch(conf_version=region.epoch.conf_version, version=region.epoch.version),
                store_id=store_id,
            ),
            write=write,
            deadline_ms=max(1, int(left * 1000)),
            read_ts=read_ts,
            commands=commands,
        )
        self.stats["attempts"] += 1
        stream = self._pool.stream(address)
        try:
            future = stream.submit(group)
        except Busy as error:
            raise _Again(error) from None
        try:
            async with asyncio.timeout(left if write else min(left, READ_ATTEMPT_S)):
                reply = await future
        except StreamBroken as error:
            self._try_elsewhere(route)
            if write and error.sent:
                raise Indeterminate(
                    f"the connection broke while a write was under way: {error}",
                    hint="read the key to learn whether it happened",
                ) from None
            raise _Again(Unavailable(str(error))) from None
        except TimeoutError:
            sent = stream.forget(group.request_id)
            self._try_elsewhere(route)
            if not write:
                raise _Again(DeadlineExceeded(f"{address} did not answer a read")) from None
            if sent:
                raise Indeterminate(
                    f"{address} did not answer a write within the deadline",
                    hint="read the key to learn whether it happened",
                ) from None
            raise DeadlineExceeded(f"{address}: a write could not be sent within the deadline") from None
        if reply.HasField("error") and reply.error.kind:
            raise self._judge(route, reply.error, write)
        if route.leader is None or route.leader.store_id != store_id:
            self._cache.set_leader(region.region_id, region.peer_on(store_id), address)
        return reply

    def _judge(self, route: Route, error: kv_pb2.RegionError, write: bool) -> Exception:
        """Learn from a region error; the exception to raise."""
        region_id = route.region.region_id
        verdict = judge(error.kind, error.message, write=write)
        if verdict.action is Action.FAIL:
            return verdict.error
        if verdict.action is Action.LEADER:
            named = error.not_leader.leader
            if error.HasField("not_leader") and named.peer_id:
                leader = peer_from_pb(named)
                news = route.leader is None or route.leader.peer_id != leader.peer_id
                self._cache.set_leader(region_id, leader, error.not_leader.address)
                known = self._cache.by_id(region_id)
                if known is not None and not known.addresses.get(leader.store_id):
                    self._cache.invalidate(region_id)
                return _Again(verdict.error, at_once=news)
            self._try_elsewhere(route)
        elif verdict.action is Action.REGIONS and error.current_regions:
            self._cache.update_regions([region_from_pb(message) for message in error.current_regions])
            known = self._cache.by_id(region_id)
            if known is not None and known.region.epoch == route.region.epoch:
                self._cache.invalidate(region_id)  # the store is behind us: the coordinator decides
                return _Again(verdict.error)
            return _Again(verdict.error, at_once=True)
        elif verdict.action in (Action.ROUTE, Action.REGIONS):
            self._cache.invalidate(region_id)
        return _Again(verdict.error)

    def _try_elsewhere(self, route: Route) -> None:
        """Nobody is known to lead: the voters in turn, and after a round of them a new route."""
        region_id = route.region.region_id
        turn = self._turn.get(region_id, 0) + 1
        if turn >= max(READ_MISSES_BEFORE_ROUTE, len(route.candidates())):
            self._turn.pop(region_id, None)
            self._cache.invalidate(region_id)
            return
        self._turn[region_id] = turn
        self._cache.set_leader(region_id, None)

    # -- time ---------------------------------------------------------------------------------------------------------
    def _deadline(self, timeout_s: float | None) -> float:
        self._check_open()
        timeout = self.timeout_s if timeout_s is None else timeout_s
        if not timeout > 0:
            raise UsageError(f"timeout_s must be positive, not {timeout!r}")
        return asyncio.get_running_loop().time() + timeout

    def _left(self, deadline: float) -> float:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded(
                f"the deadline passed; nothing was sent; coordinators: {', '.join(self.coordinators)}"
            )
        return left

    async def _pause(self, backoff: Backoff, deadline: float, cause: NoKVError, *, at_once: bool = False) -> None:
        """Wait before the next attempt; DeadlineExceeded (with the last cause) if it would come too late."""
        self._check_open()
        pause_s = 0.0 if at_once else backoff.next_s()
        if asyncio.get_running_loop().time() + pause_s >= deadline:
            if isinstance(cause, KeyLocked):
                raise cause
            raise DeadlineExceeded(f"the deadline passed; the last attempt said: {cause}", hint=cause.hint) from cause
        await asyncio.sleep(pause_s)

    async def _timestamp(self, deadline: float) -> int:
        backoff = Backoff(self._randrange)
        while True:
            try:
                timestamp = await self._control.timestamp(self._left(deadline))
                self._seen_ts = max(self._seen_ts, timestamp)
                return timestamp
            except (DeadlineExceeded, NotTrusted):
                raise
            except Unavailable as error:
                await self._pause(backoff, deadline, error)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the client is closed")


class AsyncClusterSnapshot:
    """Reads at one timestamp. Holds nothing on the servers."""

    def __init__(self, client: AsyncClusterClient, timestamp: int) -> None:
        self._client = client
        self.timestamp = timestamp

    async def get(self, key: bytes, default: _D | None = None, *, timeout_s: float | None = None) -> bytes | _D | None:
        values = await self.get_many([key], timeout_s=timeout_s)
        return default if values[0] is None else values[0]

    async def get_many(self, keys: Iterable[bytes], *, timeout_s: float | None = None) -> list[bytes | None]:
        wanted = [_bytes(key) for key in keys]
        return await self._client._read_keys(wanted, self.timestamp, self._client._deadline(timeout_s))

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
    ) -> AsyncIterator[Any]:
        low, high = _range(start, end, prefix)
        return self._client._scan(low, high, reverse, limit, keys, values, self.timestamp, timeout_s)


# -- leaves -----------------------------------------------------------------------------------------------------------
def _results(data: bytes, count: int) -> list[Any]:
    """Results of a reply; a lock is raised as _Again, because it goes away."""
    try:
        results = unpack_results(data)
    except UsageError as error:
        raise Corruption(f"a store's answer is malformed: {error}") from error
    if len(results) != count:
        raise Corruption("a store's answer has another number of results", expected=count, found=len(results))
    for result in results:
        if isinstance(result, KeyLocked):
            raise _Again(result)
    return results


def _bytes(value: bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise BytesRequired(f"keys and values are bytes, not {type(value).__name__}", hint='write b"..." or text.encode()')


def _range(start: bytes | None, end: bytes | None, prefix: bytes | None) -> tuple[bytes, bytes]:
    """[low, high); an empty high means to the last key."""
    if prefix is not None:
        if start is not None or end is not None:
            raise UsageError("scan: prefix excludes start and end")
        prefix = _bytes(prefix)
        stem = prefix.rstrip(b"\xff")
        return prefix, stem[:-1] + bytes([stem[-1] + 1]) if stem else b""
    low, high = _bytes(start or b""), _bytes(end if end is not None else b"")
    if end is not None and low > high:
        raise UsageError("scan: start is after end")
    if end == b"":
        raise UsageError('scan: end is empty; leave it out to read "to the last key"')
    return low, high


def _check_address(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{address!r} is not an address", hint="host:port, for example 127.0.0.1:2379")
