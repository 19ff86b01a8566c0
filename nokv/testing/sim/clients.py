"""The clients of a simulated group: registers that are read and put, and the history that must be linearizable.

Two kinds. A versioned register answers a put with its version, a read with value and version. A plain one answers a put
with nothing and a read with the value; its history is searched without a look at the log, so a wrong log cannot explain
it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nokv.raft import EntryKind, NodeRole, ProposalDropped, Ready
from nokv.testing.history import History
from nokv.testing.linearizability import Operation, find_violation, versioned_register_step
from nokv.testing.sim.values import ELECTION, KEYS, PLAIN, REQUEST, Machine, Pending, SimNode, Violation

if TYPE_CHECKING:
    from nokv.testing.sim.raft import RaftSim

__all__ = ["Clients"]


class Clients:
    def __init__(self, sim: RaftSim) -> None:
        self.sim = sim
        count = sim.options.client_count
        self.history: list[list[Operation]] = [[] for _ in range(PLAIN)]
        self.plain = History(now=lambda: sim.now)
        self.outstanding: list[Pending | None] = [None] * count
        self.process_of = list(range(1, count + 1))
        self.next_process = count + 1
        self.numbers: dict[int, int] = {}
        self.next_value = 1
        self.next_read = 1

    def start(self) -> None:
        for client in range(self.sim.options.client_count):
            self.sim.at(self.sim.pick(200), partial(self._turn, client))

    def check_histories(self) -> int:
        """How many operations were answered."""
        for pending in self.outstanding:
            if pending is not None and pending.plain is not None:
                self.plain.unknown(pending.plain)
        problem = self.plain.violation()
        if problem is not None:
            raise Violation(f"plain register: {problem}")
        effects = self._effects()
        for key, history in enumerate(self.history):
            # Where an unanswered put stands is known from the log (whose safety was checked all along): nowhere,
            # or at a version. Without this the search is exponential in the number of such puts.
            for operation in history:
                if operation.ret is None:
                    operation.result = effects.get((key, operation.argument[1]))
            done = [op for op in history if op.result is not None]
            problem = find_violation(done, versioned_register_step, (0, 0))
            if problem is not None:
                raise Violation(f"register {key}: {problem}")
        answered = sum(count for outcome, count in self.plain.outcomes.items() if outcome.endswith(" ok"))
        return answered + sum(op.ret is not None for history in self.history for op in history)

    def _turn(self, client: int) -> None:
        self.sim.at((ELECTION if self.sim.calm else 10) + self.sim.pick(60), lambda: self._turn(client))
        pending = self.outstanding[client]
        if pending is not None:
            if self.sim.now < pending.deadline:
                return
            # Nobody will answer. What a put did is not known: it stays in the history, open; the client is a new one.
            self.outstanding[client] = None
            if pending.plain is not None:
                self.plain.unknown(pending.plain)
            if pending.value is not None:
                self.process_of[client] = self.next_process
                self.next_process += 1
        node = self._some_node()
        if node is None or (self.sim.quiet is not None and self.sim.quiet.clients_idle()):
            return
        if self.sim.pick(2):
            self._start_put(client, node)
        else:
            self._start_read(client, node)

    def _start_put(self, client: int, node: SimNode) -> None:
        assert node.raw is not None
        process = self.process_of[client]
        number = self.numbers[process] = self.numbers.get(process, 0) + 1
        key, value = self.sim.pick(KEYS), self.next_value
        self.next_value += 1
        operation = Operation(self.sim.now, ("put", value), process=process)
        plain = self.plain.begin(b"plain", ("put", _plain(value)), process) if key == PLAIN else None
        pending = Pending(process, number, key, value, operation, self.sim.now + 600, plain)
        node.puts[(process, number)] = pending
        try:
            node.raw.propose(REQUEST.pack(process, number, key, value))
        except ProposalDropped:
            del node.puts[(process, number)]
            if plain is not None:
                self.plain.refused(plain)
            return  # it surely did not happen
        if plain is None:
            self.history[key].append(operation)
        self.outstanding[client] = pending
        self.sim.after(node)

    def _start_read(self, client: int, node: SimNode) -> None:
        assert node.raw is not None
        key = self.sim.pick(KEYS)
        operation = Operation(self.sim.now, ("get",), process=self.process_of[client])
        plain = self.plain.begin(b"plain", ("get",), operation.process) if key == PLAIN else None
        pending = Pending(operation.process, 0, key, None, operation, self.sim.now + 800, plain)
        context = self.next_read.to_bytes(8, "big")
        self.next_read += 1
        node.reads[context] = pending
        self.outstanding[client] = pending
        node.raw.read_index(context)
        self.sim.after(node)

    def hand_reads(self, node: SimNode, ready: Ready) -> None:
        for state in ready.read_states:
            pending = node.reads.pop(state.context, None)
            if pending is not None:
                node.confirmed.append((state.index, pending))
        if ready.read_states:
            self.answer_reads(node)

    def answer_reads(self, node: SimNode) -> None:
        if not node.confirmed:
            return
        waiting = []
        for index, pending in node.confirmed:
            if index <= node.applied:
                self.complete(pending, node.machine.registers[pending.key])
            else:
                waiting.append((index, pending))
        node.confirmed = waiting

    def complete(self, pending: Pending, result: Any) -> None:
        operation = pending.operation
        if pending not in self.outstanding:
            return  # the client gave up; a read is forgotten, a put stays open
        operation.ret = self.sim.now
        operation.result = result
        self.sim.note(4, pending.process, pending.number)
        if pending.plain is not None:
            self.plain.ok(pending.plain, None if pending.value is not None else _plain(result[0]))
        elif pending.value is None:
            self.history[pending.key].append(operation)
        self.outstanding[self.outstanding.index(pending)] = None

    def _some_node(self) -> SimNode | None:
        up = [node for node in self.sim.nodes.values() if node.raw is not None and node.paused_until <= self.sim.now]
        if not up:
            return None
        leaders = [node for node in up if node.raw is not None and node.raw.core.role is NodeRole.LEADER]
        pool = leaders if leaders and self.sim.pick(4) else up
        return pool[self.sim.pick(len(pool))]

    def _effects(self) -> dict[tuple[int, int], int]:
        """(key, value) -> version, of every put in the committed log."""
        effects = {}
        machine = Machine()
        for index in sorted(self.sim.checks.committed):
            _, kind, data = self.sim.checks.committed[index]
            if kind == EntryKind.NORMAL and data:
                answer = machine.apply(data)
                if answer is not None:
                    _, _, key, value = REQUEST.unpack(data)
                    effects[key, value] = answer[2]
        return effects


def _plain(value: int) -> bytes | None:
    return value.to_bytes(4, "big") if value else None
