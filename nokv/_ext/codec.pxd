"""Reading and writing raw bytes: the only place that does pointer arithmetic on bytes from disk or network.

A Reader never looks past `end`: every length is compared with what is left (`pos + n` may wrap around). A read that does
not fit returns 0 (NULL for `take`) and leaves `pos` alone. Varints are little-endian base 128, at most ten bytes, and a value
that does not fit 64 bits is refused. Fixed numbers are little-endian.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    VARINT_SIZE_MAX = 10

cdef struct Reader:
    const uint8_t* pos
    const uint8_t* end

cdef inline Reader reader(const uint8_t* data, size_t size) noexcept nogil:
    cdef Reader r
    r.pos = data
    r.end = data + size
    return r

cdef inline size_t left(const Reader* r) noexcept nogil:
    return <size_t>(r.end - r.pos)

cdef inline const uint8_t* take(Reader* r, uint64_t n) noexcept nogil:
    cdef const uint8_t* start = r.pos
    if n > <uint64_t>(r.end - r.pos):
        return NULL
    r.pos += n
    return start

cdef inline bint read_varint(Reader* r, uint64_t* out) noexcept nogil:
    cdef const uint8_t* p = r.pos
    cdef uint64_t value = 0
    cdef uint64_t byte
    cdef int shift = 0
    while p < r.end and shift < 70:
        byte = p[0]
        p += 1
        if shift == 63 and byte > 1:
            return 0
        value |= (byte & 127) << shift
        if byte < 128:
            out[0] = value
            r.pos = p
            return 1
        shift += 7
    return 0

cdef inline uint32_t get_fixed32(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | (<uint32_t>p[1] << 8) | (<uint32_t>p[2] << 16) | (<uint32_t>p[3] << 24)

cdef inline uint64_t get_fixed64(const uint8_t* p) noexcept nogil:
    return <uint64_t>get_fixed32(p) | (<uint64_t>get_fixed32(p + 4) << 32)

cdef inline bint read_byte(Reader* r, uint8_t* out) noexcept nogil:
    if r.pos >= r.end:
        return 0
    out[0] = r.pos[0]
    r.pos += 1
    return 1

cdef inline bint read_fixed32(Reader* r, uint32_t* out) noexcept nogil:
    cdef const uint8_t* p = take(r, 4)
    if p == NULL:
        return 0
    out[0] = get_fixed32(p)
    return 1

cdef inline bint read_fixed64(Reader* r, uint64_t* out) noexcept nogil:
    cdef const uint8_t* p = take(r, 8)
    if p == NULL:
        return 0
    out[0] = get_fixed64(p)
    return 1

cdef inline bint read_bytes(Reader* r, const uint8_t** data, size_t* size) noexcept nogil:
    """varint length, then that many bytes."""
    cdef Reader saved = r[0]
    cdef uint64_t n = 0
    if not read_varint(r, &n):
        return 0
    cdef const uint8_t* p = take(r, n)
    if p == NULL:
        r[0] = saved
        return 0
    data[0] = p
    size[0] = <size_t>n
    return 1

# Writers: the caller has made room.
cdef inline void put_fixed32(uint8_t* out, uint32_t value) noexcept nogil:
    out[0] = <uint8_t>value
    out[1] = <uint8_t>(value >> 8)
    out[2] = <uint8_t>(value >> 16)
    out[3] = <uint8_t>(value >> 24)

cdef inline void put_fixed64(uint8_t* out, uint64_t value) noexcept nogil:
    put_fixed32(out, <uint32_t>value)
    put_fixed32(out + 4, <uint32_t>(value >> 32))

cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t n = 1
    while value >= 128:
        value >>= 7
        n += 1
    return n

cdef inline size_t put_varint(uint8_t* out, uint64_t value) noexcept nogil:
    """Returns how many bytes were written (at most VARINT_SIZE_MAX)."""
    cdef size_t n = 0
    while value >= 128:
        out[n] = <uint8_t>(value | 128)
        value >>= 7
        n += 1
    out[n] = <uint8_t>value
    return n + 1
