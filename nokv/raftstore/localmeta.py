"""What a store must know about itself after a restart: region catalog, apply states, identity, addresses.

Owns: the engine family `local` and its records (docs/formats/localmeta.md). It mirrors local truth, which only apply
and bootstrap advance; it is no cluster-wide truth. `put_region` and `put_applied` go into the *same* engine batch as
the data they describe: that is what makes crash replay from the flushed applied index consistent. Identity, addresses
and tombstones are logged and synced on their own. One thread: the store's loop, or the caller of bootstrap.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from nokv._ext.crc32c import crc32c
from nokv.errors import Corruption, NotFound
from nokv.pb import meta_pb2
from nokv.raft import ConfState
from nokv.raftstore.wire import region_from_pb, region_to_pb
from nokv.region import Region, RegionState

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = ["FAMILY_LOCAL", "ApplyState", "LocalMeta", "StoreIdent", "decode_record", "encode_record"]

FAMILY_LOCAL = "local"
_VERSION = 1
_KIND_REGION, _KIND_APPLIED, _KIND_STORE, _KIND_ADDRESS, _KIND_EVENT = 1, 2, 3, 4, 5
_RECORD_BYTES_MAX = 1 << 20
_PEERS_MAX = 1024

_STORE_KEY = b"store"
_REGION, _APPLIED, _ADDRESS, _EVENT = b"region/", b"applied/", b"address/", b"event/"


@dataclass(slots=True)
class ApplyState:
    """How far the engine's data of a region has come; written in the same batch as that data."""

    index: int = 0
    term: int = 0
    max_ts: int = 0  # no later commit of the region gets a timestamp at or below it
    from_snapshot: bool = False  # nothing was applied since a snapshot was installed at `index`
    conf_state: ConfState = field(default_factory=ConfState)


@dataclass(frozen=True, slots=True)
class StoreIdent:
    store_id: int
    address: str = ""


def encode_record(kind: int, body: bytes) -> bytes:
    head = bytes((_VERSION, kind)) + body
    return head + struct.pack("<I", crc32c(head))


def decode_record(kind: int, data: bytes, what: str) -> bytes:
    """The body. Corruption naming `what` if version, kind, size or checksum is wrong."""
    if not 6 <= len(data) <= _RECORD_BYTES_MAX or data[0] != _VERSION or data[1] != kind:
        raise Corruption(f"local metadata of {what} is malformed", found=data[:16].hex())
    expected = struct.unpack("<I", data[-4:])[0]
    found = crc32c(data[:-4])
    if expected != found:
        raise Corruption(f"local metadata of {what} has a wrong checksum", expected=expected, found=found)
    return data[2:-4]


def encode_region(region: Region) -> bytes:
    return encode_record(_KIND_REGION, region_to_pb(region).SerializeToString(deterministic=True))


def decode_region(data: bytes, what: str = "a region") -> Region:
    try:
        return region_from_pb(meta_pb2.Region.FromString(decode_record(_KIND_REGION, data, what)))
    except (DecodeError, ValueError) as error:
        raise Corruption(f"local metadata of {what} is malformed: {error}") from error


_APPLY_HEAD = struct.Struct("<QQQB5H")


def encode_applied(state: ApplyState) -> bytes:
    conf = state.conf_state
    lists = (conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next)
    head = _APPLY_HEAD.pack(
        state.index, state.term, state.max_ts, state.from_snapshot, conf.auto_leave, *(len(ids) for ids in lists)
    )
    return encode_record(_KIND_APPLIED, head + b"".join(struct.pack(f"<{len(ids)}Q", *ids) for ids in lists))


def decode_applied(data: bytes, what: str = "an apply state") -> ApplyState:
    body = decode_record(_KIND_APPLIED, data, what)
    if len(body) < _APPLY_HEAD.size:
        raise Corruption(f"local metadata of {what} is malformed")
    index, term, max_ts, from_snapshot, auto_leave, *sizes = _APPLY_HEAD.unpack_from(body)
    if max(sizes) > _PEERS_MAX or len(body) != _APPLY_HEAD.size + 8 * sum(sizes) or from_snapshot > 1 or auto_leave > 1:
        raise Corruption(f"local metadata of {what} is malformed")
    lists: list[tuple[int, ...]] = []
    at = _APPLY_HEAD.size
    for size in sizes:
        lists.append(struct.unpack_from(f"<{size}Q", body, at))
        at += 8 * size
    voters, learners, outgoing, learners_next = lists
    conf_state = ConfState(voters, learners, outgoing, learners_next, bool(auto_leave))
    return ApplyState(index, term, max_ts, bool(from_snapshot), conf_state)


