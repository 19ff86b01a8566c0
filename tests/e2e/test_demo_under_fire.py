"""The demo while somebody else kills its processes, and Ctrl-C in the middle of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nokv.cli import processes
from nokv.cli.launcher import LocalCluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MOMENTS = {  # a line of the demo's progress -> the stage it belongs to
    "adds a learner": "expand",
    "promoting to voter": "expand",
    "leader and target agree": "expand",
    "hands over to peer": "transfer-leader",
}
OTHERWISE = {"hands over to peer": "peer 201 leads"}  # a death before it may have made it the leader already


def interruptible() -> None:
    """In the child: a shell starts what it runs in the background with SIGINT ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running_demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(100):
        (source / f"file-{number:03d}").write_bytes(b"%d " % number * (number * 7 % 300))
    (source / "large").write_bytes(random.Random(1).randbytes(1500 * 1024))
    environment = {**os.environ, "DEMO_DATA": str(source), "DEMO_DIR": str(tmp_path / "demo"), "PYTHONUNBUFFERED": "1"}
    environment.pop("KEEP", None)
    command = [sys.executable, "-m", "nokv.cli.demo", "--artifacts", str(tmp_path / "artifacts")]
    demo = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(60)
        assert demo.stderr is not None
        demo.stderr.close()


def follow(demo: subprocess.Popen[str], seen: Callable[[str], None]) -> tuple[int, str]:
    """(exit code, everything it said); `seen` gets each line as it comes."""
    assert demo.stderr is not None
    lines = []
    for line in demo.stderr:
        lines.append(line)
        seen(line)
    return demo.wait(60), "".join(lines)


def kill_outside(cluster_dir: Path, name: str) -> None:
    """As `kill -9 PID` in another terminal: nothing is recorded."""
    record = LocalCluster.load(cluster_dir).get(name)
    processes.send_signal(record.pid, record.identity, signal.SIGKILL)


def drawn_seed() -> int:
    return int(os.environ.get("NOKV_FIRE_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(None, id="drawn"),
        # The leader dies when the first new voter is one: that one is elected, and there is nothing to hand over.
        pytest.param(1711228234, id="elected", marks=pytest.mark.long),
    ],
)
def test_one_process_dies_during_expand_and_one_during_transfer(tmp_path: Path, seed: int | None) -> None:
    seed = drawn_seed() if seed is None else seed
    print(f"again: NOKV_FIRE_SEED={seed} pytest {__file__}")
    dice = random.Random(seed)
    names = ["store-1", "store-2", "store-3", "coordinator-1", "meta-root-1", "meta-root-2", "meta-root-3"]
    moments = [
        dice.choice([text for text, stage in MOMENTS.items() if stage == wanted])
        for wanted in ("expand", "transfer-leader")
    ]
    plan = [(moment, dice.choice(names)) for moment in moments]
    print(f"plan {plan}")
    waiting = list(plan)

    def seen(line: str) -> None:
        if waiting and (waiting[0][0] in line or OTHERWISE.get(waiting[0][0], waiting[0][0]) in line):
            kill_outside(tmp_path / "demo" / "cluster", waiting.pop(0)[1])

    with running_demo(tmp_path) as demo:
        code, said = follow(demo, seen)
    assert not waiting, said[-3000:]
    assert code == 0, said[-3000:]
    summary = json.loads((tmp_path / "artifacts" / "summary.json").read_text())
    assert summary["ok"]
    assert [restart["name"] for restart in summary["restarted"]] == [name for _, name in plan]
    assert len({digest["digest"] for digest in summary["digests"].values()}) == 1
    text = (tmp_path / "artifacts" / "summary.txt").read_text()
    assert f"started again: {plan[0][1]}" in text
    cluster = LocalCluster.load(tmp_path / "demo" / "cluster")
    assert {record.state for record in cluster.records} == {"stopped"}


def test_interrupt_stops_everything(tmp_path: Path) -> None:
    pids: list[tuple[int, str]] = []

    def seen(line: str) -> None:
        if "adds a learner" in line and not pids:
            records = LocalCluster.load(tmp_path / "demo" / "cluster").records
            pids.extend((record.pid, record.identity) for record in records)
            demo.send_signal(signal.SIGINT)

    with running_demo(tmp_path) as demo:
        code, said = follow(demo, seen)
    assert code == 130, said[-3000:]
    assert "interrupted" in said
    assert len(pids) == 7
    assert not [pid for pid, identity in pids if processes.is_alive(pid, identity)]
    assert {r.state for r in LocalCluster.load(tmp_path / "demo" / "cluster").records} == {"stopped"}
    assert not json.loads((tmp_path / "artifacts" / "summary.json").read_text())["ok"]
