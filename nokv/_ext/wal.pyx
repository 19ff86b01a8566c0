"""WAL records: appending them to a mapped segment, and reading segments back. Layout: docs/formats/wal.md.

Owns: the record's bytes. Does not own: files, rotation, retention, what damage means (nokv/engine/wal/). Threads: appends hold
the GIL from the check for room to the new end, so a mapped segment needs no lock of its own; readers have no shared state.

    record   crc u32 | length u32 | type u8, 3 zero | header_crc u32 | payload | zeros up to a multiple of 16
    header_crc = crc32c(segment number u64, record offset u64, length, type): a record is valid in one place of one segment only,
    so bytes of a recycled file's former life never pass. crc continues header_crc over the payload.
    A header is 16-byte aligned, so it lies in one sector: power loss leaves it whole or zero.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyObject_GetBuffer, PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.crc32c cimport crc32c
from nokv._ext.gilturn cimport gil_away, gil_back, leave_writer, return_to_writer, writer_is_here
from nokv._ext.prefault cimport Ahead, Prefaulter, ahead_detach, ahead_wake
from nokv._ext.scheduling cimport nokv_pass

from mmap import PAGESIZE

from nokv._ext.disk import LogMap

HEADER_SIZE = RECORD_HEADER_SIZE
DATA_START = SEGMENT_DATA_START
TYPE_BATCH = RECORD_BATCH
TYPE_SEGMENT = RECORD_SEGMENT
TYPE_SYNCED = RECORD_SYNCED
TYPE_LINK = RECORD_LINK
TYPE_FILLER = RECORD_FILLER
PAYLOAD_BYTES_MAX = 0x7FFFFFFF

cdef extern from "pages.h":
    void nokv_populate(void* p, size_t size) noexcept nogil

cdef extern from *:
    """
    #include <unistd.h>
    /* From `start` on, a piece, up to `end`. Where the next one begins: `end` if this one failed, which is left to the stores, and to the
       sync that reports it. */
    static uint64_t nokv_write_zeros(int fd, uint64_t start, uint64_t end) {
        static const char zeros[128 << 10];
        ssize_t done = pwrite(fd, zeros, end - start < sizeof zeros ? (size_t)(end - start) : sizeof zeros, (off_t)start);
        return done > 0 ? start + (uint64_t)done : end;
    }

    static inline int nokv_load_int(const int* place) { return __atomic_load_n(place, __ATOMIC_RELAXED); }
    """
    uint64_t nokv_write_zeros(int fd, uint64_t start, uint64_t end) noexcept nogil
    int nokv_load_int(const int* place) noexcept nogil

cdef enum:
    SECTOR = 512
    PAGE_MAX = 65536                # a multiple of every page size there is


cdef uint64_t NEVER = <uint64_t>-1


cdef inline uint64_t _align(uint64_t offset) noexcept nogil:
    return (offset + (RECORD_ALIGN - 1)) & ~<uint64_t>(RECORD_ALIGN - 1)


cdef inline void _put32(uint8_t* out, uint32_t value) noexcept nogil:
    out[0] = <uint8_t>value
    out[1] = <uint8_t>(value >> 8)
    out[2] = <uint8_t>(value >> 16)
    out[3] = <uint8_t>(value >> 24)


cdef inline void _put64(uint8_t* out, uint64_t value) noexcept nogil:
    _put32(out, <uint32_t>value)
    _put32(out + 4, <uint32_t>(value >> 32))


cdef inline uint32_t _get32(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | (<uint32_t>p[1] << 8) | (<uint32_t>p[2] << 16) | (<uint32_t>p[3] << 24)


cdef inline uint64_t _get64(const uint8_t* p) noexcept nogil:
    return <uint64_t>_get32(p) | (<uint64_t>_get32(p + 4) << 32)


cdef uint32_t _header_crc(uint64_t number, uint64_t offset, const uint8_t* header) noexcept nogil:
    cdef uint8_t place[24]
    _put64(place, number)
    _put64(place + 8, offset)
    memcpy(place + 16, header + 4, 8)           # length, type, three zeros
    return crc32c(0, place, 24)


cdef void _write_header(uint8_t* header, uint64_t number, uint64_t offset, int record_type,
                        const uint8_t* payload, uint64_t size) noexcept nogil:
    """The payload is in place already; the header comes last, so that a process that dies in between leaves zeros here."""
    cdef uint8_t fresh[16]
    cdef uint32_t check
    _put32(fresh + 4, <uint32_t>size)
    fresh[8] = <uint8_t>record_type
    fresh[9] = fresh[10] = fresh[11] = 0
    check = _header_crc(number, offset, fresh)
    _put32(fresh + 12, check)
    _put32(fresh, crc32c(check, payload, size))
    memcpy(header, fresh, 16)


@cython.no_gc_clear             # `ahead` belongs to `prefaulter`, until the last
cdef class SegmentWriter:
    """One segment being written: `file` is a LogFile; if it has a `map`, records are stored through memory."""

    def __cinit__(self, file, uint64_t number):
        self.file = file
        self.number = number
        self.capacity = file.capacity
        self.limit = self.capacity
        self.end = 0
        self.synced = 0
        self.due = NEVER
        self.ahead = NULL
        self.prefaulter = None
        self.base = NULL
        self.map = getattr(file, "map", None)

    def __init__(self, file, number):
        cdef Py_buffer view
        if self.map is not None:
            # The address of a mapping does not change while it is open: the writer holds the map object and the owner closes the
            # file through close() below, which clears the address first.
            PyObject_GetBuffer(self.map, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
            try:
                if <uint64_t>view.len < self.capacity:
                    raise ValueError("the map is shorter than the segment")
                self.base = <uint8_t*>view.buf
            finally:
                PyBuffer_Release(&view)

    cdef bint has_room(self, uint64_t payload_size) noexcept nogil:
        if self.end > self.limit or self.limit - self.end < RECORD_HEADER_SIZE:
            return False
        return payload_size <= self.limit - self.end - RECORD_HEADER_SIZE     # a sum could wrap around

    cdef uint8_t* reserve(self) noexcept nogil:
        """Where the next record's payload goes. Only after has_room, only if mapped; then commit."""
        return self.base + self.end + RECORD_HEADER_SIZE

    cdef int64_t commit(self, int record_type, uint64_t payload_size) noexcept nogil:
        cdef uint64_t offset = self.end
        cdef uint8_t* header = self.base + offset
        _write_header(header, self.number, offset, record_type, header + RECORD_HEADER_SIZE, payload_size)
        self.end = _align(offset + RECORD_HEADER_SIZE + payload_size)
        if self.end > self.due:
            self.due = NEVER        # first: then a wake is never lost
            writer_is_here()
            ahead_wake(self.ahead)
        return <int64_t>offset

    cdef int64_t append_mapped(self, int record_type, const uint8_t* payload, uint64_t payload_size) noexcept nogil:
        if payload_size:                # an empty buffer may have no address
            memcpy(self.base + self.end + RECORD_HEADER_SIZE, payload, payload_size)
        return self.commit(record_type, payload_size)

    cdef int64_t append_written(self, int record_type, const uint8_t* payload, uint64_t payload_size) except -1:
        cdef uint64_t offset = self.end
        cdef bytes record
        cdef uint8_t* out
        if self.base != NULL:
            return self.append_mapped(record_type, payload, payload_size)
        record = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(RECORD_HEADER_SIZE + payload_size))
        out = <uint8_t*>PyBytes_AS_STRING(record)
        if payload_size:
            memcpy(out + RECORD_HEADER_SIZE, payload, payload_size)
        _write_header(out, self.number, offset, record_type, out + RECORD_HEADER_SIZE, payload_size)
        self.file.write(offset, record)
        self.end = _align(offset + RECORD_HEADER_SIZE + payload_size)
        return <int64_t>offset

    def resume(self, uint64_t end):
        """Go on in a segment that a former process began: records up to `end`, then nothing but zeros."""
        if self.end or end > self.capacity or end % RECORD_ALIGN:
            raise ValueError("a segment cannot go on there")
        self.end = end

    def fits(self, uint64_t payload_size):
        return self.has_room(payload_size)

    def append(self, int record_type, const uint8_t[::1] payload not None):
        """Offset of the new record. The caller checked `fits`."""
        if not self.has_room(<uint64_t>payload.shape[0]) or (self.map is not None and self.base == NULL):
            raise ValueError("no room in the segment")
        cdef const uint8_t* data = &payload[0] if payload.shape[0] else NULL
        return self.append_written(record_type, data, <uint64_t>payload.shape[0])

    def try_append(self, int record_type, bytes payload not None):
        """Offset of the new record, or -1 if there is no room or the segment is not mapped. Never lets another thread in."""
        cdef Py_ssize_t size = len(payload)
        if self.base == NULL or not self.has_room(<uint64_t>size):
            return -1
        return self.append_mapped(record_type, <const uint8_t*>PyBytes_AS_STRING(payload), <uint64_t>size)

    @property
    def mapped(self):
        return self.base != NULL

    def make_ready(self, uint64_t size, WalCore zeros_for=None):
        """Before the segment is written to: bring the first `size` bytes of pages into the mapping, writable, without the GIL. With
        `zeros_for` the page cache gets the rest of the file, too: pages that a file system makes for a large write cost a fraction of
        what it takes for each that a store asks for. But they are to be written to the disk together, each time that one of them
        is. It ends early if somebody waits for that log. The file stays open meanwhile."""
        cdef uint8_t* base = self.base
        cdef uint64_t start = PAGE_MAX          # behind the segment's header
        cdef bint more = zeros_for is not None
        cdef int fd
        if base == NULL or type(self.map) is not LogMap:
            return
        self.ready = size = min(size & ~<uint64_t>(PAGE_MAX - 1), self.capacity)
        fd = self.map.fd
        with nogil:
            gil_away()
            while more and start < self.capacity and not nokv_load_int(&zeros_for.waiting):
                leave_writer()
                start = nokv_write_zeros(fd, start, self.capacity)
                return_to_writer()
                nokv_pass()
            nokv_populate(base, size)
            gil_back()

    def keep_ahead(self, Prefaulter prefaulter not None):
        """From now on pages are made ready by its thread, until it gets another segment or this one is closed."""
        if self.base != NULL and type(self.map) is LogMap:
            self.prefaulter = prefaulter
            self.ahead = prefaulter.attach(self.base, self.capacity, self.ready, &self.end, &self.due)

    def unprotect(self):
        """After a sync: make the pages that the next records go to writable again, without the GIL. The store that found them
        write-protected would wait for the file system with the GIL held."""
        cdef uint64_t page = <uint64_t>PAGESIZE
        cdef uint64_t start = self.end & ~(page - 1)
        cdef uint8_t* base = self.base
        if base == NULL or type(self.map) is not LogMap or start >= self.capacity:
            return
        with nogil:
            nokv_populate(base + start, min(2 * page, self.capacity - start))

    def fill_page(self):
        """Let the next record begin in another page than the last one, which a sync is about to write-protect."""
        cdef uint64_t page = <uint64_t>PAGESIZE
        cdef uint64_t stop = (self.end + page - 1) & ~(page - 1)
        if self.base == NULL or stop > self.limit or stop < self.end + RECORD_HEADER_SIZE:
            return
        self.commit(RECORD_FILLER, stop - self.end - RECORD_HEADER_SIZE)    # of zeros: nothing was written there yet

    def seal(self):
        """No further record: `end` is final from here on."""
        self.limit = 0

    def __dealloc__(self):
        if self.ahead != NULL:
            ahead_detach(self.ahead, self.base)

    def close(self):
        cdef Ahead* ahead = self.ahead
        cdef uint8_t* base = self.base
        self.limit = 0
        if ahead != NULL:
            self.ahead = NULL
            with nogil:
                gil_away()
                ahead_detach(ahead, base)
                gil_back()
        self.prefaulter = None
        self.base = NULL
        self.map = None
        self.file.close()


