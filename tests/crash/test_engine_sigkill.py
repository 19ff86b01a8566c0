"""ENG-02, R7, R2k: a real process at work, a real SIGKILL at any moment, again and again in one directory: what was
acknowledged is there, batches are whole, and nothing else is there. See stress.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv
from tests.counts import count
from tests.crash.stress import FAMILIES, Plan, State, apply, command, contents, draw_options, operation
from tests.sanitizer import without_leaks

ROUNDS = count(8, 8, 8)
SECONDS = count(0, 120, 3600)  # and at least as many rounds
SEED = int(os.environ.get("NOKV_TEST_SEED", "7"))
THREADS = 3


class Expected:
    """What the directory must hold: the state after each thread's last acknowledged write."""

    def __init__(self, seed: int, threads: int) -> None:
        self.seed = seed
        self.next = [0] * threads
        self.states: list[State] = [{} for _ in range(threads)]

    def acknowledge(self, me: int, number: int) -> None:
        while self.next[me] <= number:
            apply(self.states[me], operation(self.seed, me, self.next[me]))
            self.next[me] += 1

    def check(self, db: nokv.DB) -> None:
        """Of each thread the write under way may be there, as a whole, or not."""
        for me, state in enumerate(self.states):
            found = contents(db, me)
            if found == state:
                continue
            after, number = dict(state), self.next[me]
            while after == state:  # the first one that writes something new
                apply(after, operation(self.seed, me, number))
                number += 1
            missing = {place: state[place][:20] for place in state.keys() - found.keys()}
            others = {place: found[place][:20] for place in found if state.get(place) != found[place]}
            assert found == after, f"thread {me} before {self.next[me]}: missing {missing}, other {others}"
            self.states[me], self.next[me] = after, number

    def check_all(self, path: str, options: dict[str, object]) -> None:
        with nokv.open(path, families=FAMILIES[1:], **options) as db:  # type: ignore[arg-type]
            self.check(db)
            assert db.verify().damaged == ()
            assert sum(1 for _ in db.scan()) == sum(not name for state in self.states for name, _ in state)


def environment() -> dict[str, str]:
    return {**without_leaks(), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def acknowledgements(lines: Iterator[bytes]) -> Iterator[tuple[int, int]]:
    for line in lines:
        if line[:1].isdigit() and line.endswith(b"\n"):
            me, number = line.split()
            yield int(me), int(number)


def stress(tmp_path: Path, *, rounds: int, seconds: float, plant: str = "") -> int:
    """Rounds of work and death. How many writes were acknowledged."""
    dice = random.Random(SEED)
    path = str(tmp_path / "db")
    started, turn, acknowledged = time.monotonic(), 0, 0
    every = {threads: Expected(SEED + threads, threads) for threads in (1, THREADS)}
    while turn < rounds or time.monotonic() - started < seconds:
        turn += 1
        threads = dice.choice(sorted(every))
        expected = every[threads]
        here = f"{path}{threads}"
        plan = Plan(here, expected.seed, list(expected.next), draw_options(dice), plant=plant)
        writes = dice.randrange(1, 400)
        where = f"seed {SEED}, round {turn}, plan {plan}"
        with subprocess.Popen(
            command(plan), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            if dice.random() < 0.15:  # while it opens
                try:
                    child.wait(dice.random() * 0.3)
                except subprocess.TimeoutExpired:
                    pass
            else:
                for me, number in acknowledgements(iter(child.stdout.readline, b"")):
                    expected.acknowledge(me, number)
                    acknowledged += 1
                    writes -= 1
                    if writes == 0:
                        break
            child.kill()
            for me, number in acknowledgements(iter(child.stdout.read().splitlines(keepends=True))):
                expected.acknowledge(me, number)
                acknowledged += 1
            said = child.stderr.read().decode()
        assert child.returncode == -9, f"{where}: it ended by itself with {child.returncode}\n{said[-3000:]}"
        try:
            expected.check_all(here, draw_options(dice) if dice.random() < 0.5 else plan.options)
        except (AssertionError, nokv.NoKVError) as error:
            raise AssertionError(f"{where}: {error!r}") from error
    return acknowledged


@pytest.mark.counted
@pytest.mark.timeout(5000)
def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    acknowledged = stress(tmp_path, rounds=ROUNDS, seconds=SECONDS)
    assert acknowledged >= 10 * ROUNDS
    print(f"{acknowledged} acknowledged writes")


@pytest.mark.parametrize("plant", ["no log", "halves"])
def test_planted_bugs_are_found(tmp_path: Path, plant: str) -> None:
    """A batch that is not logged; a batch that is written in two parts, by a process that dies between them."""
    with pytest.raises(AssertionError, match=r"seed .*(thread \d before|by itself with 3)"):
        stress(tmp_path, rounds=200, seconds=0, plant=plant)
