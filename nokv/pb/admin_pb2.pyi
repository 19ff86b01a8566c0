from nokv.pb import meta_pb2 as _meta_pb2
from nokv.pb import raft_pb2 as _raft_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegionStatusRequest(_message.Message):
    __slots__ = ("region_id",)
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    def __init__(self, region_id: _Optional[int] = ...) -> None: ...

class RegionStatusResponse(_message.Message):
    __slots__ = ("hosted", "region", "local_peer_id", "leader_peer_id", "leader_store_id", "leader_address", "term", "commit_index", "applied_index", "applied_term", "progress", "mode")
    HOSTED_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PEER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_PEER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_STORE_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_TERM_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    hosted: bool
    region: _meta_pb2.Region
    local_peer_id: int
    leader_peer_id: int
    leader_store_id: int
    leader_address: str
    term: int
    commit_index: int
    applied_index: int
    applied_term: int
    progress: _containers.RepeatedCompositeFieldContainer[PeerProgress]
    mode: str
    def __init__(self, hosted: bool = ..., region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., local_peer_id: _Optional[int] = ..., leader_peer_id: _Optional[int] = ..., leader_store_id: _Optional[int] = ..., leader_address: _Optional[str] = ..., term: _Optional[int] = ..., commit_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., applied_term: _Optional[int] = ..., progress: _Optional[_Iterable[_Union[PeerProgress, _Mapping]]] = ..., mode: _Optional[str] = ...) -> None: ...

class PeerProgress(_message.Message):
    __slots__ = ("peer_id", "state", "match_index", "next_index", "learner", "active")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    peer_id: int
    state: str
    match_index: int
    next_index: int
    learner: bool
    active: bool
    def __init__(self, peer_id: _Optional[int] = ..., state: _Optional[str] = ..., match_index: _Optional[int] = ..., next_index: _Optional[int] = ..., learner: bool = ..., active: bool = ...) -> None: ...

class AddPeerRequest(_message.Message):
    __slots__ = ("region_id", "peer", "store_address")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    peer: _meta_pb2.Peer
    store_address: str
    def __init__(self, region_id: _Optional[int] = ..., peer: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., store_address: _Optional[str] = ...) -> None: ...

class PromotePeerRequest(_message.Message):
    __slots__ = ("region_id", "peer_id")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    peer_id: int
    def __init__(self, region_id: _Optional[int] = ..., peer_id: _Optional[int] = ...) -> None: ...

class RemovePeerRequest(_message.Message):
    __slots__ = ("region_id", "peer_id")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    peer_id: int
    def __init__(self, region_id: _Optional[int] = ..., peer_id: _Optional[int] = ...) -> None: ...

class TransferLeaderRequest(_message.Message):
    __slots__ = ("region_id", "peer_id")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    peer_id: int
    def __init__(self, region_id: _Optional[int] = ..., peer_id: _Optional[int] = ...) -> None: ...

class MembershipResponse(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: _meta_pb2.Region
    def __init__(self, region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ...) -> None: ...

class RegionDigestRequest(_message.Message):
    __slots__ = ("region_id", "at_least_applied_index", "timeout_ms")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    at_least_applied_index: int
    timeout_ms: int
    def __init__(self, region_id: _Optional[int] = ..., at_least_applied_index: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RegionDigestResponse(_message.Message):
    __slots__ = ("digest", "keys", "bytes", "applied_index")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    digest: str
    keys: int
    bytes: int
    applied_index: int
    def __init__(self, digest: _Optional[str] = ..., keys: _Optional[int] = ..., bytes: _Optional[int] = ..., applied_index: _Optional[int] = ...) -> None: ...

class PrepareTargetRequest(_message.Message):
    __slots__ = ("region", "peer", "stores")
    REGION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    region: _meta_pb2.Region
    peer: _meta_pb2.Peer
    stores: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Store]
    def __init__(self, region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., peer: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., stores: _Optional[_Iterable[_Union[_meta_pb2.Store, _Mapping]]] = ...) -> None: ...

class PrepareTargetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportSnapshotRequest(_message.Message):
    __slots__ = ("region_id",)
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    def __init__(self, region_id: _Optional[int] = ...) -> None: ...

class ExecutionStatusRequest(_message.Message):
    __slots__ = ("region_id", "transition_id")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    transition_id: str
    def __init__(self, region_id: _Optional[int] = ..., transition_id: _Optional[str] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("kind", "outcome", "region_id", "time_ms", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    outcome: str
    region_id: int
    time_ms: int
    detail: str
    def __init__(self, kind: _Optional[str] = ..., outcome: _Optional[str] = ..., region_id: _Optional[int] = ..., time_ms: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Topology(_message.Message):
    __slots__ = ("transition_id", "kind", "region_id", "outcome", "publish", "detail", "time_ms", "publish_attempts")
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    transition_id: str
    kind: str
    region_id: int
    outcome: str
    publish: str
    detail: str
    time_ms: int
    publish_attempts: int
    def __init__(self, transition_id: _Optional[str] = ..., kind: _Optional[str] = ..., region_id: _Optional[int] = ..., outcome: _Optional[str] = ..., publish: _Optional[str] = ..., detail: _Optional[str] = ..., time_ms: _Optional[int] = ..., publish_attempts: _Optional[int] = ...) -> None: ...

class RestartPosture(_message.Message):
    __slots__ = ("state", "region_count", "raft_group_count", "missing_raft_pointers", "pending_root_events")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REGION_COUNT_FIELD_NUMBER: _ClassVar[int]
    RAFT_GROUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISSING_RAFT_POINTERS_FIELD_NUMBER: _ClassVar[int]
    PENDING_ROOT_EVENTS_FIELD_NUMBER: _ClassVar[int]
    state: str
    region_count: int
    raft_group_count: int
    missing_raft_pointers: _containers.RepeatedScalarFieldContainer[int]
    pending_root_events: int
    def __init__(self, state: _Optional[str] = ..., region_count: _Optional[int] = ..., raft_group_count: _Optional[int] = ..., missing_raft_pointers: _Optional[_Iterable[int]] = ..., pending_root_events: _Optional[int] = ...) -> None: ...

class ExecutionStatusResponse(_message.Message):
    __slots__ = ("store_id", "mode", "last_admission", "topology", "restart", "regions", "leader_region_ids")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LAST_ADMISSION_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    LEADER_REGION_IDS_FIELD_NUMBER: _ClassVar[int]
    store_id: int
    mode: str
    last_admission: _containers.RepeatedCompositeFieldContainer[Admission]
    topology: _containers.RepeatedCompositeFieldContainer[Topology]
    restart: RestartPosture
    regions: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Region]
    leader_region_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, store_id: _Optional[int] = ..., mode: _Optional[str] = ..., last_admission: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., topology: _Optional[_Iterable[_Union[Topology, _Mapping]]] = ..., restart: _Optional[_Union[RestartPosture, _Mapping]] = ..., regions: _Optional[_Iterable[_Union[_meta_pb2.Region, _Mapping]]] = ..., leader_region_ids: _Optional[_Iterable[int]] = ...) -> None: ...
