"""The audit sees what breaks a guarantee; the real log breaks none; the commands say so over real meta-roots."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nokv.cli.main import run
from nokv.errors import InvariantError
from nokv.metaroot.audit import audit, verify
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    RootEvent,
    RootRecord,
    RootToken,
    StoreJoined,
)
from nokv.metaroot.state import RootState
from nokv.region import Store
from tests.unit.metaroot.harness import Roots


def era(n: int, frontier: int = 1) -> list[RootEvent]:
    return [LeaseGranted("c", "c:1", n, 1_000), HandoffConfirmed("c", n, frontier, frontier)]


HEALTHY: list[RootEvent] = [
    *era(1),
    AllocatorFenced(Allocator.ID, 100, 1),
    LeaseRenewed("c", 1, 1_000),
    LeaseReleased("c", 1),
    LeaseSealed(1, 100, 1),
    *era(2, 100),
    HandoffClosed("c", 2),
    AllocatorFenced(Allocator.TSO, 900, 2),
    StoreJoined(Store(1, "127.0.0.1:1")),
]


def records(events: list[RootEvent], first: int = 1) -> list[RootRecord]:
    return [RootRecord(RootToken(first + n, 1, 1), event) for n, event in enumerate(events)]


def test_a_healthy_log_holds_and_folds() -> None:
    state = RootState()
    log = [r for n, e in enumerate(HEALTHY, 1) for r in state.apply([e], term=1, index=n)]
    found = audit(log)
    assert found.holds and found.complete and (found.eras, found.handovers, found.open_handover) == (2, 1, 0)
    assert verify(log, state).differences == []
    state.id_fence += 1
    assert verify(log, state).differences == ["id_fence"]
    with pytest.raises(InvariantError):
        verify(log[1:], state)


@pytest.mark.parametrize("first", range(len(HEALTHY)))
def test_a_log_without_its_beginning_is_audited_from_there(first: int) -> None:
    found = audit(records(HEALTHY[first:], first + 1))
    assert found.holds, found.problems
    assert found.complete is (first == 0)


@pytest.mark.parametrize(
    ("guarantee", "events"),
    [
        ("primacy", [*era(1), *era(2)]),
        ("primacy", [*era(1), LeaseSealed(1, 1, 1), *era(3)]),
        ("inheritance", [*era(1), AllocatorFenced(Allocator.ID, 9, 1), LeaseSealed(1, 9, 1), *era(2, 5)]),
        ("inheritance", [*era(1), AllocatorFenced(Allocator.ID, 9, 1), LeaseSealed(1, 8, 1)]),
        ("inheritance", [*era(1, 9), AllocatorFenced(Allocator.TSO, 8, 1)]),
        ("silence", [*era(1), LeaseSealed(1, 1, 1), AllocatorFenced(Allocator.ID, 9, 1)]),
        ("silence", [*era(1), LeaseSealed(1, 1, 1), *era(2), LeaseRenewed("c", 1, 1_000)]),
        ("silence", [LeaseGranted("c", "c:1", 1, 1_000), AllocatorFenced(Allocator.ID, 9, 1)]),
        ("finality", [*era(1), LeaseSealed(1, 1, 1), *era(2), *era(3)]),
        ("finality", [*era(1), LeaseSealed(1, 1, 1), LeaseGranted("c", "", 2, 1), HandoffClosed("c", 2)]),
        (
            "finality",
            [*era(1), LeaseSealed(1, 1, 1), *era(2), LeaseSealed(2, 1, 1), *era(3), HandoffClosed("c", 3)],
        ),
    ],
)
def test_what_breaks_a_guarantee_is_named(guarantee: str, events: list[RootEvent]) -> None:
    assert audit(records(events)).problems[guarantee]


def test_a_gap_is_not_overlooked() -> None:
    log = records(HEALTHY)
    with pytest.raises(InvariantError, match="gap"):
        audit(log[:2] + log[3:])


async def test_the_commands_over_a_real_meta_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Roots(tmp_path, 1, retain_events=len(HEALTHY)) as roots:
        address = roots.peers[1]
        async with asyncio.timeout(30):
            await roots.leader()
            client = roots.client()
            for event in HEALTHY:
                await client.append([event])
            answers = {}
            for command in ("verify", "audit", "transitions"):
                arguments = ["root", command, "--addr", address, "--output", "json"]
                assert await asyncio.to_thread(run, arguments) == 0
                answers[command] = json.loads(capsys.readouterr().out)
            assert answers["verify"]["verdict"] == "equal"
            assert [g["holds"] for g in answers["audit"]["guarantees"]] == [True] * 4
            assert answers["transitions"]["transitions"] == []
            await client.append([StoreJoined(Store(2, "127.0.0.1:2"))])  # the first event is no longer kept
            assert await asyncio.to_thread(run, ["root", "verify", "--addr", address]) != 0
            assert "truncated" in capsys.readouterr().err
            assert await asyncio.to_thread(run, ["root", "audit", "--addr", address]) == 0
            assert "no longer kept" in capsys.readouterr().out
            await client.close()


async def test_a_log_with_folds_is_verified_and_audited_like_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Roots(tmp_path, 1, retain_events=100, checkpoint_every=50) as roots, asyncio.timeout(60):
        client = roots.client()
        await client.append([StoreJoined(Store(1, "127.0.0.1:1"))])
        await client.append([LeaseGranted("c", "c:1", 1, 1_000), HandoffConfirmed("c", 1, 1, 1)])
        for n in range(2, 250):
            await client.append([AllocatorFenced(Allocator.TSO, n, 1)])
        for _ in range(2):
            for arguments in (["--addr", roots.peers[1]], ["--workdir", str(tmp_path / "root-1")]):
                if arguments[0] == "--workdir":
                    await roots.stop(1)
                answers = []
                for command in ("verify", "audit"):
                    assert await asyncio.to_thread(run, ["root", command, *arguments, "--output", "json"]) == 0
                    answers.append(json.loads(capsys.readouterr().out))
                verified, audited = answers
                assert (verified["verdict"], verified["revision"], verified["first_revision"]) == ("equal", 251, 1)
                assert verified["events"] + verified["folded"] == 251
                if arguments[0] == "--addr":  # at rest, what lies behind the newest checkpoint is still whole
                    assert verified["folded"] > 200
                assert audited["complete"] is True
                assert audited["folded"] == verified["folded"]
            await roots.start(1)  # from a checkpoint: it keeps what it kept
            await roots.leader()
        await client.close()
