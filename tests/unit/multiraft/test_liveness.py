"""What lets quiet groups stay quiet: silence, disagreement, and the beat's bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import Corruption, UsageError
from nokv.multiraft.liveness import BUCKETS, Beat, StoreLiveness, decode_beat, digest, encode_beat

SILENT = 10


class Pair:
    """Two processes, 1 and 2, with or without a wire between them."""

    def __init__(self) -> None:
        self.sides = {1: StoreLiveness(silent_ticks=SILENT), 2: StoreLiveness(silent_ticks=SILENT)}
        self.woken: list[tuple[int, str, int]] = []
        self.beats = 0
        self.cut: set[tuple[int, int]] = set()

    def rest(self, group_id: int, *, term: int = 5, leader: int = 1) -> None:
        """Led from process `leader` by peer 10, followed from the other by peer 20."""
        other = 3 - leader
        self.sides[leader].rest_as_leader(group_id, term, 10, {20: other})
        self.sides[other].rest_as_follower(group_id, term, 10, 20, leader)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for number, side in self.sides.items():
                verdict = side.tick()
                self.woken += [(number, "wake", group) for group in verdict.wake]
                self.woken += [(number, "doubt", group) for group in verdict.doubt]
                for group in verdict.wake:
                    side.wake(group)
                for to, data in verdict.beats:
                    self.beats += 1
                    if (number, to) not in self.cut:
                        for group in self.sides[to].beat(number, decode_beat(data)):
                            self.woken.append((to, "disagree", group))
                            self.sides[to].wake(group)
                side.check()


def test_agreeing_processes_wake_nobody_and_write_the_same_for_any_number_of_groups() -> None:
    pair = Pair()
    for group in range(1, 1001):
        pair.rest(group, leader=1 + group % 2)
    pair.tick(1000)
    assert not pair.woken
    assert pair.beats == 1000  # each writes every second tick


def test_a_silent_process_wakes_followers_and_makes_leaders_doubt() -> None:
    pair = Pair()
    pair.rest(1, leader=1)
    pair.rest(2, leader=2)
    pair.tick(20)
    pair.cut = {(1, 2), (2, 1)}
    pair.tick(SILENT - 2)
    assert not pair.woken
    pair.tick(4)
    assert sorted(pair.woken) == [(1, "doubt", 1), (1, "wake", 2), (2, "doubt", 2), (2, "wake", 1)]
    pair.tick(100)
    assert len(pair.woken) == 4  # once


def test_any_word_counts_as_life() -> None:
    side = StoreLiveness(silent_ticks=SILENT)
    side.rest_as_follower(1, 5, 10, 20, 2)
    for _ in range(100):
        assert not side.tick().wake
        side.heard(2)
    assert not side.is_silent(2)


@pytest.mark.parametrize("who", ["leader", "follower", "term"])
def test_what_only_one_side_knows_is_woken_there_and_nothing_else(who: str) -> None:
    pair = Pair()
    for group in range(1, BUCKETS):
        pair.rest(group)
    if who == "leader":  # the follower missed the notice, or is gone
        pair.sides[1].rest_as_leader(1000, 5, 10, {20: 2})
        expected = {(1, "disagree", 1000), (1, "disagree", 1000 % BUCKETS), (2, "disagree", 1000 % BUCKETS)}
    elif who == "follower":  # the leader is gone, or was never told
        pair.sides[2].rest_as_follower(1000, 5, 10, 20, 1)
        expected = {(2, "disagree", 1000), (1, "disagree", 1000 % BUCKETS), (2, "disagree", 1000 % BUCKETS)}
    else:  # a member of another term
        pair.sides[1].rest_as_leader(BUCKETS, 5, 10, {20: 2})
        pair.sides[2].rest_as_follower(BUCKETS, 4, 10, 20, 1)
        expected = {(1, "disagree", BUCKETS), (2, "disagree", BUCKETS)}
    pair.tick(3 * SILENT - 2)
    assert not pair.woken
    pair.tick(10)
    assert {one for one in pair.woken if one[2] in (1000, BUCKETS)} == {
        one for one in expected if one[2] in (1000, BUCKETS)
    }
    assert set(pair.woken) <= expected  # its bucket may wake with it; no other does


def test_a_short_disagreement_wakes_nobody() -> None:
    pair = Pair()
    for round_ in range(20):
        pair.sides[1].rest_as_leader(7, round_, 10, {20: 2})
        pair.tick(3)
        pair.sides[2].rest_as_follower(7, round_, 10, 20, 1)
        pair.tick(SILENT)
        pair.sides[1].wake(7)
        pair.tick(3)
        pair.sides[2].wake(7)
        pair.tick(3)
    assert not pair.woken


def test_a_process_that_forgot_everything_still_answers() -> None:
    """It started again: its members are awake and it has no quiet group, but the leader's side must learn that."""
    pair = Pair()
    pair.rest(1, leader=1)
    pair.tick(10)
    pair.sides[2] = StoreLiveness(silent_ticks=SILENT)
    pair.tick(3 * SILENT + 10)
    assert (1, "disagree", 1) in pair.woken
    pair.tick(3 * SILENT)
    beats = pair.beats
    pair.tick(100)
    assert pair.beats == beats  # and nobody answers answers for ever


