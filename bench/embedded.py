"""The embedded engine beside its peers: one table, every engine in turn in a process of its own, medians of the passes.

    python -m bench.embedded --engines nokv,plyvel,rocksdict,lmdb,sqlite --quick --json out.json

Every engine gives the same durability: a finished call survives the death of the process; `put, sync` survives power
loss. 16-byte keys; values of 100 and of 1,000 bytes, half of it compressible. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.engines import ENGINES
from bench.report import human

OURS = "nokv"
BATCH = 1000
LOWER_IS_BETTER = {"us", "ms", "MB", "x"}
clock = time.perf_counter


class Sizes:
    def __init__(self, quick: bool, value_bytes: int) -> None:
        self.records = (60_000 if quick else 500_000) // (1 if value_bytes <= 100 else 4)
        self.calls = (20_000 if quick else 200_000) // (1 if value_bytes <= 100 else 4)
        self.synced = 100 if quick else 1000
        self.replayed = 20_000 if quick else 100_000


def make_values(value_bytes: int) -> list[bytes]:
    half = value_bytes // 2
    return [random.Random(i).randbytes(half) + bytes([97 + i % 26]) * (value_bytes - half) for i in range(1024)]


def keys_in_random_order(count: int, seed: int) -> list[bytes]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [b"%016d" % i for i in order]


def latencies(call: Callable[[int], object], count: int) -> list[float]:
    """Microseconds of each of `count` calls, in order of size."""
    taken = []
    for i in range(count):
        begin = clock()
        call(i)
        taken.append((clock() - begin) * 1e6)
    return sorted(taken)


def written_bytes() -> int:
    """What this process has caused to be written to the disk, if the system counts it."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def size_of(path: str) -> int:
    """Allocated bytes of everything whose name begins with `path`."""
    found = 0
    base = Path(path)
    for top in base.parent.glob(base.name + "*"):
        for file in [top, *top.rglob("*")]:
            found += file.stat().st_blocks * 512 if file.is_file() else 0
    return found


Figure = tuple[str, float, str]  # row, value, unit


