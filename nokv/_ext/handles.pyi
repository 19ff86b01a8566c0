from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from nokv._ext.iterator import Iterator
from nokv._ext.scan import Scan
from nokv._ext.view import Store
from nokv.env.ports import Buffer

D = TypeVar("D")
Pairs = Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes]

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

class Snapshot(_Reads):
    sequence: int
    closed: bool
    def __init__(self, core: Store) -> None: ...
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
