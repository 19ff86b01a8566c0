"""One row of the lifetime matrix (RELIABILITY R6): every operation in one state, each a cell. Run as a program by
test_lifetime.py: prints a line per cell, and dies on what is neither an answer nor a typed error."""

from __future__ import annotations

import copy
import faulthandler
import gc
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import nokv
from nokv._ext.batch import WriteBatch
from nokv.errors import NoKVError

ALLOWED = (NoKVError, StopIteration, TypeError, ValueError, KeyError, RuntimeError, BufferError)


class World:
    """A database and one of everything that can be made from it, each already in use."""

    def __init__(self, path: str) -> None:
        self.db: Any = nokv.open(path, families=["f"], write_buffer_bytes=1 << 16)
        self.db.put_many({b"k%03d" % i: b"v" * 50 for i in range(300)})
        self.db.flush()
        self.db.put_many({b"m%03d" % i: b"w" * 50 for i in range(300)})
        self.family = self.db.family("f")
        self.family.put_many([(b"k%03d" % i, b"x") for i in range(100)])
        self.snapshot = self.db.snapshot()
        self.snapshot_family = self.snapshot.family("f")
        self.scan = self.db.scan()
        next(self.scan)
        self.reverse = self.snapshot.scan(reverse=True)
        next(self.reverse)
        self.iterator = self.db.iterator()
        self.iterator.seek_first()
        self.snapshot_iterator = self.snapshot.iterator()
        self.snapshot_iterator.seek_last()
        self.batch = WriteBatch()
        self.batch.put(b"b", b"b")


def reader_cells(name: str) -> dict[str, Callable[[World], Any]]:
    def of(world: World) -> Any:
        return getattr(world, name)

    return {
        f"{name}.get": lambda w: of(w).get(b"k001"),
        f"{name}.get_many": lambda w: of(w).get_many([b"k001", b"none"]),
        f"{name}.scan": lambda w: list(of(w).scan()),
        f"{name}.scan.reverse": lambda w: list(of(w).scan(reverse=True, limit=7)),
        f"{name}.iterator": lambda w: of(w).iterator().seek_first(),
    }


def writer_cells(name: str) -> dict[str, Callable[[World], Any]]:
    def of(world: World) -> Any:
        return getattr(world, name)

    return {
        f"{name}.put": lambda w: of(w).put(b"p", b"q"),
        f"{name}.put.sync": lambda w: of(w).put(b"p", b"q", sync=True),
        f"{name}.delete": lambda w: of(w).delete(b"p"),
        f"{name}.put_many": lambda w: of(w).put_many([(b"p", b"q")]),
    }


def walker_cells(name: str) -> dict[str, Callable[[World], Any]]:
    def of(world: World) -> Any:
        return getattr(world, name)

    return {
        f"{name}.next": lambda w: next(of(w)),
        f"{name}.fetch": lambda w: of(w).fetch(5000),
        f"{name}.close": lambda w: of(w).close(),
        f"{name}.next.closed": lambda w: next(of(w)),
    }


def iterator_cells(name: str) -> dict[str, Callable[[World], Any]]:
    def of(world: World) -> Any:
        return getattr(world, name)

    return {
        f"{name}.key": lambda w: of(w).key,
        f"{name}.value": lambda w: of(w).value,
        f"{name}.next": lambda w: of(w).next(),
        f"{name}.prev": lambda w: of(w).prev(),
        f"{name}.seek": lambda w: of(w).seek(b"m"),
        f"{name}.seek_for_prev": lambda w: of(w).seek_for_prev(b"m"),
        f"{name}.seek_last": lambda w: of(w).seek_last(),
        f"{name}.close": lambda w: of(w).close(),
        f"{name}.valid.closed": lambda w: of(w).valid,
        f"{name}.seek.closed": lambda w: of(w).seek(b"m"),
    }


def write_with(world: World) -> None:
    with world.db.write_batch() as batch:
        batch.put(b"x", b"y")


