from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nokv.cli import config_query
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
        (lambda d: d["coordinator"].update(addres="x"), "did you mean `addr`"),
        (lambda d: d["regions"][0]["peers"][0].update(peer=1), "did you mean `peer_id`"),
        (lambda d: d.update(zzz=1), "known here: coordinator, stores"),
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


@pytest.mark.parametrize(
    ("arguments", "prints"),
    [
        (["stores", "--field", "addr"], "127.0.0.1:20160\n127.0.0.1:20161\n127.0.0.1:20162\n"),
        (["stores", "--field", "addr", "--scope", "docker"], "store-1:20160\nstore-2:20160\nstore-3:20160\n"),
        (["stores", "--field", "store_id", "--format", "json"], [1, 2, 3]),
        (["coordinator"], "127.0.0.1:2379\tartifacts/cluster/coordinator-1\n"),
        (["pd", "--scope", "docker", "--field", "work_dir"], "/var/lib/nokv\n"),
        (["regions", "--format", "json"], [{"id": 1, "start_key": "", "end_key": "-", "peers": ["1:101"]}]),
        (["catalog"], "1\t1\t101\t-\t-\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and isinstance(value[0], str) else None,
)
def test_nokv_config(arguments: list[str], prints: Any, capsys: pytest.CaptureFixture[str]) -> None:  # CLI-10
    assert config_query.run([*arguments, "--config", str(EXAMPLE)]) == 0
    out = capsys.readouterr().out
    assert (out if isinstance(prints, str) else json.loads(out)) == prints


def test_nokv_config_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_query.run(["stores", "--config", str(EXAMPLE), "--field", "adr"]) == 2
    assert "one of: store_id, addr, work_dir" in capsys.readouterr().err
    assert config_query.run(["stores", "--config", "/nonexistent/x"]) == 3
    assert config_query.run(["nothing"]) == 2
