"""The nemesis: what goes wrong, when, and to whom."""

from __future__ import annotations

from collections.abc import Callable
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
        self.kinds: dict[str, Callable[[SimNode], None]] = {
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
        self.sim.count(kind)
        self.kinds[kind](node)

    def strike_soon(self, node: SimNode) -> None:
        """A leader that lives just long enough to begin something, the schedules of figure 8 of the Raft paper."""
        if not self.sim.pick(2 if self.sim.options.changes else 8):
            return  # this one may live
        deaf = [other for other in self.sim.nodes if other != node.id and self.sim.pick(2)]
        self._cut({(node.id, other) for other in deaf}, 50 + self.sim.pick(400))

        self.sim.at(10 + self.sim.pick(self.sim.options.leader_life), lambda: self.strike(node))

    def strike(self, node: SimNode) -> None:
        if self.sim.calm or node.raw is None or node.raw.core.role is not NodeRole.LEADER:
            return
        self.sim.count("strike")
        if self.sim.pick(2) and self.may_lose_one():
            self.crash(node, 300)
        else:
            self.isolate(node, 100 + self.sim.pick(1500))
        self.sim.at(
            20 + self.sim.pick(100),
            lambda: self.campaign(self.sim.nodes[1 + self.sim.pick(self.sim.options.node_count)]),
        )

    def may_lose_one(self) -> bool:
        down = sum(node.raw is None for node in self.sim.nodes.values())
        return down <= (self.sim.options.node_count - 1) // 2

    def crash(self, node: SimNode, down: int = ELECTION) -> None:
        self.sim.count("crash")
        self.sim.stop(node)
        self.sim.at(50 + self.sim.pick(down), lambda: self.restart(node))

    def restart(self, node: SimNode) -> None:
        if node.raw is None:
            self.sim.start(node)
            self.sim.after(node)

    def crash_some(self, node: SimNode) -> None:
        if not self.sim.pick(8):
            for one in list(self.sim.nodes.values()):  # all at once: what is durable is all there is (RAFT-14)
                if one.raw is not None:
                    self.crash(one)
        elif self.may_lose_one():
            self.crash(node)

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
        change = self._draw_change(node.raw.core.membership.conf_state())
        if change is None:
            return
        try:
            node.raw.propose_conf_change(change)
        except ProposalDropped:
            return
        self.sim.after(node)
        if self.sim.pick(2) and not self.sim.calm:
            self.sim.at(10 + self.sim.pick(150), lambda: self.cut_half(node))

    def _draw_change(self, state: ConfState) -> ConfChange | ConfChangeV2 | None:
        """Something that leaves at least one voter, whatever of it is applied."""
        if state.voters_outgoing:
            return ConfChangeV2() if not state.auto_leave else None
        voters, others = list(state.voters), [i for i in self.sim.nodes if i not in state.voters]
        changes = []
        for _ in range(1 + self.sim.pick(4)):
            if others and (len(voters) <= self.sim.options.voters_min or self.sim.pick(2)):
                target = others.pop(self.sim.pick(len(others)))
                kind = ConfChangeKind.ADD_LEARNER if not self.sim.pick(3) else ConfChangeKind.ADD_VOTER
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
