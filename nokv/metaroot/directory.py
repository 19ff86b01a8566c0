"""What the directory of a meta-root holds: the newest good checkpoint, and the log behind it.

    restore        into a machine, for the server that opens the directory
    read_stopped   the same without changing a byte, for `nokv root audit | verify --workdir`

Fails loudly where checkpoint and log do not meet (MR-05): a truth with a hole is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nokv.engine.mode import read_mode
from nokv.engine.wal.log import LogPosition, ReadOnlyWal
from nokv.env.ports import Files
from nokv.errors import Corruption, Locked, ModeError, NotFound, PreconditionFailed
from nokv.metaroot.checkpoints import CheckpointFiles, FoundCheckpoint
from nokv.metaroot.events import RootRecord
from nokv.metaroot.machine import RootMachine
from nokv.metaroot.state import RootState
from nokv.multiraft.raftlog import GroupLog, RaftLog
from nokv.raft.types import ConfState, EntryKind

__all__ = ["INITIAL_INDEX", "ROOT_GROUP_ID", "StoppedRoot", "read_stopped", "restore"]

ROOT_GROUP_ID = 1
INITIAL_INDEX = 1
INITIAL_TERM = 1
EVERYTHING = 1 << 62


@dataclass(slots=True)
class Restored:
    group: GroupLog
    found: FoundCheckpoint | None
    damage: list[Corruption]


def restore(
    workdir: str, checkpoints: CheckpointFiles, raftlog: RaftLog, machine: RootMachine, fresh: ConfState | None
) -> Restored:
    """The machine gets the newest good checkpoint; the group's committed entries behind it are its owner's to apply.
    An empty directory begins with the members `fresh`, or is NotFound. Raises Corruption if something is missing."""
    found, damage = checkpoints.load()
    group = raftlog.group(ROOT_GROUP_ID)
    if not raftlog.has_group(ROOT_GROUP_ID):
        if found is not None or damage:
            raise Corruption("there are checkpoints but no log", path=workdir)
        if fresh is None:
            raise NotFound(f"{workdir} holds no rooted log")
        group.initialise(INITIAL_INDEX, INITIAL_TERM, fresh)
    if found is not None:
        checkpoint = found.checkpoint
        group.recover_applied(checkpoint.index, checkpoint.term, from_snapshot=found.installed)
        machine.restore(checkpoint)
    elif group.first_index() > INITIAL_INDEX + 1:
        raise Corruption(
            f"the log starts at {group.first_index()} and no good checkpoint leads up to it",
            path=workdir,
            hint="replace this meta-root by a copy of a healthy one",
        )
    else:
        machine.applied_index, machine.applied_term = INITIAL_INDEX, INITIAL_TERM
    return Restored(group, found, damage)


@dataclass(slots=True)
class StoppedRoot:
    """`undecided`: entries behind the newest one that is known to be committed. A quorum may have them, or not."""

    node_id: int
    members: tuple[int, ...]
    state: RootState
    records: list[RootRecord]
    undecided: int
    damage: list[Corruption]


class _Frozen:
    """A WalPort over a log that nobody writes. What recovery would write is kept in memory only."""

    def __init__(self, wal: ReadOnlyWal) -> None:
        self._wal = wal
        self.active_segment = 0

    def append(self, record_type: int, payload: bytes, /) -> LogPosition:
        return LogPosition(0, 0)

    def append_many(self, records: Sequence[tuple[int, bytes]], /) -> list[LogPosition]:
        return [LogPosition(0, 0)] * len(records)

    def sync(self) -> None: ...

    def retain(self, name: str, oldest_segment_needed: int | None, /) -> None: ...

    def replay(self, types: set[int], /) -> Iterator[tuple[LogPosition, int, bytes]]:
        return self._wal.replay(types)


def read_stopped(workdir: str, files: Files, *, retain_events: int = 100_000) -> StoppedRoot:
    """Everything that a stopped meta-root (or coordinator with a work directory) knows to be true. Locked while it
    runs; Corruption names what is damaged."""
    if not files.exists(workdir) or not files.exists(f"{workdir}/wal"):
        raise NotFound(f"{workdir} holds no rooted log", hint="the directory that --workdir of nokv meta-root named")
    record = read_mode(workdir, files)
    if record.role != "meta-root":
        raise ModeError(f"{workdir} does not belong to a meta-root", mode=record.mode)
    try:
        lock = files.lock(f"{workdir}/LOCK")
    except BlockingIOError:
        raise Locked(f"{workdir}: its meta-root is running", hint="ask it: --addr HOST:PORT") from None
    try:
        raftlog = RaftLog.open(_Frozen(ReadOnlyWal(files, f"{workdir}/wal")), rewrite_lag_segments=EVERYTHING)
        machine = RootMachine(retain_max=retain_events)
        checkpoints = CheckpointFiles(f"{workdir}/root", files, create=False)
        restored = restore(workdir, checkpoints, raftlog, machine, None)
        group = restored.group
        hard_state, conf_state = group.initial_state()
        members = tuple(sorted(conf_state.voters))
        last = group.last_index()
        # the only voter has decided by itself whatever it has written
        committed = last if members == (record.store_id,) else max(hard_state.commit, machine.applied_index)
        if committed > last:
            raise PreconditionFailed(f"{workdir}: entry {committed} was committed, the log ends at {last}")
        first = max(machine.applied_index + 1, group.first_index())
        for entry in group.entries(first, committed + 1, EVERYTHING) if first <= committed else []:
            data = entry.data if entry.kind is EntryKind.NORMAL else b""
            machine.apply_entry(entry.term, entry.index, data)
        return StoppedRoot(
            record.store_id, members, machine.state, list(machine.records), last - committed, restored.damage
        )
    finally:
        lock.release()
