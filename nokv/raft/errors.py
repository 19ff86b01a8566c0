"""What Raft answers when it cannot do what was asked. Texts that etcd-io/raft's cases print are the same as there."""

from __future__ import annotations

from nokv.errors import NoKVError, RetryError

__all__ = [
    "Compacted",
    "ConfChangeError",
    "LogUnavailable",
    "PeerNotFound",
    "ProposalDropped",
    "SnapshotOutOfDate",
    "SnapshotTemporarilyUnavailable",
    "StepLocalMessage",
    "StepRejected",
    "StorageError",
]


class ProposalDropped(RetryError):
    """Not appended anywhere: no leader, a transfer in progress, or too much uncommitted data. Safe to retry."""

    def __init__(self, message: str = "raft proposal dropped") -> None:
        super().__init__(message)


class StepRejected(RetryError):
    """A message was not for this machine. Drop it; nothing changed."""


class PeerNotFound(StepRejected):
    """A response from a node that is not, or no longer, a member."""

    def __init__(self, message: str = "raft: cannot step as peer not found") -> None:
        super().__init__(message)


class StepLocalMessage(StepRejected):
    """A message of a type that never travels arrived from another node."""

    def __init__(self, message: str = "raft: cannot step raft local message") -> None:
        super().__init__(message)


class ConfChangeError(NoKVError, ValueError):
    """The change is not possible from the present configuration. Nothing was changed."""


class StorageError(NoKVError):
    """Base of what a LogStorage answers."""


class Compacted(StorageError):
    """The asked index lies before the first index kept."""

    def __init__(self, message: str = "requested index is unavailable due to compaction") -> None:
        super().__init__(message)


class LogUnavailable(StorageError):
    """The asked index lies behind the last index."""

    def __init__(self, message: str = "requested entry at index is unavailable") -> None:
        super().__init__(message)


class SnapshotOutOfDate(StorageError):
    """An older snapshot than the one stored."""

    def __init__(self, message: str = "requested index is older than the existing snapshot") -> None:
        super().__init__(message)


class SnapshotTemporarilyUnavailable(StorageError):
    """Being made; ask again on a later tick."""

    def __init__(self, message: str = "snapshot is temporarily unavailable") -> None:
        super().__init__(message)
