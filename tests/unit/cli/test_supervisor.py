"""What died is started again, and the verb that it disturbed runs again; what was killed on purpose stays down."""

from __future__ import annotations

from pathlib import Path

import pytest

from nokv.cli import processes
from nokv.cli.launcher import LocalCluster
from nokv.cli.supervisor import RESTARTS_MAX, Disturbed, Supervisor
from nokv.errors import PreconditionFailed, Unavailable


class FakeCluster(LocalCluster):
    """Records of processes that were never real: a pid beyond the kernel's limit is dead."""

    def __init__(self, path: Path) -> None:
        described = LocalCluster.create(path, meta_roots=1, stores=1)
        super().__init__(described.directory, described.records)
        self.started: list[str] = []
        self.dead: set[str] = set()

    def start(self, name: str, *, wait: bool = True, environment: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
        self.started.append(name)
        record = self.get(name)
        record.pid, record.identity = 1, processes.identify(1)
        return record

    def die(self, name: str) -> None:
        record = self.get(name)
        record.pid, record.identity = 1, "somebody else"


def test_a_dead_process_is_started_again_and_the_verb_resumes(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path / "c")
    told: list[str] = []
    supervisor = Supervisor(cluster, told.append)
    attempts: list[int] = []

    def verb() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            cluster.die("store-1")
            raise Unavailable("no store answers")
        return "done"

    assert supervisor.enduring(verb) == "done"
    assert cluster.started == told == supervisor.restarts == ["store-1"]
    supervisor.check()
    assert cluster.started == ["store-1"]  # it runs; and what was never started stays so


def test_a_failure_that_no_restart_explains_is_raised(tmp_path: Path) -> None:
    supervisor = Supervisor(FakeCluster(tmp_path / "c"))

    def verb() -> None:
        raise PreconditionFailed("no")

    with pytest.raises(PreconditionFailed):
        supervisor.enduring(verb)


def test_waiting_ends_at_a_restart(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path / "c")
    supervisor = Supervisor(cluster)
    with supervisor.watching():
        supervisor.sleep(0.0)
        cluster.die("meta-root-1")
        with pytest.raises(Disturbed, match="meta-root-1"):
            supervisor.sleep(0.0)


def test_a_process_that_always_dies_is_given_up(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path / "c")
    supervisor = Supervisor(cluster)
    for _ in range(RESTARTS_MAX):
        cluster.die("store-1")
        supervisor.check()
    cluster.die("store-1")
    with pytest.raises(Unavailable, match="not started again"):
        supervisor.check()
