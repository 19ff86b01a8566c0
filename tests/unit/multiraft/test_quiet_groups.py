"""Idle groups cost nothing, and everything that should wake them does: three hosts over the simulated network."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nokv.errors import UsageError
from nokv.multiraft.liveness import BEAT_GROUP_ID
from nokv.multiraft.wire import GroupMessage
from nokv.raft.types import Message, MessageType, NodeRole
from tests.unit.multiraft.cluster import TICK_S, Cluster, Node

AFTER = 5
ELECTION = 10


def quiet(cluster: Cluster) -> bool:
    return all(node.host.stats()["groups_quiet"] == len(node.host.group_ids()) for node in cluster.nodes.values())


def resting(groups: int = 1, nodes: int = 3, seed: int = 1) -> Cluster:
    """All groups led by node 1, all of it quiet."""
    cluster = Cluster(seed, nodes=nodes, groups=groups, quiet_after_ticks=AFTER)
    for group_id in cluster.groups:
        cluster.nodes[1].host.campaign(group_id)
    cluster.loop.run_until(lambda: quiet(cluster))
    assert cluster.nodes[1].host.stats()["groups_leading"] == groups
    return cluster


def ticks(cluster: Cluster, count: int) -> None:
    cluster.loop.run_for(count * TICK_S)


def record(cluster: Cluster) -> list[tuple[int, int, GroupMessage]]:
    """(from, to, message) of everything that is sent from now on."""
    sent: list[tuple[int, int, GroupMessage]] = []
    for node in cluster.nodes.values():
        network, number = node.host._network, node.node_id
        original = network.send

        def send(
            to: int,
            messages: list[GroupMessage],
            number: int = number,
            original: Callable[[int, list[GroupMessage]], None] = original,
        ) -> None:
            sent.extend((number, to, one) for one in messages)
            original(to, messages)

        network.send = send  # type: ignore[method-assign]
    return sent


def test_idle_groups_cost_no_tick_no_message_no_turn() -> None:  # DESIGN 4: an idle region costs nothing
    cluster = resting(groups=300)
    ticks(cluster, 20)
    sent = record(cluster)
    before = {node.node_id: node.host.stats() for node in cluster.nodes.values()}
    terms = {g: cluster.nodes[2].host.status(g).term for g in cluster.groups}
    ticks(cluster, 1000)
    for node in cluster.nodes.values():
        after = node.host.stats()
        for name in ("group_ticks", "turns", "readies", "saves", "syncs", "log_records"):
            assert after[name] == before[node.node_id][name], name
        assert after["ticks"] - before[node.node_id]["ticks"] == 1000
    assert all(group_id == BEAT_GROUP_ID for _, _, (group_id, _) in sent)
    # Nodes 2 and 3 follow only, so they share nothing: four directions, a beat every second tick.
    assert len(sent) == 4 * 500
    assert {(a, b) for a, b, _ in sent} == {(1, 2), (1, 3), (2, 1), (3, 1)}
    assert {g: cluster.nodes[2].host.status(g).term for g in cluster.groups} == terms


def test_an_active_group_ticks_alone() -> None:
    cluster = resting(groups=200)
    before = cluster.nodes[1].host.group_ticks
    cluster.propose(b"x", 7)
    cluster.loop.run_until(lambda: quiet(cluster))
    assert cluster.converge(7) == [b"x"]
    assert 0 < cluster.nodes[1].host.group_ticks - before <= 2 * AFTER


def test_heartbeats_of_one_tick_travel_together() -> None:
    """Awake groups: one batch for a pair of processes and tick, however many groups it speaks for."""
    cluster = Cluster(groups=50)
    for group_id in cluster.groups:
        cluster.nodes[1].host.campaign(group_id)
    cluster.loop.run_until(lambda: all(cluster.leader(g) is not None for g in cluster.groups))
    ticks(cluster, 10)
    network, leader = cluster.network, cluster.nodes[1]
    sent, ticked = network.sent, leader.host.ticks
    ticks(cluster, 100)
    per_tick = (network.sent - sent) / (leader.host.ticks - ticked)
    assert per_tick <= 4  # to two others, and back


WAKERS: dict[str, Callable[[Cluster], None]] = {
    "proposal": lambda c: c.nodes[1].host.propose(1, b"y"),
    "read": lambda c: c.nodes[1].host.read_index(1, b"r"),
    "campaign": lambda c: c.nodes[2].host.campaign(1),
    "transfer": lambda c: c.nodes[1].host.transfer_leader(1, 2),
    "undelivered": lambda c: c.nodes[1].host.undelivered(2, [(1, Message(MessageType.APP, to=2, sender=1))]),
    "message": lambda c: c.nodes[1].host.step(1, Message(MessageType.READ_INDEX, to=1, sender=3, context=b"r")),
    "proposal at a follower": lambda c: c.nodes[2].host.propose(1, b"forwarded"),
}


@pytest.mark.parametrize("waker", WAKERS)
def test_what_wakes_a_group_and_only_that_one(waker: str) -> None:
    cluster = resting(groups=20)
    before = cluster.nodes[1].host.group_ticks
    WAKERS[waker](cluster)
    ticks(cluster, 3)
    for node in cluster.nodes.values():
        assert node.host.stats()["groups_quiet"] == 19 and not node.host.node(1).quiet
    cluster.loop.run_until(lambda: quiet(cluster))
    assert cluster.nodes[1].host.group_ticks - before < 3 * AFTER
    cluster.check()


@pytest.mark.parametrize("seed", range(5))
def test_a_dead_leader_process_is_replaced_within_two_election_timeouts_and_a_beat(seed: int) -> None:
    cluster = resting(groups=30, seed=seed)
    ticks(cluster, 500)
    cluster.kill(1)
    ticks(cluster, ELECTION - 3)
    assert all(node.host.stats()["groups_quiet"] == 30 for node in cluster.nodes.values())
    # Silence is an election timeout (and a beat), the dice are another; a split vote costs one more.
    ticks(cluster, 3 + 2 + ELECTION + 2 * ELECTION)
    for group_id in cluster.groups:
        leader = cluster.leader(group_id)
        assert leader is not None, f"seed {seed}: group {group_id}"
        cluster.propose(b"after", group_id)
    cluster.check()


def test_a_dead_follower_process_wakes_nobody_and_catches_up_later() -> None:
    cluster = resting(groups=20)
    dead = cluster.kill(3)
    ticks(cluster, 200)
    assert cluster.nodes[1].host.stats()["groups_quiet"] == 20
    cluster.propose(b"while away", 5)
    cluster.restart(dead)
    cluster.loop.run_until(lambda: quiet(cluster))
    assert cluster.converge(5) == [b"while away"]
    assert all(cluster.nodes[1].host.status(g).role is NodeRole.LEADER for g in cluster.groups)


def test_a_quiet_leader_without_a_quorum_wakes_and_steps_down() -> None:
    cluster = resting(groups=3)
    cluster.network.partition([1], [2, 3])
    ticks(cluster, 2 * ELECTION + 4)
    for group_id in cluster.groups:
        assert cluster.nodes[1].host.status(group_id).role is not NodeRole.LEADER
    ticks(cluster, 2 * ELECTION)
    for group_id in cluster.groups:
        leader = cluster.leader(group_id)
        assert leader is not None and leader.node_id in (2, 3)
    cluster.network.heal()
    cluster.loop.run_until(lambda: quiet(cluster))


def test_one_way_silence_wakes_who_hears_nothing() -> None:
    cluster = resting()
    cluster.network.block(1, 2)
    ticks(cluster, 4 * ELECTION)
    assert not cluster.nodes[2].host.node(1).quiet
    assert cluster.nodes[1].host.status(1).role is NodeRole.LEADER  # a quorum is with it
    cluster.network.heal()
    cluster.loop.run_until(lambda: quiet(cluster))


def test_a_leader_that_is_gone_while_its_process_lives_is_replaced() -> None:
    """The process beats on; only the digests tell (a group that refused to start, or was removed)."""
    cluster = resting(groups=5)
    cluster.nodes[1].host.remove_group(3)
    ticks(cluster, 3 * ELECTION + 6)
    ticks(cluster, 3 * ELECTION)
    followers = [cluster.nodes[n].host.status(3).role for n in (2, 3)]
    assert NodeRole.LEADER in followers
    for group_id in (1, 2, 4, 5):
        assert cluster.nodes[1].host.status(group_id).role is NodeRole.LEADER
        assert cluster.nodes[1].host.node(group_id).quiet


def test_a_member_that_was_removed_and_never_told_wakes_up() -> None:
    """It has to ask around, and a quiet member asks nobody."""
    cluster = resting(groups=2)
    # What is left when the removal was committed by the others and every message to node 3 was lost.
    for node_id in (1, 2):
        cluster.nodes[node_id].host.remove_group(1)
    ticks(cluster, 6 * ELECTION)
    assert cluster.nodes[3].host.status(1).leader == 0
    assert cluster.nodes[3].host.node(2).quiet


def test_a_member_that_lost_its_group_is_noticed_by_its_leader() -> None:
    cluster = resting(groups=2)
    cluster.nodes[3].host.remove_group(1)
    ticks(cluster, 3 * ELECTION + 6)
    assert not cluster.nodes[1].host.node(1).quiet
    ticks(cluster, 20 * ELECTION)
    assert not cluster.nodes[1].host.node(1).quiet  # somebody is missing: it keeps trying
    assert cluster.nodes[1].host.node(2).quiet


def test_a_restart_of_all_comes_to_rest_again() -> None:
    cluster = resting(groups=10)
    for node in [cluster.kill(n) for n in cluster.voters]:
        cluster.restart(node)
    cluster.loop.run_until(lambda: quiet(cluster))
    cluster.check()


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_crashes_with_quiet_groups(seed: int) -> None:
    import random

    dice = random.Random(seed)
    cluster = Cluster(seed, loss=0.1, duplication=0.2, quiet_after_ticks=AFTER)
    expected = []
    for i in range(20):
        if dice.random() < 0.5:
            ticks(cluster, dice.randrange(40))
        cluster.propose(b"%d" % i)
        expected.append(b"%d" % i)
        if dice.random() < 0.3:
            victim = cluster.kill(dice.choice(sorted(cluster.nodes)))
            ticks(cluster, dice.randrange(60))
            cluster.restart(victim)
        cluster.check()
    cluster.network.loss = 0.0
    applied = cluster.converge()
    assert list(dict.fromkeys(applied)) == expected, f"seed {seed}"
    cluster.loop.run_until(lambda: quiet(cluster))


def test_a_single_member_rests_without_anybody() -> None:
    cluster = resting(groups=50, nodes=1)
    sent = record(cluster)
    ticks(cluster, 100)
    assert not sent
    cluster.propose(b"x", 9)
    assert cluster.nodes[1].machines[9].applied == [b"x"]


def test_a_removed_group_is_not_vouched_for() -> None:
    cluster = resting(groups=2)
    host = cluster.nodes[2].host
    host.remove_group(1)
    assert len(host._liveness) == 1
    host.remove_group(2)
    assert len(host._liveness) == 0 and host.stats()["groups_quiet"] == 0


def test_hostile_beats_are_counted_and_change_nothing() -> None:
    cluster = resting()
    host = cluster.nodes[1].host
    rejected = host.messages_rejected
    host.receive(2, [(BEAT_GROUP_ID, Message(MessageType.HEARTBEAT, to=1, context=b"junk"))])
    assert host.messages_rejected == rejected + 1 and host.node(1).quiet


def test_group_zero_is_taken() -> None:
    cluster = Cluster(nodes=1)
    node: Node = cluster.nodes[1]
    with pytest.raises(UsageError, match="begin at 1"):
        node.add_group(0, (1,))
