"""Walking a table: a Cursor over its blocks. Key and value are where the block has them: nothing is copied."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.block cimport BlockRoom, TableData
from nokv._ext.blockcache cimport CachedBlock
from nokv._ext.cursor cimport Cursor

cdef struct TableCursor:
    Cursor base
    TableData* table
    CachedBlock* block                  # NULL: it stands in none
    uint32_t number                     # of `block`
    uint32_t ordinal                    # of the current entry in it
    const uint8_t* entry
    const uint8_t* end
    bint cached
    bint asked                          # `asked_number` is what find_block says for the seek to come
    uint32_t asked_number
    uint64_t passed                     # if not cached: the file's pages before this have been let go of
    BlockRoom room                      # if not cached: where `block` is

# NULL: no memory. `cached`: the blocks come from the cache and go there, and whoever uses the cursor holds the GIL. Else it may be
# used without the GIL, as what reads everything once does: it has memory for one block and leaves the cache alone.
cdef Cursor* table_cursor(TableData* t, bint cached) noexcept nogil
cdef void table_cursor_reset(Cursor* c, TableData* t) noexcept nogil    # walk another table with the same cursor

# The block that holds the first entry >= prefix || trailer, if any does (it may also begin the next one); t.blocks: none.
cdef uint32_t find_block(const TableData* t, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil

cdef inline uint64_t head_of(const uint8_t* key, size_t size) noexcept nogil:
    cdef uint64_t head = 0
    cdef size_t i
    for i in range(8):
        head = (head << 8) | (key[i] if i < size else 0)
    return head

cdef void fail(TableCursor* tc, int status) noexcept nogil
cdef void bad_entry(TableCursor* tc, const char* reason) noexcept nogil
