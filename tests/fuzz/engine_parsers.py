"""The parsers of what the engine keeps on disk: for each a corpus of valid encodings from our own writers, what it
answers, and, where there is one, what the reference answers. Checksums are made right again in most cases, so that
damage gets past them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from nokv._ext import lz4
from nokv._ext.batch import WriteBatch, decode_batch
from nokv._ext.blockcache import BlockCache
from nokv._ext.crc32c import crc32c
from nokv._ext.db import Core
from nokv._ext.memtable import MemTable
from nokv._ext.ranges import Ranges, decode_ranges
from nokv._ext.table import Table
from nokv._ext.tablebuilder import TableBuilder, VersionFilter
from nokv._ext.valuefile import ValueFile, ValueSink, decode_reference, resolve_reference
from nokv._ext.version import Version
from nokv._ext.view import View
from nokv._ext.wal import TYPE_BATCH, LiveSegmentReader, SegmentReader
from nokv.engine.manifest.edit import FileMeta, ValueFileMeta, VersionEdit, decode_edit, encode_edit
from nokv.engine.manifest.log import HEADER as MANIFEST_HEADER
from nokv.engine.manifest.log import RECORD as MANIFEST_RECORD
from nokv.engine.manifest.log import ManifestWriter, read_current, read_manifest, write_current
from nokv.engine.mode import CLUSTER, ModeRecord, read_mode, write_mode
from nokv.engine.sst.external import check_group, decode_families, write_external
from nokv.engine.wal import Wal
from nokv.engine.wal.recovery import recover, segment_name
from nokv.errors import Corruption, UsageError
from nokv.testing.files import CrashFiles
from tests.fuzz import references
from tests.fuzz.references import LIMIT, Pieces, Refused
from tests.fuzz.target import Target, put32, varint


def memory_of(payload: bytes | memoryview, number: int = 5) -> tuple[MemTable, Core]:
    """A store that has replayed a log with this one write batch."""
    segment = bytearray(16 + len(payload) + 15)
    struct.pack_into("<IB", segment, 4, len(payload), TYPE_BATCH)
    segment[16 : 16 + len(payload)] = payload
    seal_segment(segment, number)
    mem, core = MemTable(1), Core.__new__(Core)
    core._publish(View(mem, (), Version([])), 0)
    core._replay_segment(SegmentReader(segment, number), len(segment), 0, "wal")
    return mem, core


def visible(mem: MemTable) -> dict[bytes, tuple[int, bytes]]:
    ranges = mem.ranges()
    return {
        prefix: (kind, value)
        for prefix, sequence, kind, value in reversed(mem.walk())
        if kind and all(part.cover(prefix) <= sequence for part in ranges)
    }


# -- the log ----------------------------------------------------------------------------------------------------------
NUMBER = 5


def seal_segment(data: bytearray, number: int = NUMBER) -> None:
    for at, length in references.places(data, number):
        head = crc32c(struct.pack("<QQ", number, at) + data[at + 4 : at + 12])
        put32(data, at + 12, head)
        if length >= 0:
            put32(data, at, crc32c(data[at + 16 : at + 16 + length], head))


def batches() -> list[bytes]:
    dice = random.Random(1)
    found = []
    for size in (0, 1, 2, 5, 20):
        batch = WriteBatch()
        for n in range(size):
            key = b"key%d" % dice.randrange(9)
            what = n % 4
            if what == 0:
                batch.put(key, dice.randbytes(dice.choice([0, 3, 130])), family=dice.randrange(3))
            elif what == 1:
                batch.delete(key)
            elif what == 2:
                batch.put(key, b"late", expires_at_ms=dice.randrange(1, 1 << 53))
            else:
                batch.delete_range(key, key + b"\xff")
        found.append(batch.payload(dice.choice([1, 300, 1 << 40])))
    return found


def segments() -> list[bytes]:
    found = []
    for payloads in (
        [],
        [b""],
        [b"x" * 100],
        [b"a", b"b" * 16, b"c" * 17],
        [bytes([n]) * n for n in range(12)],
        batches(),
    ):
        data = bytearray()
        for n, payload in enumerate(payloads):
            kind = 3 if n % 4 == 2 else 1 if n % 4 == 0 else 16 + n
            payload = struct.pack("<QQ", NUMBER, 16 * n) if kind == 3 else payload
            data += struct.pack("<IIB3xI", 0, len(payload), kind, 0) + payload + bytes(-len(payload) % 16)
        seal_segment(data)
        found.append(bytes(data) + bytes(48))
    return found


def parse_segment(data: memoryview) -> dict[str, Any]:
    reader, counting, live = SegmentReader(data, NUMBER), SegmentReader(data, NUMBER), LiveSegmentReader(data, NUMBER)
    records = reader.records(None, len(data), 1 << 30)
    state, end = reader.state(), reader.offset
    assert counting.skip_valid(len(data)) == len(records) and counting.offset == end
    assert live.skip_valid(len(data)) == len(records) and live.offset == end
    reader.looks_unwritten()
    reader.checksums()
    after = []
    while reader.resync():
        after.append(reader.offset)
    return {
        "records": records,
        "state": state,
        "end": end,
        "mark": counting.mark,
        "evidence": SegmentReader(data, NUMBER).evidence(0),
        "after": after,
    }


def reference_segment(data: bytes) -> dict[str, Any]:
    return references.segment(data, NUMBER)


def parse_batch(data: memoryview) -> tuple[int, list[tuple[int, int, bytes, bytes | None]]]:
    """The tool's reader and the recovery's agree with each other, too."""
    try:
        found = decode_batch(data)
    except Corruption:
        if len(data) < 12 or struct.unpack_from("<QI", data) != (1, 0):  # else it would be in tables already
            memory_of(data)
            raise AssertionError("the recovery takes a batch that the decoder refuses") from None
        raise
    mem, core = memory_of(data)
    sequence, operations = found
    state: dict[bytes, tuple[int, bytes]] = {}
    for kind, family, key, stored in operations:
        prefix = bytes([family]) + key
        if kind == 3:
            assert stored is not None
            for old in [old for old in state if prefix <= old < stored]:
                del state[old]
        elif kind == 0:
            state.pop(prefix, None)
        else:
            assert stored is not None
            state[prefix] = (kind, stored)
    assert visible(mem) == state
    assert core.sequence == sequence + len(operations) - 1
    return found


class Given:
    """A read-only directory of given files."""

    def __init__(self, contents: dict[str, bytes | memoryview]) -> None:
        self.contents = contents

    def listdir(self, path: str) -> list[str]:
        return sorted(name.rsplit("/", 1)[-1] for name in self.contents)

    def map_file(self, path: str) -> Any:
        return self.contents[path]

    def read_file(self, path: str) -> bytes:
        return bytes(self.contents[path])

    def exists(self, path: str) -> bool:
        return path in self.contents

    def size(self, path: str) -> int:
        return len(self.contents[path])

    def data_end(self, path: str) -> int:
        return len(self.contents[path])


SEGMENT_BYTES = 1024


def logs() -> list[bytes]:
    """Logs of three segments, one after the other."""
    found = []
    for size in (20, 60, 150):
        files = CrashFiles()
        wal = Wal(files, "wal", SEGMENT_BYTES, ("test",))
        for n in range(3 * SEGMENT_BYTES // size - 6):
            batch = WriteBatch()
            batch.put(b"key%d" % n, b"v" * (size // 2))
            wal.append(TYPE_BATCH, batch.payload(n + 1))
            if n % 5 == 0:
                wal.sync()
        wal.close()
        whole = b"".join(files.read_file(f"wal/{name}") for name in files.listdir("wal"))
        assert len(whole) >= 2 * SEGMENT_BYTES and whole[SEGMENT_BYTES + 16 :].startswith(b"NoKVWAL\0")
        found.append(whole[: 4 * SEGMENT_BYTES])
    return found


def split_log(data: Any) -> list[Any]:
    return [data[at : at + SEGMENT_BYTES] for at in range(0, min(len(data), 4 * SEGMENT_BYTES), SEGMENT_BYTES)]


def seal_log(data: bytearray) -> None:
    for n, part in enumerate(split_log(data)):
        whole = bytearray(part)
        seal_segment(whole, n + 1)
        data[n * SEGMENT_BYTES : n * SEGMENT_BYTES + len(whole)] = whole


def parse_log(data: memoryview) -> None:
    files = Given({f"wal/{segment_name(n + 1)}": part for n, part in enumerate(split_log(data))})
    mem, core = MemTable(1), Core.__new__(Core)
    core._publish(View(mem, (), Version([])), 0)

    def walk(reader: SegmentReader, stop: int, path: str) -> None:
        core._replay_segment(reader, stop, 0, path)

    log = recover(files, "wal", walk)  # type: ignore[arg-type]
    assert 0 <= core.sequence <= LIMIT
    assert [info.number for info in log.segments] == sorted(info.number for info in log.segments)
    assert all(info.end <= info.capacity for info in log.segments)
    visible(mem)


# -- tables -----------------------------------------------------------------------------------------------------------
KEEP = BlockCache(1 << 16)


class Grown:
    """A WritableFile in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any, /) -> int:
        self.data += data
        return len(data)

    def sync(self) -> None: ...
    def close(self) -> None: ...


