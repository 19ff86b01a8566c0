"""plyvel 1.5's public surface over our engine: `import nokv.compat.plyvel as plyvel` runs an existing program.

Same verbs, semantics, exception classes and texts of the common errors; a closed handle is RuntimeError, as there;
comparators too (order.py). What differs, all of it, is in docs/plyvel.md: the files (a LevelDB directory is not read:
export it and import it), figures of properties and sizes, and two answers of plyvel 1.5.1's iterators that ours does
not repeat. Options that tune LevelDB are checked as plyvel checks them; `write_buffer_size`, `lru_cache_size` and
`block_size` are passed on, `compression=None` too, the rest has no counterpart. A non-sync write survives the death of
the process, as there.

`write_batch(transaction=False)` in a `with` block writes even if the block raises: that is what plyvel does.
Source of the behaviour: plyvel's documentation, https://plyvel.readthedocs.io/en/latest/api.html, and plyvel itself.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol

import nokv.engine.repair
from nokv._ext.batch import WriteBatch as _Batch
from nokv.compat.order import ComparatorFailed, Operation, Order, create_order, find_order
from nokv.engine.db import DB as _Engine
from nokv.engine.opening import open_db
from nokv.engine.transaction import successor
from nokv.errors import Closed, Corruption, Locked, NoKVError, NotFound, NotSupported, UsageError

__all__ = ["DB", "CorruptionError", "Error", "IOError", "IteratorInvalidError", "destroy_db", "repair_db"]
__version__ = "1.5.1"
__leveldb_version__ = "1.22"

LEVELS = 7
BYTEWISE = b"leveldb.BytewiseComparator"
BATCH_HEAD_BYTES = 12

DB_CLOSED = "Database is closed"
ITERATOR_CLOSED = "Database or iterator is closed"
SNAPSHOT_CLOSED = "Database or snapshot is closed"


class Error(Exception):
    """Generic database error; `__cause__` is ours, with its hint."""


class IOError(Error, builtins.IOError):
    """The directory is locked, or the disk says no."""


class CorruptionError(Error):
    """The stored bytes are wrong."""


class IteratorInvalidError(Error):
    """A raw iterator stands on no entry."""


class _translated:
    """Our exceptions come out as plyvel's, and what a comparator raised as itself."""

    def __init__(self, closed: str) -> None:
        self.closed = closed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, TypeError):
            return
        if isinstance(error, ComparatorFailed):
            raise error.error from error.error.__cause__
        if isinstance(error, Closed):
            raise RuntimeError(self.closed) from error
        if isinstance(error, Corruption):
            raise CorruptionError(f"Corruption: {error}") from error
        if isinstance(error, NotFound):
            raise Error(f"NotFound: {error}") from error
        if isinstance(error, UsageError):
            raise Error(f"Invalid argument: {error}") from error
        if isinstance(error, NotSupported):
            raise Error(f"Not implemented: {error}") from error
        if isinstance(error, (NoKVError, OSError)):
            raise IOError(f"IO error: {error}") from error


_database = _translated(DB_CLOSED)
_iterating = _translated(ITERATOR_CLOSED)
_snapshot = _translated(SNAPSHOT_CLOSED)


# -- arguments --------------------------------------------------------------------------------------------------------
def _wrong(name: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"Argument '{name}' has incorrect type (expected {expected}, got {type(value).__name__})")


def _bytes(value: object, name: str) -> bytes:
    if type(value) is not bytes:
        _wrong(name, "bytes", value)
    return value


def _flag(value: object, name: str) -> bool:
    if value is not None and type(value) is not bool:
        _wrong(name, "bool", value)
    return bool(value)


def _value(value: object) -> bytes:
    if type(value) is bytes:
        return value
    view = memoryview(value)  # type: ignore[arg-type]  # anything else is a TypeError, which is right
    if not view.c_contiguous:
        raise BufferError("the value's buffer is not C-contiguous")
    return bytes(view)


def _some(value: object) -> object:
    if value is None:
        raise TypeError("Argument 'value' must not be None")
    return value


