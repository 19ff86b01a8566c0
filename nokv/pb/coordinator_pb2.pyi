from nokv.pb import meta_pb2 as _meta_pb2
from nokv.pb import root_pb2 as _root_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Freshness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRESHNESS_BEST_EFFORT: _ClassVar[Freshness]
    FRESHNESS_BOUNDED: _ClassVar[Freshness]
    FRESHNESS_STRONG: _ClassVar[Freshness]
FRESHNESS_BEST_EFFORT: Freshness
FRESHNESS_BOUNDED: Freshness
FRESHNESS_STRONG: Freshness

class ViewInfo(_message.Message):
    __slots__ = ("served", "current", "root_lag", "degraded", "served_by_lease_holder", "source", "catch_up", "freshness")
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    ROOT_LAG_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_LEASE_HOLDER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CATCH_UP_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    served: _meta_pb2.RootToken
    current: _meta_pb2.RootToken
    root_lag: int
    degraded: str
    served_by_lease_holder: bool
    source: str
    catch_up: str
    freshness: Freshness
    def __init__(self, served: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., current: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., root_lag: _Optional[int] = ..., degraded: _Optional[str] = ..., served_by_lease_holder: bool = ..., source: _Optional[str] = ..., catch_up: _Optional[str] = ..., freshness: _Optional[_Union[Freshness, str]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("region", "leader", "stores")
    REGION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    region: _meta_pb2.Region
    leader: _meta_pb2.Peer
    stores: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Store]
    def __init__(self, region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., leader: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., stores: _Optional[_Iterable[_Union[_meta_pb2.Store, _Mapping]]] = ...) -> None: ...

class GetRegionByKeyRequest(_message.Message):
    __slots__ = ("key", "freshness", "at_least", "max_lag")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    MAX_LAG_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    freshness: Freshness
    at_least: _meta_pb2.RootToken
    max_lag: int
    def __init__(self, key: _Optional[bytes] = ..., freshness: _Optional[_Union[Freshness, str]] = ..., at_least: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., max_lag: _Optional[int] = ...) -> None: ...

class GetRegionByIdRequest(_message.Message):
    __slots__ = ("region_id", "freshness", "at_least", "max_lag")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    MAX_LAG_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    freshness: Freshness
    at_least: _meta_pb2.RootToken
    max_lag: int
    def __init__(self, region_id: _Optional[int] = ..., freshness: _Optional[_Union[Freshness, str]] = ..., at_least: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., max_lag: _Optional[int] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("route", "view")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    route: Route
    view: ViewInfo
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ...) -> None: ...

class ScanRegionsRequest(_message.Message):
    __slots__ = ("start_key", "end_key", "limit", "freshness", "at_least", "max_lag")
    START_KEY_FIELD_NUMBER: _ClassVar[int]
    END_KEY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    MAX_LAG_FIELD_NUMBER: _ClassVar[int]
    start_key: bytes
    end_key: bytes
    limit: int
    freshness: Freshness
    at_least: _meta_pb2.RootToken
    max_lag: int
    def __init__(self, start_key: _Optional[bytes] = ..., end_key: _Optional[bytes] = ..., limit: _Optional[int] = ..., freshness: _Optional[_Union[Freshness, str]] = ..., at_least: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., max_lag: _Optional[int] = ...) -> None: ...

class ScanRegionsResponse(_message.Message):
    __slots__ = ("routes", "view")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    view: ViewInfo
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ...) -> None: ...

class StoreStats(_message.Message):
    __slots__ = ("store_id", "region_count", "leader_count", "used_bytes", "mode")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    REGION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEADER_COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    store_id: int
    region_count: int
    leader_count: int
    used_bytes: int
    mode: str
    def __init__(self, store_id: _Optional[int] = ..., region_count: _Optional[int] = ..., leader_count: _Optional[int] = ..., used_bytes: _Optional[int] = ..., mode: _Optional[str] = ...) -> None: ...

