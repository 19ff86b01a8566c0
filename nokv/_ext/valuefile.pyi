from collections.abc import Callable, Collection, Iterator

from nokv._ext.merge import OwnedCursor
from nokv.env.ports import Buffer, WritableFile

MAGIC: bytes
FORMAT_VERSION: int
HEADER_SIZE: int
RECORD_HEADER_SIZE: int

class ValueFile:
    path: str
    number: int
    size: int
    def __init__(self, buffer: Buffer, path: str, number: int | None = None, size: int | None = None) -> None: ...
    def records(self, *, check: bool = False, start: int = 32) -> Iterator[tuple[int, bytes, int, int, int]]: ...
    def verify(self) -> int: ...

class ValueSink:
    threshold: int
    rewritten_bytes: int
    def __init__(
        self,
        values: dict[int, ValueFile] | None,
        *,
        threshold: int = 0,
        rewrite: Collection[int] = (),
        inlines: bool = False,
        file_bytes_max: int = ...,
        create: Callable[[], tuple[int, str, WritableFile]] | None = None,
        remove: Callable[[str], None] | None = None,
    ) -> None: ...
    def finish(self) -> list[tuple[int, str, int, int, int]]: ...
    def abort(self) -> None: ...
    def dead_bytes(self) -> dict[int, int]: ...

def decode_reference(stored: bytes) -> tuple[int, int, int, int]: ...
def resolve_reference(values: dict[int, ValueFile], stored: bytes) -> bytes: ...
def check_references(source: OwnedCursor, values: dict[int, ValueFile], check: bool = False) -> int: ...
