"""What is in the WAL after a crash: which segments form the log, where it ends, and whether damage is a torn tail or
corruption.

Pure over buffers: reads, never writes. The rules (docs/formats/wal.md says why):

- Every segment's header names the segment before it, and is durable before the segment is used. Following these names
  back from the newest segment gives the chain; files outside it are leftovers of an earlier cut or of a removal.
- The first record of a used segment, its link, says where the segment before it ended. Without it, the segment was
  prepared and not used yet.
- At the first record that does not check out, at X:
  1. a later mark says that X had been synced                                -> Corruption
  2. X looks like a write that never reached the disk (zeros)                -> the log ends at X
  3. any valid record follows                                                -> Corruption
  4. nothing valid follows: a torn tail, an ordinary crash                   -> the log ends at X
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from nokv._ext.wal import DATA_START, HEADER_SIZE, TYPE_LINK, TYPE_SEGMENT, SegmentReader
from nokv.env.ports import Buffer, Files
from nokv.errors import Corruption, NotSupported

__all__ = ["RecoveredLog", "SegmentInfo", "decode_segment_header", "encode_segment_header", "recover", "segment_name"]

MAGIC = b"NoKVWAL\0"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, zero, capacity, previous number, zero
_LINK = struct.Struct("<QQ")  # previous number, previous end
LINK_RECORD_BYTES = HEADER_SIZE + _LINK.size
SEGMENT_SUFFIX = ".wal"
FREE_SUFFIX = ".free"
SMALL_BYTES = 512 << 10

assert HEADER_SIZE + _HEADER.size <= DATA_START


def segment_name(number: int) -> str:
    return f"{number:010d}{SEGMENT_SUFFIX}"


def segment_number(name: str) -> int | None:
    stem = name[: -len(SEGMENT_SUFFIX)]
    return int(stem) if name.endswith(SEGMENT_SUFFIX) and stem.isascii() and stem.isdigit() else None


def encode_segment_header(capacity: int, previous: int) -> bytes:
    return _HEADER.pack(MAGIC, FORMAT_VERSION, 0, capacity, previous, 0)


def encode_link(previous: int, previous_end: int) -> bytes:
    return _LINK.pack(previous, previous_end)


@dataclass(slots=True)
class SegmentInfo:
    """One segment of the log. Records lie in [DATA_START, end)."""

    number: int
    path: str
    capacity: int
    previous: int
    end: int = DATA_START


Walk = Callable[[SegmentReader, int, str], object]
"""Moves a reader over the valid records before an offset; the path is for error messages."""


@dataclass(slots=True)
class RecoveredLog:
    segments: list[SegmentInfo] = field(default_factory=list)  # the log, oldest first
    leftovers: list[tuple[int, str]] = field(default_factory=list)  # files outside the log, by number
    highest_number: int = 0
    free: list[str] = field(default_factory=list)  # files kept for another life
    unsynced: list[SegmentInfo] = field(default_factory=list)  # of the segments: no mark says that all of it is on disk
    may_go_on: bool = (
        False  # in the last segment: behind its end there is nothing but zeros, and nobody has passed it by
    )


def decode_segment_header(path: str, payload: bytes) -> tuple[int, int]:
    """(capacity, number of the segment before, or 0)."""
    if len(payload) != _HEADER.size:
        raise Corruption(
            "segment header has a wrong length", path=path, offset=0, expected=_HEADER.size, found=len(payload)
        )
    magic, version, _zero, capacity, previous, _zero = _HEADER.unpack(payload)
    if magic != MAGIC:
        raise Corruption("not a WAL segment", path=path, offset=HEADER_SIZE, expected=MAGIC, found=magic)
    if version != FORMAT_VERSION:
        raise NotSupported(
            f"{path}: WAL format {version} is newer than this program reads ({FORMAT_VERSION})", hint="upgrade nokv"
        )
    return capacity, previous


def _read_info(number: int, path: str, data: Buffer) -> SegmentInfo | None:
    """The segment's header; None if none was written whole: a file prepared and not used, or hit by a crash at once."""
    reader = SegmentReader(data, number)
    state = reader.state()
    if state != "record" and reader.evidence(0)[0] == 0:
        return None
    if state != "record" and reader.state() != "record":  # else a writer has just written it
        expected, found = reader.checksums()
        raise Corruption("segment header is damaged", path=path, offset=0, expected=expected, found=found)
    records = reader.records(None, 1, 1)
    if not records:  # freed and zeroed by its writer meanwhile
        return None
    ((_, record_type, payload),) = records
    if record_type != TYPE_SEGMENT:
        raise Corruption(
            "first record is no segment header", path=path, offset=0, expected=TYPE_SEGMENT, found=record_type
        )
    capacity, previous = decode_segment_header(path, payload)
    if capacity != memoryview(data).nbytes:
        raise Corruption(
            "segment has a wrong size", path=path, offset=0, expected=capacity, found=memoryview(data).nbytes
        )
    return SegmentInfo(number, path, capacity, previous)


def skip(reader: SegmentReader, stop: int, path: str) -> None:
    reader.skip_valid(stop)


