"""Building sorted string tables (docs/formats/sst.md): one C loop per table, without the GIL.

Finished blocks gather raw. What zstd compresses, and what goes to a file that is none of the operating system's, is handed over
about once per megabyte in a Python call; otherwise the loop compresses and writes by itself, without the GIL. A table ends when it is large enough, but never between two
versions of one key, so that tables of one level are disjoint by user key.

What is left out (`fill`): a version is visible to a snapshot s if its sequence is <= s; of all versions of a key that the
same set of snapshots sees only the newest is kept. `snapshots` is sorted; "now" is always one more. At the bottom (nothing
older can exist below) a delete that is older than every snapshot goes too.

An entry that a range delete hides goes too, if no snapshot lies between the two. The range deletes themselves are handed to
`finish`, cut to what the table covers; a table of nothing else gets a delete of the first key that they cover.

A value whose expiry is not above `now_ms` is a delete to every reader from then on, and becomes one here: what lies below
stays hidden. `now_ms` 0: nothing has expired.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.buffer cimport Buffer, append, append_varint, reserve
from nokv._ext.codec cimport put_fixed32, put_varint
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_IO,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    KIND_DELETE,
    EXPIRY_SIZE,
    KIND_PUT,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    kind_expires,
    kind_is_reference,
    kind_is_value,
    put_trailer,
    read_expiry,
    read_trailer,
)
from nokv._ext.gilturn cimport gil_away, gil_back
from nokv._ext.lz4 cimport lz4_compress
from nokv._ext.merge cimport OwnedCursor
from nokv._ext.ranges cimport RangeList, Ranges
from nokv._ext.scheduling cimport nokv_pass
from nokv._ext.valuefile cimport Reference, Tallies, ValueSink, read_reference, tally
from nokv._ext.block cimport (
    BLOCK_TRAILER_SIZE,
    CODEC_LZ4,
    CODEC_NONE,
    CODEC_ZSTD,
    INTERNAL_KEY_SIZE_MAX,
    ZSTD_RAW_SIZE_MAX,
)
from nokv._ext.filter cimport LINE, filter_enter, filter_hash, filter_lines

import os
import struct

from nokv._ext.table import FORMAT_VERSION, FORMAT_VERSION_PLAIN, MAGIC, OPTIONAL_PROPERTIES
from nokv.errors import Corruption, InvariantError, UsageError

cdef extern from "pages.h":
    void nokv_start_writing(int fd, int64_t offset, int64_t size) noexcept nogil

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <unistd.h>
    """
    ssize_t posix_write "write"(int fd, const void* data, size_t size) noexcept nogil
    int errno
    int EINTR, EIO

cdef enum:
    CHUNK = 2 << 20                     # raw bytes that gather before they are compressed and written, which takes the GIL
    CHUNK_WRITTEN = 256 << 10           # the same where it does not: what still is in the processor's cache
    WRITE_BEHIND = 1 << 20              # written bytes that gather before the disk is asked to begin with them
    PASS_ENTRIES = 128                  # so many are built into blocks until a thread that waits for the processor gets it,
    PASS_BLOCKS = 8                     # compressed,
    PASS_HASHES = 16384                 # or entered in the filter
    BLOCK_KEYS_MAX = 1 << 20            # a block ends here: readers write all its keys out
    FILL_MORE = 1                       # the table is full, the source has more
    FILL_DONE = 2
    LEAVE_OUT = 0                       # what a VersionFilter says about an entry
    KEEP = 1
    KEEP_AS_DELETE = 2
    EXPIRY_PARTS = 8                    # a table says by when each eighth of its expiring values has expired

cdef uint64_t NO_SEQUENCE = <uint64_t>-1

cdef struct PendingBlock:
    size_t end                          # in `raw`
    size_t separator_end                # in `separators`


cdef int compare_numbers(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0]
    cdef uint64_t y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)


cdef bytes as_bytes(Buffer* b):
    return PyBytes_FromStringAndSize(<const char*>b.data, <Py_ssize_t>b.size)


