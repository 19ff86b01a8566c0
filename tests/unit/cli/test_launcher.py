from __future__ import annotations

import json
from pathlib import Path

import pytest

from nokv.cli.launcher import LocalCluster, free_ports
from nokv.errors import NotFound, PreconditionFailed, Unavailable, UsageError


def test_description(tmp_path: Path) -> None:  # CLI-13
    cluster = LocalCluster.create(tmp_path / "c", meta_roots=3, coordinators=1, stores=2)
    names = [record.name for record in cluster.records]
    assert names == ["meta-root-1", "meta-root-2", "meta-root-3", "coordinator-1", "store-1", "store-2"]
    addresses = {a for r in cluster.records for a in (r.address, r.metrics_address)}
    assert len(addresses) == 12
    again = LocalCluster.load(tmp_path / "c")
    assert again.records == cluster.records
    assert again.coordinator_addresses == [cluster.get("coordinator-1").address]
    assert {p["state"] for p in again.describe()} == {"stopped"}
    added = again.add_store()
    assert added.name == "store-3"
    assert again.get("coordinator-1").address in added.arguments


def test_refusals(tmp_path: Path) -> None:
    LocalCluster.create(tmp_path / "c", stores=0)
    with pytest.raises(PreconditionFailed, match="already holds a cluster"):
        LocalCluster.create(tmp_path / "c")
    with pytest.raises(UsageError):
        LocalCluster.create(tmp_path / "d", meta_roots=2)
    with pytest.raises(NotFound):
        LocalCluster.load(tmp_path / "d")
    found = LocalCluster.load(tmp_path / "c")
    with pytest.raises(NotFound, match="store-9"):
        found.kill("store-9")
    with pytest.raises(PreconditionFailed, match="does not run"):
        found.kill("coordinator-1")
    assert found.stop_all() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 9, "processes": []}', "\x00"])
def test_a_damaged_description_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(UsageError, match=r"cluster\.json"):
        LocalCluster.load(tmp_path)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "c", stores=0)
    with cluster.locked(), pytest.raises(PreconditionFailed, match="another command"), cluster.locked():
        pass


def test_a_process_that_dies_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "c", meta_roots=1, stores=0)
    record = cluster.get("meta-root-1")
    record.arguments = ["no-such-command"]
    with pytest.raises(Unavailable, match="no such command"):
        cluster.start("meta-root-1")
    document = json.loads((tmp_path / "c" / "cluster.json").read_text())
    assert document["processes"][0]["pid"] == record.pid
    assert record.state == "dead"


def test_a_stranger_with_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "c", meta_roots=1, stores=0)
    record = cluster.get("meta-root-1")
    record.pid, record.identity = 1, "another boot:1"
    assert record.state == "dead"
    with pytest.raises(PreconditionFailed):
        cluster.kill("meta-root-1")
    assert cluster.stop("meta-root-1")


def test_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20
