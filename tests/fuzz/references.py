"""The formats of docs/formats once more, slow and obvious: what the compiled parsers are compared with. Each returns
what the parser returns, or raises Refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from nokv._ext.crc32c import crc32c

__all__ = ["Pieces", "Refused", "batch", "lz4", "memcomparable", "ranges", "segment", "value_records", "writes"]

RECORD = struct.Struct("<IIB3sI")
LIMIT = (1 << 56) - 1  # the largest sequence


class Refused(Exception):
    pass


class Pieces:
    """Bytes taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.at = 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left():
            raise Refused
        self.at += size
        return self.data[self.at - size : self.at]

    def fixed(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            one = self.fixed(1)
            value |= (one & 127) << shift
            if one < 128:
                if value >> 64:
                    raise Refused
                return value
        raise Refused

    def counted(self) -> bytes:
        return self.take(self.varint())

    def end(self) -> None:
        if self.left():
            raise Refused


# -- wal.md -----------------------------------------------------------------------------------------------------------
def align(n: int) -> int:
    return -(-n // 16) * 16


def header_crc(number: int, offset: int, length: int, kind: int, zeros: bytes) -> int:
    return crc32c(struct.pack("<QQIB", number, offset, length, kind) + zeros)


def record_at(data: bytes, number: int, offset: int) -> tuple[str, int, bytes]:
    """(record, end, bad header or bad payload; type; payload)."""
    if offset + 16 > len(data) or not any(data[offset : offset + 16]):
        return "end", 0, b""
    crc, length, kind, zeros, check = RECORD.unpack_from(data, offset)
    if check != header_crc(number, offset, length, kind, zeros) or offset + 16 + length > len(data):
        return "bad header", 0, b""
    payload = data[offset + 16 : offset + 16 + length]
    return ("record" if crc32c(payload, check) == crc else "bad payload"), kind, payload


def segment(data: bytes, number: int) -> dict[str, Any]:
    """Everything that a reader says about one segment."""
    data = bytes(data)
    found: list[tuple[int, int, bytes]] = []
    at = 0
    while True:
        state, kind, payload = record_at(data, number, at)
        if state != "record":
            break
        found.append((at, kind, payload))
        at = align(at + 16 + len(payload))
    marks = [struct.unpack("<QQ", payload) for _, kind, payload in found if kind == 3 and len(payload) == 16]
    valid = {place for place in range(0, len(data), 16) if record_at(data, number, place)[0] == "record"}
    seen: list[tuple[int, bytes]] = []
    place = 0
    while place < len(data):
        if place in valid:
            _, kind, payload = record_at(data, number, place)
            seen.append((kind, payload))
            place = align(place + 16 + len(payload))
        else:
            place += 16
    late = [struct.unpack("<QQ", payload) for kind, payload in seen if kind == 3 and len(payload) == 16]
    blank = not any(data)
    return {
        "records": found,
        "state": state,
        "end": at,
        "mark": marks[-1] if marks else (0, 0),
        "evidence": (len(seen), late[-1] if late else None, blank),
        "after": sorted(place for place in valid if place > at),
    }


def batch(payload: bytes) -> tuple[int, list[tuple[int, int, bytes, bytes | None]]]:
    """write_batch.md"""
    pieces = Pieces(payload)
    sequence, count = pieces.fixed(8), pieces.fixed(4)
    if not sequence or sequence - 1 + count > LIMIT:
        raise Refused
    found: list[tuple[int, int, bytes, bytes | None]] = []
    for _ in range(count):
        kind = pieces.fixed(1)
        prefix = pieces.counted()
        stored = None if kind == 0 else pieces.counted()
        if not prefix or kind > 3 or (kind == 2 and len(stored or b"") < 8):
            raise Refused
        if kind == 3 and (not stored or stored <= prefix):
            raise Refused
        found.append((kind, prefix[0], prefix[1:], stored))
    pieces.end()
    return sequence, found


# -- sst.md -----------------------------------------------------------------------------------------------------------
def ranges(payload: bytes) -> list[tuple[bytes, bytes, tuple[int, ...]]]:
    pieces = Pieces(payload)
    found: list[tuple[bytes, bytes, tuple[int, ...]]] = []
    for _ in range(pieces.varint()):
        start, end, count = pieces.counted(), pieces.counted(), pieces.varint()
        if not start or start >= end or (found and found[-1][1] > start) or not 0 < count <= pieces.left():
            raise Refused
        sequences = tuple(pieces.varint() for _ in range(count))
        if 0 in sequences or any(a <= b for a, b in zip((LIMIT + 1, *sequences), sequences, strict=False)):
            raise Refused
        found.append((start, end, sequences))
    pieces.end()
    return found


def lz4(data: bytes, raw_size: int) -> bytes:
    """The LZ4 block format: exactly `raw_size` bytes."""
    pieces = Pieces(data)
    out = bytearray()

    def length(nibble: int) -> int:
        total = nibble
        while nibble == 15:
            more = pieces.fixed(1)
            total += more
            if more < 255:
                break
        return total

    while True:
        token = pieces.fixed(1)
        out += pieces.take(length(token >> 4))
        if len(out) > raw_size:
            raise Refused
        if not pieces.left():
            break
        offset = pieces.fixed(2)
        size = length(token & 15) + 4
        if not 0 < offset <= len(out) or len(out) + size > raw_size:
            raise Refused
        for _ in range(size):
            out.append(out[-offset])
    if len(out) != raw_size:
        raise Refused
    return bytes(out)


def value_records(data: bytes) -> list[tuple[int, bytes, int, int, int]]:
    """value_file.md"""
    data = bytes(data)
    if len(data) < 32 or data[:8] != b"NOKVVAL\x01" or struct.unpack_from("<I", data, 28)[0] != crc32c(data[:28]):
        raise Refused
    version, number = struct.unpack_from("<IQ", data, 8)
    if version != 1:
        raise Refused
    found = []
    pieces = Pieces(data)
    pieces.take(32)
    while pieces.left():
        at = pieces.at
        head = pieces.take(20)
        crc, size, key_size, sequence = struct.unpack("<IIIQ", head)
        check = pieces.fixed(4)
        key, value = pieces.take(key_size), pieces.take(size)
        if not 0 < key_size <= 65_537 or size >= 1 << 30 or crc32c(value) != crc:
            raise Refused
        if check != crc32c(struct.pack("<QQ", number, at) + head + key):
            raise Refused
        found.append((at, key, sequence, size, crc))
    return found


# -- command.md and mvcc.md -------------------------------------------------------------------------------------------
def sealed_body(data: bytes, kind: int) -> Pieces:
    if len(data) < 6 or data[:2] != bytes((1, kind)) or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Refused
    return Pieces(data[2:-4])


def writes(data: bytes) -> list[tuple[bytes, bytes | None]]:
    pieces = sealed_body(data, 1)
    found: list[tuple[bytes, bytes | None]] = []
    for _ in range(pieces.varint()):
        kind, key = pieces.fixed(1), pieces.counted()
        if kind not in (1, 2):
            raise Refused
        found.append((key, pieces.counted() if kind == 1 else None))
    pieces.end()
    return found


def command_batch(data: bytes) -> tuple[int, int, list[tuple[int, bytes]]]:
    pieces = sealed_body(data, 16)
    proposal, floor = pieces.fixed(8), pieces.fixed(8)
    groups = [(pieces.fixed(8), pieces.counted()) for _ in range(pieces.varint())]
    pieces.end()
    return proposal, floor, groups


def memcomparable(data: bytes) -> bytes:
    out = b""
    for at in range(0, len(data), 9):
        group = data[at : at + 9]
        if len(group) < 9 or group[8] < 247:
            raise Refused
        used = 8 - (255 - group[8])
        out += group[:used]
        if used < 8:
            if any(group[used:8]) or at + 9 != len(data):
                raise Refused
            return out
    raise Refused


def write_record(data: bytes) -> tuple[int, int, bytes | None]:
    if len(data) < 10 or data[0] >> 4 != 1 or not 1 <= data[0] & 15 <= 4 or data[1] > 1:
        raise Refused
    if not data[1] and len(data) > 10:
        raise Refused
    return data[0] & 15, int.from_bytes(data[2:10], "big"), data[10:] if data[1] else None


def places(data: bytes, number: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the records of a segment as their length fields have it, right checksums or not."""
    at = 0
    while at + 16 <= len(data):
        length = struct.unpack_from("<I", data, at + 4)[0]
        if length == 0 and not any(data[at : at + 16]):
            return
        if length > len(data) - at - 16:
            yield at, -1
            return
        yield at, length
        at = align(at + 16 + length)
