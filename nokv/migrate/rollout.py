"""What expand, transfer-leader and remove-peer share: the target grammar, finding the leader, waiting, the checkpoint.

Rules of every verb: the checkpoint is written *before* the call that changes something (MIG-31); every step may be
repeated; the command believes no answer until the leader and the target say the same (MIG-27).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nokv.client.operator.client import AdminClient, RegionStatus
from nokv.env.files import OsFiles
from nokv.env.ports import Files
from nokv.errors import Busy, DeadlineExceeded, NoKVError, NotLeader, PreconditionFailed, Unavailable, UsageError
from nokv.migrate.checkpoint import Checkpoint, Rollout, load_checkpoint, save_checkpoint
from nokv.migrate.failpoints import NO_FAILPOINTS, Failpoints
from nokv.migrate.plan import require_directory
from nokv.rpc.tls import Tls

__all__ = ["RolloutLog", "Target", "Waiter", "find_leader", "format_target", "parse_target", "with_leader"]

_TARGET = re.compile(r"([0-9]{1,20}):([0-9]{1,20})(?:@(.+))?", re.ASCII)
ID_MAX = (1 << 64) - 1
LEADER_HOPS_MAX = 5


@dataclass(slots=True, frozen=True)
class Target:
    """One new replica: `<store>:<peer>[@addr]`. An empty address is looked up at the coordinator."""

    store_id: int
    peer_id: int
    address: str = ""


def parse_target(text: str) -> Target:
    """UsageError if `text` is not `<store>:<peer>[@host:port]` with ids from 1."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError(f"target {text!r} is not <store>:<peer>[@host:port]", hint="for example 2:201@127.0.0.1:20161")
    store_id, peer_id, address = int(match[1]), int(match[2]), match[3] or ""
    if not (0 < store_id <= ID_MAX and 0 < peer_id <= ID_MAX):
        raise UsageError(f"target {text!r}: store and peer ids start at 1 and fit 64 bits")
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"target {text!r}: address {address!r} is not host:port")
    return Target(store_id, peer_id, address)


def format_target(target: Target) -> str:
    return f"{target.store_id}:{target.peer_id}" + (f"@{target.address}" if target.address else "")


@dataclass(slots=True)
class Waiter:
    """`--wait` and `--poll-interval`. `wait_s` 0 means: do not wait, report what was started."""

    wait_s: float = 30.0
    poll_interval_s: float = 0.2
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    def until(self, waits_for: Callable[[], str]) -> None:
        """Poll until `waits_for()` is "". DeadlineExceeded with its last answer after `wait_s`."""
        deadline = self.monotonic() + self.wait_s
        while True:
            try:
                reason = waits_for()
            except Unavailable as error:
                reason = str(error)
            if not reason:
                return
            if self.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"after {self.wait_s:g} s: {reason}",
                    hint="run the same command again: it continues; or raise --wait",
                )
            self.sleep(self.poll_interval_s)

    def left(self) -> float:
        """A timeout for one call that itself waits for a commit."""
        return max(self.wait_s, 5.0)


class RolloutLog:
    """The checkpoint of the directory that `--workdir` names; without one it only passes the failpoints."""

    def __init__(self, workdir: str | None, files: Files | None = None, failpoints: Failpoints = NO_FAILPOINTS) -> None:
        self.workdir = workdir
        self.files = files if files is not None else OsFiles()
        self.failpoints = failpoints
        self.checkpoint = Checkpoint()
        if workdir is not None:
            require_directory(workdir, self.files)
            self.checkpoint = load_checkpoint(workdir, self.files) or Checkpoint()

    def write(self, rollout: Rollout) -> None:
        """Durable before it returns."""
        self.failpoints.hit(f"before-{rollout.stage}")
        self.checkpoint = self.checkpoint.with_rollout(rollout)
        if self.workdir is not None:
            save_checkpoint(self.workdir, self.checkpoint, self.files)
        self.failpoints.hit(rollout.stage)

    def advance(self, **changes: object) -> Rollout:
        assert self.checkpoint.rollout is not None
        rollout = replace(self.checkpoint.rollout, **changes)  # type: ignore[arg-type]
        self.write(rollout)
        return rollout


def find_leader(address: str, region_id: int, tls: Tls | None = None) -> tuple[AdminClient, RegionStatus]:
    """A client of the store that leads the region, starting at any store that hosts it. The caller closes it."""
    seen = [address]
    while True:
        client = AdminClient(seen[-1], tls=tls)
        try:
            found = client.region_status(region_id)
            if not found.hosted:
                raise PreconditionFailed(
                    f"the store at {client.address} does not host region {region_id}",
                    hint="give --addr of one that does",
                )
            if found.is_leader:
                return client, found
            if not found.leader_peer_id:
                raise Unavailable(
                    f"region {region_id} has no leader now (asked {client.address})", hint="try again soon"
                )
            if not found.leader_address:
                raise Unavailable(f"the leader of region {region_id} is store {found.leader_store_id}, address unknown")
            if found.leader_address in seen or len(seen) > LEADER_HOPS_MAX:
                raise Unavailable(
                    f"the stores disagree about the leader of region {region_id}: asked {', '.join(seen)}"
                )
            seen.append(found.leader_address)
        except BaseException:
            client.close()
            raise
        client.close()


def with_leader(
    address: str,
    region_id: int,
    waiter: Waiter,
    act: Callable[[AdminClient, RegionStatus], None],
    tls: Tls | None = None,
) -> RegionStatus:
    """Run `act` against the leader; if leadership moves meanwhile or the leader cannot do it yet, ask again (acts are
    repeatable).

    Returns the leader's status seen before the successful `act`.
    """
    done: list[RegionStatus] = []

    def attempt() -> str:
        try:
            client, found = find_leader(address, region_id, tls)
            with client:
                act(client, found)
            done.append(found)
        except (NotLeader, Busy) as error:  # Busy: a learner that is still behind, another change in flight
            return str(error)
        return ""

    Waiter(max(waiter.wait_s, 5.0), waiter.poll_interval_s, waiter.sleep, waiter.monotonic).until(attempt)
    return done[-1]


def disagree(side: str, detail: str) -> NoKVError:
    """MIG-27: says which side does not show what the other one does."""
    return PreconditionFailed(f"{side} disagrees: {detail}", hint="run `nokv migrate status --addr` on both stores")
