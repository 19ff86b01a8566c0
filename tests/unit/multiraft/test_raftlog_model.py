"""The raft log against dicts, over a disk that forgets: random saves, compactions, removals, power losses."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field

import pytest

from nokv.engine.wal.log import Wal
from nokv.env.files import OsFiles
from nokv.errors import Corruption
from nokv.multiraft.raftlog import RaftLog
from nokv.raft.types import ConfState, Entry, HardState, SnapshotMetadata
from nokv.testing.files import CrashFiles


@dataclass
class Model:
    """One group, as it must come back."""

    offset: int = 0
    offset_term: int = 0
    entries: list[Entry] = field(default_factory=list)
    state: HardState = field(default_factory=HardState)
    conf: ConfState = field(default_factory=ConfState)

    @property
    def last(self) -> int:
        return self.offset + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.offset_term


def seen(log: RaftLog) -> dict[int, Model]:
    assert log.damaged() == {}
    found = {}
    for group_id in log.group_ids():
        group = log.group(group_id)
        state, conf = group.initial_state()
        first, last = group.first_index(), group.last_index()
        entries = group.entries(first, last + 1, 1 << 40) if last >= first else []
        found[group_id] = Model(first - 1, group.term(first - 1), entries, state, conf)
    return found


class Driver:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.files = CrashFiles(seed=seed)
        self.now: dict[int, Model] = {}
        self.history: list[dict[int, Model]] = [{}]  # every state since the last sync: power loss may leave any of them
        self.open()

    def open(self) -> None:
        self.wal = Wal(self.files, "wal", 4096, retainers=("raft",))
        self.log = RaftLog.open(self.wal, rewrite_lag_segments=2)

    def done(self, synced: bool) -> None:
        if synced:
            self.history.clear()
        self.history.append(copy.deepcopy(self.now))
        assert seen(self.log) == self.now

    def save(self) -> None:
        items = []
        for group_id in self.dice.sample(range(1, 5), self.dice.randrange(1, 4)):
            model = self.now.setdefault(group_id, Model())
            term = max(model.state.term, model.last_term) + self.dice.choice((0, 0, 0, 1))
            entries: list[Entry] = []
            if self.dice.random() < 0.8:
                first = model.last + 1
                if term > model.last_term and model.last > max(model.state.commit, model.offset):
                    first = self.dice.randrange(max(model.state.commit, model.offset) + 1, model.last + 2)
                count = self.dice.randrange(1, 6)
                size = self.dice.choice((0, 10, 200))
                entries = [Entry(term, first + i, data=self.dice.randbytes(size)) for i in range(count)]
                model.entries = model.entries[: first - model.offset - 1] + entries
            vote = model.state.vote if term == model.state.term and model.state.vote else self.dice.randrange(3)
            state = None
            if self.dice.random() < 0.7 or term > model.state.term:
                commit = self.dice.randrange(model.state.commit, model.last + 1)
                state = HardState(term, vote, commit)
                model.state = state
            items.append((group_id, state, entries, None))
        sync = self.dice.random() < 0.4
        # Each group's records are one step of the log; a torn tail may fall between two groups.
        for number in range(1, len(items)):
            partial = copy.deepcopy(self.history[-1])
            for group_id, *_ in items[:number]:
                partial[group_id] = copy.deepcopy(self.now[group_id])
            self.history.append(partial)
        self.log.save(items, sync=sync)
        self.done(sync)

    def compact(self) -> None:
        for group_id, model in self.now.items():
            if model.state.commit > model.offset:
                index = self.dice.randrange(model.offset + 1, model.state.commit + 1)
                term = model.entries[index - model.offset - 1].term
                del model.entries[: index - model.offset]
                model.offset, model.offset_term = index, term
                model.conf = ConfState((1, 2, self.dice.randrange(3, 9)))
                self.log.group(group_id).compact(index, model.conf)
                self.done(False)
                return

    def snapshot(self) -> None:
        if self.now:
            group_id, model = self.dice.choice(sorted(self.now.items()))
            index, term = model.last + self.dice.randrange(1, 9), max(model.state.term, model.last_term)
            model.entries, model.offset, model.offset_term = [], index, term
            model.conf = ConfState((1, 2, 3), (4,))
            model.state = HardState(term, model.state.vote if model.state.term == term else 0, index)
            self.log.save([(group_id, model.state, [], SnapshotMetadata(index, term, model.conf))], sync=True)
            self.done(True)

    def remove(self) -> None:
        if self.now:
            group_id = self.dice.choice(sorted(self.now))
            del self.now[group_id]
            self.log.remove(group_id)
            self.done(True)

    def reopen(self) -> None:
        self.wal.close()
        self.open()
        self.done(True)

    def lose_power(self) -> None:
        self.files = self.files.crash_clone(self.dice.choice(("drop", "keep", "random", "torn")))
        self.open()
        self.now = seen(self.log)
        # A group's mark and its first entries are two records: between them it is known, and empty.
        candidates = [self._strip(state) for state in self.history]
        assert self._strip(self.now) in candidates, self.now
        self.log.sync()
        self.history = [copy.deepcopy(self.now)]

    @staticmethod
    def _strip(state: dict[int, Model]) -> dict[int, Model]:
        return {group_id: model for group_id, model in state.items() if model != Model()}

    def run(self, steps: int) -> None:
        verbs = [self.save] * 20 + [self.compact] * 4 + [self.snapshot, self.remove, self.reopen, self.lose_power]
        for _ in range(steps):
            self.dice.choice(verbs)()


@pytest.mark.parametrize("seed", range(12))
def test_what_comes_back_is_what_was_saved(seed: int) -> None:
    driver = Driver(seed)
    try:
        driver.run(150)
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    assert driver.wal.active_segment > 3


def test_no_flipped_byte_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory) -> None:  # R3
    """Of a small synced log: each byte once. Corruption, a damaged group, or exactly what was saved."""
    home = tmp_path_factory.mktemp("flip")
    wal = Wal(OsFiles(), str(home / "wal"), 4096, retainers=("raft",))
    log = RaftLog.open(wal)
    log.group(1).initialise(10, 5, ConfState((1, 2, 3)))
    log.save([(1, HardState(6, 1, 11), [Entry(6, i, data=b"data") for i in range(11, 14)], None)], sync=True)
    log.save([(2, HardState(1, 2, 0), [Entry(1, 1, data=b"x")], None)], sync=True)
    expected = seen(log)
    end = wal.append(19, b"\1\x63").offset  # an unacknowledged tail, so that the last synced byte is not the end
    wal.sync()
    wal.close()
    (path,) = (home / "wal").glob("*.wal")
    pristine = path.read_bytes()
    outcomes = {"corruption": 0, "damaged": 0, "equal": 0}
    for position in range(end):
        damaged = bytearray(pristine)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            again = Wal(OsFiles(), str(home / "wal"), 4096, retainers=("raft",))
        except Corruption:
            outcomes["corruption"] += 1
            continue
        try:
            reread = RaftLog.open(again)
            if reread.damaged():
                outcomes["damaged"] += 1
            else:
                assert seen(reread) == expected, f"byte {position}"
                outcomes["equal"] += 1
        except Corruption:
            outcomes["corruption"] += 1
        finally:
            again.close(sync=False)
        for extra in (home / "wal").iterdir():
            if extra != path:
                extra.unlink()
    assert outcomes["corruption"] > end // 3, outcomes
