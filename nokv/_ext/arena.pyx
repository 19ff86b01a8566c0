"""Memory for memtables, in chunks, which a pool keeps for the next memtable.

A chunk is aligned to a huge page: few page faults while it is filled, few TLB misses while it is searched. The kernel clears what it
gives out, on the thread that touches it first, and that is as dear as the writes themselves: so a memtable that is freed leaves its
chunks to a pool, up to the pool's limit, and `prepare` lets a background thread be the one who touches fresh ones first.

Owns: chunks between two memtables. Does not own: what is in them (memtable.pyx), how much a pool may keep, when it is emptied
(nokv/engine/). Threads: the GIL is the lock, for everything; `prepare` gives it up while it waits for the kernel.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #endif
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
    #define ASAN_UNPOISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
    #endif
    static inline void nokv_poison(void* p, size_t size) { ASAN_POISON_MEMORY_REGION(p, size); }
    static inline void nokv_unpoison(void* p, size_t size) { ASAN_UNPOISON_MEMORY_REGION(p, size); }
    #define NOKV_HUGE ((size_t)2 << 20)
    #if defined(__linux__)
    /* Zeros. Not from malloc: what is freed there may stay with the process, and what comes from there may not be zero. */
    #define NOKV_ROUND(size) (((size) + 65535) & ~(size_t)65535)     /* to a multiple of every page size there is */
    static void* nokv_block_new(size_t size) {
        char* p;
        size_t before;
        if (size > (size_t)-1 - 2 * NOKV_HUGE) return NULL;
        size = NOKV_ROUND(size);
        p = mmap(NULL, size + NOKV_HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return NULL;
        before = (NOKV_HUGE - ((size_t)p & (NOKV_HUGE - 1))) & (NOKV_HUGE - 1);
        if (before) munmap(p, before);
        p += before;
        munmap(p + size, NOKV_HUGE - before);
        madvise(p, size, MADV_HUGEPAGE);
        return p;
    }
    static void nokv_block_free(void* p, size_t size) { munmap(p, NOKV_ROUND(size)); }
    static void nokv_block_populate(void* p, size_t size) { (void)madvise(p, size, MADV_POPULATE_WRITE); }
    #else
    static void* nokv_block_new(size_t size) {
        void* p = NULL;
        if (posix_memalign(&p, NOKV_HUGE, size) != 0) return NULL;
        memset(p, 0, size);
        return p;
    }
    static void nokv_block_free(void* p, size_t size) { (void)size; free(p); }
    static void nokv_block_populate(void* p, size_t size) { (void)p; (void)size; }
    #endif
    """
    void nokv_poison(void* p, size_t size) noexcept nogil
    void nokv_unpoison(void* p, size_t size) noexcept nogil
    void* nokv_block_new(size_t size) noexcept nogil
    void nokv_block_free(void* p, size_t size) noexcept nogil
    void nokv_block_populate(void* p, size_t size) noexcept nogil

ARENA_CHUNK_BYTES = CHUNK_BYTES

cdef enum:
    BLOCK_MIN = 262144              # below this, malloc


cdef Chunk* _fresh(uint64_t size) noexcept nogil:
    cdef Chunk* chunk = <Chunk*>(malloc(size) if size < BLOCK_MIN else nokv_block_new(size))
    if chunk != NULL:
        chunk.size = size
    return chunk


cdef void _free(Chunk* chunk) noexcept nogil:
    if chunk.size < BLOCK_MIN:
        free(chunk)
    else:
        nokv_block_free(chunk, chunk.size)


cdef Chunk* chunk_take(Pool* pool, uint64_t size) noexcept nogil:
    cdef Chunk* chunk
    if pool == NULL or size != CHUNK_BYTES:
        return _fresh(size)
    chunk = pool.free
    if chunk == NULL:
        chunk = _fresh(size)
        if chunk != NULL:
            pool.fresh += 1
        return chunk
    nokv_unpoison(chunk, CHUNK_BYTES)
    pool.free = chunk.next
    pool.free_bytes -= CHUNK_BYTES
    pool.reused += 1
    return chunk


cdef void chunk_give(Pool* pool, Chunk* chunk) noexcept nogil:
    if pool == NULL or chunk.size != CHUNK_BYTES or pool.free_bytes + CHUNK_BYTES > pool.limit:
        _free(chunk)
        return
    chunk.next = pool.free
    pool.free = chunk
    pool.free_bytes += CHUNK_BYTES
    nokv_poison(<uint8_t*>chunk + CHUNK_HEADER, CHUNK_BYTES - CHUNK_HEADER)


cdef void* zeros_take(Pool* pool, uint64_t size) noexcept nogil:
    cdef void* memory
    if size == CHUNK_BYTES and pool != NULL and pool.free != NULL:
        memory = chunk_take(pool, size)
        memset(memory, 0, size)
        return memory
    return calloc(size, 1) if size < BLOCK_MIN else nokv_block_new(size)


cdef void zeros_give(Pool* pool, void* memory, uint64_t size) noexcept nogil:
    cdef Chunk* chunk = <Chunk*>memory
    if size < BLOCK_MIN:
        free(memory)
    else:
        chunk.size = size
        chunk_give(pool, chunk)


cdef void _trim(Pool* pool) noexcept nogil:
    cdef Chunk* chunk
    while pool.free != NULL:
        chunk = pool.free
        nokv_unpoison(chunk, CHUNK_BYTES)
        pool.free = chunk.next
        _free(chunk)
    pool.free_bytes = 0


cdef Pool* pool_retain(Pool* pool) noexcept nogil:
    if pool != NULL:
        pool.users += 1
    return pool


cdef void pool_release(Pool* pool) noexcept nogil:
    if pool == NULL:
        return
    pool.users -= 1
    if pool.users == 0:
        _trim(pool)
        free(pool)


cdef class ArenaPool:
    """Keeps at most `limit_bytes` of chunks that no memtable uses. Memtables that are freed after `close` leave nothing."""

    def __cinit__(self, uint64_t limit_bytes):
        self.pool = <Pool*>calloc(1, sizeof(Pool))
        if self.pool == NULL:
            raise MemoryError()
        self.pool.users = 1
        self.pool.limit = limit_bytes

    def __dealloc__(self):
        if self.pool != NULL:
            self.pool.limit = 0
            pool_release(self.pool)

    def prepare(self, uint64_t chunks):
        """Have so many chunks ready, in memory already, or as many as the limit allows: a background step."""
        cdef Pool* pool = self.pool
        cdef Chunk* chunk
        while pool.free_bytes < chunks * CHUNK_BYTES and pool.free_bytes + CHUNK_BYTES <= pool.limit:
            with nogil:
                chunk = _fresh(CHUNK_BYTES)
                if chunk != NULL:
                    nokv_block_populate(chunk, CHUNK_BYTES)
            if chunk == NULL:
                return                  # whoever needs one will say so
            pool.fresh += 1
            chunk_give(pool, chunk)     # the limit may have changed: then it is freed

    def trim(self):
        """Give back what no memtable uses."""
        _trim(self.pool)

    def close(self):
        self.pool.limit = 0
        _trim(self.pool)

    def stats(self):
        return {"free_bytes": self.pool.free_bytes, "limit_bytes": self.pool.limit, "fresh_chunks": self.pool.fresh,
                "reused_chunks": self.pool.reused}
