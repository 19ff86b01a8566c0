"""Expanded blocks in memory, bounded in bytes; those not used lately go first.

The GIL is the lock: whoever calls anything in here holds it. What walks tables without the GIL keeps a block of its own
(see tablecursor.pxd).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

cdef extern from *:
    """
    #include <assert.h>
    #define nokv_assert_gil() assert(PyGILState_Check())
    static inline void nokv_ask_for(const void* p) { __builtin_prefetch(p, 0, 3); }
    """
    void nokv_assert_gil() noexcept nogil
    void nokv_ask_for(const void* p) noexcept nogil

cdef enum:
    PREFIX_KEPT = 16

cdef struct CachedBlock:                # places and entries follow it (see block.pxd); one cache line
    Home* home                          # where its table keeps it: NULL if it is not, or no longer, in the cache
    CachedBlock* newer
    CachedBlock* older
    uint64_t size                       # bytes of all of it
    uint32_t references                 # the cache itself counts as one
    uint32_t count                      # of entries
    uint32_t end                        # where the entries end, from the start of this struct
    uint32_t common                     # bytes that all its keys begin with
    uint8_t[PREFIX_KEPT] prefix         # the first ones of them

cdef struct Home:                       # of a block of a table
    CachedBlock* block                  # NULL: not in the cache
    uint32_t end                        # of the block that was in the cache last
    bint touched                        # used since it was last looked at

cdef struct CacheData:
    CachedBlock* newest
    CachedBlock* oldest
    CachedBlock* limbo                  # has left, and may still be borrowed: goes when the next block comes
    size_t used
    size_t capacity
    uint64_t hits
    uint64_t misses

cdef inline CachedBlock* cache_find(CacheData* cache, Home* home) noexcept nogil:
    """The block or NULL. Borrowed: good until the GIL is let go or another block is loaded; hold_block makes it last."""
    nokv_assert_gil()
    if home.block == NULL:
        cache.misses += 1
        return NULL
    cache.hits += 1
    if not home.touched:
        home.touched = True
    return home.block

cdef inline void hold_block(CachedBlock* block) noexcept nogil:         # NULL is fine
    if block != NULL:
        nokv_assert_gil()
        block.references += 1

cdef inline void release_block(CachedBlock* block) noexcept nogil:      # NULL is fine
    if block != NULL:
        nokv_assert_gil()
        block.references -= 1
        if block.references == 0:
            free(block)

# Takes over `made`, made with malloc, and returns, borrowed, the block at `home`: another one if another thread was first.
cdef CachedBlock* cache_add(CacheData* cache, Home* home, CachedBlock* made) noexcept nogil
cdef void cache_forget(CacheData* cache, Home* homes, size_t count) noexcept nogil

cdef class BlockCache:
    cdef CacheData* data
