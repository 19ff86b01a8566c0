"""Three hosts in one process over the simulated network and real logs.

RAFT-07, -13, -14, -15, -17, TR-08, BENCH design rule (a)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import InvariantError, UsageError
from nokv.multiraft.host import MultiRaftHost
from nokv.raft.confchange import ConfChange, ConfChangeKind
from nokv.raft.types import Entry, MessageType, NodeRole
from nokv.testing.files import CrashFiles
from tests.unit.multiraft.cluster import Cluster, Machine, Node


def test_elect_and_replicate() -> None:
    cluster = Cluster()
    for i in range(20):
        cluster.propose(b"%d" % i)
    assert cluster.converge() == [b"%d" % i for i in range(20)]
    cluster.check()


def test_commits_long_before_the_next_tick() -> None:  # RAFT-13
    cluster = Cluster()
    leader = cluster.elect()
    cluster.propose(b"warm")
    ticks = leader.host.ticks
    for i in range(3):
        cluster.propose(b"%d" % i)
    assert leader.host.ticks <= ticks + 3


def test_one_turn_one_sync_for_all_groups_and_proposals() -> None:  # BENCH design rule (a)
    cluster = Cluster(groups=20)
    for node in cluster.nodes.values():
        for group_id in cluster.groups:
            node.host.campaign(group_id) if node.node_id == 1 else None
    cluster.loop.run_until(lambda: all(cluster.leader(g) is not None for g in cluster.groups))
    cluster.loop.run_for(0.5)
    leader = cluster.nodes[1]
    mine = [g for g in cluster.groups if leader.host.status(g).role is NodeRole.LEADER]
    assert len(mine) > 10
    syncs, records = leader.log.syncs, leader.log.records
    for group_id in mine:
        for i in range(50):
            leader.host.propose(group_id, b"%d" % i)
    cluster.loop.run_until(lambda: all(len(leader.machines[g].applied) == 50 for g in mine))
    assert leader.log.syncs - syncs <= 3
    assert leader.log.records - records <= 4 * len(mine)


def test_idle_groups_cost_no_turn_no_record_no_sync() -> None:
    cluster = Cluster(nodes=1, groups=2000)
    node = cluster.nodes[1]
    for group_id in cluster.groups:
        node.host.campaign(group_id)
    cluster.loop.run_until(lambda: node.host.stats()["groups_leading"] == 2000 and not node.host._dirty)
    cluster.loop.run_for(0.001)
    before = node.host.stats()
    events = cluster.loop.events
    cluster.loop.run_for(1.0)
    after = node.host.stats()
    for name in ("saves", "syncs", "log_records", "readies", "turns"):
        assert after[name] == before[name], name
    assert after["ticks"] - before["ticks"] == 100
    assert cluster.loop.events - events == 100  # one timer for all groups


def test_busy_group_does_not_touch_the_idle_ones() -> None:
    cluster = Cluster(nodes=1, groups=500)
    node = cluster.nodes[1]
    for group_id in cluster.groups:
        node.host.campaign(group_id)
    cluster.loop.run_until(lambda: node.host.stats()["groups_leading"] == 500 and not node.host._dirty)
    cluster.loop.run_for(0.001)
    readies = node.host.readies
    cluster.propose(b"x", 7)
    assert node.host.readies - readies <= 3


@pytest.mark.parametrize("disk", ["files", "power_loss"])
def test_kill_all_and_reopen_from_the_log(disk: str, tmp_path: Path) -> None:  # RAFT-14
    def files(node_id: int) -> tuple[Files, str]:
        return OsFiles(), str(tmp_path / f"{node_id}")

    cluster = Cluster(files=files if disk == "files" else None, groups=3)
    for i in range(10):
        for group_id in cluster.groups:
            cluster.propose(b"%d" % i, group_id)
    terms = {n.node_id: n.host.status(1).term for n in cluster.nodes.values()}
    dead = [cluster.kill(node_id) for node_id in cluster.voters]
    for node in dead:
        cluster.restart(node)
    for node in cluster.nodes.values():
        assert node.host.status(1).term >= terms[node.node_id]
    for group_id in cluster.groups:
        cluster.propose(b"after", group_id)
        assert cluster.converge(group_id) == [b"%d" % i for i in range(10)] + [b"after"]
    cluster.check()


def test_partition_minority_commits_nothing_and_converges() -> None:  # TR-08, RAFT-04
    cluster = Cluster()
    cluster.propose(b"before")
    old = cluster.elect()
    others = tuple(n for n in cluster.voters if n != old.node_id)
    cluster.network.partition([old.node_id], others)
    old.host.propose(1, b"lost")
    cluster.propose(b"won", among=others)
    assert b"lost" not in old.machines[1].applied and b"won" not in old.machines[1].applied
    cluster.network.heal()
    assert cluster.converge() == [b"before", b"won"]
    cluster.check()


def test_partition_asymmetric_leader_cannot_hear() -> None:
    cluster = Cluster()
    cluster.propose(b"a")
    old = cluster.elect()
    others = tuple(n for n in cluster.voters if n != old.node_id)
    for other in others:
        cluster.network.block(other, old.node_id)  # its messages leave, no answer comes back
    cluster.loop.run_until(lambda: old.host.status(1).role is not NodeRole.LEADER)  # check-quorum
    cluster.propose(b"b", among=others)
    cluster.network.heal()
    assert cluster.converge() == [b"a", b"b"]


@pytest.mark.parametrize("seed", range(6))
def test_message_loss_duplication_and_crashes(seed: int) -> None:
    dice = random.Random(seed)
    cluster = Cluster(seed, loss=0.1, duplication=0.2)
    expected = []
    for i in range(30):
        cluster.propose(b"%d" % i)
        expected.append(b"%d" % i)
        if dice.random() < 0.3:
            victim = cluster.kill(dice.choice(sorted(cluster.nodes)))
            cluster.loop.run_for(dice.random() * 0.3)
            cluster.restart(victim)
        cluster.check()
    cluster.network.loss = 0.0
    applied = cluster.converge()
    assert list(dict.fromkeys(applied)) == expected, f"seed {seed}"


@pytest.mark.parametrize("step", range(0, 60, 3))
def test_crash_between_each_pair_of_steps(step: int) -> None:  # RAFT-07
    """The leader loses power after `step` more events; what it acknowledged before survives."""
    cluster = Cluster(seed=step + 1)
    cluster.propose(b"acked")
    leader = cluster.elect()
    for i in range(4):
        leader.host.propose(1, b"%d" % i)
    for _ in range(step):
        cluster.loop.step()
    acked = list(leader.machines[1].applied)
    cluster.restart(cluster.kill(leader.node_id))
    cluster.propose(b"end")
    applied = cluster.converge()
    assert applied[: len(acked)] == acked
    assert applied[-1] == b"end"
    cluster.check()


def test_same_seed_same_trace() -> None:
    def run() -> int:
        cluster = Cluster(7, loss=0.1, duplication=0.1)
        for i in range(5):
            cluster.propose(b"%d" % i)
        return cluster.network.trace_hash

    assert run() == run()


def _lagging(cluster: Cluster) -> int:
    """A follower that needs a snapshot: it slept while the others compacted."""
    leader = cluster.elect()
    behind = next(n for n in cluster.voters if n != leader.node_id)
    rest = tuple(n for n in cluster.voters if n != behind)
    cluster.network.partition([behind], rest)
    for i in range(30):
        cluster.propose(b"%d" % i, among=rest)
    cluster.loop.run_for(0.1)
    for node_id in rest:
        machine = cluster.nodes[node_id].machines[1]
        cluster.nodes[node_id].log.group(1).compact(machine.applied_index - 2, machine.conf_state)
    return behind


def test_snapshot_brings_a_lagging_follower_up_and_survives_restart() -> None:
    cluster = Cluster()
    behind = _lagging(cluster)
    cluster.network.heal()
    assert cluster.converge() == [b"%d" % i for i in range(30)]
    node = cluster.nodes[behind]
    assert node.host.snapshots_installed == 1
    start = node.log.group(1).first_index()
    assert start > 11
    cluster.propose(b"after")
    cluster.converge()
    assert node.log.group(1).last_index() >= start


def test_first_snapshot_is_lost_and_sent_again() -> None:  # RAFT-15
    cluster = Cluster()
    behind = _lagging(cluster)
    cluster.network.heal()
    sent = cluster.elect().host.snapshots_failed
    original = cluster.network._stage
    failures = []

    def lose_once(*args: object) -> bool:
        cluster.network._stage = original  # type: ignore[method-assign]
        failures.append(args)
        return False

    cluster.network._stage = lose_once  # type: ignore[method-assign, assignment]
    assert cluster.converge() == [b"%d" % i for i in range(30)]
    assert failures and sum(n.host.snapshots_failed for n in cluster.nodes.values()) > sent
    assert cluster.nodes[behind].host.snapshots_installed == 1


def test_group_waits_for_its_snapshot_while_others_go_on() -> None:
    cluster = Cluster(groups=2)
    behind = _lagging(cluster)
    node = cluster.nodes[behind]
    node.machines[1].slow_install = True
    cluster.network.heal()
    cluster.loop.run_until(lambda: node.host._groups[1].held is not None)
    cluster.propose(b"other", 2)
    cluster.loop.run_until(lambda: node.machines[2].applied == [b"other"])
    saved = node.log.group(1).last_index()
    cluster.loop.run_for(0.2)
    assert node.log.group(1).last_index() == saved  # nothing of the group was saved meanwhile
    node.host.snapshot_installed(1)
    cluster.converge()
    with pytest.raises(UsageError):
        node.host.snapshot_installed(1)


def test_a_new_peer_joins_through_a_snapshot_as_learner() -> None:
    cluster = Cluster()
    _lagging(cluster)
    cluster.network.heal()
    cluster.converge()
    cluster.joinable.add(1)
    cluster.nodes[4] = Node(cluster, 4, CrashFiles(seed=99), "wal")
    leader = cluster.elect()
    leader.host.propose_conf_change(1, ConfChange(ConfChangeKind.ADD_LEARNER, 4))
    cluster.loop.run_until(lambda: 1 in cluster.nodes[4].machines)
    cluster.propose(b"for four")
    assert cluster.converge()[-1] == b"for four"
    assert cluster.nodes[4].host.status(1).is_learner
    dead = cluster.kill(4)
    node = cluster.restart(dead)
    assert node.log.group(1).initial_state()[1].learners == (4,)


def test_removed_group_stays_away() -> None:  # RS-13
    cluster = Cluster(groups=2)
    cluster.propose(b"x")
    node = cluster.nodes[3]
    node.host.remove_group(1)
    node.log.remove(1)
    rejected = node.host.messages_rejected
    cluster.loop.run_for(0.5)
    assert node.host.messages_rejected > rejected  # the others still write to it
    again = cluster.restart(cluster.kill(3))
    assert again.host.group_ids() == [2]
    with pytest.raises(UsageError):
        again.host.propose(1, b"x")


def test_proposals_without_a_leader_come_back() -> None:
    cluster = Cluster()
    node = cluster.nodes[1]
    node.host.propose(1, b"early")
    cluster.loop.run_until(lambda: bool(node.machines[1].dropped), timeout_s=0.005)
    assert node.machines[1].dropped == [b"early"]


def test_read_index_answers_after_a_quorum() -> None:  # RAFT-09
    cluster = Cluster()
    cluster.propose(b"x")
    leader = cluster.elect()
    leader.host.read_index(1, b"r1")
    machine = leader.machines[1]
    cluster.loop.run_until(lambda: bool(machine.reads))
    assert machine.reads[0].context == b"r1" and machine.reads[0].index <= machine.applied_index
    others = tuple(n for n in cluster.voters if n != leader.node_id)
    cluster.network.partition([leader.node_id], others)
    leader.host.read_index(1, b"r2")
    cluster.loop.run_for(1.0)
    assert len(machine.reads) == 1  # cut off: no answer, not a stale one


def test_failing_apply_stops_the_host_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    leader = cluster.elect()

    def broken(self: Machine, entries: list[Entry]) -> None:
        raise ValueError("cannot apply")

    victim = next(n for n in cluster.nodes.values() if n is not leader)
    monkeypatch.setattr(victim.machines[1], "apply", broken.__get__(victim.machines[1]), raising=False)
    leader.host.propose(1, b"x")
    cluster.loop.run_until(lambda: victim.fatal is not None)
    assert isinstance(victim.fatal, InvariantError) and isinstance(victim.fatal.__cause__, ValueError)
    saves = victim.log.saves
    cluster.propose(b"y")  # the replicas carry on
    assert victim.log.saves == saves
    with pytest.raises(InvariantError):
        victim.host.propose(1, b"z")


def test_a_failing_tick_stops_the_host_loudly() -> None:
    """Not only its group's: those behind it in the round would never tick again."""
    cluster = Cluster()
    victim = cluster.elect()
    victim.host.node(1).core.election_elapsed = None  # type: ignore[assignment]
    cluster.loop.run_until(lambda: victim.fatal is not None)
    assert isinstance(victim.fatal, InvariantError) and isinstance(victim.fatal.__cause__, TypeError)
    cluster.propose(b"y")  # the replicas carry on