def _number(value: Any, *, signed: bool = False) -> int:
    if not isinstance(value, (int, float)):
        raise TypeError("an integer is required")
    number = int(value)
    if number < 0 and not signed:
        raise OverflowError("can't convert negative value to size_t")
    if number >= 1 << (31 if signed else 64) or number < -(1 << 31):
        raise OverflowError("value too large to convert")
    return number


def _path(name: object) -> str:
    if not isinstance(name, (str, bytes, os.PathLike)):
        raise TypeError("'name' arg must be a byte string or a unicode string")
    return os.fsdecode(name)


def _comparator(
    comparator: Callable[[bytes, bytes], Any] | None, name: bytes | None
) -> tuple[Callable[[bytes, bytes], Any] | None, bytes]:
    """The function and the name it is known by. Names end at a NUL, as in plyvel."""
    if name is not None:
        _bytes(name, "comparator_name")
    if (comparator is None) != (name is None):
        raise ValueError("'comparator' and 'comparator_name' must be specified together")
    if comparator is None or name is None:
        return None, BYTEWISE
    if not callable(comparator):
        raise TypeError("custom comparator object must be callable")
    return comparator, name.partition(b"\0")[0]


def _options(
    *,
    paranoid_checks: object = None,
    write_buffer_size: int | None = None,
    max_open_files: int | None = None,
    lru_cache_size: int | None = None,
    block_size: int | None = None,
    block_restart_interval: int | None = None,
    max_file_size: int | None = None,
    compression: object = "snappy",
    bloom_filter_bits: int = 0,
) -> dict[str, Any]:
    """LevelDB's options, checked, as ours."""
    options: dict[str, Any] = {}
    if write_buffer_size is not None:
        options["write_buffer_bytes"] = max(_number(write_buffer_size), 64 << 10)
    if max_open_files is not None:
        _number(max_open_files, signed=True)
    if lru_cache_size is not None:
        options["block_cache_bytes"] = _number(lru_cache_size)
    if block_size is not None:
        options["block_bytes"] = min(max(_number(block_size), 64), 4 << 20)
    if block_restart_interval is not None:
        _number(block_restart_interval, signed=True)
    if max_file_size is not None:
        _number(max_file_size)
    if compression is None:
        options["compression"] = options["upper_compression"] = "none"
    elif not isinstance(compression, (str, bytes)):
        raise TypeError("'compression' must be None or a string")
    elif compression not in ("snappy", b"snappy"):
        raise ValueError("'compression' must be None or 'snappy'")
    _number(bloom_filter_bits, signed=True)
    return options


# -- reads ------------------------------------------------------------------------------------------------------------
class _Position(Protocol):
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


def _between(
    db: DB, source: Any, low: bytes | None, high: bytes | None, include_low: bool, include_high: bool
) -> _Position:
    """A position on `source` (a database or a snapshot, ordered or not)."""
    position: _Position
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


