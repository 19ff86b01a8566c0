"""Decoded blocks in memory, bounded in bytes, counted references, least recently used goes first. Any thread, no GIL needed."""

from libc.stdint cimport uint8_t, uint64_t

cdef struct CacheData

cdef struct CachedBlock:
    CacheData* cache
    uint64_t table_id
    uint64_t offset
    uint8_t* data
    size_t size
    int references
    bint listed                         # the cache itself counts as one of the references
    CachedBlock* hash_next
    CachedBlock* newer
    CachedBlock* older

cdef CachedBlock* cache_find(CacheData* cache, uint64_t table_id, uint64_t offset) noexcept nogil
cdef CachedBlock* cache_add(CacheData* cache, uint64_t table_id, uint64_t offset, uint8_t* data, size_t size) noexcept nogil
cdef void cache_forget(CacheData* cache, uint64_t table_id) noexcept nogil
cdef uint64_t cache_new_id(CacheData* cache) noexcept nogil
cdef void release_block(CachedBlock* block) noexcept nogil      # NULL is fine

cdef class BlockCache:
    cdef CacheData* data