ENTRIES = [(b"\0k%02d" % (i // 2), 60 - i, 1 if i % 5 else 0, b"value %d" % i if i % 5 else b"") for i in range(60)]


def table(
    codec: str, entries: list[tuple[bytes, int, int, bytes]] = ENTRIES, ranged: bool = False, **options: int
) -> bytes:
    file = Grown()
    builder = TableBuilder(file, compression=codec, **({"block_bytes": 256, "restart_interval": 3} | options))
    for key, sequence, kind, value in entries:
        builder.add(key, value if kind else None, sequence)
    if ranged:
        builder.set_ranges(Ranges.of([(b"\0k05", b"\0k09", 70), (b"\0k07", b"\0k20", 80), (b"\0z", b"\1", 3)]))
    builder.finish()
    return bytes(file.data)


def seal_block(data: bytearray, start: int, end: int) -> None:
    """data[start:end] is payload, codec and raw size."""
    if 0 <= start < end <= len(data) - 4:
        put32(data, end, crc32c(data[start:end]))


def seal_table(data: bytearray) -> None:
    """Right checksums for whatever the (damaged) footer and index say are blocks."""
    if len(data) < 64:
        return
    footer = struct.unpack_from("<6Q", data, len(data) - 64)
    put32(data, len(data) - 12, crc32c(data[-64:-12]))
    at, index = 0, Pieces(data[footer[4] : footer[4] + footer[5]])
    try:
        while index.left() and at < len(data):
            index.counted()
            size = index.varint()
            seal_block(data, at, at + size + 5)
            at += size + 9
    except Refused:
        pass
    if at < footer[0]:  # the range block
        seal_block(data, at, footer[0] // 64 * 64 - 4 if footer[0] - at > 73 else footer[0] - 4)
    for offset, size in zip(footer[::2], footer[1::2], strict=True):
        seal_block(data, offset, offset + size + 5)


def walk(cursor: Any, reverse: bool = False, most: int = 5000) -> list[tuple[bytes, int, int, bytes]]:
    found = []
    cursor.seek_last() if reverse else cursor.seek_first()
    while cursor.valid and len(found) < most:
        found.append(cursor.entry)
        cursor.prev() if reverse else cursor.next()
    return found


def attempt(read: Callable[[], Any]) -> Any:
    """The answer, or the Corruption that names the table."""
    try:
        return read()
    except Corruption as error:
        assert error.path == "t.sst", error
        return None


def parse_table(data: memoryview) -> None:
    made = Table(data, "t.sst", KEEP)
    ranges = attempt(made.ranges)
    if ranges is not None:
        assert decode_ranges(ranges.encode()).fragments() == ranges.fragments()
    found = attempt(lambda: walk(made.cursor()))
    attempt(lambda: walk(made.cursor(), True))
    for key, sequence, kind, _ in (found or ENTRIES)[::7]:
        attempt(lambda key=key, sequence=sequence: made.get(key, sequence))
        attempt(
            lambda key=key, n=sequence, k=kind: made.cursor().seek(
                key + struct.pack(">Q", ~(n << 8 | k) & (1 << 64) - 1)
            )
        )
    attempt(lambda: decode_families(made) if made.properties["external"] else None)
    attempt(made.verify)


def data_block() -> bytes:
    whole = table("none", block_bytes=1 << 20)
    index_offset = struct.unpack_from("<Q", whole, len(whole) - 32)[0]
    at = index_offset + 1 + whole[index_offset]
    size = whole[at] & 127 | (whole[at + 1] << 7 if whole[at] > 127 else 0)
    return whole[:size]


def framed(payload: bytes) -> bytes:
    """A table that is sound but for its only block, which has this payload and a right checksum."""
    parts = (b"", FRAME, b"\x1c" + b"\xff" * 20 + bytes(8) + varint(len(payload)))
    out, at = [sealed_block(payload)], []
    size = len(out[0])
    for part in parts:
        at += [size, len(part)]
        out.append(sealed_block(part))
        size += len(out[-1])
    footer = struct.pack("<6QI", *at, 2)
    return b"".join(out) + footer + struct.pack("<I", crc32c(footer)) + b"NOKVSST\x01"


def sealed_block(data: bytes) -> bytes:
    data += struct.pack("<BI", 0, len(data))
    return data + struct.pack("<I", crc32c(data))


def properties_block() -> bytes:
    whole = table("none", block_bytes=1 << 20, bloom_bits=0)
    offset, size = struct.unpack_from("<2Q", whole, len(whole) - 48)
    return whole[offset : offset + size]


FRAME = properties_block()


def parse_block(data: memoryview) -> list[tuple[bytes, int, int, bytes]]:
    made = Table(framed(bytes(data)), "t.sst", BlockCache(1 << 16))
    found = walk(made.cursor())
    assert walk(made.cursor(), True) == found[::-1]
    for key, sequence, _, _ in found[::5]:
        assert made.get(key, sequence) == next(e[2:] for e in found if e[0] == key and e[1] <= sequence)
    return found


def reference_block(payload: bytes) -> list[tuple[bytes, int, int, bytes]]:
    from tests.unit.engine.test_table import read_payload

    found = read_payload(payload)
    if found is None:
        raise Refused
    return found


def range_blocks() -> list[bytes]:
    items = [(b"\0a", b"\0c", 5), (b"\0b", b"\0d", 300), (b"\0b", b"\0c", 1 << 40), (b"\1", b"\2", 7)]
    return [Ranges.of(items[:n], [4, 6, 400]).encode() for n in range(len(items) + 1)]


def parse_ranges(data: memoryview) -> list[tuple[bytes, bytes, tuple[int, ...]]]:
    made = decode_ranges(data)
    assert decode_ranges(made.encode()).fragments() == made.fragments()
    for start, end, sequences in made.fragments()[:8]:
        assert made.cover(start) == sequences[0] and made.cut(start, end).fragments() == [(start, end, sequences)]
    return made.fragments()


def parse_lz4(data: memoryview) -> bytes:
    """The first two bytes say how large it should be."""
    if len(data) < 2:
        raise UsageError("too short")
    return lz4.decompress(bytes(data[2:]), data[0] | data[1] << 8)


def reference_lz4(data: bytes) -> bytes:
    if len(data) < 2:
        raise Refused
    return references.lz4(data[2:], data[0] | data[1] << 8)


def lz4_blocks() -> list[bytes]:
    dice = random.Random(2)
    texts = [
        b"",
        b"a",
        b"ab" * 300,
        dice.randbytes(40),
        b"".join(dice.choice([b"value ", b"key", b"x"]) for _ in range(300)),
    ]
    return [struct.pack("<H", len(t)) + (lz4.compress(t, len(t) + 100) or b"\0") for t in texts]


def external_tables() -> list[bytes]:
    found = []
    for count in (1, 40):
        files = CrashFiles()
        files.makedirs("d")
        entries = [(3 if n > 20 else 0, b"k%02d" % n, b"v" * n if n % 6 else None) for n in range(count)]
        write_external(files, "d/t.sst", entries, families={"plain": 0, "write": 3})
        found.append(files.read_file("d/t.sst"))
    return found


def parse_external(data: memoryview) -> None:
    """What ingest looks at."""
    ((_, made),) = check_group(Given({"t.sst": data}), ["t.sst"], KEEP)  # type: ignore[arg-type]
    decode_families(made)
    assert len(walk(made.cursor())) == made.properties["entries"]


# -- value files ------------------------------------------------------------------------------------------------------
def value_files() -> list[bytes]:
    found = []
    for count in (1, 5):
        files = CrashFiles()
        files.makedirs("d")
        sink = ValueSink({}, threshold=1, create=lambda files=files: (7, "d/v", files.create("d/v")))
        mem = MemTable(1)
        for n in range(count):
            mem.insert(n + 1, 1, b"\0key%d" % n, b"v" * (n * 40 + 1))
        source = Core._memtable_cursor(Core.__new__(Core), mem)
        source.seek_first()
        builder = TableBuilder(Grown(), sink=sink)
        builder.fill(source, VersionFilter(), 1 << 40)
        builder.finish()
        sink.finish()
        found.append(files.read_file("d/v"))
    return found


def seal_values(data: bytearray) -> None:
    if len(data) < 32:
        return
    put32(data, 28, crc32c(data[:28]))
    at = 32
    while at + 24 <= len(data):
        size, key_size = struct.unpack_from("<II", data, at + 4)
        end = at + 24 + key_size + size
        if end > len(data):
            return
        put32(data, at, crc32c(data[end - size : end]))
        head = data[12:20] + struct.pack("<Q", at) + data[at : at + 20] + data[at + 24 : at + 24 + key_size]
        put32(data, at + 20, crc32c(head))
        at = end


def parse_values(data: memoryview) -> list[tuple[int, bytes, int, int, int]]:
    file = ValueFile(data, "v")
    found = list(file.records(check=True))
    assert file.verify() == len(found)
    for at, key, _, size, crc in found[:4]:
        reference = struct.pack("<BIIQQ", 1, crc, size, file.number, at + 24 + len(key))
        assert len(resolve_reference({file.number: file}, reference)) == size
    return found


def value_references() -> list[bytes]:
    """A reference, and the file behind it."""
    found = []
    for whole in value_files():
        for at, key, _, size, crc in references.value_records(whole):
            found.append(struct.pack("<BIIQQ", 1, crc, size, 7, at + 24 + len(key)) + whole)
    return found


def parse_reference(data: memoryview) -> bytes:
    stored = bytes(data[:25])
    number, offset, size, crc = decode_reference(stored)
    file = ValueFile(data[25:], "v")
    value = resolve_reference({file.number: file}, stored)
    assert (number, len(value), crc32c(value)) == (file.number, size, crc) and value == data[25:][
        offset : offset + size
    ]
    return value


def seal_reference(data: bytearray) -> None:
    whole = data[25:]
    seal_values(whole)
    data[25:] = whole
    if len(data) >= 25:
        size, offset = struct.unpack_from("<I", data, 5)[0], struct.unpack_from("<Q", data, 17)[0]
        if offset + size <= len(whole):
            put32(data, 1, crc32c(whole[offset : offset + size]))


# -- the manifest, CURRENT, MODE.json ---------------------------------------------------------------------------------
def edits() -> list[VersionEdit]:
    meta = FileMeta(
        number=9,
        level=1,
        size=4000,
        crc32c=77,
        entries=5,
        smallest=b"\0a",
        largest=b"\0z",
        min_sequence=1,
        max_sequence=9,
    )
    other = FileMeta(
        number=10, level=0, size=1 << 33, crc32c=1 << 31, entries=1 << 40, smallest=b"\0", largest=b"\0k" * 50,
        min_sequence=300, max_sequence=300, global_sequence=300,
    )  # fmt: skip
    values = ValueFileMeta(number=11, size=500, records=3, value_bytes=400, dead_bytes=7)
    return [
        VersionEdit(log_number=1, next_file_number=2, last_sequence=0, families={"lock": 2, "other": 16}),
        VersionEdit(added=[meta], values_added=[values], next_file_number=12),
        VersionEdit(added=[other], removed=[9], values_dead={11: 300}, last_sequence=1 << 50),
        VersionEdit(removed=[10], values_removed=[11]),
    ]


def parse_edit(data: memoryview) -> None:
    edit = decode_edit(bytes(data))
    assert decode_edit(encode_edit(edit)) == edit


def manifests() -> list[bytes]:
    found = []
    for count in (1, 4):
        files = CrashFiles()
        writer = ManifestWriter(files, "M", 3)
        for edit in edits()[:count]:
            writer.append(edit)
        writer.close()
        found.append(files.read_file("M"))
    return found


def seal_manifest(data: bytearray) -> None:
    if len(data) < MANIFEST_HEADER.size:
        return
    put32(data, MANIFEST_HEADER.size - 4, crc32c(data[: MANIFEST_HEADER.size - 4]))
    at = MANIFEST_HEADER.size
    while at + MANIFEST_RECORD.size <= len(data):
        length = struct.unpack_from("<I", data, at + 1)[0]
        start = at + MANIFEST_RECORD.size
        if length > len(data) - start:
            return
        put32(data, at + 5, crc32c(struct.pack("<IQQ", length, at, 3)))
        put32(data, at + 9, crc32c(data[start : start + length]))
        at = start + length


def parse_manifest(data: memoryview) -> None:
    found, torn = read_manifest(bytes(data), "M", 3)
    assert found and (torn is None or MANIFEST_HEADER.size <= torn < len(data))


def current_files() -> list[bytes]:
    files = CrashFiles()
    files.makedirs("d")
    write_current(files, "d", "d/CURRENT", "MANIFEST-000007")
    return [files.read_file("d/CURRENT")]


def parse_current(data: memoryview) -> None:
    read_current(Given({"d/CURRENT": data}), "d/CURRENT")  # type: ignore[arg-type]


def mode_files() -> list[bytes]:
    files = CrashFiles()
    files.makedirs("d")
    write_mode("d", ModeRecord(CLUSTER, 1, 2, 3), files)
    return [files.read_file("d/MODE.json")]


def parse_mode(data: memoryview) -> None:
    read_mode("d", Given({"d/MODE.json": data}))  # type: ignore[arg-type]


ENGINE: dict[str, Callable[[], Target]] = {  # made when needed: a process fuzzes one
    "wal_segment": lambda: Target(segments(), parse_segment, (3, 300, 9600), reference_segment, seal_segment),
    "wal_log": lambda: Target(logs(), parse_log, (2, 50, 1600), None, seal_log),
    "write_batch": lambda: Target(batches(), parse_batch, (3, 400, 12800), references.batch),
    "sst_block": lambda: Target([data_block()], parse_block, (2, 100, 3200), reference_block),
    "sst_table": lambda: Target(
        [*(table(codec) for codec in ("none", "lz4", "zstd")), table("none", ranged=True), table("lz4", bloom_bits=0)],
        parse_table, (3, 250, 8000), None, seal_table,
    ),
    "sst_ranges": lambda: Target(range_blocks(), parse_ranges, (3, 600, 19200), references.ranges),
    "sst_external": lambda: Target(external_tables(), parse_external, (3, 550, 17600), None, seal_table),
    "lz4": lambda: Target(lz4_blocks(), parse_lz4, (3, 350, 11200), reference_lz4),
    "value_file": lambda: Target(value_files(), parse_values, (3, 550, 17600), references.value_records, seal_values),
    "value_reference": lambda: Target(value_references(), parse_reference, (3, 750, 24000), None, seal_reference),
    "manifest_edit": lambda: Target([encode_edit(edit) for edit in edits()], parse_edit, (3, 550, 17600)),
    "manifest": lambda: Target(manifests(), parse_manifest, (3, 400, 12800), None, seal_manifest),
    "current": lambda: Target(current_files(), parse_current, (1.5, 300, 9600)),
    "mode": lambda: Target(mode_files(), parse_mode, (1.5, 300, 9600)),
}  # fmt: skip
