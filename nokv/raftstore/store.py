"""RegionStore: everything one store hosts. Opens its peers from local metadata, validates and routes requests, keeps
logs short.

Owns: the set of peers, the address book, the end-of-turn flush, housekeeping. Does not own: sockets, processes, the
event loop (node.py); what a replica does (peer.py). One thread; background work is handed to `background` and comes
back here.

Local region truth changes in four places only (RS-03): apply of a membership change, publish of a snapshot, removal
of a peer, and loading at `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nokv._ext.batch import WriteBatch
from nokv._ext.command import check_writes, unpack_reads
from nokv.env import Clock, Files
from nokv.env.ports import Randrange
from nokv.errors import (
    Busy,
    Corruption,
    EpochNotMatch,
    KeyNotInRegion,
    NoKVError,
    NotLeader,
    PreconditionFailed,
    RegionNotFound,
    StoreNotMatch,
    UsageError,
)
from nokv.metaroot.events import RegionBootstrapped, RegionPublished, RootEvent
from nokv.metaroot.wire import event_from_pb, event_to_pb
from nokv.multiraft.raftlog import RaftLog
from nokv.mvcc import FAMILY_DEFAULT, FAMILY_LOCK, FAMILY_WRITE, MvccReader
from nokv.pb import root_pb2
from nokv.raft import Message, MessageType, RaftConfig, RawNode
from nokv.raftstore.diagnostics import AdmissionKind, AdmissionOutcome, Diagnostics, PublishState, TopologyOutcome
from nokv.raftstore.localmeta import ApplyState, LocalMeta, StoreIdent
from nokv.raftstore.membership import ChangeKind, MembershipChange, plan_change
from nokv.raftstore.peer import KvRequest, Reply, StorePeer
from nokv.raftstore.publisher import PendingEvent, Publisher
from nokv.raftstore.router import Router
from nokv.raftstore.snapshot import RegionSnapshots, region_ranges
from nokv.region import Peer, Region, RegionEpoch, RegionState

if TYPE_CHECKING:
    from nokv.engine.db import DB
    from nokv.multiraft.host import MultiRaftHost

__all__ = ["Background", "RegionStore", "StoreOptions"]

Background = Callable[[Callable[[], Any], Callable[[Any, BaseException | None], None]], None]
"""`background(work, done)`: run `work()` on another thread, then `done(result, error)` on the store's thread."""

WRITE_GROUP_BYTES_MAX = 16 << 20  # an entry must fit the Raft codec's 32 MiB, and not hold up heartbeats for long
READ_AHEAD_TS = 60_000 << 18
"""A read may name a timestamp at most a minute ahead of what this store has seen: later commits have to stay above
it."""
UNINITIALISED_PEERS_MAX = 1024
UNINITIALISED_TICKS_MAX = 600


@dataclass(frozen=True, slots=True)
class StoreOptions:
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    quiet_after_ticks: int = 10
    """A region without requests for so long costs nothing until the next one. 0: it is ticked for ever."""
    outstanding_requests_max: int = 65_536  # per region; then Busy
    deadline_ms_default: int = 5_000
    log_entries_max: int = 20_000  # a longer log is cut, below what has been flushed
    log_entries_slack: int = 5_000  # kept for followers that are a little behind
    max_size_per_msg: int = 1 << 20
    max_inflight_msgs: int = 256
    max_uncommitted_bytes: int = 64 << 20
    promote_lag_entries: int = 1_000  # a learner further behind is not promoted


