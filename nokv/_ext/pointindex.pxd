"""Point reads of a table. The caller holds the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.block cimport TableData
from nokv._ext.blockcache cimport CachedBlock, release_block
from nokv._ext.cursor cimport Slice

# Newest entry of `prefix` (family || user key) with a sequence <= `sequence`: 1 found, 0 absent, < 0 CursorStatus.
# `hash` is filter_hash(prefix). If *pin comes back not NULL, `value` points into it: release_block(pin) when done; else
# `value` is valid as long as the table.
cdef int table_get(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                   Slice* value, int* kind, CachedBlock** pin) noexcept nogil

cdef struct Hint:                       # one point read of several that are made together
    TableData* table
    uint64_t hash
    uint32_t position                   # 0: the point index does not know the key
    CachedBlock* pin

# Three passes over several reads, each of which asks for the memory that the next one looks at. The caller holds the GIL and then
# reads with table_get; hint_done lets go.
cdef void hint_start(Hint* hint, TableData* t, uint64_t hash) noexcept nogil
cdef void hint_place(Hint* hint) noexcept nogil
cdef void hint_block(Hint* hint) noexcept nogil
cdef void hint_entry(Hint* hint) noexcept nogil
cdef inline void hint_done(Hint* hint) noexcept nogil:
    release_block(hint.pin)
