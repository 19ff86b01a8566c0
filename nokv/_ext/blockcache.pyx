"""Decoded blocks in memory: a hash table and a list from newest to oldest under one mutex.

The mutex guards a few pointer moves and is never held across a call that may want the GIL. Who holds a reference may read
the block; the last one to let go frees it. When the bytes in the table exceed the bound, the oldest leave the table (readers that
still hold them keep them alive). A table's blocks are keyed by an id that is never used twice within one cache.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)

cdef enum:
    BUCKETS = 4096                      # a power of two

cdef struct CacheData:
    pthread_mutex_t mutex
    CachedBlock* buckets[BUCKETS]
    CachedBlock* newest
    CachedBlock* oldest
    size_t used
    size_t capacity
    uint64_t last_id
    uint64_t hits
    uint64_t misses


cdef inline size_t bucket_of(uint64_t table_id, uint64_t offset) noexcept nogil:
    cdef uint64_t h = (table_id * <uint64_t>0x9E3779B97F4A7C15) ^ (offset * <uint64_t>0xD6E8FEB86659FD93)
    return <size_t>((h ^ (h >> 32)) & (BUCKETS - 1))


cdef void unlink(CacheData* cache, CachedBlock* block) noexcept nogil:
    if block.newer != NULL:
        block.newer.older = block.older
    else:
        cache.newest = block.older
    if block.older != NULL:
        block.older.newer = block.newer
    else:
        cache.oldest = block.newer
    block.newer = block.older = NULL


cdef void link_newest(CacheData* cache, CachedBlock* block) noexcept nogil:
    block.newer = NULL
    block.older = cache.newest
    if cache.newest != NULL:
        cache.newest.newer = block
    cache.newest = block
    if cache.oldest == NULL:
        cache.oldest = block


cdef void drop(CacheData* cache, CachedBlock* block) noexcept nogil:
    """Out of the table; the mutex is held."""
    cdef CachedBlock** slot = &cache.buckets[bucket_of(block.table_id, block.offset)]
    while slot[0] != block:
        slot = &slot[0].hash_next
    slot[0] = block.hash_next
    unlink(cache, block)
    block.listed = False
    cache.used -= block.size + sizeof(CachedBlock)
    let_go(block)


cdef inline void let_go(CachedBlock* block) noexcept nogil:
    """The mutex is held."""
    block.references -= 1
    if block.references == 0:
        free(block.data)
        free(block)


cdef inline CachedBlock* lookup(CacheData* cache, uint64_t table_id, uint64_t offset) noexcept nogil:
    cdef CachedBlock* block = cache.buckets[bucket_of(table_id, offset)]
    while block != NULL and (block.table_id != table_id or block.offset != offset):
        block = block.hash_next
    return block


cdef CachedBlock* cache_find(CacheData* cache, uint64_t table_id, uint64_t offset) noexcept nogil:
    """The block with one more reference, or NULL."""
    pthread_mutex_lock(&cache.mutex)
    cdef CachedBlock* block = lookup(cache, table_id, offset)
    if block == NULL:
        cache.misses += 1
    else:
        cache.hits += 1
        block.references += 1
        if block.newer != NULL:
            unlink(cache, block)
            link_newest(cache, block)
    pthread_mutex_unlock(&cache.mutex)
    return block


cdef CachedBlock* cache_add(CacheData* cache, uint64_t table_id, uint64_t offset, uint8_t* data,
                            size_t size) noexcept nogil:
    """Takes over `data` (from malloc), also on failure. The block with a reference for the caller; NULL: no memory."""
    cdef CachedBlock* block
    cdef size_t place
    cdef CachedBlock* made = <CachedBlock*>malloc(sizeof(CachedBlock))
    if made == NULL:
        free(data)
        return NULL
    made.cache = cache
    made.table_id = table_id
    made.offset = offset
    made.data = data
    made.size = size
    made.references = 2
    made.listed = True
    pthread_mutex_lock(&cache.mutex)
    block = lookup(cache, table_id, offset)
    if block != NULL:                   # another thread was first
        block.references += 1
        pthread_mutex_unlock(&cache.mutex)
        free(data)
        free(made)
        return block
    place = bucket_of(table_id, offset)
    made.hash_next = cache.buckets[place]
    cache.buckets[place] = made
    link_newest(cache, made)
    cache.used += size + sizeof(CachedBlock)
    while cache.used > cache.capacity and cache.oldest != NULL:
        drop(cache, cache.oldest)       # at last `made` itself: then only the caller holds it
    pthread_mutex_unlock(&cache.mutex)
    return made


cdef void cache_forget(CacheData* cache, uint64_t table_id) noexcept nogil:
    """The table is closed: its blocks leave."""
    cdef CachedBlock* block
    cdef CachedBlock* older
    pthread_mutex_lock(&cache.mutex)
    block = cache.newest
    while block != NULL:
        older = block.older
        if block.table_id == table_id:
            drop(cache, block)
        block = older
    pthread_mutex_unlock(&cache.mutex)


cdef uint64_t cache_new_id(CacheData* cache) noexcept nogil:
    pthread_mutex_lock(&cache.mutex)
    cache.last_id += 1
    cdef uint64_t given = cache.last_id
    pthread_mutex_unlock(&cache.mutex)
    return given


cdef void release_block(CachedBlock* block) noexcept nogil:
    if block == NULL:
        return
    cdef CacheData* cache = block.cache
    pthread_mutex_lock(&cache.mutex)
    let_go(block)
    pthread_mutex_unlock(&cache.mutex)


cdef class BlockCache:
    """At most `capacity_bytes` of decoded blocks. One per directory; every Table that uses it keeps it alive."""

    def __cinit__(self, size_t capacity_bytes=32 << 20):
        self.data = <CacheData*>calloc(1, sizeof(CacheData))
        if self.data == NULL:
            raise MemoryError
        pthread_mutex_init(&self.data.mutex, NULL)
        self.data.capacity = capacity_bytes

    def __dealloc__(self):
        if self.data == NULL:
            return
        while self.data.oldest != NULL:
            drop(self.data, self.data.oldest)
        pthread_mutex_destroy(&self.data.mutex)
        free(self.data)

    def stats(self):
        """{"used_bytes", "capacity_bytes", "hits", "misses"}"""
        pthread_mutex_lock(&self.data.mutex)
        cdef size_t used = self.data.used
        cdef uint64_t hits = self.data.hits
        cdef uint64_t misses = self.data.misses
        pthread_mutex_unlock(&self.data.mutex)
        return {"used_bytes": used, "capacity_bytes": self.data.capacity, "hits": hits, "misses": misses}
