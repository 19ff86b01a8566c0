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
    NotTrusted,
    PreconditionFailed,
    ReadOnly,
    RegionNotFound,
    RetryError,
    StoreNotMatch,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from nokv._ext.iterator import Iterator
    from nokv.client import connect
    from nokv.engine.repair import check, destroy, repair
    from nokv.engine.transaction import Transaction

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
    "Iterator",
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
    "Snapshot",
    "StoreNotMatch",
    "Transaction",
    "Unavailable",
    "UsageError",
    "WriteBatch",
    "check",
    "connect",
    "destroy",
    "open",
    "repair",
]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from nokv.client import connect

        return connect
    if name in ("check", "destroy", "repair"):
        from nokv.engine import repair

        return getattr(repair, name)
    if name == "Transaction":
        from nokv.engine.transaction import Transaction

        return Transaction
    if name == "Iterator":
        from nokv._ext.iterator import Iterator

        return Iterator
    raise AttributeError(f"module 'nokv' has no attribute {name!r}")
