"""Stores that keep a region's membership in one shared picture and speak the real admin service over real gRPC.

Only what the rollout verbs look at; each fault makes one side lie, so that the verbs must notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import grpc
import pytest

from nokv.pb import admin_pb2, admin_pb2_grpc, meta_pb2
from nokv.region import Peer, PeerRole, Region

ROLES = {PeerRole.VOTER: meta_pb2.PEER_ROLE_VOTER, PeerRole.LEARNER: meta_pb2.PEER_ROLE_LEARNER}


def region_pb(region: Region) -> meta_pb2.Region:
    return meta_pb2.Region(
        region_id=region.region_id,
        epoch=meta_pb2.RegionEpoch(conf_version=region.epoch.conf_version, version=region.epoch.version),
        peers=[meta_pb2.Peer(peer_id=p.peer_id, store_id=p.store_id, role=ROLES[p.role]) for p in region.peers],
        state=meta_pb2.REGION_STATE_RUNNING,
    )


@dataclass
class Picture:
    """What is true. `calls` is the order in which the stores were asked to change something."""

    region: Region = field(default_factory=lambda: Region(1, peers=(Peer(101, 1),)))
    leader_peer: int = 101
    term: int = 6
    stores: dict[int, FakeStore] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: set[str] = field(default_factory=set)

    def leader_store(self) -> FakeStore:
        peer = self.region.peer(self.leader_peer)
        assert peer is not None
        return self.stores[peer.store_id]


class FakeStore(admin_pb2_grpc.AdminServicer):
    def __init__(self, picture: Picture, store_id: int) -> None:
        self.picture = picture
        self.store_id = store_id
        self.hosted: Region | None = None
        self.server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        picture.stores[store_id] = self

    def stop(self) -> None:
        self.server.stop(0).wait()

    @property
    def peer(self) -> Peer | None:
        return self.hosted.peer_on(self.store_id) if self.hosted is not None else None

    def RegionStatus(self, request, context):
        region, peer = self.hosted, self.peer
        if region is None or peer is None:
            return admin_pb2.RegionStatusResponse(hosted=False)
        leader = self.picture.region.peer(self.picture.leader_peer)
        shown = self.picture.leader_peer
        if "target-sees-old-leader" in self.picture.faults and peer.peer_id == shown:
            shown = 101
        return admin_pb2.RegionStatusResponse(
            hosted=True,
            region=region_pb(region),
            local_peer_id=peer.peer_id,
            leader_peer_id=shown,
            leader_store_id=leader.store_id if leader else 0,
            leader_address=self.picture.stores[leader.store_id].address if leader else "",
            term=self.picture.term,
            applied_index=20,
            applied_term=6,
        )

    def ExecutionStatus(self, request, context):
        regions = [region_pb(self.hosted)] if self.hosted is not None else []
        return admin_pb2.ExecutionStatusResponse(store_id=self.store_id, mode="cluster", regions=regions)

    def _leads(self, context) -> None:
        peer = self.peer
        if peer is None or peer.peer_id != self.picture.leader_peer:
            address = self.picture.leader_store().address
            context.set_trailing_metadata((("nokv-error", "not-leader"), ("nokv-leader", address)))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not the leader")

    def _publish(self, region: Region) -> admin_pb2.MembershipResponse:
        self.picture.region = region
        for store in self.picture.stores.values():
            if store.hosted is not None:
                store.hosted = region if region.peer_on(store.store_id) else store.hosted
        return admin_pb2.MembershipResponse(region=region_pb(region))

    def AddPeer(self, request, context):
        self._leads(context)
        self.picture.calls.append(f"add {request.peer.peer_id}")
        assert request.peer.role == meta_pb2.PEER_ROLE_LEARNER
        assert request.store_address == self.picture.stores[request.peer.store_id].address
        peer = Peer(request.peer.peer_id, request.peer.store_id, PeerRole.LEARNER)
        region = self.picture.region.with_peers((*self.picture.region.peers, peer))
        if "snapshot-never-arrives" not in self.picture.faults:
            self.picture.stores[peer.store_id].hosted = region
        return self._publish(region)

    def PromotePeer(self, request, context):
        self._leads(context)
        self.picture.calls.append(f"promote {request.peer_id}")
        if "learner-lags-once" in self.picture.faults:
            self.picture.faults.remove("learner-lags-once")
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"learner {request.peer_id} is 2005 entries behind")
        peers = self.picture.region.peers
        if "promotion-is-lost" in self.picture.faults:
            return admin_pb2.MembershipResponse(region=region_pb(self.picture.region))
        before = [store.hosted for store in self.picture.stores.values()]
        answer = self._publish(
            self.picture.region.with_peers(
                tuple(replace(p, role=PeerRole.VOTER) if p.peer_id == request.peer_id else p for p in peers)
            )
        )
        if "target-misses-promotion" in self.picture.faults:
            for store, old in zip(self.picture.stores.values(), before, strict=True):
                if store.peer is not None and store.peer.peer_id == request.peer_id:
                    store.hosted = old
        return answer

    def TransferLeader(self, request, context):
        self._leads(context)
        self.picture.calls.append(f"transfer {request.peer_id}")
        if "transfer-fails" not in self.picture.faults:
            self.picture.leader_peer = request.peer_id
            self.picture.term += 1
        return admin_pb2.MembershipResponse(region=region_pb(self.picture.region))

    def RemovePeer(self, request, context):
        self._leads(context)
        self.picture.calls.append(f"remove {request.peer_id}")
        if "removal-is-lost" in self.picture.faults:
            return admin_pb2.MembershipResponse(region=region_pb(self.picture.region))
        gone = self.picture.region.peer(request.peer_id)
        peers = tuple(p for p in self.picture.region.peers if p.peer_id != request.peer_id)
        answer = self._publish(self.picture.region.with_peers(peers))
        if gone is not None and "target-keeps-it" not in self.picture.faults:
            self.picture.stores[gone.store_id].hosted = None
        return answer


@pytest.fixture
def picture() -> Iterator[Picture]:
    """Three stores; store 1 hosts region 1 as its only voter."""
    found = Picture()
    for store_id in (1, 2, 3):
        FakeStore(found, store_id)
    found.stores[1].hosted = found.region
    yield found
    for store in found.stores.values():
        store.stop()
