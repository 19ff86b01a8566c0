"""Eight threads of mixed operations on shared keys, and what each may see (R7, "Threads").

Writers put one stamp under all of GROUP in one batch, some after a delete_range of all of it. So whoever reads the
group at one moment (get_many, scan, reverse scan, snapshot, iterator) finds every key, with one stamp; and a thread
that reads twice sees no writer go backwards. Transactions add to counters, of which no addition may be lost. Meanwhile
tables are flushed, merged and copied.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nokv
from tests.counts import count

GROUP = [b"g%02d" % n for n in range(24)]
COUNTERS = [b"n%d" % n for n in range(3)]
OPTIONS = {
    "write_buffer_bytes": 16_384,
    "wal_segment_bytes": 1 << 16,
    "l0_files_trigger": 2,
    "value_file_threshold": 900,
}
WRITES = count(150, 2000, 40_000)  # of each writer


class Threads:
    def __init__(self, db: nokv.DB, seed: int, directory: Path) -> None:
        self.db = db
        self.seed = seed
        self.directory = directory
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.lock = threading.Lock()
        self.added = [0, 0, 0]
        self.reads = 0

    def write(self, me: int) -> None:
        dice = random.Random(self.seed * 10 + me)
        for n in range(WRITES):
            stamp = b"%d:%d:" % (me, n) + b"x" * dice.choice([0, 0, 30, 1000])
            if dice.random() < 0.5:
                self.db.put_many([(key, stamp) for key in GROUP], sync=dice.random() < 0.01)
            else:
                with self.db.write_batch() as batch:
                    batch.delete_range(b"g", b"h")
                    for key in dice.sample(GROUP, len(GROUP)):
                        batch.put(key, stamp, ttl=dice.choice([None, 1 << 40]))

    def add(self, me: int) -> None:
        dice = random.Random(self.seed * 10 + me)
        for _ in range(WRITES // 3):
            key = dice.choice(COUNTERS)

            def one(txn: nokv.Transaction, key: bytes = key) -> None:
                txn.put(key, b"%d" % (int(txn.get(key) or b"0") + 1))

            while True:
                try:
                    self.db.run(one)
                    break
                except nokv.Conflict:  # all of its tries: again
                    continue
            with self.lock:
                self.added[COUNTERS.index(key)] += 1

    def views(self, dice: random.Random) -> Iterator[tuple[str, list[bytes | None]]]:
        db = self.db
        kind = dice.choice(["get_many", "scan", "reverse", "snapshot", "iterator", "held"])
        if kind == "get_many":
            yield kind, db.get_many(GROUP)
        elif kind == "scan":
            yield kind, [value for _, value in db.scan(prefix=b"g")]
        elif kind == "reverse":
            yield kind, [value for _, value in db.scan(b"g", b"h", reverse=True)]
        elif kind == "snapshot":
            with db.snapshot() as view:
                yield kind, [view.get(key) for key in GROUP]
                yield kind, view.get_many(GROUP)
                yield kind, [value for _, value in view.scan(prefix=b"g")]
        elif kind == "iterator":
            found: list[bytes | None] = []
            with db.iterator(prefix=b"g") as it:
                on = it.seek_first()
                while on:
                    found.append(it.value)
                    on = it.next()
            yield kind, found
        else:  # a scan that is held over writes
            scan = db.scan(prefix=b"g")
            first = next(scan)[1]
            for key in GROUP:
                db.get(key)
            yield kind, [first, *(value for _, value in scan)]

    def read(self, me: int) -> None:
        dice = random.Random(self.seed * 10 + me)
        newest: dict[bytes, int] = {}
        while not self.stop.is_set():
            for kind, found in self.views(dice):
                assert len(found) == len(GROUP), f"{kind}: {len(found)} of {len(GROUP)} keys"
                assert len(set(found)) == 1, f"{kind}: stamps of several batches: {set(found)}"
            writer, number, _ = (found[0] or b"").split(b":")
            assert int(number) >= newest.get(writer, 0), f"{kind}: writer {writer!r} went back to {number!r}"
            newest[writer] = int(number)
            self.reads += 1

    def disturb(self, me: int) -> None:
        dice = random.Random(self.seed * 10 + me)
        turn = 0
        while not self.stop.is_set():
            turn += 1
            act = dice.choice(["flush", "compact", "range", "copy", "verify", "stats"])
            if act == "flush":
                self.db.flush()
            elif act == "compact":
                self.db.compact()
            elif act == "range":
                self.db.compact(GROUP[3], GROUP[9])
            elif act == "copy" and turn % 5 == 0:
                self.db.checkpoint(self.directory / f"copy{turn}")
                with nokv.open(self.directory / f"copy{turn}", read_only=True) as copy:
                    assert len({copy.get(key) for key in GROUP}) == 1
            elif act == "verify":
                assert not self.db.verify().damaged
            else:
                self.db.stats()

    def run(self, work: Callable[[int], None], me: int) -> None:
        try:
            work(me)
        except BaseException as error:
            self.failures.append(error)
            self.stop.set()


@pytest.mark.counted
def test_eight_threads_see_what_may_be_seen(tmp_path: Path) -> None:
    seed = int(os.environ.get("NOKV_TEST_SEED", "11"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with nokv.open(tmp_path / "db", **OPTIONS) as db:
            db.put_many([(key, b"0:0:") for key in GROUP])
            threads = Threads(db, seed, tmp_path)
            writers = [threading.Thread(target=threads.run, args=(threads.write, me)) for me in (1, 2)]
            writers += [threading.Thread(target=threads.run, args=(threads.add, me)) for me in (3, 4)]
            others = [threading.Thread(target=threads.run, args=(threads.read, me)) for me in (5, 6, 7)]
            others.append(threading.Thread(target=threads.run, args=(threads.disturb, 8)))
            for thread in (*writers, *others):
                thread.start()
            for thread in writers:
                thread.join()
            threads.stop.set()
            for thread in others:
                thread.join()
            assert not threads.failures, f"seed {seed}: {threads.failures[0]!r}"
            assert threads.reads > 20
            assert [int(db.get(key, b"0")) for key in COUNTERS] == threads.added
            last = dict(db.scan())
            assert len({last[key] for key in GROUP}) == 1
        with nokv.open(tmp_path / "db", **OPTIONS) as db:
            assert dict(db.scan()) == last
    finally:
        sys.setswitchinterval(interval)
