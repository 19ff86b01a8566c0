from nokv.pb import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RootEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROOT_EVENT_UNSPECIFIED: _ClassVar[RootEventKind]
    ROOT_EVENT_STORE_JOINED: _ClassVar[RootEventKind]
    ROOT_EVENT_STORE_LEFT: _ClassVar[RootEventKind]
    ROOT_EVENT_ALLOCATOR_FENCED: _ClassVar[RootEventKind]
    ROOT_EVENT_REGION_BOOTSTRAPPED: _ClassVar[RootEventKind]
    ROOT_EVENT_REGION_PUBLISHED: _ClassVar[RootEventKind]
    ROOT_EVENT_REGION_TOMBSTONED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_ADDITION_PLANNED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_ADDED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_ADDITION_CANCELLED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_REMOVAL_PLANNED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_REMOVED: _ClassVar[RootEventKind]
    ROOT_EVENT_PEER_REMOVAL_CANCELLED: _ClassVar[RootEventKind]
    ROOT_EVENT_SPLIT_PLANNED: _ClassVar[RootEventKind]
    ROOT_EVENT_SPLIT_COMMITTED: _ClassVar[RootEventKind]
    ROOT_EVENT_SPLIT_CANCELLED: _ClassVar[RootEventKind]
    ROOT_EVENT_MERGE_PLANNED: _ClassVar[RootEventKind]
    ROOT_EVENT_MERGE_COMMITTED: _ClassVar[RootEventKind]
    ROOT_EVENT_MERGE_CANCELLED: _ClassVar[RootEventKind]
    ROOT_EVENT_LEASE_GRANTED: _ClassVar[RootEventKind]
    ROOT_EVENT_LEASE_RENEWED: _ClassVar[RootEventKind]
    ROOT_EVENT_LEASE_RELEASED: _ClassVar[RootEventKind]
    ROOT_EVENT_LEASE_SEALED: _ClassVar[RootEventKind]
    ROOT_EVENT_HANDOFF_CONFIRMED: _ClassVar[RootEventKind]
    ROOT_EVENT_HANDOFF_CLOSED: _ClassVar[RootEventKind]
    ROOT_EVENT_HANDOFF_REATTACHED: _ClassVar[RootEventKind]
ROOT_EVENT_UNSPECIFIED: RootEventKind
ROOT_EVENT_STORE_JOINED: RootEventKind
ROOT_EVENT_STORE_LEFT: RootEventKind
ROOT_EVENT_ALLOCATOR_FENCED: RootEventKind
ROOT_EVENT_REGION_BOOTSTRAPPED: RootEventKind
ROOT_EVENT_REGION_PUBLISHED: RootEventKind
ROOT_EVENT_REGION_TOMBSTONED: RootEventKind
ROOT_EVENT_PEER_ADDITION_PLANNED: RootEventKind
ROOT_EVENT_PEER_ADDED: RootEventKind
ROOT_EVENT_PEER_ADDITION_CANCELLED: RootEventKind
ROOT_EVENT_PEER_REMOVAL_PLANNED: RootEventKind
ROOT_EVENT_PEER_REMOVED: RootEventKind
ROOT_EVENT_PEER_REMOVAL_CANCELLED: RootEventKind
ROOT_EVENT_SPLIT_PLANNED: RootEventKind
ROOT_EVENT_SPLIT_COMMITTED: RootEventKind
ROOT_EVENT_SPLIT_CANCELLED: RootEventKind
ROOT_EVENT_MERGE_PLANNED: RootEventKind
ROOT_EVENT_MERGE_COMMITTED: RootEventKind
ROOT_EVENT_MERGE_CANCELLED: RootEventKind
ROOT_EVENT_LEASE_GRANTED: RootEventKind
ROOT_EVENT_LEASE_RENEWED: RootEventKind
ROOT_EVENT_LEASE_RELEASED: RootEventKind
ROOT_EVENT_LEASE_SEALED: RootEventKind
ROOT_EVENT_HANDOFF_CONFIRMED: RootEventKind
ROOT_EVENT_HANDOFF_CLOSED: RootEventKind
ROOT_EVENT_HANDOFF_REATTACHED: RootEventKind

