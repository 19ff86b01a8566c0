"""Point reads of a table. The caller holds the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.block cimport TableData
from nokv._ext.blockcache cimport CachedBlock
from nokv._ext.cursor cimport Slice

# Newest entry of `prefix` (family || user key) with a sequence <= `sequence`: 1 found, 0 absent, < 0 CursorStatus.
# `hash` is filter_hash(prefix). `value` lies in *pin, which is borrowed: copy it before the GIL is let go or the next read is made,
# or call hold_block(*pin).
cdef int table_get(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                   Slice* value, int* kind, CachedBlock** pin) noexcept nogil

cdef struct Hint:                       # one point read of several that are made together
    TableData* table
    uint64_t hash

# Two passes over several reads, each of which asks for the memory that the next one looks at. Then table_get reads.
cdef void hint_start(Hint* hint, TableData* t, uint64_t hash) noexcept nogil
cdef void hint_entry(Hint* hint) noexcept nogil