class LocalMeta:
    """The records over one open DB. NotFound if the directory has no `local` family, unless `create`."""

    def __init__(self, db: DB, *, create: bool = False) -> None:
        self._db = db
        self.family = db.family(FAMILY_LOCAL, create=create)

    @classmethod
    def find(cls, db: DB) -> LocalMeta | None:
        try:
            return cls(db)
        except NotFound:
            return None

    # -- what a restart reads -----------------------------------------------------------------------------------------
    def all_regions(self) -> list[Region]:
        """Every descriptor, tombstones too, by region id."""
        return [decode_region(value, f"region {_id(key)}") for key, value in self._scan(_REGION)]

    def regions(self) -> list[Region]:
        """The regions this store hosts."""
        return [region for region in self.all_regions() if region.state is not RegionState.TOMBSTONE]

    def region(self, region_id: int) -> Region | None:
        """The descriptor, which may be a tombstone."""
        data = self.family.get(_REGION + _id8(region_id))
        return None if data is None else decode_region(data, f"region {region_id}")

    def applied(self, region_id: int) -> ApplyState | None:
        data = self.family.get(_APPLIED + _id8(region_id))
        return None if data is None else decode_applied(data, f"apply state of region {region_id}")

    def flushed_applied(self, region_id: int) -> ApplyState | None:
        """What a crash at this moment would find."""
        data = self._db.flushed_get(FAMILY_LOCAL, _APPLIED + _id8(region_id))
        return None if data is None else decode_applied(data, f"flushed apply state of region {region_id}")

    def ident(self) -> StoreIdent | None:
        data = self.family.get(_STORE_KEY)
        if data is None:
            return None
        body = decode_record(_KIND_STORE, data, "the store identity")
        if len(body) < 8:
            raise Corruption("local metadata of the store identity is malformed")
        return StoreIdent(int.from_bytes(body[:8], "little"), _text(body[8:], "the store identity"))

    def addresses(self) -> dict[int, str]:
        found = {}
        for key, value in self._scan(_ADDRESS):
            what = f"the address of store {_id(key)}"
            found[_id(key)] = _text(decode_record(_KIND_ADDRESS, value, what), what)
        return found

    def events(self, region_id: int) -> list[tuple[int, bytes]]:
        """(conf_version, encoded event) of topology events that this replica has applied and not seen published."""
        prefix = _EVENT + _id8(region_id)
        return [
            (int.from_bytes(key[-8:], "big"), decode_record(_KIND_EVENT, value, f"an event of region {region_id}"))
            for key, value in self._scan(prefix)
        ]

    # -- what apply puts into its batch -------------------------------------------------------------------------------
    def put_region(self, batch: Any, region: Region) -> None:
        batch.put(_REGION + _id8(region.region_id), encode_region(region), self.family)

    def put_applied(self, batch: Any, region_id: int, state: ApplyState) -> None:
        batch.put(_APPLIED + _id8(region_id), encode_applied(state), self.family)

    def delete_applied(self, batch: Any, region_id: int) -> None:
        batch.delete(_APPLIED + _id8(region_id), self.family)

    def put_address(self, batch: Any, store_id: int, address: str) -> None:
        batch.put(_ADDRESS + _id8(store_id), encode_record(_KIND_ADDRESS, address.encode()), self.family)

    def put_event(self, batch: Any, region_id: int, conf_version: int, event: bytes) -> None:
        batch.put(_EVENT + _id8(region_id) + _id8(conf_version), encode_record(_KIND_EVENT, event), self.family)

    def delete_event(self, batch: Any, region_id: int, conf_version: int) -> None:
        batch.delete(_EVENT + _id8(region_id) + _id8(conf_version), self.family)

    def snapshot_records(self, region: Region, state: ApplyState) -> list[tuple[bytes, bytes]]:
        """The records, in key order, that make an installed snapshot hosted: part of its ingest."""
        region_id = region.region_id
        return [
            (_APPLIED + _id8(region_id), encode_applied(state)),
            (_REGION + _id8(region_id), encode_region(region)),
        ]

    # -- durable on return --------------------------------------------------------------------------------------------
    def write(self, fill: Callable[[Any], None]) -> None:
        """One logged, synced batch of whatever `fill(batch)` puts."""
        from nokv import WriteBatch

        batch = WriteBatch()
        fill(batch)
        self._db.write(batch, sync=True)

    def save_ident(self, ident: StoreIdent) -> None:
        body = ident.store_id.to_bytes(8, "little") + ident.address.encode()
        self.write(lambda batch: batch.put(_STORE_KEY, encode_record(_KIND_STORE, body), self.family))

    def save_addresses(self, addresses: dict[int, str]) -> None:
        def fill(batch: Any) -> None:
            for store_id, address in addresses.items():
                self.put_address(batch, store_id, address)

        self.write(fill)

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.family.scan(prefix=prefix)


def _id8(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _id(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Corruption(f"local metadata of {what} is not text") from error
