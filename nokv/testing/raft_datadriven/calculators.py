"""Scripts of the membership calculator and of the arithmetic of majorities."""

from __future__ import annotations

from nokv.errors import NoKVError
from nokv.raft import (
    SingleChange,
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
from nokv.raft.types import NO_LIMIT
from nokv.testing.raft_datadriven.describe import CHANGE_LETTERS
from nokv.testing.raft_datadriven.script import Case, ScriptError, number

__all__ = ["ConfChangeScript", "QuorumScript", "parse_changes"]


def parse_changes(text: str) -> tuple[SingleChange, ...]:
    changes = []
    for word in text.split():
        if word[0] not in CHANGE_LETTERS:
            raise ScriptError(f"unknown operation {word!r}")
        changes.append(SingleChange(CHANGE_LETTERS[word[0]], number(word[1:])))
    return tuple(changes)


class ConfChangeScript:
    def __init__(self) -> None:
        self.config = Configuration()
        self.progress = ProgressMap()
        self.counter = 0

    def __call__(self, case: Case) -> str:
        changer = Changer(
            self.config, self.progress, last_index=self.counter, inflight_max=10, inflight_bytes_max=NO_LIMIT
        )
        self.counter += 1
        changes = parse_changes(case.input)
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


class QuorumScript:
    def __call__(self, case: Case) -> str:
        incoming = list(map(number, case.find("cfg") or ()))
        joint = case.find("cfgj") is not None
        outgoing = [number(word) for word in case.find("cfgj") or () if word != "zero"]
        words = case.find("idx" if case.command == "committed" else "votes") or []
        order = list(dict.fromkeys(incoming + outgoing))
        if len(order) != len(words):
            shown = " ".join({"_": "0", "y": "2", "n": "1"}.get(word, word) for word in words)
            voters = " ".join(f"{node_id}:{{}}" for node_id in sorted(order))
            return f"error: mismatched input (explicit or _) for voters map[{voters}]: [{shown}]"
        known = {node_id: word for node_id, word in zip(order, words, strict=True) if word != "_"}
        if case.command == "committed":
            acked = {node_id: number(word) for node_id, word in known.items()}
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
