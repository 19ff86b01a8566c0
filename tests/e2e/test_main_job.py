"""The main job with real processes, real sockets and kill -9, on a small input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv
from nokv.cli.demo import Ledger, Writer, verify_entries
from nokv.cli.launcher import LocalCluster
from nokv.cli.main import run
from nokv.cli.run import MigrationRun, Summary, find_leader_soon
from nokv.migrate.rollout import Waiter

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(200):
        (folder / f"file-{number:03d}").write_bytes(b"%d " % number * (number * 7 % 300))
    (folder / "large").write_bytes(os.urandom(1500 * 1024))
    return folder


@pytest.fixture
def job(tmp_path: Path, source: Path) -> Iterator[tuple[MigrationRun, Ledger]]:
    """A promoted directory, served, with two more empty stores running."""
    from nokv.cli.demo import load

    ledger = Ledger()
    summary = Summary("test", tmp_path / "artifacts")
    found = MigrationRun(tmp_path / "data", tmp_path / "cluster", summary, waiter=Waiter(60.0, 0.05))
    load(source, found.workdir, ledger)
    try:
        found.plan()
        found.init()
        found.control(meta_roots=3)
        found.serve()
        found.stores(2)
        yield found, ledger
    finally:
        if found.cluster is not None:
            found.cluster.stop_all()


def names(job: MigrationRun) -> list[str]:
    """Every process, the leading ones of each plane first."""
    leader, status = find_leader_soon(job.running.get("store-1").address, 1, job.waiter)
    leader.close()
    first = f"store-{status.leader_store_id}"
    return [first, *(record.name for record in job.running.records if record.name != first)]


def test_no_acknowledged_write_is_lost_whoever_dies(job: tuple[MigrationRun, Ledger]) -> None:
    migration, ledger = job
    writer = Writer(migration.running.coordinator_addresses, ledger, sorted(ledger.expected))
    writer.start()
    try:
        writer.wait_for(5, 60.0)
        migration.expand()
        for name in names(migration):
            migration.running.kill(name)
            writer.wait_for(10, 60.0)
            migration.running.start(name)
            writer.wait_for(5, 60.0)
        migration.transfer(3)
        writer.wait_for(10, 60.0)
    finally:
        writer.halt()
    writer.stop()
    digests = migration.replica_digests()
    assert len(digests) == 3
    client = nokv.connect(migration.running.coordinator_addresses, timeout_s=30.0)
    try:
        keys, _ = verify_entries(ledger, client.scan())
    finally:
        client.close()
    assert keys > 200
    assert writer.acknowledged > 50


def test_a_target_that_dies_during_import_costs_nothing(job: tuple[MigrationRun, Ledger]) -> None:  # MIG-25
    migration, ledger = job
    migration.running.kill("store-2")
    writer = Writer(migration.running.coordinator_addresses, ledger, [])
    writer.start()
    try:
        with pytest.raises(nokv.errors.NoKVError):
            migration.expand()
        writer.wait_for(10, 30.0)  # the seed still accepts writes
        migration.running.start("store-2")
        migration.expand()
    finally:
        writer.halt()
    writer.stop()
    assert len(migration.summary.facts["membership_after"]) == 3
    migration.replica_digests()


def test_membership_needs_no_coordinator(job: tuple[MigrationRun, Ledger], capsys: pytest.CaptureFixture[str]) -> None:
    """RS-20, MIG-39, MIG-41: expand, remove and expand again with the coordinator dead; data equal in the end."""
    migration, ledger = job
    migration.running.kill("coordinator-1")
    migration.expand()
    seed, third = (migration.running.get(name).address for name in ("store-1", "store-3"))
    common = ["--addr", seed, "--region", "1", "--workdir", str(migration.workdir), "--json"]
    assert run(["migrate", "remove-peer", *common, "--peer", "301", "--target-addr", third]) == 0
    removed = json.loads(capsys.readouterr().out)
    assert [member["peer_id"] for member in removed["membership_after"]] == [101, 201]
    migration.running.kill("store-3")
    migration.running.start("store-3")
    assert run(["migrate", "expand", *common, "--target", f"3:302@{third}"]) == 0
    expanded = json.loads(capsys.readouterr().out)
    assert [member["peer_id"] for member in expanded["membership_after"]] == [101, 201, 302]
    assert run(["migrate", "remove-peer", *common, "--peer", "101"]) == 4  # it leads
    assert "transfer-leader" in capsys.readouterr().err
    assert run(["migrate", "status", "--workdir", str(migration.workdir), "--addr", seed, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rollout"]["last_finished"].startswith("expand 3:302")
    assert not shown["rollout"]["pending"]
    assert shown["cluster"]["local_hosted"]  # MIG-34
    assert shown["cluster"]["leader_peer"] == 101
    assert shown["cluster"]["membership_size"] == 3
    migration.running.start("coordinator-1")
    migration.replica_digests()
    client = nokv.connect(migration.running.coordinator_addresses, timeout_s=30.0)
    try:
        verify_entries(ledger, client.scan())
    finally:
        client.close()


def test_the_demo_command(tmp_path: Path, source: Path) -> None:
    environment = {**os.environ, "DEMO_DATA": str(source), "DEMO_DIR": str(tmp_path / "demo")}
    environment.pop("KEEP", None)
    command = [sys.executable, "-m", "nokv.cli.demo", "--artifacts", str(tmp_path / "artifacts")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "artifacts" / "summary.json").read_text())
    assert summary["ok"]
    stages = [stage["name"] for stage in summary["stages"]]
    assert stages == [
        "load", "plan", "init", "control", "serve", "stores",
        "expand", "transfer-leader", "kill", "write", "verify", "stop",
    ]  # fmt: skip
    assert len(summary["membership_before"]) == 1
    assert [member["role"] for member in summary["membership_after"]] == ["voter"] * 3
    assert len(summary["digests"]) == 3
    assert len({digest["digest"] for digest in summary["digests"].values()}) == 1
    assert "verify" in (tmp_path / "artifacts" / "summary.txt").read_text()
    cluster = LocalCluster.load(tmp_path / "demo" / "cluster")
    assert {record.state for record in cluster.records} == {"stopped"}


def test_migrate_cluster_script(tmp_path: Path) -> None:  # MIG-36
    workdir = tmp_path / "data"
    with nokv.open(str(workdir)) as db:
        db.put_many([(b"key %d" % n, b"value") for n in range(100)])
    script = Path(__file__).parents[2] / "scripts" / "ops" / "migrate-cluster.sh"
    arguments = [
        str(script),
        "--workdir",
        str(workdir),
        "--artifacts",
        str(tmp_path / "artifacts"),
        "--meta-roots",
        "1",
    ]
    environment = {**os.environ, "PYTHON": sys.executable}
    before = sorted(p.name for p in tmp_path.rglob("*"))
    dry = subprocess.run([*arguments, "--dry-run"], env=environment, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "artifacts" / "summary.json").read_text())
    assert summary["ok"]
    assert "=== 1. plan" in done.stderr
    assert "mode" in done.stderr


def test_cluster_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # CLI-13
    directory = str(tmp_path / "c")
    try:
        assert run(["cluster", "up", "--dir", directory, "--meta-roots", "1", "--detach"]) == 0
        capsys.readouterr()
        assert run(["put", "greeting", "hello", "--dir", directory]) == 0
        assert run(["cluster", "kill", "store-1", "--dir", directory]) == 0
        assert run(["get", "greeting", "--dir", directory]) == 0
        assert "hello" in capsys.readouterr().out
        assert run(["get", "nothing", "--dir", directory]) == 3
        assert run(["cluster", "kill", "store-1", "--dir", directory]) == 4
        assert run(["cluster", "start", "store-1", "--dir", directory]) == 0
        assert run(["cluster", "start", "store-1", "--dir", directory]) == 4
        capsys.readouterr()
        assert run(["cluster", "status", "--dir", directory, "--output", "json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert {p["state"] for p in status["processes"]} == {"running"}
        assert status["root_leader"] == "meta-root-1"
        assert status["lease_holder"] == "coordinator-1"
        assert len(status["regions"][0]["peers"]) == 3
        for arguments in (["root", "log"], ["root", "snapshot"], ["root", "status"], ["regions"], ["stats"], ["scan"]):
            assert run([*arguments, "--dir", directory, "--json"]) == 0, arguments
            json.loads(capsys.readouterr().out)
        assert run(["regions", "--workdir", f"{directory}/store-1", "--json"]) == 0  # beside the store that writes it
        assert [r["id"] for r in json.loads(capsys.readouterr().out)["regions"]] == [1]
        assert run(["execution", "--addr", status["processes"][-1]["address"], "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {"last_admission", "topology", "restart"} <= set(found)  # EX-05
    finally:
        assert run(["cluster", "down", "--dir", directory]) == 0
    assert {record.state for record in LocalCluster.load(directory).records} == {"stopped"}
