from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nokv._ext.prefault cimport Ahead, Prefaulter

cdef enum:
    RECORD_HEADER_SIZE = 16
    RECORD_ALIGN = 16
    SEGMENT_DATA_START = 64         # the first record after the segment's own header record
    RECORD_BATCH = 1
    RECORD_SEGMENT = 2
    RECORD_SYNCED = 3
    RECORD_LINK = 4
    RECORD_FILLER = 5

cdef class SegmentWriter:
    cdef readonly object file
    cdef readonly uint64_t number
    cdef readonly uint64_t capacity
    cdef readonly uint64_t end      # where the next record goes, a multiple of RECORD_ALIGN
    cdef uint64_t limit             # capacity, or 0 once sealed
    cdef readonly uint64_t ready    # up to here pages were made ready before it was written to
    cdef uint64_t due               # an append past this offset wakes whoever makes more of them ready
    cdef Ahead* ahead               # who that is, or NULL
    cdef Prefaulter prefaulter      # the owner of `ahead`
    cdef public uint64_t synced         # before this everything is on disk
    cdef uint8_t* base              # NULL: the file is not mapped and every append goes through file.write
    cdef object map
    cdef Py_ssize_t exports
    cdef bint has_room(self, uint64_t payload_size) noexcept nogil
    cdef uint8_t* reserve(self) noexcept nogil
    cdef int64_t commit(self, int record_type, uint64_t payload_size) noexcept nogil
    cdef int64_t append_mapped(self, int record_type, const uint8_t* payload, uint64_t payload_size) noexcept nogil
    cdef int64_t append_written(self, int record_type, const uint8_t* payload, uint64_t payload_size) except -1

cdef class WalCore:
    cdef public SegmentWriter active
    cdef public uint64_t appended   # records appended since open, marks not counted: what sync() covers
    cdef public uint64_t appended_bytes
    cdef public uint64_t soft_limit # past this offset of the active segment the owner is told to `attend` to it
    cdef public int waiting         # how many wait for a segment that is being made: what can be left out is
    cdef public object failure      # why nothing may be appended or synced any more, or None

cdef class SegmentReader:
    cdef const uint8_t[::1] data
    cdef readonly uint64_t number
    cdef public uint64_t offset
    cdef readonly uint64_t unmarked_end     # behind the last record that was passed and is no sync mark
    cdef uint64_t mark_segment
    cdef uint64_t mark_offset
    cdef int _at(self, uint64_t offset, uint32_t* length, int* record_type) noexcept nogil
    cdef bint next(self, uint64_t stop, int* record_type, const uint8_t** payload, uint32_t* length) noexcept nogil
    cdef bint _zeros(self, uint64_t start, uint64_t end) noexcept nogil

cdef class LiveSegmentReader(SegmentReader):
    cdef uint8_t* copy
    cdef uint64_t copy_room
    cdef bint no_memory             # why `next` said False
