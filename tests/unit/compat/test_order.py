"""Keys in the order of a Python function: against a sorted list, under adversaries, and what is on disk.

`test_order_beside_plyvel.py` compares with plyvel itself.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import nokv
import nokv.compat.plyvel as plyvel
from nokv.compat import order
from nokv.errors import Corruption, NotSupported
from tests.counts import count

Compare = Callable[[bytes, bytes], int]


def by(form: Callable[[bytes], Any]) -> Compare:
    def compare(a: bytes, b: bytes) -> int:
        x, y = form(a), form(b)
        return int(x > y) - int(x < y)

    return compare


def numeric(key: bytes) -> tuple[int, bytes]:
    digits = key.lstrip(b"0") if key.isdigit() else b""
    return (int(digits or b"0"), b"") if key.isdigit() else (-1, key)


ORDERS: dict[str, Compare] = {
    "reverse": lambda a, b: (a < b) - (a > b),
    "any case": by(bytes.lower),
    "numeric": by(numeric),
    "short first": by(lambda key: (len(key), key)),
}


def open_db(path: Path, name: str = "numeric") -> Any:
    return plyvel.DB(str(path), create_if_missing=True, comparator=ORDERS[name], comparator_name=name.encode())


def check(db: Any, compare: Compare) -> list[tuple[bytes, bytes]]:
    """The layout's invariants (docs/formats/order.md); the pairs."""
    family = db._db.family(order.FAMILY)
    entries = [order.decode_entry(key, value) for key, value in family.scan(order.LABELS, order.VALUES)]
    values = {int.from_bytes(key[1:]): value for key, value in family.scan(order.VALUES)}
    assert all(compare(a.key, b.key) < 0 for a, b in itertools.pairwise(entries))
    assert sorted(entry.number for entry in entries) == sorted(values)
    assert list(db._db.scan()) == []
    return [(entry.key, values[entry.number]) for entry in entries]


# -- against a sorted list --------------------------------------------------------------------------------------------
class Model:
    """A sorted list of pairs; equal keys by the function are one key."""

    def __init__(self, compare: Compare) -> None:
        self.form = functools.cmp_to_key(compare)
        self.pairs: list[tuple[bytes, bytes]] = []

    def at(self, key: bytes) -> int:
        return bisect_left(self.pairs, self.form(key), key=lambda pair: self.form(pair[0]))

    def find(self, key: bytes) -> int | None:
        at = self.at(key)
        return at if at < len(self.pairs) and self.form(self.pairs[at][0]) == self.form(key) else None

    def put(self, key: bytes, value: bytes) -> None:
        found = self.find(key)
        self.pairs[self.at(key) : self.at(key) + (found is not None)] = [(key, value)]

    def delete(self, key: bytes) -> None:
        found = self.find(key)
        if found is not None:
            del self.pairs[found]

    def range(self, start: bytes | None, stop: bytes | None, include_start: bool, include_stop: bool) -> list[Any]:
        found = []
        for pair in self.pairs:
            form = self.form(pair[0])
            if start is not None and (form < self.form(start) or (form == self.form(start) and not include_start)):
                continue
            if stop is not None and (form > self.form(stop) or (form == self.form(stop) and not include_stop)):
                continue
            found.append(pair)
        return found


KEYS = st.binary(max_size=3) | st.sampled_from([b"a", b"A", b"b", b"B", b"7", b"07", b"10", b"9", b"aB", b"Ab"])
OPERATIONS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=12)


IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # hundreds of directories: no waiting for the disk