class StoreHeartbeatRequest(_message.Message):
    __slots__ = ("store", "stats", "outcomes")
    STORE_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    store: _meta_pb2.Store
    stats: StoreStats
    outcomes: _containers.RepeatedCompositeFieldContainer[OperationOutcome]
    def __init__(self, store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ..., stats: _Optional[_Union[StoreStats, _Mapping]] = ..., outcomes: _Optional[_Iterable[_Union[OperationOutcome, _Mapping]]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("operation_id", "kind", "region_id", "target_peer_id", "deadline_ms", "era")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_PEER_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    kind: str
    region_id: int
    target_peer_id: int
    deadline_ms: int
    era: int
    def __init__(self, operation_id: _Optional[int] = ..., kind: _Optional[str] = ..., region_id: _Optional[int] = ..., target_peer_id: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., era: _Optional[int] = ...) -> None: ...

class StoreHeartbeatResponse(_message.Message):
    __slots__ = ("operations", "timestamp")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    timestamp: int
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., timestamp: _Optional[int] = ...) -> None: ...

class OperationOutcome(_message.Message):
    __slots__ = ("operation_id", "outcome", "detail")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    outcome: str
    detail: str
    def __init__(self, operation_id: _Optional[int] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class LeaderReport(_message.Message):
    __slots__ = ("region", "leader", "term", "applied_index")
    REGION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    region: _meta_pb2.Region
    leader: _meta_pb2.Peer
    term: int
    applied_index: int
    def __init__(self, region: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ..., leader: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., term: _Optional[int] = ..., applied_index: _Optional[int] = ...) -> None: ...

class RegionHeartbeatRequest(_message.Message):
    __slots__ = ("regions",)
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[LeaderReport]
    def __init__(self, regions: _Optional[_Iterable[_Union[LeaderReport, _Mapping]]] = ...) -> None: ...

class RegionHeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveRegionRequest(_message.Message):
    __slots__ = ("region_id",)
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    def __init__(self, region_id: _Optional[int] = ...) -> None: ...

class RemoveRegionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AllocIdRequest(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class AllocIdResponse(_message.Message):
    __slots__ = ("first", "count", "era")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    era: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., era: _Optional[int] = ...) -> None: ...

class TsoRequest(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class TsoResponse(_message.Message):
    __slots__ = ("first", "count", "era")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    era: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., era: _Optional[int] = ...) -> None: ...

class PutStoreRequest(_message.Message):
    __slots__ = ("store",)
    STORE_FIELD_NUMBER: _ClassVar[int]
    store: _meta_pb2.Store
    def __init__(self, store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ...) -> None: ...

class PutStoreResponse(_message.Message):
    __slots__ = ("store", "token")
    STORE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    store: _meta_pb2.Store
    token: _meta_pb2.RootToken
    def __init__(self, store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ..., token: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ...) -> None: ...

class GetStoreRequest(_message.Message):
    __slots__ = ("store_id",)
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    store_id: int
    def __init__(self, store_id: _Optional[int] = ...) -> None: ...

class GetStoreResponse(_message.Message):
    __slots__ = ("store", "view")
    STORE_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    store: _meta_pb2.Store
    view: ViewInfo
    def __init__(self, store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ...) -> None: ...

class StoreView(_message.Message):
    __slots__ = ("store", "liveness", "last_heartbeat_ms", "stats")
    STORE_FIELD_NUMBER: _ClassVar[int]
    LIVENESS_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    store: _meta_pb2.Store
    liveness: str
    last_heartbeat_ms: int
    stats: StoreStats
    def __init__(self, store: _Optional[_Union[_meta_pb2.Store, _Mapping]] = ..., liveness: _Optional[str] = ..., last_heartbeat_ms: _Optional[int] = ..., stats: _Optional[_Union[StoreStats, _Mapping]] = ...) -> None: ...

class ListStoresRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStoresResponse(_message.Message):
    __slots__ = ("stores", "view")
    STORES_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    stores: _containers.RepeatedCompositeFieldContainer[StoreView]
    view: ViewInfo
    def __init__(self, stores: _Optional[_Iterable[_Union[StoreView, _Mapping]]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ...) -> None: ...

class PublishRootEventRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_root_pb2.RootEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[_root_pb2.RootEvent, _Mapping]]] = ...) -> None: ...

