"""When a group with nothing to do may go quiet (hibernate), and what ends that.

A leader that has had nothing to do for `quiet_after_ticks`, and whose members all have everything, tells them so (a
MsgHeartbeat that names the end of its log) and goes quiet; a member that has applied exactly that log goes quiet,
too. While quiet a tick does nothing: no heartbeats, no election timeout. Anything that happens wakes a member up.

Safety depends on none of it: a quiet member is one whose ticks come late, and keeps every promise until it is awake.
What does count ticks is a lease, so going quiet ends it. Liveness needs the driver: it must call `RawNode.wake` when
the leader's process was not heard for an election timeout, or no longer vouches for the group
(`nokv/multiraft/liveness.py`). The idea is CockroachDB's quiescence and TiKV's hibernated regions; what vouches here
is one exchange per pair of processes."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from nokv.raft.progress import ProgressState
from nokv.raft.types import NO_NODE, Message, MessageType

if TYPE_CHECKING:
    from nokv.raft.state import MemberState

__all__ = ["QUIET_TRANSITIONS", "Activity", "follower_may_rest", "leader_may_rest", "leaves_quiet"]


class Activity(enum.IntEnum):
    AWAKE = 0
    QUIET_LEADER = 1
    QUIET_FOLLOWER = 2


QUIET_TRANSITIONS: dict[tuple[Activity, Activity], str] = {
    (Activity.AWAKE, Activity.QUIET_LEADER): "nothing to do for a while, and every member has everything (tells them)",
    (Activity.AWAKE, Activity.QUIET_FOLLOWER): "the leader is quiet, and this member has applied all it has",
    (Activity.QUIET_LEADER, Activity.AWAKE): "a request, a refusal, any other message, or too few stores are heard",
    (Activity.QUIET_FOLLOWER, Activity.AWAKE): "a request, any message, or the leader's store is silent or disagrees",
}
"""Every change there is, and why; any other is a bug. docs/raft.md is drawn from this."""


_ANSWERS = (MessageType.HEARTBEAT_RESP, MessageType.APP_RESP)


def _log_at_rest(core: MemberState) -> bool:
    """Is everything it has durable, committed and applied?"""
    log = core.log
    last = log.last_index()
    return (
        log.applied == log.committed == last
        and not log.has_unstable_entries()
        and not log.has_unstable_snapshot()
        and not core.boot_ticks  # a promise counted in ticks
    )


def leader_may_rest(core: MemberState) -> bool:
    """Nothing left to do for anybody: no entry, read, membership change or transfer, and nobody behind or silent."""
    if core.lead_transferee != NO_NODE or core.read_rounds.waiting or core.pending_read_requests:
        return False
    own = core.progress.get(core.id)
    if own is None or own.is_learner or core.membership.is_joint or not _log_at_rest(core):
        return False
    last = core.log.last_index()
    if core.log.term_or_zero(last) != core.term:
        return False
    for node_id, one in core.progress.items():
        if node_id != core.id and not (
            one.state is ProgressState.REPLICATE and one.match == last and one.recent_active and not one.is_paused
        ):
            return False
    return True


def follower_may_rest(core: MemberState, notice: Message) -> bool:
    """The leader goes quiet: does this member have, and has it applied, exactly what the leader has?"""
    return (
        core.config.quiet_after_ticks > 0
        and (notice.log_term, notice.index) == core.log.last_id()
        and _log_at_rest(core)
    )


def leaves_quiet(core: MemberState, message: Message) -> bool:
    """Does this message end the rest? All do, but the same notice again, and late answers that refuse nothing."""
    if message.term != core.term:
        return True
    if core.activity is Activity.QUIET_LEADER:
        return message.type not in _ANSWERS or message.reject
    return message.type != MessageType.HEARTBEAT or (message.log_term, message.index) != core.log.last_id()
