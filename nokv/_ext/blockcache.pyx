"""Decoded blocks in memory: a list from newest to oldest under one mutex.

A table keeps an array with one place (`home`) per block: a lookup is one load, and finding a block again moves nothing. When the
bytes exceed the bound, the list is walked from its old end: a block that was used since the last walk goes to the new end (a
second chance), any other leaves (readers that still hold it keep it alive; the last one to let go frees it).

The mutex guards homes, references and the list; it is never held across a call that may want the GIL.
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

cdef struct CacheData:
    pthread_mutex_t mutex
    CachedBlock* newest
    CachedBlock* oldest
    size_t used
    size_t capacity
    uint64_t hits
    uint64_t misses


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


cdef inline void let_go(CachedBlock* block) noexcept nogil:
    """The mutex is held."""
    block.references -= 1
    if block.references == 0:
        free(block)


cdef void drop(CacheData* cache, CachedBlock* block) noexcept nogil:
    """Out of the cache; the mutex is held."""
    block.home[0] = NULL
    block.home = NULL
    unlink(cache, block)
    cache.used -= block.size + sizeof(CachedBlock)
    let_go(block)


cdef CachedBlock* new_block(size_t size) noexcept nogil:
    cdef CachedBlock* block = <CachedBlock*>malloc(sizeof(CachedBlock) + size + 1)
    if block != NULL:
        block.size = size
    return block


cdef CachedBlock* cache_find(CacheData* cache, CachedBlock** home) noexcept nogil:
    """The block with one more reference, or NULL."""
    pthread_mutex_lock(&cache.mutex)
    cdef CachedBlock* block = home[0]
    if block == NULL:
        cache.misses += 1
    else:
        cache.hits += 1
        block.references += 1
        block.touched = True
    pthread_mutex_unlock(&cache.mutex)
    return block


cdef CachedBlock* cache_add(CacheData* cache, CachedBlock** home, CachedBlock* made) noexcept nogil:
    """Takes over `made`. The block at `home` with a reference for the caller: another one if another thread was first."""
    cdef CachedBlock* block
    made.cache = cache
    made.home = home
    made.references = 2
    made.touched = False
    pthread_mutex_lock(&cache.mutex)
    block = home[0]
    if block != NULL:
        block.references += 1
        pthread_mutex_unlock(&cache.mutex)
        free(made)
        return block
    home[0] = made
    link_newest(cache, made)
    cache.used += made.size + sizeof(CachedBlock)
    while cache.used > cache.capacity and cache.oldest != NULL:
        block = cache.oldest
        if block.touched:
            block.touched = False
            unlink(cache, block)
            link_newest(cache, block)
        else:
            drop(cache, block)          # at last `made` itself: then only the caller holds it
    pthread_mutex_unlock(&cache.mutex)
    return made


cdef void cache_forget(CacheData* cache, CachedBlock** homes, size_t count) noexcept nogil:
    """The table is closed: its blocks leave."""
    cdef size_t i
    pthread_mutex_lock(&cache.mutex)
    for i in range(count):
        if homes[i] != NULL:
            drop(cache, homes[i])
    pthread_mutex_unlock(&cache.mutex)


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
