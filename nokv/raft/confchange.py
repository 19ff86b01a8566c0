"""Membership changes: the values, their binary form inside an entry, and the calculator of the next configuration.

A configuration is a pair of voter sets (the second is empty outside joint consensus), learners, and `learners_next`:
voters of the outgoing half that become learners on leaving. Simple changes touch at most one voter; anything else goes
through a joint configuration, in which both halves must agree (Ongaro's thesis, section 4.3).

Binary form (docs/formats/conf_change.md): byte 0 is the version (1); byte 1 the transition; varint number of changes;
each is a kind byte and a varint node id; varint length and bytes of the context; CRC-32 of all before, little endian.
Empty bytes are the empty ConfChangeV2 (leave the joint configuration).
"""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass

from nokv.errors import Corruption
from nokv.raft.errors import ConfChangeError
from nokv.raft.progress import Inflights, Progress, ProgressMap
from nokv.raft.quorum import Configuration
from nokv.raft.types import NO_NODE, ConfState, EntryKind

__all__ = [
    "Changer",
    "ConfChange",
    "ConfChangeKind",
    "ConfChangeTransition",
    "ConfChangeV2",
    "SingleChange",
    "decode_conf_change",
    "describe_conf_change",
    "encode_conf_change",
    "restore",
]

_VERSION = 1
_CHANGES_MAX = 1024
_CONTEXT_MAX_BYTES = 1 << 20


class ConfChangeKind(enum.IntEnum):
    ADD_VOTER = 0
    REMOVE = 1
    UPDATE = 2
    ADD_LEARNER = 3


class ConfChangeTransition(enum.IntEnum):
    AUTO = 0
    """Simple if possible, else joint and left automatically."""
    JOINT_IMPLICIT = 1
    """Joint, left automatically."""
    JOINT_EXPLICIT = 2
    """Joint, left by proposing an empty ConfChangeV2."""


@dataclass(slots=True, frozen=True)
class SingleChange:
    kind: ConfChangeKind
    node_id: int


@dataclass(slots=True, frozen=True)
class ConfChangeV2:
    changes: tuple[SingleChange, ...] = ()
    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        return self

    @property
    def entry_kind(self) -> EntryKind:
        return EntryKind.CONF_CHANGE_V2

    def joint(self) -> tuple[bool, bool]:
        """(leave it automatically, enter a joint configuration)."""
        if self.transition is ConfChangeTransition.AUTO and len(self.changes) <= 1:
            return False, False
        return self.transition is not ConfChangeTransition.JOINT_EXPLICIT, True

    @property
    def leaves_joint(self) -> bool:
        return not self.changes and self.transition is ConfChangeTransition.AUTO


@dataclass(slots=True, frozen=True)
class ConfChange:
    """One change, applied at once. The entry keeps the older kind, so that it is told apart from ConfChangeV2."""

    kind: ConfChangeKind
    node_id: int
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        return ConfChangeV2((SingleChange(self.kind, self.node_id),), ConfChangeTransition.AUTO, self.context)

    @property
    def entry_kind(self) -> EntryKind:
        return EntryKind.CONF_CHANGE


# -- binary form ------------------------------------------------------------------------------------------------------
def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _take_varint(data: bytes, position: int, end: int, field: str) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise Corruption(f"conf change: {field} is cut off or too long", offset=position)
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise Corruption(f"conf change: {field} is larger than 64 bits", offset=position)
            return value, position
        shift += 7


def encode_conf_change(change: ConfChange | ConfChangeV2) -> bytes:
    v2 = change.as_v2()
    if not v2.changes and v2.transition is ConfChangeTransition.AUTO and not v2.context:
        return b""
    out = bytearray((_VERSION, v2.transition))
    _put_varint(out, len(v2.changes))
    for single in v2.changes:
        out.append(single.kind)
        _put_varint(out, single.node_id)
    _put_varint(out, len(v2.context))
    out += v2.context
    out += zlib.crc32(out).to_bytes(4, "little")
    return bytes(out)


def decode_conf_change(kind: EntryKind, data: bytes) -> ConfChange | ConfChangeV2:
    """The value in an entry of this kind. Raises Corruption naming the field."""
    v2 = _decode_v2(data)
    if kind is EntryKind.CONF_CHANGE_V2:
        return v2
    if kind is not EntryKind.CONF_CHANGE:
        raise Corruption("conf change: the entry is of another kind", found=kind)
    if len(v2.changes) != 1:
        raise Corruption("conf change: number of changes in a simple change", expected=1, found=len(v2.changes))
    return ConfChange(v2.changes[0].kind, v2.changes[0].node_id, v2.context)


