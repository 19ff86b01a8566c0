"""The compiled codec against a slow, obvious model; and hostile input."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext import raftcodec
from nokv._ext.crc32c import crc32c
from nokv._ext.raftcodec import OP_CHECKPOINT, OP_COMPACTED, OP_ENTRIES, OP_HARD_STATE, OP_REMOVED, OP_RESET
from nokv.errors import Corruption
from nokv.multiraft.wire import CODEC, TRAVELLING, decode_messages, encode_messages
from nokv.raft.types import ConfState, Entry, EntryKind, HardState, Message, MessageType, RaftSnapshot, SnapshotMetadata


# -- the model: docs/formats/raft_message.md and raft_log.md, word for word -----------------------------------------
def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def blob(data: bytes) -> bytes:
    return varint(len(data)) + data


def model_entries(entries: list[Entry]) -> bytes:
    out = varint(len(entries))
    for entry in entries:
        out += varint(entry.term) + varint(entry.index) + bytes([entry.kind.value]) + blob(entry.data)
    return out


def model_metadata(metadata: SnapshotMetadata) -> bytes:
    conf = metadata.conf_state
    out = varint(metadata.index) + varint(metadata.term)
    for members in (conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next):
        out += varint(len(members)) + b"".join(map(varint, members))
    return out + bytes([conf.auto_leave])


def model_messages(messages: list[tuple[int, Message]]) -> bytes:
    body = struct.pack("<I", len(messages))
    for group_id, m in messages:
        flags = 1 if m.reject else 0
        flags += 2 if m.entries else 0
        flags += 4 if m.snapshot else 0
        flags += 8 if m.context else 0
        flags += 16 if m.reject_hint else 0
        flags += 32 if m.vote else 0
        body += bytes([m.type.value, flags])
        for number in (group_id, m.to, m.sender, m.term, m.log_term, m.index, m.commit):
            body += varint(number)
        if m.reject_hint:
            body += varint(m.reject_hint)
        if m.vote:
            body += varint(m.vote)
        if m.context:
            body += blob(m.context)
        if m.snapshot:
            body += model_metadata(m.snapshot.metadata) + blob(m.snapshot.data)
        if m.entries:
            body += model_entries(m.entries)
    return struct.pack("<II", 1, crc32c(body)) + body


NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
MEMBERS = st.lists(NUMBERS, max_size=4).map(tuple)
CONF_STATES = st.builds(ConfState, MEMBERS, MEMBERS, MEMBERS, MEMBERS, st.booleans())
METADATA = st.builds(SnapshotMetadata, NUMBERS, NUMBERS, CONF_STATES)
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, st.sampled_from(EntryKind), st.binary(max_size=300))
HARD_STATES = st.builds(HardState, NUMBERS, NUMBERS, NUMBERS)
MESSAGES = st.builds(
    Message,
    st.sampled_from(sorted(TRAVELLING)),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.lists(ENTRIES, max_size=4),
    NUMBERS,
    NUMBERS,
    st.none() | st.builds(RaftSnapshot, METADATA, st.binary(max_size=100)),
    st.booleans(),
    NUMBERS,
    st.binary(max_size=40),
)
BATCHES = st.lists(st.tuples(NUMBERS, MESSAGES), max_size=6)


@given(BATCHES)
def test_messages_are_as_the_model_says_and_come_back(batch: list[tuple[int, Message]]) -> None:
    payload = encode_messages(batch)
    assert payload == model_messages(batch)
    for form in (payload, bytearray(payload), memoryview(payload)):
        assert decode_messages(form) == batch


@given(NUMBERS, st.none() | HARD_STATES, st.lists(ENTRIES, max_size=6))
def test_log_entries_are_as_the_model_says(group_id: int, state: HardState | None, entries: list[Entry]) -> None:
    records = CODEC.encode_entries(group_id, state, entries)
    hard = b"" if state is None else b"".join(map(varint, (state.term, state.vote, state.commit)))
    if entries:
        expected = [(16, bytes([1, state is not None]) + varint(group_id) + hard + model_entries(entries))]
        assert CODEC.decode_record(*records[0]) == (group_id, OP_ENTRIES, None, state, entries)
    elif state is not None:
        expected = [(17, b"\1" + varint(group_id) + hard)]
        assert CODEC.decode_record(*records[0]) == (group_id, OP_HARD_STATE, None, state, [])
    else:
        expected = []
    assert records == expected


@given(st.sampled_from([OP_RESET, OP_COMPACTED, OP_CHECKPOINT]), NUMBERS, METADATA, st.none() | HARD_STATES)
def test_marks_are_as_the_model_says(
    op: int, group_id: int, metadata: SnapshotMetadata, state: HardState | None
) -> None:
    record = CODEC.encode_mark(op, group_id, metadata, state)
    hard = b"" if state is None else b"".join(map(varint, (state.term, state.vote, state.commit)))
    assert record == (18, bytes([1, op, state is not None]) + varint(group_id) + model_metadata(metadata) + hard)
    assert CODEC.decode_record(*record) == (group_id, op, metadata, state, [])


@given(NUMBERS)
def test_tombstone(group_id: int) -> None:
    assert CODEC.encode_removed(group_id) == (19, b"\1" + varint(group_id))
    assert CODEC.decode_record(*CODEC.encode_removed(group_id)) == (group_id, OP_REMOVED, None, None, [])


def test_large_saves_become_several_records_with_the_hard_state_last() -> None:
    entries = [Entry(1, i, data=b"x" * (1 << 20)) for i in range(1, 11)]
    records = CODEC.encode_entries(3, HardState(1, 2, 3), entries)
    assert len(records) > 1
    decoded = [CODEC.decode_record(*record) for record in records]
    assert [d[3] for d in decoded] == [None] * (len(records) - 1) + [HardState(1, 2, 3)]
    assert [e for d in decoded for e in d[4]] == entries


# -- hostile ---------------------------------------------------------------------------------------------------------
FULL = [
    (
        7,
        Message(
            MessageType.APP,
            2,
            1,
            5,
            4,
            300,
            [Entry(5, 301, EntryKind.NORMAL, b"abc"), Entry(5, 302, EntryKind.CONF_CHANGE, b"")],
            299,
            1,
            RaftSnapshot(SnapshotMetadata(9, 3, ConfState((1, 2), (3,), (), (4,), True)), b"data"),
            True,
            17,
            b"ctx",
        ),
    ),
    (8, Message(MessageType.HEARTBEAT, 2, 1, 5)),
]


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    payload = encode_messages(FULL)
    for position in range(len(payload)):
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corruption):
                decode_messages(damaged)
        with pytest.raises(Corruption):
            decode_messages(payload[:position])
    with pytest.raises(Corruption):
        decode_messages(payload + b"\0")


def sealed(body: bytes) -> bytes:
    return struct.pack("<II", 1, crc32c(body)) + body


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_with_a_right_checksum_is_refused_or_decodes_to_itself(data: st.DataObject) -> None:
    """An attacker can compute a checksum: then only typed errors and bounded work are promised."""
    body = bytearray(encode_messages(FULL)[8:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(4, len(body)))]
    try:
        batch = decode_messages(sealed(bytes(body)))
    except Corruption as error:
        assert "raft message batch" in str(error) and "byte" in str(error)
        return
    assert decode_messages(encode_messages(batch)) == batch


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_decodes_to_itself(noise: bytes) -> None:
    for data in (noise, sealed(noise)):
        try:
            batch = decode_messages(data)
        except Corruption:
            continue
        assert decode_messages(encode_messages(batch)) == batch


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=100), st.booleans())
def test_noise_in_the_log_is_refused_or_decodes(record_type: int, noise: bytes, versioned: bool) -> None:
    try:
        group_id, op, _, _, entries = CODEC.decode_record(record_type, b"\1" + noise if versioned else noise)
    except Corruption as error:
        assert "raft log record" in str(error)
        return
    assert group_id >= 0 and OP_ENTRIES <= op <= OP_REMOVED and isinstance(entries, list)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"\xff\xff\xff\xff", "message count"),
        (struct.pack("<I", 1) + bytes(9) + b"\0", "message.type 0"),
        (struct.pack("<I", 1) + bytes([8, 64]) + bytes(7), "message.flags 64"),
        (struct.pack("<I", 1) + bytes([3, 2]) + bytes(7) + varint(2**40), "entry count"),
        (struct.pack("<I", 1) + bytes([3, 2]) + bytes(7) + b"\1\1\1\7\0", "entry.kind 7"),
        (struct.pack("<I", 1) + bytes([3, 2]) + bytes(7) + b"\1\1\1\0" + varint(2**63), "entry.data"),
        (struct.pack("<I", 1) + bytes([8, 0]) + b"\xff" * 10 + bytes(7), "group_id"),
        (struct.pack("<I", 1) + bytes([8, 0]) + bytes(7) + b"\0", "after the last message"),
    ],
)
def test_the_error_names_the_field(body: bytes, field: str) -> None:
    with pytest.raises(Corruption, match=field):
        decode_messages(sealed(body))


def test_unknown_version_is_refused() -> None:
    payload = bytearray(encode_messages(FULL))
    payload[0] = 2
    with pytest.raises(Corruption, match="version 2"):
        decode_messages(payload)


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.HUP),
        Message(MessageType.STORAGE_APPEND),
        Message(MessageType.APP, responses=[Message(MessageType.APP_RESP)]),
        Message(MessageType.APP, to=-1),
        Message(MessageType.APP, to=2**64),
        Message(MessageType.APP, entries=[Entry(1, 1, data=bytearray(b"x"))]),  # type: ignore[arg-type]
        Message(MessageType.APP, entries=[Entry(1, 1, data=bytes(raftcodec.ENTRY_DATA_MAX + 1))]),
        Message(MessageType.READ_INDEX, context=bytes(70_000)),
    ],
    ids=["local", "storage", "responses", "negative", "large", "mutable", "entry", "context"],
)
def test_what_the_format_cannot_hold_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match="raft codec"):
        encode_messages([(1, message)])


def test_many_tiny_entries_cannot_make_us_allocate_without_bound() -> None:
    count = raftcodec.BATCH_ENTRIES_MAX + 1
    body = struct.pack("<I", 1) + bytes([3, 2]) + bytes(7) + varint(count) + b"\1\1\0\0" * count
    with pytest.raises(Corruption, match="entry count"):
        decode_messages(sealed(body))
