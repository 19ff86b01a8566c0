"""One grammar for bytes: what is printed reads back, and no control character is printed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nokv.errors import UsageError
from nokv.literal import format_literal, json_bytes, parse_literal


@given(st.binary(max_size=64))
@example(b"")
@example(b"0xzz")
@example(b'b"')
@example(b"-flag")
@example("größe ✓".encode())
@example(b"\x1b[31mred")
def test_round_trip_and_no_control_characters(value: bytes) -> None:
    text = format_literal(value)
    assert parse_literal(text) == value
    assert text.isprintable()


@given(st.binary(max_size=400), st.integers(1, 64))
def test_a_limit_never_prints_control_characters(value: bytes, limit: int) -> None:
    assert format_literal(value, limit=limit).isprintable()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("user:1", b"user:1"),
        ('"a b"', b"a b"),
        ('"tab\\there"', b"tab\there"),
        ('b"\\x00\\xff"', b"\x00\xff"),
        ("0xDEAD", b"\xde\xad"),
        ('""', b""),
    ],
)
def test_examples(text: str, value: bytes) -> None:
    assert parse_literal(text) == value


@pytest.mark.parametrize("text", ["0x", "0xabc", "0xzz", '"open', 'b"\\x1"', '"\\q"', 'b"ü"', '"a"b"', '"\\'])
def test_malformed_literals_are_named(text: str) -> None:
    with pytest.raises(UsageError):
        parse_literal(text)


def test_json_form() -> None:
    assert json_bytes(b"ab") == {"b64": "YWI=", "text": "ab"}
    assert json_bytes(b"\xff") == {"b64": "/w=="}
