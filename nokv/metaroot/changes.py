"""Changes of regions: planned, pending, ended. Pure values, what one has to look like, and the list of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nokv.errors import UsageError
from nokv.metaroot.events import TransitionPhase
from nokv.region import Peer, Region

if TYPE_CHECKING:
    from nokv.metaroot.state import RootState

__all__ = [
    "FINISHED_MAX",
    "FinishedTransition",
    "PendingPeerChange",
    "PendingRangeChange",
    "Transition",
    "check_effect",
    "covers",
    "has_effect",
    "overtaken",
    "transitions",
    "union",
]

FINISHED_MAX = 1024
"""How many ended changes the state remembers; the oldest is forgotten first (the log still has it)."""


@dataclass(frozen=True, slots=True)
class PendingPeerChange:
    """A planned membership change that has not ended. A region takes part in at most one pending change, of any
    kind."""

    transition_id: str
    region_id: int
    peer: Peer
    removal: bool
    target: Region


@dataclass(frozen=True, slots=True)
class PendingRangeChange:
    """A planned split or merge that has not ended. Split: `target` is the parent after it, `other` the child. Merge:
    `target` covers both ranges, `other` is the neighbour that would be gone."""

    transition_id: str
    merge: bool
    target: Region
    other: Region

    @property
    def region_id(self) -> int:
        return self.target.region_id


@dataclass(frozen=True, slots=True)
class FinishedTransition:
    transition_id: str
    region_id: int
    phase: TransitionPhase
    revision: int


@dataclass(frozen=True, slots=True)
class Transition:
    """One change as operators see it. `revision`: where it ended, 0 if it has not. `target`: what a pending one aims
    at."""

    transition_id: str
    kind: str
    region_id: int
    phase: TransitionPhase
    revision: int = 0
    target: Region | None = None


def transitions(state: RootState) -> Iterator[Transition]:
    """Every change that the truth remembers: ended ones, oldest first, then the pending ones by region."""
    for ended in state.finished.values():
        yield Transition(
            ended.transition_id, kind_of(ended.transition_id), ended.region_id, ended.phase, ended.revision
        )
    pending: list[Transition] = []
    for peer_change in state.pending.values():
        kind = "remove-peer" if peer_change.removal else "add-peer"
        pending.append(
            Transition(
                peer_change.transition_id,
                kind,
                peer_change.region_id,
                TransitionPhase.PLANNED,
                target=peer_change.target,
            )
        )
    for region_id, planned in state.pending_ranges.items():
        if region_id == planned.region_id:
            kind = "merge" if planned.merge else "split"
            pending.append(
                Transition(planned.transition_id, kind, region_id, TransitionPhase.PLANNED, target=planned.target)
            )
    yield from sorted(pending, key=lambda change: (change.region_id, change.transition_id))


def kind_of(transition_id: str) -> str:
    """By the name that `addition_id` and its siblings give; another name tells nothing."""
    kind = transition_id.partition("/")[0]
    return kind if kind in ("add-peer", "remove-peer", "split", "merge") else "other"


def overtaken(epoch: int, aimed: int) -> TransitionPhase:
    return TransitionPhase.CONFLICTED if epoch == aimed else TransitionPhase.SUPERSEDED


def covers(outer: Region, inner: Region) -> bool:
    return outer.start_key <= inner.start_key and (
        not outer.end_key or (bool(inner.end_key) and inner.end_key <= outer.end_key)
    )


def union(one: Region, two: Region) -> tuple[bytes, bytes]:
    """The bounds of two ranges that meet. UsageError if they do not."""
    left, right = (one, two) if one.start_key < two.start_key else (two, one)
    if not left.end_key or left.end_key != right.start_key:
        raise UsageError(f"regions {one.region_id} and {two.region_id} are not neighbours")
    return left.start_key, right.end_key


def has_effect(region: Region, peer: Peer, *, removal: bool) -> bool:
    """Is `region` a descriptor after the change: the peer is in it with its role, or it is not in it any more?"""
    found = region.peer(peer.peer_id)
    return found is None if removal else found == peer


def check_effect(region: Region, peer: Peer, *, removal: bool) -> None:
    if not has_effect(region, peer, removal=removal):
        what = "still names" if removal else "does not name"
        raise UsageError(f"region {region.region_id} {what} peer {peer.peer_id}: that is not how the change ends")
