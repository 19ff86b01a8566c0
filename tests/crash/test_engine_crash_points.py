"""R2: the engine's process stops, or its machine loses power, at every operation on the disk.

The workload is a fixed list of operations; `HISTORY[i]` is what the database holds after the first i of them. Whatever
the
crash, the next open must find one of these states: not older than the newest operation whose durability was promised,
and
batches all or nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

import nokv
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashMode, CrashPoint
from tests.counts import count

OPERATIONS = count(200, 200, 750)
IMAGES = count(2, 6, 20)  # of each operation on the disk
DOUBLE_CRASHES = count(200, 500, 5000)
SEED = 20261
OPTIONS = {
    "write_buffer_bytes": 8192,
    "wal_segment_bytes": 4096,
    "l0_files_trigger": 3,
    "table_bytes": 4096,
    "level_base_bytes": 16384,
    "manifest_bytes_max": 2048,
    "value_file_threshold": 500,
    "value_file_bytes": 2048,
}
State = dict[bytes, bytes]
Operation = tuple[str, list[tuple[bytes, bytes | None]], bool]


def make_workload() -> list[Operation]:
    dice = random.Random(SEED)
    operations: list[Operation] = []
    for number in range(OPERATIONS):
        kinds = ["put", "delete", "delete_range", "batch", "flush", "compact", "compact_range"]
        kind = dice.choices(kinds, [54, 10, 8, 22, 4, 2, 2])[0]
        sync = dice.random() < 0.2
        changes: list[tuple[bytes, bytes | None]] = []
        count = {"put": 1, "delete": 1, "batch": dice.randrange(2, 9)}.get(kind, 0)
        for _ in range(count):
            key = b"key%03d" % dice.randrange(60)
            if kind == "delete" or (kind == "batch" and dice.random() < 0.25):
                changes.append((key, None))
            else:
                changes.append((key, b"%d:" % number + bytes([number % 256]) * dice.choice([0, 10, 100, 600])))
        if kind == "delete_range":
            start = dice.randrange(60)
            changes.append((b"key%03d" % start, b"key%03d" % dice.randrange(start, min(70, start + 15))))
        operations.append((kind, changes, sync))
    return operations


def make_history(operations: list[Operation]) -> list[State]:
    state: State = {}
    history = [dict(state)]
    for kind, changes, _ in operations:
        for key, value in changes:
            if kind == "delete_range":
                state = {k: v for k, v in state.items() if not (value is not None and key <= k < value)}
            elif value is None:
                state.pop(key, None)
            else:
                state[key] = value
        history.append(dict(state))
    return history


WORKLOAD = make_workload()
HISTORY = make_history(WORKLOAD)


def open_db(files: CrashFiles) -> nokv.DB:
    return nokv.open("db", files=files, executor=StepExecutor(inline=True), durability="process", **OPTIONS)


def carry_out(db: nokv.DB, number: int) -> None:
    """One operation. Some values expire, but not in our time; in batches, some are put expired: that deletes."""
    kind, changes, sync = WORKLOAD[number]
    if kind == "put":
        ((key, value),) = changes
        assert value is not None
        db.put(key, value, ttl=1 << 40 if number % 4 == 0 else None, sync=sync)
    elif kind == "delete":
        db.delete(changes[0][0], sync=sync)
    elif kind == "delete_range":
        db.delete_range(*changes[0], sync=sync)
    elif kind == "batch":
        with db.write_batch(sync=sync) as batch:
            for key, value in changes:
                if value is None and number % 2:
                    batch.put(key, b"expired", expires_at_ms=1)
                elif value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
    elif kind == "flush":
        db.flush()
    elif kind == "compact":
        db.compact()
    else:
        db.compact(b"key020", b"key040")


MAKES_DURABLE = ("flush", "compact", "compact_range")


def run_workload(files: CrashFiles) -> tuple[int, int]:
    """(operations that returned, operations covered by a promise of durability). Stops at the crash."""
    done = durable = 0
    try:
        db = open_db(files)
        for number, (kind, _, sync) in enumerate(WORKLOAD):
            carry_out(db, number)
            done += 1
            if sync or kind in MAKES_DURABLE:
                durable = done
        db.close()
        durable = done
    except CrashPoint:
        pass
    return done, durable


def operation_count() -> int:
    files = CrashFiles(seed=SEED)
    done, _ = run_workload(files)
    assert done == OPERATIONS
    return files.operation_count


def check_image(files: CrashFiles, mode: CrashMode, seed: int, done: int, durable: int) -> None:
    promised = done if mode in ("process", "keep") else durable
    check_recovery(files.crash_clone(mode, seed=seed), seed, promised, done)


def check_recovery(image: CrashFiles, seed: int, promised: int, done: int) -> None:
    db = open_db(image)
    found = dict(db.scan())
    assert list(db.scan(reverse=True)) == sorted(found.items(), reverse=True)
    candidates = [i for i in range(promised, min(done + 1, OPERATIONS) + 1) if HISTORY[i] == found]
    assert candidates, f"recovered state is no state between operation {promised} and {done + 1}"
    assert {key: db.get(key) for key in HISTORY[-1]} == {key: found.get(key) for key in HISTORY[-1]}
    db.put(b"after", b"crash", sync=True)  # and the survivor works
    second = open_db(image.crash_clone("drop", seed=seed))  # recovery after recovery changes nothing
    assert dict(second.scan()) == {**found, b"after": b"crash"}
    second.close()
    db.close()


def crash_points(slice_index: int, slices: int) -> Iterator[int]:
    yield from range(1 + slice_index, operation_count() + 1, slices)


@pytest.mark.counted
@pytest.mark.parametrize("part", range(6))
def test_crash_at_every_operation(part: int) -> None:
    """Every operation on the disk, each with some of the six kinds of image; over the six parts every kind has its
    turn."""
    for number, k in enumerate(crash_points(part, 6)):
        files = CrashFiles(seed=k, crash_at=k)
        done, durable = run_workload(files)
        assert files.crashed
        for turn in range(IMAGES):
            mode: CrashMode = "random" if turn % 6 == 1 else CRASH_MODES[(number + part + turn) % 6]
            try:
                check_image(files, mode, k + turn // 6, done, durable)
            except (AssertionError, nokv.NoKVError) as error:
                raise AssertionError(
                    f"crash_at={k} turn={turn} ({files.operations[-1]}), mode={mode!r}, done={done}, "
                    f"durable={durable}: {error!r}"
                ) from error


@pytest.mark.counted
@pytest.mark.parametrize("part", range(4))
def test_a_crash_inside_the_recovery(part: int) -> None:
    """The recovery is cut short at each of its own operations on the disk; the next one keeps the same promises."""
    dice = random.Random(SEED + part)
    total = operation_count()
    left = DOUBLE_CRASHES // 4
    while left > 0:
        k, mode = dice.randrange(1, total + 1), dice.choice(CRASH_MODES)
        files = CrashFiles(seed=k, crash_at=k)
        done, durable = run_workload(files)
        whole = files.crash_clone(mode, seed=k)
        open_db(whole)  # and never closed
        for at in range(1, whole.operation_count + 1):
            image = files.crash_clone(mode, seed=k)
            image.crash_at = at
            with pytest.raises(CrashPoint):
                open_db(image)
            again = dice.choice(CRASH_MODES)
            gentle = {mode, again} <= {"process", "keep"}
            try:
                check_recovery(image.crash_clone(again, seed=at), at, done if gentle else durable, done)
            except (AssertionError, nokv.NoKVError) as error:
                raise AssertionError(f"crash_at={k}, mode={mode!r}, then {at} and {again!r}: {error!r}") from error
            left -= 1
