"""Bytes and protobuf of the truth plane: the only place where the two meet plain values.

What lies in a Raft entry or in a checkpoint file is framed (docs/formats/root_event.md):

    u8 version | u8 content | u16 zero | u32 length | u32 crc32c(first 8 bytes + body) | body (protobuf)

Everything read here is hostile until checked. From the log or a file a bad byte is `Corruption`; from a caller,
`UsageError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from nokv._ext.crc32c import crc32c
from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    InvariantError,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.changes import FinishedTransition, PendingPeerChange, PendingRangeChange
from nokv.metaroot.events import (
    Allocator,
    AllocatorFenced,
    EventKind,
    HandoffClosed,
    HandoffConfirmed,
    HandoffReattached,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseSealed,
    PeerAdded,
    PeerAdditionCancelled,
    PeerAdditionPlanned,
    PeerRemovalCancelled,
    PeerRemovalPlanned,
    PeerRemoved,
    RegionBootstrapped,
    RegionMergeCancelled,
    RegionMergeCommitted,
    RegionMergePlanned,
    RegionPublished,
    RegionSplitCancelled,
    RegionSplitCommitted,
    RegionSplitPlanned,
    RegionTombstoned,
    RootEvent,
    RootRecord,
    RootToken,
    StoreJoined,
    StoreLeft,
    TransitionPhase,
    event_kind,
)
from nokv.metaroot.retention import check_chain
from nokv.metaroot.state import Lease, RootState, SealedEra
from nokv.pb import meta_pb2, root_pb2
from nokv.region import Peer, PeerRole, Region, RegionEpoch, RegionState, Store, StoreState

__all__ = [
    "BATCH_BYTES_MAX",
    "EVENTS_PER_BATCH_MAX",
    "Assessment",
    "Checkpoint",
    "RootBatch",
    "StateAssembler",
    "assessment_from_pb",
    "assessment_to_pb",
    "decode_batch",
    "decode_checkpoint",
    "encode_batch",
    "encode_checkpoint",
    "error_code",
    "error_from_code",
    "event_from_pb",
    "event_to_pb",
    "lease_from_pb",
    "lease_to_pb",
    "peer_from_pb",
    "peer_to_pb",
    "record_from_pb",
    "record_to_pb",
    "region_from_pb",
    "region_to_pb",
    "state_chunks",
    "state_from_pb",
    "state_to_pb",
    "store_from_pb",
    "store_to_pb",
    "token_from_pb",
    "token_to_pb",
]

FORMAT_VERSION = 1
CONTENT_BATCH = 1
CONTENT_CHECKPOINT = 2
_HEADER = struct.Struct("<BBHI")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size

EVENTS_PER_BATCH_MAX = 1024
BATCH_BYTES_MAX = 1 << 20
CHECKPOINT_BYTES_MAX = 1 << 31
KEY_BYTES_MAX = 1 << 16
TEXT_CHARS_MAX = 1024
PEERS_MAX = 64
SETTLE_EVERY = 100_000


@dataclass(slots=True)
class RootBatch:
    """What one Raft entry carries. `proposer` and `request_id` match the applied entry to the caller who waits for
    it."""

    proposer: int
    request_id: int
    events: list[RootEvent]
    expected_revision: int = 0
    time_ms: int = 0
    author: str = ""


@dataclass(slots=True)
class Assessment:
    """What the log would do with a batch, at `token`: admitted, already (nothing is new), or refused with the error."""

    verdict: str
    token: RootToken
    error: NoKVError | None = None


# -- frames -----------------------------------------------------------------------------------------------------------
def _frame(content: int, body: bytes) -> bytes:
    head = _HEADER.pack(FORMAT_VERSION, content, 0, len(body))
    return head + _CRC.pack(crc32c(body, crc32c(head))) + body


def _unframe(content: int, data: bytes, limit: int, where: str) -> bytes:
    if len(data) < HEADER_BYTES:
        raise Corruption("shorter than its header", path=where, offset=0, expected=HEADER_BYTES, found=len(data))
    version, kind, zero, length = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise Corruption("unknown version", path=where, offset=0, expected=FORMAT_VERSION, found=version)
    if kind != content or zero:
        raise Corruption("unexpected content", path=where, offset=1, expected=content, found=kind)
    if length > limit or length != len(data) - HEADER_BYTES:
        raise Corruption("wrong length", path=where, offset=4, expected=len(data) - HEADER_BYTES, found=length)
    body = data[HEADER_BYTES:]
    (stored,) = _CRC.unpack_from(data, _HEADER.size)
    if stored != crc32c(body, crc32c(data[: _HEADER.size])):
        raise Corruption("checksum mismatch", path=where, offset=_HEADER.size)
    return body


def encode_batch(batch: RootBatch) -> bytes:
    """Raises UsageError if the batch is empty or too large."""
    if not 0 < len(batch.events) <= EVENTS_PER_BATCH_MAX:
        raise UsageError(f"a batch has 1 to {EVENTS_PER_BATCH_MAX} events, not {len(batch.events)}")
    message = root_pb2.RootBatch(
        proposer=batch.proposer,
        request_id=batch.request_id,
        expected_revision=batch.expected_revision,
        events=[event_to_pb(event, time_ms=batch.time_ms, author=batch.author) for event in batch.events],
    )
    body = message.SerializeToString(deterministic=True)
    if len(body) > BATCH_BYTES_MAX:
        raise UsageError(f"a batch of {len(body)} bytes; the limit is {BATCH_BYTES_MAX}")
    return _frame(CONTENT_BATCH, body)


def decode_batch(data: bytes, where: str = "root entry") -> RootBatch:
    """Raises Corruption."""
    body = _unframe(CONTENT_BATCH, data, BATCH_BYTES_MAX, where)
    try:
        message = root_pb2.RootBatch.FromString(body)
        events = [event_from_pb(event) for event in message.events]
    except (DecodeError, UsageError) as error:
        raise Corruption(f"not a batch: {error}", path=where, offset=HEADER_BYTES) from error
    if not 0 < len(events) <= EVENTS_PER_BATCH_MAX:
        raise Corruption("wrong number of events", path=where, offset=HEADER_BYTES, found=len(events))
    first = message.events[0]
    return RootBatch(
        message.proposer, message.request_id, events, message.expected_revision, first.time_ms, first.author
    )


@dataclass(slots=True)
class Checkpoint:
    """The state with everything up to Raft index `index`, and the newest events, for audit and for the tail."""

    index: int
    term: int
    state: RootState
    records: list[RootRecord]


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    message = root_pb2.RootCheckpoint(
        state=state_to_pb(checkpoint.state),
        events=[record_to_pb(r) for r in checkpoint.records],
        applied_index=checkpoint.index,
        applied_term=checkpoint.term,
    )
    return _frame(CONTENT_CHECKPOINT, message.SerializeToString(deterministic=True))


def decode_checkpoint(data: bytes, where: str = "root checkpoint") -> Checkpoint:
    """Raises Corruption."""
    body = _unframe(CONTENT_CHECKPOINT, data, CHECKPOINT_BYTES_MAX, where)
    try:
        message = root_pb2.RootCheckpoint.FromString(body)
        state = state_from_pb(message.state)
        records = [record_from_pb(event) for event in message.events]
        state.check()
    except (DecodeError, UsageError, AssertionError) as error:
        raise Corruption(f"not a checkpoint: {error}", path=where, offset=HEADER_BYTES) from error
    if not check_chain(records, state.last.revision):
        raise Corruption("the events do not lead up to the state", path=where, offset=HEADER_BYTES)
    if state.last.index > message.applied_index:
        raise Corruption("the state is newer than its index", path=where, offset=HEADER_BYTES)
    return Checkpoint(message.applied_index, message.applied_term, state, records)


# -- values that every plane speaks -----------------------------------------------------------------------------------
_ROLE_TO_PB = {PeerRole.VOTER: meta_pb2.PEER_ROLE_VOTER, PeerRole.LEARNER: meta_pb2.PEER_ROLE_LEARNER}
_ROLE_FROM_PB = {int(v): k for k, v in _ROLE_TO_PB.items()}
_REGION_STATE_TO_PB = {
    RegionState.NEW: meta_pb2.REGION_STATE_NEW,
    RegionState.RUNNING: meta_pb2.REGION_STATE_RUNNING,
    RegionState.REMOVING: meta_pb2.REGION_STATE_REMOVING,
    RegionState.TOMBSTONE: meta_pb2.REGION_STATE_TOMBSTONE,
}
_REGION_STATE_FROM_PB = {int(v): k for k, v in _REGION_STATE_TO_PB.items()}
_STORE_STATE_TO_PB = {
    StoreState.UP: meta_pb2.STORE_STATE_UP,
    StoreState.OFFLINE: meta_pb2.STORE_STATE_OFFLINE,
    StoreState.TOMBSTONE: meta_pb2.STORE_STATE_TOMBSTONE,
}
_STORE_STATE_FROM_PB = {int(v): k for k, v in _STORE_STATE_TO_PB.items()}


def _text(text: str, field: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise UsageError(f"{field} is longer than {TEXT_CHARS_MAX} characters")
    return text


def token_to_pb(token: RootToken) -> meta_pb2.RootToken:
    return meta_pb2.RootToken(term=token.term, index=token.index, revision=token.revision)


def token_from_pb(message: meta_pb2.RootToken) -> RootToken:
    return RootToken(message.revision, message.term, message.index)


def peer_to_pb(peer: Peer) -> meta_pb2.Peer:
    return meta_pb2.Peer(peer_id=peer.peer_id, store_id=peer.store_id, role=_ROLE_TO_PB[peer.role])


def peer_from_pb(message: meta_pb2.Peer) -> Peer:
    peer_id, store_id, role = message.peer_id, message.store_id, _ROLE_FROM_PB.get(message.role)
    if role is None:
        raise UsageError(f"peer {peer_id}: unknown role {message.role}")
    if not peer_id or not store_id:
        raise UsageError("a peer needs a peer id and a store id")
    return Peer(peer_id, store_id, role)


def region_to_pb(region: Region) -> meta_pb2.Region:
    return meta_pb2.Region(
        region_id=region.region_id,
        start_key=region.start_key,
        end_key=region.end_key,
        epoch=meta_pb2.RegionEpoch(conf_version=region.epoch.conf_version, version=region.epoch.version),
        peers=[peer_to_pb(p) for p in region.peers],
        state=_REGION_STATE_TO_PB[region.state],
    )


def region_from_pb(message: meta_pb2.Region) -> Region:
    """Each field is read once: a rebuild does this for every region of the cluster."""
    region_id, start_key, end_key = message.region_id, message.start_key, message.end_key
    state = _REGION_STATE_FROM_PB.get(message.state)
    if state is None:
        raise UsageError(f"region {region_id}: unknown state {message.state}")
    if not region_id:
        raise UsageError("a region needs a region id")
    if len(start_key) > KEY_BYTES_MAX or len(end_key) > KEY_BYTES_MAX:
        raise UsageError(f"region {region_id}: a bound is longer than {KEY_BYTES_MAX} bytes")
    peers = message.peers
    if len(peers) > PEERS_MAX:
        raise UsageError(f"region {region_id}: more than {PEERS_MAX} peers")
    epoch = message.epoch
    return Region(
        region_id,
        start_key,
        end_key,
        RegionEpoch(epoch.conf_version, epoch.version),
        tuple([peer_from_pb(p) for p in peers]),
        state,
    )


def store_to_pb(store: Store) -> meta_pb2.Store:
    return meta_pb2.Store(store_id=store.store_id, address=store.address, state=_STORE_STATE_TO_PB[store.state])


def store_from_pb(message: meta_pb2.Store) -> Store:
    state = _STORE_STATE_FROM_PB.get(message.state)
    if state is None:
        raise UsageError(f"store {message.store_id}: unknown state {message.state}")
    if not message.store_id:
        raise UsageError("a store needs a store id")
    return Store(message.store_id, _text(message.address, "a store's address"), state)


# -- events -----------------------------------------------------------------------------------------------------------
def event_to_pb(event: RootEvent, *, time_ms: int = 0, author: str = "") -> root_pb2.RootEvent:
    message = root_pb2.RootEvent(kind=int(event_kind(event)), time_ms=time_ms, author=author)  # type: ignore[arg-type]
    match event:
        case StoreJoined():
            message.store.CopyFrom(store_to_pb(event.store))
        case StoreLeft():
            message.store.store_id = event.store_id
        case AllocatorFenced():
            message.allocator = event.allocator.value
            message.fence = event.fence
            message.era = event.era
        case RegionBootstrapped() | RegionPublished() | RegionTombstoned():
            message.region.CopyFrom(region_to_pb(event.region))
        case PeerAdditionPlanned() | PeerRemovalPlanned():
            message.transition_id = event.transition_id
            message.peer.CopyFrom(peer_to_pb(event.peer))
            message.region.CopyFrom(region_to_pb(event.target))
        case PeerAdded() | PeerRemoved():
            message.transition_id = event.transition_id
            message.peer.CopyFrom(peer_to_pb(event.peer))
            message.region.CopyFrom(region_to_pb(event.region))
        case RegionSplitPlanned() | RegionSplitCommitted():
            message.transition_id = event.transition_id
            message.region.CopyFrom(region_to_pb(event.parent))
            message.other.CopyFrom(region_to_pb(event.child))
        case RegionMergePlanned() | RegionMergeCommitted():
            message.transition_id = event.transition_id
            message.region.CopyFrom(region_to_pb(event.target))
            message.other.CopyFrom(region_to_pb(event.source))
        case PeerAdditionCancelled() | PeerRemovalCancelled() | RegionSplitCancelled() | RegionMergeCancelled():
            message.transition_id = event.transition_id
            message.region.region_id = event.region_id
        case LeaseGranted():
            message.holder = event.holder
            message.address = event.address
            message.era = event.era
            message.lease_ttl_ms = event.lease_ttl_ms
            message.lease_until_ms = event.lease_until_ms
            message.incarnation = event.incarnation
        case LeaseRenewed():
            message.holder = event.holder
            message.era = event.era
            message.lease_ttl_ms = event.lease_ttl_ms
            message.lease_until_ms = event.lease_until_ms
        case LeaseReleased() | HandoffClosed() | HandoffReattached():
            message.holder = event.holder
            message.era = event.era
        case LeaseSealed():
            message.era = event.era
            message.id_frontier = event.id_frontier
            message.tso_frontier = event.tso_frontier
        case HandoffConfirmed():
            message.holder = event.holder
            message.era = event.era
            message.id_frontier = event.id_frontier
            message.tso_frontier = event.tso_frontier
    return message


def event_from_pb(message: root_pb2.RootEvent) -> RootEvent:
    """Raises UsageError: an unknown kind (from a newer version, perhaps), or a field out of range."""
    try:
        kind = EventKind(message.kind)
    except ValueError:
        raise UsageError(f"unknown kind {message.kind} of rooted event") from None
    _text(message.author, "author")
    transition_id = _text(message.transition_id, "transition_id")
    holder = _text(message.holder, "holder")
    match kind:
        case EventKind.STORE_JOINED:
            return StoreJoined(store_from_pb(message.store))
        case EventKind.STORE_LEFT:
            return StoreLeft(message.store.store_id)
        case EventKind.ALLOCATOR_FENCED:
            try:
                allocator = Allocator(message.allocator)
            except ValueError:
                raise UsageError(f"unknown allocator {message.allocator[:64]!r}") from None
            return AllocatorFenced(allocator, message.fence, message.era)
        case EventKind.REGION_BOOTSTRAPPED:
            return RegionBootstrapped(region_from_pb(message.region))
        case EventKind.REGION_PUBLISHED:
            return RegionPublished(region_from_pb(message.region))
        case EventKind.REGION_TOMBSTONED:
            return RegionTombstoned(region_from_pb(message.region))
        case EventKind.PEER_ADDITION_PLANNED:
            return PeerAdditionPlanned(transition_id, peer_from_pb(message.peer), region_from_pb(message.region))
        case EventKind.PEER_ADDED:
            return PeerAdded(transition_id, peer_from_pb(message.peer), region_from_pb(message.region))
        case EventKind.PEER_ADDITION_CANCELLED:
            return PeerAdditionCancelled(transition_id, message.region.region_id)
        case EventKind.PEER_REMOVAL_PLANNED:
            return PeerRemovalPlanned(transition_id, peer_from_pb(message.peer), region_from_pb(message.region))
        case EventKind.PEER_REMOVED:
            return PeerRemoved(transition_id, peer_from_pb(message.peer), region_from_pb(message.region))
        case EventKind.PEER_REMOVAL_CANCELLED:
            return PeerRemovalCancelled(transition_id, message.region.region_id)
        case EventKind.SPLIT_PLANNED:
            return RegionSplitPlanned(transition_id, region_from_pb(message.region), region_from_pb(message.other))
        case EventKind.SPLIT_COMMITTED:
            return RegionSplitCommitted(transition_id, region_from_pb(message.region), region_from_pb(message.other))
        case EventKind.SPLIT_CANCELLED:
            return RegionSplitCancelled(transition_id, message.region.region_id)
        case EventKind.MERGE_PLANNED:
            return RegionMergePlanned(transition_id, region_from_pb(message.region), region_from_pb(message.other))
        case EventKind.MERGE_COMMITTED:
            return RegionMergeCommitted(transition_id, region_from_pb(message.region), region_from_pb(message.other))
        case EventKind.MERGE_CANCELLED:
            return RegionMergeCancelled(transition_id, message.region.region_id)
        case EventKind.LEASE_GRANTED:
            address = _text(message.address, "address")
            incarnation = _text(message.incarnation, "incarnation")
            return LeaseGranted(holder, address, message.era, message.lease_ttl_ms, message.lease_until_ms, incarnation)
        case EventKind.LEASE_RENEWED:
            return LeaseRenewed(holder, message.era, message.lease_ttl_ms, message.lease_until_ms)
        case EventKind.LEASE_RELEASED:
            return LeaseReleased(holder, message.era)
        case EventKind.LEASE_SEALED:
            return LeaseSealed(message.era, message.id_frontier, message.tso_frontier)
        case EventKind.HANDOFF_CONFIRMED:
            return HandoffConfirmed(holder, message.era, message.id_frontier, message.tso_frontier)
        case EventKind.HANDOFF_CLOSED:
            return HandoffClosed(holder, message.era)
        case EventKind.HANDOFF_REATTACHED:
            return HandoffReattached(holder, message.era)


def record_to_pb(record: RootRecord) -> root_pb2.RootEvent:
    message = event_to_pb(record.event, time_ms=record.time_ms, author=record.author)
    message.token.CopyFrom(token_to_pb(record.token))
    message.folded = record.folded
    return message


def record_from_pb(message: root_pb2.RootEvent) -> RootRecord:
    return RootRecord(
        token_from_pb(message.token), event_from_pb(message), message.time_ms, message.author, message.folded
    )


# -- the state --------------------------------------------------------------------------------------------------------
def lease_to_pb(lease: Lease) -> root_pb2.RootLease:
    return root_pb2.RootLease(
        holder=lease.holder,
        era=lease.era,
        lease_until_ms=lease.lease_until_ms,
        address=lease.address,
        lease_ttl_ms=lease.lease_ttl_ms,
        released=lease.released,
        confirmed=lease.confirmed,
        incarnation=lease.incarnation,
        revision=lease.revision,
    )


def lease_from_pb(message: root_pb2.RootLease) -> Lease:
    return Lease(
        message.holder,
        message.address,
        message.era,
        message.lease_ttl_ms,
        message.lease_until_ms,
        message.confirmed,
        message.released,
        message.incarnation,
        message.revision,
    )


def _pending_to_pb(change: PendingPeerChange) -> root_pb2.PendingPeerChange:
    return root_pb2.PendingPeerChange(
        transition_id=change.transition_id,
        region_id=change.region_id,
        peer=peer_to_pb(change.peer),
        removal=change.removal,
        target=region_to_pb(change.target),
    )


def _pending_from_pb(message: root_pb2.PendingPeerChange) -> PendingPeerChange:
    return PendingPeerChange(
        message.transition_id,
        message.region_id,
        peer_from_pb(message.peer),
        message.removal,
        region_from_pb(message.target),
    )


def state_to_pb(state: RootState, *, catalog: bool = True) -> root_pb2.RootState:
    """Without `catalog`: tokens, epochs, fences, lease and seal only."""
    message = root_pb2.RootState(
        last=token_to_pb(state.last),
        cluster_epoch=state.cluster_epoch,
        membership_epoch=state.membership_epoch,
        id_fence=state.id_fence,
        tso_fence=state.tso_fence,
        era=state.era,
    )
    if state.lease is not None:
        message.lease.CopyFrom(lease_to_pb(state.lease))
    if state.sealed is not None:
        message.sealed.holder = state.sealed.holder
        message.sealed.era = state.sealed.era
        message.sealed.id_frontier = state.sealed.id_frontier
        message.sealed.tso_frontier = state.sealed.tso_frontier
        message.sealed.sealed = True
        message.sealed.unended_era = state.sealed.unended_era
        message.sealed.reattached = state.sealed.reattached
    if catalog:
        message.stores.extend(store_to_pb(s) for s in state.stores.values())
        message.regions.extend(region_to_pb(r) for r in state.regions.values())
        _changes_to_pb(state, message)
    return message


def _changes_to_pb(state: RootState, message: root_pb2.RootState) -> None:
    message.pending.extend(_pending_to_pb(c) for c in state.pending.values())
    message.pending_ranges.extend(
        root_pb2.PendingRangeChange(
            transition_id=c.transition_id, merge=c.merge, target=region_to_pb(c.target), other=region_to_pb(c.other)
        )
        for region_id, c in state.pending_ranges.items()
        if region_id == c.region_id
    )
    message.finished.extend(
        root_pb2.FinishedTransition(
            transition_id=f.transition_id, region_id=f.region_id, phase=f.phase.value, revision=f.revision
        )
        for f in state.finished.values()
    )


def state_chunks(state: RootState, regions_per_chunk: int = 2000) -> Iterator[tuple[root_pb2.RootState, bool]]:
    """(message, whether more follow): the state in messages of bounded size, made one by one. The first has everything
    but the regions beyond the first ones. The state must not change meanwhile."""
    regions = list(state.regions.values())
    first = state_to_pb(state, catalog=False)
    first.stores.extend(store_to_pb(s) for s in state.stores.values())
    _changes_to_pb(state, first)
    first.regions.extend(region_to_pb(r) for r in regions[:regions_per_chunk])
    yield first, len(regions) > regions_per_chunk
    for start in range(regions_per_chunk, len(regions), regions_per_chunk):
        chunk = root_pb2.RootState(regions=[region_to_pb(r) for r in regions[start : start + regions_per_chunk]])
        yield chunk, start + regions_per_chunk < len(regions)


class StateAssembler:
    """A state out of chunks as they arrive. What is shared is kept once: the end of a region is the start of the next,
    and few epochs differ. `settled` is called after each hundred thousand regions: what is there is there to stay, and
    a collector of garbage need not walk it (`gc.freeze`)."""

    def __init__(self, settled: Callable[[], object] = lambda: None) -> None:
        self._settled = settled
        self._reset()

    def _reset(self) -> None:
        self._head: root_pb2.RootState | None = None
        self._regions: dict[int, Region] = {}
        self._keys: dict[bytes, bytes] = {}
        self._epochs: dict[RegionEpoch, RegionEpoch] = {}

    def add(self, chunk: root_pb2.RootState) -> None:
        """Raises UsageError. The first chunk has everything but the regions beyond the first ones."""
        keys, epochs, regions = self._keys, self._epochs, self._regions
        for message in chunk.regions:
            region = region_from_pb(message)
            start = keys.pop(region.start_key, region.start_key)
            regions[region.region_id] = Region(
                region.region_id,
                start,
                keys.setdefault(region.end_key, region.end_key),
                epochs.setdefault(region.epoch, region.epoch),
                region.peers,
                region.state,
            )
        if len(regions) // SETTLE_EVERY > (len(regions) - len(chunk.regions)) // SETTLE_EVERY:
            self._settled()
        if self._head is None:
            self._head = chunk
            del chunk.regions[:]

    def finish(self) -> RootState:
        """The state; the assembler is empty again."""
        head, regions = self._head, self._regions
        assert head is not None
        self._reset()
        return _state_from_head(head, regions)


def state_from_pb(*chunks: root_pb2.RootState) -> RootState:
    """Empties `chunks[0].regions`."""
    assembler = StateAssembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.finish()


def _state_from_head(message: root_pb2.RootState, regions: dict[int, Region]) -> RootState:
    sealed = None
    if message.HasField("sealed"):
        sealed = SealedEra(
            message.sealed.holder,
            message.sealed.era,
            message.sealed.id_frontier,
            message.sealed.tso_frontier,
            message.sealed.unended_era,
            message.sealed.reattached,
        )
    ranges: dict[int, PendingRangeChange] = {}
    for c in message.pending_ranges:
        change = PendingRangeChange(c.transition_id, c.merge, region_from_pb(c.target), region_from_pb(c.other))
        ranges[change.target.region_id] = ranges[change.other.region_id] = change
    try:
        finished = {
            f.transition_id: FinishedTransition(f.transition_id, f.region_id, TransitionPhase(f.phase), f.revision)
            for f in message.finished
        }
    except ValueError as error:
        raise UsageError(f"unknown phase of a finished transition: {error}") from None
    return RootState(
        token_from_pb(message.last),
        message.cluster_epoch,
        message.membership_epoch,
        message.id_fence,
        message.tso_fence,
        message.era,
        lease_from_pb(message.lease) if message.HasField("lease") else None,
        sealed,
        {s.store_id: store_from_pb(s) for s in message.stores},
        regions,
        {c.region_id: _pending_from_pb(c) for c in message.pending},
        finished,
        ranges,
    )


# -- errors -----------------------------------------------------------------------------------------------------------
# Our error classes as a short code that travels in the trailer `nokv-error`; the message travels in the status details.
_CODES: Sequence[tuple[str, type[NoKVError]]] = (
    ("not-leader", NotLeader),
    ("epoch-not-match", EpochNotMatch),
    ("busy", Busy),
    ("precondition", PreconditionFailed),
    ("not-found", NotFound),
    ("not-supported", NotSupported),
    ("indeterminate", Indeterminate),
    ("deadline", DeadlineExceeded),
    ("unavailable", Unavailable),
    ("usage", UsageError),
    ("corruption", Corruption),
    ("invariant", InvariantError),
)
_ALSO: Mapping[str, type[NoKVError]] = {  # what stores say
    "precondition-failed": PreconditionFailed,
    "deadline-exceeded": DeadlineExceeded,
    "invalid": UsageError,
    "error": NoKVError,
}


def error_code(error: NoKVError) -> str:
    return next((code for code, cls in _CODES if isinstance(error, cls)), "unavailable")


def error_from_code(code: str, message: str, *, hint: str = "", address: str = "", extra: bytes = b"") -> NoKVError:
    """The error that a peer reported. `extra`: the current descriptor (protobuf), with epoch-not-match."""
    if code in ("not-leader", "not-lease-holder"):
        return NotLeader(message, address=address)
    if code == "epoch-not-match":
        try:
            regions = (region_from_pb(meta_pb2.Region.FromString(extra)),) if extra else ()
        except (DecodeError, UsageError):
            regions = ()
        return EpochNotMatch(message, regions=regions)
    cls = {**dict(_CODES), **_ALSO}.get(code, Unavailable)
    return cls(message, hint=hint)


def assessment_to_pb(found: Assessment) -> root_pb2.RootAssessResponse:
    message = root_pb2.RootAssessResponse(verdict=found.verdict, assessed_at=token_to_pb(found.token))
    if found.error is not None:
        message.code = error_code(found.error)
        message.reason = str(found.error)
        message.hint = found.error.hint or ""
        if isinstance(found.error, EpochNotMatch) and found.error.regions:
            message.current.CopyFrom(region_to_pb(found.error.regions[0]))
    return message


def assessment_from_pb(message: root_pb2.RootAssessResponse) -> Assessment:
    error = None
    if message.code:
        extra = message.current.SerializeToString() if message.HasField("current") else b""
        error = error_from_code(message.code, message.reason, hint=message.hint, extra=extra)
    return Assessment(message.verdict, token_from_pb(message.assessed_at), error)
