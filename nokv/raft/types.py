"""The values that a Raft group speaks: entries, messages, states, snapshots and what one turn of the machine asks for.

Plain mutable `@dataclass(slots=True)` for what is made once per entry or message (freezing makes creation about three
times dearer); treat them as read-only once handed over. Enum numbers reach the disk and the wire: they never change.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = [
    "LOCAL_APPEND_THREAD",
    "LOCAL_APPLY_THREAD",
    "NO_LIMIT",
    "NO_NODE",
    "ROLE_TRANSITIONS",
    "ConfState",
    "Entry",
    "EntryKind",
    "HardState",
    "Message",
    "MessageType",
    "NodeRole",
    "RaftSnapshot",
    "ReadState",
    "Ready",
    "SnapshotMetadata",
    "SoftState",
]

NO_NODE = 0
"""Not a node: no leader, no vote."""
NO_LIMIT = (1 << 63) - 1
LOCAL_APPEND_THREAD = (1 << 64) - 1
"""Target of MsgStorageAppend with asynchronous storage writes: the part of this process that persists."""
LOCAL_APPLY_THREAD = (1 << 64) - 2
"""Target of MsgStorageApply with asynchronous storage writes: the part of this process that applies."""


class EntryKind(enum.IntEnum):
    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class MessageType(enum.IntEnum):
    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23

    @property
    def label(self) -> str:
        """The name as the field writes it: MsgAppResp."""
        return _LABELS[self]


_LABELS = {kind: "Msg" + kind.name.title().replace("_", "") for kind in MessageType}


class NodeRole(enum.IntEnum):
    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3

    @property
    def label(self) -> str:
        return _ROLE_LABELS[self]


_ROLE_LABELS = {
    NodeRole.FOLLOWER: "StateFollower",
    NodeRole.CANDIDATE: "StateCandidate",
    NodeRole.LEADER: "StateLeader",
    NodeRole.PRE_CANDIDATE: "StatePreCandidate",
}


ROLE_TRANSITIONS: dict[tuple[NodeRole, NodeRole], str] = {
    (NodeRole.FOLLOWER, NodeRole.PRE_CANDIDATE): "election timeout, with pre-vote",
    (NodeRole.FOLLOWER, NodeRole.CANDIDATE): "election timeout, or a leader hands over",
    (NodeRole.FOLLOWER, NodeRole.FOLLOWER): "a higher term",
    (NodeRole.PRE_CANDIDATE, NodeRole.PRE_CANDIDATE): "election timeout",
    (NodeRole.PRE_CANDIDATE, NodeRole.CANDIDATE): "a quorum would vote for it",
    (NodeRole.PRE_CANDIDATE, NodeRole.FOLLOWER): "a leader, a higher term, or a quorum against it",
    (NodeRole.CANDIDATE, NodeRole.PRE_CANDIDATE): "election timeout, with pre-vote",
    (NodeRole.CANDIDATE, NodeRole.CANDIDATE): "election timeout",
    (NodeRole.CANDIDATE, NodeRole.LEADER): "a quorum of votes",
    (NodeRole.CANDIDATE, NodeRole.FOLLOWER): "a leader, a higher term, or a quorum against it",
    (NodeRole.LEADER, NodeRole.FOLLOWER): "a higher term, no active quorum, or its removal",
}
"""Every change of role there is, and why it happens; any other is a bug. docs/raft.md is drawn from this."""


@dataclass(slots=True)
class Entry:
    term: int
    index: int
    kind: EntryKind = EntryKind.NORMAL
    data: bytes = b""


@dataclass(slots=True)
class HardState:
    """What must survive a crash beside the log."""

    term: int = 0
    vote: int = NO_NODE
    commit: int = 0


@dataclass(slots=True)
class SoftState:
    """Who leads and what this node is. Not persisted."""

    leader: int
    role: NodeRole


@dataclass(slots=True)
class ConfState:
    """The membership. In a joint configuration `voters_outgoing` is the half that is being left."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


@dataclass(slots=True)
class SnapshotMetadata:
    index: int = 0
    term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)


@dataclass(slots=True)
class RaftSnapshot:
    """State up to and including `metadata.index`. `data` is opaque to Raft."""

    metadata: SnapshotMetadata
    data: bytes = b""


@dataclass(slots=True)
class Message:
    type: MessageType
    to: int = NO_NODE
    sender: int = NO_NODE
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: list[Entry] = field(default_factory=list)
    commit: int = 0
    vote: int = NO_NODE
    snapshot: RaftSnapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    responses: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class ReadState:
    """The read asked for with `context` is linearizable once this node has applied `index`."""

    index: int
    context: bytes


@dataclass(slots=True)
class Ready:
    """What must happen next, and in which order (docs/raft.md has the contract).

    1. Persist `snapshot`, `entries`, `hard_state`; sync if `must_sync` (and always for a snapshot).
    2. Then send `messages`. A leader may send its MsgApp before 1 is durable; nobody may send anything else earlier.
    3. Apply `snapshot`, then `committed_entries`, calling `apply_conf_change` for each configuration change.
    4. `advance(ready)`.
    """

    soft_state: SoftState | None = None
    hard_state: HardState | None = None
    entries: list[Entry] = field(default_factory=list)
    snapshot: RaftSnapshot | None = None
    committed_entries: list[Entry] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
    must_sync: bool = False

    def is_empty(self) -> bool:
        return not (
            self.soft_state
            or self.hard_state
            or self.entries
            or self.snapshot
            or self.committed_entries
            or self.messages
            or self.read_states
        )