def measure(engine: str, folder: str, value_bytes: int, sizes: Sizes) -> Iterator[Figure]:
    make = ENGINES[engine]
    values = make_values(value_bytes)
    count, calls = sizes.records, sizes.calls
    keys = keys_in_random_order(count, 3)
    other = keys_in_random_order(count, 5)
    user_bytes = count * (16 + value_bytes)

    def fresh(name: str) -> tuple[Any, str]:
        path = os.path.join(folder, name)
        os.makedirs(path)
        return make(os.path.join(path, "db")), os.path.join(path, "db")

    def rate(work: Callable[[], object], operations: int) -> float:
        begin = clock()
        work()
        return operations / (clock() - begin)

    def put_all(db: Any, order: list[bytes]) -> None:
        put = db.put
        for i, key in enumerate(order):
            put(key, values[i & 1023])

    def delete_all(db: Any, order: list[bytes]) -> None:
        delete = db.delete
        for key in order:
            delete(key)

    def get_all(db: Any, order: list[bytes]) -> None:
        get = db.get
        for key in order:
            get(key)

    def put_batches(db: Any, order: list[bytes]) -> None:
        for at in range(0, len(order), BATCH):
            db.put_many([(key, values[i & 1023]) for i, key in enumerate(order[at : at + BATCH])])

    db, _ = fresh("sequential")
    yield "put, ascending keys", rate(lambda: put_all(db, sorted(keys)), count), "ops/s"
    db.close()
    db, _ = fresh("random")
    yield "put, random keys", rate(lambda: put_all(db, keys), count), "ops/s"
    yield "put again", rate(lambda: put_all(db, other), count), "ops/s"
    took = latencies(lambda i: db.put(keys[i], values[i & 1023]), calls)
    yield "put p50", took[calls // 2], "us"
    yield "put p99", took[calls * 99 // 100], "us"
    yield "delete, random keys", rate(lambda: delete_all(db, other[:calls]), calls), "ops/s"
    db.close()
    db, _ = fresh("synced")
    yield (
        "put, sync",
        rate(lambda: [db.put_sync(key, values[0]) for key in keys[: sizes.synced]], sizes.synced),
        "ops/s",
    )
    db.close()

    written = written_bytes()
    db, path = fresh("loaded")
    yield f"put_many, {BATCH} a batch", rate(lambda: put_batches(db, keys), count), "keys/s"
    put_batches(db, other[: count // 2])
    settled = clock()
    db.settle()
    yield "flush and compact", (clock() - settled) * 1e3, "ms"
    if written_bytes():
        yield "write amplification", (written_bytes() - written) / (user_bytes * 1.5), "x"
    yield "get, random keys", rate(lambda: get_all(db, other[:calls]), calls), "ops/s"
    yield "get, missing keys", rate(lambda: get_all(db, [key + b"x" for key in other[:calls]]), calls), "ops/s"
    took = latencies(lambda i: db.get(keys[i]), calls)
    yield "get p50", took[calls // 2], "us"
    yield "get p99", took[calls * 99 // 100], "us"
    groups = [other[i : i + 100] for i in range(0, calls, 100)]
    yield "get_many, 100 a call", rate(lambda: [db.get_many(group) for group in groups], calls), "keys/s"
    yield "scan, all pairs", rate(lambda: db.scan(b"", count + 1), count), "pairs/s"
    for near in (10, 100):
        starts = other[: calls // near]
        yield f"seek + {near}", rate(lambda s=starts, n=near: [db.scan(k, n) for k in s], len(starts)), "seeks/s"  # type: ignore[misc]
    mixed = random.Random(7).choices((True, False), k=calls)

    def mix() -> None:
        get, put = db.get, db.put
        for reads, key in zip(mixed, other, strict=False):
            if reads:
                get(key)
            else:
                put(key, values[0])

    yield "half get, half put", rate(mix, calls), "ops/s"
    if sys.platform == "linux":  # kilobytes there
        yield "peak memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB"
    db.settle()
    db.close()
    yield "size, compacted and closed", size_of(path) / 1e6, "MB"
    begin = clock()
    db = make(path)
    assert db.get(keys[0]) is not None
    yield "reopen", (clock() - begin) * 1e3, "ms"
    db.close()

    path = os.path.join(folder, "killed")
    os.makedirs(path)
    path = os.path.join(path, "db")
    command = [sys.executable, "-m", "bench.embedded", "--child", engine, "--value-bytes", str(value_bytes)]
    subprocess.run([*command, "--until-killed", path, "--puts", str(sizes.replayed)], check=True)
    begin = clock()
    db = make(path)
    assert db.get(b"%016d" % (sizes.replayed - 1)) is not None
    yield f"reopen after a kill, {sizes.replayed // 1000}k puts", (clock() - begin) * 1e3, "ms"
    db.close()


def run_child(engine: str, value_bytes: int, quick: bool, folder: str | None) -> list[Figure]:
    """One pass of one engine in a process of its own."""
    command = [sys.executable, "-m", "bench.embedded", "--child", engine, "--value-bytes", str(value_bytes)]
    command += ["--quick"] if quick else []
    command += ["--dir", folder] if folder else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [(row, value, unit) for row, value, unit in json.loads(done.stdout)]


Table = dict[str, dict[str, Any]]  # row -> unit, engine -> median


def table_of(runs: dict[str, list[list[Figure]]]) -> Table:
    table: Table = {}
    for engine, passes in runs.items():
        for figures in zip(*passes, strict=True):
            row, _, unit = figures[0]
            entry = table.setdefault(row, {"unit": unit, "engines": {}})
            entry["engines"][engine] = statistics.median(value for _, value, _ in figures)
    for entry in table.values():
        entry["ratio"] = ratio(entry)
    return table


def ratio(entry: dict[str, Any]) -> float | None:
    """Ours to the best peer, above 1 where we are better."""
    have = entry["engines"]
    peers = [value for engine, value in have.items() if engine != OURS]
    if OURS not in have or not peers:
        return None
    if entry["unit"] in LOWER_IS_BETTER:
        return float(min(peers) / have[OURS]) if have[OURS] else None
    return float(have[OURS] / max(peers))


def markdown(table: Table, engines: list[str]) -> str:
    lines = ["| row | " + " | ".join(engines) + " | ours / best peer |", "|---|" + "--:|" * (len(engines) + 1)]
    for row, entry in table.items():
        unit = entry["unit"]
        shown = [
            "-"
            if (value := entry["engines"].get(e)) is None
            else f"{value:.2f}"
            if unit in LOWER_IS_BETTER
            else human(value)
            for e in engines
        ]
        better = "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        lines.append(f"| {row} ({unit}) | " + " | ".join(shown) + f" | {better} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma list; default: every one that is installed")
    parser.add_argument("--quick", action="store_true", help="small sizes: about two minutes")
    parser.add_argument("--repeat", type=int, default=0, help="passes; default 3, or 1 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--dir", help="where the databases lie meanwhile")
    parser.add_argument("--value-bytes", type=int, help="only this size; default 100 and 1000")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--until-killed", help=argparse.SUPPRESS)
    parser.add_argument("--puts", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.until_killed:
        db, values = ENGINES[args.child](args.until_killed), make_values(args.value_bytes)
        for i, key in enumerate(keys_in_random_order(args.puts, 3)):
            db.put(key, values[i & 1023])
        os._exit(0)  # no close: what a killed process leaves
    if args.child:
        folder = tempfile.mkdtemp(dir=args.dir)
        try:
            json.dump(
                list(measure(args.child, folder, args.value_bytes, Sizes(args.quick, args.value_bytes))), sys.stdout
            )
        finally:
            shutil.rmtree(folder)
        return 0
    engines = args.engines.split(",")
    missing = [engine for engine in engines if engine not in ENGINES]
    if missing:
        parser.error(f"not installed or not known: {', '.join(missing)}; there are: {', '.join(ENGINES)}")
    document: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "quick": args.quick,
        "tables": {},
    }
    for value_bytes in [args.value_bytes] if args.value_bytes else [100, 1000]:
        runs: dict[str, list[list[Figure]]] = {engine: [] for engine in engines}
        for _ in range(args.repeat or (1 if args.quick else 3)):
            for engine in engines:  # in turn, so that a slow minute of the machine meets all of them
                print(f"{value_bytes}-byte values: {engine} ...", file=sys.stderr)
                runs[engine].append(run_child(engine, value_bytes, args.quick, args.dir))
        table = document["tables"][f"{value_bytes} bytes"] = table_of(runs)
        print(f"\nValues of {value_bytes} bytes\n\n{markdown(table, engines)}", flush=True)
    print(f"\n{document['date']}, {document['machine']}; medians; the ratio is above 1 where nokv is better.")
    if args.json:
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
