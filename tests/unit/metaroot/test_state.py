"""The truth's rules, one by one, and as a model: whatever is thrown at it, `state == fold(log)`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.errors import EpochNotMatch, InvariantError, NoKVError, NotFound, PreconditionFailed, UsageError
from nokv.metaroot.changes import FINISHED_MAX
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
    HandoffReattached,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    PeerAdded,
    PeerAdditionCancelled,
    PeerAdditionPlanned,
    PeerRemovalCancelled,
    PeerRemovalPlanned,
    PeerRemoved,
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
    RootRecord,
    RootToken,
    StoreJoined,
    StoreLeft,
    TransitionPhase,
    addition_id,
    removal_id,
)
from nokv.metaroot.retention import RecordLog, check_chain
from nokv.metaroot.state import RootState, fold
from nokv.metaroot.wire import state_chunks, state_from_pb
from nokv.region import Peer, PeerRole, Region, RegionEpoch, Store, StoreState

S1, S2, S3 = (Store(i, f"127.0.0.1:{20160 + i}") for i in (1, 2, 3))
P1, P2, P3 = (Peer(100 + i, i) for i in (1, 2, 3))
WHOLE = Region(1, b"", b"", RegionEpoch(1, 1), (P1,))
WITH_P2 = WHOLE.with_peers((P1, P2))


class Log:
    """A log with its state, so that every test also checks atomicity and the invariants."""

    def __init__(self) -> None:
        self.state = RootState()
        self.records: list[RootRecord] = []
        self.index = 0

    def append(self, *events: RootEvent, expected_revision: int = 0) -> int:
        self.index += 1
        before = self.state.copy()
        try:
            new = self.state.apply(events, term=1, index=self.index, expected_revision=expected_revision)
        except NoKVError:
            assert self.state == before  # MR-08: atomic per batch
            self.state.check()
            raise
        self.records += new
        self.state.check()
        return len(new)


@pytest.fixture
def log() -> Log:
    log = Log()
    log.append(StoreJoined(S1), StoreJoined(S2), StoreJoined(S3), RegionBootstrapped(WHOLE))
    return log


def test_revisions_are_dense_and_fold_gives_the_state(log: Log) -> None:
    assert [r.token.revision for r in log.records] == [1, 2, 3, 4]
    assert log.state.last == RootToken(4, 1, 1)
    assert fold(log.records) == log.state  # MR-01
    assert (log.state.membership_epoch, log.state.cluster_epoch) == (3, 1)


def test_a_repeated_event_takes_no_revision(log: Log) -> None:
    assert log.append(StoreJoined(S1), RegionBootstrapped(WHOLE)) == 0
    assert log.state.last.revision == 4


def test_a_batch_is_all_or_nothing(log: Log) -> None:
    with pytest.raises(PreconditionFailed):
        log.append(StoreJoined(Store(9, "x:1")), RegionBootstrapped(Region(2, b"", b"m", peers=(Peer(7, 2),))))
    assert 9 not in log.state.stores


def test_expected_revision(log: Log) -> None:
    assert log.append(StoreJoined(Store(9, "x:1")), expected_revision=4) == 1
    with pytest.raises(PreconditionFailed, match="revision 5"):
        log.append(StoreJoined(Store(10, "x:2")), expected_revision=4)
    assert log.append(StoreJoined(Store(9, "x:1")), expected_revision=4) == 0  # the retry of an append that got through


def test_validate_changes_nothing(log: Log) -> None:
    before = log.state.copy()
    assert log.state.validate([StoreJoined(Store(9, "x:1"))]) is True
    assert log.state.validate([StoreJoined(S1)]) is False
    with pytest.raises(NotFound):
        log.state.validate([StoreJoined(Store(9, "x:1")), StoreLeft(77)])
    assert log.state == before
    log.state.check()


PLAN_P2 = PeerAdditionPlanned("a", P2, WITH_P2)
WITH_P3 = WHOLE.with_peers((P1, P3))
WITH_P2_FACT = PeerAdded("fact", P2, WITH_P2)
WITHOUT_P2 = WITH_P2.with_peers((P1,))
DROP_P2 = RegionPublished(WITHOUT_P2)
PLAN_P2_AGAIN = PeerAdditionPlanned("again", Peer(9, 2), WITHOUT_P2.with_peers((P1, Peer(9, 2))))
REFUSED: list[tuple[str, list[RootEvent], RootEvent, type[NoKVError]]] = [
    ("store id zero", [], StoreJoined(Store(0, "x:1")), UsageError),
    ("store without address", [], StoreJoined(Store(9, "")), UsageError),
    ("store joins as tombstone", [], StoreJoined(Store(9, "x:1", StoreState.TOMBSTONE)), UsageError),
    ("unknown store leaves", [], StoreLeft(9), NotFound),
    ("peer on a leaving store", [WITH_P2_FACT, StoreLeft(2), DROP_P2], PLAN_P2_AGAIN, PreconditionFailed),
    ("store id used again", [StoreLeft(3)], StoreJoined(S3), PreconditionFailed),
    ("duplicate region", [], RegionBootstrapped(Region(1, b"a", b"b", peers=(P1,))), PreconditionFailed),
    ("overlap", [], RegionBootstrapped(Region(2, b"a", b"b", peers=(P2,))), PreconditionFailed),
    ("reversed range", [], RegionBootstrapped(Region(2, b"b", b"a", peers=(P2,))), UsageError),
    ("no peers", [], RegionBootstrapped(Region(2)), UsageError),
    ("same peer twice", [], RegionBootstrapped(Region(2, peers=(P1, Peer(101, 2)))), UsageError),
    ("two peers on a store", [], RegionBootstrapped(Region(2, peers=(P1, Peer(9, 1)))), UsageError),
    ("unknown store", [], RegionPublished(WHOLE.with_peers((P1, Peer(9, 9)))), PreconditionFailed),
    ("unknown region", [], RegionPublished(Region(2, peers=(P1,))), NotFound),
    ("stale epoch", [RegionPublished(WITH_P2)], RegionPublished(WHOLE), EpochNotMatch),
    ("peers without epoch", [], RegionPublished(Region(1, peers=(P1, P2))), EpochNotMatch),
    ("range without epoch", [], RegionPublished(Region(1, b"", b"m", peers=(P1,))), EpochNotMatch),
    ("dead region", [RegionTombstoned(WHOLE)], RegionPublished(WITH_P2), PreconditionFailed),
    ("dead id again", [RegionTombstoned(WHOLE)], RegionBootstrapped(WHOLE), PreconditionFailed),
    ("plan without id", [], PeerAdditionPlanned("", P2, WITH_P2), UsageError),
    ("plan without effect", [], PeerAdditionPlanned("t", P3, WITH_P2), UsageError),
    ("plan below epoch", [RegionPublished(WITH_P2)], PLAN_P2, EpochNotMatch),
    ("conflicting pending change", [PLAN_P2], PeerAdditionPlanned("b", P3, WITH_P3), PreconditionFailed),
    ("removal of a stranger", [], PeerRemovalPlanned("t", P3, WHOLE.with_peers((P1,))), PreconditionFailed),
    ("removal that keeps", [], PeerRemovalPlanned("t", P1, WHOLE.with_peers((P1,))), UsageError),
    ("cancel nothing", [], PeerAdditionCancelled("t", 1), PreconditionFailed),
    ("cancel what is done", [PLAN_P2, PeerAdded("a", P2, WITH_P2)], PeerAdditionCancelled("a", 1), PreconditionFailed),
    ("cancel as the other", [PLAN_P2], PeerRemovalCancelled("a", 1), UsageError),
    ("fence without era", [], AllocatorFenced(Allocator.ID, 10, 1), PreconditionFailed),
    ("lease without holder", [], LeaseGranted("", "", 1, 1000), UsageError),
    ("era skipped", [], LeaseGranted("a", "", 2, 1000), PreconditionFailed),
]


@pytest.mark.parametrize(("setup", "event", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refusals(log: Log, setup: list[RootEvent], event: RootEvent, error: type[NoKVError]) -> None:  # MR-08
    for step in setup:
        log.append(step)
    with pytest.raises(error):
        log.append(event)
    assert fold(log.records) == log.state


def test_a_peer_change_from_plan_to_end(log: Log) -> None:
    name = addition_id(WHOLE, P2)
    assert name == addition_id(WHOLE, P2)  # MR-10: deterministic
    log.append(PeerAdditionPlanned(name, P2, WITH_P2))
    assert log.append(PeerAdditionPlanned(name, P2, WITH_P2)) == 0
    assert log.state.pending[1].transition_id == name
    assert log.append(PeerAdded(name, P2, WITH_P2)) == 1
    assert not log.state.pending
    assert log.state.regions[1] == WITH_P2
    assert log.state.finished[name].phase is TransitionPhase.COMPLETED
    assert log.append(PeerAdded(name, P2, WITH_P2)) == 0
    assert log.append(PeerAdditionPlanned(name, P2, WITH_P2)) == 0  # a late repeat of the plan
    without = WITH_P2.with_peers((P2,))
    log.append(PeerRemovalPlanned(removal_id(WITH_P2, P1), P1, without))
    log.append(PeerRemoved(removal_id(WITH_P2, P1), P1, without))
    assert log.append(PeerAdded(name, P2, WITH_P2)) == 0  # older than what is known, and included in it
    assert log.state.regions[1] == without
    assert fold(log.records) == log.state


def test_a_learner_is_added_and_then_promoted(log: Log) -> None:
    learner = Peer(102, 2, PeerRole.LEARNER)
    first = WHOLE.with_peers((P1, learner))
    log.append(PeerAdditionPlanned(addition_id(WHOLE, learner), learner, first))
    log.append(PeerAdded(addition_id(WHOLE, learner), learner, first))
    second = first.with_peers((P1, P2))
    log.append(PeerAdditionPlanned(addition_id(first, P2), P2, second))
    log.append(PeerAdded(addition_id(first, P2), P2, second))
    assert log.state.regions[1].peers == (P1, P2)


def test_cancel_then_plan_again(log: Log) -> None:
    name = addition_id(WHOLE, P2)
    log.append(PeerAdditionPlanned(name, P2, WITH_P2))
    log.append(PeerAdditionCancelled(name, 1))
    assert log.append(PeerAdditionCancelled(name, 1)) == 0
    assert log.append(PeerAdditionPlanned(name, P2, WITH_P2)) == 1
    assert log.append(PeerAdded(name, P2, WITH_P2)) == 1
    assert fold(log.records) == log.state


def test_what_a_region_did_without_a_plan_is_still_a_fact(log: Log) -> None:
    assert log.append(PeerAdded("unplanned", P2, WITH_P2)) == 1
    assert log.append(RegionPublished(WITH_P2.with_peers((P1, P2, P3)))) == 1


def test_publishing_what_a_plan_asked_for_ends_the_plan(log: Log) -> None:
    log.append(PLAN_P2)
    log.append(RegionPublished(WITH_P2))
    assert not log.state.pending
    assert log.append(PeerAdded("a", P2, WITH_P2)) == 0


def test_bootstrap_again_after_the_region_moved_on(log: Log) -> None:
    log.append(RegionPublished(WITH_P2))
    assert log.append(RegionBootstrapped(WHOLE)) == 0


def test_two_regions_and_lookup(log: Log) -> None:
    left = Region(1, b"", b"m", RegionEpoch(1, 2), (P1,))
    right = Region(2, b"m", b"", RegionEpoch(1, 2), (Peer(7, 1),))
    log.append(RegionPublished(left), RegionBootstrapped(right))
    assert log.state.region_by_key(b"a") == left
    assert log.state.region_by_key(b"m") == right
    log.append(RegionTombstoned(right))
    assert log.state.region_by_key(b"m") is None
    assert log.state.region(2) is None
    assert log.state.largest_id() == 101


def test_a_store_with_peers_is_offline_until_they_are_gone(log: Log) -> None:
    log.append(PeerAdded("a", P2, WITH_P2))
    assert log.append(StoreLeft(2)) == 1
    assert log.append(StoreLeft(2)) == 0
    assert log.state.stores[2].state is StoreState.OFFLINE
    assert log.append(StoreJoined(S2)) == 0  # a restart does not bring it back
    assert log.append(StoreJoined(Store(2, "moved:1"))) == 1
    assert log.state.stores[2] == Store(2, "moved:1", StoreState.OFFLINE)
    log.append(RegionPublished(WITH_P2.with_peers((P1,))))
    log.append(StoreLeft(2))
    assert log.state.stores[2].state is StoreState.TOMBSTONE
    assert fold(log.records) == log.state


def test_a_store_without_peers_may_leave(log: Log) -> None:
    log.append(StoreLeft(3))
    assert log.append(StoreLeft(3)) == 0
    assert log.state.stores[3].state is StoreState.TOMBSTONE


# -- the lease --------------------------------------------------------------------------------------------------------
def test_the_life_of_eras(log: Log) -> None:  # CO-13
    log.append(LeaseGranted("a", "a:1", 1, 1000))
    with pytest.raises(PreconditionFailed, match="not serving"):
        log.append(AllocatorFenced(Allocator.ID, 10, 1))
    log.append(HandoffConfirmed("a", 1, 1, 1))
    log.append(AllocatorFenced(Allocator.ID, 10, 1), AllocatorFenced(Allocator.TSO, 99, 1))
    assert log.append(AllocatorFenced(Allocator.ID, 10, 1)) == 0
    with pytest.raises(PreconditionFailed, match="go back"):
        log.append(AllocatorFenced(Allocator.ID, 9, 1))
    assert log.append(LeaseRenewed("a", 1, 1000, 5)) == 1
    assert log.append(LeaseRenewed("a", 1, 1000, 5)) == 1  # a sign of life is always news
    with pytest.raises(PreconditionFailed, match="not sealed"):  # primacy
        log.append(LeaseGranted("b", "b:1", 2, 1000))
    with pytest.raises(PreconditionFailed):
        log.append(LeaseSealed(1, 5, 99), LeaseGranted("b", "b:1", 2, 1000))
    log.append(LeaseSealed(1, 10, 99), LeaseGranted("b", "b:1", 2, 1000))
    assert log.append(LeaseSealed(1, 10, 99), LeaseGranted("b", "b:1", 2, 1000)) == 0
    for late in (AllocatorFenced(Allocator.ID, 20, 1), LeaseRenewed("a", 1, 1000), LeaseReleased("a", 1)):  # silence
        with pytest.raises(PreconditionFailed):
            log.append(late)
    with pytest.raises(PreconditionFailed):  # inheritance
        log.append(HandoffConfirmed("b", 2, 9, 99))
    with pytest.raises(PreconditionFailed, match="not confirmed"):
        log.append(HandoffClosed("b", 2))
    with pytest.raises(PreconditionFailed, match="belongs to"):
        log.append(HandoffConfirmed("a", 2, 10, 99))
    log.append(HandoffConfirmed("b", 2, 10, 99))
    log.append(HandoffClosed("b", 2))  # finality
    assert log.state.sealed is None
    assert log.append(HandoffClosed("b", 2)) == 0
    log.append(LeaseReleased("b", 2))
    with pytest.raises(PreconditionFailed):
        log.append(AllocatorFenced(Allocator.ID, 20, 2))
    assert fold(log.records) == log.state


def test_a_successor_that_dies_before_it_confirms(log: Log) -> None:
    log.append(LeaseGranted("a", "a:1", 1, 1000), HandoffConfirmed("a", 1, 1, 1))
    log.append(AllocatorFenced(Allocator.ID, 10, 1))
    log.append(LeaseSealed(1, 10, 1), LeaseGranted("b", "b:1", 2, 1000))
    log.append(LeaseSealed(2, 10, 1), LeaseGranted("c", "c:1", 3, 1000))
    log.append(HandoffConfirmed("c", 3, 10, 1))
    with pytest.raises(PreconditionFailed, match="reattach"):  # finality: era 2's hand-over must not be forgotten
        log.append(HandoffClosed("c", 3))
    log.append(HandoffReattached("c", 3), HandoffClosed("c", 3))
    assert log.append(HandoffReattached("c", 3)) == 0
    assert log.state.sealed is None
    assert log.state.lease is not None and log.state.lease.holder == "c"
    assert fold(log.records) == log.state


def test_the_memory_of_ended_changes_is_bounded(log: Log) -> None:
    for n in range(FINISHED_MAX + 5):
        log.append(PeerAdditionPlanned(f"t{n}", P2, WITH_P2), PeerAdditionCancelled(f"t{n}", 1))
    assert len(log.state.finished) == FINISHED_MAX
    assert "t4" not in log.state.finished
    assert fold(log.records) == log.state


def test_replay_refuses_a_hole(log: Log) -> None:
    with pytest.raises(InvariantError):
        fold(log.records[1:])


# -- anything goes ----------------------------------------------------------------------------------------------------
KEYS = st.sampled_from([b"", b"a", b"c", b"m", b"z"])
PEERS = st.builds(Peer, st.integers(1, 4), st.integers(1, 4), st.sampled_from(PeerRole))
REGIONS = st.builds(
    Region,
    st.integers(1, 4),
    KEYS,
    KEYS,
    st.builds(RegionEpoch, st.integers(1, 4), st.integers(1, 3)),
    st.lists(PEERS, max_size=3).map(tuple),
)
NAMES = st.sampled_from(["", "t1", "t2"])
HOLDERS = st.sampled_from(["a", "b"])
SMALL = st.integers(0, 5)
EVENTS: st.SearchStrategy[RootEvent] = st.one_of(
    st.builds(StoreJoined, st.builds(Store, st.integers(0, 4), st.sampled_from(["x:1", "x:2"]))),
    st.builds(StoreLeft, st.integers(0, 4)),
    st.builds(AllocatorFenced, st.sampled_from(Allocator), SMALL, SMALL),
    st.builds(RegionBootstrapped, REGIONS),
    st.builds(RegionPublished, REGIONS),
    st.builds(RegionTombstoned, REGIONS),
    st.builds(PeerAdditionPlanned, NAMES, PEERS, REGIONS),
    st.builds(PeerAdded, NAMES, PEERS, REGIONS),
    st.builds(PeerAdditionCancelled, NAMES, SMALL),
    st.builds(PeerRemovalPlanned, NAMES, PEERS, REGIONS),
    st.builds(PeerRemoved, NAMES, PEERS, REGIONS),
    st.builds(PeerRemovalCancelled, NAMES, SMALL),
    st.builds(RegionSplitPlanned, NAMES, REGIONS, REGIONS),
    st.builds(RegionSplitCommitted, NAMES, REGIONS, REGIONS),
    st.builds(RegionSplitCancelled, NAMES, SMALL),
    st.builds(RegionMergePlanned, NAMES, REGIONS, REGIONS),
    st.builds(RegionMergeCommitted, NAMES, REGIONS, REGIONS),
    st.builds(RegionMergeCancelled, NAMES, SMALL),
    st.builds(LeaseGranted, HOLDERS, st.just("x:1"), SMALL, SMALL),
    st.builds(LeaseRenewed, HOLDERS, SMALL, SMALL),
    st.builds(LeaseReleased, HOLDERS, SMALL),
    st.builds(LeaseSealed, SMALL, SMALL, SMALL),
    st.builds(HandoffConfirmed, HOLDERS, SMALL, SMALL, SMALL),
    st.builds(HandoffClosed, HOLDERS, SMALL),
    st.builds(HandoffReattached, HOLDERS, SMALL),
)


def likely_event(state: RootState, draw: st.DataObject) -> RootEvent:
    """One that the state may well accept: the random ones above are refused almost always."""
    lease, live = state.lease, sorted(r.region_id for r in state.ranges.overlapping(b"", b""))
    kinds = ["store", "fence", "confirm", "close", "seal", "renew", "release", "bootstrap", "any"]
    kinds += ["peer", "remove", "split", "merge", "publish", "tombstone", "end"] * (2 if live else 0)
    kind = draw.draw(st.sampled_from(kinds))
    name = draw.draw(st.sampled_from(["t1", "t2", "t3", "t4"]))
    number = draw.draw(st.integers(1, 9))
    era, holder = (lease.era, lease.holder) if lease is not None else (state.era + 1, draw.draw(HOLDERS))
    ids = (max(state.id_fence, 1) + number % 3, max(state.tso_fence, 1) + number % 4)
    if kind in ("peer", "remove", "split", "merge", "publish", "tombstone", "end"):
        return region_event(state, state.regions[draw.draw(st.sampled_from(live))], kind, name, number, draw)
    match kind:
        case "store":
            return StoreJoined(Store(number % 5 + 1, f"s:{number}"))
        case "fence":
            return AllocatorFenced(Allocator.TSO, ids[1], era)
        case "confirm":
            return HandoffConfirmed(holder, era, *ids) if lease is not None else LeaseGranted(holder, "x:1", era, 9)
        case "close":
            return HandoffClosed(holder, era) if number % 2 else HandoffReattached(holder, era)
        case "seal":
            return LeaseSealed(era, state.id_fence, state.tso_fence)
        case "renew":
            return LeaseRenewed(holder, era, 5)
        case "release":
            return LeaseReleased(holder, era)
        case "bootstrap":
            return RegionBootstrapped(Region(number, draw.draw(KEYS), draw.draw(KEYS), peers=(Peer(50 + number, 1),)))
    return draw.draw(EVENTS)


def region_event(state: RootState, region: Region, kind: str, name: str, number: int, draw: st.DataObject) -> RootEvent:
    epoch, bump = region.epoch, number % 2 + 1
    later = RegionEpoch(epoch.conf_version + bump, epoch.version)
    wider = RegionEpoch(epoch.conf_version, epoch.version + bump)
    done = draw.draw(st.booleans())
    match kind:
        case "peer":
            peer = Peer(60 + number, number % 3 + 1)
            after = Region(region.region_id, region.start_key, region.end_key, later, (*region.peers, peer))
            return PeerAdded(name, peer, after) if done else PeerAdditionPlanned(name, peer, after)
        case "remove":
            peer = region.peers[0]
            after = Region(region.region_id, region.start_key, region.end_key, later, region.peers[1:])
            return PeerRemoved(name, peer, after) if done else PeerRemovalPlanned(name, peer, after)
        case "split":
            key = draw.draw(KEYS)
            parent = Region(region.region_id, region.start_key, key, wider, region.peers)
            peers = tuple(Peer(70 + number + p.peer_id, p.store_id) for p in region.peers)
            child = Region(10 + number, key, region.end_key, wider, peers)
            return RegionSplitCommitted(name, parent, child) if done else RegionSplitPlanned(name, parent, child)
        case "merge":
            ordered = [r for r in state.ranges.overlapping(b"", b"") if r.region_id != region.region_id]
            if not ordered:
                return RegionMergeCancelled(name, region.region_id)
            source = draw.draw(st.sampled_from(ordered))
            wider = RegionEpoch(epoch.conf_version, max(epoch.version, source.epoch.version) + bump)
            start = min(region.start_key, source.start_key)
            end = b"" if not region.end_key or not source.end_key else max(region.end_key, source.end_key)
            after = Region(region.region_id, start, end, wider, region.peers)
            return RegionMergeCommitted(name, after, source) if done else RegionMergePlanned(name, after, source)
        case "publish":
            return RegionPublished(Region(region.region_id, region.start_key, region.end_key, later, region.peers))
        case "tombstone":
            return RegionTombstoned(region)
    ended = (PeerAdditionCancelled, PeerRemovalCancelled, RegionSplitCancelled, RegionMergeCancelled)
    pending = state.pending.get(region.region_id) or state.pending_ranges.get(region.region_id)
    return ended[number % 4](pending.transition_id if pending is not None else name, region.region_id)


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(1, 60))
def test_likely_histories_fold(draw: st.DataObject, length: int) -> None:  # MR-01, MR-02, MR-08
    log = Log()
    log.append(*(StoreJoined(Store(i, f"s:{i}")) for i in (1, 2, 3)))
    kept = RecordLog(retain_max=1_000, horizon=3)
    kept.extend(log.records)
    known = len(log.records)
    for _ in range(length):
        batch = [likely_event(log.state, draw) for _ in range(draw.draw(st.integers(1, 2)))]
        try:
            log.append(*batch)
        except (PreconditionFailed, EpochNotMatch, NotFound, UsageError):
            pass
        kept.extend(log.records[known:])
        known = len(log.records)
    assert fold(log.records) == log.state
    assert fold(kept) == log.state  # what retention folded away changes nothing
    assert check_chain(list(kept), log.state.last.revision)
    assert state_from_pb(*(chunk for chunk, _ in state_chunks(log.state, 1))) == log.state


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(EVENTS, min_size=1, max_size=4), max_size=30))
def test_state_equals_fold_of_log(batches: list[list[RootEvent]]) -> None:  # MR-01, MR-08
    log = Log()
    log.append(*(StoreJoined(Store(i, f"s:{i}")) for i in (1, 2, 3)))
    fences = (0, 0)
    for batch in batches:
        try:
            log.append(*batch)
        except (PreconditionFailed, EpochNotMatch, NotFound, UsageError):
            pass
        assert log.state.id_fence >= fences[0]
        assert log.state.tso_fence >= fences[1]
        fences = (log.state.id_fence, log.state.tso_fence)
    assert fold(log.records) == log.state
    assert [r.token.revision for r in log.records] == list(range(1, len(log.records) + 1))