class RootEvent(_message.Message):
    __slots__ = ("kind", "token", "time_ms", "author", "store", "region", "peer", "transition_id", "allocator", "fence", "holder", "era", "lease_until_ms", "id_frontier", "tso_frontier", "address", "lease_ttl_ms", "incarnation", "other", "folded")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOCATOR_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    LEASE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    ID_FRONTIER_FIELD_NUMBER: _ClassVar[int]
    TSO_FRONTIER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    kind: RootEventKind
    token: _meta_pb2.RootToken
    time_ms: int
    author: str
    store: _meta_pb2.Store
    region: _meta_pb2.Region
    peer: _meta_pb2.Peer
    transition_id: str
    allocator: str
    fence: int
    holder: str
    era: int
    lease_until_ms: int
    id_frontier: int
    tso_frontier: int
    address: str
    lease_ttl_ms: int
    incarnation: str
    other: _meta_pb2.Region
    folded: int
    def __init__(self, kind: _Optional[_Union[RootEventKind, str]] = ..., token: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., time_ms: _Optional[int] = ..., author: _Optional[str] = ..., store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ..., region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., peer: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., transition_id: _Optional[str] = ..., allocator: _Optional[str] = ..., fence: _Optional[int] = ..., holder: _Optional[str] = ..., era: _Optional[int] = ..., lease_until_ms: _Optional[int] = ..., id_frontier: _Optional[int] = ..., tso_frontier: _Optional[int] = ..., address: _Optional[str] = ..., lease_ttl_ms: _Optional[int] = ..., incarnation: _Optional[str] = ..., other: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., folded: _Optional[int] = ...) -> None: ...

class RootBatch(_message.Message):
    __slots__ = ("proposer", "request_id", "expected_revision", "events")
    PROPOSER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    proposer: int
    request_id: int
    expected_revision: int
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    def __init__(self, proposer: _Optional[int] = ..., request_id: _Optional[int] = ..., expected_revision: _Optional[int] = ..., events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ...) -> None: ...

class RootLease(_message.Message):
    __slots__ = ("holder", "era", "lease_until_ms", "sealed", "address", "lease_ttl_ms", "released", "confirmed", "id_frontier", "tso_frontier", "incarnation", "revision", "unended_era", "reattached")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    LEASE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    ID_FRONTIER_FIELD_NUMBER: _ClassVar[int]
    TSO_FRONTIER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UNENDED_ERA_FIELD_NUMBER: _ClassVar[int]
    REATTACHED_FIELD_NUMBER: _ClassVar[int]
    holder: str
    era: int
    lease_until_ms: int
    sealed: bool
    address: str
    lease_ttl_ms: int
    released: bool
    confirmed: bool
    id_frontier: int
    tso_frontier: int
    incarnation: str
    revision: int
    unended_era: int
    reattached: bool
    def __init__(self, holder: _Optional[str] = ..., era: _Optional[int] = ..., lease_until_ms: _Optional[int] = ..., sealed: bool = ..., address: _Optional[str] = ..., lease_ttl_ms: _Optional[int] = ..., released: bool = ..., confirmed: bool = ..., id_frontier: _Optional[int] = ..., tso_frontier: _Optional[int] = ..., incarnation: _Optional[str] = ..., revision: _Optional[int] = ..., unended_era: _Optional[int] = ..., reattached: bool = ...) -> None: ...

class FinishedTransition(_message.Message):
    __slots__ = ("transition_id", "region_id", "phase", "revision")
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    transition_id: str
    region_id: int
    phase: str
    revision: int
    def __init__(self, transition_id: _Optional[str] = ..., region_id: _Optional[int] = ..., phase: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class PendingPeerChange(_message.Message):
    __slots__ = ("transition_id", "region_id", "peer", "removal", "target")
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    REMOVAL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    transition_id: str
    region_id: int
    peer: _meta_pb2.Peer
    removal: bool
    target: _meta_pb2.Region
    def __init__(self, transition_id: _Optional[str] = ..., region_id: _Optional[int] = ..., peer: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., removal: bool = ..., target: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ...) -> None: ...

class PendingRangeChange(_message.Message):
    __slots__ = ("transition_id", "merge", "target", "other")
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    transition_id: str
    merge: bool
    target: _meta_pb2.Region
    other: _meta_pb2.Region
    def __init__(self, transition_id: _Optional[str] = ..., merge: bool = ..., target: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., other: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ...) -> None: ...

class RootState(_message.Message):
    __slots__ = ("last", "cluster_epoch", "membership_epoch", "id_fence", "tso_fence", "lease", "stores", "regions", "pending", "sealed", "finished", "era", "pending_ranges")
    LAST_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ID_FENCE_FIELD_NUMBER: _ClassVar[int]
    TSO_FENCE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    PENDING_RANGES_FIELD_NUMBER: _ClassVar[int]
    last: _meta_pb2.RootToken
    cluster_epoch: int
    membership_epoch: int
    id_fence: int
    tso_fence: int
    lease: RootLease
    stores: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Store]
    regions: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Region]
    pending: _containers.RepeatedCompositeFieldContainer[PendingPeerChange]
    sealed: RootLease
    finished: _containers.RepeatedCompositeFieldContainer[FinishedTransition]
    era: int
    pending_ranges: _containers.RepeatedCompositeFieldContainer[PendingRangeChange]
    def __init__(self, last: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., cluster_epoch: _Optional[int] = ..., membership_epoch: _Optional[int] = ..., id_fence: _Optional[int] = ..., tso_fence: _Optional[int] = ..., lease: _Optional[_Union[RootLease, _Mapping]] = ..., stores: _Optional[_Iterable[_Union[_meta_pb2.Store, _Mapping]]] = ..., regions: _Optional[_Iterable[_Union[_meta_pb2.Region, _Mapping]]] = ..., pending: _Optional[_Iterable[_Union[PendingPeerChange, _Mapping]]] = ..., sealed: _Optional[_Union[RootLease, _Mapping]] = ..., finished: _Optional[_Iterable[_Union[FinishedTransition, _Mapping]]] = ..., era: _Optional[int] = ..., pending_ranges: _Optional[_Iterable[_Union[PendingRangeChange, _Mapping]]] = ...) -> None: ...

