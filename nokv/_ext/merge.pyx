"""The merging cursor: a binary heap of children, smallest key on top going forward, greatest going backward.

When the direction turns, every child but the current one is sought to the other side of the current key. Equal internal
keys (there should be none: a sequence is used once) come out in the order of the children when going forward.
"""

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from nokv._ext.cursor cimport (
    ASK_STEPS,
    CURSOR_CORRUPT,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    CursorOps,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    compare_internal,
    key_head,
    nokv_load_big_endian,
    read_trailer,
)
from nokv._ext.gilturn cimport gil_away, gil_back

from nokv.errors import Corruption, UsageError

cdef extern from *:
    """static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }"""
    void nokv_prefetch(const void* p) noexcept nogil

cdef enum:
    SHARED_MAX = 64
    AHEAD_BYTES = 1024                  # of a value that comes out some steps later: its cache misses overlap with those of others

cdef struct Part:
    uint64_t head                       # eight bytes of the key, behind what the children had in common when the heap was made
    Cursor* cursor
    int rank                            # its place in `children`

cdef struct MergeCursor:
    Cursor base
    Cursor** children
    Part* heap                          # the valid children; heap[0] is the current one
    int count
    int heap_size
    bint backward
    size_t shared_size
    uint8_t[SHARED_MAX] shared
    uint64_t shared_head, shared_mask   # if it is at most eight bytes
    uint8_t* key                        # the current key, kept while children are sought
    size_t key_room


cdef inline uint64_t head_of(const MergeCursor* m, Slice key) noexcept nogil:
    """Keys in order have heads in order; the same head says nothing."""
    cdef size_t size = key.size - TRAILER_SIZE
    cdef int order
    if size >= 8 and m.shared_size <= 8 and ((nokv_load_big_endian(key.data) ^ m.shared_head) & m.shared_mask) == 0:
        return key_head(key.data + m.shared_size, size - m.shared_size)
    order = memcmp(key.data, m.shared, size if size < m.shared_size else m.shared_size)
    if order > 0:
        return <uint64_t>-1
    if order < 0 or size < m.shared_size:
        return 0
    return key_head(key.data + m.shared_size, size - m.shared_size)


cdef inline bint before(const MergeCursor* m, const Part* a, const Part* b) noexcept nogil:
    """Must `a` come out before `b`?"""
    cdef int order
    if a.head != b.head:
        return (a.head < b.head) != m.backward
    order = compare_internal(a.cursor.key, b.cursor.key)
    if order == 0:
        order = a.rank - b.rank
    return order > 0 if m.backward else order < 0


cdef void sift_down(MergeCursor* m, int i) noexcept nogil:
    cdef Part part = m.heap[i]
    cdef int best
    while True:
        best = 2 * i + 1
        if best >= m.heap_size:
            break
        if best + 1 < m.heap_size and before(m, &m.heap[best + 1], &m.heap[best]):
            best += 1
        if not before(m, &m.heap[best], &part):
            break
        m.heap[i] = m.heap[best]
        i = best
    m.heap[i] = part


cdef inline void show_top(MergeCursor* m) noexcept nogil:
    if m.base.status != CURSOR_OK or m.heap_size == 0:
        m.base.valid = False
        return
    m.base.valid = True
    m.base.key = m.heap[0].cursor.key
    m.base.value = m.heap[0].cursor.value


cdef void share(MergeCursor* m) noexcept nogil:
    """What the keys in the heap have in common at their beginning."""
    cdef Slice first = m.heap[0].cursor.key
    cdef size_t most = min(first.size - TRAILER_SIZE, <size_t>SHARED_MAX)
    cdef size_t n
    cdef Slice key
    cdef int i
    for i in range(1, m.heap_size):
        key = m.heap[i].cursor.key
        most = min(most, key.size - TRAILER_SIZE)
        n = 0
        while n < most and key.data[n] == first.data[n]:
            n += 1
        most = n
    memcpy(m.shared, first.data, most)
    m.shared_size = most
    m.shared_head = nokv_load_big_endian(first.data)
    m.shared_mask = 0 if most == 0 else <uint64_t>-1 << (64 - 8 * min(most, <size_t>8))


cdef void rebuild(MergeCursor* m) noexcept nogil:
    """All children stand where they should: make the heap."""
    cdef int i
    m.heap_size = 0
    for i in range(m.count):
        if m.children[i].status != CURSOR_OK:
            m.base.status = m.children[i].status
        elif m.children[i].valid:
            m.heap[m.heap_size].cursor = m.children[i]
            m.heap[m.heap_size].rank = i
            m.heap_size += 1
    if m.heap_size > 1:
        share(m)
        for i in range(m.heap_size):
            m.heap[i].head = head_of(m, m.heap[i].cursor.key)
            ask_ahead(m.heap[i].cursor)
        i = m.heap_size // 2
        while i > 0:
            i -= 1
            sift_down(m, i)
    show_top(m)


