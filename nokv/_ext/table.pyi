from typing import Any

from nokv._ext.blockcache import BlockCache
from nokv._ext.merge import OwnedCursor
from nokv._ext.ranges import Ranges
from nokv.env.ports import Buffer

MAGIC: bytes
FORMAT_VERSION: int
FORMAT_VERSION_PLAIN: int
OPTIONAL_PROPERTIES: frozenset[str]
PROPERTIES: dict[int, str]

class Table:
    path: str
    meta: Any
    properties: dict[str, Any]
    version: int
    point_index_bytes: int
    def __init__(
        self, buffer: Buffer, path: str, cache: BlockCache, *, meta: object = None, global_sequence: int | None = None
    ) -> None: ...
    def raise_status(self, status: int) -> None: ...
    def get(self, prefix: bytes, sequence: int = ...) -> tuple[int, bytes] | None: ...
    def ranges(self) -> Ranges | None: ...
    def cursor(self) -> OwnedCursor: ...
    def verify(self) -> int: ...
