"""ENG-02, R2k: a real process, a real SIGKILL: what was acknowledged with sync=True is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nokv
from tests.counts import count

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys, nokv
db = nokv.open(sys.argv[1], durability="process", write_buffer_bytes=65536, wal_segment_bytes=32768)
number = int(sys.argv[2])
while True:
    sync = number % 7 == 0
    if number % 3:
        db.put(b"k%06d" % (number % 500), b"%d" % number, sync=sync)
    else:
        with db.write_batch(sync=sync) as batch:
            for part in range(3):
                batch.put(b"b%d" % part, b"%d" % number)
    db.put(b"last", b"%d" % number)
    sys.stdout.write("%d\\n" % number)
    sys.stdout.flush()
    number += 1
"""


@pytest.mark.counted
def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    seed = int(os.environ.get("NOKV_TEST_SEED", "7"))
    dice = random.Random(seed)
    path = str(tmp_path / "db")
    number = 1
    for round_number in range(count(12, 200, 2000)):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(number)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        acknowledged = number - 1
        for _ in range(dice.randrange(1, 400)):
            line = writer.stdout.readline()
            assert line, f"the writer stopped by itself (seed {seed}, round {round_number})"
            acknowledged = int(line)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        if rest and rest[-1].isdigit():
            acknowledged = max(acknowledged, int(rest[-1]) if len(rest) == 1 else int(rest[-2]))
        writer.stdout.close()
        writer.wait()
        with nokv.open(path) as db:
            last = int(db[b"last"])
            assert last >= acknowledged, f"seed {seed}, round {round_number}"
            assert len({db.get(b"b%d" % part) for part in range(3)}) == 1  # batches are all or nothing
            for back in range(max(1, last - 400), last + 1):
                if back % 3:
                    assert int(db[b"k%06d" % (back % 500)]) >= back
        number = last + 1
