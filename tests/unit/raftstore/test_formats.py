"""Round trips and hostile bytes of local metadata, snapshot manifests and membership changes. R4, S6."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv._ext.crc32c import crc32c
from nokv.env.files import OsFiles
from nokv.errors import Corruption, PreconditionFailed
from nokv.raft import ConfState
from nokv.raftstore import localmeta
from nokv.raftstore.localmeta import ApplyState
from nokv.raftstore.membership import ChangeKind, decode_change, encode_change, plan_change
from nokv.raftstore.snapshot import (
    SnapshotFile,
    SnapshotManifest,
    decode_manifest,
    encode_manifest,
    verify_staged,
)
from nokv.region import Peer, PeerRole, Region, RegionEpoch, RegionState

NUMBERS = st.integers(0, 2**64 - 1)
PEERS = st.builds(Peer, NUMBERS, NUMBERS, st.sampled_from(PeerRole))
REGIONS = st.builds(
    Region,
    NUMBERS,
    st.binary(max_size=9),
    st.binary(max_size=9),
    st.builds(RegionEpoch, NUMBERS, NUMBERS),
    st.lists(PEERS, max_size=4).map(tuple),
    st.sampled_from(RegionState),
)
IDS = st.lists(NUMBERS, max_size=4).map(tuple)
STATES = st.builds(
    ApplyState, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.builds(ConfState, IDS, IDS, IDS, IDS, st.booleans())
)
REGION = Region(1, b"a", b"m", RegionEpoch(3, 1), (Peer(101, 1), Peer(201, 2, PeerRole.LEARNER)))
MANIFEST = SnapshotManifest(
    REGION, 77, 6, 1 << 50, ConfState((101,), (201,)), {"write": 3}, (SnapshotFile("000001.sst", 4, 9, 1),)
)


@given(REGIONS)
def test_region_round_trip(region: Region) -> None:
    assert localmeta.decode_region(localmeta.encode_region(region)) == region


@given(STATES)
def test_apply_state_round_trip(state: ApplyState) -> None:
    assert localmeta.decode_applied(localmeta.encode_applied(state)) == state


def test_manifest_round_trip() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST


@pytest.mark.parametrize(
    ("encoded", "decode"),
    [
        (localmeta.encode_region(REGION), localmeta.decode_region),
        (localmeta.encode_applied(ApplyState(1, 2, 3, True, ConfState((1, 2)))), localmeta.decode_applied),
        (
            encode_change(plan_change(REGION, ChangeKind.PROMOTE, Peer(201, 0), leader_peer_id=101, address="")),
            decode_change,
        ),
    ],
)
def test_every_flipped_bit_and_every_cut_is_noticed(encoded: bytes, decode: Callable[[bytes], object]) -> None:
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Corruption):
            decode(bytes(damaged))
    for size in range(len(encoded)):
        with pytest.raises(Corruption):
            decode(encoded[:size])


def test_every_changed_byte_of_a_manifest_is_noticed_or_harmless() -> None:
    encoded = encode_manifest(MANIFEST)
    for at in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[at] ^= 0x11
        try:
            found = decode_manifest(bytes(damaged))
        except Corruption:
            continue
        assert found == MANIFEST  # white space


@given(st.binary(max_size=80), st.sampled_from([1, 2, 3, 4, 5]))
def test_hostile_bodies_with_a_good_checksum(body: bytes, kind: int) -> None:
    data = localmeta.encode_record(kind, body)
    for decode in (localmeta.decode_region, localmeta.decode_applied, decode_change):
        try:
            decode(data)
        except Corruption:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(encode_manifest(MANIFEST))["manifest"])), JSON)
def test_hostile_manifests_with_a_good_checksum(field: str, value: object) -> None:
    body = json.loads(encode_manifest(MANIFEST))["manifest"]
    body[field] = value
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    try:
        decode_manifest(json.dumps({"format": 1, "crc32c": crc32c(text.encode()), "manifest": body}).encode())
    except Corruption:
        pass


@pytest.mark.parametrize(
    "name", ["../x.sst", "/etc/x.sst", "x", "", "a b.sst", "x.sst\n", "..sst", "a/b.sst", "x" * 80 + ".sst"]
)
def test_names_that_could_leave_the_directory_are_refused(name: str) -> None:  # S6
    with pytest.raises(Corruption):
        decode_manifest(encode_manifest(replace(MANIFEST, files=(SnapshotFile(name, 1, 1),))))


def test_verify_staged_names_what_is_wrong(tmp_path: object) -> None:  # ENG-08
    directory, files = str(tmp_path), OsFiles()
    data = b"data"
    manifest = replace(MANIFEST, files=(SnapshotFile("000001.sst", 4, crc32c(data)),))
    path = f"{directory}/000001.sst"
    with pytest.raises(Corruption, match="not those of the manifest"):
        verify_staged(files, directory, manifest)
    for content, text in ((b"dat", "wrong size"), (b"dbta", "wrong checksum")):
        with open(path, "wb") as handle:
            handle.write(content)
        with pytest.raises(Corruption, match=text) as caught:
            verify_staged(files, directory, manifest)
        assert caught.value.path == path
    with open(path, "wb") as handle:
        handle.write(data)
    verify_staged(files, directory, manifest)


def test_changes_make_descriptors() -> None:
    learner = Peer(301, 3, PeerRole.LEARNER)
    change = plan_change(REGION, ChangeKind.ADD_LEARNER, Peer(301, 3), leader_peer_id=101, address="a:1")
    assert change.apply_to(REGION) == REGION.with_peers((*REGION.peers, learner))
    promote = plan_change(REGION, ChangeKind.PROMOTE, Peer(201, 0), leader_peer_id=101, address="")
    assert promote.apply_to(REGION).peers[1] == Peer(201, 2, PeerRole.VOTER)
    grown = promote.apply_to(REGION)
    remove = plan_change(grown, ChangeKind.REMOVE, Peer(201, 0), leader_peer_id=101, address="")
    assert remove.apply_to(grown).peers == (Peer(101, 1),)
    assert decode_change(encode_change(change)) == change
    assert len({change.transition_id, promote.transition_id, remove.transition_id}) == 3
    with pytest.raises(PreconditionFailed, match="leads"):
        plan_change(grown, ChangeKind.REMOVE, Peer(101, 0), leader_peer_id=101, address="")
