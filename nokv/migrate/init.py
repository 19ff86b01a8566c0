"""`nokv migrate init`: promote a standalone directory into a single-store seed, in place.

    MODE.json preparing -> region in the local catalog -> seed snapshot (hard links) -> raft seed in the WAL ->
    MODE.json seeded

The directory lock is held throughout, so a live writer makes it fail before any change (MIG-01). Every step is
durable before its milestone is recorded and may be done again; a rerun starts at the first step whose milestone is
missing. Until the end ordinary open refuses the directory (MIG-02); the data files are never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import nokv
from nokv.engine.mode import PREPARING, SEEDED, STANDALONE, ModeRecord, check_transition, read_mode, write_mode
from nokv.env.files import OsFiles
from nokv.env.ports import Executor, Files
from nokv.errors import Corruption, ModeError, PreconditionFailed
from nokv.migrate.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nokv.migrate.failpoints import NO_FAILPOINTS, Failpoints
from nokv.migrate.plan import plan, require_directory
from nokv.migrate.seed import SEED_DIRECTORY, export_seed, load_seed, verify_seed
from nokv.raftstore import bootstrap
from nokv.region import Peer, Region

__all__ = ["DEFAULT_IDS", "InitResult", "init", "validate"]

DEFAULT_IDS = (1, 1, 101)  # store, region, peer


@dataclass(slots=True, frozen=True)
class InitResult:
    outcome: str  # promoted, resumed, already
    workdir: str
    mode: str
    store_id: int
    region_id: int
    peer_id: int
    snapshot_files: int
    next: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def init(
    workdir: str,
    *,
    store_id: int | None = None,
    region_id: int | None = None,
    peer_id: int | None = None,
    files: Files | None = None,
    executor: Executor | None = None,
    failpoints: Failpoints = NO_FAILPOINTS,
    say: Callable[[str], None] = lambda _line: None,
) -> InitResult:
    """Promote, finish an interrupted promotion, or confirm a finished one. Ids left out: as before, or DEFAULT_IDS.

    PreconditionFailed for other ids than before (MIG-20) or a blocker of `plan`; Locked if someone has the directory
    open.
    """
    files = files if files is not None else OsFiles()
    require_directory(workdir, files)
    found = read_mode(workdir, files)
    record = _ids(workdir, found, store_id, region_id, peer_id)
    if found.mode == STANDALONE:
        _refuse_blockers(workdir, files)
    elif found.mode not in (PREPARING, SEEDED):
        raise ModeError(
            f"{workdir} is {found.mode}: it already serves",
            mode=found.mode,
            hint=f"nokv migrate status --workdir {workdir}",
        )
    with nokv.open(
        workdir, create=False, mode=found.mode, wal_retainers=("raft",), files=files, executor=executor
    ) as db:
        if read_mode(workdir, files) != found:
            raise PreconditionFailed(f"another process changed the mode of {workdir}", hint="run the command again")
        if found.mode != SEEDED:
            _promote(db, workdir, record, found.mode, files, failpoints, say)
        manifest_files = validate(db, workdir, record, files)
        _note_finished(workdir, record, files)
    failpoints.hit("seeded-finalized")
    outcome = {STANDALONE: "promoted", PREPARING: "resumed", SEEDED: "already"}[found.mode]
    return InitResult(
        outcome=outcome,
        workdir=workdir,
        mode=SEEDED,
        store_id=record.store_id,
        region_id=record.region_id,
        peer_id=record.peer_id,
        snapshot_files=manifest_files,
        next=f"nokv serve --workdir {workdir} --store-id {record.store_id} --coordinator-addr HOST:PORT",
    )


def _ids(workdir: str, found: ModeRecord, store: int | None, region: int | None, peer: int | None) -> ModeRecord:
    before = DEFAULT_IDS if found.mode == STANDALONE else (found.store_id, found.region_id, found.peer_id)
    given = (store, region, peer)
    wanted = [new if new is not None else old for new, old in zip(given, before, strict=True)]
    if found.mode != STANDALONE and tuple(wanted) != before:
        raise PreconditionFailed(
            f"{workdir} was promoted as store {before[0]}, region {before[1]}, peer {before[2]}, not as "
            f"{wanted[0]}, {wanted[1]}, {wanted[2]}",
            hint=f"nokv migrate init --workdir {workdir} --store {before[0]} --region {before[1]} --peer {before[2]}",
        )
    return ModeRecord(PREPARING, wanted[0], wanted[1], wanted[2])


def _refuse_blockers(workdir: str, files: Files) -> None:
    blockers = plan(workdir, files=files).blockers
    if blockers:
        raise PreconditionFailed(
            f"{workdir} cannot be promoted: {blockers[0].name}: {blockers[0].detail}", hint=blockers[0].hint
        )


def seed_region(record: ModeRecord) -> Region:
    """One region over the whole key space with one voter (MIG-16)."""
    return Region(record.region_id, peers=(Peer(record.peer_id, record.store_id),))


def _promote(
    db: Any,
    workdir: str,
    record: ModeRecord,
    mode: str,
    files: Files,
    failpoints: Failpoints,
    say: Callable[[str], None],
) -> None:
    checkpoint = load_checkpoint(workdir, files) if mode == PREPARING else None
    checkpoint = checkpoint or Checkpoint("", record.store_id, record.region_id, record.peer_id)

    def write_mode_preparing() -> None:
        if mode == STANDALONE:
            check_transition(mode, PREPARING)
            write_mode(workdir, record, files)

    def write_seeded() -> None:
        check_transition(PREPARING, SEEDED)
        validate(db, workdir, record, files)
        write_mode(workdir, replace(record, mode=SEEDED), files)

    region = seed_region(record)
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("mode-preparing-written", write_mode_preparing),
        ("local-catalog-persisted", lambda: bootstrap.write_seed_catalog(db, region, record.store_id)),
        ("seed-snapshot-exported", lambda: export_seed(db, workdir, record.region_id, record.peer_id, files)),
        ("raft-seed-initialized", lambda: bootstrap.init_raft_seed(db, region)),
        ("seeded-finalized", write_seeded),
    )
    for milestone, step in steps:
        if checkpoint.reached(milestone) and not (
            milestone == "seed-snapshot-exported" and not _intact(workdir, files)
        ):
            say(f"{milestone} (done before)")
            continue
        failpoints.hit(f"before-{milestone}")
        step()
        checkpoint = replace(checkpoint, milestone=milestone)
        save_checkpoint(workdir, checkpoint, files)
        say(milestone)
        if milestone != "seeded-finalized":
            failpoints.hit(milestone)


def _intact(workdir: str, files: Files) -> bool:
    """Is the seed snapshot of an earlier, interrupted run still whole? If not it is exported again."""
    try:
        manifest = load_seed(workdir, files)
        if manifest is not None:
            verify_seed(workdir, manifest, files)
    except Corruption:
        return False
    return manifest is not None


def validate(db: Any, workdir: str, record: ModeRecord, files: Files) -> int:
    """MIG-21: catalog, seed snapshot and raft seed speak of the same region. Returns the number of tables.

    Corruption or PreconditionFailed says which of them disagrees.
    """
    expected = seed_region(record)
    catalog = bootstrap.read_seed_catalog(db)
    if catalog != [expected]:
        raise PreconditionFailed(
            f"the local catalog disagrees: it holds {catalog}, expected {expected}", hint="do not serve this directory"
        )
    manifest = load_seed(workdir, files)
    if manifest is None:
        raise Corruption("the seed snapshot has no manifest", path=f"{workdir}/{SEED_DIRECTORY}")
    if (manifest.region_id, manifest.peer_id) != (record.region_id, record.peer_id):
        raise PreconditionFailed(
            f"the seed snapshot disagrees: it is of region {manifest.region_id}, peer {manifest.peer_id}",
            hint="do not serve this directory",
        )
    verify_seed(workdir, manifest, files)
    bootstrap.check_raft_seed(db, expected)
    return len(manifest.files)


def _note_finished(workdir: str, record: ModeRecord, files: Files) -> None:
    """A crash between the final mode and its checkpoint left the checkpoint one milestone behind."""
    checkpoint = load_checkpoint(workdir, files) or Checkpoint()
    if not checkpoint.reached("seeded-finalized"):
        done = Checkpoint("seeded-finalized", record.store_id, record.region_id, record.peer_id, checkpoint.rollout)
        save_checkpoint(workdir, done, files)
