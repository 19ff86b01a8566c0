"""A process that works on a database until it is killed (R7, R2k). Run as a program by test_engine_sigkill.py and
test_engine_syscalls.py:

    stress.py JSON      with the fields of Plan

Which operation comes when follows from the seed, the thread and the number alone, so whoever knows the numbers of the
acknowledged ones knows what the database must hold. Each thread works on keys of its own and writes its number and the
operation's to standard output when a write has returned; it also keeps the expected state, and compares what it reads
with that: `wrong`, and exit code 3, if they differ. After a write that was refused it goes on reading, says `refused`
and ends with 4.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import nokv

State = dict[tuple[str, bytes], bytes]
Operation = tuple[str, str, list[tuple[bytes, bytes | None]], bool]  # kind, family, changes, sync
FAMILIES = ("", "other")
KEYS = 150
WRITES = ("put", "delete", "delete_range", "batch", "put_many", "transaction")
OTHERS = ("read", "snapshot", "look_back", "flush", "compact", "compact_range", "reopen", "checkpoint")
WEIGHTS = (30, 8, 3, 14, 5, 4, 14, 2, 4, 2, 1, 1, 1, 1)
OPTIONS: dict[str, list[Any]] = {
    "durability": ["process", "process", "interval", "sync"],
    "write_buffer_bytes": [8192, 65536, 1 << 20],
    "wal_segment_bytes": [4096, 32768, 1 << 20],
    "l0_files_trigger": [2, 4],
    "level_base_bytes": [16384, 1 << 20],
    "table_bytes": [4096, 65536],
    "block_bytes": [256, 4096],
    "compression": ["none", "zstd"],
    "bloom_bits": [0, 10],
    "value_file_threshold": [0, 300, 65536],
    "value_file_bytes": [8192, 1 << 20],
    "manifest_bytes_max": [2048, 1 << 20],
    "block_cache_bytes": [0, 1 << 20],
}


@dataclass(slots=True)
class Plan:
    path: str
    seed: int
    firsts: list[int]  # the number of each thread's first operation
    options: dict[str, Any] = field(default_factory=dict)
    ops: int | None = None  # of each thread; None: until it is killed
    plant: str = ""


def draw_options(dice: random.Random) -> dict[str, Any]:
    return {name: dice.choice(values) for name, values in OPTIONS.items()}


def key(me: int, number: int) -> bytes:
    return b"t%d-%03d" % (me, number)


def operation(seed: int, me: int, number: int) -> Operation:
    dice = random.Random(f"{seed}/{me}/{number}")
    kind = dice.choices(WRITES + OTHERS, WEIGHTS)[0]
    family = dice.choice(("", "", "other"))
    changes: list[tuple[bytes, bytes | None]] = []
    many = {"put": 1, "delete": 1, "batch": dice.randrange(1, 9), "put_many": dice.randrange(1, 60), "transaction": 3}
    for _ in range(many.get(kind, 0)):
        value = b"%d:" % number + bytes([number % 251]) * dice.choice([0, 10, 10, 100, 100, 600, 6000])
        gone = kind == "delete" or (kind in ("batch", "transaction") and dice.random() < 0.25)
        changes.append((key(me, dice.randrange(KEYS)), None if gone else value))
    if kind in ("delete_range", "compact_range"):
        start = dice.randrange(KEYS)
        changes.append((key(me, start), key(me, start + dice.randrange(20))))
    return kind, family, changes, dice.random() < 0.02


def apply(state: State, op: Operation) -> None:
    kind, family, changes, _ = op
    for at, value in changes:
        if kind == "delete_range":
            assert value is not None
            for place in [place for place in state if place[0] == family and at <= place[1] < value]:
                del state[place]
        elif kind in WRITES:
            if value is None:
                state.pop((family, at), None)
            else:
                state[family, at] = value


def carry_out(db: nokv.DB, op: Operation, plant: str = "") -> None:
    kind, family, changes, sync = op
    target: Any = db.family(family) if family else db
    if kind == "put":
        target.put(*changes[0], sync=sync)
    elif kind == "delete":
        target.delete(changes[0][0], sync=sync)
    elif kind == "delete_range":
        target.delete_range(*changes[0], sync=sync)
    elif kind == "put_many":
        target.put_many(changes, sync=sync)
    elif kind in ("batch", "transaction"):
        batch: Any = nokv.WriteBatch() if kind == "batch" else db.transaction()
        for n, (at, value) in enumerate(changes):
            if value is None:
                batch.delete(at, db.family(family) if family else None) if kind == "batch" else batch.delete(
                    at, family=family or None
                )
            elif kind == "batch":
                batch.put(at, value, db.family(family) if family else None)
            else:
                batch.put(at, value, family=family or None)
            if plant == "halves" and kind == "batch" and n == len(changes) // 2:
                db.write(batch)
                os.kill(os.getpid(), signal.SIGKILL)  # else it might take hundreds of deaths to see this one
        if kind == "batch":
            db.write(batch, sync=sync, log=plant != "no log")
        else:
            batch.commit()
    elif kind == "flush":
        db.flush()
    elif kind == "compact":
        db.compact()
    elif kind == "compact_range":
        target.compact(*changes[0])


def contents(db: Any, me: int) -> State:
    found: State = {}
    for family in FAMILIES:
        target = db.family(family) if family else db
        found.update({(family, at): value for at, value in target.scan(prefix=b"t%d-" % me)})
    return found


class Wrong(Exception):
    pass


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found!r} instead of {expected!r}"[:2000])


class Worker:
    """One thread, its expected state, and the snapshots that it holds."""

    def __init__(self, stress: Stress, me: int, first: int) -> None:
        self.stress = stress
        self.me = me
        self.next = first
        self.state = contents(stress.db, me)
        self.held: list[tuple[nokv.Snapshot, State]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while self.stress.plan.ops is None or self.next < self.stress.plan.firsts[self.me] + self.stress.plan.ops:
                if self.stress.failed:
                    return
                self.step(operation(self.stress.plan.seed, self.me, self.next))
                self.next += 1
        except BaseException as error:
            self.error = error
            self.stress.failed = True

    def step(self, op: Operation) -> None:
        db, kind = self.stress.db, op[0]
        if kind in WRITES:
            carry_out(db, op, self.stress.plan.plant)
            apply(self.state, op)
            os.writev(1, [b"%d %d\n" % (self.me, self.next)])  # not a write: no fault is injected into it
        elif kind == "read":
            self.read(db)
        elif kind == "snapshot":
            if len(self.held) < 2:
                self.held.append((db.snapshot(), dict(self.state)))
        elif kind == "look_back":
            while self.held:
                view, state = self.held.pop()
                expect("a snapshot", contents(view, self.me), state)
                view.close()
        elif kind == "reopen":
            self.stress.reopen()
        elif kind == "checkpoint":
            self.stress.checkpoint(self)
        else:
            carry_out(db, op)

    def read(self, db: nokv.DB) -> None:
        expect("a scan", contents(db, self.me), self.state)
        dice = random.Random(self.next)
        keys = [key(self.me, dice.randrange(KEYS)) for _ in range(6)]
        for family in FAMILIES:
            target: Any = db.family(family) if family else db
            expect("get_many", target.get_many(keys), [self.state.get((family, at)) for at in keys])
            expect("get", target.get(keys[0]), self.state.get((family, keys[0])))
            mine = sorted((at for name, at in self.state if name == family), reverse=True)
            back = target.scan(prefix=b"t%d-" % self.me, reverse=True, values=False)
            expect("a reverse scan", list(back), mine)


class Stress:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.failed = False
        self.dice = random.Random(plan.seed)
        self.db = self.open(plan.options)
        self.workers = [Worker(self, me, first) for me, first in enumerate(plan.firsts)]

    def open(self, options: dict[str, Any]) -> nokv.DB:
        return nokv.open(self.plan.path, families=FAMILIES[1:], **options)

    def reopen(self) -> None:
        """With other options. Not under the feet of other threads."""
        if len(self.workers) == 1:
            self.workers[0].held.clear()
            self.db.close()
            self.db = self.open(draw_options(self.dice))

    def checkpoint(self, worker: Worker) -> None:
        directory = f"{self.plan.path}-copy-{os.getpid()}-{worker.me}-{worker.next}"
        self.db.checkpoint(directory)
        with nokv.open(directory, read_only=True) as copy:
            expect("a checkpoint", contents(copy, worker.me), worker.state)
        nokv.destroy(directory)

    def run(self) -> int:
        if len(self.workers) == 1:
            self.workers[0].run()
        else:
            threads = [threading.Thread(target=worker.run) for worker in self.workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        errors = [worker.error for worker in self.workers if worker.error is not None]
        for error in errors:
            if not isinstance(error, nokv.ReadOnly | nokv.Unavailable):
                raise error
        for worker in () if self.db.closed else self.workers:  # closed: a reopen was refused
            found = contents(self.db, worker.me)
            if found != worker.state:  # a write that was refused may have happened, and is seen or is not
                apply(worker.state, operation(self.plan.seed, worker.me, worker.next))
                expect("what is read after a write was refused", found, worker.state)
        if errors:
            os.writev(1, [b"refused\n"])
            return 4
        self.db.close()
        return 0


def main(text: str) -> int:
    faulthandler.enable()
    try:
        return Stress(Plan(**json.loads(text))).run()
    except (nokv.ReadOnly, nokv.Unavailable) as error:  # by the open itself, or the close
        print(f"refused: {error}", file=sys.stderr)
        os.writev(1, [b"refused\n"])
        return 4
    except Wrong as error:
        os.writev(1, [b"wrong\n"])
        print(error, file=sys.stderr)
        return 3


def command(plan: Plan) -> list[str]:
    return [sys.executable, os.path.abspath(__file__), json.dumps(asdict(plan))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
