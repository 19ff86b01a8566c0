"""plyvel's exceptions, and how ours become them."""

from __future__ import annotations

import builtins
from types import TracebackType
from typing import Any

from nokv.compat.order import ComparatorFailed
from nokv.errors import Closed, Corruption, NoKVError, NotFound, NotSupported, UsageError

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


class Translated:
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


database_errors = Translated(DB_CLOSED)
iterator_errors = Translated(ITERATOR_CLOSED)
snapshot_errors = Translated(SNAPSHOT_CLOSED)
