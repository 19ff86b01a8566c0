from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.cli.target import coordinators_of, parse_bytes
from nokv.errors import UsageError
from nokv.literal import format_literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("user:1", b"user:1"),
        ("", b""),
        ("é", "é".encode()),
        ("0xDEAD", b"\xde\xad"),
        ("hex:00ff", b"\x00\xff"),
        ("b64:AP8=", b"\x00\xff"),
        ("text:0xDEAD", b"0xDEAD"),
        ('b"\\x00\\xff"', b"\x00\xff"),
        ('"a json string"', b'"a json string"'),
        ("@", b"@"),
        ("-", b"-"),
    ],
)
def test_grammar(text: str, value: bytes) -> None:
    assert parse_bytes(text, "key") == value


def test_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x00\x01")
    assert parse_bytes(f"@{tmp_path}/f", "value") == b"\x00\x01"
    with pytest.raises(FileNotFoundError):
        parse_bytes(f"@{tmp_path}/missing", "value")


@pytest.mark.parametrize("text", ["0x1", "hex:zz", "b64:*"])
def test_bad(text: str) -> None:
    with pytest.raises(UsageError, match="key"):
        parse_bytes(text, "key")


@given(st.text())
def test_text_prefix_round_trips(text: str) -> None:
    assert parse_bytes(f"text:{text}", "key") == text.encode("utf-8", "surrogateescape")


@given(st.binary())
def test_what_a_table_shows_has_no_control_character_and_reads_back(value: bytes) -> None:
    shown = format_literal(value)
    assert shown.isprintable()
    if shown.startswith('b"'):
        assert parse_bytes(shown, "key") == value


def test_coordinators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOKV_COORDINATOR", "a:1, b:2")
    assert coordinators_of(()) == ["a:1", "b:2"]
    assert coordinators_of(("c:3",)) == ["c:3"]
    monkeypatch.delenv("NOKV_COORDINATOR")
    assert coordinators_of(()) == []
