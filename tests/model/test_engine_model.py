"""R7: the database against a dict per family, with range deletes, times to live, snapshots, iterators, transactions,
reopenings and crashes, under random options (ENG-07, ENG-17)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nokv
from nokv.testing.clock import FakeClock
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles
from tests.counts import count

KEYS = st.one_of(
    st.binary(max_size=3), st.sampled_from([b"a", b"ab", b"b", b"b\x00", b"b\xff", b"\xff", b"\xff\xff", b"k" * 300])
)
VALUES = st.one_of(st.binary(max_size=20), st.integers(0, 700).map(lambda n: bytes([n % 251]) * n))
FAMILIES = ("", "lock", "other")
FAMILY = st.sampled_from(FAMILIES)
TTL = st.integers(1, 50)
PUT = st.tuples(st.just("put"), FAMILY, KEYS, VALUES, st.none() | TTL)
DELETE = st.tuples(st.just("delete"), FAMILY, KEYS)
DELETE_RANGE = st.tuples(st.just("delete_range"), FAMILY, st.none() | KEYS, st.none() | KEYS)
CHANGES = st.lists(st.one_of(PUT, PUT, DELETE, DELETE_RANGE), max_size=12)
State = dict[str, dict[bytes, bytes]]


class Family:
    """The specification: what a family holds, with the millisecond from which on it is absent."""

    def __init__(self, entries: dict[bytes, tuple[bytes, int | None]] | None = None) -> None:
        self.entries = dict(entries or {})

    def apply(self, now: int, change: tuple[Any, ...]) -> None:
        verb, _, *rest = change
        if verb == "put":
            key, value, ttl = rest
            self.entries[key] = (value, None if ttl is None else now + ttl)
        elif verb == "delete":
            self.entries.pop(rest[0], None)
        else:
            start, end = in_order(*rest)
            for key in [k for k in self.entries if (start is None or k >= start) and (end is None or k < end)]:
                del self.entries[key]

    def at(self, now: int) -> dict[bytes, bytes]:
        return {key: value for key, (value, expiry) in self.entries.items() if expiry is None or expiry > now}


def in_order(start: bytes | None, end: bytes | None) -> tuple[bytes | None, bytes | None]:
    return (end, start) if start is not None and end is not None and start > end else (start, end)


def carry_out(target: Any, change: tuple[Any, ...], *family: Any) -> None:
    """The change, on anything that has the verbs; `family`: how a batch is told which."""
    verb, _, *rest = change
    if verb == "put":
        key, value, ttl = rest
        target.put(key, value, *family, ttl=ttl)
    elif verb == "delete":
        target.delete(rest[0], *family)
    else:
        target.delete_range(*in_order(*rest), *family)


def select(
    state: dict[bytes, bytes],
    start: bytes | None,
    end: bytes | None,
    prefix: bytes | None,
    reverse: bool,
    limit: int | None,
) -> list[tuple[bytes, bytes]]:
    """The obvious scan."""
    found = [
        (key, value)
        for key, value in sorted(state.items(), reverse=reverse)
        if (start is None or key >= start) and (end is None or key < end) and (prefix is None or key.startswith(prefix))
    ]
    return found if limit is None else found[:limit]


def carry_out_in(txn: nokv.Transaction, change: tuple[Any, ...]) -> None:
    verb, family, *rest = change
    if verb == "put":
        txn.put(rest[0], rest[1], ttl=rest[2], family=family or None)
    elif verb == "delete":
        txn.delete(rest[0], family=family or None)
    else:
        txn.delete_range(*in_order(*rest), family=family or None)


def writes(change: tuple[Any, ...]) -> bool:
    """An empty range is no write."""
    if change[0] != "delete_range":
        return True
    start, end = in_order(change[2], change[3])
    return end is None or (start or b"") < end


def reaches(change: tuple[Any, ...], first: bytes | None) -> bool:
    """Does it write anything at or above `first`?"""
    if change[0] != "delete_range":
        return first is None or change[2] >= first
    end = in_order(change[2], change[3])[1]
    return writes(change) and (first is None or end is None or end > first)


class EngineModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = CrashFiles()
        self.clock = FakeClock()
        self.families = {name: Family() for name in FAMILIES}
        self.snapshots: list[tuple[nokv.Snapshot, State]] = []
        self.iterators: list[tuple[Any, list[tuple[bytes, bytes]], int | None]] = []  # with its place
        self.options: dict[str, Any] = {}

    @property
    def expected(self) -> State:
        return {name: family.at(self.clock.time_ms()) for name, family in self.families.items()}

    @initialize(
        write_buffer_bytes=st.sampled_from([4096, 20000, 1 << 20]),
        wal_segment_bytes=st.sampled_from([1024, 8192, 1 << 20]),
        compression=st.sampled_from(["none", "zstd"]),
        l0_files_trigger=st.sampled_from([2, 4]),
        level_base_bytes=st.sampled_from([300, 4096, 1 << 20]),
        level_growth=st.sampled_from([2, 10]),
        table_bytes=st.sampled_from([1, 600, 8192]),
        bloom_bits=st.sampled_from([0, 10]),
        block_bytes=st.sampled_from([64, 256, 4096]),
        value_file_threshold=st.sampled_from([0, 1, 60, 64 << 10]),
        value_file_bytes=st.sampled_from([1024, 1 << 20]),
        inline=st.booleans(),
    )
    def start(self, inline: bool, **options: Any) -> None:
        self.options = options
        self.inline = inline
        self.open()

    def open(self) -> None:
        self.snapshots.clear()
        self.iterators.clear()
        self.executor = StepExecutor(inline=self.inline)
        self.db = nokv.open(
            "db",
            files=self.files,
            clock=self.clock,
            executor=self.executor,
            durability="process",
            families=FAMILIES[1:],
            **self.options,
        )

    def target(self, family: str) -> Any:
        return self.db.family(family) if family else self.db

    def apply(self, change: tuple[Any, ...]) -> None:
        self.families[change[1]].apply(self.clock.time_ms(), change)

    @rule(change=st.one_of(PUT, DELETE, DELETE_RANGE))
    def change(self, change: tuple[Any, ...]) -> None:
        carry_out(self.target(change[1]), change)
        self.apply(change)

    @rule(family=FAMILY, key=KEYS, value=VALUES, sync=st.booleans())
    def put(self, family: str, key: bytes, value: bytes, sync: bool) -> None:
        self.target(family).put(key, value, sync=sync)
        self.apply(("put", family, key, value, None))

    @rule(changes=CHANGES, log=st.booleans())
    def batch(self, changes: list[tuple[Any, ...]], log: bool) -> None:
        batch = nokv.WriteBatch(now_ms=self.clock.time_ms)
        for change in changes:
            carry_out(batch, change, self.db.family(change[1]) if change[1] else None)
            self.apply(change)
        self.db.write(batch, log=log)
        if not log:
            self.db.flush()  # or a crash may lose it

    @rule(changes=CHANGES)
    def abandoned_batch(self, changes: list[tuple[Any, ...]]) -> None:
        try:
            with self.db.write_batch() as batch:
                for change in changes:
                    carry_out(batch, change, change[1] or None)
                raise RuntimeError("never mind")
        except RuntimeError:
            pass

    @rule(
        changes=CHANGES,
        family=FAMILY,
        keys=st.lists(KEYS, max_size=4),
        first=st.none() | KEYS,
        reverse=st.booleans(),
        meanwhile=st.none() | st.one_of(PUT, DELETE, DELETE_RANGE),
    )
    def transaction(
        self,
        changes: list[tuple[Any, ...]],
        family: str,
        keys: list[bytes],
        first: bytes | None,
        reverse: bool,
        meanwhile: tuple[Any, ...] | None,
    ) -> None:
        """It sees its own writes, and does not commit them if what it scanned was written meanwhile."""
        txn = self.db.transaction()
        seen = {name: Family(held.entries) for name, held in self.families.items()}
        now = self.clock.time_ms()
        for change in changes:
            carry_out_in(txn, change)
            seen[change[1]].apply(now, change)
        mine = seen[family].at(now)
        assert txn.get_many(keys, family=family or None) == [mine.get(key) for key in keys]
        read = txn.scan(first, reverse=reverse, family=family or None)
        assert list(read) == select(mine, first, None, None, reverse, None)
        touched = False
        if meanwhile is not None:
            carry_out(self.target(meanwhile[1]), meanwhile)
            self.apply(meanwhile)
            touched = meanwhile[1] == family and reaches(meanwhile, first)
        try:
            txn.commit()
        except nokv.Conflict:
            assert meanwhile is not None and meanwhile[1] == family
            return
        assert not touched or not any(writes(change) for change in changes)
        for change in changes:
            self.families[change[1]].apply(now, change)

    @rule(family=FAMILY, pairs=st.lists(st.tuples(KEYS, VALUES), max_size=20))
    def put_many(self, family: str, pairs: list[tuple[bytes, bytes]]) -> None:
        self.target(family).put_many(pairs)
        for key, value in pairs:
            self.apply(("put", family, key, value, None))

    @rule(ms=st.integers(1, 40))
    def time_passes(self, ms: int) -> None:
        self.clock.advance_ms(ms)

    # -- views --------------------------------------------------------------------------------------------------------
    @rule()
    def snapshot(self) -> None:
        if len(self.snapshots) < 4:
            self.snapshots.append((self.db.snapshot(), self.expected))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), family=FAMILY, start=st.none() | KEYS, end=st.none() | KEYS)
    def read_snapshot(self, data: st.DataObject, family: str, start: bytes | None, end: bytes | None) -> None:
        snapshot, state = data.draw(st.sampled_from(self.snapshots))
        view: Any = snapshot.family(family) if family else snapshot
        for reverse in (False, True):
            assert list(view.scan(reverse=reverse)) == select(state[family], None, None, None, reverse, None)
        start, end = in_order(start, end)
        assert list(view.scan(start, end)) == select(state[family], start, end, None, False, None)
        keys = [b"a", b"b", b"b\xff", b"k" * 300, *state[family]]
        assert view.get_many(keys) == [state[family].get(key) for key in keys]
        assert [view.get(key) for key in keys] == [state[family].get(key) for key in keys]

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def drop_snapshot(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.snapshots))
        item[0].close()
        self.snapshots.remove(item)

    @rule(family=FAMILY, start=st.none() | KEYS, end=st.none() | KEYS)
    def iterator(self, family: str, start: bytes | None, end: bytes | None) -> None:
        if len(self.iterators) < 3:
            start, end = in_order(start, end)
            pairs = select(self.expected[family], start, end, None, False, None)
            self.iterators.append((self.target(family).iterator(start, end), pairs, None))

    @precondition(lambda self: self.iterators)
    @rule(
        data=st.data(),
        steps=st.lists(
            st.one_of(
                st.sampled_from([("seek_first",), ("seek_last",), ("next",), ("prev",), ("next",), ("prev",)]),
                st.tuples(st.sampled_from(["seek", "seek_for_prev"]), KEYS),
            ),
            min_size=1,
            max_size=8,
        ),
    )
    def walk(self, data: st.DataObject, steps: list[tuple[Any, ...]]) -> None:
        index = data.draw(st.integers(0, len(self.iterators) - 1))
        it, pairs, place = self.iterators[index]
        for step in steps:
            if step[0] in ("next", "prev") and place is None:
                continue
            found = getattr(it, step[0])(*step[1:])
            if step[0] == "seek_first":
                place = 0
            elif step[0] == "seek_last":
                place = len(pairs) - 1
            elif step[0] == "seek":
                place = sum(key < step[1] for key, _ in pairs)
            elif step[0] == "seek_for_prev":
                place = sum(key <= step[1] for key, _ in pairs) - 1
            else:
                assert place is not None
                place += 1 if step[0] == "next" else -1
            if not 0 <= place < len(pairs):
                place = None
            assert found == it.valid == (place is not None)
            if place is not None:
                assert it.item == pairs[place]
        self.iterators[index] = (it, pairs, place)

    @precondition(lambda self: self.iterators)
    @rule()
    def drop_iterator(self) -> None:
        self.iterators.pop()[0].close()

    @rule(
        family=FAMILY,
        start=st.none() | KEYS,
        end=st.none() | KEYS,
        prefix=st.none() | st.binary(max_size=2),
        reverse=st.booleans(),
        limit=st.none() | st.integers(0, 5),
    )
    def scan(
        self,
        family: str,
        start: bytes | None,
        end: bytes | None,
        prefix: bytes | None,
        reverse: bool,
        limit: int | None,
    ) -> None:
        start, end = in_order(start, end)
        options: dict[str, Any] = {"prefix": prefix, "reverse": reverse, "limit": limit}
        expected = select(self.expected[family], start, end, **options)
        target = self.target(family)
        assert list(target.scan(start, end, **options)) == expected
        assert list(target.scan(start, end, values=False, **options)) == [key for key, _ in expected]
        assert list(target.scan(start, end, keys=False, **options)) == [value for _, value in expected]

    @rule(change=st.one_of(PUT, DELETE_RANGE), reverse=st.booleans())
    def scan_stays_consistent_while_written(self, change: tuple[Any, ...], reverse: bool) -> None:
        before = sorted(self.expected[""].items(), reverse=reverse)
        scan = self.db.scan(reverse=reverse)
        carry_out(self.target(change[1]), change)
        self.apply(change)
        self.clock.advance_ms(5)
        self.db.flush()
        assert list(scan) == before

    # -- steps that change no answer ----------------------------------------------------------------------------------
    @rule()
    def flush(self) -> None:
        self.db.flush()

    @rule()
    def compact(self) -> None:
        self.db.compact()
        if not self.snapshots and not self.iterators:
            for family in FAMILIES:
                assert self.stored(family, None, None) == sorted(self.expected[family])

    @rule(family=FAMILY, start=st.none() | KEYS, end=st.none() | KEYS)
    def compact_range(self, family: str, start: bytes | None, end: bytes | None) -> None:
        start, end = in_order(start, end)
        self.target(family).compact(start, end)
        if not self.snapshots and not self.iterators:
            live = select(self.expected[family], start, end, None, False, None)
            assert self.stored(family, start, end, values_only=True) == [key for key, _ in live]

    def stored(self, family: str, start: bytes | None, end: bytes | None, values_only: bool = False) -> list[bytes]:
        """The keys of all entries, seen or not."""
        number = self.db.families()[family or "plain"]
        return [
            prefix[1:]
            for prefix, _, kind, _ in self.db._scan_all(self.db.view)
            if prefix[0] == number
            and (start is None or prefix[1:] >= start)
            and (end is None or prefix[1:] < end)
            and not (values_only and kind == 0)
        ]

    @rule(family=st.sampled_from(["", "lock"]), start=st.none() | KEYS, end=st.none() | KEYS, n=st.integers(0, 10**9))
    def export(self, family: str, start: bytes | None, end: bytes | None, n: int) -> None:
        """Exported tables, taken in again, are the same data once more."""
        start, end = in_order(start, end)
        self.exports = getattr(self, "exports", 0) + 1
        directory = f"out-{self.exports}-{n}"
        tables = self.db.export_sst(directory, [(family or "plain", start, end)])
        self.db.ingest_sst([[f"{directory}/{table.name}" for table in tables]])

    @rule()
    def background(self) -> None:
        self.executor.run_all()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.open()

    @rule(mode=st.sampled_from(["process", "drop", "random", "torn"]), seed=st.integers(0, 1000))
    def crash(self, mode: Any, seed: int) -> None:
        if mode != "process":
            self.db.sync()
        self.files = self.files.crash_clone(mode, seed=seed)
        self.open()

    @rule()
    def verify(self) -> None:
        assert self.db.verify().damaged == ()
        self.db._versions.check()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "db"):
            return
        for family, state in self.expected.items():
            target = self.target(family)
            assert dict(target.scan()) == state
            for key in (b"a", b"b", b"absent", *list(state)[:5]):
                assert target.get(key) == state.get(key)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()


EngineModel.TestCase.settings = settings(
    max_examples=count(100, 300, 20_000),
    stateful_step_count=50,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestEngineModel = pytest.mark.counted(EngineModel.TestCase)
