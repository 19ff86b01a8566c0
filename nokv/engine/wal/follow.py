"""Reading a log that another process is writing.

A `Follower` stands somewhere in the log and moves forward. It changes nothing on disk and takes no lock, so the writer
may meanwhile append, begin segments, remove them, and use a removed one's file for a new one. What makes that safe:

- A record's checksum covers the segment's number and the record's offset, so what a file holds in a later life never
  passes for what it held before; `LiveSegmentReader` checks a copy, so nothing changes between check and use.
- The writer stores a payload before its header, and records in order: the first record that does not check out is
  where the log ends at this moment. Only where a later segment's link says that more had been written before is it
  damage, and then `recover` decides.
- A segment is removed after everything in it is in tables and the manifest that says so is durable. So whoever reads
  the log first and the manifest after it misses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from nokv._ext.wal import DATA_START, LiveSegmentReader
from nokv.engine.wal.recovery import SegmentInfo, _read_info, _read_link, recover, segment_number
from nokv.env.ports import Buffer, Files
from nokv.errors import Corruption

__all__ = ["Follower"]


class Follower:
    """One thread at a time. After an error it is done: begin again with a new one."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self.number = 0  # of the segment we stand in; 0: before the oldest
        self.offset = DATA_START

    def segments(self) -> Iterator[tuple[LiveSegmentReader, int, str]]:
        """(reader, end, path) of the segment we stand in and all that follow it. Read each until it shows no more
        before asking for the next. FileNotFoundError: the log moved on, begin again."""
        chain, data = self._chain()
        for index, info in enumerate(chain):
            following = chain[index + 1] if index + 1 < len(chain) else None
            link = None if following is None else _read_link(following, data[following.number], info.number)
            end = info.capacity if link is None else link
            start = self.offset if info.number == self.number else DATA_START
            reader = LiveSegmentReader(data[info.number], info.number, start)
            yield reader, end, info.path
            self.number, self.offset = info.number, reader.offset
            if link is None:
                return
            if reader.offset != link:
                recover(self._files, self._directory)  # raises, unless this is where a crash ended the log
                return

    def _chain(self) -> tuple[list[SegmentInfo], dict[int, Buffer]]:
        """The segments from where we stand to the newest; from the oldest, if ours is gone."""
        data: dict[int, Buffer] = {}
        infos: dict[int, SegmentInfo] = {}
        for name in self._files.listdir(self._directory):
            number = segment_number(name)
            if number is None or number < self.number:
                continue
            path = f"{self._directory}/{name}"
            data[number] = self._files.map_file(path)
            info = _read_info(number, path, data[number])
            if info is not None:
                infos[number] = info
        chain: list[SegmentInfo] = []
        at = max(infos, default=0)
        while at in infos and at >= self.number:
            chain.append(infos[at])
            at = infos[at].previous
        if not chain:
            raise Corruption(
                "the write-ahead log is missing", path=self._directory, hint="restore wal/ from where it went"
            )
        chain.reverse()
        return chain, data
