"""`nokv migrate plan`: may this directory be promoted, and if not, why not. Read-only: not one byte or mtime changes.

Blockers are named; each broken state has its own name, so that a program can act on it:
  locked                another process has the directory open for writing
  mode-preparing        a promotion was interrupted: run init again
  mode-seeded, mode-cluster    already promoted
  incompatible-mode     the mode file is damaged or from a newer version
  recovery-incoherent   the manifest, a table or the log cannot be recovered
  local-catalog         region records exist although the directory is standalone
  incompatible-state    transactional families or raft state exist although the directory is standalone
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from nokv.engine.mode import read_mode
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import Busy, Corruption, Locked, ModeError, NoKVError, NotFound, UsageError
from nokv.migrate.inspect import open_for_reading

__all__ = ["Blocker", "Plan", "plan"]

CLUSTER_FAMILIES = ("lock", "write", "default")
LOCAL_FAMILY = "local"


@dataclass(slots=True, frozen=True)
class Blocker:
    name: str
    detail: str
    hint: str = ""


@dataclass(slots=True)
class Plan:
    """MIG-13. `next` is the command to run now."""

    workdir: str
    mode: str
    eligible: bool = False
    blockers: list[Blocker] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    next: str = ""
    local_catalog_regions: list[int] = field(default_factory=list)
    families_left_behind: list[str] = field(default_factory=list)
    """Named families that hold data: the cluster replicates and serves the plain family only."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(workdir: str, *, files: Files | None = None) -> Plan:
    """Look, change nothing. Raises NotFound if there is no such directory, OSError if it cannot be read (MIG-14)."""
    files = files if files is not None else OsFiles()
    require_directory(workdir, files)
    try:
        mode = read_mode(workdir, files).mode
    except (Corruption, NoKVError) as error:
        answer = Plan(workdir, "unknown")
        answer.blockers.append(Blocker("incompatible-mode", str(error), error.hint))
        return _finish(answer)
    answer = Plan(workdir, mode)
    if mode == "preparing":
        detail = "a promotion of this directory was interrupted"
        answer.blockers.append(Blocker("mode-preparing", detail, f"nokv migrate status --workdir {workdir}"))
    elif mode in ("seeded", "cluster"):
        detail = (
            "this directory is already promoted" if mode == "seeded" else "this directory already serves in a cluster"
        )
        answer.blockers.append(Blocker(f"mode-{mode}", detail, f"nokv migrate status --workdir {workdir}"))
    if answer.blockers:
        return _finish(answer)
    if not _lock_is_free(workdir, files):
        detail = "another process has the directory open"
        answer.blockers.append(Blocker("locked", detail, "stop the program that writes it; its writes must end first"))
        return _finish(answer)
    _look_inside(answer, files)
    return _finish(answer)


def require_directory(workdir: str, files: Files) -> None:
    """NotFound unless `workdir` is a NoKV directory; OSError of the system if it cannot be read."""
    if not files.exists(workdir):
        raise NotFound(f"no directory {workdir}", hint="--workdir names the directory that nokv.open() created")
    try:
        names = files.listdir(workdir)
    except NotADirectoryError:
        raise UsageError(f"{workdir} is a file, not a directory", hint="check --workdir") from None
    if "CURRENT" not in names and "MODE.json" not in names:
        raise NotFound(f"{workdir} is not a NoKV directory: it has no CURRENT file", hint="check --workdir")


def _lock_is_free(workdir: str, files: Files) -> bool:
    path = f"{workdir}/LOCK"
    if not files.exists(path):
        return True
    try:
        files.lock(path, shared=True).release()
    except BlockingIOError:
        return False
    return True


def _look_inside(answer: Plan, files: Files) -> None:
    try:
        with open_for_reading(answer.workdir, answer.mode, files) as db:
            stats = db.stats()
            answer.local_catalog_regions = catalog_regions(db)
            foreign = [name for name in CLUSTER_FAMILIES if family_in_use(db, name)]
            known = (*CLUSTER_FAMILIES, LOCAL_FAMILY)
            own = [name for name, number in db.families().items() if number and name not in known]
            answer.families_left_behind = sorted(name for name in own if family_in_use(db, name))
    except (Locked, Busy) as error:
        answer.blockers.append(Blocker("locked", str(error), error.hint))
        return
    except ModeError as error:
        answer.blockers.append(Blocker("incompatible-mode", str(error), error.hint))
        return
    except NoKVError as error:
        hint = error.hint or "restore the directory from a copy; nothing was changed"
        answer.blockers.append(Blocker("recovery-incoherent", str(error), hint))
        return
    if answer.local_catalog_regions:
        detail = f"region records exist in a standalone directory: {answer.local_catalog_regions}"
        answer.blockers.append(Blocker("local-catalog", detail, "this was a store's directory: restore its MODE.json"))
    if foreign:
        detail = f"cluster families hold data in a standalone directory: {', '.join(foreign)}"
        answer.blockers.append(
            Blocker("incompatible-state", detail, "this was a store's directory: restore its MODE.json")
        )
    if answer.families_left_behind:
        names = ", ".join(answer.families_left_behind)
        answer.warnings.append(
            f"named families are not replicated and cannot be read through the cluster: {names}; their data stays in "
            "this directory (copy what the cluster shall serve into the plain family first)"
        )
    if not stats:
        answer.warnings.append("the directory gives no figures")


def family_in_use(db: Any, name: str) -> bool:
    try:
        family = db.family(name)
    except NotFound:
        return False
    return next(iter(family.scan(limit=1)), None) is not None


def catalog_regions(db: Any) -> list[int]:
    """Region ids in the family `local` (docs/formats/localmeta.md), without interpreting the records."""
    try:
        local = db.family(LOCAL_FAMILY)
    except NotFound:
        return []
    return [int.from_bytes(key[len(b"region/") :], "big") for key in local.scan(prefix=b"region/", values=False)]


def _finish(answer: Plan) -> Plan:
    answer.eligible = not answer.blockers
    if answer.eligible:
        answer.next = f"nokv migrate init --workdir {answer.workdir} --store 1 --region 1 --peer 101"
    elif answer.mode == "preparing":
        answer.next = f"nokv migrate init --workdir {answer.workdir}"
    elif answer.mode == "seeded":
        answer.next = f"nokv serve --workdir {answer.workdir} --store-id ID --coordinator-addr HOST:PORT"
    else:
        answer.next = answer.blockers[0].hint or f"nokv migrate status --workdir {os.fspath(answer.workdir)}"
    return answer
