"""Three pysyncobj processes on loopback: the Python anchor of the replicated rows, where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from bench.etcd import free_ports


class PySyncObjCluster:
    """Context manager. `put_many(n)` returns when n sets are done."""

    available = importlib.util.find_spec("pysyncobj") is not None

    def __init__(self, directory: Path, callers: int) -> None:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        self.logs = [directory / f"pysyncobj-{i}.log" for i in range(3)]
        self.commands = [
            [sys.executable, "-m", "bench.pysyncobj_peer", f"--callers={callers}", own, *set(addresses) - {own}]
            for own in addresses
        ]
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> PySyncObjCluster:
        for command, path in zip(self.commands, self.logs, strict=True):
            with open(path, "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
                    )
                )
        self.leader = next(p for p in self.processes if p.stdout is not None and p.stdout.readline() == "leader\n")
        return self

    def put_many(self, operations: int) -> None:
        assert self.leader.stdin is not None and self.leader.stdout is not None
        self.leader.stdin.write(f"{operations}\n")
        if self.leader.stdout.readline() != "done\n":
            raise RuntimeError(f"pysyncobj failed: {self.complaints()}")

    def complaints(self) -> str:
        """What the members logged. Replicas that diverge make a figure void."""
        return "".join(path.read_text() for path in self.logs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
