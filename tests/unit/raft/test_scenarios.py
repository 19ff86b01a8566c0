"""Named scenarios of one group (FEATURES RAFT-01 to RAFT-18)."""

from __future__ import annotations

from typing import Any

import pytest

from nokv.raft import (
    ConfChange,
    ConfChangeKind,
    ConfChangeTransition,
    ConfChangeV2,
    EntryKind,
    Message,
    MessageType,
    NodeRole,
    ProposalDropped,
    ReadMode,
    SingleChange,
)

ADD, REMOVE, LEARN = ConfChangeKind.ADD_VOTER, ConfChangeKind.REMOVE, ConfChangeKind.ADD_LEARNER


def v2(*changes: tuple[ConfChangeKind, int], **options: Any) -> ConfChangeV2:
    return ConfChangeV2(tuple(SingleChange(kind, node_id) for kind, node_id in changes), **options)


# -- replication ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_basic_agree(make_cluster: Any, size: int) -> None:  # RAFT-02, RAFT-18
    cluster = make_cluster(size)
    cluster.elect(1)
    for number in range(10):
        cluster.propose(b"%d" % number)
    expected = [b"%d" % number for number in range(10)]
    assert [member.data for member in cluster.members.values()] == [expected] * size


def test_basic_agree_by_forwarding(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.propose(b"x", node_id=3)
    assert cluster[2].data == [b"x"]


def test_proposal_forwarding_can_be_disabled(make_cluster: Any) -> None:
    cluster = make_cluster(3, disable_proposal_forwarding=True)
    cluster.elect(1)
    with pytest.raises(ProposalDropped):
        cluster[2].raw.propose(b"x")


def test_a_proposal_is_appended_and_sent_at_once(make_cluster: Any) -> None:  # RAFT-13
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    leader.raw.propose(b"now")
    assert {m.to for m in leader.drain() if m.type == MessageType.APP and m.entries} == {2, 3}


def test_concurrent_clients(make_cluster: Any) -> None:  # RAFT-18
    cluster = make_cluster(3)
    cluster.elect(2)
    for number in range(30):
        cluster[1 + number % 3].raw.propose(b"c%d-%d" % (number % 3, number))
        if number % 7 == 0:
            cluster.collect()
            cluster.deliver()
    cluster.settle()
    assert len(cluster[1].data) == 30
    assert cluster[1].data == cluster[2].data == cluster[3].data
    for client in range(3):  # each client's own order is kept: its messages were
        mine = [int(data.split(b"-")[1]) for data in cluster[1].data if data.startswith(b"c%d" % client)]
        assert mine == sorted(mine)


def test_batches_are_taken_whole(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    leader.raw.propose_many([b"a", b"b", b"c"])
    out = [m for m in leader.drain() if m.type == MessageType.APP and m.to == 2]
    assert [len(m.entries) for m in out] == [3]


def test_split_brain_commits_nothing(make_cluster: Any) -> None:  # RAFT-04
    cluster = make_cluster(5, check_quorum=False, pre_vote=False)
    old = cluster.elect(1)
    cluster.isolate(1, 2)
    cluster.propose(b"lost", node_id=1)
    assert old.data == []
    new = cluster.elect(3)
    cluster.propose(b"kept", node_id=3)
    assert new.data == [b"kept"]
    cluster.heal()
    cluster.tick(3)
    assert old.role is NodeRole.FOLLOWER
    assert {tuple(member.data) for member in cluster.members.values()} == {(b"kept",)}


def test_figure_8(make_cluster: Any) -> None:  # RAFT-03
    """An entry of an old term on a majority is not committed by that; only under an entry of the leader's own term."""
    cluster = make_cluster(5, pre_vote=False, check_quorum=False, max_size_per_msg=1)

    def votes_and(*pairs: tuple[int, int]) -> Any:
        votes = (MessageType.VOTE, MessageType.VOTE_RESP)
        return lambda m: (m.sender, m.to) in pairs or m.type in votes

    # (a) S1 leads and reaches only S2 with its second entry.
    cluster.elect(1)
    cluster[1].raw.propose(b"old")
    cluster.settle(votes_and((1, 2), (2, 1)))
    old_index = cluster[1].raw.status().last_index
    assert cluster[2].raw.status().last_index == old_index
    # (b) S1 dies; S5 leads with the votes of S3 and S4, and puts something else at that index, alone.
    cluster.crash(1)
    cluster.isolate(2)
    cluster[5].raw.campaign()
    cluster.settle(votes_and())
    assert cluster[5].role is NodeRole.LEADER
    assert cluster[5].raw.status().last_index == old_index
    cluster.crash(5)
    # (c) S1 leads again (its first campaign is for the term that S5 had), and brings the old entry to S3: a majority.
    cluster.restart(1)
    cluster.heal()
    for _ in range(2):
        cluster[1].raw.campaign()
        cluster.settle(votes_and())
    leader = cluster[1]
    assert leader.role is NodeRole.LEADER

    def old_only(message: Message) -> bool:
        message.entries = [entry for entry in message.entries if entry.index <= old_index]
        return message.to in (1, 2, 3)

    for _ in range(8):
        leader.raw.tick()
        cluster.settle(old_only)
    holders = [i for i in (1, 2, 3) if cluster[i].storage.last_index() >= old_index]
    assert holders == [1, 2, 3]
    assert all(cluster[i].storage.term(old_index) < leader.term for i in holders)
    assert leader.raw.status().progress[3].match == old_index
    assert leader.raw.status().commit < old_index  # on a majority, acknowledged, and still not committed
    # (e) With its own entry on a majority, both are.
    for _ in range(8):
        leader.raw.tick()
        cluster.settle(lambda m: m.to in (1, 2, 3))
    assert leader.raw.status().commit > old_index
    assert leader.data == [b"old"]


def test_lagging_follower_is_backed_up_by_whole_terms(make_cluster: Any) -> None:
    cluster = make_cluster(3, pre_vote=False, check_quorum=False)
    cluster.elect(1)
    cluster.isolate(1)
    for _ in range(200):  # a long tail of a term that nobody else has
        cluster[1].raw.propose(b"orphan")
    cluster.settle()
    cluster.elect(2)
    cluster.propose(b"real", node_id=2)
    cluster.heal()
    rejections = []
    cluster.tick(2, only=[2])
    cluster.settle(lambda m: rejections.append(m) or True if m.reject else True)
    assert cluster[1].data == [b"real"]
    assert len(rejections) < 5


# -- elections --------------------------------------------------------------------------------------------------------
def test_a_leader_is_elected_by_time_alone(make_cluster: Any) -> None:  # RAFT-01, RAFT-08
    cluster = make_cluster(3, election_ticks=10, heartbeat_ticks=2)
    cluster.tick(25)
    leaders = [m for m in cluster.members.values() if m.role is NodeRole.LEADER]
    assert len(leaders) == 1
    cluster.tick(50)
    assert cluster.leader() is leaders[0]


def test_pre_vote_keeps_the_term(make_cluster: Any) -> None:  # RAFT-06
    cluster = make_cluster(3)
    cluster.elect(1)
    term = cluster[1].term
    cluster.isolate(3)
    cluster.tick(100)
    assert cluster[3].term == term
    cluster.heal()
    cluster.tick(30)
    assert cluster[1].term == term
    assert cluster.leader() is cluster[1]


def test_check_quorum_deposes_a_lonely_leader(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(20, only=[1])
    assert cluster[1].role is not NodeRole.LEADER


def test_an_old_leader_is_ignored_and_told(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(30, only=[2, 3])
    new = cluster.leader()
    assert new is not None and new.id != 1
    cluster.heal()
    cluster.tick(5)
    assert cluster[1].role is NodeRole.FOLLOWER
    assert cluster[1].term == new.term


def test_transfer_leader(make_cluster: Any) -> None:  # RAFT-12
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    cluster.propose(b"before")
    leader.raw.transfer_leader(3)
    with pytest.raises(ProposalDropped):
        leader.raw.propose(b"during")
    cluster.settle()
    assert cluster.leader() is cluster[3]
    cluster.propose(b"after")
    assert cluster[1].data == [b"before", b"after"]


def test_transfer_to_a_dead_node_ends(make_cluster: Any) -> None:  # RAFT-12
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    cluster.crash(3)
    leader.raw.transfer_leader(3)
    cluster.tick(10)
    cluster.propose(b"again")
    assert cluster[2].data == [b"again"]


def test_full_group_restart_keeps_everything(make_cluster: Any) -> None:  # RAFT-14
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.propose(b"kept")
    for node_id in (1, 2, 3):
        cluster.crash(node_id)
    for node_id in (1, 2, 3):
        cluster.restart(node_id)
    cluster.elect(2)
    cluster.propose(b"more")
    assert all(member.data == [b"kept", b"more"] for member in cluster.members.values())


def test_a_vote_survives_a_restart(make_cluster: Any) -> None:
    cluster = make_cluster(3, pre_vote=False, check_quorum=False)
    vote = Message(MessageType.VOTE, to=2, sender=1, term=5, log_term=1, index=1)
    cluster[2].raw.step(vote)
    assert [m.reject for m in cluster[2].drain()] == [False]
    cluster.restart(2)
    cluster[2].raw.step(Message(MessageType.VOTE, to=2, sender=3, term=5, log_term=1, index=1))
    assert [m.reject for m in cluster[2].drain()] == [True]


def test_an_applied_index_outweighs_a_stale_commit(make_cluster: Any) -> None:
    """A commit index is not synced by itself: after power loss the applied index may be the larger one."""
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.propose(b"x")
    follower = cluster[2]
    applied = follower.applied
    follower.storage.set_hard_state(type(follower.raw.core.hard_state())(follower.term, 1, applied - 1))
    cluster.restart(2)
    assert follower.raw.status().commit == applied
    assert follower.drain() == []


# -- snapshots --------------------------------------------------------------------------------------------------------
def test_snapshot_install(make_cluster: Any) -> None:  # RAFT-05, RAFT-18
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(20):
        cluster.propose(b"%d" % number)
    cluster[1].storage.compact(cluster[1].applied)
    cluster.down.discard(3)
    seen = []
    cluster.tick(2)
    cluster.settle(lambda m: seen.append(m.type) or True)
    cluster.tick(4)
    assert cluster[3].data == cluster[1].data
    cluster.propose(b"after")
    assert cluster[3].data[-1] == b"after"


def test_snapshot_install_after_the_first_was_lost(make_cluster: Any) -> None:  # RAFT-15
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    cluster.crash(3)
    for number in range(20):
        cluster.propose(b"%d" % number)
    leader.storage.compact(leader.applied)
    cluster.down.discard(3)
    lost: list[Message] = []

    def lose(message: Message) -> bool:
        if message.type == MessageType.SNAP:
            lost.append(message)
        return message.type != MessageType.SNAP

    for _ in range(4):
        leader.raw.tick()
        cluster.settle(lose)
    assert len(lost) == 1  # one at a time: it waits for a report
    leader.raw.report_snapshot(3, False)
    cluster.tick(4)
    assert cluster[3].data == leader.data
    assert leader.raw.status().progress[3].match == leader.raw.status().last_index


def test_snapshot_install_of_a_new_member(make_cluster: Any) -> None:
    cluster = make_cluster(1, spare=1)
    leader = cluster.elect(1)
    for number in range(5):
        cluster.propose(b"%d" % number)
    leader.storage.compact(leader.applied)
    leader.raw.propose_conf_change(ConfChange(ADD, 2))
    cluster.settle()
    cluster.tick(4)
    assert cluster[2].data == leader.data
    assert cluster[2].conf_state.voters == (1, 2)


def test_a_change_older_than_a_pending_snapshot_leaves_its_membership_alone(make_cluster: Any) -> None:
    """MsgSnap may arrive between ready() and the application of an older change."""
    cluster = make_cluster(3, spare=2)
    cluster.elect(1)
    follower = cluster[2]
    cluster[1].raw.propose_conf_change(ConfChange(ADD, 4))
    cluster.collect([1])
    cluster.deliver()
    cluster.collect([2, 3])
    cluster.deliver()
    cluster.collect([1])
    cluster.deliver()  # the follower knows now that the change is committed
    ready = follower.raw.ready()
    assert [entry.kind for entry in ready.committed_entries] == [EntryKind.CONF_CHANGE]
    cluster.collect([1, 3])
    cluster.deliver(lambda m: m.to != 2)
    cluster.settle(lambda m: m.to != 2)  # the rest of the group goes on without it
    cluster[1].raw.propose_conf_change(ConfChange(ADD, 5))
    cluster.settle(lambda m: m.to != 2)
    snapshot = cluster[1].storage.snapshot()
    assert snapshot.metadata.conf_state.voters == (1, 2, 3, 4, 5)
    message = Message(MessageType.SNAP, to=2, sender=1, term=cluster[1].term, snapshot=snapshot)
    follower.raw.step(message)
    after = follower.raw.apply_conf_change(ConfChange(ADD, 4))
    assert after.voters == (1, 2, 3, 4)
    assert follower.raw.status().membership.conf_state().voters == (1, 2, 3, 4, 5)


# -- membership -------------------------------------------------------------------------------------------------------
def test_three_to_five_to_two_members(make_cluster: Any) -> None:  # RAFT-11
    cluster = make_cluster(3, spare=2)
    leader = cluster.elect(1)
    cluster.propose(b"a")
    leader.raw.propose_conf_change(v2((ADD, 4), (ADD, 5)))
    cluster.settle()
    cluster.tick(6)
    cluster.propose(b"b")
    assert cluster[5].data == [b"a", b"b"]
    assert leader.conf_state.voters == (1, 2, 3, 4, 5)
    leader.raw.propose_conf_change(v2((REMOVE, 3), (REMOVE, 4), (REMOVE, 5)))
    cluster.settle()
    cluster.propose(b"c")
    assert leader.conf_state.voters == (1, 2)
    assert not leader.conf_state.voters_outgoing
    assert cluster[2].data == [b"a", b"b", b"c"]


def test_all_members_are_replaced(make_cluster: Any) -> None:  # RAFT-11
    cluster = make_cluster(3, spare=3, step_down_on_removal=True)
    leader = cluster.elect(1)
    cluster.propose(b"kept")
    leader.raw.propose_conf_change(v2((LEARN, 4), (LEARN, 5), (LEARN, 6)))
    cluster.settle()
    cluster.tick(6)
    leader.raw.propose_conf_change(v2((ADD, 4), (ADD, 5), (ADD, 6), (REMOVE, 1), (REMOVE, 2), (REMOVE, 3)))
    cluster.settle()
    cluster.tick(40)
    new = cluster.leader()
    assert new is not None and new.id in (4, 5, 6)
    cluster.propose(b"new", node_id=new.id)
    assert cluster[5].data == [b"kept", b"new"]


def test_one_change_in_flight(make_cluster: Any) -> None:
    cluster = make_cluster(3, spare=2)
    leader = cluster.elect(1)
    leader.raw.propose_conf_change(ConfChange(ADD, 4))
    leader.raw.propose_conf_change(ConfChange(ADD, 5))  # becomes an empty entry
    cluster.settle()
    cluster.tick(6)
    assert leader.conf_state.voters == (1, 2, 3, 4)
    assert leader.kinds.count(EntryKind.CONF_CHANGE) == 1


def test_a_new_leader_takes_no_change_before_its_log_is_applied(make_cluster: Any) -> None:
    cluster = make_cluster(3, spare=1)
    cluster[1].raw.campaign()
    while cluster[1].role is not NodeRole.LEADER:
        cluster.collect()
        cluster.deliver()
    cluster[1].raw.propose(b"x")
    cluster[1].raw.propose_conf_change(ConfChange(ADD, 4))
    cluster.settle()
    cluster.tick(4)
    assert cluster[1].conf_state.voters in ((1, 2, 3), (1, 2, 3, 4))
    assert cluster[1].kinds.count(EntryKind.CONF_CHANGE) == len(cluster[1].conf_state.voters) - 3


@pytest.mark.parametrize("change", [ConfChange(REMOVE, 1), v2((REMOVE, 1)), v2((LEARN, 1))])
def test_an_impossible_change_never_enters_the_log(make_cluster: Any, change: ConfChange | ConfChangeV2) -> None:
    cluster = make_cluster(1)
    leader = cluster.elect(1)
    leader.raw.propose_conf_change(change)
    cluster.settle()
    assert leader.conf_state.voters == (1,)
    assert set(leader.kinds) == {EntryKind.NORMAL}
    cluster.propose(b"alive")
    assert leader.data == [b"alive"]


def test_explicit_joint_configuration_needs_both_halves(make_cluster: Any) -> None:
    cluster = make_cluster(3, spare=1, check_quorum=False)
    leader = cluster.elect(1)
    explicit = ConfChangeTransition.JOINT_EXPLICIT
    leader.raw.propose_conf_change(v2((ADD, 4), (REMOVE, 2), (REMOVE, 3), transition=explicit))
    cluster.settle()
    cluster.tick(6)
    assert leader.conf_state.voters == (1, 4)
    assert leader.conf_state.voters_outgoing == (1, 2, 3)
    cluster.isolate(2, 3)
    cluster.propose(b"stuck")
    assert leader.data == []  # the incoming half alone does not do
    cluster.heal()
    cluster.tick(4)
    assert leader.data == [b"stuck"]
    leader.raw.propose_conf_change(ConfChangeV2())
    cluster.settle()
    assert leader.conf_state.voters_outgoing == ()


def test_a_learner_follows_and_does_not_count(make_cluster: Any) -> None:
    cluster = make_cluster(2, learners=1)
    leader = cluster.elect(1)
    cluster.propose(b"x")
    assert cluster[3].data == [b"x"]
    cluster.isolate(2)
    cluster.propose(b"y")
    assert leader.data == [b"x"]
    cluster[3].raw.campaign()
    assert cluster[3].role is NodeRole.FOLLOWER


# -- reads ------------------------------------------------------------------------------------------------------------
def test_read_index(make_cluster: Any) -> None:  # RAFT-09
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    cluster.propose(b"x")
    for node_id in (1, 2):  # at the leader, and through it
        cluster[node_id].raw.read_index(b"q%d" % node_id)
        cluster.settle()
        assert cluster[node_id].reads == [(leader.raw.status().commit, b"q%d" % node_id)]


def test_a_deposed_leader_answers_no_read(make_cluster: Any) -> None:  # RAFT-09
    cluster = make_cluster(3, check_quorum=False, pre_vote=False)
    old = cluster.elect(1)
    cluster.isolate(1)
    cluster.elect(2)
    cluster.propose(b"new", node_id=2)
    old.raw.read_index(b"stale?")
    cluster.settle()
    cluster.tick(10)
    assert old.reads == []


def test_an_old_answer_does_not_confirm_a_new_read(make_cluster: Any) -> None:
    """Even if the caller uses a context twice."""
    cluster = make_cluster(3, check_quorum=False)
    leader = cluster.elect(1)
    leader.raw.read_index(b"same")
    cluster.collect()
    answers: list[Message] = []
    cluster.deliver()
    cluster.collect()
    answers += [m for m in cluster.queue if m.type == MessageType.HEARTBEAT_RESP]
    cluster.settle()
    assert [context for _, context in leader.reads] == [b"same"]
    cluster.isolate(1)
    leader.raw.read_index(b"same")
    cluster.settle()
    for answer in answers:
        leader.raw.step(answer)
    cluster.settle()
    assert len(leader.reads) == 1


def test_reads_share_a_round(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    for number in range(50):
        leader.raw.read_index(b"%d" % number)
    assert sum(m.type == MessageType.HEARTBEAT for m in leader.raw.core.messages) == 2
    cluster.settle()
    assert len(leader.reads) == 50


def test_a_new_leader_reads_only_after_a_commit_of_its_own(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster[1].raw.campaign()
    while cluster[1].role is not NodeRole.LEADER:
        cluster.collect([2, 3])
        cluster.deliver()
        if cluster[1].role is not NodeRole.LEADER:
            cluster.collect([1])
    cluster[1].raw.read_index(b"early")
    assert cluster[1].raw.core.read_states == []
    assert len(cluster[1].raw.core.pending_read_requests) == 1
    cluster.settle()
    assert [context for _, context in cluster[1].reads] == [b"early"]


def test_a_group_of_one_reads_only_after_a_commit_of_its_own(make_cluster: Any) -> None:
    cluster = make_cluster(1)
    cluster[1].raw.campaign()
    while cluster[1].role is not NodeRole.LEADER:
        ready = cluster[1].raw.ready()
        if ready.hard_state is not None:
            cluster[1].storage.set_hard_state(ready.hard_state)
        cluster[1].raw.advance(ready)
    cluster[1].raw.read_index(b"early")
    assert cluster[1].raw.core.read_states == []
    cluster.settle()
    assert [context for _, context in cluster[1].reads] == [b"early"]


def test_lease_reads_are_off_by_default_and_bounded(make_cluster: Any) -> None:  # RAFT-10
    assert make_cluster(1)[1].options.get("read_mode") is None
    cluster = make_cluster(3, read_mode=ReadMode.LEASE, lease_drift_ticks=2)
    cluster.tick(40)  # the wait after a start, then an election
    leader = cluster.leader()
    assert leader is not None
    cluster.tick(2)
    assert leader.raw.core.lease_valid()
    leader.raw.read_index(b"now")
    assert [state.context for state in leader.raw.core.read_states] == [b"now"]
    cluster.settle()
    cluster.isolate(leader.id)
    for _ in range(10 - 2 - 1):
        leader.raw.tick()
    assert not leader.raw.core.lease_valid()
    assert leader.role is NodeRole.LEADER  # it does not know yet; the lease ended first


def test_a_transfer_ends_the_lease(make_cluster: Any) -> None:  # RAFT-10
    cluster = make_cluster(3, read_mode=ReadMode.LEASE)
    cluster.tick(40)
    leader = cluster.leader()
    assert leader is not None
    cluster.tick(2)
    target = next(i for i in cluster.members if i != leader.id)
    leader.raw.transfer_leader(target)
    assert not leader.raw.core.lease_valid()


# -- limits -----------------------------------------------------------------------------------------------------------
def test_in_flight_messages_are_bounded(make_cluster: Any) -> None:  # RAFT-17
    cluster = make_cluster(3, max_inflight_msgs=4, check_quorum=False)
    leader = cluster.elect(1)
    cluster.isolate(3)
    sent = 0
    for number in range(100):
        leader.raw.propose(b"%d" % number)
        cluster.collect()
        sent += sum(m.to == 3 and m.type == MessageType.APP and bool(m.entries) for m in cluster.queue)
        cluster.deliver()
    assert sent == 4
    cluster.heal()
    cluster.tick(4)
    assert cluster[3].data == leader.data


def test_in_flight_bytes_are_bounded(make_cluster: Any) -> None:  # RAFT-17
    cluster = make_cluster(2, max_size_per_msg=1000, max_inflight_bytes=3000)
    leader = cluster.elect(1)
    for _ in range(20):
        leader.raw.propose(bytes(900))
    sent = [m for m in leader.drain() if m.type == MessageType.APP and m.entries]
    assert sum(len(m.entries) for m in sent) == 4  # the one that crosses the limit is the last
    cluster.queue += sent
    cluster.settle()
    assert len(cluster[2].data) == 20


def test_messages_are_cut_at_max_size(make_cluster: Any) -> None:  # RAFT-17
    cluster = make_cluster(2, max_size_per_msg=1000, check_quorum=False)
    leader = cluster.elect(1)
    cluster.isolate(2)
    for _ in range(50):
        leader.raw.propose(bytes(300))
    cluster.settle()
    cluster.heal()
    sizes: list[int] = []

    def keep(message: Message) -> bool:
        if message.type == MessageType.APP:
            sizes.append(sum(len(entry.data) for entry in message.entries))
        return True

    for _ in range(6):
        leader.raw.tick()
        cluster.settle(keep)
    assert max(sizes) <= 1000
    assert len(cluster[2].data) == 50


def test_uncommitted_size_is_bounded(make_cluster: Any) -> None:
    cluster = make_cluster(3, max_uncommitted_entries_size=1000, check_quorum=False)
    leader = cluster.elect(1)
    cluster.isolate(1)
    with pytest.raises(ProposalDropped):
        for _ in range(11):
            leader.raw.propose(bytes(100))
    cluster.heal()
    cluster.tick(4)
    assert len(leader.data) == 10
    leader.raw.propose(bytes(5000))  # a large one alone is taken, or it could never be made
    cluster.settle()
    assert len(leader.data) == 11


def test_committed_entries_come_in_bounded_pages(make_cluster: Any) -> None:
    cluster = make_cluster(1, max_committed_size_per_ready=1000)
    leader = cluster.elect(1)
    for _ in range(30):
        leader.raw.propose(bytes(200))
    pages = []
    while leader.raw.has_ready():
        ready = leader.raw.ready()
        leader.storage.append(ready.entries)
        if ready.hard_state is not None:
            leader.storage.set_hard_state(ready.hard_state)
        pages.append(sum(len(entry.data) for entry in ready.committed_entries))
        leader.raw.advance(ready)
    assert sum(pages) == 6000
    assert max(pages) <= 1000


def test_an_idle_node_has_nothing_ready(make_cluster: Any) -> None:
    cluster = make_cluster(3)
    cluster.elect(1)
    cluster.settle()
    assert not any(member.raw.has_ready() for member in cluster.members.values())
    cluster[2].raw.tick()
    assert not cluster[2].raw.has_ready()


def test_acknowledgements_of_an_earlier_term_do_not_count(make_cluster: Any) -> None:  # RAFT-03
    """What they speak of may have been replaced since."""
    cluster = make_cluster(3)
    leader = cluster.elect(1)
    leader.raw.campaign()
    cluster.settle()
    cluster.isolate(1)
    leader.raw.propose(b"x")
    leader.drain()
    core = leader.raw.core
    last, committed = core.log.last_index(), core.log.committed
    assert committed < last
    leader.raw.step(Message(MessageType.APP_RESP, to=1, sender=2, term=core.term - 1, index=last))
    assert (core.progress[2].match, core.log.committed) == (committed, committed)
    leader.raw.step(Message(MessageType.APP_RESP, to=1, sender=2, term=core.term, index=last))
    assert core.log.committed == last
