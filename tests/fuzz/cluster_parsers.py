"""The parsers of commands, versions, the raft log, snapshots and local metadata; as engine_parsers.py."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from nokv._ext import command, mvcc
from nokv._ext.batch import WriteBatch, decode_batch
from nokv._ext.crc32c import crc32c
from nokv._ext.raftcodec import OP_CHECKPOINT, OP_COMPACTED, OP_RESET
from nokv.errors import Corruption, KeyLocked, NoKVError
from nokv.multiraft.filelog import RECORD_BASE, RECORD_SYNCED, decode_file, encode_file
from nokv.multiraft.liveness import BUCKETS, Beat, decode_beat, encode_beat
from nokv.multiraft.wire import CODEC, decode_messages, encode_messages
from nokv.raft.confchange import ConfChangeKind, ConfChangeV2, SingleChange, decode_conf_change, encode_conf_change
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
from nokv.raftstore import localmeta
from nokv.raftstore.membership import ChangeKind, decode_change, encode_change, plan_change
from nokv.raftstore.snapshot import (
    SnapshotFile,
    SnapshotManifest,
    Staging,
    decode_manifest,
    encode_manifest,
    verify_staged,
)
from nokv.region import Peer, PeerRole, Region, RegionEpoch
from nokv.testing.files import CrashFiles
from tests.fuzz import references
from tests.fuzz.references import Pieces, Refused
from tests.fuzz.target import Target, put32, seal_tail

# -- commands and versions --------------------------------------------------------------------------------------------
WRITES = [(b"a", b"1"), (b"b", None), (b"", b"x" * 200), (b"c" * 30, b"")]


def commands() -> list[bytes]:
    lock = KeyLocked("locked", lock=(b"k", b"record"))
    groups = [command.pack_writes(WRITES[:n]) for n in range(5)]
    return [
        *groups,
        command.pack_gets([b"a", b"", b"c" * 200]),
        command.pack_scan(b"a", b"q", 7, reverse=True),
        command.pack_reads([b"k", (b"a", b"", 0, 3)]),
        command.pack_results([None, b"value", 7, ([(b"k", b"v"), (b"l", b"")], True, False), lock]),
        command.pack_results([([(b"k", b""), (b"l", b"")], False, True)]),
        command.pack_batch(9, 100, [(5, groups[4]), (6, groups[1])]),
        command.pack_batch(1, 0, []),
    ]


def seal_command(data: bytearray) -> None:
    """A batch's groups have checksums of their own."""
    if data[:2] == b"\x01\x10":
        pieces = Pieces(bytes(data[:-4]))
        try:
            pieces.take(18)
            for _ in range(pieces.varint()):
                pieces.take(8)
                size = pieces.varint()
                start = pieces.at
                group = bytearray(pieces.take(size))
                seal_tail(group)
                data[start : start + size] = group
        except Refused:
            pass
    seal_tail(data)


def parse_command(data: memoryview) -> dict[str, Any]:
    whole = bytes(data)
    found: dict[str, Any] = {}
    for name, parse in {
        "writes": command.unpack_writes,
        "reads": lambda d: command.unpack_reads(d, b"", b""),
        "results": command.unpack_results,
        "batch": command.unpack_batch,
    }.items():
        try:
            found[name] = parse(whole)
        except NoKVError:
            pass
    if "writes" in found:
        assert command.check_writes(whole, b"", b"") == len(found["writes"])
        assert command.unpack_writes(command.pack_writes(found["writes"])) == found["writes"]
    if "batch" in found:
        assert command.batch_proposal_id(whole) == found["batch"][0]
    batch = WriteBatch()
    outcome = mvcc.apply_batch(whole, batch, 2, 3)
    if outcome is None:
        assert len(batch) == 0
    else:
        assert "batch" in found and outcome[0] == found["batch"][0]
        decode_batch(batch.payload(1))
    return {name: found[name] for name in ("writes", "batch") if name in found}


