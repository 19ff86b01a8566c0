"""The memtable: an arena skiplist of user keys, each with a chain of versions, and a hash index beside it for point reads.

Threads: one writer at a time; readers need no lock (a node is complete before the store that links it, and nothing is freed before
the whole table is). The hash index grows in place, so point reads of the *active* table hold the GIL, as its writer does.

A new version of a key goes in front of its chain. If no snapshot can see the version it supersedes, it takes that one's place
instead: hot keys do not grow (BENCH.md, design consequence 3).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.cursor cimport (
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    KIND_DELETE,
    TRAILER_SIZE,
    Cursor,
    CursorOps,
    Slice,
    compare_bytes,
    kind_expires,
    put_trailer,
    read_trailer,
)

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
    static inline void nokv_store_release(void** place, void* value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }
    static inline void* nokv_load_acquire(void* const* place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    /* Large chunks are aligned for huge pages: fewer page faults while filling, fewer TLB misses while searching. */
    static void* nokv_chunk_new(size_t size) {
        void* p = NULL;
        if (size < (2u << 20)) return malloc(size);
        if (posix_memalign(&p, 2u << 20, size) != 0) return NULL;
    #if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(p, size, MADV_HUGEPAGE);
    #endif
        return p;
    }
    """
    void nokv_prefetch(const void* p) noexcept nogil
    void nokv_store_release(void** place, void* value) noexcept nogil
    void* nokv_load_acquire(void** place) noexcept nogil
    void* nokv_chunk_new(size_t size) noexcept nogil

cdef enum:
    CHUNK_FIRST = 65536
    CHUNK_MAX = 4194304
    SLOTS_FIRST = 1024

cdef uint64_t POINTER_MASK = (<uint64_t>1 << 48) - 1


# -- arena ------------------------------------------------------------------------------------------------------------
cdef uint8_t* _allocate(Table* t, uint64_t size) noexcept nogil:
    """8-byte aligned, never freed alone. NULL: no memory."""
    cdef uint64_t chunk_size
    cdef Chunk* chunk
    cdef uint8_t* p
    size = (size + 7) & ~<uint64_t>7
    if size > t.free_size:
        if size > t.next_chunk_size // 4:
            # An entry this large gets a chunk of its own; the current one goes on being filled.
            chunk = <Chunk*>nokv_chunk_new(size + 16)
            if chunk == NULL:
                return NULL
            chunk.next = t.chunks
            t.chunks = chunk
            t.allocated += size + 16
            t.used += size
            return <uint8_t*>chunk + 16
        chunk_size = t.next_chunk_size
        chunk = <Chunk*>nokv_chunk_new(chunk_size)
        if chunk == NULL:
            return NULL
        chunk.next = t.chunks
        t.chunks = chunk
        t.allocated += chunk_size
        t.free = <uint8_t*>chunk + 16
        t.free_size = chunk_size - 16
        if t.next_chunk_size < CHUNK_MAX:
            t.next_chunk_size *= 2
    p = t.free
    t.free += size
    t.free_size -= size
    t.used += size
    return p


# -- nodes ------------------------------------------------------------------------------------------------------------
cdef inline uint8_t* _key(Node* node) noexcept nogil:
    return <uint8_t*>node + sizeof(Node)

cdef inline uint8_t* _value(Entry* entry) noexcept nogil:
    return <uint8_t*>entry + sizeof(Entry)

cdef inline Node* _next(Node* node, int level) noexcept nogil:
    return <Node*>nokv_load_acquire(<void**>node - 1 - level)

cdef inline void _set_next(Node* node, int level, Node* value) noexcept nogil:
    nokv_store_release(<void**>node - 1 - level, <void*>value)