def recover(files: Files, directory: str, walk: Walk = skip, first_needed: int = 0) -> RecoveredLog:
    """`walk` sees every valid record once, in order, before it is known whether the log is sound."""
    log = RecoveredLog()
    data: dict[int, Buffer] = {}
    infos: dict[int, SegmentInfo] = {}
    blank: list[tuple[int, str]] = []
    for name in files.listdir(directory):
        number = segment_number(name)
        path = f"{directory}/{name}"
        if number is None:
            if name.endswith(FREE_SUFFIX):
                log.free.append(path)
            continue
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
    for number, path in blank:
        if chain and number == chain[0].previous:
            # A header is durable before its segment is used, and a freed one is zeroed only when its name is gone.
            raise Corruption("segment header is damaged, and so is every record", path=path, offset=0)
        size = memoryview(data[number]).nbytes
        # A process may die between creating a file and giving it its size; any other short file had been longer.
        if 0 < size < DATA_START or (size == 0 and chain and number < chain[-1].number):
            raise Corruption("segment is cut short", path=path, offset=size)
    in_chain = {info.number for info in chain}
    log.leftovers = sorted(blank + [(info.number, info.path) for info in infos.values() if info.number not in in_chain])

    mark = (0, 0)
    unmarked_end = 0
    for index, info in enumerate(chain):
        following = chain[index + 1] if index + 1 < len(chain) else None
        stop = None if following is None else _read_link(following, data[following.number], info.number)
        reader = SegmentReader(data[info.number], info.number, DATA_START)
        later = chain[index + 1 :]
        evidence: list[Evidence] | None = None
        while True:
            walk(reader, info.capacity if stop is None else stop, info.path)
            info.end = reader.offset
            if stop is not None and (reader.offset > stop or stop > info.capacity):
                raise Corruption(
                    "a segment's link leads to no end of a record",
                    path=following.path if following is not None else info.path,
                    offset=DATA_START,
                    expected=f"at most {info.capacity}" if stop > info.capacity else reader.offset,
                    found=stop,
                )
            # The log ends here, whether it was meant to (no used segment follows) or not.
            if reader.offset == stop or (evidence := _may_end(files, info, reader, data, later)) is not None:
                break
        mark = max(mark, reader.mark)
        unmarked_end = reader.unmarked_end
        if reader.offset == stop:
            continue
        assert evidence is not None
        # A later segment with no record but its header was made ready and not used. With a link it closes this one.
        unused = all(count <= 1 for count, _, _ in evidence[1:])
        log.may_go_on = info.end > DATA_START and evidence[0][2] and unused and info.number >= first_needed
        log.leftovers = sorted(log.leftovers + [(s.number, s.path) for s in later])
        chain = chain[: index + 1]
        break
    log.segments = chain
    # A mark is not on disk itself: only at the end of the last segment it does not matter whether it is.
    log.unsynced = [info for info in chain[:-1] if (info.number, info.end) > mark]
    if chain and (chain[-1].number, unmarked_end) > mark:
        log.unsynced.append(chain[-1])
    elif chain and not log.may_go_on:
        chain[-1].end = unmarked_end  # what follows is linked to what is on disk
    return log


def _read_link(info: SegmentInfo, data: Buffer, previous: int) -> int | None:
    """Where the segment before this one ended, or None if this one has no readable link."""
    reader = SegmentReader(data, info.number, DATA_START)
    if reader.state() != "record":
        return None
    records = reader.records(None, DATA_START + 1, 1)
    if not records:  # freed and zeroed by its writer meanwhile
        return None
    ((_, record_type, payload),) = records
    if record_type != TYPE_LINK or len(payload) != _LINK.size:
        raise Corruption("a segment does not begin with a link", path=info.path, offset=DATA_START, found=record_type)
    number, end = _LINK.unpack(payload)
    if number != previous:
        raise Corruption(
            "a segment's link contradicts its header",
            path=info.path,
            offset=DATA_START,
            expected=previous,
            found=number,
        )
    return int(end)


Evidence = tuple[int, tuple[int, int] | None, bool]  # what SegmentReader.evidence found


def _data_end(files: Files, info: SegmentInfo) -> int:
    """Behind it there are only zeros. A small segment is looked at sooner than the question is answered."""
    return info.capacity if info.capacity <= SMALL_BYTES else files.data_end(info.path)


def _may_end(
    files: Files, info: SegmentInfo, reader: SegmentReader, data: dict[int, Buffer], later: list[SegmentInfo]
) -> list[Evidence] | None:
    """The first record that does not check out is at reader.offset. What was found behind it, in its segment and in
    each later one, if the log may end there; Corruption if not; None if the record checks out now: somebody is writing,
    and whatever follows a record was written after it."""
    cut = reader.offset
    evidence = [reader.evidence(cut, _data_end(files, info))]
    evidence += [SegmentReader(data[s.number], s.number).evidence(0, _data_end(files, s)) for s in later]
    synced = any(mark is not None and mark > (info.number, cut) for _, mark, _ in evidence)
    follows = evidence[0][0] + sum(max(0, count - 1) for count, _, _ in evidence[1:])  # every segment has its header
    if not synced and (not follows or reader.looks_unwritten()):
        return evidence
    if reader.state() == "record" and reader.offset < info.capacity:
        return None
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
