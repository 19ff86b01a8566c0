"""One operating-system process, named by pid *and* start time, so that a signal never reaches a stranger.

A pid alone may belong to someone else by now. Linux: the kernel's start tick and the boot id from /proc, and a pidfd,
so that nothing can change between the check and the signal. Elsewhere: `ps -o lstart`, checked just before the
signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

__all__ = ["identify", "is_alive", "send_signal", "sigterm_is_interrupt", "uninterrupted", "wait_gone"]

POLL_S = 0.02


def identify(pid: int) -> str:
    """What, together with `pid`, names one process for ever; "" if there is none, or only its zombie."""
    if pid <= 0:
        return ""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in (b"Z", b"X") else f"{boot}:{int(fields[19])}"
    answer = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return "" if answer.returncode or state.startswith("Z") else " ".join(started.split())


def is_alive(pid: int, identity: str) -> bool:
    return bool(identity) and identify(pid) == identity


def send_signal(pid: int, identity: str, number: int) -> bool:
    """Send it to exactly that process; False if it is gone (or its pid now belongs to another)."""
    if pid <= 0 or not identity:
        return False
    if hasattr(os, "pidfd_open"):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not is_alive(pid, identity):
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True
    if not is_alive(pid, identity):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pid: int, identity: str, timeout_s: float) -> bool:
    """True as soon as the process is gone; False if it still runs after `timeout_s`. Reaps it if it is our child."""
    deadline = time.monotonic() + timeout_s
    while True:
        if pid > 0:
            with contextlib.suppress(ChildProcessError):  # not ours to reap
                os.waitpid(pid, os.WNOHANG)
        if not is_alive(pid, identity):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)


def sigterm_is_interrupt() -> None:
    """SIGTERM unwinds like Ctrl-C, so that what was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block has ended: what is started is also recorded, what is stopped stays so.

    Only the main thread is ever interrupted; elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, _frame: came.append(which)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for which in dict.fromkeys(came):
            signal.raise_signal(which)
