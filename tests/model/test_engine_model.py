"""R7: the database against a dict per family, with snapshots, reopenings and crashes (ENG-07, ENG-17)."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nokv
from nokv.testing.executor import StepExecutor
from nokv.testing.files import CrashFiles

KEYS = st.one_of(
    st.binary(max_size=3), st.sampled_from([b"a", b"ab", b"b", b"b\x00", b"b\xff", b"\xff", b"\xff\xff", b"k" * 300])
)
VALUES = st.one_of(st.binary(max_size=20), st.integers(0, 700).map(lambda n: bytes([n % 251]) * n))
FAMILIES = ("", "lock", "other")
FAMILY = st.sampled_from(FAMILIES)
CHANGES = st.lists(st.tuples(FAMILY, KEYS, st.one_of(st.none(), VALUES)), max_size=12)
State = dict[str, dict[bytes, bytes]]


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


class EngineModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = CrashFiles()
        self.expected: State = {name: {} for name in FAMILIES}
        self.snapshots: list[tuple[nokv.Snapshot, State]] = []
        self.options: dict[str, Any] = {}

    @initialize(
        write_buffer_bytes=st.sampled_from([4096, 20000, 1 << 20]),
        wal_segment_bytes=st.sampled_from([1024, 8192, 1 << 20]),
        compression=st.sampled_from(["none", "zstd"]),
        l0_files_trigger=st.sampled_from([2, 4]),
        level_base_bytes=st.sampled_from([4096, 1 << 20]),
        block_bytes=st.sampled_from([256, 4096]),
        value_file_threshold=st.sampled_from([0, 1, 60, 64 << 10]),
        value_file_bytes=st.sampled_from([1024, 1 << 20]),
        inline=st.booleans(),
    )
    def start(self, inline: bool, **options: Any) -> None:
        self.options = {**options, "table_bytes": 8192}
        self.inline = inline
        self.open()

    def open(self) -> None:
        self.executor = StepExecutor(inline=self.inline)
        self.db = nokv.open(
            "db",
            files=self.files,
            executor=self.executor,
            durability="process",
            families=FAMILIES[1:],
            **self.options,
        )

    def target(self, family: str) -> Any:
        return self.db.family(family) if family else self.db

    @rule(family=FAMILY, key=KEYS, value=VALUES, sync=st.booleans())
    def put(self, family: str, key: bytes, value: bytes, sync: bool) -> None:
        self.target(family).put(key, value, sync=sync)
        self.expected[family][key] = value

    @rule(family=FAMILY, key=KEYS)
    def delete(self, family: str, key: bytes) -> None:
        self.target(family).delete(key)
        self.expected[family].pop(key, None)

    @rule(changes=CHANGES, log=st.booleans())
    def batch(self, changes: list[tuple[str, bytes, bytes | None]], log: bool) -> None:
        batch = nokv.WriteBatch()
        for family, key, value in changes:
            where = self.db.family(family) if family else None
            if value is None:
                batch.delete(key, where)
                self.expected[family].pop(key, None)
            else:
                batch.put(key, value, where)
                self.expected[family][key] = value
        assert len(batch) == len(changes)
        self.db.write(batch, log=log)
        if not log:
            self.db.flush()  # or a crash may lose it

    @rule(changes=CHANGES)
    def abandoned_batch(self, changes: list[tuple[str, bytes, bytes | None]]) -> None:
        try:
            with self.db.write_batch() as batch:
                for family, key, value in changes:
                    batch.put(key, value or b"", family or None)
                raise RuntimeError("never mind")
        except RuntimeError:
            pass

    @rule(family=FAMILY, pairs=st.lists(st.tuples(KEYS, VALUES), max_size=20))
    def put_many(self, family: str, pairs: list[tuple[bytes, bytes]]) -> None:
        self.target(family).put_many(pairs)
        self.expected[family].update(pairs)

    @rule()
    def snapshot(self) -> None:
        if len(self.snapshots) < 4:
            self.snapshots.append((self.db.snapshot(), {name: dict(state) for name, state in self.expected.items()}))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), family=FAMILY)
    def read_snapshot(self, data: st.DataObject, family: str) -> None:
        snapshot, state = data.draw(st.sampled_from(self.snapshots))
        view: Any = snapshot.family(family) if family else snapshot
        assert list(view.scan()) == sorted(state[family].items())
        assert list(view.scan(reverse=True)) == sorted(state[family].items(), reverse=True)
        keys = [b"a", b"b", *state[family]]
        assert view.get_many(keys) == [state[family].get(key) for key in keys]

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def drop_snapshot(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.snapshots))
        item[0].close()
        self.snapshots.remove(item)

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
        if start is not None and end is not None and start > end:
            start, end = end, start
        options: dict[str, Any] = {"prefix": prefix, "reverse": reverse, "limit": limit}
        expected = select(self.expected[family], start, end, **options)
        target = self.target(family)
        assert list(target.scan(start, end, **options)) == expected
        assert list(target.scan(start, end, values=False, **options)) == [key for key, _ in expected]
        assert list(target.scan(start, end, keys=False, **options)) == [value for _, value in expected]

    @rule()
    def scan_stays_consistent_while_written(self) -> None:
        before = sorted(self.expected[""].items())
        scan = self.db.scan()
        self.db.put(b"between", b"new")
        self.expected[""][b"between"] = b"new"
        self.db.flush()
        assert list(scan) == before

    @rule()
    def flush(self) -> None:
        self.db.flush()

    @rule()
    def compact(self) -> None:
        self.db.compact()

    @rule()
    def background(self) -> None:
        self.executor.run_all()

    @rule()
    def reopen(self) -> None:
        self.snapshots.clear()
        self.db.close()
        self.open()

    @rule(mode=st.sampled_from(["process", "drop", "random", "torn"]), seed=st.integers(0, 1000))
    def crash(self, mode: Any, seed: int) -> None:
        if mode != "process":
            self.db.sync()
        self.snapshots.clear()
        self.files = self.files.crash_clone(mode, seed=seed)
        self.open()

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
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestEngineModel = EngineModel.TestCase
