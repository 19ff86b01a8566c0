"""Which led regions a heartbeat reports (CO-12: a coordinator that knows nothing learns it again)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from nokv.raftstore.control import LeaderReport
from nokv.raftstore.reporting import LeaderReports
from nokv.region import Peer, Region, RegionEpoch

MEMBER = Peer(101, 1)


@dataclass
class Led:
    """What `LeaderReports` looks at of a peer."""

    region_id: int
    term: int = 1
    conf_version: int = 1
    is_leader: bool = True
    hosted: bool = True
    leader: Peer | None = MEMBER
    applied: Any = field(default_factory=lambda: type("Applied", (), {"index": 7}))

    @property
    def region(self) -> Region:
        return Region(self.region_id, epoch=RegionEpoch(self.conf_version, 1), peers=(MEMBER,))


def heartbeat(reports: LeaderReports, led: list[Led], *, arrives: bool = True) -> list[list[int]]:
    sent = []
    for message in reports.due(cast(Any, led)):
        sent.append([report.region.region_id for report in message])
        if arrives:
            reports.told(message)
    return sent


def test_news_goes_at_once_and_the_rest_in_turn() -> None:
    led = [Led(region_id) for region_id in range(1, 8)]
    reports = LeaderReports(per_heartbeat=3)
    assert heartbeat(reports, led) == [[1, 2, 3], [4, 5, 6], [7]]
    assert [heartbeat(reports, led) for _ in range(3)] == [[[1, 2, 3]], [[4, 5, 6]], [[7, 1, 2]]]
    led[3].term = 2
    led[5].conf_version = 2
    assert heartbeat(reports, led) == [[4, 6, 3]]
    assert heartbeat(reports, led) == [[5, 7, 1]]


def test_what_did_not_arrive_is_still_news() -> None:
    led = [Led(1), Led(2)]
    reports = LeaderReports(per_heartbeat=10)
    assert heartbeat(reports, led, arrives=False) == [[1, 2]]
    assert heartbeat(reports, led) == [[1, 2]]
    sent = reports.due(cast(Any, [Led(1, term=2), Led(2)]))
    assert [(r.region.region_id, r.term, r.applied_index) for r in next(sent)] == [(1, 2, 7), (2, 1, 7)]


def test_a_region_that_is_led_elsewhere_is_forgotten_and_news_when_it_comes_back() -> None:
    reports = LeaderReports(per_heartbeat=1)
    led = [Led(1), Led(2), Led(3)]
    heartbeat(reports, led)
    assert heartbeat(reports, led[:2]) == [[1]]
    assert heartbeat(reports, led) == [[3]]
    assert heartbeat(reports, []) == []
    assert heartbeat(reports, [Led(1, leader=None)]) == []


def test_leadership_that_is_lost_between_two_messages_is_not_reported() -> None:
    led = [Led(1), Led(2)]
    sent = LeaderReports(per_heartbeat=1).due(cast(Any, led))
    first = next(sent)
    assert first == [LeaderReport(led[0].region, MEMBER, 1, 7)]
    led[1].is_leader = False
    assert list(sent) == []
