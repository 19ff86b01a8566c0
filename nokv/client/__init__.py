"""The cluster client: route cache, batching streams, retries by region error, deadlines; asyncio and synchronous.

Owns: routes it has seen. Does not own: any truth; a stale route costs a round trip, never a wrong answer, because every
request carries the region's epoch and the store checks it. Read `client.py` first; `routes.py` and `retry.py` are pure.
Importing this package loads neither grpc nor asyncio; connecting does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nokv.client.client import AsyncClusterClient
    from nokv.client.sync import ClusterClient

__all__ = ["AsyncClusterClient", "ClusterClient", "connect"]


def connect(
    coordinators: str | Sequence[str] = "127.0.0.1:2379",
    *,
    timeout_s: float = 5.0,
    tls_dir: str | os.PathLike[str] | None = None,
) -> ClusterClient:
    """A blocking client of the cluster with these coordinators ("host:port", one or several).

    Nothing is sent before the first call, so a cluster that is down shows there. `timeout_s` bounds each call as a
    whole. `tls_dir`: the directory of this client's certificate (docs/security.md). UsageError for a malformed address.
    """
    try:
        from nokv.client.sync import ClusterClient
    except ModuleNotFoundError as error:
        from nokv.errors import UsageError

        raise UsageError(f"a cluster client needs {error.name}", hint="pip install 'nokv[server]'") from None
    return ClusterClient(coordinators, timeout_s=timeout_s, tls_dir=tls_dir)


def __getattr__(name: str) -> Any:
    if name == "AsyncClusterClient":
        from nokv.client.client import AsyncClusterClient

        return AsyncClusterClient
    if name == "ClusterClient":
        from nokv.client.sync import ClusterClient

        return ClusterClient
    raise AttributeError(f"module 'nokv.client' has no attribute {name!r}")
