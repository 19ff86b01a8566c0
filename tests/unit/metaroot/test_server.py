"""Meta-roots over real sockets and disks: quorum, redirect, tail, restart, damage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nokv.errors import (
    Corruption,
    EpochNotMatch,
    Indeterminate,
    Locked,
    ModeError,
    NoKVError,
    NotFound,
    NotLeader,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.client import RootClient, TailUpdate
from nokv.metaroot.events import PeerAdded, RegionBootstrapped, RegionPublished, StoreJoined
from nokv.metaroot.server import RootConfig, RootServer
from nokv.metaroot.state import fold
from nokv.region import Peer, Region, Store
from tests.unit.metaroot.harness import Roots, eventually, free_addresses

WHOLE = Region(1, peers=(Peer(11, 1),))


def store(n: int) -> StoreJoined:
    return StoreJoined(Store(n, f"127.0.0.1:{20000 + n}"))


async def test_one_meta_root_appends_reads_and_restarts(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots:
        client = roots.client()
        first = await client.append([store(1)], author="test", time_ms=42)
        assert [r.token.revision for r in first.records] == [1]
        assert first.records[0].author == "test" and first.records[0].time_ms == 42  # MR-04
        again = await client.append([store(1)])
        assert again.already and not again.records
        await client.append([RegionBootstrapped(WHOLE)])
        state = await client.snapshot()
        assert state.regions == {1: WHOLE}
        log = await client.read(1)
        assert fold(log) == state  # MR-01
        await roots.stop(1)
        await roots.start(1)
        assert await client.snapshot() == state
        assert await client.read(1) == log
        await client.close()


async def test_refusals_come_back_as_our_errors(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots:
        client = roots.client()
        await client.append([store(1), store(2), RegionBootstrapped(WHOLE)])
        newer = WHOLE.with_peers((Peer(11, 1), Peer(12, 2)))
        await client.append([PeerAdded("t", Peer(12, 2), newer)])
        with pytest.raises(EpochNotMatch) as stale:
            await client.append([RegionPublished(WHOLE)])
        assert stale.value.regions == (newer,)
        with pytest.raises(NotFound):
            await client.append([RegionPublished(Region(9, peers=(Peer(5, 1),)))])
        with pytest.raises(PreconditionFailed):
            await client.append([store(3)], expected_revision=1)
        with pytest.raises(UsageError):
            await client.append([StoreJoined(Store(3, ""))])
        with pytest.raises(UsageError):
            await client.append([])
        await client.close()


async def test_three_survive_one_and_not_two(tmp_path: Path) -> None:  # MR-03
    async with Roots(tmp_path, 3) as roots:
        client = roots.client()
        await client.append([store(1)])
        leader = await roots.leader()
        follower = next(i for i in roots.peers if i != leader)
        direct = RootClient([roots.peers[follower]])
        await direct.append([store(2)])  # a follower redirects to the leader
        await roots.stop(await roots.leader())
        await client.append([store(3)])
        state = await client.snapshot()
        assert sorted(state.stores) == [1, 2, 3]
        await roots.stop(await roots.leader())
        with pytest.raises((Unavailable, Indeterminate)):
            await client.append([store(4)], timeout_s=1.5)
        for node_id in roots.peers:
            if node_id not in roots.servers:
                await roots.start(node_id)
        await client.append([store(5)])
        log = await client.read(1)
        acknowledged = {r.event.store.store_id for r in log if isinstance(r.event, StoreJoined)}
        assert {1, 2, 3, 5} <= acknowledged

        def same() -> bool:
            states = [s.node.machine.state for s in roots.servers.values() if s.node is not None]
            return len(states) == 3 and all(s == states[0] for s in states)

        await eventually(same, "all replicas hold the same state")
        for server in roots.servers.values():
            assert server.node is not None
            assert server.node.machine.read(1, 1000) == log  # MR-04: the same on every replica
            assert fold(log) == server.node.machine.state
        await direct.close()
        await client.close()


async def test_a_follower_names_the_leader(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3) as roots:
        leader = await roots.leader()
        follower = next(i for i in roots.peers if i != leader)
        node = roots.servers[follower].node
        assert node is not None
        await eventually(lambda: node.leader_id == leader, "the follower knows the leader")
        with pytest.raises(NotLeader) as refused:
            await node.append([store(1)])
        assert refused.value.address == roots.peers[leader]


async def test_concurrent_appends_all_get_through_once(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3) as roots:
        client = roots.client()
        results = await asyncio.gather(*(client.append([store(n)]) for n in range(1, 41)))
        revisions = sorted(r.token.revision for result in results for r in result.records)
        assert revisions == list(range(1, 41))
        await client.close()


async def collect(client: RootClient, updates: list[TailUpdate], from_revision: int = 0) -> None:
    async for update in client.tail(from_revision, silence_s=1.0):
        updates.append(update)


async def test_tail_bootstraps_advances_and_survives_the_leader(tmp_path: Path) -> None:  # MR-07
    async with Roots(tmp_path, 3) as roots:
        client = roots.client()
        await client.append([store(1)])
        updates: list[TailUpdate] = []
        task = asyncio.create_task(collect(client, updates))
        await eventually(lambda: updates, "the tail answers")
        assert updates[0].outcome == "bootstrap"
        assert updates[0].state is not None
        for n in range(2, 6):
            await client.append([store(n)])
        await roots.stop(await roots.leader())
        await client.append([store(6)])

        def seen() -> set[int]:
            joined = {r.event.store.store_id for u in updates for r in u.records if isinstance(r.event, StoreJoined)}
            for update in updates:
                joined |= set(update.state.stores) if update.state is not None else set()
            return joined

        await eventually(lambda: seen() == {1, 2, 3, 4, 5, 6}, "the tail has everything")
        revisions = [r.token.revision for u in updates for r in u.records]
        assert revisions == sorted(set(revisions))
        task.cancel()
        await asyncio.wait([task])
        await client.close()


async def test_tail_reloads_when_it_lags_past_retention(tmp_path: Path) -> None:  # MR-07
    async with Roots(tmp_path, 1, retain_events=5) as roots:
        client = roots.client()
        for n in range(1, 21):
            await client.append([store(n)])
        updates: list[TailUpdate] = []
        task = asyncio.create_task(collect(client, updates, 3))
        await eventually(lambda: updates, "the tail answers")
        assert updates[0].outcome == "reload"
        assert updates[0].state is not None and len(updates[0].state.stores) == 20
        with pytest.raises(NotFound, match="no longer kept"):
            await client.read(3)
        task.cancel()
        await asyncio.wait([task])
        await client.close()


async def test_checkpoints_compact_the_log_and_feed_a_late_follower(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3, checkpoint_every=10, retain_events=30) as roots:
        client = roots.client()
        await client.append([store(1)])
        first = await roots.leader()
        late = next(i for i in roots.peers if i != first)
        await roots.stop(late)
        for n in range(2, 61):
            await client.append([store(n)])
        leader = roots.servers[await roots.leader()]
        await eventually(
            lambda: leader._raftlog is not None and leader._raftlog.group(1).first_index() > 20, "the log is compacted"
        )
        server = await roots.start(late)
        assert server.node is not None
        node = server.node
        await eventually(lambda: len(node.machine.state.stores) == 60, "the late follower caught up")
        await roots.stop(late)
        server = await roots.start(late)  # from the installed checkpoint and the log behind it
        assert server.node is not None
        node = server.node
        await eventually(lambda: len(node.machine.state.stores) == 60, "again, from its own disk")
        await client.close()


async def test_a_bad_checkpoint_is_rebuilt_from_the_log_and_two_bad_ones_fail(tmp_path: Path) -> None:  # MR-05
    async with Roots(tmp_path, 1, checkpoint_every=10) as roots:
        client = roots.client()
        for n in range(1, 46):
            await client.append([store(n)])
        directory = tmp_path / "root-1" / "root"
        await eventually(lambda: len(list(directory.glob("*.ckpt"))) == 2, "two checkpoints")
        state = await client.snapshot()
        await roots.stop(1)
        older, newer = sorted(directory.glob("*.ckpt"))
        flip(newer)
        server = await roots.start(1)
        assert len(server.damage) == 1
        assert await client.snapshot() == state
        for n in range(46, 66):
            await client.append([store(n)])
        await eventually(lambda: len(list(directory.glob("*.ckpt"))) == 3, "two good checkpoints, one as evidence")
        await roots.stop(1)
        assert newer.exists() and not older.exists()
        paths = sorted(directory.glob("*.ckpt"))
        for path in paths:
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(Corruption):
            await roots.start(1)
        assert sorted(directory.glob("*.ckpt")) == paths  # the evidence stays
        await client.close()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


async def test_wrong_directories_are_refused(tmp_path: Path) -> None:
    async with Roots(tmp_path, 1) as roots:
        workdir = tmp_path / "root-1"
        with pytest.raises(Locked):
            await RootServer(RootConfig(1, "127.0.0.1:0", str(workdir))).start()
        await roots.stop(1)
        with pytest.raises(PreconditionFailed, match=r"meta-root 1"):
            await RootServer(RootConfig(2, "127.0.0.1:0", str(workdir))).start()
        with pytest.raises(PreconditionFailed, match="was made for"):
            peers = dict(enumerate(free_addresses(3), start=1))
            await RootServer(RootConfig(1, peers[1], str(workdir), peers)).start()
        import nokv

        with pytest.raises(ModeError):
            nokv.open(str(workdir))
        other = tmp_path / "other"
        other.mkdir()
        (other / "notes.txt").write_text("mine")
        with pytest.raises(PreconditionFailed, match="empty"):
            await RootServer(RootConfig(1, "127.0.0.1:0", str(other))).start()
        assert [p.name for p in other.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "config",
    [
        RootConfig(0, "x:1", "w"),
        RootConfig(1, "x:1", "w", {1: "x:1", 2: "x:2"}),
        RootConfig(4, "x:1", "w", {1: "x:1", 2: "x:2", 3: "x:3"}),
        RootConfig(1, "x:1", "w", {1: "x:1", 2: "x:1", 3: "x:3"}),
    ],
)
def test_bad_configurations(config: RootConfig) -> None:
    with pytest.raises(UsageError):
        RootServer(config)


async def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:  # S3
    async with Roots(tmp_path, 1) as roots:
        server = RootServer(RootConfig(1, roots.peers[1], str(tmp_path / "second")))
        with pytest.raises(Unavailable, match="cannot listen"):
            await server.start()


async def test_nobody_answers(tmp_path: Path) -> None:
    client = RootClient(free_addresses(2), timeout_s=0.3)
    with pytest.raises(NoKVError):
        await client.snapshot()
    with pytest.raises(NoKVError):
        await client.append([store(1)])
    await client.close()
