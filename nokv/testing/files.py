"""Disks that go wrong on purpose: `CrashFiles` (in memory, it forgets) and `FaultFiles` (it fails).

Both keep the contract of `nokv.env.ports.Files`; `tests/unit/testing/test_files.py` runs one suite over them and over
the real one.

CrashFiles keeps, for each file, what was synced and the list of writes since; for each directory, the names that were
synced and the list of name changes since. `crash_clone(mode, seed)` is the disk another process finds afterwards:

    process   the process died, the machine did not: everything written is there; what was unsynced is still unsynced
    keep      power loss, but everything had reached the disk
    drop      power loss: only what was synced, names included
    names     power loss: all data reached the disk, but not the names that `sync_dir` had not covered
    torn      as keep, but the newest unsynced write stops at a 512-byte boundary
    random    power loss: each unsynced name change survives or not, and in each 512-byte sector a prefix (in time) of
              the writes that touched it survives

A machine's page cache writes a sector as it was at some moment, hence the prefix rule; sectors reach the disk in any
order. A `rename` survives as a whole or not at all. The zeroes of a log are durable when `open_log` returns, and so are
the names that `makedirs` made (see the port).

Threads: any; one lock for the whole disk.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from nokv.env.ports import Buffer, DirectoryLock, Files, LogFile, WritableFile

__all__ = ["CRASH_MODES", "CrashFiles", "CrashMode", "CrashPoint", "Fault", "FaultFiles", "Operation"]

SECTOR_BYTES = 512

CrashMode = Literal["process", "keep", "drop", "names", "torn", "random"]
CRASH_MODES: tuple[CrashMode, ...] = ("process", "keep", "drop", "names", "torn", "random")


class CrashPoint(BaseException):
    """The simulated process stops here. A BaseException, so that no `except Exception` carries on after death."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that changes the disk, as recorded in `CrashFiles.operations`."""

    number: int
    kind: str
    path: str
    detail: str = ""


# -- the disk ---------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Write:
    number: int
    offset: int
    data: bytes


@dataclass(slots=True, eq=False)
class _Inode:
    """`data` and `size` are what a reader sees now; bytes of `data` that are missing below `size` are zero."""

    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    durable: bytearray = field(default_factory=bytearray)
    durable_size: int = 0
    pending: list[_Write] = field(default_factory=list)

    def write(self, number: int, offset: int, data: bytes) -> None:
        if not data:
            return
        _store(self.data, offset, data)
        self.size = max(self.size, offset + len(data))
        self.pending.append(_Write(number, offset, data))

    def sync(self, start: int = 0, end: int | None = None) -> None:
        """Only the writes that touch the range: what a disk takes along beside them is luck."""
        later = []
        for write in self.pending:
            if end is None or (write.offset < end and write.offset + len(write.data) > start):
                _store(self.durable, write.offset, write.data)
            else:
                later.append(write)
        self.durable_size = self.size
        self.pending = later

    def content(self) -> bytes:
        return bytes(self.data) + bytes(self.size - len(self.data))


@dataclass(slots=True, eq=False)
class _NameChange:
    """One atomic change of one or two directories: names that go, names that come."""

    number: int
    effects: list[tuple[_Directory, str, _Node | None]]


@dataclass(slots=True, eq=False)
class _Directory:
    names: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    pending: list[_NameChange] = field(default_factory=list)


_Node = _Inode | _Directory


def _store(buffer: bytearray, offset: int, data: bytes) -> None:
    if len(buffer) < offset:
        buffer.extend(bytes(offset - len(buffer)))
    buffer[offset : offset + len(data)] = data


def _apply(names: dict[str, _Node], directory: _Directory, change: _NameChange) -> None:
    for target, name, node in change.effects:
        if target is not directory:
            continue
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _sync_directory(directory: _Directory, seen: set[int]) -> None:
    """Make pending name changes durable; a rename across directories takes the other directory along (one journal)."""
    if id(directory) in seen:
        return
    seen.add(id(directory))
    pending, directory.pending = directory.pending, []
    for change in pending:
        _apply(directory.durable, directory, change)
        for other, _, _ in change.effects:
            _sync_directory(other, seen)


def _fail(code: int, path: str, other: str | None = None) -> NoReturn:
    if other is None:
        raise OSError(code, os.strerror(code), path)
    raise OSError(code, os.strerror(code), path, None, other)


