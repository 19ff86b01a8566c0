"""What `nokv migrate init` asks of the execution plane: the only way besides apply to create region truth (MIG-03).

Owns: the local catalog and the raft seed of one region with one voter. Synchronous, no event loop, no coordinator
(MIG-06). Every function is durable on return and may be called again with the same arguments; with others it refuses.
The raft log of a seed starts as if a snapshot at index 10, term 5 had been installed (TiKV's convention): a peer that
joins with an empty log is behind it and gets a snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from nokv.errors import PreconditionFailed
from nokv.multiraft.raftlog import RaftLog, WalPort
from nokv.mvcc import MVCC_FAMILIES
from nokv.raft import ConfState
from nokv.raftstore.localmeta import ApplyState, LocalMeta, StoreIdent
from nokv.region import PeerRole, Region

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = [
    "RAFT_INIT_INDEX",
    "RAFT_INIT_TERM",
    "check_raft_seed",
    "init_raft_seed",
    "read_seed_catalog",
    "write_seed_catalog",
]

RAFT_INIT_INDEX = 10
RAFT_INIT_TERM = 5


def _conf_state(region: Region) -> ConfState:
    if len(region.peers) != 1 or region.peers[0].role is not PeerRole.VOTER:
        raise PreconditionFailed("a seed region has exactly one voter")
    return ConfState(voters=(region.peers[0].peer_id,))


def write_seed_catalog(db: DB, region: Region, store_id: int) -> None:
    """Store identity, region descriptor and apply state, in one synced batch. PreconditionFailed if others are
    there."""
    for name in MVCC_FAMILIES:
        db.family(name, create=True)
    meta = LocalMeta(db, create=True)
    ident = meta.ident()
    if ident is not None and ident.store_id != store_id:
        raise PreconditionFailed(f"{db.path} belongs to store {ident.store_id}, not to store {store_id}")
    present = meta.all_regions()
    if present and present != [region]:
        raise PreconditionFailed(f"{db.path} holds regions already: {[r.region_id for r in present]}")
    state = ApplyState(RAFT_INIT_INDEX, RAFT_INIT_TERM, 1, True, _conf_state(region))  # 1: before every commit

    def fill(batch: Any) -> None:
        meta.put_region(batch, region)
        meta.put_applied(batch, region.region_id, state)

    meta.save_ident(StoreIdent(store_id, ident.address if ident is not None else ""))
    meta.write(fill)


def read_seed_catalog(db: DB) -> list[Region]:
    """What the local catalog holds; empty if there is none."""
    meta = LocalMeta.find(db)
    return meta.all_regions() if meta is not None else []


def init_raft_seed(db: DB, region: Region) -> None:
    """The durable raft state of the single voter. Nothing happens if it is there; PreconditionFailed if another is."""
    conf_state = _conf_state(region)
    log = RaftLog.open(cast(WalPort, db.wal))
    others = [group_id for group_id in log.group_ids() if group_id != region.region_id]
    if others:
        raise PreconditionFailed(f"{db.path} holds raft groups already: {others}")
    if log.has_group(region.region_id):
        check_raft_seed(db, region)
        return
    log.group(region.region_id).initialise(RAFT_INIT_INDEX, RAFT_INIT_TERM, conf_state)


def check_raft_seed(db: DB, region: Region) -> None:
    """Do the raft log and the apply state agree on the seed? PreconditionFailed says what does not."""
    log = RaftLog.open(cast(WalPort, db.wal))
    meta = LocalMeta.find(db)
    applied = meta.applied(region.region_id) if meta is not None else None
    if not log.has_group(region.region_id):
        raise PreconditionFailed(f"region {region.region_id} has no raft log")
    group = log.group(region.region_id)
    if applied is None:
        raise PreconditionFailed(f"region {region.region_id} has no apply state in the local catalog")
    found = (group.first_index() - 1, group.last_index(), group.term(group.last_index()), group.initial_state()[1])
    expected = (RAFT_INIT_INDEX, RAFT_INIT_INDEX, RAFT_INIT_TERM, _conf_state(region))
    if found != expected:
        raise PreconditionFailed(f"the raft log of region {region.region_id} is no seed: {found}, expected {expected}")
    if (applied.index, applied.term, applied.conf_state) != (RAFT_INIT_INDEX, RAFT_INIT_TERM, expected[3]):
        raise PreconditionFailed(f"the apply state of region {region.region_id} is no seed: {applied}")
