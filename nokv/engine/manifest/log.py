"""The manifest file and CURRENT (docs/formats/manifest.md).

    file   = header (32) | record ...
    record = 0xED | length (4) | CRC of length, offset and manifest number (4) | CRC of the payload (4) | payload

Each record is written in one piece and synced before anything depends on it, so at most the last one can be torn, and
nobody was told that it is there. A record counts as torn if the file ends inside it, or if some whole piece of it
between two 512-byte boundaries is zeros, as when a file grew but a sector was never written, and no record follows.
Anything else that is wrong is corruption: a header of its own makes a damaged length distinguishable from a file that
ends early.
"""

from __future__ import annotations

import contextlib
import errno
import re
import struct

from nokv._ext.crc32c import crc32c
from nokv.engine.manifest.edit import VersionEdit, decode_edit, encode_edit
from nokv.env.ports import Buffer, Files, WritableFile
from nokv.errors import Corruption, NotSupported

__all__ = [
    "ManifestWriter",
    "manifest_name",
    "manifest_number",
    "read_current",
    "read_manifest",
    "write_all",
    "write_current",
]

MAGIC = b"NOKVMAN\x01"
FORMAT_VERSION = 1
HEADER = struct.Struct("<8sIQQI")  # magic, version, number, reserved, crc
RECORD = struct.Struct("<BIII")
MARK = 0xED  # as the first byte of a record it keeps a zero length from looking like a hole
SECTOR_BYTES = 512
RECORD_BYTES_MAX = 256 << 20
CURRENT = "CURRENT"
CURRENT_LINE = re.compile(rb"nokv (\d{1,9}) (MANIFEST-\d{6,20}) crc32c ([0-9a-f]{8})\n")

assert HEADER.size == 32
assert RECORD.size == 13


def manifest_name(number: int) -> str:
    return f"MANIFEST-{number:06d}"


def manifest_number(name: str) -> int | None:
    stem = name.removeprefix("MANIFEST-")
    return int(stem) if stem != name and len(stem) >= 6 and stem.isascii() and stem.isdigit() else None


def _header_crc(length: int, offset: int, number: int) -> int:
    return crc32c(struct.pack("<IQQ", length, offset, number))


def write_all(file: WritableFile, data: Buffer) -> None:
    """Every byte of it, however short the single writes are."""
    view = memoryview(data)
    while view:
        done = file.write(view)
        if done <= 0:
            raise OSError(errno.EIO, "nothing was written")
        view = view[done:]


class ManifestWriter:
    """A new manifest. One thread at a time. After an error it must not be used again."""

    def __init__(self, files: Files, path: str, number: int) -> None:
        self._file = files.create(path)
        self.number = number
        self.size = 0
        head = HEADER.pack(MAGIC, FORMAT_VERSION, number, 0, 0)[:-4]
        self._write(head + struct.pack("<I", crc32c(head)))

    def append(self, edit: VersionEdit) -> None:
        """Durable when it returns (the name of the file is not: sync the directory once)."""
        payload = encode_edit(edit)
        length = len(payload)
        self._write(RECORD.pack(MARK, length, _header_crc(length, self.size, self.number), crc32c(payload)) + payload)
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        write_all(self._file, data)
        self.size += len(data)


def _has_hole(data: bytes, start: int) -> bool:
    """Is any piece of data[start:] between two sector boundaries all zeros?"""
    while start < len(data):
        end = min(len(data), (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if not any(data[start:end]):
            return True
        start = end
    return False


def _record_follows(data: bytes, start: int, number: int) -> bool:
    """Is there a whole record after `start`? Then what is at `start` had been synced before that one was written."""
    at = data.find(MARK, start + 1)
    while at >= 0 and len(data) - at >= RECORD.size:
        _, length, head_crc, payload_crc = RECORD.unpack_from(data, at)
        payload = data[at + RECORD.size : at + RECORD.size + length]
        if head_crc == _header_crc(length, at, number) and len(payload) == length and payload_crc == crc32c(payload):
            return True
        at = data.find(MARK, at + 1)
    return False


def read_manifest(data: bytes, path: str, number: int) -> tuple[list[VersionEdit], int | None]:
    """All edits, and where a torn record begins (None: the file ends cleanly)."""
    if len(data) < HEADER.size:
        raise Corruption("the manifest is shorter than its header", path=path, offset=0)
    magic, version, stated, _, crc = HEADER.unpack_from(data)
    if magic != MAGIC or crc != crc32c(data[: HEADER.size - 4]):
        raise Corruption("the header of the manifest is damaged", path=path, offset=0)
    if version != FORMAT_VERSION:
        raise NotSupported(
            f"{path}: manifest format version {version}, this program reads {FORMAT_VERSION}",
            hint="open the directory with the release that wrote it, or a newer one",
        )
    if stated != number:
        raise Corruption("the manifest has another number", path=path, offset=0, expected=number, found=stated)
    edits: list[VersionEdit] = []
    at = HEADER.size
    torn: int | None = None
    while at < len(data):
        if len(data) - at < RECORD.size:
            torn = at
            break
        mark, length, head_crc, payload_crc = RECORD.unpack_from(data, at)
        if mark != MARK or head_crc != _header_crc(length, at, number) or length > RECORD_BYTES_MAX:
            if not _has_hole(data, at) or _record_follows(data, at, number):
                raise Corruption("the header of a manifest record is damaged", path=path, offset=at)
            torn = at
            break
        start = at + RECORD.size
        if length > len(data) - start:
            torn = at
            break
        payload = data[start : start + length]
        if crc32c(payload) != payload_crc:
            if start + length < len(data) or not _has_hole(data, at):
                raise Corruption("the checksum of a manifest record does not match", path=path, offset=at)
            torn = at
            break
        edits.append(decode_edit(payload, path=path, offset=at))
        at = start + length
    if not edits:  # the first record is synced before CURRENT names the file
        raise Corruption("the manifest has no complete record", path=path, offset=HEADER.size)
    return edits, torn


def read_current(files: Files, path: str) -> str:
    """The name of the manifest. FileNotFoundError if there is no CURRENT."""
    data = files.read_file(path)
    match = CURRENT_LINE.fullmatch(data)
    if match is None or int(match[3], 16) != crc32c(b"nokv " + match[1] + b" " + match[2]):
        raise Corruption("CURRENT is damaged", path=path, offset=0)
    if int(match[1]) != FORMAT_VERSION:
        raise NotSupported(f"{path}: written by a newer release", hint="open the directory with that release")
    return match[2].decode()


def write_current(files: Files, directory: str, path: str, name: str) -> None:
    """Atomic; durable when it returns."""
    text = f"nokv {FORMAT_VERSION} {name}".encode()
    temporary = path + ".tmp"
    if files.exists(temporary):  # of a roll-over that a crash cut short
        files.remove(temporary)
    file = files.create(temporary)
    try:
        write_all(file, text + b" crc32c %08x\n" % crc32c(text))
        file.sync()
    except OSError:
        with contextlib.suppress(OSError):
            file.close()
        raise
    file.close()
    files.rename(temporary, path)
    files.sync_dir(directory)
