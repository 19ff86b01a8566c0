"""Optimistic transactions: serializable among everything that one process does with one open database.

Owns: what a transaction read and what it wants to write. A transaction reads one snapshot, remembers every key and
every range that it looked at, and keeps its writes to itself. Its commit keeps writers out for a moment, asks whether
anything it looked at was written since (nokv/_ext/iterator.pyx: `changed`), and if not writes everything as one batch.
So a committed transaction is as if it had run alone at the moment of its commit; one that only read, at the moment it
began. Of transactions that meet, at least one commits: retrying makes progress.

Source: Kung and Robinson, "On optimistic methods for concurrency control" (1981), serial validation.

Threads: a transaction belongs to one thread at a time; any number may be open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from nokv._ext.batch import KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT, WriteBatch, checked_pairs, expiry_after
from nokv._ext.iterator import changed
from nokv.env.ports import Buffer
from nokv.errors import BytesRequired, Closed, Conflict, UsageError

if TYPE_CHECKING:
    from nokv._ext.db import Family
    from nokv.engine.db import DB

__all__ = ["Transaction"]

D = TypeVar("D")
Bound = list[Any]  # [family id, first, end or None]: grows while a scan is walked


def as_bytes(value: Buffer, what: str) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    hint = "encode it first: text.encode()" if isinstance(value, str) else "keys and values are bytes"
    raise BytesRequired(f"{what} must be bytes, not {type(value).__name__}", hint=hint)


def successor(prefix: bytes) -> bytes | None:
    """The smallest key greater than every key with this prefix; None if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,)) if head else None


