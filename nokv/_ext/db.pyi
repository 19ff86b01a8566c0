from nokv._ext.apply import WritableStore
from nokv._ext.handles import Family as Family
from nokv._ext.handles import Snapshot as Snapshot
from nokv._ext.handles import SnapshotFamily as SnapshotFamily
from nokv._ext.handles import _Reads, _Writes
from nokv._ext.view import SEQUENCE_MAX as SEQUENCE_MAX
from nokv._ext.view import View as View

class Core(WritableStore, _Reads, _Writes):
    def snapshot(self) -> Snapshot: ...
