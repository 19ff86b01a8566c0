"""One and three stores over the simulated network: serve a promoted directory, expand, lose and regain replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nokv._ext import command
from nokv.errors import (
    Busy,
    EpochNotMatch,
    Indeterminate,
    NotLeader,
    PreconditionFailed,
    RegionNotFound,
    StoreNotMatch,
    UsageError,
)
from nokv.raftstore.membership import ChangeKind
from nokv.raftstore.peer import StorePeer
from nokv.raftstore.router import Router
from nokv.region import Peer, RegionEpoch
from tests.unit.raftstore.sim import Sim

PLAIN = {b"key-%04d" % i: b"value-%d" % i for i in range(300)}


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Sim]:
    sim = Sim(tmp_path)
    yield sim
    sim.check()
    sim.close()


def test_a_promoted_directory_serves_what_it_held(sim: Sim) -> None:
    sim.seed(PLAIN)
    assert sim.get([b"key-0000", b"key-0299", b"nothing"]) == [b"value-0", b"value-299", None]
    pairs, more = sim.scan(b"key-0010", b"key-0013")
    assert pairs == [(b"key-%04d" % i, b"value-%d" % i) for i in range(10, 13)] and not more
    assert sim.scan(limit=2) == ([(b"key-0000", b"value-0"), (b"key-0001", b"value-1")], True)


def test_writes_hide_plain_records_and_survive_a_restart(sim: Sim) -> None:
    store = sim.seed(PLAIN)
    ts = sim.put({b"key-0000": b"new", b"key-0001": None, b"long": b"L" * 5000})
    expected = [b"new", None, b"L" * 5000, b"value-2"]
    keys = [b"key-0000", b"key-0001", b"long", b"key-0002"]
    assert sim.get(keys) == expected
    assert sim.get(keys, ts=ts - 1) == [b"value-0", b"value-1", None, b"value-2"]
    store.restart()  # nothing was flushed: the raft log is the log
    assert sim.get(keys) == expected
    store.db.flush()
    sim.put({b"key-0002": b"later"})
    store.restart()
    assert sim.get(keys) == [*expected[:3], b"later"]
    assert sim.put({b"x": b"1"}) > ts


def test_requests_of_one_turn_become_one_entry(sim: Sim) -> None:
    store = sim.seed({})
    sim.leader()
    before = store.peer().applied.index
    answers = [sim.submit(store, write=True, commands=command.pack_puts([(b"k%d" % i, b"v")])) for i in range(50)]
    reads = [sim.submit(store, write=False, commands=command.pack_gets([b"k0"])) for _ in range(5)]
    sim.loop.run_until(lambda: all(answers) and all(reads))
    assert store.peer().applied.index == before + 1
    assert len({answer[0][2] for answer in answers}) == 50
    assert [command.unpack_results(answer[0][1]) for answer in answers] == [[1]] * 50


def test_every_refusal_is_typed(sim: Sim) -> None:  # RS-05, EX-01
    store = sim.seed(PLAIN)
    sim.leader()
    get = command.pack_gets([b"k"])
    for changes, error in (
        ({"store_id": 9}, StoreNotMatch),
        ({"region_id": 9}, RegionNotFound),
        ({"epoch": RegionEpoch(7, 7)}, EpochNotMatch),
    ):
        with pytest.raises(error):
            sim.call(store, write=False, commands=get, **changes)
    with pytest.raises(UsageError):
        sim.call(store, write=True, commands=get)
    too_large = command.pack_puts([(b"k", bytes(16 << 20))])
    with pytest.raises(UsageError, match="at most"):
        sim.call(store, write=True, commands=too_large)
    with pytest.raises(UsageError, match="minute in the future"):
        sim.get([b"k"], ts=1 << 63)
    outcomes = {admission.outcome.value for admission in store.store.diagnostics.last_refusal.values()}
    assert outcomes == {"invalid"}
    counted = {outcome.value for _, outcome in store.store.diagnostics.admissions}
    assert counted >= {"store-not-match", "not-hosted", "epoch-mismatch", "invalid"}


def test_expand_transfer_remove(sim: Sim) -> None:  # MIG-25, MIG-32, RS-13
    sim.seed(PLAIN)
    for store_id in (2, 3):
        sim.empty(store_id)
        sim.put({b"during-%d" % store_id: b"x" * 3000})
        sim.expand(store_id, store_id * 100 + 1)
    sim.put({b"key-0000": b"new", b"key-0001": None})
    sim.settle()
    assert len({store.digest() for store in sim.stores.values()}) == 1
    region = sim.leader().peer().region
    assert [(p.peer_id, p.role.value) for p in region.peers] == [(101, "voter"), (201, "voter"), (301, "voter")]
    assert region.epoch.conf_version == 5

    sim.stores[1].store.transfer_leader(1, 201)
    sim.loop.run_until(lambda: sim.stores[2].peer().serves_own_term)
    assert sim.get([b"key-0000", b"key-0001", b"key-0002"], at=sim.stores[2]) == [b"new", None, b"value-2"]
    with pytest.raises(NotLeader) as caught:
        sim.get([b"k"], at=sim.stores[1])
    assert caught.value.leader == Peer(201, 2)

    sim.change(ChangeKind.REMOVE, Peer(301, 0))
    sim.loop.run_until(lambda: not sim.stores[3].hosts())
    sim.stores[3].restart()
    sim.loop.run_for(5)
    assert not sim.stores[3].hosts()
    assert sim.stores[3].store.meta.regions() == []
    assert not list(sim.stores[3].db.scan(limit=1)) and not list(sim.stores[3].db.family("write").scan(limit=1))
    sim.expand(3, 302)  # a new incarnation on the same store
    sim.settle()
    assert sim.stores[3].digest() == sim.stores[2].digest()


def test_a_follower_that_was_away_catches_up_by_log_and_by_snapshot(sim: Sim) -> None:
    sim.seed(PLAIN)
    for store_id in (2, 3):
        sim.empty(store_id)
        sim.expand(store_id, store_id * 100 + 1)
    sim.stores[3].crash()
    for i in range(20):
        sim.put({b"key-%04d" % i: None, b"new-%d" % i: b"v" * 2000})
    sim.stores[3].start()
    sim.settle()
    assert sim.stores[3].digest() == sim.leader().digest()

    sim.stores[3].crash()
    for i in range(20, 40):
        sim.put({b"key-%04d" % i: None})
    leader = sim.leader()
    leader.db.flush()
    flushed = leader.store.meta.flushed_applied(1)
    assert flushed is not None and flushed.index == leader.peer().applied.index
    leader.peer().log.compact(flushed.index)
    installs = 0
    sim.stores[3].start()
    sim.put({b"after": b"1"})
    sim.settle()
    installs += sim.stores[3].store.snapshots.installs
    assert installs == 1
    assert sim.stores[3].digest() == sim.leader().digest()
    sim.stores[3].restart()
    sim.settle()
    assert sim.stores[3].digest() == sim.leader().digest()


def test_a_crash_before_publish_hosts_nothing_and_the_retry_works(sim: Sim) -> None:  # MIG-33
    sim.seed(PLAIN)
    target = sim.empty(2)
    target.may_die = True
    target.failpoints["snapshot-before-publish"] = RuntimeError("the process dies here")
    peer = Peer(201, 2)
    target.store.prepare_target(sim.leader().peer().region, peer, {1: "store-1"})
    sim.change(ChangeKind.ADD_LEARNER, peer, "store-2")
    sim.loop.run_until(lambda: target.fatal is not None)
    sim.put({b"meanwhile": b"1"})  # the quorum never depended on it
    target.crash()
    target.fatal = None
    target.start()
    assert not target.hosts() and target.store.meta.all_regions() == []
    sim.loop.run_until(target.hosts)
    sim.settle()
    assert target.digest() == sim.leader().digest()


def test_leadership_loss_is_indeterminate_for_proposed_writes(sim: Sim) -> None:  # RS-07
    sim.seed(PLAIN)
    for store_id in (2, 3):
        sim.empty(store_id)
        sim.expand(store_id, store_id * 100 + 1)
    old = sim.leader()
    sim.network.partition([old.store_id], [s for s in sim.stores if s != old.store_id])
    write = sim.submit(old, write=True, commands=command.pack_puts([(b"k", b"v")]), deadline_ms=60_000)
    read = sim.submit(old, write=False, commands=command.pack_gets([b"k"]), deadline_ms=60_000)
    sim.loop.run_until(lambda: bool(write) and bool(read))
    assert isinstance(write[0][0], Indeterminate)
    assert isinstance(read[0][0], NotLeader)
    sim.network.heal()
    sim.put({b"k2": b"v"})
    sim.settle()
    assert len({store.digest() for store in sim.stores.values()}) == 1


def test_deadlines(sim: Sim) -> None:
    sim.seed(PLAIN)
    for store_id in (2, 3):
        sim.empty(store_id)
        sim.expand(store_id, store_id * 100 + 1)
    old = sim.leader()
    sim.network.partition([old.store_id], [s for s in sim.stores if s != old.store_id])
    write = sim.submit(old, write=True, commands=command.pack_puts([(b"k", b"v")]), deadline_ms=200)
    read = sim.submit(old, write=False, commands=command.pack_gets([b"k"]), deadline_ms=200)
    sim.loop.run_for(0.5)
    assert type(write[0][0]).__name__ == "Indeterminate"
    assert type(read[0][0]).__name__ == "DeadlineExceeded"
    assert old.peer().outstanding == 0


def test_a_tick_costs_nothing_for_regions_that_nobody_waits_for(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    one = sim.seed(PLAIN)
    sim.put({b"k": b"v"})
    sim.loop.run_for(1.0)
    looked_at: list[int] = []
    monkeypatch.setattr(StorePeer, "expire", lambda peer, now: looked_at.append(peer.region_id))
    monkeypatch.setattr(Router, "__iter__", lambda router: pytest.fail("a walk over all peers"))
    one.store.tick()
    assert not looked_at and not one.store.leaderless() and len(one.store.leaders()) == 1
    monkeypatch.undo()


def test_membership_is_refused_with_a_reason(sim: Sim) -> None:
    sim.seed(PLAIN)
    sim.empty(2)
    leader = sim.leader()
    for kind, peer, text in (
        (ChangeKind.ADD_LEARNER, Peer(101, 2), "already"),
        (ChangeKind.ADD_LEARNER, Peer(201, 1), "already"),
        (ChangeKind.PROMOTE, Peer(9, 0), "not a member"),
        (ChangeKind.REMOVE, Peer(101, 0), "only voter"),
    ):
        with pytest.raises(PreconditionFailed, match=text):
            leader.store.plan(1, kind, peer)
    sim.change(ChangeKind.ADD_LEARNER, Peer(301, 3))  # a store that does not exist: nothing is lost
    with pytest.raises(Busy, match="snapshot"):
        leader.store.plan(1, ChangeKind.PROMOTE, Peer(301, 0))
    with pytest.raises(PreconditionFailed, match=r"not empty|hosts peer"):
        leader.store.prepare_target(leader.peer().region, Peer(401, 1), {})


def test_foreign_payload_is_rejected_alike_everywhere(sim: Sim) -> None:  # RS-08
    sim.seed(PLAIN)
    sim.empty(2)
    sim.expand(2, 201)
    sim.leader().host.propose(1, b"raw key value")
    sim.put({b"k": b"v"})
    sim.settle()
    assert [store.peer().rejected_entries for store in sim.stores.values()] == [1, 1]
    assert len({store.digest() for store in sim.stores.values()}) == 1


def test_a_read_at_a_timestamp_binds_later_leaders(sim: Sim) -> None:
    sim.seed(PLAIN)
    for store_id in (2, 3):
        sim.empty(store_id)
        sim.expand(store_id, store_id * 100 + 1)
    ts = (sim.loop.clock.time_ms() << 18) + 5
    assert sim.get([b"k"], ts=ts) == [None]
    sim.leader().store.transfer_leader(1, 301)
    sim.loop.run_until(lambda: sim.stores[3].peer().serves_own_term)
    assert sim.put({b"k": b"v"}, at=sim.stores[3]) > ts
    assert sim.get([b"k"], ts=ts) == [None]


def test_long_logs_are_cut_below_what_was_flushed(sim: Sim) -> None:
    from nokv.raftstore.store import StoreOptions

    store = sim.seed(PLAIN)
    store.store.options = StoreOptions(log_entries_max=20, log_entries_slack=5)
    for i in range(40):
        sim.put({b"k": b"%d" % i})
    store.store.compact_logs()
    assert store.peer().log.first_index() == 11  # nothing was flushed yet
    store.db.flush()
    store.store.compact_logs()
    assert store.peer().log.first_index() == store.peer().applied.index - 5 + 1
    store.restart()
    assert sim.get([b"k"]) == [b"39"]
