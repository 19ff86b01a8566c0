"""The LZ4 block codec: what goes in comes out, and no bytes make it read or write outside."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv._ext.lz4 import compress, decompress
from nokv.errors import Corruption

PIECES = st.one_of(
    st.binary(max_size=40), st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 300)).map(lambda p: p[0] * p[1])
)
DATA = st.lists(PIECES, max_size=20).map(b"".join)


@given(data=DATA)
@settings(max_examples=300, deadline=None)
def test_what_goes_in_comes_out(data: bytes) -> None:
    small = compress(data, len(data) + len(data) // 255 + 16)
    if not data:
        assert small is None
        return
    assert small is not None
    assert decompress(small, len(data)) == data
    for other in (len(data) - 1, len(data) + 1):
        with pytest.raises(Corruption):
            decompress(small, other)
    assert compress(data, len(small) - 1) is None or len(small) > len(data)


@given(data=DATA, place=st.integers(0, 1 << 16), byte=st.integers(0, 255), size=st.integers(0, 5000))
@settings(max_examples=500, deadline=None)
def test_damage_is_refused_or_gives_as_many_bytes(data: bytes, place: int, byte: int, size: int) -> None:
    block = bytearray(compress(data, 2 * len(data) + 16) or b"\0")
    block[place % len(block)] = byte
    for stored, raw in ((bytes(block), len(data)), (bytes(block), size), (data, size), (bytes(block[:-1]), len(data))):
        try:
            assert len(decompress(stored, raw)) == raw
        except Corruption:
            pass


def test_blocks_of_known_bytes() -> None:
    # Written by hand from the format's description.
    assert decompress(b"\x50hello", 5) == b"hello"
    assert decompress(b"\x1fa\x01\x00\x00\x50aaaaa", 25) == b"a" * 25
    assert decompress(b"\x40abcd\x04\x00\x50vwxyz", 13) == b"abcdabcdvwxyz"
    assert decompress(b"\xf0\x01" + b"0123456789abcdef", 16) == b"0123456789abcdef"
    for bad in (b"", b"\x50hell", b"\x10a\x00\x00\x50aaaaa", b"\x10a\x02\x00\x50aaaaa", b"\xf0\xff\xff", b"\x0f\x01"):
        with pytest.raises(Corruption):
            decompress(bad, 10)


def test_it_makes_half_compressible_data_half_as_large() -> None:
    rng = random.Random(7)
    data = b"".join(rng.randbytes(50) + b"x" * 50 for _ in range(160))
    small = compress(data, len(data))
    assert small is not None and len(small) < 0.6 * len(data)
