"""Checking the filter and the index of a table (docs/formats/sst.md), and turning the index into an array.

An open table has been checked as far as its footer and its properties; where filter and index lie is known to be inside the
file. What they hold is not: that is settled here, once, when somebody first needs it, so that to open a directory costs little
however much its tables hold. What is found damaged stays damaged: whoever needs it gets CURSOR_CORRUPT, every time.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from nokv._ext.block cimport (
    BLOCK_TRAILER_SIZE,
    CODEC_NONE,
    IndexEntry,
    TableData,
    checksum_holds,
    damage,
    pthread_mutex_t,
)
from nokv._ext.blockcache cimport Home
from nokv._ext.codec cimport Reader, get_fixed32, left, read_bytes, read_varint, reader
from nokv._ext.cursor cimport CURSOR_CORRUPT, CURSOR_NO_MEMORY, CURSOR_OK, Slice, TRAILER_SIZE, compare_internal
from nokv._ext.tablecursor cimport head_of

cdef extern from *:
    """static inline void nokv_set_parts(int* parts, int value) { __atomic_store_n(parts, value, __ATOMIC_RELEASE); }"""
    void nokv_set_parts(int* parts, int value) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)


cdef void parts_init(TableData* t) noexcept nogil:
    pthread_mutex_init(&t.checking, NULL)


cdef void parts_free(TableData* t) noexcept nogil:
    free_index(t)
    pthread_mutex_destroy(&t.checking)


cdef int check_part(TableData* t, int part) noexcept nogil:
    cdef int status
    pthread_mutex_lock(&t.checking)
    if t.parts & part:
        status = CURSOR_OK
    elif t.bad_parts & part:
        status = CURSOR_CORRUPT
    else:
        status = check_filter(t) if part == PART_FILTER else check_index(t)
        if status == CURSOR_OK:
            nokv_set_parts(&t.parts, t.parts | part)
        elif status == CURSOR_CORRUPT:
            t.bad_parts |= part
    pthread_mutex_unlock(&t.checking)
    return status


cdef int check_block(TableData* t, uint64_t offset, uint64_t size, const char* checksum, const char* frame) noexcept nogil:
    cdef const uint8_t* payload = t.base + offset
    if not checksum_holds(payload, size):
        return damage(t, offset, checksum)
    if payload[size] != CODEC_NONE or get_fixed32(payload + size + 1) != size:
        return damage(t, offset, frame)
    return CURSOR_OK


cdef int check_filter(TableData* t) noexcept nogil:
    return check_block(t, t.filter_offset, t.filter_size, "the checksum of the filter block does not match",
                       "the filter block states a wrong codec or size")


cdef int check_index(TableData* t) noexcept nogil:
    cdef int status = check_block(t, t.index_offset, t.index_size, "the checksum of the index block does not match",
                                  "the index block states a wrong codec or size")
    if status == CURSOR_OK:
        status = read_index(t)
        if status != CURSOR_OK:
            free_index(t)
    return status


cdef void free_index(TableData* t) noexcept nogil:
    """Nobody has any of its blocks in the cache."""
    free(t.index)
    free(t.heads)
    free(t.verified)
    free(t.homes)
    t.index = NULL
    t.heads = NULL
    t.verified = NULL
    t.homes = NULL


cdef int read_index(TableData* t) noexcept nogil:
    cdef Reader r = reader(t.base + t.index_offset, t.index_size)
    cdef uint64_t at = 0, stored = 0
    cdef uint32_t i
    cdef IndexEntry* entry
    t.index = <IndexEntry*>malloc(t.blocks * sizeof(IndexEntry))
    t.heads = <uint64_t*>malloc(t.blocks * sizeof(uint64_t))
    t.verified = <uint8_t*>calloc(t.blocks, 1)
    t.homes = <Home*>calloc(t.blocks, sizeof(Home))
    if t.index == NULL or t.heads == NULL or t.verified == NULL or t.homes == NULL:
        return CURSOR_NO_MEMORY
    for i in range(t.blocks):
        entry = &t.index[i]
        if not read_bytes(&r, &entry.key.data, &entry.key.size) or not read_varint(&r, &stored):
            return damage(t, t.index_offset, "an index entry is cut off")
        if entry.key.size <= TRAILER_SIZE:
            return damage(t, t.index_offset, "an index key is too short")
        if i and compare_internal(t.index[i - 1].key, entry.key) >= 0:
            return damage(t, t.index_offset, "the index keys are not in order")
        if stored > t.data_end - at or t.data_end - at - stored < BLOCK_TRAILER_SIZE or stored > <uint64_t>0xFFFFFFFF:
            return damage(t, t.index_offset, "the index describes blocks outside the data")
        entry.offset = at
        entry.stored_size = <uint32_t>stored
        at += stored + BLOCK_TRAILER_SIZE
    if left(&r) or at != t.data_end:
        return damage(t, t.index_offset, "the index does not cover the data")
    read_heads(t)
    return CURSOR_OK


cdef void read_heads(TableData* t) noexcept nogil:
    cdef Slice first = t.index[0].key
    cdef Slice last = t.index[t.blocks - 1].key
    cdef size_t most = min(first.size, last.size) - TRAILER_SIZE
    cdef size_t common = 0
    cdef uint32_t i
    while common < most and first.data[common] == last.data[common]:
        common += 1                     # the keys are in order: what the first and the last share, all share
    t.common = common
    for i in range(t.blocks):
        t.heads[i] = head_of(t.index[i].key.data + common, t.index[i].key.size - TRAILER_SIZE - common)
