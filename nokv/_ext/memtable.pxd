from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.cursor cimport Cursor, Slice
from nokv._ext.skiplist cimport Table

cdef class MemTable:
    cdef Table t
    cdef public uint64_t first_segment      # the oldest WAL segment that holds a record of this table
    cdef int add(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, const uint8_t* value,
                 size_t value_size, uint64_t newest_snapshot) noexcept nogil
    cdef int add_hashed(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, uint64_t hash,
                        const uint8_t* value, size_t value_size, uint64_t newest_snapshot) noexcept nogil
    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value,
                 int* kind) noexcept nogil
    cdef int add_range(self, uint64_t sequence, Slice start, Slice end, const uint64_t* snapshots, size_t snapshot_count) noexcept nogil
    cdef uint64_t cover(self, const uint8_t* prefix, size_t prefix_size, uint64_t sequence) noexcept nogil
    cdef void wait_settled(self) noexcept
    cdef int settle(self) except -1
    cdef Cursor* cursor(self) noexcept nogil
    cdef Cursor* flush_cursor(self) except NULL

cdef uint64_t hash_prefix(const uint8_t* p, size_t n) noexcept nogil
cdef void prefetch_slot(Table* t, uint64_t hash) noexcept nogil
cdef void prefetch_node(Table* t, uint64_t hash) noexcept nogil         # what its slot, prefetched before, points to
