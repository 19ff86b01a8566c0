"""The manners of the command: help everywhere, exit codes, one clear error, no traceback. # CLI-15"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import nokv
from nokv.cli.main import LazyGroup, cli, run

SUBCOMMANDS = {"--help", "-h"}


def every_command(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, LazyGroup):
        context = click.Context(command)
        for name in command.lazy:
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_command(inner, (*path, name))


COMMANDS = list(every_command(cli))
LEAVES = [(path, command) for path, command in COMMANDS if not isinstance(command, LazyGroup)]
IDS = [" ".join(path) or "nokv" for path, _ in COMMANDS]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_every_command_has_help(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage:")
    assert command.help, path
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden and parameter.opts[0] != "--help":
            assert parameter.help or parameter.name in ("coordinators", "stores", "region_id", "replicas"), (
                path,
                parameter.name,
            )


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=[" ".join(path) for path, _ in LEAVES])
def test_an_unknown_option_is_one_error(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--no-such-option"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("nokv: error: ")
    assert "Traceback" not in found.err
    assert "  next: " in found.err


def test_a_typing_error_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["migrat"]) == 2
    assert "Did you mean `migrate`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["get", "k"], 2, "nothing to work on"),
        (["get", "k", "--workdir", "a", "--coordinator", "127.0.0.1:1"], 2, "exclude each other"),
        (["get", "0xzz", "--workdir", "a"], 2, "0xzz"),
        (["get", "k", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["scan", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["stats"], 2, "exactly one of"),
        (["stats", "--expvar", "http://127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["migrate", "plan", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["migrate", "init", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["migrate", "status", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["migrate", "report", "--workdir", "/nonexistent/x"], 3, "/nonexistent/x"),
        (["migrate", "init", "--workdir", "x", "--store", "0"], 2, "store"),
        (["migrate", "expand", "--addr", "127.0.0.1:1", "--target", "x"], 2, "<store>:<peer>"),
        (["migrate", "expand", "--addr", "nowhere", "--target", "2:201@h:1"], 2, "host:port"),
        (["migrate", "expand", "--addr", "127.0.0.1:1", "--target", "2:201"], 2, "has no address"),
        (["migrate", "expand", "--addr", "127.0.0.1:1", "--target", "2:201@127.0.0.1:2"], 5, "127.0.0.1:1"),
        (["migrate", "transfer-leader", "--addr", "127.0.0.1:1", "--peer", "201"], 5, "127.0.0.1:1"),
        (["migrate", "remove-peer", "--addr", "127.0.0.1:1", "--peer", "201"], 5, "127.0.0.1:1"),
        (["execution", "--addr", "127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["regions", "--coordinator", "127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["root", "log", "--addr", "127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["root", "status", "--addr", "127.0.0.1:1"], 5, "127.0.0.1:1"),
        (["root", "snapshot"], 2, "no meta-root"),
        (["cluster", "status", "--dir", "/nonexistent/x"], 3, "holds no cluster"),
        (["cluster", "up", "--dir", "/tmp/x-never", "--meta-roots", "2"], 2, "1, 3 or 5"),
        (["config", "check", "--config", "/nonexistent/x"], 3, "/nonexistent/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert says in found.err
    assert found.err.startswith("nokv: error: ")
    assert "Traceback" not in found.err
    assert len(found.err.splitlines()) <= 3


def test_missing_extra_prints_the_pip_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name == "grpc" or name.startswith(("grpc.", "nokv.cli.root"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("nokv.cli.client", "nokv.client.operator.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert run(["root", "status", "--addr", "127.0.0.1:1"]) == 2
    assert "pip install 'nokv[server]'" in capsys.readouterr().err


def test_version_is_quick_and_imports_little() -> None:
    script = (
        "import sys; from nokv.cli.main import run; run(['--version']); print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.startswith("nokv ")
    loaded = set(done.stderr.split())
    assert not loaded & {"grpc", "asyncio", "zstandard", "msgspec", "prometheus_client", "structlog", "google.protobuf"}


def test_version_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["kind"] == "version"


def test_a_closed_pipe_is_silent() -> None:
    command = f"{sys.executable} -m nokv.cli version --output json | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", ["scan --limit 0", "scan --limit 0 --output json", "get large", "export -"])
def test_a_reader_that_goes_away_early_is_no_failure(arguments: str, tmp_path: Path) -> None:
    with nokv.open(tmp_path / "db") as db:
        db.put(b"large", b"v" * 500_000)
        db.put_many([(b"%06d" % n, b"v" * 100) for n in range(5000)])
    command = f"{sys.executable} -m nokv.cli {arguments} --workdir {tmp_path / 'db'} | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", 10)


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_is_documented(path: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text("utf-8")
    assert f"`nokv {' '.join(path)}`" in page or f"`{path[-1]}`" in page
