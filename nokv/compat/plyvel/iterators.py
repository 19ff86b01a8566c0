"""Walking a database or a snapshot: plyvel's iterator stands between entries, LevelDB's on one."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from nokv.compat.plyvel.arguments import checked_bytes, flag, read_flags
from nokv.compat.plyvel.errors import ITERATOR_CLOSED, IteratorInvalidError, iterator_errors
from nokv.engine.transaction import successor

if TYPE_CHECKING:
    from nokv.compat.plyvel.database import DB


class Position(Protocol):
    """nokv.Iterator or order.OrderPosition."""

    @property
    def valid(self) -> bool: ...
    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def closed(self) -> bool: ...
    def seek_first(self) -> bool: ...
    def seek_last(self) -> bool: ...
    def seek(self, key: bytes, /) -> bool: ...
    def next(self) -> bool: ...
    def prev(self) -> bool: ...
    def close(self) -> None: ...


def between(
    db: DB, source: Any, low: bytes | None, high: bytes | None, include_low: bool, include_high: bool
) -> Position:
    """A position on `source` (a database or a snapshot, ordered or not)."""
    position: Position
    if db._order is not None:
        position = source.iterator(low, high, include_low, include_high)
        return position
    low = low or b""
    if not include_low:
        low += b"\0"
    if high is not None and include_high:
        high += b"\0"
    if high is not None and low > high:
        low = high
    position = source.iterator(low, high)
    return position


def iterate(
    db: DB,
    source: Any,
    head: bytes | None,
    reverse: bool = False,
    start: bytes | None = None,
    stop: bytes | None = None,
    include_start: bool = True,
    include_stop: bool = False,
    prefix: bytes | None = None,
    include_key: bool = True,
    include_value: bool = True,
    verify_checksums: bool = False,
    fill_cache: bool = True,
) -> Iterator:
    """`head` is a prefixed database's prefix: also an empty one is a bound, where it is not the smallest key."""
    for name, bound in (("start", start), ("stop", stop), ("prefix", prefix)):
        if bound is not None:
            checked_bytes(bound, name)
    backward, keys = flag(reverse, "reverse"), flag(include_key, "include_key")
    values = flag(include_value, "include_value")
    include_start = flag(include_start, "include_start") or start is None
    include_stop = flag(include_stop, "include_stop") and stop is not None
    read_flags(verify_checksums, fill_cache)
    if db.closed:
        raise RuntimeError(ITERATOR_CLOSED)
    if prefix is not None:
        if start is not None or stop is not None:
            raise TypeError("'prefix' cannot be used together with 'start' or 'stop'")
        start, include_start, include_stop = prefix, True, False
    low, high = start, stop
    if head is not None:
        low = head + (start or b"")
        high = successor(head) if stop is None else head + stop
    if prefix is not None:
        high = successor((head or b"") + prefix)
    with iterator_errors:
        position = between(db, source, low, high, include_start, include_stop)
        return Iterator(db, position, head or b"", backward, keys, values, high if include_stop else None)


class BaseIterator:
    """Ends with its database, not with its snapshot."""

    def __init__(self, db: DB, position: Position) -> None:
        self._db = db
        self._position = position

    def _it(self) -> Position:
        if self._position.closed or self._db.closed:
            raise RuntimeError(ITERATOR_CLOSED)
        return self._position

    def close(self) -> None:
        self._position.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> Literal[False]:
        self.close()
        return False

    def __reduce__(self) -> NoReturn:
        raise TypeError("an iterator cannot be pickled or copied")


class Iterator(BaseIterator):
    """Stands between entries. The position under it is on the entry to its right, or, at the end, on none.

    `last` is an inclusive stop: a seek beyond it stands before it, as in plyvel.
    """

    def __init__(
        self,
        db: DB,
        position: Position,
        prefix: bytes,
        reverse: bool,
        keys: bool,
        values: bool,
        last: bytes | None,
    ) -> None:
        super().__init__(db, position)
        self._prefix = len(prefix)
        self._head = prefix
        self._last = last
        self._reverse = reverse
        self._keys = keys
        self._values = values
        if not reverse:
            position.seek_first()

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        return self._left() if self._reverse else self._right()

    def prev(self) -> Any:
        return self._right() if self._reverse else self._left()

    def _right(self) -> Any:
        it = self._it()
        with iterator_errors:
            if it.valid:
                item = self._item(it)
                it.next()
                return item
        raise StopIteration

    def _left(self) -> Any:
        it = self._it()
        with iterator_errors:
            if it.prev() if it.valid else it.seek_last():
                return self._item(it)
            it.seek_first()
        raise StopIteration

    def _item(self, it: Position) -> Any:
        if not self._keys:
            return it.value if self._values else None
        key = it.key[self._prefix :]
        return (key, it.value) if self._values else key

    def seek_to_start(self) -> None:
        it = self._it()
        with iterator_errors:
            it.seek_first()

    def seek_to_stop(self) -> None:
        it = self._it()
        with iterator_errors:
            if it.seek_last():
                it.next()

    def seek(self, target: bytes) -> None:
        target = self._head + checked_bytes(target, "target")
        it = self._it()
        with iterator_errors:
            if self._last is not None and self._db._compare(target, self._last) > 0:
                target = self._last
            it.seek(target)


class RawIterator(BaseIterator):
    """LevelDB's own iterator: stands on an entry, or is not valid."""

    def valid(self) -> bool:
        return self._it().valid

    def seek_to_first(self) -> None:
        it = self._it()
        with iterator_errors:
            it.seek_first()

    def seek_to_last(self) -> None:
        it = self._it()
        with iterator_errors:
            it.seek_last()

    def seek(self, target: bytes) -> None:
        checked_bytes(target, "target")
        it = self._it()
        with iterator_errors:
            it.seek(target)

    def _on(self) -> Position:
        it = self._it()
        if not it.valid:
            raise IteratorInvalidError
        return it

    def next(self) -> None:
        it = self._on()
        with iterator_errors:
            it.next()

    def prev(self) -> None:
        it = self._on()
        with iterator_errors:
            it.prev()

    def key(self) -> bytes:
        it = self._on()
        with iterator_errors:
            return it.key

    def value(self) -> bytes:
        it = self._on()
        with iterator_errors:
            return it.value

    def item(self) -> tuple[bytes, bytes]:
        return self.key(), self.value()
