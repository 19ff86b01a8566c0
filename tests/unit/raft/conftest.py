"""A group in one process, stepped by hand: messages wait until `deliver`, nothing happens by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from nokv.raft import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MemoryStorage,
    Message,
    NodeRole,
    RaftConfig,
    RaftSnapshot,
    RawNode,
    SnapshotMetadata,
    StepRejected,
    decode_conf_change,
)


class Storage(MemoryStorage):
    """Memory; a snapshot is made when asked for, of what the member has applied."""

    __slots__ = ("member",)

    member: Member

    def snapshot(self) -> RaftSnapshot:
        member = self.member
        metadata = SnapshotMetadata(member.applied, member.applied_term, member.conf_state)
        return RaftSnapshot(metadata, b"\n".join(member.data))


class Member:
    def __init__(self, node_id: int, conf_state: ConfState | None, **options: Any) -> None:
        self.id = node_id
        self.options = options
        self.storage = Storage()
        self.storage.member = self
        self.data: list[bytes] = []
        self.applied = self.applied_term = 0
        self.conf_state = ConfState()
        self.reads: list[tuple[int, bytes]] = []
        self.kinds: list[EntryKind] = []
        if conf_state is not None:
            self.storage.apply_snapshot(RaftSnapshot(SnapshotMetadata(1, 1, conf_state)))
            self.storage.set_hard_state(HardState(1, 0, 1))
            self.applied = self.applied_term = 1
            self.conf_state = conf_state
        self.start()

    def start(self) -> None:
        """Start, or start again with what is stored and applied."""
        config = RaftConfig(id=self.id, applied=self.applied, **self.options)
        self.raw = RawNode(config, self.storage, random.Random(self.id).randrange)

    def drain(self) -> list[Message]:
        """Do everything the node asks for; the messages it sends."""
        out: list[Message] = []
        while self.raw.has_ready():
            ready = self.raw.ready()
            if ready.snapshot is not None:
                self.storage.apply_snapshot(ready.snapshot)
            self.storage.append(ready.entries)
            if ready.hard_state is not None:
                self.storage.set_hard_state(ready.hard_state)
            out += ready.messages
            if ready.snapshot is not None:
                metadata = ready.snapshot.metadata
                self.applied, self.applied_term, self.conf_state = metadata.index, metadata.term, metadata.conf_state
                self.data = [part for part in ready.snapshot.data.split(b"\n") if part]
            for entry in ready.committed_entries:
                self._apply(entry)
            self.reads += [(state.index, state.context) for state in ready.read_states]
            self.raw.advance(ready)
            self.raw.core.check()
        return out

    def _apply(self, entry: Entry) -> None:
        assert entry.index == self.applied + 1
        self.applied, self.applied_term = entry.index, entry.term
        self.kinds.append(entry.kind)
        if entry.kind != EntryKind.NORMAL:
            self.conf_state = self.raw.apply_conf_change(decode_conf_change(entry.kind, entry.data))
        elif entry.data:
            self.data.append(entry.data)

    @property
    def role(self) -> NodeRole:
        return self.raw.core.role

    @property
    def term(self) -> int:
        return self.raw.core.term


class Cluster:
    def __init__(self, size: int, *, learners: int = 0, spare: int = 0, **options: Any) -> None:
        voters = tuple(range(1, size + 1))
        learning = tuple(range(size + 1, size + learners + 1))
        state = ConfState(voters, learning)
        self.members = {i: Member(i, state, **options) for i in voters + learning}
        for i in range(size + learners + 1, size + learners + spare + 1):
            self.members[i] = Member(i, None, **options)
        self.down: set[int] = set()
        self.cut: set[tuple[int, int]] = set()
        self.queue: list[Message] = []

    def __getitem__(self, node_id: int) -> Member:
        return self.members[node_id]

    def isolate(self, *node_ids: int) -> None:
        for node_id in node_ids:
            for other in self.members:
                if other not in node_ids:
                    self.cut |= {(node_id, other), (other, node_id)}

    def heal(self) -> None:
        self.cut = set()

    def collect(self, only: Iterable[int] | None = None) -> None:
        for node_id in only or self.members:
            if node_id not in self.down:
                self.queue += self.members[node_id].drain()

    def deliver(self, keep: Callable[[Message], bool] = lambda message: True) -> int:
        """One hop of everything queued."""
        messages, self.queue = self.queue, []
        for message in messages:
            if message.to in self.down or (message.sender, message.to) in self.cut or not keep(message):
                continue
            try:
                self.members[message.to].raw.step(message)
            except StepRejected:
                pass
        return len(messages)

    def settle(self, keep: Callable[[Message], bool] = lambda message: True) -> None:
        for _ in range(1000):
            self.collect()
            if not self.queue:
                return
            self.deliver(keep)
        raise AssertionError("the group does not come to rest")

    def tick(self, count: int = 1, only: Iterable[int] | None = None) -> None:
        for _ in range(count):
            for node_id in only or self.members:
                if node_id not in self.down:
                    self.members[node_id].raw.tick()
            self.settle()

    def elect(self, node_id: int) -> Member:
        self.members[node_id].raw.campaign()
        self.settle()
        assert self.members[node_id].role is NodeRole.LEADER
        return self.members[node_id]

    def leader(self) -> Member | None:
        found = [m for i, m in self.members.items() if i not in self.down and m.role is NodeRole.LEADER]
        return max(found, key=lambda m: m.term) if found else None

    def propose(self, data: bytes, node_id: int | None = None) -> None:
        member = self.members[node_id] if node_id else self.leader()
        assert member is not None
        member.raw.propose(data)
        self.settle()

    def crash(self, node_id: int) -> None:
        self.down.add(node_id)

    def restart(self, node_id: int) -> None:
        self.down.discard(node_id)
        member = self.members[node_id]
        # All of it was durable; the state machine is, too.
        member.start()


@pytest.fixture
def make_cluster() -> type[Cluster]:
    return Cluster
