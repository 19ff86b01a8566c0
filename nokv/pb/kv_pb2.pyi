from nokv.pb import meta_pb2 as _meta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegionErrorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGION_ERROR_NONE: _ClassVar[RegionErrorKind]
    REGION_ERROR_NOT_LEADER: _ClassVar[RegionErrorKind]
    REGION_ERROR_EPOCH_NOT_MATCH: _ClassVar[RegionErrorKind]
    REGION_ERROR_REGION_NOT_FOUND: _ClassVar[RegionErrorKind]
    REGION_ERROR_KEY_NOT_IN_REGION: _ClassVar[RegionErrorKind]
    REGION_ERROR_STORE_NOT_MATCH: _ClassVar[RegionErrorKind]
    REGION_ERROR_BUSY: _ClassVar[RegionErrorKind]
    REGION_ERROR_DEADLINE: _ClassVar[RegionErrorKind]
    REGION_ERROR_INDETERMINATE: _ClassVar[RegionErrorKind]
    REGION_ERROR_INVALID: _ClassVar[RegionErrorKind]
    REGION_ERROR_NOT_SUPPORTED: _ClassVar[RegionErrorKind]
    REGION_ERROR_READ_ONLY: _ClassVar[RegionErrorKind]
    REGION_ERROR_CORRUPTION: _ClassVar[RegionErrorKind]
REGION_ERROR_NONE: RegionErrorKind
REGION_ERROR_NOT_LEADER: RegionErrorKind
REGION_ERROR_EPOCH_NOT_MATCH: RegionErrorKind
REGION_ERROR_REGION_NOT_FOUND: RegionErrorKind
REGION_ERROR_KEY_NOT_IN_REGION: RegionErrorKind
REGION_ERROR_STORE_NOT_MATCH: RegionErrorKind
REGION_ERROR_BUSY: RegionErrorKind
REGION_ERROR_DEADLINE: RegionErrorKind
REGION_ERROR_INDETERMINATE: RegionErrorKind
REGION_ERROR_INVALID: RegionErrorKind
REGION_ERROR_NOT_SUPPORTED: RegionErrorKind
REGION_ERROR_READ_ONLY: RegionErrorKind
REGION_ERROR_CORRUPTION: RegionErrorKind

class RegionContext(_message.Message):
    __slots__ = ("region_id", "epoch", "store_id")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    epoch: _meta_pb2.RegionEpoch
    store_id: int
    def __init__(self, region_id: _Optional[int] = ..., epoch: _Optional[_Union[_meta_pb2.RegionEpoch, _Mapping]] = ..., store_id: _Optional[int] = ...) -> None: ...

class RegionCommands(_message.Message):
    __slots__ = ("request_id", "context", "write", "deadline_ms", "read_ts", "commands")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    READ_TS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    context: RegionContext
    write: bool
    deadline_ms: int
    read_ts: int
    commands: bytes
    def __init__(self, request_id: _Optional[int] = ..., context: _Optional[_Union[RegionContext, _Mapping]] = ..., write: bool = ..., deadline_ms: _Optional[int] = ..., read_ts: _Optional[int] = ..., commands: _Optional[bytes] = ...) -> None: ...

class NotLeaderInfo(_message.Message):
    __slots__ = ("region_id", "leader", "address")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    leader: _meta_pb2.Peer
    address: str
    def __init__(self, region_id: _Optional[int] = ..., leader: _Optional[_Union[_meta_pb2.Peer, _Mapping]] = ..., address: _Optional[str] = ...) -> None: ...

class RegionError(_message.Message):
    __slots__ = ("kind", "message", "not_leader", "current_regions")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NOT_LEADER_FIELD_NUMBER: _ClassVar[int]
    CURRENT_REGIONS_FIELD_NUMBER: _ClassVar[int]
    kind: RegionErrorKind
    message: str
    not_leader: NotLeaderInfo
    current_regions: _containers.RepeatedCompositeFieldContainer[_meta_pb2.Region]
    def __init__(self, kind: _Optional[_Union[RegionErrorKind, str]] = ..., message: _Optional[str] = ..., not_leader: _Optional[_Union[NotLeaderInfo, _Mapping]] = ..., current_regions: _Optional[_Iterable[_Union[_meta_pb2.Region, _Mapping]]] = ...) -> None: ...

class RegionReply(_message.Message):
    __slots__ = ("request_id", "error", "results", "commit_ts")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    error: RegionError
    results: bytes
    commit_ts: int
    def __init__(self, request_id: _Optional[int] = ..., error: _Optional[_Union[RegionError, _Mapping]] = ..., results: _Optional[bytes] = ..., commit_ts: _Optional[int] = ...) -> None: ...

class KvBatchRequest(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[RegionCommands]
    def __init__(self, groups: _Optional[_Iterable[_Union[RegionCommands, _Mapping]]] = ...) -> None: ...

class KvBatchResponse(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[RegionReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[RegionReply, _Mapping]]] = ...) -> None: ...
