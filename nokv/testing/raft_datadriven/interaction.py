"""Scripts that drive whole RawNodes over a network that delivers when told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nokv.errors import InvariantError, NoKVError
from nokv.raft import (
    ConfChange,
    ConfChangeTransition,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MemoryStorage,
    Message,
    MessageType,
    NodeRole,
    RaftConfig,
    RaftSnapshot,
    RawNode,
    ReadMode,
    SnapshotMetadata,
    decode_conf_change,
)
from nokv.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NO_LIMIT
from nokv.testing.raft_datadriven.calculators import parse_changes
from nokv.testing.raft_datadriven.describe import describe_entry, describe_message, describe_ready
from nokv.testing.raft_datadriven.script import Case, ScriptError, number

__all__ = ["Interaction"]


_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")


class _Output:
    """Text of one case: lines of handlers and of the machines' logs, indented as nested."""

    def __init__(self) -> None:
        self.level = 0
        self._indent = 0
        self._parts: list[str] = []

    @property
    def quiet(self) -> bool:
        return self.level == len(_LEVELS) - 1

    def clear(self) -> None:
        self._parts = []

    def write(self, text: str) -> None:
        if self.quiet or not text:
            return
        if self._indent:
            prefix = " " * self._indent
            newline = text.endswith("\n")
            text = "\n".join(prefix + line for line in text.removesuffix("\n").split("\n")) + "\n" * newline
            if not newline:
                text += "\n"
        self._parts.append(text)

    def line(self, text: str) -> None:
        self.write(text + "\n")

    def indented(self, call: Callable[[], object]) -> None:
        self._indent += 2
        try:
            call()
        finally:
            self._indent -= 2

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def _log(self, level: int, text: str) -> None:
        if level >= self.level:
            self.line(f"{_LEVELS[level]} {text}")

    def debug(self, text: str, /) -> None:
        self._log(0, text)

    def info(self, text: str, /) -> None:
        self._log(1, text)

    def warning(self, text: str, /) -> None:
        self._log(2, text)

    def error(self, text: str, /) -> None:
        self._log(3, text)


class _ScriptStorage(MemoryStorage):
    """Memory, but a snapshot asked for is the newest applied state."""

    __slots__ = ("newest",)

    def __init__(self) -> None:
        super().__init__()
        self.newest = RaftSnapshot(SnapshotMetadata())

    def snapshot(self) -> RaftSnapshot:
        return self.newest


@dataclass(slots=True)
class _Node:
    config: RaftConfig
    storage: _ScriptStorage
    raw: RawNode
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)

    def persist(self, hard_state: HardState | None, entries: list[Entry], snapshot: RaftSnapshot | None) -> None:
        if hard_state is not None:
            self.storage.set_hard_state(hard_state)
        if snapshot is not None:
            if entries:
                raise ScriptError("can't apply snapshot and entries at the same time")
            self.storage.apply_snapshot(snapshot)
            self.storage.newest = snapshot
        else:
            self.storage.append(entries)

    def apply(self, entries: list[Entry]) -> None:
        """The state machine: the concatenation of everything applied."""
        for entry in entries:
            newest = self.storage.newest
            conf_state = newest.metadata.conf_state
            update = entry.data
            if entry.kind != EntryKind.NORMAL:
                change = decode_conf_change(entry.kind, entry.data)
                conf_state = self.raw.apply_conf_change(change)
                update = change.context
            metadata = SnapshotMetadata(entry.index, entry.term, conf_state)
            self.storage.newest = RaftSnapshot(metadata, newest.data + update)


