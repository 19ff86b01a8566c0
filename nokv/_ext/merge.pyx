"""The merging cursor: a binary heap of children, smallest key on top going forward, greatest going backward.

When the direction turns, every child but the current one is sought to the other side of the current key. Equal internal
keys (there should be none: a sequence is used once) come out in the order of the children when going forward.
"""

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    CursorOps,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    compare_internal,
    read_trailer,
)

from nokv.errors import Corruption, UsageError

cdef struct MergeCursor:
    Cursor base
    Cursor** children
    Cursor** heap                       # the valid children; heap[0] is the current one
    int* rank                           # of heap[i]: its place in `children`
    int count
    int heap_size
    bint backward
    uint8_t* key                        # the current key, kept while children are sought
    size_t key_room


cdef inline bint before(MergeCursor* m, int i, int j) noexcept nogil:
    """Must heap[i] come out before heap[j]?"""
    cdef int order = compare_internal(m.heap[i].key, m.heap[j].key)
    if order == 0:
        order = m.rank[i] - m.rank[j]
    return order > 0 if m.backward else order < 0


cdef inline void swap(MergeCursor* m, int i, int j) noexcept nogil:
    cdef Cursor* c = m.heap[i]
    cdef int r = m.rank[i]
    m.heap[i] = m.heap[j]
    m.rank[i] = m.rank[j]
    m.heap[j] = c
    m.rank[j] = r


cdef void sift_down(MergeCursor* m, int i) noexcept nogil:
    cdef int best
    while True:
        best = 2 * i + 1
        if best >= m.heap_size:
            return
        if best + 1 < m.heap_size and before(m, best + 1, best):
            best += 1
        if not before(m, best, i):
            return
        swap(m, i, best)
        i = best


cdef void show_top(MergeCursor* m) noexcept nogil:
    if m.base.status != CURSOR_OK or m.heap_size == 0:
        m.base.valid = False
        return
    m.base.valid = True
    m.base.key = m.heap[0].key
    m.base.value = m.heap[0].value


cdef void rebuild(MergeCursor* m) noexcept nogil:
    """All children stand where they should: make the heap."""
    cdef int i
    m.heap_size = 0
    for i in range(m.count):
        if m.children[i].status != CURSOR_OK:
            m.base.status = m.children[i].status
        elif m.children[i].valid:
            m.heap[m.heap_size] = m.children[i]
            m.rank[m.heap_size] = i
            m.heap_size += 1
    i = m.heap_size // 2
    while i > 0:
        i -= 1
        sift_down(m, i)
    show_top(m)


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
    cdef int i
    m.backward = False
    for i in range(m.count):
        m.children[i].ops.seek(m.children[i], internal_key)
    rebuild(m)


cdef bint turn(MergeCursor* m, bint backward) noexcept nogil:
    """Bring every child but the current one to the other side of the current key."""
    cdef Cursor* current = m.heap[0]
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


cdef void merge_step(MergeCursor* m, bint backward) noexcept nogil:
    cdef Cursor* current = m.heap[0]
    cdef bint turned = m.backward != backward
    if turned and not turn(m, backward):
        return
    if backward:
        current.ops.prev(current)
    else:
        current.ops.next(current)
    if turned:
        rebuild(m)
        return
    if current.status != CURSOR_OK:
        m.base.status = current.status
    elif not current.valid:
        m.heap_size -= 1
        m.heap[0] = m.heap[m.heap_size]
        m.rank[0] = m.rank[m.heap_size]
        sift_down(m, 0)
    else:
        sift_down(m, 0)
    show_top(m)


cdef void merge_next(Cursor* self) noexcept nogil:
    merge_step(<MergeCursor*>self.impl, False)


cdef void merge_prev(Cursor* self) noexcept nogil:
    merge_step(<MergeCursor*>self.impl, True)


cdef void merge_destroy(Cursor* self) noexcept nogil:
    cdef MergeCursor* m = <MergeCursor*>self.impl
    cdef int i
    for i in range(m.count):
        m.children[i].ops.destroy(m.children[i])
    free(m.children)
    free(m.heap)
    free(m.rank)
    free(m.key)
    free(m)


cdef CursorOps MERGE_OPS
MERGE_OPS.seek_first = merge_seek_first
MERGE_OPS.seek_last = merge_seek_last
MERGE_OPS.seek = merge_seek
MERGE_OPS.next = merge_next
MERGE_OPS.prev = merge_prev
MERGE_OPS.destroy = merge_destroy


cdef Cursor* merge_cursors(Cursor** children, int n) noexcept nogil:
    cdef MergeCursor* m
    if n == 1:
        return children[0]
    m = <MergeCursor*>calloc(1, sizeof(MergeCursor))
    if m == NULL:
        return NULL
    m.children = <Cursor**>malloc((n + 1) * sizeof(Cursor*))
    m.heap = <Cursor**>malloc((n + 1) * sizeof(Cursor*))
    m.rank = <int*>malloc((n + 1) * sizeof(int))
    if m.children == NULL or m.heap == NULL or m.rank == NULL:
        free(m.children)
        free(m.heap)
        free(m.rank)
        free(m)
        return NULL
    memcpy(m.children, children, n * sizeof(Cursor*))
    m.count = n
    m.base.impl = m
    m.base.ops = &MERGE_OPS
    return &m.base


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
            self.c.ops.destroy(self.c)
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
