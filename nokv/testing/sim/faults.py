"""The nemesis: what goes wrong, when, and to whom."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from nokv.raft import (
    ConfChange,
    ConfChangeKind,
    ConfChangeTransition,
    ConfChangeV2,
    ConfState,
    NodeRole,
    ProposalDropped,
    SingleChange,
)
from nokv.testing.sim.values import ELECTION, SimNode

if TYPE_CHECKING:
    from nokv.testing.sim.raft import RaftSim

__all__ = ["Nemesis"]


class Nemesis:
    def __init__(self, sim: RaftSim) -> None:
        self.sim = sim
        self.blocked: set[tuple[int, int]] = set()
        """(sender, receiver) pairs whose messages are lost."""
        self.slow: set[tuple[int, int]] = set()
        """Pairs whose messages take long, and overtake each other."""
        self.echoing = False
        self.victim = 0
        self.kinds: dict[str, Callable[[SimNode], bool | None]] = {
            "crash": self.crash_some,
            "cut_one": self.cut_one,
            "cut_half": self.cut_half,
            "cut_one_way": self.cut_one_way,
            "pause": self.pause,
            "transfer": self.transfer,
            "campaign": self.campaign,
            "forget": self.forget,
            "unreachable": self.unreachable,
            "change": self.change,
            "stop_in_io": self.stop_in_io,
            "disk_error": self.disk_error,
            "rot": self.rot,
            "lie": self.lie,
            "slow": self.slow_links,
        }

    def turn(self) -> None:
        if self.sim.calm:
            return
        self.sim.at(self.sim.options.fault_gap // 2 + self.sim.pick(self.sim.options.fault_gap), self.turn)
        kind = self.sim.options.kinds[self.sim.pick(len(self.sim.options.kinds))]
        up = [node for node in self.sim.nodes.values() if node.raw is not None]
        leader = [node for node in up if node.raw is not None and node.raw.core.role is NodeRole.LEADER]
        if not up:
            return
        # Faults hit the leader more often than chance would: that is where they hurt.
        node = leader[0] if leader and self.sim.pick(2) else up[self.sim.pick(len(up))]
        if self.kinds[kind](node) is not False and kind != "crash":  # which is counted by how
            self.sim.count("cut_leader" if kind == "cut_one" and node in leader else kind)

    def strike_soon(self, node: SimNode) -> None:
        """A leader that lives just long enough to begin something, the schedules of figure 8 of the Raft paper."""
        if self.sim.options.storm:
            self._slow_around(node, 200 + self.sim.pick(1500))
        if not self.sim.pick(2 if self.sim.options.changes else 8):
            return  # this one may live
        deaf = [other for other in self.sim.nodes if other != node.id and self.sim.pick(2)]
        self._cut({(node.id, other) for other in deaf}, 50 + self.sim.pick(400))

        self.sim.at(10 + self.sim.pick(self.sim.options.leader_life), lambda: self.strike(node))

    def strike(self, node: SimNode) -> None:
        if self.sim.calm or node.raw is None or node.raw.core.role is not NodeRole.LEADER:
            return
        self.sim.count("strike")
        if self.sim.options.storm and self.sim.pick(2):
            self._depose(node)
            return
        if self.sim.pick(2) and self.may_lose_one():
            self.crash(node, 300)
        else:
            self.isolate(node, 100 + self.sim.pick(1500))
        self.sim.at(
            20 + self.sim.pick(100),
            lambda: self.campaign(self.sim.nodes[1 + self.sim.pick(self.sim.options.node_count)]),
        )

    def _depose(self, node: SimNode) -> None:
        """It leads, answers to it grow slow, then it is alone and does not know; another is elected meanwhile."""
        others = [other for other in self.sim.nodes if other != node.id]
        pairs = {(other, node.id) for other in others}
        self.slow |= pairs

        def cut() -> None:
            self.slow -= pairs
            self.isolate(node, 2 * ELECTION)
            for delay in (20, 200):
                target = others[self.sim.pick(len(others))]
                self.sim.at(delay, partial(self.campaign, self.sim.nodes[target]))

        self.sim.at(100 + self.sim.pick(300), cut)

    # -- a leader that comes back, and answers to its former reign -----------------------------------------------------
    def echo(self, node: SimNode) -> None:
        """It reaches one friend, whose answers take long; a rival replaces what both hold; then it is elected again and
        reaches one other, while the answers of its friend arrive, which speak of entries that are gone."""
        if self.echoing or self.sim.calm or node.raw is None or node.raw.core.role is not NodeRole.LEADER:
            return
        self.echoing = True
        self.sim.count("echo")
        others = [other for other in self.sim.nodes if other != node.id]
        friend, rival, witness = (others.pop(self.sim.pick(len(others))) for _ in range(3))
        reign = 150 + self.sim.pick(300)
        far = [other for other in self.sim.nodes if other not in (node.id, friend)]
        self._cut({(node.id, other) for other in far} | {(other, node.id) for other in far}, reign)
        self.slow.add((friend, node.id))

        def depose() -> None:
            self.slow.discard((friend, node.id))
            self.isolate(node, 50 + self.sim.pick(120))
            self.sim.at(5, lambda: self.campaign(self.sim.nodes[rival]))
            self.sim.at(60, lambda: self._come_back(node, rival, witness, self.sim.now + ELECTION))

        self.sim.at(reign, depose)

    def _come_back(self, node: SimNode, rival: int, witness: int, deadline: int) -> None:
        """As soon as nobody has a longer log."""
        raw = node.raw
        if self.sim.calm or raw is None or self.sim.now > deadline:
            self.echoing = False
            return
        logs = [other.raw.core.log.last_id() for other in self.sim.nodes.values() if other.raw is not None]
        if raw.core.role is NodeRole.LEADER or raw.core.log.last_id() < max(logs):
            self.sim.at(10, lambda: self._come_back(node, rival, witness, deadline))
            return
        self.campaign(node)
        far = [other for other in self.sim.nodes if other not in (node.id, witness)]
        time = 3 * ELECTION
        self.sim.at(25, lambda: self._cut({(node.id, other) for other in far}, time))  # the question is on its way
        self.sim.at(150, lambda: self._cut({(other, node.id) for other in far}, time))
        self.sim.at(150 + self.sim.pick(time), lambda: self.campaign(self.sim.nodes[rival]))

        def over() -> None:
            self.echoing = False

        self.sim.at(time, over)

    def may_lose_one(self) -> bool:
        down = sum(node.raw is None for node in self.sim.nodes.values())
        return down <= (self.sim.options.node_count - 1) // 2

    def crash(self, node: SimNode, down: int = ELECTION) -> None:
        self.sim.stop(node)
        self.sim.at(50 + self.sim.pick(down), lambda: self.restart(node))

    def restart(self, node: SimNode) -> None:
        if node.raw is None and not node.damaged:
            self.sim.start(node)
            self.sim.after(node)

    def crash_some(self, node: SimNode) -> None:
        if not self.sim.pick(8):
            for one in list(self.sim.nodes.values()):  # all at once: what is durable is all there is (RAFT-14)
                if one.raw is not None:
                    self.crash(one)
        elif self.may_lose_one():
            self.crash(node)

    def stop_in_io(self, node: SimNode) -> None:
        """The process dies in the middle of what it does to its disk; soon, or during its next recovery."""
        node.disk.crash_after(1 + self.sim.pick(12))

    def disk_error(self, node: SimNode) -> None:
        node.disk.fail(("write", "sync")[self.sim.pick(2)], (errno.EIO, errno.ENOSPC)[self.sim.pick(2)])

    def _is_victim(self, node: SimNode) -> bool:
        """One node a schedule may lose what it promised: a majority is needed, and has no other copy of a vote."""
        if self.victim == 0:
            self.victim = node.id
        return self.victim == node.id

    def rot(self, node: SimNode) -> bool:
        if not self._is_victim(node) or not self.may_lose_one():
            return False
        self.crash(node)
        node.rots = node.promised is None
        return node.rots

    def lie(self, node: SimNode) -> bool:
        """Some syncs do nothing; the process believes them, until it dies."""
        if not self._is_victim(node) or not self.may_lose_one():
            return False
        node.disk.lie(1 + self.sim.pick(20))
        self.sim.at(self.sim.pick(ELECTION), lambda: None if node.raw is None else self.crash(node))
        return True

    def _cut(self, pairs: set[tuple[int, int]], duration: int) -> None:
        self.blocked |= pairs

        def mend() -> None:
            self.blocked -= pairs

        self.sim.at(duration, mend)

    def isolate(self, node: SimNode, duration: int) -> None:
        others = [other for other in self.sim.nodes if other != node.id]
        self._cut({(node.id, other) for other in others} | {(other, node.id) for other in others}, duration)

    def _some_time(self) -> int:
        return 100 + self.sim.pick(2 * ELECTION)

    def cut_one(self, node: SimNode) -> None:
        self.isolate(node, self._some_time())

    def cut_half(self, node: SimNode) -> None:
        side = {other for other in self.sim.nodes if self.sim.pick(2)}
        self._cut(
            {(a, b) for a in self.sim.nodes for b in self.sim.nodes if (a in side) != (b in side)}, self._some_time()
        )

    def cut_one_way(self, node: SimNode) -> None:
        others = [other for other in self.sim.nodes if other != node.id and self.sim.pick(3)]
        inward = self.sim.pick(2)
        self._cut({(other, node.id) if inward else (node.id, other) for other in others}, self._some_time())

    def cut_joint(self, members: ConfState) -> None:
        """At the moment a joint configuration begins: those who leave on one side, those who come on the other."""
        leaving = {node_id for node_id in self.sim.nodes if node_id not in members.voters}
        if self.sim.calm or not leaving:
            return
        self.sim.count("cut_joint")
        nodes = self.sim.nodes
        time = self._some_time() + (2 * ELECTION if self.sim.options.replacements else 0)
        self._cut({(a, b) for a in nodes for b in nodes if (a in leaving) != (b in leaving)}, time)

    def cut_learners(self, leader: SimNode, members: ConfState) -> None:
        """When learners joined: the leader and they on one side, all other voters on the other."""
        if self.sim.calm or not members.learners:
            return
        self.sim.count("cut_learners")
        near = {leader.id, *members.learners}
        nodes = self.sim.nodes
        pairs = {(a, b) for a in nodes for b in nodes if (a in near) != (b in near)}
        self._cut(pairs, self._some_time() + 2 * ELECTION)

    def _slow_around(self, node: SimNode, duration: int) -> None:
        others = [other for other in self.sim.nodes if other != node.id and self.sim.pick(3)]
        inward = self.sim.pick(3)
        pairs = {(other, node.id) if inward else (node.id, other) for other in others}
        self.slow |= pairs

        def mend() -> None:
            self.slow -= pairs

        self.sim.at(duration, mend)

    def slow_links(self, node: SimNode) -> bool:
        """Links of this node are slow for a while, one way: old questions and answers arrive long after."""
        self._slow_around(node, self._some_time())
        if self.sim.pick(2):
            self.sim.at(self.sim.pick(400), lambda: self.isolate(node, self._some_time()))
        return False  # the messages are counted

    def pause(self, node: SimNode) -> None:
        node.paused_until = self.sim.now + 50 + self.sim.pick(3 * ELECTION)

    def transfer(self, node: SimNode) -> None:
        assert node.raw is not None
        if node.paused_until <= self.sim.now:
            node.raw.transfer_leader(1 + self.sim.pick(self.sim.options.node_count))
            self.sim.after(node)

    def campaign(self, node: SimNode) -> None:
        if node.raw is not None and node.paused_until <= self.sim.now and not self.sim.options.lease:
            node.raw.campaign()
            self.sim.after(node)

    def forget(self, node: SimNode) -> None:
        assert node.raw is not None
        if node.paused_until <= self.sim.now:
            node.raw.forget_leader()
            self.sim.after(node)

    def unreachable(self, node: SimNode) -> None:
        assert node.raw is not None
        if node.paused_until <= self.sim.now:
            node.raw.report_unreachable(1 + self.sim.pick(self.sim.options.node_count))
            self.sim.after(node)

    def change(self, node: SimNode) -> None:
        if node.paused_until > self.sim.now or node.raw is None:
            return
        if self.sim.options.step_down and node.raw.core.role is not NodeRole.LEADER:
            return  # its picture of the membership may be old, and voters_min must hold
        change = self._draw_change(node.raw.core.membership.conf_state(), node.id)
        if change is None:
            return
        try:
            node.raw.propose_conf_change(change)
        except ProposalDropped:
            return
        self.sim.after(node)
        if self.sim.pick(2) and not self.sim.calm and not self.sim.options.replacements:
            self.sim.at(10 + self.sim.pick(150), lambda: self.cut_half(node))

    def _draw_change(self, state: ConfState, proposer: int) -> ConfChange | ConfChangeV2 | None:
        """Something that leaves at least one voter, whatever of it is applied."""
        if state.voters_outgoing:
            return ConfChangeV2() if not state.auto_leave else None
        if not state.voters:
            return None  # it was never told
        voters, others = list(state.voters), [i for i in self.sim.nodes if i not in state.voters]
        changes = []
        replacements = self.sim.options.replacements
        if others and not self.sim.pick(2 if replacements else 3):  # as many as can be, at once
            stays = proposer if replacements and proposer in voters else voters[self.sim.pick(len(voters))]
            leaving = [voter for voter in voters if voter != stays]
            for target in others[: len(leaving)]:
                changes.append(SingleChange(ConfChangeKind.ADD_VOTER, target))
                changes.append(SingleChange(ConfChangeKind.REMOVE, leaving.pop(self.sim.pick(len(leaving)))))
            if changes:
                return ConfChangeV2(tuple(changes))
        for _ in range(1 + self.sim.pick(4)):
            if others and (len(voters) <= self.sim.options.voters_min or self.sim.pick(2)):
                target = others.pop(self.sim.pick(len(others)))
                learner = self.sim.pick(8) if self.sim.options.learners else not self.sim.pick(3)
                kind = ConfChangeKind.ADD_LEARNER if learner else ConfChangeKind.ADD_VOTER
                changes.append(SingleChange(kind, target))
            elif len(voters) > self.sim.options.voters_min:
                target = voters.pop(self.sim.pick(len(voters)))
                kind = ConfChangeKind.ADD_LEARNER if not self.sim.pick(4) else ConfChangeKind.REMOVE
                changes.append(SingleChange(kind, target))
        if not changes:
            return None
        if len(changes) == 1 and self.sim.pick(2):
            return ConfChange(changes[0].kind, changes[0].node_id)
        transition = ConfChangeTransition.JOINT_EXPLICIT if not self.sim.pick(4) else ConfChangeTransition.AUTO
        return ConfChangeV2(tuple(changes), transition)
