"""R2k: a real process on a real file system, killed at its n-th write, sync, rename, link, allocation, removal, or told
there that the disk failed or is full: strace puts the fault into the system call itself. The same promises as after any
other death (test_engine_sigkill.py); a failed call is a typed error, or does no harm. See stress.py."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import nokv
from tests.counts import count
from tests.crash.stress import Plan, command, draw_options
from tests.crash.test_engine_sigkill import SEED, Expected, acknowledgements, environment

CALLS = (
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "msync",
    "rename",
    "unlink",
    "ftruncate",
    "fallocate",
    "link",
    "mkdir",
)
POINTS = count(12, 150, 2000)
LIFE = 5  # points in one directory: recoveries are cut short, too
OPS = 60
FAULTS = ("signal=SIGKILL", "signal=SIGKILL", "error=EIO", "error=ENOSPC")


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> str:
    tool = shutil.which("strace")
    if sys.platform != "linux" or tool is None:
        pytest.skip("needs Linux and strace")
    log = tmp_path_factory.mktemp("strace") / "log"
    done = subprocess.run(
        [tool, "-f", "-o", str(log), "-e", "inject=mkdir:error=EIO:when=1", "mkdir", str(log) + ".d"],
        capture_output=True,
        text=True,
    )
    if "INJECTED" not in (log.read_text() if log.exists() else ""):
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    return tool


def run(strace: str, plan: Plan, log: Path, *inject: str) -> tuple[int, bytes, str]:
    names = ",".join("?" + name for name in CALLS)  # ?: not every machine has them all
    environ = {**environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [strace, "-f", "-o", str(log), "-e", f"trace={names}", *inject, *command(plan)],
        capture_output=True,
        env=environ,
    )
    return done.returncode, done.stdout, done.stderr.decode()[-3000:]


def most_calls(log: Path) -> Counter[str]:
    """How often the busiest thread made each call: strace counts them for each thread."""
    found: Counter[tuple[str, str]] = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.M))
    most: Counter[str] = Counter()
    for (_, name), times in found.items():
        most[name] = max(most[name], times)
    return most


@pytest.mark.counted
@pytest.mark.timeout(5000)
def test_a_fault_at_any_system_call(strace: str, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    log = tmp_path / "log"
    options = [draw_options(dice) for _ in range(4)]
    calls: Counter[str] = Counter()
    for n, choice in enumerate(options):
        code, said, error = run(strace, Plan(str(tmp_path / f"dry{n}"), SEED, [0], choice, ops=OPS), log)
        assert code == 0, (said[-200:], error)
        calls |= most_calls(log)
    assert {"write", "fdatasync", "rename", "unlink"} <= calls.keys()
    struck: Counter[str] = Counter()
    expected, path = Expected(SEED, 1), ""
    for point in range(10 * POINTS):  # how often a call is made differs from run to run: some faults come too late
        if point >= POINTS and struck.total() > POINTS // 2:
            break
        if point % LIFE == 0:
            if path:
                nokv.destroy(path)
            expected, path = Expected(SEED, 1), str(tmp_path / f"db{point}")
        call = sorted(calls)[point % len(calls)]
        fault = dice.choice(FAULTS)
        at = dice.randrange(1, calls[call] + 1) if dice.random() < 0.7 else dice.randrange(1, min(6, calls[call]) + 1)
        plan = Plan(path, SEED, list(expected.next), dice.choice(options), ops=OPS)
        inject = f"inject={call}:{fault}:when={at}"
        code, said, error = run(strace, plan, log, "-e", inject)
        where = f"seed {SEED}, point {point}, {inject}, plan {plan}: exit {code}\n{error}"
        for me, number in acknowledgements(iter(said.splitlines(keepends=True))):
            expected.acknowledge(me, number)
        text = log.read_text()
        hit = "INJECTED" in text or "killed by SIGKILL" in text
        struck[f"{call} {fault}"] += hit
        allowed = (0,) if not hit else (137, -9) if "KILL" in fault else (0, 4)
        assert code in allowed, where
        try:
            expected.check_all(path, plan.options)
        except (AssertionError, nokv.NoKVError) as wrong:
            raise AssertionError(f"{where}{wrong!r}") from wrong
    assert struck.total() > POINTS // 2, struck
    print(dict(struck))
