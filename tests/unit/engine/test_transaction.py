"""Transactions: isolation, conflicts that are real and no others, retries, and serializability against brute force."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nokv
from nokv.engine.transaction import Transaction
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles


@pytest.fixture
def db(tmp_path: Path) -> Iterator[nokv.DB]:
    with nokv.open(tmp_path / "db", durability="process", families=("other",)) as db:
        yield db


def test_commit_and_rollback(db: nokv.DB) -> None:
    """ENG-10"""
    db.put(b"a", b"1")
    with db.transaction() as txn:
        assert txn.get(b"a") == b"1"
        txn.put(b"a", b"2")
        txn.put(b"b", b"3", family="other")
        txn.delete(b"absent")
        assert txn.get(b"a") == b"2"
        assert txn.get(b"b", b"none") == b"none"
        assert txn.get_many([b"a", b"x"]) == [b"2", None]
        assert db.get(b"a") == b"1"
    assert txn.closed
    assert db.get(b"a") == b"2"
    assert db.family("other").get(b"b") == b"3"
    with pytest.raises(ZeroDivisionError), db.transaction() as txn:
        txn.put(b"a", b"lost")
        raise ZeroDivisionError
    assert db.get(b"a") == b"2"
    with db.transaction() as txn:
        txn.put(b"a", b"lost")
        txn.rollback()
    assert db.get(b"a") == b"2"
    with pytest.raises(nokv.Closed):
        txn.get(b"a")
    assert db.snapshot_sequences() == []


@pytest.mark.parametrize("then", ["stay", "flush", "compact"])
def test_conflicts(db: nokv.DB, then: str) -> None:
    db.put_many({b"a": b"1", b"c": b"3", b"x": b"9"})

    def attempt(read: Callable[[Transaction], object], write: Callable[[], object]) -> bool:
        txn = db.transaction()
        read(txn)
        txn.put(b"result", b"1")
        write()
        if then == "flush":
            db.flush()
        elif then == "compact":
            db.compact()
        db.delete(b"result")
        try:
            txn.commit()
        except nokv.Conflict:
            assert db.get(b"result") is None
            return False
        assert db.get(b"result") == b"1"
        return True

    other = db.family("other")
    assert not attempt(lambda t: t.get(b"a"), lambda: db.put(b"a", b"2"))
    assert not attempt(lambda t: t.get(b"absent"), lambda: db.put(b"absent", b"2"))
    assert not attempt(lambda t: t.get(b"a"), lambda: db.delete(b"a"))
    assert not attempt(lambda t: t.get(b"a", family="other"), lambda: other.put(b"a", b"2"))
    assert not attempt(lambda t: list(t.scan(b"a", b"d")), lambda: db.put(b"b", b"phantom"))
    assert not attempt(lambda t: list(t.scan(prefix=b"c")), lambda: db.put(b"cc", b"phantom"))
    assert not attempt(lambda t: list(t.scan(b"a", b"d", reverse=True)), lambda: db.delete(b"c"))
    assert not attempt(lambda t: next(t.scan(b"bb")), lambda: db.put(b"bc", b"in the gap that was walked"))
    assert not attempt(lambda t: list(t.scan(limit=2)), lambda: db.put(b"", b"first"))
    # what was not looked at may change
    assert attempt(lambda t: t.get(b"a"), lambda: other.put(b"a", b"3"))
    assert attempt(lambda t: t.get(b"a"), lambda: db.put(b"a\0", b"3"))
    assert attempt(lambda t: next(t.scan(b"c")), lambda: db.put(b"x", b"behind what was walked"))
    assert attempt(lambda t: next(t.scan(b"c", reverse=True)), lambda: db.put(b"c", b"before it"))
    assert attempt(lambda t: list(t.scan(b"a", b"c")), lambda: db.put(b"c", b"the bound is open"))
    assert attempt(lambda t: t.scan(b"a", b"d"), lambda: db.put(b"c", b"never walked"))
    assert attempt(lambda t: t.put(b"w", b"blind"), lambda: db.put(b"w", b"first"))


def test_a_conflict_says_where(db: nokv.DB) -> None:
    txn = db.transaction()
    txn.get(b"k")
    txn.put(b"z", b"")
    db.put(b"k", b"1")
    with pytest.raises(nokv.Conflict) as caught:
        txn.commit()
    assert (caught.value.first, caught.value.end) == (b"k", b"k\0")
    assert caught.value.hint and isinstance(caught.value, nokv.RetryError)


def test_scan_merges_own_writes(db: nokv.DB) -> None:
    db.put_many({b"%02d" % i: b"old" for i in range(0, 20, 2)})
    with db.transaction() as txn:
        txn.put(b"05", b"mine")
        txn.put(b"06", b"mine")
        txn.delete(b"08")
        txn.put(b"99", b"mine")
        want = {b"%02d" % i: b"old" for i in range(0, 20, 2)} | {b"05": b"mine", b"06": b"mine", b"99": b"mine"}
        del want[b"08"]
        assert list(txn.scan()) == sorted(want.items())
        assert list(txn.scan(reverse=True)) == sorted(want.items(), reverse=True)
        assert list(txn.scan(b"05", b"12", limit=3)) == sorted(x for x in want.items() if x[0] >= b"05")[:3]
        assert list(txn.scan(prefix=b"9")) == [(b"99", b"mine")]
        assert list(txn.scan(b"x", b"x")) == list(txn.scan(limit=0)) == []
        for bad in ({"start": b"b", "end": b"a"}, {"limit": -1}):
            with pytest.raises(nokv.UsageError):
                txn.scan(**bad)
    assert dict(db.scan()) == want


def test_run_retries(db: nokv.DB) -> None:
    """Eight threads increment; nothing is lost. Half read with a scan."""
    db.put(b"n", b"0")

    def add(txn: Transaction) -> int:
        now = int(txn.get(b"n") or b"0")
        txn.put(b"n", b"%d" % (now + 1))
        return now + 1

    def add_by_scan(txn: Transaction) -> int:
        ((_, value),) = txn.scan(prefix=b"n")
        txn.put(b"n", b"%d" % (int(value) + 1))
        return int(value) + 1

    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda f=f: seen.extend(db.run(f) for _ in range(40)))  # type: ignore[misc]
        for f in (add, add_by_scan) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.get(b"n") == b"320"
    assert sorted(seen) == list(range(1, 321))
    attempts: list[int] = []

    def never(txn: Transaction) -> None:
        attempts.append(1)
        txn.get(b"n")
        txn.put(b"m", b"")
        db.put(b"n", b"0")

    with pytest.raises(nokv.Conflict):
        db.run(never, attempts_max=3)
    assert len(attempts) == 3
    with pytest.raises(nokv.UsageError):
        db.run(never, attempts_max=0)


def test_plain_writes_and_transactions_do_not_mix_up(tmp_path: Path) -> None:
    """Writers that fill memtables all the time, while transactions move money: the sum never changes."""
    with nokv.open(tmp_path / "db", durability="process", write_buffer_bytes=64 << 10) as db:
        db.put_many({b"acct%d" % i: b"100" for i in range(6)})
        stop = threading.Event()

        def fill() -> None:
            while not stop.is_set():
                for i in range(200):
                    db.put(b"noise%d" % i, bytes(200))

        def move(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                a, b = rng.sample(range(6), 2)

                def transfer(txn: Transaction, a: int = a, b: int = b) -> None:
                    x, y = int(txn.get(b"acct%d" % a) or b""), int(txn.get(b"acct%d" % b) or b"")
                    assert sum(int(v) for _, v in txn.scan(prefix=b"acct")) == 600
                    txn.put(b"acct%d" % a, b"%d" % (x - 1))
                    txn.put(b"acct%d" % b, b"%d" % (y + 1))

                db.run(transfer)

        noise = threading.Thread(target=fill)
        movers = [threading.Thread(target=move, args=(seed,)) for seed in range(3)]
        for thread in (noise, *movers):
            thread.start()
        for thread in movers:
            thread.join()
        stop.set()
        noise.join()
        assert sum(int(v) for _, v in db.scan(prefix=b"acct")) == 600


KEYS = (b"a", b"b", b"c", b"d")
Program = list[tuple[str, bytes, bytes]]


def _program(rng: random.Random) -> Program:
    return [
        (rng.choice(("get", "put", "put-seen", "delete", "scan")), rng.choice(KEYS), b"%d" % rng.randrange(100))
        for _ in range(rng.randrange(1, 5))
    ]


def _step(target: Transaction, step: tuple[str, bytes, bytes], seen: list[object]) -> None:
    verb, key, value = step
    if verb == "get":
        seen.append(target.get(key))
    elif verb == "scan":
        seen.append(list(target.scan(key)))
    elif verb == "put":
        target.put(key, value)
    elif verb == "put-seen":
        target.put(key, repr(seen[-1:]).encode()[:40])
    else:
        target.delete(key)


@pytest.mark.parametrize("seed", range(8))
def test_serializable(db: nokv.DB, seed: int) -> None:
    """Every committed history of three interleaved transactions equals one of their serial orders."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    conflicts = 0
    for _ in range(40):
        for key in KEYS:
            db.delete(key)
        start = {key: b"start" for key in KEYS if rng.random() < 0.5}
        db.put_many(start)
        programs = [_program(rng) for _ in range(3)]
        txns = [db.transaction() for _ in programs]
        seen: list[list[object]] = [[] for _ in programs]
        at = [0] * 3
        committed = []
        while todo := [i for i in range(3) if at[i] <= len(programs[i])]:
            i = rng.choice(todo)
            if at[i] < len(programs[i]):
                _step(txns[i], programs[i][at[i]], seen[i])
            else:
                try:
                    txns[i].commit()
                    committed.append(i)
                except nokv.Conflict:
                    conflicts += 1
            at[i] += 1
        final = dict(db.scan())
        for order in itertools.permutations(committed):
            for key in KEYS:
                db.delete(key)
            db.put_many(start)
            again: dict[int, list[object]] = {}
            for i in order:
                again[i] = []
                with db.transaction() as txn:
                    for step in programs[i]:
                        _step(txn, step, again[i])
            if dict(db.scan()) == final and all(again[i] == seen[i] for i in committed):
                break
        else:
            pytest.fail(f"seed {seed}: {programs} committed {committed}, saw {seen}, left {final}: no serial order")
    assert conflicts


