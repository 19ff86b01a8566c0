"""One adapter per embedded engine, with the same durability for all: a finished call survives the death of the process.

Peers are optional: an engine that is not importable is left out. One configuration serves every row.
"""

from __future__ import annotations

import importlib.util
import itertools
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
        self.put, self.get = db.put, db.get
        self.put_many, self.get_many = db.put_many, db.get_many

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
        self.put, self.get = db.put, db.get

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


class LMDB:
    module = "lmdb"

    def __init__(self, path: str) -> None:
        import lmdb

        self.env = lmdb.open(
            path, map_size=8 << 30, writemap=True, sync=False, metasync=False, map_async=True, readahead=False
        )

    def put(self, key: bytes, value: bytes) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key, value)

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


ENGINES: dict[str, Any] = {
    name: engine
    for name, engine in (("nokv", NoKV), ("leveldb", LevelDB), ("lmdb", LMDB))
    if importlib.util.find_spec(engine.module)
}
