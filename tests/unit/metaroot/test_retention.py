"""What the log keeps: grants, seals and region history stay; superseded fences and renewals are folded away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nokv.errors import InvariantError, NotFound
from nokv.metaroot.audit import audit
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    HandoffClosed,
    HandoffConfirmed,
    LeaseGranted,
    LeaseRenewed,
    LeaseSealed,
    RegionBootstrapped,
    RootRecord,
    StoreJoined,
)
from nokv.metaroot.machine import RootMachine
from nokv.metaroot.retention import RecordLog, check_chain
from nokv.metaroot.state import fold
from nokv.metaroot.wire import (
    RootBatch,
    decode_checkpoint,
    encode_batch,
    encode_checkpoint,
    record_from_pb,
    record_to_pb,
)
from nokv.region import Store
from tests.unit.metaroot.test_state import Log, log

__all__ = ["log"]  # the fixture


def busy_eras(log: Log, eras: int, fences: int) -> None:
    for era in range(1, eras + 1):
        if era > 1:
            log.append(LeaseSealed(era - 1, log.state.id_fence, log.state.tso_fence))
        log.append(LeaseGranted("a", "x:1", era, 1000))
        log.append(HandoffConfirmed("a", era, max(1, log.state.id_fence), max(1, log.state.tso_fence)))
        log.append(HandoffClosed("a", era))
        for _ in range(fences):
            log.append(AllocatorFenced(Allocator.TSO, log.state.tso_fence + 5, era))
            log.append(LeaseRenewed("a", era, 1000))


def kept(records: list[RootRecord], **options: int) -> RecordLog:
    retained = RecordLog(**options)
    for record in records:
        retained.extend([record])
    return retained


def test_fences_and_renewals_fold_and_history_stays(log: Log) -> None:
    busy_eras(log, eras=4, fences=500)
    retained = kept(log.records, retain_max=1_000, horizon=64)
    records = list(retained)
    assert len(log.records) > 4_000
    assert len(records) < 150  # without folding a thousand would be kept, and the first era be gone
    assert fold(records) == log.state
    assert check_chain(records, log.state.last.revision)
    assert sum(r.folded for r in records) + len(records) == len(log.records)
    for kind in (LeaseGranted, LeaseSealed, HandoffConfirmed, HandoffClosed, RegionBootstrapped):
        assert [r.event for r in records if isinstance(r.event, kind)] == [
            r.event for r in log.records if isinstance(r.event, kind)
        ]
    assert records[-64:] == log.records[-64:]  # the newest are whole
    found = audit(records)
    assert found.holds
    assert found.complete
    assert found.eras == 4


def test_what_is_kept_depends_on_the_log_alone(log: Log) -> None:
    busy_eras(log, eras=3, fences=100)
    one_by_one = list(kept(log.records, retain_max=200, horizon=40))
    at_once = RecordLog(retain_max=200, horizon=40)
    for at in range(0, len(log.records), 7):
        at_once.extend(log.records[at : at + 7])
    resumed = RecordLog(retain_max=200, horizon=40)
    half = kept(log.records[:333], retain_max=200, horizon=40)
    resumed.load(list(half))
    for record in log.records[333:]:
        resumed.extend([record])
    assert list(resumed) == one_by_one
    assert [r.token for r in at_once] == [r.token for r in one_by_one]


def test_reads_step_over_what_is_folded(log: Log) -> None:
    busy_eras(log, eras=2, fences=200)
    retained = kept(log.records, retain_max=500, horizon=16)
    read, at = [], retained.first_revision
    while page := retained.read(at, 7):
        read += page
        at = page[-1].token.revision + 1
    assert read == list(retained)
    gap = next(r for r in read if r.folded)
    assert retained.read(gap.token.revision - 1, 1) == [gap]
    # whoever had seen part of what is folded goes on from there
    state = fold(log.records[: gap.token.revision - 1])
    assert fold(retained.read(gap.token.revision, 10_000), state) == log.state


def test_a_hole_is_not_a_fold(log: Log) -> None:
    busy_eras(log, eras=2, fences=100)
    records = list(kept(log.records, retain_max=500, horizon=16))
    gap = next(n for n, r in enumerate(records) if r.folded)
    lying = [*records[:gap], replace(records[gap], folded=records[gap].folded - 1), *records[gap + 1 :]]
    assert not check_chain(lying, log.state.last.revision)
    with pytest.raises(InvariantError):
        fold(lying)
    with pytest.raises(InvariantError):
        fold([*records[: gap + 1], *records[gap + 2 :]])


def test_the_oldest_go_at_the_bound() -> None:
    log = Log()
    for n in range(1, 200):
        log.append(StoreJoined(Store(n, f"x:{n}")))
    retained = kept(log.records, retain_max=50)
    assert [r.token.revision for r in retained] == list(range(150, 200))
    with pytest.raises(NotFound, match="150"):
        retained.read(149, 1)


def test_a_machine_and_its_checkpoint_keep_the_same() -> None:
    machine = RootMachine(retain_max=64)
    batches = [[LeaseGranted("a", "x:1", 1, 1000)], [HandoffConfirmed("a", 1, 1, 1)]]
    batches += [[AllocatorFenced(Allocator.TSO, 5 * n, 1)] for n in range(1, 300)]
    for index, events in enumerate(batches, start=1):
        machine.apply_entry(1, index, encode_batch(RootBatch(1, index, list(events))))
    restored = RootMachine(retain_max=64)
    restored.restore(decode_checkpoint(encode_checkpoint(machine.checkpoint())))
    assert list(restored.records) == list(machine.records)
    assert restored.first_revision == 1  # the grant: nothing but fences was folded
    assert restored.state == machine.state == fold(machine.records)
    record = next(r for r in machine.records if r.folded)
    assert record_from_pb(record_to_pb(record)) == record
