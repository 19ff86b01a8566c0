"""The values of a simulated group: what one node is, what its state machine holds, what a schedule reports."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from nokv.raft import ConfState, Message, RawNode
from nokv.raft.core import RaftCore
from nokv.testing.history import Call
from nokv.testing.linearizability import Operation
from nokv.testing.sim.disk import NodeDisk, Stored, Violation

__all__ = [
    "ELECTION",
    "ELECTION_TICKS",
    "HEARTBEAT_TICKS",
    "KEYS",
    "PLAIN",
    "REQUEST",
    "TICK",
    "Bugs",
    "Machine",
    "Pending",
    "SimNode",
    "SimReport",
    "Violation",
]

TICK = 100
ELECTION_TICKS = 10
HEARTBEAT_TICKS = 2
ELECTION = TICK * ELECTION_TICKS
KEYS = 3
"""Registers; the last is a plain one."""
PLAIN = KEYS - 1
"""Its puts answer no version and its reads only the value: nothing but order explains what clients see."""
REQUEST = struct.Struct("<IIB I")


@dataclass(slots=True)
class Bugs:
    """What a planted bug changes outside the state machine itself, and the class that it puts in its place."""

    core: type[RaftCore] = RaftCore
    never_sync_votes: bool = False
    answer_before_sync: bool = False
    restart_forgets_vote: bool = False
    restart_forgets_members: bool = False
    lies: tuple[str, ...] = ()
    """Kinds of disk operations that are skipped."""
    recover_without_sync: bool = False
    log_before_data: bool = False
    """An installed snapshot: the log forgets what it replaces before the data is durable."""
    start_over_when_damaged: bool = False
    """A storage that refuses is wiped, and the node goes on as a new one."""
    lease: bool = False
    """Only schedules with lease reads show it."""
    storm: bool = False
    """Only schedules in which leaders change fast and links are slow show it."""
    echo: bool = False
    """Only schedules in which a leader comes back, and late answers to its former reign with it, show it."""
    learners: bool = False
    """Only schedules with learners, and leaders cut off together with them, show it."""
    left_behind: bool = False
    """Only schedules in which a quiet leader is left behind, and does not doubt, show it."""
    joint: bool = False
    """Only schedules with membership changes show it."""
    lease_reads_with_pauses: bool = False
    quiet: bool = False
    """Only schedules with hibernation show it."""
    deaf_host: bool = False


@dataclass(slots=True)
class SimReport:
    seed: int
    trace: int
    events: int
    faults: dict[str, int]
    operations: int
    entries: int
    healed_after: int

    def __str__(self) -> str:
        return f"{self.events} events, {self.entries} entries, healed after {self.healed_after} ticks/100"


@dataclass(slots=True)
class Pending:
    """An operation that a client waits for."""

    process: int
    number: int
    key: int
    value: int | None
    operation: Operation
    deadline: int
    plain: Call | None = None
    """Of the plain register: in the history of its own."""


class Machine:
    """The replicated registers: (value, version) per key, and the last request of each client (requests may repeat)."""

    __slots__ = ("answers", "registers")

    def __init__(self) -> None:
        self.registers: list[tuple[int, int]] = [(0, 0)] * KEYS
        self.answers: dict[int, int] = {}

    def apply(self, data: bytes) -> tuple[int, int, int] | None:
        """(process, number, version), or None for an entry without a request or one seen before."""
        if not data:
            return None
        process, number, key, value = REQUEST.unpack(data)
        if self.answers.get(process, 0) >= number:
            return None
        version = self.registers[key][1] + 1
        self.registers[key] = (value, version)
        self.answers[process] = number
        return process, number, version

    def dump(self) -> bytes:
        return repr((self.registers, self.answers)).encode()

    @classmethod
    def load(cls, data: bytes) -> Machine:
        machine = cls()
        if data:
            # The simulator's own bytes, made by `dump` of this process.
            registers, answers = data.decode().split("], {", 1)
            numbers = [int(n) for n in registers.replace("([", "").replace("(", "").replace(")", "").split(",")]
            machine.registers = list(zip(numbers[::2], numbers[1::2], strict=True))
            pairs = answers.rstrip("})")
            machine.answers = dict(tuple(map(int, pair.split(":"))) for pair in pairs.split(",") if pair)  # type: ignore[misc]
        return machine

    def digest(self) -> int:
        return zlib.crc32(repr(self.registers).encode())


@dataclass(slots=True)
class SimNode:
    id: int
    disk: NodeDisk
    promised: Stored | None = None
    """What the process before believed to be durable, on a disk that lied to it."""
    rots: bool = False
    """Bytes change before the next start."""
    damaged: bool = False
    """It must not take part any more: its storage refused, or forgot."""
    raw: RawNode | None = None
    machine: Machine = field(default_factory=Machine)
    applied: int = 0
    applied_term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)
    life: int = 0
    """Counts starts; events of an earlier life are void."""
    paused_until: int = 0
    held: list[Callable[[], None]] = field(default_factory=list)
    tick_interval: int = TICK
    busy: bool = False
    """A Ready was taken and is not done yet."""
    reads: dict[bytes, Pending] = field(default_factory=dict)
    confirmed: list[tuple[int, Pending]] = field(default_factory=list)
    puts: dict[tuple[int, int], Pending] = field(default_factory=dict)
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)
    seen_term: int = 0
    seen_commit: int = 0
    checked_commit: int = 0
