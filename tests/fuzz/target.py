"""What a fuzzed parser is (R4), and the memory its input lies in."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nokv._ext.crc32c import crc32c

SAVED = Path(__file__).resolve().parents[1] / "data" / "fuzz"
Seal = Callable[[bytearray], None]


@dataclass(slots=True)
class Target:
    """`parse` answers, or raises a NoKVError. `cases`: thousands of them in make test, test-full, test-long."""

    corpus: list[bytes]
    parse: Callable[[Any], Any]
    cases: tuple[float, float, float]
    reference: Callable[[bytes], Any] | None = None
    seal: Seal | None = None


def put32(data: bytearray, at: int, value: int) -> None:
    data[at : at + 4] = struct.pack("<I", value)


def seal_tail(data: bytearray) -> None:
    """A record that ends with the checksum of what precedes it."""
    if len(data) >= 4:
        put32(data, len(data) - 4, crc32c(data[:-4]))


def varint(n: int) -> bytes:
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes((*out, n))


class Fence:
    """Memory that ends where the bytes given to it end: one byte read behind them ends the process."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.map = mmap.mmap(-1, self.size + page)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        if libc.mprotect(ctypes.c_void_p(address + self.size), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        self.view = memoryview(self.map)

    def holding(self, data: bytes) -> memoryview:
        start = self.size - len(data)
        self.view[start : self.size] = data
        return self.view[start : self.size]
