from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PEER_ROLE_VOTER: _ClassVar[PeerRole]
    PEER_ROLE_LEARNER: _ClassVar[PeerRole]

class RegionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGION_STATE_NEW: _ClassVar[RegionState]
    REGION_STATE_RUNNING: _ClassVar[RegionState]
    REGION_STATE_REMOVING: _ClassVar[RegionState]
    REGION_STATE_TOMBSTONE: _ClassVar[RegionState]

class StoreState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORE_STATE_UP: _ClassVar[StoreState]
    STORE_STATE_OFFLINE: _ClassVar[StoreState]
    STORE_STATE_TOMBSTONE: _ClassVar[StoreState]
PEER_ROLE_VOTER: PeerRole
PEER_ROLE_LEARNER: PeerRole
REGION_STATE_NEW: RegionState
REGION_STATE_RUNNING: RegionState
REGION_STATE_REMOVING: RegionState
REGION_STATE_TOMBSTONE: RegionState
STORE_STATE_UP: StoreState
STORE_STATE_OFFLINE: StoreState
STORE_STATE_TOMBSTONE: StoreState

class RegionEpoch(_message.Message):
    __slots__ = ("conf_version", "version")
    CONF_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    conf_version: int
    version: int
    def __init__(self, conf_version: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("peer_id", "store_id", "role")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    peer_id: int
    store_id: int
    role: PeerRole
    def __init__(self, peer_id: _Optional[int] = ..., store_id: _Optional[int] = ..., role: _Optional[_Union[PeerRole, str]] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("region_id", "start_key", "end_key", "epoch", "peers", "state")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    START_KEY_FIELD_NUMBER: _ClassVar[int]
    END_KEY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    start_key: bytes
    end_key: bytes
    epoch: RegionEpoch
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    state: RegionState
    def __init__(self, region_id: _Optional[int] = ..., start_key: _Optional[bytes] = ..., end_key: _Optional[bytes] = ..., epoch: _Optional[_Union[RegionEpoch, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., state: _Optional[_Union[RegionState, str]] = ...) -> None: ...

class Store(_message.Message):
    __slots__ = ("store_id", "address", "state")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    store_id: int
    address: str
    state: StoreState
    def __init__(self, store_id: _Optional[int] = ..., address: _Optional[str] = ..., state: _Optional[_Union[StoreState, str]] = ...) -> None: ...

class RootToken(_message.Message):
    __slots__ = ("term", "index", "revision")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    term: int
    index: int
    revision: int
    def __init__(self, term: _Optional[int] = ..., index: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...
