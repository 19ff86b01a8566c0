from typing import Any

from nokv.env.ports import Buffer

RECORD_ENTRIES: int
RECORD_HARD_STATE: int
RECORD_MARK: int
RECORD_REMOVED: int
OP_ENTRIES: int
OP_HARD_STATE: int
OP_RESET: int
OP_COMPACTED: int
OP_CHECKPOINT: int
OP_REMOVED: int
BATCH_BYTES_MAX: int
BATCH_MESSAGES_MAX: int
BATCH_ENTRIES_MAX: int
ENTRY_DATA_MAX: int
SNAPSHOT_DATA_MAX: int

class RaftCodec:
    def __init__(
        self,
        *,
        message: type[Any],
        entry: type[Any],
        snapshot: type[Any],
        metadata: type[Any],
        conf_state: type[Any],
        hard_state: type[Any],
        message_types: tuple[Any, ...],
        entry_kinds: tuple[Any, ...],
    ) -> None: ...
    def encode_messages(self, messages: list[tuple[int, Any]]) -> bytes: ...
    def decode_messages(self, data: Buffer) -> list[tuple[int, Any]]: ...
    def encode_entries(self, group_id: int, hard_state: Any, entries: list[Any]) -> list[tuple[int, bytes]]: ...
    def encode_mark(self, op: int, group_id: int, metadata: Any, hard_state: Any = None) -> tuple[int, bytes]: ...
    def encode_removed(self, group_id: int) -> tuple[int, bytes]: ...
    def decode_record(self, record_type: int, data: Buffer) -> tuple[int, int, Any, Any, list[Any]]: ...