def test_unheard_ticks_are_ticks_since_it_went_quiet() -> None:
    """They count against a promise that was made when it went quiet: never more."""
    pair = Pair()
    pair.rest(1)
    pair.tick(20)
    assert pair.sides[2].unheard_ticks(1) <= 2
    pair.cut = {(1, 2)}
    pair.tick(5)
    assert 5 <= pair.sides[2].unheard_ticks(1) <= 7
    pair.sides[2].rest_as_follower(2, 5, 10, 20, 1)
    pair.tick(2)
    assert pair.sides[2].unheard_ticks(2) == 2
    assert pair.sides[1].unheard_ticks(1) == 0  # it leads
    assert pair.sides[1].unheard_ticks(99) == 0


@pytest.mark.parametrize("seed", range(10))
def test_random_walk_keeps_the_sums(seed: int) -> None:
    dice = random.Random(seed)
    side = StoreLiveness(silent_ticks=SILENT)
    for _ in range(500):
        group = dice.randrange(1, 40)
        what = dice.randrange(4)
        if what == 0:
            side.rest_as_leader(group, dice.randrange(3), 1, {2: 2, 3: 3})
        elif what == 1:
            side.rest_as_follower(group, dice.randrange(3), 2, 1, dice.randrange(2, 4))
        elif what == 2:
            side.wake(group)
        else:
            side.beat(dice.randrange(2, 5), Beat([0] * BUCKETS, [0] * BUCKETS))
            side.tick()
        side.check()


def test_digests_differ() -> None:
    seen = {digest(g, t, a, b) for g in range(1, 60) for t in range(10) for a in range(1, 5) for b in range(1, 5)}
    assert len(seen) == 59 * 10 * 16
    assert digest(1, 2, 3, 4) == 0x1331FC3D325DE8C3  # both sides of a wire must agree on it: it never changes


def test_options_are_checked() -> None:
    with pytest.raises(UsageError):
        StoreLiveness(silent_ticks=2, beat_ticks=2)
    with pytest.raises(UsageError):
        StoreLiveness(silent_ticks=2, beat_ticks=0)


# -- the bytes --------------------------------------------------------------------------------------------------------
U64 = st.integers(0, (1 << 64) - 1)
DIGESTS = st.lists(U64, min_size=BUCKETS, max_size=BUCKETS)


@given(DIGESTS, DIGESTS)
def test_a_beat_survives_the_wire(leading: list[int], following: list[int]) -> None:
    data = encode_beat(Beat(leading, following))
    assert len(data) == 1 + 16 * BUCKETS
    found = decode_beat(data)
    assert list(found.leading) == leading and list(found.following) == following


@given(st.binary(max_size=2 * (1 + 16 * BUCKETS)))
def test_hostile_bytes_are_corruption_or_a_beat(data: bytes) -> None:
    try:
        beat = decode_beat(data)
    except Corruption:
        return
    assert encode_beat(beat) == data


def test_corruption_names_what_is_wrong() -> None:
    good = encode_beat(Beat([0] * BUCKETS, [0] * BUCKETS))
    with pytest.raises(Corruption, match="1024 bytes, not 1025"):
        decode_beat(good[:-1])
    with pytest.raises(Corruption, match="version 9 at byte 0"):
        decode_beat(b"\x09" + good[1:])
