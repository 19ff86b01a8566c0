"""A simulated network and event loop: one thread, virtual time, one seed.

Owns: `SimLoop` (a `multiraft.Scheduler` whose time moves only when told) and `SimNetwork` (each `endpoint` is a
`multiraft.Network`: loss, duplication, delay and so reordering, one-way blocks, partitions, dead nodes). Every message
goes through the real wire codec, so what cannot travel fails here too, and no two nodes share an object. The same seed
and the same calls give the same deliveries; `trace_hash` shows it.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from nokv.errors import NoKVError
from nokv.multiraft.ports import MessageSink, SnapshotOffer, SnapshotPayload, SnapshotReceiver
from nokv.multiraft.wire import GroupMessage, decode_messages, encode_messages
from nokv.raft.types import Message
from nokv.testing.clock import FakeClock

__all__ = ["SimEndpoint", "SimHandle", "SimLoop", "SimNetwork"]


class SimHandle:
    __slots__ = ("args", "callback", "cancelled")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class SimLoop:
    """Callbacks in order of virtual time; of the same time, in the order they were asked for. `clock` moves along."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock if clock is not None else FakeClock()
        self._queue: list[tuple[int, int, SimHandle]] = []
        self._order = itertools.count()
        self.events = 0

    def call_soon(self, callback: Callable[..., Any], /, *args: Any) -> SimHandle:
        return self.call_later(0.0, callback, *args)

    def call_later(self, delay_s: float, callback: Callable[..., Any], /, *args: Any) -> SimHandle:
        handle = SimHandle(callback, args)
        when = self.clock.monotonic_ns() + max(0, round(delay_s * 1e9))
        heapq.heappush(self._queue, (when, next(self._order), handle))
        return handle

    def step(self) -> bool:
        """Run the next callback, moving time to it. False if there is none."""
        while self._queue:
            when, _, handle = heapq.heappop(self._queue)
            if handle.cancelled:
                continue
            self.clock.advance_ns(max(0, when - self.clock.monotonic_ns()))
            self.events += 1
            handle.callback(*handle.args)
            return True
        return False

    def run_for(self, duration_s: float) -> None:
        """Everything that is due within `duration_s` of virtual time."""
        end = self.clock.monotonic_ns() + round(duration_s * 1e9)
        while self._queue and self._queue[0][0] <= end:
            self.step()
        self.clock.advance_ns(max(0, end - self.clock.monotonic_ns()))

    def run_until(self, condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Step until the condition holds. AssertionError after `timeout_s` of virtual time."""
        end = self.clock.monotonic_ns() + round(timeout_s * 1e9)
        while not condition():
            if not self._queue or self._queue[0][0] > end:
                raise AssertionError(f"still false after {timeout_s} s of virtual time")
            self.step()


class SimEndpoint:
    """One process's side of the network: a `multiraft.Network`."""

    def __init__(self, network: SimNetwork, node_id: int) -> None:
        self._network = network
        self.node_id = node_id
        self.sink: MessageSink | None = None
        self.receiver: SnapshotReceiver | None = None
        self.alive = True

    def attach(self, sink: MessageSink, receiver: SnapshotReceiver | None = None) -> None:
        self.sink = sink
        self.receiver = receiver

    def send(self, node_id: int, messages: list[GroupMessage]) -> None:
        self._network.carry(self, node_id, messages)

    def send_snapshot(
        self,
        node_id: int,
        group_id: int,
        message: Message,
        payload: SnapshotPayload | None,
        done: Callable[[bool], None],
    ) -> None:
        self._network.carry_snapshot(self, node_id, (group_id, message), payload, done)


class SimNetwork:
    """`loss` and `duplication` are probabilities per batch; a delay is drawn evenly from `delay_s`."""

    def __init__(
        self,
        loop: SimLoop,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay_s: tuple[float, float] = (0.0005, 0.002),
    ) -> None:
        self._loop = loop
        self._dice = random.Random(seed)
        self.seed = seed
        self.loss = loss
        self.duplication = duplication
        self.delay_s = delay_s
        self._endpoints: dict[int, SimEndpoint] = {}
        self._blocked: set[tuple[int, int]] = set()
        self.trace_hash = 0
        self.sent = 0
        self.delivered = 0
        self.lost = 0
        self.blocked = 0

    def endpoint(self, node_id: int) -> SimEndpoint:
        """A fresh endpoint: a process that (re)started. What was on its way to the former one is lost."""
        old = self._endpoints.get(node_id)
        if old is not None:
            old.alive = False
        fresh = self._endpoints[node_id] = SimEndpoint(self, node_id)
        return fresh

    def kill(self, node_id: int) -> None:
        self._endpoints[node_id].alive = False

    # -- faults -------------------------------------------------------------------------------------------------------
    def block(self, sender: int, receiver: int) -> None:
        """One direction only: asymmetric partitions are the interesting ones."""
        self._blocked.add((sender, receiver))

    def unblock(self, sender: int, receiver: int) -> None:
        self._blocked.discard((sender, receiver))

    def partition(self, *sides: Iterable[int]) -> None:
        """Nothing passes between the sides; nodes named on no side are cut off from everybody."""
        side_of = {node_id: number for number, side in enumerate(sides) for node_id in side}
        for a, b in itertools.permutations(self._endpoints, 2):
            if a not in side_of or side_of[a] != side_of.get(b):
                self._blocked.add((a, b))

    def heal(self) -> None:
        self._blocked.clear()

    # -- carrying -----------------------------------------------------------------------------------------------------
    def _delay(self) -> float:
        return self._dice.uniform(*self.delay_s)

    def _passes(self, sender: SimEndpoint, node_id: int) -> SimEndpoint | None:
        target = self._endpoints.get(node_id)
        if target is None or not target.alive or not sender.alive or (sender.node_id, node_id) in self._blocked:
            return None
        return target

    def carry(self, sender: SimEndpoint, node_id: int, messages: list[GroupMessage]) -> None:
        payload = encode_messages(messages)
        self.sent += 1
        if self._passes(sender, node_id) is None:
            self.blocked += 1
            self._loop.call_later(self._delay(), self._report, sender, node_id, messages)
            return
        if self._dice.random() < self.loss:
            self.lost += 1
            return
        copies = 2 if self._dice.random() < self.duplication else 1
        for _ in range(copies):
            self._loop.call_later(self._delay(), self._deliver, sender, node_id, payload)

    def _deliver(self, sender: SimEndpoint, node_id: int, payload: bytes) -> None:
        target = self._passes(sender, node_id)
        if target is None or target.sink is None:
            self.blocked += 1
            return
        self.delivered += 1
        self._trace(sender.node_id, node_id, payload)
        target.sink.receive(sender.node_id, decode_messages(payload))

    def _report(self, sender: SimEndpoint, node_id: int, messages: list[GroupMessage]) -> None:
        if sender.alive and sender.sink is not None:
            sender.sink.undelivered(node_id, messages)

    def carry_snapshot(
        self,
        sender: SimEndpoint,
        node_id: int,
        message: GroupMessage,
        payload: SnapshotPayload | None,
        done: Callable[[bool], None],
    ) -> None:
        # Read while the sender is alive, as a stream would be; a real one would come in pieces over time.
        chunks = list(payload.chunks()) if payload is not None else []
        encoded = encode_messages([message])
        manifest, total = (payload.manifest, payload.total_bytes) if payload is not None else (b"", 0)
        if payload is not None:
            payload.close()
        lost = self._dice.random() < self.loss
        self._loop.call_later(
            self._delay(), self._deliver_snapshot, sender, node_id, encoded, manifest, total, chunks, lost, done
        )

    def _deliver_snapshot(
        self,
        sender: SimEndpoint,
        node_id: int,
        encoded: bytes,
        manifest: bytes,
        total: int,
        chunks: list[tuple[str, bytes]],
        lost: bool,
        done: Callable[[bool], None],
    ) -> None:
        accepted = False
        target = self._passes(sender, node_id)
        if target is not None and target.sink is not None:
            accepted = self._stage(target, sender.node_id, encoded, manifest, total, chunks, lost)
        if sender.alive:
            self._loop.call_later(self._delay(), done, accepted)

    def _stage(
        self,
        target: SimEndpoint,
        from_node: int,
        encoded: bytes,
        manifest: bytes,
        total: int,
        chunks: list[tuple[str, bytes]],
        lost: bool,
    ) -> bool:
        assert target.sink is not None
        ((group_id, message),) = decode_messages(encoded)
        if target.receiver is not None:
            try:
                staging = target.receiver.begin(SnapshotOffer(from_node, group_id, message, manifest, total))
                for number, (file, data) in enumerate(chunks):
                    if lost and number >= len(chunks) // 2:
                        break
                    staging.write(file, data)
                if lost:
                    staging.abort()
                else:
                    staging.finish()
            except NoKVError:
                return False
        if lost:
            return False
        self._trace(from_node, target.node_id, encoded)
        target.sink.receive(from_node, [(group_id, message)])
        return True

    def _trace(self, sender: int, receiver: int, payload: bytes) -> None:
        head = b"%d %d %d " % (self._loop.clock.monotonic_ns(), sender, receiver)
        self.trace_hash = zlib.crc32(payload, zlib.crc32(head, self.trace_hash))