cdef class VersionFilter:
    """Decides entry by entry, newest version first, what goes into the new tables. One per merge, across its tables.

    bottom      nothing below the output can hold an older version of any key in it
    export      the new tables are external: only what a reader at `snapshots[0]` sees, with sequence 0; deletes are left out
    tombstones  (with export) write a delete for every key that the reader sees, instead of its value
    ranges      the range deletes of everything that is merged
    newest      no sequence in what is merged is greater; only of interest where entries have lost theirs, see `settled`

    At the bottom, and if nobody has a snapshot, each key comes out once and is older than whatever may be written or read
    later: it is `settled`, and is stored with sequence 0. The trailers of a table are then all alike and compress to
    nothing. The table's properties go on saying which sequence is the newest in it.
    """
    cdef uint64_t* snapshots
    cdef int count
    cdef bint bottom
    cdef bint export
    cdef bint tombstones
    cdef bint settled
    cdef uint64_t newest
    cdef uint64_t now_ms
    cdef Ranges ranges
    cdef uint32_t fragment              # the first of `ranges` that ends above the key before
    cdef Buffer last                    # user key of the entry before
    cdef bint has_last
    cdef uint64_t last_sequence
    cdef readonly uint64_t dropped      # entries that go no further
    cdef readonly uint64_t expired      # values whose time had come; some live on as deletes

    def __init__(self, snapshots=(), *, bint bottom=False, bint export=False, bint tombstones=False,
                 uint64_t now_ms=0, Ranges ranges=None, uint64_t newest=0):
        ordered = sorted(set(snapshots))
        if export and len(ordered) != 1:
            raise UsageError("an export needs exactly one snapshot")
        self.snapshots = <uint64_t*>malloc((len(ordered) + 1) * sizeof(uint64_t))
        if self.snapshots == NULL:
            raise MemoryError
        self.count = <int>len(ordered)
        for i, s in enumerate(ordered):
            self.snapshots[<int>i] = s
        self.bottom = bottom
        self.export = export
        self.tombstones = tombstones
        self.settled = bottom and not ordered and not export and newest != 0
        self.newest = newest
        self.now_ms = now_ms
        if ranges is not None and len(ranges):
            self.ranges = ranges

    def __dealloc__(self):
        free(self.snapshots)
        free(self.last.data)

    cdef int stripe(self, uint64_t sequence) noexcept nogil:
        """How many snapshots do not see it: versions with the same number are seen by the same snapshots."""
        cdef int low = 0
        cdef int high = self.count
        cdef int middle
        while low < high:
            middle = (low + high) // 2
            if self.snapshots[middle] < sequence:
                low = middle + 1
            else:
                high = middle
        return low

    cdef bint hidden(self, const uint8_t* prefix, size_t size, uint64_t sequence, int kind) noexcept nogil:
        """Does a range delete hide this entry from everyone who would see it? Keys do not go back from call to call."""
        cdef RangeList* list = self.ranges.list
        cdef uint32_t at
        cdef uint64_t above
        while self.fragment < list.count and compare_bytes(list.ends[self.fragment].data, list.ends[self.fragment].size,
                                                           prefix, size) <= 0:
            self.fragment += 1
        if self.fragment == list.count or compare_bytes(list.starts[self.fragment].data, list.starts[self.fragment].size,
                                                        prefix, size) > 0:
            return False
        # the oldest range delete that is newer; a delete of the same sequence says nothing more than the range
        at = list.first[self.fragment + 1]
        while at > list.first[self.fragment]:
            at -= 1
            above = list.sequences[at]
            if above > sequence or (above == sequence and kind == KIND_DELETE):
                if self.export:
                    return above <= self.snapshots[0]
                return self.stripe(above) == self.stripe(sequence)
        return False

    cdef int keep(self, const uint8_t* prefix, size_t size, uint64_t sequence, int kind, Slice value) noexcept nogil:
        """LEAVE_OUT, KEEP, KEEP_AS_DELETE, or < 0 a CursorStatus."""
        cdef bint same = self.has_last and self.last.size == size and memcmp(self.last.data, prefix, size) == 0
        cdef uint64_t newer = self.last_sequence
        cdef bint expired = False
        if self.export and sequence > self.snapshots[0]:
            return LEAVE_OUT            # not visible yet: as if it were not there
        if not same:
            self.last.size = 0
            if not append(&self.last, prefix, size):
                return CURSOR_NO_MEMORY
            self.has_last = True
        self.last_sequence = sequence
        if self.ranges is not None and self.hidden(prefix, size, sequence, kind):
            self.dropped += 1
            return LEAVE_OUT
        if same and self.stripe(newer) == self.stripe(sequence):
            self.dropped += 1
            return LEAVE_OUT
        if not kind_is_value(kind) and kind != KIND_DELETE:
            return CURSOR_CORRUPT
        if kind_expires(kind):
            if value.size < EXPIRY_SIZE:
                return CURSOR_CORRUPT
            if self.now_ms and read_expiry(value.data) <= self.now_ms and not self.tombstones:
                kind = KIND_DELETE
                expired = True
                self.expired += 1
        if kind == KIND_DELETE and (self.export or (self.bottom and self.stripe(sequence) == 0)):
            self.dropped += 1
            return LEAVE_OUT
        return KEEP_AS_DELETE if expired else KEEP