def _iterator(
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
            _bytes(bound, name)
    backward, keys = _flag(reverse, "reverse"), _flag(include_key, "include_key")
    values = _flag(include_value, "include_value")
    include_start = _flag(include_start, "include_start") or start is None
    include_stop = _flag(include_stop, "include_stop") and stop is not None
    _flag(verify_checksums, "verify_checksums")
    _flag(fill_cache, "fill_cache")
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
    with _iterating:
        position = _between(db, source, low, high, include_start, include_stop)
        return Iterator(db, position, head or b"", backward, keys, values, high if include_stop else None)


class DB:
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
        comparator: Callable[[bytes, bytes], Any] | None = None,
        comparator_name: bytes | None = None,
    ) -> None:
        path = _path(name)
        create = _flag(create_if_missing, "create_if_missing")
        fresh = _flag(error_if_exists, "error_if_exists")
        options = _options(
            paranoid_checks=paranoid_checks,
            write_buffer_size=write_buffer_size,
            max_open_files=max_open_files,
            lru_cache_size=lru_cache_size,
            block_size=block_size,
            block_restart_interval=block_restart_interval,
            max_file_size=max_file_size,
            compression=compression,
            bloom_filter_bits=bloom_filter_bits,
        )
        function, order = _comparator(comparator, comparator_name)
        if fresh and os.path.exists(os.path.join(path, "CURRENT")):
            raise Error(f"Invalid argument: {path}: exists (error_if_exists is true)")
        self._name = name
        self._db = _open(path, create, options)
        try:
            with _database:
                self._order = _ordered(self._db, function, order)
        except BaseException:
            self._db.close()
            raise
        self._store: Any = self._order or self._db

    @property
    def name(self) -> Any:
        """As it was given."""
        return self._name

    @property
    def closed(self) -> bool:
        return self._db.state != 0

    def _compare(self, a: bytes, b: bytes) -> int:
        return _compare_bytes(a, b) if self._order is None else self._order.compare(a, b)

    def _check(self) -> None:
        if self._db.state != 0:
            raise RuntimeError(DB_CLOSED)

    def close(self) -> None:
        with _database:
            self._db.close()

    def __enter__(self) -> DB:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open database cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<plyvel.DB with name {self._name!r}{' (closed)' if self.closed else ''} at {hex(id(self))}>"

    def get(self, key: bytes, default: Any = None, *, verify_checksums: bool = False, fill_cache: bool = True) -> Any:
        if type(key) is not bytes:
            _wrong("key", "bytes", key)
        _flag(verify_checksums, "verify_checksums")
        _flag(fill_cache, "fill_cache")
        with _database:
            return self._store.get(key, default)

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        if type(key) is not bytes:
            _wrong("key", "bytes", key)
        _some(value)
        sync = _flag(sync, "sync")
        self._check()
        with _database:
            self._store.put(key, _value(value), sync=sync)

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        if type(key) is not bytes:
            _wrong("key", "bytes", key)
        sync = _flag(sync, "sync")
        with _database:
            self._store.delete(key, sync=sync)

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        transaction, sync = _flag(transaction, "transaction"), _flag(sync, "sync")
        self._check()
        return WriteBatch(self, None, transaction, sync)

    def __iter__(self) -> Iterator:
        self._check()
        return self.iterator()

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
        return _iterator(
            self,
            self._store,
            None,
            reverse,
            start,
            stop,
            include_start,
            include_stop,
            prefix,
            include_key,
            include_value,
            verify_checksums,
            fill_cache,
        )

    def raw_iterator(self, *, verify_checksums: bool = False, fill_cache: bool = True) -> RawIterator:
        _flag(verify_checksums, "verify_checksums")
        _flag(fill_cache, "fill_cache")
        with _iterating:
            return RawIterator(self, _between(self, self._store, None, None, True, False))

    def snapshot(self) -> Snapshot:
        return Snapshot(db=self)

    def prefixed_db(self, prefix: bytes) -> PrefixedDB:
        return PrefixedDB(db=self, prefix=prefix)

    def compact_range(self, *, start: bytes | None = None, stop: bytes | None = None) -> None:
        for name, value in (("start", start), ("stop", stop)):
            if value is not None:
                _bytes(value, name)
        self._check()
        with _database:
            if self._order is not None:
                self._order.compact(start, stop)
            elif start is None or stop is None or start < stop:
                self._db.compact(start, stop)

    def approximate_size(self, start: bytes, stop: bytes) -> int:
        return self.approximate_sizes((_bytes(start, "start"), _bytes(stop, "stop")))[0]

    def approximate_sizes(self, *ranges: tuple[bytes, bytes]) -> list[int]:
        """Bytes in table files; a table that only overlaps the range counts half. What is in memory, and values of
        64 KiB and more, do not count."""
        self._check()
        with _database:
            levels = self._db.view.version.files()
            return [self._size(levels, start, stop) for start, stop in ranges]

    def _size(self, levels: Any, start: bytes, stop: bytes) -> int:
        if type(start) is not bytes or type(stop) is not bytes:
            raise TypeError("Start and stop of range must be byte strings")
        if self._order is None:
            return _table_bytes(levels, b"\0" + start, b"\0" + stop)
        family = bytes((self._order.family_id,))
        # values lie apart from their keys: as large a part of them as of the keys
        low, high = (family + bound for bound in self._order.bounds(start, stop))
        labels = _table_bytes(levels, *(family + bound for bound in self._order.bounds(None, None)))
        everything = _table_bytes(levels, family, family + b"\xff")
        return everything * _table_bytes(levels, low, high) // labels if labels else 0

    def get_property(self, name: bytes) -> bytes | None:
        """`leveldb.num-files-at-level<N>`, `leveldb.stats`, `leveldb.sstables`, `leveldb.approximate-memory-usage`;
        None for any other."""
        _bytes(name, "name")
        with _database:
            self._db._check_open()
            return _property(self._db, name)


