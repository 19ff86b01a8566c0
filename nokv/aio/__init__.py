"""The embedded engine for asyncio: `nokv.aio.open` has the verbs of `nokv.open`, as coroutines that never block a loop.

Owns: which thread runs a call, cancellation, the end. Does not own: what a call does (`nokv.engine`). First: `host.py`.
For a cluster there is `nokv.client`. `import nokv` does not load this.
"""

from nokv.aio.host import (
    AsyncDB,
    AsyncFamily,
    AsyncIterator,
    AsyncScan,
    AsyncSnapshot,
    AsyncSnapshotFamily,
    AsyncTransaction,
    open,
)

__all__ = [
    "AsyncDB",
    "AsyncFamily",
    "AsyncIterator",
    "AsyncScan",
    "AsyncSnapshot",
    "AsyncSnapshotFamily",
    "AsyncTransaction",
    "open",
]
