"""An open database, a part of it behind a prefix, and a view of either."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn

from nokv.compat.order import Order, create_order, find_order
from nokv.compat.plyvel.arguments import (
    BYTEWISE,
    checked_bytes,
    checked_comparator,
    engine_options,
    flag,
    path_of,
    read_flags,
    some,
    value_bytes,
    wrong,
)
from nokv.compat.plyvel.batch import WriteBatch
from nokv.compat.plyvel.directories import open_engine
from nokv.compat.plyvel.errors import (
    DB_CLOSED,
    SNAPSHOT_CLOSED,
    Error,
    database_errors,
    iterator_errors,
    snapshot_errors,
)
from nokv.compat.plyvel.iterators import Iterator, RawIterator, between, iterate
from nokv.compat.plyvel.sizes import property_of, table_bytes
from nokv.engine.db import DB as Engine
from nokv.errors import UsageError


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
        path = path_of(name)
        create = flag(create_if_missing, "create_if_missing")
        fresh = flag(error_if_exists, "error_if_exists")
        options = engine_options(
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
        function, order = checked_comparator(comparator, comparator_name)
        if fresh and os.path.exists(os.path.join(path, "CURRENT")):
            raise Error(f"Invalid argument: {path}: exists (error_if_exists is true)")
        self._name = name
        self._db = open_engine(path, create, options)
        try:
            with database_errors:
                self._order = ordered(self._db, function, order)
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
        return compare_bytes(a, b) if self._order is None else self._order.compare(a, b)

    def _check(self) -> None:
        if self._db.state != 0:
            raise RuntimeError(DB_CLOSED)

    def close(self) -> None:
        with database_errors:
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
            wrong("key", "bytes", key)
        read_flags(verify_checksums, fill_cache)
        with database_errors:
            return self._store.get(key, default)

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        if type(key) is not bytes:
            wrong("key", "bytes", key)
        some(value)
        sync = flag(sync, "sync")
        self._check()
        with database_errors:
            self._store.put(key, value_bytes(value), sync=sync)

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        if type(key) is not bytes:
            wrong("key", "bytes", key)
        sync = flag(sync, "sync")
        with database_errors:
            self._store.delete(key, sync=sync)

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        transaction, sync = flag(transaction, "transaction"), flag(sync, "sync")
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
        return iterate(
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
        read_flags(verify_checksums, fill_cache)
        with iterator_errors:
            return RawIterator(self, between(self, self._store, None, None, True, False))

    def snapshot(self) -> Snapshot:
        return Snapshot(db=self)

    def prefixed_db(self, prefix: bytes) -> PrefixedDB:
        return PrefixedDB(db=self, prefix=prefix)

    def compact_range(self, *, start: bytes | None = None, stop: bytes | None = None) -> None:
        for name, value in (("start", start), ("stop", stop)):
            if value is not None:
                checked_bytes(value, name)
        self._check()
        with database_errors:
            if self._order is not None:
                self._order.compact(start, stop)
            elif start is None or stop is None or start < stop:
                self._db.compact(start, stop)

    def approximate_size(self, start: bytes, stop: bytes) -> int:
        return self.approximate_sizes((checked_bytes(start, "start"), checked_bytes(stop, "stop")))[0]

    def approximate_sizes(self, *ranges: tuple[bytes, bytes]) -> list[int]:
        """Bytes in table files; a table that only overlaps the range counts half. What is in memory, and values of
        64 KiB and more, do not count."""
        self._check()
        with database_errors:
            levels = self._db.view.version.files()
            return [self._size(levels, start, stop) for start, stop in ranges]

    def _size(self, levels: Any, start: bytes, stop: bytes) -> int:
        if type(start) is not bytes or type(stop) is not bytes:
            raise TypeError("Start and stop of range must be byte strings")
        if self._order is None:
            return table_bytes(levels, b"\0" + start, b"\0" + stop)
        family = bytes((self._order.family_id,))
        # values lie apart from their keys: as large a part of them as of the keys
        low, high = (family + bound for bound in self._order.bounds(start, stop))
        labels = table_bytes(levels, *(family + bound for bound in self._order.bounds(None, None)))
        everything = table_bytes(levels, family, family + b"\xff")
        return everything * table_bytes(levels, low, high) // labels if labels else 0

    def get_property(self, name: bytes) -> bytes | None:
        """`leveldb.num-files-at-level<N>`, `leveldb.stats`, `leveldb.sstables`, `leveldb.approximate-memory-usage`;
        None for any other."""
        checked_bytes(name, "name")
        with database_errors:
            self._db._check_open()
            return property_of(self._db, name)


class PrefixedDB:
    def __init__(self, *, db: DB, prefix: bytes) -> None:
        if not isinstance(db, DB):
            wrong("db", "plyvel.DB", db)
        self._db = db
        self._prefix = checked_bytes(prefix, "prefix")

    @property
    def db(self) -> DB:
        return self._db

    @property
    def prefix(self) -> bytes:
        return self._prefix

    def __repr__(self) -> str:
        return f"<plyvel.PrefixedDB with prefix {self._prefix!r} at {hex(id(self))}>"

    def get(self, key: bytes, default: Any = None, *, verify_checksums: bool = False, fill_cache: bool = True) -> Any:
        key = self._prefix + checked_bytes(key, "key")
        return self._db.get(key, default, verify_checksums=verify_checksums, fill_cache=fill_cache)

    def put(self, key: bytes, value: Any, *, sync: bool = False) -> None:
        self._db.put(self._prefix + checked_bytes(key, "key"), value, sync=sync)

    def delete(self, key: bytes, *, sync: bool = False) -> None:
        self._db.delete(self._prefix + checked_bytes(key, "key"), sync=sync)

    def write_batch(self, *, transaction: bool = False, sync: bool = False) -> WriteBatch:
        return WriteBatch(self._db, self._prefix, transaction, flag(sync, "sync"))

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
        return iterate(
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
        return PrefixedDB(db=self._db, prefix=self._prefix + checked_bytes(prefix, "prefix"))


class Snapshot:
    """Its iterators outlive it: they keep what they look at."""

    def __init__(self, *, db: DB, prefix: bytes | None = None) -> None:
        if not isinstance(db, DB):
            wrong("db", "plyvel.DB", db)
        if db.closed:
            raise RuntimeError("Cannot operate on closed LevelDB database")
        self._db = db
        self._prefix = None if prefix is None else checked_bytes(prefix, "prefix")
        with snapshot_errors:
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
        checked_bytes(key, "key")
        read_flags(verify_checksums, fill_cache)
        source = self._source()
        with snapshot_errors:
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
        return iterate(
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
        read_flags(verify_checksums, fill_cache)
        source = self._source()
        with snapshot_errors:
            return RawIterator(self._db, between(self._db, source, None, None, True, False))


def ordered(db: Engine, function: Callable[[bytes, bytes], Any] | None, name: bytes) -> Order | None:
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
    return Order(db, found[0], function or compare_bytes) if found is not None else None


def compare_bytes(a: bytes, b: bytes) -> int:
    return (a > b) - (a < b)
