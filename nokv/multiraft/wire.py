"""Raft messages and raft-log records as bytes: the compiled codec bound to the value classes of `nokv.raft`.

Layouts: docs/formats/raft_message.md and docs/formats/raft_log.md. Pure; any thread.
"""

from __future__ import annotations

import dataclasses

from nokv._ext import raftcodec
from nokv._ext.raftcodec import BATCH_BYTES_MAX, RaftCodec
from nokv.env.ports import Buffer
from nokv.raft.types import (
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    RaftSnapshot,
    SnapshotMetadata,
)

__all__ = ["BATCH_BYTES_MAX", "CODEC", "GroupMessage", "decode_messages", "encode_messages", "message_bytes"]

GroupMessage = tuple[int, Message]
"""(group_id, message): what one process tells another about one group."""

TRAVELLING = frozenset(
    {
        MessageType.PROP,
        MessageType.APP,
        MessageType.APP_RESP,
        MessageType.VOTE,
        MessageType.VOTE_RESP,
        MessageType.SNAP,
        MessageType.HEARTBEAT,
        MessageType.HEARTBEAT_RESP,
        MessageType.TRANSFER_LEADER,
        MessageType.TIMEOUT_NOW,
        MessageType.READ_INDEX,
        MessageType.READ_INDEX_RESP,
        MessageType.PRE_VOTE,
        MessageType.PRE_VOTE_RESP,
    }
)
"""Types that go from process to process. A peer that sends another one is refused by the decoder."""

MESSAGE_BYTES_FIXED = 64
ENTRY_BYTES_FIXED = 24

# The compiled codec fills the classes by position: an edit of the field order must not pass unseen.
_EXPECTED_FIELDS: dict[type, tuple[str, ...]] = {
    Message: (
        "type",
        "to",
        "sender",
        "term",
        "log_term",
        "index",
        "entries",
        "commit",
        "vote",
        "snapshot",
        "reject",
        "reject_hint",
        "context",
        "responses",
    ),
    Entry: ("term", "index", "kind", "data"),
    HardState: ("term", "vote", "commit"),
    SnapshotMetadata: ("index", "term", "conf_state"),
    RaftSnapshot: ("metadata", "data"),
    ConfState: ("voters", "learners", "voters_outgoing", "learners_next", "auto_leave"),
}
for _class, _names in _EXPECTED_FIELDS.items():
    if tuple(field.name for field in dataclasses.fields(_class)) != _names:
        raise TypeError(f"{_class.__name__} changed its fields: raftcodec.pyx and its format page must follow")

CODEC = RaftCodec(
    message=Message,
    entry=Entry,
    snapshot=RaftSnapshot,
    metadata=SnapshotMetadata,
    conf_state=ConfState,
    hard_state=HardState,
    message_types=tuple(
        MessageType(number) if MessageType(number) in TRAVELLING else None for number in range(max(MessageType) + 1)
    ),
    entry_kinds=tuple(EntryKind(number) for number in range(max(EntryKind) + 1)),
)


def encode_messages(messages: list[GroupMessage]) -> bytes:
    """One payload for the wire. ValueError if a message cannot travel or a limit is passed."""
    return CODEC.encode_messages(messages)


def decode_messages(payload: Buffer) -> list[GroupMessage]:
    """Corruption, naming the byte and the field, unless the payload is exactly what some `encode_messages` made."""
    return CODEC.decode_messages(payload)


def message_bytes(message: Message) -> int:
    """About how many bytes the message takes on the wire: what queues count."""
    total = MESSAGE_BYTES_FIXED + len(message.context)
    for entry in message.entries:
        total += len(entry.data) + ENTRY_BYTES_FIXED
    if message.snapshot is not None:
        total += len(message.snapshot.data)
    return total


assert raftcodec.BATCH_ENTRIES_MAX * ENTRY_BYTES_FIXED < BATCH_BYTES_MAX
