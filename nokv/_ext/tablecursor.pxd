"""Walking a table: a Cursor over its blocks."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from nokv._ext.block cimport BlockView, TableData
from nokv._ext.cursor cimport Cursor, Slice, TRAILER_SIZE, compare_bytes

cdef struct TableCursor:
    Cursor base
    TableData* table
    BlockView view
    bint loaded
    uint32_t block
    size_t offset                       # of the current entry in the block
    size_t next_offset
    uint8_t* key
    size_t key_size
    size_t key_room
    bint key_on_heap

cdef Cursor* table_cursor(TableData* t) noexcept nogil          # NULL: no memory
cdef void table_cursor_reset(Cursor* c, TableData* t) noexcept nogil    # walk another table with the same cursor

# For point reads, with a TableCursor of their own. What returns False has set valid and status.
cdef inline void fail(TableCursor* tc, int status) noexcept nogil:
    tc.base.valid = False
    tc.base.status = status

cdef inline int compare_target(Slice key, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil:
    cdef int order = compare_bytes(key.data, key.size - TRAILER_SIZE, prefix, size)
    if order != 0:
        return order
    return memcmp(key.data + key.size - TRAILER_SIZE, trailer, TRAILER_SIZE)

cdef inline uint64_t head_of(const uint8_t* key, size_t size) noexcept nogil:
    cdef uint64_t head = 0
    cdef size_t i
    for i in range(8):
        head = (head << 8) | (key[i] if i < size else 0)
    return head

cdef void bad_entry(TableCursor* tc, const char* reason) noexcept nogil
cdef void unload(TableCursor* tc) noexcept nogil
cdef bint enter_block(TableCursor* tc, uint32_t block) noexcept nogil
cdef bint read_entry(TableCursor* tc, size_t offset) noexcept nogil
cdef void step(TableCursor* tc) noexcept nogil
cdef void seek_to(TableCursor* tc, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil
