"""R4: damaged inputs without number for every parser of ours, each in a process of its own (fuzz.py), which may neither
die, nor hang, nor grow, nor answer otherwise than the reference; and the fuzzer, which must notice if it does."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counts import SIZE, SIZES
from tests.fuzz.cluster_parsers import CLUSTER
from tests.fuzz.engine_parsers import ENGINE
from tests.sanitizer import own_allocator

HERE = Path(__file__).parent
TARGETS = {**ENGINE, **CLUSTER}
SEED = int(os.environ.get("NOKV_TEST_SEED", "1"))


def fuzz(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Its exit code and what it said, with the case that it was at when it died."""
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(8))
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), *arguments, "--progress", str(progress)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
    )
    (at,) = struct.unpack("<Q", progress.read_bytes())
    again = f"python tests/fuzz/fuzz.py {' '.join(arguments)} --only {at}"
    return done.returncode, f"exit {done.returncode}; again: {again}\n{done.stderr[-6000:]}\n{done.stdout[-6000:]}"


@pytest.mark.counted
@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_any_bytes(tmp_path: Path, name: str) -> None:
    cases = int(TARGETS[name]().cases[SIZES.index(SIZE)] * 1000)
    code, said = fuzz(tmp_path, name, "--seed", str(SEED), "--cases", str(cases))
    assert code == 0, said
    report = json.loads(said.splitlines()[-1])
    assert report["cases"] == cases
    print(report)


def test_the_counts_are_those_of_the_plan() -> None:
    totals = [sum(target().cases[size] for target in TARGETS.values()) * 1000 for size in range(3)]
    assert totals[0] >= 50_000 and totals[1] >= 1_000_000 and totals[2] >= 40_000_000, totals


PLANTED = {
    "answers": "and by the reference as",
    "refuses": "a valid encoding is refused",
    "untyped": "IndexError",
    "reads_behind": "Segmentation fault",
    "hangs": "exit -26",
    "slow": "s of CPU",
    "grows": "MiB",
}


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=own_allocator) for bug in PLANTED])
def test_planted_bugs_are_found(tmp_path: Path, bug: str) -> None:
    code, said = fuzz(tmp_path, "planted", "--plant", bug, "--cases", "20000")
    assert code != 0 and PLANTED[bug] in said, said
