"""expand, transfer-leader, remove-peer against stores that may lie: order, reruns, checkpoints, who disagrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.env.files import OsFiles
from nokv.errors import DeadlineExceeded, PreconditionFailed, UsageError
from nokv.migrate.checkpoint import load_checkpoint
from nokv.migrate.expand import expand
from nokv.migrate.failpoints import FailpointHit, parse_failpoints
from nokv.migrate.remove_peer import remove_peer
from nokv.migrate.rollout import RolloutLog, Target, Waiter, format_target, parse_target
from nokv.migrate.transfer_leader import transfer_leader
from nokv.region import Peer, PeerRole, Region


class Clock:
    """Waiting costs nothing: each sleep moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def waiter(wait_s: float = 30.0) -> Waiter:
    clock = Clock()
    return Waiter(wait_s, 1.0, clock.sleep, clock.monotonic)


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    (tmp_path / "CURRENT").write_text("")
    return str(tmp_path)


def targets(picture: Any) -> list[Target]:
    return [Target(n, n * 100 + 1, picture.stores[n].address) for n in (2, 3)]


def run_expand(picture: Any, chosen: list[Target] | None = None, **options: object) -> object:
    chosen = targets(picture) if chosen is None else chosen
    options.setdefault("waiter", waiter())
    return expand(picture.stores[1].address, 1, chosen, command="again", **options)


