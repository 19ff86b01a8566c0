"""The shell without a terminal: parsing, every verb's help, reading and writing, output forms, hostile bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from nokv.errors import NotFound, NotSupported, ReadOnly, UsageError
from nokv.literal import format_literal
from nokv_shell.completer import ShellCompleter
from nokv_shell.grammar import is_complete, parse, tokenize
from nokv_shell.session import Session, prefix_end
from nokv_shell.verbs import VERBS


class DictTarget:
    """The slow, obvious target."""

    name = "dict"

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.writable = False

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        assert self.writable
        self.data[key] = value

    def delete(self, key: bytes) -> None:
        assert self.writable
        self.data.pop(key, None)

    def scan(
        self, start: bytes | None, end: bytes | None, *, reverse: bool, limit: int | None
    ) -> Iterable[tuple[bytes, bytes]]:
        keys = sorted(k for k in self.data if k >= (start or b"") and (end is None or k < end))
        return [(k, self.data[k]) for k in (reversed(keys) if reverse else keys)][:limit]

    def set_writable(self, writable: bool) -> None:
        self.writable = writable

    def status(self) -> dict[str, Any]:
        return {"target": self.name, "nested": {"a": 1}}

    def stats(self) -> dict[str, Any]:
        return {"entries": len(self.data)}

    def regions(self) -> list[dict[str, Any]]:
        return [{"id": 1, "start_key": {"b64": "", "text": ""}, "peers": [101, 201]}]

    def stores(self) -> list[dict[str, Any]]:
        return []

    def root_log(self, address: str, from_revision: int, limit: int) -> list[dict[str, Any]]:
        return [{"revision": from_revision, "kind": "store-joined", "address": address}][:limit]

    def execution(self, address: str, region_id: int) -> list[dict[str, Any]]:
        raise NotSupported("no")

    def close(self) -> None:
        pass


class Shell:
    def __init__(self) -> None:
        self.printed: list[str] = []
        self.target = DictTarget()
        self.session = Session(self.target, self.printed.append)

    def __call__(self, line: str) -> str:
        self.printed.clear()
        self.session.run(line)
        return "".join(self.printed)


@pytest.fixture
def shell() -> Shell:
    made = Shell()
    made("\\writemode on")
    return made


@given(key=st.binary(min_size=1, max_size=40), value=st.binary(max_size=40))
def test_what_is_printed_can_be_typed(key: bytes, value: bytes) -> None:
    command = parse(f"put {format_literal(key)} {format_literal(value)}")
    assert command is not None
    assert command.arguments == [key, value]


@given(st.text(max_size=60))
def test_any_line_is_parsed_or_refused(line: str) -> None:
    assert "".join(t.text for t in tokenize(line)).replace(" ", "") is not None
    try:
        parse(line)
    except UsageError:
        pass  # refused with a typed error: that is the other allowed outcome


def test_put_get_scan_count_delete(shell: Shell) -> None:
    for i in range(25):
        assert shell(f"put user:{i:02} v{i}") == "ok\n"
    assert shell("get user:03") == "v3\n"
    assert "more follow" in shell("scan user:")
    assert shell("scan user: --limit 2 --reverse").splitlines()[0].split() == ["user:24", "v24"]
    assert shell("scan --start user:01 --end user:03 --keys").splitlines()[:2] == ["user:01", "user:02"]
    assert shell("count user:") == "25\n"
    shell("del user:03")
    with pytest.raises(NotFound):
        shell("get user:03")


def test_writes_are_refused_until_allowed() -> None:
    shell = Shell()
    with pytest.raises(ReadOnly) as refused:
        shell("put a b")
    assert "\\writemode on" in refused.value.hint
    assert shell.target.data == {}


def test_json_output(shell: Shell) -> None:
    shell("put a b")
    document = json.loads(shell("get a --output json"))
    assert document["schema_version"] == 1
    assert document["value"] == {"b64": "Yg==", "text": "b"}
    shell("\\set output json")
    assert json.loads(shell("scan"))["rows"][0]["key"]["text"] == "a"


def test_hostile_bytes_never_reach_the_terminal_raw(shell: Shell) -> None:
    shell.target.data[b"\x1b]0;owned\x07"] = b"\x1b[2J\xff"
    assert "\x1b" not in shell("scan") + shell('get b"\\x1b]0;owned\\x07"')


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("gett a", "did you mean get?"),
        ("scan --limti 3", "did you mean --limit?"),
        ("get", "get KEY"),
        ("scan --limit", "usage"),
        ('put a "open', ""),
        ("scan --limit x", ""),
        ("scan a --start b", ""),
    ],
)
def test_mistakes_are_explained(shell: Shell, line: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        shell(line)
    assert hint in refused.value.hint


def test_every_verb_has_help_whose_examples_parse(shell: Shell) -> None:
    listing = shell("help")
    for name, verb in VERBS.items():
        assert verb.usage in listing
        assert len(verb.examples) >= 2
        assert verb.summary in shell(f"help {name}")
        for example in verb.examples:
            command = parse(example)
            assert command is not None


def test_rows_and_trees_print(shell: Shell) -> None:
    assert shell("regions").splitlines()[1].split() == ["1", '""', "101,", "201"]
    assert shell("stores") == "(none)\n"
    assert "  a: 1" in shell("status")


@pytest.mark.parametrize(("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"", None)])
def test_prefix_end(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end


def test_completion_offers_verbs_options_and_keys() -> None:
    asked = []

    def keys(prefix: bytes, limit: int) -> list[bytes]:
        asked.append(prefix)
        return [b"user:1", b"user 2"]

    completer = ShellCompleter(keys, lambda: 0)

    def offered(text: str) -> list[str]:
        return [c.text for c in completer.get_completions(Document(text), CompleteEvent())]

    assert "get" in offered("ge")
    assert "--limit" in offered("scan --l")
    assert offered("get us") == ["user:1", '"user 2"']
    assert offered("get us") and asked == [b"us"]  # kept for two seconds of the clock
    assert "scan" in offered("help sc")
    assert offered("put key val") == []


def test_an_open_quote_is_incomplete() -> None:
    assert not is_complete('put a "b')
    assert is_complete('put a "b c"')
