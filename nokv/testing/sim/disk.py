"""The raft storage of one simulated node: what was synced survives a crash; of the rest a random head, its end torn."""

from __future__ import annotations

from collections.abc import Callable

from nokv.raft import Entry, HardState, MemoryStorage, RaftSnapshot

__all__ = ["LiveStorage", "SimDisk"]

_Write = tuple[HardState | None, list[Entry], RaftSnapshot | None]


class LiveStorage(MemoryStorage):
    """What the process reads. A snapshot asked for is made now: an old one may not even know whom it is for."""

    __slots__ = ("make_snapshot",)

    def __init__(self) -> None:
        super().__init__()
        self.make_snapshot: Callable[[], RaftSnapshot] | None = None

    def snapshot(self) -> RaftSnapshot:
        return self.make_snapshot() if self.make_snapshot is not None else self._snapshot

    def stored_snapshot(self) -> RaftSnapshot:
        return self._snapshot


class SimDisk:
    """`live` is what the process reads. `_stable` is what a crash surely keeps; `_pending` lies between, in order."""

    __slots__ = ("_pending", "_stable", "live")

    def __init__(self) -> None:
        self.live = LiveStorage()
        self._stable = MemoryStorage()
        self._pending: list[_Write] = []

    def write(self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None) -> None:
        """One record: in memory at once, on the disk at the next sync, or maybe."""
        if hard_state is None and not entries and snapshot is None:
            return
        record = (hard_state, entries, snapshot)
        self._pending.append(record)
        _replay(self.live, record)

    def compact(self, snapshot: RaftSnapshot, keep: int) -> None:
        """A snapshot of applied state, then the log up to `keep` entries before it goes. Synced, as real ones are."""
        self.live.create_snapshot(snapshot.metadata.index, snapshot.metadata.conf_state, snapshot.data)
        target = snapshot.metadata.index - keep
        if target >= self.live.first_index():
            self.live.compact(target)
        self.sync()
        self._stable.create_snapshot(snapshot.metadata.index, snapshot.metadata.conf_state, snapshot.data)
        if target >= self._stable.first_index():
            self._stable.compact(target)

    def sync(self) -> None:
        for record in self._pending:
            _replay(self._stable, record)
        self._pending = []

    def crash(self, randrange: Callable[[int], int]) -> None:
        """Lose the process, and of what was not synced a random tail."""
        kept = randrange(len(self._pending) + 1)
        for record in self._pending[:kept]:
            _replay(self._stable, record)
        if kept < len(self._pending) and randrange(2):
            _, entries, snapshot = self._pending[kept]
            if snapshot is None and entries:
                # Torn: checksums cover single entries, so whole ones may survive; the hard state came last.
                _replay(self._stable, (None, entries[: randrange(len(entries) + 1)], None))
        self._pending = []
        self.live = _copy(self._stable)


def _replay(storage: MemoryStorage, record: _Write) -> None:
    hard_state, entries, snapshot = record
    if snapshot is not None:
        storage.apply_snapshot(snapshot)
    if entries:
        storage.append(entries)
    if hard_state is not None:
        storage.set_hard_state(hard_state)


def _copy(storage: MemoryStorage) -> LiveStorage:
    other = LiveStorage()
    other._hard_state = storage._hard_state
    other._snapshot = storage._snapshot
    other._entries = list(storage._entries)
    return other
