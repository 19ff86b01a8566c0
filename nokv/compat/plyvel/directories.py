"""A database's directory: opened, removed, repaired."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import nokv.engine.repair
from nokv.compat.plyvel.arguments import checked_comparator, engine_options, path_of
from nokv.compat.plyvel.errors import CorruptionError, Error, IOError, database_errors
from nokv.engine.db import DB as Engine
from nokv.engine.opening import open_db
from nokv.errors import Corruption, Locked, NoKVError, NotFound, UsageError


def open_engine(path: str, create: bool, options: dict[str, Any]) -> Engine:
    try:
        return open_db(path, create=create, durability="process", **options)
    except NotFound as error:
        raise Error(f"Invalid argument: {path}: does not exist (create_if_missing is false)") from error
    except UsageError as error:
        if not os.path.isdir(path):
            raise IOError(f"IO error: {path}/LOCK: Not a directory: {error}") from error
        raise Error(f"Invalid argument: {error}") from error
    except Corruption as error:
        raise CorruptionError(f"Corruption: {error}") from error
    except (NoKVError, OSError) as error:
        raise refusal(path, error) from error


def refusal(path: str, error: NoKVError | OSError) -> IOError:
    if isinstance(error, Locked):
        return IOError(f"IO error: lock {path}/LOCK: already held by process: {error}")
    return IOError(f"IO error: {error}")


def destroy_db(name: str | bytes | os.PathLike[str]) -> None:
    """Remove a database. Nothing happens if there is none; other files in its directory stay."""
    path = path_of(name)
    if not os.path.isdir(path):
        return
    try:
        nokv.engine.repair.destroy(path)
    except NotFound:
        return
    except (NoKVError, OSError) as error:
        raise refusal(path, error) from error


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
    path = path_of(name)
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
    checked_comparator(comparator, comparator_name)
    if os.path.exists(path) and not os.path.isdir(path):
        raise IOError(f"IO error: {path}: Not a directory")
    if not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path)):
        open_engine(path, True, options).close()
        return
    with database_errors:
        nokv.engine.repair.repair(path)
