"""One replica of one region on this store: a RawNode and the thin shell that turns requests into entries and back.

Owns: the region's local truth (descriptor and apply state, advanced only here, by apply and by snapshot install), the
requests that wait for Raft, and timestamps. Driven by the MultiRaftHost (GroupCallbacks) and by the RegionStore, all on
one thread; the file knows neither asyncio nor gRPC.

    requests of one turn   -> one entry (writes), one ReadIndex (reads)
    committed entries      -> one engine batch with the apply state inside, then the answers
    leadership lost        -> proposed writes are Indeterminate, everything else NotLeader

Timestamps (docs/raftstore.md says why this needs no coordinator): commit_ts = max(largest timestamp of the region,
newest TSO value known) + 1, given only once the leader has applied an entry of its own term. A read at an explicit
timestamp above the region's replicated floor first replicates that floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nokv._ext.batch import WriteBatch
from nokv._ext.command import batch_proposal_id, pack_batch, pack_done, pack_results
from nokv._ext.mvcc import apply_batch
from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    KeyLocked,
    NoKVError,
    PreconditionFailed,
    RegionNotFound,
)
from nokv.metaroot.events import RootEvent
from nokv.multiraft.ports import GroupCallbacks, SnapshotPayload
from nokv.mvcc import TS_MAX, MvccReader
from nokv.raft import (
    ConfChange,
    Entry,
    EntryKind,
    Message,
    NodeRole,
    ProposalDropped,
    RaftSnapshot,
    RawNode,
    ReadState,
    SoftState,
    decode_conf_change,
)
from nokv.raftstore.diagnostics import PublishState, TopologyOutcome
from nokv.raftstore.localmeta import ApplyState
from nokv.raftstore.membership import MembershipChange, decode_change, encode_change
from nokv.region import Peer, PeerRole, Region, RegionState

if TYPE_CHECKING:
    from nokv.multiraft.raftlog import GroupLog
    from nokv.raftstore.store import RegionStore

__all__ = ["KvRequest", "ReadCommand", "StorePeer"]

ReadCommand = bytes | tuple[bytes, bytes, int, int]
Reply = Callable[["KvRequest", NoKVError | None, bytes, int], None]

ENTRY_BYTES_MAX = 4 << 20
"""Groups of one turn are cut into entries of about this size."""
SCAN_BYTES_MAX = 2 << 20
"""One answer to a scan; the client asks again for the rest."""


@dataclass(slots=True)
class KvRequest:
    """One group of commands that travels together. `reply(request, error, results, commit_ts)` is called exactly
    once."""

    request_id: int
    write: bool
    commands: bytes
    reply: Reply
    deadline_ns: int
    read_ts: int = 0
    count: int = 0
    reads: Sequence[ReadCommand] = ()
    all_gets: bool = True
    commit_ts: int = 0


@dataclass(slots=True)
class Proposed:
    """What waits for one entry to be applied. `writes` match the groups of the entry one to one."""

    writes: list[KvRequest] = field(default_factory=list)
    reads: list[KvRequest] = field(default_factory=list)


@dataclass(slots=True)
class PendingChange:
    """A membership change that this leader proposed. `done(error, region)` is called exactly once."""

    change: MembershipChange
    transition_id: str
    done: Callable[[NoKVError | None, Region | None], None]
    deadline_ns: int


class StorePeer(GroupCallbacks):
    """`region` is None until the first snapshot of a peer that another store created."""

    def __init__(
        self,
        store: RegionStore,
        region_id: int,
        peer_id: int,
        raw: RawNode,
        log: GroupLog,
        region: Region | None,
        applied: ApplyState,
    ) -> None:
        self.store = store
        self.region_id = region_id
        self.peer_id = peer_id
        self.raw = raw
        self.log = log
        self.applied = applied
        self.removed = False
        self.rejected_entries = 0
        self._region = region
        self._max_ts = applied.max_ts
        self._soft = SoftState(0, NodeRole.FOLLOWER)
        self._writes: list[KvRequest] = []
        self._reads: list[KvRequest] = []
        self._proposed: dict[int, Proposed] = {}
        self._reading: dict[bytes, list[KvRequest]] = {}
        self._confirmed: list[tuple[int, list[KvRequest]]] = []  # (read index, reads) that wait for apply
        self._change: PendingChange | None = None
        self.outstanding = 0

    # -- what it is ---------------------------------------------------------------------------------------------------
    @property
    def hosted(self) -> bool:
        return self._region is not None and not self.removed

    @property
    def region(self) -> Region:
        if self._region is None:
            raise RegionNotFound(f"region {self.region_id} waits for its first snapshot", region_id=self.region_id)
        return self._region

    @property
    def is_leader(self) -> bool:
        return self._soft.role is NodeRole.LEADER and not self.removed

    @property
    def leader(self) -> Peer | None:
        return self._region.peer(self._soft.leader) if self._region is not None and self._soft.leader else None

    @property
    def term(self) -> int:
        return self.raw.core.term

    @property
    def serves_own_term(self) -> bool:
        """Has this leader applied an entry of its own term? Before that it does not know all that was committed."""
        return self.is_leader and self.applied.term == self.term

    @property
    def pending_change(self) -> PendingChange | None:
        return self._change

    def address_of(self, peer: Peer | None) -> str:
        return "" if peer is None else self.store.address_of(peer.store_id)

    # -- requests -----------------------------------------------------------------------------------------------------
    def submit(self, request: KvRequest) -> None:
        """Take a validated request; Busy if too many wait. It travels at the end of this turn (`flush`)."""
        if self.outstanding >= self.store.options.outstanding_requests_max:
            raise Busy(f"region {self.region_id}: {self.outstanding} requests are waiting")
        self.outstanding += 1
        (self._writes if request.write else self._reads).append(request)

    def flush(self) -> None:
        """End of a turn: all writes become one entry, all reads one ReadIndex."""
        if not self.is_leader:
            self._fail_queued()
            return
        if not self.serves_own_term:
            return  # kept until the first entry of this term is applied
        floor, floor_reads = self._take_floor_reads()
        if self._writes or floor_reads:
            self._propose_writes(floor, floor_reads)
        if self._reads:
            reads, self._reads = self._reads, []
            context = self.store.next_id().to_bytes(8, "big")
            self._reading[context] = reads
            self.store.host.read_index(self.region_id, context)

    def _take_floor_reads(self) -> tuple[int, list[KvRequest]]:
        """Reads at a timestamp that a later leader might not respect yet: they ride on an entry that replicates it."""
        ahead = [request for request in self._reads if request.read_ts > self.applied.max_ts]
        if not ahead:
            return 0, []
        self._reads = [request for request in self._reads if request.read_ts <= self.applied.max_ts]
        floor = max(request.read_ts for request in ahead)
        self._max_ts = max(self._max_ts, floor)
        return floor, ahead

    def _propose_writes(self, floor: int, floor_reads: list[KvRequest]) -> None:
        writes, self._writes = self._writes, []
        after = max((request.read_ts for request in writes), default=0)  # what the writers have seen already
        commit_ts = self._max_ts = max(self._max_ts, self.store.tso_hint, after)
        start = 0
        while start < len(writes) or floor_reads:
            size, end = 0, start
            groups: list[tuple[int, bytes]] = []
            while end < len(writes) and (end == start or size + len(writes[end].commands) <= ENTRY_BYTES_MAX):
                commit_ts += 1
                writes[end].commit_ts = commit_ts
                groups.append((commit_ts, writes[end].commands))
                size += len(writes[end].commands)
                end += 1
            self._max_ts = commit_ts
            proposal_id = self.store.next_id()
            waiting = Proposed(writes[start:end], floor_reads)
            start, floor_reads = end, []
            self._proposed[proposal_id] = waiting
            self.store.host.propose(self.region_id, pack_batch(proposal_id, floor, groups))

    def on_dropped(self, proposals: list[bytes]) -> None:
        """Raft took none of these: nothing happened, the client may try again."""
        for payload in proposals:
            waiting = self._proposed.pop(batch_proposal_id(payload), None)
            if waiting is None:
                continue
            refusal: NoKVError = self.store.router.not_leader(self)
            if self.is_leader:
                refusal = Busy(f"region {self.region_id} takes no proposals now: too many, or its leadership moves")
            for request in (*waiting.writes, *waiting.reads):
                if request.count >= 0:
                    self._answer(request, refusal)

    def _answer(self, request: KvRequest, error: NoKVError | None, results: bytes = b"", commit_ts: int = 0) -> None:
        self.outstanding -= 1
        request.reply(request, error, results, commit_ts)

    def _fail_queued(self) -> None:
        queued = self._writes + self._reads
        self._writes, self._reads = [], []
        for request in queued:
            self._answer(request, self.store.router.not_leader(self))

    def fail_outstanding(self, why: str) -> None:
        """Leadership is lost, or the peer goes away: proposed writes may still commit, the rest did not happen."""
        self._fail_queued()
        reads = [request for waiting in self._reading.values() for request in waiting]
        reads += [request for _, waiting in self._confirmed for request in waiting]
        reads += [request for waiting in self._proposed.values() for request in waiting.reads]
        writes = [request for waiting in self._proposed.values() for request in waiting.writes if request.count >= 0]
        self._reading, self._confirmed, self._proposed = {}, [], {}
        for request in reads:
            self._answer(request, self.store.router.not_leader(self))
        for request in writes:
            self._answer(request, Indeterminate(f"region {self.region_id}: {why} before the write was applied"))
        if self._change is not None:
            self._finish_change(Indeterminate(f"region {self.region_id}: {why} before the change was applied"), None)

    def expire(self, now_ns: int) -> None:
        """Answer what has passed its deadline."""

        def late(request: KvRequest) -> bool:
            return request.deadline_ns <= now_ns

        for queue_name in ("_writes", "_reads"):
            queue: list[KvRequest] = getattr(self, queue_name)
            expired = [request for request in queue if late(request)]
            if expired:
                setattr(self, queue_name, [request for request in queue if not late(request)])
                for request in expired:
                    self._answer(request, DeadlineExceeded("the deadline passed before anything was proposed"))
        for context, waiting in list(self._reading.items()):
            self._reading[context] = self._expire_reads(waiting, late)
            if not self._reading[context]:
                del self._reading[context]
        self._confirmed = [
            (index, left) for index, waiting in self._confirmed if (left := self._expire_reads(waiting, late))
        ]
        for proposed in self._proposed.values():
            # The list keeps its length, it matches the groups of the entry: count -1 marks what was answered.
            proposed.reads = self._expire_reads(proposed.reads, late)
            for at, request in enumerate(proposed.writes):
                if request.count >= 0 and late(request):
                    proposed.writes[at] = replace(request, count=-1)
                    self._answer(request, Indeterminate("the deadline passed after the write was proposed"))
        if self._change is not None and self._change.deadline_ns <= now_ns:
            self._finish_change(Indeterminate("the deadline passed after the change was proposed"), None)

    def _expire_reads(self, waiting: list[KvRequest], late: Callable[[KvRequest], bool]) -> list[KvRequest]:
        for request in waiting:
            if late(request):
                self._answer(request, DeadlineExceeded("the deadline passed before the read was confirmed"))
        return [request for request in waiting if not late(request)]

    # -- GroupCallbacks -----------------------------------------------------------------------------------------------
    def apply(self, entries: list[Entry]) -> None:
        """Committed entries -> one engine batch that also carries the apply state; then the answers."""
        if self.removed:
            return
        batch = WriteBatch()
        state = replace(self.applied, from_snapshot=False)
        finished: list[tuple[Proposed, list[int]]] = []
        after: list[Callable[[], None]] = []
        for entry in entries:
            if entry.index <= state.index:
                continue
            if entry.kind is EntryKind.NORMAL:
                if entry.data:
                    self._apply_normal(entry, batch, state, finished)
            else:
                self._apply_membership(entry, batch, state, after)
            state.index, state.term = entry.index, entry.term
        meta = self.store.meta
        meta.put_applied(batch, self.region_id, state)
        self.store.db.write(batch, log=False)
        self.applied = state
        if state.max_ts > self._max_ts:
            self._max_ts = state.max_ts
        for proposed, _counts in finished:
            for request in proposed.writes:
                if request.count >= 0:
                    self._answer(request, None, pack_done(request.count), request.commit_ts)
            self._run_reads(proposed.reads)
        for step in after:
            step()
        if not self.removed:
            self._run_confirmed()
            if (self._writes or self._reads) and self.is_leader:
                self.store.mark_dirty(self)

    def _apply_normal(
        self, entry: Entry, batch: WriteBatch, state: ApplyState, finished: list[tuple[Proposed, list[int]]]
    ) -> None:
        outcome = apply_batch(entry.data, batch, self.store.write_family, self.store.default_family)
        if outcome is None:
            self.rejected_entries += 1  # RS-08: the same on every replica
            return
        proposal_id, counts, max_ts = outcome
        state.max_ts = max(state.max_ts, max_ts)
        proposed = self._proposed.pop(proposal_id, None)
        if proposed is not None:
            finished.append((proposed, counts))

    def on_soft_state(self, state: SoftState) -> None:
        was_leader = self.is_leader
        self._soft = state
        if was_leader and not self.is_leader:
            self.fail_outstanding("leadership moved")
        self.store.leadership_changed(self, was_leader)

    def on_read_states(self, states: list[ReadState]) -> None:
        for state in states:
            waiting = self._reading.pop(state.context, None)
            if waiting is not None:
                self._confirmed.append((state.index, waiting))
        self._run_confirmed()

    def snapshot_payload(self, message: Message) -> SnapshotPayload | None:
        return self.store.snapshots.payload(self.region_id, message)

    def on_snapshot(self, snapshot: RaftSnapshot) -> bool:
        """Publish what was staged: data and local metadata in one atomic ingest. Nothing is hosted before."""
        region, applied = self.store.snapshots.publish(self, snapshot)
        self._region = region
        self.applied = applied
        self._max_ts = max(self._max_ts, applied.max_ts)
        self.store.region_changed(self)
        return True

    # -- reads --------------------------------------------------------------------------------------------------------
    def _run_confirmed(self) -> None:
        if not self._confirmed:
            return
        ready = [waiting for index, waiting in self._confirmed if index <= self.applied.index]
        self._confirmed = [(index, waiting) for index, waiting in self._confirmed if index > self.applied.index]
        for waiting in ready:
            self._run_reads(waiting)

    def _run_reads(self, requests: list[KvRequest]) -> None:
        if not requests:
            return
        reader = self.store.reader()
        for request in requests:
            try:
                results = self._read(reader, request)
            except (KeyLocked, Corruption) as error:
                self._answer(request, error)
            else:
                self._answer(request, None, results)

    def _read(self, reader: MvccReader, request: KvRequest) -> bytes:
        ts = request.read_ts or TS_MAX
        if request.all_gets:
            return pack_results(reader.get_many(request.reads, ts))  # type: ignore[arg-type]
        results: list[object] = []
        for command in request.reads:
            if isinstance(command, bytes):
                results.extend(reader.get_many([command], ts))
                continue
            start, end, limit, flags = command
            keys_only = bool(flags & 2)
            try:
                pairs, more = reader.scan(
                    start, end, ts, limit=limit, bytes_max=SCAN_BYTES_MAX, reverse=bool(flags & 1), keys_only=keys_only
                )
            except KeyLocked as error:
                results.append(error)
            else:
                results.append((pairs, more, keys_only))
        return pack_results(results)  # type: ignore[arg-type]

    # -- membership ---------------------------------------------------------------------------------------------------
    def propose_change(
        self, change: MembershipChange, deadline_ns: int, done: Callable[[NoKVError | None, Region | None], None]
    ) -> None:
        """Propose a validated change. One at a time: Busy while another one is in flight."""
        if not self.is_leader:
            raise self.store.router.not_leader(self)
        if self._change is not None or not self.serves_own_term:
            raise Busy(f"region {self.region_id}: another membership change is in flight")
        if change.conf_version != self.region.epoch.conf_version:
            raise EpochNotMatch("the membership has changed meanwhile", regions=(self.region,))
        context = encode_change(change)
        self._change = PendingChange(change, change.transition_id, done, deadline_ns)
        try:
            self.store.host.propose_conf_change(
                self.region_id, ConfChange(change.conf_change_kind, change.peer.peer_id, context)
            )
        except ProposalDropped as error:
            self._change = None
            raise Busy(f"region {self.region_id}: {error}") from error
        self.store.diagnostics.transition(
            change.transition_id,
            kind=change.kind.value,
            region_id=self.region_id,
            outcome=TopologyOutcome.PROPOSED,
        )

    def _apply_membership(
        self, entry: Entry, batch: WriteBatch, state: ApplyState, after: list[Callable[[], None]]
    ) -> None:
        conf_change = decode_conf_change(entry.kind, entry.data)
        change = decode_change(conf_change.context) if conf_change.context else None
        region = self.region
        if change is None or change.conf_version != region.epoch.conf_version:
            # An empty entry in place of a refused change, or one decided on an older membership: no effect, the same on
            # every replica.
            self.rejected_entries += 1
            after.append(self._change_overtaken)
            return
        state.conf_state = self.raw.apply_conf_change(conf_change)
        region = change.apply_to(region)
        self._region = region
        meta = self.store.meta
        own = region.peer(self.peer_id)
        if own is None:
            region = replace(region, state=RegionState.TOMBSTONE)
        meta.put_region(batch, region)
        event = change.event(region)
        meta.put_event(batch, self.region_id, region.epoch.conf_version, self.store.encode_event(event))
        if change.address:
            meta.put_address(batch, change.peer.store_id, change.address)
        after.append(lambda: self._membership_applied(change, region, event))

    def _membership_applied(self, change: MembershipChange, region: Region, event: RootEvent) -> None:
        if change.address:
            self.store.learn_address(change.peer.store_id, change.address)
        self.store.diagnostics.transition(
            change.transition_id,
            kind=change.kind.value,
            region_id=self.region_id,
            outcome=TopologyOutcome.APPLIED,
            publish=PublishState.TERMINAL_PENDING if self.is_leader else PublishState.NOT_REQUIRED,
        )
        if region.state is RegionState.TOMBSTONE:
            self.store.destroy_peer(self, region)
            return
        self.store.region_changed(self)
        if self.is_leader:
            self.store.publish_applied(self, event, region.epoch.conf_version, change.transition_id)
        if self._change is not None and self._change.transition_id == change.transition_id:
            self._finish_change(None, region)

    def _change_overtaken(self) -> None:
        if self._change is not None and self._change.change.conf_version != self.region.epoch.conf_version:
            self._finish_change(PreconditionFailed("another membership change came first"), None)

    def _finish_change(self, error: NoKVError | None, region: Region | None) -> None:
        pending, self._change = self._change, None
        assert pending is not None
        if error is not None:
            self.store.diagnostics.transition(pending.transition_id, outcome=TopologyOutcome.FAILED, detail=str(error))
        pending.done(error, region)

    # -- invariants ---------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Tests call this after every step."""
        assert self.outstanding >= 0
        assert self.applied.index <= self.raw.core.log.committed
        if self._region is not None and not self.removed:
            members = {peer.peer_id for peer in self._region.peers if peer.role is PeerRole.VOTER}
            assert set(self.applied.conf_state.voters) == members
        assert self.applied.max_ts <= self._max_ts