def test_over_files_that_are_not_mapped_and_a_crash() -> None:
    files = CrashFiles()
    db = nokv.open("db", files=files, executor=StepExecutor())
    db.put(b"a", b"1")
    with db.transaction(sync=True) as txn:
        txn.put(b"a", (txn.get(b"a") or b"") + b"2")
        txn.put(b"b", b"3")
    txn = db.transaction()
    txn.put(b"a", b"never committed")
    after = nokv.open("db", files=files.crash_clone(), executor=StepExecutor())
    assert dict(after.scan()) == {b"a": b"12", b"b": b"3"}


def test_refused(tmp_path: Path, db: nokv.DB) -> None:
    txn = db.transaction()
    for call in (lambda: txn.get("a"), lambda: txn.put(b"a", 1), lambda: txn.scan("a")):  # type: ignore[call-overload, arg-type]
        with pytest.raises(nokv.BytesRequired):
            call()
    with pytest.raises(nokv.UsageError):
        txn.put(bytes(65537), b"")
    with pytest.raises(nokv.NotFound):
        txn.put(b"a", b"", family="absent")
    db.close()
    with pytest.raises(nokv.Closed):
        txn.get(b"a")
    txn.rollback()
    with pytest.raises(nokv.Closed):
        db.transaction()
    with nokv.open(db.path, read_only=True) as reader:
        with reader.transaction() as txn:
            assert txn.get(b"a") is None
        with pytest.raises(nokv.ReadOnly), reader.transaction() as txn:
            txn.put(b"a", b"")
