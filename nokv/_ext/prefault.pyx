"""Memory made ready ahead of a writer, by a thread that never takes the GIL.

Owns: which pages of the active log segment's mapping are mapped, and that the memtable's next chunks are in memory already. Does not
own: the mapping, chunks that are taken, what is written where. A store that meets a page fault costs as much as ten records. A thread
of Python gets the GIL from a busy writer between two writes at best (gilturn.pyx), and keeps it waiting meanwhile; this one needs no
GIL.

The writer's side: `attach` (another segment takes over), `detach` (before its mapping goes), `ahead_wake` (what is ready comes to an
end). Two words are shared without a lock: `end`, which the writer stores, and `due`, which tells it when to wake the thread; whoever
wakes stores NEVER there first, so that a wake is never lost. The thread holds the lock while it works on the mapping, for one piece at
a time, and may lose the processor meanwhile: the writer, who must not wait for that, posts its next mapping. Pages that have been
written leave the mapping: they would count as this process's memory, and the file keeps them.

Where pages cannot be populated (other systems; Linux before 5.14) there is no thread.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from nokv._ext.arena cimport ArenaPool, Pool, pool_fill, pool_release, pool_retain
from nokv._ext.gilturn cimport thread_is_helper, writer_is_here
from nokv._ext.clock cimport nokv_monotonic_ns
from nokv._ext.scheduling cimport nokv_pass, nokv_step_aside

cdef extern from "pages.h":
    int nokv_can_populate(void* page) noexcept nogil
    void nokv_populate(void* p, size_t size) noexcept nogil
    void nokv_unmap_pages(void* p, size_t size) noexcept nogil

cdef extern from "ahead.h":
    uint64_t nokv_get(const uint64_t* place) noexcept nogil
    int nokv_get_int "nokv_get"(const int* place) noexcept nogil
    void nokv_set(uint64_t* place, uint64_t value) noexcept nogil
    void nokv_add(uint64_t* place, uint64_t value) noexcept nogil
    int nokv_ahead_lives(const Ahead* a) noexcept nogil
    int nokv_ahead_start(Ahead* a, void* (*run)(void*) noexcept nogil) noexcept nogil
    void nokv_ahead_wait(Ahead* a) noexcept nogil
    void nokv_ahead_enter(Ahead* a) noexcept nogil
    bint nokv_ahead_try(Ahead* a) noexcept nogil
    void nokv_ahead_reenter(Ahead* a) noexcept nogil
    void nokv_ahead_leave(Ahead* a) noexcept nogil
    void nokv_ahead_post(Ahead* a, AheadMap map) noexcept nogil
    void nokv_ahead_take(Ahead* a) noexcept nogil
    uint64_t nokv_ahead_written(Ahead* a) noexcept nogil
    void nokv_ahead_drop(Ahead* a, const uint8_t* base) noexcept nogil
    void nokv_ahead_end(Ahead* a) noexcept nogil

cdef enum:
    READY_MIN = 262144              # made ready ahead of the writer; when half of it is left it wakes us
    READY_MAX = 2097152
    SMALL = 1048576                 # a segment of this size was zeroed when it was made: nothing is left to do
    BLOCK = 65536                   # a multiple of every page size there is; populated in one piece, which is waited for
    UNMAP = 262144                  # unmapped in one piece

cdef uint64_t NEVER = <uint64_t>-1


cdef bint _one_piece(Ahead* a, uint64_t amount, bint unmap) noexcept nogil:
    """With the lock. False: there is nothing left to do, and `due` says until when; or no more but to `unmap`."""
    cdef AheadMap* map = &a.map
    cdef uint64_t passed, start, stop, size
    nokv_ahead_take(a)
    if map.base == NULL:
        return False
    passed = nokv_get(map.end) & ~<uint64_t>(BLOCK - 1)
    start = max(map.ready, passed)
    stop = min(passed + amount, map.capacity)
    if start < stop:
        size = min(stop - start, <uint64_t>BLOCK)
        nokv_populate(map.base + start, size)
        map.ready = start + size
        return True
    if a.left_behind < passed and not unmap:
        return False
    if a.left_behind < passed:
        size = min(passed - a.left_behind, <uint64_t>UNMAP)
        nokv_unmap_pages(map.base + a.left_behind, size)
        a.left_behind += size
        return True
    nokv_set(map.due, NEVER if map.ready >= map.capacity else map.ready - amount // 2)
    return False


cdef void* _run(void* argument) noexcept nogil:
    cdef Ahead* a = <Ahead*>argument
    cdef uint64_t amount = READY_MIN, at_sync = 0, seen = 0, syncs, written
    cdef bint more
    nokv_step_aside()
    thread_is_helper()
    while True:
        nokv_ahead_wait(a)
        if nokv_get_int(&a.stop):
            return NULL
        nokv_ahead_reenter(a)
        nokv_ahead_take(a)
        written = nokv_ahead_written(a)
        nokv_ahead_leave(a)
        # A sync may write what is ready and still empty, too: the slower the writer, the fewer pages are made ready.
        syncs = nokv_get(&a.syncs)
        if syncs != seen:
            amount = min(max((written - at_sync) // 4, <uint64_t>READY_MIN), <uint64_t>READY_MAX) & ~<uint64_t>(BLOCK - 1)
            seen, at_sync = syncs, written
        else:
            amount = min(amount * 2, <uint64_t>READY_MAX)
        more = True
        while more and not nokv_get_int(&a.stop):
            nokv_ahead_reenter(a)
            more = _one_piece(a, amount, True)
            nokv_ahead_leave(a)
            nokv_pass()
        pool_fill(<Pool*>a.pool)


cdef void ahead_detach(Ahead* a, uint8_t* base) noexcept nogil:
    """The mapping at `base` is about to go: nobody touches it when this returns. It may take as long as a piece, and better waits
    without the GIL."""
    if nokv_ahead_lives(a):
        nokv_ahead_drop(a, base)


cdef class Prefaulter:
    """One writer's. `close` it before the pool."""

    def __cinit__(self, ArenaPool pool not None):
        self.a = <Ahead*>calloc(1, sizeof(Ahead))
        if self.a == NULL:
            raise MemoryError()
        self.a.pool = pool_retain(pool.pool)

    def __dealloc__(self):
        if self.a != NULL:
            self.close()
            pool_release(<Pool*>self.a.pool)
            free(self.a)

    cdef Ahead* attach(self, uint8_t* base, uint64_t capacity, uint64_t ready, const uint64_t* end, uint64_t* due) noexcept:
        """Keep ahead of a writer whose mapping is ready up to `ready`. NULL: it has to do without."""
        cdef Ahead* a = self.a
        cdef AheadMap map
        if capacity <= SMALL or nokv_get_int(&a.stop) or not nokv_can_populate(base):
            return NULL
        if not nokv_ahead_lives(a) and (a.pid != 0 or not nokv_ahead_start(a, _run)):
            return NULL             # no thread to be had, or in the child of a fork
        map.base, map.capacity, map.ready, map.end, map.due = base, capacity, ready, end, due
        due[0] = NEVER
        nokv_ahead_post(a, map)
        ahead_wake(a)
        return a

    def work(self, double seconds):
        """Let the writer, who has to pause, do the thread's work meanwhile, for about so long and without the GIL. Seconds spent: few if
        there is nothing to do, or the thread is at it."""
        cdef Ahead* a = self.a
        cdef uint64_t began, now, limit = <uint64_t>(seconds * 1e9)
        cdef bint more = True
        if not nokv_ahead_lives(a):
            return 0.0
        with nogil:
            writer_is_here()                # and will wake up here
            began = now = nokv_monotonic_ns()
            # Never waits for the lock: the thread that holds it may be waiting for its turn on the processor.
            while more and now - began < limit and nokv_ahead_try(a):
                more = _one_piece(a, READY_MAX, False)          # to unmap, the kernel waits for the other processors
                nokv_ahead_leave(a)
                now = nokv_monotonic_ns()
        return <double>(now - began) / 1e9

    def synced(self):
        """The log has been synced."""
        nokv_add(&self.a.syncs, 1)

    def close(self):
        """End the thread. What is attached stays as it is."""
        if nokv_ahead_lives(self.a):
            nokv_ahead_end(self.a)
        self.a.stop = 1

    @property
    def running(self):
        return bool(nokv_ahead_lives(self.a))

    @property
    def ahead(self):
        """Bytes behind the writer's end that are ready."""
        cdef Ahead* a = self.a
        cdef uint64_t found = 0
        if nokv_ahead_lives(a):
            nokv_ahead_enter(a)
            nokv_ahead_take(a)
            if a.map.base != NULL:
                found = max(a.map.ready, nokv_get(a.map.end)) - nokv_get(a.map.end)
            nokv_ahead_leave(a)
        return found
