"""One replica of the truth: proposals in, quorum-committed and applied answers out. On the event loop's thread.

    append     check against the applied state; propose; answer when the entry has come back committed and was applied.
               What would be refused (or is true already) is answered only behind a read barrier: this replica's state
               may be older than the truth.
    barrier    ReadIndex: when it returns, everything acknowledged before the call is applied here.
    changed    an event that is set when something was applied, and then replaced.

It knows Raft only through `RaftGroup`; `server.py` puts a MultiRaftHost behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nokv.env.ports import Clock
from nokv.errors import Busy, DeadlineExceeded, Indeterminate, NoKVError, NotLeader, Unavailable
from nokv.metaroot.events import RootEvent, RootRecord
from nokv.metaroot.machine import REFUSALS, AppliedBatch, RootMachine
from nokv.metaroot.ports import Appended, TailUpdate
from nokv.metaroot.state import RootState
from nokv.metaroot.wire import Assessment, RootBatch, decode_batch, encode_batch
from nokv.multiraft.ports import GroupCallbacks
from nokv.raft.errors import ProposalDropped
from nokv.raft.rawnode import RaftStatus
from nokv.raft.types import Entry, EntryKind, NodeRole, RaftSnapshot, ReadState, SoftState

__all__ = ["AppendResult", "LocalRoot", "RaftGroup", "RootNode"]

T = TypeVar("T")

PENDING_MAX = 4096
"""Appends and barriers that wait at the same time; beyond it callers get Busy."""

BARRIER_RETRY_S = 0.5
"""A ReadIndex request may be dropped on its way; it is asked again under a new context."""


class RaftGroup(Protocol):
    """What a node asks of the Raft group it is part of."""

    def propose(self, data: bytes) -> None: ...
    def read_index(self, context: bytes) -> None: ...
    def apply_conf_change(self, entry: Entry) -> None: ...
    def status(self) -> RaftStatus: ...


@dataclass(slots=True)
class AppendResult:
    """`records`: what was new, with its place in the log; empty if all was true already."""

    records: list[RootRecord]

    @property
    def already(self) -> bool:
        return not self.records


class RootNode(GroupCallbacks):
    """`members`: node id -> address. `request_base` must differ between two lives of the same process (high bits)."""

    def __init__(
        self,
        node_id: int,
        members: Mapping[int, str],
        machine: RootMachine,
        clock: Clock,
        request_base: int,
        *,
        on_applied: Callable[[], None] = lambda: None,
        on_install: Callable[[RaftSnapshot], None] = lambda snapshot: None,
    ) -> None:
        self.node_id = node_id
        self.members = dict(members)
        self.machine = machine
        self.changed = asyncio.Event()
        self.leader_id = 0
        self.leads = False
        self.group: RaftGroup | None = None
        self.appends = 0
        self.refusals = 0
        self._clock = clock
        self._request_id = request_base
        self._on_applied = on_applied
        self._on_install = on_install
        self._appends: dict[int, asyncio.Future[AppliedBatch]] = {}
        self._reads: dict[bytes, asyncio.Future[None]] = {}
        self._reads_at: list[tuple[int, asyncio.Future[None]]] = []  # answered once applied so far
        self._stopped = False

    # -- asking -------------------------------------------------------------------------------------------------------
    @property
    def leader_address(self) -> str:
        return self.members.get(self.leader_id, "")

    def not_leader(self) -> NotLeader:
        who = f"meta-root {self.leader_id} does" if self.leader_id else "nobody is known to"
        return NotLeader(f"meta-root {self.node_id} does not lead; {who}", address=self.leader_address)

    async def append(
        self, events: Sequence[RootEvent], *, expected_revision: int = 0, author: str = "", time_ms: int = 0
    ) -> AppendResult:
        """Raises the refusal; NotLeader or Busy if nothing was appended; Indeterminate if that is not known."""
        self._check_leads()
        try:
            news = self.machine.state.validate(events, expected_revision=expected_revision)
        except REFUSALS:
            news = False
        if not news:  # a refusal, or nothing to do: sure only once this state is known to be current
            await self.barrier()
            try:
                if not self.machine.state.validate(events, expected_revision=expected_revision):
                    return AppendResult([])
            except REFUSALS:
                self.refusals += 1
                raise
            self._check_leads()
        if len(self._appends) >= PENDING_MAX:
            raise Busy(f"{PENDING_MAX} appends are waiting")
        self._request_id += 1
        batch = RootBatch(
            self.node_id, self._request_id, list(events), expected_revision, time_ms or self._clock.time_ms(), author
        )
        data = encode_batch(batch)
        future: asyncio.Future[AppliedBatch] = asyncio.get_running_loop().create_future()
        self._appends[batch.request_id] = future
        try:
            assert self.group is not None
            self.group.propose(data)
            outcome = await future
        finally:
            self._appends.pop(batch.request_id, None)
        if outcome.error is not None:
            self.refusals += 1
            raise outcome.error
        self.appends += 1
        return AppendResult(outcome.records)

    async def assess(self, events: Sequence[RootEvent], *, expected_revision: int = 0) -> Assessment:
        """What `append` would answer at this moment. Writes nothing. Leader only: behind a read barrier."""
        await self.barrier()
        state = self.machine.state
        try:
            news = state.validate(events, expected_revision=expected_revision)
        except REFUSALS as error:
            return Assessment("refused", state.last, error)
        return Assessment("admitted" if news else "already", state.last)

    async def barrier(self) -> None:
        """Linearizable: everything acknowledged before the call is applied here when it returns. Leader only."""
        while True:
            self._check_leads()
            if len(self._reads) >= PENDING_MAX:
                raise Busy(f"{PENDING_MAX} reads are waiting")
            self._request_id += 1
            context = self._request_id.to_bytes(8, "big")
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._reads[context] = future
            try:
                assert self.group is not None
                self.group.read_index(context)
                async with asyncio.timeout(BARRIER_RETRY_S):
                    await future
                return
            except TimeoutError:
                continue
            except ProposalDropped as error:
                raise self.not_leader() from error
            finally:
                self._reads.pop(context, None)

    async def follow(self, revision: int, *, heartbeat_s: float, batch: int = 500) -> AsyncIterator[TailUpdate]:
        """What the log says after `revision` (exclusive), for ever. Never goes back: a replica that is behind waits
        until it is not. A quiet log says every `heartbeat_s` that it is alive. A state that comes out is the
        caller's own."""
        machine = self.machine
        orphaned = 0
        fresh = revision == 0
        while True:
            changed = self.changed
            if machine.last.revision > revision or fresh:
                if fresh or revision + 1 < machine.first_revision:
                    state = machine.state.copy()
                    revision = state.last.revision
                    yield TailUpdate("bootstrap" if fresh else "reload", [], state, state.last)
                    fresh = False
                else:
                    records = machine.read(revision + 1, batch)
                    revision = records[-1].token.revision
                    yield TailUpdate("advance", records, None, machine.last)
                continue
            try:
                async with asyncio.timeout(heartbeat_s):
                    await changed.wait()
            except TimeoutError:
                # A replica without a leader cannot tell how far behind it is: let the subscriber find a better one.
                orphaned = orphaned + 1 if self.leader_id == 0 else 0
                if orphaned >= 3:
                    raise Unavailable(f"meta-root {self.node_id} has lost its leader") from None
                if machine.last.revision >= revision:
                    yield TailUpdate("advance", [], None, machine.last)

    def _check_leads(self) -> None:
        if self._stopped:
            raise Unavailable("this meta-root is stopping")
        if not self.leads:
            raise self.not_leader()

    def raft_status(self) -> RaftStatus:
        assert self.group is not None
        return self.group.status()

    def stop(self) -> None:
        self._stopped = True
        self._fail_waiting(Unavailable("this meta-root is stopping"))

    # -- GroupCallbacks -----------------------------------------------------------------------------------------------
    def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind is not EntryKind.NORMAL:
                assert self.group is not None
                self.group.apply_conf_change(entry)  # nobody proposes one: membership is fixed by configuration
                self.machine.apply_entry(entry.term, entry.index, b"")
                continue
            outcome = self.machine.apply_entry(entry.term, entry.index, entry.data)
            if outcome is not None and outcome.batch.proposer == self.node_id:
                future = self._appends.pop(outcome.batch.request_id, None)
                if future is not None and not future.done():
                    future.set_result(outcome)
        self._wake()

    def on_snapshot(self, snapshot: RaftSnapshot) -> bool:
        self._on_install(snapshot)
        self._wake()
        return True

    def on_soft_state(self, state: SoftState) -> None:
        self.leader_id = state.leader
        led, self.leads = self.leads, state.role is NodeRole.LEADER
        if led and not self.leads:
            self._fail_waiting(Indeterminate("leadership moved while the append was on its way: it may take place"))
        self._notify()

    def on_read_states(self, states: list[ReadState]) -> None:
        for state in states:
            future = self._reads.get(state.context)
            if future is None or future.done():
                continue
            if state.index <= self.machine.applied_index:
                future.set_result(None)
            else:
                self._reads_at.append((state.index, future))

    def on_dropped(self, proposals: list[bytes]) -> None:
        for data in proposals:
            future = self._appends.pop(decode_batch(data).request_id, None)
            if future is not None and not future.done():
                future.set_exception(self.not_leader() if not self.leads else Busy("too much is on its way"))

    # -- inside -------------------------------------------------------------------------------------------------------
    def _wake(self) -> None:
        applied = self.machine.applied_index
        if self._reads_at:
            waiting = []
            for index, future in self._reads_at:
                if future.done():
                    continue
                if index <= applied:
                    future.set_result(None)
                else:
                    waiting.append((index, future))
            self._reads_at = waiting
        self._on_applied()
        self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _fail_waiting(self, append_error: NoKVError) -> None:
        appends, self._appends = self._appends, {}
        for future in appends.values():
            if not future.done():
                future.set_exception(append_error)
        for read in self._reads.values():
            if not read.done():
                read.set_exception(self.not_leader())
        self._notify()


