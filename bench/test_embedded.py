"""Embedded rows: put, get, scan, batch. 16-byte keys, 100-byte values, half compressible; every engine in one run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.engines import ENGINES

RECORDS = 100_000
CALLS = 50_000
VALUES = [random.Random(i).randbytes(50) + bytes([97 + i % 26]) * 50 for i in range(512)]


def keys_in_random_order(count: int, seed: int = 3) -> list[bytes]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [b"%016d" % i for i in order]


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    opened = ENGINES[request.param](str(tmp_path / "db"))
    yield opened
    opened.close()


@pytest.fixture
def loaded(engine: Any) -> Any:
    keys = keys_in_random_order(RECORDS)
    for i in range(0, RECORDS, 1000):
        engine.put_many([(key, VALUES[i % 512]) for key in keys[i : i + 1000]])
    engine.settle()
    return engine


def run(benchmark: Any, row: str, operations: int, work: Callable[[], object]) -> None:
    """Benchmark `work`, which does `operations` operations of the named row."""
    benchmark.group = row
    benchmark.extra_info["operations"] = operations
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)


def test_put_random(benchmark: Any, engine: Any) -> None:
    pairs = [(key, VALUES[i % 512]) for i, key in enumerate(keys_in_random_order(CALLS))]

    def work() -> None:
        put = engine.put
        for key, value in pairs:
            put(key, value)

    run(benchmark, "put, 50k keys over and over", CALLS, work)


def test_put_batch(benchmark: Any, engine: Any) -> None:
    keys = keys_in_random_order(CALLS)
    batches = [[(key, VALUES[j % 512]) for j, key in enumerate(keys[i : i + 1000])] for i in range(0, CALLS, 1000)]

    def work() -> None:
        for batch in batches:
            engine.put_many(batch)

    run(benchmark, "put_many, 1000 a batch, same keys", CALLS, work)


def test_get_random(benchmark: Any, loaded: Any) -> None:
    keys = keys_in_random_order(RECORDS, seed=5)[:CALLS]
    assert loaded.get(keys[0]) is not None

    def work() -> None:
        get = loaded.get
        for key in keys:
            get(key)

    run(benchmark, "get, random keys", CALLS, work)


def test_get_missing(benchmark: Any, loaded: Any) -> None:
    keys = [key + b"x" for key in keys_in_random_order(RECORDS, seed=5)[:CALLS]]
    assert loaded.get(keys[0]) is None

    def work() -> None:
        get = loaded.get
        for key in keys:
            get(key)

    run(benchmark, "get, missing keys", CALLS, work)


def test_get_many(benchmark: Any, loaded: Any) -> None:
    keys = keys_in_random_order(RECORDS, seed=5)[:CALLS]
    groups = [keys[i : i + 100] for i in range(0, CALLS, 100)]
    assert None not in loaded.get_many(groups[0])
    run(benchmark, "get_many, 100 a call", CALLS, lambda: [loaded.get_many(group) for group in groups])


def test_scan_all(benchmark: Any, loaded: Any) -> None:
    assert len(loaded.scan(b"", RECORDS + 1)) == RECORDS
    run(benchmark, "scan, all pairs", RECORDS, lambda: loaded.scan(b"", RECORDS + 1))


def test_seek_and_scan_10(benchmark: Any, loaded: Any) -> None:
    starts = keys_in_random_order(RECORDS, seed=5)[:10_000]
    run(benchmark, "seek + next 10", len(starts), lambda: [loaded.scan(key, 10) for key in starts])
