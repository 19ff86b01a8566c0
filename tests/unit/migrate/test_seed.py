"""SEED.json: round trip, and any other bytes are Corruption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import Corruption
from nokv.migrate.seed import SeedFile, SeedManifest, decode_seed, encode_seed, verify_seed
from nokv.testing.files import CrashFiles

U64 = st.integers(0, 2**64 - 1)
HEX = st.binary(max_size=20).map(bytes.hex)
FILES = st.builds(SeedFile, name=st.text(max_size=20), size=U64, crc32c=U64, entries=U64, smallest=HEX, largest=HEX)
MANIFESTS = st.builds(
    SeedManifest,
    region_id=U64,
    peer_id=U64,
    start_key=HEX,
    end_key=HEX,
    files=st.lists(FILES, max_size=4).map(tuple),
)


@given(MANIFESTS)
def test_round_trip(manifest: SeedManifest) -> None:
    assert decode_seed(encode_seed(manifest), "x") == manifest


@given(st.binary(max_size=300))
def test_any_bytes_are_corruption(data: bytes) -> None:
    with pytest.raises(Corruption, match="x"):
        decode_seed(data, "x")


@given(MANIFESTS, st.data())
def test_a_changed_byte_is_noticed(manifest: SeedManifest, data: st.DataObject) -> None:
    encoded = bytearray(encode_seed(manifest))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_seed(bytes(encoded), "x")
    except Corruption:
        return
    assert found == manifest  # white space


def test_missing_and_changed_tables() -> None:
    files = CrashFiles()
    files.makedirs("db/seed-snapshot")
    table = SeedFile("000001.sst", 3, 0, 1, "", "")
    manifest = SeedManifest(1, 101, "", "", (table,))
    with pytest.raises(Corruption, match="missing"):
        verify_seed("db", manifest, files)
    file = files.create("db/seed-snapshot/000001.sst")
    file.write(b"ab")
    with pytest.raises(Corruption, match="changed"):
        verify_seed("db", manifest, files)
    file.write(b"c")
    verify_seed("db", manifest, files)