class OrderModel(RuleBasedStateMachine):
    @initialize(name=st.sampled_from(sorted(ORDERS)), data=st.data())
    def begin(self, name: str, data: Any) -> None:
        self.directory = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.name = name
        self.stride, order.STRIDE = order.STRIDE, 1 << 5  # labels run out soon
        self.model = Model(ORDERS[name])
        self.db = open_db(Path(self.directory.name), name)
        self.snapshots: list[tuple[Any, list[tuple[bytes, bytes]]]] = []

    @rule(operations=OPERATIONS)
    def writes(self, operations: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in operations:
            if value is None:
                self.db.delete(key)
                self.model.delete(key)
            else:
                self.db.put(key, value)
                self.model.put(key, value)

    @rule(operations=OPERATIONS, raises=st.booleans(), sync=st.booleans())
    def batch(self, operations: list[tuple[bytes, bytes | None]], raises: bool, sync: bool) -> None:
        try:
            with self.db.write_batch(transaction=True, sync=sync) as batch:
                for key, value in operations:
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value)
                if raises:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        for key, value in operations:
            if value is None:
                self.model.delete(key)
            else:
                self.model.put(key, value)

    @rule(keys=st.integers(1, 40), ascending=st.booleans())
    def crowd(self, keys: int, ascending: bool) -> None:
        """Many keys into one gap, closing in from both sides or from one."""
        for i in range(keys):
            key = b"8%03d" % (i if i % 2 == 0 or ascending else 999 - i)
            self.db.put(key, b"c")
            self.model.put(key, b"c")

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = self.model.find(key)
        assert self.db.get(key, 1) == (1 if found is None else self.model.pairs[found][1])

    @rule(start=st.none() | KEYS, stop=st.none() | KEYS, flags=st.tuples(*[st.booleans()] * 3))
    def ranges(self, start: bytes | None, stop: bytes | None, flags: tuple[bool, bool, bool]) -> None:
        with self.db.iterator(start=start, stop=stop, include_start=flags[0], include_stop=flags[1]) as it:
            assert list(it) == self.model.range(start, stop, flags[0], flags[1])
            if flags[2]:
                self.db.compact_range(start=start, stop=stop)
        with self.db.iterator(
            start=start, stop=stop, include_start=flags[0], include_stop=flags[1], reverse=True
        ) as it:
            assert list(it) == self.model.range(start, stop, flags[0], flags[1])[::-1]

    @rule(key=KEYS)
    def seek(self, key: bytes) -> None:
        with self.db.raw_iterator() as it:
            it.seek(key)
            at = self.model.at(key)
            assert it.valid() == (at < len(self.model.pairs))
            if it.valid():
                assert it.item() == self.model.pairs[at]
                it.prev()
                assert it.valid() == (at > 0) and (at == 0 or it.item() == self.model.pairs[at - 1])

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.db.snapshot(), list(self.model.pairs)))

    @rule()
    def reopen(self) -> None:
        self.snapshots.clear()
        self.db.close()
        self.db = open_db(Path(self.directory.name), self.name)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "db"):
            return
        assert check(self.db, ORDERS[self.name]) == self.model.pairs == list(self.db)
        for snapshot, pairs in self.snapshots:
            assert list(snapshot) == pairs
            assert all(snapshot.get(key) == value for key, value in pairs)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.directory.cleanup()
            order.STRIDE = self.stride


