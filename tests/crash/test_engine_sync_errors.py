"""R2f: every sync of the engine fails in its turn, once or for ever.

After a failed sync nobody knows what the disk holds, and a second sync that succeeds proves nothing. So the sync is not
tried again, no later write is acknowledged, reads go on, and what a restart finds is a state that the workload passed
through, with everything that was promised.
"""

from __future__ import annotations

from collections import Counter

import pytest

import nokv
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles, FaultFiles
from tests.crash.test_engine_crash_points import HISTORY, MAKES_DURABLE, OPERATIONS, OPTIONS, WORKLOAD, carry_out

KINDS = ("sync", "sync_dir")


def open_db(files: CrashFiles | FaultFiles) -> nokv.DB:
    return nokv.open("db", files=files, executor=StepExecutor(inline=True), durability="process", **OPTIONS)


def sync_calls(kind: str) -> int:
    files = FaultFiles(CrashFiles())
    fault = files.fail(kind, at=1 << 30)
    db = open_db(files)
    for number in range(OPERATIONS):
        carry_out(db, number)
    db.close()
    return fault.calls


def check(kind: str, at: int, times: int | None) -> None:
    disk = CrashFiles(seed=at)
    files = FaultFiles(disk)
    files.fail(kind, at=at, times=times)
    done = durable = 0
    try:
        db = open_db(files)
    except (nokv.NoKVError, OSError):
        assert files.struck
    else:
        refused = 0
        for number in range(OPERATIONS):
            struck_before = bool(files.struck)
            try:
                carry_out(db, number)
            except nokv.ReadOnly as error:
                assert files.struck and error.hint
                refused += 1
                continue
            assert not struck_before, f"operation {number} was acknowledged after the failed sync"
            done = number + 1
            if not files.struck and (WORKLOAD[number][2] or WORKLOAD[number][0] in MAKES_DURABLE):
                durable = done
        if refused:
            assert db.stats()["write"]["read_only"]
            assert dict(db.scan()) in HISTORY[done : done + 2]  # reads go on
        tried = Counter(files.struck)
        told = bool(tried)
        try:
            db.close()
        except nokv.ReadOnly:
            assert not told, "close complained again"
        else:
            if not files.struck:
                durable = done
        if times is None and kind == "sync":
            assert max(tried.values(), default=0) <= 1, f"a failed sync was tried again: {tried}"
    files.heal()
    for mode in ("drop", "random"):
        after = open_db(disk.crash_clone(mode, seed=at))
        found = dict(after.scan())
        assert found in HISTORY[durable : done + 2], f"{mode}: no state between {durable} and {done + 1}"
        after.put(b"after", b"1", sync=True)
        after.close()


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_every_failed_sync_makes_it_read_only(kind: str, times: int | None) -> None:
    count = sync_calls(kind)
    assert count > 20
    for at in range(1, count + 1):
        try:
            check(kind, at, times)
        except (AssertionError, nokv.NoKVError) as error:
            raise AssertionError(f"kind={kind!r}, at={at}, times={times}: {error!r}") from error
