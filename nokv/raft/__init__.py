"""The Raft consensus state machine, after etcd-io/raft's RawNode contract and Ongaro's thesis.

Owns: terms, votes, log matching, commit, membership, read index. Pure: no asyncio, grpc, protobuf, threading, time,
random, os. Does not own: storage, network, clock. Read `rawnode.py` first.
"""

from __future__ import annotations

from nokv.raft.confchange import (
    ConfChange,
    ConfChangeKind,
    ConfChangeTransition,
    ConfChangeV2,
    SingleChange,
    decode_conf_change,
    encode_conf_change,
)
from nokv.raft.config import RaftConfig, RaftLogger, ReadMode
from nokv.raft.errors import (
    Compacted,
    ConfChangeError,
    LogUnavailable,
    PeerNotFound,
    ProposalDropped,
    SnapshotOutOfDate,
    SnapshotTemporarilyUnavailable,
    StepLocalMessage,
    StepRejected,
    StorageError,
)
from nokv.raft.rawnode import RaftStatus, RawNode
from nokv.raft.storage import LogStorage, MemoryStorage
from nokv.raft.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NodeRole,
    RaftSnapshot,
    ReadState,
    Ready,
    SnapshotMetadata,
    SoftState,
)

__all__ = [
    "Compacted",
    "ConfChange",
    "ConfChangeError",
    "ConfChangeKind",
    "ConfChangeTransition",
    "ConfChangeV2",
    "ConfState",
    "Entry",
    "EntryKind",
    "HardState",
    "LogStorage",
    "LogUnavailable",
    "MemoryStorage",
    "Message",
    "MessageType",
    "NodeRole",
    "PeerNotFound",
    "ProposalDropped",
    "RaftConfig",
    "RaftLogger",
    "RaftSnapshot",
    "RaftStatus",
    "RawNode",
    "ReadMode",
    "ReadState",
    "Ready",
    "SingleChange",
    "SnapshotMetadata",
    "SnapshotOutOfDate",
    "SnapshotTemporarilyUnavailable",
    "SoftState",
    "StepLocalMessage",
    "StepRejected",
    "StorageError",
    "decode_conf_change",
    "encode_conf_change",
]
