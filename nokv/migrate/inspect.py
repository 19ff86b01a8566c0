"""Open a directory to look at it, with the engine's own recovery, and change nothing on the disk.

`OverlayFiles` lays memory over another `Files`: what is read comes from below, what is written, renamed or removed
stays in memory. So `nokv migrate plan` and the offline commands see exactly what an ordinary open would see,
including the recovered tail of the log, and not one byte or mtime below changes. The directory lock is taken shared:
it keeps writers out while we look, and fails if one is there. Any thread, like every `Files`; one lock.
"""

from __future__ import annotations

import errno
import os
import posixpath
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import nokv
from nokv.env.ports import Buffer, DirectoryLock, Files, LogFile, WritableFile

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = ["OverlayFiles", "open_for_reading"]


def open_for_reading(workdir: str, mode: str, files: Files) -> DB:
    """The directory as it is; whatever the caller writes is lost. Locked if somebody has it open for writing."""
    return nokv.open(workdir, create=False, mode=mode, files=OverlayFiles(files), executor=_NoBackground())


class _NoBackground:
    """Nothing is flushed or compacted: nobody would keep the result."""

    def submit(self, step: Callable[[], None]) -> None:
        return

    def drain(self) -> None:
        return

    def close(self) -> None:
        return


class _NoLock:
    def release(self) -> None:
        return

    def abandon(self) -> None:
        return


class _MemoryFile:
    """A new file. Synced at once: nothing here survives anyway."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer, /) -> int:
        self.data += data
        return len(data)

    def sync(self) -> None:
        return

    def close(self) -> None:
        return


class _MemoryLog:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray(capacity)

    def write(self, offset: int, data: Buffer, /) -> None:
        if offset < 0 or offset + len(data) > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.data[offset : offset + len(data)] = data

    def sync(self, start: int = 0, end: int | None = None, /) -> None:
        return

    def close(self) -> None:
        return


_Node = _MemoryFile | _MemoryLog | str
"""What a name stands for; a str is a path of the base, perhaps under another name."""


class OverlayFiles:
    """A `Files` over `base` that never changes `base`."""

    def __init__(self, base: Files) -> None:
        self._base = base
        self._mutex = threading.RLock()
        self._files: dict[str, _Node] = {}
        self._folders: set[str] = set()
        self._gone: set[str] = set()

    # -- looking up ---------------------------------------------------------------------------------------------------
    def _find(self, path: str) -> _Node | None:
        """The memory file, the base's path, or None."""
        path = posixpath.normpath(path)
        with self._mutex:
            if path in self._files:
                return self._files[path]
            if path in self._folders:
                return None
            return path if path not in self._gone and self._base.exists(path) else None

    def _require(self, path: str) -> _Node:
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def exists(self, path: str) -> bool:
        return posixpath.normpath(path) in self._folders or self._find(path) is not None

    def listdir(self, path: str) -> list[str]:
        folder = posixpath.normpath(path)
        with self._mutex:
            names: set[str] = set()
            if folder not in self._folders or (folder not in self._gone and self._base.exists(folder)):
                names = {n for n in self._base.listdir(folder) if posixpath.join(folder, n) not in self._gone}
            for known in (*self._files, *self._folders):
                if posixpath.dirname(known) == folder:
                    names.add(posixpath.basename(known))
            return sorted(names)

    def map_file(self, path: str) -> Buffer:
        found = self._require(path)
        if isinstance(found, str):
            return self._base.map_file(found)
        return memoryview(found.data if isinstance(found, _MemoryLog) else bytes(found.data)).toreadonly()

    def read_file(self, path: str) -> bytes:
        found = self._require(path)
        return self._base.read_file(found) if isinstance(found, str) else bytes(found.data)

    def size(self, path: str) -> int:
        found = self._require(path)
        return self._base.size(found) if isinstance(found, str) else len(found.data)

    # -- changing the overlay -----------------------------------------------------------------------------------------
    def create(self, path: str) -> WritableFile:
        file = _MemoryFile()
        with self._mutex:
            self._files[posixpath.normpath(path)] = file
        return file

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> LogFile:
        log = _MemoryLog(capacity)
        with self._mutex:
            if recycle is not None:
                self.remove(recycle)
            self._files[posixpath.normpath(path)] = log
        return log

    def reopen_log(self, path: str, capacity: int) -> LogFile:
        log = _MemoryLog(capacity)
        with self._mutex:
            log.data[:] = self.read_file(path)
            self._files[posixpath.normpath(path)] = log
        return log

    def data_end(self, path: str) -> int:
        found = self._require(path)
        return self._base.data_end(found) if isinstance(found, str) else len(found.data)

    def makedirs(self, path: str) -> None:
        with self._mutex:
            folder = posixpath.normpath(path)
            while folder and folder != posixpath.dirname(folder) and not self.exists(folder):
                self._folders.add(folder)
                folder = posixpath.dirname(folder)

    def rename(self, source: str, target: str) -> None:
        with self._mutex:
            found = self._require(source)
            self.remove(source)
            self._files[posixpath.normpath(target)] = found

    def link(self, source: str, target: str) -> None:
        with self._mutex:
            if self.exists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            self._files[posixpath.normpath(target)] = self._require(source)

    def remove(self, path: str) -> None:
        with self._mutex:
            self._require(path)
            name = posixpath.normpath(path)
            self._files.pop(name, None)
            self._gone.add(name)

    def rmdir(self, path: str) -> None:
        with self._mutex:
            if self.listdir(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            self._folders.discard(posixpath.normpath(path))
            self._gone.add(posixpath.normpath(path))

    def sync_dir(self, path: str) -> None:
        return

    def sync_file(self, path: str) -> None:
        return

    def lock(self, path: str, *, shared: bool = False) -> DirectoryLock:
        """Always shared, and only if the lock file exists: making one would change the directory."""
        return self._base.lock(path, shared=True) if self._base.exists(path) else _NoLock()
