"""A small parser, right or with one of the bugs that the fuzzer is there for: what it must not miss."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from nokv._ext.crc32c import crc32c
from nokv.errors import Corruption
from tests.fuzz.references import Refused
from tests.fuzz.target import Target, seal_tail

__all__ = ["BUGS", "planted"]

BUGS = ("answers", "refuses", "untyped", "reads_behind", "hangs", "slow", "grows")


def encode(parts: list[bytes]) -> bytes:
    data = bytearray(b"".join(bytes([len(part)]) + part for part in parts) + bytes(4))
    seal_tail(data)
    return bytes(data)


def reference(data: bytes) -> list[bytes]:
    """Parts, each behind its length; then a checksum."""
    if len(data) < 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Refused
    found, body = [], data[:-4]
    while body:
        if len(body) < 1 + body[0]:
            raise Refused
        found.append(body[1 : 1 + body[0]])
        body = body[1 + body[0] :]
    return found


def planted(bug: str | None) -> Target:
    held: list[bytearray] = []

    def parse(data: memoryview) -> Any:
        try:
            found = reference(bytes(data))
        except Refused:
            whole = bytes(data)
            sealed = len(whole) >= 4 and crc32c(whole[:-4]) == int.from_bytes(whole[-4:], "little")
            if sealed and bug == "untyped":
                raise IndexError("behind the end") from None
            if sealed and bug == "reads_behind":  # one byte, as a check that is off by one does
                ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(data)) + len(data), 1)
            raise Corruption("malformed") from None
        longest = max(map(len, found), default=0)
        if bug == "answers" and longest > 120:
            return found[:-1]
        if bug == "refuses" and longest == 9:
            raise Corruption("malformed")
        if bug == "hangs" and len(found) == 7:
            while True:
                pass
        if bug == "slow" and len(found) == 7:
            started = time.thread_time()
            while time.thread_time() - started < 1.1:
                pass
        if bug == "grows" and len(found) > 6:
            held.append(bytearray(b"\1" * (8 << 20)))
        return found

    corpus = [
        encode([]),
        encode([b"a", b"bc" * 60]),
        encode([b"123456789"]),
        encode([bytes([n]) * n for n in range(6)]),
    ]
    return Target(corpus, parse, (3, 3, 3), reference, seal_tail)
