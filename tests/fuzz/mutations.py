"""Damage to valid encodings. What case `number` of a target looks like follows from the seed and the number alone, so
one line replays it."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

__all__ = ["Mutations"]

BYTES = (0, 1, 2, 3, 4, 8, 16, 63, 64, 127, 128, 129, 191, 192, 254, 255)
NUMBERS = (0, 1, 2, 7, 8, 15, 16, 255, 256, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
NUMBERS += ((1 << 56) - 1, 1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 16, (1 << 64) - 1)
VARINTS = (b"\x80", b"\x80\x00", b"\xff\x7f", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01")
VARINTS += (b"\xff" * 9 + b"\x02", b"\xff" * 10, b"\x80" * 9 + b"\x00")
WIDTHS = ("<B", "<H", "<I", "<Q", ">Q")
BLOCKS = (1, 4, 8, 16, 64, 512)
SEALED_SHARE = 0.8  # of the cases get right checksums
Damage = Callable[[random.Random, bytearray], None]


def below(dice: random.Random, n: int) -> int:
    return int(dice.random() * n)


def flip(dice: random.Random, data: bytearray) -> None:
    data[below(dice, len(data))] ^= 1 << below(dice, 8)


def byte(dice: random.Random, data: bytearray) -> None:
    data[below(dice, len(data))] = dice.choice(BYTES)


def any_byte(dice: random.Random, data: bytearray) -> None:
    data[below(dice, len(data))] = below(dice, 256)


def near(dice: random.Random, data: bytearray) -> None:
    """A length that is a little off."""
    place = below(dice, len(data))
    data[place] = (data[place] + below(dice, 9) - 4) & 255


def number(dice: random.Random, data: bytearray) -> None:
    """A fixed-width field with an extreme value, or about the size of the whole."""
    layout = dice.choice(WIDTHS)
    width = struct.calcsize(layout)
    if len(data) < width:
        return
    value = dice.choice(NUMBERS) if dice.random() < 0.6 else len(data) + below(dice, 33) - 16
    struct.pack_into(layout, data, below(dice, len(data) - width + 1), value & (1 << 8 * width) - 1)


def varint(dice: random.Random, data: bytearray) -> None:
    place, value = below(dice, len(data)), dice.choice(VARINTS)
    data[place : place + (len(value) if dice.random() < 0.5 else 1)] = value


def cut(dice: random.Random, data: bytearray) -> None:
    del data[below(dice, len(data)) :]


def remove(dice: random.Random, data: bytearray) -> None:
    start = below(dice, len(data))
    del data[start : start + 1 + below(dice, 24)]


def repeat(dice: random.Random, data: bytearray) -> None:
    start = below(dice, len(data))
    place = below(dice, len(data))
    data[place:place] = data[start : start + 1 + below(dice, 48)]


def insert(dice: random.Random, data: bytearray) -> None:
    place = below(dice, len(data))
    data[place:place] = dice.randbytes(1 + below(dice, 12))


def zeros(dice: random.Random, data: bytearray) -> None:
    start, size = below(dice, len(data)), 1 + below(dice, 64)
    end = min(len(data), start + size)
    data[start:end] = bytes(end - start)


def swap(dice: random.Random, data: bytearray) -> None:
    """Two aligned blocks in each other's place."""
    size = dice.choice(BLOCKS)
    count = len(data) // size
    if count < 2:
        return
    a, b = below(dice, count) * size, below(dice, count) * size
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


DAMAGES: tuple[Damage, ...] = (
    flip, flip, byte, any_byte, near, near, number, number, varint, cut, remove, repeat, insert, zeros, swap,
)  # fmt: skip


class Mutations:
    """The cases of one target: first its corpus as it is, then damaged copies without end."""

    def __init__(self, name: str, corpus: Sequence[bytes], seal: Callable[[bytearray], None] | None, seed: int) -> None:
        self.corpus = corpus
        self.seal = seal
        self.base = zlib.crc32(name.encode()) << 64 | (seed & 0xFFFFFF) << 40
        self.dice = random.Random()

    def case(self, at: int) -> tuple[bytes, bool]:
        """(the bytes, whether they are an unchanged encoding)."""
        if at < len(self.corpus):
            return self.corpus[at], True
        dice = self.dice
        dice.seed(self.base | at)
        data = bytearray(dice.choice(self.corpus))
        if dice.random() < 0.1:  # the beginning of one and the end of another
            other = dice.choice(self.corpus)
            data[below(dice, len(data) + 1) :] = other[below(dice, len(other) + 1) :]
        while data:
            dice.choice(DAMAGES)(dice, data)
            if dice.random() < 0.5:
                break
        if self.seal is not None and dice.random() < SEALED_SHARE:
            self.seal(data)
        return bytes(data), False