def test_failed_sync_stops_before_anything_is_promised() -> None:
    cluster = Cluster()
    cluster.propose(b"x")
    leader = cluster.elect()
    victim = next(n for n in cluster.nodes.values() if n is not leader)

    def broken() -> None:
        raise OSError(5, "Input/output error")

    victim.log.sync = broken  # type: ignore[method-assign]
    sent: list[MessageType] = []
    network = victim.host._network
    original = network.send
    network.send = lambda node, messages: (  # type: ignore[method-assign]
        sent.extend(m.type for _, m in messages),
        original(node, messages),
    )[1]
    leader.host.propose(1, b"y")
    cluster.loop.run_until(lambda: victim.fatal is not None)
    assert MessageType.APP_RESP not in sent


def test_leader_appends_leave_before_its_own_sync_and_votes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    order: list[tuple[str, object]] = []
    for node in cluster.nodes.values():
        network, log = node.host._network, node.log

        def send(to: int, messages: list, node=node, original=network.send) -> None:  # type: ignore[no-untyped-def, type-arg]
            order.extend((f"send{node.node_id}", m.type) for _, m in messages)
            original(to, messages)

        def save(items, *, sync, node=node, original=log.save) -> None:  # type: ignore[no-untyped-def]
            order.append((f"save{node.node_id}", sync))
            original(items, sync=sync)

        monkeypatch.setattr(network, "send", send)
        monkeypatch.setattr(log, "save", save)
    leader = cluster.elect()
    name = leader.node_id
    for node in cluster.nodes.values():
        mine = [e for e in order if e[0].endswith(str(node.node_id))]
        for kind in (MessageType.VOTE, MessageType.VOTE_RESP):
            first = next((i for i, e in enumerate(mine) if e[1] is kind), None)
            if first is not None:
                assert (f"save{node.node_id}", True) in mine[:first]
    cluster.propose(b"warm")
    cluster.loop.run_for(0.05)
    order.clear()
    cluster.propose(b"x")
    mine = [e for e in order if e[0] in (f"send{name}", f"save{name}") and e[1] in (MessageType.APP, True)]
    assert mine[0] == (f"send{name}", MessageType.APP) and (f"save{name}", True) in mine
    follower = next(n for n in cluster.voters if n != name)
    theirs = [e for e in order if e[0] in (f"send{follower}", f"save{follower}")]
    assert theirs.index((f"save{follower}", True)) < theirs.index((f"send{follower}", MessageType.APP_RESP))


def test_sync_on_another_thread_gathers_the_next_turn() -> None:
    cluster = Cluster(nodes=1)
    node = cluster.nodes[1]
    pending = []
    node.host._offload = lambda work, done: pending.append((work, done))
    node.host.campaign(1)

    def pump() -> bool:
        if pending:
            work, done = pending.pop()
            work()
            done(None)
        return len(node.machines[1].applied) == 2

    cluster.loop.run_until(lambda: bool(pending) or pump())
    node.host.propose(1, b"a")
    node.host.propose(1, b"b")
    cluster.loop.run_until(pump)
    assert node.machines[1].applied == [b"a", b"b"]


def test_options_are_checked() -> None:
    cluster = Cluster(nodes=1)
    with pytest.raises(UsageError):
        MultiRaftHost(cluster.nodes[1].log, cluster.network.endpoint(9), cluster.loop, tick_interval_s=0)
    with pytest.raises(UsageError):
        cluster.nodes[1].host.add_group(1, cluster.nodes[1].host.node(1), cluster.nodes[1].machines[1])
