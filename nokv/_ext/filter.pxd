"""The filter of a table: lines of 64 bytes, six bits of one line for each key (docs/formats/sst.md)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.codec cimport get_fixed64

cdef enum:
    LINE = 64                           # bytes of one filter line
    PROBES = 6

cdef inline uint64_t filter_hash(const uint8_t* p, size_t n) noexcept nogil:
    """Eight bytes at a time, little-endian, the rest padded with zeros; the length is mixed in first."""
    cdef uint64_t h = <uint64_t>n * <uint64_t>0x9E3779B97F4A7C15
    cdef uint64_t w
    cdef size_t i
    while n >= 8:
        h = (h ^ get_fixed64(p)) * <uint64_t>0xD6E8FEB86659FD93
        h ^= h >> 32
        p += 8
        n -= 8
    w = 0
    for i in range(n):
        w |= <uint64_t>p[i] << (8 * i)
    h = (h ^ w) * <uint64_t>0xD6E8FEB86659FD93
    h ^= h >> 32
    h *= <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 29)

cdef inline uint64_t filter_lines(size_t keys, int bits) noexcept nogil:
    """So many for `bits` per key."""
    cdef uint64_t lines = (keys * bits + LINE * 8 - 1) // (LINE * 8)
    return lines if lines else 1

cdef inline void filter_enter(uint8_t* filter, uint64_t lines, const uint64_t* hashes, size_t n) noexcept nogil:
    cdef uint8_t* line
    cdef uint64_t bits
    cdef size_t i
    cdef int k
    cdef uint32_t bit
    for i in range(n):
        line = filter + ((hashes[i] >> 32) * lines >> 32) * LINE
        bits = hashes[i] * <uint64_t>0xC2B2AE3D27D4EB4F
        for k in range(PROBES):
            bit = <uint32_t>(bits >> (10 + 9 * k)) & 511
            line[bit >> 3] |= <uint8_t>(1 << (bit & 7))

cdef inline bint filter_may_hold(const uint8_t* filter, uint64_t lines, uint64_t hash) noexcept nogil:
    cdef const uint8_t* line
    cdef uint64_t bits
    cdef int i
    cdef uint32_t bit
    if lines == 0:
        return True
    line = filter + ((hash >> 32) * lines >> 32) * LINE
    bits = hash * <uint64_t>0xC2B2AE3D27D4EB4F
    for i in range(PROBES):
        bit = <uint32_t>(bits >> (10 + 9 * i)) & 511
        if not line[bit >> 3] & (1 << (bit & 7)):
            return False
    return True

cdef extern from *:
    """
    static inline void nokv_filter_ask_for(const uint8_t* filter, uint64_t lines, uint64_t hash) {
        if (lines) __builtin_prefetch(filter + ((hash >> 32) * lines >> 32) * 64, 0, 3);
    }
    """
    void filter_ask_for "nokv_filter_ask_for"(const uint8_t* filter, uint64_t lines, uint64_t hash) noexcept nogil
