"""The memtable: user keys in an arena, each with a chain of versions, a skiplist for their order and a hash index for point reads.

Order is made when somebody asks for it. A write goes to the hash index alone (two or three cache misses; a search in the skiplist
costs about fourteen) and waits in `pending`, unless it continues the order. Whoever wants a cursor calls `settle` first, which sorts
what is pending and links it in one pass (skiplist.pyx). A scan after a few writes links these few; a flush of keys that nobody asked
for in order sorts them and links nothing.

Threads: one writer at a time, who holds the GIL; readers need no lock (a node is complete before the store that links it, and nothing
is freed before the whole table is). The hash index grows in place, so point reads of the *active* table hold the GIL, as its writer
does. `settle` takes what is pending under the GIL and links without it; meanwhile the writer leaves the skiplist alone.

Range deletes lie beside the keys: lists of fragments (ranges.pyx), merged so that there are few, each of which replaces others as a
whole. Like point reads, whoever takes them from the active table holds the GIL.

A new version of a key goes in front of its chain. If no snapshot can see the version it supersedes, it takes that one's place
instead: hot keys do not grow (BENCH.md, design consequence 3).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.arena cimport (
    CHUNK_BYTES,
    CHUNK_HEADER,
    ArenaPool,
    Chunk,
    chunk_keep,
    chunk_take,
    chunks_free,
    pool_has_chunk,
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
    Slice,
    compare_bytes,
    kind_expires,
    read_trailer,
)
from nokv._ext.gilturn cimport gil_away, gil_back
from nokv._ext.ranges cimport RangeItem, RangeList, Ranges, ranges_build, ranges_cover, ranges_merge, ranges_release, ranges_retain
from nokv._ext.scheduling cimport nokv_pass
from nokv._ext.skiplist cimport (
    HEIGHT_BITS,
    HEIGHT_MAX,
    KEY_BITS,
    PIECES_MAX,
    Entry,
    Node,
    Order,
    SortItem,
    Table,
    entry_older,
    entry_shape,
    entry_value,
    link_node,
    new_cursor,
    new_flush_cursor,
    node_before,
    node_height,
    node_key,
    node_key_size,
    nokv_load_acquire,
    nokv_prefetch,
    nokv_store_release,
    pthread_mutex_t,
    renew_order,
    settle_nodes,
    sort_nodes,
)

cdef extern from *:
    """
    static inline void nokv_store_flag(int* place, int value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }
    static inline void nokv_store_word(uint64_t* place, uint64_t value) { __atomic_store_n(place, value, __ATOMIC_RELAXED); }
    static inline int nokv_load_flag(const int* place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    """
    void nokv_store_flag(bint* place, int value) noexcept nogil
    int nokv_load_flag(bint* place) noexcept nogil
    void nokv_store_word(uint64_t* place, uint64_t value) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)

cdef enum:
    CHUNK_FIRST = 65536
    SLOTS_FIRST = 1024
    RANGE_BYTES = 128
    PASS_NODES = 1024               # of a walk without the GIL, until a thread that waits for the processor gets it
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
        if t.pool != NULL and pool_has_chunk(t.pool):
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
        if t.pool != NULL:
            nokv_store_word(&t.pool.taken, t.allocated)
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
    node.first.shape = entry_shape(key_size, height, 0)
    memcpy(node_key(node), key, key_size)
    if value_size:
        memcpy(node_key(node) + key_size, value, value_size)
    return node

cdef Entry* _new_entry(Table* t, uint64_t packed, const uint8_t* value, size_t value_size, Entry* older) noexcept nogil:
    cdef uint8_t* p = _allocate(t, sizeof(Entry*) + sizeof(Entry) + value_size)
    cdef Entry* entry
    if p == NULL:
        return NULL
    entry = <Entry*>(p + sizeof(Entry*))
    (<Entry**>entry - 1)[0] = older
    entry.packed = packed
    entry.value_size = <uint32_t>value_size
    entry.shape = entry_shape(0, 0, 0)
    if value_size:
        memcpy(entry_value(entry), value, value_size)
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
        memcpy(entry_value(entry), value, value_size)
    entry.value_size = <uint32_t>value_size
    entry.shape = entry_shape(place, (entry.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1), (room - _room(place, value_size)) // 8)
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
            if node_key_size(node) == size and memcmp(node_key(node), key, size) == 0:
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
            _slot_put(slots, count - 1, node, hash_prefix(node_key(node), node_key_size(node)))
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
        cdef Chunk* surplus = NULL
        cdef Order* order = self.t.order
        cdef Order* older
        cdef int i
        while order != NULL:
            older = order.older
            free(order)
            order = older
        for i in range(self.t.piece_count):
            ranges_release(self.t.pieces[i])
        while chunk != NULL:
            following = chunk.next
            if not chunk_keep(self.t.pool, chunk):
                chunk.next = surplus
                surplus = chunk
            chunk = following
        if surplus != NULL:
            with nogil:
                gil_away()
                chunks_free(surplus)
                gil_back()
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
            at_end = last == t.head or compare_bytes(node_key(last), node_key_size(last), prefix, prefix_size) < 0
        if kind_expires(kind):
            t.expiring += 1
        if not at_end:
            node = _lookup(t, prefix, prefix_size, hash)
        if node != NULL:
            newest = node.newest
            if (newest.packed >> 8) > newest_snapshot:      # nobody can see it any more once this one is published
                was = <int>(newest.packed & 255)
                if not _replace(newest, packed, value, value_size):
                    entry = _new_entry(t, packed, value, value_size, entry_older(newest))
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
                for level in range(node_height(node)):
                    before[level] = t.tails[level]
                link_node(t, node, before)
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
                entry = entry_older(entry)
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
        value.data = entry_value(entry)
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
                gil_away()
                pthread_mutex_lock(&self.t.settled)
                pthread_mutex_unlock(&self.t.settled)
                gil_back()

    cdef int settle(self) except -1:
        """Bring every key that was added before this call into order: a cursor sees no other."""
        cdef Table* t = &self.t
        cdef Node* latest
        cdef uint64_t count, linked
        cdef SortItem few[2 * 16]
        cdef SortItem* items = few
        self.wait_settled()
        linked = t.nodes
        if t.pending == NULL:
            renew_order(t, linked)
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
            settle_nodes(t, latest, count, items)
            renew_order(t, linked)
        else:
            nokv_store_flag(&t.settling, 1)
            pthread_mutex_lock(&t.settled)
            with nogil:
                gil_away()
                settle_nodes(t, latest, count, items)
                renew_order(t, linked)
                nokv_store_flag(&t.settling, 0)
                pthread_mutex_unlock(&t.settled)
                gil_back()
        if items != few:
            free(items)
        return 0

    cdef Cursor* flush_cursor(self) except NULL:
        """As `cursor`, once, over a table that takes no more writes. If most keys are not in order yet, all are sorted without
        linking a node, and nodes are asked for ahead of their turn."""
        cdef Table* t = &self.t
        cdef SortItem* items
        cdef SortItem* sorted_items
        cdef Node** nodes
        cdef Node** fewer
        cdef Node* oldest
        cdef Cursor* c
        cdef uint64_t count = t.nodes, i
        self.wait_settled()
        if t.pending == NULL or t.pending_count < count - count // 4:
            self.settle()
            c = new_cursor(t)
            if c == NULL:
                raise MemoryError()
            return c
        items = <SortItem*>malloc(2 * count * sizeof(SortItem))
        if items == NULL:
            raise MemoryError()
        nodes = <Node**>items
        nokv_store_flag(&t.settling, 1)         # what is pending stays so for now
        pthread_mutex_lock(&t.settled)
        with nogil:
            gil_away()
            oldest = t.pending
            for i in range(1, t.pending_count):
                if i % PASS_NODES == 0:
                    nokv_pass()
                oldest = node_before(oldest)
            oldest.previous = t.tails[0]        # the chain goes on with those that are linked, the last one first
            sorted_items = sort_nodes(t.pending, count, items)
            nokv_pass()
            for i in range(count):              # never ahead of what is read
                nodes[i] = sorted_items[i].node
            nokv_store_flag(&t.settling, 0)
            pthread_mutex_unlock(&t.settled)
            fewer = <Node**>realloc(nodes, count * sizeof(Node*))
            gil_back()
        if fewer != NULL:
            nodes = fewer
        c = new_flush_cursor(t, nodes, count)
        if c == NULL:
            raise MemoryError()
        return c

    cdef Cursor* cursor(self) noexcept nogil:
        """Walks what `settle` has brought into order. NULL: no memory. The caller keeps this MemTable alive and destroys the cursor."""
        return new_cursor(&self.t)

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
        cdef const Order* order = self.t.order
        cdef int i
        while order != NULL:
            total += order.size
            order = order.older
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
    def unlinked(self):
        """Keys that wait for their order."""
        return self.t.pending_count

    @property
    def largest_sequence(self):
        return self.t.largest_sequence

    def __len__(self):
        return self.t.entries + self.t.range_deletes