TestOrderModel = pytest.mark.counted(OrderModel.TestCase)
TestOrderModel.settings = settings(
    max_examples=count(40, 300, 5000), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- adversaries ------------------------------------------------------------------------------------------------------
def converging(total: int) -> list[int]:
    return [i // 2 if i % 2 == 0 else total - 1 - i // 2 for i in range(total)]


PATTERNS: dict[str, Callable[[int], list[int]]] = {
    "ascending": lambda total: list(range(total)),
    "descending": lambda total: list(range(total))[::-1],
    "always in the middle": converging,
    "ascending in a gap": lambda total: [0, total - 1, *range(1, total - 1)],
    "descending in a gap": lambda total: [0, total - 1, *range(total - 2, 0, -1)],
    "always behind the first": lambda total: [0, *range(total - 1, 0, -1)],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("batched", [1, 70])
def test_adversarial_orders(tmp_path: Path, pattern: str, batched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []
    spread = order._Draft._spread

    def counted(self: Any, at: int) -> dict[int, int]:
        moved = spread(self, at)
        moves.append(len(moved))
        return moved

    monkeypatch.setattr(order._Draft, "_spread", counted)
    total = 700
    numbers = PATTERNS[pattern](total)
    assert sorted(numbers) == list(range(total))
    with open_db(tmp_path) as db:
        for at in range(0, total, batched):
            with db.write_batch() as batch:
                for number in numbers[at : at + batched]:
                    batch.put(b"%d" % number, b"v%d" % number)
        expected = [(b"%d" % number, b"v%d" % number) for number in range(total)]
        assert check(db, ORDERS["numeric"]) == expected == list(db)
    with open_db(tmp_path) as db:
        assert list(db.iterator(reverse=True)) == expected[::-1]
    assert bool(moves) == (pattern == "always in the middle")  # a run leaves room for itself
    assert sum(moves) < 10 * total


def test_a_spread_is_atomic_with_the_write_that_needed_it(tmp_path: Path) -> None:
    """A snapshot from before it, an iterator in the middle of it: both see what was there."""
    with open_db(tmp_path) as db:
        numbers = converging(400)
        for number in numbers[:60]:
            db.put(b"%d" % number, b"")
        before = sorted(numbers[:60])
        snapshot, it = db.snapshot(), db.iterator(include_value=False)
        assert [int(next(it)) for _ in range(30)] == before[:30]
        labels = [entry for entry, _ in db._db.family(order.FAMILY).scan(order.LABELS, order.VALUES)]
        for number in numbers[60:]:
            db.put(b"%d" % number, b"new")
        after = [entry for entry, _ in db._db.family(order.FAMILY).scan(order.LABELS, order.VALUES)]
        assert not set(labels) <= set(after)  # some moved
        assert [int(key) for key in it] == before[30:]
        assert [int(key) for key, _ in snapshot] == before
        assert snapshot.get(b"%d" % before[31]) == b"" and snapshot.get(b"200") is None


def test_window_that_holds_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A label space of two bytes: full windows up to the whole space, then an error, and nothing is lost."""
    for name, value in (("LABEL_BYTES", 2), ("SPACE", 1 << 16), ("STRIDE", 1 << 4), ("FULL_BITS", 2)):
        monkeypatch.setattr(order, name, value)
    with open_db(tmp_path) as db:
        numbers, total = converging(1000), 0
        with pytest.raises(plyvel.Error, match="more than"):
            for number in numbers:
                db.put(b"%d" % number, b"")
                total += 1
        expected = sorted(numbers[:total])
        assert total > 200 and [int(key) for key, _ in check(db, ORDERS["numeric"])] == expected
        db.delete(b"%d" % numbers[total - 1])
        assert [int(key) for key, _ in db] == sorted(numbers[: total - 1])


# -- the function -----------------------------------------------------------------------------------------------------
def test_what_a_comparator_raises(tmp_path: Path) -> None:
    failing: BaseException | None = None
    answer: Any = None

    def compare(a: bytes, b: bytes) -> Any:
        if failing is not None:
            raise failing
        return answer if answer is not None else (a > b) - (a < b)

    with plyvel.DB(str(tmp_path), create_if_missing=True, comparator=compare, comparator_name=b"x") as db:
        for key in (b"a", b"b", b"c"):
            db.put(key, key)
        it, raw = db.iterator(), db.raw_iterator()
        calls: list[Callable[[], Any]] = [
            lambda: db.get(b"b"),
            lambda: db.put(b"b", b""),
            lambda: db.put(b"d", b""),
            lambda: db.delete(b"a"),
            lambda: it.seek(b"b"),
            lambda: raw.seek(b"b"),
            lambda: db.iterator(start=b"a"),
            lambda: db.iterator(prefix=b"a"),
            lambda: db.snapshot().get(b"a"),
            lambda: db.compact_range(start=b"a", stop=b"b"),
            lambda: db.approximate_size(b"a", b"b"),
        ]
        for failing in (ZeroDivisionError("mine"), OSError("mine"), nokv.Closed("mine"), KeyboardInterrupt("mine")):
            for call in calls:
                with pytest.raises(type(failing)) as caught:
                    call()
                assert caught.value is failing
            assert not raw.valid()  # it stands nowhere, rather than somewhere
            with pytest.raises(type(failing)), db.write_batch() as batch:
                batch.put(b"e", b"")
                batch.delete(b"a")
        failing = None
        answer = "x"  # no number
        with pytest.raises(TypeError):
            db.put(b"f", b"")
        answer = None
        assert list(db) == [(b"a", b"a"), (b"b", b"b"), (b"c", b"c")] == check(db, compare)


def test_a_comparator_that_uses_the_database(tmp_path: Path) -> None:
    reads: list[object] = []

    def compare(a: bytes, b: bytes) -> int:
        if b"write" in (a, b):
            db.put(b"inside", b"")
        if b"read" in (a, b):
            reads.append(len(list(db)))
        return (a > b) - (a < b)

    db = plyvel.DB(str(tmp_path), create_if_missing=True, comparator=compare, comparator_name=b"x")
    db.put(b"a", b"")
    db.put(b"read", b"")
    assert set(reads) == {1}  # it looks at the database before the write
    with pytest.raises(plyvel.Error, match="comparator wrote"):
        db.put(b"write", b"")
    assert [key for key, _ in db.iterator()] == [b"a", b"read"]
    db.close()


def test_keys_that_are_equal_by_the_comparator(tmp_path: Path) -> None:
    with open_db(tmp_path, "any case") as db:
        db.put(b"Key", b"1")
        snapshot = db.snapshot()
        db.put(b"kEY", b"2")
        assert list(db) == [(b"kEY", b"2")] and list(snapshot) == [(b"Key", b"1")] and snapshot.get(b"key") == b"1"
        with db.write_batch() as batch:
            batch.put(b"other", b"")
            batch.delete(b"OTHER")
            batch.put(b"KEY", b"3")
        assert list(db) == [(b"KEY", b"3")]
        db.delete(b"key")
        assert list(db) == [] == check(db, ORDERS["any case"])


def test_long_keys_and_values(tmp_path: Path) -> None:
    """A key is a value to the engine: it may be longer than the engine's keys."""
    key, value = b"k" * 200_000, b"v" * 3_000_000
    with open_db(tmp_path, "reverse") as db:
        db.put(key, value)
        db.put(b"a", b"")
        db.compact_range()
    with open_db(tmp_path, "reverse") as db:
        assert list(db) == [(key, value), (b"a", b"")] and db.get(key) == value


def test_a_seek_stays_within_the_bounds(tmp_path: Path) -> None:
    with open_db(tmp_path) as db:
        for number in range(1, 13):
            db.put(b"%d" % number, b"")
        it = db.iterator(start=b"5", stop=b"10", include_value=False)
        it.seek(b"2")
        assert list(it) == [b"5", b"6", b"7", b"8", b"9"]
        it.seek(b"11")
        assert next(it, None) is None and it.prev() == b"9"
        it = db.iterator(start=b"5", stop=b"10", include_start=False, include_stop=True, include_value=False)
        it.seek(b"1")
        assert next(it) == b"6"
        it.seek(b"12")
        assert next(it) == b"10"


def test_approximate_sizes(tmp_path: Path) -> None:
    with open_db(tmp_path, "reverse") as db:
        for number in range(100):
            db.put(b"%02d" % number, random.Random(number).randbytes(3000))
        assert db.approximate_sizes((b"99", b"00")) == [0]  # in memory
        db.compact_range()
        everything, nothing, above = db.approximate_sizes((b"99", b""), (b"00", b"99"), (b"\xff", b"99"))
        assert 200_000 < everything < 400_000 and nothing == 0 == above
        assert db.approximate_size(b"10", b"05") > 0


def test_threads(tmp_path: Path) -> None:
    """Writers of keys that lie among each other, and readers: no write is lost, each reader sees a sorted whole."""
    done = threading.Event()
    failures: list[BaseException] = []

    def write(mine: int) -> None:
        try:
            for number in range(300):
                db.put(b"%d" % (number * 4 + mine), b"%d" % mine, sync=number % 100 == 0)
                if number % 3 == 0:
                    db.delete(b"%d" % (number * 4 + mine))
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                numbers = [int(key) for key in db.iterator(include_value=False)]
                assert numbers == sorted(numbers)
        except BaseException as error:
            failures.append(error)

    with open_db(tmp_path) as db:
        writers = [threading.Thread(target=write, args=(mine,)) for mine in range(4)]
        readers = [threading.Thread(target=read) for _ in range(2)]
        for thread in writers + readers:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert failures == []
        expected = [(b"%d" % n, b"%d" % (n % 4)) for n in range(1200) if n // 4 % 3]
        assert list(db) == expected == check(db, ORDERS["numeric"])


# -- the directory ----------------------------------------------------------------------------------------------------
def test_the_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "numeric"
    with open_db(path) as db:
        db.put(b"10", b"")
        db.put(b"9", b"")
    with pytest.raises(plyvel.Error, match=r"numeric does not match existing comparator : leveldb\.Bytewise"):
        plyvel.DB(str(path))
    with pytest.raises(plyvel.Error, match="numeric does not match existing comparator : reverse") as caught:
        open_db(path, "reverse")
    assert isinstance(caught.value.__cause__, nokv.UsageError) and "open it with" in caught.value.__cause__.hint
    with open_db(path) as db:
        assert [key for key, _ in db] == [b"9", b"10"]
    with nokv.open(path) as plain:  # nothing is taken for bytewise keys, and it says where they are
        assert list(plain) == [] and order.FAMILY in plain.families()


def test_a_directory_of_bytewise_keys_takes_no_comparator(tmp_path: Path) -> None:
    with plyvel.DB(str(tmp_path / "d"), create_if_missing=True) as db:
        db.put(b"a", b"1")
    with pytest.raises(plyvel.Error, match=r"leveldb\.BytewiseComparator does not match existing comparator : reverse"):
        open_db(tmp_path / "d", "reverse")
    with plyvel.DB(str(tmp_path / "d")) as db:
        assert list(db) == [(b"a", b"1")]


def test_bytewise_keys_that_look_like_a_record(tmp_path: Path) -> None:
    with plyvel.DB(str(tmp_path), create_if_missing=True) as db:
        db.put(b"", order.MAGIC + b"\x01numeric")
    with plyvel.DB(str(tmp_path)) as db:
        assert list(db) == [(b"", order.MAGIC + b"\x01numeric")]
    with pytest.raises(plyvel.Error, match="does not match"):
        open_db(tmp_path)


def test_a_crash_before_the_name_is_written(tmp_path: Path) -> None:
    with nokv.open(tmp_path) as plain:
        plain.family(order.FAMILY, create=True)
    with pytest.raises(plyvel.CorruptionError), nokv.open(tmp_path) as plain:
        plain.family(order.FAMILY).put(b"", b"")
        plain.close()
        open_db(tmp_path)
    with nokv.open(tmp_path) as plain:
        plain.family(order.FAMILY).delete(b"")
    with open_db(tmp_path, "reverse") as db:
        db.put(b"a", b"")
    with open_db(tmp_path, "reverse") as db:
        assert list(db) == [(b"a", b"")]


def test_repair_without_a_manifest(tmp_path: Path) -> None:
    """The family loses its name, not its order."""
    with open_db(tmp_path) as db:
        for number in (10, 9, 100):
            db.put(b"%d" % number, b"")
        db.compact_range()
    for manifest in tmp_path.glob("MANIFEST*"):
        manifest.unlink()
    with pytest.raises(plyvel.CorruptionError):
        open_db(tmp_path)
    plyvel.repair_db(str(tmp_path), comparator=ORDERS["numeric"], comparator_name=b"numeric")
    with pytest.raises(plyvel.Error, match="does not match"):
        plyvel.DB(str(tmp_path))
    with open_db(tmp_path) as db:
        assert [key for key, _ in db] == [b"9", b"10", b"100"]


def test_damaged_records(tmp_path: Path) -> None:
    with open_db(tmp_path / "value") as db:
        db.put(b"1", b"")
        db._db.write(_deletes(db, order.VALUES + bytes(8)))
        with pytest.raises(plyvel.CorruptionError, match="value 0 is missing"):
            db.get(b"1")
        with pytest.raises(plyvel.CorruptionError):
            list(db)
    with open_db(tmp_path / "entry") as db:
        db.put(b"1", b"")
        db._db.family(order.FAMILY).put(order.LABELS + b"\xff", b"12345678")
        with pytest.raises(plyvel.CorruptionError, match="label"):
            db.get(b"2")
        with pytest.raises(plyvel.CorruptionError):
            db.put(b"2", b"")
    with nokv.open(tmp_path / "newer") as plain:
        plain.family(order.FAMILY, create=True).put(b"", order.MAGIC + b"\x02name")
    with pytest.raises(plyvel.Error, match="version 2") as caught:
        open_db(tmp_path / "newer")
    assert isinstance(caught.value.__cause__, NotSupported)


def _deletes(db: Any, key: bytes) -> nokv.WriteBatch:
    batch = nokv.WriteBatch()
    batch.delete(key, db._order.family_id)
    return batch


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_decoders_take_anything(key: bytes, value: bytes) -> None:
    try:
        entry = order.decode_entry(key, value)
        assert order._label_key(entry.label)[1:] == key[1:] and entry.key == value[8:]
    except Corruption:
        assert len(key) != 17 or len(value) < 8
    for record in (value, order.MAGIC + value):
        try:
            assert record == order.MAGIC + b"\x01" + order.decode_name(record)
        except (Corruption, NotSupported):
            assert record[: len(order.MAGIC) + 1] != order.MAGIC + b"\x01"
