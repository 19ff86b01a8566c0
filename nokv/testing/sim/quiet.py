"""Hibernation in the simulator: what a MultiRaftHost does for quiet groups, with the real StoreLiveness on each node.

A share of the seeds has it, with clients that fall silent now and then, or nothing would ever come to rest. Beats
travel the simulated network with its loss, delay and partitions. Half of these seeds have a host that never doubts a
quiet leader: safety may not depend on it. At the end the group must come to rest, and elect again when its leader
dies quietly."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nokv.multiraft.liveness import StoreLiveness, decode_beat
from nokv.raft import Message, MessageType, NodeRole, RawNode
from nokv.raft.quorum import VoteResult
from nokv.testing.sim.values import ELECTION, ELECTION_TICKS, HEARTBEAT_TICKS, TICK, SimNode, Violation

if TYPE_CHECKING:
    from nokv.testing.sim.raft import RaftSim

__all__ = ["Hibernation"]

GROUP = 1


class Hibernation:
    def __init__(self, sim: RaftSim) -> None:
        draw = random.Random(f"quiet {sim.seed}")  # dice of its own: the other seeds stay what they were
        self.sim = sim
        self.quiet_after_ticks = draw.choice((1, 2, 5, 10))
        self.busy_time = ELECTION * draw.choice((1, 2, 4))
        self.idle_time = TICK * self.quiet_after_ticks + ELECTION * draw.choice((2, 4, 8))
        self.leaders_doubt = draw.random() < 0.5 and not sim.bugs.left_behind
        self.leave_behind = draw.random() < 0.6 or sim.bugs.left_behind
        """Quiet leaders are cut off until the others have gone on and the clients are back, with little else to wake
        them."""
        if self.leave_behind:
            sim.options.fault_gap *= 4
        self.idle_until = 0
        self.silenced = False
        """No client asks for anything any more."""
        self._liveness: dict[int, StoreLiveness] = {}
        self._resting: dict[int, bool] = {}

    @staticmethod
    def drawn(seed: int) -> bool:
        return random.Random(f"quiet? {seed}").random() < 0.3

    def clients_idle(self) -> bool:
        if self.silenced:
            return True
        if self.sim.calm:
            return False
        return self.sim.now < self.idle_until or self.sim.now % (self.busy_time + self.idle_time) >= self.busy_time

    # -- the host's part ----------------------------------------------------------------------------------------------
    def started(self, node: SimNode) -> None:
        self._liveness[node.id] = StoreLiveness(silent_ticks=ELECTION_TICKS, beat_ticks=HEARTBEAT_TICKS)
        self._resting[node.id] = False

    def follow(self, raw: RawNode) -> None:
        """The node may have gone quiet, or woken up."""
        liveness, core = self._liveness[raw.id], raw.core
        if raw.quiet is self._resting[raw.id]:
            return
        self._resting[raw.id] = raw.quiet
        if not raw.quiet:
            liveness.wake(GROUP)
        elif core.leader == core.id:
            self.sim.count("rest")
            if self.leave_behind and not self.sim.calm and self.sim.pick(3):
                node = self.sim.nodes[raw.id]
                self.idle_until = self.sim.now + 3 * ELECTION
                self.sim.at(self.sim.pick(TICK), lambda: self.sim.faults.isolate(node, 5 * ELECTION))
            liveness.rest_as_leader(GROUP, core.term, core.id, {i: i for i in core.progress if i != core.id})
        else:
            liveness.rest_as_follower(GROUP, core.term, core.leader, core.id, core.leader)

    def tick(self, raw: RawNode) -> list[Message]:
        """After `raw.tick()`. The beats to send."""
        self.follow(raw)
        liveness = self._liveness[raw.id]
        verdict = liveness.tick()
        if verdict.wake and not self.sim.bugs.deaf_host:
            raw.wake(liveness.unheard_ticks(GROUP))
        if verdict.doubt and self.leaders_doubt:
            heard = {i: i == raw.id or not liveness.is_silent(i) for i in raw.core.progress}
            if raw.core.membership.vote_result(heard) is not VoteResult.WON:
                raw.wake()
        self.follow(raw)
        liveness.check()
        return [Message(MessageType.BEAT, to=to, sender=raw.id, context=beat) for to, beat in verdict.beats]

    def takes(self, raw: RawNode, message: Message) -> bool:
        """Before a message is stepped. True if it was a beat, and is done with."""
        self.follow(raw)
        liveness = self._liveness[raw.id]
        liveness.heard(message.sender)
        if message.type == MessageType.BEAT:
            if liveness.beat(message.sender, decode_beat(message.context)) and not self.sim.bugs.deaf_host:
                raw.wake(liveness.unheard_ticks(GROUP))
            return True
        if raw.quiet and raw.core.leader not in (raw.id, message.sender):
            raw.wake(liveness.unheard_ticks(GROUP))
        return False

    # -- the end ------------------------------------------------------------------------------------------------------
    def all_quiet(self) -> bool:
        """The leader and every member of its configuration; whoever is no member is stopped, as a store would."""
        nodes = self.sim.nodes
        leading = [n.raw for n in nodes.values() if n.raw is not None and n.raw.core.role is NodeRole.LEADER]
        if not leading:
            return False
        core = max(leading, key=lambda raw: raw.core.term).core
        members = core.membership.voters | core.membership.learners
        for node_id in members:
            raw = nodes[node_id].raw
            if raw is None or raw.core.log.applied != core.log.last_index():
                return False  # it may still need the vote of one that is no member any more
        for node_id in set(nodes) - members:
            self.sim.stop(nodes[node_id])
        return all(raw.quiet for raw in (nodes[i].raw for i in members) if raw is not None)

    def replaced(self, dead: int, term: int) -> bool:
        """Somebody else leads, and has applied an entry of its own term."""
        for node in self.sim.nodes.values():
            raw = node.raw
            if raw is not None and node.id != dead and raw.core.role is NodeRole.LEADER and raw.core.term > term:
                return bool(raw.core.log.term_or_zero(node.applied) == raw.core.term)
        return False

    def finish(self, liveness_time: int) -> None:
        """After convergence."""
        sim = self.sim
        self.silenced = True
        if not sim.until(sim.now + liveness_time, lambda: sim.converged() and self.all_quiet()):
            raise Violation(f"the group does not come to rest: {sim.picture()}")
        leader = next(n for n in sim.nodes.values() if n.raw is not None and n.raw.core.role is NodeRole.LEADER)
        assert leader.raw is not None
        term, voters = leader.raw.core.term, leader.raw.core.membership.voters
        if len(voters) < 3:
            return
        sim.stop(leader)
        if not sim.until(sim.now + liveness_time, lambda: self.replaced(leader.id, term)):
            raise Violation(f"a quiet leader died and nobody took over: {sim.picture()}")