class CrashFiles:
    """An in-memory `Files`. `crash_at = k` makes the k-th operation that changes the disk raise `CrashPoint`, and every
    operation after it; if that operation is a write, a prefix of it (length from the seed) still happens, as when
    a process is killed in the middle of a copy. `operation_count` says how many have begun, `operations` which ones."""

    def __init__(self, *, seed: int = 0, crash_at: int | None = None) -> None:
        self.seed = seed
        self.crash_at = crash_at
        self.operations: list[Operation] = []
        self._root = _Directory()
        self._random = random.Random(seed)
        self._mutex = threading.RLock()
        self._dead = False
        self._locks: dict[int, list[_CrashLock]] = {}

    @property
    def operation_count(self) -> int:
        return len(self.operations)

    @property
    def crashed(self) -> bool:
        return self._dead

    def kill(self) -> None:
        """The process dies now: every later operation through this object raises CrashPoint."""
        self._dead = True

    # -- Files --------------------------------------------------------------------------------------------------------
    def create(self, path: str) -> WritableFile:
        with self._mutex:
            number = self._begin("create", path)
            parent, name = self._parent(path)
            if isinstance(parent.names.get(name), _Directory):
                _fail(errno.EISDIR, path)
            inode = _Inode()
            self._change(number, [(parent, name, inode)])
            return _CrashWritableFile(self, path, inode)

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> LogFile:
        with self._mutex:
            number = self._begin("open_log", path, f"recycle {recycle}" if recycle else "")
            parent, name = self._parent(path)
            if name in parent.names:
                _fail(errno.EEXIST, path)
            effects: list[tuple[_Directory, str, _Node | None]] = []
            inode = _Inode()
            if recycle is not None:
                old_parent, old_name = self._parent(recycle)
                old = old_parent.names.get(old_name)
                if not isinstance(old, _Inode):
                    _fail(errno.ENOENT, recycle)
                effects.append((old_parent, old_name, None))
                inode = old
                inode.data, inode.durable = bytearray(), bytearray()
                inode.pending.clear()
            inode.size = inode.durable_size = capacity
            self._change(number, [*effects, (parent, name, inode)])
            return _CrashLogFile(self, path, inode, capacity)

    def reopen_log(self, path: str, capacity: int) -> LogFile:
        with self._mutex:
            self._check_alive()
            return _CrashLogFile(self, path, self._inode(path), capacity)

    def data_end(self, path: str) -> int:
        with self._mutex:
            self._check_alive()
            return len(self._inode(path).data)

    def map_file(self, path: str) -> Buffer:
        return memoryview(self.read_file(path))

    def read_file(self, path: str) -> bytes:
        with self._mutex:
            self._check_alive()
            return self._inode(path).content()

    def listdir(self, path: str) -> list[str]:
        with self._mutex:
            self._check_alive()
            return sorted(self._directory(path).names)

    def exists(self, path: str) -> bool:
        with self._mutex:
            self._check_alive()
            return self._find(path) is not None

    def size(self, path: str) -> int:
        with self._mutex:
            self._check_alive()
            return self._inode(path).size

    def makedirs(self, path: str) -> None:
        with self._mutex:
            self._begin("makedirs", path)
            directory = self._root
            for part in _parts(path):
                node = directory.names.get(part)
                if node is None:
                    node = _Directory()
                    directory.names[part] = node
                    directory.durable[part] = node
                if not isinstance(node, _Directory):
                    _fail(errno.EEXIST, path)
                directory = node

    def rename(self, source: str, target: str) -> None:
        with self._mutex:
            number = self._begin("rename", source, target)
            old_parent, old_name = self._parent(source)
            new_parent, new_name = self._parent(target)
            node = old_parent.names.get(old_name)
            if node is None:
                _fail(errno.ENOENT, source, target)
            replaced = new_parent.names.get(new_name)
            if replaced is node:
                return  # two names of one file, or the same name: POSIX does nothing
            if isinstance(replaced, _Directory):
                if not isinstance(node, _Directory):
                    _fail(errno.EISDIR, source, target)
                if replaced.names:
                    _fail(errno.ENOTEMPTY, source, target)
            elif isinstance(replaced, _Inode) and isinstance(node, _Directory):
                _fail(errno.ENOTDIR, source, target)
            self._change(number, [(old_parent, old_name, None), (new_parent, new_name, node)])

    def remove(self, path: str) -> None:
        with self._mutex:
            number = self._begin("remove", path)
            self._inode(path)
            parent, name = self._parent(path)
            self._change(number, [(parent, name, None)])

    def rmdir(self, path: str) -> None:
        with self._mutex:
            number = self._begin("rmdir", path)
            if self._directory(path).names:
                _fail(errno.ENOTEMPTY, path)
            parent, name = self._parent(path)
            self._change(number, [(parent, name, None)])

    def link(self, source: str, target: str) -> None:
        with self._mutex:
            number = self._begin("link", source, target)
            inode = self._inode(source)
            parent, name = self._parent(target)
            if name in parent.names:
                _fail(errno.EEXIST, source, target)
            self._change(number, [(parent, name, inode)])

    def sync_dir(self, path: str) -> None:
        with self._mutex:
            self._begin("sync_dir", path)
            _sync_directory(self._directory(path), set())

    def sync_file(self, path: str) -> None:
        with self._mutex:
            self._sync(path, self._inode(path))

    def lock(self, path: str, *, shared: bool = False) -> DirectoryLock:
        with self._mutex:
            self._check_alive()
            parent, name = self._parent(path)
            if name not in parent.names:
                number = self._begin("lock", path)
                self._change(number, [(parent, name, _Inode())])
            inode = self._inode(path)
            holders = self._locks.setdefault(id(inode), [])
            if holders and not (shared and all(holder.shared for holder in holders)):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
            lock = _CrashLock(self, inode, shared)
            holders.append(lock)
            return lock

    # -- crashes ------------------------------------------------------------------------------------------------------
    def crash_clone(self, mode: CrashMode = "drop", *, seed: int | None = None) -> CrashFiles:
        """The disk that the next process finds. This object is left as it is (and may already be dead)."""
        if mode not in CRASH_MODES:
            raise ValueError(f"unknown crash mode {mode!r}; one of {', '.join(CRASH_MODES)}")
        with self._mutex:
            seed = self.seed if seed is None else seed
            clone = CrashFiles(seed=seed)
            copier = _Copier(mode, random.Random(seed), self._newest_write() if mode == "torn" else None)
            clone._root = copier.directory(self._root)
            if mode == "process":
                copier.copy_pending_names()
            return clone

    def rot(self, path: str, content: bytes) -> None:
        """The disk itself changes what a file holds, behind everybody's back and for good."""
        with self._mutex:
            inode = self._inode(path)
            inode.data, inode.durable = bytearray(content), bytearray(content)
            inode.size = inode.durable_size = len(content)
            inode.pending.clear()

    def unsynced(self) -> list[str]:
        """Paths of files with unsynced writes, and of directories with unsynced names: for assertions in tests."""
        with self._mutex:
            found: list[str] = []
            stack: list[tuple[str, _Node]] = [("", self._root)]
            while stack:
                path, node = stack.pop()
                if node.pending:
                    found.append(path)
                if isinstance(node, _Directory):
                    stack.extend((f"{path}/{name}" if path else name, child) for name, child in node.names.items())
            return sorted(found)

    def _newest_write(self) -> _Write | None:
        newest: _Write | None = None
        stack: list[_Node] = [self._root]
        while stack:
            node = stack.pop()
            if isinstance(node, _Directory):
                stack.extend(node.names.values())
            elif node.pending and (newest is None or node.pending[-1].number > newest.number):
                newest = node.pending[-1]
        return newest

    # -- inside -------------------------------------------------------------------------------------------------------
    def _check_alive(self) -> None:
        if self._dead:
            raise CrashPoint("this process is dead")

    def _begin(self, kind: str, path: str, detail: str = "") -> int:
        self._check_alive()
        number = len(self.operations) + 1
        self.operations.append(Operation(number, kind, path, detail))
        if self.crash_at is not None and number >= self.crash_at:
            self._dead = True
            if kind != "write":
                raise CrashPoint(f"operation {number}: {kind} {path} {detail}".rstrip())
        return number

    def _change(self, number: int, effects: list[tuple[_Directory, str, _Node | None]]) -> None:
        change = _NameChange(number, effects)
        seen: list[_Directory] = []
        for directory, _, _ in effects:
            if not any(directory is other for other in seen):
                seen.append(directory)
                _apply(directory.names, directory, change)
                directory.pending.append(change)

    def _write(self, path: str, inode: _Inode, offset: int, data: Buffer) -> int:
        content = bytes(data)
        with self._mutex:
            number = self._begin("write", path, f"{offset}+{len(content)}")
            if self._dead:
                inode.write(number, offset, content[: self._random.randrange(len(content) + 1)])
                raise CrashPoint(f"operation {number}: write {path} {offset}+{len(content)}")
            inode.write(number, offset, content)
            return len(content)

    def _sync(self, path: str, inode: _Inode, start: int = 0, end: int | None = None) -> None:
        with self._mutex:
            self._begin("sync", path)
            inode.sync(start, end)

    def _find(self, path: str) -> _Node | None:
        node: _Node = self._root
        for part in _parts(path):
            if not isinstance(node, _Directory):
                return None
            child = node.names.get(part)
            if child is None:
                return None
            node = child
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if node is None:
            _fail(errno.ENOENT, path)
        if not isinstance(node, _Directory):
            _fail(errno.ENOTDIR, path)
        return node

    def _inode(self, path: str) -> _Inode:
        node = self._find(path)
        if node is None:
            _fail(errno.ENOENT, path)
        if not isinstance(node, _Inode):
            _fail(errno.EISDIR, path)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        parts = _parts(path)
        if not parts:
            _fail(errno.EINVAL, path)
        node: _Node | None = self._root
        for part in parts[:-1]:
            node = node.names.get(part) if isinstance(node, _Directory) else None
        if not isinstance(node, _Directory):
            _fail(errno.ENOENT, path)
        return node, parts[-1]


