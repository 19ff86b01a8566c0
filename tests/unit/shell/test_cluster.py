"""The shell on a cluster: a coordinator and a store behind real gRPC, first without a terminal, then on a real one."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pexpect
import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from nokv._ext.command import pack_done, pack_results, unpack_reads, unpack_writes
from nokv.pb import (
    admin_pb2,
    admin_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    kv_pb2,
    kv_pb2_grpc,
    meta_pb2,
    root_pb2,
    root_pb2_grpc,
)
from nokv_shell.main import open_target, run_lines
from nokv_shell.session import Session
from nokv_shell.terminal import history_path, make_prompt

ROOT = Path(__file__).resolve().parents[3]


class FakePlanes(
    coordinator_pb2_grpc.CoordinatorServicer,
    kv_pb2_grpc.KvServicer,
    admin_pb2_grpc.AdminServicer,
    root_pb2_grpc.RootServicer,
):
    """All services of a one-store cluster on one port, over a dict."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.address = ""

    def _route(self) -> coordinator_pb2.Route:
        peer = meta_pb2.Peer(peer_id=11, store_id=1)
        region = meta_pb2.Region(
            region_id=1, epoch=meta_pb2.RegionEpoch(conf_version=1, version=1), peers=[peer], state=1
        )
        store = meta_pb2.Store(store_id=1, address=self.address)
        return coordinator_pb2.Route(region=region, leader=peer, stores=[store])

    def GetRegionByKey(self, request: Any, context: Any) -> coordinator_pb2.RouteResponse:
        return coordinator_pb2.RouteResponse(route=self._route())

    def ScanRegions(self, request: Any, context: Any) -> coordinator_pb2.ScanRegionsResponse:
        return coordinator_pb2.ScanRegionsResponse(routes=[self._route()])

    def ListStores(self, request: Any, context: Any) -> coordinator_pb2.ListStoresResponse:
        view = coordinator_pb2.StoreView(store=self._route().stores[0], liveness="up")
        return coordinator_pb2.ListStoresResponse(stores=[view])

    def GetTimestamp(self, request: Any, context: Any) -> coordinator_pb2.TsoResponse:
        return coordinator_pb2.TsoResponse(first=1, count=1)

    def Status(self, request: Any, context: Any) -> Any:  # of the coordinator; the meta-root's has the same name
        return coordinator_pb2.CoordinatorStatusResponse(coordinator_id="c1", lease_holder=True, region_count=1)

    def Read(self, request: Any, context: Any) -> root_pb2.RootReadResponse:
        token = meta_pb2.RootToken(term=1, index=7, revision=max(1, request.from_revision))
        event = root_pb2.RootEvent(kind=root_pb2.ROOT_EVENT_STORE_JOINED, token=token)
        return root_pb2.RootReadResponse(events=[event])

    def ExecutionStatus(self, request: Any, context: Any) -> admin_pb2.ExecutionStatusResponse:
        restart = admin_pb2.RestartPosture(state="ready", region_count=1, raft_group_count=1)
        return admin_pb2.ExecutionStatusResponse(store_id=1, mode="cluster", restart=restart, leader_region_ids=[1])

    def Batch(self, requests: Any, context: Any) -> Iterator[kv_pb2.KvBatchResponse]:
        for request in requests:
            replies = [kv_pb2.RegionReply(request_id=g.request_id, results=self._do(g)) for g in request.groups]
            yield kv_pb2.KvBatchResponse(replies=replies)

    def _do(self, group: kv_pb2.RegionCommands) -> bytes:
        if group.write:
            writes = unpack_writes(group.commands)
            for key, value in writes:
                if value is None:
                    self.data.pop(key, None)
                else:
                    self.data[key] = value
            return pack_done(len(writes))
        results: list[Any] = []
        for command in unpack_reads(group.commands, b"", b"")[0]:
            if isinstance(command, bytes):
                results.append(self.data.get(command))
            else:
                start, end, limit, flags = command
                keys = sorted((k for k in self.data if start <= k and (not end or k < end)), reverse=bool(flags & 1))
                shown = keys[: limit or None]
                results.append(([(k, self.data[k]) for k in shown], len(shown) < len(keys), bool(flags & 2)))
        return pack_results(results)


@pytest.fixture
def planes() -> Iterator[FakePlanes]:
    fake = FakePlanes()
    server = grpc.server(ThreadPoolExecutor(8))
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(fake, server)
    kv_pb2_grpc.add_KvServicer_to_server(fake, server)
    admin_pb2_grpc.add_AdminServicer_to_server(fake, server)
    root_pb2_grpc.add_RootServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(None).wait()


