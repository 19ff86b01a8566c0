"""One contract, two backends: the log over the network and the log in this process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nokv.errors import DeadlineExceeded, Indeterminate, PreconditionFailed, Unavailable
from nokv.metaroot.events import RegionBootstrapped, StoreJoined, StoreLeft
from nokv.metaroot.node import LocalRoot
from nokv.metaroot.ports import RootLog
from nokv.metaroot.server import RootConfig, RootServer
from nokv.metaroot.state import RootState
from nokv.region import Peer, Region, Store
from tests.unit.metaroot.harness import Roots

REGION = Region(1, peers=(Peer(11, 1),))


async def opened(kind: str, directory: Path, stack: AsyncExitStack) -> tuple[RootLog, RootServer]:
    log: RootLog
    if kind == "replicated":
        roots = await stack.enter_async_context(Roots(directory, 1))
        server = roots.servers[1]
        log = roots.client()
    else:
        server = RootServer(RootConfig(1, "nowhere:1", str(directory), tail_heartbeat_s=0.1), listen=False)
        await server.start()
        stack.push_async_callback(server.stop)
        assert server.node is not None
        log = LocalRoot(server.node, heartbeat_s=0.1)
    stack.push_async_callback(log.close)
    return log, server


@pytest.mark.parametrize("kind", ["replicated", "local"])
async def test_the_log_as_a_coordinator_sees_it(kind: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        log, server = await opened(kind, tmp_path, stack)
        done = await log.append([StoreJoined(Store(1, "a:1"))], author="me", time_ms=7)
        assert [r.token.revision for r in done.records] == [1]
        assert (done.records[0].author, done.records[0].time_ms) == ("me", 7)
        assert not done.already
        assert done.state.last.revision == 1
        assert not done.state.stores
        assert (await log.append([StoreJoined(Store(1, "a:1"))])).already
        with pytest.raises(PreconditionFailed):
            await log.append([StoreJoined(Store(2, "b:1")), RegionBootstrapped(REGION)], expected_revision=9)
        assert (await log.assess([RegionBootstrapped(REGION)])).verdict == "admitted"
        refused = await log.assess([StoreLeft(3)])
        assert refused.verdict == "refused"
        await log.append([RegionBootstrapped(REGION)])
        state = await log.snapshot()
        assert state.region(1) == REGION
        assert (await log.snapshot(without_catalog=True)).last == state.last

        view: RootState | None = None
        outcomes = []
        tail = log.tail(0)
        async for update in tail:
            outcomes.append(update.outcome)
            if update.state is not None:
                view = update.state
                await log.append([StoreJoined(Store(2, "b:1"))])
            assert view is not None
            for record in update.records:
                view.replay(record)
            if view.last.revision >= 3:
                break
        assert outcomes[0] == "bootstrap"
        assert view == await log.snapshot()
        assert server.node is not None
        assert view is not server.node.machine.state  # nobody changes the truth through a view

        await server.stop()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await log.snapshot(timeout_s=0.5)
        with pytest.raises((Unavailable, Indeterminate)):
            await log.append([StoreJoined(Store(3, "c:1"))], timeout_s=0.5)
