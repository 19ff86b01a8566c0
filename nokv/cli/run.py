"""`nokv migrate run`: a whole promotion on this machine, stage by stage, with a summary. The demo adds its own stages.

    plan -> init -> control (meta-roots, coordinator) -> serve -> stores -> expand -> transfer-leader -> verify

It delegates every change of state to the verbs of `nokv.migrate`; there is no second way to promote anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from nokv._ext.mvcc import pack_pairs_for_digest
from nokv.cli.cluster import wait_for_signal
from nokv.cli.launcher import LocalCluster
from nokv.cli.output import SCHEMA_VERSION, note, output_option, table
from nokv.cli.processes import sigterm_is_interrupt, uninterrupted
from nokv.cli.supervisor import Supervisor
from nokv.client.operator.client import AdminClient
from nokv.errors import InvariantError, PreconditionFailed
from nokv.migrate.rollout import RolloutLog, Target, Waiter, find_leader

__all__ = ["ContentDigest", "MigrationRun", "Summary", "run"]

REGION = 1
STORE = 1
PEER = 101
_T = TypeVar("_T")


class Summary:
    """What happened, stage by stage; written as summary.json and summary.txt."""

    def __init__(self, title: str, artifacts: Path) -> None:
        self.title = title
        self.artifacts = artifacts
        self.started = time.time()
        self._clock = time.monotonic()
        self.stages: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.error = ""

    @contextlib.contextmanager
    def stage(self, name: str, title: str) -> Iterator[dict[str, Any]]:
        """Banner, duration, outcome. What the body puts into the dict becomes part of the stage."""
        details: dict[str, Any] = {}
        record = {"name": name, "title": title, "ok": False, "duration_s": 0.0, "details": details}
        self.stages.append(record)
        begin = time.monotonic()
        note(f"\n=== {len(self.stages)}. {name}: {title}")
        try:
            yield details
            record["ok"] = True
        except BaseException as error:
            self.error = f"{name}: {str(error) or type(error).__name__}"
            raise
        finally:
            record["duration_s"] = round(time.monotonic() - begin, 3)
            note(f"    {'ok' if record['ok'] else 'FAILED'} in {record['duration_s']:.2f} s")

    @property
    def ok(self) -> bool:
        return not self.error and all(stage["ok"] for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "migration-summary",
            "title": self.title,
            "ok": self.ok,
            "error": self.error,
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "duration_s": round(time.monotonic() - self._clock, 3),
            **self.facts,
            "stages": self.stages,
        }

    def text(self) -> str:
        found = self.as_dict()
        lines = [f"{self.title}: {'ok' if self.ok else 'FAILED: ' + self.error} in {found['duration_s']:.1f} s", ""]
        rows = []
        for stage in self.stages:
            scalars = {k: v for k, v in stage["details"].items() if isinstance(v, str | int | float)}
            details = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in scalars.items())
            rows.append((stage["name"], "ok" if stage["ok"] else "FAILED", f"{stage['duration_s']:.2f}", details))
        lines.append(table(["stage", "result", "seconds", "details"], rows))
        digests = self.facts.get("digests", {})
        if digests:
            shown = [(n, d["digest"], d["keys"], d["bytes"], d["applied_index"]) for n, d in digests.items()]
            lines += ["", table(["replica", "digest", "keys", "bytes", "applied"], shown)]
        for restart in self.facts.get("restarted", []):
            lines.append(f"killed by somebody else, started again: {restart['name']} (during {restart['stage']})")
        for name in ("digest_before", "client_digest"):
            if name in self.facts:
                lines.append(f"{name.replace('_', ' ')}: {self.facts[name]}")
        for name in ("membership_before", "membership_after"):
            if name in self.facts:
                members = ", ".join(f"{m['store_id']}:{m['peer_id']} {m['role']}" for m in self.facts[name])
                lines.append(f"{name.replace('_', ' ')}: {members}")
        return "\n".join(lines)

    def write(self) -> None:
        """Both files, replaced atomically."""
        self.artifacts.mkdir(parents=True, exist_ok=True)
        document = json.dumps(self.as_dict(), indent=2) + "\n"
        for name, text in (("summary.json", document), ("summary.txt", self.text() + "\n")):
            temporary = self.artifacts / f"{name}.tmp"
            temporary.write_text(text, "utf-8")
            temporary.replace(self.artifacts / name)


class ContentDigest:
    """The digest of docs/formats/region_digest.md over entries as a client or an open directory shows them.

    So the same value comes out of the directory before the promotion, of each replica's store, and of the client.
    """

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self.keys = 0
        self.bytes = 0

    def through(self, entries: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """The same entries, each taken into the digest as it passes."""
        for key, value in entries:
            self._state.update(pack_pairs_for_digest([(key, value)]))
            self.keys += 1
            self.bytes += len(key) + len(value)
            yield key, value

    def add_all(self, entries: Iterable[tuple[bytes, bytes]]) -> ContentDigest:
        for _ in self.through(entries):
            pass
        return self

    @property
    def digest(self) -> str:
        return f"sha256:{self._state.hexdigest()}"


class MigrationRun:
    """One stage per method, called in the order of the module docstring. `cluster` is None before `control`."""

    def __init__(self, workdir: Path, directory: Path, summary: Summary, *, waiter: Waiter) -> None:
        self.workdir = workdir
        self.directory = directory
        self.summary = summary
        self.waiter = waiter
        self.cluster: LocalCluster | None = None
        self.supervisor: Supervisor | None = None
        summary.facts.update(workdir=str(workdir), cluster_dir=str(directory))

    @property
    def running(self) -> LocalCluster:
        if self.cluster is None:
            raise InvariantError("the cluster was not described yet")
        return self.cluster

    @contextlib.contextmanager
    def supervised(self) -> Iterator[Supervisor]:
        """While the body runs, what dies without us is started again (and shown in the summary), and verbs resume."""
        restarted = self.summary.facts.setdefault("restarted", [])

        def told(name: str) -> None:
            restarted.append({"name": name, "stage": self.summary.stages[-1]["name"] if self.summary.stages else ""})

        plain = self.waiter
        with Supervisor(self.running, told).watching() as supervisor:
            self.supervisor = supervisor
            self.waiter = replace(plain, sleep=supervisor.sleep)
            try:
                yield supervisor
            finally:
                self.supervisor, self.waiter = None, plain

    def enduring(self, verb: Callable[[], _T]) -> _T:
        """Run a repeatable verb, again after each restart if `supervised`."""
        return verb() if self.supervisor is None else self.supervisor.enduring(verb)

    def plan(self) -> None:
        from nokv.migrate.plan import plan

        with self.summary.stage("plan", "may the directory be promoted? (read-only)") as details:
            found = plan(str(self.workdir))
            details.update(mode=found.mode, eligible=found.eligible, blockers=[b.name for b in found.blockers])
            if not found.eligible and found.mode != "preparing":
                first = found.blockers[0]
                raise PreconditionFailed(f"{self.workdir}: {first.name}: {first.detail}", hint=first.hint)

    def init(self) -> None:
        from nokv.migrate.init import init

        with self.summary.stage("init", "promote it in place: no data is rewritten") as details:
            result = init(str(self.workdir), store_id=STORE, region_id=REGION, peer_id=PEER, say=_indent)
            details.update(outcome=result.outcome, mode=result.mode, snapshot_files=result.snapshot_files)

    def control(self, meta_roots: int) -> None:
        with self.summary.stage("control", f"{meta_roots} meta-roots and a coordinator") as details:
            self.cluster = LocalCluster.create(
                self.directory, meta_roots=meta_roots, coordinators=1, stores=1, seed=self.workdir
            )
            for role in ("meta-root", "coordinator"):
                names = [record.name for record in self.cluster.role(role)]
                for name in names:
                    self.cluster.start(name, wait=False)
                self.cluster.wait_ready(names)
                details[role] = len(names)
            details["coordinator_address"] = self.cluster.coordinator_addresses[0]

    def serve(self) -> None:
        with self.summary.stage("serve", "store-1 serves the promoted directory") as details:
            record = self.running.start("store-1")
            leader, status = find_leader_soon(record.address, REGION, self.waiter)
            leader.close()
            members = status.region.peers if status.region is not None else ()
            self.summary.facts["membership_before"] = [
                {"peer_id": p.peer_id, "store_id": p.store_id, "role": p.role.value} for p in members
            ]
            details.update(address=record.address, leader_peer=status.leader_peer_id)

    def stores(self, count: int) -> None:
        with self.summary.stage("stores", f"{count} empty stores join") as details:
            names = [self.running.add_store().name for _ in range(count)]
            for name in names:
                self.running.start(name, wait=False)
            self.running.wait_ready(names)
            details["started"] = ", ".join(names)

    def targets(self) -> list[Target]:
        return [Target(r.id, r.id * 100 + 1, r.address) for r in self.running.role("store") if r.id != STORE]

    def expand(self) -> None:
        from nokv.migrate.expand import expand

        with self.summary.stage("expand", "to one replica per store, one after the other") as details:
            result = self.enduring(
                lambda: expand(
                    self.running.get("store-1").address,
                    REGION,
                    self.targets(),
                    command=f"nokv migrate run --workdir {self.workdir} --dir {self.directory}",
                    waiter=self.waiter,
                    log=RolloutLog(str(self.workdir)),
                    say=_indent,
                )
            )
            self.summary.facts["membership_after"] = result.membership_after
            details.update(replicas=len(result.membership_after))

    def transfer(self, store_id: int) -> None:
        from nokv.migrate.transfer_leader import transfer_leader

        record = self.running.get(f"store-{store_id}")
        with self.summary.stage("transfer-leader", f"to {record.name}") as details:
            result = self.enduring(
                lambda: transfer_leader(
                    self.running.get("store-1").address,
                    REGION,
                    store_id * 100 + 1,
                    command=f"nokv migrate transfer-leader --addr {record.address} --peer {store_id * 100 + 1}",
                    target_address=record.address,
                    waiter=self.waiter,
                    log=RolloutLog(str(self.workdir)),
                    say=_indent,
                )
            )
            details.update(leader_before=result["leader_before"], leader=result["leader"])

    def replica_digests(self) -> dict[str, dict[str, Any]]:
        """The digest of every replica, each computed by its own store over its own data; they must be equal."""
        found = self.enduring(self._replica_digests)
        self.summary.facts["digests"] = found
        if len({d["digest"] for d in found.values()}) != 1:
            raise PreconditionFailed(f"replicas differ: { {n: d['digest'] for n, d in found.items()} }")
        return found

    def _replica_digests(self) -> dict[str, dict[str, Any]]:
        leader, status = find_leader_soon(self.running.get("store-1").address, REGION, self.waiter)
        leader.close()
        found: dict[str, dict[str, Any]] = {}
        for record in self.running.role("store"):
            with AdminClient(record.address) as store:
                answer = store.digest(REGION, status.applied_index)
            found[record.name] = {
                "digest": answer.digest,
                "keys": answer.keys,
                "bytes": answer.bytes,
                "applied_index": answer.applied_index,
            }
        return found

    def check_client_digest(self, seen: ContentDigest) -> None:
        """What the client reads is what every replica holds."""
        self.summary.facts["client_digest"] = seen.digest
        for name, found in self.summary.facts["digests"].items():
            if found["digest"] != seen.digest:
                raise PreconditionFailed(
                    f"{name} holds {found['keys']} keys, the client reads {seen.keys}: they differ"
                )

    def stop(self) -> None:
        if self.cluster is not None:
            with self.summary.stage("stop", "stop everything that was started") as details:
                details["killed"] = ", ".join(self.cluster.stop_all()) or "none"


def find_leader_soon(address: str, region_id: int, waiter: Waiter) -> Any:
    """`find_leader`, waiting for an election."""
    found: list[Any] = []

    def attempt() -> str:
        found.append(find_leader(address, region_id))
        return ""

    waiter.until(attempt)
    return found[-1]


def _indent(line: str) -> None:
    note(f"    {line}")


@click.command()
@click.option("--workdir", required=True, type=click.Path(), help="The standalone directory.")
@click.option("--dir", "directory", type=click.Path(), help="The cluster's directory  [default: WORKDIR.cluster].")
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True, help="Stores in the end.")
@click.option("--meta-roots", type=int, default=3, show_default=True, help="1, 3 or 5.")
@click.option(
    "--artifacts", type=click.Path(), default="artifacts/migration", show_default=True, help="Where summaries go."
)
@click.option("--wait", "wait_s", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds per step.")
@click.option("--keep/--stop", default=False, help="Leave the cluster running at the end.")
@click.option("--foreground", is_flag=True, help="Keep it running until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Only plan, and list the stages. Changes nothing.")
@output_option
def run(
    workdir: str,
    directory: str | None,
    replicas: int,
    meta_roots: int,
    artifacts: str,
    wait_s: float,
    keep: bool,
    foreground: bool,
    dry_run: bool,
    output: str,
) -> int:
    """Promote a directory and grow it into a replicated cluster on this machine; prints and writes a summary."""
    sigterm_is_interrupt()
    path = Path(workdir).absolute()
    cluster_dir = Path(directory).absolute() if directory else path.with_name(path.name + ".cluster")
    summary = Summary("nokv migrate run", Path(artifacts))
    job = MigrationRun(path, cluster_dir, summary, waiter=Waiter(wait_s, 0.05))
    if dry_run:
        return _dry_run(job, replicas, meta_roots)
    keep = keep or foreground
    try:
        before = _promote(job)
        job.control(meta_roots)
        job.serve()
        if replicas > 1:
            job.stores(replicas - 1)
        with job.supervised():
            if replicas > 1:
                job.expand()
                job.transfer(2)
            with summary.stage("verify", "every key on every replica, and through the client") as details:
                job.replica_digests()
                job.enduring(lambda: _verify_client(job, before, details))
        if foreground:
            note(f"attach: nokv scan --dir {cluster_dir}   Ctrl-C stops it")
            wait_for_signal()
    finally:
        failed = sys.exc_info()[0] is not None
        with uninterrupted():
            if not keep or failed or foreground:
                job.stop()
            summary.write()
            _print(summary, output)
    if keep and not foreground:
        note(f"\nattach: nokv scan --dir {cluster_dir}\nstop:   nokv cluster down --dir {cluster_dir}")
    return 0 if summary.ok else 1


def _promote(job: MigrationRun) -> ContentDigest | None:
    """plan and init; the content's digest before, unless an earlier run already promoted the directory."""
    from nokv.env.files import OsFiles
    from nokv.migrate.inspect import open_for_reading
    from nokv.migrate.status import status

    now = status(str(job.workdir))
    if now.mode in ("seeded", "cluster"):
        note(f"{job.workdir} is {now.mode} already: plan and init are done")
        if (job.directory / "cluster.json").exists():
            raise PreconditionFailed(
                f"{job.directory} already holds its cluster", hint=f"nokv cluster up --dir {job.directory}"
            )
        return None
    job.plan()
    before = None
    if now.mode == "standalone":
        with open_for_reading(str(job.workdir), now.mode, OsFiles()) as db:
            before = ContentDigest().add_all(db.scan())
    job.init()
    return before


