"""The main job on real input: `make demo`, or `python -m nokv.cli.demo`.

Fill a directory as any program would, promote it, serve it, grow it to three replicas *while a writer keeps writing*,
move the leader, kill -9 a store and bring it back, then check every key on every replica and through the client.
Whatever somebody else kills once the writer has started is started again, and shown in the summary.

Environment: DEMO_DATA=path (directory, .jsonl, .csv; default: the running Python's standard library), DEMO_DIR=path
(default: artifacts/demo), KEEP=1 (leave the cluster running). Writes artifacts/migration/summary.json and
summary.txt. Exit code 0 only if everything agreed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

import nokv
from nokv.cli.demo_data import Counts, default_source, read_entries
from nokv.cli.main import run_command
from nokv.cli.output import note
from nokv.cli.processes import sigterm_is_interrupt, uninterrupted
from nokv.cli.run import ContentDigest, MigrationRun, Summary, find_leader_soon
from nokv.cli.supervisor import Supervisor
from nokv.errors import Indeterminate, NoKVError, PreconditionFailed
from nokv.migrate.rollout import Waiter

__all__ = ["Ledger", "Writer", "demo", "verify_entries"]

LOAD_BATCH = 200
MISSING = b""  # what the ledger holds for a key that was deleted
WRITER_TIMEOUT_S = 10.0


def fingerprint(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


class Ledger:
    """What must be in the cluster: key -> fingerprint, and for writes whose outcome is unknown both possibilities."""

    def __init__(self) -> None:
        self.expected: dict[bytes, bytes] = {}
        self.unknown: dict[bytes, set[bytes]] = {}

    def acknowledged(self, key: bytes, value: bytes | None) -> None:
        self.expected[key] = MISSING if value is None else fingerprint(value)
        self.unknown.pop(key, None)

    def unresolved(self, key: bytes, value: bytes | None) -> None:
        options = self.unknown.setdefault(key, {self.expected.get(key, MISSING)})
        options.add(MISSING if value is None else fingerprint(value))

    def allows(self, key: bytes, found: bytes) -> bool:
        """`found` is a fingerprint, or MISSING."""
        return found in self.unknown.get(key, {self.expected.get(key, MISSING)})


class Writer:
    """Writes through the client until stopped: new keys, and now and then over or away what was promoted.

    One write at a time, each recorded as acknowledged only after the client said so. Its own thread.
    """

    def __init__(self, coordinators: list[str], ledger: Ledger, promoted: list[bytes]) -> None:
        self.coordinators = coordinators
        self.ledger = ledger
        self.promoted = promoted
        self.acknowledged = self.failed = self.unresolved = 0
        self.longest_wait_s = 0.0
        self.crash: BaseException | None = None
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="demo-writer")

    def start(self) -> None:
        self._thread.start()

    def halt(self) -> None:
        """Return when its last write has ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def stop(self) -> None:
        """`halt`, and raise what stopped it early."""
        self.halt()
        if self.crash is not None:
            raise self.crash

    def wait_for(self, more: int, timeout_s: float) -> None:
        """Return after `more` further acknowledged writes: so that each stage really happens during writing."""
        with self._progress:
            wanted = self.acknowledged + more
            if not self._progress.wait_for(lambda: self.acknowledged >= wanted or self.crash is not None, timeout_s):
                raise PreconditionFailed(f"no {more} writes were acknowledged within {timeout_s:g} s")
        if self.crash is not None:
            raise self.crash

    def _run(self) -> None:
        try:
            client = nokv.connect(self.coordinators, timeout_s=WRITER_TIMEOUT_S)
            try:
                for number, (key, value) in enumerate(self._writes()):
                    if self._stop.is_set():
                        return
                    self._one(client, key, value, number)
            finally:
                client.close()
        except BaseException as error:
            with self._progress:
                self.crash = error
                self._progress.notify_all()

    def _writes(self) -> Iterator[tuple[bytes, bytes | None]]:
        number = 0
        while True:
            yield b"demo-writer/%08d" % number, b"value %d " % number * (1 + number % 40)
            if number % 10 == 5 and self.promoted:
                yield self.promoted[number * 7 % len(self.promoted)], b"overwritten by write %d" % number
            if number % 50 == 25 and self.promoted:
                yield self.promoted[number * 13 % len(self.promoted)], None
            number += 1

    def _one(self, client: Any, key: bytes, value: bytes | None, number: int) -> None:
        begin = time.monotonic()
        try:
            if value is None:
                client.delete(key)
            else:
                client.put(key, value)
        except Indeterminate:
            self.unresolved += 1
            self.ledger.unresolved(key, value)
        except NoKVError:
            self.failed += 1  # refused: nothing was done
        else:
            self.ledger.acknowledged(key, value)
            with self._progress:
                self.acknowledged += 1
                self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - begin)
                self._progress.notify_all()


