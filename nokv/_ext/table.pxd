"""A sorted string table (docs/formats/sst.md): reading and building.

An open Table never changes and may be used by any thread. Functions that may have to decode a zstd block take the GIL for
the time of the decoding: never call them while holding a lock that a GIL holder may wait for.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from nokv._ext.blockcache cimport BlockCache, CacheData, CachedBlock, release_block
from nokv._ext.cursor cimport Cursor, Slice
from nokv._ext.ranges cimport RangeList

cdef enum:
    CODEC_NONE = 0                      # codec values never change
    CODEC_ZSTD = 1
    CODEC_LZ4 = 2
    BLOCK_TRAILER_SIZE = 9
    FOOTER_SIZE = 64
    INTERNAL_KEY_SIZE_MAX = 1 << 17
    ZSTD_RAW_SIZE_MAX = 4 << 20         # larger blocks are stored plain, so a frame can never blow up memory

cdef struct IndexEntry:
    Slice key                           # internal key >= every key of the block and < every key of the next one
    uint64_t offset
    uint32_t stored_size                # without the trailer

cdef struct TableData:
    const uint8_t* base
    size_t size
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
    uint32_t* slots                     # the point index (see table.pyx), NULL until the first point read
    uint64_t slot_count
    uint64_t slots_free
    uint64_t entries
    bint compressed                     # its blocks may be
    int restart_bits
    int position_bits
    uint8_t* indexed                    # one byte per block: its keys are in `slots`
    uint16_t* starts                    # by position - 1: where the restart point lies in its block
    int64_t error_offset                # of the first damage found, -1 if none
    const char* error_reason

# Newest entry of `prefix` (family || user key) with a sequence <= `sequence`: 1 found, 0 absent, < 0 CursorStatus.
# `hash` is filter_hash(prefix). If *pin comes back not NULL, `value` points into it: release_block(pin) when done; else
# `value` is valid as long as the table.
cdef int table_get(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                   Slice* value, int* kind, CachedBlock** pin) noexcept nogil

cdef struct Hint:                       # one point read of several that are made together
    TableData* table
    uint64_t hash
    uint32_t position                   # 0: the point index does not know the key
    CachedBlock* pin

# Three passes over several reads, each of which asks for the memory that the next one looks at. The caller holds the GIL and then
# reads with table_get; hint_done lets go.
cdef void hint_start(Hint* hint, TableData* t, uint64_t hash) noexcept nogil
cdef void hint_place(Hint* hint) noexcept nogil
cdef void hint_block(Hint* hint) noexcept nogil
cdef void hint_entry(Hint* hint) noexcept nogil
cdef inline void hint_done(Hint* hint) noexcept nogil:
    release_block(hint.pin)

cdef Cursor* table_cursor(TableData* t) noexcept nogil          # NULL: no memory
cdef void table_cursor_reset(Cursor* c, TableData* t) noexcept nogil    # walk another table with the same cursor
cdef uint64_t filter_hash(const uint8_t* p, size_t n) noexcept nogil

cdef class Table:
    cdef TableData t
    cdef Py_buffer* view                # not a member by value: the collector must not see through it (see table.pyx)
    cdef readonly str path
    cdef readonly object meta           # manifest.edit.FileMeta, or None
    cdef readonly dict properties
    cdef readonly uint32_t version      # of the format
    cdef BlockCache cache
    cdef object __weakref__
    cdef _damaged(self, uint64_t offset, str reason, expected=*, found=*)
    cdef const uint8_t* _meta_block(self, uint64_t offset, uint64_t size, uint64_t end, str name) except NULL
    cdef _open(self)
    cdef uint64_t _read_ranges(self, uint64_t filter_offset) except? 0
    cdef _read_properties(self, uint64_t offset, uint64_t size)
    cdef _read_index(self, uint64_t offset, uint64_t size, uint64_t data_end)
    cdef _read_heads(self)
    cdef _check_meta(self, meta)
    cpdef raise_status(self, int status)
