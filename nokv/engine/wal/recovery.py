"""What is in the WAL after a crash: which segments form the log, where it ends, and whether damage is a torn tail or
corruption.

Pure over buffers: reads, never writes. The rules (docs/formats/wal.md says why):

- Every segment's first record names the segment before it and where that one ended. Following these links back from the
  newest
  segment gives the log; files outside the chain are leftovers of an earlier cut or of an unfinished removal.
- At the first record that does not check out, at X:
  1. a later mark says that X had been synced                                -> Corruption
  2. X looks like a write that never reached the disk (zeros)                -> the log ends at X
  3. any valid record follows                                                -> Corruption
  4. nothing valid follows: a torn tail, an ordinary crash                   -> the log ends at X
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from nokv._ext.wal import DATA_START, HEADER_SIZE, TYPE_SEGMENT, SegmentReader
from nokv.env.ports import Buffer, Files
from nokv.errors import Corruption, NotSupported

__all__ = ["RecoveredLog", "SegmentInfo", "decode_segment_header", "encode_segment_header", "recover", "segment_name"]

MAGIC = b"NoKVWAL\0"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, zero, capacity, previous number, previous end
SEGMENT_SUFFIX = ".wal"
FREE_SUFFIX = ".free"

assert HEADER_SIZE + _HEADER.size <= DATA_START


def segment_name(number: int) -> str:
    return f"{number:010d}{SEGMENT_SUFFIX}"


def segment_number(name: str) -> int | None:
    stem = name[: -len(SEGMENT_SUFFIX)]
    return int(stem) if name.endswith(SEGMENT_SUFFIX) and stem.isascii() and stem.isdigit() else None


def encode_segment_header(capacity: int, previous: int, previous_end: int) -> bytes:
    return _HEADER.pack(MAGIC, FORMAT_VERSION, 0, capacity, previous, previous_end)


@dataclass(slots=True)
class SegmentInfo:
    """One segment of the log. Records lie in [DATA_START, end)."""

    number: int
    path: str
    capacity: int
    previous: int
    previous_end: int
    end: int = 0


@dataclass(slots=True)
class RecoveredLog:
    segments: list[SegmentInfo] = field(default_factory=list)  # the log, oldest first
    leftovers: list[tuple[int, str]] = field(default_factory=list)  # files outside the log, by number
    highest_number: int = 0
    cut_bytes: int = 0  # capacity after the cut that held something: 0 after a clean close


def decode_segment_header(path: str, payload: bytes) -> tuple[int, int, int]:
    """(capacity, previous number, previous end)."""
    if len(payload) != _HEADER.size:
        raise Corruption(
            "segment header has a wrong length", path=path, offset=0, expected=_HEADER.size, found=len(payload)
        )
    magic, version, _zero, capacity, previous, previous_end = _HEADER.unpack(payload)
    if magic != MAGIC:
        raise Corruption("not a WAL segment", path=path, offset=HEADER_SIZE, expected=MAGIC, found=magic)
    if version != FORMAT_VERSION:
        raise NotSupported(
            f"{path}: WAL format {version} is newer than this program reads ({FORMAT_VERSION})", hint="upgrade nokv"
        )
    return capacity, previous, previous_end


def _read_info(number: int, path: str, data: Buffer) -> SegmentInfo | None:
    """The segment's header; None if none was written whole: a file prepared and not used, or hit by a crash at once."""
    reader = SegmentReader(data, number)
    state = reader.state()
    if state != "record":
        if state == "end" or reader.evidence(0)[0] == 0:
            return None
        expected, found = reader.checksums()
        raise Corruption("segment header is damaged", path=path, offset=0, expected=expected, found=found)
    ((_, record_type, payload),) = reader.records(None, 1, 1)
    if record_type != TYPE_SEGMENT:
        raise Corruption(
            "first record is no segment header", path=path, offset=0, expected=TYPE_SEGMENT, found=record_type
        )
    capacity, previous, previous_end = decode_segment_header(path, payload)
    if capacity != memoryview(data).nbytes:
        raise Corruption(
            "segment has a wrong size", path=path, offset=0, expected=capacity, found=memoryview(data).nbytes
        )
    return SegmentInfo(number, path, capacity, previous, previous_end)


def recover(files: Files, directory: str) -> RecoveredLog:
    log = RecoveredLog()
    data: dict[int, Buffer] = {}
    infos: dict[int, SegmentInfo] = {}
    blank: list[tuple[int, str]] = []
    for name in files.listdir(directory):
        number = segment_number(name)
        if number is None:
            continue
        path = f"{directory}/{name}"
        log.highest_number = max(log.highest_number, number)
        data[number] = files.map_file(path)
        info = _read_info(number, path, data[number])
        if info is None:
            blank.append((number, path))
        else:
            infos[number] = info

    chain: list[SegmentInfo] = []
    number = max(infos, default=0)
    while number in infos:
        chain.append(infos[number])
        if infos[number].previous >= number:
            raise Corruption(
                "segment names a later one as its predecessor", path=infos[number].path, offset=HEADER_SIZE
            )
        number = infos[number].previous
    chain.reverse()
    _check_blank(blank, chain, data)
    lost = [(n, p) for n, p in blank if chain and n > chain[0].number]
    in_chain = {info.number for info in chain}
    log.leftovers = sorted(blank + [(info.number, info.path) for info in infos.values() if info.number not in in_chain])

    for index, info in enumerate(chain):
        following = chain[index + 1] if index + 1 < len(chain) else None
        stop = following.previous_end if following is not None else info.capacity
        reader = SegmentReader(data[info.number], info.number, DATA_START)
        reader.skip_valid(stop)
        info.end = reader.offset
        if following is not None and reader.offset == stop:
            continue
        later = chain[index + 1 :]
        # The chain ended early here, or this is the newest segment, in which anything may follow the last good record.
        _check_end(info, reader, data, [s.number for s in later] + [n for n, _ in lost if n > info.number])
        log.cut_bytes = sum(s.capacity for s in later)
        log.leftovers = sorted(log.leftovers + [(s.number, s.path) for s in later])
        chain = chain[: index + 1]
        break
    log.segments = chain
    return log


def _check_blank(blank: list[tuple[int, str]], chain: list[SegmentInfo], data: dict[int, Buffer]) -> None:
    """A file whose header reads as zeros: never used, or lost to a power failure, unless its content says otherwise."""
    for number, path in blank:
        if chain and number < chain[-1].number and number != chain[0].previous:
            continue
        count, mark = SegmentReader(data[number], number).evidence(0)
        if mark is not None or (count and chain and number == chain[0].previous):
            raise Corruption("segment header is zero, but records follow it", path=path, offset=0)


def _check_end(info: SegmentInfo, reader: SegmentReader, data: dict[int, Buffer], later: list[int]) -> None:
    """The first record that does not check out is at reader.offset. Return if the log may end there, raise Corruption
    if not."""
    cut = reader.offset
    evidence = [reader.evidence(cut)]
    evidence += [SegmentReader(data[number], number).evidence(0) for number in later]
    synced = any(mark is not None and mark > (info.number, cut) for _, mark in evidence)
    follows = sum(count for count, _ in evidence)
    if not synced and (not follows or reader.looks_unwritten()):
        return
    expected: object = None
    found: object = None
    if reader.state().startswith("bad"):
        expected, found = reader.checksums()
    what = "a record that had been synced is damaged" if synced else "a damaged record is followed by valid ones"
    raise Corruption(
        f"{what} ({reader.state()})",
        path=info.path,
        offset=cut,
        expected=expected,
        found=found,
        hint="restore a backup, or `nokv repair` to keep what precedes it",
    )
