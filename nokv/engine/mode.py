"""MODE.json: which shape a directory is in, and who may open it (docs/formats/mode.md). Absent means standalone.

The engine owns the directory, so it owns this file; `migrate` and `serve` ask it. A write is atomic and durable:
temporary file,
fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from nokv._ext.crc32c import crc32c
from nokv.env.ports import Files
from nokv.errors import Corruption, ModeError, NotSupported, PreconditionFailed

__all__ = [
    "CLUSTER",
    "MODES",
    "MODE_FILE",
    "PREPARING",
    "SEEDED",
    "STANDALONE",
    "ModeRecord",
    "check_open",
    "check_transition",
    "read_mode",
    "write_mode",
]

STANDALONE = "standalone"
PREPARING = "preparing"
SEEDED = "seeded"
CLUSTER = "cluster"
MODES = (STANDALONE, PREPARING, SEEDED, CLUSTER)
ROLES = ("store", "meta-root")
MODE_FILE = "MODE.json"
FORMAT = 1
MODE_BYTES_MAX = 4096

_TRANSITIONS = {(STANDALONE, PREPARING), (PREPARING, SEEDED), (SEEDED, CLUSTER), (CLUSTER, CLUSTER)}
_NEXT_COMMAND = {
    PREPARING: "nokv migrate init --workdir {path}   (it was interrupted: the same command finishes it)",
    SEEDED: "nokv serve --workdir {path}",
    CLUSTER: "nokv serve --workdir {path}",
    STANDALONE: "nokv migrate init --workdir {path}",
}
_ACCEPTS = {STANDALONE: (STANDALONE,), PREPARING: (PREPARING,), SEEDED: (SEEDED,), CLUSTER: (SEEDED, CLUSTER)}


@dataclass(frozen=True, slots=True)
class ModeRecord:
    mode: str = STANDALONE
    store_id: int = 0
    region_id: int = 0
    peer_id: int = 0
    role: str = "store"


def _checksum(fields: dict[str, object]) -> int:
    return crc32c(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def read_mode(path: str, files: Files) -> ModeRecord:
    name = f"{path}/{MODE_FILE}"
    if not files.exists(name):
        return ModeRecord()
    data = files.read_file(name)
    if len(data) > MODE_BYTES_MAX:
        raise Corruption(
            "mode file is too large", path=name, offset=0, expected=f"<= {MODE_BYTES_MAX}", found=len(data)
        )
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Corruption(f"mode file is no JSON: {error}", path=name, offset=getattr(error, "pos", 0)) from error
    if not isinstance(fields, dict):
        raise Corruption("mode file is no JSON object", path=name, offset=0)
    found = fields.pop("crc32c", None)
    version = fields.get("format")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise NotSupported(f"{name}: format {version} is newer than this program reads ({FORMAT})", hint="upgrade nokv")
    if found != _checksum(fields):
        raise Corruption("mode file's checksum is wrong", path=name, offset=0, expected=_checksum(fields), found=found)
    if version != FORMAT:
        raise Corruption("mode file's format is unknown", path=name, offset=0, expected=FORMAT, found=version)
    if fields.get("mode") not in MODES or fields.get("role") not in ROLES:
        raise Corruption("mode file names an unknown mode or role", path=name, offset=0, found=fields.get("mode"))
    ids = [fields.get(field) for field in ("store_id", "region_id", "peer_id")]
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64 for value in ids):
        raise Corruption("mode file holds a bad id", path=name, offset=0, found=ids)
    return ModeRecord(fields["mode"], fields["store_id"], fields["region_id"], fields["peer_id"], fields["role"])


def write_mode(path: str, record: ModeRecord, files: Files) -> None:
    """Replace the file, atomically. Durable when it returns. The caller holds the directory lock and checked the
    transition."""
    if record.mode not in MODES or record.role not in ROLES:
        raise PreconditionFailed(f"unknown mode {record.mode!r} or role {record.role!r}")
    fields: dict[str, object] = {
        "format": FORMAT,
        "mode": record.mode,
        "role": record.role,
        "store_id": record.store_id,
        "region_id": record.region_id,
        "peer_id": record.peer_id,
    }
    data = json.dumps({**fields, "crc32c": _checksum(fields)}, indent=2).encode() + b"\n"
    name = f"{path}/{MODE_FILE}"
    temporary = f"{name}.tmp"
    file = files.create(temporary)
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        file.sync()
    finally:
        file.close()
    files.rename(temporary, name)
    files.sync_dir(path)


def check_transition(old: str, new: str) -> None:
    """PreconditionFailed unless a directory may go from `old` to `new` (MIG-09)."""
    if (old, new) not in _TRANSITIONS:
        raise PreconditionFailed(
            f"a {old} directory cannot become {new}",
            hint="standalone -> preparing -> seeded -> cluster, one step at a time",
        )


def check_open(path: str, claimed: str, record: ModeRecord) -> None:
    """ModeError unless whoever claims to understand `claimed` may open a directory in this mode (ENG-09)."""
    if record.mode not in _ACCEPTS[claimed]:
        raise ModeError(
            f"{path} is in mode {record.mode}, not {claimed}",
            mode=record.mode,
            hint="next: " + _NEXT_COMMAND[record.mode].format(path=path),
        )
