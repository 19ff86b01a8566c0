"""A local cluster: real processes on loopback, described by DIR/cluster.json.

    DIR/cluster.json   what was started: names, roles, ports, arguments, pid and process identity (written atomically)
    DIR/cluster.lock   held (flock) by a command while it changes the cluster
    DIR/NAME/          the process's own directory          DIR/NAME.log   its stdout and stderr

A process is only ever touched if pid and identity still match what this launcher recorded when it started it.
Ports are taken below the kernel's ephemeral range, so that no outgoing connection can sit on one when `start` needs
it again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nokv
from nokv.cli import processes
from nokv.errors import NoKVError, NotFound, PreconditionFailed, Unavailable, UsageError

__all__ = ["LocalCluster", "Place", "ProcessRecord", "free_ports"]

FORMAT = 1
PORTS = range(20000, 32000)
LEASE = ("--lease-ttl", "2.5", "--lease-renew-before", "1.3")
"""On one machine a killed holder need not be waited for as long as over a network: at most 2.4 s instead of 9.5, so
that ids and timestamps are back within 3 s. A renewal still has 1.3 s to get through."""

DROPPED = frozenset({"NOKV_COORDINATOR", "NOKV_FAILPOINT", "NOKV_TLS_DIR"})
"""What a user's environment says to commands is not meant for the processes."""

CLIENT = "admin"
STOP_ORDER = ("store", "coordinator", "meta-root")
START_ORDER = tuple(reversed(STOP_ORDER))
STOP_TIMEOUT_S = 15.0
READY_TIMEOUT_S = 60.0
POLL_S = 0.05

Probe = Callable[[str, str], str]
"""(role, address) -> "" when ready, else what it waits for."""


def free_ports(count: int) -> list[int]:
    """`count` distinct loopback ports nobody listens on now."""
    found: list[int] = []
    start = random.randrange(len(PORTS))
    with contextlib.ExitStack() as stack:
        for step in range(len(PORTS)):
            if len(found) == count:
                break
            port = PORTS[(start + step) % len(PORTS)]
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    if len(found) < count:
        raise Unavailable(
            f"cannot find {count} free loopback ports", hint="stop something: nokv cluster down --dir DIR"
        )
    return found


@dataclass(slots=True, frozen=True)
class Place:
    """One process of a new cluster. An empty address or directory: choose one."""

    role: str
    id: int
    address: str = ""
    workdir: str = ""


@dataclass(slots=True)
class ProcessRecord:
    name: str
    role: str  # meta-root, coordinator, store
    id: int
    address: str
    metrics_address: str
    workdir: str
    log: str
    arguments: list[str] = field(default_factory=list)
    pid: int = 0
    identity: str = ""

    @property
    def state(self) -> str:
        """running; dead = was started and is gone without `down`; stopped = not started, or stopped on purpose."""
        if processes.is_alive(self.pid, self.identity):
            return "running"
        return "dead" if self.pid else "stopped"