class Transaction:
    """Made by `db.transaction()`. `with` commits at the end of the block, or rolls back if it raises."""

    def __init__(self, db: DB, sync: bool | None) -> None:
        self._db = db
        self._sync = sync
        self._snapshot = db.snapshot()
        self._keys: set[tuple[int, bytes]] = set()
        self._ranges: list[Bound] = []
        self._writes: dict[int, dict[bytes, bytes | None]] = {}
        self._erased: dict[int, list[tuple[bytes, bytes | None]]] = {}  # deleted ranges; later writes are in `_writes`
        self._expiries: dict[tuple[int, bytes], int] = {}  # Unix ms, of the written values that expire
        self._open = True

    # -- reads --------------------------------------------------------------------------------------------------------
    @overload
    def get(self, key: Buffer, default: None = None, *, family: Family | str | int | None = None) -> bytes | None: ...
    @overload
    def get(self, key: Buffer, default: D, *, family: Family | str | int | None = None) -> bytes | D: ...
    def get(self, key: Buffer, default: Any = None, *, family: Family | str | int | None = None) -> Any:
        """The value as this transaction sees it: its own writes, else its snapshot. The commit checks that it still
        holds."""
        self._check()
        number = self._family(family)
        key = as_bytes(key, "key")
        written = self._writes.get(number)
        if written is not None and key in written:
            value = written[key]
            return default if value is None else value
        if self._is_erased(number, key):
            return default
        self._keys.add((number, key))
        return self._reader(number).get(key, default)

    def get_many(self, keys: Iterable[Buffer], *, family: Family | str | int | None = None) -> list[bytes | None]:
        """Values in the order of the keys, None where there is none."""
        return [self.get(key, family=family) for key in keys]

    def scan(
        self,
        start: Buffer | None = None,
        end: Buffer | None = None,
        *,
        prefix: Buffer | None = None,
        reverse: bool = False,
        limit: int | None = None,
        family: Family | str | int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs in key order, with this transaction's own writes up to now. The commit checks the part that was walked,
        gaps included."""
        self._check()
        number = self._family(family)
        first = b"" if start is None else as_bytes(start, "start")
        last = None if end is None else as_bytes(end, "end")
        if start is not None and last is not None and first > last:
            raise UsageError("the scan's start is after its end", hint="reverse=True keeps start <= end")
        if limit is not None and limit < 0:
            raise UsageError(f"limit {limit} is negative")
        if prefix is not None:
            prefix = as_bytes(prefix, "prefix")
            first = max(first, prefix)
            after = successor(prefix)
            if after is not None and (last is None or after < last):
                last = after
        if last is not None and first >= last:
            return iter(())
        own = {
            key: value
            for key, value in self._writes.get(number, {}).items()
            if key >= first and (last is None or key < last)
        }
        return self._walk(number, first, last, reverse, limit, own)

    def _walk(
        self,
        number: int,
        first: bytes,
        last: bytes | None,
        reverse: bool,
        limit: int | None,
        own: dict[bytes, bytes | None],
    ) -> Iterator[tuple[bytes, bytes]]:
        bound: Bound = [number, last, last] if reverse else [number, first, first]
        left = -1 if limit is None else limit
        if left == 0:
            return
        self._ranges.append(bound)
        stored = self._reader(number).scan(first, last, reverse=reverse)
        erased = list(self._erased.get(number, ()))  # a range that is deleted from here on is later than this scan
        for key, value in _merge(stored, own, erased, reverse):
            if reverse:
                bound[1] = key
            else:
                bound[2] = key + b"\0"
            if value is None:
                continue
            yield key, value
            self._check()
            left -= 1
            if left == 0:
                return
        bound[1], bound[2] = first, last

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(
        self, key: Buffer, value: Buffer, *, ttl: int | None = None, family: Family | str | int | None = None
    ) -> None:
        """Visible to this transaction at once and until it ends, to others after the commit. `ttl`: milliseconds from
        now, not from the commit, after which the key is absent."""
        self._check()
        self._write(
            key, as_bytes(value, "value"), family, None if ttl is None else expiry_after(self._db._now_ms(), ttl)
        )

    def delete(self, key: Buffer, *, family: Family | str | int | None = None) -> None:
        """Forget `key`, which need not exist."""
        self._check()
        self._write(key, None, family)

    def delete_range(
        self, start: Buffer | None, end: Buffer | None, *, family: Family | str | int | None = None
    ) -> None:
        """Forget every key in start <= key < end (None: open), also those that others write until the commit."""
        self._check()
        first = b"" if start is None else as_bytes(start, "start")
        last = None if end is None else as_bytes(end, "end")
        number = self._family(family)
        WriteBatch().delete_range(first, last, number)  # checks the bounds
        if first == last:
            return
        written = self._writes.get(number, {})
        for key in [key for key in written if _within(key, first, last)]:
            del written[key]
            self._expiries.pop((number, key), None)
        self._erased.setdefault(number, []).append((first, last))

    def _is_erased(self, number: int, key: bytes) -> bool:
        return any(_within(key, first, last) for first, last in self._erased.get(number, ()))

    def put_many(
        self,
        pairs: Iterable[tuple[Buffer, Buffer]] | dict[bytes, bytes],
        *,
        family: Family | str | int | None = None,
    ) -> None:
        """All of them, or none: UsageError names the first that is no pair."""
        self._check()
        checked = checked_pairs(pairs)
        self._check()  # whoever makes the pairs may have ended the transaction
        for key, value in checked:
            self._write(key, value, family)

    def _write(
        self, key: Buffer, value: bytes | None, family: Family | str | int | None, expires_at_ms: int | None = None
    ) -> None:
        key = as_bytes(key, "key")
        if len(key) > KEY_BYTES_LIMIT:
            raise UsageError(
                f"a key of {len(key)} bytes is too long", hint=f"keys have at most {KEY_BYTES_LIMIT} bytes"
            )
        if value is not None and len(value) > VALUE_BYTES_LIMIT:
            raise UsageError(f"a value of {len(value)} bytes is too long", hint="values have at most 1 GiB - 1 bytes")
        number = self._family(family)
        self._writes.setdefault(number, {})[key] = value
        if expires_at_ms is not None:
            self._expiries[number, key] = expires_at_ms
        else:
            self._expiries.pop((number, key), None)

    # -- the end ------------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """Check what was read, write what was written, as one step. Conflict: nothing was written; run it again.

        Also raises what a write raises (ReadOnly, Closed). After any error the transaction is over."""
        self._check()
        try:
            if any(self._writes.values()) or self._erased:
                batch = WriteBatch()
                for family, ranges in self._erased.items():  # first: what was written there later stays
                    for first, last in ranges:
                        batch.delete_range(first, last, family)
                for family, writes in self._writes.items():
                    for key, value in writes.items():
                        if value is None:
                            batch.delete(key, family)
                        else:
                            batch.put(key, value, family, expires_at_ms=self._expiries.get((family, key)))
                self._db.write_if(batch, self._unchanged, sync=self._sync)
        finally:
            self.rollback()

    def _unchanged(self) -> None:
        """Conflict if anything that was read has been written since. Writers are kept out."""
        sequence = self._snapshot.sequence
        if self._db.sequence == sequence:
            return
        looked: list[tuple[bytes, bytes | None]] = [(_head(f, key), _head(f, key + b"\0")) for f, key in self._keys]
        for family, first, end in self._ranges:
            if first is None or first == end:
                continue  # nothing of it was walked
            looked.append((_head(family, first), _after(family) if end is None else _head(family, end)))
        looked.sort()
        found = changed(self._db, sequence, looked, self._db.stored_sequence > sequence)
        if found is not None:
            raise Conflict(
                "something that this transaction read was written meanwhile",
                first=found[0][1:],
                end=None if found[1] is None else found[1][1:],
                hint="run it again: db.run(function) does",
            )

    def rollback(self) -> None:
        """Forget everything. A finished transaction is not touched."""
        if self._open:
            self._open = False
            self._snapshot.close()
            self._keys.clear()
            self._ranges.clear()
            self._writes.clear()
            self._expiries.clear()
            self._erased.clear()

    @property
    def closed(self) -> bool:
        """Committed, rolled back, or failed."""
        return not self._open

    @property
    def sequence(self) -> int:
        """Of the snapshot that it reads."""
        return self._snapshot.sequence

    def _check(self) -> None:
        if not self._open:
            raise Closed("the transaction has ended", hint="begin another: db.transaction()")
        self._db._check_open()

    def _family(self, family: Family | str | int | None) -> int:
        return 0 if family is None else self._db._family_number(family)

    def _reader(self, number: int) -> Any:
        return self._snapshot if number == 0 else self._snapshot.family(number)

    def __enter__(self) -> Transaction:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._open:
            self.commit()
        else:
            self.rollback()

    def __repr__(self) -> str:
        return f"<Transaction at {self._snapshot.sequence}, {'open' if self._open else 'ended'}>"


def _head(family: int, key: bytes) -> bytes:
    return bytes((family,)) + key


def _after(family: int) -> bytes | None:
    return bytes((family + 1,)) if family < 255 else None


def _within(key: bytes, first: bytes, last: bytes | None) -> bool:
    return key >= first and (last is None or key < last)


def _merge(
    stored: Iterator[tuple[bytes, bytes]],
    own: dict[bytes, bytes | None],
    erased: list[tuple[bytes, bytes | None]],
    reverse: bool,
) -> Iterator[tuple[bytes, bytes | None]]:
    """Both in order; of a key in both, what `own` says. None: deleted, by a key or by one of the ranges `erased`."""
    ours = sorted(own.items(), reverse=reverse)
    at = 0
    for key, value in stored:
        while at < len(ours) and (ours[at][0] > key if reverse else ours[at][0] < key):
            yield ours[at]
            at += 1
        if at < len(ours) and ours[at][0] == key:
            yield ours[at]
            at += 1
        elif any(_within(key, first, last) for first, last in erased):
            yield key, None
        else:
            yield key, value
    yield from ours[at:]
