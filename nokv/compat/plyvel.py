"""plyvel 1.5's public surface over our engine: `import nokv.compat.plyvel as plyvel` runs an existing program.

Same verbs, semantics and exception classes; a closed handle is RuntimeError, as there. Not the same: the files (a
LevelDB directory is not read: export it and import it), custom comparators (NotSupported), the text of properties and
of messages, and two answers of plyvel 1.5.1's iterators that ours does not repeat: the first step after `seek()`
may give an entry outside the bounds there, never here; a range whose one entry is its own `start` (or is its prefix) is
empty there when read from its end, and gives that entry here. Options that tune LevelDB are checked as plyvel checks
them; `write_buffer_size`, `lru_cache_size` and `block_size` are passed on, the rest has no counterpart. A
non-sync write survives the death of the process, as there.

`write_batch(transaction=False)` in a `with` block writes even if the block raises: that is what plyvel does.
Source of the behaviour: plyvel's documentation, https://plyvel.readthedocs.io/en/latest/api.html.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import nokv.engine.repair
from nokv._ext.batch import WriteBatch as _Batch
from nokv._ext.batch import decode_batch
from nokv._ext.iterator import Iterator as _Position
from nokv.engine.opening import open_db
from nokv.engine.transaction import successor
from nokv.errors import Closed, Corruption, NoKVError, NotFound, NotSupported, UsageError

__all__ = ["DB", "CorruptionError", "Error", "IOError", "IteratorInvalidError", "destroy_db", "repair_db"]
__version__ = "1.5.1"

LEVELS = 7


class Error(Exception):
    """Generic database error; `__cause__` is ours, with its hint."""


class IOError(Error, builtins.IOError):
    """The directory is locked, or the disk says no."""


class CorruptionError(Error):
    """The stored bytes are wrong."""


class IteratorInvalidError(Error):
    """A raw iterator stands on no entry."""


def _bytes(value: object, name: str) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"Argument '{name}' has incorrect type (expected bytes, got {type(value).__name__})")
    return value


def _value(value: object) -> bytes:
    if value is None:
        raise TypeError("Argument 'value' must not be None")
    return bytes(memoryview(value))  # type: ignore[arg-type]  # anything else is a TypeError, which is right


class _translated:
    """Our exceptions come out as plyvel's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, (NotSupported, TypeError)):
            return
        if isinstance(error, Closed):
            raise RuntimeError("Database is closed") from error
        if isinstance(error, Corruption):
            raise CorruptionError(str(error)) from error
        if isinstance(error, (NotFound, UsageError)):
            raise Error(str(error)) from error
        if isinstance(error, (NoKVError, OSError)):
            raise IOError(str(error)) from error


_ours = _translated()


