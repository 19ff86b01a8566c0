"""The contracts between the ready loop, the network and the owners of groups. Plain values; no IO here.

Real versions: `transport.RaftTransport` (gRPC) and the asyncio loop. Test versions: `SimNetwork` and `SimLoop` in
`nokv.testing.network`. All of it runs on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nokv.multiraft.wire import GroupMessage
from nokv.raft.types import Entry, Message, RaftSnapshot, ReadState, SoftState

__all__ = [
    "SNAPSHOT_CHUNK_BYTES_MAX",
    "GroupCallbacks",
    "MessageSink",
    "Network",
    "Scheduler",
    "SnapshotOffer",
    "SnapshotPayload",
    "SnapshotReceiver",
    "SnapshotStaging",
    "TimerHandle",
]

SNAPSHOT_CHUNK_BYTES_MAX = 1 << 20


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """What the loop runs on. An asyncio event loop is one; `nokv.testing.network.SimLoop` another."""

    def call_soon(self, callback: Callable[..., Any], /, *args: Any) -> Any: ...
    def call_later(self, delay_s: float, callback: Callable[..., Any], /, *args: Any) -> TimerHandle: ...


@dataclass(slots=True)
class SnapshotPayload:
    """The files of one snapshot, as the sender reads them.

    `chunks()` is called once per attempt and yields (base name, at most 1 MiB) with the chunks of one file together;
    `manifest` is opaque here. `close` runs once, when the attempt has ended either way.
    """

    manifest: bytes = b""
    total_bytes: int = 0
    chunks: Callable[[], Iterator[tuple[str, bytes]]] = lambda: iter(())
    close: Callable[[], None] = lambda: None


@dataclass(slots=True)
class SnapshotOffer:
    """The header of an arriving snapshot."""

    from_node: int
    group_id: int
    message: Message
    manifest: bytes
    total_bytes: int


class SnapshotStaging(Protocol):
    """Where the receiver puts an arriving snapshot. Nothing is hosted or visible before the group installs it."""

    def write(self, file: str, data: bytes, /) -> None:
        """The next bytes of `file`, a base name that has been checked. The checksum of `data` has been verified."""
        ...

    def finish(self) -> None:
        """All bytes are here. The MsgSnap is handed to the group right after. Raising refuses the snapshot."""
        ...

    def abort(self) -> None:
        """The stream broke: remove what was staged."""
        ...


class SnapshotReceiver(Protocol):
    def begin(self, offer: SnapshotOffer, /) -> SnapshotStaging:
        """Raise a NoKVError (Busy, NotFound, ...) to refuse: its text travels back to the sender."""
        ...


class MessageSink(Protocol):
    """Where a Network delivers: the host."""

    def receive(self, from_node: int, messages: list[GroupMessage], /) -> None: ...
    def undelivered(self, node_id: int, messages: list[GroupMessage], /) -> None:
        """These were dropped (full queue, failed stream). Some of them may have arrived all the same."""
        ...


class Network(Protocol):
    """Best effort, no order between two calls, no duplicates that Raft could not take. Never blocks, never raises."""

    def send(self, node_id: int, messages: list[GroupMessage], /) -> None:
        """Queue for that process. The messages belong to the network from now on and must not be changed."""
        ...

    def send_snapshot(
        self,
        node_id: int,
        group_id: int,
        message: Message,
        payload: SnapshotPayload | None,
        done: Callable[[bool], None],
        /,
    ) -> None:
        """Stream a MsgSnap and its files; call `done` once, later: True when the receiver has accepted all of it."""
        ...


class GroupCallbacks:
    """What the owner of a group implements: subclass it. Called on the loop's thread; must not block for long.

    Any exception from `apply` stops the process: an entry that fails here would fail, or worse succeed, elsewhere.
    """

    __slots__ = ()

    def apply(self, entries: list[Entry]) -> None:
        """Committed entries in order, durable in the log. Each kind comes here, also empty and configuration entries
        (`node.apply_conf_change(decode_conf_change(entry))`, and remember the ConfState with the applied index)."""
        raise NotImplementedError

    def on_snapshot(self, snapshot: RaftSnapshot) -> bool:
        """Install it: data and applied index durable before the end. True: done. False: working on it; the owner calls
        `host.snapshot_installed(group_id)` later, and the group's Ready is held until then while other groups go on."""
        raise NotImplementedError

    def on_soft_state(self, state: SoftState) -> None:
        """Leader or role changed. Called before anything of the same turn is saved."""

    def on_read_states(self, states: list[ReadState]) -> None:
        """These reads are linearizable once their index is applied."""

    def on_dropped(self, proposals: list[bytes]) -> None:
        """Appended nowhere: no leader, transfer in progress, too much uncommitted. Safe to retry."""

    def snapshot_payload(self, message: Message) -> SnapshotPayload | None:
        """The files that go with this MsgSnap; None if its `snapshot.data` is all there is."""
        return None
