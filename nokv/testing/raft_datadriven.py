"""Runs script files of the data-driven Raft tests, in the format of etcd-io/raft's testdata.

    python -m nokv.testing.raft_datadriven --kind interaction|confchange|quorum FILE            print with real outputs
    python -m nokv.testing.raft_datadriven --kind interaction|confchange|quorum --check FILE    compare instead

A case is comments and blank lines, a command line, input lines, `----`, the output up to a blank line. An output with
blank lines in it stands between doubled markers. `interaction` scripts drive whole RawNodes over a network that
delivers when told; `confchange` the membership calculator; `quorum` the arithmetic of majorities. See tests/data/raft.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nokv.errors import InvariantError, NoKVError
from nokv.raft import (
    ConfChange,
    ConfChangeKind,
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
    Ready,
    SingleChange,
    SnapshotMetadata,
    decode_conf_change,
)
from nokv.raft.confchange import Changer
from nokv.raft.progress import ProgressMap
from nokv.raft.quorum import (
    Configuration,
    joint_committed,
    joint_vote,
    majority_committed,
    majority_vote,
)
from nokv.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NO_LIMIT, NO_NODE

__all__ = ["Case", "ScriptError", "parse", "run_file", "run_text"]


class ScriptError(NoKVError, ValueError):
    """The script itself is wrong: an unknown command or argument."""


# -- the file format --------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Case:
    """One case. `before` are the lines up to and including the first `----`, as written."""

    line: int
    command: str
    arguments: list[tuple[str, list[str]]]
    """(key, values) in order; a bare word has no values."""
    input: str
    expected: str
    before: list[str] = field(default_factory=list)

    def find(self, key: str) -> list[str] | None:
        for name, values in self.arguments:
            if name == key:
                return values
        return None

    def value(self, key: str, default: str = "") -> str:
        values = self.find(key)
        return values[0] if values else default

    def flag(self, key: str) -> bool:
        return self.value(key, "false") == "true"

    def words(self) -> list[str]:
        return [name for name, values in self.arguments if not values]

    def word(self, position: int = 0) -> str:
        words = self.words()
        if position >= len(words):
            raise ScriptError(f"argument {position + 1} is missing")
        return words[position]

    def node_ids(self) -> list[int]:
        return [_number(word) for word in self.words()]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ScriptError(f"{text!r} is not a number")
    return int(text)


_TOKEN = re.compile(r"\s*([^\s=()]+)(?:=(?:\(([^)]*)\)|(\S*)))?")


def _parse_command(text: str) -> tuple[str, list[tuple[str, list[str]]]]:
    words: list[tuple[str, list[str]]] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ScriptError(f"cannot read {text[position:]!r} in {text!r}")
        key, many, one = match.groups()
        if many is not None:
            words.append((key, [part.strip() for part in re.split(r"[,\s]+", many.strip()) if part.strip()]))
        else:
            words.append((key, [one] if one is not None else []))
        position = match.end()
    return words[0][0], words[1:]


def parse(text: str) -> Iterator[Case | str]:
    """Cases, and between them the lines (comments, blanks) that belong to none."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    at = 0
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            yield lines[at]
            at += 1
            continue
        start = at
        command = lines[at]
        while command.endswith("\\") and at + 1 < len(lines):
            at += 1
            command = command[:-1] + " " + lines[at].strip()
        at += 1
        first_input = at
        while at < len(lines) and lines[at] != "----":
            at += 1
        if at == len(lines):
            raise ScriptError(f"line {start + 1}: no ---- after {command!r}")
        name, arguments = _parse_command(command)
        given = "\n".join(lines[first_input:at])
        at += 1
        before = lines[start:at]
        first_expected = at
        if at < len(lines) and lines[at] == "----":
            first_expected = at = at + 1
            while lines[at : at + 2] != ["----", "----"]:
                if at >= len(lines):
                    raise ScriptError(f"line {start + 1}: the doubled ---- is not closed")
                at += 1
            expected = lines[first_expected:at]
            at += 2
        else:
            while at < len(lines) and lines[at].strip():
                at += 1
            expected = lines[first_expected:at]
        yield Case(start + 1, name, arguments, given, "".join(line + "\n" for line in expected), before)


@dataclass(slots=True)
class Result:
    text: str
    cases: int
    mismatches: list[tuple[Case, str]]


