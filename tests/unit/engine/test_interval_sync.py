"""durability="interval": the background sync, and its end."""

from __future__ import annotations

from pathlib import Path

import pytest

import nokv


@pytest.mark.timeout(60)
def test_close_never_waits_for_a_sync_thread_that_missed_its_end(tmp_path: Path) -> None:
    """The thread once cleared its wake-up after close had set it, and then slept for ever: one open in some ten hung."""
    for i in range(300):
        db = nokv.open(str(tmp_path / "db"), sync_interval_ms=1, wal_segment_bytes=65536)
        for j in range(i % 7):
            db.put(b"%d" % j, b"x")
        db.close()
