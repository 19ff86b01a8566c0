"""NoKV: a storage engine that starts as a Python library and grows into a replicated cluster, in the same directory.

    import nokv
    with nokv.open("data") as db:
        db.put(b"key", b"value")

The public surface and nothing else: importing it loads the error classes, and everything else loads on first use. So
`nokv.open` brings the engine, `nokv.connect` grpc and asyncio, and `nokv --version` neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from nokv import aio
    from nokv._ext.batch import WriteBatch
    from nokv._ext.db import Family, Snapshot
    from nokv._ext.iterator import Iterator
    from nokv.client import connect
    from nokv.engine.db import DB
    from nokv.engine.opening import open_db as open
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
    "aio",
    "check",
    "connect",
    "destroy",
    "open",
    "repair",
]


_HOMES = {
    "DB": ("nokv.engine.db", "DB"),
    "Family": ("nokv._ext.db", "Family"),
    "Iterator": ("nokv._ext.iterator", "Iterator"),
    "Snapshot": ("nokv._ext.db", "Snapshot"),
    "Transaction": ("nokv.engine.transaction", "Transaction"),
    "WriteBatch": ("nokv._ext.batch", "WriteBatch"),
    "aio": ("nokv.aio", ""),
    "check": ("nokv.engine.repair", "check"),
    "connect": ("nokv.client", "connect"),
    "destroy": ("nokv.engine.repair", "destroy"),
    "open": ("nokv.engine.opening", "open_db"),
    "repair": ("nokv.engine.repair", "repair"),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nokv' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(home[0])
    found = globals()[name] = getattr(module, home[1]) if home[1] else module
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
