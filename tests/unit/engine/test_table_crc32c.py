"""Our CRC-32C against published vectors and another implementation."""

from __future__ import annotations

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv._ext.crc32c import crc32c, crc32c_portable

# RFC 3720, appendix B.4
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_known_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c_portable(data) == expected


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_agrees_with_another_implementation(a: bytes, b: bytes) -> None:
    assert crc32c(a + b) == google_crc32c.value(a + b) == crc32c_portable(a + b)
    assert crc32c(b, crc32c(a)) == crc32c(a + b)
    assert crc32c_portable(b, crc32c_portable(a)) == crc32c(a + b)


LANES = (0, 1, 7, 8, 255, 256, 767, 768, 769, 1535, 1536, 4031, 4032, 4033, 4096, 4105, 8064, 8840, 70_000)


@pytest.mark.parametrize("size", LANES)
def test_a_long_buffer_is_the_sum_of_its_lanes(size: int) -> None:
    data = bytes((i * i * 31 + i >> 3) & 255 for i in range(size))
    assert crc32c(data) == google_crc32c.value(data) == crc32c_portable(data)
    assert crc32c(data, crc32c(b"before")) == google_crc32c.value(b"before" + data)
    for at in range(0, size, max(1, size // 40)):  # each byte counts, wherever it lies
        flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        assert crc32c(flipped) == crc32c_portable(flipped) != crc32c(data)


def test_any_buffer_at_any_alignment() -> None:
    data = bytes(i * 7 & 255 for i in range(100_000))
    for start in range(9):
        assert crc32c(memoryview(data)[start:]) == crc32c_portable(data[start:])
    assert crc32c(bytearray(data)) == google_crc32c.value(data)
