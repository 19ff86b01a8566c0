"""`--metrics-addr`: `/metrics` (Prometheus text), `/debug/vars` (JSON), `/healthz`, `/readyz`, on threads of its own.

`collect()` returns a plain nested dict. It runs on this server's thread, so whoever passes it in brings it to
the right place first (`server.py` runs it on the event loop). Numbers become gauges named by their path; strings do not
appear in `/metrics`. A scrape that fails answers 500 and counts; it never takes the process down.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nokv.errors import NoKVError, UsageError
from nokv.rpc.tls import split_address

__all__ = ["MetricsServer", "flatten"]

Collect = Callable[[], dict[str, Any]]
_NAME = re.compile(r"[^a-zA-Z0-9_]")
LABELLED = {"regions": "region", "groups": "group", "peers": "peer", "families": "family", "levels": "level"}


def flatten(figures: dict[str, Any], prefix: str = "nokv") -> Iterator[tuple[str, dict[str, str], float]]:
    """(metric name, labels, value) of every number; what `LABELLED` names becomes a label and not part of the name."""

    def walk(
        value: Any, name: str, labels: dict[str, str], labelled: bool = False
    ) -> Iterator[tuple[str, dict[str, str], float]]:
        if isinstance(value, bool | int | float):
            yield _NAME.sub("_", name), labels, float(value)
        elif isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
            yield from walk(dict(enumerate(value)), name, labels)
        elif isinstance(value, dict):
            label = None if labelled else LABELLED.get(name.rpartition("_")[2])
            for key, inner in value.items():
                if label is not None and isinstance(inner, dict | int | float):
                    yield from walk(inner, name, {**labels, label: str(key)}, True)
                else:
                    yield from walk(inner, f"{name}_{key}", labels)

    yield from walk(figures, prefix, {})


class _Figures(Collector):
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # nothing is known before the first scrape

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[tuple[str, tuple[str, ...]], GaugeMetricFamily] = {}
        for name, labels, value in flatten(self._collect()):
            key = (name, tuple(labels))
            if key not in families:
                families[key] = GaugeMetricFamily(name, name.replace("_", " "), labels=list(labels))
            families[key].add_metric(list(labels.values()), value)
        yield from families.values()


class MetricsServer:
    """Listens when the constructor returns. `address` is where (port 0 was replaced by the real one)."""

    def __init__(self, address: str, collect: Collect, *, alive: Callable[[], str], ready: Callable[[], str]) -> None:
        """`alive` answers /healthz and `ready` /readyz: empty is 200, a reason 503, an exception 500."""
        host, port = split_address(address, "--metrics-addr")
        registry = CollectorRegistry()
        registry.register(_Figures(collect))
        failures = [0]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    kind, body, status = self._answer()
                except (NoKVError, TimeoutError, RuntimeError, ValueError) as error:
                    failures[0] += 1
                    kind, body, status = "text/plain", f"{error}\n".encode(), 500
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _answer(self) -> tuple[str, bytes, int]:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    return "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry), 200
                if path == "/debug/vars":
                    figures = {**collect(), "scrape_failures": failures[0]}
                    return "application/json", json.dumps(figures, default=str).encode(), 200
                if path in ("/healthz", "/readyz"):
                    waits_for = alive() if path == "/healthz" else ready()
                    return "text/plain", f"{waits_for or 'ok'}\n".encode(), 503 if waits_for else 200
                return "text/plain", b"/metrics /debug/vars /healthz /readyz\n", 404

            def log_message(self, format: str, *args: object) -> None:
                return  # a scrape every few seconds is no news

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UsageError(f"--metrics-addr {address}: {error.strerror}", hint="choose another port") from None
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="nokv-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
