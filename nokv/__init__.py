"""NoKV: a storage engine that starts as a Python library and grows into a replicated cluster, in the same directory.

    import nokv
    with nokv.open("data") as db:
        db.put(b"key", b"value")

The public surface and nothing else. What speaks to a cluster (`nokv.connect`) loads on first use: importing this module
loads
neither grpc nor asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nokv._ext.batch import WriteBatch
from nokv._ext.db import Family, Snapshot
from nokv.engine.db import DB
from nokv.engine.db import open_db as open
from nokv.errors import (
    Busy,
    BytesRequired,
    Closed,
    Conflict,
    Corruption,
    DeadlineExceeded,
    EpochNotMatch,
    Indeterminate,
    InvariantError,
    KeyLocked,
    KeyNotInRegion,
    Locked,
    ModeError,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    PreconditionFailed,
    ReadOnly,
    RegionNotFound,
    RetryError,
    StoreNotMatch,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from nokv.client import connect

__version__ = "0.1.0"

__all__ = [
    "DB",
    "Busy",
    "BytesRequired",
    "Closed",
    "Conflict",
    "Corruption",
    "DeadlineExceeded",
    "EpochNotMatch",
    "Family",
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
    "PreconditionFailed",
    "ReadOnly",
    "RegionNotFound",
    "RetryError",
    "Snapshot",
    "StoreNotMatch",
    "Unavailable",
    "UsageError",
    "WriteBatch",
    "connect",
    "open",
]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from nokv.client import connect

        return connect
    raise AttributeError(f"module 'nokv' has no attribute {name!r}")