class Interaction:
    def __init__(self) -> None:
        self.output = _Output()
        self.nodes: list[_Node] = []
        self.messages: list[Message] = []

    def __call__(self, case: Case) -> str:
        name = "_do_" + case.command.replace("-", "_")
        handler: Callable[[Case], None] | None = getattr(self, name, None)
        if handler is None:
            raise ScriptError("unknown command")
        self.output.clear()
        try:
            handler(case)
        except ScriptError:
            raise
        except InvariantError:
            raise
        except NoKVError as error:
            if self.output.quiet:
                return str(error)
            self.output.write(str(error))
        return self.output.text or "ok"

    def _node(self, node_id: int) -> _Node:
        if not 1 <= node_id <= len(self.nodes):
            raise ScriptError(f"no node {node_id}")
        return self.nodes[node_id - 1]

    def _first(self, case: Case) -> _Node:
        return self._node(number(case.word()))

    # -- commands ------------------------------------------------------------------------------------------------------
    def _do_log_level(self, case: Case) -> None:
        self._set_level(case.word())

    def _set_level(self, name: str) -> None:
        if name.upper() not in _LEVELS:
            raise ScriptError(f"log levels are {', '.join(_LEVELS)}")
        self.output.level = _LEVELS.index(name.upper())

    def _do_add_nodes(self, case: Case) -> None:
        known = {
            "voters", "learners", "index", "content", "inflight", "prevote", "checkquorum", "async-storage-writes",
            "max-committed-size-per-ready", "disable-conf-change-validation", "read-only", "step-down-on-removal",
        }  # fmt: skip
        for key, values in case.arguments:
            if values and key not in known:
                raise ScriptError(f"unknown argument {key}")
        conf_state = ConfState(tuple(map(int, case.find("voters") or ())), tuple(map(int, case.find("learners") or ())))
        index = number(case.value("index", "0"))
        read_only = case.value("read-only", "safe")
        if read_only not in ("safe", "lease-based"):
            raise ScriptError(f"invalid read-only option {read_only!r}")
        start = None
        if conf_state.voters or conf_state.learners or index or case.find("content"):
            if index <= 1:
                raise ScriptError("index must be specified as > 1 due to bootstrap")
            start = RaftSnapshot(SnapshotMetadata(index, 1, conf_state), case.value("content").encode())
        for _ in range(number(case.word())):
            storage = _ScriptStorage()
            if start is not None:
                storage.apply_snapshot(start)
                storage.newest = start
            config = RaftConfig(
                id=len(self.nodes) + 1,
                election_ticks=3,
                heartbeat_ticks=1,
                applied=index,
                pre_vote=case.flag("prevote"),
                check_quorum=case.flag("checkquorum"),
                read_mode=ReadMode.LEASE if read_only == "lease-based" else ReadMode.SAFE,
                max_size_per_msg=NO_LIMIT,
                max_committed_size_per_ready=number(case.value("max-committed-size-per-ready", str(NO_LIMIT))),
                max_inflight_msgs=number(case.value("inflight", str(1 << 31))),
                async_storage_writes=case.flag("async-storage-writes"),
                disable_conf_change_validation=case.flag("disable-conf-change-validation"),
                step_down_on_removal=case.flag("step-down-on-removal"),
                logger=self.output,
            )
            raw = RawNode(config, storage, lambda n: 0)
            self.nodes.append(_Node(config, storage, raw))

    def _do_campaign(self, case: Case) -> None:
        self._first(case).raw.campaign()

    def _do_tick_election(self, case: Case) -> None:
        node = self._first(case)
        self._tick(node, node.config.election_ticks)

    def _do_tick_heartbeat(self, case: Case) -> None:
        node = self._first(case)
        self._tick(node, node.config.heartbeat_ticks)

    def _tick(self, node: _Node, count: int) -> None:
        for _ in range(count):
            node.raw.tick()

    def _do_set_randomized_election_timeout(self, case: Case) -> None:
        self._first(case).raw.core.randomized_election_ticks = number(case.value("timeout"))

    def _do_propose(self, case: Case) -> None:
        self._first(case).raw.propose(case.word(1).encode())

    def _do_propose_conf_change(self, case: Case) -> None:
        changes = parse_changes(case.input)
        transition = {
            "auto": ConfChangeTransition.AUTO,
            "implicit": ConfChangeTransition.JOINT_IMPLICIT,
            "explicit": ConfChangeTransition.JOINT_EXPLICIT,
        }.get(case.value("transition", "auto"))
        if transition is None:
            raise ScriptError(f"unknown transition {case.value('transition')!r}: auto, implicit or explicit")
        change: ConfChange | ConfChangeV2
        if case.flag("v1"):
            if len(changes) != 1 or transition is not ConfChangeTransition.AUTO:
                raise ScriptError("v1 conf change can only have one operation and no transition")
            change = ConfChange(changes[0].kind, changes[0].node_id)
        else:
            change = ConfChangeV2(changes, transition)
        self._first(case).raw.propose_conf_change(change)

    def _do_process_ready(self, case: Case) -> None:
        self._each(case, "handling Ready", self._process_ready)

    def _do_process_append_thread(self, case: Case) -> None:
        self._each(case, "processing append thread", self._process_append)

    def _do_process_apply_thread(self, case: Case) -> None:
        self._each(case, "processing apply thread", self._process_apply)

    def _each(self, case: Case, title: str, call: Callable[[_Node], None]) -> None:
        ids = case.node_ids()
        for node_id in ids:
            node = self._node(node_id)
            if len(ids) == 1:
                call(node)
            else:
                self._titled(node, title, call)

    def _titled(self, node: _Node, title: str, call: Callable[[_Node], object]) -> None:
        self.output.line(f"> {node.raw.id} {title}")
        self.output.indented(lambda: call(node))

    def _process_ready(self, node: _Node) -> None:
        ready = node.raw.ready()
        self.output.write(describe_ready(ready))
        asynchronous = node.config.async_storage_writes
        if not asynchronous:
            node.persist(ready.hard_state, ready.entries, ready.snapshot)
            node.apply(ready.committed_entries)
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
            elif message.to == LOCAL_APPLY_THREAD:
                node.apply_work.append(message)
            else:
                self.messages.append(message)
        if not asynchronous:
            node.raw.advance(ready)

    def _process_append(self, node: _Node) -> None:
        if not node.append_work:
            self.output.line("no append work to perform")
            return
        message, responses = self._take(node.append_work)
        hard_state = HardState(message.term, message.vote, message.commit)
        node.persist(hard_state if hard_state != HardState() else None, message.entries, message.snapshot)
        self._answer(responses)

    def _process_apply(self, node: _Node) -> None:
        if not node.apply_work:
            self.output.line("no apply work to perform")
            return
        message, responses = self._take(node.apply_work)
        node.apply(message.entries)
        self._answer(responses)

    def _take(self, work: list[Message]) -> tuple[Message, list[Message]]:
        message = work.pop(0)
        responses, message.responses = message.responses, []
        self.output.line("Processing:")
        self.output.line(describe_message(message))
        return message, responses

    def _answer(self, responses: list[Message]) -> None:
        self.output.line("Responses:")
        for response in responses:
            self.output.line(describe_message(response))
        self.messages.extend(responses)

    def _do_deliver_msgs(self, case: Case) -> None:
        kind = None
        recipients: list[tuple[int, bool]] = []
        for key, values in case.arguments:
            if key == "type":
                kind = _message_type(values[0])
            elif key == "drop":
                recipients += [(number(value), True) for value in values]
            elif not values:
                recipients.append((number(key), False))
            else:
                raise ScriptError(f"unknown argument {key}")
        count = sum(self._deliver(node_id, drop=drop, kind=kind) for node_id, drop in recipients)
        if not count:
            self.output.line("no messages")

    def _queued(self, node_id: int, drop: bool, kind: MessageType | None) -> Iterator[Message]:
        for message in self.messages:
            local = message.sender == message.to or message.sender in (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)
            if message.to == node_id and not (drop and local) and kind in (None, message.type):
                yield message

    def _deliver(self, node_id: int, *, drop: bool = False, kind: MessageType | None = None) -> int:
        chosen = list(self._queued(node_id, drop, kind))
        taken = set(map(id, chosen))
        self.messages = [message for message in self.messages if id(message) not in taken]
        for message in chosen:
            self.output.line(("dropped: " if drop else "") + describe_message(message))
            if not drop:
                try:
                    self._node(node_id).raw.step(message)
                except InvariantError:
                    raise
                except NoKVError as error:
                    self.output.line(str(error))
        return len(chosen)

    def _receive(self, node: _Node) -> None:
        self._deliver(node.raw.id)

    def _do_stabilize(self, case: Case) -> None:
        level = self.output.level
        if case.find("log-level"):
            self._set_level(case.value("log-level"))
        try:
            self._stabilize([self._node(node_id) for node_id in case.node_ids()] or self.nodes)
        finally:
            self.output.level = level

    def _stabilize(self, nodes: list[_Node]) -> None:
        busy = True
        while busy:
            busy = False
            for node in nodes:
                if node.raw.has_ready():
                    self._titled(node, "handling Ready", self._process_ready)
                    busy = True
            for node in nodes:
                if any(True for _ in self._queued(node.raw.id, False, None)):
                    self._titled(node, "receiving messages", self._receive)
                    busy = True
            for node in nodes:
                if node.append_work:
                    self._titled(node, "processing append thread", self._drain_appends)
                    busy = True
            for node in nodes:
                if node.apply_work:
                    self._titled(node, "processing apply thread", self._drain_applies)
                    busy = True

    def _drain_appends(self, node: _Node) -> None:
        while node.append_work:
            self._process_append(node)

    def _drain_applies(self, node: _Node) -> None:
        while node.apply_work:
            self._process_apply(node)

    def _do_raft_log(self, case: Case) -> None:
        storage = self._first(case).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self.output.line(f"log is empty: first index={first}, last index={last}")
            return
        for entry in storage.entries(first, last + 1, NO_LIMIT):
            self.output.line(describe_entry(entry))

    def _do_compact(self, case: Case) -> None:
        node_id, index = case.node_ids()
        self._node(node_id).storage.compact(index)
        self._do_raft_log(case)

    def _do_raft_state(self, case: Case) -> None:
        for node in self.nodes:
            status = node.raw.status()
            member = "Voter" if status.id in status.membership.voters else "Non-Voter"
            self.output.line(f"{status.id}: {status.role.label} ({member}) Term:{status.term} Lead:{status.leader}")

    def _do_status(self, case: Case) -> None:
        status = self._first(case).raw.status()
        if status.role is NodeRole.LEADER:
            for node_id, progress in status.progress.items():
                self.output.line(f"{node_id}: {progress}")

    def _do_transfer_leadership(self, case: Case) -> None:
        self._node(number(case.value("from"))).raw.transfer_leader(number(case.value("to")))

    def _do_forget_leader(self, case: Case) -> None:
        self._first(case).raw.forget_leader()

    def _do_report_unreachable(self, case: Case) -> None:
        node_id, target = case.node_ids()
        self._node(node_id).raw.report_unreachable(target)

    def _do_send_snapshot(self, case: Case) -> None:
        node_id, target = case.node_ids()
        node = self._node(node_id)
        message = Message(
            MessageType.SNAP,
            to=target,
            sender=node_id,
            term=node.raw.status().term,
            snapshot=node.storage.snapshot(),
        )
        self.messages.append(message)
        self.output.line(describe_message(message))


def _message_type(label: str) -> MessageType:
    for kind in MessageType:
        if kind.label == label:
            return kind
    raise ScriptError(f"unknown message type {label}")
