from collections.abc import Iterable
from typing import Any

from nokv._ext.merge import OwnedCursor
from nokv._ext.ranges import Ranges
from nokv._ext.valuefile import ValueSink
from nokv.env.ports import WritableFile

class VersionFilter:
    dropped: int
    expired: int
    def __init__(
        self,
        snapshots: Iterable[int] = (),
        *,
        bottom: bool = False,
        export: bool = False,
        tombstones: bool = False,
        now_ms: int = 0,
        ranges: Ranges | None = None,
        newest: int = 0,
    ) -> None: ...

class TableBuilder:
    entries: int
    deletes: int
    compression: str
    def __init__(
        self,
        file: WritableFile,
        *,
        compression: str = "none",
        level: int = 1,
        block_bytes: int = 4096,
        restart_interval: int = 16,
        bloom_bits: int = 10,
        created_ms: int = 0,
        external: bool = False,
        families: bytes = b"",
        sink: ValueSink | None = None,
    ) -> None: ...
    def fill(
        self, source: OwnedCursor, versions: VersionFilter, table_bytes: int, end: bytes | None = None
    ) -> bool: ...
    def add(self, prefix: bytes, value: bytes | None, sequence: int = 0, kind: int = 1) -> None: ...
    after: bytes
    def set_ranges(self, ranges: Ranges) -> None: ...
    def finish(self) -> dict[str, Any]: ...

def encode_properties(properties: dict[str, Any]) -> bytes: ...
