"""Checkpoint files of one meta-root: DIR/root/checkpoint-INDEX.ckpt, or installed-INDEX.ckpt if another peer sent it.

A file holds one framed checkpoint (docs/formats/root_event.md): written beside, synced, renamed, and the directory
synced. The two newest stay; the Raft log is compacted only up to the older one, so that a bad newest file costs
nothing but time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nokv.env.ports import Files
from nokv.errors import Corruption
from nokv.metaroot.wire import Checkpoint, decode_checkpoint

__all__ = ["CheckpointFiles", "FoundCheckpoint"]

KEEP = 2
_NAME = re.compile(r"(checkpoint|installed)-(\d{20})\.ckpt")


@dataclass(slots=True)
class FoundCheckpoint:
    checkpoint: Checkpoint
    data: bytes
    installed: bool


class CheckpointFiles:
    """One thread at a time."""

    def __init__(self, directory: str, files: Files, *, create: bool = True) -> None:
        self._directory = directory
        self._files = files
        self._bad: set[str] = set()
        if create:
            files.makedirs(directory)

    def _names(self) -> list[tuple[int, str]]:
        """(index, name) of those not known to be bad, newest first."""
        if not self._files.exists(self._directory):
            return []
        found = [(int(m[2]), m[0]) for m in map(_NAME.fullmatch, self._files.listdir(self._directory)) if m]
        return sorted((pair for pair in found if pair[1] not in self._bad), reverse=True)

    def load(self) -> tuple[FoundCheckpoint | None, list[Corruption]]:
        """The newest good one, and what was wrong with the newer ones. Bad files stay where they are: evidence."""
        damage: list[Corruption] = []
        for index, name in self._names():
            path = f"{self._directory}/{name}"
            data = self._files.read_file(path)
            try:
                checkpoint = decode_checkpoint(data, path)
                if checkpoint.index != index:
                    raise Corruption(
                        "the name and the content disagree", path=path, expected=index, found=checkpoint.index
                    )
                return FoundCheckpoint(checkpoint, data, name.startswith("installed")), damage
            except Corruption as error:
                self._bad.add(name)
                damage.append(error)
        return None, damage

    def write(self, index: int, data: bytes, *, installed: bool = False) -> None:
        """Durable on return; older ones beyond the newest two are removed."""
        name = f"{'installed' if installed else 'checkpoint'}-{index:020}.ckpt"
        path = f"{self._directory}/{name}"
        temporary = path + ".tmp"
        if self._files.exists(temporary):
            self._files.remove(temporary)
        file = self._files.create(temporary)
        try:
            file.write(data)
            file.sync()
        finally:
            file.close()
        self._files.rename(temporary, path)
        self._files.sync_dir(self._directory)
        for _, old in self._names()[KEEP:]:
            self._files.remove(f"{self._directory}/{old}")

    def compactable_index(self) -> int:
        """Up to where the log may go: the older of the two newest files; 0 while there is only one."""
        names = self._names()
        return names[KEEP - 1][0] if len(names) >= KEEP else 0
