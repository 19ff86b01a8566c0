"""What a seed decides before anything happens: which faults there are, and how often (swarm testing)."""

from __future__ import annotations

import random

from nokv.testing.sim.values import Bugs

__all__ = ["Options"]


class Options:
    """Drawn once. A schedule with every fault at once hides what two of them do."""

    def __init__(self, seed: int, draw: random.Random, bugs: Bugs) -> None:
        self.voter_count = draw.choice((1, 2, 3, 3, 3, 3, 5, 5))
        self.changes = draw.random() < 0.5 or bugs.joint or bugs.learners
        self.replacements = self.changes and (draw.random() < 0.4 or bugs.joint)
        """Changes replace as many voters as can be, and a cut follows that lasts: each half may elect on its own."""
        if bugs.joint or bugs.learners:
            self.voter_count, self.replacements = 3, bugs.joint
        self.node_count = min(self.voter_count + (2 if self.changes else 0), 6)
        self.lease = draw.random() < 0.2 or bugs.lease
        self.asynchronous = draw.random() < 0.3
        self.early_appends = draw.random() < 0.5
        self.disk_latency = draw.choice((0, 20, 100, 300))
        self.safe_elections = self.changes or self.lease or draw.random() < 0.7
        self.loss = draw.choice((0, 0, 3, 10, 30))
        self.duplication = draw.choice((0, 0, 10, 50))
        self.long_delay = draw.choice((0, 0, 2, 10))
        self.keep_entries = draw.choice((0, 2, 10))
        self.compact_every = draw.choice((4, 10, 30, 1 << 30))
        self.skew = draw.choice((0, 5, 10))
        self.client_count = draw.choice((3, 5, 8))
        self.crash_in_ready = draw.choice((0, 0, 3, 15))
        self.message_size = draw.choice((1, 1, 64, 1 << 20))
        self.inflight = draw.choice((1, 1, 4, 256))
        self.strike = draw.random() < 0.3 or bugs.storm
        self.storm = self.strike and (draw.random() < 0.4 or bugs.storm)
        if self.storm:
            self.changes = self.replacements = False
        kinds = [
            "crash",
            "cut_one",
            "cut_half",
            "cut_one_way",
            "pause",
            "transfer",
            "campaign",
            "forget",
            "unreachable",
            "slow",
        ]
        self.kinds = [kind for kind in kinds if draw.random() < 0.6] or ["crash"]
        if self.changes:
            self.kinds += ["change", "change"]
        if self.lease and not bugs.lease_reads_with_pauses:
            # A pause is a clock that stands still: outside the bound that lease reads are promised under.
            self.kinds = [kind for kind in self.kinds if kind != "pause"] or ["crash"]
        elif bugs.lease_reads_with_pauses:
            self.kinds += ["pause", "pause", "pause"]
        self.fault_gap = draw.choice((150, 400, 800, 1500))
        # A leader that is removed from two voters and steps down at once may leave the other with a shorter log than
        # its own, unable to win and unable to learn that it is alone now. So: never below three, or no stepping down.
        self.step_down = self.voter_count >= 3 and draw.random() < 0.6
        self.voters_min = 3 if self.step_down else 1
        if self.strike:
            self._draw_strikes(draw)
        self.storage = draw.choice(("file", "wal", "both"))
        if draw.random() < 0.4:
            self.kinds += ["stop_in_io", "disk_error"]
        if not self.changes and self.voter_count >= 3 and draw.random() < 0.3:
            self.kinds += ["rot", "lie"]
        self.echo = random.Random(f"echo? {seed}").random() < 0.1 or bugs.echo  # dice of its own, as quiet groups have
        if self.echo:
            self._draw_echoes()
        self.learners = self.changes and not self.replacements and random.Random(f"learners? {seed}").random() < 0.3
        """Most of those who join are learners, and leaders are cut off with them alone."""
        self.learners |= bugs.learners

    def _draw_echoes(self) -> None:
        """A profile of its own: five voters, and the leader of today leads again soon (`Nemesis.echo`)."""
        self.voter_count = self.node_count = 5
        self.strike = self.storm = self.changes = self.replacements = self.lease = self.safe_elections = False
        self.kinds = [kind for kind in self.kinds if kind != "change"] or ["crash"]
        self.loss = self.crash_in_ready = 0
        self.disk_latency = min(self.disk_latency, 20)
        self.inflight, self.message_size = 256, 1 << 20
        self.client_count = 8
        self.fault_gap = 4000

    def _draw_strikes(self, draw: random.Random) -> None:
        """A profile of its own: leaders live a few message delays, and reach only some of the others."""
        if not self.changes:
            self.voter_count = self.node_count = draw.choice((3, 5, 5))
        elif self.voter_count < 3:
            self.voter_count, self.node_count = 3, 5
        if not self.changes and not self.lease:
            self.safe_elections = False
        self.message_size = self.inflight = 1
        if self.storm:
            self.message_size, self.inflight = draw.choice(((1, 1), (1 << 20, 256)))
            self.client_count = 8
        self.loss = draw.choice((0, 3))
        self.disk_latency = draw.choice((0, 20, 100))
        self.long_delay = draw.choice((0, 10, 20))
        self.fault_gap = 300 if self.changes else 1500
        self.leader_life = draw.choice((150, 400, 1500)) if self.changes else 400
