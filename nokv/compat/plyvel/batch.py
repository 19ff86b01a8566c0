"""Writes that happen together."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from nokv._ext.batch import WriteBatch as EngineBatch
from nokv.compat.order import Operation
from nokv.compat.plyvel.arguments import checked_bytes, flag, some, value_bytes, wrong
from nokv.compat.plyvel.errors import database_errors

if TYPE_CHECKING:
    from nokv.compat.plyvel.database import DB

BATCH_HEAD_BYTES = 12


class WriteBatch:
    def __init__(self, db: DB, prefix: bytes | None, transaction: bool, sync: bool) -> None:
        self._db = db
        self._prefix = prefix or b""
        self._transaction = flag(transaction, "transaction")
        self._sync = sync
        self._operations: list[Operation] = []
        self._size = 0

    def put(self, key: bytes, value: Any) -> None:
        key, value = checked_bytes(key, "key"), some(value)
        self._db._check()
        key, value = self._prefix + key, value_bytes(value)
        self._operations.append((key, value))
        self._size += 1 + _with_length(key) + _with_length(value)

    def delete(self, key: bytes) -> None:
        checked_bytes(key, "key")
        self._db._check()
        key = self._prefix + key
        self._operations.append((key, None))
        self._size += 1 + _with_length(key)

    def clear(self) -> None:
        self._db._check()
        self._operations.clear()
        self._size = 0

    def write(self) -> None:
        self._db._check()
        with database_errors:
            if self._db._order is not None:
                self._db._order.write(tuple(self._operations), sync=self._sync)
                return
            batch = EngineBatch()
            for key, value in self._operations:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            self._db._db.write(batch, sync=self._sync)

    def approximate_size(self) -> int:
        """What LevelDB would need."""
        self._db._check()
        return BATCH_HEAD_BYTES + self._size

    def append(self, source: WriteBatch) -> None:
        if not isinstance(source, WriteBatch):
            wrong("source", "plyvel.WriteBatch", source)
        self._db._check()
        self._operations += source._operations
        self._size += source._size

    def __enter__(self) -> WriteBatch:
        self._db._check()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db._check()
        if not (self._transaction and kind is not None):
            self.write()
        self.clear()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a write batch cannot be pickled or copied")


def _with_length(data: bytes) -> int:
    """Bytes of `data` with its length as a varint in front."""
    return len(data) + max((len(data).bit_length() + 6) // 7, 1)
