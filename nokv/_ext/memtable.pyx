"""The memtable: an arena skiplist of user keys, each with a chain of versions, and a hash index beside it for point reads.

Order is made when somebody asks for it. A write goes to the hash index alone (two or three cache misses; a search in the skiplist
costs about fourteen) and waits in `pending`, unless it continues the order. Whoever wants a cursor calls `settle` first, which sorts
what is pending and links it in one pass. A flush does so in the background; a scan after a few writes links these few.

Threads: one writer at a time, who holds the GIL; readers need no lock (a node is complete before the store that links it, and nothing
is freed before the whole table is). The hash index grows in place, so point reads of the *active* table hold the GIL, as its writer
does. `settle` takes what is pending under the GIL and links without it; meanwhile the writer leaves the skiplist alone.

Range deletes lie beside the keys: lists of fragments (ranges.pyx), merged so that there are few, each of which replaces others as a
whole. Like point reads, whoever takes them from the active table holds the GIL.

A new version of a key goes in front of its chain. If no snapshot can see the version it supersedes, it takes that one's place
instead: hot keys do not grow (BENCH.md, design consequence 3).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.arena cimport (
    CHUNK_BYTES,
    CHUNK_HEADER,
    ArenaPool,
    chunk_give,
    chunk_take,
    pool_release,
    pool_retain,
    zeros_give,
    zeros_take,
)
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

from nokv._ext.ranges cimport RangeItem, RangeList, Ranges, ranges_build, ranges_cover, ranges_merge, ranges_release, ranges_retain

cdef extern from *:
    """
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define nokv_big_endian(x) (x)
    #else
    #define nokv_big_endian(x) __builtin_bswap64(x)
    #endif
    static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
    static inline void nokv_store_release(void** place, void* value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }
    static inline void nokv_store_flag(int* place, int value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }
    static inline int nokv_load_flag(const int* place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    static inline void* nokv_load_acquire(void* const* place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    """
    uint64_t nokv_big_endian(uint64_t x) noexcept nogil
    void nokv_prefetch(const void* p) noexcept nogil
    void nokv_store_release(void** place, void* value) noexcept nogil
    void* nokv_load_acquire(void** place) noexcept nogil
    void nokv_store_flag(bint* place, int value) noexcept nogil
    int nokv_load_flag(bint* place) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)

cdef enum:
    CHUNK_FIRST = 65536
    SLOTS_FIRST = 1024
    RANGE_BYTES = 128
    KEY_BITS = 17                   # of an entry's shape: the size of the key before its value, 0 if there is none,
    HEIGHT_BITS = 4                 # its node's height, 0 for later entries,
    SLACK_MAX = 2047                # and how much shorter than its room the value is, in units of 8 bytes, as far as that fits
    RADIX_MIN = 512                 # so many keys are sorted by their heads, byte by byte
    AHEAD = 6                       # nodes that a flush asks for before it needs them
    SETTLE_HELD_MAX = 128           # so few are linked with the GIL held: cheaper than to drop and take it

cdef uint64_t POINTER_MASK = (<uint64_t>1 << 48) - 1


# -- arena ------------------------------------------------------------------------------------------------------------
cdef uint8_t* _allocate(Table* t, uint64_t size) noexcept nogil:
    """8-byte aligned, never freed alone. NULL: no memory."""
    cdef uint64_t chunk_size
    cdef Chunk* chunk
    cdef uint8_t* p
    size = (size + 7) & ~<uint64_t>7
    if size > t.free_size:
        chunk_size = t.next_chunk_size
        if t.pool != NULL and t.pool.free != NULL:
            chunk_size = CHUNK_BYTES
        if size > chunk_size // 4:
            # An entry this large gets a chunk of its own; the current one goes on being filled.
            chunk = chunk_take(t.pool, size + CHUNK_HEADER)
            if chunk == NULL:
                return NULL
            chunk.next = t.chunks
            t.chunks = chunk
            t.allocated += size + CHUNK_HEADER
            t.used += size + CHUNK_HEADER
            return <uint8_t*>chunk + CHUNK_HEADER
        chunk = chunk_take(t.pool, chunk_size)
        if chunk == NULL:
            return NULL
        chunk.next = t.chunks
        t.chunks = chunk
        t.allocated += chunk_size
        t.used += t.free_size + CHUNK_HEADER        # the rest of the last one stays empty
        t.free = <uint8_t*>chunk + CHUNK_HEADER
        t.free_size = chunk_size - CHUNK_HEADER
        if t.next_chunk_size < CHUNK_BYTES:
            t.next_chunk_size *= 2
    p = t.free
    t.free += size
    t.free_size -= size
    t.used += size
    return p


# -- nodes ------------------------------------------------------------------------------------------------------------
cdef inline uint32_t _shape(size_t key_size, int height, uint64_t slack) noexcept nogil:
    return <uint32_t>key_size | (<uint32_t>height << KEY_BITS) | (<uint32_t>min(slack, <uint64_t>SLACK_MAX) << (KEY_BITS + HEIGHT_BITS))

cdef inline size_t _key_size(Node* node) noexcept nogil:
    return node.first.shape & ((1 << KEY_BITS) - 1)

cdef inline int _height(Node* node) noexcept nogil:
    return (node.first.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1)

cdef inline uint8_t* _key(Node* node) noexcept nogil:
    return <uint8_t*>node + sizeof(Node)

cdef inline uint8_t* _value(Entry* entry) noexcept nogil:
    return <uint8_t*>entry + sizeof(Entry) + (entry.shape & ((1 << KEY_BITS) - 1))

cdef inline Entry* _older(Entry* entry) noexcept nogil:
    if (entry.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1):
        return NULL                 # a node's first
    return (<Entry**>entry)[-1]

cdef inline Node* _next(Node* node, int level) noexcept nogil:
    return <Node*>nokv_load_acquire(<void**>node - 1 - level)

cdef inline void _set_next(Node* node, int level, Node* value) noexcept nogil:
    nokv_store_release(<void**>node - 1 - level, <void*>value)

cdef Node* _new_node(Table* t, int height, const uint8_t* key, size_t key_size, uint64_t packed, const uint8_t* value,
                     size_t value_size) noexcept nogil:
    """A key and its first version."""
    cdef uint8_t* p = _allocate(t, <uint64_t>height * 8 + sizeof(Node) + key_size + value_size)
    cdef Node* node
    if p == NULL:
        return NULL
    memset(p, 0, <size_t>height * 8)
    node = <Node*>(p + height * 8)
    node.newest = &node.first
    node.previous = NULL
    node.first.packed = packed
    node.first.value_size = <uint32_t>value_size
    node.first.shape = _shape(key_size, height, 0)
    memcpy(_key(node), key, key_size)
    if value_size:
        memcpy(_key(node) + key_size, value, value_size)
    return node

cdef Entry* _new_entry(Table* t, uint64_t packed, const uint8_t* value, size_t value_size, Entry* older) noexcept nogil:
    cdef uint8_t* p = _allocate(t, sizeof(Entry*) + sizeof(Entry) + value_size)
    cdef Entry* entry
    if p == NULL:
        return NULL
    entry = <Entry*>(p + sizeof(Entry*))
    (<Entry**>entry)[-1] = older
    entry.packed = packed
    entry.value_size = <uint32_t>value_size
    entry.shape = _shape(0, 0, 0)
    if value_size:
        memcpy(_value(entry), value, value_size)
    return entry

cdef inline uint64_t _room(uint64_t place, uint64_t value_size) noexcept nogil:
    """Bytes for a value of this size that begins `place` bytes behind its entry: up to the next multiple of eight."""
    return ((place + value_size + 7) & ~<uint64_t>7) - place

cdef bint _replace(Entry* entry, uint64_t packed, const uint8_t* value, size_t value_size) noexcept nogil:
    """Put another version in its place, if there is room."""
    cdef uint64_t place = entry.shape & ((1 << KEY_BITS) - 1)
    cdef uint64_t room = _room(place, entry.value_size) + 8 * <uint64_t>(entry.shape >> (KEY_BITS + HEIGHT_BITS))
    if value_size > room:
        return False
    if value_size:
        memcpy(_value(entry), value, value_size)
    entry.value_size = <uint32_t>value_size
    entry.shape = _shape(place, (entry.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1), (room - _room(place, value_size)) // 8)
    entry.packed = packed
    return True

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

cdef Node* _find(Table* t, const uint8_t* key, size_t size) noexcept nogil:
    """First node >= key, or NULL."""
    cdef Node* node = t.head
    cdef Node* after = NULL
    cdef Node* known = NULL         # compared already, and not smaller
    cdef int level = t.height - 1
    while level >= 0:
        after = _next(node, level)
        while after != NULL and after != known:
            if level > 0:               # where the search goes if `after` is too far: two cache misses at a time, not one
                nokv_prefetch(<uint8_t*>_next(node, level - 1) + sizeof(Node))
            if compare_bytes(_key(after), _key_size(after), key, size) >= 0:
                known = after
                break
            node = after
            after = _next(node, level)
        level -= 1
    return after


cdef struct SortItem:
    uint64_t head                   # eight bytes of the key, from where the keys begin to differ, as a big-endian number
    Node* node


# -- order ------------------------------------------------------------------------------------------------------------
cdef inline void _link(Table* t, Node* node, Node** before) noexcept nogil:
    """Put `node` behind before[level] of each of its levels, which then are `node` itself."""
    cdef int height = _height(node)
    cdef int level
    cdef Node* after = _next(before[0], 0)
    if height > t.height:
        t.height = height
    node.previous = before[0]
    for level in range(height):
        _set_next(node, level, _next(before[level], level))
    for level in range(height):
        _set_next(before[level], level, node)
        if t.tails[level] == before[level]:
            t.tails[level] = node
        before[level] = node
    if after != NULL:
        nokv_store_release(<void**>&after.previous, <void*>node)

cdef inline bint _precedes(Node* node, Node* other) noexcept nogil:
    """NULL stands past the end."""
    return node != NULL and compare_bytes(_key(node), _key_size(node), _key(other), _key_size(other)) < 0

cdef void _link_sorted(Table* t, SortItem* items, uint64_t count) noexcept nogil:
    """The search for each begins where the one before it ended: up as far as needed, then down."""
    cdef Node* before[HEIGHT_MAX]
    cdef Node* node
    cdef Node* after
    cdef Node* known                # compared already, and not smaller
    cdef int level
    cdef bint moved
    cdef uint64_t i
    for level in range(HEIGHT_MAX):
        before[level] = t.head
    for i in range(count):
        node = items[i].node
        if i + 4 < count:
            nokv_prefetch(items[i + 4].node)
            nokv_prefetch(<uint8_t*>items[i + 4].node + 64)
        level = 0 if i else t.height
        known = NULL
        while level < t.height:
            after = _next(before[level], level)
            if not _precedes(after, node):
                known = after
                break
            level += 1
        moved = False                   # a level that moved stands at or behind the level below it
        while level > 0:
            level -= 1
            if moved:
                before[level] = before[level + 1]
            after = _next(before[level], level)
            while after != NULL and after != known:
                if level > 0:
                    nokv_prefetch(<uint8_t*>_next(before[level], level - 1) + sizeof(Node))
                if not _precedes(after, node):
                    known = after
                    break
                before[level] = after
                after = _next(after, level)
                moved = True
        _link(t, node, before)

cdef inline bint _sorts_before(SortItem* a, SortItem* b) noexcept nogil:
    if a.head != b.head:
        return a.head < b.head
    return compare_bytes(_key(a.node), _key_size(a.node), _key(b.node), _key_size(b.node)) < 0

cdef uint64_t _head_of(Node* node, size_t start) noexcept nogil:
    cdef uint64_t head = 0
    cdef size_t i, size = _key_size(node)
    if start + 8 <= size:
        memcpy(&head, _key(node) + start, 8)
        return nokv_big_endian(head)
    for i in range(start, start + 8):
        head = (head << 8) | (_key(node)[i] if i < size else 0)
    return head

cdef SortItem* _sort(SortItem* items, SortItem* room, uint64_t count) noexcept nogil:
    """Merge sort, from runs of eight up. The result is in `items` or `room`."""
    cdef SortItem* target
    cdef SortItem item
    cdef uint64_t width = 8, low, middle, high, i, j, out
    for low in range(0, count, 8):
        high = min(low + 8, count)
        for i in range(low + 1, high):
            item = items[i]
            j = i
            while j > low and _sorts_before(&item, &items[j - 1]):
                items[j] = items[j - 1]
                j -= 1
            items[j] = item
    while width < count:
        low = 0
        while low < count:
            middle = min(low + width, count)
            high = min(middle + width, count)
            if middle == high or not _sorts_before(&items[middle], &items[middle - 1]):
                memcpy(room + low, items + low, (high - low) * sizeof(SortItem))
            else:
                i = low
                j = middle
                out = low
                while i < middle and j < high:
                    if _sorts_before(&items[j], &items[i]):
                        room[out] = items[j]
                        j += 1
                    else:
                        room[out] = items[i]
                        i += 1
                    out += 1
                memcpy(room + out, items + i, (middle - i) * sizeof(SortItem))
                out += middle - i
                memcpy(room + out, items + j, (high - j) * sizeof(SortItem))
            low = high
        target = room
        room = items
        items = target
        width *= 2
    return items

cdef SortItem* _sort_by_head(SortItem* items, SortItem* room, uint64_t count) noexcept nogil:
    """As `_sort`: by the bytes of the heads, the last one first, but for those that all have in common; then what is left equal."""
    cdef uint32_t counts[8][256]
    cdef uint64_t i, j, differing = 0
    cdef uint32_t total, n
    cdef int byte, value
    cdef SortItem* target
    memset(counts, 0, sizeof(counts))
    for i in range(count):
        differing |= items[i].head ^ items[0].head
        for byte in range(8):
            counts[byte][(items[i].head >> (8 * byte)) & 255] += 1
    for byte in range(8):
        if ((differing >> (8 * byte)) & 255) == 0:
            continue
        total = 0
        for value in range(256):
            n = counts[byte][value]
            counts[byte][value] = total
            total += n
        for i in range(count):
            value = (items[i].head >> (8 * byte)) & 255
            room[counts[byte][value]] = items[i]
            counts[byte][value] += 1
        target = room
        room = items
        items = target
    i = 0
    while i < count:
        j = i + 1
        while j < count and items[j].head == items[i].head:
            j += 1
        if j - i > 1:
            target = _sort(items + i, room + i, j - i)
            if target != items + i:
                memcpy(items + i, target, (j - i) * sizeof(SortItem))
        i = j
    return items

cdef size_t _common(Node* a, Node* b, size_t most) noexcept nogil:
    """With how many bytes, of up to `most`, both keys begin."""
    cdef size_t k = 0
    most = min(most, min(_key_size(a), _key_size(b)))
    while k < most and _key(a)[k] == _key(b)[k]:
        k += 1
    return k

cdef SortItem* _ordered(Node* latest, uint64_t count, SortItem* items) noexcept nogil:
    """The `count` pending nodes from `latest` on, sorted: somewhere in `items`, which has room for twice as many."""
    cdef uint64_t i = count
    cdef size_t common
    cdef Node* node = latest
    cdef Node* first
    while i > 0:                        # in the order in which they came: it may be the right one already
        i -= 1
        items[i].node = node
        node = node.previous
    first = items[0].node
    common = _key_size(first)
    common = _common(first, latest, _key_size(first))       # heads begin where keys begin to differ: a guess, mostly right
    i = 0
    while i < count:
        node = items[i].node
        if _key_size(node) < common or memcmp(_key(node), _key(first), common) != 0:
            for i in range(count):
                common = _common(first, items[i].node, common)
            i = 0
            node = first
        items[i].head = _head_of(node, common)
        i += 1
    return _sort_by_head(items, items + count, count) if count >= RADIX_MIN else _sort(items, items + count, count)

cdef void _settle(Table* t, Node* latest, uint64_t count, SortItem* items) noexcept nogil:
    """Sort the `count` pending nodes from `latest` on and link them. `items` has room for twice as many."""
    _link_sorted(t, _ordered(latest, count, items), count)


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

cdef void prefetch_node(Table* t, uint64_t hash) noexcept nogil:
    cdef uint64_t slot = t.slots[hash & (t.slot_count - 1)]
    if ((slot ^ hash) & ~POINTER_MASK) == 0:
        nokv_prefetch(<void*>(slot & POINTER_MASK))
        nokv_prefetch(<uint8_t*>(slot & POINTER_MASK) + 64)

cdef inline void _slot_put(uint64_t* slots, uint64_t mask, Node* node, uint64_t hash) noexcept nogil:
    cdef uint64_t i = hash & mask
    while slots[i] != 0:
        i = (i + 1) & mask
    slots[i] = (hash & ~POINTER_MASK) | <uint64_t>node

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
            if _key_size(node) == size and memcmp(_key(node), key, size) == 0:
                return node
        i = (i + 1) & mask

cdef bint _grow(Table* t) noexcept nogil:
    cdef uint64_t count = t.slot_count * 2, i, slot
    cdef uint64_t* slots = <uint64_t*>zeros_take(t.pool, count * 8)
    cdef Node* node
    if slots == NULL:
        return False
    for i in range(t.slot_count):
        if i + 8 < t.slot_count and t.slots[i + 8] != 0:
            nokv_prefetch(<void*>(t.slots[i + 8] & POINTER_MASK))
        slot = t.slots[i]
        if slot != 0:
            node = <Node*>(slot & POINTER_MASK)
            _slot_put(slots, count - 1, node, hash_prefix(_key(node), _key_size(node)))
    zeros_give(t.pool, t.slots, t.slot_count * 8)
    t.used += (count - t.slot_count) * 8
    t.slots = slots
    t.slot_count = count
    return True

cdef inline bint _crowded(uint64_t nodes, uint64_t slots) noexcept nogil:
    return nodes * 4 >= slots * 3


# -- the table --------------------------------------------------------------------------------------------------------
cdef class MemTable:
    """Entries of one write buffer. `add` is compiled only: see apply.pyx; `insert` is for tests."""

    def __cinit__(self, uint64_t seed=1, uint64_t slots=SLOTS_FIRST, ArenaPool pool=None):
        """`slots`: how large a hash index to begin with, as a predecessor's `slots` says. `pool`: where its memory comes from."""
        cdef int level
        cdef Table* t = &self.t
        memset(t, 0, sizeof(Table))
        t.next_chunk_size = CHUNK_FIRST
        t.dice = seed * <uint64_t>0x9E3779B97F4A7C15 + 0x1234567
        t.height = 1
        if pool is not None:
            t.pool = pool_retain(pool.pool)
        t.slot_count = SLOTS_FIRST
        while t.slot_count < slots:
            t.slot_count *= 2
        t.slots = <uint64_t*>zeros_take(t.pool, t.slot_count * 8)
        if t.slots == NULL:
            raise MemoryError()
        pthread_mutex_init(&t.settled, NULL)
        t.head = _new_node(t, HEIGHT_MAX, <const uint8_t*>b"", 0, 0, NULL, 0)
        if t.head == NULL:
            raise MemoryError()
        for level in range(HEIGHT_MAX):
            t.tails[level] = t.head
        t.used = (t.slot_count - SLOTS_FIRST) * 8
        self.first_segment = 0

    def __dealloc__(self):
        cdef Chunk* chunk = self.t.chunks
        cdef Chunk* following
        cdef int i
        for i in range(self.t.piece_count):
            ranges_release(self.t.pieces[i])
        while chunk != NULL:
            following = chunk.next
            chunk_give(self.t.pool, chunk)
            chunk = following
        if self.t.slots != NULL:        # else __cinit__ ended before it made the mutex
            pthread_mutex_destroy(&self.t.settled)
            zeros_give(self.t.pool, self.t.slots, self.t.slot_count * 8)
        pool_release(self.t.pool)

    cdef int add(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, const uint8_t* value,
                 size_t value_size, uint64_t newest_snapshot) noexcept nogil:
        """CURSOR_OK, or CURSOR_NO_MEMORY and nothing has changed. Sequences rise from call to call."""
        return self.add_hashed(sequence, kind, prefix, prefix_size, hash_prefix(prefix, prefix_size), value, value_size,
                               newest_snapshot)

    cdef int add_hashed(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, uint64_t hash,
                        const uint8_t* value, size_t value_size, uint64_t newest_snapshot) noexcept nogil:
        cdef Table* t = &self.t
        cdef uint64_t packed = (sequence << 8) | <uint64_t>kind
        cdef Node* last
        cdef Node* before[HEIGHT_MAX]
        cdef Node* node = NULL
        cdef Entry* entry
        cdef Entry* newest
        cdef bint at_end = False
        cdef int level, was
        if t.pending == NULL and not nokv_load_flag(&t.settling):
            last = t.tails[0]
            at_end = last == t.head or compare_bytes(_key(last), _key_size(last), prefix, prefix_size) < 0
        if kind_expires(kind):
            t.expiring += 1
        if not at_end:
            node = _lookup(t, prefix, prefix_size, hash)
        if node != NULL:
            newest = node.newest
            if (newest.packed >> 8) > newest_snapshot:      # nobody can see it any more once this one is published
                was = <int>(newest.packed & 255)
                if not _replace(newest, packed, value, value_size):
                    entry = _new_entry(t, packed, value, value_size, _older(newest))
                    if entry == NULL:
                        return CURSOR_NO_MEMORY
                    nokv_store_release(<void**>&node.newest, <void*>entry)
                if kind != KIND_DELETE and was == KIND_DELETE:
                    t.deletes -= 1
                elif kind == KIND_DELETE and was != KIND_DELETE:
                    t.deletes += 1
                t.largest_sequence = sequence
                return CURSOR_OK
            entry = _new_entry(t, packed, value, value_size, newest)
            if entry == NULL:
                return CURSOR_NO_MEMORY
            nokv_store_release(<void**>&node.newest, <void*>entry)
        else:
            if _crowded(t.nodes, t.slot_count) and not _grow(t):
                return CURSOR_NO_MEMORY
            node = _new_node(t, _random_height(t), prefix, prefix_size, packed, value, value_size)
            if node == NULL:
                return CURSOR_NO_MEMORY
            if at_end:
                for level in range(_height(node)):
                    before[level] = t.tails[level]
                _link(t, node, before)
            else:
                node.previous = t.pending
                t.pending = node
                t.pending_count += 1
            _slot_put(t.slots, t.slot_count - 1, node, hash)
            t.nodes += 1
        t.entries += 1
        if kind == KIND_DELETE:
            t.deletes += 1
        t.largest_sequence = sequence
        return CURSOR_OK

    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value,
                 int* kind) noexcept nogil:
        """Newest entry with a sequence <= `sequence`: 1 and its value and kind (a delete, if a range delete is newer), or 0. `hash`
        is hash_prefix(prefix)."""
        cdef Node* node = NULL
        cdef Entry* entry = NULL
        cdef uint64_t covered
        if self.t.nodes:                    # else the index would be a cache miss for nothing
            node = _lookup(&self.t, prefix, prefix_size, hash)
        if node != NULL:
            entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
            while entry != NULL and (entry.packed >> 8) > sequence:
                entry = _older(entry)
        if self.t.piece_count:
            covered = self.cover(prefix, prefix_size, sequence)
            if covered > (0 if entry == NULL else entry.packed >> 8):
                kind[0] = KIND_DELETE
                value.data = NULL
                value.size = 0
                return 1
        if entry == NULL:
            return 0
        kind[0] = <int>(entry.packed & 255)
        value.data = _value(entry)
        value.size = entry.value_size
        return 1

    cdef int add_range(self, uint64_t sequence, Slice start, Slice end, const uint64_t* snapshots, size_t snapshot_count) noexcept nogil:
        """Delete start <= key < end (family || user key) as of `sequence`. `snapshots`: whatever is read at, but for sequences from
        this one on; rising. CURSOR_OK, or CURSOR_NO_MEMORY and nothing has changed."""
        cdef Table* t = &self.t
        cdef RangeItem item
        cdef RangeList* fresh
        cdef RangeList* merged
        cdef RangeList* pair[2]
        cdef int keep = t.piece_count
        cdef int i
        item.start = start
        item.end = end
        item.sequence = sequence
        fresh = ranges_build(&item, 1, NULL, 0, False)
        if fresh == NULL:
            return CURSOR_NO_MEMORY
        while keep > 0 and (t.pieces[keep - 1].sequence_count < 2 * fresh.sequence_count or keep == PIECES_MAX):
            keep -= 1
            pair[0] = t.pieces[keep]
            pair[1] = fresh
            merged = ranges_merge(pair, 2, snapshots, snapshot_count, False)
            ranges_release(fresh)
            if merged == NULL:
                return CURSOR_NO_MEMORY
            fresh = merged
        for i in range(keep, t.piece_count):
            ranges_release(t.pieces[i])
        t.pieces[keep] = fresh
        t.piece_count = keep + 1
        t.used += RANGE_BYTES + 2 * (start.size + end.size)     # two fragments; it only grows, so that a log full of these ends too
        t.range_deletes += 1
        t.largest_sequence = sequence
        return CURSOR_OK

    cdef uint64_t cover(self, const uint8_t* prefix, size_t prefix_size, uint64_t sequence) noexcept nogil:
        """The newest range delete of a key that a reader at `sequence` sees; 0: none."""
        cdef uint64_t newest = 0, found
        cdef int i
        for i in range(self.t.piece_count):
            found = ranges_cover(self.t.pieces[i], prefix, prefix_size, sequence)
            if found > newest:
                newest = found
        return newest

    def ranges(self):
        """The range deletes, as a list of Ranges."""
        return [Ranges.make(ranges_retain(self.t.pieces[i])) for i in range(self.t.piece_count)]

    cdef void wait_settled(self) noexcept:
        while nokv_load_flag(&self.t.settling):
            with nogil:                     # another thread is at it, without the GIL
                pthread_mutex_lock(&self.t.settled)
                pthread_mutex_unlock(&self.t.settled)

    cdef int settle(self) except -1:
        """Bring every key that was added before this call into order: a cursor sees no other."""
        cdef Table* t = &self.t
        cdef Node* latest
        cdef uint64_t count
        cdef SortItem few[2 * 16]
        cdef SortItem* items = few
        self.wait_settled()
        if t.pending == NULL:
            return 0
        latest = t.pending
        count = t.pending_count
        if count > 16:
            items = <SortItem*>malloc(2 * count * sizeof(SortItem))
            if items == NULL:
                raise MemoryError()
        t.pending = NULL
        t.pending_count = 0
        if count <= SETTLE_HELD_MAX:
            _settle(t, latest, count, items)
        else:
            nokv_store_flag(&t.settling, 1)
            pthread_mutex_lock(&t.settled)
            with nogil:
                _settle(t, latest, count, items)
                nokv_store_flag(&t.settling, 0)
                pthread_mutex_unlock(&t.settled)
        if items != few:
            free(items)
        return 0

    cdef Cursor* flush_cursor(self) except NULL:
        """As `cursor`, once, over a table that takes no more writes. If nobody has asked for its order yet, it is made without
        linking a node, and nodes are asked for ahead of their turn."""
        cdef Table* t = &self.t
        cdef SortItem* items
        cdef SortItem* sorted_items
        cdef Node** nodes
        cdef Node** fewer
        cdef Cursor* c
        cdef uint64_t count, i
        self.wait_settled()
        if t.pending == NULL or t.pending_count != t.nodes:
            self.settle()
            c = _new_cursor(t)
            if c == NULL:
                raise MemoryError()
            return c
        count = t.pending_count
        items = <SortItem*>malloc(2 * count * sizeof(SortItem))
        if items == NULL:
            raise MemoryError()
        nodes = <Node**>items
        nokv_store_flag(&t.settling, 1)         # what is pending stays so for now
        pthread_mutex_lock(&t.settled)
        with nogil:
            sorted_items = _ordered(t.pending, count, items)
            for i in range(count):              # never ahead of what is read
                nodes[i] = sorted_items[i].node
            nokv_store_flag(&t.settling, 0)
            pthread_mutex_unlock(&t.settled)
        fewer = <Node**>realloc(nodes, count * sizeof(Node*))
        if fewer != NULL:
            nodes = fewer
        c = _new_cursor(t)
        if c == NULL:
            free(nodes)
            raise MemoryError()
        c.ops = &_flush_ops
        (<Walk*>c.impl).nodes = nodes
        (<Walk*>c.impl).count = count
        return c

    cdef Cursor* cursor(self) noexcept nogil:
        """Walks what `settle` has brought into order. NULL: no memory. The caller keeps this MemTable alive and destroys the cursor."""
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

    def walk(self, *, bint reverse=False, bytes seek=None, bint flush=False):
        """Every entry as (prefix, sequence, kind, value), through a cursor, that of a flush on demand; from the first internal
        key >= seek on."""
        cdef Cursor* c
        cdef Slice target
        cdef uint64_t packed
        cdef list found = []
        if flush:
            c = self.flush_cursor()
        else:
            self.settle()
            c = self.cursor()
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
        cdef uint64_t total = self.t.allocated + self.t.slot_count * 8
        cdef int i
        for i in range(self.t.piece_count):
            total += self.t.pieces[i].size
        return total

    @property
    def slots(self):
        """How large a hash index its keys need."""
        cdef uint64_t count = SLOTS_FIRST
        while _crowded(self.t.nodes, count):
            count *= 2
        return count

    @property
    def keys(self):
        return self.t.nodes

    @property
    def largest_sequence(self):
        return self.t.largest_sequence

    def __len__(self):
        return self.t.entries + self.t.range_deletes


# -- cursor -----------------------------------------------------------------------------------------------------------
cdef struct Walk:
    Table* table
    Node* node
    Entry* entry
    uint64_t packed                 # of the entry when we came to it: a collapse may have changed it since
    uint64_t newest                 # sequence in the table when the cursor was made
    uint8_t* key                    # prefix || trailer
    size_t capacity
    Node** nodes                    # of a flush: all of them, in order
    uint64_t count
    uint64_t at

cdef Cursor* _new_cursor(Table* t) noexcept nogil:
    cdef Cursor* c = <Cursor*>calloc(1, sizeof(Cursor) + sizeof(Walk))
    cdef Walk* w
    if c == NULL:
        return NULL
    w = <Walk*>(<uint8_t*>c + sizeof(Cursor))
    w.table = t
    w.newest = t.largest_sequence
    c.impl = w
    c.ops = &_ops
    return c

cdef void _stand(Cursor* c, Node* node, Entry* entry) noexcept nogil:
    """Publish (node, entry) as the cursor's position; NULL: past an end."""
    cdef Walk* w = <Walk*>c.impl
    cdef size_t size, key_size
    cdef uint8_t* fresh
    if node == NULL or entry == NULL:
        c.valid = False
        return
    key_size = _key_size(node)
    size = key_size + TRAILER_SIZE
    if size > w.capacity:
        fresh = <uint8_t*>realloc(w.key, size * 2)
        if fresh == NULL:
            c.valid = False
            c.status = CURSOR_NO_MEMORY
            return
        w.key = fresh
        w.capacity = size * 2
    if node != w.node or c.key.size != size or not c.valid:
        memcpy(w.key, _key(node), key_size)
        nokv_prefetch(_next(node, 0))           # whoever walks on finds it there
    w.node = node
    w.entry = entry
    w.packed = entry.packed
    put_trailer(w.key + key_size, entry.packed >> 8, <int>(entry.packed & 255))
    c.key.data = w.key
    c.key.size = size
    c.value.data = _value(entry)
    c.value.size = entry.value_size
    c.valid = True

cdef inline Entry* _oldest(Node* node) noexcept nogil:
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
    while _older(entry) != NULL:
        entry = _older(entry)
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
    cdef Node* node = _find(w.table, target.data, size)
    cdef Entry* entry
    if node != NULL and _key_size(node) == size and memcmp(_key(node), target.data, size) == 0:
        entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
        while entry != NULL and entry.packed > packed:
            entry = _older(entry)
        if entry != NULL:
            _stand(c, node, entry)
            return
        node = _next(node, 0)
    _stand_newest(c, node)

cdef void _move_next(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* older = _older(w.entry)
    if older != NULL:
        _stand(c, w.node, older)
    else:
        _stand_newest(c, _next(w.node, 0))

cdef void _move_prev(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&w.node.newest)
    cdef Entry* newer = NULL
    while entry != NULL and entry.packed > w.packed:
        newer = entry
        entry = _older(entry)
    if newer != NULL:
        _stand(c, w.node, newer)
    else:
        _stand_oldest(c, <Node*>nokv_load_acquire(<void**>&w.node.previous))

cdef void _flush_stand(Cursor* c, uint64_t at) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef uint8_t* ahead
    w.at = at
    if at + AHEAD < w.count:
        ahead = <uint8_t*>w.nodes[at + AHEAD]
        nokv_prefetch(ahead)
        nokv_prefetch(ahead + 64)
        nokv_prefetch(ahead + 128)
    _stand_newest(c, w.nodes[at] if at < w.count else NULL)

cdef void _flush_seek_first(Cursor* c) noexcept nogil:
    _flush_stand(c, 0)

cdef void _flush_next(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* older = _older(w.entry)
    if older != NULL:
        _stand(c, w.node, older)
    else:
        _flush_stand(c, w.at + 1)

cdef void _flush_seek(Cursor* c, Slice target) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef uint64_t low = 0, high = w.count, middle
    cdef size_t size = target.size - TRAILER_SIZE
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(_key(w.nodes[middle]), _key_size(w.nodes[middle]), target.data, size) < 0:
            low = middle + 1
        else:
            high = middle
    _flush_stand(c, low)
    if c.valid and _key_size(w.node) == size and memcmp(_key(w.node), target.data, size) == 0:
        while c.valid and w.node == w.nodes[low] and w.packed > read_trailer(target.data + size):
            _flush_next(c)

cdef void _flush_seek_last(Cursor* c) noexcept nogil:
    (<Walk*>c.impl).at = (<Walk*>c.impl).count - 1
    _stand_oldest(c, (<Walk*>c.impl).nodes[(<Walk*>c.impl).at])

cdef void _flush_prev(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* entry = w.node.newest
    cdef Entry* newer = NULL
    while entry != w.entry:
        newer = entry
        entry = _older(entry)
    if newer != NULL:
        _stand(c, w.node, newer)
    elif w.at == 0:
        c.valid = False
    else:
        w.at -= 1
        _stand_oldest(c, w.nodes[w.at])

cdef void _destroy(Cursor* c) noexcept nogil:
    free((<Walk*>c.impl).nodes)
    free((<Walk*>c.impl).key)
    free(c)

cdef uint64_t _newest(Cursor* c, Slice low, Slice high) noexcept nogil:
    return (<Walk*>c.impl).newest

cdef CursorOps _ops
_ops.newest = _newest
_ops.seek_first = _seek_first
_ops.seek_last = _seek_last
_ops.seek = _seek
_ops.next = _move_next
_ops.prev = _move_prev
_ops.destroy = _destroy

cdef CursorOps _flush_ops
_flush_ops.newest = _newest
_flush_ops.seek_first = _flush_seek_first
_flush_ops.seek_last = _flush_seek_last
_flush_ops.seek = _flush_seek
_flush_ops.next = _flush_next
_flush_ops.prev = _flush_prev
_flush_ops.destroy = _destroy
