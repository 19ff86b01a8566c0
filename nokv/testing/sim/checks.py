"""What a group must never do, compared with all that it ever promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nokv.raft import ConfState, Entry, NodeRole, RawNode
from nokv.raft.core import RaftCore
from nokv.testing.sim.values import SimNode, Violation

if TYPE_CHECKING:
    from nokv.testing.sim.raft import RaftSim

__all__ = ["Checks"]


class Checks:
    """The memory of the whole group, across crashes."""

    def __init__(self, sim: RaftSim) -> None:
        self.sim = sim
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.written: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: dict[int, tuple[int, int, bytes]] = {}
        self.committed_by: dict[int, int] = {}
        self.last_committed = 0
        self.digests: dict[int, int] = {}
        self.memberships: dict[int, ConfState] = {}

    def check(self, node: SimNode, raw: RawNode) -> bool:
        """After each event. True if a leader has just learned of a commit."""
        core = raw.core
        core.check()
        term, commit = core.term, core.log.committed
        if term < node.seen_term:
            raise Violation(f"term of {node.id} fell from {node.seen_term} to {term}")
        if not self.sim.options.asynchronous and not node.busy and not raw.has_ready():
            node.seen_term = term  # durable by now
        if commit < node.seen_commit:
            raise Violation(f"commit of {node.id} fell from {node.seen_commit} to {commit}")
        news = commit > node.seen_commit and core.role is NodeRole.LEADER
        node.seen_commit = commit
        if core.role is NodeRole.LEADER:
            known = self.leaders.setdefault(term, node.id)
            if known != node.id:
                raise Violation(f"two leaders in term {term}: {known} and {node.id}")
        if commit > node.checked_commit:
            self._committed(node, core)
        return news

    def _committed(self, node: SimNode, core: RaftCore) -> None:
        log = core.log
        first = max(node.checked_commit + 1, log.first_index())
        for entry in log.slice(first, log.committed + 1, 1 << 62):
            content = (entry.term, int(entry.kind), entry.data)
            known = self.committed.setdefault(entry.index, content)
            self.committed_by.setdefault(entry.index, core.term)
            if known != content:
                raise Violation(f"index {entry.index} committed as {known}, and as {content} on {node.id}")
        node.checked_commit = log.committed
        self.last_committed = max(self.last_committed, log.committed)

    def new_leader(self, node: SimNode, raw: RawNode) -> None:
        log = raw.core.log
        for index in range(max(log.first_index(), self.last_committed - 16), self.last_committed + 1):
            known = self.committed.get(index)
            if known is None or raw.core.term <= self.committed_by[index]:
                continue  # a leader of the past, elected late: it will commit nothing
            if log.term_or_zero(index) != known[0]:
                raise Violation(
                    f"leader {node.id} of term {raw.core.term} lacks committed entry {index} of term {known[0]}"
                )

    def written_entries(self, node: SimNode, entries: list[Entry]) -> None:
        if not entries:
            return
        live = node.disk.log
        previous = live.term(entries[0].index - 1)
        for entry in entries:
            content = (previous, int(entry.kind), entry.data)
            known = self.written.setdefault((entry.index, entry.term), content)
            if known != content:
                raise Violation(
                    f"entry {entry.index} of term {entry.term} is {known} somewhere, and {content} on {node.id}"
                )
            previous = entry.term

    def applied(self, node: SimNode) -> None:
        digest = node.machine.digest()
        known = self.digests.setdefault(node.applied, digest)
        if known != digest:
            raise Violation(f"state at {node.applied} differs on {node.id}")

    def vote(self, voter: int, term: int, candidate: int) -> None:
        known = self.votes.setdefault((voter, term), candidate)
        if known != candidate:
            raise Violation(f"{voter} voted for {known} and for {candidate} in term {term}")
