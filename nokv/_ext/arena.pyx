"""Memory for memtables, in chunks, which a pool keeps for the next memtable.

The kernel clears what it gives out, on the thread that touches it first, and that is as dear as the writes themselves: so a memtable
that is freed leaves its chunks to a pool, up to the pool's limit, and `pool_fill` lets another thread (prefault.pyx) be the one who
touches fresh ones first. That thread asks for huge pages: few TLB misses while the chunk is searched. A writer that has to take fresh
memory itself does not, for the kernel may move memory about for tens of milliseconds until it has one.

Owns: chunks between two memtables. Does not own: what is in them (memtable.pyx), how much a pool may keep, when it is emptied
(nokv/engine/). Threads: the GIL is the lock, for everything but `spares`, which `pool_fill` fills without it.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from nokv._ext.gilturn cimport leave_writer, return_to_writer
from nokv._ext.scheduling cimport nokv_pass

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #include "pages.h"
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
    #define ASAN_UNPOISON_MEMORY_REGION(p, size) ((void)(p), (void)(size))
    #endif
    static inline void nokv_poison(void* p, size_t size) { ASAN_POISON_MEMORY_REGION(p, size); }
    static inline void nokv_unpoison(void* p, size_t size) { ASAN_UNPOISON_MEMORY_REGION(p, size); }
    #define nokv_get(place) __atomic_load_n(place, __ATOMIC_RELAXED)
    #define nokv_swap_chunk(place, chunk) __atomic_exchange_n(place, chunk, __ATOMIC_ACQ_REL)
    #define nokv_has_chunk(place) (__atomic_load_n(place, __ATOMIC_RELAXED) != NULL)
    #define NOKV_HUGE ((size_t)2 << 20)
    #if defined(__linux__)
    /* Zeros. Not from malloc: what is freed there may stay with the process, and what comes from there may not be zero. */
    #define NOKV_ROUND(size) (((size) + 65535) & ~(size_t)65535)     /* to a multiple of every page size there is */
    static void* nokv_block_new(size_t size, int huge) {
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
        if (huge) madvise(p, size, MADV_HUGEPAGE);
        return p;
    }
    static void nokv_block_free(void* p, size_t size) { munmap(p, NOKV_ROUND(size)); }
    #else
    static void* nokv_block_new(size_t size, int huge) {
        void* p = NULL;
        (void)huge;
        if (posix_memalign(&p, NOKV_HUGE, size) != 0) return NULL;
        memset(p, 0, size);
        return p;
    }
    static void nokv_block_free(void* p, size_t size) { (void)size; free(p); }
    #endif
    """
    void nokv_poison(void* p, size_t size) noexcept nogil
    void nokv_unpoison(void* p, size_t size) noexcept nogil
    void* nokv_block_new(size_t size, int huge) noexcept nogil
    void nokv_block_free(void* p, size_t size) noexcept nogil
    void nokv_populate(void* p, size_t size) noexcept nogil
    uint64_t nokv_get(const uint64_t* place) noexcept nogil
    Chunk* nokv_swap_chunk(Chunk** place, Chunk* chunk) noexcept nogil
    bint nokv_has_chunk(Chunk** place) noexcept nogil

ARENA_CHUNK_BYTES = CHUNK_BYTES

cdef enum:
    BLOCK_MIN = 262144              # below this, malloc


cdef Chunk* _fresh(uint64_t size, bint huge=False) noexcept nogil:
    cdef Chunk* chunk = <Chunk*>(malloc(size) if size < BLOCK_MIN else nokv_block_new(size, huge))
    if chunk != NULL:
        chunk.size = size
    return chunk


cdef void _free(Chunk* chunk) noexcept nogil:
    if chunk.size < BLOCK_MIN:
        free(chunk)
    else:
        nokv_block_free(chunk, chunk.size)


cdef uint64_t _spare_bytes(Pool* pool) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(SPARES_MAX):
        total += CHUNK_BYTES if nokv_has_chunk(&pool.spares[i]) else 0
    return total


cdef Chunk* _spare(Pool* pool) noexcept nogil:
    """Zeros, but for the chunk's own header; or NULL."""
    cdef Chunk* chunk = NULL
    cdef int i
    for i in range(SPARES_MAX):
        if chunk == NULL:
            chunk = nokv_swap_chunk(&pool.spares[i], NULL)
    return chunk


cdef bint pool_has_chunk(Pool* pool) noexcept nogil:
    return pool.free != NULL or _spare_bytes(pool) != 0


