"""Configurations, and what a majority, or both majorities of a joint configuration, agree on."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nokv.raft.types import NO_LIMIT, ConfState

__all__ = ["Configuration", "VoteResult", "joint_committed", "joint_vote", "majority_committed", "majority_vote"]


class VoteResult(enum.Enum):
    PENDING = "VotePending"
    LOST = "VoteLost"
    WON = "VoteWon"


def majority_committed(voters: Collection[int], acked: Mapping[int, int]) -> int:
    """The largest index that a majority has acknowledged; NO_LIMIT if there is no voter (it then never decides)."""
    count = len(voters)
    if count == 0:
        return NO_LIMIT
    indexes = sorted([acked.get(node_id, 0) for node_id in voters])
    return indexes[count - (count // 2 + 1)]


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """`votes` holds those that answered. No voter at all: won, so that it never blocks the other half."""
    if not voters:
        return VoteResult.WON
    yes = missing = 0
    for node_id in voters:
        vote = votes.get(node_id)
        if vote is None:
            missing += 1
        elif vote:
            yes += 1
    quorum = len(voters) // 2 + 1
    if yes >= quorum:
        return VoteResult.WON
    if yes + missing >= quorum:
        return VoteResult.PENDING
    return VoteResult.LOST


def joint_committed(incoming: Collection[int], outgoing: Collection[int], acked: Mapping[int, int]) -> int:
    return min(majority_committed(incoming, acked), majority_committed(outgoing, acked))


def joint_vote(incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    first = majority_vote(incoming, votes)
    second = majority_vote(outgoing, votes)
    if first is second:
        return first
    if VoteResult.LOST in (first, second):
        return VoteResult.LOST
    return VoteResult.PENDING


@dataclass(slots=True)
class Configuration:
    incoming: set[int] = field(default_factory=set)
    outgoing: set[int] = field(default_factory=set)
    learners: set[int] = field(default_factory=set)
    learners_next: set[int] = field(default_factory=set)
    auto_leave: bool = False

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def is_singleton(self) -> bool:
        return len(self.incoming) == 1 and not self.outgoing

    @property
    def voters(self) -> set[int]:
        return self.incoming | self.outgoing

    def vote_result(self, votes: Mapping[int, bool]) -> VoteResult:
        return joint_vote(self.incoming, self.outgoing, votes)

    def committed(self, acked: Mapping[int, int]) -> int:
        if self.outgoing:
            return joint_committed(self.incoming, self.outgoing, acked)
        return majority_committed(self.incoming, acked)

    def copy(self) -> Configuration:
        return Configuration(
            set(self.incoming), set(self.outgoing), set(self.learners), set(self.learners_next), self.auto_leave
        )

    def conf_state(self) -> ConfState:
        return ConfState(
            tuple(sorted(self.incoming)),
            tuple(sorted(self.learners)),
            tuple(sorted(self.outgoing)),
            tuple(sorted(self.learners_next)),
            self.auto_leave,
        )

    def __str__(self) -> str:
        text = f"voters={_ids(self.incoming)}"
        if self.outgoing:
            text += f"&&{_ids(self.outgoing)}"
        if self.learners:
            text += f" learners={_ids(self.learners)}"
        if self.learners_next:
            text += f" learners_next={_ids(self.learners_next)}"
        if self.auto_leave:
            text += " autoleave"
        return text


def _ids(nodes: Collection[int]) -> str:
    return "(" + " ".join(f"{node_id:x}" for node_id in sorted(nodes)) + ")"
