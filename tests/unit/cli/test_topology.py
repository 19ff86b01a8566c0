from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nokv.cli.launcher import LocalCluster
from nokv.cli.topology import first_region, load_topology, parse_region_key, places
from nokv.errors import NoKVError, NotSupported, UsageError

EXAMPLE = Path(__file__).parents[3] / "raft_config.example.json"


def test_the_example_is_right() -> None:
    found = load_topology(str(EXAMPLE))
    assert len(found.meta_root.peers) == 3
    assert [store.store_id for store in found.stores] == [1, 2, 3]
    assert found.regions[0].peers[0].peer_id == 101


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["stores"][0].update(adr="x"), "did you mean `addr`"),
        (lambda d: d["stores"].append(d["stores"][0]), "store_id 1 appears twice"),
        (lambda d: d["regions"][0]["peers"].append({"store_id": 9, "peer_id": 901}), "store 9"),
        (lambda d: d["regions"].append({"id": 2, "start_key": "a", "end_key": "b"}), "overlap"),
        (lambda d: d["regions"][0].update(start_key="b", end_key="a"), "ends before"),
        (lambda d: d["regions"][0].update(start_key="hex:zz"), "hex:zz"),
        (lambda d: d.pop("coordinator"), "coordinator"),
        (lambda d: d["stores"][0].update(store_id="1"), "store_id"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, change: Any, says: str) -> None:
    document = json.loads(EXAMPLE.read_text())
    change(document)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document))
    with pytest.raises(NoKVError) as caught:
        load_topology(str(path))
    assert says in f"{caught.value} {caught.value.hint}"


def test_keys() -> None:
    assert parse_region_key("-") == parse_region_key("") == b""
    assert parse_region_key("hex:00ff") == b"\x00\xff"
    assert parse_region_key("base64:AP8=") == b"\x00\xff"
    assert parse_region_key("abc") == b"abc"
    with pytest.raises(UsageError):
        parse_region_key("base64:*")


def test_a_local_cluster_of_the_file(tmp_path: Path) -> None:  # CLI-13
    found = load_topology(str(EXAMPLE))
    cluster = LocalCluster.describe_new(tmp_path / "c", places(found))
    assert [r.name for r in cluster.records] == [
        "meta-root-1", "meta-root-2", "meta-root-3", "coordinator-1", "store-1", "store-2", "store-3",
    ]  # fmt: skip
    assert cluster.get("store-2").address == "127.0.0.1:20161"
    assert "127.0.0.1:2379" in cluster.get("store-2").arguments
    assert first_region(found)[0].peer_id == 101


def test_several_first_regions_are_not_supported(tmp_path: Path) -> None:
    document = json.loads(EXAMPLE.read_text())
    document["regions"][0]["end_key"] = "m"
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document))
    with pytest.raises(NotSupported):
        first_region(load_topology(str(path)))
