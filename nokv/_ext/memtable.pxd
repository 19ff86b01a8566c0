from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.arena cimport Chunk, Pool
from nokv._ext.cursor cimport Cursor, Slice
from nokv._ext.ranges cimport RangeList

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    HEIGHT_MAX = 12
    PIECES_MAX = 64                 # each holds at least twice as much as the next: never reached

cdef struct Entry:                  # one version of a key; its value follows. Before a later one lies an Entry*: the next older one
    uint64_t packed                 # sequence << 8 | kind
    uint32_t value_size
    uint32_t shape                  # see `_shape`: of a node's first one, the key lies between it and the value

cdef struct Node:                   # one user key; `height` next pointers lie before it, the key (family || user key) after it
    Entry* newest
    Node* previous                  # in key order; while it is pending: the node that came before it
    Entry first                     # the oldest version, until one that needs more room takes its place

cdef struct Table:                  # everything a cursor needs, without a Python object
    Node* head
    Node* tails[12]                 # last node of each level: ascending keys are appended without a search
    int height
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

cdef class MemTable:
    cdef Table t
    cdef public uint64_t first_segment      # the oldest WAL segment that holds a record of this table
    cdef int add(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, const uint8_t* value,
                 size_t value_size, uint64_t newest_snapshot) noexcept nogil
    cdef int add_hashed(self, uint64_t sequence, int kind, const uint8_t* prefix, size_t prefix_size, uint64_t hash,
                        const uint8_t* value, size_t value_size, uint64_t newest_snapshot) noexcept nogil
    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value,
                 int* kind) noexcept nogil
    cdef int add_range(self, uint64_t sequence, Slice start, Slice end, const uint64_t* snapshots, size_t snapshot_count) noexcept nogil
    cdef uint64_t cover(self, const uint8_t* prefix, size_t prefix_size, uint64_t sequence) noexcept nogil
    cdef void wait_settled(self) noexcept
    cdef int settle(self) except -1
    cdef Cursor* cursor(self) noexcept nogil
    cdef Cursor* flush_cursor(self) except NULL

cdef uint64_t hash_prefix(const uint8_t* p, size_t n) noexcept nogil
cdef void prefetch_slot(Table* t, uint64_t hash) noexcept nogil
cdef void prefetch_node(Table* t, uint64_t hash) noexcept nogil         # what its slot, prefetched before, points to
