from __future__ import annotations

from pathlib import Path

import pytest

from nokv.cli.demo import Ledger, verify_entries
from nokv.cli.demo_data import VALUE_MAX, Counts, default_source, read_entries
from nokv.errors import NotFound, PreconditionFailed, UsageError


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small").write_bytes(b"x")
    (tmp_path / "big").write_bytes(b"y" * (VALUE_MAX + 1))
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "skipped").write_bytes(b"z")
    counts = Counts()
    found = dict(read_entries(tmp_path, counts))
    assert found == {b"a/small": b"x", b"big#0000": b"y" * VALUE_MAX, b"big#0001": b"y"}
    assert counts == Counts(files=2, unreadable=0, not_regular=1, chunked=1)


def test_jsonl_and_csv(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"key": "k1", "v": 1}\n\n[2]\n')
    assert dict(read_entries(tmp_path / "d.jsonl", Counts())) == {
        b"k1": b'{"key": "k1", "v": 1}',
        b"line/0000000003": b"[2]",
    }
    (tmp_path / "d.csv").write_text('a,1,2\n"b,c",x\n')
    assert dict(read_entries(tmp_path / "d.csv", Counts())) == {b"a": b'["1", "2"]', b"b,c": b'["x"]'}
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(UsageError, match="line 1"):
        list(read_entries(tmp_path / "bad.jsonl", Counts()))
    (tmp_path / "d.xml").write_text("")
    with pytest.raises(UsageError):
        list(read_entries(tmp_path / "d.xml", Counts()))
    with pytest.raises(NotFound):
        list(read_entries(tmp_path / "none", Counts()))


def test_the_default_is_the_standard_library() -> None:
    assert (default_source() / "asyncio" / "__init__.py").exists()


def test_the_ledger_finds_what_is_missing_wrong_or_extra() -> None:
    ledger = Ledger()
    ledger.acknowledged(b"a", b"1")
    ledger.acknowledged(b"b", b"2")
    ledger.acknowledged(b"c", None)
    assert verify_entries(ledger, [(b"a", b"1"), (b"b", b"2")]) == (2, 4)
    for wrong, says in (
        ([(b"a", b"1")], "b'b': missing"),
        ([(b"a", b"x"), (b"b", b"2")], "b'a': wrong value"),
        ([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], "b'c': wrong value"),
        ([(b"a", b"1"), (b"b", b"2"), (b"d", b"3")], "b'd': should not exist"),
    ):
        with pytest.raises(PreconditionFailed, match=says):
            verify_entries(ledger, wrong)


def test_an_unknown_outcome_allows_both() -> None:
    ledger = Ledger()
    ledger.acknowledged(b"a", b"1")
    ledger.unresolved(b"a", b"2")
    ledger.unresolved(b"n", b"x")
    verify_entries(ledger, [(b"a", b"1")])
    verify_entries(ledger, [(b"a", b"2"), (b"n", b"x")])
    with pytest.raises(PreconditionFailed):
        verify_entries(ledger, [(b"n", b"x")])
    ledger.acknowledged(b"a", b"3")
    with pytest.raises(PreconditionFailed):
        verify_entries(ledger, [(b"a", b"2")])
