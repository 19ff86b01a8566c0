"""The operating system's files, behind the `Files` port.

Rules the rest of the engine relies on:
- `open_log` allocates every block before it maps them, so a full disk is ENOSPC there and never SIGBUS in a put. A
  store into the
  map survives `kill -9` (the page cache belongs to the kernel); `sync` is one fdatasync.
- A directory lock is a `flock` on an open file description: a second opener fails, in the same process too, and the
  kernel drops it
  when the process dies. No file is ever removed to unlock.
- macOS: fdatasync does not reach the platter, F_FULLFSYNC does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys

from nokv._ext.disk import (
    CAN_SYNC_RANGES,
    FileMap,
    LogMap,
    close_file,
    create_file,
    read_file,
    remove_file,
    sync_data,
    sync_directory,
    sync_range,
    write_all,
    zero,
)
from nokv.env.ports import Buffer

__all__ = ["FileLock", "MappedLogFile", "OsFiles", "OsWritableFile"]

# Of a new log: afterwards a sync of a record has no extent to convert and no size to journal. Only so much: reserved
# blocks read as zero too, and writing zeros costs the disk as much as data. Through the map and not by `write`: a large
# write makes large folios in the page cache, and a store into one dirties all of it, so that every later sync would
# write up to a megabyte instead of a page.
ZEROED_BYTES_MAX = 1 << 20
EXTENTS_MAX = 100  # pieces of a file that are looked at to find its last one
_DARWIN = sys.platform == "darwin"


class OsWritableFile:
    """A new file, written from front to back."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._fd = create_file(path)  # whoever still maps a leftover of the same name keeps what it maps

    def write(self, data: Buffer, /) -> int:
        return write_all(self._fd, memoryview(data).cast("B"))

    @property
    def descriptor(self) -> int:
        """For compiled writers, which write at the end without the GIL."""
        return self._fd

    def sync(self) -> None:
        sync_data(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_file(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class MappedLogFile:
    """A preallocated file mapped for writing. `map` is what compiled writers store through."""

    __slots__ = ("capacity", "map", "path")

    def __init__(self, path: str, capacity: int, *, fresh: bool) -> None:
        self.path = path
        self.capacity = capacity
        self.map = LogMap(path, capacity, fresh)

    def write(self, offset: int, data: Buffer, /) -> None:
        view = memoryview(data).cast("B")
        with memoryview(self.map) as target:
            target[offset : offset + len(view)] = view

    def sync(self, start: int = 0, end: int | None = None, /) -> None:
        if end is not None and CAN_SYNC_RANGES:
            sync_range(self.map.fd, self.map, start, end)
            return
        if _DARWIN:
            self.map.flush()
        sync_data(self.map.fd)

    def close(self) -> None:
        self.map.close()


class FileLock:
    """A held lock. `abandon` is for a forked child: it gives up its copy and leaves the parent's lock in place."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def abandon(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.abandon()


class OsFiles:
    """`nokv.env.Files` over the operating system."""

    __slots__ = ()

    def create(self, path: str) -> OsWritableFile:
        return OsWritableFile(path)

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> MappedLogFile:
        if recycle is not None and os.stat(recycle).st_size != capacity:
            os.unlink(recycle)  # never cut a file short: a reader may have it mapped
            recycle = None
        if recycle is not None:
            os.rename(recycle, path)
        file = MappedLogFile(path, capacity, fresh=recycle is None)
        if recycle is not None or capacity <= ZEROED_BYTES_MAX:
            zero(file.map, capacity)
        if recycle is not None:
            file.sync()  # or power loss could bring back records of the file's former life
        return file

    def reopen_log(self, path: str, capacity: int) -> MappedLogFile:
        return MappedLogFile(path, capacity, fresh=False)

    def data_end(self, path: str) -> int:
        if not hasattr(os, "SEEK_DATA"):
            return self.size(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size, end = os.fstat(fd).st_size, 0
            for _ in range(EXTENTS_MAX):
                try:
                    end = os.lseek(fd, os.lseek(fd, end, os.SEEK_DATA), os.SEEK_HOLE)
                except OSError as error:
                    return end if error.errno == errno.ENXIO else size  # no more data; or it cannot be asked here
            return size
        finally:
            os.close(fd)

    def map_file(self, path: str) -> Buffer:
        return memoryview(FileMap(path))

    def read_file(self, path: str) -> bytes:
        return read_file(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def makedirs(self, path: str) -> None:
        missing = []
        while path and not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            self.sync_dir(os.path.dirname(folder))

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        remove_file(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def sync_dir(self, path: str) -> None:
        sync_directory(path or ".")

    def sync_file(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            sync_data(fd)
        finally:
            os.close(fd)

    def lock(self, path: str, *, shared: bool = False) -> FileLock:
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return FileLock(fd)
        except BaseException:
            os.close(fd)
            raise
