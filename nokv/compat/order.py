"""Keys in the order of a Python function, over an engine that orders bytes. The layout: docs/formats/order.md.

Owns one family of the directory: every key has a label, a number of fixed width, and labels are in the order of the
keys. Looking a key up is a bisection over the labels with the engine's seeks; a new key takes a label between those of
its neighbours. Where no label is left, the labels of the smallest neighbourhood that is not too full are spread evenly
in it, in the same atomic batch. Values are stored under a number that never changes, so they do not move.

    label space   0 .. 2^128    at the ends: STRIDE apart; between two keys: the middle, or, while keys come sorted,
                                close to the key that was put last, so that many more fit in

The order-maintenance problem and the list labelling that solves it: Dietz and Sleator, "Two algorithms for maintaining
order in a list", STOC 1987; Bender, Cole, Demaine, Farach-Colton and Zito, "Two simplified algorithms for maintaining
order in a list", ESA 2002 (the windows of `_Draft._spread` are theirs).

Threads: any. Writers take turns (they must find a place and fill it as one step), and share a sync; readers look at a
snapshot and wait for nobody. The function is called on the caller's thread only, never in the background. What it
raises comes out wrapped in `ComparatorFailed`, and nothing was written.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from nokv._ext.batch import WriteBatch
from nokv._ext.db import Snapshot
from nokv.engine.db import DB
from nokv.errors import Corruption, NotSupported, UsageError

__all__ = ["ComparatorFailed", "Order", "OrderPosition", "OrderSnapshot", "decode_entry", "decode_name"]

FAMILY = "plyvel.order"
NAMELESS = "family-"  # and the id: what repair calls a family
MAGIC = b"nokv.order"
VERSION = 1
LABELS, VALUES = b"\0", b"\1"  # the first byte of an engine key; the empty key holds the comparator's name
LABEL_BYTES = 16
NUMBER_BYTES = 8
SPACE = 1 << 8 * LABEL_BYTES
STRIDE = 1 << 64
RUN_BITS = 16  # in a sorted run, a key takes a label this little of the room away: 2^-16
FULL_BITS = 4  # a window of 2^(4i) labels holds less than 2^i keys

Compare = Callable[[bytes, bytes], Any]
Operation = tuple[bytes, bytes | None]  # None: delete


class ComparatorFailed(Exception):
    """The comparator raised `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Entry(NamedTuple):
    label: int
    number: int  # of its value
    key: bytes


def _label_key(label: int) -> bytes:
    return LABELS + label.to_bytes(LABEL_BYTES)


def _value_key(number: int) -> bytes:
    return VALUES + number.to_bytes(NUMBER_BYTES)


def decode_entry(key: bytes, value: bytes, path: str = "") -> Entry:
    """Corruption if these are no entry of the label space."""
    if len(key) != 1 + LABEL_BYTES:
        raise Corruption("a label of the wrong size", path=path, expected=1 + LABEL_BYTES, found=len(key))
    if len(value) < NUMBER_BYTES:
        raise Corruption("an entry without its value's number", path=path, expected=NUMBER_BYTES, found=len(value))
    return Entry(int.from_bytes(key[1:]), int.from_bytes(value[:NUMBER_BYTES]), value[NUMBER_BYTES:])


def decode_name(record: bytes, path: str = "") -> bytes:
    """The comparator's name. NotSupported for a newer version, Corruption for anything else."""
    if not record.startswith(MAGIC) or len(record) == len(MAGIC):
        raise Corruption("not a comparator's name", path=path, expected=MAGIC, found=record[: len(MAGIC)])
    if record[len(MAGIC)] != VERSION:
        raise NotSupported(
            f"{path}: keys are ordered in version {record[len(MAGIC)]} of the format, this program knows {VERSION}",
            hint="use a newer version of NoKV",
        )
    return record[len(MAGIC) + 1 :]


def find_order(db: DB) -> tuple[str, bytes] | None:
    """The family that holds ordered keys, and their comparator's name; None if the directory has none. A family is also
    known by its record: repair without a manifest loses the names of families."""
    names = db.families()
    for name in [FAMILY] if FAMILY in names else [name for name in names if name.startswith(NAMELESS)]:
        record = db.family(name).get(b"")
        if record is not None and (name == FAMILY or record.startswith(MAGIC)):
            return name, decode_name(record, db.path)
    return None


def create_order(db: DB, name: bytes) -> str:
    """Make the family. Durable when it returns; a crash before leaves a directory that may be ordered in any way."""
    db.family(FAMILY, create=True).put(b"", MAGIC + bytes((VERSION,)) + name, sync=True)
    return FAMILY


# -- finding ----------------------------------------------------------------------------------------------------------
class _View:
    """The entries of one consistent view, by label."""

    def __init__(self, iterator: Any, path: str) -> None:
        self.iterator = iterator
        self._path = path

    def here(self) -> Entry:
        return decode_entry(self.iterator.key, self.iterator.value, self._path)

    def after(self, label: int) -> Entry | None:
        """The first entry at `label` or above."""
        return self.here() if label < SPACE and self.iterator.seek(_label_key(label)) else None

    def before(self, label: int) -> Entry | None:
        """The last entry below `label`."""
        return self.here() if label > 0 and self.iterator.seek_for_prev(_label_key(label - 1)) else None


def _find(view: _View | _Draft, compare: Compare, key: bytes) -> tuple[Entry | None, int, int]:
    """(its entry or None, the label of the last smaller key or -1, the label of the first greater key or SPACE). If it
    is there, the labels are not to be used."""
    last = view.before(SPACE)
    if last is None:
        return None, -1, SPACE
    side = compare(key, last.key)
    if side == 0:
        return last, -1, SPACE
    if side > 0:
        return None, last.label, SPACE
    # entries below `low` are smaller, from `high` on greater, none lies in [high, greater)
    low, high, greater = 0, last.label, last.label
    while low < high:
        middle = (low + high) // 2
        entry = view.after(middle)
        bound = middle
        if entry is None or entry.label >= high:
            entry = view.before(middle)
            if entry is None or entry.label < low:
                break
            bound = entry.label
        side = compare(key, entry.key)
        if side == 0:
            return entry, -1, SPACE
        if side > 0:
            low = entry.label + 1
        else:
            high, greater = bound, entry.label
    return None, low - 1, greater


def _pick(smaller: int, greater: int, run: int) -> int | None:
    """A label between the two (-1, SPACE: no neighbour there); None if there is none. `run`: 1 if keys come in
    ascending order, -1 in descending order, 0 otherwise."""
    if smaller < 0 and greater == SPACE:
        return SPACE // 2
    if greater == SPACE and smaller + STRIDE < SPACE:
        return smaller + STRIDE
    if smaller < 0 and greater >= STRIDE:
        return greater - STRIDE
    room = greater - smaller
    if room < 2:
        return None
    if run > 0:
        return smaller + max(room >> RUN_BITS, 1)
    if run < 0:
        return greater - max(room >> RUN_BITS, 1)
    return smaller + room // 2


class _Windows:
    """Disjoint ranges of labels, each 2^i labels from a multiple of 2^i on."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Two windows are apart, or one lies in the other."""
        around = self.around(start)
        if around is not None and around[1] >= end:
            return
        low, high = bisect_left(self._starts, start), bisect_left(self._starts, end)
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def around(self, label: int) -> tuple[int, int] | None:
        at = bisect_right(self._starts, label) - 1
        return (self._starts[at], self._ends[at]) if at >= 0 and label < self._ends[at] else None


class _Draft:
    """What a batch will do, over the view that it began with. Entries are those after its operations so far."""

    def __init__(self, view: _View, compare: Compare, next_number: int, latest: tuple[int, int]) -> None:
        self._view = view
        self._compare = compare
        self._first_number = next_number
        self.next_number = next_number
        self.latest = latest  # the label of the newest key, and on which side of the one before it that lies
        self._gone: set[int] = set()  # labels of the view that no longer count
        self._fresh: dict[int, Entry] = {}
        self._labels: list[int] = []  # of `_fresh`, sorted
        self._windows = _Windows()  # where nothing of the view counts any more
        self._values: dict[int, bytes | None] = {}

    def after(self, label: int) -> Entry | None:
        at = bisect_left(self._labels, label)
        fresh = self._fresh[self._labels[at]] if at < len(self._labels) else None
        stored = self._view.after(label)
        while stored is not None and stored.label in self._gone:
            window = self._windows.around(stored.label)
            if window is not None:
                stored = self._view.after(window[1])
            else:
                stored = self._view.here() if self._view.iterator.next() else None
        return min((entry for entry in (fresh, stored) if entry is not None), default=None)

    def before(self, label: int) -> Entry | None:
        at = bisect_left(self._labels, label)
        fresh = self._fresh[self._labels[at - 1]] if at else None
        stored = self._view.before(label)
        while stored is not None and stored.label in self._gone:
            window = self._windows.around(stored.label)
            if window is not None:
                stored = self._view.before(window[0])
            else:
                stored = self._view.here() if self._view.iterator.prev() else None
        return max((entry for entry in (fresh, stored) if entry is not None), default=None)

    def put(self, key: bytes, value: bytes) -> None:
        entry, smaller, greater = _find(self, self._compare, key)
        if entry is not None:
            self._values[entry.number] = value
            if entry.key != key:
                self._remove(entry.label)
                self._place(Entry(entry.label, entry.number, key))
            return
        latest, way = self.latest
        side = 1 if smaller == latest else -1 if greater == latest else 0
        run = side if side == way else 0
        label = _pick(smaller, greater, run)
        if label is None:
            moved = self._spread(smaller if smaller >= 0 else greater)
            label = _pick(moved.get(smaller, smaller), moved.get(greater, greater), run)
            assert label is not None  # a window leaves room beside each of its entries
        self._place(Entry(label, self.next_number, key))
        self._values[self.next_number] = value
        self.next_number += 1
        self.latest = label, side

    def delete(self, key: bytes) -> None:
        entry, _, _ = _find(self, self._compare, key)
        if entry is None:
            return
        self._remove(entry.label)
        if entry.number >= self._first_number:
            del self._values[entry.number]
        else:
            self._values[entry.number] = None

    def _place(self, entry: Entry) -> None:
        self._fresh[entry.label] = entry
        insort(self._labels, entry.label)

    def _remove(self, label: int) -> None:
        if self._fresh.pop(label, None) is not None:
            del self._labels[bisect_left(self._labels, label)]
        else:
            self._gone.add(label)

    def _spread(self, at: int) -> dict[int, int]:
        """Give the entries around `at` new labels, evenly in the smallest window that is not full: {old: new}."""
        entries: list[Entry] = []
        start = end = at
        for bits in range(1, 8 * LABEL_BYTES + 1):
            width = 1 << bits
            base = at & -width
            found: list[Entry] = []
            entry = self.before(start)
            while entry is not None and entry.label >= base:
                found.append(entry)
                entry = self.before(entry.label)
            entries[:0] = reversed(found)
            entry = self.after(end)
            while entry is not None and entry.label < base + width:
                entries.append(entry)
                entry = self.after(entry.label + 1)
            start, end = base, base + width
            if len(entries) < 1 << bits // FULL_BITS:
                break
        else:
            raise UsageError(f"more than 2^{8 * LABEL_BYTES // FULL_BITS} keys cannot be ordered")
        for entry in entries:
            self._remove(entry.label)
        self._windows.add(start, end)
        step = width // (len(entries) + 1)
        moved = {}
        for turn, entry in enumerate(entries, 1):
            moved[entry.label] = base + turn * step
            self._place(entry._replace(label=base + turn * step))
        return moved

    def batch(self, family: int) -> WriteBatch:
        batch = WriteBatch()
        for label in self._gone - self._fresh.keys():
            batch.delete(_label_key(label), family)
        for entry in self._fresh.values():
            batch.put(_label_key(entry.label), entry.number.to_bytes(NUMBER_BYTES) + entry.key, family)
        for number, value in self._values.items():
            if value is None:
                batch.delete(_value_key(number), family)
            else:
                batch.put(_value_key(number), value, family)
        return batch


# -- the database, a snapshot, a position -----------------------------------------------------------------------------
class Order:
    """The ordered keys of an open database."""

    def __init__(self, db: DB, family: str, compare: Compare) -> None:
        self._db = db
        self._family = db.family(family)
        self._function = compare
        self._lock = threading.Lock()
        self._writer = 0  # the thread that holds it
        self._latest = -1, 0
        with self._family.iterator(VALUES) as it:
            self._next_number = int.from_bytes(it.key[1:]) + 1 if it.seek_last() else 0

    @property
    def closed(self) -> bool:
        return self._db.closed

    @property
    def path(self) -> str:
        return self._db.path

    def compare(self, a: bytes, b: bytes) -> int:
        try:
            answer = self._function(a, b)
            return 1 if answer > 0 else -1 if answer < 0 else 0
        except BaseException as error:
            raise ComparatorFailed(error) from error

    def get(self, key: bytes, default: Any = None) -> Any:
        with self.snapshot() as snapshot:
            return snapshot.get(key, default)

    def put(self, key: bytes, value: bytes, *, sync: bool) -> None:
        self.write(((key, value),), sync=sync)

    def delete(self, key: bytes, *, sync: bool) -> None:
        self.write(((key, None),), sync=sync)

    def write(self, operations: Iterable[Operation], *, sync: bool) -> None:
        """All of them, atomically, as if one after the other."""
        me = threading.get_ident()
        if self._writer == me:
            raise UsageError("a comparator wrote to the database that called it", hint="a comparator only compares")
        with self._lock:
            self._writer = me
            try:
                with self._family.iterator(LABELS, VALUES) as it:
                    draft = _Draft(_View(it, self.path), self.compare, self._next_number, self._latest)
                    for key, value in operations:
                        if value is None:
                            draft.delete(key)
                        else:
                            draft.put(key, value)
                self._db.write(draft.batch(self._family.id), sync=False)
                self._next_number, self._latest = draft.next_number, draft.latest
            finally:
                self._writer = 0
        if sync:
            self._db.sync()  # outside the lock: writers share it

    def snapshot(self) -> OrderSnapshot:
        return OrderSnapshot(self, self._db.snapshot(), self._family.name)

    def iterator(self, low: bytes | None, high: bytes | None, include_low: bool, include_high: bool) -> OrderPosition:
        return self.snapshot().iterator(low, high, include_low, include_high)

    def bounds(self, start: bytes | None, stop: bytes | None) -> tuple[bytes, bytes]:
        """The engine keys between which the labels of start <= key < stop lie."""
        with self._family.iterator(LABELS, VALUES) as it:
            view = _View(it, self.path)
            low = self.first_label(view, start, True) if start is not None else 0
            high = self.first_label(view, stop, True) if stop is not None else SPACE
        return _label_key(low) if low < SPACE else VALUES, _label_key(high) if high < SPACE else VALUES

    def compact(self, start: bytes | None, stop: bytes | None) -> None:
        low, high = self.bounds(start, stop)
        if start is None and stop is None:
            self._family.compact()
        elif low < high:
            self._family.compact(low, high)

    @property
    def family_id(self) -> int:
        return self._family.id

    def first_label(self, view: _View, key: bytes, include: bool) -> int:
        """The label of the first entry that is not before `key`, or, without `include`, that is after it."""
        entry, _, greater = _find(view, self.compare, key)
        return greater if entry is None else entry.label if include else entry.label + 1


class OrderSnapshot:
    def __init__(self, order: Order, snapshot: Snapshot, family: str) -> None:
        self.order = order
        self.snapshot = snapshot
        self._entries = snapshot.family(family)

    @property
    def closed(self) -> bool:
        return self.snapshot.closed

    def close(self) -> None:
        self.snapshot.close()

    def __enter__(self) -> OrderSnapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def get(self, key: bytes, default: Any = None) -> Any:
        with self._entries.iterator(LABELS, VALUES) as it:
            entry, _, _ = _find(_View(it, self.order.path), self.order.compare, key)
        return default if entry is None else self.value(entry)

    def value(self, entry: Entry) -> bytes:
        value = self._entries.get(_value_key(entry.number))
        if value is None:
            raise Corruption(
                f"value {entry.number} is missing: its key is there", path=self.order.path, found=entry.key
            )
        return value

    def iterator(self, low: bytes | None, high: bytes | None, include_low: bool, include_high: bool) -> OrderPosition:
        return OrderPosition(self, self._entries.iterator(LABELS, VALUES), low, high, include_low, include_high)


class OrderPosition:
    """On an entry within the bounds, or on none; what `nokv.Iterator` is for bytes. Keeps its snapshot alive.

    The engine's iterator stands on `_entry`, whenever that is one."""

    def __init__(
        self,
        source: OrderSnapshot,
        iterator: Any,
        low: bytes | None,
        high: bytes | None,
        include_low: bool,
        include_high: bool,
    ) -> None:
        self._source = source
        self._iterator = iterator
        self._view = _View(iterator, source.order.path)
        self._entry: Entry | None = None
        order = source.order
        self._low = 0 if low is None else order.first_label(self._view, low, include_low)
        self._high = SPACE if high is None else order.first_label(self._view, high, not include_high)

    def _stand(self, entry: Entry | None) -> bool:
        self._entry = entry if entry is not None and self._low <= entry.label < self._high else None
        return self._entry is not None

    def seek_first(self) -> bool:
        return self._stand(self._view.after(self._low))

    def seek_last(self) -> bool:
        return self._stand(self._view.before(self._high))

    def seek(self, key: bytes) -> bool:
        self._entry = None  # also if the comparator raises
        label = self._source.order.first_label(self._view, key, True)
        return self._stand(self._view.after(max(label, self._low)))

    def next(self) -> bool:
        self._on()
        return self._stand(self._view.here() if self._iterator.next() else None)

    def prev(self) -> bool:
        self._on()
        return self._stand(self._view.here() if self._iterator.prev() else None)

    def _on(self) -> Entry:
        if self._entry is None:
            raise UsageError("the iterator stands on no entry")
        return self._entry

    @property
    def valid(self) -> bool:
        return self._entry is not None

    @property
    def key(self) -> bytes:
        return self._on().key

    @property
    def value(self) -> bytes:
        return self._source.value(self._on())

    @property
    def closed(self) -> bool:
        closed: bool = self._iterator.closed
        return closed

    def close(self) -> None:
        self._entry = None
        self._iterator.close()