cdef Chunk* chunk_take(Pool* pool, uint64_t size) noexcept nogil:
    cdef Chunk* chunk
    if pool == NULL or size != CHUNK_BYTES:
        return _fresh(size)
    chunk = pool.free
    if chunk == NULL:
        chunk = _spare(pool)
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


cdef bint chunk_keep(Pool* pool, Chunk* chunk) noexcept nogil:
    if pool == NULL or chunk.size != CHUNK_BYTES or pool.free_bytes + _spare_bytes(pool) + CHUNK_BYTES > pool.limit:
        return False
    chunk.next = pool.free
    pool.free = chunk
    pool.free_bytes += CHUNK_BYTES
    nokv_poison(<uint8_t*>chunk + CHUNK_HEADER, CHUNK_BYTES - CHUNK_HEADER)
    return True


cdef void chunks_free(Chunk* chunk) noexcept nogil:
    cdef Chunk* following
    while chunk != NULL:
        following = chunk.next
        _free(chunk)
        nokv_pass()
        chunk = following


cdef void* zeros_take(Pool* pool, uint64_t size) noexcept nogil:
    cdef void* memory
    if size == CHUNK_BYTES and pool != NULL:
        memory = _spare(pool)
        if memory != NULL:
            pool.fresh += 1
            memset(memory, 0, CHUNK_HEADER)
            return memory
        if pool.free != NULL:
            memory = chunk_take(pool, size)
            memset(memory, 0, size)
            return memory
    return calloc(size, 1) if size < BLOCK_MIN else nokv_block_new(size, False)


cdef void zeros_give(Pool* pool, void* memory, uint64_t size) noexcept nogil:
    cdef Chunk* chunk = <Chunk*>memory
    if size < BLOCK_MIN:
        free(memory)
    else:
        chunk.size = size
        if not chunk_keep(pool, chunk):
            _free(chunk)


cdef void pool_fill(Pool* pool) noexcept nogil:
    """Have the chunks ready, in memory already, that the memtable being written will ask for next, and the next one for its first.
    Without the GIL, on one thread."""
    cdef uint64_t taken = nokv_get(&pool.taken), have = nokv_get(&pool.free_bytes) + _spare_bytes(pool)
    cdef Chunk* chunk
    cdef int i
    if taken < CHUNK_BYTES // 2:    # a small one
        return
    for i in range(SPARES_MAX):
        if taken + have >= pool.memtable_bytes + CHUNK_BYTES or have + CHUNK_BYTES > pool.limit:
            return
        if not nokv_has_chunk(&pool.spares[i]):
            leave_writer()                              # a huge page is cleared in one piece, by the first store
            chunk = _fresh(CHUNK_BYTES, True)
            if chunk != NULL:
                nokv_populate(chunk, CHUNK_BYTES)
            return_to_writer()
            if chunk == NULL:
                return              # whoever needs one will say so
            nokv_swap_chunk(&pool.spares[i], chunk)     # nobody else fills
            have += CHUNK_BYTES


cdef void _trim(Pool* pool) noexcept nogil:
    cdef Chunk* chunk
    cdef int i
    for i in range(SPARES_MAX):
        chunk = nokv_swap_chunk(&pool.spares[i], NULL)
        if chunk != NULL:
            _free(chunk)
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
    """Keeps at most `limit_bytes` of chunks that no memtable uses; `memtable_bytes`: what one of them is expected to take. Memtables
    that are freed after `close` leave nothing."""

    def __cinit__(self, uint64_t limit_bytes, uint64_t memtable_bytes=0):
        self.pool = <Pool*>calloc(1, sizeof(Pool))
        if self.pool == NULL:
            raise MemoryError()
        self.pool.users = 1
        self.pool.limit = limit_bytes
        self.pool.memtable_bytes = memtable_bytes

    def __dealloc__(self):
        if self.pool != NULL:
            self.pool.limit = 0
            pool_release(self.pool)

    def prepare(self):
        """What the thread of prefault.pyx does, here and now."""
        with nogil:
            pool_fill(self.pool)

    def trim(self):
        """Give back what no memtable uses."""
        _trim(self.pool)

    def close(self):
        self.pool.limit = 0
        _trim(self.pool)

    def stats(self):
        return {"free_bytes": self.pool.free_bytes + _spare_bytes(self.pool), "limit_bytes": self.pool.limit, "fresh_chunks": self.pool.fresh,
                "reused_chunks": self.pool.reused}
