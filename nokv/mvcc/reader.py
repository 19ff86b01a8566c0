"""Reads at a timestamp over the MVCC families, with the fallback that makes promoted data readable.

Owns: which version a reader sees. A key's newest commit record at or below the reader's timestamp decides; if there is
none, the plain record, written before the directory was promoted, counts as committed before every timestamp. A newer
commit or delete therefore hides it, and an older timestamp still sees it. A lock from a transaction that started at or
before the timestamp stops the reader with KeyLocked: its commit may turn out to be older than the reader.

A view is anything with the engine's read verbs: a DB or a Snapshot. A DB may be used where nobody writes between the
calls (the store's event loop); elsewhere pass a Snapshot. Layout: docs/formats/mvcc.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from nokv._ext.db import Core
from nokv._ext.mvcc import (
    TS_MAX,
    committed_many,
    encode_key,
    lock_start_ts,
    resolve,
    scan_visible,
    versioned_key,
)
from nokv._ext.mvcc import decode_key as _decode_key
from nokv.errors import KeyLocked

__all__ = [
    "FAMILY_DEFAULT",
    "FAMILY_LOCK",
    "FAMILY_PLAIN",
    "FAMILY_WRITE",
    "MVCC_FAMILIES",
    "TS_MAX",
    "FamilyView",
    "MvccReader",
    "ReadView",
]

FAMILY_PLAIN = "plain"
FAMILY_LOCK = "lock"
FAMILY_WRITE = "write"
FAMILY_DEFAULT = "default"
MVCC_FAMILIES = (FAMILY_LOCK, FAMILY_WRITE, FAMILY_DEFAULT)

# Rollback and lock records between a reader and the commit it looks for: read one first, then in growing steps.
_VERSIONS_FIRST = 1
_VERSIONS_MORE = 32

Pair = tuple[bytes, bytes]


class FamilyView(Protocol):
    def get(self, key: bytes, default: None = None, /) -> bytes | None: ...
    def get_many(self, keys: list[bytes], /) -> list[bytes | None]: ...
    def scan(
        self, start: bytes | None = None, end: bytes | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Pair]: ...


class NamedView(FamilyView, Protocol):
    @property
    def id(self) -> int: ...


class ReadView(FamilyView, Protocol):
    """The plain family itself, and the others by name."""

    def family(self, name: str, /) -> NamedView: ...


class MvccReader:
    """Reads over one view. Cheap to make; holds nothing but the families."""

    __slots__ = ("_core", "_default", "_lock", "_plain", "_write")

    def __init__(self, view: ReadView) -> None:
        self._core = view if isinstance(view, Core) else None
        self._plain: FamilyView = view
        self._lock = view.family(FAMILY_LOCK)
        self._write = view.family(FAMILY_WRITE)
        self._default = view.family(FAMILY_DEFAULT)

    def get(self, key: bytes, ts: int = TS_MAX) -> bytes | None:
        """The value visible at `ts`, or None. KeyLocked if a lock is in the way."""
        if self._any_locks():
            self._check_lock(key, ts)
        found, value = self._committed(key, ts)
        return value if found else self._plain.get(key)

    def get_many(self, keys: Sequence[bytes], ts: int = TS_MAX) -> list[bytes | KeyLocked | None]:
        """One answer per key, in order; a locked key answers with its KeyLocked instead of failing the others."""
        locked = self._any_locks()
        if self._core is not None and not locked:
            return self._get_many_compiled(self._core, keys, ts)
        out: list[bytes | KeyLocked | None] = []
        plain_keys: list[bytes] = []
        plain_at: list[int] = []
        for key in keys:
            if locked:
                try:
                    self._check_lock(key, ts)
                except KeyLocked as error:
                    out.append(error)
                    continue
            found, value = self._committed(key, ts)
            if not found:
                plain_keys.append(key)
                plain_at.append(len(out))
            out.append(value)
        if plain_keys:
            for at, value in zip(plain_at, self._plain.get_many(plain_keys), strict=True):
                out[at] = value
        return out

    def _get_many_compiled(self, core: Core, keys: Sequence[bytes], ts: int) -> list[bytes | KeyLocked | None]:
        with core.snapshot() as view:  # both families at one moment, and nothing is collapsed meanwhile
            values, missing = committed_many(core, view.sequence, keys, ts, self._write.id, self._default.id)
            out: list[bytes | KeyLocked | None] = list(values)
            if missing:
                for at, value in zip(missing, view.get_many([keys[at] for at in missing]), strict=True):
                    out[at] = value
        return out

    def scan(
        self,
        start: bytes = b"",
        end: bytes = b"",
        ts: int = TS_MAX,
        *,
        limit: int = 0,
        bytes_max: int = 0,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> tuple[list[Pair], bool]:
        """([(key, value)], more) of [start, end) at `ts`; empty `end` = to the last key.

        `limit` and `bytes_max` stop early (0 = no limit); `more` then says that something is left. KeyLocked if the
        scan meets a lock.
        """
        low, high = encode_key(start), (encode_key(end) if end else None)
        locks = self._locks_between(low, high, ts) if self._any_locks() else None
        return scan_visible(
            self._write.scan(low, high, reverse=reverse),
            self._plain.scan(start or None, end or None, reverse=reverse),
            self._default.get,
            ts,
            reverse=reverse,
            limit=limit,
            bytes_max=bytes_max,
            keys_only=keys_only,
            locks=locks,
        )

    # -- leaves -------------------------------------------------------------------------------------------------------
    def _committed(self, key: bytes, ts: int) -> tuple[bool, bytes | None]:
        low = versioned_key(key, ts)
        high = low[:-8] + b"\xff" * 8 + b"\x00"  # just after the version of timestamp 0
        count = _VERSIONS_FIRST
        while True:
            versions = list(self._write.scan(low, high, limit=count))
            found, value = resolve(key, versions, self._default.get)
            if found or len(versions) < count:
                return found, value
            low = versions[-1][0] + b"\x00"
            count = _VERSIONS_MORE

    def _any_locks(self) -> bool:
        return next(iter(self._lock.scan(limit=1)), None) is not None

    def _check_lock(self, key: bytes, ts: int) -> None:
        record = self._lock.get(encode_key(key))
        if record is not None and lock_start_ts(record) <= ts:
            raise KeyLocked("the key is locked by a transaction", lock=(key, record))

    def _locks_between(self, low: bytes, high: bytes | None, ts: int) -> dict[bytes, bytes] | None:
        pairs: Iterable[Pair] = self._lock.scan(low, high)
        found = {_decode_key(key): record for key, record in pairs if lock_start_ts(record) <= ts}
        return found or None