cdef class WalCore:
    """What compiled writers need of the WAL. `nokv.engine.wal.Wal` is the rest."""

    def __cinit__(self, *args, **kwargs):
        self.active = None
        self.appended = 0
        self.appended_bytes = 0
        self.soft_limit = <uint64_t>-1
        self.waiting = 0
        self.failure = None


cdef class SegmentReader:
    """Records of one segment, from any buffer. `offset` is where the next record would start."""

    def __init__(self, const uint8_t[::1] data not None, uint64_t number, uint64_t offset=0):
        self.data = data
        self.number = number
        self.offset = offset

    cdef int _at(self, uint64_t offset, uint32_t* length, int* record_type) noexcept nogil:
        """1 valid record, 0 zero header or end of segment, -1 header bad, -2 header good and payload bad."""
        cdef uint64_t size = <uint64_t>self.data.shape[0]
        cdef const uint8_t* p
        cdef uint32_t check
        if offset > size or size - offset < RECORD_HEADER_SIZE:
            return 0
        p = &self.data[offset]
        if _get64(p) == 0 and _get64(p + 8) == 0:
            return 0
        check = _get32(p + 12)
        if _header_crc(self.number, offset, p) != check:
            return -1
        length[0] = _get32(p + 4)
        record_type[0] = p[8]
        if length[0] > size - offset - RECORD_HEADER_SIZE:
            return -1
        if crc32c(check, p + RECORD_HEADER_SIZE, length[0]) != _get32(p):
            return -2
        return 1

    cdef bint next(self, uint64_t stop, int* record_type, const uint8_t** payload, uint32_t* length) noexcept nogil:
        """Move over the next valid record before `stop`; its payload is good while the reader lives. False: see `state`."""
        cdef uint64_t at = self.offset
        if at >= stop or self._at(at, length, record_type) != 1:
            return False
        payload[0] = &self.data[at] + RECORD_HEADER_SIZE
        self.offset = _align(at + RECORD_HEADER_SIZE + length[0])
        if record_type[0] != RECORD_SYNCED:
            self.unmarked_end = self.offset
        elif length[0] == 16:
            self.mark_segment = _get64(payload[0])
            self.mark_offset = _get64(payload[0] + 8)
        return True

    @property
    def mark(self):
        """What the last sync mark that was passed says: everything before (segment, offset) is on disk."""
        return self.mark_segment, self.mark_offset

    def records(self, wanted, uint64_t stop, Py_ssize_t limit):
        """Up to `limit` of the next valid records before `stop` whose type is in `wanted` (None: all), as a list of
        (offset, type, payload). An empty list: see `offset` and `state`."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef bint want[256]
        cdef list found = []
        cdef int i
        for i in range(256):
            want[i] = wanted is None
        if wanted is not None:
            for item in wanted:
                want[<uint8_t>item] = True
        while self.offset < stop and len(found) < limit and self._at(self.offset, &length, &record_type) == 1:
            if want[record_type]:
                found.append((self.offset, record_type,
                              PyBytes_FromStringAndSize(<const char*>&self.data[self.offset] + RECORD_HEADER_SIZE, length)))
            self.offset = _align(self.offset + RECORD_HEADER_SIZE + length)
        return found

    def skip_valid(self, uint64_t stop):
        """Move over valid records up to `stop` without making objects. Returns how many."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef const uint8_t* payload = NULL
        cdef uint64_t count = 0
        with nogil:
            while self.next(stop, &record_type, &payload, &length):
                count += 1
        return count

    def state(self):
        """What stands at `offset`: "record", "end" (zeros), "bad header" or "bad payload"."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef int found = self._at(self.offset, &length, &record_type)
        return "record" if found == 1 else "end" if found == 0 else "bad header" if found == -1 else "bad payload"

    def resync(self):
        """Move from a record that does not check out to the next place where one does. False, and at the end, if there is none."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef uint64_t size = <uint64_t>self.data.shape[0]
        with nogil:
            self.offset = _align(self.offset) + RECORD_ALIGN
            while self.offset < size and self._at(self.offset, &length, &record_type) != 1:
                self.offset += RECORD_ALIGN
        return self.offset < size

    def checksums(self):
        """(expected, found) of the bad record at `offset`, for the error message."""
        cdef uint64_t size = <uint64_t>self.data.shape[0]
        cdef const uint8_t* p
        cdef uint32_t check
        if self.offset > size or size - self.offset < RECORD_HEADER_SIZE:
            return None, None
        p = &self.data[self.offset]
        check = _header_crc(self.number, self.offset, p)
        if check != _get32(p + 12) or _get32(p + 4) > size - self.offset - RECORD_HEADER_SIZE:
            return check, _get32(p + 12)        # also a right header whose payload lies beyond the end of a cut file
        return crc32c(check, p + RECORD_HEADER_SIZE, _get32(p + 4)), _get32(p)

    def looks_unwritten(self):
        """True if what stands at `offset` may be a write that power loss cut short: a zero header, or a good header and nothing
        but zeros in one of the sectors that the payload reaches into."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef int found = self._at(self.offset, &length, &record_type)
        cdef uint64_t end, sector
        if found == 0:
            return True
        if found != -2:
            return False
        end = self.offset + RECORD_HEADER_SIZE + length
        with nogil:
            sector = (self.offset // SECTOR + 1) * SECTOR       # the header's own sector was written, for the header was
            while found != 1 and sector < end:
                if self._zeros(sector, min(sector + SECTOR, end)):
                    found = 1
                sector += SECTOR
        return found == 1

    cdef bint _zeros(self, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint64_t i
        for i in range(start, end):
            if self.data[i] != 0:
                return False
        return True

    def evidence(self, uint64_t start, uint64_t end=<uint64_t>-1):
        """Look for valid records anywhere from `start` on: (how many, the last sync mark as (segment, offset) or None, whether
        there are nothing but zeros). From `end` on the caller knows that there are."""
        cdef uint32_t length = 0
        cdef int record_type = 0
        cdef uint64_t offset = _align(start), count = 0, mark_segment = 0, mark_offset = 0
        cdef uint64_t size = min(<uint64_t>self.data.shape[0], end)
        cdef bint marked = False, blank = True
        cdef const uint8_t* p
        with nogil:
            while offset + RECORD_HEADER_SIZE <= size:
                p = &self.data[offset]
                if offset + 128 <= size and _get64(p) == 0 and memcmp(p, p + 8, 120) == 0:
                    offset += 128               # zeros, as most of a log is: no record begins in them
                    continue
                if (_get64(p) | _get64(p + 8)) == 0:
                    offset += RECORD_ALIGN
                    continue
                blank = False
                if self._at(offset, &length, &record_type) == 1:
                    count += 1
                    if record_type == RECORD_SYNCED and length == 16:
                        marked = True
                        mark_segment = _get64(p + RECORD_HEADER_SIZE)
                        mark_offset = _get64(p + RECORD_HEADER_SIZE + 8)
                    offset = _align(offset + RECORD_HEADER_SIZE + length)
                else:
                    offset += RECORD_ALIGN
            if blank:
                blank = self._zeros(min(offset, size), size)
        return count, (mark_segment, mark_offset) if marked else None, blank


cdef class LiveSegmentReader(SegmentReader):
    """Records of a segment that another process may be writing, or may free and use for something else, meanwhile: each record is
    copied before it is checked, and what `next` shows is the copy. It is good until the next call."""

    def __dealloc__(self):
        free(self.copy)

    cdef bint next(self, uint64_t stop, int* record_type, const uint8_t** payload, uint32_t* length) noexcept nogil:
        cdef uint64_t at = self.offset, size = <uint64_t>self.data.shape[0], n
        cdef const uint8_t* p
        cdef uint8_t[RECORD_HEADER_SIZE] header
        cdef uint8_t* fresh
        self.no_memory = False
        if at >= stop or at > size or size - at < RECORD_HEADER_SIZE:
            return False
        p = &self.data[at]
        memcpy(header, p, RECORD_HEADER_SIZE)
        if (_get64(header) | _get64(header + 8)) == 0 or _header_crc(self.number, at, header) != _get32(header + 12):
            return False
        n = _get32(header + 4)
        if n > size - at - RECORD_HEADER_SIZE:
            return False
        if n > self.copy_room:
            fresh = <uint8_t*>realloc(self.copy, n)
            if fresh == NULL:
                self.no_memory = True
                return False
            self.copy = fresh
            self.copy_room = n
        if n:
            memcpy(self.copy, p + RECORD_HEADER_SIZE, n)
        if crc32c(_get32(header + 12), self.copy, n) != _get32(header):
            return False
        record_type[0] = header[8]
        length[0] = <uint32_t>n
        payload[0] = self.copy
        self.offset = _align(at + RECORD_HEADER_SIZE + n)
        return True