cdef inline void ask_ahead(const Cursor* c) noexcept nogil:
    cdef size_t size = min(c.value.size, <size_t>AHEAD_BYTES)
    cdef size_t at = 0
    while at < size:
        nokv_prefetch(c.value.data + at)
        at += 64


cdef void merge_seek_first(Cursor* self) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i
    m.backward = False
    for i in range(m.count):
        m.children[i].ops.seek_first(m.children[i])
    rebuild(m)


cdef void merge_seek_last(Cursor* self) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i
    m.backward = True
    for i in range(m.count):
        m.children[i].ops.seek_last(m.children[i])
    rebuild(m)


cdef void merge_seek(Cursor* self, Slice internal_key) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i, step
    m.backward = False
    for step in range(ASK_STEPS):
        for i in range(m.count):
            if m.children[i].ops.ask != NULL:
                m.children[i].ops.ask(m.children[i], internal_key, step)
    for i in range(m.count):
        m.children[i].ops.seek(m.children[i], internal_key)
    rebuild(m)


cdef bint turn(MergeCursor* m, bint backward) noexcept nogil:
    """Bring every child but the current one to the other side of the current key."""
    cdef Cursor* current = m.heap[0].cursor
    cdef Cursor* child
    cdef Slice key
    cdef uint8_t* room
    cdef int i
    if current.key.size > m.key_room:
        room = <uint8_t*>realloc(m.key, current.key.size)
        if room == NULL:
            m.base.status = CURSOR_NO_MEMORY
            m.base.valid = False
            return False
        m.key = room
        m.key_room = current.key.size
    memcpy(m.key, current.key.data, current.key.size)
    key.data = m.key
    key.size = current.key.size
    for i in range(m.count):
        child = m.children[i]
        if child == current:
            continue
        child.ops.seek(child, key)
        if child.status != CURSOR_OK:
            continue                    # rebuild() reports it
        if backward:
            if child.valid:
                child.ops.prev(child)
            else:
                child.ops.seek_last(child)
        elif child.valid and compare_internal(child.key, key) == 0:
            child.ops.next(child)
    m.backward = backward
    return True


cdef inline void merge_step(MergeCursor* m, bint backward) noexcept nogil:
    cdef Cursor* current = m.heap[0].cursor
    if m.backward != backward:
        if turn(m, backward):
            step_child(current, backward)
            rebuild(m)
        return
    step_child(current, backward)
    if current.status != CURSOR_OK:
        m.base.status = current.status
    elif m.heap_size > 1:
        if current.valid:
            m.heap[0].head = head_of(m, current.key)
            ask_ahead(current)
        else:
            m.heap_size -= 1
            m.heap[0] = m.heap[m.heap_size]
        sift_down(m, 0)
    elif not current.valid:
        m.heap_size = 0
    show_top(m)


cdef inline void step_child(Cursor* c, bint backward) noexcept nogil:
    if backward:
        c.ops.prev(c)
    else:
        c.ops.next(c)


cdef void merge_next(Cursor* self) noexcept nogil:
    merge_step(<MergeCursor*>self.impl, False)


cdef void merge_prev(Cursor* self) noexcept nogil:
    merge_step(<MergeCursor*>self.impl, True)


cdef void merge_rest(Cursor* self) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i
    self.valid = False
    m.heap_size = 0
    for i in range(m.count):
        m.children[i].ops.rest(m.children[i])


cdef void merge_destroy(Cursor* self) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i
    for i in range(m.count):
        m.children[i].ops.destroy(m.children[i])
    free(m.children)
    free(m.heap)
    free(m.key)
    free(m)


cdef CursorOps MERGE_OPS
MERGE_OPS.seek_first = merge_seek_first
MERGE_OPS.seek_last = merge_seek_last
MERGE_OPS.seek = merge_seek
MERGE_OPS.next = merge_next
MERGE_OPS.prev = merge_prev
MERGE_OPS.rest = merge_rest
MERGE_OPS.destroy = merge_destroy


cdef Cursor* merge_cursors(Cursor** children, int n) noexcept nogil:
    cdef MergeCursor* m
    if n == 1:
        return children[0]
    m = <MergeCursor*>calloc(1, sizeof(MergeCursor))
    if m == NULL:
        return NULL
    m.children = <Cursor**>malloc((n + 1) * sizeof(Cursor*))
    m.heap = <Part*>malloc((n + 1) * sizeof(Part))
    if m.children == NULL or m.heap == NULL:
        free(m.children)
        free(m.heap)
        free(m)
        return NULL
    memcpy(m.children, children, n * sizeof(Cursor*))
    m.count = n
    m.base.impl = m
    m.base.ops = &MERGE_OPS
    return &m.base


cdef Cursor* merge_alone(Cursor* c) noexcept nogil:
    cdef MergeCursor* m
    if c.ops != &MERGE_OPS:
        return c
    m = <MergeCursor*>c.impl
    return m.heap[0].cursor if m.heap_size == 1 and m.base.valid else c


