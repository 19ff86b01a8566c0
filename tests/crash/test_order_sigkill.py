"""Keys ordered by a comparator, and SIGKILL at any moment: whole batches, in order, and room for more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nokv.compat.plyvel as plyvel
from tests.counts import count
from tests.unit.compat.test_order import ORDERS, check, converging

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
import nokv.compat.plyvel as plyvel
from tests.unit.compat.test_order import ORDERS, converging

db = plyvel.DB(sys.argv[1], create_if_missing=True, comparator=ORDERS["numeric"], comparator_name=b"numeric")
numbers = converging(40_000)
turn = int(sys.argv[2])
while True:
    with db.write_batch(sync=turn % 50 == 0) as batch:
        batch.put(b"%d" % (2 * numbers[turn]), b"%d" % turn)
        batch.put(b"%d" % (2 * numbers[turn] + 1), b"%d" % turn)
    sys.stdout.write("%d\\n" % turn)
    sys.stdout.flush()
    turn += 1
"""


@pytest.mark.counted
def test_order_survives_sigkill(tmp_path: Path) -> None:
    """Each batch puts two neighbours into the same gap, so that labels move all the time."""
    seed = int(os.environ.get("NOKV_TEST_SEED", "11"))
    print(f"seed {seed}")
    dice = random.Random(seed)
    path, numbers, done = str(tmp_path / "db"), converging(40_000), 0
    for _ in range(count(4, 15, 120)):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(done)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        acknowledged = done
        for _ in range(dice.randrange(1, 300)):
            line = writer.stdout.readline()
            assert line, "the writer stopped by itself"
            acknowledged = int(line) + 1
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout.read().split(b"\n")[:-1]:
            acknowledged = int(line) + 1
        writer.stdout.close()
        writer.wait()
        with plyvel.DB(path, comparator=ORDERS["numeric"], comparator_name=b"numeric") as db:
            pairs = list(db)
            assert pairs == check(db, ORDERS["numeric"])
            done = len(pairs) // 2
            assert done in (acknowledged, acknowledged + 1)  # the last batch may be there without its answer
            expected = sorted((2 * numbers[turn] + side, turn) for turn in range(done) for side in (0, 1))
            assert [(int(key), int(value)) for key, value in pairs] == expected
            assert db.get(b"%d" % (2 * numbers[done - 1])) == b"%d" % (done - 1)
