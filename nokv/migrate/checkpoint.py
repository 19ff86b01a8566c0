"""MIGRATION.json: how far a promotion and the rollout after it have come. Format: docs/formats/migration_checkpoint.md.

Written by one process at a time (it holds the directory, or is the only operator of the rollout), replaced atomically:
temporary file, fsync, rename, directory sync. Read by anyone, also while the store runs.

    standalone --init--> mode-preparing-written -> local-catalog-persisted -> seed-snapshot-exported
                         -> raft-seed-initialized -> seeded-finalized          then, per operator command:
    expand-rollout-started -> (expand-target-pending -> expand-target-hosted)*
    transfer-leader-started -> transfer-leader-finished      remove-peer-started -> remove-peer-finished
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nokv._ext.crc32c import crc32c
from nokv.env.ports import Files
from nokv.errors import Corruption

__all__ = ["CHECKPOINT_NAME", "MILESTONES", "STAGES", "Checkpoint", "Rollout", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_NAME = "MIGRATION.json"
FORMAT = 1
SIZE_MAX = 1 << 20

MILESTONES = (  # MIG-17: exactly these, in this order
    "mode-preparing-written",
    "local-catalog-persisted",
    "seed-snapshot-exported",
    "raft-seed-initialized",
    "seeded-finalized",
)
STAGES = (  # MIG-29
    "expand-rollout-started",
    "expand-target-pending",
    "expand-target-hosted",
    "transfer-leader-started",
    "transfer-leader-finished",
    "remove-peer-started",
    "remove-peer-finished",
)


@dataclass(slots=True, frozen=True)
class Rollout:
    """The operator's last membership command. `command` is what to run again if it was interrupted."""

    stage: str
    region_id: int
    command: str
    targets: tuple[str, ...] = ()  # as the operator wrote them: "2:201@127.0.0.1:20171"
    completed: int = 0  # how many of `targets` are hosted and voting
    current: str = ""  # the target, or peer id, being worked on
    last_finished: str = ""  # "transfer-leader 201", "remove-peer 301", "expand 2:201"

    @property
    def pending(self) -> bool:
        return self.stage.endswith(("-started", "-pending")) or (
            self.stage == "expand-target-hosted" and self.completed < len(self.targets)
        )


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """`milestone` is "" for a store that was never promoted (an empty store that joined) and only has a rollout."""

    milestone: str = ""
    store_id: int = 0
    region_id: int = 0
    peer_id: int = 0
    rollout: Rollout | None = field(default=None)

    def reached(self, milestone: str) -> bool:
        return bool(self.milestone) and MILESTONES.index(self.milestone) >= MILESTONES.index(milestone)

    def with_rollout(self, rollout: Rollout) -> Checkpoint:
        return replace(self, rollout=rollout)


def _body_bytes(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    body = asdict(checkpoint)
    document = {"format": FORMAT, "crc32c": f"{crc32c(_body_bytes(body)):08x}", "checkpoint": body}
    return json.dumps(document, indent=2).encode() + b"\n"


def decode_checkpoint(data: bytes, path: str) -> Checkpoint:
    """Corruption naming `path` and the field, for anything that `encode_checkpoint` did not write."""
    hint = f"move {path} away and run `nokv migrate status`: the mode file stays the truth"
    if len(data) > SIZE_MAX:
        raise Corruption(
            "checkpoint is too large", path=path, expected=f"<= {SIZE_MAX} bytes", found=len(data), hint=hint
        )
    try:
        document = json.loads(data)
        found_format = document["format"]
        body = document["checkpoint"]
        found = document["crc32c"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corruption(f"not a migration checkpoint: {error}", path=path, hint=hint) from None
    if found_format != FORMAT:
        raise Corruption("unknown checkpoint format", path=path, expected=FORMAT, found=found_format, hint=hint)
    if not isinstance(body, dict):
        raise Corruption("field checkpoint is not an object", path=path, hint=hint)
    expected = f"{crc32c(_body_bytes(body)):08x}"
    if found != expected:
        raise Corruption("checkpoint checksum", path=path, expected=expected, found=found, hint=hint)
    return _from_body(body, path, hint)


def _from_body(body: dict[str, Any], path: str, hint: str) -> Checkpoint:
    def take(cls: type, source: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
        wanted = {f.name for f in fields(cls)}
        if set(source) != wanted:
            raise Corruption(
                f"fields of {cls.__name__}", path=path, expected=sorted(wanted), found=sorted(source), hint=hint
            )
        for name, kind in kinds.items():
            if type(source[name]) is not kind or (kind is int and not 0 <= source[name] < 1 << 64):
                raise Corruption(f"field {name}", path=path, expected=kind.__name__, found=source[name], hint=hint)
        return dict(source)

    values = take(Checkpoint, body, {"milestone": str, "store_id": int, "region_id": int, "peer_id": int})
    if values["milestone"] and values["milestone"] not in MILESTONES:
        raise Corruption("field milestone", path=path, expected=MILESTONES, found=values["milestone"], hint=hint)
    if values["rollout"] is not None:
        if not isinstance(values["rollout"], dict):
            raise Corruption("field rollout is not an object", path=path, hint=hint)
        kinds = {"stage": str, "region_id": int, "command": str, "targets": list, "completed": int}
        inner = take(Rollout, values["rollout"], {**kinds, "current": str, "last_finished": str})
        if inner["stage"] not in STAGES:
            raise Corruption("field stage", path=path, expected=STAGES, found=inner["stage"], hint=hint)
        if not all(type(target) is str for target in inner["targets"]):
            raise Corruption("field targets", path=path, expected="list of str", found=inner["targets"], hint=hint)
        inner["targets"] = tuple(inner["targets"])
        values["rollout"] = Rollout(**inner)
    return Checkpoint(**values)


def load_checkpoint(workdir: str, files: Files) -> Checkpoint | None:
    """The checkpoint, or None if there is none. Corruption, OSError."""
    path = f"{workdir}/{CHECKPOINT_NAME}"
    if not files.exists(path):
        return None
    return decode_checkpoint(files.read_file(path), path)


def save_checkpoint(workdir: str, checkpoint: Checkpoint, files: Files) -> None:
    """Durable when it returns: a power loss shows either the old checkpoint or this one."""
    path = f"{workdir}/{CHECKPOINT_NAME}"
    temporary = f"{path}.tmp"
    file = files.create(temporary)
    try:
        view = memoryview(encode_checkpoint(checkpoint))
        while view:
            view = view[file.write(view) :]
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_dir(workdir)