cdef class TableBuilder:
    """Writes one table to `file` (a WritableFile). One thread; after an error the file is garbage: close and remove it."""
    cdef object file
    cdef int fd                         # of `file`, if it is a file of the operating system: then it is written without the GIL
    cdef object compressor
    cdef readonly str compression
    cdef bint lz4, zstd
    cdef Buffer out                     # blocks as they go to the file
    cdef size_t block_bytes
    cdef int restart_interval
    cdef int bloom_bits
    cdef uint64_t created_ms
    cdef bint external
    cdef bytes families
    cdef Buffer block                   # entries of the block under construction
    cdef Buffer restarts
    cdef int since_restart
    cdef Buffer last_key                # internal key
    cdef Buffer smallest
    cdef Buffer raw                     # finished raw blocks, waiting
    cdef Buffer separators              # their index keys
    cdef Buffer pending                 # PendingBlock each
    cdef Buffer index
    cdef Buffer hashes
    cdef Ranges ranges
    cdef bint block_closed              # its index key waits for the next block's first key
    cdef uint64_t written
    cdef uint64_t started               # of that, the disk was asked to begin with so much
    cdef int failed                     # errno of a write without the GIL
    cdef uint32_t file_crc
    cdef readonly uint64_t entries
    cdef readonly uint64_t deletes
    cdef Buffer expiries                # uint64_t each
    cdef ValueSink sink                 # of large values; None: references are copied as they are
    cdef Tallies referenced             # value files that this table refers to
    cdef int last_kind                  # the largest kind in it: above KIND_PUT the format version is not the first one
    cdef uint64_t min_sequence
    cdef uint64_t max_sequence
    cdef uint64_t raw_bytes
    cdef uint64_t block_keys            # bytes of the keys of the block under construction, written out
    cdef uint64_t blocks
    cdef object error

    def __cinit__(self):
        self.min_sequence = NO_SEQUENCE

    def __init__(self, file, *, str compression="none", int level=1, size_t block_bytes=4096, int restart_interval=16,
                 int bloom_bits=10, uint64_t created_ms=0, bint external=False, bytes families=b"", ValueSink sink=None):
        if compression == "zstd":
            import zstandard

            self.compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        elif compression not in ("none", "lz4"):
            raise UsageError(f"unknown compression {compression!r}", hint="use 'none', 'lz4' or 'zstd'")
        self.lz4 = compression == "lz4"
        self.zstd = compression == "zstd"
        if not (64 <= block_bytes <= ZSTD_RAW_SIZE_MAX and 1 <= restart_interval <= 1024 and 0 <= bloom_bits <= 64):
            raise UsageError("block_bytes, restart_interval or bloom_bits is out of range")
        self.file = file
        self.fd = getattr(file, "descriptor", -1)
        self.compression = compression
        self.block_bytes = block_bytes
        self.restart_interval = restart_interval
        self.bloom_bits = bloom_bits
        self.created_ms = created_ms
        self.external = external
        self.families = families
        self.sink = sink

    def __dealloc__(self):
        with nogil:                     # a few megabytes
            gil_away()
            free(self.referenced.items)
            free(self.block.data)
            free(self.restarts.data)
            free(self.last_key.data)
            free(self.smallest.data)
            free(self.raw.data)
            free(self.separators.data)
            free(self.pending.data)
            free(self.index.data)
            free(self.hashes.data)
            free(self.expiries.data)
            free(self.out.data)
            gil_back()

    # -- the C side: CURSOR_OK or a CursorStatus ----------------------------------------------------------------------
    cdef int close_block(self) noexcept nogil:
        """The block under construction moves to `raw`; its index key waits for the next key."""
        cdef PendingBlock done
        if not append(&self.block, self.restarts.data, self.restarts.size) or not reserve(&self.block, 4):
            return CURSOR_NO_MEMORY
        put_fixed32(self.block.data + self.block.size, <uint32_t>(self.restarts.size // 4))
        self.block.size += 4
        if not append(&self.raw, self.block.data, self.block.size):
            return CURSOR_NO_MEMORY
        self.raw_bytes += self.block.size
        self.block.size = 0
        self.block_keys = 0
        self.restarts.size = 0
        self.since_restart = 0
        done.end = self.raw.size
        done.separator_end = 0          # filled by put_separator
        if not append(&self.pending, <uint8_t*>&done, sizeof(done)):
            return CURSOR_NO_MEMORY
        self.block_closed = True
        return CURSOR_OK

    cdef int put_separator(self, const uint8_t* next_key, size_t next_size) noexcept nogil:
        """The index key of the block just closed: short, >= its last key, < `next_key` (NULL: there is none)."""
        cdef size_t n = 0
        cdef size_t last_prefix = self.last_key.size - TRAILER_SIZE
        cdef size_t next_prefix
        cdef size_t at
        cdef PendingBlock* done
        self.block_closed = False
        if next_key != NULL:
            next_prefix = next_size - TRAILER_SIZE
            while n < last_prefix and n < next_prefix and self.last_key.data[n] == next_key[n]:
                n += 1
        if next_key != NULL and n < next_prefix:
            # the next user key up to its first new byte, with a trailer smaller than any real one
            if not append(&self.separators, next_key, n + 1) or not reserve(&self.separators, TRAILER_SIZE):
                return CURSOR_NO_MEMORY
            memset(self.separators.data + self.separators.size, 0, TRAILER_SIZE)
            self.separators.size += TRAILER_SIZE
        elif not append(&self.separators, self.last_key.data, self.last_key.size):
            return CURSOR_NO_MEMORY     # the same user key goes on in the next block, or the table ends
        done = <PendingBlock*>(self.pending.data + self.pending.size - sizeof(PendingBlock))
        done.separator_end = self.separators.size
        return CURSOR_OK

    cdef int add_entry(self, const uint8_t* prefix, size_t prefix_size, const uint8_t* trailer, const uint8_t* value,
                       size_t value_size) noexcept nogil:
        """Append one entry; `trailer` is the one to store."""
        cdef size_t shared = 0
        cdef size_t limit
        cdef uint64_t hash, packed, expiry
        cdef int status
        cdef uint8_t[TRAILER_SIZE] first_trailer
        if prefix_size + TRAILER_SIZE > INTERNAL_KEY_SIZE_MAX:
            return CURSOR_IO
        if self.block_closed:
            if not reserve(&self.block, prefix_size + TRAILER_SIZE):
                return CURSOR_NO_MEMORY
            memcpy(self.block.data, prefix, prefix_size)        # borrowed as scratch: the block is empty
            memcpy(self.block.data + prefix_size, trailer, TRAILER_SIZE)
            status = self.put_separator(self.block.data, prefix_size + TRAILER_SIZE)
            if status != CURSOR_OK:
                return status
            if self.raw.size >= (CHUNK if self.zstd or self.fd < 0 else CHUNK_WRITTEN):
                status = self.write_pending()
                if status != CURSOR_OK:
                    return status
        if self.since_restart == 0 or self.since_restart >= self.restart_interval:
            if not reserve(&self.restarts, 4):
                return CURSOR_NO_MEMORY
            put_fixed32(self.restarts.data + self.restarts.size, <uint32_t>self.block.size)
            self.restarts.size += 4
            self.since_restart = 0
        else:
            limit = self.last_key.size - TRAILER_SIZE
            if limit > prefix_size:
                limit = prefix_size
            while shared < limit and self.last_key.data[shared] == prefix[shared]:
                shared += 1
        if not (append_varint(&self.block, shared) and append_varint(&self.block, prefix_size - shared + TRAILER_SIZE)
                and append_varint(&self.block, value_size) and append(&self.block, prefix + shared, prefix_size - shared)
                and append(&self.block, trailer, TRAILER_SIZE) and append(&self.block, value, value_size)):
            return CURSOR_NO_MEMORY
        self.since_restart += 1
        if self.entries == 0 and not append(&self.smallest, prefix, prefix_size):
            return CURSOR_NO_MEMORY
        if self.bloom_bits and (self.entries == 0 or self.last_key.size != prefix_size + TRAILER_SIZE
                                or memcmp(self.last_key.data, prefix, prefix_size) != 0):
            hash = filter_hash(prefix, prefix_size)
            if not append(&self.hashes, <uint8_t*>&hash, sizeof(hash)):
                return CURSOR_NO_MEMORY
        self.last_key.size = 0
        if not append(&self.last_key, prefix, prefix_size) or not append(&self.last_key, trailer, TRAILER_SIZE):
            return CURSOR_NO_MEMORY
        packed = read_trailer(trailer)
        self.entries += 1
        if packed & 255 == KIND_DELETE:
            self.deletes += 1
        elif packed & 255 != KIND_PUT:
            if kind_expires(<int>(packed & 255)) and value_size >= EXPIRY_SIZE:
                expiry = read_expiry(value)
                if not append(&self.expiries, <uint8_t*>&expiry, sizeof(expiry)):
                    return CURSOR_NO_MEMORY
            if <int>(packed & 255) > self.last_kind:
                self.last_kind = <int>(packed & 255)
        if packed >> 8 < self.min_sequence:
            self.min_sequence = packed >> 8
        if packed >> 8 > self.max_sequence:
            self.max_sequence = packed >> 8
        self.block_keys += prefix_size
        if self.block.size + self.restarts.size + 4 >= self.block_bytes or self.block_keys >= BLOCK_KEYS_MAX:
            return self.close_block()
        return CURSOR_OK

    cdef int write_pending(self) noexcept nogil:
        """Compress and write what has gathered. A Python exception is kept in self.error, and CURSOR_IO returned."""
        cdef int status = CURSOR_OK
        if not self.zstd:                   # else the frames are made by a Python call
            status = self.assemble(NULL)
            if status == CURSOR_OK and self.fd >= 0:
                return self.write_out()     # a turn of the GIL is as long as several of these
        if status != CURSOR_OK:
            return status
        gil_back()
        status = self.hand_over()
        gil_away()
        return status

    cdef int write_out(self) noexcept nogil:
        """`out` goes to the descriptor. CURSOR_IO: see self.failed."""
        cdef size_t done = 0
        cdef ssize_t n
        self.file_crc = crc32c(self.file_crc, self.out.data, self.out.size)
        while done < self.out.size:
            n = posix_write(self.fd, self.out.data + done, self.out.size - done)
            if n > 0:
                done += <size_t>n
            elif n == 0 or errno != EINTR:
                self.failed = EIO if n == 0 else errno
                return CURSOR_IO
        self.written += self.out.size
        self.out.size = 0
        nokv_pass()
        if self.written - self.started >= WRITE_BEHIND:     # or the sync would find all of it still to be written
            nokv_start_writing(self.fd, <int64_t>self.started, <int64_t>(self.written - self.started))
            self.started = self.written
        return CURSOR_OK

    cdef int hand_over(self) noexcept with gil:
        try:
            self._write_pending()
            return CURSOR_OK
        except BaseException as error:  # raised again by the caller as soon as its C loop has stopped
            self.error = error
            return CURSOR_IO

    cdef _write_pending(self):
        cdef size_t n = self.pending.size // sizeof(PendingBlock)
        cdef size_t i
        cdef Slice* frames
        cdef const unsigned char[::1] frame
        cdef int status = CURSOR_OK
        if n and self.compressor is None:
            with nogil:
                gil_away()
                status = self.assemble(NULL)
                gil_back()
        elif n:
            made = self._compress(n)
            frames = <Slice*>malloc(n * sizeof(Slice))
            if frames == NULL:
                raise MemoryError
            try:
                for i in range(n):
                    frames[i].data = NULL
                    if made[i] is not None:
                        frame = made[i]     # `made` keeps it alive
                        frames[i].data = &frame[0]
                        frames[i].size = <size_t>frame.shape[0]
                with nogil:
                    gil_away()
                    status = self.assemble(frames)
                    gil_back()
            finally:
                free(frames)
        if status == CURSOR_NO_MEMORY:
            raise MemoryError
        if status != CURSOR_OK:
            raise UsageError("an entry is too large for a table")
        if self.out.size:
            if self.fd >= 0:
                with nogil:
                    gil_away()
                    status = self.write_out()
                    gil_back()
                if status != CURSOR_OK:
                    self._raise(status)
                return
            with nogil:
                self.file_crc = crc32c(self.file_crc, self.out.data, self.out.size)
            self._write_all(<const uint8_t[:self.out.size]>self.out.data)
            self.out.size = 0

    cdef int assemble(self, Slice* frames) noexcept nogil:
        """Waiting blocks become what the file will hold, in `out`, and leave. `frames`: their zstd frames, or NULL."""
        cdef size_t n = self.pending.size // sizeof(PendingBlock)
        cdef PendingBlock* blocks = <PendingBlock*>self.pending.data
        cdef size_t i, raw_size, stored_size, worth
        cdef size_t start = 0
        cdef size_t key_start = 0
        cdef uint8_t[BLOCK_TRAILER_SIZE] trailer
        cdef uint32_t crc
        cdef const uint8_t* stored
        cdef uint8_t codec
        for i in range(n):
            if i % PASS_BLOCKS == PASS_BLOCKS - 1:
                nokv_pass()
            codec = CODEC_NONE
            stored = self.raw.data + start
            raw_size = blocks[i].end - start
            stored_size = raw_size
            worth = raw_size - raw_size // 8            # else not worth a decoding
            if raw_size > <size_t>0xFFFFFFFF:
                return CURSOR_IO
            if not reserve(&self.out, raw_size + BLOCK_TRAILER_SIZE):
                return CURSOR_NO_MEMORY
            if frames != NULL and frames[i].data != NULL and frames[i].size < worth:
                codec = CODEC_ZSTD
                stored = frames[i].data
                stored_size = frames[i].size
            elif self.lz4:
                stored_size = lz4_compress(stored, raw_size, self.out.data + self.out.size, worth)
                if stored_size:
                    codec = CODEC_LZ4
                    stored = self.out.data + self.out.size
                else:
                    stored_size = raw_size
            if codec != CODEC_LZ4:
                memcpy(self.out.data + self.out.size, stored, stored_size)
            trailer[0] = codec
            put_fixed32(trailer + 1, <uint32_t>raw_size)
            crc = crc32c(0, stored, stored_size)
            put_fixed32(trailer + 5, crc32c(crc, trailer, 5))
            memcpy(self.out.data + self.out.size + stored_size, trailer, BLOCK_TRAILER_SIZE)
            self.out.size += stored_size + BLOCK_TRAILER_SIZE
            if not append_varint(&self.index, blocks[i].separator_end - key_start) \
                    or not append(&self.index, self.separators.data + key_start, blocks[i].separator_end - key_start) \
                    or not append_varint(&self.index, stored_size):
                return CURSOR_NO_MEMORY
            self.blocks += 1
            start = blocks[i].end
            key_start = blocks[i].separator_end
        self.raw.size = 0
        self.separators.size = 0
        self.pending.size = 0
        return CURSOR_OK

    cdef _compress(self, size_t n):
        """A frame for each waiting block (None: store it plain), or None if nothing is compressed."""
        cdef PendingBlock* blocks = <PendingBlock*>self.pending.data
        cdef size_t i
        cdef size_t start = 0
        if self.compressor is None:
            return None
        parts = []
        places = []
        for i in range(n):
            if blocks[i].end - start <= ZSTD_RAW_SIZE_MAX:
                parts.append(PyBytes_FromStringAndSize(<const char*>self.raw.data + start, <Py_ssize_t>(blocks[i].end - start)))
                places.append(i)
            start = blocks[i].end
        frames = [None] * n
        if not parts:
            return frames
        gil_away()
        try:
            if hasattr(self.compressor, "multi_compress_to_buffer"):    # one call, one release of the GIL
                made = self.compressor.multi_compress_to_buffer(parts, threads=0)
            else:
                made = [self.compressor.compress(part) for part in parts]
        finally:
            gil_back()
        for place, frame in zip(places, made, strict=True):
            frames[place] = memoryview(frame)
        return frames

    cdef _write(self, bytes data):
        cdef const uint8_t* p = <const uint8_t*><const char*>data
        cdef size_t size = len(data)
        with nogil:
            self.file_crc = crc32c(self.file_crc, p, size)
        self._write_all(data)

    cdef _write_all(self, data):
        cdef Py_ssize_t size = len(data)
        view = memoryview(data)
        while view:
            done = self.file.write(view)
            if done <= 0:
                raise OSError(5, "nothing was written")
            view = view[done:]
        self.written += size

    cdef _write_meta(self, bytes payload):
        tail = struct.pack("<BI", CODEC_NONE, len(payload))
        covered = payload + tail
        self._write(covered + struct.pack("<I", crc32c(0, <const uint8_t*><const char*>covered, len(covered))))

    cdef bytes _filter(self, uint64_t offset):
        cdef size_t n = self.hashes.size // sizeof(uint64_t)
        cdef const uint64_t* hashes = <const uint64_t*>self.hashes.data
        cdef size_t padding = (LINE - offset % LINE) % LINE
        cdef uint64_t lines = filter_lines(n, self.bloom_bits)
        cdef size_t part
        if n == 0:
            return b""
        out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(padding + lines * LINE))
        cdef uint8_t* data = <uint8_t*><char*>out
        with nogil:
            gil_away()
            memset(data, 0, padding + lines * LINE)
            while n:
                nokv_pass()
                part = n if n < PASS_HASHES else PASS_HASHES
                filter_enter(data + padding, lines, hashes, part)
                hashes += part
                n -= part
            gil_back()
        return out

    cdef tuple _expiries(self):
        """By when at least each eighth of the expiring values has expired."""
        cdef size_t n = self.expiries.size // sizeof(uint64_t)
        cdef uint64_t* moments = <uint64_t*>self.expiries.data
        cdef size_t part
        if n == 0:
            return ()
        with nogil:
            qsort(moments, n, sizeof(uint64_t), compare_numbers)
        return tuple([moments[(part * n + EXPIRY_PARTS - 1) // EXPIRY_PARTS - 1] for part in range(1, EXPIRY_PARTS + 1)])

    cdef _raise(self, int status):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.failed:
            raise OSError(self.failed, os.strerror(self.failed), getattr(self.file, "path", None))
        if self.sink is not None:
            self.sink.raise_error(status)
        if status == CURSOR_NO_MEMORY:
            raise MemoryError
        if status == CURSOR_CORRUPT:
            raise Corruption("an entry has an unknown kind, or a value that is none of its kind")
        raise UsageError(f"an internal key may have at most {INTERNAL_KEY_SIZE_MAX} bytes")

    # -- the Python side ----------------------------------------------------------------------------------------------
    def fill(self, OwnedCursor source not None, VersionFilter versions not None, uint64_t table_bytes, bytes end=None):
        """Append from where `source` stands until the table has `table_bytes` (roughly), the source ends, or its user key
        reaches `end` (family || user key). True: there is more, start another table."""
        cdef int status
        cdef const uint8_t* end_data = NULL
        cdef size_t end_size = 0
        cdef ValueSink sink = self.sink
        source.check()
        if end is not None:
            end_data = <const uint8_t*><const char*>end
            end_size = len(end)
        with nogil:
            gil_away()
            status = self._fill(source.c, versions, sink, table_bytes, end_data, end_size)
            gil_back()
        source.check()
        if status < 0:
            self._raise(status)
        return status == FILL_MORE

    cdef int _fill(self, Cursor* c, VersionFilter versions, ValueSink sink, uint64_t table_bytes, const uint8_t* end,
                   size_t end_size) noexcept nogil:
        cdef size_t prefix_size
        cdef uint64_t packed
        cdef int status
        cdef uint8_t[TRAILER_SIZE] made
        cdef bint as_delete
        cdef const uint8_t* trailer
        cdef int kind
        cdef Slice value
        cdef int verdict
        cdef uint32_t steps = 0
        while c.valid:
            steps += 1
            if steps % PASS_ENTRIES == 0:
                nokv_pass()
            as_delete = False
            prefix_size = c.key.size - TRAILER_SIZE
            if end != NULL and compare_bytes(c.key.data, prefix_size, end, end_size) >= 0:
                return FILL_DONE
            trailer = c.key.data + prefix_size
            packed = read_trailer(trailer)
            kind = <int>(packed & 255)
            value = c.value
            verdict = versions.keep(c.key.data, prefix_size, packed >> 8, kind, value)
            if verdict < 0:
                return verdict
            if verdict:
                if self.entries and self.written + self.raw.size + self.block.size >= table_bytes and (
                        self.last_key.size != c.key.size or memcmp(self.last_key.data, c.key.data, prefix_size) != 0):
                    versions.has_last = False       # this entry is looked at again, for the next table
                    return FILL_MORE
                as_delete = verdict == KEEP_AS_DELETE or versions.tombstones
                if as_delete:
                    value.size = 0
                elif sink is not None and sink.wants(kind, c.key.data, &value):
                    status = sink.convert(&kind, c.key.data, prefix_size, packed >> 8, &value, &self.referenced)
                    if status != CURSOR_OK:
                        return status
                if as_delete or versions.export or versions.settled or kind != <int>(packed & 255):
                    put_trailer(made, 0 if versions.export or versions.settled else packed >> 8,
                                KIND_DELETE if as_delete else kind)
                    trailer = made
                status = self.add_entry(c.key.data, prefix_size, trailer, value.data, value.size)
                if status != CURSOR_OK:
                    return status
                if versions.newest > self.max_sequence and (versions.settled or packed >> 8 == 0):
                    self.max_sequence = versions.newest
            if sink is not None and (verdict == LEAVE_OUT or as_delete):
                status = sink.drop(<int>(packed & 255), c.value)
                if status != CURSOR_OK:
                    return status
            c.ops.next(c)
        return FILL_DONE if c.status == CURSOR_OK else c.status

    def add(self, bytes prefix not None, value, uint64_t sequence=0, int kind=KIND_PUT):
        """Append one entry by hand (`value`: as stored; None: a delete). Keys rise; of one key the newest comes first."""
        cdef uint8_t[TRAILER_SIZE] trailer
        cdef const uint8_t* p = <const uint8_t*><const char*>prefix
        cdef size_t n = len(prefix)
        cdef bytes data = b"" if value is None else value
        cdef Slice stored
        cdef Reference ref
        cdef int order
        cdef int status
        if n == 0 or sequence >> 56:
            raise UsageError("an entry needs a family byte, and a sequence below 2**56")
        if not kind_is_value(kind) or (kind_expires(kind) and value is not None and len(data) < EXPIRY_SIZE):
            raise UsageError(f"kind {kind} with a stored value of {len(data)} bytes is no entry")
        put_trailer(trailer, sequence, KIND_DELETE if value is None else kind)
        if kind_is_reference(kind) and value is not None:
            stored.data = <const uint8_t*><const char*>data
            stored.size = len(data)
            if kind_expires(kind):
                stored.data += EXPIRY_SIZE
                stored.size -= EXPIRY_SIZE
            if not read_reference(&stored, &ref) or tally(&self.referenced, ref.number, ref.size) != CURSOR_OK:
                raise UsageError("the stored value is no reference")
        if self.entries:
            order = compare_bytes(self.last_key.data, self.last_key.size - TRAILER_SIZE, p, n)
            if order > 0 or (order == 0 and memcmp(self.last_key.data + self.last_key.size - TRAILER_SIZE, trailer, 8) >= 0):
                raise UsageError("the entries of a table must rise")
        status = self.add_entry(p, n, trailer, <const uint8_t*><const char*>data, len(data))
        if status != CURSOR_OK:
            self._raise(status)

    @property
    def after(self):
        """The smallest key (family || user key) above the last one that was added."""
        return PyBytes_FromStringAndSize(<const char*>self.last_key.data, <Py_ssize_t>self.last_key.size - TRAILER_SIZE) + b"\0"

    def set_ranges(self, Ranges ranges not None):
        """The table's range deletes; the last thing before `finish`."""
        if self.external:
            raise InvariantError("an external table has no range deletes")
        if len(ranges) == 0:
            return
        self.ranges = ranges
        if self.entries == 0:
            self.add(ranges.smallest, None, ranges.list.sequences[0])

    def finish(self):
        """Write what is left, the filter, properties, index and footer. Does not sync. Returns the properties, with
        "size" and "crc32c" of the whole file. At least one entry or range delete must have been added."""
        cdef int status = CURSOR_OK
        cdef bytes range_block = b""
        if self.entries == 0:
            raise InvariantError("a table without entries")
        if self.block.size:
            status = self.close_block()
        if status == CURSOR_OK and self.block_closed:
            status = self.put_separator(NULL, 0)
        if status != CURSOR_OK:
            self._raise(status)
        self._write_pending()
        smallest = as_bytes(&self.smallest)
        largest = PyBytes_FromStringAndSize(<const char*>self.last_key.data, <Py_ssize_t>self.last_key.size - TRAILER_SIZE)
        if self.ranges is not None:
            range_block = self.ranges.encode()
            self._write_meta(range_block)
            smallest = min(smallest, self.ranges.smallest)
            largest = max(largest, self.ranges.largest)
            self.min_sequence = min(self.min_sequence, self.ranges.list.smallest_sequence)
            self.max_sequence = max(self.max_sequence, self.ranges.list.largest_sequence)
        expiries = self._expiries()
        properties = {
            "entries": self.entries,
            "deletes": self.deletes,
            "min_sequence": self.min_sequence,
            "max_sequence": self.max_sequence,
            "raw_bytes": self.raw_bytes,
            "blocks": self.blocks,
            "smallest": smallest,
            "largest": largest,
            "codec": CODEC_ZSTD if self.zstd else CODEC_LZ4 if self.lz4 else CODEC_NONE,
            "created_ms": self.created_ms,
            "external": int(self.external),
            "families": self.families,
            "expiring": self.expiries.size // sizeof(uint64_t),
            "expiries": b"".join(map(varint, expiries)),
            "value_files": encode_tallies(&self.referenced),
            "range_deletes": 0 if self.ranges is None else len(self.ranges),
            "range_block_bytes": len(range_block),
        }
        plain = self.last_kind <= KIND_PUT and self.ranges is None and not self.lz4
        version = FORMAT_VERSION_PLAIN if plain else FORMAT_VERSION
        footer = []
        for payload in (None, encode_properties(properties), as_bytes(&self.index)):
            offset = self.written
            if payload is None:
                payload = self._filter(offset)
            self._write_meta(payload)
            footer += [offset, len(payload)]
        head = struct.pack("<6QI", *footer, version)
        self._write(head + struct.pack("<I", crc32c(0, <const uint8_t*><const char*>(<bytes>head), len(head))) + MAGIC)
        properties["codec"] = self.compression
        properties["external"] = bool(self.external)
        properties["expiries"] = expiries
        properties["size"] = self.written
        properties["crc32c"] = self.file_crc
        properties["value_files"] = {self.referenced.items[i].number: self.referenced.items[i].bytes
                                     for i in range(<int>self.referenced.count)}
        return properties


cdef bytes encode_tallies(Tallies* t):
    cdef size_t i
    out = b""
    for i in range(t.count):
        out += varint(t.items[i].number) + varint(t.items[i].bytes)
    return out


def encode_properties(properties):
    """varint tag, then the value as varint length + bytes; numbers are themselves varints."""
    from nokv._ext.table import PROPERTIES

    out = bytearray()
    for tag, name in PROPERTIES.items():
        value = properties.get(name, 0) if name in OPTIONAL_PROPERTIES else properties[name]
        if name in OPTIONAL_PROPERTIES and not value:
            continue
        data = value if isinstance(value, bytes) else varint(value)
        out += varint(tag) + varint(len(data)) + data
    return bytes(out)


cdef bytes varint(uint64_t value):
    cdef uint8_t[10] room
    cdef size_t n = put_varint(room, value)
    return PyBytes_FromStringAndSize(<const char*>room, <Py_ssize_t>n)
