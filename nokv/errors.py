"""Every exception class of NoKV, on one page. The class answers one question: who acts next?

UsageError     the caller must change the call
RetryError     the world moved: retry, the attributes say where
Unavailable    nobody can answer now; `Indeterminate` when a write may or may not have happened
Corruption     the bytes are wrong: stop, keep the evidence
InvariantError our own bug: crash this process and let the replicas carry on

Every error has a one-line message, an optional `hint` (what to do next, one line) and an `exit_code` that the command
line uses. A key that does not exist is `None`, never an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from nokv.region import Peer, Region

__all__ = [
    "Busy",
    "BytesRequired",
    "Closed",
    "Conflict",
    "Corruption",
    "DeadlineExceeded",
    "EpochNotMatch",
    "Indeterminate",
    "InvariantError",
    "KeyLocked",
    "KeyNotInRegion",
    "Locked",
    "ModeError",
    "NoKVError",
    "NotFound",
    "NotLeader",
    "NotSupported",
    "NotTrusted",
    "PreconditionFailed",
    "ReadOnly",
    "RegionNotFound",
    "RetryError",
    "StoreNotMatch",
    "Unavailable",
    "UsageError",
]


class NoKVError(Exception):
    """Base of everything NoKV raises on purpose. `hint` says what to do next, or is empty."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# -- the caller must change the call ----------------------------------------------------------------
class UsageError(NoKVError, ValueError):
    """A bad option, a reversed range, a key that is too long, a handle used the wrong way."""

    exit_code = 2


class BytesRequired(UsageError, TypeError):
    """A key or value of another type than bytes (text must be encoded first), or something else than pairs of them."""


class Closed(UsageError):
    """The handle was closed, or the process forked after it was opened."""

    def __init__(self, message: str, *, hint: str = "open it again, or make a new one") -> None:
        super().__init__(message, hint=hint)


class NotFound(NoKVError, KeyError):
    """A named thing (family, region, store, file) does not exist. `db[key]` raises it too, as a KeyError."""

    exit_code = 3

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class ModeError(NoKVError):
    """The directory is in a mode in which this is not allowed. `mode` is what it is; `hint` names the next command."""

    exit_code = 4

    def __init__(self, message: str, *, mode: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.mode = mode


class PreconditionFailed(NoKVError):
    """State refuses the request: a target that is not empty, other ids than before, a conflicting pending change."""

    exit_code = 4


class NotSupported(NoKVError):
    """This is not built yet, or not in this shape of the system. Nothing was changed."""

    exit_code = 4


class Locked(NoKVError):
    """Another process holds the directory."""

    exit_code = 4


class ReadOnly(NoKVError):
    """Writes are refused: opened read-only, or poisoned by a failed sync (`cause` then says which)."""

    exit_code = 4

    def __init__(self, message: str, *, cause: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


# -- the world moved: retry, with a hint ------------------------------------------------------------
class RetryError(NoKVError):
    """Base of errors that a client retries by itself after it has refreshed what it knows."""

    exit_code = 5


class NotLeader(RetryError):
    """This peer does not lead the group. `leader` is who does, if known; `address` where, if known."""

    def __init__(self, message: str, *, region_id: int = 0, leader: Peer | None = None, address: str = "") -> None:
        super().__init__(message)
        self.region_id = region_id
        self.leader = leader
        self.address = address


class EpochNotMatch(RetryError):
    """The region's range or membership changed. `regions` holds the current descriptors this store knows."""

    def __init__(self, message: str, *, regions: tuple[Region, ...] = ()) -> None:
        super().__init__(message)
        self.regions = regions


class RegionNotFound(RetryError):
    """This store does not host the region."""

    def __init__(self, message: str, *, region_id: int = 0) -> None:
        super().__init__(message)
        self.region_id = region_id


class KeyNotInRegion(RetryError):
    """The key lies outside the region that the request named."""


class StoreNotMatch(RetryError):
    """The request was meant for another store."""


class KeyLocked(RetryError):
    """A transaction holds a lock on the key. `lock` describes it."""

    def __init__(self, message: str, *, lock: object = None) -> None:
        super().__init__(message)
        self.lock = lock


class Conflict(RetryError):
    """What a transaction read was written before it could commit. Nothing of it was done; run it again.

    `first` and `end` (None: to the end of the family) bound what changed."""

    def __init__(self, message: str, *, first: bytes = b"", end: bytes | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.first = first
        self.end = end


class Busy(RetryError):
    """A bounded queue is full, or writes are stopped until compaction catches up. Nothing was done."""


# -- nobody can answer now --------------------------------------------------------------------------
class Unavailable(NoKVError):
    """No quorum, no route, no coordinator. Nothing was done."""

    exit_code = 5


class NotTrusted(Unavailable):
    """A certificate is missing, expired, of another CA or for another name; or one side speaks TLS and the other does
    not. Trying again does not help before somebody changes that."""

    exit_code = 7


class DeadlineExceeded(Unavailable):
    """The caller's deadline passed before an answer came. A read; or a write that was never sent."""


class Indeterminate(Unavailable):
    """The write may or may not have happened. Never retried blindly: read, then decide."""


# -- stop -------------------------------------------------------------------------------------------
class Corruption(NoKVError):
    """Stored or received bytes are wrong. Nothing was changed. `path` and `offset` say where."""

    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        offset: int = -1,
        expected: object = None,
        found: object = None,
        hint: str = "",
    ) -> None:
        where = f"{path}" + (f" at offset {offset}" if offset >= 0 else "") if path else ""
        detail = "" if expected is None and found is None else f" (expected {expected!r}, found {found!r})"
        super().__init__(f"{where}: {message}{detail}" if where else f"{message}{detail}", hint=hint)
        self.path = path
        self.offset = offset
        self.expected = expected
        self.found = found


class InvariantError(NoKVError):
    """Our own bug. The process must stop before it writes anything else."""
