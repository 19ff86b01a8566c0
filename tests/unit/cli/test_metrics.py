from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from nokv.cli.metrics import MetricsServer, flatten
from nokv.errors import Unavailable, UsageError
from nokv.rpc.tls import split_address

FIGURES = {"wal": {"syncs": 3, "path": "x"}, "regions": {1: {"applied": 7}, 2: {"applied": 9}}, "ok": True}


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    found = MetricsServer("127.0.0.1:0", lambda: FIGURES, alive=str, ready=str)
    yield found
    found.close()


def fetch(server: MetricsServer, path: str) -> str:
    with urllib.request.urlopen(f"http://{server.address}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_endpoints(server: MetricsServer) -> None:
    text = fetch(server, "/metrics")
    assert "nokv_wal_syncs 3.0" in text
    assert 'nokv_regions_applied{region="1"} 7.0' in text
    assert json.loads(fetch(server, "/debug/vars"))["wal"]["syncs"] == 3
    assert fetch(server, "/healthz") == fetch(server, "/readyz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(server, "/nowhere")


def test_a_failing_scrape_is_a_500_and_the_server_goes_on() -> None:
    def collect() -> dict[str, object]:
        raise Unavailable("not now")

    server = MetricsServer("127.0.0.1:0", collect, alive=str, ready=lambda: "no leader")
    try:
        for path in ("/metrics", "/debug/vars"):
            with pytest.raises(urllib.error.HTTPError, match="500"):
                fetch(server, path)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            fetch(server, "/readyz")
        assert fetch(server, "/healthz") == "ok\n"  # alive, and not ready
    finally:
        server.close()


def test_flatten() -> None:
    assert list(flatten({"a-b": {"c": 1}, "s": "text"})) == [("nokv_a_b_c", {}, 1.0)]


@pytest.mark.parametrize("address", ["", "x", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_bad_address(address: str) -> None:
    with pytest.raises(UsageError, match="--metrics-addr"):
        split_address(address, "--metrics-addr")
