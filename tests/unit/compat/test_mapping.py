"""The database as a `MutableMapping` beside a dict, and under `shelve`."""

from __future__ import annotations

import shelve
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import nokv
from tests.counts import count
from tests.unit.compat.test_order import IN_MEMORY

KEYS, VALUES = st.binary(max_size=2), st.binary(max_size=3)
PAIRS = st.dictionaries(KEYS, VALUES, max_size=5)


class Mapping(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        self.db: Any = nokv.open(self.directory.name)
        self.model: dict[bytes, bytes] = {}

    def same(self, call: Any) -> None:
        answers: list[object] = []
        for mapping in (self.model, self.db):
            try:
                answers.append(call(mapping))
            except KeyError:
                answers.append(KeyError)
        assert answers[0] == answers[1]

    @rule(key=KEYS, value=VALUES)
    def set(self, key: bytes, value: bytes) -> None:
        self.same(lambda mapping: mapping.__setitem__(key, value))
        self.same(lambda mapping: mapping.setdefault(key + b"?", value))

    @rule(key=KEYS, value=VALUES)
    def read(self, key: bytes, value: bytes) -> None:
        self.same(lambda mapping: mapping[key])
        self.same(lambda mapping: (key in mapping, mapping.get(key), mapping.get(key, value), bool(mapping) or True))
        self.same(lambda mapping: (key in mapping.keys(), (key, value) in mapping.items(), value in mapping.values()))  # noqa: SIM118

    @rule(key=KEYS, value=VALUES)
    def remove(self, key: bytes, value: bytes) -> None:
        self.same(lambda mapping: mapping.__delitem__(key))
        self.same(lambda mapping: mapping.pop(key + b"?"))
        self.same(lambda mapping: mapping.pop(key, value))

    @rule(pairs=PAIRS, as_list=st.booleans())
    def update(self, pairs: dict[bytes, bytes], as_list: bool) -> None:
        self.same(lambda mapping: mapping.update(list(pairs.items()) if as_list else pairs))

    @rule()
    def popitem(self) -> None:
        """Of no particular order: what it gave is gone."""
        if self.model:
            key, value = self.db.popitem()
            assert self.model.pop(key) == value
        else:
            with pytest.raises(KeyError):
                self.db.popitem()

    @rule()
    def clear(self) -> None:
        self.same(lambda mapping: mapping.clear())

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = nokv.open(self.directory.name)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "db"):
            assert list(self.db) == list(self.db.keys()) == sorted(self.model)
            assert list(self.db.items()) == sorted(self.model.items())
            assert list(self.db.values()) == [value for _, value in sorted(self.model.items())]
            assert len(self.db) == len(self.model) == len(self.db.items())

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.directory.cleanup()


TestMapping = pytest.mark.counted(Mapping.TestCase)
TestMapping.settings = settings(
    max_examples=count(40, 300, 5000), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_mapping_that_is_written_while_it_is_read(tmp_path: Path) -> None:
    """A dict would raise; here a walk sees the moment it began."""
    with nokv.open(tmp_path) as db:
        db.update({b"a": b"1", b"b": b"2"})
        for key in db:
            db[key + b"!"] = db.pop(key)
        assert list(db) == [b"a!", b"b!"]


@pytest.mark.parametrize("writeback", [False, True])
def test_shelve(tmp_path: Path, writeback: bool) -> None:
    def opened() -> shelve.Shelf[Any]:
        return shelve.Shelf(nokv.open(tmp_path / "db"), writeback=writeback)

    with opened() as shelf:
        shelf["a"] = {"b": 1}
        shelf["list"] = []
        shelf["list"].append(3)
        shelf.update({"c": (1, 2), "d": None})
        assert shelf["a"] == {"b": 1} and shelf["list"] == ([3] if writeback else [])
        assert "a" in shelf and "x" not in shelf and len(shelf) == 4
        assert shelf.get("x") is None and shelf.get("x", 5) == 5
        assert shelf.setdefault("e", "new") == "new" == shelf.setdefault("e", "other")
        assert sorted(shelf) == sorted(shelf.keys()) == ["a", "c", "d", "e", "list"]
        assert ("c", (1, 2)) in shelf.items() and None in shelf.values()
        assert shelf.pop("d") is None and shelf.pop("d", 7) == 7
        with pytest.raises(KeyError):
            shelf["d"]
        with pytest.raises(KeyError):
            del shelf["d"]
        shelf.sync()
        shelf["a"]["later"] = 2
    with pytest.raises(ValueError, match="closed shelf"):
        shelf["a"]
    with opened() as shelf:
        assert shelf["a"] == ({"b": 1, "later": 2} if writeback else {"b": 1})
        assert shelf["list"] == ([3] if writeback else [])
        del shelf["c"]
        assert sorted(shelf.popitem()[0] for _ in range(2)) <= ["a", "e", "list"]
        shelf.clear()
        assert len(shelf) == 0 == len(list(shelf))
    with nokv.open(tmp_path / "db") as db:
        assert list(db) == []


def test_a_shelf_that_is_dropped(tmp_path: Path) -> None:
    """`writeback` writes at its end, also when nobody closes it."""
    shelf: Any = shelve.Shelf(nokv.open(tmp_path), writeback=True)
    shelf["a"] = []
    shelf["a"].append(1)
    del shelf
    with shelve.Shelf(nokv.open(tmp_path)) as shelf:
        assert shelf["a"] == [1]
