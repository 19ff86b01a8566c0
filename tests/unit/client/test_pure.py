from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nokv.client.retry import Action, Backoff, RegionErrorKind, judge
from nokv.client.routes import Route, RouteCache
from nokv.errors import Indeterminate, NotSupported
from nokv.pb import kv_pb2
from nokv.region import Peer, PeerRole, Region, RegionEpoch

KEYS = st.binary(max_size=2)


def test_region_error_numbers_are_those_of_the_proto() -> None:
    proto = {name.removeprefix("REGION_ERROR_"): number for name, number in kv_pb2.RegionErrorKind.items()}
    del proto["NONE"]
    assert {kind.name: kind.value for kind in RegionErrorKind} == proto


def test_only_reads_repeat_what_is_indeterminate() -> None:
    assert judge(8, "", write=True).action is Action.FAIL
    assert judge(8, "", write=False).action is Action.AGAIN
    assert isinstance(judge(99, "", write=True).error, Indeterminate)
    assert isinstance(judge(99, "", write=False).error, NotSupported)


@given(st.integers(0, 2**32))
def test_backoff_doubles_up_to_its_cap(seed: int) -> None:
    backoff = Backoff(random.Random(seed).randrange, base_ms=8, cap_ms=100)
    for limit_ms in (8, 16, 32, 64, 100, 100):
        assert limit_ms / 2000 <= backoff.next_s() <= limit_ms / 1000


@given(st.lists(st.tuples(KEYS, KEYS, st.integers(1, 4), st.integers(1, 3), st.booleans()), max_size=25), KEYS)
def test_the_cache_never_overlaps(steps: list[tuple[bytes, bytes, int, int, bool]], probe: bytes) -> None:
    cache = RouteCache()
    for start, end, region_id, version, insert in steps:
        if not insert:
            cache.invalidate(region_id)
            assert cache.by_id(region_id) is None
        elif not end or start < end:
            route = Route(Region(region_id, start, end, RegionEpoch(1, version)))
            if cache.insert(route):
                assert cache.find(start) is route
                assert cache.by_id(region_id) is route
        cache.check()
    found = cache.find(probe)
    assert found is None or found.region.contains(probe)
    before = cache.find_before(probe)
    if before is not None:
        assert before.region.start_key < probe or not probe
        assert not before.region.end_key or (probe and probe <= before.region.end_key)


def test_a_stale_route_does_not_replace_a_newer_one() -> None:
    cache = RouteCache()
    assert cache.insert(Route(Region(1, b"", b"m", RegionEpoch(1, 5))))
    assert not cache.insert(Route(Region(1, b"", b"", RegionEpoch(1, 4))))
    assert not cache.insert(Route(Region(2, b"a", b"", RegionEpoch(1, 4))))
    assert cache.insert(Route(Region(2, b"m", b"", RegionEpoch(1, 5))))
    assert len(cache) == 2


def test_candidates_begin_with_the_leader_and_leave_out_learners() -> None:
    peers = (Peer(11, 1), Peer(12, 2), Peer(13, 3, PeerRole.LEARNER), Peer(14, 4))
    region = Region(1, b"", b"", RegionEpoch(), peers)
    addresses = {1: "a:1", 2: "b:1", 3: "c:1"}
    assert Route(region, None, addresses).candidates() == [(1, "a:1"), (2, "b:1")]
    assert Route(region, peers[1], addresses).candidates() == [(2, "b:1"), (1, "a:1")]


def test_update_regions_keeps_addresses_across_a_split() -> None:
    cache = RouteCache()
    peers = (Peer(11, 1), Peer(12, 2))
    cache.insert(Route(Region(1, b"", b"", RegionEpoch(1, 1), peers), peers[1], {1: "a:1", 2: "b:1"}))
    cache.update_regions(
        [Region(1, b"", b"m", RegionEpoch(1, 2), peers), Region(2, b"m", b"", RegionEpoch(1, 2), peers)]
    )
    cache.check()
    for key in (b"a", b"z"):
        route = cache.find(key)
        assert route is not None
        assert route.addresses == {1: "a:1", 2: "b:1"}
        assert route.leader == peers[1]
