"""`nokv wal dump | manifest show | sst show | blob show`: what is in the files, and damage with file and offset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nokv
from nokv.cli.main import run
from nokv.literal import parse_literal

ROOT = Path(__file__).resolve().parents[3]
NASTY = b"\x1b[31m\x00\xff"


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    path = tmp_path / "db"
    with nokv.open(path, value_file_threshold=100, families=["f"]) as db:
        db.put(b"small", b"1")
        db.put(NASTY, b"x" * 300)
        db.put(b"expires", b"y" * 200, ttl=10**9)
        db.family("f").put(b"k", b"z" * 100)
        db.delete(b"gone")
        db.flush()
        db.put_many([(b"logged", b"2"), (b"logged too", b"3")])
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert run([str(a) for a in arguments]) == code
    found = capsys.readouterr()
    assert "Traceback" not in found.err and (code == 0) == (found.err == "")
    return found.out if code == 0 else found.err


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def only(path: Path, suffix: str) -> Path:
    (found,) = path.glob(f"*{suffix}")
    return found


def test_the_log(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:  # ENG-03
    for where in (("--workdir", workdir), (workdir,)):
        found = rows(shown(capsys, "wal", "dump", *where, "--output", "jsonl"))
        batches = [row for row in found if row["name"] == "batch"]
        assert [(row["sequence"], row["operations"]) for row in batches][-1] == (6, 2)
    counts = json.loads(shown(capsys, "wal", "dump", workdir, "--counts", "--json"))
    assert counts["types"]["batch"] == len(batches) and counts["records"] == len(found)
    assert "batch" in shown(capsys, "wal", "dump", workdir, "--counts")
    assert "sequence=6 operations=2" in shown(capsys, "wal", "dump", workdir, "--payload")
    document = json.loads(shown(capsys, "wal", "dump", workdir, "--json"))
    assert document["kind"] == "wal-records" and len(document["rows"]) == len(found)
    segment = sorted((workdir / "wal").glob("*.wal"))[-1]
    data = bytearray(segment.read_bytes())
    data[batches[-1]["offset"] + 20] ^= 1
    segment.write_bytes(data)
    error = shown(capsys, "wal", "dump", workdir, code=6)
    assert f"{segment} at offset {batches[-1]['offset']}" in error


def dumped(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert run(["wal", "dump", *map(str, arguments), "--output", "jsonl"]) == 6
    found = capsys.readouterr()
    assert "Traceback" not in found.err and found.err.count("nokv: error:") == 1
    return rows(found.out)


def test_a_damaged_log_is_shown_around_the_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nokv.open(tmp_path / "db", durability="process", wal_segment_bytes=4096) as db:
        for n in range(60):
            db.put(b"k%02d" % n, b"v" * 100)
    whole = rows(shown(capsys, "wal", "dump", tmp_path / "db", "--output", "jsonl"))
    assert len({row["segment"] for row in whole}) >= 3
    batches = [row for row in whole if row["name"] == "batch"]
    first = batches[1]
    other = next(row for row in batches if row["segment"] > first["segment"])
    for hit in (first, other):
        path = tmp_path / "db" / "wal" / f"{hit['segment']:010d}.wal"
        data = bytearray(path.read_bytes())
        data[hit["offset"] + 20] ^= 1
        path.write_bytes(data)
    found = dumped(capsys, tmp_path / "db")
    bad = [row for row in found if row["name"] == "damaged"]
    assert [(row["segment"], row["offset"]) for row in bad] == [(h["segment"], h["offset"]) for h in (first, other)]
    assert all(row["reason"] == "bad payload" and row["expected"] != row["found"] for row in bad)
    places = [(row["segment"], row["offset"]) for row in whole]
    assert [bad[0]["segment"], bad[0]["offset"] + bad[0]["size"]] == list(
        places[places.index((first["segment"], first["offset"])) + 1]
    )
    assert [row for row in found if row not in bad] == [row for row in whole if row not in (first, other)]
    assert run(["wal", "dump", str(tmp_path / "db")]) == 6
    human = capsys.readouterr()
    assert f"{first['offset']:>10} damaged" in human.out and "reason=bad payload" in human.out
    assert f"at offset {first['offset']}" in human.err
    assert run(["wal", "dump", str(tmp_path / "db"), "--counts", "--json"]) == 6
    counts = json.loads(capsys.readouterr().out)
    assert counts["unreadable"] == 2 and counts["types"]["batch"] == len(batches) - 2

    # A whole segment of nothing but its tail, a hole of zeros, a header that is gone.
    path = tmp_path / "db" / "wal" / f"{first['segment']:010d}.wal"
    data = bytearray(path.read_bytes())
    data[batches[2]["offset"] : batches[4]["offset"]] = bytes(batches[4]["offset"] - batches[2]["offset"])
    data[0:16] = b"x" * 16
    path.write_bytes(data)
    found = dumped(capsys, tmp_path / "db")
    assert [(row["name"], row["offset"], row["size"]) for row in found if row["type"] is None][:3] == [
        ("damaged", 0, 64),
        ("damaged", first["offset"], batches[4]["offset"] - first["offset"]),
        ("damaged", other["offset"], bad[1]["size"]),
    ]


def test_the_log_of_raft_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nokv.multiraft.raftlog import RaftLog
    from nokv.raft.types import Entry, HardState

    with nokv.open(tmp_path / "db", wal_retainers=("raft",)) as db:
        log = RaftLog.open(db.wal)
        for group in (7, 9):
            log.save([(group, HardState(term=1, vote=0, commit=0), [Entry(1, 1), Entry(1, 2)], None)], sync=True)
        found = rows(shown(capsys, "wal", "dump", tmp_path / "db", "--output", "jsonl"))  # beside the writer
        entries = [row for row in found if row["name"] == "raft-entries"]
        assert [(row["group"], row["first_index"], row["last_index"]) for row in entries] == [(7, 1, 2), (9, 1, 2)]
        counts = json.loads(shown(capsys, "wal", "dump", tmp_path / "db", "--counts", "--json"))
        assert {row["group"] for row in counts["rows"]} == {0, 7, 9} and counts["types"]["raft-entries"] == 2


def test_the_manifest(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, "manifest", "show", workdir, "--json"))
    assert document == json.loads(shown(capsys, "manifest", "--workdir", workdir, "--json"))
    assert {"path", "edits", "torn_at", "families", "tables", "value_files"} <= document.keys()
    (values,) = document["value_files"]
    assert (values["records"], values["value_bytes"], values["dead_bytes"]) == (3, 600, 0)
    human = shown(capsys, "manifest", "show", workdir)
    assert "value file" in human and "\x1b" not in human and '0:b"\\x1b' in human
    assert "which directory" in shown(capsys, "manifest", code=2)
    (workdir / "CURRENT").write_bytes(b"x")
    assert f"{workdir}/CURRENT" in shown(capsys, "manifest", "show", workdir, code=6)


def test_a_table(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = only(workdir, ".sst")
    document = json.loads(shown(capsys, "sst", "show", table, "--check", "--json"))
    assert document["entries"] == 5 and document["deletes"] == 1 and document["ratio"] > 0  # ENG-13
    assert list(document["value_files"].values()) == [600]
    assert "\x1b" not in shown(capsys, "sst", "show", table)
    found = rows(shown(capsys, "sst", "show", table, "--entries", "--output", "jsonl"))
    kinds = {row["kind"] for row in found}
    assert kinds == {"put", "reference", "expiring-reference", "delete"} and len(found) == 5
    assert all(row["size"] == 300 for row in found if row["kind"] == "reference" and row["family"] == 0)
    lines = shown(capsys, "sst", "show", table, "--entries", "--limit", "2").splitlines()
    assert len(lines) == 2 and all("\x1b" not in line for line in lines)
    assert parse_literal(lines[0].split("  ")[-2 if "in 0" in lines[0] else -1].strip()) == NASTY
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + b"X")
    assert str(table) in shown(capsys, "sst", "show", table, code=6)
    table.write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
    assert f"{table} at offset 0" in shown(capsys, "sst", "show", table, "--check", code=6)
    table.write_bytes(b"")
    assert str(table) in shown(capsys, "sst", "show", table, code=6)


def test_a_value_file(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = only(workdir, ".val")
    found = rows(shown(capsys, "blob", "show", file, "--check", "--output", "jsonl"))
    assert [(row["family"], row["size"]) for row in found] == [(0, 300), (0, 200), (16, 100)]
    lines = shown(capsys, "blob", "show", file).splitlines()
    assert len(lines) == 3 and parse_literal(lines[0].split("  ")[-1]) == NASTY
    assert len(shown(capsys, "blob", "show", file, "--limit", "1").splitlines()) == 1
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"X")
    assert shown(capsys, "blob", "show", file).count("\n") == 3
    value_at = len(whole) - 100
    assert f"{file} at offset {value_at}" in shown(capsys, "blob", "show", file, "--check", code=6)
    for damaged, at in ((whole[:40] + b"X" + whole[41:], 32), (whole[:-1], found[2]["offset"]), (b"", 0)):
        file.write_bytes(damaged)
        assert f"{file} at offset {at}" in shown(capsys, "blob", "show", file, code=6)


@pytest.mark.parametrize("command", [("sst", "show"), ("blob", "show"), ("wal", "dump"), ("manifest", "show")])
def test_what_is_not_there(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent" in shown(capsys, *command, tmp_path / "absent", code=3)
    if command[0] in ("sst", "blob"):
        assert "is a directory" in shown(capsys, *command, tmp_path, code=2)


def test_looking_loads_no_server() -> None:
    code = "import sys; from nokv.cli.main import run; run(['sst', 'show', '--help']); print('grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.endswith("False\n"), done.stderr
