"""Which of the regions that a store leads its next heartbeat reports: those with news, and some of the rest in turn.

The rest is for coordinators that started meanwhile: they know nothing, and nobody has to notice. So a region that does
nothing is reported every `len(led) / PER_HEARTBEAT` heartbeats, and a heartbeat costs the same however many there are.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from nokv.raftstore.control import LeaderReport
from nokv.region import RegionEpoch

if TYPE_CHECKING:
    from nokv.raftstore.peer import StorePeer

__all__ = ["PER_HEARTBEAT", "LeaderReports"]

PER_HEARTBEAT = 1_000
"""Reports in one message; a second one follows only if more than that have news."""


class LeaderReports:
    def __init__(self, per_heartbeat: int = PER_HEARTBEAT) -> None:
        self._per_heartbeat = per_heartbeat
        self._told: dict[int, tuple[int, RegionEpoch]] = {}  # region -> (term, epoch); the longest untold first

    def due(self, led: Iterable[StorePeer]) -> Iterator[list[LeaderReport]]:
        """Messages to send, one after the other; call `told` for each that arrived."""
        peers = {peer.region_id: peer for peer in led if peer.leader is not None}
        for region_id in [known for known in self._told if known not in peers]:
            del self._told[region_id]  # led elsewhere; news if it comes back
        news = [one for one in peers if self._told.get(one) != (peers[one].term, peers[one].region.epoch)]
        if len(news) < self._per_heartbeat:
            changed = set(news)
            resting = (region_id for region_id in self._told if region_id not in changed)
            news += islice(resting, self._per_heartbeat - len(news))
        for at in range(0, len(news), self._per_heartbeat):
            reports = [_report(peers[region_id]) for region_id in news[at : at + self._per_heartbeat]]
            if left := [report for report in reports if report is not None]:
                yield left

    def told(self, reports: Sequence[LeaderReport]) -> None:
        for report in reports:
            self._told.pop(report.region.region_id, None)
            self._told[report.region.region_id] = (report.term, report.region.epoch)


def _report(peer: StorePeer) -> LeaderReport | None:
    """None if it has lost the leadership since."""
    leader = peer.leader
    if leader is None or not (peer.hosted and peer.is_leader):
        return None
    return LeaderReport(peer.region, leader, peer.term, peer.applied.index)
