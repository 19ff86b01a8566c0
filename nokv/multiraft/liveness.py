"""StoreLiveness: what lets quiet groups stay quiet. One small message per pair of processes instead of one per group.

Owns: which resting groups this process shares with which other one, what was heard of that one and when, and the
beats that the two exchange. Pure: ticks and beats in, verdicts out; the host carries them.

A beat says, for each of 64 buckets of groups, "these groups I lead are quiet, with a member at yours" and "these
groups I follow are quiet, with their leader at yours", each as one xor of 64-bit digests of (group, term, leader,
member). The receiver compares with its own. So a quiet member trusts its leader only while the leader's process

    is heard                  else, after `silent_ticks`, the members wake and elect; a leader wakes if it has no quorum
    vouches for the group     else, after `disagree_ticks`, both sides wake what they have in that bucket

The second finds what the first cannot: the process lives, and the leader (or the member) is gone from it, restarted,
was removed while nobody told, or is awake because the notice was lost. Beats on their way when a group changes
disagree for a moment, hence the patience. Nothing here is needed for safety, so an xor that happens to agree (2**-64)
delays an election and breaks no promise.

Layout of a beat (`context` of a MsgHeartbeat of group 0): docs/formats/raft_message.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from nokv.errors import Corruption, UsageError

__all__ = ["BEAT_GROUP_ID", "Beat", "StoreLiveness", "Verdict", "decode_beat", "encode_beat"]

BEAT_GROUP_ID = 0
"""No Raft group has it: messages of it are between two processes."""
BUCKETS = 64
BEAT_VERSION = 1
_LAYOUT = struct.Struct(f"<B{2 * BUCKETS}Q")
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Beat:
    """Digests per bucket, from the sender's point of view: quiet groups it leads, quiet groups it follows."""

    leading: Sequence[int]
    following: Sequence[int]


def encode_beat(beat: Beat) -> bytes:
    return _LAYOUT.pack(BEAT_VERSION, *beat.leading, *beat.following)


def decode_beat(data: bytes) -> Beat:
    """Corruption unless the bytes are exactly what some `encode_beat` made."""
    if len(data) != _LAYOUT.size:
        raise Corruption(f"store beat: {len(data)} bytes, not {_LAYOUT.size}")
    version, *digests = _LAYOUT.unpack(data)
    if version != BEAT_VERSION:
        raise Corruption(f"store beat: version {version} at byte 0", expected=BEAT_VERSION, found=version)
    return Beat(digests[:BUCKETS], digests[BUCKETS:])


def digest(group_id: int, term: int, leader_id: int, member_id: int) -> int:
    """The same on every machine; never 0."""
    mixed = (
        group_id * 0x9E3779B97F4A7C15
        + term * 0xC2B2AE3D27D4EB4F
        + leader_id * 0x165667B19E3779F9
        + member_id * 0xD6E8FEB86659FD93
    ) & _MASK
    mixed = ((mixed ^ mixed >> 32) * 0xFF51AFD7ED558CCD) & _MASK
    mixed = ((mixed ^ mixed >> 29) * 0xC4CEB9FE1A85EC53) & _MASK
    return (mixed ^ mixed >> 32) or 1


class _Link:
    """What is shared with one other process."""

    __slots__ = ("agreed_following", "agreed_leading", "busy_beat", "following", "groups", "heard", "leading", "silent")

    def __init__(self, now: int) -> None:
        self.heard = now
        self.busy_beat = now - (1 << 30)  # when its last beat came that spoke of any group
        self.silent = False
        self.leading = [0] * BUCKETS
        self.following = [0] * BUCKETS
        self.agreed_leading = [now] * BUCKETS
        self.agreed_following = [now] * BUCKETS
        self.groups: dict[int, _Resting] = {}


@dataclass(slots=True)
class _Resting:
    group_id: int
    leads: bool
    since: int
    digests: list[tuple[int, _Link, int]] = field(default_factory=list)
    """(process, link, digest), one for each other member or for the leader."""

    @property
    def bucket(self) -> int:
        return self.group_id % BUCKETS


@dataclass(slots=True)
class Verdict:
    """Of one tick. `wake` are members whose leader's process is silent; `doubt` are leaders with such a member."""

    beats: list[tuple[int, bytes]] = field(default_factory=list)
    wake: list[int] = field(default_factory=list)
    doubt: list[int] = field(default_factory=list)


