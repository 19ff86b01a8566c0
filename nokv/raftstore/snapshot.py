"""RegionSnapshot: one region's data at an applied boundary, as external tables and a manifest.

Owns: export, the manifest (docs/formats/region_snapshot.md), staging, verification, and publishing as one atomic
ingest. One payload serves raft catch-up, expansion and the admin export (MIG-32). Nothing is hosted before `publish`,
and a crash before it leaves nothing but a staging directory, which the next start empties (MIG-33).

Thread rules: `RegionSnapshots` lives on the store's loop; `export_region` and `verify_staged` are plain functions for a
background thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nokv._ext.crc32c import crc32c
from nokv._ext.mvcc import encode_key
from nokv.engine.sst.external import write_external
from nokv.env import Files, WritableFile
from nokv.errors import Busy, Corruption, PreconditionFailed
from nokv.multiraft.ports import SNAPSHOT_CHUNK_BYTES_MAX, SnapshotOffer, SnapshotPayload, SnapshotStaging
from nokv.mvcc import FAMILY_DEFAULT, FAMILY_LOCK, FAMILY_PLAIN, FAMILY_WRITE
from nokv.raft import ConfState, Message, RaftSnapshot, SnapshotMetadata, SnapshotTemporarilyUnavailable
from nokv.raftstore.localmeta import ApplyState
from nokv.region import Peer, PeerRole, Region, RegionEpoch

if TYPE_CHECKING:
    from nokv.raftstore.peer import StorePeer
    from nokv.raftstore.store import RegionStore

__all__ = [
    "MANIFEST_NAME",
    "RegionSnapshots",
    "SnapshotFile",
    "SnapshotManifest",
    "Staging",
    "decode_manifest",
    "encode_manifest",
    "export_region",
    "region_ranges",
    "verify_staged",
]

MANIFEST_NAME = "manifest.json"
MANIFEST_BYTES_MAX = 4 << 20
FILES_MAX = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}\.sst")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    name: str
    size: int
    crc32c: int
    entries: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    region: Region
    applied_index: int
    applied_term: int
    max_ts: int
    conf_state: ConfState
    families: dict[str, int]
    files: tuple[SnapshotFile, ...]
    content_digest: str = ""  # of what a reader sees; only the seed snapshot pays for it
    keys: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def files_digest(self) -> str:
        text = "\n".join(f"{file.name} {file.size} {file.crc32c}" for file in self.files)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def encode_manifest(manifest: SnapshotManifest) -> bytes:
    region, conf = manifest.region, manifest.conf_state
    body = {
        "region": {
            "id": region.region_id,
            "start_key": region.start_key.hex(),
            "end_key": region.end_key.hex(),
            "conf_version": region.epoch.conf_version,
            "version": region.epoch.version,
            "peers": [[p.peer_id, p.store_id, p.role.value] for p in region.peers],
        },
        "applied_index": manifest.applied_index,
        "applied_term": manifest.applied_term,
        "max_ts": manifest.max_ts,
        "conf_state": {"voters": list(conf.voters), "learners": list(conf.learners)},
        "families": manifest.families,
        "files": [[f.name, f.size, f.crc32c, f.entries] for f in manifest.files],
        "files_digest": manifest.files_digest,
        "content_digest": manifest.content_digest,
        "keys": manifest.keys,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({"format": 1, "crc32c": crc32c(text.encode()), "manifest": body}, indent=1).encode() + b"\n"


def decode_manifest(data: bytes, where: str = "region snapshot manifest") -> SnapshotManifest:
    """Corruption if anything about it is wrong; names of files are checked before anybody opens one."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise Corruption(f"the manifest has {len(data)} bytes, more than {MANIFEST_BYTES_MAX}", path=where)
    try:
        outer = json.loads(data)
        body = outer["manifest"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        if outer["format"] != 1:
            raise Corruption("unknown format of a snapshot manifest", path=where, expected=1, found=outer["format"])
        if outer["crc32c"] != crc32c(text.encode()):
            raise Corruption("wrong checksum of a snapshot manifest", path=where)
        manifest = _manifest(body)
        if manifest.files_digest != body["files_digest"]:
            raise Corruption("the file list does not match its digest", path=where)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Corruption(f"malformed snapshot manifest: {type(error).__name__}: {error}", path=where) from error
    return manifest


def _manifest(body: dict[str, Any]) -> SnapshotManifest:
    region = body["region"]
    files = tuple(SnapshotFile(str(n), _natural(s), _natural(c), _natural(e)) for n, s, c, e in body["files"])
    if len(files) > FILES_MAX or len({file.name for file in files}) != len(files):
        raise ValueError("too many files, or a name twice")
    for file in files:
        if not _NAME.fullmatch(file.name):
            raise ValueError(f"not a name of a snapshot file: {file.name[:80]!r}")
    conf = body["conf_state"]
    return SnapshotManifest(
        region=Region(
            _natural(region["id"]),
            bytes.fromhex(region["start_key"]),
            bytes.fromhex(region["end_key"]),
            RegionEpoch(_natural(region["conf_version"]), _natural(region["version"])),
            tuple(Peer(_natural(p), _natural(s), PeerRole(role)) for p, s, role in region["peers"]),
        ),
        applied_index=_natural(body["applied_index"]),
        applied_term=_natural(body["applied_term"]),
        max_ts=_natural(body["max_ts"]),
        conf_state=ConfState(tuple(map(_natural, conf["voters"])), tuple(map(_natural, conf["learners"]))),
        families={str(name): _natural(number) for name, number in body["families"].items()},
        files=files,
        content_digest=str(body["content_digest"]),
        keys=_natural(body["keys"]),
    )


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"not a number of 64 bits: {value!r}")
    return value


