"""The clock that tests of real processes measure limits with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from nokv.cli import processes
from tests.machine_time import LATE_S, STOOD_STILL_S, TICK_S, MachineTime

pytestmark = pytest.mark.timeout(120)

CHILD = """
from tests.machine_time import MachineTime
import sys
with MachineTime() as machine:
    for line in sys.stdin:
        print(machine.now(), machine.stood_still_s, flush=True)
"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_comes_late_counts_as_one_tick() -> None:
    clock = Clock()
    machine = MachineTime(clock)
    for took, counts in ((TICK_S, TICK_S), (TICK_S + LATE_S, TICK_S + LATE_S), (0.5, TICK_S + LATE_S), (0.0, 0.0)):
        before = machine.now()
        clock.now += took
        assert machine.now() - before == pytest.approx(counts)  # asked before the tick comes, and after it
        machine.tick()
        assert machine.now() - before == pytest.approx(counts)
    assert machine.stood_still_s == 0
    clock.now += 60.0
    machine.tick()
    assert machine.stood_still_s == pytest.approx(60.0) and machine.last_stop == machine.now()


def test_a_stopped_process_has_no_time() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None

        def ask() -> tuple[float, float]:
            child.stdin.write("\n")
            child.stdin.flush()
            now, still = child.stdout.readline().split()
            return float(now), float(still)

        before, _ = ask()
        identity = processes.identify(child.pid)
        assert processes.send_signal(child.pid, identity, signal.SIGSTOP)
        stopped, began = STOOD_STILL_S + 1.0, time.monotonic()
        while time.monotonic() < began + stopped:
            assert child.poll() is None
            time.sleep(0.05)  # what is tested is real time
        assert processes.send_signal(child.pid, identity, signal.SIGCONT)
        went_on = time.monotonic()
        after, still = ask()
        assert after - before < (time.monotonic() - went_on) + stopped / 2
        while still == 0:  # its thread has not run yet
            _, still = ask()
        assert still >= stopped - 0.1
        child.stdin.close()
