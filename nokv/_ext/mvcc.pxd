"""Keys, write records and lock records of the MVCC families (docs/formats/mvcc.md)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    KEY_GROUP = 8
    TIMESTAMP_BYTES = 8
    RECORD_VERSION = 1
    WRITE_PUT = 1
    WRITE_DELETE = 2
    WRITE_ROLLBACK = 3
    WRITE_LOCK = 4
    WRITE_INLINE = 1
    WRITE_HEADER_BYTES = 10
    SHORT_VALUE_BYTES_MAX = 1024

cdef inline size_t encoded_size(size_t size) noexcept nogil:
    return (size // KEY_GROUP + 1) * (KEY_GROUP + 1)

cdef size_t put_encoded(uint8_t* out, const uint8_t* key, size_t size) noexcept nogil
cdef Py_ssize_t get_decoded(uint8_t* out, const uint8_t* data, size_t size, size_t* used) noexcept nogil

cdef inline void put_timestamp(uint8_t* out, uint64_t ts) noexcept nogil:
    cdef int i
    ts = ~ts
    for i in range(TIMESTAMP_BYTES):
        out[i] = <uint8_t>(ts >> (56 - 8 * i))

cdef inline uint64_t get_timestamp(const uint8_t* p) noexcept nogil:
    cdef uint64_t ts = 0
    cdef int i
    for i in range(TIMESTAMP_BYTES):
        ts = (ts << 8) | p[i]
    return ~ts