class LocalCluster:
    """Not thread safe. Every change is written to cluster.json before the method returns."""

    def __init__(
        self, directory: Path, records: list[ProcessRecord], probe: Probe | None = None, *, tls_dir: str = ""
    ) -> None:
        """`tls_dir`: a CA; each process has the certificate TLS_DIR/NAME, commands have TLS_DIR/admin. Empty: plain."""
        self.directory = directory
        self.records = records
        self.tls_dir = tls_dir
        self.monotonic: Callable[[], float] = time.monotonic
        """What `wait_ready` measures its limit with."""
        self._probe = probe

    @property
    def client_tls_dir(self) -> str | None:
        """`--tls-dir` for whoever connects to this cluster."""
        return str(Path(self.tls_dir) / CLIENT) if self.tls_dir else None

    # -- description -------------------------------------------------------------------------------------------------
    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        meta_roots: int = 3,
        coordinators: int = 1,
        stores: int = 3,
        seed: str | Path | None = None,
        tls_dir: str | Path | None = None,
    ) -> LocalCluster:
        """Describe a new cluster in `directory`; starts nothing. Store 1 serves `seed` if that is given."""
        path = Path(directory).absolute()
        plan = cls.resized([], {"meta-root": meta_roots, "coordinator": coordinators, "store": stores})
        if seed is not None:
            plan = [replace(p, workdir=str(seed)) if (p.role, p.id) == ("store", 1) else p for p in plan]
        return cls.describe_new(path, plan, tls_dir=tls_dir)

    @staticmethod
    def resized(plan: list[Place], counts: dict[str, int]) -> list[Place]:
        """`plan` with as many processes of each role of `counts`: the first ones of it, then new ones."""
        found: list[Place] = []
        for role in START_ORDER:
            places = [place for place in plan if place.role == role]
            count = counts.get(role, len(places))
            free = (number for number in itertools.count(1) if number not in {place.id for place in places})
            found += places[: max(count, 0)]
            found += [Place(role, next(free)) for _ in range(count - len(places))]
            if role == "meta-root" and count not in (1, 3, 5):
                raise UsageError(f"{count} meta-roots: 1, 3 or 5 peers make sense")
            if count < (role == "coordinator"):
                raise UsageError("a cluster needs at least one coordinator, and no negative number of stores")
        return found

    @classmethod
    def describe_new(cls, path: Path, plan: list[Place], *, tls_dir: str | Path | None = None) -> LocalCluster:
        """Write the description of the processes of `plan`; free ports and directories where it leaves them out.

        With `tls_dir`, make the CA and the certificates that are not there yet.
        """
        if (path / "cluster.json").exists():
            raise PreconditionFailed(f"{path} already holds a cluster", hint=f"nokv cluster status --dir {path}")
        path.mkdir(parents=True, exist_ok=True)
        ports = iter(free_ports(2 * len(plan)))
        cluster = cls(path, [], tls_dir=str(Path(tls_dir).absolute()) if tls_dir is not None else "")
        for place in plan:
            name = f"{place.role}-{place.id}"
            free, metrics = (f"127.0.0.1:{next(ports)}" for _ in range(2))
            workdir = str(Path(place.workdir).absolute() if place.workdir else path / name)
            record = ProcessRecord(
                name, place.role, place.id, place.address or free, metrics, workdir, str(path / f"{name}.log")
            )
            cluster.records.append(record)
        cluster._issue_certificates()
        for record in cluster.records:
            record.arguments = cluster._arguments(record)
        cluster.save()
        return cluster

    def _arguments(self, record: ProcessRecord) -> list[str]:
        roots = [f"{root.id}={root.address}" for root in self.role("meta-root")]
        common = ["--addr", record.address, "--metrics-addr", record.metrics_address]
        if self.tls_dir:
            common += ["--tls-dir", str(Path(self.tls_dir) / record.name)]
        if record.role == "meta-root":
            peers = [option for root in roots for option in ("--peer", root)]
            return ["meta-root", "--node-id", str(record.id), "--workdir", record.workdir, *peers, *common]
        if record.role == "coordinator":
            peers = [option for root in roots for option in ("--root-peer", root)]
            return ["coordinator", "--coordinator-id", record.name, *LEASE, *peers, *common]
        coordinators = [option for c in self.role("coordinator") for option in ("--coordinator-addr", c.address)]
        return ["serve", "--store-id", str(record.id), "--workdir", record.workdir, *coordinators, *common]

    def add_store(self, *, workdir: str | Path | None = None, store_id: int = 0) -> ProcessRecord:
        """Describe one more store; not started yet."""
        number = store_id or max((r.id for r in self.role("store")), default=0) + 1
        if any(r.id == number for r in self.role("store")):
            raise PreconditionFailed(f"store {number} is already part of {self.directory}")
        name = f"store-{number}"
        address, metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
        directory = Path(workdir).absolute() if workdir is not None else self.directory / name
        record = ProcessRecord(
            name, "store", number, address, metrics, str(directory), str(self.directory / f"{name}.log")
        )
        record.arguments = self._arguments(record)
        self.records.append(record)
        self._issue_certificates()
        self.save()
        return record

    def _issue_certificates(self) -> None:
        if not self.tls_dir:
            return
        from nokv.rpc.certificates import init_ca, issue
        from nokv.rpc.tls import CA_FILE

        ca, now = Path(self.tls_dir), datetime.datetime.now(datetime.UTC)
        if not (ca / CA_FILE).exists():
            init_ca(ca, now=now)
        for name, hosts in [(CLIENT, []), *((r.name, [_host(r.address)]) for r in self.records)]:
            if not (ca / name).exists():
                issue(ca, name, hosts, now=now)

    @classmethod
    def load(cls, directory: str | Path) -> LocalCluster:
        path = Path(directory).absolute()
        file = path / "cluster.json"
        try:
            document = json.loads(file.read_text("utf-8"))
            if document["format"] != FORMAT:
                raise UsageError(f"{file}: format {document['format']} is not {FORMAT}", hint="use the matching nokv")
            records = [ProcessRecord(**record) for record in document["processes"]]
            return cls(path, records, tls_dir=str(document.get("tls_dir", "")))
        except FileNotFoundError:
            raise NotFound(f"{path} holds no cluster", hint=f"nokv cluster up --dir {path}") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, NoKVError):
                raise
            raise UsageError(f"{file} is not a cluster description: {error}") from None

    def save(self) -> None:
        document = {
            "format": FORMAT,
            "tls_dir": self.tls_dir,
            "processes": [asdict(record) for record in self.records],
        }
        temporary = self.directory / "cluster.json.tmp"
        temporary.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        temporary.replace(self.directory / "cluster.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command at a time changes a cluster."""
        with open(self.directory / "cluster.lock", "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PreconditionFailed(
                    f"another command is changing the cluster in {self.directory}", hint="wait for it, then try again"
                ) from None
            yield

    def role(self, role: str) -> list[ProcessRecord]:
        return [record for record in self.records if record.role == role]

    def get(self, name: str) -> ProcessRecord:
        for record in self.records:
            if record.name == name:
                return record
        names = ", ".join(record.name for record in self.records)
        raise NotFound(f"no process {name!r} in {self.directory}", hint=f"one of: {names}")

    @property
    def coordinator_addresses(self) -> list[str]:
        return [record.address for record in self.role("coordinator")]

    # -- processes ---------------------------------------------------------------------------------------------------
    def start(self, name: str, *, wait: bool = True, environment: dict[str, str] | None = None) -> ProcessRecord:
        """Start one process on its recorded ports; with `wait`, return when it is ready for work."""
        record = self.get(name)
        if record.state == "running":
            raise PreconditionFailed(f"{name} already runs with pid {record.pid}")
        Path(record.workdir).mkdir(parents=True, exist_ok=True)
        with processes.uninterrupted(), open(record.log, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "nokv.cli", *record.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_child_environment(), **(environment or {})},
                start_new_session=True,  # Ctrl-C belongs to the launcher, which stops everything in order
            )
            record.pid = child.pid
            record.identity = processes.identify(child.pid)
            child.returncode = 0  # watched by pid and identity from here on: no "still running" at interpreter exit
            self.save()
        if wait:
            self.wait_ready([name])
        return record

    def start_all(self, *, wait: bool = True) -> None:
        for role in START_ORDER:
            names = [r.name for r in self.role(role) if r.state != "running"]
            for name in names:
                self.start(name, wait=False)
            if wait:
                self.wait_ready(names)

    def wait_ready(self, names: list[str], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when all are ready. Unavailable with the end of its log if one exits, or with what it waits for."""
        probe = self._probe or _default_probe(self.client_tls_dir)
        deadline = self.monotonic() + timeout_s
        for name in names:
            record = self.get(name)
            while True:
                processes.wait_gone(record.pid, record.identity, 0.0)
                if record.state != "running":
                    raise Unavailable(f"{name} stopped while starting: {_tail(record.log)}", hint=f"read {record.log}")
                waits_for = probe(record.role, record.address)
                if not waits_for:
                    break
                if self.monotonic() > deadline:
                    raise Unavailable(
                        f"{name} is not ready after {timeout_s:g} s: {waits_for}", hint=f"read {record.log}"
                    )
                time.sleep(POLL_S)

    def kill(self, name: str) -> None:
        """SIGKILL, and return when it is gone. The record keeps its pid: `status` shows it as dead."""
        record = self.get(name)
        if not processes.send_signal(record.pid, record.identity, signal.SIGKILL):
            raise PreconditionFailed(f"{name} does not run", hint=f"nokv cluster start {name} --dir {self.directory}")
        processes.wait_gone(record.pid, record.identity, STOP_TIMEOUT_S)

    def stop(self, name: str) -> bool:
        """SIGTERM, SIGKILL if that takes too long. False if it had to be killed."""
        record = self.get(name)
        orderly = True
        if processes.send_signal(record.pid, record.identity, signal.SIGTERM) and not processes.wait_gone(
            record.pid, record.identity, STOP_TIMEOUT_S
        ):
            orderly = False
            processes.send_signal(record.pid, record.identity, signal.SIGKILL)
            processes.wait_gone(record.pid, record.identity, STOP_TIMEOUT_S)
        record.pid, record.identity = 0, ""
        self.save()
        return orderly

    def stop_all(self) -> list[str]:
        """Stop stores, then coordinators, then meta-roots; returns the names that had to be killed."""
        killed = []
        for role in STOP_ORDER:
            for record in self.role(role):
                processes.send_signal(record.pid, record.identity, signal.SIGTERM)
            killed += [record.name for record in self.role(role) if not self.stop(record.name)]
        return killed

    def describe(self) -> list[dict[str, Any]]:
        return [
            {
                "name": r.name,
                "role": r.role,
                "address": r.address,
                "metrics_address": r.metrics_address,
                "pid": r.pid if r.state == "running" else None,
                "state": r.state,
                "workdir": r.workdir,
                "log": r.log,
            }
            for r in self.records
        ]


def _child_environment() -> dict[str, str]:
    root = str(Path(next(iter(nokv.__path__))).parent)
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {k: v for k, v in os.environ.items() if k not in DROPPED}
    return {**environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def _default_probe(tls_dir: str | None) -> Probe:
    from nokv.cli.client import probe
    from nokv.rpc.tls import load_tls

    return partial(probe, tls=load_tls(tls_dir))


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _tail(path: str, size: int = 600) -> str:
    try:
        text = Path(path).read_bytes()[-size:].decode("utf-8", "replace")
    except FileNotFoundError:
        return "no log"
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["empty log"])[-1].strip()