def verify_entries(ledger: Ledger, entries: Iterable[tuple[bytes, bytes]]) -> tuple[int, int]:
    """(keys, bytes) seen. PreconditionFailed naming the first differences if an entry is missing, wrong or extra."""
    wrong: list[str] = []
    seen: set[bytes] = set()
    size = 0
    for key, value in entries:
        seen.add(key)
        size += len(key) + len(value)
        if not ledger.allows(key, fingerprint(value)):
            kind = "wrong value" if key in ledger.expected else "should not exist"
            wrong.append(f"{key!r}: {kind}")
    for key in ledger.expected.keys() | ledger.unknown.keys():
        if key not in seen and not ledger.allows(key, MISSING):
            wrong.append(f"{key!r}: missing")
    if wrong:
        raise PreconditionFailed(f"{len(wrong)} of {len(ledger.expected)} keys differ: {'; '.join(wrong[:5])}")
    return len(seen), size


def load(source: Path, workdir: Path, ledger: Ledger) -> dict[str, Any]:
    """Fill a standalone directory in batches, as any embedding program would; then say what is in it."""
    counts = Counts()
    with nokv.open(str(workdir)) as db:
        batch: list[tuple[bytes, bytes]] = []
        for key, value in read_entries(source, counts):
            ledger.acknowledged(key, value)
            batch.append((key, value))
            if len(batch) == LOAD_BATCH:
                db.put_many(batch)
                batch.clear()
        db.put_many(batch)
        db.flush()
        keys, size = verify_entries(ledger, db.scan())
    return {
        "source": str(source),
        "files": counts.files,
        "keys": keys,
        "bytes": size,
        "chunked_files": counts.chunked,
        "unreadable_files": counts.unreadable,
        "not_regular_files": counts.not_regular,
    }


def demo(source: Path, base: Path, artifacts: Path, *, keep: bool) -> int:
    """Everything of the module docstring; the exit code."""
    workdir, directory = base / "data", base / "cluster"
    summary = Summary("nokv demo", artifacts)
    ledger = Ledger()
    job = MigrationRun(workdir, directory, summary, waiter=Waiter(60.0, 0.05))
    writer: Writer | None = None
    try:
        with summary.stage("load", f"fill a standalone directory from {source}") as details:
            details.update(load(source, workdir, ledger))
            summary.facts["source"] = details.pop("source")
            for name, value in details.items():
                note(f"    {name.replace('_', ' '):<18} {value}")
        promoted = sorted(ledger.expected)
        job.plan()
        job.init()
        job.control(meta_roots=3)
        job.serve()
        job.stores(2)
        writer = Writer(job.running.coordinator_addresses, ledger, promoted)
        writer.start()
        with job.supervised() as supervisor:
            writer.wait_for(20, 60.0)
            job.expand()
            writer.wait_for(20, 60.0)
            job.transfer(2)
            writer.wait_for(20, 60.0)
            with summary.stage("kill", "kill -9 the store that leads, bring it back, while writing goes on") as details:
                _kill_and_restart(job, supervisor, writer, details)
            with summary.stage("write", "stop the writer") as details:
                writer.stop()
                details.update(
                    acknowledged=writer.acknowledged,
                    refused=writer.failed,
                    unresolved=writer.unresolved,
                    longest_wait_s=round(writer.longest_wait_s, 3),
                )
            with summary.stage("verify", "every key on every replica by digest, and through the client") as details:
                job.replica_digests()
                job.enduring(lambda: _verify_client(job, ledger, details))
    finally:
        failed = sys.exc_info()[0] is not None
        with uninterrupted():
            if writer is not None and failed:
                writer.halt()
            if not keep or failed:
                job.stop()
            summary.write()
        click.echo("\n" + summary.text())
        note(f"\nwritten: {artifacts}/summary.json and summary.txt")
    if keep:
        command = _command()
        click.echo(f"\nattach:  {command} scan --limit 5 --dir {directory}")
        click.echo(f"         {command} cluster status --dir {directory}")
        click.echo(f"         python: nokv.connect({job.running.coordinator_addresses})")
        click.echo(f"stop:    {command} cluster down --dir {directory}")
    return 0 if summary.ok else 1


