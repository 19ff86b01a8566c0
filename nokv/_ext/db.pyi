import collections.abc
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from nokv._ext.batch import WriteBatch
from nokv._ext.iterator import Iterator
from nokv._ext.memtable import MemTable
from nokv._ext.merge import OwnedCursor
from nokv._ext.version import Version
from nokv._ext.wal import LiveSegmentReader, SegmentReader, WalCore
from nokv.env.ports import Buffer

D = TypeVar("D")
Pairs = Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes]
SEQUENCE_MAX: int

class View:
    mem: MemTable
    immutables: tuple[MemTable, ...]
    version: Version
    def __init__(self, mem: MemTable, immutables: tuple[MemTable, ...], version: Version) -> None: ...

T = TypeVar("T")

class Scan(Generic[T]):
    def __iter__(self) -> collections.abc.Iterator[T]: ...
    def __next__(self) -> T: ...
    def fetch(self, count: int) -> list[T]: ...
    def close(self) -> None: ...

class _Reads:
    @overload
    def get(self, key: Buffer) -> bytes | None: ...
    @overload
    def get(self, key: Buffer, default: D) -> bytes | D: ...
    def get_many(self, keys: Iterable[Buffer]) -> list[bytes | None]: ...
    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[True] = True,
        values: Literal[True] = True,
    ) -> Scan[tuple[bytes, bytes]]: ...
    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[True] = True,
        values: Literal[False],
    ) -> Scan[bytes]: ...
    @overload
    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys: Literal[False],
        values: Literal[True] = True,
    ) -> Scan[bytes]: ...
    def iterator(
        self, start: Buffer | None = None, end: Buffer | None = None, *, prefix: Buffer | None = None
    ) -> Iterator: ...

class _Writes:
    def put(self, key: Buffer, value: Buffer, *, ttl: int | None = None, sync: bool | None = None) -> None: ...
    def delete(self, key: Buffer, *, sync: bool | None = None) -> None: ...
    def delete_range(self, start: Buffer | None, end: Buffer | None, *, sync: bool | None = None) -> None: ...
    def put_many(self, pairs: Pairs, *, sync: bool | None = None) -> None: ...

class Core(_Reads, _Writes):
    view: View
    wal: WalCore
    sequence: int
    ready: bool
    state: int
    durability: int
    dirty: bool
    expiring: bool
    room_bytes: int
    family_count: int
    newest_snapshot: int
    puts: int
    deletes: int
    gets: int
    scans: int
    batches: int
    written_bytes: int
    def flushed_get(self, family: Family | str | int | None, key: Buffer) -> bytes | None: ...
    def write(self, batch: WriteBatch, *, sync: bool | None = None, log: bool = True) -> None: ...
    def snapshot(self) -> Snapshot: ...
    def snapshot_sequences(self) -> list[int]: ...
    def _now_ms(self) -> int: ...
    def _expired_ms(self) -> int: ...
    def _check_open(self) -> None: ...
    def _family_number(self, family: Any) -> int: ...
    def _has_room(self, size: int, log: bool) -> bool: ...
    def _write_locked(self, batch: WriteBatch, log: bool) -> None: ...
    def _replay_segment(self, segment: SegmentReader, end: int, flushed: int, path: str) -> None: ...
    def _follow_segment(
        self,
        segment: LiveSegmentReader,
        mem: MemTable,
        end: int,
        flushed: int,
        last: int,
        room: int,
        held: list[int],
        path: str,
    ) -> tuple[int, int, bool]: ...
    def _publish(self, view: View, sequence: int) -> None: ...
    def _stand_at(self, other: Core) -> None: ...
    def _memtable_cursor(self, mem: MemTable) -> OwnedCursor: ...
    def _scan_all(self, view: View) -> list[tuple[bytes, int, int, bytes]]: ...

class Snapshot(_Reads):
    sequence: int
    closed: bool
    def __init__(self, core: Core) -> None: ...
    def family(self, name: str | int) -> SnapshotFamily: ...
    def close(self) -> None: ...
    def __enter__(self) -> Snapshot: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class SnapshotFamily(_Reads):
    name: str | int
    id: int

class Family(_Reads, _Writes):
    name: str
    id: int
    def __init__(self, core: Any, name: str, number: int) -> None: ...
    def compact(self, start: Buffer | None = None, end: Buffer | None = None) -> None: ...