class LocalRoot:
    """`RootLog` over a node of this process: the backend of a coordinator with a work directory of its own."""

    def __init__(self, node: RootNode, *, timeout_s: float = 5.0, heartbeat_s: float = 0.5) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._heartbeat_s = heartbeat_s

    async def append(
        self,
        events: Sequence[RootEvent],
        *,
        expected_revision: int = 0,
        author: str = "",
        time_ms: int = 0,
        timeout_s: float | None = None,
    ) -> Appended:
        result = await self._leading(
            lambda: self._node.append(events, expected_revision=expected_revision, author=author, time_ms=time_ms),
            timeout_s,
            Indeterminate("the append was not committed in time: it may still be"),
        )
        return Appended(result.records, self._node.machine.state.summary(), result.already)

    async def assess(
        self, events: Sequence[RootEvent], *, expected_revision: int = 0, timeout_s: float | None = None
    ) -> Assessment:
        return await self._leading(
            lambda: self._node.assess(events, expected_revision=expected_revision), timeout_s, _LATE
        )

    async def snapshot(
        self, *, linearizable: bool = True, without_catalog: bool = False, timeout_s: float | None = None
    ) -> RootState:
        if linearizable:
            await self._leading(self._node.barrier, timeout_s, _LATE)
        state = self._node.machine.state
        return state.summary() if without_catalog else state.copy()

    def tail(self, from_revision: int = 0) -> AsyncIterator[TailUpdate]:
        return self._node.follow(from_revision, heartbeat_s=self._heartbeat_s)

    async def close(self) -> None:
        """The node is its server's."""

    async def _leading(self, call: Callable[[], Awaitable[T]], timeout_s: float | None, late: NoKVError) -> T:
        """The only voter leads at once, but for the first moment of its life."""
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                while True:
                    changed = self._node.changed
                    try:
                        return await call()
                    except NotLeader:
                        await changed.wait()
        except TimeoutError:
            raise late from None


_LATE = DeadlineExceeded("the rooted log of this process did not answer in time")
