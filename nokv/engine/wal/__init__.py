"""Write-ahead log: segments, typed records, retention by name, recovery.

Owns: the files `wal/*.wal`, what is appended to them by whom, when a segment may go. Does not own: what a record means
(the
engine: type 1; the raft log: types 16 and up). Read `log.py` first, then docs/formats/wal.md; `recovery.py` decides
what
damage means.
"""

from nokv.engine.wal.log import LogPosition, ReadOnlyWal, Wal

__all__ = ["LogPosition", "ReadOnlyWal", "Wal"]
