"""Certificates of every kind that a connection can fail over, made once."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from nokv.rpc.certificates import init_ca, issue

NOW = datetime.datetime.now(datetime.UTC)
LONG_AGO = NOW - datetime.timedelta(days=400)
HOSTS = ["127.0.0.1", "localhost"]


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca/node, ca/client, ca/old (expired), ca/elsewhere (another host), ca/caller (may not serve); other/client."""
    root = tmp_path_factory.mktemp("tls")
    init_ca(root / "ca", now=LONG_AGO)
    init_ca(root / "other", name="another CA", now=NOW)
    issue(root / "ca", "node", HOSTS, now=NOW)
    issue(root / "ca", "client", now=NOW)
    issue(root / "ca", "old", HOSTS, days=30, now=LONG_AGO)
    issue(root / "ca", "elsewhere", ["db.example"], now=NOW)
    issue(root / "other", "client", HOSTS, now=NOW)
    return root