class RootCheckpoint(_message.Message):
    __slots__ = ("state", "events", "applied_index", "applied_term")
    STATE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_TERM_FIELD_NUMBER: _ClassVar[int]
    state: RootState
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    applied_index: int
    applied_term: int
    def __init__(self, state: _Optional[_Union[RootState, _Mapping]] = ..., events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., applied_index: _Optional[int] = ..., applied_term: _Optional[int] = ...) -> None: ...

class RootAppendRequest(_message.Message):
    __slots__ = ("events", "expected_revision")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    expected_revision: int
    def __init__(self, events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class RootAppendResponse(_message.Message):
    __slots__ = ("events", "state", "already")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALREADY_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    state: RootState
    already: bool
    def __init__(self, events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., state: _Optional[_Union[RootState, _Mapping]] = ..., already: bool = ...) -> None: ...

class RootAssessRequest(_message.Message):
    __slots__ = ("events", "expected_revision")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    expected_revision: int
    def __init__(self, events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class RootAssessResponse(_message.Message):
    __slots__ = ("verdict", "code", "reason", "hint", "assessed_at", "current")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    ASSESSED_AT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    code: str
    reason: str
    hint: str
    assessed_at: _meta_pb2.RootToken
    current: _meta_pb2.Region
    def __init__(self, verdict: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., hint: _Optional[str] = ..., assessed_at: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., current: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ...) -> None: ...

class RootReadRequest(_message.Message):
    __slots__ = ("from_revision", "limit")
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    from_revision: int
    limit: int
    def __init__(self, from_revision: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class RootReadResponse(_message.Message):
    __slots__ = ("events", "last", "first_revision")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FIRST_REVISION_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    last: _meta_pb2.RootToken
    first_revision: int
    def __init__(self, events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., last: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., first_revision: _Optional[int] = ...) -> None: ...

class RootSnapshotRequest(_message.Message):
    __slots__ = ("linearizable", "without_catalog")
    LINEARIZABLE_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_CATALOG_FIELD_NUMBER: _ClassVar[int]
    linearizable: bool
    without_catalog: bool
    def __init__(self, linearizable: bool = ..., without_catalog: bool = ...) -> None: ...

class RootSnapshotResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: RootState
    def __init__(self, state: _Optional[_Union[RootState, _Mapping]] = ...) -> None: ...

class RootTailRequest(_message.Message):
    __slots__ = ("from_revision",)
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    from_revision: int
    def __init__(self, from_revision: _Optional[int] = ...) -> None: ...

class RootTailResponse(_message.Message):
    __slots__ = ("outcome", "events", "state", "last", "more")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    events: _containers.RepeatedCompositeFieldContainer[RootEvent]
    state: RootState
    last: _meta_pb2.RootToken
    more: bool
    def __init__(self, outcome: _Optional[str] = ..., events: _Optional[_Iterable[_Union[RootEvent, _Mapping]]] = ..., state: _Optional[_Union[RootState, _Mapping]] = ..., last: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., more: bool = ...) -> None: ...

class RootStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RootStatusResponse(_message.Message):
    __slots__ = ("node_id", "leader_id", "leader_address", "term", "commit_index", "applied_index", "last", "members", "first_revision")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_REVISION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    leader_id: int
    leader_address: str
    term: int
    commit_index: int
    applied_index: int
    last: _meta_pb2.RootToken
    members: _containers.RepeatedCompositeFieldContainer[RootMember]
    first_revision: int
    def __init__(self, node_id: _Optional[int] = ..., leader_id: _Optional[int] = ..., leader_address: _Optional[str] = ..., term: _Optional[int] = ..., commit_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., last: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., members: _Optional[_Iterable[_Union[RootMember, _Mapping]]] = ..., first_revision: _Optional[int] = ...) -> None: ...

class RootMember(_message.Message):
    __slots__ = ("node_id", "address", "voter")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    address: str
    voter: bool
    def __init__(self, node_id: _Optional[int] = ..., address: _Optional[str] = ..., voter: bool = ...) -> None: ...
