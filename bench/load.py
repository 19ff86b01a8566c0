"""Does a large load fit in memory, and does it stay fast? `python -m bench.load --records 10000000 --rss-limit 1G`.

Puts `records` pairs of 100-byte values in random key order, one call each, then reads keys in random order. Prints the
rate of each tenth of the load, beside that of the first 100,000 puts, and the peak memory. Fails (exit 1) if a value is
wrong, if the peak is above the limit, or if the load ran at less than half the rate of its first 100,000 puts.

Keys and values are computed, not kept: the harness itself takes next to no memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time

import nokv

FIRST = 100_000
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MASK = (1 << 64) - 1


def size(text: str) -> int:
    digits = text.rstrip("KMG")
    return int(digits) * SUFFIXES[text[len(digits) :]]


def mixed(n: int) -> int:
    """A bijection on 64 bits (splitmix64's finaliser): random order without a list of it."""
    n = (n + 0x9E3779B97F4A7C15) & MASK
    n = ((n ^ (n >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    n = ((n ^ (n >> 27)) * 0x94D049BB133111EB) & MASK
    return n ^ (n >> 31)


def pair(n: int) -> tuple[bytes, bytes]:
    word = mixed(n)
    return b"%016x" % word, b"%050d" % word + b"v" * 50


def put_range(db: nokv.DB, start: int, stop: int) -> float:
    """Seconds in `put` and the making of pairs; the latter is the same for every range."""
    put = db.put
    began = time.perf_counter()
    for n in range(start, stop):
        put(*pair(n))
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--reads", type=int, default=200_000)
    parser.add_argument("--rss-limit", type=size, default=1 << 30)
    parser.add_argument("--dir")
    args = parser.parse_args()
    records = max(args.records, 2 * FIRST)
    directory = tempfile.mkdtemp(prefix="nokv-load-", dir=args.dir)
    failures = []
    try:
        with nokv.open(f"{directory}/db") as db:
            first = put_range(db, 0, FIRST)
            print(f"{FIRST:>12,} puts {FIRST / first:>10,.0f}/s")
            done, seconds = FIRST, first
            while done < records:
                stop = min(records, done + max(FIRST, records // 10))
                took = put_range(db, done, stop)
                seconds += took
                print(f"{stop:>12,} puts {(stop - done) / took:>10,.0f}/s", flush=True)
                done = stop
            ratio = (records / seconds) / (FIRST / first)
            if ratio < 0.5:
                failures.append(f"the load ran at {ratio:.2f} of the rate of its first {FIRST:,} puts")
            began = time.perf_counter()
            wrong = 0
            for i in range(args.reads):
                key, value = pair(mixed(~i & MASK) % records)
                wrong += db.get(key) != value
            print(f"{args.reads:>12,} gets {args.reads / (time.perf_counter() - began):>10,.0f}/s")
            if wrong:
                failures.append(f"{wrong} values are wrong")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"load / first {ratio:.2f}, peak memory {peak >> 20} MiB")
        if peak > args.rss_limit:
            failures.append(f"the peak is above {args.rss_limit >> 20} MiB")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
