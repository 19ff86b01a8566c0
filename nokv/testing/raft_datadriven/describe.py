"""Values of Raft as the peer prints them."""

from __future__ import annotations

from nokv.raft import (
    ConfChangeKind,
    ConfState,
    Entry,
    EntryKind,
    Message,
    RaftSnapshot,
    Ready,
    decode_conf_change,
)
from nokv.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NO_NODE

__all__ = [
    "CHANGE_LETTERS",
    "describe_conf_state",
    "describe_entry",
    "describe_message",
    "describe_ready",
    "describe_snapshot",
    "describe_target",
    "quote",
]


_ENTRY_LABELS = {
    EntryKind.NORMAL: "EntryNormal",
    EntryKind.CONF_CHANGE: "EntryConfChange",
    EntryKind.CONF_CHANGE_V2: "EntryConfChangeV2",
}
CHANGE_LETTERS = {
    "v": ConfChangeKind.ADD_VOTER,
    "l": ConfChangeKind.ADD_LEARNER,
    "r": ConfChangeKind.REMOVE,
    "u": ConfChangeKind.UPDATE,
}
_LETTER_OF = {kind: letter for letter, kind in CHANGE_LETTERS.items()}


_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


def quote(data: bytes) -> str:
    """As Go's %q."""
    out = ['"']
    for character in data.decode("utf-8", "surrogateescape"):
        if character in '"\\':
            out.append("\\" + character)
        elif character in "\n\t\r\a\b\f\v":
            out.append(_ESCAPES[character])
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
