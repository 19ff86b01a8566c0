"""One adapter per embedded engine, with the same durability for all: a finished call survives the death of the process.

Peers are optional: an engine that is not importable is left out. One configuration serves every row.
"""

from __future__ import annotations

import importlib.util
import itertools
import sqlite3
from collections.abc import Iterable
from typing import Any

WRITE_BUFFER_BYTES = 32 << 20
CACHE_BYTES = 512 << 20

Pair = tuple[bytes, bytes]


class NoKV:
    module = "nokv"

    def __init__(self, path: str) -> None:
        import nokv

        self.db = db = nokv.open(path)
        self.put, self.get, self.delete = db.put, db.get, db.delete
        self.put_many, self.get_many = db.put_many, db.get_many

    def put_sync(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=True)

    def scan(self, start: bytes, limit: int) -> list[Pair]:
        return list(self.db.scan(start, limit=limit))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact()

    def close(self) -> None:
        self.db.close()


class LevelDB:
    module = "plyvel"

    def __init__(self, path: str) -> None:
        import plyvel

        self.db = db = plyvel.DB(
            path,
            create_if_missing=True,
            write_buffer_size=WRITE_BUFFER_BYTES,
            lru_cache_size=CACHE_BYTES,
            bloom_filter_bits=10,
        )
        self.put, self.get, self.delete = db.put, db.get, db.delete

    def put_sync(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, sync=True)

    def put_many(self, pairs: Iterable[Pair]) -> None:
        with self.db.write_batch() as batch:
            put = batch.put
            for key, value in pairs:
                put(key, value)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(self, start: bytes, limit: int) -> list[Pair]:
        return list(itertools.islice(self.db.iterator(start=start), limit))

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class RocksDB:
    module = "rocksdict"

    def __init__(self, path: str) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        tables = rocksdict.BlockBasedOptions()
        tables.set_block_cache(rocksdict.Cache(CACHE_BYTES))
        tables.set_bloom_filter(10, False)
        options.set_block_based_table_factory(tables)
        self.db = db = rocksdict.Rdict(path, options)
        self.batch = rocksdict.WriteBatch
        self.put, self.get, self.delete, self.get_many = db.put, db.get, db.delete, db.get
        self.synced = rocksdict.WriteOptions()
        self.synced.sync = True

    def put_sync(self, key: bytes, value: bytes) -> None:
        self.db.put(key, value, write_opt=self.synced)

    def put_many(self, pairs: Iterable[Pair]) -> None:
        batch = self.batch(raw_mode=True)
        put = batch.put
        for key, value in pairs:
            put(key, value)
        self.db.write(batch)

    def scan(self, start: bytes, limit: int) -> list[Pair]:
        return list(itertools.islice(self.db.items(from_key=start), limit))

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def close(self) -> None:
        self.db.close()


class LMDB:
    """Its map is written through and synced by the system when it likes: a finished call survives a killed process."""

    module = "lmdb"

    def __init__(self, path: str) -> None:
        import lmdb

        self.env = lmdb.open(
            path, map_size=8 << 30, writemap=True, sync=False, metasync=False, map_async=True, readahead=False
        )

    def put(self, key: bytes, value: bytes) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key, value)

    def put_sync(self, key: bytes, value: bytes) -> None:
        self.put(key, value)
        self.env.sync(True)

    def delete(self, key: bytes) -> None:
        with self.env.begin(write=True) as txn:
            txn.delete(key)

    def get(self, key: bytes) -> bytes | None:
        with self.env.begin() as txn:
            value: bytes | None = txn.get(key)
            return value

    def put_many(self, pairs: Iterable[Pair]) -> None:
        with self.env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(pairs)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        with self.env.begin() as txn:
            return list(map(txn.get, keys))

    def scan(self, start: bytes, limit: int) -> list[Pair]:
        with self.env.begin() as txn, txn.cursor() as cursor:
            return list(itertools.islice(cursor.iternext(), limit)) if cursor.set_range(start) else []

    def settle(self) -> None:
        self.env.sync(True)

    def close(self) -> None:
        self.env.close()


class SQLite:
    module = "sqlite3"

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(f"{path}.sqlite", isolation_level=None, cached_statements=64)
        self.db.execute("pragma journal_mode=wal")
        self.db.execute("pragma synchronous=normal")  # survives a killed process
        self.db.execute(f"pragma cache_size=-{CACHE_BYTES >> 10}")
        self.db.execute("create table if not exists kv (k blob primary key, v blob) without rowid")
        self.execute, self.many = self.db.execute, self.db.executemany

    def put(self, key: bytes, value: bytes) -> None:
        self.execute("replace into kv values (?, ?)", (key, value))

    def put_sync(self, key: bytes, value: bytes) -> None:
        self.execute("pragma synchronous=full")
        self.put(key, value)
        self.execute("pragma synchronous=normal")

    def delete(self, key: bytes) -> None:
        self.execute("delete from kv where k = ?", (key,))

    def get(self, key: bytes) -> bytes | None:
        row = self.execute("select v from kv where k = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put_many(self, pairs: Iterable[Pair]) -> None:
        self.execute("begin")
        self.many("replace into kv values (?, ?)", pairs)
        self.execute("commit")

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(self, start: bytes, limit: int) -> list[Pair]:
        return self.execute("select k, v from kv where k >= ? order by k limit ?", (start, limit)).fetchall()

    def settle(self) -> None:
        self.execute("pragma wal_checkpoint(truncate)")

    def close(self) -> None:
        self.db.close()


ENGINES: dict[str, Any] = {
    name: engine
    for name, engine in (
        ("nokv", NoKV),
        ("plyvel", LevelDB),
        ("rocksdict", RocksDB),
        ("lmdb", LMDB),
        ("sqlite", SQLite),
    )
    if importlib.util.find_spec(engine.module)
}
