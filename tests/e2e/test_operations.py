"""A local cluster with three of everything and TLS everywhere, run by the commands an operator types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import nokv
from nokv.cli import processes
from nokv.cli.launcher import LocalCluster, free_ports
from nokv.cli.main import run
from nokv.errors import NotTrusted, UsageError
from nokv.rpc.tls import load_tls, refusal
from nokv.rpc.transport import is_oversize, open_blocking_channel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOKV_")}
    return subprocess.run(
        [sys.executable, "-m", "nokv.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'shell'}"},
    )


def ok(*arguments: str | Path) -> str:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(*arguments: str | Path) -> Any:
    return json.loads(ok(*arguments, "--json"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("operations")
    ok("cluster", "up", "--dir", root / "c", "--meta-roots", "3", "--coordinators", "3", "--stores", "2",
       "--tls-dir", root / "ca", "--detach")  # fmt: skip
    try:
        yield root / "c"
    finally:
        LocalCluster.load(root / "c").stop_all()


@pytest.fixture
def cluster(directory: Path) -> LocalCluster:
    return LocalCluster.load(directory)


def test_every_plane_insists_on_tls(cluster: LocalCluster) -> None:  # S1
    assert len(cluster.records) == 8
    for record in cluster.records:
        error = refusal(record.address, None, "failed to connect")
        assert error is not None and "speaks TLS" in str(error), record.name
        assert refusal(record.address, load_tls(cluster.client_tls_dir), "failed to connect") is None, record.name


def test_verbs_work_over_tls_and_are_refused_without(directory: Path, cluster: LocalCluster) -> None:
    status = answer("cluster", "status", "--dir", directory)
    assert {p["state"] for p in status["processes"]} == {"running"}
    members = answer("regions", "--dir", directory)["regions"][0]["peers"]
    assert [p["store_id"] for p in members] == [1, 2]  # expanded while it started
    ok("put", "greeting", "hello", "--dir", directory)
    assert ok("get", "greeting", "--dir", directory) == "hello\n"

    coordinators = cluster.coordinator_addresses
    with nokv.connect(coordinators, tls_dir=cluster.client_tls_dir) as db:
        assert db.get(b"greeting") == b"hello"
        db.put_many({b"k%03d" % n: b"v" for n in range(100)})
        assert sum(1 for _ in db.scan(prefix=b"k")) == 100
    with nokv.connect(coordinators) as db, pytest.raises(NotTrusted, match="speaks TLS"):
        db.get(b"greeting")
    refused = call("get", "greeting", "--coordinator", coordinators[0])
    assert refused.returncode == 7 and "--tls-dir" in refused.stderr and "Traceback" not in refused.stderr

    store = cluster.get("store-1").address
    for arguments in (
        ["migrate", "transfer-leader", "--addr", store, "--peer", "201"],
        ["migrate", "transfer-leader", "--addr", store, "--peer", "101"],
        ["execution", "--addr", store],
        ["root", "status", "--addr", cluster.get("meta-root-2").address],
        ["coordinator", "status", "--addr", cluster.get("coordinator-2").address],
    ):
        assert call(*arguments).returncode == 7, arguments
        ok(*arguments, "--tls-dir", str(cluster.client_tls_dir))


def test_the_log_says_who_asked_and_holds_no_value(directory: Path, cluster: LocalCluster) -> None:  # S8, S12
    canary = "canary-7f3a91"
    ok("put", "secret", canary, "--dir", directory)
    ok("migrate", "transfer-leader", "--addr", cluster.get("store-2").address, "--peer", "101",
       "--tls-dir", str(cluster.client_tls_dir))  # fmt: skip
    logs = "".join(Path(record.log).read_text("utf-8", "replace") for record in cluster.records)
    assert "transfer-leader 101 of region 1, asked by admin: done" in logs
    assert canary not in logs and canary not in (directory / "cluster.json").read_text()
    for record in cluster.records:
        assert "BEGIN" not in Path(f"/proc/{record.pid}/cmdline").read_text()


def test_the_death_of_the_lease_holder(directory: Path, cluster: LocalCluster) -> None:
    holder = answer("cluster", "status", "--dir", directory)["lease_holder"]
    ok("cluster", "kill", holder, "--dir", directory)
    with nokv.connect(cluster.coordinator_addresses, tls_dir=cluster.client_tls_dir, timeout_s=30.0) as db:
        assert db.timestamp() > 0  # only a holder of the lease gives out timestamps
    after = answer("cluster", "status", "--dir", directory)
    assert after["lease_holder"] not in (None, holder)
    ok("cluster", "start", holder, "--dir", directory)
    kinds = [row["kind"] for row in answer("root", "log", "--kind", "lease", "--dir", directory)["rows"]]
    life = [kind for kind in kinds if kind != "lease-renewed"]
    seal = life.index("lease-sealed")
    assert life[seal : seal + 4] == ["lease-sealed", "lease-granted", "handoff-confirmed", "handoff-closed"]
    assert life.count("lease-granted") == 2
    assert all(g["holds"] for g in answer("root", "audit", "--dir", directory)["guarantees"])


def test_health_and_readiness(cluster: LocalCluster) -> None:
    for record in cluster.records:
        for path in ("healthz", "readyz"):
            with urllib.request.urlopen(f"http://{record.metrics_address}/{path}", timeout=5) as found:
                assert (found.status, found.read()) == (200, b"ok\n"), (record.name, path)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("meta-root-1", "/nokv.v1.Root/Append"),
        ("coordinator-1", "/nokv.v1.Coordinator/PublishRootEvent"),
        ("store-1", "/nokv.v1.Admin/AddPeer"),
    ],
)
def test_a_huge_message_is_refused_before_it_is_read(cluster: LocalCluster, name: str, method: str) -> None:
    address = cluster.get(name).address  # S4
    unlimited = [("grpc.max_send_message_length", -1)]
    with open_blocking_channel(address, unlimited, load_tls(cluster.client_tls_dir)) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(method)(b"\0" * (81 << 20), timeout=30.0)
    assert isinstance(failed.value, grpc.Call)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert is_oversize(str(failed.value.details()))


def test_a_second_process_cannot_share_a_port(directory: Path, cluster: LocalCluster, tmp_path: Path) -> None:  # S3
    root, coordinator, store = (cluster.get(f"{role}-1") for role in ("meta-root", "coordinator", "store"))
    for arguments in (
        ["meta-root", "--workdir", str(tmp_path / "r"), "--addr", root.address],
        ["coordinator", "--root-peer", f"1={root.address}", "--addr", coordinator.address],
        ["serve", "--workdir", str(tmp_path / "s"), "--store-id", "9", "--addr", store.address,
         "--coordinator-addr", coordinator.address],
    ):  # fmt: skip
        done = call(*arguments, "--tls-dir", str(Path(cluster.tls_dir) / "store-1"))
        assert done.returncode == 5 and "cannot listen" in done.stderr, (arguments, done.stderr)


def test_only_its_own_processes_are_touched(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        found = LocalCluster.create(tmp_path / "c", meta_roots=1, stores=0)
        found.get("meta-root-1").pid = stranger.pid  # its pid, and another start time
        found.get("meta-root-1").identity = "an earlier boot:1"
        found.get("coordinator-1").pid = stranger.pid  # its pid, and no start time
        found.save()
        for name in ("meta-root-1", "coordinator-1"):
            assert call("cluster", "kill", name, "--dir", tmp_path / "c").returncode == 4
        ok("cluster", "down", "--dir", tmp_path / "c")
        assert processes.identify(stranger.pid)
    finally:
        stranger.communicate()


# -- a topology file ---------------------------------------------------------------------------------------------------
@pytest.fixture
def topology(tmp_path: Path) -> Path:
    root, coordinator, store = free_ports(3)
    document = {
        "meta_root": {"peers": [{"node_id": 1, "addr": f"127.0.0.1:{root}", "work_dir": str(tmp_path / "root")}]},
        "coordinator": {"addr": f"127.0.0.1:{coordinator}", "docker_addr": "coordinator-1:2379"},
        "stores": [{"store_id": 7, "addr": f"127.0.0.1:{store}", "work_dir": str(tmp_path / "store")}],
        "regions": [{"id": 1, "peers": [{"store_id": 7, "peer_id": 701}]}],
    }
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(document))
    return path


def test_daemons_read_the_topology_file(topology: Path, tmp_path: Path) -> None:
    nokv.open(tmp_path / "store").close()
    ok("migrate", "init", "--workdir", tmp_path / "store", "--store", "7", "--peer", "701")
    started: list[subprocess.Popen[str]] = []
    try:
        for arguments in (["meta-root"], ["coordinator"], ["serve", "--store-id", "7"]):
            process = subprocess.Popen(
                [sys.executable, "-m", "nokv.cli", *arguments, "--config", str(topology)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            started.append(process)
            assert process.stdout is not None
            assert any(line.startswith("ready ") for line in process.stdout), arguments
        address = json.loads(topology.read_text())["coordinator"]["addr"]
        with nokv.connect(address, timeout_s=30.0) as db:
            db.put(b"k", b"v")
            assert db.get(b"k") == b"v"
    finally:
        for process in reversed(started):
            process.terminate()
            process.communicate(timeout=30)
    assert [process.returncode for process in started] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["meta-root", "--node-id", "2"], 3, "lists no meta-root 2"),
        (["serve", "--store-id", "8"], 3, "lists no store 8"),
        (["serve", "--store-id", "7", "--scope", "docker"], 2, "has no docker_addr"),
        (["cluster", "up", "--dir", "never", "--stores", "0"], 2, "lives on store 7"),
        (["cluster", "up", "--dir", "never", "--meta-roots", "2"], 2, "1, 3 or 5"),
    ],
)
def test_what_a_topology_file_does_not_say(
    topology: Path, tmp_path: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path / a) if a == "never" else a for a in arguments]
    assert run([*given, "--config", str(topology)]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_options_override_the_file(topology: Path, tmp_path: Path) -> None:
    ok("cluster", "up", "--dir", tmp_path / "c", "--config", topology, "--coordinators", "2", "--detach")
    found = LocalCluster.load(tmp_path / "c")
    try:
        assert [r.name for r in found.records] == ["meta-root-1", "coordinator-1", "coordinator-2", "store-7"]
        assert found.get("store-7").workdir == str(tmp_path / "store")
        again = call("cluster", "up", "--dir", tmp_path / "c", "--stores", "3", "--detach")
        assert again.returncode == 0 and "--stores not looked at" in again.stderr
    finally:
        assert found.stop_all() == []


def test_an_address_that_others_reach_needs_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = str(tmp_path / "r")
    for option in (["--addr", "0.0.0.0:0"], ["--addr", "127.0.0.1:0", "--metrics-addr", "0.0.0.0:0"]):
        assert run(["meta-root", "--workdir", workdir, *option]) == 2
        found = capsys.readouterr().err
        assert "in plain text" in found and "--insecure-listen" in found
    assert run(["meta-root", "--workdir", workdir, "--tls-dir", str(tmp_path)]) == 2
    assert "has no ca.crt" in capsys.readouterr().err
    assert not Path(workdir).exists()
    with pytest.raises(UsageError):
        nokv.connect("127.0.0.1:1", tls_dir=tmp_path)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("http://127.0.0.1:1/readyz", timeout=1)