class _Reads:
    """What a database, a prefixed database and a snapshot share. `_prefix` is in front of every key."""

    _prefix: bytes

    def _source(self) -> Any:
        raise NotImplementedError

    def get(self, key: bytes, default: Any = None, *, verify_checksums: bool = False, fill_cache: bool = True) -> Any:
        key = _bytes(key, "key")
        source = self._source()
        with _ours:
            return source.get(self._prefix + key, default)

    def iterator(
        self,
        *,
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
        if prefix is not None and (start is not None or stop is not None):
            raise TypeError("'prefix' cannot be used together with 'start' or 'stop'")
        low, high = self._prefix, successor(self._prefix)
        if prefix is not None:
            low = self._prefix + _bytes(prefix, "prefix")
            high = successor(low)
        if start is not None:
            low = self._prefix + _bytes(start, "start") + (b"" if include_start else b"\0")
        last = None
        if stop is not None:
            high = self._prefix + _bytes(stop, "stop")
            if include_stop:
                last, high = high, high + b"\0"
        if high is not None and low > high:
            low = high
        source = self._source()
        with _ours:
            position = source.iterator(low, high)
        return Iterator(self, position, self._prefix, bool(reverse), bool(include_key), bool(include_value), last)

    def __iter__(self) -> Iterator:
        return self.iterator()

    def raw_iterator(self, *, verify_checksums: bool = False, fill_cache: bool = True) -> RawIterator:
        source = self._source()
        with _ours:
            position = source.iterator(self._prefix, successor(self._prefix))
        return RawIterator(self, position, self._prefix)


class DB(_Reads):
    def __init__(
        self,
        name: str | bytes | os.PathLike[str],
        *,
        create_if_missing: bool = False,
        error_if_exists: bool = False,
        paranoid_checks: bool | None = None,
        write_buffer_size: int | None = None,
        max_open_files: int | None = None,
        lru_cache_size: int | None = None,
        block_size: int | None = None,
        block_restart_interval: int | None = None,
        max_file_size: int | None = None,
        compression: str | bytes | None = "snappy",
        bloom_filter_bits: int = 0,
        comparator: Callable[[bytes, bytes], int] | None = None,
        comparator_name: bytes | None = None,
    ) -> None:
        if (comparator is None) != (comparator_name is None):
            raise ValueError("'comparator' and 'comparator_name' must be specified together")
        if comparator is not None:
            raise NotSupported(
                "custom comparators are not supported: keys are ordered by their bytes",
                hint="encode keys so that their bytes sort as you want",
            )
        if compression not in (None, "snappy", b"snappy"):
            raise ValueError("'compression' must be None or 'snappy'")
        path = os.fsdecode(name)
        options: dict[str, Any] = {}
        if write_buffer_size is not None:
            options["write_buffer_bytes"] = max(write_buffer_size, 64 << 10)
        if lru_cache_size is not None:
            options["block_cache_bytes"] = lru_cache_size
        if block_size is not None:
            options["block_bytes"] = min(max(block_size, 64), 4 << 20)
        if compression is None:
            options["compression"] = "none"
        there = os.path.exists(os.path.join(path, "CURRENT"))
        if error_if_exists and there:
            raise Error(f"Invalid argument: {path}: exists (error_if_exists is true)")
        with _ours:
            self._db = open_db(path, create=bool(create_if_missing), durability="process", **options)
        self.name = path
        self._prefix = b""

    def _source(self) -> Any:
        if self._db.closed:
            raise RuntimeError("Database is closed")
        return self._db

    @property
    def closed(self) -> bool:
        return self._db.closed

    def close(self) -> None:
        with _ours:
            self._db.close()

    def __enter__(self) -> DB:
        self._source()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<plyvel.DB with name {self.name!r} at {hex(id(self))}>"

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        key, value = _bytes(key, "key"), _value(value)
        source = self._source()
        with _ours:
            source.put(key, value, sync=bool(sync))

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        key = _bytes(key, "key")
        source = self._source()
        with _ours:
            source.delete(key, sync=bool(sync))

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        self._source()
        return WriteBatch(self, b"", bool(transaction), bool(sync))

    def snapshot(self) -> Snapshot:
        source = self._source()
        with _ours:
            return Snapshot(self, source.snapshot(), b"")

    def prefixed_db(self, prefix: bytes) -> PrefixedDB:
        return PrefixedDB(db=self, prefix=_bytes(prefix, "prefix"))

    def compact_range(self, *, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Compacts everything; a range is only a hint."""
        for name, value in (("start", start), ("stop", stop)):
            if value is not None:
                _bytes(value, name)
        source = self._source()
        with _ours:
            source.compact()

    def approximate_size(self, start: bytes, stop: bytes) -> int:
        return self.approximate_sizes((start, stop))[0]

    def approximate_sizes(self, *ranges: tuple[bytes, bytes]) -> list[int]:
        """Bytes in table files; a table that only overlaps the range counts half. What is in memory does not count."""
        levels = self._source().view.version.files()
        sizes = []
        for start, stop in ranges:
            low, high = b"\0" + _bytes(start, "start"), b"\0" + _bytes(stop, "stop")
            size = 0
            for meta in (meta for level in levels for meta in level):
                if low <= meta.smallest and meta.largest < high:
                    size += meta.size
                elif low <= meta.largest and meta.smallest < high:
                    size += meta.size // 2
            sizes.append(size)
        return sizes

    def get_property(self, name: bytes) -> bytes | None:
        """`leveldb.num-files-at-level<N>`, `leveldb.stats`, `leveldb.sstables`, `leveldb.approximate-memory-usage`;
        None for any other."""
        name = _bytes(name, "name")
        source = self._source()
        levels = source.view.version.files()
        head = b"leveldb.num-files-at-level"
        if name.startswith(head):
            text = name[len(head) :].decode("latin-1")
            if not (text.isascii() and text.isdigit()) or int(text) >= LEVELS:
                return None
            return b"%d" % (len(levels[int(text)]) if int(text) < len(levels) else 0)
        if name == b"leveldb.stats":
            lines = ["Level  Files Size(MB)", "---------------------"]
            lines += [f"{i:5} {len(x):6} {sum(m.size for m in x) / 1e6:8.1f}" for i, x in enumerate(levels) if x]
            return "\n".join([*lines, ""]).encode()
        if name == b"leveldb.sstables":
            return "".join(
                f"--- level {i} ---\n"
                + "".join(f" {m.number}:{m.size}[{m.smallest[1:]!r} .. {m.largest[1:]!r}]\n" for m in x)
                for i, x in enumerate(levels)
            ).encode()
        if name == b"leveldb.approximate-memory-usage":
            stats = source.stats()
            return b"%d" % stats["flush"]["memtable_allocated_bytes"]
        return None


class PrefixedDB(_Reads):
    def __init__(self, *, db: DB, prefix: bytes) -> None:
        self.db = db
        self.prefix = self._prefix = prefix

    def _source(self) -> Any:
        return self.db._source()

    def __repr__(self) -> str:
        return f"<plyvel.PrefixedDB with prefix {self.prefix!r} at {hex(id(self))}>"

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        self.db.put(self.prefix + _bytes(key, "key"), value, sync=sync)

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        self.db.delete(self.prefix + _bytes(key, "key"), sync=sync)

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        self._source()
        return WriteBatch(self.db, self.prefix, bool(transaction), bool(sync))

    def snapshot(self) -> Snapshot:
        source = self._source()
        with _ours:
            return Snapshot(self.db, source.snapshot(), self.prefix)

    def prefixed_db(self, prefix: bytes) -> PrefixedDB:
        return PrefixedDB(db=self.db, prefix=self.prefix + _bytes(prefix, "prefix"))


class Snapshot(_Reads):
    def __init__(self, db: DB, snapshot: Any, prefix: bytes) -> None:
        self._db = db
        self._snapshot = snapshot
        self._prefix = prefix

    def _source(self) -> Any:
        self._db._source()
        if self._snapshot.closed:
            raise RuntimeError("Cannot operate on closed LevelDB snapshot")
        return self._snapshot

    def close(self) -> None:
        self._snapshot.close()

    release = close

    def __enter__(self) -> Snapshot:
        self._source()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class WriteBatch:
    def __init__(self, db: DB, prefix: bytes, transaction: bool, sync: bool) -> None:
        self._db = db
        self._prefix = prefix
        self._transaction = transaction
        self._sync = sync
        self._batch = _Batch()

    def put(self, key: bytes, value: Any) -> None:
        key, value = _bytes(key, "key"), _value(value)
        self._db._source()
        with _ours:
            self._batch.put(self._prefix + key, value)

    def delete(self, key: bytes) -> None:
        key = _bytes(key, "key")
        self._db._source()
        with _ours:
            self._batch.delete(self._prefix + key)

    def clear(self) -> None:
        self._db._source()
        self._batch.clear()

    def write(self) -> None:
        source = self._db._source()
        with _ours:
            source.write(self._batch, sync=self._sync)

    def approximate_size(self) -> int:
        return self._batch.size_bytes

    def append(self, source: WriteBatch) -> None:
        if not isinstance(source, WriteBatch):
            raise TypeError(f"Argument 'source' has incorrect type (got {type(source).__name__})")
        self._db._source()
        for _, family, key, value in decode_batch(source._batch.payload(0))[1]:
            if value is None:
                self._batch.delete(key, family)
            else:
                self._batch.put(key, value, family)

    def __enter__(self) -> WriteBatch:
        self._db._source()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._transaction and kind is not None:
            self.clear()
            return
        self.write()


class _Positioned:
    """Shared by both iterators: they end with their database and with their snapshot."""

    def __init__(self, source: _Reads, position: _Position, prefix: bytes) -> None:
        self._source = source
        self._position = position
        self._prefix = prefix

    def _it(self) -> _Position:
        if self._position.closed:
            raise RuntimeError("Database or iterator is closed")
        self._source._source()
        return self._position

    def close(self) -> None:
        self._position.close()

    def __enter__(self) -> Any:
        self._it()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Iterator(_Positioned):
    """Stands between entries. The position under it is on the entry to its right, or, at the end, on none.

    `last` is an inclusive stop: a seek beyond it stands before it, as in plyvel.
    """

    def __init__(
        self,
        source: _Reads,
        position: _Position,
        prefix: bytes,
        reverse: bool,
        keys: bool,
        values: bool,
        last: bytes | None,
    ) -> None:
        super().__init__(source, position, prefix)
        self._last = last
        self._reverse = reverse
        self._keys = keys
        self._values = values
        with _ours:
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
        with _ours:
            if it.valid:
                item = self._item(it)
                it.next()
                return item
        raise StopIteration

    def _left(self) -> Any:
        it = self._it()
        with _ours:
            if it.prev() if it.valid else it.seek_last():
                return self._item(it)
            it.seek_first()
        raise StopIteration

    def _item(self, it: _Position) -> Any:
        if not self._keys:
            return it.value if self._values else None
        key = it.key[len(self._prefix) :]
        return (key, it.value) if self._values else key

    def seek_to_start(self) -> None:
        it = self._it()
        with _ours:
            it.seek_first()

    def seek_to_stop(self) -> None:
        it = self._it()
        with _ours:
            if it.seek_last():
                it.next()

    def seek(self, target: bytes) -> None:
        target = self._prefix + _bytes(target, "target")
        if self._last is not None and target > self._last:
            target = self._last
        it = self._it()
        with _ours:
            it.seek(target)


class RawIterator(_Positioned):
    """LevelDB's own iterator: stands on an entry, or is not valid."""

    def valid(self) -> bool:
        return self._it().valid

    def seek_to_first(self) -> None:
        it = self._it()
        with _ours:
            it.seek_first()

    def seek_to_last(self) -> None:
        it = self._it()
        with _ours:
            it.seek_last()

    def seek(self, target: bytes) -> None:
        target = self._prefix + _bytes(target, "target")
        it = self._it()
        with _ours:
            it.seek(target)

    def _on(self) -> _Position:
        it = self._it()
        if not it.valid:
            raise IteratorInvalidError
        return it

    def next(self) -> None:
        it = self._on()
        with _ours:
            it.next()

    def prev(self) -> None:
        it = self._on()
        with _ours:
            it.prev()

    def key(self) -> bytes:
        return self._on().key[len(self._prefix) :]

    def value(self) -> bytes:
        return self._on().value

    def item(self) -> tuple[bytes, bytes]:
        return self.key(), self.value()


def destroy_db(name: str | bytes | os.PathLike[str]) -> None:
    """Remove a database. Nothing happens if there is none."""
    try:
        with _ours:
            nokv.engine.repair.destroy(os.fsdecode(name))
    except Error as error:
        if not isinstance(error.__cause__, NotFound):
            raise


def repair_db(
    name: str | bytes | os.PathLike[str],
    *,
    paranoid_checks: bool | None = None,
    write_buffer_size: int | None = None,
    max_open_files: int | None = None,
    lru_cache_size: int | None = None,
    block_size: int | None = None,
    block_restart_interval: int | None = None,
    max_file_size: int | None = None,
    compression: str | bytes | None = "snappy",
    bloom_filter_bits: int = 0,
    comparator: Callable[[bytes, bytes], int] | None = None,
    comparator_name: bytes | None = None,
) -> None:
    """`nokv.repair`: keep what can be read, move the rest to lost/."""
    if comparator is not None or comparator_name is not None:
        raise NotSupported("custom comparators are not supported: keys are ordered by their bytes")
    with _ours:
        nokv.engine.repair.repair(os.fsdecode(name))