def _parts(path: str) -> list[str]:
    """Relative and absolute paths share one tree: there is one disk and no current directory."""
    normal = posixpath.normpath(path)
    return [part for part in normal.split("/") if part not in ("", ".")]


class _Copier:
    """Copies a tree as a crash leaves it. Hard links stay hard links."""

    def __init__(self, mode: CrashMode, dice: random.Random, torn: _Write | None) -> None:
        self.mode = mode
        self.dice = dice
        self.torn = torn
        self.inodes: dict[int, _Inode] = {}
        self.directories: dict[int, _Directory] = {}
        self.sources: list[_Directory] = []
        self.kept_changes: dict[int, bool] = {}

    def directory(self, source: _Directory) -> _Directory:
        copy = self.directories.get(id(source))
        if copy is not None:
            return copy
        copy = self.directories[id(source)] = _Directory()
        self.sources.append(source)
        names = dict(source.durable)
        for change in source.pending:
            if self._keeps(change):
                _apply(names, source, change)
        copy.names = {name: self.node(names[name]) for name in sorted(names)}
        copy.durable = dict(copy.names)
        return copy

    def node(self, source: _Node) -> _Node:
        return self.directory(source) if isinstance(source, _Directory) else self.inode(source)

    def _keeps(self, change: _NameChange) -> bool:
        if self.mode == "random":
            return self.kept_changes.setdefault(id(change), self.dice.random() < 0.5)
        return self.mode in ("process", "keep", "torn")

    def copy_pending_names(self) -> None:
        """After a process crash what was not synced still is not."""
        done: dict[int, _NameChange] = {}
        for source in self.sources:
            copy = self.directories[id(source)]
            copy.durable = {name: self.node(node) for name, node in source.durable.items()}
            for change in source.pending:
                if id(change) not in done:
                    effects: list[tuple[_Directory, str, _Node | None]] = [
                        (self.directory(where), name, None if node is None else self.node(node))
                        for where, name, node in change.effects
                    ]
                    done[id(change)] = _NameChange(0, effects)
                copy.pending.append(done[id(change)])

    def inode(self, source: _Inode) -> _Inode:
        copy = self.inodes.get(id(source))
        if copy is not None:
            return copy
        copy = self.inodes[id(source)] = _Inode()
        if self.mode == "process":
            copy.data, copy.size = bytearray(source.data), source.size
            copy.durable, copy.durable_size = bytearray(source.durable), source.durable_size
            copy.pending = [_Write(0, write.offset, write.data) for write in source.pending]
            return copy
        copy.data, copy.size = bytearray(source.durable), source.durable_size
        if self.mode in ("keep", "names"):
            copy.data, copy.size = bytearray(source.data), source.size
        elif self.mode == "torn":
            for write in source.pending:
                self._put(copy, write.offset, self._tear(write) if write is self.torn else write.data)
        elif self.mode == "random":
            self._put_random_sectors(copy, source.pending)
        copy.durable, copy.durable_size = bytearray(copy.data), copy.size
        return copy

    def _tear(self, write: _Write) -> bytes:
        first_boundary = (write.offset // SECTOR_BYTES + 1) * SECTOR_BYTES - write.offset
        cuts = [0, *range(first_boundary, len(write.data), SECTOR_BYTES)]
        return write.data[: cuts[self.dice.randrange(len(cuts))]]

    def _put_random_sectors(self, copy: _Inode, pending: list[_Write]) -> None:
        sectors: dict[int, list[tuple[int, bytes]]] = {}
        for write in pending:
            position = 0
            while position < len(write.data):
                offset = write.offset + position
                sector = offset // SECTOR_BYTES
                length = min(len(write.data) - position, (sector + 1) * SECTOR_BYTES - offset)
                sectors.setdefault(sector, []).append((offset, write.data[position : position + length]))
                position += length
        for sector in sorted(sectors):
            pieces = sectors[sector]
            for offset, data in pieces[: self.dice.randrange(len(pieces) + 1)]:
                self._put(copy, offset, data)

    @staticmethod
    def _put(copy: _Inode, offset: int, data: bytes) -> None:
        if data:
            _store(copy.data, offset, data)
            copy.size = max(copy.size, offset + len(data))


class _CrashWritableFile:
    def __init__(self, files: CrashFiles, path: str, inode: _Inode) -> None:
        self._files = files
        self._path = path
        self._inode = inode
        self._position = 0
        self._closed = False

    def write(self, data: Buffer, /) -> int:
        if self._closed:
            _fail(errno.EBADF, self._path)
        written = self._files._write(self._path, self._inode, self._position, data)
        self._position += written
        return written

    def sync(self) -> None:
        if self._closed:
            _fail(errno.EBADF, self._path)
        self._files._sync(self._path, self._inode)

    def close(self) -> None:
        self._closed = True


class _CrashLogFile:
    def __init__(self, files: CrashFiles, path: str, inode: _Inode, capacity: int) -> None:
        self._files = files
        self._path = path
        self._inode = inode
        self._closed = False
        self.capacity = capacity

    def write(self, offset: int, data: Buffer, /) -> None:
        if self._closed:
            _fail(errno.EBADF, self._path)
        if offset < 0 or offset + len(data) > self.capacity:
            _fail(errno.EFBIG, self._path)
        self._files._write(self._path, self._inode, offset, data)

    def sync(self, start: int = 0, end: int | None = None, /) -> None:
        if self._closed:
            _fail(errno.EBADF, self._path)
        self._files._sync(self._path, self._inode, start, end)

    def close(self) -> None:
        self._closed = True


class _CrashLock:
    def __init__(self, files: CrashFiles, inode: _Inode, shared: bool) -> None:
        self._files = files
        self._inode = inode
        self.shared = shared

    def release(self) -> None:
        with self._files._mutex:
            holders = self._files._locks.get(id(self._inode), [])
            if self in holders:
                holders.remove(self)


# -- faults -----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Fault:
    """What goes wrong: the calls `at`, `at + 1`, ... (`times` of them, None = for ever; counted from 1 over the calls
    that match `kind` and `path`). `error` is an errno; "short" writes half; "lie" returns without doing it."""

    kind: str
    at: int = 1
    times: int | None = 1
    error: int | Literal["short", "lie"] = errno.EIO
    path: str = ""
    calls: int = 0

    def strikes(self, kind: str, path: str) -> bool:
        if kind != self.kind or self.path not in path:
            return False
        self.calls += 1
        return self.calls >= self.at and (self.times is None or self.calls < self.at + self.times)


class FaultFiles:
    """Any `Files` with faults. Kinds: create open_log write sync map_file read_file listdir makedirs rename remove
    rmdir link sync_dir lock. A "short" write of a WritableFile returns the smaller count; of a LogFile it leaves half
    of the bytes and raises ENOSPC. A "lie" is for sync and sync_dir: the caller believes it.

        files = FaultFiles(CrashFiles())
        files.fail("sync", at=3, path=".wal")
        files.fail("write", error=errno.ENOSPC, times=None)
    """

    def __init__(self, inner: Files) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.struck: list[tuple[str, str]] = []
        self._mutex = threading.Lock()

    def fail(
        self,
        kind: str,
        *,
        at: int = 1,
        times: int | None = 1,
        error: int | Literal["short", "lie"] = errno.EIO,
        path: str = "",
    ) -> Fault:
        """Add a fault; `path` is a part of the path, "" matches all."""
        if error == "short" and kind != "write":
            raise ValueError("only a write can be short")
        if error == "lie" and kind not in ("sync", "sync_dir"):
            raise ValueError("only sync and sync_dir can lie")
        fault = Fault(kind, at, times, error, path)
        with self._mutex:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No faults from now on."""
        with self._mutex:
            self.faults.clear()

    def _strike(self, kind: str, path: str) -> Fault | None:
        with self._mutex:
            hits = [fault for fault in self.faults if fault.strikes(kind, path)]  # every counter moves
            if not hits:
                return None
            self.struck.append((kind, path))
        if isinstance(hits[0].error, int):
            _fail(hits[0].error, path)
        return hits[0]

    def create(self, path: str) -> WritableFile:
        self._strike("create", path)
        return _FaultWritableFile(self, path, self.inner.create(path))

    def open_log(self, path: str, capacity: int, *, recycle: str | None = None) -> LogFile:
        self._strike("open_log", path)
        return _FaultLogFile(self, path, self.inner.open_log(path, capacity, recycle=recycle))

    def reopen_log(self, path: str, capacity: int) -> LogFile:
        self._strike("open_log", path)
        return _FaultLogFile(self, path, self.inner.reopen_log(path, capacity))

    def data_end(self, path: str) -> int:
        return self.inner.data_end(path)

    def map_file(self, path: str) -> Buffer:
        self._strike("map_file", path)
        return self.inner.map_file(path)

    def read_file(self, path: str) -> bytes:
        self._strike("read_file", path)
        return self.inner.read_file(path)

    def listdir(self, path: str) -> list[str]:
        self._strike("listdir", path)
        return self.inner.listdir(path)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def size(self, path: str) -> int:
        return self.inner.size(path)

    def makedirs(self, path: str) -> None:
        self._strike("makedirs", path)
        self.inner.makedirs(path)

    def rename(self, source: str, target: str) -> None:
        self._strike("rename", source)
        self.inner.rename(source, target)

    def remove(self, path: str) -> None:
        self._strike("remove", path)
        self.inner.remove(path)

    def rmdir(self, path: str) -> None:
        self._strike("rmdir", path)
        self.inner.rmdir(path)

    def link(self, source: str, target: str) -> None:
        self._strike("link", source)
        self.inner.link(source, target)

    def sync_dir(self, path: str) -> None:
        if self._strike("sync_dir", path) is None:
            self.inner.sync_dir(path)

    def sync_file(self, path: str) -> None:
        if self._strike("sync", path) is None:
            self.inner.sync_file(path)

    def lock(self, path: str, *, shared: bool = False) -> DirectoryLock:
        self._strike("lock", path)
        return self.inner.lock(path, shared=shared)


class _FaultWritableFile:
    def __init__(self, files: FaultFiles, path: str, inner: WritableFile) -> None:
        self._files = files
        self._path = path
        self._inner = inner

    def write(self, data: Buffer, /) -> int:
        if self._files._strike("write", self._path) is None:
            return self._inner.write(data)
        return self._inner.write(memoryview(data)[: len(data) // 2])

    def sync(self) -> None:
        if self._files._strike("sync", self._path) is None:
            self._inner.sync()

    def close(self) -> None:
        self._inner.close()


class _FaultLogFile:
    def __init__(self, files: FaultFiles, path: str, inner: LogFile) -> None:
        self._files = files
        self._path = path
        self._inner = inner

    @property
    def capacity(self) -> int:
        return self._inner.capacity

    @capacity.setter
    def capacity(self, value: int) -> None:
        self._inner.capacity = value

    def write(self, offset: int, data: Buffer, /) -> None:
        if self._files._strike("write", self._path) is None:
            self._inner.write(offset, data)
            return
        self._inner.write(offset, memoryview(data)[: len(data) // 2])
        _fail(errno.ENOSPC, self._path)

    def sync(self, start: int = 0, end: int | None = None, /) -> None:
        if self._files._strike("sync", self._path) is None:
            self._inner.sync(start, end)

    def close(self) -> None:
        self._inner.close()


def _conforms(files: Callable[[], Files]) -> None:
    """For the type checker: both are `Files`."""


_conforms(CrashFiles)
_conforms(lambda: FaultFiles(CrashFiles()))