def region_ranges(region: Region) -> list[tuple[str, bytes | None, bytes | None]]:
    """(family, start, end) of everything that belongs to the region; None = unbounded."""
    start, end = region.start_key or None, region.end_key or None
    low = encode_key(start) if start else None
    high = encode_key(end) if end else None
    return [
        (FAMILY_PLAIN, start, end),
        (FAMILY_LOCK, low, high),
        (FAMILY_WRITE, low, high),
        (FAMILY_DEFAULT, low, high),
    ]


def export_region(
    db: Any, files: Files, directory: str, view: Any, region: Region, applied: ApplyState
) -> SnapshotManifest:
    """Write the region's tables and manifest into the new `directory`; durable on return. Any thread."""
    files.makedirs(directory)
    exported = db.export_sst(directory, region_ranges(region), snapshot=view)
    manifest = SnapshotManifest(
        region=region,
        applied_index=applied.index,
        applied_term=applied.term,
        max_ts=applied.max_ts,
        conf_state=applied.conf_state,
        families={name: db.family(name).id for name in (FAMILY_LOCK, FAMILY_WRITE, FAMILY_DEFAULT)},
        files=tuple(SnapshotFile(f.name, f.size, f.crc32c, f.entries) for f in exported),
    )
    write_file(files, os.path.join(directory, MANIFEST_NAME), encode_manifest(manifest))
    files.sync_dir(directory)
    return manifest


def write_file(files: Files, path: str, data: bytes) -> None:
    """A new file, its bytes durable (its name is not, before the directory is synced)."""
    handle = files.create(path)
    try:
        handle.write(data)
        handle.sync()
    finally:
        handle.close()


def verify_staged(files: Files, directory: str, manifest: SnapshotManifest) -> None:
    """Every file is there with its size and checksum, and nothing else is. Corruption names the file."""
    expected = {file.name for file in manifest.files}
    found = {name for name in files.listdir(directory) if name.endswith(".sst")}
    if found != expected:
        raise Corruption(
            "the staged files are not those of the manifest", path=directory, found=sorted(found ^ expected)
        )
    for file in manifest.files:
        path = os.path.join(directory, file.name)
        data = memoryview(files.map_file(path)) if file.size else memoryview(b"")
        if len(data) != file.size:
            raise Corruption("wrong size of a snapshot file", path=path, expected=file.size, found=len(data))
        checksum = 0
        for at in range(0, len(data), _READ_BYTES):
            checksum = crc32c(data[at : at + _READ_BYTES], checksum)
        if checksum != file.crc32c:
            raise Corruption("wrong checksum of a snapshot file", path=path, expected=file.crc32c, found=checksum)