CELLS: dict[str, Callable[[World], Any]] = {
    **reader_cells("snapshot"),
    **reader_cells("snapshot_family"),
    **walker_cells("scan"),
    **walker_cells("reverse"),
    **iterator_cells("iterator"),
    **iterator_cells("snapshot_iterator"),
    **reader_cells("db"),
    **reader_cells("family"),
    **writer_cells("db"),
    **writer_cells("family"),
    "db.write": lambda w: w.db.write(w.batch),
    "db.write.again": lambda w: w.db.write(w.batch),
    "db.write.unlogged": lambda w: w.db.write(w.batch, log=False),
    "db.write.cleared": lambda w: (w.batch.clear(), w.db.write(w.batch)),
    "db.write_batch": write_with,
    "db.snapshot": lambda w: w.db.snapshot().get(b"k001"),
    "db.family": lambda w: w.db.family("f").get(b"k001"),
    "db.stats": lambda w: w.db.stats(),
    "db.verify": lambda w: w.db.verify(),
    "db.flush": lambda w: w.db.flush(),
    "db.compact": lambda w: w.db.compact(),
    "db.sync": lambda w: w.db.sync(),
    "db.len": lambda w: len(w.db),
    "db.in": lambda w: b"k001" in w.db,
    "db.item": lambda w: w.db[b"k001"],
    "db.repr": lambda w: repr(w.db),
    "db._has_room": lambda w: w.db._has_room(1, True),
    "db._write_locked": lambda w: w.db._write_locked(w.batch, True) if w.db.closed else None,
    "copy": lambda w: [copy.copy(x) for x in (w.snapshot,)],
    "pickle.family": lambda w: pickle.dumps(w.family),
    "family.new": lambda w: type(w.family).__new__(type(w.family)),
    "snapshot_family.new": lambda w: type(w.snapshot_family).__new__(type(w.snapshot_family)),
    "snapshot.close": lambda w: w.snapshot.close(),
    "snapshot.get.closed": lambda w: w.snapshot.get(b"k001"),
    "snapshot_family.get.closed": lambda w: w.snapshot_family.get(b"k001"),
    "batch.payload": lambda w: w.batch.payload(1),
    "gc": lambda w: gc.collect(),
    "db.close": lambda w: w.db.close(),
    "db.get.closed": lambda w: w.db.get(b"k001"),
}


def run(world: World, state: str) -> None:
    for name, cell in CELLS.items():
        try:
            cell(world)
            outcome = "answer"
        except ALLOWED as error:
            outcome = type(error).__name__
        except AttributeError:
            if state != "dropped":
                raise
            outcome = "dropped"
        print(f"{name}: {outcome}", flush=True)


def in_thread(step: Callable[[], None]) -> None:
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()


def main(state: str, directory: str) -> None:
    world = World(f"{directory}/db")
    if state == "closed":
        world.db.close()
    elif state == "closed elsewhere":
        in_thread(world.db.close)
    elif state == "dropped":
        del world.db
        gc.collect()
    elif state == "children closed":
        for name in ("scan", "reverse", "iterator", "snapshot_iterator", "snapshot"):
            getattr(world, name).close()
    elif state == "stress":
        gc.set_threshold(1)
    elif state == "forked":
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            assert world.db.get(b"k001") == b"v" * 50  # the parent goes on
            world.db.close()
            sys.exit(0 if status == 0 else 1)
    elif state == "closing meanwhile":
        thread = threading.Thread(target=world.db.close)
        thread.start()
        run(world, state)
        thread.join()
        return
    run(world, state)
    if state == "forked":
        sys.stdout.flush()
        os._exit(0)
    if state == "exit":  # everything is still open, and in a cycle, when the interpreter goes
        world.db = nokv.open(f"{directory}/second")
        world.db.put(b"a", b"b")
        world.scan = world.db.scan()
        world.cycle = world  # type: ignore[attr-defined]


if __name__ == "__main__":
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as place:
        main(sys.argv[1], place)
