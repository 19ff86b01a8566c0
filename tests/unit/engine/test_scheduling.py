"""Background work beside a writer: who goes first on a processor that both want."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import nokv
from nokv._ext.scheduling import let_pass, step_aside

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these are system calls of Linux")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@linux_only
def test_background_threads_let_others_go_first() -> None:
    policies: list[int] = []

    def work() -> None:
        assert step_aside()
        policies.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert policies == [os.SCHED_BATCH] and os.sched_getscheduler(0) == os.SCHED_OTHER


@linux_only
def test_a_busy_machine_does_not_starve_background_work(tmp_path: Path) -> None:
    """Whoever yields pays for it with a turn, and another process takes every turn that it gets."""
    cpu = min(os.sched_getaffinity(0))
    rival = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"],
        stdout=subprocess.PIPE,
    )
    shares: list[float] = []

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        step_aside()
        before, began = cpu_seconds(rival.pid), time.thread_time()
        while time.thread_time() < began + 0.2:
            for _ in range(1000):
                pass
            let_pass()
        shares.append(0.2 / (0.2 + cpu_seconds(rival.pid) - before))

    try:
        assert rival.stdout is not None and rival.stdout.readline()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        rival.kill()
        rival.communicate()
    assert shares[0] > 0.15, shares  # a yield as often as it works would leave it less than a hundredth


@linux_only
def test_only_long_work_steps_aside(tmp_path: Path) -> None:
    """The log's thread needs the GIL, and has it to give back soon: it must not wait for the processor with it."""
    with nokv.open(str(tmp_path / "db")) as db:
        policies: dict[str, int] = {}
        done = threading.Event()

        def note() -> None:
            policies[threading.current_thread().name] = os.sched_getscheduler(0)
            if len(policies) == 3:
                done.set()

        for executor in db._own_executors:
            executor.submit(note)
        assert done.wait(60)
    assert policies == {
        "nokv-flush": os.SCHED_BATCH,
        "nokv-compaction": os.SCHED_BATCH,
        "nokv-log": os.SCHED_OTHER,
    }