class Staging:
    """A SnapshotStaging: an arriving snapshot in its own directory. Every mistake of the sender is a typed error."""

    def __init__(self, snapshots: RegionSnapshots, manifest: SnapshotManifest, directory: str, files: Files) -> None:
        self._snapshots = snapshots
        self._manifest = manifest
        self._directory = directory
        self._files = files
        self._expected = {file.name: file.size for file in manifest.files}
        self._written: dict[str, int] = {}
        self._name = ""
        self._handle: WritableFile | None = None

    def write(self, file: str, data: bytes, /) -> None:
        if file not in self._expected:
            raise Corruption(f"{file[:80]!r} is not a file of this snapshot")
        if file != self._name:
            if file in self._written:
                raise Corruption(f"the chunks of {file} do not follow each other")
            self._close_file()
            self._handle = self._files.create(os.path.join(self._directory, file))
            self._name, self._written[file] = file, 0
        self._written[file] += len(data)
        if self._written[file] > self._expected[file]:
            raise Corruption(f"{file} has more than its {self._expected[file]} bytes")
        assert self._handle is not None
        self._handle.write(data)

    def finish(self) -> None:
        self._close_file()
        for name, size in self._expected.items():
            if size == 0 and name not in self._written:
                write_file(self._files, os.path.join(self._directory, name), b"")
        verify_staged(self._files, self._directory, self._manifest)
        self._files.sync_dir(self._directory)
        self._snapshots.staged(self._directory, self._manifest)

    def abort(self) -> None:
        self._close_file()
        self._snapshots.discard(self._directory)

    def _close_file(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                handle.sync()
            finally:
                handle.close()


@dataclass(slots=True)
class _Export:
    directory: str
    snapshot: RaftSnapshot
    manifest: SnapshotManifest
    ticks_left: int
    sending: int = 0


@dataclass(slots=True)
class _Staged:
    directory: str
    manifest: SnapshotManifest
    ticks_left: int


STAGED_MAX = 8
EXPORT_TICKS_MAX = 3_000
"""An export that nobody asked for in so many ticks is deleted; so is a staged snapshot that raft did not take."""


class RegionSnapshots:
    """Exports in the making and ready, and what was received. `<workdir>/raft/export`, `<workdir>/raft/staging`."""

    def __init__(self, store: RegionStore, workdir: str, files: Files) -> None:
        self._store = store
        self._files = files
        self._export_root = os.path.join(workdir, "raft", "export")
        self._staging_root = os.path.join(workdir, "raft", "staging")
        self._ready: dict[int, _Export] = {}
        self._running: set[int] = set()
        self._staged: dict[tuple[int, int, int], _Staged] = {}
        self._sequence = 0
        self.exports = 0
        self.installs = 0
        self.last_error = ""

    def open(self) -> None:
        """Make the two directories, and empty them: nothing in them was published."""
        for root in (self._export_root, self._staging_root):
            self._files.makedirs(root)
            for name in self._files.listdir(root):
                self._remove_directory(os.path.join(root, name))

    # -- leader -------------------------------------------------------------------------------------------------------
    def source(self, peer: StorePeer) -> RaftSnapshot:
        """What raft sends to a follower that is too far behind. Starts an export, and says "later" until it is
        ready."""
        ready = self._ready.get(peer.region_id)
        if (
            ready is not None
            and ready.manifest.region.epoch == peer.region.epoch
            and ready.manifest.applied_index + 1 >= peer.log.first_index()
        ):
            ready.ticks_left = EXPORT_TICKS_MAX
            return ready.snapshot
        self.start_export(peer)
        raise SnapshotTemporarilyUnavailable

    def export_directory(self, peer: StorePeer) -> str:
        """A name for an export that its caller makes and discards."""
        return self._next_directory(self._export_root, peer.region_id, peer.applied.index)

    def start_export(self, peer: StorePeer) -> None:
        region_id = peer.region_id
        if region_id in self._running or not peer.hosted:
            return
        self._running.add(region_id)
        directory = self._next_directory(self._export_root, region_id, peer.applied.index)
        view = self._store.db.snapshot()  # at exactly the applied index: apply runs on this thread
        region, applied = peer.region, peer.applied

        def work() -> SnapshotManifest:
            try:
                return export_region(self._store.db, self._files, directory, view, region, applied)
            finally:
                view.close()

        def done(manifest: SnapshotManifest | None, error: BaseException | None) -> None:
            self._running.discard(region_id)
            if manifest is None:
                self.last_error = f"export of region {region_id}: {error}"
                self._remove_directory(directory)
                return
            self.exports += 1
            self._retire(region_id)
            metadata = SnapshotMetadata(manifest.applied_index, manifest.applied_term, manifest.conf_state)
            snapshot = RaftSnapshot(metadata, encode_manifest(manifest))
            self._ready[region_id] = _Export(directory, snapshot, manifest, EXPORT_TICKS_MAX)

        self._store.background(work, done)

    def payload(self, region_id: int, message: Message) -> SnapshotPayload:
        """The files of a snapshot that raft wants sent; they stay until the attempt has ended."""
        ready = self._ready.get(region_id)
        if ready is None or message.snapshot is None or ready.snapshot.data != message.snapshot.data:
            # Replaced meanwhile: an empty payload fails the receiver's verification, and raft asks for a new one.
            return SnapshotPayload()
        ready.sending += 1
        ready.ticks_left = EXPORT_TICKS_MAX
        directory, manifest, files = ready.directory, ready.manifest, self._files

        def chunks() -> Iterator[tuple[str, bytes]]:
            for file in manifest.files:
                data = memoryview(files.map_file(os.path.join(directory, file.name))) if file.size else b""
                for at in range(0, file.size, SNAPSHOT_CHUNK_BYTES_MAX):
                    yield file.name, bytes(data[at : at + SNAPSHOT_CHUNK_BYTES_MAX])

        def close() -> None:
            ready.sending -= 1
            if ready.sending == 0 and self._ready.get(region_id) is not ready:
                self._remove_directory(directory)

        return SnapshotPayload(ready.snapshot.data, manifest.total_bytes, chunks, close)

    def _retire(self, region_id: int) -> None:
        """Forget the export; its files go when nobody sends them any more."""
        ready = self._ready.pop(region_id, None)
        if ready is not None and ready.sending == 0:
            self._remove_directory(ready.directory)

    # -- receiver -----------------------------------------------------------------------------------------------------
    def begin(self, offer: SnapshotOffer, /) -> SnapshotStaging:
        """A SnapshotReceiver: refuse with a typed error, or give a place to write to."""
        if offer.message.snapshot is None or offer.message.snapshot.data != offer.manifest:
            raise Corruption("the manifest is not the one that raft speaks of")
        manifest = decode_manifest(offer.manifest, f"manifest from store {offer.from_node}")
        metadata = offer.message.snapshot.metadata
        if (manifest.region.region_id, manifest.applied_index, manifest.applied_term) != (
            offer.group_id,
            metadata.index,
            metadata.term,
        ):
            raise Corruption("the manifest names another region or another applied index than raft does")
        if manifest.total_bytes != offer.total_bytes:
            raise Corruption("wrong size of a snapshot", expected=manifest.total_bytes, found=offer.total_bytes)
        if len(self._staged) >= STAGED_MAX:
            raise Busy(f"{len(self._staged)} snapshots wait to be installed")
        self.check(manifest, offer.message.to)
        return Staging(self, manifest, self.staging_directory(offer.group_id), self._files)

    def staging_directory(self, region_id: int) -> str:
        """A new, empty directory for incoming files."""
        directory = self._next_directory(self._staging_root, region_id, 0)
        self._files.makedirs(directory)
        return directory

    def staged(self, directory: str, manifest: SnapshotManifest) -> None:
        """`directory` holds a verified snapshot: raft may now be told of it."""
        key = (manifest.region.region_id, manifest.applied_index, manifest.applied_term)
        old = self._staged.pop(key, None)
        if old is not None:
            self._remove_directory(old.directory)
        self._staged[key] = _Staged(directory, manifest, EXPORT_TICKS_MAX)

    def discard(self, directory: str) -> None:
        self._remove_directory(directory)

    def check(self, manifest: SnapshotManifest, peer_id: int) -> None:
        """May this snapshot become peer `peer_id` here? PreconditionFailed if not (MIG-26)."""
        region = manifest.region
        if region.peer(peer_id) is None or region.peer_on(self._store.store_id) is None:
            raise PreconditionFailed(f"the snapshot of region {region.region_id} has no peer {peer_id} on this store")
        for other in self._store.router.overlapping(region):
            raise PreconditionFailed(f"region {other.region_id} on this store overlaps region {region.region_id}")
        mine = {name: self._store.db.family(name).id for name in manifest.families}
        if mine != manifest.families:
            raise PreconditionFailed(f"families have other numbers here: {mine}, there {manifest.families}")

    def publish(self, peer: StorePeer, snapshot: RaftSnapshot) -> tuple[Region, ApplyState]:
        """One atomic manifest edit: what lay in the range disappears, the data and the local metadata appear."""
        metadata = snapshot.metadata
        key = (peer.region_id, metadata.index, metadata.term)
        staged = self._staged.pop(key, None)
        if staged is None:
            raise Corruption(f"snapshot {metadata.index} of region {peer.region_id} was accepted but is not staged")
        manifest, directory = staged.manifest, staged.directory
        self.check(manifest, peer.peer_id)
        applied = ApplyState(metadata.index, metadata.term, manifest.max_ts, True, metadata.conf_state)
        groups: list[list[str]] = []
        cleared = self._write_tombstones(os.path.join(directory, "clear.sst"), manifest.region)
        if cleared:
            groups.append([cleared])
        data = [os.path.join(directory, file.name) for file in manifest.files if file.entries]
        if data:
            groups.append(data)
        local_id = self._store.meta.family.id
        meta_path = os.path.join(directory, "meta.sst")
        records = self._store.meta.snapshot_records(manifest.region, applied)
        self._write_table(meta_path, [(local_id, key, value) for key, value in records])
        groups.append([meta_path])
        self._store.failpoint("snapshot-before-publish")
        self._store.db.ingest_sst(groups)
        self.installs += 1
        self._remove_directory(directory)
        return manifest.region, applied

    def _write_tombstones(self, path: str, region: Region) -> str | None:
        """A table of deletes for every key that lies in the region's ranges now."""
        db = self._store.db
        ranges = sorted(
            (0 if name == FAMILY_PLAIN else db.family(name).id, name, a, b) for name, a, b in region_ranges(region)
        )
        rows: list[tuple[int, bytes, bytes | None]] = []
        for number, name, start, end in ranges:
            source = db if name == FAMILY_PLAIN else db.family(name)
            rows.extend((number, key, None) for key in source.scan(start, end, values=False))
        if not rows:
            return None
        self._write_table(path, rows)
        return path

    def _write_table(self, path: str, rows: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        write_external(self._files, path, rows, families=self._store.db.families())

    # -- housekeeping -------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        for region_id, ready in list(self._ready.items()):
            ready.ticks_left -= 1
            if ready.ticks_left <= 0 and ready.sending == 0:
                self._retire(region_id)
        for key, staged in list(self._staged.items()):
            staged.ticks_left -= 1
            if staged.ticks_left <= 0:
                del self._staged[key]
                self._remove_directory(staged.directory)

    def _next_directory(self, root: str, region_id: int, index: int) -> str:
        self._sequence += 1
        return os.path.join(root, f"region-{region_id}-{index}-{self._sequence}")

    def _remove_directory(self, directory: str) -> None:
        try:
            for name in self._files.listdir(directory):
                self._files.remove(os.path.join(directory, name))
            self._files.rmdir(directory)
        except FileNotFoundError:
            return


BackgroundDone = Callable[[Any, BaseException | None], None]