def _decode_v2(data: bytes) -> ConfChangeV2:
    if not data:
        return ConfChangeV2()
    if len(data) < 8:
        raise Corruption("conf change: shorter than the smallest one", expected=8, found=len(data))
    if data[0] != _VERSION:
        raise Corruption("conf change: version", offset=0, expected=_VERSION, found=data[0])
    end = len(data) - 4
    found = int.from_bytes(data[end:], "little")
    expected = zlib.crc32(data[:end])
    if found != expected:
        raise Corruption("conf change: checksum", offset=end, expected=expected, found=found)
    try:
        transition = ConfChangeTransition(data[1])
    except ValueError:
        raise Corruption("conf change: transition", offset=1, found=data[1]) from None
    count, position = _take_varint(data, 2, end, "number of changes")
    if count > _CHANGES_MAX:
        raise Corruption("conf change: number of changes", offset=2, found=count)
    changes = []
    for _ in range(count):
        if position >= end:
            raise Corruption("conf change: cut off before a change", offset=position)
        try:
            kind = ConfChangeKind(data[position])
        except ValueError:
            raise Corruption("conf change: kind", offset=position, found=data[position]) from None
        node_id, position = _take_varint(data, position + 1, end, "node id")
        changes.append(SingleChange(kind, node_id))
    size, position = _take_varint(data, position, end, "context length")
    if size > _CONTEXT_MAX_BYTES or position + size != end:
        raise Corruption("conf change: context length", offset=position, expected=end - position, found=size)
    return ConfChangeV2(tuple(changes), transition, data[position:end])


_KIND_LABELS = {
    ConfChangeKind.ADD_VOTER: "ConfChangeAddNode",
    ConfChangeKind.REMOVE: "ConfChangeRemoveNode",
    ConfChangeKind.UPDATE: "ConfChangeUpdateNode",
    ConfChangeKind.ADD_LEARNER: "ConfChangeAddLearnerNode",
}
_TRANSITION_LABELS = {
    ConfChangeTransition.AUTO: "ConfChangeTransitionAuto",
    ConfChangeTransition.JOINT_IMPLICIT: "ConfChangeTransitionJointImplicit",
    ConfChangeTransition.JOINT_EXPLICIT: "ConfChangeTransitionJointExplicit",
}


def describe_conf_change(change: ConfChange | ConfChangeV2) -> str:
    """As a log line shows it: both kinds of entry in the words of the newer one."""
    v2 = change.as_v2()
    changes = "".join(f" changes:{{type:{_KIND_LABELS[c.kind]} node_id:{c.node_id}}}" for c in v2.changes)
    return f"transition:{_TRANSITION_LABELS[v2.transition]}{changes}"


