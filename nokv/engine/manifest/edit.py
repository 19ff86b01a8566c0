"""Version edits: what one manifest record says, and its bytes (docs/formats/manifest.md). Pure.

payload = version (1) | field ... | 0xA5
field   = varint tag | varint length | that many bytes
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nokv._ext.fields import FieldReader
from nokv.errors import Corruption, NotSupported

__all__ = ["FileMeta", "ValueFileMeta", "VersionEdit", "decode_edit", "encode_edit"]

EDIT_VERSION = 1
END = 0xA5  # never zero: tells a record that ends in zeros from one whose end was not written
FAMILIES_MAX = 255
LEVELS_MAX = 16
LOG_NUMBER, NEXT_FILE_NUMBER, LAST_SEQUENCE, ADD_FILE, REMOVE_FILE, FAMILY = 1, 2, 3, 4, 5, 6
ADD_VALUES, REMOVE_VALUES, DEAD_VALUES = 7, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """One table. `smallest` and `largest` are family || user key. With a `global_sequence`, every entry has that
    one."""

    number: int
    level: int
    size: int
    crc32c: int  # of the whole file
    entries: int
    smallest: bytes
    largest: bytes
    min_sequence: int
    max_sequence: int
    global_sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFileMeta:
    """One value file. `dead_bytes` of its `value_bytes` belong to values that no table refers to."""

    number: int
    size: int
    records: int
    value_bytes: int
    dead_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class VersionEdit:
    """What changes. A file number in both `removed` and `added` moves to another level."""

    log_number: int | None = None  # the first WAL segment that the engine still needs
    next_file_number: int | None = None
    last_sequence: int | None = None
    added: list[FileMeta] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    families: dict[str, int] = field(default_factory=dict)
    values_added: list[ValueFileMeta] = field(default_factory=list)
    values_removed: list[int] = field(default_factory=list)
    values_dead: dict[int, int] = field(default_factory=dict)  # dead bytes of a file from now on


def varint(value: int) -> bytes:
    if value < 0 or value >> 64:
        raise ValueError(f"{value} does not fit 64 bits")
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def counted(data: bytes) -> bytes:
    return varint(len(data)) + data


def encode_edit(edit: VersionEdit) -> bytes:
    out = bytearray([EDIT_VERSION])
    for tag, number in (
        (LOG_NUMBER, edit.log_number),
        (NEXT_FILE_NUMBER, edit.next_file_number),
        (LAST_SEQUENCE, edit.last_sequence),
    ):
        if number is not None:
            out += varint(tag) + counted(varint(number))
    for name, family in edit.families.items():
        out += varint(FAMILY) + counted(varint(family) + name.encode())
    for number in edit.removed:
        out += varint(REMOVE_FILE) + counted(varint(number))
    for meta in edit.added:
        out += varint(ADD_FILE) + counted(encode_file(meta))
    for value in edit.values_added:
        numbers = (value.number, value.size, value.records, value.value_bytes, value.dead_bytes)
        out += varint(ADD_VALUES) + counted(b"".join(map(varint, numbers)))
    for number in edit.values_removed:
        out += varint(REMOVE_VALUES) + counted(varint(number))
    for number, dead in edit.values_dead.items():
        out += varint(DEAD_VALUES) + counted(varint(number) + varint(dead))
    out.append(END)
    return bytes(out)


def encode_file(meta: FileMeta) -> bytes:
    numbers = (meta.number, meta.level, meta.size, meta.crc32c, meta.entries, meta.min_sequence, meta.max_sequence)
    global_sequence = 0 if meta.global_sequence is None else meta.global_sequence + 1
    return b"".join(map(varint, (*numbers, global_sequence))) + counted(meta.smallest) + counted(meta.largest)


def decode_edit(payload: bytes, *, path: str = "", offset: int = 0) -> VersionEdit:
    """Corruption(path, offset) for anything that encode_edit would not write; NotSupported for a newer version."""
    if len(payload) < 2 or payload[-1] != END:
        raise Corruption("a version edit does not end as it should", path=path, offset=offset)
    if payload[0] != EDIT_VERSION:
        raise NotSupported(
            f"{path}: manifest edit version {payload[0]}, this program reads {EDIT_VERSION}",
            hint="open the directory with the release that wrote it, or a newer one",
        )
    r = FieldReader(payload, path, offset, 1, len(payload) - 1)
    edit = VersionEdit()
    while r.left():
        tag = r.varint()
        f = r.inner()
        if tag == LOG_NUMBER:
            edit.log_number = f.varint()
        elif tag == NEXT_FILE_NUMBER:
            edit.next_file_number = f.varint()
        elif tag == LAST_SEQUENCE:
            edit.last_sequence = f.varint()
        elif tag == REMOVE_FILE:
            edit.removed.append(f.varint())
        elif tag == ADD_FILE:
            edit.added.append(decode_file(f))
        elif tag == ADD_VALUES:
            number, size, records, value_bytes, dead = f.varints(5)
            if value_bytes > size or dead > value_bytes or not records:
                raise f.damaged("a version edit describes an impossible value file")
            edit.values_added.append(
                ValueFileMeta(number=number, size=size, records=records, value_bytes=value_bytes, dead_bytes=dead)
            )
        elif tag == REMOVE_VALUES:
            edit.values_removed.append(f.varint())
        elif tag == DEAD_VALUES:
            number = f.varint()
            edit.values_dead[number] = f.varint()
        elif tag == FAMILY:
            family = f.varint()
            try:
                name = f.take(f.left()).decode()
            except UnicodeDecodeError:
                raise f.damaged("a family's name is not UTF-8") from None
            if family > FAMILIES_MAX or not name:
                raise f.damaged("a family has an impossible id or no name")
            edit.families[name] = family
        else:
            raise f.damaged(f"a version edit has an unknown field {tag}")
        f.finish()
    return edit


def decode_file(r: FieldReader) -> FileMeta:
    number, level, size, crc, entries, low, high, global_sequence = r.varints(8)
    smallest, largest = r.counted(), r.counted()
    if level >= LEVELS_MAX or crc >> 32 or not smallest or smallest > largest or low > high or high >> 56:
        raise r.damaged("a version edit describes an impossible table")
    return FileMeta(
        number=number,
        level=level,
        size=size,
        crc32c=crc,
        entries=entries,
        smallest=smallest,
        largest=largest,
        min_sequence=low,
        max_sequence=high,
        global_sequence=global_sequence - 1 if global_sequence else None,
    )
