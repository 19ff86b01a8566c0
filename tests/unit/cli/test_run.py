"""The summary of a run: every stage, in order, with its outcome, also when one fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nokv.cli.output import emit_rows, table
from nokv.cli.run import ContentDigest, Summary


def test_summary(tmp_path: Path) -> None:
    summary = Summary("a run", tmp_path / "out")
    with summary.stage("one", "first") as details:
        details.update(keys=3, listed=[1, 2])
    summary.facts["digests"] = {"store-1": {"digest": "d", "keys": 3, "bytes": 9, "applied_index": 7}}
    summary.facts["membership_after"] = [{"store_id": 1, "peer_id": 101, "role": "voter"}]
    with pytest.raises(KeyboardInterrupt), summary.stage("two", "second"):
        raise KeyboardInterrupt
    summary.write()
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not found["ok"]
    assert found["error"] == "two: KeyboardInterrupt"
    assert [(s["name"], s["ok"]) for s in found["stages"]] == [("one", True), ("two", False)]
    assert found["stages"][0]["details"]["keys"] == 3
    assert all(stage["duration_s"] >= 0 for stage in found["stages"])
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert "FAILED: two: KeyboardInterrupt" in text
    assert "1:101 voter" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["summary.json", "summary.txt"]


def test_the_content_digest_is_that_of_the_format_page() -> None:
    pairs = [(b"a", b"1"), (b"bb", b"")]
    expected = hashlib.sha256(b"\0\0\0\1a\0\0\0\0011\0\0\0\2bb\0\0\0\0").hexdigest()
    seen = ContentDigest().add_all(pairs)
    assert seen.digest == f"sha256:{expected}"
    assert (seen.keys, seen.bytes) == (2, 4)
    assert list(ContentDigest().through(pairs)) == pairs


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"key": b"\xff", "n": 1}, {"key": b"k", "n": 2}]
    assert emit_rows("entries", iter(rows), "json", str) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["rows"][0]["key"] == {"b64": "/w=="}
    assert found["rows"][1]["key"] == {"b64": "aw==", "text": "k"}
    assert emit_rows("entries", iter(rows), "jsonl", str) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["n"] for line in lines] == [1, 2]
    assert all(line["kind"] == "entries" for line in lines)
    assert emit_rows("entries", iter([]), "json", str) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_table() -> None:
    assert table(["a", "bb"], [(1, 2), ("x", "")]) == "a  bb\n1  2\nx"