# -- the grammar ------------------------------------------------------------------------------------------------------
@given(
    st.integers(1, 2**64 - 1), st.integers(1, 2**64 - 1), st.sampled_from(["", "127.0.0.1:1", "[::1]:20160", "h:65535"])
)
def test_target_round_trip(store_id: int, peer_id: int, address: str) -> None:  # MIG-24
    target = Target(store_id, peer_id, address)
    assert parse_target(format_target(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "2", "2:", ":201", "2:201@", "2:201@host", "2:201@host:0", "2:201@:1", "0:1", "1:0", "a:1", "-1:2", "1:2:3",
     "2:201@h:99999", " 2:201", "2:201 ", "99999999999999999999:1", "²:1"],
)  # fmt: skip
def test_bad_target(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageError:
        return
    assert target.store_id > 0
    assert target.peer_id > 0


# -- expand -----------------------------------------------------------------------------------------------------------
def test_targets_run_one_after_the_other_through_a_learner(picture: Any, workdir: str) -> None:  # MIG-24, MIG-25
    result = run_expand(picture, log=RolloutLog(workdir))
    assert picture.calls == ["add 201", "promote 201", "add 301", "promote 301"]
    assert [t["outcome"] for t in result.targets] == ["hosted", "hosted"]
    assert [m["peer_id"] for m in result.membership_before] == [101]
    assert [(m["peer_id"], m["role"]) for m in result.membership_after] == [
        (101, "voter"), (201, "voter"), (301, "voter")]  # fmt: skip
    checkpoint = load_checkpoint(workdir, OsFiles())
    assert checkpoint is not None
    assert checkpoint.rollout is not None
    assert checkpoint.rollout.stage == "expand-target-hosted"
    assert checkpoint.rollout.completed == 2
    assert not checkpoint.rollout.pending


def test_again_changes_nothing(picture: Any) -> None:
    run_expand(picture)
    picture.calls.clear()
    result = run_expand(picture)
    assert picture.calls == []
    assert [t["outcome"] for t in result.targets] == ["already", "already"]


@pytest.mark.parametrize(
    "failpoint",
    ["before-expand-rollout-started", "expand-rollout-started", "before-expand-target-pending", "expand-target-pending",
     "before-expand-target-hosted", "expand-target-hosted"],
)  # fmt: skip
def test_a_rerun_continues_after_a_stop_anywhere(picture: Any, workdir: str, failpoint: str) -> None:  # MIG-28
    log = RolloutLog(workdir, failpoints=parse_failpoints(f"{failpoint}:error"))
    with pytest.raises(FailpointHit):
        run_expand(picture, log=log)
    checkpoint = load_checkpoint(workdir, OsFiles())
    if failpoint == "before-expand-rollout-started":
        assert checkpoint is None
    else:
        assert checkpoint is not None
        assert checkpoint.rollout is not None
        assert checkpoint.rollout.pending
        assert checkpoint.rollout.command == "again"
    run_expand(picture, log=RolloutLog(workdir))
    assert sorted(picture.calls) == ["add 201", "add 301", "promote 201", "promote 301"]
    assert len(picture.region.peers) == 3


def test_the_checkpoint_is_written_before_the_call(picture: Any, workdir: str) -> None:
    log = RolloutLog(workdir, failpoints=parse_failpoints("expand-target-pending:error"))
    with pytest.raises(FailpointHit):
        run_expand(picture, log=log)
    assert picture.calls == []


def test_a_learner_that_never_arrives_is_not_promoted(picture: Any) -> None:
    picture.faults.add("snapshot-never-arrives")
    with pytest.raises(DeadlineExceeded, match="does not host"):
        run_expand(picture)
    assert picture.calls == ["add 201"]
    assert [p.role for p in picture.region.peers] == [PeerRole.VOTER, PeerRole.LEARNER]  # the quorum is still one
    picture.faults.clear()
    picture.stores[2].hosted = picture.region
    run_expand(picture)
    assert len(picture.region.peers) == 3


def test_a_learner_that_is_behind_is_waited_for(picture: Any) -> None:
    """Under load it is, until it has caught up: nothing was done, and the leader may be asked again."""
    picture.faults.add("learner-lags-once")
    run_expand(picture)
    assert picture.calls == ["add 201", "promote 201", "promote 201", "add 301", "promote 301"]


@pytest.mark.parametrize(
    ("fault", "side"),
    [("promotion-is-lost", "the leader does not show"), ("target-misses-promotion", "the target does")],
)
def test_who_disagrees_is_named(picture: Any, fault: str, side: str) -> None:  # MIG-27
    picture.faults.add(fault)
    with pytest.raises(DeadlineExceeded, match=side):
        run_expand(picture)


def test_a_target_that_is_not_empty_is_refused(picture: Any) -> None:  # MIG-26
    picture.stores[2].hosted = Region(7, peers=(Peer(701, 2),))
    with pytest.raises(PreconditionFailed, match="not empty"):
        run_expand(picture)
    assert picture.calls == []


def test_a_wrong_store_id_is_refused(picture: Any) -> None:
    with pytest.raises(PreconditionFailed, match="is store 2, not 9"):
        run_expand(picture, [Target(9, 901, picture.stores[2].address)])
    assert picture.calls == []


def test_another_peer_id_on_the_same_store_is_refused(picture: Any) -> None:
    run_expand(picture)
    with pytest.raises(PreconditionFailed):
        run_expand(picture, [Target(2, 999, picture.stores[2].address)])


def test_two_targets_on_one_store_are_refused(picture: Any) -> None:
    twice = [Target(2, 201, picture.stores[2].address), Target(2, 202, picture.stores[2].address)]
    with pytest.raises(UsageError):
        run_expand(picture, twice)


def test_any_hosting_store_may_be_asked(picture: Any) -> None:
    run_expand(picture, targets(picture)[:1])
    expand(picture.stores[2].address, 1, targets(picture)[1:], command="again", waiter=waiter())
    assert len(picture.region.peers) == 3


def test_an_address_is_looked_up(picture: Any) -> None:
    asked = []

    def resolve(store_id: int) -> str:
        asked.append(store_id)
        return picture.stores[store_id].address

    run_expand(picture, [Target(2, 201)], resolve=resolve)
    assert asked == [2]


def test_wait_zero_starts_and_returns(picture: Any, workdir: str) -> None:  # MIG-30, MIG-31
    result = run_expand(picture, targets(picture)[:1], waiter=waiter(0.0), log=RolloutLog(workdir))
    assert result.targets[0]["outcome"] == "started"
    checkpoint = load_checkpoint(workdir, OsFiles())
    assert checkpoint is not None
    assert checkpoint.rollout is not None
    assert checkpoint.rollout.stage == "expand-target-pending"


# -- transfer-leader, remove-peer -------------------------------------------------------------------------------------
def three(picture: Any) -> None:
    run_expand(picture)
    picture.calls.clear()


def transfer(picture: Any, **options: object) -> dict[str, object]:
    return transfer_leader(
        picture.stores[1].address,
        1,
        201,
        command="again",
        target_address=picture.stores[2].address,
        waiter=waiter(),
        **options,
    )


def test_transfer(picture: Any, workdir: str) -> None:
    three(picture)
    assert transfer(picture, log=RolloutLog(workdir))["outcome"] == "transferred"
    assert picture.leader_peer == 201
    checkpoint = load_checkpoint(workdir, OsFiles())
    assert checkpoint is not None
    assert checkpoint.rollout is not None
    assert checkpoint.rollout.stage == "transfer-leader-finished"
    said: list[str] = []
    assert transfer(picture, say=said.append)["outcome"] == "already"
    assert said == ["region 1: peer 201 leads"]
    assert picture.calls == ["transfer 201"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [("transfer-fails", "still peer 101"), ("target-sees-old-leader", "disagree")],
)
def test_transfer_that_does_not_converge(picture: Any, fault: str, says: str) -> None:  # MIG-27
    three(picture)
    picture.faults.add(fault)
    with pytest.raises((DeadlineExceeded, PreconditionFailed), match=says):
        transfer(picture)


def test_transfer_to_a_stranger_is_refused(picture: Any, workdir: str) -> None:
    with pytest.raises(PreconditionFailed, match="not a voter"):
        transfer(picture, log=RolloutLog(workdir))
    assert load_checkpoint(workdir, OsFiles()) is None


@pytest.mark.parametrize("verb", ["transfer-leader", "remove-peer"])
def test_started_is_written_before_the_call(picture: Any, workdir: str, verb: str) -> None:  # MIG-31
    three(picture)
    log = RolloutLog(workdir, failpoints=parse_failpoints(f"{verb}-started:error"))
    with pytest.raises(FailpointHit):
        if verb == "transfer-leader":
            transfer(picture, log=log)
        else:
            remove(picture, 301, log=log)
    assert picture.calls == []
    checkpoint = load_checkpoint(workdir, OsFiles())
    assert checkpoint is not None
    assert checkpoint.rollout is not None
    assert checkpoint.rollout.stage == f"{verb}-started"
    assert checkpoint.rollout.pending


def remove(picture: Any, peer_id: int, **options: object) -> dict[str, object]:
    return remove_peer(
        picture.stores[1].address,
        1,
        peer_id,
        command="again",
        target_address=picture.stores[peer_id // 100].address,
        waiter=waiter(),
        **options,
    )


def test_remove(picture: Any, workdir: str) -> None:
    three(picture)
    found = remove(picture, 301, log=RolloutLog(workdir))
    assert found["outcome"] == "removed"
    assert [m["peer_id"] for m in found["membership_after"]] == [101, 201]
    assert remove(picture, 301)["outcome"] == "already"
    assert picture.calls == ["remove 301"]


@pytest.mark.parametrize(
    ("fault", "says"), [("removal-is-lost", "leader still shows"), ("target-keeps-it", "still hosts")]
)
def test_remove_that_does_not_converge(picture: Any, fault: str, says: str) -> None:  # MIG-27
    three(picture)
    picture.faults.add(fault)
    with pytest.raises(DeadlineExceeded, match=says):
        remove(picture, 301)


def test_the_leader_and_the_last_replica_are_not_removed(picture: Any) -> None:
    with pytest.raises(PreconditionFailed, match="only replica"):
        remove(picture, 101)
    three(picture)
    with pytest.raises(PreconditionFailed, match="leads the region") as caught:
        remove(picture, 101)
    assert "transfer-leader" in caught.value.hint
    assert picture.calls == []


def test_failpoint_grammar() -> None:
    for text in ("x", "x:y", ":kill", "x:kill,y"):
        with pytest.raises(UsageError):
            parse_failpoints(text)
    parse_failpoints("").hit("anything")
    parse_failpoints(" a:error , b:kill ").hit("c")
