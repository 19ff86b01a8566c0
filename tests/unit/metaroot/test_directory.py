"""Directories of meta-roots at rest: read without a change, and what damage does. MR-01, MR-05"""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path

import pytest

from nokv.cli.main import run
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.env.files import OsFiles
from nokv.errors import Corruption, Locked, ModeError, NotFound
from nokv.metaroot.client import RootClient
from nokv.metaroot.directory import read_stopped
from nokv.metaroot.events import LeaseGranted
from nokv.metaroot.state import fold
from tests.unit.metaroot.harness import Roots, eventually
from tests.unit.metaroot.test_server import flip, store


def digest(directory: Path) -> dict[str, str]:
    return {str(p): sha256(p.read_bytes()).hexdigest() for p in sorted(directory.rglob("*")) if p.is_file()}


async def cli(*arguments: str) -> int:
    return await asyncio.to_thread(run, ["root", *arguments])


async def test_a_stopped_directory_is_read_and_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "root-1"
    async with Roots(tmp_path, 1, checkpoint_every=10) as roots, asyncio.timeout(60):
        client = roots.client()
        for n in range(1, 46):
            await client.append([store(n)])
        await eventually(lambda: len(list(workdir.glob("root/*.ckpt"))) == 2, "two checkpoints")
        await client.append([LeaseGranted("c", "c:1", 1, 1000)])
        state = await client.snapshot()
        with pytest.raises(Locked):
            read_stopped(str(workdir), OsFiles())
        assert await cli("audit", "--workdir", str(workdir)) == 4
        assert "running" in capsys.readouterr().err
        await roots.stop(1)
        before = digest(workdir)
        found = read_stopped(str(workdir), OsFiles())
        assert found.state == state == fold(found.records)
        assert (found.node_id, found.members, found.undecided, found.damage) == (1, (1,), 0, [])
        answers = {}
        for command in ("verify", "audit"):
            assert await cli(command, "--workdir", str(workdir), "--output", "json") == 0
            answers[command] = json.loads(capsys.readouterr().out)
            assert (answers[command]["source"], answers[command]["node_id"]) == ("stopped", 1)
        assert (answers["verify"]["verdict"], answers["verify"]["events"]) == ("equal", 46)
        assert [g["holds"] for g in answers["audit"]["guarantees"]] == [True] * 4
        assert await cli("audit", "--workdir", str(workdir), "--addr", "x:1") == 2
        capsys.readouterr()
        assert digest(workdir) == before

        newest = max(workdir.glob("root/*.ckpt"))
        flip(newest)  # the older one and the log behind it make up for it
        found = read_stopped(str(workdir), OsFiles())
        assert found.state == state
        assert [newest.name in str(error) for error in found.damage] == [True]
        assert await cli("verify", "--workdir", str(workdir)) == 0
        assert "passed over" in capsys.readouterr().out
        flip(min(workdir.glob("root/*.ckpt")))
        with pytest.raises(Corruption, match="no good checkpoint"):
            read_stopped(str(workdir), OsFiles())
        assert await cli("verify", "--workdir", str(workdir)) == 6
        await client.close()


async def test_a_coordinator_that_is_its_own_root_reads_the_same_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = str(tmp_path / "pd")
    server = CoordinatorServer(CoordinatorConfig("pd", "127.0.0.1:0", workdir=workdir))
    await server.start()
    async with asyncio.timeout(30):
        client = RootClient([server.address])  # the log's service is on the coordinator's own port
        await client.append([store(7)])
        node = server.node
        assert node is not None
        await eventually(node.holds_lease, "it serves")
        assert await cli("audit", "--addr", server.address) == 0
        await client.close()
        await server.stop()
        capsys.readouterr()
        assert await cli("audit", "--workdir", workdir, "--output", "json") == 0
        assert json.loads(capsys.readouterr().out)["eras"] == 1
    assert 7 in read_stopped(workdir, OsFiles()).state.stores


async def test_what_a_quorum_may_not_have_is_not_truth(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3) as roots, asyncio.timeout(60):
        client = roots.client()
        await client.append([store(1)])
        leader = await roots.leader()
        others = [n for n in roots.peers if n != leader]
        for n in others:
            await roots.stop(n)
        alone = roots.servers[leader].node
        assert alone is not None
        pending = asyncio.ensure_future(alone.append([store(2)]))
        await eventually(lambda: alone.raft_status().last_index > alone.raft_status().commit, "it is only proposed")
        await roots.stop(leader)
        with pytest.raises(Exception, match=r"stop|leader"):
            await pending
        found = read_stopped(str(tmp_path / f"root-{leader}"), OsFiles())
        assert found.members == (1, 2, 3)
        assert 2 not in found.state.stores
        assert found.undecided >= 1
        await client.close()


async def test_a_replica_with_a_hole_in_its_log_refuses_to_vote(tmp_path: Path) -> None:
    async with Roots(tmp_path, 3) as roots, asyncio.timeout(60):
        client = roots.client()
        for n in range(1, 30):
            await client.append([store(n)])
        leader = await roots.leader()
        bad = next(n for n in roots.peers if n != leader)
        await roots.stop(bad)
        (segment,) = (tmp_path / f"root-{bad}" / "wal").glob("*.wal")
        data = bytearray(segment.read_bytes())
        end = len(data.rstrip(b"\0"))
        data[end // 2] ^= 0xFF  # in the middle of what was acknowledged
        segment.write_bytes(data)
        with pytest.raises(Corruption, match="wal"):
            await roots.start(bad)
        with pytest.raises(Corruption, match="wal"):
            read_stopped(str(tmp_path / f"root-{bad}"), OsFiles())
        assert bad not in roots.servers  # it neither votes nor answers
        await client.append([store(30)])  # the others are a quorum
        await roots.stop(next(n for n in roots.servers if n != leader))
        with pytest.raises(Exception, match=r"meta-root|committed|unknown|leader"):
            await client.append([store(31)], timeout_s=1.5)  # without it there is none
        await client.close()


def test_what_is_no_directory_of_a_meta_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_stopped(str(tmp_path / "nothing"), OsFiles())
    import nokv

    nokv.open(str(tmp_path / "db")).close()
    with pytest.raises(ModeError):
        read_stopped(str(tmp_path / "db"), OsFiles())