def run_text(kind: str, text: str) -> Result:
    """The script with real outputs in place of the expected ones. State lasts for one text."""
    handle = _KINDS[kind]()
    out: list[str] = []
    count = 0
    mismatches = []
    for item in parse(text):
        if isinstance(item, str):
            out.append(item + "\n")
            continue
        count += 1
        try:
            actual = handle(item)
        except ScriptError as error:
            raise ScriptError(f"line {item.line}: {item.command}: {error}") from error
        if actual and not actual.endswith("\n"):
            actual += "\n"
        if actual != item.expected:
            mismatches.append((item, actual))
        out.extend(line + "\n" for line in item.before)
        if "" in actual.split("\n")[:-1]:
            out.append(f"----\n{actual}----\n----\n")
        else:
            out.append(actual)
    return Result("".join(out), count, mismatches)


def run_file(kind: str, path: Path) -> Result:
    return run_text(kind, path.read_text(encoding="utf-8"))


# -- descriptions -----------------------------------------------------------------------------------------------------
_ENTRY_LABELS = {
    EntryKind.NORMAL: "EntryNormal",
    EntryKind.CONF_CHANGE: "EntryConfChange",
    EntryKind.CONF_CHANGE_V2: "EntryConfChangeV2",
}
_CHANGE_LETTERS = {
    "v": ConfChangeKind.ADD_VOTER,
    "l": ConfChangeKind.ADD_LEARNER,
    "r": ConfChangeKind.REMOVE,
    "u": ConfChangeKind.UPDATE,
}
_LETTER_OF = {kind: letter for letter, kind in _CHANGE_LETTERS.items()}


_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


def quote(data: bytes) -> str:
    """As Go's %q."""
    out = ['"']
    for character in data.decode("utf-8", "surrogateescape"):
        if character in '"\\':
            out.append("\\" + character)
        elif character in "\n\t\r\a\b\f\v":
            out.append(
                {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}[character]
            )
        elif "\udc80" <= character <= "\udcff":
            out.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character.isprintable():
            out.append(character)
        elif ord(character) < 0x80:
            out.append(f"\\x{ord(character):02x}")
        elif ord(character) < 0x10000:
            out.append(f"\\u{ord(character):04x}")
        else:
            out.append(f"\\U{ord(character):08x}")
    return "".join([*out, '"'])


def describe_entry(entry: Entry) -> str:
    if entry.kind == EntryKind.NORMAL:
        detail = quote(entry.data)
    else:
        changes = decode_conf_change(entry.kind, entry.data).as_v2().changes
        detail = " ".join(f"{_LETTER_OF[change.kind]}{change.node_id}" for change in changes)
    text = f"{entry.term}/{entry.index} {_ENTRY_LABELS[entry.kind]}"
    return f"{text} {detail}" if detail else text


def _describe_ids(ids: tuple[int, ...]) -> str:
    return "[" + " ".join(map(str, ids)) + "]"


