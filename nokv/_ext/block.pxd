"""What an open table is to those who read it, and its data blocks: checked as a whole when they are read, and expanded.

An expanded block is a CachedBlock, the head of each sixteenth entry, the groups of sixteen (the last one has what is left), then the
entries one after the other, each at a multiple of eight:

    head  = four bytes of the key behind what all keys of the block begin with, as a number that sorts like them
    group = the heads of its entries (4 each) | where each of these entries begins (4), from the start of the CachedBlock
    entry = key size (4; the highest bit: LONG_VALUE) | value size (4) | internal key | value, or its address (8)

So a search looks at the block's first cache lines, which are asked for together, at one group, and at the entry.
Nothing in it is checked again. Functions that may have to decode a zstd block take the GIL for the time of the decoding: never
call them while holding a lock that a GIL holder may wait for.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nokv._ext.blockcache cimport CacheData, CachedBlock, Home, cache_find
from nokv._ext.codec cimport get_fixed32
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport CURSOR_CORRUPT, CURSOR_OK, Slice
from nokv._ext.ranges cimport RangeList

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    CODEC_NONE = 0                      # codec values never change
    CODEC_ZSTD = 1
    CODEC_LZ4 = 2
    BLOCK_TRAILER_SIZE = 9
    INTERNAL_KEY_SIZE_MAX = 1 << 17
    ZSTD_RAW_SIZE_MAX = 4 << 20         # larger blocks are stored plain, so a frame can never blow up memory

cdef struct IndexEntry:
    Slice key                           # internal key >= every key of the block and < every key of the next one
    uint64_t offset
    uint32_t stored_size                # without the trailer

cdef struct TableData:
    const uint8_t* base
    size_t size
    bint mapped                         # `base` is the map of the file: its pages may leave memory and come back
    int parts                           # which of filter and index have been checked (tableparts.pxd): before that, hands off
    IndexEntry* index
    uint64_t* heads                     # of every index key: eight bytes behind what all have in common, as a big-endian number
    size_t common                       # bytes that all index keys have in common
    uint32_t blocks
    uint8_t* verified                   # one byte per block: its checksum was right once
    const uint8_t* filter
    uint64_t filter_lines
    uint64_t newest_sequence            # of its entries
    RangeList* ranges                   # range deletes; NULL: none
    Slice smallest                      # family || user key; its range deletes lie within these two
    Slice largest
    bint has_global_sequence
    uint64_t global_sequence
    CacheData* cache
    Home* homes                         # one per block
    uint32_t* slots                     # the point index (see pointindex.pyx), NULL until the first point read
    uint64_t slot_count
    uint64_t slots_free
    uint64_t entries
    uint64_t raw_bytes                  # of its blocks, decoded and not expanded
    int offset_bits
    int position_bits
    uint8_t* indexed                    # one byte per block: its keys are in `slots`
    int bad_parts                       # found damaged; guarded by `checking`
    pthread_mutex_t checking
    uint64_t filter_offset              # of the payloads
    uint64_t filter_size
    uint64_t index_offset
    uint64_t index_size
    uint64_t data_end
    int64_t error_offset                # of the first damage found, -1 if none
    const char* error_reason

cdef struct Entry:
    uint32_t key_size
    uint32_t value_size

cdef struct BlockRoom:                  # memory for blocks read one after the other
    uint8_t* raw
    size_t raw_room
    CachedBlock* block
    size_t block_room
    size_t spare                        # how many 1/16 more to ask for

cdef enum:
    GROUP = 16
    ENTRY_ALIGN = 8
    LONG_VALUE_SIZE = 32 << 10          # of a plain block: from here on the value stays in the file
    EXPANDED_KEYS_MAX = 64 << 20        # a block whose keys take more is refused: such are never written

cdef extern from *:
    """#define NOKV_LONG_VALUE 0x80000000u"""
    const uint32_t LONG_VALUE "NOKV_LONG_VALUE"

cdef inline size_t entry_size(const uint8_t* entry) noexcept nogil:
    cdef uint32_t key_size = (<Entry*>entry).key_size
    cdef size_t value_size = (<Entry*>entry).value_size
    if key_size & LONG_VALUE:
        key_size ^= LONG_VALUE
        value_size = sizeof(void*)
    return (sizeof(Entry) + key_size + value_size + ENTRY_ALIGN - 1) & ~<size_t>(ENTRY_ALIGN - 1)

