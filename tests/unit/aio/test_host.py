"""`nokv.aio`: the same answers as the engine, a loop that is never blocked, cancellation, the end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import nokv
import nokv.aio
from nokv.env.files import OsFiles
from nokv.errors import Conflict

ROOT = Path(__file__).resolve().parents[3]


class Gate:
    """Real files, but each `sync` of a log waits while the gate is shut."""

    def __init__(self) -> None:
        self.inner = OsFiles()
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> Any:
        return self._gated(self.inner.open_log(path, capacity, recycle=recycle))

    def reopen_log(self, path: str, capacity: int) -> Any:
        return self._gated(self.inner.reopen_log(path, capacity))

    def _gated(self, file: Any) -> Any:
        gate = self

        class Log:
            map = file.map
            capacity = file.capacity

            def write(self, offset: int, data: Any, /) -> None:
                file.write(offset, data)

            def sync(self, start: int = 0, end: int | None = None, /) -> None:
                if not gate.open.is_set():
                    gate.waiting.set()
                    assert gate.open.wait(60)
                file.sync(start, end)

            def close(self) -> None:
                file.close()

        return Log()


async def until(condition: Callable[[], bool]) -> None:
    """The loop turns meanwhile: this fails to end if somebody blocks it."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[nokv.aio.AsyncDB]:
    async with nokv.aio.open(tmp_path / "db", families=["f"], durability="process") as opened:
        yield opened


async def test_the_verbs(db: nokv.aio.AsyncDB, tmp_path: Path) -> None:
    await db.put(b"a", b"1")
    await db.put_many({b"b": b"2", b"c": b"3"}, sync=True)
    await db.put(b"t", b"x", ttl=10**9)
    await db.delete(b"t")
    family = await db.family("f")
    await family.put(b"k", b"v")
    assert await db.get(b"a") == b"1" and await db.get(b"x", 7) == 7 and await family.get(b"k") == b"v"
    assert await db.get_many([b"a", b"x", b"c"]) == [b"1", None, b"3"]
    assert [pair async for pair in db.scan()] == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert [key async for key in db.scan(values=False, reverse=True, limit=2)] == [b"c", b"b"]
    snapshot = db.snapshot()
    async with db.write_batch() as batch:
        batch.delete(b"a")
        batch.put(b"z", b"9", "f")
    with pytest.raises(ZeroDivisionError):
        async with db.write_batch() as batch:
            batch.put(b"never", b"")
            raise ZeroDivisionError
    assert await db.get(b"never") is None
    async with snapshot:
        assert await snapshot.get(b"a") == b"1" and await snapshot.family("f").get(b"z") is None
        assert len([pair async for pair in snapshot.scan()]) == 3
        async with await snapshot.iterator() as it:
            assert await it.seek_last() and it.item == (b"c", b"3")
            assert await it.prev() and it.key == b"b" and not await it.seek(b"d") and not it.valid
            with pytest.raises(nokv.UsageError):
                _ = it.value
            with pytest.raises(nokv.UsageError):
                _ = it.expires_at_ms
            assert not it.closed
        assert it.closed
    assert snapshot.closed
    await db.put(b"t", b"x", ttl=10**9)
    async with await db.iterator() as it:
        assert await it.seek(b"c") and it.expires_at_ms is None
        assert await it.next() and it.key == b"t" and it.expires_at_ms is not None and it.expires_at_ms > 10**9
    await db.delete(b"t")
    await db.flush()
    await db.compact()
    await db.sync()
    await db.checkpoint(tmp_path / "copy")
    tables = await db.export_sst(str(tmp_path / "out"), [("f", None, None)])
    await db.delete_range(b"b", b"c")
    assert await db.get(b"b") is None
    assert (await db.verify()).entries > 0 and not (await db.check()).damaged
    assert (await db.stats())["flush"]["count"] >= 1 and db.families()["f"] == family.id
    async with nokv.aio.open(tmp_path / "copy") as copy:
        assert await copy.get_many([b"a", b"b"]) == [None, b"2"]
        await copy.ingest_sst([[str(tmp_path / "out" / table.name) for table in tables]])
    async with nokv.aio.open(db.path, read_only=True) as reader:
        await db.put(b"later", b"1")
        assert await reader.get(b"later") is None and await reader.refresh() and await reader.get(b"later") == b"1"
        with pytest.raises(nokv.ReadOnly):
            await reader.put(b"a", b"")
    with pytest.raises(nokv.BytesRequired):
        await db.put("text", b"")  # type: ignore[arg-type]
    with pytest.raises(nokv.UsageError):
        db.scan(b"b", b"a")


