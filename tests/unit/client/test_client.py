"""The client against a fake cluster over real gRPC (CL-01, CL-02, CL-05, CL-07)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import nokv
import nokv.errors as errors
from nokv.client.client import AsyncClusterClient
from nokv.client.sync import ClusterClient
from nokv.pb import kv_pb2


@pytest.fixture
async def db(cluster: Any) -> AsyncIterator[AsyncClusterClient]:
    async with AsyncClusterClient([cluster.coordinator_address]) as client:
        yield client


async def rows(walk: AsyncIterator[Any]) -> list[Any]:
    return [row async for row in walk]


# -- verbs ------------------------------------------------------------------------------------------------------------
async def test_the_verbs(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put(b"k", b"v")
    assert await db.get(b"k") == b"v"
    assert await db.get(b"missing") is None
    assert await db.get(b"missing", b"x") == b"x"
    await db.put(b"", b"the empty key")
    await db.put_many({b"a": b"1", b"b": b""})
    assert await db.get_many([b"b", b"nope", b"a", b""]) == [b"", None, b"1", b"the empty key"]
    await db.delete(b"k")
    assert await db.get(b"k") is None
    assert await db.get_many([]) == []
    await db.put_many([])
    for bad, message in (
        (b"ab", "pair 1 is bytes"),
        ((b"k",), "pair 1 is tuple of another"),
        (("k", b""), "pair 1: key must"),
    ):
        with pytest.raises(errors.UsageError, match=message) as caught:
            await db.put_many([(b"ok", b"1"), bad])  # type: ignore[list-item]
        assert caught.value.hint and await db.get(b"ok") is None


async def test_routes_are_cached(cluster: Any, db: AsyncClusterClient) -> None:  # CL-01
    for _ in range(20):
        await db.get(b"k")
    assert cluster.coordinator_calls == ["GetRegionByKey"]


async def test_requests_of_one_turn_share_a_message(cluster: Any, db: AsyncClusterClient) -> None:
    await db.get(b"warm up")
    store = cluster.stores[1]
    store.messages.clear()
    await asyncio.gather(*(db.put(b"%d" % i, b"v") for i in range(100)))
    assert sum(store.messages) == 100
    assert len(store.messages) <= 3
    assert len(cluster.coordinator_calls) == 1


async def test_callers_that_miss_together_ask_once(cluster: Any, db: AsyncClusterClient) -> None:
    await asyncio.gather(*(db.get(b"k") for _ in range(50)))
    assert cluster.coordinator_calls == ["GetRegionByKey"]
    cluster.coordinator_calls.clear()
    async with AsyncClusterClient([cluster.coordinator_address]) as other:
        await asyncio.gather(*(other.get(b"%d" % i) for i in range(50)))
    assert cluster.coordinator_calls == ["GetRegionByKey"]


async def test_writes_commit_after_what_the_client_has_seen(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put(b"k", b"1")
    snapshot = await db.snapshot()
    await db.put(b"k", b"2")
    await db.put(b"k", b"3")
    assert cluster.floors == [0, snapshot.timestamp, cluster.versions[b"k"][1][0]]


async def test_calls_span_regions(cluster: Any, db: AsyncClusterClient) -> None:
    for border in (b"2", b"4", b"6"):
        cluster.split(border)
    pairs = {b"%d" % i: b"v%d" % i for i in range(8)}
    await db.put_many(pairs)
    assert cluster.data() == pairs
    keys = list(reversed(pairs))
    assert await db.get_many(keys) == [pairs[key] for key in keys]


async def test_a_big_batch_travels_in_parts(cluster: Any, db: AsyncClusterClient) -> None:
    pairs = {b"%06d" % i: b"x" * 1000 for i in range(5000)}
    await db.put_many(pairs)
    assert cluster.data() == pairs
    assert cluster.stores[1].groups >= 5


# -- scans ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("splits", [[], [b"k3"], [b"k2", b"k5", b"k55", b"z"]])
async def test_scan_walks_regions(cluster: Any, db: AsyncClusterClient, splits: list[bytes]) -> None:  # CL-05
    for border in splits:
        cluster.split(border)
    pairs = {b"k%d" % i: b"v%d" % i for i in range(10)}
    await db.put_many(pairs)
    expected = sorted(pairs.items())
    assert await rows(db.scan()) == expected
    assert await rows(db.scan(reverse=True)) == expected[::-1]
    assert await rows(db.scan(b"k2", b"k7")) == expected[2:7]
    assert await rows(db.scan(b"k2", b"k7", reverse=True)) == expected[2:7][::-1]
    assert await rows(db.scan(limit=4)) == expected[:4]
    assert await rows(db.scan(limit=7, reverse=True)) == expected[:2:-1]
    assert await rows(db.scan(limit=0)) == []
    assert await rows(db.scan(prefix=b"k")) == expected
    assert await rows(db.scan(prefix=b"k5")) == expected[5:6]
    assert await rows(db.scan(prefix=b"q")) == []
    assert await rows(db.scan(values=False)) == [key for key, _ in expected]
    assert await rows(db.scan(keys=False)) == [value for _, value in expected]
    assert await rows(db.scan(b"k4", b"k4")) == []


async def test_a_split_in_the_middle_of_a_scan(cluster: Any, db: AsyncClusterClient) -> None:  # CL-05
    pairs = {b"k%d" % i: b"v%d" % i for i in range(10)}
    await db.put_many(pairs)
    seen = []
    async for row in db.scan():
        seen.append(row)
        if len(seen) == 2:
            cluster.split(b"k4")
            cluster.split(b"k8")
    assert seen == sorted(pairs.items())


async def test_a_scan_is_one_moment(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put_many({b"k%d" % i: b"old" for i in range(10)})
    seen = []
    async for row in db.scan():
        if not seen:
            await db.put_many({b"k%d" % i: b"new" for i in range(20)})
        seen.append(row)
    assert seen == [(b"k%d" % i, b"old") for i in range(10)]


async def test_snapshots_read_the_past(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put(b"k", b"old")
    snapshot = await db.snapshot()
    await db.put(b"k", b"new")
    assert (await snapshot.get(b"k"), await db.get(b"k")) == (b"old", b"new")
    assert await snapshot.get_many([b"k", b"x"]) == [b"old", None]
    assert await rows(snapshot.scan()) == [(b"k", b"old")]
    assert await db.at(snapshot.timestamp).get(b"k") == b"old"


# -- the world moves --------------------------------------------------------------------------------------------------
async def test_follows_the_leader(cluster: Any, db: AsyncClusterClient) -> None:  # CL-02
    await db.put(b"k", b"1")
    cluster.leaders[1] = 3
    await db.put(b"k", b"2")
    assert (await db.get(b"k"), len(cluster.versions[b"k"])) == (b"2", 2)
    assert db.stats["retries"] == 1
    assert cluster.coordinator_calls == ["GetRegionByKey"]  # the store said who leads


async def test_waits_for_an_election(cluster: Any, db: AsyncClusterClient) -> None:
    cluster.leaders[1] = None
    asked = 0

    def elect(group: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            cluster.leaders[1] = 2

    for store in cluster.stores.values():
        store.hook = elect
    await db.put(b"k", b"v")
    assert cluster.data() == {b"k": b"v"}


async def test_a_coordinator_that_is_behind(cluster: Any, db: AsyncClusterClient) -> None:
    cluster.told_regions = list(cluster.regions)
    cluster.told_leaders = {1: 2}
    cluster.split(b"m")
    await db.put_many({b"a": b"1", b"z": b"2"})
    assert cluster.data() == {b"a": b"1", b"z": b"2"}


@pytest.mark.parametrize(
    "kind",
    [
        kv_pb2.REGION_ERROR_BUSY,
        kv_pb2.REGION_ERROR_REGION_NOT_FOUND,
        kv_pb2.REGION_ERROR_STORE_NOT_MATCH,
        kv_pb2.REGION_ERROR_KEY_NOT_IN_REGION,
        kv_pb2.REGION_ERROR_EPOCH_NOT_MATCH,
        kv_pb2.REGION_ERROR_NOT_LEADER,
        kv_pb2.REGION_ERROR_DEADLINE,
    ],
)
async def test_nothing_was_proposed_so_it_is_retried(cluster: Any, db: AsyncClusterClient, kind: Any) -> None:
    troubles = [kv_pb2.RegionError(kind=kind), kv_pb2.RegionError(kind=kind)]
    for store in cluster.stores.values():
        store.hook = lambda group: troubles.pop() if troubles else None
    await db.put(b"k", b"v")
    assert cluster.versions[b"k"] == [(101, b"v")]
    assert not troubles


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (kv_pb2.REGION_ERROR_INVALID, errors.UsageError),
        (kv_pb2.REGION_ERROR_NOT_SUPPORTED, errors.NotSupported),
        (kv_pb2.REGION_ERROR_READ_ONLY, errors.ReadOnly),
        (kv_pb2.REGION_ERROR_INDETERMINATE, errors.Indeterminate),
        (77, errors.Indeterminate),
    ],
)
async def test_errors_for_good(cluster: Any, db: AsyncClusterClient, kind: Any, error: type[Exception]) -> None:
    cluster.stores[1].hook = lambda group: kv_pb2.RegionError(kind=kind, message="why")
    with pytest.raises(error, match="why"):
        await db.put(b"k", b"v")
    assert cluster.stores[1].groups == 1  # never blindly again


async def test_a_dead_store_is_passed_over(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put(b"k", b"v")
    await cluster.stores[1].server.stop(None)
    cluster.leaders[1] = 2
    assert await db.get(b"k") == b"v"
    await db.put(b"k", b"w")
    assert await db.get(b"k") == b"w"


async def test_a_read_survives_a_broken_stream(cluster: Any, db: AsyncClusterClient) -> None:
    await db.put(b"k", b"v")
    troubles: list[Any] = ["break"]
    cluster.stores[1].hook = lambda group: troubles.pop() if troubles else None
    assert await db.get(b"k") == b"v"
    assert not troubles


async def test_a_write_on_a_broken_stream_is_indeterminate(cluster: Any, db: AsyncClusterClient) -> None:
    await db.get(b"k")
    troubles: list[Any] = ["apply and break"]
    cluster.stores[1].hook = lambda group: troubles.pop() if troubles else None
    with pytest.raises(errors.Indeterminate):
        await db.put(b"k", b"v")
    assert [value for _, value in cluster.versions[b"k"]] == [b"v"]  # once
    await db.put(b"k", b"w")
    assert await db.get(b"k") == b"w"


# -- deadlines --------------------------------------------------------------------------------------------------------
async def test_a_silent_leader(cluster: Any, db: AsyncClusterClient) -> None:  # CL-07
    await db.get(b"k")
    for store in cluster.stores.values():
        store.hook = lambda group: "silence"
    with pytest.raises(errors.Indeterminate):
        await db.put(b"k", b"v", timeout_s=0.2)
    with pytest.raises(errors.DeadlineExceeded):
        await db.get(b"k", timeout_s=0.2)


async def test_no_leader_until_the_deadline(cluster: Any, db: AsyncClusterClient) -> None:  # CL-07
    cluster.leaders[1] = None
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(errors.DeadlineExceeded, match="last attempt") as caught:
        await db.put(b"k", b"v", timeout_s=0.3)
    assert not isinstance(caught.value, errors.Indeterminate)
    assert loop.time() - begin < 2


async def test_a_dead_coordinator(cluster: Any) -> None:
    async with AsyncClusterClient("127.0.0.1:1", timeout_s=0.3) as client:
        with pytest.raises(errors.Unavailable):
            await client.get(b"k")
    async with AsyncClusterClient(["127.0.0.1:1", cluster.coordinator_address]) as client:
        await client.put(b"k", b"v")
        assert await client.get(b"k") == b"v"


async def test_no_region_yet(cluster: Any, db: AsyncClusterClient) -> None:
    cluster.told_regions = []
    with pytest.raises(errors.DeadlineExceeded, match="no region serves"):
        await db.get(b"k", timeout_s=1.0)  # time for one answer on a busy machine


# -- manners ----------------------------------------------------------------------------------------------------------
async def test_bad_calls(cluster: Any, db: AsyncClusterClient) -> None:
    with pytest.raises(errors.UsageError, match="bytes, not str"):
        await db.put("k", b"v")  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError):
        db.scan(b"b", b"a")
    with pytest.raises(errors.UsageError):
        db.scan(b"b", prefix=b"a")
    with pytest.raises(errors.UsageError):
        await db.get(b"k", timeout_s=0)
    for address in ("localhost", "localhost:", ":80", "a:99999", "a:b"):
        with pytest.raises(errors.UsageError, match="not an address"):
            AsyncClusterClient([address])
    with pytest.raises(errors.UsageError):
        AsyncClusterClient([])


async def test_close_ends_what_is_under_way(cluster: Any) -> None:
    client = AsyncClusterClient([cluster.coordinator_address])
    await client.get(b"k")
    begun = asyncio.Event()

    def hold(group: Any) -> str:
        begun.set()
        return "silence"

    cluster.stores[1].hook = hold
    put = asyncio.create_task(client.put(b"k", b"v"))
    await begun.wait()
    await client.close()
    await client.close()
    with pytest.raises(errors.Indeterminate):
        await put
    with pytest.raises(errors.Closed):
        await client.get(b"k")
    assert "closed" in repr(client)


# -- the synchronous face ---------------------------------------------------------------------------------------------
async def test_sync_client(cluster: Any) -> None:
    def work() -> None:
        with ClusterClient(cluster.coordinator_address) as db:
            db.put(b"k", b"v")
            db.put_many({b"%04d" % i: b"x" for i in range(1500)})
            assert db.get(b"k") == b"v"
            assert db.get_many([b"k", b"no"]) == [b"v", None]
            assert list(db.scan(values=False, prefix=b"0")) == [b"%04d" % i for i in range(1000)]
            snapshot = db.snapshot()
            db.delete(b"k")
            assert (db.get(b"k"), snapshot.get(b"k")) == (None, b"v")
            assert list(snapshot.scan(b"k")) == [(b"k", b"v")]
            threads = [threading.Thread(target=db.put, args=(b"t%d" % i, b"v")) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(list(db.scan(prefix=b"t"))) == 8
            half = db.scan()
            next(half)
        db.close()
        with pytest.raises(errors.Closed):
            db.get(b"k")
        with pytest.raises(errors.Closed):
            list(half)

    await asyncio.to_thread(work)


async def test_connect(cluster: Any) -> None:
    def work() -> None:
        with nokv.connect([cluster.coordinator_address], timeout_s=2.0) as db:
            db.put(b"k", b"v")
            assert db.get(b"k") == b"v"
        with pytest.raises(errors.UsageError):
            nokv.connect("nowhere")

    await asyncio.to_thread(work)


async def test_sync_client_after_fork(cluster: Any) -> None:
    def work() -> int:
        with ClusterClient(cluster.coordinator_address) as db:
            db.put(b"k", b"v")
            thread = db._thread
            assert thread is not None
            thread._pid = os.getpid() + 1  # as a forked child would find it
            try:
                with pytest.raises(errors.Closed, match="forked"):
                    db.get(b"k")
            finally:
                thread._pid = os.getpid()
        return 0

    assert await asyncio.to_thread(work) == 0
