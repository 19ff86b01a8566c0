from collections.abc import Callable, Iterable
from typing import Protocol

from nokv.env.ports import Buffer

KEY_BYTES_LIMIT: int
VALUE_BYTES_LIMIT: int
TTL_MS_LIMIT: int
EXPIRY_MS_LIMIT: int

class HasId(Protocol):
    @property
    def id(self) -> int: ...

class WriteBatch:
    size_bytes: int
    def __init__(
        self, *, resolve: Callable[[str], int] | None = None, now_ms: Callable[[], int] | None = None
    ) -> None: ...
    def put(
        self,
        key: Buffer,
        value: Buffer,
        family: HasId | str | int | None = None,
        *,
        ttl: int | None = None,
        expires_at_ms: int | None = None,
    ) -> None: ...
    def delete(self, key: Buffer, family: HasId | str | int | None = None) -> None: ...
    def delete_range(
        self, start: Buffer | None, end: Buffer | None, family: HasId | str | int | None = None
    ) -> None: ...
    def put_many(
        self, pairs: Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes], family: HasId | str | int | None = None
    ) -> None: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...
    def payload(self, first_sequence: int) -> bytes: ...

def checked_pairs(pairs: Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes]) -> list[tuple[bytes, bytes]]: ...
def expiry_after(now_ms: int, ttl: int) -> int: ...
def decode_batch(payload: Buffer) -> tuple[int, list[tuple[int, int, bytes, bytes | None]]]: ...
