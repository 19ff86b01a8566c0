"""Options of one Raft node. Every limit has a unit in its name or is a count."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from nokv.errors import UsageError
from nokv.raft.types import LOCAL_APPLY_THREAD, NO_LIMIT, NO_NODE

__all__ = ["RaftConfig", "RaftLogger", "ReadMode"]


class RaftLogger(Protocol):
    """Where the machine tells what it does. Called in the middle of a step: must not call back."""

    def debug(self, text: str, /) -> None: ...
    def info(self, text: str, /) -> None: ...
    def warning(self, text: str, /) -> None: ...
    def error(self, text: str, /) -> None: ...


class ReadMode(enum.IntEnum):
    SAFE = 0
    """A read waits for a quorum of heartbeat answers. Depends on no clock."""
    LEASE = 1
    """Within a lease a read answers at once. Safe only while no clock runs faster than another by more than
    `lease_drift_ticks` per election timeout. Needs check_quorum."""


@dataclass(slots=True, kw_only=True)
class RaftConfig:
    id: int
    election_ticks: int = 10
    heartbeat_ticks: int = 2
    applied: int = 0
    """Last index the state machine had applied before this start. Nothing at or below it is handed out again."""
    pre_vote: bool = True
    check_quorum: bool = True
    read_mode: ReadMode = ReadMode.SAFE
    lease_drift_ticks: int = 1
    """How many ticks one node's clock may gain on another's within an election timeout. Shortens the lease."""
    max_size_per_msg: int = 1 << 20
    """Bytes of entries in one MsgApp (at least one entry always goes)."""
    max_committed_size_per_ready: int = 0
    """Bytes of committed entries in one Ready, and in flight to the apply thread. 0: as max_size_per_msg."""
    max_uncommitted_entries_size: int = NO_LIMIT
    """Bytes of proposals not yet committed; more are dropped with ProposalDropped."""
    max_inflight_msgs: int = 256
    max_inflight_bytes: int = NO_LIMIT
    async_storage_writes: bool = False
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False
    quiet_after_ticks: int = 0
    """A leader that had nothing to do for so many ticks lets its group go quiet (docs/raft.md says what the driver owes
    it). 0: never, and no leader can talk this member into it."""
    logger: RaftLogger | None = None

    def validate(self) -> None:
        if self.id == NO_NODE:
            raise UsageError("raft id must not be 0")
        if self.id >= LOCAL_APPLY_THREAD:
            raise UsageError("raft id is reserved for a local storage thread")
        if self.heartbeat_ticks < 1:
            raise UsageError("heartbeat_ticks must be at least 1")
        if self.election_ticks <= self.heartbeat_ticks:
            raise UsageError("election_ticks must be greater than heartbeat_ticks")
        if self.quiet_after_ticks < 0:
            raise UsageError("quiet_after_ticks must not be negative")
        if self.max_inflight_msgs < 1:
            raise UsageError("max_inflight_msgs must be at least 1")
        if self.max_inflight_bytes < self.max_size_per_msg:
            raise UsageError("max_inflight_bytes must be at least max_size_per_msg")
        if self.read_mode is ReadMode.LEASE and not self.check_quorum:
            raise UsageError("lease reads need check_quorum")
        if self.read_mode is ReadMode.LEASE and not 0 <= self.lease_drift_ticks < self.election_ticks:
            raise UsageError("lease_drift_ticks must be at least 0 and below election_ticks")
