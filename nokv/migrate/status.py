"""`nokv migrate status` and `report`: where a directory stands, what to run next, and what its cluster says.

The mode file is the truth about the mode; the checkpoint only adds how far a promotion or a rollout has come. Neither
needs the directory's lock, so both work while the store runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nokv.engine.mode import read_mode
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import NoKVError
from nokv.migrate.checkpoint import MILESTONES, Checkpoint, load_checkpoint
from nokv.migrate.plan import Plan, plan, require_directory

if TYPE_CHECKING:
    from nokv.client.operator.client import AdminClient

__all__ = ["ClusterView", "Report", "Status", "cluster_view", "report", "resume_hint", "status"]

_DONE_SO_FAR = {
    "": "nothing is prepared yet",
    "mode-preparing-written": "the directory is fenced off; next comes the local catalog",
    "local-catalog-persisted": "the catalog is written; next comes the seed snapshot",
    "seed-snapshot-exported": "the seed snapshot is exported; next comes the raft seed",
    "raft-seed-initialized": "the raft seed is written; only the final mode is missing",
}


@dataclass(slots=True, frozen=True)
class ClusterView:
    """MIG-34: what the store at `address` says. `error` instead of the rest if it does not answer."""

    address: str
    region_id: int
    error: str = ""
    leader_peer: int = 0
    leader_store: int = 0
    leader_address: str = ""
    local_hosted: bool = False
    local_peer: int = 0
    membership_size: int = 0
    membership: tuple[dict[str, Any], ...] = ()
    applied_index: int = 0
    applied_term: int = 0


@dataclass(slots=True, frozen=True)
class Status:
    workdir: str
    mode: str
    milestone: str
    store_id: int
    region_id: int
    peer_id: int
    resume_hint: str
    rollout: dict[str, Any] | None = None
    cluster: ClusterView | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def status(workdir: str, *, files: Files | None = None) -> Status:
    """NotFound if there is no such directory; Corruption if one of the two files is damaged."""
    files = files if files is not None else OsFiles()
    require_directory(workdir, files)
    mode = read_mode(workdir, files)
    checkpoint = _agree(mode.mode, load_checkpoint(workdir, files) or Checkpoint())
    rollout = None
    if checkpoint.rollout is not None:
        rollout = {**asdict(checkpoint.rollout), "pending": checkpoint.rollout.pending}
    return Status(
        workdir=workdir,
        mode=mode.mode,
        milestone=checkpoint.milestone,
        store_id=mode.store_id,
        region_id=mode.region_id,
        peer_id=mode.peer_id,
        resume_hint=resume_hint(workdir, mode.mode, checkpoint, (mode.store_id, mode.region_id, mode.peer_id)),
        rollout=rollout,
    )


def _agree(mode: str, checkpoint: Checkpoint) -> Checkpoint:
    """A crash may fall between the mode file and the checkpoint: what the mode file proves has been reached."""
    if mode == "preparing" and not checkpoint.milestone:
        return replace(checkpoint, milestone=MILESTONES[0])
    if mode in ("seeded", "cluster") and checkpoint.milestone:
        return replace(checkpoint, milestone=MILESTONES[-1])
    return checkpoint


def resume_hint(workdir: str, mode: str, checkpoint: Checkpoint, ids: tuple[int, int, int]) -> str:
    """What is done and the command that continues; different for every milestone and stage (MIG-18)."""
    store, region, peer = ids
    init = f"nokv migrate init --workdir {workdir} --store {store or 1} --region {region or 1} --peer {peer or 101}"
    if mode == "standalone":
        return f"check it: nokv migrate plan --workdir {workdir}"
    if mode == "preparing":
        return f"{_DONE_SO_FAR[checkpoint.milestone]}: run `{init}` again"
    if checkpoint.rollout is not None and checkpoint.rollout.pending:
        rollout = checkpoint.rollout
        done = f" ({rollout.completed} of {len(rollout.targets)} targets hosted)" if rollout.targets else ""
        return f"{rollout.stage} {rollout.current}{done} was not finished: run `{rollout.command}` again"
    if mode == "seeded":
        return f"start it: nokv serve --workdir {workdir} --store-id {store} --coordinator-addr HOST:PORT"
    if checkpoint.rollout is not None:
        return f"{checkpoint.rollout.last_finished or checkpoint.rollout.stage} is finished; nothing to resume"
    return "serving; grow it: nokv migrate expand --addr STORE_ADDR --region REGION --target STORE:PEER@ADDR"


def cluster_view(client: AdminClient, region_id: int) -> ClusterView:
    """Never raises for a store that does not answer: the report must work then too."""
    try:
        found = client.region_status(region_id)
    except NoKVError as error:
        return ClusterView(client.address, region_id, error=str(error))
    peers = found.region.peers if found.region is not None else ()
    return ClusterView(
        address=client.address,
        region_id=region_id,
        leader_peer=found.leader_peer_id,
        leader_store=found.leader_store_id,
        leader_address=found.leader_address,
        local_hosted=found.hosted,
        local_peer=found.local_peer_id,
        membership_size=len(peers),
        membership=tuple({"peer_id": p.peer_id, "store_id": p.store_id, "role": p.role.value} for p in peers),
        applied_index=found.applied_index,
        applied_term=found.applied_term,
    )


@dataclass(slots=True, frozen=True)
class Report:
    """MIG-35."""

    workdir: str
    mode: str
    stage: str  # standalone-ready, standalone-blocked, seed-preparing, seed-ready, cluster-active
    summary: str
    ready_for_init: bool
    ready_for_serve: bool
    resume_hint: str
    next_steps: list[str] = field(default_factory=list)
    plan: Plan | None = None
    status: Status | None = None
    cluster: ClusterView | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report(workdir: str, *, files: Files | None = None, cluster: ClusterView | None = None) -> Report:
    """Everything an operator asks first. Raises what `status` and `plan` raise."""
    files = files if files is not None else OsFiles()
    now = status(workdir, files=files)
    found: Plan | None = None
    if now.mode == "standalone":
        found = plan(workdir, files=files)
        stage = "standalone-ready" if found.eligible else "standalone-blocked"
        blockers = ", ".join(blocker.name for blocker in found.blockers)
        summary = "a standalone directory, ready for init" if found.eligible else f"cannot be promoted: {blockers}"
        steps = [found.next]
    elif now.mode == "preparing":
        stage, summary = "seed-preparing", f"promotion interrupted after {now.milestone}"
        steps = [now.resume_hint]
    elif now.mode == "seeded":
        stage, summary = "seed-ready", f"a valid seed of region {now.region_id} on store {now.store_id}"
        steps = [now.resume_hint]
    else:
        stage, summary = "cluster-active", f"store {now.store_id} of a cluster"
        steps = [now.resume_hint]
    if cluster is not None and cluster.error:
        steps.append(f"the store at {cluster.address} does not answer: {cluster.error}")
    return Report(
        workdir=workdir,
        mode=now.mode,
        stage=stage,
        summary=summary,
        ready_for_init=stage in ("standalone-ready", "seed-preparing"),
        ready_for_serve=now.mode in ("seeded", "cluster"),
        resume_hint=now.resume_hint,
        next_steps=steps,
        plan=found,
        status=now,
        cluster=cluster,
    )
