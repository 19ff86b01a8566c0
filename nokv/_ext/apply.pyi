from nokv._ext.batch import WriteBatch
from nokv._ext.memtable import MemTable
from nokv._ext.view import Store
from nokv._ext.wal import LiveSegmentReader, SegmentReader, WalCore

class WritableStore(Store):
    wal: WalCore
    ready: bool
    durability: int
    dirty: bool
    room_bytes: int
    puts: int
    deletes: int
    range_deletes: int
    batches: int
    written_bytes: int
    def write(self, batch: WriteBatch, *, sync: bool | None = None, log: bool = True) -> None: ...
    def _has_room(self, size: int, log: bool) -> bool: ...
    def _write_locked(self, batch: WriteBatch, log: bool) -> None: ...
    def _replay_segment(self, segment: SegmentReader, end: int, flushed: int, path: str) -> None: ...
    def _follow_segment(
        self,
        segment: LiveSegmentReader,
        mem: MemTable,
        end: int,
        flushed: int,
        last: int,
        room: int,
        held: list[int],
        path: str,
    ) -> tuple[int, int, bool]: ...
