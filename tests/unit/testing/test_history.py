"""The history of registers: what it accepts, and the planted bugs that it must see."""

from __future__ import annotations

import itertools

from nokv.testing.history import Call, History


class Script:
    """Times are 1, 2, 3, ... in the order of the calls below."""

    def __init__(self) -> None:
        self.history = History(itertools.count(1).__next__)

    def begin(self, *argument: object) -> Call:
        return self.history.begin(b"k", argument)

    def put(self, value: bytes) -> None:
        self.history.ok(self.begin("put", value))

    def get(self, value: bytes | None) -> None:
        self.history.ok(self.begin("get"), value)


def test_an_ordinary_history() -> None:
    script = Script()
    script.get(None)
    script.put(b"1")
    script.get(b"1")
    script.history.ok(script.begin("delete"))
    script.get(None)
    assert script.history.violation() is None
    assert script.history.outcomes["get ok"] == 3


def test_a_stale_read_and_a_lost_write_are_seen() -> None:
    script = Script()
    script.put(b"1")
    script.put(b"2")
    script.get(b"1")
    assert "b'k'" in (script.history.violation() or "")


def test_a_write_of_unknown_fate_may_come_late_or_never_but_not_twice() -> None:
    script = Script()
    late, never = script.begin("put", b"late"), script.begin("put", b"never")
    script.history.unknown(late)
    script.history.unknown(never)
    script.put(b"1")
    script.get(b"1")
    script.get(b"late")
    assert script.history.violation() is None
    script.put(b"2")
    script.get(b"late")
    assert script.history.violation() is not None


def test_what_was_refused_must_not_be_read() -> None:
    script = Script()
    refused = script.begin("put", b"refused")
    script.history.refused(refused)
    script.get(None)
    assert script.history.violation() is None
    script.get(b"refused")
    assert script.history.violation() is not None


def test_writes_that_were_called_after_a_fault_show_that_it_is_over() -> None:
    script = Script()
    early = script.begin("put", b"1")
    fault = script.history.now()
    script.history.ok(early)
    assert not script.history.acknowledged_since(fault)
    script.put(b"2")
    assert script.history.acknowledged_since(fault)
