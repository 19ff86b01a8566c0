"""Hibernation of one group: when it goes quiet, what wakes it, and that no promise depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nokv.errors import InvariantError, UsageError
from nokv.raft import (
    ConfChange,
    ConfChangeKind,
    Message,
    MessageType,
    NodeRole,
    RaftConfig,
    ReadMode,
)
from nokv.raft.quiet import QUIET_TRANSITIONS, Activity

AFTER = 5


def resting(make_cluster: Any, size: int = 3, **options: Any) -> Any:
    """A group whose members are all quiet, led by 1."""
    cluster = make_cluster(size, quiet_after_ticks=AFTER, **options)
    for member in cluster.members.values():
        member.raw.core.boot_ticks = 0  # a new group: there is no lease to wait for
    cluster.elect(1)
    cluster.propose(b"x")
    cluster.tick(AFTER + 2)
    assert all(member.raw.quiet for member in cluster.members.values())
    return cluster


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_group_with_nothing_to_do_costs_no_message_and_no_ready(make_cluster: Any, size: int) -> None:
    cluster = resting(make_cluster, size)
    for _ in range(1000):
        for member in cluster.members.values():
            member.raw.tick()
            assert not member.raw.has_ready()
    assert cluster[1].role is NodeRole.LEADER and cluster[1].raw.status().quiet


def test_off_by_default(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.tick(100)
    assert not any(member.raw.quiet for member in cluster.members.values())
    with pytest.raises(UsageError):
        RaftConfig(id=1, quiet_after_ticks=-1).validate()


def test_learners_rest_too(make_cluster: Any) -> None:
    resting(make_cluster, 3, learners=1)


def test_activity_puts_it_off(make_cluster: Any) -> None:
    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster.elect(1)
    for number in range(10):
        cluster.propose(b"%d" % number)
        cluster.tick(AFTER - 1)
        cluster[1].raw.read_index(b"r%d" % number)
        cluster.settle()
        cluster.tick(AFTER - 1)
        assert not cluster[1].raw.quiet
    cluster.tick(2)
    assert cluster[1].raw.quiet


@pytest.mark.parametrize("what", ["member down", "member behind", "transfer", "read", "not committed"])
def test_a_leader_with_something_to_do_stays_awake(make_cluster: Any, what: str) -> None:
    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster.elect(1)
    cluster.tick(2)
    core = cluster[1].raw.core
    if what == "member down":
        cluster.crash(3)
        for number in range(core.config.election_ticks):  # busy, until that is known
            cluster[1].raw.read_index(b"%d" % number)
            cluster.tick(2)
    elif what == "member behind":
        cluster.isolate(3)
        cluster.propose(b"x")
    elif what == "transfer":
        cluster.isolate(3)
        cluster[1].raw.transfer_leader(3)
    elif what == "read":
        cluster.isolate(2, 3)
        cluster[1].raw.read_index(b"r")
    else:
        cluster.isolate(2, 3)
        cluster[1].raw.propose(b"x")
    for _ in range(AFTER + 2):
        cluster.tick(1, only=[1])
        assert not cluster[1].raw.quiet


def test_a_joint_configuration_stays_awake(make_cluster: Any) -> None:
    from nokv.raft import ConfChangeTransition, ConfChangeV2, SingleChange

    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster.elect(1)
    explicit = ConfChangeTransition.JOINT_EXPLICIT
    cluster[1].raw.propose_conf_change(ConfChangeV2((SingleChange(ConfChangeKind.REMOVE, 3),), explicit))
    cluster.settle()
    assert cluster[1].raw.core.membership.is_joint
    cluster.tick(3 * AFTER)
    assert not cluster[1].raw.quiet
    cluster[1].raw.propose_conf_change(ConfChangeV2())
    cluster.settle()
    cluster.tick(AFTER + 1)
    assert cluster[1].raw.quiet and cluster[2].raw.quiet


# -- waking -----------------------------------------------------------------------------------------------------------
def _propose_at_follower(cluster: Any) -> None:
    cluster[2].raw.propose(b"forwarded")


def _read_at_follower(cluster: Any) -> None:
    cluster[2].raw.read_index(b"forwarded")


WAKERS: dict[str, Callable[[Any], None]] = {
    "proposal": lambda c: c[1].raw.propose(b"y"),
    "membership change": lambda c: c[1].raw.propose_conf_change(ConfChange(ConfChangeKind.REMOVE, 3)),
    "read": lambda c: c[1].raw.read_index(b"r"),
    "transfer": lambda c: c[1].raw.transfer_leader(2),
    "unreachable": lambda c: c[1].raw.report_unreachable(2),
    "snapshot report": lambda c: c[1].raw.report_snapshot(2, False),
    "host": lambda c: c[1].raw.wake(),
    "forwarded proposal": _propose_at_follower,
    "forwarded read": _read_at_follower,
    "campaign of another": lambda c: c[2].raw.campaign(),
}


@pytest.mark.parametrize("waker", WAKERS)
def test_what_wakes_a_leader(make_cluster: Any, waker: str) -> None:
    cluster = resting(make_cluster)
    WAKERS[waker](cluster)
    cluster.settle()
    assert not cluster[1].raw.quiet
    cluster.tick(2)  # its next heartbeat wakes whoever sleeps on
    assert not any(member.raw.quiet for member in cluster.members.values())


@pytest.mark.parametrize("waker", ["proposal", "read", "host", "unreachable", "campaign of another"])
def test_it_rests_again(make_cluster: Any, waker: str) -> None:
    cluster = resting(make_cluster)
    term = cluster[1].term
    WAKERS[waker](cluster)
    cluster.settle()
    cluster.tick(2 * AFTER + 4)
    assert all(member.raw.quiet for member in cluster.members.values())
    assert cluster[1].term == term and cluster[1].role is NodeRole.LEADER  # nobody was deposed on the way


def test_what_wakes_a_follower(make_cluster: Any) -> None:
    wakers: tuple[Callable[[Any], None], ...] = (
        lambda raw: raw.campaign(),
        lambda raw: raw.forget_leader(),
        lambda raw: raw.wake(),
        lambda raw: raw.step(
            Message(MessageType.PRE_VOTE, to=2, sender=3, term=raw.core.term + 1, index=9, log_term=9)
        ),
        lambda raw: raw.step(Message(MessageType.HEARTBEAT, to=2, sender=1, term=raw.core.term)),
        lambda raw: raw.step(Message(MessageType.TIMEOUT_NOW, to=2, sender=1, term=raw.core.term)),
    )
    for waker in wakers:
        cluster = resting(make_cluster)
        waker(cluster[2].raw)
        assert not cluster[2].raw.quiet


def test_late_and_repeated_messages_wake_nobody(make_cluster: Any) -> None:
    """With a round trip longer than the heartbeat interval the group would never come to rest."""
    cluster = resting(make_cluster)
    leader, follower = cluster[1].raw, cluster[2].raw
    term, index = leader.core.log.last_id()
    leader.step(Message(MessageType.HEARTBEAT_RESP, to=1, sender=2, term=term))
    leader.step(Message(MessageType.APP_RESP, to=1, sender=2, term=term, index=index))
    notice = Message(MessageType.HEARTBEAT, to=2, sender=1, term=term, log_term=term, index=index, commit=index)
    follower.step(notice)
    assert leader.quiet and follower.quiet and not follower.has_ready()


# -- disagreement and loss --------------------------------------------------------------------------------------------
def test_a_member_that_is_not_ready_refuses_and_wakes_the_leader(make_cluster: Any) -> None:
    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster.elect(1)
    cluster.tick(2)
    cluster.propose(b"x")
    cluster.tick(2)
    follower = cluster[2].raw
    follower.core.log.applied -= 1  # still applying, as with a slow apply thread
    cluster.tick(AFTER)
    assert not cluster[1].raw.quiet and not follower.quiet
    follower.core.log.applied += 1
    cluster.tick(AFTER + 2)
    assert all(member.raw.quiet for member in cluster.members.values())


def test_a_member_that_is_set_to_stay_awake_is_never_put_to_sleep(make_cluster: Any) -> None:
    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster[2].options["quiet_after_ticks"] = 0
    cluster[2].start()
    cluster.elect(1)
    for _ in range(10 * AFTER):
        cluster.tick(1)
        assert not cluster[2].raw.quiet
    assert cluster[1].term == cluster[2].term == 2  # and that disturbs nobody


def test_a_lost_notice_heals_itself(make_cluster: Any) -> None:
    cluster = make_cluster(3, quiet_after_ticks=AFTER)
    cluster.elect(1)
    cluster.tick(2)
    lost: list[Message] = []

    def lose(message: Message) -> bool:
        if message.type == MessageType.HEARTBEAT and message.index and message.to == 3 and not lost:
            lost.append(message)
            return False
        return True

    for _ in range(100):
        for member in cluster.members.values():
            member.raw.tick()
        cluster.settle(keep=lose)
    assert lost and all(member.raw.quiet for member in cluster.members.values())
    assert cluster[1].role is NodeRole.LEADER and cluster[1].term == 2


def test_a_dead_leader_is_replaced_when_the_host_tells(make_cluster: Any) -> None:
    cluster = resting(make_cluster)
    cluster.crash(1)
    cluster.tick(500)
    assert cluster.leader() is None or cluster.leader().id == 1  # nobody knows: this is what the host is for
    for node_id in (2, 3):
        cluster[node_id].raw.wake(10)
    ticks = 0
    while cluster.leader() is None:
        cluster.tick(1)
        ticks += 1
        assert ticks <= 10  # the silence counted: only the dice are left of the election timeout
    cluster.propose(b"after")
    assert cluster.leader().id in (2, 3)


def test_silence_counts_at_most_one_election_timeout(make_cluster: Any) -> None:
    """Else all the members of a long quiet group would campaign in the same tick."""
    cluster = resting(make_cluster)
    cluster[2].raw.wake(1_000_000)
    assert cluster[2].raw.core.election_elapsed == cluster[2].raw.core.config.election_ticks
    cluster[3].raw.wake(3)
    assert cluster[3].raw.core.election_elapsed == 3
    cluster[3].raw.wake(3)  # awake already: nothing counts twice
    assert cluster[3].raw.core.election_elapsed == 3


def test_a_leader_that_wakes_alone_steps_down_within_one_election_timeout(make_cluster: Any) -> None:
    cluster = resting(make_cluster)
    cluster.isolate(1)
    cluster[1].raw.wake()
    cluster.tick(cluster[1].raw.core.config.election_ticks, only=[1])
    assert cluster[1].role is NodeRole.FOLLOWER


# -- promises ---------------------------------------------------------------------------------------------------------
def test_a_quiet_leader_has_no_lease(make_cluster: Any) -> None:  # RAFT-10
    cluster = resting(make_cluster, read_mode=ReadMode.LEASE, lease_drift_ticks=1)
    cluster.isolate(1)
    for node_id in (2, 3):
        cluster[node_id].raw.wake(10)
    while cluster.leader().id == 1:
        cluster.tick(1, only=[2, 3])
    cluster.propose(b"newer", cluster.leader().id)
    reads = list(cluster[1].reads)
    cluster[1].raw.read_index(b"stale?")
    cluster.settle()
    assert cluster[1].reads == reads  # its clock stood still, and so it asks


def test_an_answer_from_before_the_rest_renews_no_lease(make_cluster: Any) -> None:  # RAFT-10
    cluster = make_cluster(3, quiet_after_ticks=AFTER, read_mode=ReadMode.LEASE, lease_drift_ticks=1)
    for member in cluster.members.values():
        member.raw.core.boot_ticks = 0
    leader = cluster.elect(1)
    late: list[Message] = []

    def hold(message: Message) -> bool:
        if message.type == MessageType.HEARTBEAT_RESP and message.context and len(late) < 64:
            late.append(message)
        return True

    for _ in range(AFTER + 2):
        for member in cluster.members.values():
            member.raw.tick()
        cluster.settle(keep=hold)
    assert leader.raw.quiet and late
    leader.raw.wake()
    for message in late:
        leader.raw.step(message)
    assert not leader.raw.core.lease_valid()


def test_a_quiet_follower_keeps_its_promise_not_to_vote(make_cluster: Any) -> None:
    """Woken by somebody else's campaign it gives the leader a whole election timeout, as if it had just been heard."""
    cluster = resting(make_cluster)
    term = cluster[1].term
    cluster.isolate(1)
    cluster[3].raw.campaign()
    cluster.settle()
    assert not cluster[2].raw.quiet and cluster[2].term == term
    cluster.tick(9, only=[2])
    cluster[3].raw.campaign()
    cluster.settle()
    assert cluster[2].term == term
    cluster.tick(30)
    assert cluster.leader().id in (2, 3)  # but then it does


def test_a_restarted_lease_member_does_not_sleep_through_its_wait(make_cluster: Any) -> None:
    cluster = resting(make_cluster, read_mode=ReadMode.LEASE)
    cluster.restart(2)
    cluster[1].raw.wake()
    cluster.tick(AFTER)
    assert cluster[2].raw.core.boot_ticks > 0 and not cluster[2].raw.quiet
    cluster.tick(30)
    assert cluster[2].raw.quiet


def test_a_transition_that_is_not_in_the_table_is_refused(make_cluster: Any) -> None:
    cluster = resting(make_cluster)
    assert (Activity.QUIET_LEADER, Activity.QUIET_FOLLOWER) not in QUIET_TRANSITIONS
    with pytest.raises(InvariantError, match="QUIET_LEADER -> QUIET_FOLLOWER"):
        cluster[1].raw.core._enter_activity(Activity.QUIET_FOLLOWER)