cdef inline void skip_part(Cursor* c, Slice low, Slice high, Slice target, uint64_t below, bint backward) noexcept nogil:
    cdef size_t size
    if not c.valid or c.ops.newest == NULL:
        return
    size = c.key.size - TRAILER_SIZE
    if compare_bytes(c.key.data, size, low.data, low.size) < 0 or compare_bytes(c.key.data, size, high.data, high.size) >= 0:
        return
    if c.ops.newest(c, low, high) >= below:
        return
    c.ops.seek(c, target)
    if backward and c.status == CURSOR_OK:
        if c.valid:
            c.ops.prev(c)
        else:
            c.ops.seek_last(c)


cdef void cursor_skip(Cursor* c, Slice low, Slice high, Slice target, uint64_t below, bint backward) noexcept nogil:
    cdef MergeCursor* m
    cdef int i
    if c.ops != &MERGE_OPS:
        skip_part(c, low, high, target, below, backward)
        return
    m = <MergeCursor*>c.impl
    if m.backward != backward:          # its parts stand on the other side
        return
    for i in range(m.count):
        skip_part(m.children[i], low, high, target, below, backward)
    rebuild(m)


# the collector must not take away what __dealloc__ still needs
@cython.no_gc_clear
cdef class OwnedCursor:
    """A cursor for Python: the engine's own steps and the tests. The hot paths use the C struct."""

    def __dealloc__(self):
        if self.c != NULL:
            with nogil:                 # a memtable's holds a megabyte
                gil_away()
                self.c.ops.destroy(self.c)
                gil_back()
            self.c = NULL

    @staticmethod
    cdef OwnedCursor make(Cursor* c, object owner):
        if c == NULL:
            raise MemoryError
        cdef OwnedCursor owned
        try:
            owned = OwnedCursor.__new__(OwnedCursor)
        except MemoryError:
            c.ops.destroy(c)
            raise
        owned.c = c
        owned.owner = owner
        return owned

    cdef int check(self) except -1:
        if self.c == NULL:
            raise UsageError("the cursor was handed on")
        if self.c.status == CURSOR_OK:
            return 0
        if self.c.status == CURSOR_NO_MEMORY:
            raise MemoryError
        for owner in self.owner if type(self.owner) is tuple else (self.owner,):
            if hasattr(owner, "raise_status"):
                owner.raise_status(self.c.status)
        raise Corruption("damaged data under a cursor")

    def seek_first(self):
        self.check()
        with nogil:
            self.c.ops.seek_first(self.c)
        self.check()

    def seek_last(self):
        self.check()
        with nogil:
            self.c.ops.seek_last(self.c)
        self.check()

    def seek(self, bytes internal_key not None):
        """To the first entry >= `internal_key` (family || user key || trailer)."""
        cdef Slice key
        self.check()
        if len(internal_key) < TRAILER_SIZE:
            raise UsageError("an internal key ends with an 8-byte trailer")
        key.data = <const uint8_t*><const char*>internal_key
        key.size = len(internal_key)
        with nogil:
            self.c.ops.seek(self.c, key)
        self.check()

    def next(self):
        self.check()
        if not self.c.valid:
            raise UsageError("the cursor stands on no entry")
        with nogil:
            self.c.ops.next(self.c)
        self.check()

    def prev(self):
        self.check()
        if not self.c.valid:
            raise UsageError("the cursor stands on no entry")
        with nogil:
            self.c.ops.prev(self.c)
        self.check()

    @property
    def valid(self):
        self.check()
        return self.c.valid

    @property
    def entry(self):
        """(family || user key, sequence, kind, value)"""
        self.check()
        if not self.c.valid:
            raise UsageError("the cursor stands on no entry")
        cdef Slice key = self.c.key
        cdef unsigned long long packed = read_trailer(key.data + key.size - TRAILER_SIZE)
        return (
            (<const char*>key.data)[:key.size - TRAILER_SIZE],
            packed >> 8,
            <int>(packed & 255),
            (<const char*>self.c.value.data)[:self.c.value.size] if self.c.value.size else b"",
        )


def merge(list cursors not None):
    """One OwnedCursor over all of `cursors`, which are used up."""
    cdef int n = len(cursors)
    cdef int i
    cdef OwnedCursor child
    cdef Cursor* merged
    for child in cursors:
        if child is None:
            raise TypeError("merge: None is no cursor")
        child.check()
    if len(set(map(id, cursors))) != n:
        raise UsageError("a cursor comes twice")
    cdef Cursor** children = <Cursor**>malloc((n + 1) * sizeof(Cursor*))
    if children == NULL:
        raise MemoryError
    try:
        for i in range(n):
            child = cursors[i]
            children[i] = child.c
        merged = merge_cursors(children, n)
        if merged == NULL:
            raise MemoryError
    finally:
        free(children)
    owners = []
    for child in cursors:
        child.c = NULL
        owners.extend(child.owner if type(child.owner) is tuple else (child.owner,))
    return OwnedCursor.make(merged, tuple(owners))