def _verify_client(job: MigrationRun, before: ContentDigest | None, details: dict[str, Any]) -> None:
    import nokv

    client = nokv.connect(job.running.coordinator_addresses, timeout_s=30.0)
    try:
        after = ContentDigest().add_all(client.scan())
    finally:
        client.close()
    details.update(keys=after.keys, bytes=after.bytes)
    job.check_client_digest(after)
    if before is not None:
        job.summary.facts["digest_before"] = before.digest
        if before.digest != after.digest:
            raise PreconditionFailed(
                f"the client reads {after.keys} keys, before the promotion there were {before.keys}"
            )


def _dry_run(job: MigrationRun, replicas: int, meta_roots: int) -> int:
    from nokv.migrate.plan import plan

    found = plan(str(job.workdir))
    click.echo(f"{job.workdir}: {found.mode}, {'eligible' if found.eligible else 'not eligible'}")
    for blocker in found.blockers:
        click.echo(f"blocker {blocker.name}: {blocker.detail}")
    click.echo(f"would promote it as store {STORE}, region {REGION}, peer {PEER}")
    click.echo(f"would start {meta_roots} meta-roots and a coordinator in {job.directory}")
    click.echo(f"would serve it, start {replicas - 1} empty stores, expand to {replicas} replicas, verify, stop")
    return 0 if found.eligible else 4


def _print(summary: Summary, output: str) -> None:
    if output == "table":
        click.echo("\n" + summary.text())
    else:
        click.echo(json.dumps(summary.as_dict(), indent=2 if output == "json" else None))
    note(f"\nwritten: {summary.artifacts}/summary.json and summary.txt")
