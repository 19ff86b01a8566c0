"""The command codec: round trips, every rejection, and hostile bytes. RS-08, R4."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv._ext import command
from nokv._ext.crc32c import crc32c
from nokv.errors import KeyLocked, KeyNotInRegion, UsageError

KEYS = st.binary(max_size=20)
VALUES = st.binary(max_size=40)
RESULTS = st.one_of(
    st.none(),
    VALUES,
    st.integers(0, 2**64 - 1),
    st.tuples(st.lists(st.tuples(KEYS, VALUES), max_size=4), st.booleans(), st.just(False)),
)


def seal(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))


@given(st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=20))
def test_writes_round_trip(operations: list[tuple[bytes, bytes | None]]) -> None:
    packed = command.pack_writes(operations)
    assert command.unpack_writes(packed) == operations
    assert command.check_writes(packed, b"", b"") == len(operations)


@given(st.lists(KEYS, max_size=20))
def test_gets_round_trip(keys: list[bytes]) -> None:
    assert command.unpack_reads(command.pack_gets(keys), b"", b"") == (keys, True)


def test_scan_is_clipped_to_the_region() -> None:
    packed = command.pack_scan(b"a", b"", 7, reverse=True)
    assert command.unpack_reads(packed, b"", b"") == ([(b"a", b"", 7, 1)], False)
    assert command.unpack_reads(packed, b"c", b"m") == ([(b"c", b"m", 7, 1)], False)
    with pytest.raises(KeyNotInRegion):
        command.unpack_reads(command.pack_scan(b"x", b"", 0), b"c", b"m")
    with pytest.raises(KeyNotInRegion):
        command.unpack_reads(command.pack_scan(b"a", b"b", 0), b"c", b"m")
    with pytest.raises(UsageError, match="start is after end"):
        command.pack_scan(b"b", b"a", 0)


@given(st.lists(RESULTS, max_size=10))
def test_results_round_trip(results: list) -> None:
    expected = [r[:2] if isinstance(r, tuple) else r for r in results]
    assert command.unpack_results(command.pack_results(results)) == expected


def test_results_keys_only_locked_done() -> None:
    lock = KeyLocked("locked", lock=(b"k", b"record"))
    packed = command.pack_results([([(b"a", b""), (b"b", b"")], True, True), lock])
    pairs, locked = command.unpack_results(packed)
    assert pairs == ([(b"a", b""), (b"b", b"")], True)
    assert isinstance(locked, KeyLocked) and locked.lock == (b"k", b"record")
    assert command.unpack_results(command.pack_done(5)) == [5]


def test_range_check() -> None:  # RS-05
    packed = command.pack_writes([(b"b", b"1"), (b"c", None)])
    assert command.check_writes(packed, b"b", b"d") == 2
    assert command.check_writes(packed, b"b", b"") == 2
    for start, end in ((b"b", b"c"), (b"bb", b""), (b"", b"b"), (b"c", b"")):
        with pytest.raises(KeyNotInRegion):
            command.check_writes(packed, start, end)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.lists(st.tuples(st.integers(0, 2**64 - 1), VALUES)))
def test_batch_round_trip(proposal: int, floor: int, groups: list[tuple[int, bytes]]) -> None:
    assert command.unpack_batch(command.pack_batch(proposal, floor, groups)) == (proposal, floor, groups)


@given(st.lists(st.tuples(KEYS, st.none() | VALUES), min_size=1, max_size=5), st.data())
def test_one_flipped_bit_is_noticed(operations: list[tuple[bytes, bytes | None]], data: st.DataObject) -> None:
    packed = bytearray(command.pack_writes(operations))
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(UsageError):
        command.check_writes(bytes(packed), b"", b"")


@given(st.binary(max_size=60), st.sampled_from([1, 2, 3, 16, 17, 99]))
def test_hostile_bodies_with_a_good_checksum(body: bytes, kind: int) -> None:  # R4
    packed = seal(bytes([1, kind]) + body)
    for parse in (
        lambda: command.unpack_writes(packed),
        lambda: command.unpack_reads(packed, b"", b""),
        lambda: command.unpack_results(packed),
        lambda: command.unpack_batch(packed),
    ):
        try:
            parse()
        except (UsageError, KeyNotInRegion):
            pass


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x01", bytes(6), b"raw payload", seal(b"\x02\x01\x00")])
def test_foreign_bytes(data: bytes) -> None:
    with pytest.raises(UsageError):
        command.check_writes(data, b"", b"")
    with pytest.raises(UsageError):
        command.unpack_results(data)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(UsageError):
        command.unpack_writes(seal(b"\x01\x01\x00\x00"))
