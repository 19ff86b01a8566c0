"""Pygments lexer of the shell's language (also for documentation: entry point `nokv`)."""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Error, Keyword, Name, Number, String, Text, Whitespace

from nokv_shell.verbs import VERBS

__all__ = ["NoKVLexer"]

_PLAIN = tuple(name for name in VERBS if not name.startswith("\\"))


class NoKVLexer(RegexLexer):
    name = "NoKV shell"
    aliases: ClassVar[list[str]] = ["nokv"]
    filenames: ClassVar[list[str]] = ["*.nokv"]

    tokens: ClassVar[dict[str, list[object]]] = {
        "root": [
            (r"\s+", Whitespace),
            (r"#.*$", Comment.Single),
            (r"\\[a-z]+", Keyword.Pseudo, "arguments"),
            (words(_PLAIN, suffix=r"(?=\s|$)"), Keyword, "arguments"),
            (r"\S+", Error, "arguments"),
        ],
        "arguments": [
            (r"\n", Whitespace, "#pop"),
            (r"\s+", Whitespace),
            (r"--[a-z][a-z-]*", Name.Attribute),
            (r"=", Text),
            (r'b?"(?:[^"\\]|\\.)*"?', String),
            (r"0[xX][0-9a-fA-F]+(?=\s|$)", Number.Hex),
            (r"\d+(?=\s|$)", Number.Integer),
            (r'[^\s"]+', Text),
        ],
    }
