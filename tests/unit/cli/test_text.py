"""What operators read: short lines for regions and peers, and what a restart found told apart from what is now."""

from __future__ import annotations

from nokv.cli.execution import _text
from nokv.cli.root import _compact, message_json
from nokv.pb import meta_pb2


def test_a_region_on_one_line() -> None:
    region = meta_pb2.Region(
        region_id=1,
        end_key=b"m\x00",
        epoch=meta_pb2.RegionEpoch(conf_version=5, version=1),
        peers=[
            meta_pb2.Peer(peer_id=101, store_id=1, role=meta_pb2.PEER_ROLE_VOTER),
            meta_pb2.Peer(peer_id=301, store_id=3, role=meta_pb2.PEER_ROLE_LEARNER),
        ],
    )
    shown = _compact(message_json(region))
    assert shown == '1 [-, "m\\x00") conf 5 version 1 peers 1:101,3:301(learner)'


def test_execution_tells_the_restart_from_now() -> None:
    restart = {"state": "ready", "region_count": 0, "raft_group_count": 0, "missing_raft_pointers": []}
    lines = _text(
        {
            "store_id": 2,
            "address": "127.0.0.1:1",
            "mode": "cluster",
            "last_admission": [],
            "topology": [],
            "restart": {**restart, "pending_root_events": 0},
            "regions": [{"id": 1}],
            "leader_region_ids": [],
        }
    ).splitlines()
    assert lines[1:4] == [
        "hosts regions: 1",
        "leads regions: none",
        "at start: ready, 0 regions, 0 raft groups, 0 root events pending",
    ]
