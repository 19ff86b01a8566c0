"""durability="interval": the background sync, and its end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import nokv


@pytest.mark.timeout(60)
def test_close_never_waits_for_a_sync_thread_that_missed_its_end(tmp_path: Path) -> None:
    """The thread once cleared its wake-up after close had set it, then slept for ever: one open in some ten hung."""
    for i in range(100):
        db = nokv.open(str(tmp_path / "db"), sync_interval_ms=1, wal_segment_bytes=65536)
        # put until about the moment at which the thread's interval ends, so that close meets it there
        end = time.perf_counter() + 0.001 + (i % 10) * 0.00003
        while time.perf_counter() < end:
            db.put(b"key", b"x")
        db.close()
