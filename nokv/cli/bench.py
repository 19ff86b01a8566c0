"""`nokv bench`: how fast the engine is here. `python -m bench.embedded` of the repository compares engines."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from nokv.cli.output import emit, note, output_option, table
from nokv.errors import PreconditionFailed

if TYPE_CHECKING:
    from nokv.engine.db import DB

__all__ = ["bench"]

BATCH = 1000
SYNCED = 200
SEED = 1


@click.command()
@click.option("--workdir", type=click.Path(), help="A directory to make, on the disk to measure; it stays.")
@click.option("--keys", type=click.IntRange(BATCH, 100_000_000), default=200_000, show_default=True, help="How many.")
@click.option("--value-bytes", type=click.IntRange(0, 1 << 20), default=100, show_default=True, help="Of each value.")
@click.option(
    "--durability",
    type=click.Choice(["process", "interval", "sync"]),
    default="interval",
    show_default=True,
    help="What a finished write survives.",
)
@output_option
def bench(workdir: str | None, keys: int, value_bytes: int, durability: str, output: str) -> None:
    """Write, read and scan a new database, and print operations per second of one thread.

    Without --workdir it lies in the directory for temporary files and is removed afterwards.
    """
    with _place(workdir) as path:
        rows = [
            {"work": work, "operations": n, "seconds": round(seconds, 4), "per_second": round(n / max(seconds, 1e-9))}
            for work, n, seconds in _measure(path, keys, value_bytes, durability)
        ]
    payload = {"keys": keys, "value_bytes": value_bytes, "durability": durability, "rows": rows}
    columns = ["work", "operations", "seconds", "per_second"]
    emit("bench", payload, output, lambda p: table(columns, ([row[c] for c in columns] for row in p["rows"])))


@contextmanager
def _place(workdir: str | None) -> Iterator[str]:
    if workdir is not None:
        if os.path.lexists(workdir):
            raise PreconditionFailed(f"{workdir} is there already", hint="name a directory that does not exist yet")
        yield workdir
        return
    folder = tempfile.mkdtemp(prefix="nokv-bench-")
    try:
        yield os.path.join(folder, "db")
    finally:
        shutil.rmtree(folder)


def _measure(path: str, keys: int, value_bytes: int, durability: str) -> Iterator[tuple[str, int, float]]:
    """(what was done, how many operations, seconds)."""
    import nokv

    dice = random.Random(SEED)
    half = dice.randbytes(value_bytes // 2)
    names = [b"%016d" % n for n in range(keys)]
    shuffled = dice.sample(names, keys)

    def value(n: int) -> bytes:  # half of it compresses
        return (half + b"%016d" % n).ljust(value_bytes, b".")[:value_bytes]

    def timed(work: str, count: int, act: Callable[[DB], Any]) -> tuple[str, int, float]:
        note(work)
        began = time.perf_counter()
        act(db)
        return work, count, time.perf_counter() - began

    def put(db: DB) -> None:
        for n, name in enumerate(shuffled):
            db.put(name, value(n))

    def put_many(db: DB) -> None:
        for at in range(0, keys, BATCH):
            db.put_many([(name, value(at)) for name in shuffled[at : at + BATCH]])

    def put_synced(db: DB) -> None:
        for name in shuffled[:SYNCED]:
            db.put(name, half, sync=True)

    def get(db: DB) -> None:
        for name in shuffled:
            db.get(name)

    def get_many(db: DB) -> None:
        for at in range(0, keys, BATCH):
            db.get_many(shuffled[at : at + BATCH])

    def scan(db: DB) -> None:
        for _ in db.scan():
            pass

    with nokv.open(path, durability=durability) as db:
        yield timed("put, random keys", keys, put)
        yield timed(f"put_many, {BATCH} random keys each", keys, put_many)
        yield timed("put, sync=True", SYNCED, put_synced)
        yield timed("compact", keys, lambda db: db.compact())
        yield timed("get, random keys", keys, get)
        yield timed(f"get_many, {BATCH} random keys each", keys, get_many)
        yield timed("scan, all keys", keys, scan)
    began = time.perf_counter()
    with nokv.open(path, durability=durability) as db:
        yield "open again", 1, time.perf_counter() - began
