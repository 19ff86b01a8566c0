from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from nokv.cli import processes


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_process_is_named_by_pid_and_start(child: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(child.pid)
    assert identity
    assert processes.is_alive(child.pid, identity)
    assert processes.send_signal(child.pid, identity, signal.SIGKILL)
    assert processes.wait_gone(child.pid, identity, 10.0)
    assert not processes.is_alive(child.pid, identity)
    assert not processes.send_signal(child.pid, identity, signal.SIGKILL)


def test_a_recycled_pid_is_never_touched(child: subprocess.Popen[bytes]) -> None:
    assert not processes.send_signal(child.pid, "another boot:1", signal.SIGKILL)
    assert not processes.send_signal(child.pid, "", signal.SIGKILL)
    assert child.poll() is None


def test_nobody() -> None:
    assert processes.identify(0) == ""
    assert not processes.is_alive(0, "")