# -- the calculator ---------------------------------------------------------------------------------------------------
class Changer:
    """Computes the next configuration and progress map; changes neither of those given."""

    __slots__ = ("_config", "_inflight_bytes_max", "_inflight_max", "_last_index", "_progress")

    def __init__(
        self,
        config: Configuration,
        progress: ProgressMap,
        *,
        last_index: int,
        inflight_max: int,
        inflight_bytes_max: int,
    ) -> None:
        self._config = config.copy()
        self._progress = ProgressMap(progress)
        self._last_index = last_index
        self._inflight_max = inflight_max
        self._inflight_bytes_max = inflight_bytes_max

    def enter_joint(self, auto_leave: bool, changes: tuple[SingleChange, ...]) -> tuple[Configuration, ProgressMap]:
        """The outgoing half becomes a copy of the voters; the changes then go to the incoming half."""
        config = self._config
        if config.is_joint:
            raise ConfChangeError("config is already joint")
        if not config.incoming:
            # Before there is a voter there is no one whose agreement the joint configuration could ask for.
            raise ConfChangeError("can't make a zero-voter config joint")
        config.outgoing = set(config.incoming)
        self._apply(changes)
        config.auto_leave = auto_leave
        return self._checked()

    def leave_joint(self) -> tuple[Configuration, ProgressMap]:
        config = self._config
        if not config.is_joint:
            raise ConfChangeError("can't leave a non-joint config")
        for node_id in config.learners_next:
            config.learners.add(node_id)
            self._own_progress(node_id).is_learner = True
        config.learners_next = set()
        for node_id in config.outgoing:
            if node_id not in config.incoming and node_id not in config.learners:
                del self._progress[node_id]
        config.outgoing = set()
        config.auto_leave = False
        return self._checked()

    def simple(self, changes: tuple[SingleChange, ...]) -> tuple[Configuration, ProgressMap]:
        """A direct step: at most one voter differs, so any old and any new quorum overlap."""
        config = self._config
        if config.is_joint:
            raise ConfChangeError("can't apply simple config change in joint config")
        before = set(config.incoming)
        self._apply(changes)
        if len(before ^ config.incoming) > 1:
            raise ConfChangeError("more than one voter changed without entering joint config")
        return self._checked()

    # -- leaves --------------------------------------------------------------------------------------------------------
    def _apply(self, changes: tuple[SingleChange, ...]) -> None:
        for change in changes:
            node_id = change.node_id
            if node_id == NO_NODE:
                continue  # a change that its proposer cancelled by zeroing the id
            if change.kind is ConfChangeKind.ADD_VOTER:
                self._make_voter(node_id)
            elif change.kind is ConfChangeKind.ADD_LEARNER:
                self._make_learner(node_id)
            elif change.kind is ConfChangeKind.REMOVE:
                self._remove(node_id)
        if not self._config.incoming:
            raise ConfChangeError("removed all voters")

    def _make_voter(self, node_id: int) -> None:
        config = self._config
        if node_id not in self._progress:
            self._start_tracking(node_id, is_learner=False)
        else:
            self._own_progress(node_id).is_learner = False
            config.learners.discard(node_id)
            config.learners_next.discard(node_id)
        config.incoming.add(node_id)

    def _make_learner(self, node_id: int) -> None:
        config = self._config
        progress = self._progress.get(node_id)
        if progress is None:
            self._start_tracking(node_id, is_learner=True)
            config.learners.add(node_id)
            return
        if progress.is_learner:
            return
        self._remove(node_id)
        self._progress[node_id] = progress = progress.copy()
        if node_id in config.outgoing:
            # It still votes in the outgoing half, and a node is never both: the switch waits until that half is left.
            config.learners_next.add(node_id)
        else:
            progress.is_learner = True
            config.learners.add(node_id)

    def _remove(self, node_id: int) -> None:
        if node_id not in self._progress:
            return
        config = self._config
        config.incoming.discard(node_id)
        config.learners.discard(node_id)
        config.learners_next.discard(node_id)
        if node_id not in config.outgoing:
            del self._progress[node_id]

    def _start_tracking(self, node_id: int, *, is_learner: bool) -> None:
        # Next is the last index, not past it: the first probe then carries an entry, and a new member with nothing
        # answers with a rejection that leads to a snapshot. At least 1. It counts as active, or check-quorum could
        # depose the leader before the new member had a chance to answer.
        self._progress[node_id] = Progress(
            match=0,
            next=max(self._last_index, 1),
            inflights=Inflights(self._inflight_max, self._inflight_bytes_max),
            is_learner=is_learner,
            recent_active=True,
        )

    def _own_progress(self, node_id: int) -> Progress:
        progress = self._progress[node_id].copy()
        self._progress[node_id] = progress
        return progress

    def _checked(self) -> tuple[Configuration, ProgressMap]:
        config, progress = self._config, self._progress
        for node_id in config.incoming | config.outgoing | config.learners | config.learners_next:
            assert node_id in progress, f"no progress for {node_id}"
        for node_id in config.learners_next:
            assert node_id in config.outgoing, f"{node_id} is in learners_next, but not in the outgoing half"
            assert not progress[node_id].is_learner, f"{node_id} is in learners_next, but already a learner"
        for node_id in config.learners:
            assert node_id not in config.outgoing, f"{node_id} is a learner and in the outgoing half"
            assert node_id not in config.incoming, f"{node_id} is a learner and a voter"
            assert progress[node_id].is_learner, f"{node_id} is in learners, but not marked as one"
        if not config.is_joint:
            assert not config.learners_next
            assert not config.auto_leave
        return config, progress


def restore(
    conf_state: ConfState, *, last_index: int, inflight_max: int, inflight_bytes_max: int
) -> tuple[Configuration, ProgressMap]:
    """The configuration and progress map that `conf_state` describes, reached through legal changes only."""
    config, progress = Configuration(), ProgressMap()

    def changer() -> Changer:
        return Changer(
            config,
            progress,
            last_index=last_index,
            inflight_max=inflight_max,
            inflight_bytes_max=inflight_bytes_max,
        )

    incoming = [SingleChange(ConfChangeKind.REMOVE, i) for i in conf_state.voters_outgoing]
    incoming += [SingleChange(ConfChangeKind.ADD_VOTER, i) for i in conf_state.voters]
    incoming += [SingleChange(ConfChangeKind.ADD_LEARNER, i) for i in conf_state.learners]
    incoming += [SingleChange(ConfChangeKind.ADD_LEARNER, i) for i in conf_state.learners_next]
    if not conf_state.voters_outgoing:
        for change in incoming:
            config, progress = changer().simple((change,))
        return config, progress
    for node_id in conf_state.voters_outgoing:
        config, progress = changer().simple((SingleChange(ConfChangeKind.ADD_VOTER, node_id),))
    return changer().enter_joint(conf_state.auto_leave, tuple(incoming))
