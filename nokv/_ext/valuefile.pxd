"""Large values outside the tables (docs/formats/value_file.md): references, reading them, writing them.

A reference is 25 bytes: version (1) | CRC-32C of the value (4) | its size (4) | file number (8) | offset of the value (8).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.cursor cimport Slice

cdef enum:
    REFERENCE_VERSION = 1
    REFERENCE_SIZE = 25
    REFERENCE_ROOM = 40                 # an expiry, a reference

cdef struct Reference:
    uint64_t number
    uint64_t offset
    uint32_t size
    uint32_t crc

cdef struct Tally:
    uint64_t number
    uint64_t bytes

cdef struct Tallies:                    # a few counters by file number
    Tally* items
    size_t count
    size_t room
    size_t last                         # where the last one was found

cdef int tally(Tallies* t, uint64_t number, uint64_t bytes) noexcept nogil     # CURSOR_OK or CURSOR_NO_MEMORY
cdef bint read_reference(const Slice* stored, Reference* out) noexcept nogil    # False: malformed

# The user's bytes, checked. `stored` is a reference (without an expiry); `values` the files of the view's Version.
cdef bytes read_value(dict values, const Slice* stored)

cdef class ValueFile:
    cdef const uint8_t[::1] data
    cdef const uint8_t* base
    cdef readonly uint64_t size
    cdef readonly uint64_t number
    cdef readonly str path
    cdef object __weakref__

cdef struct Source:
    uint64_t number
    const uint8_t* base
    uint64_t size
    bint rewrite

cdef class ValueSink:
    cdef readonly uint64_t threshold
    cdef bint inlines                   # external tables: references become the values themselves
    cdef uint64_t file_bytes_max
    cdef dict values
    cdef Source* sources
    cdef size_t source_count, source_last
    cdef object create                  # () -> (number, path, WritableFile)
    cdef object remove                  # path -> None
    cdef object file
    cdef str path
    cdef uint64_t number
    cdef uint64_t written               # of the file, `pending` not counted
    cdef uint64_t records, value_bytes
    cdef uint8_t* pending
    cdef size_t pending_size, pending_room
    cdef uint8_t* joined                # an expiry and a value, for `inlines`
    cdef uint8_t room[REFERENCE_ROOM]
    cdef list finished
    cdef Tallies dead                   # what the old tables referred to and the new ones do not
    cdef readonly uint64_t rewritten_bytes
    cdef object error
    cdef uint64_t bad_number, bad_offset
    cdef uint32_t bad_expected, bad_found
    cdef bint wants(self, int kind, const uint8_t* prefix, const Slice* value) noexcept nogil
    cdef int convert(self, int* kind, const uint8_t* prefix, size_t prefix_size, uint64_t sequence, Slice* value,
                     Tallies* referenced) noexcept nogil
    cdef int drop(self, int kind, Slice value) noexcept nogil
    cdef Source* source(self, uint64_t number) noexcept nogil
    cdef int resolve(self, Reference* ref, Slice* out) noexcept nogil
    cdef int store(self, const uint8_t* prefix, size_t prefix_size, uint64_t sequence, const Slice* value,
                   Reference* out) noexcept nogil
    cdef int begin_file(self) noexcept with gil
    cdef int write_pending(self, const uint8_t* more, size_t more_size) noexcept with gil
    cdef _write(self, const uint8_t* data, size_t size)
    cdef _end_file(self)
    cdef raise_error(self, int status)