class StoreLiveness:
    def __init__(self, *, silent_ticks: int = 10, beat_ticks: int = 2, disagree_ticks: int | None = None) -> None:
        """`silent_ticks`: an election timeout. `disagree_ticks` (three of them) leaves a member that missed the notice
        the time to find its leader by itself."""
        if not 0 < beat_ticks < silent_ticks:
            raise UsageError("silent_ticks must be greater than beat_ticks, and that greater than 0")
        self.silent_ticks = silent_ticks
        self.beat_ticks = beat_ticks
        self.disagree_ticks = 3 * silent_ticks if disagree_ticks is None else disagree_ticks
        self.now = 0
        self._links: dict[int, _Link] = {}
        self._resting: dict[int, _Resting] = {}

    def __len__(self) -> int:
        """How many groups rest."""
        return len(self._resting)

    # -- groups -------------------------------------------------------------------------------------------------------
    def rest_as_leader(self, group_id: int, term: int, leader_id: int, members: dict[int, int]) -> None:
        """`members`: the other members and the processes they live in."""
        resting = self._rest(group_id, leads=True)
        for member_id, process in members.items():
            self._share(resting, process, digest(group_id, term, leader_id, member_id))

    def rest_as_follower(self, group_id: int, term: int, leader_id: int, own_id: int, process: int) -> None:
        """`process` is the leader's."""
        self._share(self._rest(group_id, leads=False), process, digest(group_id, term, leader_id, own_id))

    def _rest(self, group_id: int, *, leads: bool) -> _Resting:
        self.wake(group_id)
        resting = self._resting[group_id] = _Resting(group_id, leads, self.now)
        return resting

    def _share(self, resting: _Resting, process: int, value: int) -> None:
        link = self._links.get(process)
        if link is None:
            link = self._links[process] = _Link(self.now)
        if not link.groups:
            # Nobody listened for beats until now, and none were due.
            link.heard = self.now
            link.silent = False
        link.groups[resting.group_id] = resting
        (link.leading if resting.leads else link.following)[resting.bucket] ^= value
        resting.digests.append((process, link, value))

    def wake(self, group_id: int) -> None:
        """It is awake, or gone."""
        resting = self._resting.pop(group_id, None)
        if resting is None:
            return
        for process, link, value in resting.digests:
            link.groups.pop(group_id, None)
            (link.leading if resting.leads else link.following)[resting.bucket] ^= value
            if not link.groups and not self._owes_beat(link):
                self._links.pop(process, None)

    def unheard_ticks(self, group_id: int) -> int:
        """For how many ticks, since it went quiet, nobody vouched for the leader of a group that we follow."""
        resting = self._resting.get(group_id)
        if resting is None or resting.leads:
            return 0
        _, link, _ = resting.digests[0]
        return self.now - max(resting.since, link.agreed_following[resting.bucket])

    def is_silent(self, process: int) -> bool:
        link = self._links.get(process)
        return link is not None and self.now - link.heard >= self.silent_ticks

    # -- time and beats -----------------------------------------------------------------------------------------------
    def heard(self, process: int) -> None:
        """Anything at all came from there."""
        link = self._links.get(process)
        if link is not None:
            link.heard = self.now
            link.silent = False

    def beat(self, process: int, beat: Beat) -> list[int]:
        """A beat came. The groups to wake: those of buckets that have disagreed for too long."""
        link = self._links.get(process)
        if link is None:
            link = self._links[process] = _Link(self.now)
        link.heard = self.now
        link.silent = False
        if any(beat.leading) or any(beat.following):
            link.busy_beat = self.now
        return self._disagreeing(link, link.leading, beat.following, link.agreed_leading, leads=True) + (
            self._disagreeing(link, link.following, beat.leading, link.agreed_following, leads=False)
        )

    def _disagreeing(
        self, link: _Link, ours: list[int], theirs: Sequence[int], agreed: list[int], *, leads: bool
    ) -> list[int]:
        stale: set[int] = set()
        for bucket in range(BUCKETS):
            if ours[bucket] == theirs[bucket]:
                agreed[bucket] = self.now
            elif self.now - agreed[bucket] > self.disagree_ticks:
                stale.add(bucket)
        if not stale:
            return []
        return [
            one.group_id
            for one in link.groups.values()
            if one.leads is leads and one.bucket in stale and self.now - one.since > self.disagree_ticks
        ]

    def _owes_beat(self, link: _Link) -> bool:
        """It told us of quiet groups: it must hear that we live, and that we know of none."""
        return self.now - link.busy_beat <= self.silent_ticks

    def tick(self) -> Verdict:
        self.now += 1
        verdict = Verdict()
        for process, link in list(self._links.items()):
            if link.groups:
                if not link.silent and self.now - link.heard >= self.silent_ticks:
                    link.silent = True
                    for one in link.groups.values():
                        (verdict.doubt if one.leads else verdict.wake).append(one.group_id)
            elif not self._owes_beat(link):
                del self._links[process]
                continue
            if self.now % self.beat_ticks == 0:
                verdict.beats.append((process, encode_beat(Beat(link.leading, link.following))))
        return verdict

    def check(self) -> None:
        """Invariants; tests call it after every step."""
        for link in self._links.values():
            for leads, sums in ((True, link.leading), (False, link.following)):
                expected = [0] * BUCKETS
                for one in link.groups.values():
                    assert self._resting[one.group_id] is one
                    for _, other, value in one.digests:
                        if other is link and one.leads is leads:
                            expected[one.bucket] ^= value
                assert sums == expected