cdef Node* _new_node(Table* t, int height, const uint8_t* key, size_t key_size, uint64_t hash) noexcept nogil:
    cdef uint8_t* p = _allocate(t, <uint64_t>height * 8 + sizeof(Node) + key_size)
    cdef Node* node
    if p == NULL:
        return NULL
    memset(p, 0, <size_t>height * 8)
    node = <Node*>(p + height * 8)
    node.newest = NULL
    node.previous = NULL
    node.hash = hash
    node.key_size = <uint32_t>key_size
    node.height = <uint32_t>height
    memcpy(_key(node), key, key_size)
    return node

cdef Entry* _new_entry(Table* t, uint64_t packed, const uint8_t* value, size_t value_size) noexcept nogil:
    cdef Entry* entry = <Entry*>_allocate(t, sizeof(Entry) + value_size)
    if entry == NULL:
        return NULL
    entry.older = NULL
    entry.packed = packed
    entry.value_size = <uint32_t>value_size
    entry.value_capacity = <uint32_t>value_size
    if value_size:
        memcpy(_value(entry), value, value_size)
    return entry

cdef int _random_height(Table* t) noexcept nogil:
    cdef uint64_t x = t.dice
    cdef int height = 1
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    t.dice = x
    while height < HEIGHT_MAX and (x & 3) == 0:
        height += 1
        x >>= 2
    return height

cdef Node* _find(Table* t, const uint8_t* key, size_t size, Node** before) noexcept nogil:
    """First node >= key, or NULL; if `before` is given, the last node < key of every level."""
    cdef Node* node = t.head
    cdef Node* after = NULL
    cdef Node* known = NULL         # compared already, and not smaller
    cdef int level = t.height - 1
    while level >= 0:
        after = _next(node, level)
        while after != NULL and after != known:
            if level > 0:               # where the search goes if `after` is too far: two cache misses at a time, not one
                nokv_prefetch(<uint8_t*>_next(node, level - 1) + sizeof(Node))
            if compare_bytes(_key(after), after.key_size, key, size) >= 0:
                known = after
                break
            node = after
            after = _next(node, level)
        if before != NULL:
            before[level] = node
        level -= 1
    return after


