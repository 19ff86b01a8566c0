"""RootClient: the truth from afar. Finds the leader by itself, retries what is safe to retry, keeps deadlines.

An append is safe to retry although it is a write: an event that is true already takes no second place in the log, and
`expected_revision` is not held against a batch that got through before. What is retried goes to the next address,
with a short pause; the error that comes out at the deadline says whether the outcome is known.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from nokv.errors import (
    Busy,
    Corruption,
    DeadlineExceeded,
    Indeterminate,
    NoKVError,
    NotFound,
    NotLeader,
    NotSupported,
    NotTrusted,
    PreconditionFailed,
    Unavailable,
    UsageError,
)
from nokv.metaroot.events import RootEvent, RootRecord, RootToken
from nokv.metaroot.ports import Appended, TailUpdate
from nokv.metaroot.state import RootState
from nokv.metaroot.wire import (
    Assessment,
    StateAssembler,
    assessment_from_pb,
    error_from_code,
    event_to_pb,
    record_from_pb,
    state_from_pb,
    token_from_pb,
)
from nokv.pb import root_pb2, root_pb2_grpc
from nokv.rpc.tls import Tls
from nokv.rpc.transport import Channels, Dialer, is_oversize

__all__ = [
    "CHANNEL_OPTIONS",
    "MESSAGE_BYTES_MAX",
    "Appended",
    "Dial",
    "Redirector",
    "RootClient",
    "RootStatus",
    "TailUpdate",
    "dial_plain",
    "dial_with",
    "error_from_rpc",
    "is_reported",
]

MESSAGE_BYTES_MAX = 64 << 20
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
]
ATTEMPT_S_MAX = 0.8
GIVEN_UP_S = 0.25
"""An attempt that its caller cancels after so long counts as one that ran out."""
ROOT_SILENCE_S = 1.0
"""A meta-root that let an attempt run out is not asked again for so long: a stopped process keeps its connections, and
the others name it as the leader until they have elected another."""
PAUSE_S_MIN = 0.01
PAUSE_S_MAX = 0.25
END_OF_STREAM: Any = grpc.aio.EOF
log = logging.getLogger("nokv.metaroot")

FailedCall: TypeAlias = grpc.aio.AioRpcError | grpc.Call
_BY_STATUS: dict[grpc.StatusCode, type[NoKVError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.OUT_OF_RANGE: UsageError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ALREADY_EXISTS: PreconditionFailed,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.DATA_LOSS: Corruption,
}
"""Of a call without our trailer. What is not here may have taken effect or not, as when nobody answers."""

T = TypeVar("T")
S = TypeVar("S")
Dial = Callable[[str], grpc.aio.Channel]
"""How a client gets a channel to an address. The simulator passes its own."""


def dial_with(tls: Tls | None) -> Dialer:
    return Dialer(CHANNEL_OPTIONS, tls)


dial_plain = dial_with(None)


def is_reported(error: FailedCall) -> bool:
    """Did the server say what went wrong? Otherwise the connection failed, or time ran out."""
    return "nokv-error" in _trailers(error)


def error_from_rpc(error: FailedCall, source: str = "") -> NoKVError:
    """Our error for a failed call, blocking or not: the one that the server reported, else what the status says.
    `source` names who said it."""
    trailers = _trailers(error)
    details = error.details() or error.code().name.lower().replace("_", " ")
    message = f"{source}: {details}" if source else details
    if is_reported(error):
        return error_from_code(
            str(trailers["nokv-error"]),
            message,
            hint=str(trailers.get("nokv-hint", "")),
            address=str(trailers.get("nokv-leader", "")),
            extra=trailers.get("nokv-region-bin", b""),
        )
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and is_oversize(details):
        return UsageError(message)
    return _BY_STATUS.get(error.code(), Unavailable)(message)


def _trailers(error: FailedCall) -> dict[str, Any]:
    metadata: Any = error.trailing_metadata() or ()
    return dict(metadata)


def _said_nothing(error: grpc.aio.AioRpcError) -> bool:
    """The attempt ran out: the peer's own "too late" would name its class."""
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not is_reported(error)


@dataclass(slots=True)
class RootStatus:
    node_id: int
    leader_id: int
    leader_address: str
    term: int
    commit_index: int
    applied_index: int
    last: RootToken
    members: dict[int, str]
    first_revision: int