def _open(path: str, create: bool, options: dict[str, Any]) -> _Engine:
    try:
        return open_db(path, create=create, durability="process", **options)
    except NotFound as error:
        raise Error(f"Invalid argument: {path}: does not exist (create_if_missing is false)") from error
    except Locked as error:
        raise IOError(f"IO error: lock {path}/LOCK: already held by process: {error}") from error
    except UsageError as error:
        if not os.path.isdir(path):
            raise IOError(f"IO error: {path}/LOCK: Not a directory: {error}") from error
        raise Error(f"Invalid argument: {error}") from error
    except Corruption as error:
        raise CorruptionError(f"Corruption: {error}") from error
    except (NoKVError, OSError) as error:
        raise IOError(f"IO error: {error}") from error


def _compare_bytes(a: bytes, b: bytes) -> int:
    return (a > b) - (a < b)


def _ordered(db: _Engine, function: Callable[[bytes, bytes], Any] | None, name: bytes) -> Order | None:
    """Who orders this directory's keys: None is the engine, by their bytes. Without keys it takes any order."""
    found = find_order(db)
    if found is None:
        if name == BYTEWISE:
            return None
        if not any(True for _ in db.scan(values=False, limit=1)):
            assert function is not None  # or the name would be BYTEWISE
            return Order(db, create_order(db, name), function)
        existing = BYTEWISE
    else:
        existing = found[1]
    if existing != name:
        raise UsageError(
            f"{existing.decode('latin-1')} does not match existing comparator : {name.decode('latin-1')}",
            hint=f"{db.path} is ordered by the first; open it with that comparator and name",
        )
    return Order(db, found[0], function or _compare_bytes) if found is not None else None


def _table_bytes(levels: Any, low: bytes, high: bytes) -> int:
    size = 0
    for meta in (meta for level in levels for meta in level if low < high):
        if low <= meta.smallest and meta.largest < high:
            size += meta.size
        elif low <= meta.largest and meta.smallest < high:
            size += meta.size // 2
    return size


def _property(db: _Engine, name: bytes) -> bytes | None:
    levels = db.view.version.files()
    levels = [levels[i] if i < len(levels) else [] for i in range(max(LEVELS, len(levels)))]
    head = b"leveldb.num-files-at-level"
    if name.startswith(head):
        text = name[len(head) :]
        if not text.isdigit() or int(text) >= LEVELS:
            return None
        return b"%d" % len(levels[int(text)])
    if name == b"leveldb.stats":
        columns = "Level  Files Size(MB) Time(sec) Read(MB) Write(MB)"
        lines = [f"{'Compactions':>42}", columns, "-" * len(columns)]
        lines += [f"{i:3} {len(x):8} {sum(m.size for m in x) / 1e6:8.0f}" for i, x in enumerate(levels) if x]
        return "\n".join([*lines, ""]).encode()
    if name == b"leveldb.sstables":
        return "".join(
            f"--- level {i} ---\n"
            + "".join(f" {m.number}:{m.size}[{m.smallest[1:]!r} .. {m.largest[1:]!r}]\n" for m in x)
            for i, x in enumerate(levels)
        ).encode()
    if name == b"leveldb.approximate-memory-usage":
        return b"%d" % db.stats()["flush"]["memtable_allocated_bytes"]
    return None


