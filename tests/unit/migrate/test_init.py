"""init: stopped at every milestone and at every disk operation, it never leaves a directory that opens as standalone
and lies, and the same command always finishes the job with the same result."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nokv
from nokv.cli.main import run
from nokv.engine.mode import read_mode
from nokv.env.files import OsFiles
from nokv.env.ports import Executor, Files
from nokv.errors import Corruption, ModeError, NoKVError, PreconditionFailed
from nokv.migrate.checkpoint import MILESTONES
from nokv.migrate.failpoints import FailpointHit, parse_failpoints
from nokv.migrate.init import init
from nokv.migrate.inspect import open_for_reading
from nokv.migrate.seed import SEED_DIRECTORY, SEED_MANIFEST
from nokv.migrate.status import report, status
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CRASH_MODES, CrashFiles, CrashPoint, FaultFiles

DATA = [(b"key %03d" % n, b"value %d" % n * 3) for n in range(120)]


def fill(workdir: str, files: Files, executor: Executor | None = None) -> None:
    with nokv.open(workdir, files=files, executor=executor) as db:
        db.put_many(DATA[:80])
        db.flush()
        db.put_many(DATA[80:], sync=True)


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    path = str(tmp_path / "db")
    fill(path, OsFiles())
    return path


def contents(workdir: str, files: Files) -> list[tuple[bytes, bytes]]:
    with open_for_reading(workdir, read_mode(workdir, files).mode, files) as db:
        return list(db.scan())


def check_seed(workdir: str, files: Files) -> None:
    """What every finished promotion must look like."""
    now = status(workdir, files=files)
    assert (now.mode, now.milestone) == ("seeded", "seeded-finalized")
    assert (now.store_id, now.region_id, now.peer_id) == (1, 1, 101)
    assert contents(workdir, files) == DATA
    with pytest.raises(ModeError):  # MIG-02, ENG-09
        nokv.open(workdir, files=files)


def test_the_whole_way(workdir: str) -> None:  # MIG-15, MIG-16
    assert status(workdir).mode == "standalone"
    said: list[str] = []
    result = init(workdir, store_id=1, region_id=1, peer_id=101, say=said.append)
    assert tuple(said) == MILESTONES
    assert result.outcome == "promoted"
    assert result.snapshot_files > 0
    check_seed(workdir, OsFiles())
    tables = {name for name in os.listdir(workdir) if name.endswith(".sst")}
    linked = set(os.listdir(f"{workdir}/{SEED_DIRECTORY}")) - {SEED_MANIFEST}
    assert linked
    assert {os.stat(f"{workdir}/{SEED_DIRECTORY}/{name}").st_nlink for name in linked} == {2}  # nothing was rewritten
    assert len(linked) <= len(tables)


def test_again_is_a_no_op_and_other_ids_are_refused(workdir: str) -> None:  # MIG-20
    init(workdir)
    assert init(workdir).outcome == "already"
    assert init(workdir, store_id=1, region_id=1, peer_id=101).outcome == "already"
    for ids in ({"store_id": 2}, {"region_id": 2}, {"peer_id": 102}):
        with pytest.raises(PreconditionFailed, match="was promoted as"):
            init(workdir, **ids)
    check_seed(workdir, OsFiles())


@pytest.mark.parametrize("milestone", [name for m in MILESTONES for name in (f"before-{m}", m)])
def test_an_error_at_every_milestone(workdir: str, milestone: str) -> None:  # MIG-17, MIG-18, MIG-19
    with pytest.raises(FailpointHit):
        init(workdir, failpoints=parse_failpoints(f"{milestone}:error"))
    now = status(workdir)
    if milestone == "before-mode-preparing-written":
        assert now.mode == "standalone"
    elif milestone == "seeded-finalized":
        assert now.mode == "seeded"
    else:
        assert now.mode == "preparing"
        reached = milestone.removeprefix("before-")
        expected = MILESTONES.index(reached) - (1 if milestone.startswith("before-") else 0)
        assert now.milestone == MILESTONES[expected]
        assert "nokv migrate init" in now.resume_hint
        with pytest.raises(ModeError):
            nokv.open(workdir)
        with pytest.raises(PreconditionFailed):
            init(workdir, peer_id=999)
        assert report(workdir).stage == "seed-preparing"
    init(workdir)
    check_seed(workdir, OsFiles())


def test_every_milestone_has_its_own_hint(workdir: str) -> None:  # MIG-18
    hints = {status(workdir).resume_hint}
    for milestone in MILESTONES[:-1]:
        with pytest.raises(FailpointHit):
            init(workdir, failpoints=parse_failpoints(f"{milestone}:error"))
        hints.add(status(workdir).resume_hint)
    init(workdir)
    hints.add(status(workdir).resume_hint)
    assert len(hints) == 6


@pytest.mark.parametrize("milestone", MILESTONES)
def test_kill_at_every_milestone(workdir: str, milestone: str) -> None:  # MIG-17, MIG-19
    command = [sys.executable, "-m", "nokv.cli", "migrate", "init", "--workdir", workdir]
    environment = {**os.environ, "NOKV_FAILPOINT": f"{milestone}:kill"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert status(workdir).milestone == milestone
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_seed(workdir, OsFiles())


def promote_in_memory(files: CrashFiles | FaultFiles) -> None:
    init("db", store_id=1, region_id=1, peer_id=101, files=files, executor=StepExecutor(inline=True))


def test_a_crash_at_every_disk_operation() -> None:  # MIG-02, MIG-19
    base = CrashFiles(seed=1)
    fill("db", base, StepExecutor(inline=True))
    clean = base.crash_clone("keep", seed=0)
    begin = clean.operation_count
    promote_in_memory(clean)
    operations = clean.operation_count - begin
    assert operations > 20
    modes = {"standalone": 0, "preparing": 0, "seeded": 0}
    for crash_at in range(operations):
        disk = base.crash_clone("keep", seed=crash_at)
        disk.crash_at = disk.operation_count + crash_at
        try:
            promote_in_memory(disk)
        except CrashPoint:
            pass
        for mode in CRASH_MODES:
            found = disk.crash_clone(mode, seed=crash_at)
            where = f"crash at operation {crash_at} of {operations}, {mode}: {disk.operations[-1]}"
            now = read_mode("db", found).mode
            modes[now] += 1
            if now == "standalone":
                with nokv.open("db", files=found, create=False, executor=StepExecutor(inline=True)) as db:
                    assert list(db.scan()) == DATA, where
            else:
                with pytest.raises(ModeError):
                    nokv.open("db", files=found)
                assert status("db", files=found).resume_hint, where
            promote_in_memory(found)
            try:
                check_seed("db", found)
            except (AssertionError, NoKVError) as error:
                raise AssertionError(where) from error
    assert all(modes.values()), modes


CHANGES = ("create", "open_log", "write", "sync", "makedirs", "rename", "remove", "rmdir", "link", "sync_dir")


@pytest.mark.parametrize("kind", [*CHANGES, "map_file", "read_file", "listdir", "lock"])
def test_an_error_at_every_disk_operation(kind: str) -> None:  # MIG-19
    """Whatever fails, the error is one of ours or the system's, the mode tells the truth, and a rerun finishes."""
    base = CrashFiles(seed=1)
    fill("db", base, StepExecutor(inline=True))
    for error in (errno.EIO, errno.ENOSPC):
        for at in range(1, 1000):
            disk = base.crash_clone("keep", seed=at)
            faults = FaultFiles(disk)
            faults.fail(kind, at=at, error=error)
            where = f"{kind} number {at} failed with {errno.errorcode[error]}"
            try:
                promote_in_memory(faults)
            except (NoKVError, OSError):
                pass
            if not faults.struck:
                break
            for mode in ("process", "drop"):
                found = disk.crash_clone(mode, seed=at)
                if read_mode("db", found).mode != "standalone":
                    with pytest.raises(ModeError):
                        nokv.open("db", files=found)
                try:
                    promote_in_memory(found)
                    check_seed("db", found)
                except (AssertionError, NoKVError) as problem:
                    raise AssertionError(f"{where}, {mode}: {faults.struck}") from problem
        else:
            raise AssertionError(f"{kind} never came to an end")


