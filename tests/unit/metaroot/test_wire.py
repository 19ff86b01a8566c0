"""The wire form: every event comes back as it was, and no bytes make it crash."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nokv.errors import Corruption, EpochNotMatch, NoKVError, NotLeader, PreconditionFailed, UsageError
from nokv.metaroot.events import EventKind, RootEvent, RootRecord, RootToken, StoreJoined, event_kind
from nokv.metaroot.machine import RootMachine
from nokv.metaroot.wire import (
    BATCH_BYTES_MAX,
    HEADER_BYTES,
    RootBatch,
    decode_batch,
    decode_checkpoint,
    encode_batch,
    encode_checkpoint,
    error_code,
    error_from_code,
    event_from_pb,
    event_to_pb,
    record_from_pb,
    record_to_pb,
    region_to_pb,
    state_chunks,
    state_from_pb,
    state_to_pb,
)
from nokv.pb import root_pb2
from nokv.region import Peer, Region, Store
from tests.unit.metaroot.test_state import EVENTS, PEERS, REGIONS

VALID = EVENTS.filter(lambda e: _travels(e))


def _travels(event: RootEvent) -> bool:
    try:
        event_from_pb(event_to_pb(event))
    except UsageError:  # ids that are zero do not pass the wire
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.lists(VALID, min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 1 << 63), st.integers(0, 9))
def test_batches_come_back(events: list[RootEvent], proposer: int, request_id: int, expected: int) -> None:
    batch = RootBatch(proposer, request_id, events, expected, 123, "me")
    assert decode_batch(encode_batch(batch)) == batch


@given(VALID)
def test_records_come_back(event: RootEvent) -> None:
    record = RootRecord(RootToken(7, 3, 99), event, 1_700_000_000_000, "c1")
    assert record_from_pb(record_to_pb(record)) == record


def test_every_kind_has_a_wire_form() -> None:  # MR-02
    assert {k.value for k in EventKind} == {v for v in root_pb2.RootEventKind.values() if v}


SAMPLE = encode_batch(
    RootBatch(1, 2, [StoreJoined(Store(1, "127.0.0.1:1")), StoreJoined(Store(2, "127.0.0.1:2"))], 3, 4, "author")
)


def test_every_flipped_bit_is_found() -> None:
    for position in range(len(SAMPLE)):
        for bit in (1, 16, 128):
            data = bytearray(SAMPLE)
            data[position] ^= bit
            with pytest.raises(Corruption):
                decode_batch(bytes(data))


def test_every_truncation_is_found() -> None:
    for size in range(len(SAMPLE)):
        with pytest.raises(Corruption):
            decode_batch(SAMPLE[:size])
    with pytest.raises(Corruption):
        decode_batch(SAMPLE + b"x")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_bodies_behind_a_good_checksum(body: bytes) -> None:
    from nokv.metaroot.wire import CONTENT_BATCH, CONTENT_CHECKPOINT, _frame

    for content, decode in ((CONTENT_BATCH, decode_batch), (CONTENT_CHECKPOINT, decode_checkpoint)):
        try:
            decode(_frame(content, body))
        except Corruption as error:
            assert error.offset in (-1, HEADER_BYTES) or error.offset >= 0


def test_limits() -> None:
    with pytest.raises(UsageError):
        encode_batch(RootBatch(1, 1, []))
    with pytest.raises(UsageError, match="limit"):
        huge = [StoreJoined(Store(n, "x" * 1024)) for n in range(1, 1024)]
        encode_batch(RootBatch(1, 1, [*huge, *huge[:1]]))
    with pytest.raises(UsageError):
        event_from_pb(event_to_pb(StoreJoined(Store(1, "x" * 1025))))
    with pytest.raises(UsageError):
        event_from_pb(root_pb2.RootEvent(kind=33))  # type: ignore[arg-type]
    assert BATCH_BYTES_MAX <= 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(VALID, min_size=1, max_size=3), max_size=15))
def test_a_checkpoint_restores_the_machine(batches: list[list[RootEvent]]) -> None:
    machine = RootMachine(retain_max=6)
    stores = [StoreJoined(Store(i, f"s:{i}")) for i in (1, 2, 3)]
    for index, events in enumerate([stores, *batches], start=5):
        machine.apply_entry(2, index, encode_batch(RootBatch(1, index, list(events))))
    other = RootMachine(retain_max=6)
    other.restore(decode_checkpoint(encode_checkpoint(machine.checkpoint())))
    assert other.state == machine.state
    assert other.read(other.first_revision, 100) == machine.read(machine.first_revision, 100)
    assert (other.applied_index, other.applied_term) == (machine.applied_index, machine.applied_term)
    assert state_from_pb(state_to_pb(machine.state)) == machine.state
    chunked = state_from_pb(*(chunk for chunk, _ in state_chunks(machine.state, 1)))
    assert chunked.regions == machine.state.regions
    assert chunked.lease == machine.state.lease


def test_entries_that_were_applied_are_skipped() -> None:
    machine = RootMachine()
    data = encode_batch(RootBatch(1, 1, [StoreJoined(Store(1, "x:1"))]))
    assert machine.apply_entry(1, 2, data) is not None
    assert machine.apply_entry(1, 2, data) is None
    assert machine.apply_entry(1, 3, b"") is None
    refused = machine.apply_entry(1, 4, encode_batch(RootBatch(1, 2, [StoreJoined(Store(1, "x:1"))], 9)))
    assert refused is not None and refused.error is None and refused.records == []
    assert machine.applied_index == 4


@given(PEERS, REGIONS)
def test_errors_come_back(peer: Peer, region: Region) -> None:
    for error in (NotLeader("n", address="a:1"), PreconditionFailed("p"), UsageError("u")):
        back = error_from_code(error_code(error), str(error), address="a:1")
        assert type(back) is type(error)
    if region.region_id and all(p.peer_id and p.store_id for p in region.peers):
        stale = EpochNotMatch("e", regions=(region,))
        back = error_from_code(error_code(stale), "e", extra=region_to_pb(region).SerializeToString())
        assert isinstance(back, EpochNotMatch) and back.regions == (region,)
    assert isinstance(error_from_code("from the future", "x"), NoKVError)
    assert event_kind(StoreJoined(Store(1, "x"))) is EventKind.STORE_JOINED
