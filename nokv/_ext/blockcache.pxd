"""Decoded blocks in memory, bounded in bytes, counted references, those not used lately go first. Any thread, no GIL needed."""

from libc.stdint cimport uint8_t

cdef struct CacheData

cdef struct CachedBlock:                # its bytes follow it
    CacheData* cache
    CachedBlock** home                  # where its table keeps it: NULL once it has left the cache
    size_t size
    int references                      # the cache itself counts as one
    bint touched                        # used since it was last looked at
    CachedBlock* newer
    CachedBlock* older

cdef inline uint8_t* block_data(CachedBlock* block) noexcept nogil:
    return <uint8_t*>block + sizeof(CachedBlock)

cdef CachedBlock* new_block(size_t size) noexcept nogil         # to be filled, then cache_add or free; NULL: no memory
cdef CachedBlock* cache_find(CacheData* cache, CachedBlock** home) noexcept nogil
cdef CachedBlock* cache_add(CacheData* cache, CachedBlock** home, CachedBlock* made) noexcept nogil
cdef void cache_forget(CacheData* cache, CachedBlock** homes, size_t count) noexcept nogil
cdef void release_block(CachedBlock* block) noexcept nogil      # NULL is fine

cdef class BlockCache:
    cdef CacheData* data