async def test_transactions(db: nokv.aio.AsyncDB) -> None:
    async def deposit(txn: nokv.aio.AsyncTransaction) -> int:
        balance = int(await txn.get(b"balance", b"0")) + 1
        await asyncio.sleep(0)
        txn.put(b"balance", b"%d" % balance)
        return balance

    answers = await asyncio.gather(*(db.run(deposit) for _ in range(20)))
    assert sorted(answers) == list(range(1, 21)) and await db.get(b"balance") == b"20"
    async with db.transaction() as txn:
        txn.put(b"x", b"1")
        txn.put_many([(b"y", b"2")], "f")
        txn.delete(b"balance")
        assert [pair async for pair in txn.scan()] == [(b"x", b"1")] and await txn.get_many([b"y"], family="f") == [
            b"2"
        ]
    assert txn.closed and await db.get(b"x") == b"1"
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as txn:
            txn.put(b"x", b"2")
            raise ZeroDivisionError
    assert await db.get(b"x") == b"1"
    with pytest.raises(Conflict):
        async with db.transaction() as txn:
            await txn.get(b"x")
            await db.put(b"x", b"3")
            txn.put(b"x", b"4")

    async def always(txn: nokv.aio.AsyncTransaction) -> None:
        await txn.get(b"x")
        await db.put(b"x", b"5")
        txn.put(b"x", b"6")

    with pytest.raises(Conflict):
        await db.run(always, attempts_max=3)


async def test_the_loop_turns_while_a_sync_waits_for_the_disk(tmp_path: Path) -> None:
    gate = Gate()
    async with nokv.aio.open(tmp_path / "db", files=gate, durability="process") as db:
        gate.open.clear()
        write = asyncio.create_task(db.put(b"k", b"v", sync=True))
        await until(gate.waiting.is_set)
        for n in range(100):
            await asyncio.sleep(0)
            assert await db.get(b"k") == b"v", n  # other threads of the pool serve meanwhile
        assert not write.done()
        gate.open.set()
        await write


async def test_close_waits_for_what_was_begun_and_refuses_the_rest(tmp_path: Path) -> None:
    gate = Gate()
    db = await nokv.aio.open(tmp_path / "db", files=gate, durability="process", threads=1)
    gate.open.clear()
    first = asyncio.create_task(db.put(b"a", b"1", sync=True))
    await until(gate.waiting.is_set)
    queued = asyncio.create_task(db.put(b"b", b"2"))
    scan = db.scan()
    await asyncio.sleep(0)
    closing = [asyncio.create_task(db.close()) for _ in range(2)]
    await asyncio.sleep(0)
    assert db.closed and not first.done()
    with pytest.raises(nokv.Closed):
        await db.get(b"a")
    with pytest.raises(nokv.Closed):
        await anext(scan)
    closing[0].cancel()  # it closes nevertheless
    gate.open.set()
    await asyncio.gather(first, queued, closing[1])
    assert closing[0].cancelled()
    await db.close()
    async with nokv.aio.open(tmp_path / "db") as again:
        assert [pair async for pair in again.scan()] == [(b"a", b"1"), (b"b", b"2")]