def _command() -> str:
    """How to call `nokv` from this shell."""
    if shutil.which("nokv"):
        return "nokv"
    beside = Path(sys.executable).with_name("nokv")
    return str(beside) if beside.exists() else f"{sys.executable} -m nokv.cli"


def _kill_and_restart(job: MigrationRun, supervisor: Supervisor, writer: Writer, details: dict[str, Any]) -> None:
    def leading_store() -> str:
        leader, status = find_leader_soon(job.running.get("store-1").address, 1, job.waiter)
        leader.close()
        return f"store-{status.leader_store_id}"

    details["killed"] = name = job.enduring(leading_store)
    supervisor.kill(name)
    note(f"    {name} is gone; waiting for the others to elect and carry on")
    writer.wait_for(20, 60.0)
    note("    writes go on; starting it again")
    supervisor.start(name)
    writer.wait_for(20, 60.0)


def _verify_client(job: MigrationRun, ledger: Ledger, details: dict[str, Any]) -> None:
    """Every entry against the ledger, and all of them together against the replicas' digests."""
    seen = ContentDigest()
    client = nokv.connect(job.running.coordinator_addresses, timeout_s=30.0)
    try:
        keys, size = verify_entries(ledger, seen.through(client.scan()))
    finally:
        client.close()
    job.check_client_digest(seen)
    details.update(keys=keys, bytes=size, unresolved=len(ledger.unknown))


@click.command()
@click.option("--data", type=click.Path(), envvar="DEMO_DATA", help="A directory, a .jsonl or a .csv file.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(),
    envvar="DEMO_DIR",
    default="artifacts/demo",
    help="Where it works; an earlier demo there is removed.",
)
@click.option("--artifacts", type=click.Path(), default="artifacts/migration", help="Where the summaries go.")
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave the cluster running.")
def main(data: str | None, directory: str, artifacts: str, keep: bool) -> int:
    """The main job end to end: fill a directory, promote it, replicate it, break it, check it."""
    sigterm_is_interrupt()
    base = Path(directory).absolute()
    _clear(base)
    source = Path(data) if data else default_source()
    return demo(source, base, Path(artifacts), keep=keep)


def _clear(base: Path) -> None:
    """Remove what an earlier demo left in `base`; refuses a running cluster and a stranger's directory."""
    if (base / "cluster" / "cluster.json").exists():
        from nokv.cli.launcher import LocalCluster

        if any(record.state == "running" for record in LocalCluster.load(base / "cluster").records):
            raise PreconditionFailed(
                f"the demo's cluster in {base} still runs", hint=f"nokv cluster down --dir {base / 'cluster'}"
            )
    strangers = {entry.name for entry in base.iterdir()} - {"data", "cluster"} if base.exists() else set()
    if strangers:
        raise PreconditionFailed(
            f"{base} holds something else: {', '.join(sorted(strangers))}", hint="choose another --dir"
        )
    if base.exists():
        shutil.rmtree(base)
    base.mkdir(parents=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
