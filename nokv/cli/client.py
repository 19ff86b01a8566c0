"""What the commands about a cluster share: the readiness probe of each role, and how a region is printed."""

from __future__ import annotations

from typing import Any

from nokv.client.operator.client import AdminClient, CoordinatorAdmin, RootAdmin
from nokv.errors import NoKVError
from nokv.literal import format_literal
from nokv.pb import meta_pb2
from nokv.region import PeerRole, Region
from nokv.rpc.tls import Tls

__all__ = ["bound", "probe", "region_json"]


def probe(role: str, address: str, tls: Tls | None = None, *, timeout_s: float = 1.0) -> str:
    """Empty if the process is ready for work, else one line that says what it still waits for. Raises no NoKVError."""
    try:
        if role == "meta-root":
            with RootAdmin(address, timeout_s=timeout_s, tls=tls) as root:
                return "" if root.status().leader_id else "no leader elected yet"
        if role == "coordinator":
            with CoordinatorAdmin(address, timeout_s=timeout_s, tls=tls) as coordinator:
                status = coordinator.status()
                return "" if status.lease_holder or status.lease.holder else "no lease yet"
        with AdminClient(address, timeout_s=timeout_s, tls=tls) as store:
            state = store.execution_status().restart.state
            return "" if state == "ready" else f"restart posture {state or 'unknown'}"
    except NoKVError as error:
        return str(error)


def bound(key: bytes) -> str:
    """A region's bound in a table; "-" is unbounded."""
    return format_literal(key, limit=30) if key else "-"


def region_json(region: Region, leader: meta_pb2.Peer | None = None) -> dict[str, Any]:
    return {
        "id": region.region_id,
        "start_key": region.start_key,
        "end_key": region.end_key,
        "epoch": {"conf_version": region.epoch.conf_version, "version": region.epoch.version},
        "state": region.state.value,
        "leader": None
        if leader is None or not leader.peer_id
        else {"peer_id": leader.peer_id, "store_id": leader.store_id},
        "peers": [
            {"peer_id": p.peer_id, "store_id": p.store_id, "role": p.role.value, "voter": p.role is PeerRole.VOTER}
            for p in region.peers
        ],
    }
