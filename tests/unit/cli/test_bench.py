"""`nokv bench`: every row is there, nothing is left behind, nothing is written over."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

import nokv
from nokv.cli.main import run


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(["bench", "--keys", "2000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "bench" and found["keys"] == 2000
    assert [row["operations"] for row in found["rows"]] == [2000, 2000, 200, 2000, 2000, 2000, 2000, 1]
    assert all(row["per_second"] > 0 for row in found["rows"])
    assert list(tmp_path.iterdir()) == []


def test_bench_in_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "db"
    assert run(["bench", "--keys", "1000", "--value-bytes", "10", "--workdir", str(path)]) == 0
    assert "scan, all keys" in capsys.readouterr().out
    with nokv.open(path, create=False) as db:
        assert len(db) == 1000
    before = sorted(p.name for p in path.iterdir())
    assert run(["bench", "--workdir", str(path)]) == 4
    assert "is there already" in capsys.readouterr().err
    assert sorted(p.name for p in path.iterdir()) == before