class PrefixedDB:
    def __init__(self, *, db: DB, prefix: bytes) -> None:
        if not isinstance(db, DB):
            _wrong("db", "plyvel.DB", db)
        self._db = db
        self._prefix = _bytes(prefix, "prefix")

    @property
    def db(self) -> DB:
        return self._db

    @property
    def prefix(self) -> bytes:
        return self._prefix

    def __repr__(self) -> str:
        return f"<plyvel.PrefixedDB with prefix {self._prefix!r} at {hex(id(self))}>"

    def get(self, key: bytes, default: Any = None, *, verify_checksums: bool = False, fill_cache: bool = True) -> Any:
        key = self._prefix + _bytes(key, "key")
        return self._db.get(key, default, verify_checksums=verify_checksums, fill_cache=fill_cache)

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        self._db.put(self._prefix + _bytes(key, "key"), value, sync=sync)

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        self._db.delete(self._prefix + _bytes(key, "key"), sync=sync)

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        return WriteBatch(self._db, self._prefix, transaction, _flag(sync, "sync"))

    def __iter__(self) -> Iterator:
        return self.iterator()

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
        return _iterator(
            self._db,
            self._db._store,
            self._prefix,
            reverse,
            start,
            stop,
            include_start,
            include_stop,
            prefix,
            include_key,
            include_value,
            verify_checksums,
            fill_cache,
        )

    def snapshot(self) -> Snapshot:
        return Snapshot(db=self._db, prefix=self._prefix)

    def prefixed_db(self, prefix: bytes) -> PrefixedDB:
        return PrefixedDB(db=self._db, prefix=self._prefix + _bytes(prefix, "prefix"))


class Snapshot:
    """Its iterators outlive it: they keep what they look at."""

    def __init__(self, *, db: DB, prefix: bytes | None = None) -> None:
        if not isinstance(db, DB):
            _wrong("db", "plyvel.DB", db)
        if db.closed:
            raise RuntimeError("Cannot operate on closed LevelDB database")
        self._db = db
        self._prefix = None if prefix is None else _bytes(prefix, "prefix")
        with _snapshot:
            self._snapshot: Any = db._store.snapshot()

    def _source(self) -> Any:
        if self._snapshot is None or self._db.closed:
            raise RuntimeError(SNAPSHOT_CLOSED)
        return self._snapshot

    def close(self) -> None:
        self._snapshot = None  # the engine's ends with the last iterator over it

    def release(self) -> None:
        self.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> Literal[False]:
        self.close()
        return False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a snapshot cannot be pickled or copied")

    def get(self, key: bytes, default: Any = None, *, verify_checksums: bool = False, fill_cache: bool = True) -> Any:
        _bytes(key, "key")
        _flag(verify_checksums, "verify_checksums")
        _flag(fill_cache, "fill_cache")
        source = self._source()
        with _snapshot:
            return source.get((self._prefix or b"") + key, default)

    def __iter__(self) -> Iterator:
        return self.iterator()

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
        return _iterator(
            self._db,
            self._source(),
            self._prefix,
            reverse,
            start,
            stop,
            include_start,
            include_stop,
            prefix,
            include_key,
            include_value,
            verify_checksums,
            fill_cache,
        )

    def raw_iterator(self, *, verify_checksums: bool = False, fill_cache: bool = True) -> RawIterator:
        """Over the whole database, also of a prefixed one's snapshot."""
        _flag(verify_checksums, "verify_checksums")
        _flag(fill_cache, "fill_cache")
        source = self._source()
        with _snapshot:
            return RawIterator(self._db, _between(self._db, source, None, None, True, False))


class WriteBatch:
    def __init__(self, db: DB, prefix: bytes | None, transaction: bool, sync: bool) -> None:
        self._db = db
        self._prefix = prefix or b""
        self._transaction = _flag(transaction, "transaction")
        self._sync = sync
        self._operations: list[Operation] = []
        self._size = 0

    def put(self, key: bytes, value: Any) -> None:
        key, value = _bytes(key, "key"), _some(value)
        self._db._check()
        key, value = self._prefix + key, _value(value)
        self._operations.append((key, value))
        self._size += 1 + _with_length(key) + _with_length(value)

    def delete(self, key: bytes) -> None:
        _bytes(key, "key")
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
        with _database:
            if self._db._order is not None:
                self._db._order.write(tuple(self._operations), sync=self._sync)
                return
            batch = _Batch()
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
            _wrong("source", "plyvel.WriteBatch", source)
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


