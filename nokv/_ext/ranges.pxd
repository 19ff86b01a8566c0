"""Range deletes as fragments: disjoint, in key order, each with its sequences, newest first. A RangeList never changes.

A range is start <= key < end, both family || user key. An entry is hidden from a reader at s if a sequence t <= s of the
fragment that covers its key is greater than its own. Lists are counted: whoever keeps one takes a reference.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.cursor cimport Cursor, Slice, compare_bytes

cdef struct RangeItem:
    Slice start
    Slice end
    uint64_t sequence

cdef struct RangeList:
    int references
    uint32_t count                  # fragments
    uint32_t sequence_count
    uint64_t smallest_sequence
    uint64_t largest_sequence
    size_t size                     # bytes of memory
    Slice* starts
    Slice* ends
    uint32_t* first                 # sequences[first[i] .. first[i + 1]) are those of fragment i
    uint64_t* sequences

cdef struct RangeSource:            # lists that do not overlap, in key order
    RangeList** lists
    int count

# NULL: no memory. Of the sequences that the same snapshots see only the newest is kept; `snapshots` rises. `bottom`: those that every
# snapshot sees go too.
cdef RangeList* ranges_build(RangeItem* items, size_t n, const uint64_t* snapshots, size_t snapshot_count, bint bottom) noexcept nogil
cdef RangeList* ranges_merge(RangeList** lists, int n, const uint64_t* snapshots, size_t snapshot_count, bint bottom) noexcept nogil
cdef RangeList* ranges_retain(RangeList* list) noexcept nogil
cdef void ranges_release(RangeList* list) noexcept nogil                # NULL is allowed
cdef bint ranges_written(RangeList* list, Slice lower, const Slice* upper, uint64_t after) noexcept nogil

# Over `inner`, without the entries that the sources hide from a reader at `sequence`. Takes over `inner`, and references to the
# lists (not the arrays); what the lists are part of need not stay. NULL: no memory, nothing was taken.
cdef Cursor* hiding_cursor(Cursor* inner, RangeSource* sources, int count, uint64_t sequence) noexcept nogil

cdef inline uint32_t ranges_find(const RangeList* list, const uint8_t* key, size_t size) noexcept nogil:
    """The first fragment that ends above `key`, or `count`."""
    cdef uint32_t low = 0
    cdef uint32_t high = list.count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(list.ends[middle].data, list.ends[middle].size, key, size) <= 0:
            low = middle + 1
        else:
            high = middle
    return low

cdef inline uint64_t fragment_newest(const RangeList* list, uint32_t i, uint64_t sequence) noexcept nogil:
    """The newest sequence <= `sequence` of a fragment; 0: none."""
    cdef uint32_t at = list.first[i]
    while at < list.first[i + 1]:
        if list.sequences[at] <= sequence:
            return list.sequences[at]
        at += 1
    return 0

cdef inline uint64_t ranges_cover(const RangeList* list, const uint8_t* key, size_t size, uint64_t sequence) noexcept nogil:
    """The newest range delete of `key` that a reader at `sequence` sees; 0: none."""
    cdef uint32_t i = ranges_find(list, key, size)
    if i == list.count or compare_bytes(list.starts[i].data, list.starts[i].size, key, size) > 0:
        return 0
    return fragment_newest(list, i, sequence)

cdef class Ranges:
    """A RangeList for Python: what the engine's steps hand on, and the tests look at."""
    cdef RangeList* list

    @staticmethod
    cdef Ranges make(RangeList* list)               # takes over the reference; MemoryError if it is NULL

cdef RangeList* ranges_decode(const uint8_t* data, size_t size, str path, uint64_t offset) except NULL