class RegionStore:
    def __init__(
        self,
        store_id: int,
        address: str,
        db: DB,
        raftlog: RaftLog,
        *,
        files: Files,
        clock: Clock,
        randrange: Randrange,
        schedule: Callable[[Callable[[], None]], object],
        background: Background,
        options: StoreOptions | None = None,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`schedule(callback)` runs it at the end of this turn. Call `attach(host)`, then `open()`."""
        self.store_id = store_id
        self.address = address
        self.db = db
        self.raftlog = raftlog
        self.clock = clock
        self.options = options or StoreOptions()
        self.background = background
        self.failpoint = failpoint
        self._schedule = schedule
        self._randrange = randrange
        self._host: MultiRaftHost | None = None
        self.meta = LocalMeta(db, create=True)
        for name in (FAMILY_LOCK, FAMILY_WRITE, FAMILY_DEFAULT):
            db.family(name, create=True)
        self.write_family: int = db.family(FAMILY_WRITE).id
        self.default_family: int = db.family(FAMILY_DEFAULT).id
        self.router = Router(store_id)
        self.diagnostics = Diagnostics(clock)
        self.publisher = Publisher(self.diagnostics)
        self.snapshots = RegionSnapshots(self, db.path, files)
        self.tso_hint = 0
        self.on_leadership: Callable[[StorePeer], None] = lambda peer: None
        self._addresses: dict[int, str] = {}
        self._tombstones: dict[int, Region] = {}
        self._clearing: list[Region] = []
        self._uninitialised: dict[int, int] = {}  # region id -> ticks left
        self._led: dict[int, StorePeer] = {}
        self._leaderless: dict[int, StorePeer] = {}
        self._waited_for: dict[StorePeer, None] = {}  # peers with something that has a deadline
        self._dirty: list[StorePeer] = []
        self._scheduled = False
        self._reader: MvccReader | None = None
        # Ids of proposals and reads differ between two lives of a process: an old entry is never taken for a new one.
        self._id = randrange(1 << 31) << 32

    # -- life ---------------------------------------------------------------------------------------------------------
    @property
    def host(self) -> MultiRaftHost:
        assert self._host is not None
        return self._host

    def attach(self, host: MultiRaftHost) -> None:
        self._host = host

    def open(self) -> None:
        """Check identity, load the catalog, start every peer. Nothing else is consulted (RS-11)."""
        self._check_identity()
        self.snapshots.open()
        self._addresses = self.meta.addresses()
        posture = self.diagnostics.restart
        posture.raft_group_count = len(self.raftlog.group_ids())
        for region in self.meta.all_regions():
            if region.state is RegionState.TOMBSTONE:
                self._tombstones[region.region_id] = region
                if self.raftlog.has_group(region.region_id):
                    self.raftlog.group(region.region_id).remove()
                continue
            posture.region_count += 1
            try:
                self._start_peer(region)
            except Corruption as error:
                # RS-19: this replica must not vote; every other region goes on.
                posture.missing_raft_pointers.append(region.region_id)
                self.diagnostics.transition(
                    f"restart/{region.region_id}",
                    kind="restart",
                    region_id=region.region_id,
                    outcome=TopologyOutcome.FAILED,
                    detail=str(error),
                )
        self._clearing = [region for region in self._tombstones.values() if not self.router.overlapping(region)]

    def _check_identity(self) -> None:
        known = self.meta.ident()
        if known is None:
            self.meta.save_ident(StoreIdent(self.store_id, self.address))
        elif known.store_id != self.store_id:
            raise PreconditionFailed(
                f"{self.db.path} belongs to store {known.store_id}, not to store {self.store_id}",
                hint=f"use --store-id {known.store_id}, or another directory",
            )
        elif known.address != self.address and self.address:
            self.meta.save_ident(StoreIdent(self.store_id, self.address))

    def _start_peer(self, region: Region) -> None:
        own = region.peer_on(self.store_id)
        if own is None:
            raise Corruption(f"region {region.region_id} in local metadata has no peer on store {self.store_id}")
        applied = self.meta.applied(region.region_id)
        if applied is None:
            raise Corruption(f"region {region.region_id} has no apply state in local metadata")
        if not self.raftlog.has_group(region.region_id) and not applied.from_snapshot:
            raise Corruption(f"region {region.region_id} has no raft log")
        log = self.raftlog.group(region.region_id)
        log.recover_applied(applied.index, applied.term, applied.conf_state, from_snapshot=applied.from_snapshot)
        self._add_peer(region.region_id, own.peer_id, region, applied)

    def _add_peer(self, region_id: int, peer_id: int, region: Region | None, applied: ApplyState) -> StorePeer:
        log = self.raftlog.group(region_id)
        options = self.options
        config = RaftConfig(
            id=peer_id,
            election_ticks=options.election_ticks,
            heartbeat_ticks=options.heartbeat_ticks,
            applied=applied.index,
            max_size_per_msg=options.max_size_per_msg,
            max_inflight_msgs=options.max_inflight_msgs,
            max_uncommitted_entries_size=options.max_uncommitted_bytes,
            disable_proposal_forwarding=True,
            step_down_on_removal=True,
            quiet_after_ticks=options.quiet_after_ticks,
        )
        peer = StorePeer(self, region_id, peer_id, RawNode(config, log, self._randrange), log, region, applied)
        log.snapshot_source = lambda: self.snapshots.source(peer)
        self.router.add(peer)
        self._follow_leadership(peer)
        self.host.add_group(region_id, peer.raw, peer)
        if region is not None and [p.peer_id for p in region.peers] == [peer_id]:
            self.host.campaign(region_id)  # nobody else could: do not wait for the election timeout
        return peer

    def close(self) -> None:
        """Answer everything that waits. The host has stopped already."""
        for peer in self.router:
            peer.fail_outstanding("the store stops")

    # -- requests -----------------------------------------------------------------------------------------------------
    def submit(
        self,
        *,
        request_id: int,
        region_id: int,
        store_id: int,
        epoch: RegionEpoch,
        write: bool,
        commands: bytes,
        reply: Reply,
        deadline_ms: int = 0,
        read_ts: int = 0,
    ) -> None:
        """One group of commands. Never raises a NoKVError: every outcome, a refusal too, comes through `reply`."""
        kind = AdmissionKind.WRITE if write else AdmissionKind.READ
        now = self.clock.monotonic_ns()
        deadline_ns = now + (deadline_ms or self.options.deadline_ms_default) * 1_000_000
        request = KvRequest(request_id, write, commands, reply, deadline_ns, read_ts)
        try:
            peer = self.router.check(region_id, store_id, epoch)
            region = peer.region
            if write:
                if len(commands) > WRITE_GROUP_BYTES_MAX:
                    raise UsageError(
                        f"a group of writes has at most {WRITE_GROUP_BYTES_MAX:,} bytes, not {len(commands):,}",
                        hint="smaller values, or fewer at once",
                    )
                request.count = check_writes(commands, region.start_key, region.end_key)
            else:
                request.reads, request.all_gets = unpack_reads(commands, region.start_key, region.end_key)
            self._check_read_ts(read_ts, peer)
            peer.submit(request)
        except NoKVError as error:
            self.diagnostics.admit(kind, admission_outcome(error), region_id, str(error))
            reply(request, error, b"", 0)
            return
        self.diagnostics.admit(kind, AdmissionOutcome.ACCEPTED, region_id)
        self.mark_dirty(peer)

    def _check_read_ts(self, read_ts: int, peer: StorePeer) -> None:
        if read_ts > peer.applied.max_ts:
            newest = max(peer.applied.max_ts, self.tso_hint, self.clock.time_ms() << 18)
            if read_ts > newest + READ_AHEAD_TS:
                raise UsageError(f"timestamp {read_ts} is more than a minute in the future")

    def mark_dirty(self, peer: StorePeer) -> None:
        self._dirty.append(peer)
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for peer in dict.fromkeys(dirty):
            if not peer.removed:
                self._waited_for[peer] = None
                peer.flush()

    def reader(self) -> MvccReader:
        """Reads on the store's thread: nothing is applied between two of its calls."""
        if self._reader is None:
            self._reader = MvccReader(self.db)  # type: ignore[arg-type]
        return self._reader

    def next_id(self) -> int:
        self._id += 1
        return self._id & ((1 << 64) - 1)

    # -- addresses ----------------------------------------------------------------------------------------------------
    def address_of(self, store_id: int) -> str:
        return self.address if store_id == self.store_id else self._addresses.get(store_id, "")

    def learn_address(self, store_id: int, address: str) -> bool:
        """In memory. True if it is news."""
        if not address or store_id == self.store_id or self._addresses.get(store_id) == address:
            return False
        self._addresses[store_id] = address
        return True

    def learn_addresses(self, addresses: dict[int, str]) -> None:
        """Durably."""
        news = {store_id: address for store_id, address in addresses.items() if self.learn_address(store_id, address)}
        if news:
            self.meta.save_addresses(news)

    def unknown_stores(self) -> set[int]:
        """Stores of hosted regions whose address is not known."""
        stores = {p.store_id for peer in self.router if peer.hosted for p in peer.region.peers}
        return {store_id for store_id in stores if not self.address_of(store_id)}

    def node_of(self, region_id: int, peer_id: int) -> int | None:
        peer = self.router.find(region_id)
        if peer is None or not peer.hosted:
            return None
        found = peer.region.peer(peer_id)
        return found.store_id if found is not None else None

    # -- peers that others create -------------------------------------------------------------------------------------
    def on_unknown_group(self, from_node: int, region_id: int, message: Message) -> None:
        """A leader wants a replica here: start an empty one, which waits for its snapshot. It hosts nothing yet."""
        if message.type not in (MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP):
            return
        tombstone = self._tombstones.get(region_id)
        if tombstone is not None and tombstone.peer(message.to) is not None:
            return  # RS-13: a removed peer does not come back
        if len(self._uninitialised) >= UNINITIALISED_PEERS_MAX:
            return
        try:
            self._add_peer(region_id, message.to, None, ApplyState())
        except Corruption:
            return
        self._uninitialised[region_id] = UNINITIALISED_TICKS_MAX

    def prepare_target(self, region: Region, peer: Peer, addresses: dict[int, str]) -> None:
        """A leader is about to add `peer` here. PreconditionFailed if this store could not take it (MIG-26)."""
        if peer.store_id != self.store_id:
            raise PreconditionFailed(f"this is store {self.store_id}, not store {peer.store_id}")
        tombstone = self._tombstones.get(region.region_id)
        if tombstone is not None and tombstone.peer(peer.peer_id) is not None:
            raise PreconditionFailed(
                f"peer {peer.peer_id} of region {region.region_id} was removed from this store; ids are not used again",
                hint="choose a new peer id",
            )
        mine = self.router.find(region.region_id)
        if mine is not None and mine.hosted and mine.peer_id != peer.peer_id:
            raise PreconditionFailed(f"this store hosts peer {mine.peer_id} of region {region.region_id}")
        for other in self.router.overlapping(region):
            raise PreconditionFailed(f"this store is not empty: it hosts region {other.region_id}, which overlaps")
        self.learn_addresses(addresses)

    # -- what peers tell ----------------------------------------------------------------------------------------------
    def leadership_changed(self, peer: StorePeer, was_leader: bool) -> None:
        if peer.is_leader and not was_leader:
            for conf_version, data in self.meta.events(peer.region_id):
                # Applied, and never seen published: the leader of that time may have died in between.
                self.publish_applied(peer, self.decode_event(data), conf_version, "")
        self._follow_leadership(peer)
        self.on_leadership(peer)

    def _follow_leadership(self, peer: StorePeer) -> None:
        """Whatever decides `hosted`, `is_leader` or `leader` has changed: nobody walks all peers to find out."""
        for found, known in (
            (peer.hosted and peer.is_leader, self._led),
            (peer.hosted and peer.leader is None, self._leaderless),
        ):
            if found:
                known[peer.region_id] = peer
            else:
                known.pop(peer.region_id, None)

    def region_changed(self, peer: StorePeer) -> None:
        self._follow_leadership(peer)
        self._uninitialised.pop(peer.region_id, None)
        self._tombstones.pop(peer.region_id, None)
        self._clearing = [region for region in self._clearing if not region.overlaps(peer.region)]

    def publish_applied(self, peer: StorePeer, event: RootEvent, conf_version: int, transition_id: str) -> None:
        region_id = peer.region_id
        transition_id = transition_id or getattr(event, "transition_id", "")

        def published() -> None:
            batch = WriteBatch()
            self.meta.delete_event(batch, region_id, conf_version)
            self.db.write(batch, log=False)  # publishing twice is harmless: no need to pay for a sync

        self.publisher.add(PendingEvent(event, transition_id, terminal=True, published=published))

    def publish_bootstrap(self) -> None:
        """Announce regions that were born here and never changed, and the present descriptor of the others we lead."""
        for peer in self.router:
            if not peer.hosted:
                continue
            if peer.region.epoch == RegionEpoch() and len(peer.region.peers) == 1:
                self.publisher.add(PendingEvent(RegionBootstrapped(peer.region)))
            elif peer.is_leader:
                self.publisher.add(PendingEvent(RegionPublished(peer.region)))

    @staticmethod
    def encode_event(event: RootEvent) -> bytes:
        return event_to_pb(event).SerializeToString(deterministic=True)

    @staticmethod
    def decode_event(data: bytes) -> RootEvent:
        return event_from_pb(root_pb2.RootEvent.FromString(data))

    def destroy_peer(self, peer: StorePeer, region: Region) -> None:
        """The peer was removed from its region: durable tombstone first, then the log, then the data, piece by
        piece."""
        own = Peer(peer.peer_id, self.store_id)
        tombstone = replace(region, state=RegionState.TOMBSTONE, peers=(own,))
        peer.removed = True

        def fill(batch: Any) -> None:
            self.meta.put_region(batch, tombstone)
            self.meta.delete_applied(batch, peer.region_id)

        self.meta.write(fill)
        peer.fail_outstanding("the peer was removed")
        self.host.remove_group(peer.region_id)
        peer.log.remove()
        self.router.remove(peer.region_id)
        self._follow_leadership(peer)
        self._tombstones[peer.region_id] = tombstone
        self._clearing.append(tombstone)

    def peer_was_removed(self, region: Region) -> None:
        """Another store says what the region looks like now. Destroy our peer if that is newer and without us."""
        peer = self.router.find(region.region_id)
        if peer is None or not peer.hosted or region.state is RegionState.TOMBSTONE:
            return
        if region.epoch.conf_version > peer.region.epoch.conf_version and region.peer(peer.peer_id) is None:
            self.destroy_peer(peer, region)

    # -- membership (leader side) -------------------------------------------------------------------------------------
    def plan(self, region_id: int, kind: ChangeKind, peer: Peer, address: str = "") -> MembershipChange:
        """Validate against the local, applied descriptor of a leading peer. Typed errors."""
        try:
            mine = self._leading(region_id)
            change = plan_change(mine.region, kind, peer, leader_peer_id=mine.peer_id, address=address)
            if kind is ChangeKind.PROMOTE:
                self._check_caught_up(mine, peer.peer_id)
            if mine.pending_change is not None or not mine.serves_own_term:
                raise Busy(f"region {region_id}: another membership change is in flight, or the leader is new")
        except NoKVError as error:
            self.diagnostics.admit(AdmissionKind.TOPOLOGY, admission_outcome(error), region_id, str(error))
            raise
        self.diagnostics.admit(AdmissionKind.TOPOLOGY, AdmissionOutcome.ACCEPTED, region_id)
        self.diagnostics.transition(change.transition_id, kind=kind.value, region_id=region_id)
        return change

    def _leading(self, region_id: int) -> StorePeer:
        mine = self.router.hosted(region_id)
        if not mine.is_leader:
            raise self.router.not_leader(mine)
        return mine

    def _check_caught_up(self, mine: StorePeer, peer_id: int) -> None:
        progress = mine.raw.status().progress.get(peer_id)
        if progress is None or progress.match == 0:
            raise Busy(f"learner {peer_id} has not installed its snapshot yet")
        lag = mine.log.last_index() - progress.match
        if lag > self.options.promote_lag_entries:
            raise Busy(f"learner {peer_id} is {lag} entries behind")

    def change(
        self,
        change: MembershipChange,
        region_id: int,
        timeout_ms: int,
        done: Callable[[NoKVError | None, Region | None], None],
    ) -> None:
        """Propose a planned change; `done(error, region)` later. Raises if it cannot be proposed."""
        try:
            peer = self._leading(region_id)
            deadline_ns = self.clock.monotonic_ns() + timeout_ms * 1_000_000
            peer.propose_change(change, deadline_ns, done)
            self._waited_for[peer] = None
        except NoKVError as error:
            self.diagnostics.transition(change.transition_id, outcome=TopologyOutcome.REJECTED, detail=str(error))
            raise

    def planned_publish_failed(self, change: MembershipChange, error: NoKVError) -> None:
        self.diagnostics.transition(
            change.transition_id, outcome=TopologyOutcome.REJECTED, publish=PublishState.BLOCKED, detail=str(error)
        )

    def transfer_leader(self, region_id: int, peer_id: int) -> None:
        mine = self._leading(region_id)
        target = mine.region.peer(peer_id)
        if target is None:
            raise PreconditionFailed(f"peer {peer_id} is not a member of region {region_id}")
        if peer_id not in mine.applied.conf_state.voters:
            raise PreconditionFailed(f"peer {peer_id} is a learner: promote it first")
        if peer_id != mine.peer_id:
            self.host.transfer_leader(region_id, peer_id)

    # -- housekeeping -------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Called about as often as Raft ticks. Costs nothing for a region that nobody waits for."""
        now = self.clock.monotonic_ns()
        for peer in list(self._waited_for):
            if peer.outstanding or peer.pending_change is not None:
                peer.expire(now)
            else:
                del self._waited_for[peer]
        for region_id, left in list(self._uninitialised.items()):
            self._uninitialised[region_id] = left - 1
            if left <= 1:
                self._drop_uninitialised(region_id)
        self.snapshots.tick()
        if self._clearing:
            self._clear_some()

    def _drop_uninitialised(self, region_id: int) -> None:
        """No snapshot came. Its hard state stays in the log: should the leader try again, it keeps its word."""
        del self._uninitialised[region_id]
        peer = self.router.find(region_id)
        if peer is not None and not peer.hosted:
            peer.removed = True
            self.host.remove_group(region_id)
            self.router.remove(region_id)

    CLEAR_KEYS_PER_TICK = 5_000

    def _clear_some(self) -> None:
        """Delete a piece of a removed region's data."""
        region = self._clearing[0]
        batch = WriteBatch()
        for name, start, end in region_ranges(region):
            family = None if name == "plain" else self.db.family(name)
            source: Any = self.db if family is None else family
            keys: Iterator[bytes] = source.scan(start, end, values=False, limit=self.CLEAR_KEYS_PER_TICK - len(batch))
            for key in keys:
                batch.delete(key, family)
            if len(batch) >= self.CLEAR_KEYS_PER_TICK:
                break
        if len(batch):
            self.db.write(batch, log=False)
        else:
            self._clearing.pop(0)

    def compact_logs(self) -> None:
        """Cut long logs below what a crash would find. Call after a flush, and now and then."""
        for peer in self.router:
            if peer.hosted:
                self._compact_log(peer)

    def _compact_log(self, peer: StorePeer) -> None:
        first, last = peer.log.first_index(), peer.log.last_index()
        if last - first < self.options.log_entries_max:
            return
        flushed = self.meta.flushed_applied(peer.region_id)
        if flushed is None:
            return
        target = min(flushed.index, peer.applied.index - self.options.log_entries_slack)
        if target > first:
            peer.log.compact(target, flushed.conf_state)

    def logs_need_flush(self) -> bool:
        """Is a log long because its data sits in the memtable?"""
        limit = 2 * self.options.log_entries_max
        return any(peer.hosted and peer.log.last_index() - peer.log.first_index() > limit for peer in self.router)

    # -- views --------------------------------------------------------------------------------------------------------
    def leaders(self) -> list[StorePeer]:
        return list(self._led.values())

    def leaderless(self) -> list[StorePeer]:
        """Hosted peers that know no leader."""
        return list(self._leaderless.values())

    def hosted(self) -> list[StorePeer]:
        return [peer for peer in self.router if peer.hosted]


_OUTCOMES: tuple[tuple[type[NoKVError], AdmissionOutcome], ...] = (
    (StoreNotMatch, AdmissionOutcome.STORE_NOT_MATCH),
    (RegionNotFound, AdmissionOutcome.NOT_HOSTED),
    (EpochNotMatch, AdmissionOutcome.EPOCH_MISMATCH),
    (KeyNotInRegion, AdmissionOutcome.KEY_NOT_IN_REGION),
    (NotLeader, AdmissionOutcome.NOT_LEADER),
    (Busy, AdmissionOutcome.QUEUE_SATURATED),
)


def admission_outcome(error: NoKVError) -> AdmissionOutcome:
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), AdmissionOutcome.INVALID)
