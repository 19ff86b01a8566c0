"""The contracts of everything that is not pure: who may call it, from which thread, what is durable when it returns.

A path is a `str`, absolute or relative to the process's directory; ports never interpret it beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview  # collections.abc.Buffer needs Python 3.12

__all__ = ["Clock", "DirectoryLock", "Executor", "Files", "LogFile", "Randrange", "WritableFile"]

Randrange = Callable[[int], int]
"""`randrange(n)` -> an int in [0, n). The only dice a state machine may throw, and it is passed in."""


class Clock(Protocol):
    """Any thread. `monotonic_ns` never goes back; `time_ms` is the wall clock (Unix milliseconds) and may jump."""

    def monotonic_ns(self) -> int: ...
    def time_ms(self) -> int: ...


class WritableFile(Protocol):
    """A new file, written from front to back by one thread. Nothing is durable before `sync` returns, and the *name*
    not before `Files.sync_dir` of its directory returns. Errors are OSError."""

    def write(self, data: Buffer, /) -> int: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class LogFile(Protocol):
    """A preallocated, pre-zeroed, fixed-capacity file for a write-ahead log. One writer at a time.

    When `write` returns, the bytes survive the death of this process; when `sync` returns they survive power loss:
    those from `start` to `end`, or all of them.
    Bytes never written read as zero. After `sync` raised, the caller must never call it again as if nothing happened.
    """

    capacity: int

    def write(self, offset: int, data: Buffer, /) -> None: ...
    def sync(self, start: int = 0, end: int | None = None, /) -> None: ...
    def close(self) -> None: ...


class DirectoryLock(Protocol):
    def release(self) -> None: ...


@runtime_checkable
class Files(Protocol):
    """The file system. Any thread. Errors are OSError with errno and filename set, as the OS raises them.

    `rename` replaces the target atomically; neither it, `remove`, `rmdir`, `link` nor `create` is durable before
    `sync_dir` of the directory returns. `create` replaces an existing name by a new, empty file. `makedirs` is
    `mkdir -p` and durable when it returns. `open_log` refuses an existing name (FileExistsError), allocates all blocks
    (ENOSPC here, never SIGBUS later), and its zeroes are durable when it returns (its name is not); with `recycle` it
    takes over that old file (renaming it) and zeroes it. `reopen_log` goes on in a file that `open_log` once made, as
    it is. `remove` is for files, `rmdir` for empty directories; `listdir` returns names in order. `map_file` returns
    the whole file as a read-only buffer that stays valid until it is garbage, even if the file is removed meanwhile.
    """

    def create(self, path: str) -> WritableFile: ...
    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> LogFile: ...
    def reopen_log(self, path: str, capacity: int) -> LogFile: ...
    def data_end(self, path: str) -> int:
        """From here on the file holds nothing but zeros, as far as can be told without reading it; else its size."""
        ...

    def map_file(self, path: str) -> Buffer: ...
    def read_file(self, path: str) -> bytes: ...
    def listdir(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...
    def size(self, path: str) -> int: ...
    def makedirs(self, path: str) -> None: ...
    def rename(self, source: str, target: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def link(self, source: str, target: str) -> None: ...
    def sync_dir(self, path: str) -> None: ...
    def sync_file(self, path: str) -> None:
        """Make the content of an existing file durable, whoever wrote it (a log that a killed process left behind)."""
        ...

    def lock(self, path: str, *, shared: bool = False) -> DirectoryLock:
        """An OS-level lock that dies with the process. Raises BlockingIOError if another holder is in the way."""
        ...


class Executor(Protocol):
    """Background steps (flush, compaction). Real life: threads. The simulator: one step at a time, when it says so.

    `submit` returns at once and runs `step` once, later, on some other thread or turn; steps of one executor never
    run at the same time as each other. An exception from a step is handed to `step`'s owner by the step itself: it
    must not raise. `drain` returns when everything submitted so far has run. After `close` returns nothing runs any
    more.
    """

    def submit(self, step: Callable[[], None]) -> None: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...
