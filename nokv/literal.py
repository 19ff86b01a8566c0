"""How bytes are written by people and printed for them: one grammar for the shell, the command line and reports.

    user:1        bare: UTF-8 text without blanks, quotes or a leading special character
    "a b\\n"       quoted: UTF-8 text with \\n \\t \\r \\\\ \\" and \\xNN (NN below 80: text stays UTF-8)
    b"\\x00\\xff"   bytes: printable ASCII and \\xNN for every other byte
    0xDEAD        hexadecimal, an even number of digits

`format_literal` prints what `parse_literal` reads back to the same bytes, and never prints a control character, so that
no escape sequence of a hostile key reaches a terminal. Pure.
"""

from __future__ import annotations

import base64
import re

from nokv.errors import UsageError

__all__ = ["format_literal", "json_bytes", "parse_literal"]

_BARE = re.compile(r"[^\s\"'\\|>;$@\-][^\s\"'\\|>;]*")
_SIMPLE_ESCAPES = {"n": 0x0A, "t": 0x09, "r": 0x0D, "\\": 0x5C, '"': 0x22, "0": 0x00}
_PRINTED_ESCAPES = {0x0A: "\\n", 0x09: "\\t", 0x0D: "\\r", 0x5C: "\\\\", 0x22: '\\"'}


def parse_literal(text: str) -> bytes:
    """The bytes that one whole literal stands for. UsageError, which shows the literal, if it is malformed."""
    if text.startswith(("0x", "0X")):
        digits = text[2:]
        if not digits or len(digits) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", digits):
            raise UsageError(f"{text!r} is not hexadecimal", hint="0x and an even number of digits, for example 0x00ff")
        return bytes.fromhex(digits)
    if text.startswith('b"'):
        return _unescape(text, text[2:], as_bytes=True)
    if text.startswith('"'):
        return _unescape(text, text[1:], as_bytes=False)
    return text.encode("utf-8", "surrogateescape")


def _unescape(whole: str, body: str, *, as_bytes: bool) -> bytes:
    if len(body) < 1 or not body.endswith('"'):
        raise UsageError(f"{whole!r} has no closing quote")
    out, i, end = bytearray(), 0, len(body) - 1
    while i < end:
        char = body[i]
        if char == '"':
            raise UsageError(f'{whole!r}: a quote inside is written \\"')
        if char != "\\":
            if as_bytes and not " " <= char <= "~":
                raise UsageError(f'{whole!r}: only printable ASCII and \\xNN inside b"..."')
            out += char.encode("utf-8", "surrogateescape")
            i += 1
            continue
        escape = body[i + 1 : i + 2]
        if i + 1 >= end:
            raise UsageError(f"{whole!r} ends within an escape")
        if escape == "x":
            digits = body[i + 2 : min(i + 4, end)]
            if not re.fullmatch(r"[0-9a-fA-F]{2}", digits):
                raise UsageError(f"{whole!r}: \\x needs two hexadecimal digits")
            out.append(int(digits, 16))
            i += 4
        elif escape in _SIMPLE_ESCAPES:
            out.append(_SIMPLE_ESCAPES[escape])
            i += 2
        else:
            raise UsageError(f"{whole!r}: unknown escape \\{escape}", hint='known: \\n \\t \\r \\0 \\\\ \\" \\xNN')
    return bytes(out)


def format_literal(value: bytes, *, limit: int = 0) -> str:
    """`value` as the plainest literal that reads back to it. With `limit`, about that many characters and a mark."""
    shown = value if not limit or len(value) <= limit else value[:limit]
    mark = "" if len(shown) == len(value) else f"... ({len(value):,} bytes)"
    try:
        # a cut may have split a character: those bytes are left out rather than turning text into escapes
        text = shown.decode("utf-8") if not mark else _decode_prefix(shown)
    except UnicodeDecodeError:
        return 'b"' + "".join(_escape_byte(byte) for byte in shown) + '"' + mark
    if _BARE.fullmatch(text) and text.isprintable() and not text.startswith(("0x", "0X", 'b"')):
        return text + mark
    if all(char.isprintable() or ord(char) < 0x80 for char in text):
        quoted = "".join(c if c.isprintable() and c not in '\\"' else _escape_byte(ord(c)) for c in text)
        return f'"{quoted}"{mark}'
    return 'b"' + "".join(_escape_byte(byte) for byte in shown) + '"' + mark


def _decode_prefix(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3 or error.reason != "unexpected end of data":
            raise
        return data[: error.start].decode("utf-8")


def _escape_byte(byte: int) -> str:
    return _PRINTED_ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}")


def json_bytes(value: bytes) -> dict[str, str]:
    """Bytes in JSON: always `b64`, and `text` when the value is printable UTF-8."""
    answer = {"b64": base64.b64encode(value).decode("ascii")}
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return answer
    if text.isprintable():
        answer["text"] = text
    return answer