class PublishRootEventResponse(_message.Message):
    __slots__ = ("token", "already")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALREADY_FIELD_NUMBER: _ClassVar[int]
    token: _meta_pb2.RootToken
    already: bool
    def __init__(self, token: _Optional[_Union[_meta_pb2.RootToken, _Mapping]] = ..., already: bool = ...) -> None: ...

class AssessRootEventRequest(_message.Message):
    __slots__ = ("events", "expected_revision")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_root_pb2.RootEvent]
    expected_revision: int
    def __init__(self, events: _Optional[_Iterable[_Union[_root_pb2.RootEvent, _Mapping]]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("transition_id", "kind", "region_id", "phase", "revision", "source", "target")
    TRANSITION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    transition_id: str
    kind: str
    region_id: int
    phase: str
    revision: int
    source: str
    target: _meta_pb2.Region
    def __init__(self, transition_id: _Optional[str] = ..., kind: _Optional[str] = ..., region_id: _Optional[int] = ..., phase: _Optional[str] = ..., revision: _Optional[int] = ..., source: _Optional[str] = ..., target: _Optional[_Union[_meta_pb2.Region, _Mapping]] = ...) -> None: ...

class ListTransitionsRequest(_message.Message):
    __slots__ = ("region_id", "phase", "freshness")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    phase: str
    freshness: Freshness
    def __init__(self, region_id: _Optional[int] = ..., phase: _Optional[str] = ..., freshness: _Optional[_Union[Freshness, str]] = ...) -> None: ...

class ListTransitionsResponse(_message.Message):
    __slots__ = ("transitions", "view")
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    transitions: _containers.RepeatedCompositeFieldContainer[Transition]
    view: ViewInfo
    def __init__(self, transitions: _Optional[_Iterable[_Union[Transition, _Mapping]]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ...) -> None: ...

class CoordinatorStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CoordinatorStatusResponse(_message.Message):
    __slots__ = ("coordinator_id", "lease_holder", "lease", "view", "id_next", "tso_last", "reads_served", "region_count", "store_count", "operations_pending", "operations_issued", "operations_ended")
    class OperationsEndedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COORDINATOR_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_HOLDER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ID_NEXT_FIELD_NUMBER: _ClassVar[int]
    TSO_LAST_FIELD_NUMBER: _ClassVar[int]
    READS_SERVED_FIELD_NUMBER: _ClassVar[int]
    REGION_COUNT_FIELD_NUMBER: _ClassVar[int]
    STORE_COUNT_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_PENDING_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_ISSUED_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_ENDED_FIELD_NUMBER: _ClassVar[int]
    coordinator_id: str
    lease_holder: bool
    lease: _root_pb2.RootLease
    view: ViewInfo
    id_next: int
    tso_last: int
    reads_served: int
    region_count: int
    store_count: int
    operations_pending: int
    operations_issued: int
    operations_ended: _containers.ScalarMap[str, int]
    def __init__(self, coordinator_id: _Optional[str] = ..., lease_holder: bool = ..., lease: _Optional[_Union[_root_pb2.RootLease, _Mapping]] = ..., view: _Optional[_Union[ViewInfo, _Mapping]] = ..., id_next: _Optional[int] = ..., tso_last: _Optional[int] = ..., reads_served: _Optional[int] = ..., region_count: _Optional[int] = ..., store_count: _Optional[int] = ..., operations_pending: _Optional[int] = ..., operations_issued: _Optional[int] = ..., operations_ended: _Optional[_Mapping[str, int]] = ...) -> None: ...
