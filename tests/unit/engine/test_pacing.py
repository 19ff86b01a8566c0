"""Writers are slowed in small steps: the pure rule, and what a writer that follows it meets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nokv
from nokv.engine.pacing import PAUSE_S_MAX, SLICES, pause_s

CAPACITY = 28 << 20


def pause(used: int = CAPACITY // 2, slice_s: float = 0.001, left: float = 0.0, l0_files: int = 0) -> float:
    return pause_s(
        capacity=CAPACITY,
        used=used,
        slice_s=slice_s,
        flush_left_s=left,
        l0_files=l0_files,
        l0_trigger=12,
        l0_slow=24,
    )


seconds = st.floats(0, 100)


@given(st.integers(0, 2 * CAPACITY), seconds, st.floats(-100, 100), st.integers(0, 100))
def test_a_pause_is_bounded(used: int, slice_s: float, left: float, l0_files: int) -> None:
    assert 0 <= pause(used, slice_s, left, l0_files) <= PAUSE_S_MAX


@given(seconds, seconds, seconds, st.integers(0, 30))
def test_more_to_wait_for_is_never_a_shorter_pause(slice_s: float, one: float, other: float, l0_files: int) -> None:
    assert pause(slice_s=slice_s, left=min(one, other)) <= pause(slice_s=slice_s, left=max(one, other))
    assert pause(slice_s=slice_s, left=one, l0_files=l0_files) <= pause(
        slice_s=slice_s, left=one, l0_files=l0_files + 1
    )


def test_who_is_slow_enough_does_not_pause() -> None:
    assert pause(left=0.031, slice_s=0.001) == 0  # 32 slices of a millisecond are left
    assert pause(left=0.064, slice_s=0.001) == pytest.approx(0.001)


@pytest.mark.parametrize("flush_s", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("slice_s", [0.0002, 0.001, 0.002])
def test_a_writer_meets_the_flush_without_a_stall(flush_s: float, slice_s: float) -> None:
    now, used = 0.0, 0
    while used < CAPACITY:
        now += slice_s
        used += CAPACITY // SLICES
        now += pause(used, slice_s, flush_s - now)
    stall = max(0.0, flush_s - now)  # what it still has to wait for in one piece
    assert stall <= PAUSE_S_MAX
    assert now <= max(flush_s, SLICES * slice_s) + 2 * PAUSE_S_MAX  # and it did not wait longer than it had to


def test_a_database_that_flushes_counts_its_pauses(tmp_path: object) -> None:
    with nokv.open(f"{tmp_path}/db", write_buffer_bytes=1 << 20) as db:
        for n in range(60_000):
            db.put(b"%08d" % (n * 7919 % 60_000), b"v" * 100)
        write = db.stats()["write"]
        assert write["paused_ms"] <= 1000 * PAUSE_S_MAX * write["pauses"] + 1
        assert len(db) == 60_000