async def test_a_cancelled_call_is_not_begun_or_ends_by_itself(tmp_path: Path) -> None:
    gate = Gate()
    async with nokv.aio.open(tmp_path / "db", files=gate, durability="process", threads=1) as db:
        gate.open.clear()
        begun = asyncio.create_task(db.put(b"begun", b"1", sync=True))
        await until(gate.waiting.is_set)
        waiting = asyncio.create_task(db.put(b"waiting", b"1"))
        await asyncio.sleep(0)
        for task in (begun, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.open.set()
        assert await db.get_many([b"begun", b"waiting"]) == [b"1", None]
        txn = db.transaction()
        txn.put(b"t", b"1")
        gate.waiting.clear()
        gate.open.clear()
        blocked = asyncio.create_task(db.put(b"s", b"1", sync=True))
        await until(gate.waiting.is_set)
        commit = asyncio.create_task(txn.commit())
        await asyncio.sleep(0)
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        gate.open.set()
        await blocked
        assert await db.get(b"t") is None and not txn.closed
        await txn.commit()
        assert await db.get(b"t") == b"1"


async def test_a_cancelled_scan_goes_on_where_it_was(db: nokv.aio.AsyncDB) -> None:
    expected = [(b"%06d" % n, b"v") for n in range(3000)]
    await db.put_many(expected)
    scan = db.scan()
    found: list[tuple[bytes, bytes]] = []
    cancelled = 0
    while True:
        task = asyncio.ensure_future(anext(scan, None))
        if len(found) % 7 == 0:
            await asyncio.sleep(0)
            if not task.done():
                task.cancel()
        try:
            item = await task
        except asyncio.CancelledError:
            cancelled += 1
            item = await anext(scan, None)
        if item is None:
            break
        found.append(item)
    assert found == expected and cancelled > 0
    async with db.scan() as scan:
        assert await scan.fetch(1000) == expected[:1000] and await anext(scan) == expected[1000]
    with pytest.raises(StopAsyncIteration):
        await anext(scan)


async def test_a_scan_that_failed_does_not_look_like_one_that_ended(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db", upper_compression="none") as inner:
        inner.put_many([(b"%04d" % i, b"v" * 100) for i in range(1000)])
        inner.flush()
    table = next((tmp_path / "db").rglob("*.sst"))
    data = bytearray(table.read_bytes())
    data[50_000] ^= 1
    table.write_bytes(data)
    async with nokv.aio.open(tmp_path / "db") as db:
        for scan in (db.scan(), db.transaction().scan()):
            with pytest.raises(nokv.Corruption):
                async for _ in scan:
                    pass
            with pytest.raises(nokv.UsageError, match=r"ended with an error before \(Corruption: "):
                await anext(scan)
            with pytest.raises(nokv.UsageError, match="ended with an error before"):
                await scan.fetch(1)
        with pytest.raises(nokv.Corruption):
            await db.count()


async def test_the_verbs_of_a_mapping(db: nokv.aio.AsyncDB) -> None:
    for target in (db, await db.family("f")):
        await target.put_many([(b"%05d" % n, b"%d" % n) for n in range(10_000)])
        assert await target.contains(b"00007") and not await target.contains(b"x")
        assert await target.count() == 10_000
        assert await target.count(b"00010", b"00020") == 10 and await target.count(prefix=b"0099") == 10
        assert [key async for key in target][:2] == [b"00000", b"00001"]
        assert await target.pop(b"00000") == b"0" and not await target.contains(b"00000")
        assert await target.pop(b"00000", None) is None and await target.pop(b"00000", b"d") == b"d"
        with pytest.raises(KeyError, match="no key b'00000'") as caught:
            await target.pop(b"00000")
        assert isinstance(caught.value, nokv.NotFound)
        assert await target.setdefault(b"00001", b"other") == b"1"
        assert await target.setdefault(b"new", bytearray(b"mine")) == b"mine" == await target.get(b"new")
        async with db.snapshot() as before:
            await target.clear()
            assert await target.count() == 0
            view = before if target is db else before.family("f")
            assert await view.count() == 10_000 and await view.contains(b"new")
            assert [key async for key in view][-1] == b"new"


async def test_pop_and_setdefault_are_atomic(db: nokv.aio.AsyncDB) -> None:
    keys = [b"%02d" % n for n in range(20)]
    for key in keys:
        await db.put(key, key)
        found = await asyncio.gather(*(db.pop(key, None) for _ in range(8)))
        assert (found.count(key), found.count(None)) == (1, 7)
        values = await asyncio.gather(*(db.setdefault(key, b"%d" % n) for n in range(8)))
        assert set(values) == {await db.get(key)}


async def test_a_batch_knows_the_time(db: nokv.aio.AsyncDB) -> None:
    async with db.write_batch() as batch:
        batch.put(b"k", b"v", ttl=1 << 40)
    it = await db.iterator()
    assert await it.seek_first() and it.expires_at_ms is not None
    await it.close()


async def test_a_cancelled_open_gives_the_directory_back(tmp_path: Path) -> None:
    for turns in range(6):
        opening = asyncio.ensure_future(nokv.aio.open(tmp_path / "db")._open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            await (await opening).close()
        except asyncio.CancelledError:
            pass
        # An open that a thread had begun goes on without us; when its thread is gone nobody has the directory.
        await until(lambda: not any(thread.name.startswith("nokv-aio") for thread in threading.enumerate()))
        nokv.open(tmp_path / "db").close()


async def test_errors_of_opening_come_out(tmp_path: Path) -> None:
    with pytest.raises(nokv.NotFound):
        await nokv.aio.open(tmp_path / "absent", create=False)
    with pytest.raises(nokv.UsageError):
        await nokv.aio.open(tmp_path / "db", threads=0)
    async with nokv.aio.open(tmp_path / "db"):
        with pytest.raises(nokv.Locked):
            await nokv.aio.open(tmp_path / "db")


def test_another_loop_is_refused(tmp_path: Path) -> None:
    async def first() -> nokv.aio.AsyncDB:
        return await nokv.aio.open(tmp_path / "db")

    db = asyncio.run(first())
    with pytest.raises(nokv.UsageError, match="another event loop"):
        asyncio.run(db.put(b"a", b"b"))
    db._target.close()


def test_nokv_names_it_and_does_not_load_it() -> None:
    code = "import sys, nokv; assert 'asyncio' not in sys.modules; print(nokv.aio.open.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "nokv.aio.host\n", done.stderr
