"""Bad input to real commands: one clear error, the right exit code, nothing changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nokv
from nokv.cli.launcher import LocalCluster, free_ports
from nokv.cli.main import run
from nokv.engine.mode import read_mode
from nokv.env.files import OsFiles
from nokv.migrate.init import init
from nokv.migrate.status import status

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nokv.cli", *arguments],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("NOKV_")}, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_error(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("nokv: error: ")]
    assert len(errors) == 1, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "ready " not in done.stdout


def names(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.name != "LOCK"}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    with nokv.open(str(tmp_path / "db")) as db:
        db.put_many([(b"key %d" % n, b"value" * 20) for n in range(200)])
    return tmp_path / "db"


def address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


# -- servers ----------------------------------------------------------------------------------------------------------
def test_serve_needs_a_coordinator(workdir: Path) -> None:  # CO-10
    one_error(command("serve", "--workdir", str(workdir), "--store-id", "1"), 2, "serve needs a coordinator")


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--workdir", "d", "--store-id", "1", "--coordinator-addr", "127.0.0.1:1", "--addr", "0.0.0.0:1"],
        ["coordinator", "--root-peer", "1=127.0.0.1:1", "--addr", "0.0.0.0:0"],
        ["meta-root", "--workdir", "d", "--addr", "[::]:1"],
    ],
)
def test_listening_beyond_loopback_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    arguments = [str(tmp_path / "d") if a == "d" else a for a in arguments]
    one_error(command(*arguments), 2, "--insecure-listen")
    assert not (tmp_path / "d").exists()


def test_serve_refuses_a_standalone_directory(workdir: Path) -> None:
    before = names(workdir)
    done = command(
        "serve", "--workdir", str(workdir), "--store-id", "1", "--addr", address(), "--coordinator", "127.0.0.1:1"
    )
    one_error(done, 4, "nokv migrate init")
    assert names(workdir) == before
    with nokv.open(str(workdir)) as db:
        assert len(db) == 200


def test_serve_refuses_another_store_id(workdir: Path) -> None:  # CLI-03
    init(str(workdir))
    done = command(
        "serve", "--workdir", str(workdir), "--store-id", "2", "--addr", address(), "--coordinator", "127.0.0.1:1"
    )
    one_error(done, 4, "store 1")
    assert status(str(workdir)).mode == "seeded"


def test_a_meta_root_refuses_a_stores_directory(workdir: Path) -> None:
    init(str(workdir))
    one_error(command("meta-root", "--workdir", str(workdir), "--addr", address()), 4, "store")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        one_error(command("meta-root", "--workdir", str(tmp_path / "r"), "--addr", busy), 5, busy)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["meta-root", "--workdir", "x", "--peer", "1=127.0.0.1:1", "--peer", "2=127.0.0.1:2"], "1, 3 or 5"),
        (["meta-root", "--workdir", "x", "--peer", "2=127.0.0.1:2"], "does not name this node"),
        (["meta-root", "--workdir", "x", "--peer", "one"], "id=host:port"),
        (["coordinator"], "needs a meta-root"),
        (["coordinator", "--root-peer", "1=nowhere"], "host:port"),
        (["serve", "--workdir", "x", "--store-id", "0", "--coordinator", "127.0.0.1:1"], "store-id"),
        (["serve", "--workdir", "x", "--store-id", "1", "--coordinator", "nowhere"], "host:port"),
        (
            ["serve", "--workdir", "x", "--store-id", "1", "--coordinator", "127.0.0.1:1", "--heartbeat-tick", "10"],
            "tick",
        ),
    ],
)
def test_wrong_options(arguments: list[str], says: str) -> None:
    one_error(command(*arguments), 2, says)


def test_sigterm_is_an_orderly_stop(tmp_path: Path) -> None:
    arguments = ["meta-root", "--workdir", str(tmp_path / "r"), "--addr", address(), "--metrics-addr", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nokv.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready meta-root node=1 ")
    assert f"pid={process.pid}" in line
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def test_a_coordinator_with_its_own_meta_root(tmp_path: Path) -> None:  # FEATURES 0.1: PD-lite, and the alias `pd`
    where = address()
    process = subprocess.Popen(
        [sys.executable, "-m", "nokv.cli", "pd", "--workdir", str(tmp_path / "pd"), "--addr", where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready coordinator ")
        done = command("regions", "--coordinator", where, "--json")
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


# -- directories ------------------------------------------------------------------------------------------------------
def test_a_locked_directory(workdir: Path) -> None:
    with nokv.open(str(workdir)) as db:
        for arguments in (["put", "k", "v"], ["del", "k"], ["migrate", "init"], ["check"], ["repair"]):
            one_error(command(*arguments, "--workdir", str(workdir)), 4, "open")
        assert command("migrate", "plan", "--workdir", str(workdir), "--json").returncode == 4
        for reading in (["scan"], ["stats"], ["wal", "dump"], ["manifest"]):  # works beside a writer
            assert command(*reading, "--workdir", str(workdir)).returncode == 0
        assert len(db) == 200
    assert read_mode(str(workdir), OsFiles()).mode == "standalone"


def test_data_commands_on_a_directory(workdir: Path) -> None:
    assert command("put", "k", "v", "--workdir", str(workdir)).returncode == 0
    assert command("get", "k", "--workdir", str(workdir)).stdout == "v\n"
    assert command("get", "k", "--raw", "--workdir", str(workdir)).stdout == "v"
    before = names(workdir)
    assert len(command("scan", "--limit", "0", "--workdir", str(workdir)).stdout.splitlines()) == 201
    assert command("scan", "--prefix", "k", "--reverse", "--limit", "1", "--workdir", str(workdir)).stdout.startswith(
        '"key 99"  value'
    )
    assert names(workdir) == before
    assert command("del", "k", "--workdir", str(workdir)).returncode == 0
    one_error(command("get", "k", "--workdir", str(workdir)), 3, "no key k")
    one_error(command("get", "k", "--workdir", str(workdir / "LOCK")), 2, "not a directory")


def test_a_corrupt_directory(workdir: Path) -> None:
    current = workdir / "CURRENT"
    current.write_bytes(b"X" + current.read_bytes()[1:])
    before = names(workdir)
    one_error(command("get", "k", "--workdir", str(workdir)), 6, "CURRENT")
    one_error(command("manifest", "--workdir", str(workdir)), 6, "CURRENT")
    assert command("migrate", "plan", "--workdir", str(workdir)).returncode == 4
    assert names(workdir) == before


def test_a_dead_coordinator(tmp_path: Path) -> None:
    where = address()
    for arguments in (["put", "k", "v"], ["get", "k"], ["scan"]):
        one_error(command(*arguments, "--timeout", "1", "--coordinator", where), 5, where.rpartition(":")[2])
    one_error(command("get", "k", "--timeout", "1", NOKV_COORDINATOR=where), 5, where.rpartition(":")[2])


def test_cluster_up_with_a_wrong_seed(tmp_path: Path, workdir: Path) -> None:
    directory = str(tmp_path / "c")
    one_error(command("cluster", "up", "--dir", directory, "--seed", str(workdir)), 2, "not promoted")
    one_error(command("cluster", "up", "--dir", directory, "--seed", str(tmp_path / "none")), 3, "none")
    init(str(workdir), store_id=7)
    one_error(command("cluster", "up", "--dir", directory, "--seed", str(workdir)), 2, "store 7")
    assert not Path(directory).exists()


def test_cluster_up_serves_a_seed_and_ctrl_c_stops_it(tmp_path: Path, workdir: Path) -> None:
    init(str(workdir))
    directory = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-m", "nokv.cli", "cluster", "up", "--dir", str(directory), "--seed", str(workdir),
         "--meta-roots", "1", "--stores", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "Ctrl-C" not in (line := process.stderr.readline()):
            assert line or process.poll() is None, "cluster up ended"
        assert run(["get", "key 7", "--dir", str(directory)]) == 0  # promoted data, through the client
        assert run(["get", "key 7", "--workdir", str(workdir)]) == 4
        assert status(str(workdir)).mode == "cluster"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert {record.state for record in LocalCluster.load(directory).records} == {"stopped"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 96 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    workdir = small_disk / "db"
    with nokv.open(str(workdir)) as db:
        db.put_many([(b"key %d" % n, b"value" * 20) for n in range(200)], sync=True)
    fill = small_disk / "fill"
    with contextlib.suppress(OSError), open(fill, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), open(fill, "ab", buffering=0) as file:
        while True:
            file.write(b"0")
    done = command("migrate", "init", "--workdir", str(workdir))
    assert done.returncode in (1, 4, 5), done.stderr
    assert done.stderr.count("nokv: error: ") == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    mode = read_mode(str(workdir), OsFiles()).mode
    assert mode in ("standalone", "preparing")
    fill.unlink()
    done = command("migrate", "init", "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    assert status(str(workdir)).mode == "seeded"
