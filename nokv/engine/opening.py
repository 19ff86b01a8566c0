"""`nokv.open`: what is checked, locked and chosen before there is a database object."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nokv.engine.db import DB, DURABILITIES
from nokv.engine.mode import MODES, STANDALONE, check_open, read_mode
from nokv.engine.options import EngineOptions, make_options
from nokv.engine.sst.options import LsmOptions
from nokv.env.clock import SystemClock
from nokv.env.files import OsFiles
from nokv.env.ports import Clock, DirectoryLock, Executor, Files
from nokv.errors import Locked, NotFound, ReadOnly, Unavailable, UsageError

__all__ = ["LOCK_FILE", "directory_name", "open_db", "typed_os_errors"]

LOCK_FILE = "LOCK"


def open_db(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    durability: str = "interval",
    families: Iterable[str] = (),
    mode: str = STANDALONE,
    files: Files | None = None,
    clock: Clock | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> DB:
    """Open the database in directory `path`, or make one.

    durability: what a finished write survives without `sync=True`. "process": the death of this process. "interval":
    power loss too, but for the last 100 ms. "sync": power loss. `sync=True` on a call always means power loss.
    read_only: look at a directory, also while another process writes it: a frozen, consistent view of this moment,
    which `db.refresh()` moves forward. Takes no lock, changes nothing on disk; as many as you like.
    `mode` is the directory mode that the caller understands; an application leaves it alone.

    Raises NotFound (no database and create=False), Locked, ModeError, Corruption (with file and offset), UsageError.
    """
    name = directory_name(path)
    if durability not in DURABILITIES:
        raise UsageError(f"unknown durability {durability!r}", hint=" | ".join(DURABILITIES))
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", hint=" | ".join(MODES))
    if isinstance(families, (str, bytes)):
        raise UsageError("families must be a list of names", hint=f"families=[{families!r}]")
    settings, lsm = make_options(options)
    files = files if files is not None else OsFiles()
    with typed_os_errors(name):
        return _open(
            name,
            create and not read_only,
            read_only,
            durability,
            tuple(families),
            mode,
            files,
            clock,
            executor,
            settings,
            lsm,
        )


def directory_name(path: str | os.PathLike[str]) -> str:
    """A directory as the caller names it: text that is no error to hand to the system."""
    try:
        name = os.fsdecode(os.fspath(path))
    except TypeError as error:
        raise UsageError(f"{path!r} is no path", hint="a path is text, bytes or os.PathLike") from error
    if "\0" in name:
        raise UsageError(f"{name!r}: a path holds no zero byte", hint="check the path")
    if not name:
        raise UsageError("the path is empty", hint="name a directory; '.' is the current one")
    return name.rstrip("/") or "/"


@contextmanager
def typed_os_errors(name: str, verb: str = "opened") -> Iterator[None]:
    """What the system refuses to whoever opens, reads, checks, repairs or destroys the directory `name`, or makes it
    from another one."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        if error.errno == errno.EROFS:
            hint = "mount its file system for writing"
            if verb == "opened":
                hint = f"open it with read_only=True, or {hint}"
            raise ReadOnly(f"{name} cannot be written: {what}", cause=str(error), hint=hint) from error
        if verb == "read":
            raise Unavailable(f"{name} cannot be read: {what}", hint="check the disk, then try again") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ReadOnly(
                f"{name} cannot be written: {what}", cause=str(error), hint="check its permissions"
            ) from error
        if error.errno == errno.ENOTDIR:
            hint = "a database is a directory" if verb == "opened" else "give a directory"
            raise UsageError(f"{name}: a part of its path is a file", hint=hint) from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UsageError(f"{name} cannot be {verb}: {what}", hint="give another path") from error
        if error.errno == errno.ENOENT:
            raise Unavailable(f"{name} cannot be {verb}: {what}", hint="check the path") from error
        raise Unavailable(f"{name} cannot be {verb}: {what}", hint="free some space, or check the disk") from error


def _open(
    path: str,
    create: bool,
    read_only: bool,
    durability: str,
    families: tuple[str, ...],
    mode: str,
    files: Files,
    clock: Clock | None,
    executor: Executor | None,
    options: EngineOptions,
    lsm_options: LsmOptions,
) -> DB:
    if not files.exists(path):
        if not create:
            raise NotFound(f"{path} does not exist", hint="create=True makes it")
        files.makedirs(path)
    if not create and not files.exists(f"{path}/CURRENT"):
        _check_directory(path, files)
        raise NotFound(f"{path} holds no database", hint="create=True makes one")
    check_open(path, mode, read_mode(path, files))
    lock: DirectoryLock
    kind: type[DB]
    if read_only:
        from nokv.engine.reader import NoLock, Reader

        lock, kind = NoLock(), Reader
    else:
        kind = DB
        try:
            lock = files.lock(f"{path}/{LOCK_FILE}")
        except (NotADirectoryError, FileNotFoundError):
            _check_directory(path, files)
            raise
        except BlockingIOError:
            raise Locked(
                f"{path} is open in another process, or twice in this one",
                hint="close the other one, or look at it with read_only=True",
            ) from None
    try:
        check_open(path, mode, read_mode(path, files))  # again: it may have changed before we held the lock
        db = kind(
            path,
            files=files,
            clock=clock if clock is not None else SystemClock(),
            executor=executor,
            durability=durability,
            mode=mode,
            options=options,
            lsm_options=lsm_options,
            lock=lock,
            read_only=read_only,
        )
    except BaseException:
        lock.release()
        raise
    try:
        for name in families:
            db.family(name, create=not read_only)
    except BaseException:
        db.close()
        raise
    return db


def _check_directory(path: str, files: Files) -> None:
    try:
        files.listdir(path)
    except NotADirectoryError:
        raise UsageError(f"{path} is a file, not a directory", hint="a database is a directory") from None