# -- iterators --------------------------------------------------------------------------------------------------------
class BaseIterator:
    """Ends with its database, not with its snapshot."""

    def __init__(self, db: DB, position: _Position) -> None:
        self._db = db
        self._position = position

    def _it(self) -> _Position:
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
        position: _Position,
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
        with _iterating:
            if it.valid:
                item = self._item(it)
                it.next()
                return item
        raise StopIteration

    def _left(self) -> Any:
        it = self._it()
        with _iterating:
            if it.prev() if it.valid else it.seek_last():
                return self._item(it)
            it.seek_first()
        raise StopIteration

    def _item(self, it: _Position) -> Any:
        if not self._keys:
            return it.value if self._values else None
        key = it.key[self._prefix :]
        return (key, it.value) if self._values else key

    def seek_to_start(self) -> None:
        it = self._it()
        with _iterating:
            it.seek_first()

    def seek_to_stop(self) -> None:
        it = self._it()
        with _iterating:
            if it.seek_last():
                it.next()

    def seek(self, target: bytes) -> None:
        target = self._head + _bytes(target, "target")
        it = self._it()
        with _iterating:
            if self._last is not None and self._db._compare(target, self._last) > 0:
                target = self._last
            it.seek(target)


class RawIterator(BaseIterator):
    """LevelDB's own iterator: stands on an entry, or is not valid."""

    def valid(self) -> bool:
        return self._it().valid

    def seek_to_first(self) -> None:
        it = self._it()
        with _iterating:
            it.seek_first()

    def seek_to_last(self) -> None:
        it = self._it()
        with _iterating:
            it.seek_last()

    def seek(self, target: bytes) -> None:
        _bytes(target, "target")
        it = self._it()
        with _iterating:
            it.seek(target)

    def _on(self) -> _Position:
        it = self._it()
        if not it.valid:
            raise IteratorInvalidError
        return it

    def next(self) -> None:
        it = self._on()
        with _iterating:
            it.next()

    def prev(self) -> None:
        it = self._on()
        with _iterating:
            it.prev()

    def key(self) -> bytes:
        it = self._on()
        with _iterating:
            return it.key

    def value(self) -> bytes:
        it = self._on()
        with _iterating:
            return it.value

    def item(self) -> tuple[bytes, bytes]:
        return self.key(), self.value()


# -- directories ------------------------------------------------------------------------------------------------------
def destroy_db(name: str | bytes | os.PathLike[str]) -> None:
    """Remove a database. Nothing happens if there is none; other files in its directory stay."""
    path = _path(name)
    if not os.path.isdir(path):
        return
    try:
        nokv.engine.repair.destroy(path)
    except Locked as error:
        raise IOError(f"IO error: lock {path}/LOCK: already held by process: {error}") from error
    except NotFound:
        return
    except (NoKVError, OSError) as error:
        raise IOError(f"IO error: {error}") from error


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
    comparator: Callable[[bytes, bytes], Any] | None = None,
    comparator_name: bytes | None = None,
) -> None:
    """`nokv.repair`: keep what can be read, move the rest to lost/. Where there is nothing, an empty database is made.
    The comparator is not needed."""
    path = _path(name)
    options = _options(
        paranoid_checks=paranoid_checks,
        write_buffer_size=write_buffer_size,
        max_open_files=max_open_files,
        lru_cache_size=lru_cache_size,
        block_size=block_size,
        block_restart_interval=block_restart_interval,
        max_file_size=max_file_size,
        compression=compression,
        bloom_filter_bits=bloom_filter_bits,
    )
    _comparator(comparator, comparator_name)
    if os.path.exists(path) and not os.path.isdir(path):
        raise IOError(f"IO error: {path}: Not a directory")
    if not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path)):
        _open(path, True, options).close()
        return
    with _database:
        nokv.engine.repair.repair(path)
