"""The fuzzer of one parser, in a process of its own (R4). Run by test_parsers.py, and by hand:

    PYTHONPATH=.:shell python tests/fuzz/fuzz.py TARGET [--seed N] [--cases N] [--only CASE]

The first cases are the corpus and what is kept in tests/data/fuzz/TARGET; the others are damaged copies of these. A
case passes if the parser answers as the reference does, or raises one of our errors; within a second, and within 256
MiB. The first that does not is printed with the line that replays it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from typing import Any

from nokv.errors import NoKVError
from tests.fuzz.cluster_parsers import CLUSTER
from tests.fuzz.engine_parsers import ENGINE
from tests.fuzz.mutations import Mutations
from tests.fuzz.planted import BUGS, planted
from tests.fuzz.references import Refused
from tests.fuzz.target import SAVED, Fence, Target

SECONDS_MAX = 1.0  # of this thread's CPU time: a busy machine is no bug
RSS_MAX = 256 << 20
HANG_SECONDS = 4  # for EVERY cases, and then the kernel ends it
CASE_BYTES_MAX = 64 << 10
EVERY = 64


class Failed(Exception):
    pass


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def saved(name: str) -> list[bytes]:
    folder = SAVED / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def check(target: Target, data: bytes, unchanged: bool, fence: Fence) -> str:
    try:
        found: Any = target.parse(fence.holding(data))
        outcome = "read"
    except NoKVError as error:
        found, outcome = None, type(error).__name__
        str(error)
    if unchanged and outcome != "read":
        raise Failed(f"a valid encoding is refused: {outcome}")
    if target.reference is not None:
        try:
            expected: Any = target.reference(data)
        except Refused:
            if outcome == "read":
                raise Failed(f"read as {found!r}, which the reference refuses") from None
        else:
            if outcome != "read":
                raise Failed(f"refused ({outcome}), and the reference reads {expected!r}")
            if found != expected:
                raise Failed(f"read as {found!r}, and by the reference as {expected!r}")
    return outcome


def run(
    name: str, target: Target, seed: int, cases: range, progress: mmap.mmap | None, measured: bool
) -> dict[str, Any]:
    valid = len(target.corpus)
    mutations = Mutations(name, [*target.corpus, *saved(name)], target.seal, seed)
    fence = Fence(CASE_BYTES_MAX)
    if target.reference is not None and target.corpus:
        with contextlib.suppress(Refused):
            target.reference(target.corpus[0])  # what it imports is not the first case's time
    outcomes: dict[str, int] = {}
    slowest, base, started = 0.0, resident(), time.thread_time()
    number, data = 0, b""
    before = started
    for number in cases:
        if number % EVERY == 0 or number == cases.start:
            signal.setitimer(
                signal.ITIMER_VIRTUAL, HANG_SECONDS
            )  # its signal ends a process that has no handler for it
            if measured and resident() - base > RSS_MAX:
                raise Failed(
                    f"{name}: more than {RSS_MAX >> 20} MiB by one of the {EVERY} cases before {number}, seed {seed}"
                )
        if progress is not None:
            struct.pack_into("<Q", progress, 0, number)
        data, unchanged = mutations.case(number)
        data = data[:CASE_BYTES_MAX]
        try:
            outcome = check(target, data, unchanged and number < valid, fence)
        except MemoryError as error:
            raise Failed(f"{name}: case {number}, seed {seed}: MemoryError\n{data.hex()[:4000]}") from error
        except Exception as error:
            raise Failed(
                f"{name}: case {number}, seed {seed}: {type(error).__name__}: {str(error)[:2000]}\n"
                f"bytes: {data.hex()[:4000]}"
            ) from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        now = time.thread_time()
        if now - before > SECONDS_MAX:
            raise Failed(
                f"{name}: case {number}, seed {seed}: took {now - before:.1f} s of CPU time\nbytes: {data.hex()[:4000]}"
            )
        slowest, before = max(slowest, now - before), now
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if measured and resident() - base > RSS_MAX:
        raise Failed(f"{name}: more than {RSS_MAX >> 20} MiB, seed {seed}")
    return {
        "target": name,
        "seed": seed,
        "cases": len(cases),
        "outcomes": outcomes,
        "seconds": round(time.thread_time() - started, 2),
        "slowest_ms": round(slowest * 1000, 1),
        "grown_mib": (resident() - base) >> 20,
    }


def main() -> int:
    made = {**ENGINE, **CLUSTER, "planted": lambda: planted(given.plant)}
    arguments = argparse.ArgumentParser(description="fuzz one parser")
    arguments.add_argument("target", choices=sorted(made))
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--cases", type=int, default=10_000)
    arguments.add_argument("--only", type=int, help="this case alone")
    arguments.add_argument("--progress", help="a file of 8 bytes that names the case being run")
    arguments.add_argument("--plant", choices=BUGS, help="which bug the target `planted` has")
    given = arguments.parse_args()
    faulthandler.enable()
    progress = None
    if given.progress:
        with open(given.progress, "r+b") as file:
            progress = mmap.mmap(file.fileno(), 8)
    cases = range(given.cases) if given.only is None else range(given.only, given.only + 1)
    measured = "libasan" not in os.environ.get("LD_PRELOAD", "")
    try:
        print(json.dumps(run(given.target, made[given.target](), given.seed, cases, progress, measured)))
    except Failed as error:
        traceback.print_exception(error.__cause__ or error)
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
