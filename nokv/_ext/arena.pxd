from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    CHUNK_BYTES = 2097152           # what a pool keeps: one huge page
    CHUNK_HEADER = 16
    SPARES_MAX = 3

cdef struct Chunk:                  # CHUNK_HEADER bytes, then memory to hand out
    Chunk* next
    uint64_t size                   # of all of it

cdef struct Pool:
    Chunk* free
    uint64_t free_bytes
    uint64_t limit
    uint64_t memtable_bytes
    uint64_t taken                  # by the memtable that is being written
    Chunk* spares[SPARES_MAX]       # ready and fresh; each place is swapped atomically
    uint64_t fresh                  # chunks of CHUNK_BYTES that came from the system
    uint64_t reused                 # chunks of CHUNK_BYTES that came from a memtable before
    Py_ssize_t users

cdef class ArenaPool:
    cdef Pool* pool

# Under the GIL, all of them: it is the pool's lock. `pool` may be NULL.
cdef Chunk* chunk_take(Pool* pool, uint64_t size) noexcept nogil                # NULL: no memory
cdef bint chunk_keep(Pool* pool, Chunk* chunk) noexcept nogil                   # False: the pool has enough, free it
cdef void chunks_free(Chunk* chunk) noexcept nogil                              # and all that follow it; without the GIL, for it takes time
cdef void* zeros_take(Pool* pool, uint64_t size) noexcept nogil                 # NULL: no memory
cdef bint pool_has_chunk(Pool* pool) noexcept nogil                             # that need not be asked for from the system
cdef void pool_fill(Pool* pool) noexcept nogil                                  # without the GIL
cdef void zeros_give(Pool* pool, void* memory, uint64_t size) noexcept nogil
cdef Pool* pool_retain(Pool* pool) noexcept nogil
cdef void pool_release(Pool* pool) noexcept nogil
