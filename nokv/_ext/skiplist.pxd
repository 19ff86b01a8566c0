from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.arena cimport Chunk, Pool
from nokv._ext.cursor cimport Cursor
from nokv._ext.ranges cimport RangeList

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef extern from *:
    """
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define nokv_big_endian(x) (x)
    #else
    #define nokv_big_endian(x) __builtin_bswap64(x)
    #endif
    static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
    static inline void nokv_store_release(void** place, void* value) { __atomic_store_n(place, value, __ATOMIC_RELEASE); }
    static inline void* nokv_load_acquire(void* const* place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    """
    uint64_t nokv_big_endian(uint64_t x) noexcept nogil
    void nokv_prefetch(const void* p) noexcept nogil
    void nokv_store_release(void** place, void* value) noexcept nogil
    void* nokv_load_acquire(void** place) noexcept nogil

cdef enum:
    HEIGHT_MAX = 12
    PIECES_MAX = 64                 # each holds at least twice as much as the next: never reached
    KEY_BITS = 17                   # of an entry's shape: the size of the key before its value, 0 if there is none,
    HEIGHT_BITS = 4                 # its node's height, 0 for later entries,
    SLACK_MAX = 2047                # and how much shorter than its room the value is, in units of 8 bytes, as far as that fits

cdef struct Entry:                  # one version of a key; its value follows. Before a later one lies an Entry*: the next older one
    uint64_t packed                 # sequence << 8 | kind
    uint32_t value_size
    uint32_t shape                  # see `_shape`: of a node's first one, the key lies between it and the value

cdef struct Node:                   # one user key; `height` next pointers lie before it, the key (family || user key) after it
    Entry* newest
    Node* previous                  # in key order; while it is pending: the node that came before it
    Entry first                     # the oldest version, until one that needs more room takes its place

cdef enum:
    ORDER_LEVEL = 2                 # nodes that stand at this level: one in sixteen
    ORDER_PREFIX = 64

cdef struct Order:                  # some of the linked nodes, in order, `count` heads and then their nodes: where a search begins
    Order* older                    # kept as long as the table: somebody may look at it without a lock
    uint64_t size                   # bytes of all of it
    uint64_t made                   # of so many linked nodes
    uint64_t count
    uint64_t* heads                 # eight bytes of each key, behind what all of them have in common, as a big-endian number
    Node** nodes
    size_t common
    uint8_t[ORDER_PREFIX] prefix    # what they have in common

cdef struct Table:                  # everything a cursor needs, without a Python object
    Node* head
    Node* tails[12]                 # last node of each level: ascending keys are appended without a search
    int height
    Order* order                    # or NULL
    uint64_t dice
    uint64_t* slots                 # open addressing: 16 bits of hash, 48 bits of Node*
    uint64_t slot_count             # a power of two
    uint64_t nodes
    uint64_t entries
    uint64_t deletes
    uint64_t expiring               # entries with an expiry that were ever added
    Chunk* chunks
    uint8_t* free
    uint64_t free_size
    uint64_t next_chunk_size
    Pool* pool                      # where chunks come from and go; may be NULL
    uint64_t allocated              # bytes of chunks
    uint64_t used                   # chunks as far as they are filled, and the hash index: what the write buffer's limit is compared with
    uint64_t largest_sequence
    Node* pending                   # keys that the hash index knows and the skiplist does not, the latest first
    uint64_t pending_count
    RangeList* pieces[64]           # range deletes; each list is at least twice as long as the one after it
    int piece_count
    uint64_t range_deletes          # that were ever added
    bint settling                   # somebody puts keys into the skiplist
    pthread_mutex_t settled         # held by whoever does

cdef struct SortItem:
    uint64_t head                   # eight bytes of the key, from where the keys begin to differ, as a big-endian number
    Node* node

# -- nodes ------------------------------------------------------------------------------------------------------------
cdef inline uint32_t entry_shape(size_t key_size, int height, uint64_t slack) noexcept nogil:
    return <uint32_t>key_size | (<uint32_t>height << KEY_BITS) | (<uint32_t>min(slack, <uint64_t>SLACK_MAX) << (KEY_BITS + HEIGHT_BITS))

cdef inline size_t node_key_size(Node* node) noexcept nogil:
    return node.first.shape & ((1 << KEY_BITS) - 1)

cdef inline int node_height(Node* node) noexcept nogil:
    return (node.first.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1)

cdef inline uint8_t* node_key(Node* node) noexcept nogil:
    return <uint8_t*>node + sizeof(Node)

cdef inline uint8_t* entry_value(Entry* entry) noexcept nogil:
    return <uint8_t*>entry + sizeof(Entry) + (entry.shape & ((1 << KEY_BITS) - 1))

cdef inline Entry* entry_older(Entry* entry) noexcept nogil:
    if (entry.shape >> KEY_BITS) & ((1 << HEIGHT_BITS) - 1):
        return NULL                 # a node's first
    return (<Entry**>entry - 1)[0]

cdef inline Node* node_next(Node* node, int level) noexcept nogil:
    return <Node*>nokv_load_acquire(<void**>node - 1 - level)

cdef inline void set_node_next(Node* node, int level, Node* value) noexcept nogil:
    nokv_store_release(<void**>node - 1 - level, <void*>value)

cdef inline Node* node_before(Node* node) noexcept nogil:
    """Of a chain of pending nodes. Most lie one behind the other in memory, so it is known where the next ones are before they say."""
    cdef Node* previous = node.previous
    nokv_prefetch(<void*>(<uint64_t>node - 8 * (<uint64_t>node - <uint64_t>previous)))
    return previous

cdef inline void link_node(Table* t, Node* node, Node** before) noexcept nogil:
    """Put `node` behind before[level] of each of its levels, which then are `node` itself."""
    cdef int height = node_height(node)
    cdef int level
    cdef Node* after = node_next(before[0], 0)
    if height > t.height:
        t.height = height
    node.previous = before[0]
    for level in range(height):
        set_node_next(node, level, node_next(before[level], level))
    for level in range(height):
        set_node_next(before[level], level, node)
        if t.tails[level] == before[level]:
            t.tails[level] = node
        before[level] = node
    if after != NULL:
        nokv_store_release(<void**>&after.previous, <void*>node)

# For whoever links, when `linked` nodes are: a new order, if it is time for one and there is memory for it.
cdef void renew_order(Table* t, uint64_t linked) noexcept nogil
cdef void settle_nodes(Table* t, Node* latest, uint64_t count, SortItem* items) noexcept nogil
cdef SortItem* sort_nodes(Node* latest, uint64_t count, SortItem* items) noexcept nogil
cdef Cursor* new_cursor(Table* t) noexcept nogil
cdef Cursor* new_flush_cursor(Table* t, Node** nodes, uint64_t count) noexcept nogil
