"""How keys are laid out and how everything that can be walked is walked. Shared by memtable, table, merge and db.

Internal key = family (1 byte) || user key || trailer (8 bytes, big-endian, of ~(sequence << 8 | kind)).
Order: (family || user key) by memcmp, then trailer by memcmp, so that of one key the newest version comes first.
A sequence is 56 bits. Kinds never change once released:

    0 delete          no value
    1 put             the user's value
    2 expiring put    expiry (8 bytes, little-endian, Unix ms) || the user's value
    3 range delete    in logs only: the key is the first deleted one, the value the end (family || user key)
    4 reference       where the value lies in a value file
    5 expiring reference   expiry || reference

Whether an entry is a value is decided by `live_value` and nowhere else.

A Cursor is a struct of function pointers over some implementation. Its owner (a Python object) keeps alive what it walks.
All functions are `noexcept nogil`; a failure sets `status` and clears `valid`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t nokv_load_big_endian(const void* p) {
        uint64_t n;
        memcpy(&n, p, 8);
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        n = __builtin_bswap64(n);
    #endif
        return n;
    }
    static inline void nokv_store_big_endian(void* p, uint64_t n) {
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        n = __builtin_bswap64(n);
    #endif
        memcpy(p, &n, 8);
    }
    """
    uint64_t nokv_load_big_endian(const void* p) noexcept nogil
    void nokv_store_big_endian(void* p, uint64_t n) noexcept nogil

cdef enum:
    KIND_DELETE = 0
    KIND_PUT = 1
    KIND_EXPIRING_PUT = 2
    KIND_RANGE_DELETE = 3
    KIND_REFERENCE = 4
    KIND_EXPIRING_REFERENCE = 5
    KIND_LAST = 5               # a reader refuses what lies above
    EXPIRY_SIZE = 8
    TRAILER_SIZE = 8

cdef enum:
    ASK_STEPS = 4

cdef enum CursorStatus:
    CURSOR_OK = 0
    CURSOR_CORRUPT = -1
    CURSOR_NO_MEMORY = -2
    CURSOR_IO = -3

cdef struct Slice:
    const uint8_t* data
    size_t size

cdef struct Cursor:
    void* impl
    const CursorOps* ops
    bint valid                  # positioned on an entry: `key` and `value` may be read until the next move
    int status                  # CursorStatus; sticky
    Slice key                   # internal key
    Slice value

cdef struct CursorOps:
    void (*seek_first)(Cursor* self) noexcept nogil
    void (*seek_last)(Cursor* self) noexcept nogil
    void (*seek)(Cursor* self, Slice internal_key) noexcept nogil       # first entry >= internal_key
    void (*next)(Cursor* self) noexcept nogil                           # only if valid
    void (*prev)(Cursor* self) noexcept nogil                           # only if valid
    void (*rest)(Cursor* self) noexcept nogil                           # let go of what it has loaded; the next move is a seek
    void (*destroy)(Cursor* self) noexcept nogil                        # frees impl and the Cursor itself
    # May be NULL. Asks for memory that a seek of internal_key looks at: ASK_STEPS calls, each of which looks at what the one before it
    # asked for; then comes that seek, and the GIL is not let go of between them, if the cursor needs it. So the cache misses of several
    # cursors overlap.
    void (*ask)(Cursor* self, Slice internal_key, int step) noexcept nogil
    # May be NULL. No entry with low <= family || user key < high had a greater sequence when the cursor was made.
    uint64_t (*newest)(Cursor* self, Slice low, Slice high) noexcept nogil

cdef inline int compare_bytes(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, a_size if a_size < b_size else b_size)
    if order != 0:
        return order
    return -1 if a_size < b_size else (1 if a_size > b_size else 0)

cdef inline int compare_internal(Slice a, Slice b) noexcept nogil:
    cdef int order = compare_bytes(a.data, a.size - TRAILER_SIZE, b.data, b.size - TRAILER_SIZE)
    if order != 0:
        return order
    return memcmp(a.data + a.size - TRAILER_SIZE, b.data + b.size - TRAILER_SIZE, TRAILER_SIZE)

cdef inline uint64_t key_head(const uint8_t* key, size_t size) noexcept nogil:
    """The first eight bytes of a key, zeros where it is shorter, as a big-endian number. A trailer follows the key."""
    cdef uint64_t head = nokv_load_big_endian(key)
    if size < 8:
        head = 0 if size == 0 else head >> (64 - 8 * size) << (64 - 8 * size)
    return head

cdef inline void put_trailer(uint8_t* out, uint64_t sequence, int kind) noexcept nogil:
    nokv_store_big_endian(out, ~((sequence << 8) | <uint64_t>kind))

cdef inline uint64_t read_trailer(const uint8_t* trailer) noexcept nogil:
    """sequence << 8 | kind"""
    return ~nokv_load_big_endian(trailer)

cdef inline bint kind_is_value(int kind) noexcept nogil:
    """Does an entry of this kind give its key a value (until it expires, if it does)?"""
    return kind == KIND_PUT or (kind != KIND_DELETE and kind != KIND_RANGE_DELETE and kind <= KIND_LAST)

cdef inline bint kind_expires(int kind) noexcept nogil:
    return kind == KIND_EXPIRING_PUT or kind == KIND_EXPIRING_REFERENCE

cdef inline bint kind_is_reference(int kind) noexcept nogil:
    return kind == KIND_REFERENCE or kind == KIND_EXPIRING_REFERENCE

cdef inline uint64_t read_expiry(const uint8_t* value) noexcept nogil:
    """The first EXPIRY_SIZE bytes of an expiring value: the Unix millisecond from which on it is absent."""
    cdef uint64_t expiry = 0
    cdef int i
    for i in range(EXPIRY_SIZE):
        expiry |= <uint64_t>value[i] << (8 * i)
    return expiry

cdef inline bint entry_is_sound(int kind, size_t value_size) noexcept nogil:
    """May a table hold an entry of this kind, with a stored value of this size?"""
    return kind == KIND_DELETE or (kind_is_value(kind) and (not kind_expires(kind) or value_size >= EXPIRY_SIZE))

cdef inline int live_value(int kind, Slice* value, uint64_t now_ms) noexcept nogil:
    """What a stored entry is to a reader at `now_ms` (looked at for expiring kinds only): 1 a value, and `value` is now without
    its expiry (what is left of kinds 4 and 5 is a reference); 0 absent: deleted or expired; CURSOR_CORRUPT."""
    if kind == KIND_PUT or kind == KIND_REFERENCE:
        return 1
    if kind == KIND_DELETE:
        return 0
    if not kind_expires(kind) or value.size < EXPIRY_SIZE:
        return CURSOR_CORRUPT
    if read_expiry(value.data) <= now_ms:
        return 0
    value.data += EXPIRY_SIZE
    value.size -= EXPIRY_SIZE
    return 1
