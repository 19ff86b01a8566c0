"""Writers are slowed in small steps: the pure rule, and what a writer that follows it meets."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nokv
from nokv.engine.pacing import OVERSHOOT, PAUSE_S_MAX, PAUSE_S_MIN, PAUSE_S_SHORT, SLICES, due_s, pause_s
from nokv.env.files import OsFiles, OsWritableFile

CAPACITY = 28 << 20


SLICE = CAPACITY // SLICES


def pause(
    used: int = CAPACITY // 2, took_s: float = 0.0001, left: float = 0.0, l0_files: int = 0, written: int = SLICE
) -> float:
    return pause_s(
        capacity=CAPACITY,
        used=used,
        written=written,
        took_s=took_s,
        flush_left_s=left,
        l0_files=l0_files,
        l0_trigger=12,
        l0_slow=24,
    )


seconds = st.floats(0, 100)


@given(st.integers(0, 2 * CAPACITY), seconds, st.floats(-100, 100), st.integers(0, 100), st.integers(0, CAPACITY))
def test_a_pause_is_bounded(used: int, took_s: float, left: float, l0_files: int, written: int) -> None:
    longest = PAUSE_S_MAX * min(max(written / SLICE, 1), 8)
    assert 0 <= pause(used, took_s, left, l0_files, written) <= longest * 1.000001


@given(seconds, seconds, seconds, st.integers(0, 30))
def test_more_to_wait_for_is_never_a_shorter_pause(took_s: float, one: float, other: float, l0_files: int) -> None:
    assert pause(took_s=took_s, left=min(one, other)) <= pause(took_s=took_s, left=max(one, other))
    assert pause(took_s=took_s, left=one, l0_files=l0_files) <= pause(took_s=took_s, left=one, l0_files=l0_files + 1)


def test_who_is_slow_enough_does_not_pause() -> None:
    assert pause(left=0.0255, took_s=0.0001) == 0  # 256 slices of a tenth of a millisecond are left
    assert pause(left=0.0512, took_s=0.0001) == pytest.approx(0.0001)
    assert pause(left=0.0512, took_s=0.0002, written=2 * SLICE) == pytest.approx(0.0002)  # a batch of two slices


@pytest.mark.parametrize("flush_s", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("slice_s", [0.00003, 0.0001, 0.0003])
@pytest.mark.parametrize("slices", [1, 3])
def test_a_writer_meets_the_flush_without_a_stall(flush_s: float, slice_s: float, slices: int) -> None:
    now, used, owed, pauses = 0.0, 0, 0.0, []
    while used < CAPACITY:
        now += slices * slice_s
        used += slices * SLICE
        wanted = pause(used, slices * slice_s, flush_s - now, written=slices * SLICE)
        owed += wanted
        due = due_s(owed, wanted)
        owed -= due
        now += due
        if due:
            pauses.append(due)
    stall = max(0.0, flush_s - now)  # what it still has to wait for in one piece
    assert stall <= SLICES // OVERSHOOT * PAUSE_S_SHORT + 3 * PAUSE_S_MAX  # which the memtable overshoots by
    assert min(pauses, default=1) >= PAUSE_S_MIN
    assert owed < PAUSE_S_MIN
    assert now <= max(flush_s, SLICES * slice_s) + 6 * PAUSE_S_MAX  # and it did not wait longer than it had to


def test_a_database_that_flushes_counts_its_pauses(tmp_path: object) -> None:
    with nokv.open(f"{tmp_path}/db", write_buffer_bytes=1 << 20) as db:
        for n in range(60_000):
            db.put(b"%08d" % (n * 7919 % 60_000), b"v" * 100)
        write = db.stats()["write"]
        assert write["paused_ms"] <= 1000 * PAUSE_S_MAX * 8 * write["pauses"] + 1
        assert len(db) == 60_000


class GatedFiles(OsFiles):
    """Tables are made only while the gate is open."""

    __slots__ = ("gate",)

    def __init__(self) -> None:
        self.gate = threading.Event()

    def create(self, path: str) -> OsWritableFile:
        if path.endswith(".sst"):
            assert self.gate.wait(60)
        return super().create(path)


def test_a_late_flush_finds_a_memtable_a_little_larger_not_a_stalled_writer(tmp_path: object) -> None:
    files, capacity = GatedFiles(), 1 << 20
    with nokv.open(f"{tmp_path}/db", write_buffer_bytes=capacity, files=files) as db:
        drain, sizes = db._flush_executor.drain, []

        def drained() -> None:  # a writer waits for the flush in one piece
            sizes.append(db.view.mem.used_bytes)
            files.gate.set()
            drain()

        db._flush_executor.drain = drained  # type: ignore[method-assign]
        n = 0
        while not sizes:
            db.put(b"%08d" % n, b"v" * 100)
            n += 1
        assert capacity * (1 + 1 / OVERSHOOT) <= sizes[0] <= capacity * (1 + 1 / OVERSHOOT) + capacity / 64
        assert db.stats()["write"]["pauses"] >= SLICES // OVERSHOOT // 2
        assert len(db) == n
