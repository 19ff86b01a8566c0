"""Three real stores, six regions, one real coordinator: leaders that are all in one place spread out. CO-11, RS-16"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import nokv
from nokv.coordinator.client import CoordinatorClient
from nokv.coordinator.server import CoordinatorConfig, CoordinatorServer
from nokv.engine.mode import CLUSTER, ModeRecord, write_mode
from nokv.env.files import OsFiles
from nokv.metaroot.events import RegionBootstrapped
from nokv.multiraft.raftlog import RaftLog, WalPort
from nokv.mvcc import MVCC_FAMILIES
from nokv.raft import ConfState
from nokv.raftstore.bootstrap import RAFT_INIT_INDEX, RAFT_INIT_TERM
from nokv.raftstore.control import ControlPort
from nokv.raftstore.localmeta import ApplyState, LocalMeta, StoreIdent
from nokv.raftstore.node import StoreConfig, StoreNode
from nokv.region import Peer, Region
from tests.unit.metaroot.harness import eventually, free_addresses, healthy_services

STORES = (1, 2, 3)
REGIONS = [
    Region(
        n,
        b"" if n == 1 else b"%d" % n,
        b"" if n == 6 else b"%d" % (n + 1),
        peers=tuple(Peer(n * 10 + s, s) for s in STORES),
    )
    for n in range(1, 7)
]


def lay_out(workdir: Path, store_id: int) -> None:
    """A store that hosts a replica of every region, as if each had been installed from an empty snapshot."""
    with nokv.open(workdir, wal_retainers=("raft",)) as db:
        for name in MVCC_FAMILIES:
            db.family(name, create=True)
        meta, log = LocalMeta(db, create=True), RaftLog.open(cast(WalPort, db.wal))

        def fill(batch: Any) -> None:
            for region in REGIONS:
                conf = ConfState(voters=tuple(p.peer_id for p in region.peers))
                state = ApplyState(RAFT_INIT_INDEX, RAFT_INIT_TERM, 1, True, conf)
                meta.put_region(batch, region)
                meta.put_applied(batch, region.region_id, state)

        meta.save_ident(StoreIdent(store_id, ""))
        meta.write(fill)
        for region in REGIONS:
            conf = ConfState(voters=tuple(p.peer_id for p in region.peers))
            log.group(region.region_id).initialise(RAFT_INIT_INDEX, RAFT_INIT_TERM, conf)
    write_mode(str(workdir), ModeRecord(CLUSTER, store_id), OsFiles())


async def test_leaders_of_one_store_are_balanced(tmp_path: Path) -> None:
    addresses = dict(zip(STORES, free_addresses(3), strict=True))
    (control,) = free_addresses(1)
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        nodes: dict[int, StoreNode] = {}
        for store_id in STORES:
            lay_out(tmp_path / f"s{store_id}", store_id)
            config = StoreConfig(
                workdir=str(tmp_path / f"s{store_id}"),
                store_id=store_id,
                address=addresses[store_id],
                store_addresses=addresses,
                tick_interval_s=0.02,
                heartbeat_interval_s=0.1,
            )
            node = nodes[store_id] = StoreNode(config, cast(ControlPort, CoordinatorClient([control])))
            await node.start()
            stack.push_async_callback(node.stop)
        for address in addresses.values():  # TR-06
            assert {"nokv.v1.Kv", "nokv.v1.Admin", "grpc.health.v1.Health"} <= await healthy_services(address)

        def led() -> list[int]:
            return [len(node.store.leaders()) for node in nodes.values()]

        def all_on_the_first() -> bool:
            for store_id in (2, 3):
                for peer in nodes[store_id].store.leaders():
                    nodes[store_id].store.transfer_leader(peer.region_id, peer.region_id * 10 + 1)
            return led() == [6, 0, 0]

        await eventually(all_on_the_first, "store 1 leads everything", 30.0)
        coordinator = CoordinatorServer(CoordinatorConfig("c1", control, workdir=str(tmp_path / "c")))
        await coordinator.start()
        stack.push_async_callback(coordinator.stop)
        client = CoordinatorClient([control])
        stack.push_async_callback(client.close)

        async def registered() -> bool:
            return len(await client.list_stores()) == 3

        await eventually(registered, "the stores are known", 30.0)
        await client.publish_all([RegionBootstrapped(region) for region in REGIONS])
        await eventually(lambda: led() == [2, 2, 2], "two leaders on each store", 30.0)
        assert coordinator.node is not None
        scheduler = coordinator.node.scheduler
        await eventually(lambda: not scheduler.pending, "every operation has ended")
        assert scheduler.ended.get("done") == 4
        assert nodes[1].stats()["operations"]["applied"] == 4
        figures = coordinator.stats()
        assert figures["operations_issued"] == sum(figures["operations_ended"].values())