class Redirector(Generic[S]):
    """Calls some server out of several, by preference the one that answered last or that others name as the leader.

    Used for calls that may be repeated. Each call begins where the last one ended, so that calls whose time is short
    come round to every server. `what` names the servers in messages. Its time is the event loop's.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], S],
        what: str,
        *,
        timeout_s: float,
        rng: random.Random,
        dial: Dial = dial_plain,
        silence_s: float = ROOT_SILENCE_S,
    ) -> None:
        if not addresses:
            raise UsageError(f"at least one address of a {what} is needed")
        self.addresses = list(dict.fromkeys(addresses))
        self._make_stub = make_stub
        self._what = what
        self._timeout_s = timeout_s
        self._rng = rng
        self._channels = Channels(dial)
        self._stubs: dict[str, tuple[grpc.aio.Channel, S]] = {}
        self._preferred = ""
        self._told = ""
        self._turn = itertools.cycle(self.addresses)
        self._silence_s = silence_s
        self._silent: dict[str, float] = {}  # address -> until when it is avoided
        self._closed = False

    def stub(self, address: str) -> S:
        if self._closed:
            raise Unavailable(f"the {self._what} client is closed")
        channel = self._channels.get(address)
        known = self._stubs.get(address)
        if known is None or known[0] is not channel:
            known = self._stubs[address] = (channel, self._make_stub(channel))
        return known[1]

    async def untrusted(self, address: str, error: grpc.aio.AioRpcError) -> NotTrusted | None:
        """The reason of a failed call, if it is one of certificates; said once in the log."""
        found = await self._channels.refusal(address, error)
        if found is not None and str(found) != self._told:
            self._told = str(found)
            log.warning("%s %s; %s", self._what, found, found.hint)
        return found

    def _other(self, failed: str, now: float) -> str:
        """The next in turn that is not silent; if all are, the next in turn."""
        for _ in self.addresses:
            address = next(self._turn)
            if address != failed and self._silent.get(address, 0.0) <= now:
                return address
        return next(self._turn)

    def pause_s(self, attempt: int) -> float:
        return self._rng.uniform(0.5, 1.0) * min(PAUSE_S_MAX, PAUSE_S_MIN * (1 << min(attempt, 8)))

    async def call(
        self, send: Callable[[S, float], Awaitable[T]], timeout_s: float | None = None, *, write: bool = False
    ) -> T:
        """`send(stub, seconds)` until it works, is refused for good, or the time is over. Raises the refusal; then
        DeadlineExceeded, or for a `write` Unavailable (nothing was done) or Indeterminate (not known)."""
        now = asyncio.get_running_loop().time
        deadline = now() + (self._timeout_s if timeout_s is None else timeout_s)
        address = self._preferred or self._other("", now())
        unknown = False  # some attempt may have taken effect
        hops = 0  # redirections followed at once
        last: NoKVError | None = None
        refused: set[str] = set()
        for attempt in itertools.count():
            left = deadline - now()
            if left <= 0:
                break
            asked = now()
            try:
                answer = await send(self.stub(address), min(left, ATTEMPT_S_MAX))
                self._preferred = address
                self._silent.pop(address, None)
                return answer
            except asyncio.CancelledError:
                if now() - asked >= GIVEN_UP_S:
                    self._silent[address] = now() + self._silence_s
                    self._preferred = ""
                raise
            except grpc.aio.AioRpcError as rpc_error:
                untrusted = await self.untrusted(address, rpc_error)
                error = last = untrusted if untrusted is not None else error_from_rpc(rpc_error)
                if untrusted is not None or _said_nothing(rpc_error):
                    self._silent[address] = now() + self._silence_s
                refused = refused | {address} if untrusted is not None else set()
                if refused.issuperset(self.addresses) and not unknown:
                    raise error from rpc_error  # all of them, one after the other: waiting does not help
            named = error.address if isinstance(error, NotLeader) and error.address != address else ""
            if named and self._silent.get(named, 0.0) <= now():
                address = self._preferred = named
                hops += 1
                if hops <= 3:  # two servers may name each other for a while
                    continue
            elif isinstance(error, (NotLeader, Unavailable, Busy)):
                unknown = unknown or (isinstance(error, Unavailable) and not isinstance(error, NotTrusted))
                self._preferred = ""
                address = self._other(address, now())
            else:
                raise error
            hops = 0
            await asyncio.sleep(min(self.pause_s(attempt), max(0.0, deadline - now())))
        text = f"no {self._what} answered in time; the last one said: {last}"
        if not write:
            raise DeadlineExceeded(text)
        raise Indeterminate(text) if unknown else Unavailable(text)

    async def at(self, address: str, send: Callable[[S, float], Awaitable[T]], timeout_s: float | None = None) -> T:
        """`send(stub, seconds)` to that address and no other, once."""
        try:
            return await send(self.stub(address), self._timeout_s if timeout_s is None else timeout_s)
        except grpc.aio.AioRpcError as error:
            self._channels.failed(address)
            raise error_from_rpc(error) from error

    async def close(self) -> None:
        self._closed = True
        await self._channels.close()


class RootClient:
    """One per event loop. `addresses` of any or all meta-roots."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_s: float = 5.0,
        rng: random.Random | None = None,
        dial: Dial = dial_plain,
    ) -> None:
        self._timeout_s = timeout_s
        self._rng = rng if rng is not None else random.Random()
        self._roots: Redirector[Any] = Redirector(
            addresses,
            root_pb2_grpc.RootStub,
            "meta-root",
            timeout_s=timeout_s,
            rng=self._rng,
            dial=dial,
        )

    # -- the log ------------------------------------------------------------------------------------------------------
    async def append(
        self,
        events: Sequence[RootEvent],
        *,
        expected_revision: int = 0,
        author: str = "",
        time_ms: int = 0,
        timeout_s: float | None = None,
    ) -> Appended:
        """All or none of the events, durable on a quorum on return. Raises the refusal (PreconditionFailed,
        EpochNotMatch, NotFound, UsageError), Unavailable if nothing was done, Indeterminate if that is not known."""
        request = root_pb2.RootAppendRequest(
            events=[event_to_pb(e, time_ms=time_ms, author=author) for e in events], expected_revision=expected_revision
        )
        response: root_pb2.RootAppendResponse = await self._roots.call(
            lambda stub, limit: stub.Append(request, timeout=limit), timeout_s, write=True
        )
        return Appended([record_from_pb(e) for e in response.events], state_from_pb(response.state), response.already)

    async def assess(
        self, events: Sequence[RootEvent], *, expected_revision: int = 0, timeout_s: float | None = None
    ) -> Assessment:
        """What `append` would answer now, without writing."""
        request = root_pb2.RootAssessRequest(
            events=[event_to_pb(e) for e in events], expected_revision=expected_revision
        )
        response: root_pb2.RootAssessResponse = await self._roots.call(
            lambda stub, limit: stub.Assess(request, timeout=limit), timeout_s
        )
        return assessment_from_pb(response)

    async def snapshot(
        self, *, linearizable: bool = True, without_catalog: bool = False, timeout_s: float | None = None
    ) -> RootState:
        """Linearizable: has everything acknowledged before the call. Otherwise what any replica has right now."""
        request = root_pb2.RootSnapshotRequest(linearizable=linearizable, without_catalog=without_catalog)
        response: root_pb2.RootSnapshotResponse = await self._roots.call(
            lambda stub, limit: stub.Snapshot(request, timeout=limit), timeout_s
        )
        return state_from_pb(response.state)

    async def read(
        self, from_revision: int = 0, limit: int = 1000, *, timeout_s: float | None = None
    ) -> list[RootRecord]:
        """Committed events from `from_revision` on (0: the oldest kept). NotFound if they are no longer kept."""
        request = root_pb2.RootReadRequest(from_revision=from_revision, limit=limit)
        response: root_pb2.RootReadResponse = await self._roots.call(
            lambda stub, seconds: stub.Read(request, timeout=seconds), timeout_s
        )
        return [record_from_pb(e) for e in response.events]

    async def status(self, address: str | None = None, *, timeout_s: float | None = None) -> RootStatus:
        """Of the meta-root at `address`, or of any."""
        request = root_pb2.RootStatusRequest()
        ask = self._roots.call if address is None else partial(self._roots.at, address)
        response = await ask(lambda stub, limit: stub.Status(request, timeout=limit), timeout_s)
        return RootStatus(
            response.node_id,
            response.leader_id,
            response.leader_address,
            response.term,
            response.commit_index,
            response.applied_index,
            token_from_pb(response.last),
            {m.node_id: m.address for m in response.members},
            response.first_revision,
        )

    async def tail(self, from_revision: int = 0, *, silence_s: float = 2.0) -> AsyncIterator[TailUpdate]:
        """Follow the log for ever, from whichever replica answers. Reconnects by itself; the token never goes back.
        A stream that is silent for `silence_s` is given up for another replica."""
        revision = from_revision
        address = ""
        for attempt in itertools.count():
            others = [each for each in self._roots.addresses if each != address]
            address = self._rng.choice(others or self._roots.addresses)
            call = self._roots.stub(address).Tail(root_pb2.RootTailRequest(from_revision=revision))
            assembler = StateAssembler(gc.freeze)
            try:
                while True:
                    async with asyncio.timeout(silence_s):
                        message = await call.read()
                    if message is END_OF_STREAM:
                        break
                    last = token_from_pb(message.last)
                    if message.outcome == "advance":
                        records = [record_from_pb(e) for e in message.events]
                        records = [r for r in records if r.token.revision > revision]
                        if records:
                            revision = records[-1].token.revision
                        yield TailUpdate("advance", records, None, last)
                        continue
                    assembler.add(message.state)
                    if message.more:
                        continue
                    state = assembler.finish()
                    if state.last.revision >= revision:
                        revision = state.last.revision
                        yield TailUpdate(message.outcome, [], state, last)
            except TimeoutError:
                pass  # the next replica
            except grpc.aio.AioRpcError as error:
                await self._roots.untrusted(address, error)  # then the next replica
            finally:
                call.cancel()
            await asyncio.sleep(self._roots.pause_s(min(attempt, 3)))

    async def close(self) -> None:
        await self._roots.close()
