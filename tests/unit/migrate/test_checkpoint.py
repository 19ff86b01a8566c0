"""MIGRATION.json: round trip, every damage is a typed error, replacement is atomic under a crash at every operation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import Corruption
from nokv.migrate.checkpoint import (
    CHECKPOINT_NAME,
    MILESTONES,
    STAGES,
    Checkpoint,
    Rollout,
    decode_checkpoint,
    encode_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashPoint

IDS = st.integers(0, (1 << 64) - 1)
ROLLOUTS = st.builds(
    Rollout,
    stage=st.sampled_from(STAGES),
    region_id=IDS,
    command=st.text(),
    targets=st.lists(st.text(), max_size=4).map(tuple),
    completed=st.integers(0, 9),
    current=st.text(),
    last_finished=st.text(),
)
CHECKPOINTS = st.builds(
    Checkpoint,
    milestone=st.sampled_from(["", *MILESTONES]),
    store_id=IDS,
    region_id=IDS,
    peer_id=IDS,
    rollout=st.none() | ROLLOUTS,
)


def test_names_are_exactly_these() -> None:  # MIG-17, MIG-29
    assert MILESTONES == (
        "mode-preparing-written",
        "local-catalog-persisted",
        "seed-snapshot-exported",
        "raft-seed-initialized",
        "seeded-finalized",
    )
    assert STAGES == (
        "expand-rollout-started",
        "expand-target-pending",
        "expand-target-hosted",
        "transfer-leader-started",
        "transfer-leader-finished",
        "remove-peer-started",
        "remove-peer-finished",
    )


@given(CHECKPOINTS)
def test_round_trip(checkpoint: Checkpoint) -> None:
    assert decode_checkpoint(encode_checkpoint(checkpoint), "x") == checkpoint


@given(st.binary(max_size=300))
def test_any_bytes_are_a_checkpoint_or_corruption(data: bytes) -> None:
    with pytest.raises(Corruption, match="x"):
        decode_checkpoint(data, "x")


@given(CHECKPOINTS, st.data())
def test_a_changed_byte_never_becomes_another_checkpoint(checkpoint: Checkpoint, data: st.DataObject) -> None:
    encoded = bytearray(encode_checkpoint(checkpoint))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_checkpoint(bytes(encoded), "x")
    except Corruption:
        return
    assert found == checkpoint  # white space


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
def test_wrong_types_are_corruption(value: object) -> None:
    from nokv._ext.crc32c import crc32c

    for name in ("milestone", "store_id", "rollout"):
        body = {"milestone": "", "store_id": 1, "region_id": 1, "peer_id": 1, "rollout": None, name: value}
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        document = {"format": 1, "crc32c": f"{crc32c(canonical):08x}", "checkpoint": body}
        try:
            found = decode_checkpoint(json.dumps(document).encode(), "x")
        except Corruption:
            continue
        assert isinstance(found, Checkpoint)


def test_deep_nesting_is_corruption() -> None:
    with pytest.raises(Corruption):
        decode_checkpoint(b"[" * 200_000, "x")


def test_too_large_is_corruption() -> None:
    with pytest.raises(Corruption, match="too large"):
        decode_checkpoint(b" " * (1 << 21), "x")


def test_a_crash_at_every_operation_shows_the_old_or_the_new_one() -> None:
    old, new = Checkpoint("mode-preparing-written", 1, 1, 101), Checkpoint("local-catalog-persisted", 1, 1, 101)

    def prepared(crash_at: int | None = None) -> CrashFiles:
        files = CrashFiles()
        files.makedirs("db")
        save_checkpoint("db", old, files)
        files.crash_at = None if crash_at is None else files.operation_count + crash_at
        return files

    whole = prepared()
    begin = whole.operation_count
    save_checkpoint("db", new, whole)
    operations = whole.operation_count - begin
    assert operations >= 4
    for crash_at in range(operations + 1):
        files = prepared(crash_at)
        try:
            save_checkpoint("db", new, files)
        except CrashPoint:
            pass
        for mode in CRASH_MODES:
            found = load_checkpoint("db", files.crash_clone(mode, seed=crash_at))
            assert found in (old, new), (crash_at, mode)
            if not files.crashed:
                assert found == new, (crash_at, mode)


def test_no_file_is_no_checkpoint() -> None:
    files = CrashFiles()
    files.makedirs("db")
    assert load_checkpoint("db", files) is None


def test_pending() -> None:
    rollout = Rollout("expand-target-hosted", 1, "x", ("2:201", "3:301"), completed=1)
    assert rollout.pending
    assert not Rollout("expand-target-hosted", 1, "x", ("2:201",), completed=1).pending
    assert Rollout("transfer-leader-started", 1, "x").pending
    assert not Rollout("remove-peer-finished", 1, "x").pending


def test_name() -> None:
    assert CHECKPOINT_NAME == "MIGRATION.json"
