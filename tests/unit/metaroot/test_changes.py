"""Splits, merges and plans that facts overtake: what the truth makes of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nokv.errors import EpochNotMatch, NoKVError, PreconditionFailed, UsageError
from nokv.metaroot.changes import transitions
from nokv.metaroot.events import (
    PeerAdded,
    PeerAdditionPlanned,
    RegionBootstrapped,
    RegionMergeCancelled,
    RegionMergeCommitted,
    RegionMergePlanned,
    RegionPublished,
    RegionSplitCancelled,
    RegionSplitCommitted,
    RegionSplitPlanned,
    RegionTombstoned,
    RootEvent,
    TransitionPhase,
    addition_id,
    merge_id,
    split_id,
)
from nokv.metaroot.state import RootState, fold
from nokv.region import Peer, Region, RegionEpoch, RegionState
from tests.unit.metaroot.test_state import P1, P2, P3, WHOLE, WITH_P2, WITH_P3, Log, log

__all__ = ["log"]  # the fixture

LEFT = Region(1, b"", b"m", RegionEpoch(1, 2), (P1,))
RIGHT = Region(2, b"m", b"", RegionEpoch(1, 2), (Peer(201, 1),))
MERGED = Region(1, b"", b"", RegionEpoch(1, 3), (P1,))
SPLIT = split_id(WHOLE, b"m")
MERGE = merge_id(LEFT, RIGHT)
PLAN_SPLIT = RegionSplitPlanned(SPLIT, LEFT, RIGHT)
PLAN_MERGE = RegionMergePlanned(MERGE, MERGED, RIGHT)
DONE_SPLIT = RegionSplitCommitted(SPLIT, LEFT, RIGHT)
DONE_MERGE = RegionMergeCommitted(MERGE, MERGED, RIGHT)


def phases(state: RootState) -> dict[str, str]:
    return {change.transition_id: change.phase.value for change in transitions(state)}


def test_a_split_from_plan_to_end(log: Log) -> None:
    assert split_id(WHOLE, b"m") == SPLIT  # MR-10: deterministic
    assert log.append(PLAN_SPLIT) == 1
    assert log.append(PLAN_SPLIT) == 0
    assert phases(log.state) == {SPLIT: "planned"}
    assert log.state.region_by_key(b"z") == WHOLE  # a plan moves nothing
    assert log.append(DONE_SPLIT) == 1
    assert log.append(DONE_SPLIT) == 0
    assert log.append(PLAN_SPLIT) == 0  # a late copy of the plan is not a new one
    assert phases(log.state) == {SPLIT: "completed"}
    assert log.state.region_by_key(b"a") == LEFT
    assert log.state.region_by_key(b"m") == RIGHT
    assert not log.state.pending_ranges
    assert fold(log.records) == log.state


def test_a_merge_from_plan_to_end(log: Log) -> None:
    log.append(DONE_SPLIT)
    assert log.append(PLAN_MERGE) == 1
    assert log.append(PLAN_MERGE) == 0
    assert log.append(DONE_MERGE) == 1
    assert log.append(DONE_MERGE) == 0
    assert log.state.region_by_key(b"z") == MERGED
    assert log.state.regions[2].state is RegionState.TOMBSTONE
    with pytest.raises(PreconditionFailed):  # ids are not used again
        log.append(RegionSplitCommitted("x", replace(LEFT, epoch=RegionEpoch(1, 4)), RIGHT))
    assert fold(log.records) == log.state


def test_the_child_may_be_the_left_part(log: Log) -> None:
    child = Region(2, b"", b"m", RegionEpoch(1, 2), (Peer(201, 1),))
    parent = Region(1, b"m", b"", RegionEpoch(1, 2), (P1,))
    log.append(RegionSplitPlanned("s", parent, child), RegionSplitCommitted("s", parent, child))
    assert log.state.region_by_key(b"a") == child
    assert log.state.region_by_key(b"m") == parent


def test_cancelled_changes_leave_nothing(log: Log) -> None:
    log.append(PLAN_SPLIT)
    assert log.append(RegionSplitCancelled(SPLIT, 1)) == 1
    assert log.append(RegionSplitCancelled(SPLIT, 1)) == 0
    assert phases(log.state) == {SPLIT: "cancelled"}
    log.append(DONE_SPLIT, PLAN_MERGE)  # the log applied it all the same: a fact has the last word
    assert phases(log.state) == {SPLIT: "completed", MERGE: "planned"}
    log.append(RegionMergeCancelled(MERGE, 1))
    assert not log.state.pending_ranges
    assert fold(log.records) == log.state


REFUSED: list[tuple[str, list[RootEvent], RootEvent, type[NoKVError]]] = [
    ("second plan", [PLAN_SPLIT], RegionSplitPlanned("x", LEFT, replace(RIGHT, region_id=3)), PreconditionFailed),
    ("peer plan beside a split", [PLAN_SPLIT], PeerAdditionPlanned("x", P2, WITH_P2), PreconditionFailed),
    ("split beside a peer plan", [PeerAdditionPlanned("x", P2, WITH_P2)], PLAN_SPLIT, PreconditionFailed),
    ("child exists", [RegionTombstoned(WHOLE)], PLAN_SPLIT, PreconditionFailed),
    ("planned child bootstraps elsewhere", [PLAN_SPLIT], RegionBootstrapped(RIGHT), PreconditionFailed),
    ("stale plan", [DONE_SPLIT], RegionSplitPlanned("x", LEFT, replace(RIGHT, region_id=3)), EpochNotMatch),
    ("parts with a hole", [], RegionSplitPlanned("x", LEFT, replace(RIGHT, start_key=b"n")), UsageError),
    ("parts that overlap", [], RegionSplitPlanned("x", LEFT, replace(RIGHT, start_key=b"l")), UsageError),
    ("child elsewhere", [], RegionSplitPlanned("x", LEFT, replace(RIGHT, peers=(Peer(201, 2),))), UsageError),
    ("child shares a peer", [], RegionSplitPlanned("x", LEFT, replace(RIGHT, peers=(P1,))), UsageError),
    ("split without a name", [], RegionSplitPlanned("", LEFT, RIGHT), UsageError),
    ("split with other peers", [], RegionSplitPlanned("x", replace(LEFT, peers=(P2,)), RIGHT), UsageError),
    ("merge with itself", [DONE_SPLIT], RegionMergePlanned("x", MERGED, LEFT), UsageError),
    (
        "merge of an old source",
        [DONE_SPLIT, RegionPublished(replace(RIGHT, epoch=RegionEpoch(2, 2)))],
        PLAN_MERGE,
        EpochNotMatch,
    ),
    (
        "merge across stores",
        [DONE_SPLIT, PeerAdded("p", P2, replace(LEFT, epoch=RegionEpoch(2, 2), peers=(P1, P2)))],
        RegionMergePlanned("x", replace(MERGED, epoch=RegionEpoch(2, 3), peers=(P1, P2)), RIGHT),
        PreconditionFailed,
    ),
    (
        "merge below both versions",
        [DONE_SPLIT],
        RegionMergePlanned("x", replace(MERGED, epoch=RegionEpoch(1, 2)), RIGHT),
        EpochNotMatch,
    ),
    ("merge that covers less", [DONE_SPLIT], RegionMergePlanned("x", replace(MERGED, end_key=b"z"), RIGHT), UsageError),
    ("merge that never was", [DONE_SPLIT], RegionMergeCommitted("x", replace(MERGED, end_key=b"z"), RIGHT), UsageError),
    ("cancel nothing", [], RegionSplitCancelled("x", 1), PreconditionFailed),
    ("cancel as the other", [PLAN_SPLIT], RegionMergeCancelled(SPLIT, 1), UsageError),
    ("cancel what is done", [DONE_SPLIT], RegionSplitCancelled(SPLIT, 1), PreconditionFailed),
]


@pytest.mark.parametrize(("setup", "event", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refusals(log: Log, setup: list[RootEvent], event: RootEvent, error: type[NoKVError]) -> None:  # MR-08
    for step in setup:
        log.append(step)
    with pytest.raises(error):
        log.append(event)
    assert fold(log.records) == log.state


def test_a_fact_at_the_planned_epoch_is_a_conflict_and_one_past_it_supersedes(log: Log) -> None:
    log.append(PeerAdditionPlanned("a", P2, WITH_P2))
    log.append(PeerAdded("b", P3, WITH_P3))  # what the region's own log did is true, planned or not
    assert phases(log.state)["a"] == TransitionPhase.CONFLICTED.value
    assert log.state.region(1) == WITH_P3
    name = addition_id(WITH_P3, P2)
    target = WITH_P3.with_peers((P1, P2, P3))
    log.append(PeerAdditionPlanned(name, P2, target))
    log.append(RegionPublished(replace(WITH_P3, epoch=RegionEpoch(9, 1))))
    assert phases(log.state)[name] == TransitionPhase.SUPERSEDED.value
    assert not log.state.pending
    assert log.append(PeerAdditionPlanned("c", P2, replace(target, epoch=RegionEpoch(10, 1)))) == 1
    log.append(RegionTombstoned(replace(WITH_P3, epoch=RegionEpoch(9, 1))))
    assert phases(log.state)["c"] == TransitionPhase.ABORTED.value
    assert fold(log.records) == log.state


def test_range_plans_are_overtaken_too(log: Log) -> None:
    log.append(PLAN_SPLIT)
    log.append(PeerAdded("p", P2, WITH_P2))  # another dimension of the epoch: the split may still happen
    assert phases(log.state)[SPLIT] == "planned"
    log.append(RegionPublished(replace(WITH_P2, end_key=b"k", epoch=RegionEpoch(2, 2))))
    assert phases(log.state)[SPLIT] == "conflicted"
    assert not log.state.pending_ranges
    assert fold(log.records) == log.state


def test_the_parent_alone_is_published_first(log: Log) -> None:
    log.append(PLAN_SPLIT)
    log.append(RegionPublished(LEFT))
    assert log.state.region_by_key(b"z") is None  # a hole until the split itself is told
    assert phases(log.state)[SPLIT] == "planned"
    assert log.append(DONE_SPLIT) == 1
    assert log.state.region_by_key(b"z") == RIGHT
    assert phases(log.state)[SPLIT] == "completed"
    assert fold(log.records) == log.state


def test_two_splits_told_in_the_wrong_order(log: Log) -> None:
    first = Region(1, b"", b"m", RegionEpoch(1, 2), (P1,)), RIGHT
    second = Region(1, b"", b"c", RegionEpoch(1, 3), (P1,)), Region(3, b"c", b"m", RegionEpoch(1, 3), (Peer(301, 1),))
    log.append(RegionSplitPlanned("one", *first))
    log.append(RegionSplitCommitted("two", *second))
    assert phases(log.state)["one"] == "superseded"
    log.append(RegionSplitCommitted("one", *first))  # late news: it did happen
    assert phases(log.state) == {"one": "completed", "two": "completed"}
    assert [r.region_id for r in log.state.ranges.overlapping(b"", b"")] == [1, 3, 2]
    assert fold(log.records) == log.state


def test_a_merge_plan_dies_with_either_side(log: Log) -> None:
    log.append(DONE_SPLIT, PLAN_MERGE)
    log.append(RegionTombstoned(RIGHT))
    assert phases(log.state)[MERGE] == "aborted"
    assert not log.state.pending_ranges
