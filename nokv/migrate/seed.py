"""The seed snapshot of `migrate init`: every live table of the directory, hard-linked, with a manifest beside them.

No data is copied or rewritten. The manifest (docs/formats/migration_checkpoint.md) says what must be there, so that a
table that disappears or changes between the steps of an interrupted promotion is found. Once the store serves,
nothing needs the snapshot any more; it keeps the state at promotion, at the price of the disk space of tables that
compaction has replaced.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from nokv._ext.crc32c import crc32c
from nokv.env.ports import Files
from nokv.errors import Corruption

__all__ = ["SEED_DIRECTORY", "SEED_MANIFEST", "SeedFile", "SeedManifest", "export_seed", "load_seed", "verify_seed"]

SEED_DIRECTORY = "seed-snapshot"
SEED_MANIFEST = "SEED.json"
FORMAT = 1
SIZE_MAX = 64 << 20


@dataclass(slots=True, frozen=True)
class SeedFile:
    name: str
    size: int
    crc32c: int
    entries: int
    smallest: str  # hex
    largest: str


@dataclass(slots=True, frozen=True)
class SeedManifest:
    region_id: int
    peer_id: int
    start_key: str  # hex; both empty: the whole key space (MIG-16)
    end_key: str
    files: tuple[SeedFile, ...]


def export_seed(db: Any, workdir: str, region_id: int, peer_id: int, files: Files) -> SeedManifest:
    """Link all tables into a staging directory, write the manifest, rename it into place. Repeatable."""
    final = f"{workdir}/{SEED_DIRECTORY}"
    staging = f"{final}.tmp"
    for leftover in (staging, final):
        _clear(leftover, files)
    files.makedirs(staging)
    exported = db.link_tables(staging)
    manifest = SeedManifest(
        region_id,
        peer_id,
        "",
        "",
        tuple(SeedFile(f.name, f.size, f.crc32c, f.entries, f.smallest.hex(), f.largest.hex()) for f in exported),
    )
    file = files.create(f"{staging}/{SEED_MANIFEST}")
    try:
        view = memoryview(encode_seed(manifest))
        while view:
            view = view[file.write(view) :]
        file.sync()
    finally:
        file.close()
    files.sync_dir(staging)
    files.rename(staging, final)
    files.sync_dir(workdir)
    return manifest


def _clear(directory: str, files: Files) -> None:
    if files.exists(directory):
        for name in files.listdir(directory):
            files.remove(f"{directory}/{name}")
        files.rmdir(directory)


def encode_seed(manifest: SeedManifest) -> bytes:
    body = asdict(manifest)
    document = {"format": FORMAT, "crc32c": _checksum(body), "seed": body}
    return json.dumps(document, indent=2).encode() + b"\n"


def _checksum(body: dict[str, Any]) -> str:
    return f"{crc32c(json.dumps(body, sort_keys=True, separators=(',', ':')).encode()):08x}"


def decode_seed(data: bytes, path: str) -> SeedManifest:
    """Corruption naming `path` for anything that `encode_seed` did not write."""
    hint = "run `nokv migrate init` again: it exports the snapshot again"
    if len(data) > SIZE_MAX:
        raise Corruption("seed manifest is too large", path=path, expected=f"<= {SIZE_MAX}", found=len(data), hint=hint)
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise Corruption("seed manifest format", path=path, expected=FORMAT, found=document["format"], hint=hint)
        body = document["seed"]
        expected = _checksum(body)
        if document["crc32c"] != expected:
            raise Corruption(
                "seed manifest checksum", path=path, expected=expected, found=document["crc32c"], hint=hint
            )
        return SeedManifest(**{**body, "files": tuple(SeedFile(**file) for file in body["files"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corruption(f"not a seed manifest: {error}", path=path, hint=hint) from None


def load_seed(workdir: str, files: Files) -> SeedManifest | None:
    path = f"{workdir}/{SEED_DIRECTORY}/{SEED_MANIFEST}"
    return decode_seed(files.read_file(path), path) if files.exists(path) else None


def verify_seed(workdir: str, manifest: SeedManifest, files: Files) -> None:
    """Corruption unless every table that the manifest names is there with its size."""
    for file in manifest.files:
        path = f"{workdir}/{SEED_DIRECTORY}/{file.name}"
        if not files.exists(path):
            raise Corruption("a table of the seed snapshot is missing", path=path)
        if files.size(path) != file.size:
            raise Corruption(
                "a table of the seed snapshot changed", path=path, expected=file.size, found=files.size(path)
            )