@pytest.mark.parametrize("damage", ["catalog", "manifest", "manifest-missing", "table"])
def test_tampering_is_reported(workdir: str, damage: str) -> None:  # MIG-21
    init(workdir)
    folder = Path(workdir, SEED_DIRECTORY)
    if damage == "catalog":
        with nokv.open(workdir, mode="seeded") as db:
            local = db.family("local")
            for key in list(local.scan(prefix=b"region/", values=False)):
                local.delete(key, sync=True)
    elif damage == "manifest":
        path = folder / SEED_MANIFEST
        path.write_bytes(path.read_bytes().replace(b'"region_id": 1', b'"region_id": 2'))
    elif damage == "manifest-missing":
        (folder / SEED_MANIFEST).unlink()
    else:
        next(p for p in folder.iterdir() if p.suffix == ".sst").unlink()
    with pytest.raises((Corruption, PreconditionFailed)):
        init(workdir)


def test_report(workdir: str) -> None:  # MIG-35
    assert report(workdir).stage == "standalone-ready"
    assert report(workdir).ready_for_init
    init(workdir)
    found = report(workdir)
    assert (found.stage, found.ready_for_serve, found.ready_for_init) == ("seed-ready", True, False)
    assert run(["migrate", "report", "--workdir", workdir, "--json"]) == 0
    assert run(["migrate", "status", "--workdir", workdir]) == 0


def test_promoted_directories_are_refused_by_data_commands(workdir: str) -> None:
    init(workdir)
    for arguments in (["get", "k"], ["put", "k", "v"], ["scan"], ["del", "k"]):
        assert run([*arguments, "--workdir", workdir]) == 4
    assert run(["regions", "--workdir", workdir, "--json"]) == 0
    assert run(["stats", "--workdir", workdir]) == 0
    assert run(["wal", "dump", "--workdir", workdir]) == 0
    assert run(["manifest", "--workdir", workdir]) == 0