def run(planes: FakePlanes, *lines: str, write: bool = True, output: str = "table") -> tuple[int, str]:
    target = open_target(f"nokv://{planes.address}")
    shown: list[str] = []
    session = Session(target, shown.append, output=output)
    session.writable = write
    try:
        return run_lines(session, lines), "".join(shown)
    finally:
        target.close()


def test_data_verbs(planes: FakePlanes) -> None:
    code, shown = run(planes, "put user:1 Ada", 'put "a b" 0x1b5b41', "get user:1", "count", "del user:1", "scan")
    assert (code, planes.data) == (0, {b"a b": b"\x1b[A"})
    assert "Ada" in shown
    assert "\x1b" not in shown  # S9


def test_plane_verbs_as_json(planes: FakePlanes) -> None:
    verbs = ["status", "stats", "regions", "stores", "execution", f"root-log {planes.address} --from 3"]
    code, shown = run(planes, *verbs, output="json")
    assert code == 0
    status, stats, regions, stores, execution, log = map(json.loads, shown.splitlines())
    assert (status["kind"], status["mode"], status["coordinator_id"], status["regions"]) == (
        "status",
        "cluster",
        "c1",
        1,
    )
    assert stats["client"]["attempts"] == 0
    assert regions["rows"][0]["peers"] == ["11@1"]
    assert stores["rows"][0]["liveness"] == "up"
    assert execution["rows"][0]["restart"]["state"] == "ready"
    assert log["rows"] == [{"revision": 3, "term": 1, "kind": "store-joined"}]


def test_nothing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    target = open_target("nokv://127.0.0.1:1")
    session = Session(target, lambda text: None)
    try:
        assert run_lines(session, ["regions"]) == 5
    finally:
        target.close()
    error = capsys.readouterr().err
    assert error.startswith("error: no coordinator answers at 127.0.0.1:1")
    assert "hint: " in error


def test_bad_addresses_are_usage_errors() -> None:
    from nokv.errors import UsageError

    for text in ("nokv://", "nokv://localhost", "nokv://h:0"):
        with pytest.raises(UsageError):
            open_target(text)


# -- the prompt -------------------------------------------------------------------------------------------------------
def test_the_prompt_reads_lines_and_waits_for_a_closing_quote(planes: FakePlanes) -> None:
    target = open_target(f"nokv://{planes.address}")
    session = Session(target, lambda text: None)
    try:
        with create_pipe_input() as keys:
            prompt = make_prompt(session, input=keys, output=DummyOutput(), history=InMemoryHistory())
            keys.send_text("get user:1\r")
            assert prompt.prompt("> ") == "get user:1"
            keys.send_text('put k "one\rtwo"\r')
            assert prompt.prompt("> ") == 'put k "one\ntwo"'
    finally:
        target.close()


def test_history_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = history_path("nokv://h:1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert history_path("nokv://h:1") == path != history_path("nokv://h:2")


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    state = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    return {**kept, **state, "PYTHONPATH": f"{ROOT}:{ROOT / 'shell'}", "TERM": "xterm"}


def test_on_a_terminal(planes: FakePlanes, tmp_path: Path) -> None:
    planes.data[b"user:1"] = b"\x1b]0;pwned\x07"
    child = pexpect.spawn(
        sys.executable,
        ["-m", "nokv_shell.main", f"nokv://{planes.address}"],
        env=environment(tmp_path),  # type: ignore[arg-type]
        encoding="utf-8",
        timeout=30,
        dimensions=(24, 100),
    )
    try:
        child.expect("writes need")
        child.expect("nokv>")
        child.send("get user:1\r")
        child.expect(r"\\x1b\]0;pwned\\x07")
        child.send("put k v\r")
        child.expect("error: this session does not write")
        child.send("\\writemode on\r")
        child.expect("nokv#")
        child.send("put k v\r")
        child.expect("ok")
        child.send("nonsense\x03")  # Ctrl-C drops the line
        child.send("get k\r")
        child.expect(r"\bv\b")
        child.send("\x04")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert planes.data[b"k"] == b"v"
    finally:
        child.close(force=True)


def test_off_a_terminal_there_is_no_prompt_and_no_colour(planes: FakePlanes, tmp_path: Path) -> None:
    import subprocess

    planes.data[b"k"] = b"v"
    done = subprocess.run(
        [sys.executable, "-m", "nokv_shell.main", f"nokv://{planes.address}", "--output", "json"],
        input="get k\n# a comment\n\nget missing\nget k\n",
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["value"]["text"] == "v"
    assert re.fullmatch(r"error: no key missing\n", done.stderr)