cdef inline Slice entry_key(const uint8_t* entry) noexcept nogil:
    cdef Slice key
    key.data = entry + sizeof(Entry)
    key.size = (<Entry*>entry).key_size & ~LONG_VALUE
    return key

cdef inline Slice entry_value(const uint8_t* entry) noexcept nogil:
    cdef Slice value
    value.data = entry + sizeof(Entry) + ((<Entry*>entry).key_size & ~LONG_VALUE)
    value.size = (<Entry*>entry).value_size
    if (<Entry*>entry).key_size & LONG_VALUE:
        memcpy(&value.data, value.data, sizeof(void*))
    return value

cdef inline size_t places_size(uint64_t count) noexcept nogil:
    """Bytes of the heads and groups of so many entries."""
    return <size_t>(4 * ((count + GROUP - 1) // GROUP + 2 * count) + ENTRY_ALIGN - 1) & ~<size_t>(ENTRY_ALIGN - 1)

cdef inline uint32_t* block_samples(const CachedBlock* block) noexcept nogil:
    """The head of each sixteenth entry."""
    return <uint32_t*>(<uint8_t*>block + sizeof(CachedBlock))

cdef inline uint32_t* block_group(const CachedBlock* block, uint32_t ordinal) noexcept nogil:
    """The heads of the group of an entry, then where its entries begin."""
    return block_samples(block) + (block.count + GROUP - 1) // GROUP + 2 * <size_t>(ordinal & ~<uint32_t>(GROUP - 1))

cdef inline uint32_t group_size(const CachedBlock* block, uint32_t ordinal) noexcept nogil:
    return min(<uint32_t>GROUP, block.count - (ordinal & ~<uint32_t>(GROUP - 1)))

cdef inline uint32_t* head_place(const CachedBlock* block, uint32_t ordinal) noexcept nogil:
    return block_group(block, ordinal) + (ordinal & (GROUP - 1))

cdef inline uint32_t* entry_place(const CachedBlock* block, uint32_t ordinal) noexcept nogil:
    return head_place(block, ordinal) + group_size(block, ordinal)

cdef inline const uint8_t* block_entry(const CachedBlock* block, uint32_t ordinal) noexcept nogil:
    return <const uint8_t*>block + entry_place(block, ordinal)[0]

cdef inline const uint8_t* first_entry(const CachedBlock* block) noexcept nogil:
    return <const uint8_t*>block + sizeof(CachedBlock) + places_size(block.count)

cdef inline int damage(TableData* t, uint64_t offset, const char* reason) noexcept nogil:
    """The first damage found is what `Table.raise_status` reports."""
    if t.error_offset < 0:
        t.error_reason = reason
        t.error_offset = <int64_t>offset
    return CURSOR_CORRUPT

cdef inline bint checksum_holds(const uint8_t* payload, uint64_t stored_size) noexcept nogil:
    return crc32c(0, payload, stored_size + 5) == get_fixed32(payload + stored_size + 5)

# 0 .. count: the first entry that is not below prefix || trailer.
cdef uint32_t find_in_block(const CachedBlock* block, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil

# Ask for what find_in_block looks at: first a group, when that is there the entry and what follows it.
cdef void ask_for_group(const CachedBlock* block, const uint8_t* prefix, size_t size) noexcept nogil
cdef void ask_for_entry(const CachedBlock* block, const uint8_t* prefix, size_t size) noexcept nogil

# A block into `room`, which is made larger if it must be. CursorStatus.
cdef int read_block(TableData* t, uint32_t i, BlockRoom* room) noexcept nogil
cdef void free_room(BlockRoom* room) noexcept nogil
# A block in the cache, borrowed; the caller holds the GIL. CursorStatus.
cdef int load_block(TableData* t, uint32_t i, CachedBlock** block) noexcept nogil

cdef inline int cached_block(TableData* t, uint32_t i, CachedBlock** block) noexcept nogil:
    """As load_block."""
    block[0] = cache_find(t.cache, &t.homes[i])
    return CURSOR_OK if block[0] != NULL else load_block(t, i, block)
