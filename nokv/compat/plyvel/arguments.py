"""What plyvel takes for an argument, and what it says of others; LevelDB's options as ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

BYTEWISE = b"leveldb.BytewiseComparator"


def wrong(name: str, expected: str, value: object) -> NoReturn:
    raise TypeError(f"Argument '{name}' has incorrect type (expected {expected}, got {type(value).__name__})")


def checked_bytes(value: object, name: str) -> bytes:
    if type(value) is not bytes:
        wrong(name, "bytes", value)
    return value


def flag(value: object, name: str) -> bool:
    if value is not None and type(value) is not bool:
        wrong(name, "bool", value)
    return bool(value)


def read_flags(verify_checksums: object, fill_cache: object) -> None:
    """Checked, and without effect: checksums are verified always, and the cache decides for itself."""
    flag(verify_checksums, "verify_checksums")
    flag(fill_cache, "fill_cache")


def value_bytes(value: object) -> bytes:
    if type(value) is bytes:
        return value
    view = memoryview(value)  # type: ignore[arg-type]  # anything else is a TypeError, which is right
    if not view.c_contiguous:
        raise BufferError("the value's buffer is not C-contiguous")
    return bytes(view)


def some(value: object) -> object:
    if value is None:
        raise TypeError("Argument 'value' must not be None")
    return value


def number_of(value: Any, *, signed: bool = False) -> int:
    if not isinstance(value, (int, float)):
        raise TypeError("an integer is required")
    number = int(value)
    if number < 0 and not signed:
        raise OverflowError("can't convert negative value to size_t")
    if number >= 1 << (31 if signed else 64) or number < -(1 << 31):
        raise OverflowError("value too large to convert")
    return number


def path_of(name: object) -> str:
    if not isinstance(name, (str, bytes, os.PathLike)):
        raise TypeError("'name' arg must be a byte string or a unicode string")
    return os.fsdecode(name)


def checked_comparator(
    comparator: Callable[[bytes, bytes], Any] | None, name: bytes | None
) -> tuple[Callable[[bytes, bytes], Any] | None, bytes]:
    """The function and the name it is known by. Names end at a NUL, as in plyvel."""
    if name is not None:
        checked_bytes(name, "comparator_name")
    if (comparator is None) != (name is None):
        raise ValueError("'comparator' and 'comparator_name' must be specified together")
    if comparator is None or name is None:
        return None, BYTEWISE
    if not callable(comparator):
        raise TypeError("custom comparator object must be callable")
    return comparator, name.partition(b"\0")[0]


def engine_options(
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
        options["write_buffer_bytes"] = max(number_of(write_buffer_size), 64 << 10)
    if max_open_files is not None:
        number_of(max_open_files, signed=True)
    if lru_cache_size is not None:
        options["block_cache_bytes"] = number_of(lru_cache_size)
    if block_size is not None:
        options["block_bytes"] = min(max(number_of(block_size), 64), 4 << 20)
    if block_restart_interval is not None:
        number_of(block_restart_interval, signed=True)
    if max_file_size is not None:
        number_of(max_file_size)
    if compression is None:
        options["compression"] = options["upper_compression"] = "none"
    elif not isinstance(compression, (str, bytes)):
        raise TypeError("'compression' must be None or a string")
    elif compression not in ("snappy", b"snappy"):
        raise ValueError("'compression' must be None or 'snappy'")
    number_of(bloom_filter_bits, signed=True)
    return options