def reference_command(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parse in {"writes": references.writes, "batch": references.command_batch}.items():
        try:
            found[name] = parse(data)
        except Refused:
            pass
    return found


def keys() -> list[bytes]:
    made = [b"", b"a", b"12345678", b"123456789", bytes(8), b"\xff" * 17]
    versioned = [mvcc.versioned_key(key, ts) for key in made for ts in (0, 77, (1 << 64) - 1)]
    return [*map(mvcc.encode_key, made), *versioned]


def parse_key(data: memoryview) -> tuple[Any, Any]:
    whole = bytes(data)
    found: list[Any] = []
    for parse in (mvcc.decode_key, mvcc.split_versioned_key):
        try:
            found.append(parse(whole))
        except Corruption:
            found.append(None)
    if found[0] is not None:
        assert mvcc.encode_key(found[0]) == whole
    if found[1] is not None:
        assert mvcc.versioned_key(*found[1]) == whole
    return found[0], found[1]


def reference_key(data: bytes) -> tuple[Any, Any]:
    found: list[Any] = []
    for part, ts in ((data, None), (data[:-8], ~int.from_bytes(data[-8:], "big") & (1 << 64) - 1)):
        try:
            key = references.memcomparable(part) if ts is None or len(data) >= 17 else None
        except Refused:
            key = None
        found.append(key if ts is None or key is None else (key, ts))
    return found[0], found[1]


def versions() -> list[bytes]:
    """Write records, each with its length before it, as the versions of one key from the newest to the oldest."""
    kinds = [
        mvcc.encode_write(1, 5, b"short"),
        mvcc.encode_write(2, 4),
        mvcc.encode_write(3, 3),
        mvcc.encode_write(1, 2),
    ]
    kinds.append(b"\x11" + bytes(8) + b"\x07" + b"more of a lock")
    return [bytes([len(k)]) + k for k in kinds] + [b"".join(bytes([len(k)]) + k for k in kinds[2:4] + kinds[:1])]


def records_of(data: bytes) -> list[bytes]:
    found = []
    while data:
        found.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return found


def parse_versions(data: memoryview) -> tuple[Any, ...]:
    records = records_of(bytes(data))
    decoded: list[Any] = []
    for record in records:
        try:
            decoded.append(mvcc.decode_write(record))
        except Corruption:
            decoded.append(None)
        try:
            mvcc.lock_start_ts(record)
        except Corruption:
            pass
    pairs = [(mvcc.versioned_key(b"k", 100 - n), record) for n, record in enumerate(records)]
    long = {mvcc.versioned_key(b"k", 2): b"long"}
    try:
        answer: Any = mvcc.resolve(b"k", pairs, long.get)
    except Corruption:
        answer = None
    for reverse in (False, True):
        try:
            rows, _ = mvcc.scan_visible(
                iter(pairs[::-1] if reverse else pairs), iter(()), long.get, 100, reverse=reverse
            )
        except Corruption:
            continue
        if answer is not None:
            assert rows == ([(b"k", answer[1])] if answer[1] is not None else [])
    return (decoded, answer)


def reference_versions(data: bytes) -> tuple[Any, ...]:
    decoded: list[Any] = []
    for record in records_of(data):
        try:
            decoded.append(references.write_record(record))
        except Refused:
            decoded.append(None)
    answer: Any = (False, None)
    for one in decoded:
        if one is None:
            answer = None
        elif one[0] == 2:
            answer = (True, None)
        elif one[0] == 1:
            answer = (True, one[2]) if one[2] is not None else (True, b"long") if one[1] == 2 else None
        else:
            continue
        break
    return (decoded, answer)


# -- raft -------------------------------------------------------------------------------------------------------------
METADATA = SnapshotMetadata(9, 3, ConfState((1, 2), (3,), (), (4,), True))
LOG = [
    Entry(5, 301, EntryKind.NORMAL, b"abc"),
    Entry(5, 302, EntryKind.CONF_CHANGE, b""),
    Entry(6, 303, data=b"x" * 200),
]


def messages() -> list[bytes]:
    full = Message(MessageType.APP, 2, 1, 5, 4, 300, LOG, 299, 1, RaftSnapshot(METADATA, b"data"), True, 17, b"ctx")
    beat = Message(MessageType.HEARTBEAT, 2, 1, 5)
    return [encode_messages(batch) for batch in ([], [(8, beat)], [(7, full), (8, beat)], [(1 << 60, full)] * 3)]


def seal_messages(data: bytearray) -> None:
    if len(data) >= 8:
        put32(data, 4, crc32c(data[8:]))


def nothing_follows(parse: Callable[[Any], object], longer: bytes | bytearray) -> None:
    try:
        parse(longer)
    except Corruption:
        return
    raise AssertionError("a byte behind the end is not noticed")


def parse_messages(data: memoryview) -> None:
    batch = decode_messages(data)
    assert decode_messages(encode_messages(batch)) == batch
    longer = bytearray(data) + b"\0"
    seal_messages(longer)
    nothing_follows(decode_messages, longer)


def raft_records() -> list[bytes]:
    """The record's type, then the record."""
    made = [*CODEC.encode_entries(3, None, LOG[:1]), *CODEC.encode_entries(3, HardState(6, 1, 300), LOG)]
    made += CODEC.encode_entries(3, HardState(6, 1, 300), [])
    made += [
        CODEC.encode_mark(op, 3, METADATA, HardState(1, 2, 3)) for op in (OP_RESET, OP_COMPACTED, OP_CHECKPOINT)
    ] + [CODEC.encode_removed(3)]
    return [bytes([kind]) + payload for kind, payload in made]


def parse_raft_record(data: memoryview) -> None:
    if not len(data):
        return
    group_id, _, metadata, state, entries = CODEC.decode_record(data[0], data[1:])
    nothing_follows(lambda longer: CODEC.decode_record(data[0], longer), bytes(data[1:]) + b"\0")
    if metadata is None and entries:
        ((kind, payload),) = CODEC.encode_entries(group_id, state, entries)
        assert CODEC.decode_record(kind, payload)[3:] == (state, entries)


def raft_files() -> list[bytes]:
    metadata = b"\x01\x02\x00\x01\x05\x03\x03\x01\x02\x03\x00\x00\x00\x00"  # a reset mark of group 1: raft_log.md
    base = struct.pack("<QQI", 4, 2, len(metadata)) + metadata + b"state"
    entry = b"\x01\x01\x01\x03\x02\x05\x01\x02\x05\x00\x01x"
    found = []
    for count in range(3):
        body = bytearray(b"NoKVRLOG" + struct.pack("<IQQI", 1, 1, 32 + 17 + len(base), 0))
        for kind, payload in ((RECORD_BASE, base), (16, entry), (RECORD_SYNCED, b""))[: count + 1]:
            synced = len(body) if kind == RECORD_SYNCED else 0
            body += struct.pack("<IIBQ", 0, len(payload), kind, synced) + payload
        seal_raft_file(body)
        found.append(bytes(body))
    return found


def seal_raft_file(data: bytearray) -> None:
    if len(data) < 32:
        return
    put32(data, 28, crc32c(data[:28]))
    at = 32
    while at + 17 <= len(data):
        end = at + 17 + struct.unpack_from("<I", data, at + 4)[0]
        if end > len(data):
            return
        put32(data, at, crc32c(struct.pack("<Q", at) + data[at + 4 : end]))
        at = end


def parse_raft_file(data: memoryview) -> None:
    held = decode_file(bytes(data), 1)
    assert held.hard_state.commit <= held.last_index()
    assert decode_file(encode_file(held, 1), 1).live_entries() == held.live_entries()


def raft_odds() -> list[bytes]:
    change = ConfChangeV2((SingleChange(ConfChangeKind.ADD_VOTER, 7),), context=b"why")
    return [encode_conf_change(change), encode_beat(Beat(list(range(BUCKETS)), list(range(BUCKETS))))]


def parse_raft_odds(data: memoryview) -> None:
    whole = bytes(data)
    for parse in (
        lambda: decode_conf_change(EntryKind.CONF_CHANGE, whole),
        lambda: decode_conf_change(EntryKind.CONF_CHANGE_V2, whole),
        lambda: decode_beat(whole),
    ):
        try:
            parse()
        except Corruption:
            pass


# -- region snapshots and local metadata ------------------------------------------------------------------------------
REGION = Region(1, b"a", b"m", RegionEpoch(3, 1), (Peer(101, 1), Peer(201, 2, PeerRole.LEARNER)))
CONTENT = {"000001.sst": b"data of the first", "000002.sst": b"", "x-3.sst": b"and of the third" * 20}
FILES = tuple(SnapshotFile(name, len(data), crc32c(data)) for name, data in CONTENT.items())
MANIFEST = SnapshotManifest(REGION, 77, 6, 1 << 50, ConfState((101,), (201,)), {"write": 3}, FILES)


def snapshot_manifests() -> list[bytes]:
    return [encode_manifest(MANIFEST)]


def seal_json(data: bytearray) -> None:
    try:
        outer = json.loads(bytes(data))
        text = json.dumps(outer["manifest"], sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, TypeError):
        return
    outer["crc32c"] = crc32c(text.encode())
    data[:] = json.dumps(outer).encode()


def parse_snapshot_manifest(data: memoryview) -> None:
    found = decode_manifest(bytes(data))
    assert decode_manifest(encode_manifest(found)) == found
    for file in found.files:
        assert "/" not in file.name and "\0" not in file.name and file.name.endswith(".sst")


def streams() -> list[bytes]:
    """Chunks as they arrive: number of the file, size, bytes."""
    whole = bytearray()
    for n, data in enumerate(CONTENT.values()):
        for at in range(0, len(data), 100):
            part = data[at : at + 100]
            whole += bytes([n, len(part)]) + part
    return [bytes(whole)]


class Received:
    """Who is told of a staged snapshot."""

    def __init__(self) -> None:
        self.took = 0

    def staged(self, directory: str, manifest: SnapshotManifest) -> None:
        self.took += 1

    def discard(self, directory: str) -> None: ...


NAMES = [*CONTENT, "../out.sst", "000009.sst"]


def parse_stream(data: memoryview) -> bool:
    files, received = CrashFiles(), Received()
    files.makedirs("s")
    staging = Staging(received, MANIFEST, "s", files)  # type: ignore[arg-type]
    at = 0
    try:
        while at + 2 <= len(data):
            staging.write(NAMES[data[at] % len(NAMES)], bytes(data[at + 2 : at + 2 + data[at + 1]]))
            at += 2 + data[at + 1]
        staging.finish()
    except Corruption:
        assert received.took == 0
        staging.abort()
        raise
    verify_staged(files, "s", MANIFEST)
    return received.took == 1


def reference_stream(data: bytes) -> bool:
    found: dict[str, bytes] = {}
    last, at = "", 0
    while at + 2 <= len(data):
        name = NAMES[data[at] % len(NAMES)]
        if name != last and name in found:
            raise Refused
        found[name] = found.get(name, b"") + data[at + 2 : at + 2 + data[at + 1]]
        last = name
        at += 2 + data[at + 1]
    if {"000002.sst": b"", **found} != CONTENT:
        raise Refused
    return True


def local_records() -> list[bytes]:
    change = plan_change(REGION, ChangeKind.PROMOTE, Peer(201, 0), leader_peer_id=101, address="")
    applied = localmeta.ApplyState(1, 2, 3, True, ConfState((1, 2), (3,)))
    return [localmeta.encode_region(REGION), localmeta.encode_applied(applied), encode_change(change)]


def parse_local(data: memoryview) -> None:
    whole = bytes(data)
    for parse, encode in (
        (localmeta.decode_region, localmeta.encode_region),
        (localmeta.decode_applied, localmeta.encode_applied),
        (decode_change, encode_change),
    ):
        try:
            found = parse(whole)
        except Corruption:
            continue
        assert parse(encode(found)) == found  # type: ignore[operator]


CLUSTER: dict[str, Callable[[], Target]] = {  # made when needed: a process fuzzes one
    "command": lambda: Target(commands(), parse_command, (3, 600, 19200), reference_command, seal_command),
    "mvcc_key": lambda: Target(keys(), parse_key, (3, 750, 24000), reference_key),
    "mvcc_versions": lambda: Target(versions(), parse_versions, (3, 450, 14400), reference_versions),
    "raft_messages": lambda: Target(messages(), parse_messages, (3, 850, 27200), None, seal_messages),
    "raft_record": lambda: Target(raft_records(), parse_raft_record, (3, 1000, 32000)),
    "raft_file": lambda: Target(raft_files(), parse_raft_file, (3, 600, 19200), None, seal_raft_file),
    "raft_odds": lambda: Target(raft_odds(), parse_raft_odds, (3, 600, 19200), None, None),
    "snapshot_manifest": lambda: Target(
        snapshot_manifests(), parse_snapshot_manifest, (3, 400, 12800), None, seal_json
    ),
    "snapshot_stream": lambda: Target(streams(), parse_stream, (2, 150, 4800), reference_stream),
    "local_records": lambda: Target(local_records(), parse_local, (3, 600, 19200), None, seal_tail),
}  # fmt: skip
