"""Expanded blocks in memory: a list from newest to oldest, guarded by the GIL.

A table keeps an array with one place (`Home`) per block: a lookup is one load, and finding a block again moves nothing. When the
bytes exceed the bound, the list is walked from its old end: a block that was used since the last walk goes to the new end (a
second chance), any other leaves.

A point read borrows a block: it copies what it found before it lets the GIL go, and so neither counts nor locks. A block that leaves
is therefore freed only when the next one comes ("limbo"), or, if a cursor holds it, by the last one to let go.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free


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


cdef void empty_limbo(CacheData* cache) noexcept nogil:
    cdef CachedBlock* block = cache.limbo
    cdef CachedBlock* following
    cache.limbo = NULL
    while block != NULL:
        following = block.older
        block.older = NULL
        release_block(block)
        block = following


cdef void leave(CacheData* cache, CachedBlock* block) noexcept nogil:
    """Out of the cache, whose reference is now the caller's."""
    block.home.block = NULL
    block.home = NULL
    unlink(cache, block)
    cache.used -= block.size


cdef CachedBlock* cache_add(CacheData* cache, Home* home, CachedBlock* made) noexcept nogil:
    cdef CachedBlock* block = home.block
    nokv_assert_gil()
    if block != NULL:
        free(made)
        return block
    empty_limbo(cache)
    made.home = home
    made.references = 1
    home.block = made
    home.end = made.end
    home.touched = False
    link_newest(cache, made)
    cache.used += made.size
    while cache.used > cache.capacity and cache.oldest != NULL:
        block = cache.oldest
        if block.home.touched:
            block.home.touched = False
            unlink(cache, block)
            link_newest(cache, block)
        else:
            leave(cache, block)         # at last `made` itself: then the caller has it until the next one comes
            block.older = cache.limbo
            cache.limbo = block
    return made


cdef void cache_forget(CacheData* cache, Home* homes, size_t count) noexcept nogil:
    """The table is closed: its blocks leave. Nobody borrows one of them, for who reads a table keeps it open."""
    cdef CachedBlock* block
    cdef size_t i
    nokv_assert_gil()
    for i in range(count):
        block = homes[i].block
        if block != NULL:
            leave(cache, block)
            release_block(block)


cdef class BlockCache:
    """At most `capacity_bytes` of expanded blocks. One per directory; every Table that uses it keeps it alive."""

    def __cinit__(self, size_t capacity_bytes=32 << 20):
        self.data = <CacheData*>calloc(1, sizeof(CacheData))
        if self.data == NULL:
            raise MemoryError
        self.data.capacity = capacity_bytes

    def __dealloc__(self):
        if self.data == NULL:
            return
        # the tables are gone, and with them every block but those in limbo
        empty_limbo(self.data)
        free(self.data)

    def stats(self):
        """{"used_bytes", "capacity_bytes", "hits", "misses"}"""
        return {
            "used_bytes": self.data.used,
            "capacity_bytes": self.data.capacity,
            "hits": self.data.hits,
            "misses": self.data.misses,
        }