# -- hash index -------------------------------------------------------------------------------------------------------
cdef uint64_t hash_prefix(const uint8_t* p, size_t n) noexcept nogil:
    cdef uint64_t h = <uint64_t>n * <uint64_t>0x9E3779B97F4A7C15
    cdef uint64_t word
    while n >= 8:
        memcpy(&word, p, 8)
        h = (h ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        h ^= h >> 32
        p += 8
        n -= 8
    if n:
        word = 0
        memcpy(&word, p, n)
        h = (h ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        h ^= h >> 32
    h *= <uint64_t>0xC4CEB9FE1A85EC53
    return h ^ (h >> 29)

cdef void prefetch_slot(Table* t, uint64_t hash) noexcept nogil:
    nokv_prefetch(&t.slots[hash & (t.slot_count - 1)])

cdef inline void _slot_put(uint64_t* slots, uint64_t mask, Node* node) noexcept nogil:
    cdef uint64_t i = node.hash & mask
    while slots[i] != 0:
        i = (i + 1) & mask
    slots[i] = (node.hash & ~POINTER_MASK) | <uint64_t>node

cdef Node* _lookup(Table* t, const uint8_t* key, size_t size, uint64_t hash) noexcept nogil:
    cdef uint64_t mask = t.slot_count - 1
    cdef uint64_t i = hash & mask
    cdef uint64_t slot
    cdef Node* node
    while True:
        slot = t.slots[i]
        if slot == 0:
            return NULL
        if ((slot ^ hash) & ~POINTER_MASK) == 0:
            node = <Node*>(slot & POINTER_MASK)
            if node.hash == hash and node.key_size == size and memcmp(_key(node), key, size) == 0:
                return node
        i = (i + 1) & mask

cdef bint _grow(Table* t) noexcept nogil:
    cdef uint64_t count = t.slot_count * 2, i, slot
    cdef uint64_t* slots = <uint64_t*>calloc(count, 8)
    if slots == NULL:
        return False
    for i in range(t.slot_count):
        if i + 8 < t.slot_count and t.slots[i + 8] != 0:
            nokv_prefetch(<void*>(t.slots[i + 8] & POINTER_MASK))
        slot = t.slots[i]
        if slot != 0:
            _slot_put(slots, count - 1, <Node*>(slot & POINTER_MASK))
    free(t.slots)
    t.used += (count - t.slot_count) * 8
    t.slots = slots
    t.slot_count = count
    return True


# -- the table --------------------------------------------------------------------------------------------------------
cdef class MemTable:
    """Entries of one write buffer. `add` is compiled only: see `Core` in db.pyx; `insert` is for tests."""

    def __cinit__(self, uint64_t seed=1):
        cdef int level
        cdef Table* t = &self.t
        memset(t, 0, sizeof(Table))
        t.next_chunk_size = CHUNK_FIRST
        t.dice = seed * <uint64_t>0x9E3779B97F4A7C15 + 0x1234567
        t.height = 1
        t.slot_count = SLOTS_FIRST
        t.slots = <uint64_t*>calloc(SLOTS_FIRST, 8)
        if t.slots == NULL:
            raise MemoryError()
        t.head = _new_node(t, HEIGHT_MAX, <const uint8_t*>b"", 0, 0)
        if t.head == NULL:
            raise MemoryError()
        for level in range(HEIGHT_MAX):
            t.tails[level] = t.head
        t.used = 0
        self.first_segment = 0

    def __dealloc__(self):
        cdef Chunk* chunk = self.t.chunks
        cdef Chunk* following
        while chunk != NULL:
            following = chunk.next
            free(chunk)
            chunk = following
        free(self.t.slots)

    cdef int add(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, const uint8_t* value,
                 size_t value_size, uint64_t newest_snapshot) noexcept nogil:
        """CURSOR_OK, or CURSOR_NO_MEMORY and nothing has changed. Sequences rise from call to call."""
        cdef Table* t = &self.t
        cdef uint64_t hash = hash_prefix(prefix, prefix_size)
        cdef uint64_t packed = (sequence << 8) | <uint64_t>kind
        cdef Node* last = t.tails[0]
        cdef Node* before[HEIGHT_MAX]
        cdef Node* node = NULL
        cdef Node* after
        cdef Entry* entry
        cdef Entry* newest
        cdef bint at_end = last == t.head or compare_bytes(_key(last), last.key_size, prefix, prefix_size) < 0
        cdef int height, level
        if kind_expires(kind):
            t.expiring += 1
        if not at_end:
            node = _lookup(t, prefix, prefix_size, hash)
        if node != NULL:
            newest = node.newest
            if (newest.packed >> 8) > newest_snapshot:      # nobody can see it any more once this one is published
                if kind != KIND_DELETE and (newest.packed & 255) == KIND_DELETE:
                    t.deletes -= 1
                elif kind == KIND_DELETE and (newest.packed & 255) != KIND_DELETE:
                    t.deletes += 1
                if value_size <= newest.value_capacity:
                    if value_size:
                        memcpy(_value(newest), value, value_size)
                    newest.value_size = <uint32_t>value_size
                    newest.packed = packed
                else:
                    entry = _new_entry(t, packed, value, value_size)
                    if entry == NULL:
                        return CURSOR_NO_MEMORY
                    entry.older = newest.older
                    nokv_store_release(<void**>&node.newest, <void*>entry)
                t.largest_sequence = sequence
                return CURSOR_OK
            entry = _new_entry(t, packed, value, value_size)
            if entry == NULL:
                return CURSOR_NO_MEMORY
            entry.older = newest
            nokv_store_release(<void**>&node.newest, <void*>entry)
        else:
            if t.nodes * 3 >= t.slot_count * 2 and not _grow(t):
                return CURSOR_NO_MEMORY
            height = _random_height(t)
            node = _new_node(t, height, prefix, prefix_size, hash)
            if node == NULL:
                return CURSOR_NO_MEMORY
            entry = _new_entry(t, packed, value, value_size)
            if entry == NULL:
                return CURSOR_NO_MEMORY
            node.newest = entry
            if height > t.height:
                t.height = height
            if at_end:
                for level in range(height):
                    before[level] = t.tails[level]
            else:
                _find(t, prefix, prefix_size, before)
            after = _next(before[0], 0)
            node.previous = before[0]
            for level in range(height):
                _set_next(node, level, _next(before[level], level))
            for level in range(height):
                _set_next(before[level], level, node)
                if t.tails[level] == before[level]:
                    t.tails[level] = node
            if after != NULL:
                nokv_store_release(<void**>&after.previous, <void*>node)
            _slot_put(t.slots, t.slot_count - 1, node)
            t.nodes += 1
        t.entries += 1
        if kind == KIND_DELETE:
            t.deletes += 1
        t.largest_sequence = sequence
        return CURSOR_OK

    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value,
                 int* kind) noexcept nogil:
        """Newest entry with a sequence <= `sequence`: 1 and its value and kind, or 0. `hash` is hash_prefix(prefix)."""
        cdef Node* node = _lookup(&self.t, prefix, prefix_size, hash)
        cdef Entry* entry
        if node == NULL:
            return 0
        entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
        while entry != NULL and (entry.packed >> 8) > sequence:
            entry = entry.older
        if entry == NULL:
            return 0
        kind[0] = <int>(entry.packed & 255)
        value.data = _value(entry)
        value.size = entry.value_size
        return 1

    cdef Cursor* cursor(self) noexcept nogil:
        """NULL: no memory. The caller keeps this MemTable alive and destroys the cursor."""
        return _new_cursor(&self.t)

    def insert(self, uint64_t sequence, int kind, bytes prefix not None, bytes value not None, uint64_t newest_snapshot=0):
        if sequence <= self.t.largest_sequence:
            raise ValueError("sequences must rise")
        if self.add(sequence, kind, prefix, len(prefix), value, len(value), newest_snapshot) != CURSOR_OK:
            raise MemoryError()

    def find(self, bytes prefix not None, uint64_t sequence):
        """(kind, value) or None."""
        cdef Slice value
        cdef int kind = 0
        if not self.get(prefix, len(prefix), hash_prefix(prefix, len(prefix)), sequence, &value, &kind):
            return None
        return kind, value.data[:value.size]

    def walk(self, *, bint reverse=False, bytes seek=None):
        """Every entry as (prefix, sequence, kind, value), through a cursor; from the first internal key >= seek on."""
        cdef Cursor* c = self.cursor()
        cdef Slice target
        cdef uint64_t packed
        cdef list found = []
        if c == NULL:
            raise MemoryError()
        if seek is not None and len(seek) < TRAILER_SIZE:
            c.ops.destroy(c)
            raise ValueError("an internal key ends with an 8-byte trailer")
        try:
            if seek is not None:
                target.data = seek
                target.size = len(seek)
                c.ops.seek(c, target)
            elif reverse:
                c.ops.seek_last(c)
            else:
                c.ops.seek_first(c)
            while c.valid:
                packed = read_trailer(c.key.data + c.key.size - TRAILER_SIZE)
                found.append((c.key.data[:c.key.size - TRAILER_SIZE], packed >> 8, <int>(packed & 255),
                              c.value.data[:c.value.size]))
                if reverse:
                    c.ops.prev(c)
                else:
                    c.ops.next(c)
            if c.status != CURSOR_OK:
                raise MemoryError()
        finally:
            c.ops.destroy(c)
        return found

    @property
    def used_bytes(self):
        return self.t.used

    @property
    def allocated_bytes(self):
        return self.t.allocated + self.t.slot_count * 8

    @property
    def keys(self):
        return self.t.nodes

    @property
    def largest_sequence(self):
        return self.t.largest_sequence

    def __len__(self):
        return self.t.entries


# -- cursor -----------------------------------------------------------------------------------------------------------
cdef struct Walk:
    Table* table
    Node* node
    Entry* entry
    uint64_t packed                 # of the entry when we came to it: a collapse may have changed it since
    uint8_t* key                    # prefix || trailer
    size_t capacity

cdef Cursor* _new_cursor(Table* t) noexcept nogil:
    cdef Cursor* c = <Cursor*>calloc(1, sizeof(Cursor) + sizeof(Walk))
    cdef Walk* w
    if c == NULL:
        return NULL
    w = <Walk*>(<uint8_t*>c + sizeof(Cursor))
    w.table = t
    c.impl = w
    c.ops = &_ops
    return c

cdef void _stand(Cursor* c, Node* node, Entry* entry) noexcept nogil:
    """Publish (node, entry) as the cursor's position; NULL: past an end."""
    cdef Walk* w = <Walk*>c.impl
    cdef size_t size
    cdef uint8_t* fresh
    if node == NULL or entry == NULL:
        c.valid = False
        return
    size = <size_t>node.key_size + TRAILER_SIZE
    if size > w.capacity:
        fresh = <uint8_t*>realloc(w.key, size * 2)
        if fresh == NULL:
            c.valid = False
            c.status = CURSOR_NO_MEMORY
            return
        w.key = fresh
        w.capacity = size * 2
    if node != w.node or c.key.size != size or not c.valid:
        memcpy(w.key, _key(node), node.key_size)
    w.node = node
    w.entry = entry
    w.packed = entry.packed
    put_trailer(w.key + node.key_size, entry.packed >> 8, <int>(entry.packed & 255))
    c.key.data = w.key
    c.key.size = size
    c.value.data = _value(entry)
    c.value.size = entry.value_size
    c.valid = True

cdef inline Entry* _oldest(Node* node) noexcept nogil:
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
    while entry.older != NULL:
        entry = entry.older
    return entry

cdef void _stand_newest(Cursor* c, Node* node) noexcept nogil:
    _stand(c, node, <Entry*>nokv_load_acquire(<void**>&node.newest) if node != NULL else NULL)

cdef void _stand_oldest(Cursor* c, Node* node) noexcept nogil:
    if node == NULL or node == (<Walk*>c.impl).table.head:
        c.valid = False
    else:
        _stand(c, node, _oldest(node))

cdef void _seek_first(Cursor* c) noexcept nogil:
    _stand_newest(c, _next((<Walk*>c.impl).table.head, 0))

cdef void _seek_last(Cursor* c) noexcept nogil:
    _stand_oldest(c, (<Walk*>c.impl).table.tails[0])

cdef void _seek(Cursor* c, Slice target) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef size_t size = target.size - TRAILER_SIZE
    cdef uint64_t packed = read_trailer(target.data + size)
    cdef Node* node = _find(w.table, target.data, size, NULL)
    cdef Entry* entry
    if node != NULL and node.key_size == size and memcmp(_key(node), target.data, size) == 0:
        entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
        while entry != NULL and entry.packed > packed:
            entry = entry.older
        if entry != NULL:
            _stand(c, node, entry)
            return
        node = _next(node, 0)
    _stand_newest(c, node)

cdef void _move_next(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    if w.entry.older != NULL:
        _stand(c, w.node, w.entry.older)
    else:
        _stand_newest(c, _next(w.node, 0))

cdef void _move_prev(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&w.node.newest)
    cdef Entry* newer = NULL
    while entry != NULL and entry.packed > w.packed:
        newer = entry
        entry = entry.older
    if newer != NULL:
        _stand(c, w.node, newer)
    else:
        _stand_oldest(c, <Node*>nokv_load_acquire(<void**>&w.node.previous))

cdef void _destroy(Cursor* c) noexcept nogil:
    free((<Walk*>c.impl).key)
    free(c)

cdef CursorOps _ops
_ops.seek_first = _seek_first
_ops.seek_last = _seek_last
_ops.seek = _seek
_ops.next = _move_next
_ops.prev = _move_prev
_ops.destroy = _destroy
