"""import, export, check, repair: through the real command, and any bytes there and back."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
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


EXPIRIES = st.none() | st.integers(1, 1 << 53)


@given(rows=st.lists(st.tuples(AWKWARD, AWKWARD, EXPIRIES)), kind=st.sampled_from(FORMATS))
def test_any_bytes_there_and_back(rows: list[tuple[bytes, bytes, int | None]], kind: str) -> None:
    stream = io.StringIO(newline="")
    assert list(write_rows(rows, stream, kind, expiring=any(row[2] for row in rows))) == rows
    stream.seek(0)
    assert list(read_rows(stream, kind, "x")) == rows


@pytest.mark.parametrize("kind", FORMATS)
def test_times_to_live_travel(tmp_path: Path, kind: str) -> None:
    """What expires keeps its moment; what has expired stays away."""
    file = str(tmp_path / f"rows.{kind}")
    with nokv.open(tmp_path / "a") as db:
        db.put(b"later", b"1", ttl=1 << 40)
        db.put(b"never", b"2")
        with db.write_batch() as batch:
            batch.put(b"long ago", b"3", expires_at_ms=1)
        with db.iterator() as it:
            it.seek(b"later")
            moment = it.expires_at_ms
    assert run(["export", file, "--workdir", str(tmp_path / "a")]) == 0
    nokv.open(tmp_path / "b").close()
    assert run(["import", file, "--workdir", str(tmp_path / "b")]) == 0
    with nokv.open(tmp_path / "b") as db, db.iterator() as it:
        assert it.seek_first() and it.item == (b"later", b"1") and it.expires_at_ms == moment
        assert it.next() and it.item == (b"never", b"2") and it.expires_at_ms is None
        assert not it.next()


@pytest.mark.parametrize("moment", ["-1", "0", '"x"', "1.5", "true", str(1 << 60)])
def test_a_bad_moment_is_a_bad_row(moment: str) -> None:
    line = f'{{"key": "k", "value": "v", "expires_at_ms": {moment}}}\n'
    with pytest.raises(UsageError, match="x:1"):
        list(read_rows(io.StringIO(line), "jsonl", "x"))


@given(text=st.text(max_size=60), kind=st.sampled_from(FORMATS))
def test_bad_rows_are_usage_errors(text: str, kind: str) -> None:
    try:
        for key, value, _ in read_rows(io.StringIO(text, newline=""), kind, "x"):
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


def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put_many({b"%d" % i: b"x" for i in range(10)})
    file = tmp_path / "data.jsonl"
    file.write_text("precious\n")

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("nokv.cli.transfer.write_rows", interrupted)
    assert run(["export", str(file), "--workdir", str(tmp_path / "db"), "--force"]) == 130
    assert file.read_text() == "precious\n"


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put_many({b"%05d" % i: b"x" * 50 for i in range(5000)})
    file = str(tmp_path / "data.csv")
    for arguments, says in ((["export"], "exported 5,000 rows"), (["import"], "] 100% imported 5,000 rows")):
        command = [sys.executable, "-m", "nokv.cli", *arguments, file, "--workdir", str(tmp_path / "db")]
        seen, code = on_a_terminal(command)
        assert code == 0 and says in seen, seen
        done = subprocess.run([*command, *(["--force"] if arguments == ["export"] else [])], capture_output=True)
        assert done.returncode == 0 and b"\r" not in done.stderr and b"\x1b" not in done.stderr


def on_a_terminal(command: list[str]) -> tuple[str, int]:
    """What the command writes to a terminal on stderr, and its exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # EIO: the other side is closed
                break
            if not chunk:
                break
            seen += chunk
    os.close(ours)
    return seen.decode(), process.returncode


def test_a_bad_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nokv.open(tmp_path / "db").close()
    file = tmp_path / "bad.jsonl"
    file.write_text('{"key": "a", "value": "1"}\n{"key": "b"}\n')
    assert run(["import", str(file), "--workdir", str(tmp_path / "db")]) == 2
    assert f"{file}:2:" in capsys.readouterr().err
    file.write_bytes(b'{"key": "a", "value": "\xff"}\n')
    assert run(["import", str(file), "--workdir", str(tmp_path / "db")]) == 2
    assert run(["import", str(tmp_path / "absent"), "--workdir", str(tmp_path / "db")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_what_scan_prints_can_be_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put_many({b"a": b"\xff", b"b": b"text"})
    assert run(["scan", "--workdir", str(tmp_path / "db"), "--output", "jsonl"]) == 0
    rows = {key: value for key, value, _ in read_rows(io.StringIO(capsys.readouterr().out), "jsonl", "x")}
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


@pytest.mark.parametrize("kind", FORMATS)
def test_families_travel_one_by_one(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    source, copy, file = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / f"rows.{kind}")
    with nokv.open(source, families=["f", "g"]) as db:
        db.put(b"plain", b"0")
        db.family("f").put(b"k", b"1", ttl=1 << 40)
        db.family("f").put(b"l", b"2")
    nokv.open(copy).close()
    assert run(["export", file, "--workdir", source]) == 0
    assert "not exported: the families f, g" in capfd.readouterr().err
    assert run(["export", file, "--force", "--workdir", source, "--family", "f"]) == 0
    assert "not exported" not in capfd.readouterr().err
    assert run(["import", file, "--workdir", copy, "--family", "f"]) == 0
    with nokv.open(copy) as db:
        assert dict(db) == {} and list(db.family("f").scan()) == [(b"k", b"1"), (b"l", b"2")]
        with db.family("f").iterator() as it:
            assert it.seek(b"k") and it.expires_at_ms is not None
    capfd.readouterr()
    assert run(["get", "l", "--workdir", copy, "--family", "f"]) == 0
    assert run(["put", "m", "3", "--workdir", copy, "--family", "f"]) == 0
    assert run(["del", "l", "--workdir", copy, "--family", "f"]) == 0
    assert run(["scan", "--keys-only", "--workdir", copy, "--family", "f"]) == 0
    assert capfd.readouterr().out == "2\nk\nm\n"
    assert run(["put", "m", "3", "--workdir", copy, "--family", "typo"]) == 3
    assert run(["get", "m", "--coordinator", "127.0.0.1:1", "--family", "f"]) == 2


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b'{"key": "a", "value": "b"}\n\n{"key": "\xff", "value": "b"}\n', "jsonl", ":3: this is not UTF-8"),
        (b"\xff\n", "jsonl", ":1: "),
        (b"key,value\na,b\n\xff,c\n", "csv", ":3: this is not UTF-8"),
        (b'{"key": "%s", "value": "b"}\n' % (b"k" * 65537), "jsonl", ":1: a key of 65537 bytes is too long"),
        (b"key,value,expires_at_ms\na,b,zz\n", "csv", ":2: expires_at_ms must be"),
    ],
)
def test_a_bad_row_names_its_line(
    tmp_path: Path, content: bytes, kind: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"rows.{kind}").write_bytes(content)
    nokv.open(tmp_path / "db").close()
    assert run(["import", str(tmp_path / f"rows.{kind}"), "--workdir", str(tmp_path / "db")]) == 2
    assert f"rows.{kind}{says}" in capfd.readouterr().err
