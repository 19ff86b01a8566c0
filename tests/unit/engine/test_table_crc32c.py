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


def test_any_buffer_at_any_alignment() -> None:
    data = bytes(i * 7 & 255 for i in range(100_000))
    for start in range(9):
        assert crc32c(memoryview(data)[start:]) == crc32c_portable(data[start:])
    assert crc32c(bytearray(data)) == google_crc32c.value(data)