def describe_conf_state(state: ConfState) -> str:
    return (
        f"Voters:{_describe_ids(state.voters)} VotersOutgoing:{_describe_ids(state.voters_outgoing)} "
        f"Learners:{_describe_ids(state.learners)} LearnersNext:{_describe_ids(state.learners_next)} "
        f"AutoLeave:{str(state.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: RaftSnapshot) -> str:
    metadata = snapshot.metadata
    return f"Index:{metadata.index} Term:{metadata.term} ConfState:{describe_conf_state(metadata.conf_state)}"


def describe_target(node_id: int) -> str:
    if node_id == LOCAL_APPEND_THREAD:
        return "AppendThread"
    if node_id == LOCAL_APPLY_THREAD:
        return "ApplyThread"
    return "None" if node_id == NO_NODE else f"{node_id:x}"


def describe_message(message: Message, indent: str = "") -> str:
    m = message
    out = [
        f"{indent}{describe_target(m.sender)}->{describe_target(m.to)} {m.type.label} "
        f"Term:{m.term} Log:{m.log_term}/{m.index}"
    ]
    if m.reject:
        out.append(f" Rejected (Hint: {m.reject_hint})")
    if m.commit:
        out.append(f" Commit:{m.commit}")
    if m.vote:
        out.append(f" Vote:{m.vote}")
    if len(m.entries) == 1:
        out.append(f" Entries:[{describe_entry(m.entries[0])}]")
    elif m.entries:
        out.append(" Entries:[")
        out.extend(f"\n{indent}  {describe_entry(entry)}" for entry in m.entries)
        out.append(f"\n{indent}]")
    if m.snapshot is not None and m.snapshot.metadata.index:
        out.append(f"\n{indent}  Snapshot: {describe_snapshot(m.snapshot)}")
    if m.responses:
        out.append(" Responses:[")
        out.extend("\n" + describe_message(response, indent + "  ") for response in m.responses)
        out.append(f"\n{indent}]")
    return "".join(out)


def describe_ready(ready: Ready) -> str:
    out: list[str] = []
    if ready.soft_state is not None:
        out.append(f"Lead:{ready.soft_state.leader} State:{ready.soft_state.role.label}")
    if ready.hard_state is not None:
        state = ready.hard_state
        vote = f" Vote:{state.vote}" if state.vote else ""
        out.append(f"HardState Term:{state.term}{vote} Commit:{state.commit}")
    if ready.read_states:
        states = " ".join(f"{{{state.index} {quote(state.context)}}}" for state in ready.read_states)
        out.append(f"ReadStates [{states}]")
    if ready.entries:
        out.append("Entries:")
        out.extend(map(describe_entry, ready.entries))
    if ready.snapshot is not None:
        out.append(f"Snapshot {describe_snapshot(ready.snapshot)}")
    if ready.committed_entries:
        out.append("CommittedEntries:")
        out.extend(map(describe_entry, ready.committed_entries))
    if ready.messages:
        out.append("Messages:")
        out.extend(map(describe_message, ready.messages))
    if not out:
        return "<empty Ready>"
    return "\n".join([f"Ready MustSync={str(ready.must_sync).lower()}:", *out]) + "\n"


# -- interaction ------------------------------------------------------------------------------------------------------
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


class _Interaction:
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
        return self._node(_number(case.word()))

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
        index = _number(case.value("index", "0"))
        read_only = case.value("read-only", "safe")
        if read_only not in ("safe", "lease-based"):
            raise ScriptError(f"invalid read-only option {read_only!r}")
        start = None
        if conf_state.voters or conf_state.learners or index or case.find("content"):
            if index <= 1:
                raise ScriptError("index must be specified as > 1 due to bootstrap")
            start = RaftSnapshot(SnapshotMetadata(index, 1, conf_state), case.value("content").encode())
        for _ in range(_number(case.word())):
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
                max_committed_size_per_ready=_number(case.value("max-committed-size-per-ready", str(NO_LIMIT))),
                max_inflight_msgs=_number(case.value("inflight", str(1 << 31))),
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
        self._first(case).raw.core.randomized_election_ticks = _number(case.value("timeout"))

    def _do_propose(self, case: Case) -> None:
        self._first(case).raw.propose(case.word(1).encode())

    def _do_propose_conf_change(self, case: Case) -> None:
        changes = _parse_changes(case.input)
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
                recipients += [(_number(value), True) for value in values]
            elif not values:
                recipients.append((_number(key), False))
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
        self._node(_number(case.value("from"))).raw.transfer_leader(_number(case.value("to")))

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


def _parse_changes(text: str) -> tuple[SingleChange, ...]:
    changes = []
    for word in text.split():
        if word[0] not in _CHANGE_LETTERS:
            raise ScriptError(f"unknown operation {word!r}")
        changes.append(SingleChange(_CHANGE_LETTERS[word[0]], _number(word[1:])))
    return tuple(changes)


# -- confchange -------------------------------------------------------------------------------------------------------
class _ConfChange:
    def __init__(self) -> None:
        self.config = Configuration()
        self.progress = ProgressMap()
        self.counter = 0

    def __call__(self, case: Case) -> str:
        changer = Changer(
            self.config, self.progress, last_index=self.counter, inflight_max=10, inflight_bytes_max=NO_LIMIT
        )
        self.counter += 1
        changes = _parse_changes(case.input)
        try:
            if case.command == "simple":
                self.config, self.progress = changer.simple(changes)
            elif case.command == "enter-joint":
                self.config, self.progress = changer.enter_joint(case.flag("autoleave"), changes)
            elif case.command == "leave-joint":
                if changes:
                    return "this command takes no input"
                self.config, self.progress = changer.leave_joint()
            else:
                return "unknown command"
        except NoKVError as error:
            return str(error)
        members = [f"{node_id}: {self.progress[node_id]}" for node_id in sorted(self.progress)]
        return "\n".join([str(self.config), *members])


# -- quorum -----------------------------------------------------------------------------------------------------------
class _Quorum:
    def __call__(self, case: Case) -> str:
        incoming = list(map(_number, case.find("cfg") or ()))
        joint = case.find("cfgj") is not None
        outgoing = [_number(word) for word in case.find("cfgj") or () if word != "zero"]
        words = case.find("idx" if case.command == "committed" else "votes") or []
        order = list(dict.fromkeys(incoming + outgoing))
        if len(order) != len(words):
            shown = " ".join({"_": "0", "y": "2", "n": "1"}.get(word, word) for word in words)
            voters = " ".join(f"{node_id}:{{}}" for node_id in sorted(order))
            return f"error: mismatched input (explicit or _) for voters map[{voters}]: [{shown}]"
        known = {node_id: word for node_id, word in zip(order, words, strict=True) if word != "_"}
        if case.command == "committed":
            acked = {node_id: _number(word) for node_id, word in known.items()}
            return self._committed(set(incoming), set(outgoing), joint, acked)
        if case.command == "vote":
            unknown = [word for word in known.values() if word not in ("y", "n")]
            if unknown:
                raise ScriptError(f"a vote is y, n or _, not {unknown[0]!r}")
            votes = {node_id: word == "y" for node_id, word in known.items()}
            return self._vote(set(incoming), set(outgoing), joint, votes)
        raise ScriptError("unknown command")

    def _committed(self, incoming: set[int], outgoing: set[int], joint: bool, acked: dict[int, int]) -> str:
        out = [_picture(incoming | outgoing, acked)]

        def compare(index: int, how: str) -> None:
            if index != result:
                out.append(f"{_index(index)} <-- via {how}\n")

        if joint:
            result = joint_committed(incoming, outgoing, acked)
            compare(joint_committed(outgoing, incoming, acked), "symmetry")
        else:
            result = majority_committed(incoming, acked)
            compare(_committed_by_counting(incoming, acked), "alternative computation")
            compare(joint_committed(incoming, (), acked), "zero-joint quorum")
            compare(joint_committed(incoming, incoming, acked), "self-joint quorum")
            for node_id in sorted(incoming):
                index = acked.get(node_id, 0)
                if 0 < index < result:
                    for lower in (index - 1, 0):
                        compare(
                            majority_committed(incoming, {**acked, node_id: lower}), f"overlaying {node_id}->{lower}"
                        )
        return "".join(out) + _index(result)

    def _vote(self, incoming: set[int], outgoing: set[int], joint: bool, votes: dict[int, bool]) -> str:
        if not joint:
            return majority_vote(incoming, votes).value
        result = joint_vote(incoming, outgoing, votes)
        swapped = joint_vote(outgoing, incoming, votes)
        extra = "" if swapped is result else f"{swapped.value} <-- via symmetry\n"
        return extra + result.value


def _committed_by_counting(voters: set[int], acked: dict[int, int]) -> int:
    """The definition: the largest index that more than half have."""
    if not voters:
        return NO_LIMIT
    best = 0
    for index in acked.values():
        if sum(acked.get(node_id, 0) >= index for node_id in voters) > len(voters) // 2:
            best = max(best, index)
    return best


def _index(index: int) -> str:
    return "∞" if index == NO_LIMIT else str(index)


def _picture(voters: set[int], acked: dict[int, int]) -> str:
    if not voters:
        return "<empty majority quorum>"
    count = len(voters)
    lines = [" " * count + "    idx\n"]
    for node_id in sorted(voters):
        index = acked.get(node_id)
        if index is None:
            bar = "?" + " " * count
        else:
            smaller = sum(acked.get(other, 0) < index for other in voters)
            bar = "x" * smaller + ">" + " " * (count - smaller)
        lines.append(f"{bar} {index or 0:5d}    (id={node_id:x})\n")
    return "".join(lines)


_KINDS: dict[str, Callable[[], Callable[[Case], str]]] = {
    "interaction": _Interaction,
    "confchange": _ConfChange,
    "quorum": _Quorum,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nokv.testing.raft_datadriven", description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=sorted(_KINDS), required=True)
    parser.add_argument("--check", action="store_true", help="compare with the outputs in FILE; exit 1 if one differs")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        result = run_file(options.kind, options.file)
    except (OSError, ScriptError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 2
    if not options.check:
        sys.stdout.write(result.text)
        return 0
    for case, actual in result.mismatches:
        print(f"{options.file}:{case.line}: {case.command}\n--- expected\n{case.expected}--- actual\n{actual}")
    print(f"{options.file}: {result.cases - len(result.mismatches)} of {result.cases} cases agree")
    return 1 if result.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
