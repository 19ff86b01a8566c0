"""import, export, check, repair: through the real command, and any bytes there and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nokv
from nokv.cli.main import run
from nokv.cli.transfer import FORMATS, read_rows, write_rows
from nokv.errors import UsageError

BYTES = st.binary(max_size=20) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "surrogatepass"))
AWKWARD = BYTES | st.sampled_from([b"", b"b64:", b"text:", b"text:b64:x", b'"', b"a,b", b"\n", b"\r\n", b"\0", b"key"])


@given(pairs=st.dictionaries(AWKWARD, AWKWARD), kind=st.sampled_from(FORMATS))
def test_any_bytes_there_and_back(pairs: dict[bytes, bytes], kind: str) -> None:
    stream = io.StringIO(newline="")
    assert list(write_rows(pairs.items(), stream, kind)) == list(pairs.items())
    stream.seek(0)
    assert dict(read_rows(stream, kind, "x")) == pairs


@given(text=st.text(max_size=60), kind=st.sampled_from(FORMATS))
def test_bad_rows_are_usage_errors(text: str, kind: str) -> None:
    try:
        for key, value in read_rows(io.StringIO(text, newline=""), kind, "x"):
            assert isinstance(key, bytes) and isinstance(value, bytes)
    except UsageError as error:
        assert str(error).startswith("x:")


@pytest.mark.parametrize("kind", FORMATS)
def test_export_import(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    want = {b"%04d" % i: bytes([i % 256]) * (i % 7) for i in range(2500)}
    with nokv.open(tmp_path / "a") as db:
        db.put_many(want)
    nokv.open(tmp_path / "b").close()
    file = str(tmp_path / f"data.{kind}")
    assert run(["export", file, "--workdir", str(tmp_path / "a")]) == 0
    assert run(["export", file, "--workdir", str(tmp_path / "a")]) == 4
    assert run(["export", file, "--workdir", str(tmp_path / "a"), "--force"]) == 0
    capsys.readouterr()
    assert run(["import", file, "--workdir", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2500
    with nokv.open(tmp_path / "b") as db:
        assert dict(db.scan()) == want
    assert run(["export", "-", "--workdir", str(tmp_path / "a"), "--prefix", "000", "--format", kind]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10 + (kind == "csv")


def test_a_bad_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nokv.open(tmp_path / "db").close()
    file = tmp_path / "bad.jsonl"
    file.write_text('{"key": "a", "value": "1"}\n{"key": "b"}\n')
    assert run(["import", str(file), "--workdir", str(tmp_path / "db")]) == 2
    assert f"{file}:2:" in capsys.readouterr().err
    file.write_bytes(b'{"key": "a", "value": "\xff"}\n')
    assert run(["import", str(file), "--workdir", str(tmp_path / "db")]) == 2
    assert run(["import", str(tmp_path / "absent"), "--workdir", str(tmp_path / "db")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_what_scan_prints_can_be_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put_many({b"a": b"\xff", b"b": b"text"})
    assert run(["scan", "--workdir", str(tmp_path / "db"), "--output", "jsonl"]) == 0
    rows = dict(read_rows(io.StringIO(capsys.readouterr().out), "jsonl", "x"))
    assert rows == {b"a": b"\xff", b"b": b"text"}


def test_check_and_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "db"
    with nokv.open(path) as db:
        db.put(b"a", b"1")
        db.flush()
    assert run(["check", "--workdir", str(path)]) == 0
    assert "healthy" in capsys.readouterr().out
    (path / "CURRENT").write_bytes(b"x")
    assert run(["check", "--workdir", str(path), "--json"]) == 6
    found = capsys.readouterr()
    assert json.loads(found.out)["healthy"] is False and "nokv repair" in found.err
    assert run(["repair", "--workdir", str(path)]) == 0
    assert "repaired" in capsys.readouterr().out
    assert run(["repair", "--workdir", str(path)]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert run(["check", "--workdir", str(tmp_path / "absent")]) == 3
