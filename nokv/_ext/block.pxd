"""What an open table is to those who read it, and its data blocks: checked the first time, and decoded.

Functions that may have to decode a zstd block take the GIL for the time of the decoding: never call them while holding a lock
that a GIL holder may wait for.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from nokv._ext.blockcache cimport CacheData, CachedBlock
from nokv._ext.codec cimport get_fixed32
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport CURSOR_CORRUPT, Slice
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
    CachedBlock** resident              # one per block: decoded and in the cache, or NULL; guarded by the cache
    uint32_t* slots                     # the point index (see pointindex.pyx), NULL until the first point read
    uint64_t slot_count
    uint64_t slots_free
    uint64_t entries
    bint compressed                     # its blocks may be
    int restart_bits
    int position_bits
    uint8_t* indexed                    # one byte per block: its keys are in `slots`
    uint16_t* starts                    # by position - 1: where the restart point lies in its block
    int bad_parts                       # found damaged; guarded by `checking`
    pthread_mutex_t checking
    uint64_t filter_offset              # of the payloads
    uint64_t filter_size
    uint64_t index_offset
    uint64_t index_size
    uint64_t data_end
    int64_t error_offset                # of the first damage found, -1 if none
    const char* error_reason

cdef struct BlockView:
    const uint8_t* data
    size_t end                          # where the entries end
    const uint8_t* restarts
    uint32_t restart_count
    CachedBlock* pin

cdef inline int damage(TableData* t, uint64_t offset, const char* reason) noexcept nogil:
    """The first damage found is what `Table.raise_status` reports."""
    if t.error_offset < 0:
        t.error_reason = reason
        t.error_offset = <int64_t>offset
    return CURSOR_CORRUPT

cdef inline bint checksum_holds(const uint8_t* payload, uint64_t stored_size) noexcept nogil:
    return crc32c(0, payload, stored_size + 5) == get_fixed32(payload + stored_size + 5)

cdef int load_block(TableData* t, uint32_t i, BlockView* view) noexcept nogil   # the caller owes release_block(view.pin)
