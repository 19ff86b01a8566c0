"""Reading a sorted string table (docs/formats/sst.md).

    data block ... | range block (if there are range deletes) | filter block | properties block | index block | footer (64 bytes)
    block   = payload | codec (1) | raw size (4) | CRC-32C of payload, codec and raw size (4)
    entry   = varint shared | varint unshared | varint value size | unshared key bytes | value
    payload = entries | offset of each restart point (4 each) | how many (4)

Everything that comes from the file is checked before use: the footer, filter, properties and index when the table is opened,
a data block the first time it is read. Whoever finds damage notes where in TableData and returns CURSOR_CORRUPT; raise_status
turns that into Corruption with file and offset. A plain block is read in place; a zstd block is decoded into the block cache.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.blockcache cimport (
    BlockCache,
    CacheData,
    CachedBlock,
    cache_add,
    cache_find,
    block_data,
    cache_forget,
    new_block,
    release_block,
)
from nokv._ext.codec cimport (
    Reader,
    get_fixed32,
    get_fixed64,
    left,
    read_bytes,
    read_varint,
    reader,
    take,
)
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_IO,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    CursorOps,
    KIND_DELETE,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    compare_internal,
    entry_is_sound,
    kind_is_reference,
    put_trailer,
    read_trailer,
)
from nokv._ext.lz4 cimport lz4_decompress
from nokv._ext.merge cimport OwnedCursor
from nokv._ext.ranges cimport Ranges, ranges_cover, ranges_decode, ranges_release, ranges_retain

from nokv.errors import Corruption, NotSupported

MAGIC = b"NOKVSST\x01"
FORMAT_VERSION_PLAIN = 1                # deletes and puts
FORMAT_VERSION = 2                      # kinds above 1, or the codec lz4

cdef extern from *:
    """static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }"""
    void nokv_prefetch(const void* p) noexcept nogil

cdef enum:
    BLOCK_ENTRIES_MAX = 1 << 16         # on the average; a table that claims more has no point index
    HINT_LINES = 12
    STACK_KEY = 512
    LINE = 64                           # bytes of one filter line
    PROBES = 6


# -- filter -----------------------------------------------------------------------------------------------------------
cdef uint64_t filter_hash(const uint8_t* p, size_t n) noexcept nogil:
    """Eight bytes at a time, little-endian, the rest padded with zeros; the length is mixed in first."""
    cdef uint64_t h = <uint64_t>n * <uint64_t>0x9E3779B97F4A7C15
    cdef uint64_t w
    cdef size_t i
    while n >= 8:
        h = (h ^ get_fixed64(p)) * <uint64_t>0xD6E8FEB86659FD93
        h ^= h >> 32
        p += 8
        n -= 8
    w = 0
    for i in range(n):
        w |= <uint64_t>p[i] << (8 * i)
    h = (h ^ w) * <uint64_t>0xD6E8FEB86659FD93
    h ^= h >> 32
    h *= <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 29)


cdef inline bint filter_may_hold(const TableData* t, uint64_t hash) noexcept nogil:
    cdef const uint8_t* line
    cdef uint64_t bits
    cdef int i
    cdef uint32_t bit
    if t.filter_lines == 0:
        return True
    line = t.filter + ((hash >> 32) * t.filter_lines >> 32) * LINE
    bits = hash * <uint64_t>0xC2B2AE3D27D4EB4F
    for i in range(PROBES):
        bit = <uint32_t>(bits >> (10 + 9 * i)) & 511
        if not line[bit >> 3] & (1 << (bit & 7)):
            return False
    return True


# -- blocks -----------------------------------------------------------------------------------------------------------
cdef struct BlockView:
    const uint8_t* data
    size_t end                          # where the entries end
    const uint8_t* restarts
    uint32_t restart_count
    CachedBlock* pin


cdef int damage(TableData* t, uint64_t offset, const char* reason) noexcept nogil:
    if t.error_offset < 0:
        t.error_reason = reason
        t.error_offset = <int64_t>offset
    return CURSOR_CORRUPT


cdef inline bint checksum_holds(const uint8_t* payload, uint64_t stored_size) noexcept nogil:
    return crc32c(0, payload, stored_size + 5) == get_fixed32(payload + stored_size + 5)


cdef list idle_decompressors = []       # one is not safe for two threads; list pop and append are atomic


cdef int decode_zstd(const uint8_t* frame, size_t size, uint8_t* out, size_t raw_size) noexcept with gil:
    try:
        import zstandard

        view = PyMemoryView_FromMemory(<char*>frame, <Py_ssize_t>size, PyBUF_READ)
        try:
            if zstandard.frame_content_size(view) != raw_size:
                return CURSOR_CORRUPT
            try:
                decompressor = idle_decompressors.pop()
            except IndexError:
                decompressor = zstandard.ZstdDecompressor()
            raw = decompressor.decompress(view, max_output_size=raw_size)
            idle_decompressors.append(decompressor)
        except zstandard.ZstdError:
            return CURSOR_CORRUPT
        if len(raw) != raw_size:
            return CURSOR_CORRUPT
        memcpy(out, <const uint8_t*><const char*>(<bytes>raw), raw_size)
        return CURSOR_OK
    except MemoryError:
        return CURSOR_NO_MEMORY
    except BaseException:               # there is no Python frame to hand it to; the status keeps it from looking like data
        return CURSOR_IO


cdef int load_block(TableData* t, uint32_t i, BlockView* view) noexcept nogil:
    """Fills `view`; the caller owes release_block(view.pin)."""
    cdef size_t raw_size = 0
    cdef int status = CURSOR_OK
    view.pin = cache_find(t.cache, &t.resident[i]) if t.compressed else NULL
    if view.pin != NULL:
        view.data = block_data(view.pin)
        raw_size = view.pin.size
    else:
        status = read_block(t, i, view, &raw_size)
        if status != CURSOR_OK:
            return status
    if raw_size < 8:
        status = damage(t, t.index[i].offset, "a data block is too short")
    else:
        view.restart_count = get_fixed32(view.data + raw_size - 4)
        if view.restart_count == 0 or view.restart_count > (raw_size - 4) // 4:
            status = damage(t, t.index[i].offset, "a data block states a wrong number of restart points")
        else:
            view.end = raw_size - 4 - 4 * <size_t>view.restart_count
            view.restarts = view.data + view.end
            return CURSOR_OK
    release_block(view.pin)
    view.pin = NULL
    return status


cdef int read_block(TableData* t, uint32_t i, BlockView* view, size_t* raw_size) noexcept nogil:
    cdef IndexEntry* entry = &t.index[i]
    cdef const uint8_t* stored = t.base + entry.offset
    cdef uint8_t codec = stored[entry.stored_size]
    cdef CachedBlock* made
    cdef int status
    raw_size[0] = get_fixed32(stored + entry.stored_size + 1)
    if not t.verified[i]:
        if not checksum_holds(stored, entry.stored_size):
            return damage(t, entry.offset, "the checksum of a data block does not match")
        t.verified[i] = 1
    if codec == CODEC_NONE:
        if raw_size[0] != entry.stored_size:
            return damage(t, entry.offset, "a plain block states another size than it has")
        view.data = stored
        return CURSOR_OK
    if codec != CODEC_ZSTD and codec != CODEC_LZ4:
        return damage(t, entry.offset, "a data block has an unknown codec")
    if raw_size[0] > ZSTD_RAW_SIZE_MAX:
        return damage(t, entry.offset, "a compressed block states a size above the limit")
    made = new_block(raw_size[0])
    if made == NULL:
        return CURSOR_NO_MEMORY
    if codec == CODEC_ZSTD:
        status = decode_zstd(stored, entry.stored_size, block_data(made), raw_size[0])
    else:
        status = CURSOR_OK if lz4_decompress(stored, entry.stored_size, block_data(made), raw_size[0]) else CURSOR_CORRUPT
    if status != CURSOR_OK:
        free(made)
        if status == CURSOR_CORRUPT:
            return damage(t, entry.offset, "a compressed block cannot be decoded to the stated size")
        return status
    view.pin = cache_add(t.cache, &t.resident[i], made)
    view.data = block_data(view.pin)
    return CURSOR_OK


# -- cursor -----------------------------------------------------------------------------------------------------------
cdef struct TableCursor:
    Cursor base
    TableData* table
    BlockView view
    bint loaded
    uint32_t block
    size_t offset                       # of the current entry in the block
    size_t next_offset
    uint8_t* key
    size_t key_size
    size_t key_room
    bint key_on_heap


cdef inline void fail(TableCursor* tc, int status) noexcept nogil:
    tc.base.valid = False
    tc.base.status = status


cdef void bad_entry(TableCursor* tc, const char* reason) noexcept nogil:
    fail(tc, damage(tc.table, tc.table.index[tc.block].offset, reason))


cdef void unload(TableCursor* tc) noexcept nogil:
    if tc.loaded:
        release_block(tc.view.pin)
        tc.view.pin = NULL
        tc.loaded = False


cdef bint enter_block(TableCursor* tc, uint32_t block) noexcept nogil:
    cdef int status
    if tc.loaded and tc.block == block:
        return True
    unload(tc)
    tc.block = block
    status = load_block(tc.table, block, &tc.view)
    if status != CURSOR_OK:
        fail(tc, status)
        return False
    tc.loaded = True
    return True


cdef bint grow_key(TableCursor* tc, size_t size) noexcept nogil:
    cdef uint8_t* room
    cdef size_t wanted = size * 2
    if tc.key_on_heap:
        room = <uint8_t*>realloc(tc.key, wanted)
    else:
        room = <uint8_t*>malloc(wanted)
        if room != NULL and tc.key_size:
            memcpy(room, tc.key, tc.key_size)
    if room == NULL:
        fail(tc, CURSOR_NO_MEMORY)
        return False
    tc.key = room
    tc.key_room = wanted
    tc.key_on_heap = True
    return True


cdef bint read_entry(TableCursor* tc, size_t offset) noexcept nogil:
    """Decode the entry at `offset`; tc.key holds the key before it (key_size 0 at a restart point)."""
    cdef Reader r = reader(tc.view.data + offset, tc.view.end - offset)
    cdef uint64_t shared = 0
    cdef uint64_t unshared = 0
    cdef uint64_t value_size = 0
    cdef const uint8_t* suffix
    if left(&r) >= 3 and (r.pos[0] | r.pos[1] | r.pos[2]) < 128:
        shared = r.pos[0]
        unshared = r.pos[1]
        value_size = r.pos[2]
        r.pos += 3
    elif not (read_varint(&r, &shared) and read_varint(&r, &unshared) and read_varint(&r, &value_size)):
        bad_entry(tc, "an entry's lengths are cut off")
        return False
    # a key shares at most the user key with the one before it, so that its trailer is its own
    if unshared < TRAILER_SIZE or unshared > INTERNAL_KEY_SIZE_MAX or shared > INTERNAL_KEY_SIZE_MAX \
            or shared + unshared <= TRAILER_SIZE or (shared and shared + TRAILER_SIZE > tc.key_size):
        bad_entry(tc, "an entry's key has an impossible length")
        return False
    suffix = take(&r, unshared)
    if suffix == NULL:
        bad_entry(tc, "an entry's key runs past the block")
        return False
    tc.base.value.data = take(&r, value_size)
    if tc.base.value.data == NULL:
        bad_entry(tc, "an entry's value runs past the block")
        return False
    tc.base.value.size = <size_t>value_size
    if shared + unshared > tc.key_room and not grow_key(tc, <size_t>(shared + unshared)):
        return False
    memcpy(tc.key + shared, suffix, <size_t>unshared)
    tc.key_size = <size_t>(shared + unshared)
    if tc.table.has_global_sequence:
        put_trailer(tc.key + tc.key_size - TRAILER_SIZE, tc.table.global_sequence,
                    <int>(read_trailer(tc.key + tc.key_size - TRAILER_SIZE) & 255))
    tc.offset = offset
    tc.next_offset = <size_t>(r.pos - tc.view.data)
    tc.base.key.data = tc.key
    tc.base.key.size = tc.key_size
    tc.base.valid = True
    return True


cdef inline bint read_restart(TableCursor* tc, uint32_t restart) noexcept nogil:
    cdef size_t offset = get_fixed32(tc.view.restarts + 4 * <size_t>restart)
    if offset >= tc.view.end:
        bad_entry(tc, "a restart point lies outside its block")
        return False
    tc.key_size = 0
    return read_entry(tc, offset)


cdef void first_of_block(TableCursor* tc, uint32_t block) noexcept nogil:
    if enter_block(tc, block):
        tc.key_size = 0
        read_entry(tc, 0)


cdef void last_of_block(TableCursor* tc, uint32_t block) noexcept nogil:
    if not enter_block(tc, block) or not read_restart(tc, tc.view.restart_count - 1):
        return
    while tc.next_offset < tc.view.end:
        if not read_entry(tc, tc.next_offset):
            return


cdef void step(TableCursor* tc) noexcept nogil:
    if tc.next_offset < tc.view.end:
        read_entry(tc, tc.next_offset)
    elif tc.block + 1 < tc.table.blocks:
        first_of_block(tc, tc.block + 1)
    else:
        tc.base.valid = False


cdef inline int compare_target(Slice key, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil:
    cdef int order = compare_bytes(key.data, key.size - TRAILER_SIZE, prefix, size)
    if order != 0:
        return order
    return memcmp(key.data + key.size - TRAILER_SIZE, trailer, TRAILER_SIZE)


cdef inline uint64_t head_of(const uint8_t* key, size_t size) noexcept nogil:
    cdef uint64_t head = 0
    cdef size_t i
    for i in range(8):
        head = (head << 8) | (key[i] if i < size else 0)
    return head


cdef void narrow(const TableData* t, const uint8_t* prefix, size_t size, uint32_t* first, uint32_t* last) noexcept nogil:
    """The index entry to find lies in [first, last]. Touches one dense array, not the keys."""
    cdef uint32_t low = 0, high = t.blocks, middle
    cdef int order = memcmp(prefix, t.index[0].key.data, size if size < t.common else t.common)
    cdef uint64_t head
    if order != 0 or size < t.common:
        first[0] = last[0] = t.blocks if order > 0 else 0
        return
    head = head_of(prefix + t.common, size - t.common)
    while low < high:
        middle = low + (high - low) // 2
        if t.heads[middle] < head:
            low = middle + 1
        else:
            high = middle
    first[0] = low
    high = t.blocks
    while low < high:
        middle = low + (high - low) // 2
        if t.heads[middle] <= head:
            low = middle + 1
        else:
            high = middle
    last[0] = high


cdef void seek_to(TableCursor* tc, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil:
    """To the first entry >= prefix || trailer."""
    cdef TableData* t = tc.table
    cdef uint8_t[TRAILER_SIZE] zeros
    cdef const uint8_t* wanted = trailer
    cdef uint32_t low = 0
    cdef uint32_t high = t.blocks
    cdef uint32_t middle
    tc.base.valid = False
    if t.has_global_sequence:           # on disk the trailers say 0: find the user key, then look at its real trailer
        memset(zeros, 0, TRAILER_SIZE)
        wanted = zeros
    narrow(t, prefix, size, &low, &high)
    while low < high:
        middle = low + (high - low) // 2
        if compare_target(t.index[middle].key, prefix, size, wanted) < 0:
            low = middle + 1
        else:
            high = middle
    if low == t.blocks or not enter_block(tc, low):
        return
    low = 0                             # the last restart point with a key < target
    high = tc.view.restart_count - 1
    while low < high:
        middle = low + (high - low + 1) // 2
        if not read_restart(tc, middle):
            return
        if compare_target(tc.base.key, prefix, size, trailer) < 0:
            low = middle
        else:
            high = middle - 1
    if not read_restart(tc, low):
        return
    while tc.base.valid and compare_target(tc.base.key, prefix, size, trailer) < 0:
        step(tc)


cdef void table_seek_first(Cursor* self) noexcept nogil:
    first_of_block(<TableCursor*>self.impl, 0)


cdef void table_seek_last(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    last_of_block(tc, tc.table.blocks - 1)


cdef void table_seek(Cursor* self, Slice internal_key) noexcept nogil:
    seek_to(<TableCursor*>self.impl, internal_key.data, internal_key.size - TRAILER_SIZE,
            internal_key.data + internal_key.size - TRAILER_SIZE)


cdef void table_next(Cursor* self) noexcept nogil:
    step(<TableCursor*>self.impl)


cdef void table_prev(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    cdef size_t target = tc.offset
    cdef uint32_t low = 0
    cdef uint32_t high
    cdef uint32_t middle
    if target == 0:
        if tc.block == 0:
            tc.base.valid = False
        else:
            last_of_block(tc, tc.block - 1)
        return
    high = tc.view.restart_count - 1
    while low < high:                   # the last restart point before the current entry
        middle = low + (high - low + 1) // 2
        if get_fixed32(tc.view.restarts + 4 * <size_t>middle) < target:
            low = middle
        else:
            high = middle - 1
    if not read_restart(tc, low):
        return
    while tc.next_offset < target:
        if not read_entry(tc, tc.next_offset):
            return
    if tc.next_offset != target:
        bad_entry(tc, "the restart points do not fit the entries")


cdef void table_destroy(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    unload(tc)
    if tc.key_on_heap:
        free(tc.key)
    free(tc)


cdef uint64_t table_newest(Cursor* self, Slice low, Slice high) noexcept nogil:
    return (<TableCursor*>self.impl).table.newest_sequence


cdef CursorOps TABLE_OPS
TABLE_OPS.newest = table_newest
TABLE_OPS.seek_first = table_seek_first
TABLE_OPS.seek_last = table_seek_last
TABLE_OPS.seek = table_seek
TABLE_OPS.next = table_next
TABLE_OPS.prev = table_prev
TABLE_OPS.destroy = table_destroy


cdef Cursor* table_cursor(TableData* t) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>calloc(1, sizeof(TableCursor))
    if tc == NULL:
        return NULL
    tc.base.impl = tc
    tc.base.ops = &TABLE_OPS
    tc.table = t
    return &tc.base


cdef void table_cursor_reset(Cursor* c, TableData* t) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>c.impl
    c.valid = False
    if tc.table != t:
        unload(tc)
        tc.table = t


cdef inline int covered_by(uint64_t range_delete, Slice* value, int* kind) noexcept nogil:
    """The answer for a key that has no entry of its own, or only an older one: a delete, if there is a range delete."""
    if range_delete == 0:
        return 0
    kind[0] = KIND_DELETE
    value.data = NULL
    value.size = 0
    return 1


# -- point reads ------------------------------------------------------------------------------------------------------
# The point index: an open-addressing hash table from keys to places in the table, 4 bytes a slot, about 5.7 bytes a key. A
# slot holds some bits of the key's hash and, in its low `position_bits`, 1 + (block << restart_bits | restart point); `starts` says
# where that restart point lies (2 bytes each), so that the block's end need not be looked at. It is made in memory as blocks are
# read: the first point read of a block enters the block's keys. It replaces the binary search over the index (a dozen dependent
# cache misses) by one miss. What it does not know, or what does not check out, is searched for the long way.
#
# Changed under the GIL only: every caller of table_get holds it, and a block's decoding (which may let others in) comes before.
cdef enum:
    POSITION_BITS_MAX = 26              # leaves at least 6 bits of hash


cdef inline int bits_for(uint64_t n) noexcept nogil:
    """How many bits numbers below `n` need."""
    cdef int bits = 0
    while (<uint64_t>1 << bits) < n:
        bits += 1
    return bits


cdef inline uint64_t slot_of(const TableData* t, uint64_t hash) noexcept nogil:
    return ((hash & <uint64_t>0xFFFFFFFF) * t.slot_count) >> 32


cdef inline uint32_t tag_of(const TableData* t, uint64_t hash) noexcept nogil:
    return <uint32_t>((hash >> 32) << t.position_bits)


cdef bint make_slots(TableData* t) noexcept nogil:
    """False: this table does without."""
    cdef int restart_bits, position_bits
    if t.slots_free == 0 and t.slot_count:
        return False                    # tried before
    t.slot_count = 1
    restart_bits = bits_for(t.entries // t.blocks // 12 + 2)
    position_bits = bits_for((<uint64_t>t.blocks << restart_bits) + 1)
    if position_bits > POSITION_BITS_MAX or t.entries > <uint64_t>t.blocks * BLOCK_ENTRIES_MAX or t.has_global_sequence:
        return False
    t.indexed = <uint8_t*>calloc(t.blocks, 1)
    t.starts = <uint16_t*>calloc(<size_t>t.blocks << restart_bits, sizeof(uint16_t))
    t.slots = <uint32_t*>calloc(t.entries * 10 // 7 + 8, 4)
    if t.slots == NULL or t.indexed == NULL or t.starts == NULL:
        free(t.slots)
        free(t.indexed)
        free(t.starts)
        t.slots = NULL
        t.indexed = NULL
        t.starts = NULL
        return False
    t.slot_count = t.entries * 10 // 7 + 8
    t.slots_free = t.entries
    t.restart_bits = restart_bits
    t.position_bits = position_bits
    return True


cdef void index_block(TableCursor* tc) noexcept nogil:
    """Enter the keys of the block that `tc` stands in. Where the newest version of a key may be in the block before, or where the
    block is damaged, the long way remains."""
    cdef TableData* t = tc.table
    cdef uint8_t[STACK_KEY] last
    cdef size_t last_size = 0, size
    cdef uint32_t restart = 0, position
    cdef uint64_t hash, slot
    cdef bint fresh
    t.indexed[tc.block] = 1
    tc.key_size = 0
    if not read_entry(tc, 0):
        return
    while True:
        size = tc.key_size - TRAILER_SIZE
        fresh = restart + 1 < tc.view.restart_count and get_fixed32(tc.view.restarts + 4 * <size_t>(restart + 1)) == tc.offset
        if fresh:
            restart += 1
            if restart >> t.restart_bits or tc.offset > 0xFFFF:
                return
            t.starts[(tc.block << t.restart_bits) | restart] = <uint16_t>tc.offset
        if size > STACK_KEY:
            last_size = 0               # not entered, and neither is the key after it
        else:
            if last_size and (last_size != size or memcmp(last, tc.key, size) != 0):
                if t.slots_free == 0:
                    return
                t.slots_free -= 1
                # The search must come from a smaller key: else the newest version might lie before it.
                position = 1 + ((tc.block << t.restart_bits) | (restart - 1 if fresh else restart))
                hash = filter_hash(tc.key, size)
                slot = slot_of(t, hash)
                while t.slots[slot] != 0:
                    slot = slot + 1 if slot + 1 < t.slot_count else 0
                t.slots[slot] = tag_of(t, hash) | position
            memcpy(last, tc.key, size)
            last_size = size
        if tc.next_offset >= tc.view.end or not read_entry(tc, tc.next_offset):
            return


cdef int search_from(TableCursor* tc, uint32_t block, uint32_t restart, const uint8_t* prefix, size_t size,
                     const uint8_t* trailer) noexcept nogil:
    """1: `tc` stands on the newest entry of `prefix` that `trailer` may see. 0: look elsewhere. < 0: a CursorStatus."""
    cdef bint smaller_seen = False
    cdef int order
    cdef size_t offset = tc.table.starts[(block << tc.table.restart_bits) | restart]
    cdef size_t ahead
    if not enter_block(tc, block):
        return tc.base.status
    if offset >= tc.view.end:
        return 0
    for ahead in range(HINT_LINES):     # the entries up to the next restart point: all at once, not one after the other
        nokv_prefetch(tc.view.data + offset + ahead * 64)
    tc.key_size = 0
    if not read_entry(tc, offset):
        return tc.base.status
    while True:
        order = compare_bytes(tc.key, tc.key_size - TRAILER_SIZE, prefix, size)
        if order >= 0:
            break
        smaller_seen = True
        if tc.next_offset >= tc.view.end:
            return 0
        if not read_entry(tc, tc.next_offset):
            return tc.base.status
    if order > 0 or not smaller_seen:
        return 0
    while tc.base.valid and compare_target(tc.base.key, prefix, size, trailer) < 0:
        step(tc)
    if tc.base.status != CURSOR_OK:
        return tc.base.status
    return tc.base.valid and tc.key_size == size + TRAILER_SIZE and memcmp(tc.key, prefix, size) == 0


cdef int search_index(TableCursor* tc, const uint8_t* prefix, size_t size, uint64_t hash, const uint8_t* trailer) noexcept nogil:
    cdef TableData* t = tc.table
    cdef uint64_t slot = slot_of(t, hash)
    cdef uint32_t tag = tag_of(t, hash)
    cdef uint32_t mask = (<uint32_t>1 << t.position_bits) - 1
    cdef uint32_t position
    cdef int found
    while t.slots[slot] != 0:
        if (t.slots[slot] & ~mask) == tag:
            position = (t.slots[slot] & mask) - 1
            found = search_from(tc, position >> t.restart_bits, position & ((<uint32_t>1 << t.restart_bits) - 1), prefix, size,
                                trailer)
            if found != 0:
                return found
        slot = slot + 1 if slot + 1 < t.slot_count else 0
    return 0


cdef int table_get(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                   Slice* value, int* kind, CachedBlock** pin) noexcept nogil:
    cdef TableCursor tc
    cdef uint8_t[STACK_KEY] room
    cdef uint8_t[TRAILER_SIZE] trailer
    cdef int found = 0
    cdef uint64_t covered = 0
    pin[0] = NULL
    if t.ranges != NULL:
        covered = ranges_cover(t.ranges, prefix, size, sequence)
    if t.slots != NULL:
        nokv_prefetch(&t.slots[slot_of(t, hash)])
    if not filter_may_hold(t, hash):
        return covered_by(covered, value, kind)
    if t.has_global_sequence and t.global_sequence > sequence:
        return 0
    memset(&tc, 0, sizeof(tc))
    tc.table = t
    tc.key = room
    tc.key_room = STACK_KEY
    put_trailer(trailer, sequence, 255)
    if t.slots != NULL:
        found = search_index(&tc, prefix, size, hash, trailer)
    if found == 0:
        seek_to(&tc, prefix, size, trailer)
        if tc.base.status != CURSOR_OK:
            found = tc.base.status
        elif tc.base.valid and tc.key_size == size + TRAILER_SIZE and memcmp(tc.key, prefix, size) == 0:
            found = 1
    if found == 1 and covered <= (read_trailer(tc.key + size) >> 8):
        value[0] = tc.base.value
        kind[0] = <int>(read_trailer(tc.key + size) & 255)
        pin[0] = tc.view.pin
    elif found >= 0:
        found = covered_by(covered, value, kind)
    if found >= 0 and tc.loaded and (t.slots != NULL or make_slots(t)) and not t.indexed[tc.block]:
        index_block(&tc)
    if pin[0] != NULL:
        tc.view.pin = NULL
    unload(&tc)
    if tc.key_on_heap:
        free(tc.key)
    return found


cdef void hint_start(Hint* hint, TableData* t, uint64_t hash) noexcept nogil:
    hint.table = t
    hint.hash = hash
    hint.position = 0
    hint.pin = NULL
    if t.filter_lines:
        nokv_prefetch(t.filter + ((hash >> 32) * t.filter_lines >> 32) * LINE)
    if t.slots != NULL:
        nokv_prefetch(&t.slots[slot_of(t, hash)])


cdef void hint_place(Hint* hint) noexcept nogil:
    cdef TableData* t = hint.table
    cdef uint64_t slot
    cdef uint32_t mask, tag, block
    if t.slots == NULL or not filter_may_hold(t, hint.hash):
        return
    slot = slot_of(t, hint.hash)
    tag = tag_of(t, hint.hash)
    mask = (<uint32_t>1 << t.position_bits) - 1
    while t.slots[slot] != 0 and (t.slots[slot] & ~mask) != tag:
        slot = slot + 1 if slot + 1 < t.slot_count else 0
    hint.position = t.slots[slot] & mask
    if hint.position == 0:
        return
    block = (hint.position - 1) >> t.restart_bits
    if t.compressed:
        hint.pin = cache_find(t.cache, &t.resident[block])
        if hint.pin != NULL:
            nokv_prefetch(block_data(hint.pin) + hint.pin.size - 4)
    else:
        nokv_prefetch(&t.index[block])


cdef void hint_block(Hint* hint) noexcept nogil:
    cdef TableData* t = hint.table
    cdef IndexEntry* entry
    if hint.position == 0 or t.compressed:
        return
    entry = &t.index[(hint.position - 1) >> t.restart_bits]
    nokv_prefetch(t.base + entry.offset + entry.stored_size - 64)
    nokv_prefetch(t.base + entry.offset + entry.stored_size)


cdef void hint_entry(Hint* hint) noexcept nogil:
    cdef TableData* t = hint.table
    cdef const uint8_t* data
    cdef size_t line
    if hint.position == 0 or (t.compressed and hint.pin == NULL):
        return
    if hint.pin != NULL:
        data = block_data(hint.pin)
    else:
        data = t.base + t.index[(hint.position - 1) >> t.restart_bits].offset
    data += t.starts[hint.position - 1]
    for line in range(HINT_LINES):
        nokv_prefetch(data + line * 64)


# -- opening ----------------------------------------------------------------------------------------------------------
cdef bytes bytes_of(const uint8_t* p, size_t n):
    return (<const char*>p)[:n] if n else b""


# the collector must not take away what __dealloc__ still needs
@cython.no_gc_clear
cdef class Table:
    """One open table. `buffer` is the whole file; `meta` (a FileMeta) and `global_sequence` come from the manifest."""

    def __cinit__(self):
        self.t.error_offset = -1

    def __init__(self, buffer, str path not None, BlockCache cache not None, *, meta=None, global_sequence=None):
        # The collector clears memoryviews that are part of a garbage cycle even while somebody has their buffer. Memory that it
        # does not know counts as a reference from outside, so the buffer stays whole until __dealloc__ gives it back.
        self.view = <Py_buffer*>calloc(1, sizeof(Py_buffer))
        if self.view == NULL:
            raise MemoryError
        PyObject_GetBuffer(buffer, self.view, PyBUF_SIMPLE)
        self.path = path
        self.cache = cache
        self.meta = meta
        self.t.base = <const uint8_t*>self.view.buf
        self.t.size = <size_t>self.view.len
        self.t.cache = cache.data
        if global_sequence is not None:
            self.t.global_sequence = global_sequence
            self.t.has_global_sequence = True
        self._open()
        if meta is not None:
            self._check_meta(meta)

    def __dealloc__(self):
        ranges_release(self.t.ranges)
        if self.t.resident != NULL:
            cache_forget(self.t.cache, self.t.resident, self.t.blocks)
        free(self.t.resident)
        free(self.t.slots)
        free(self.t.indexed)
        free(self.t.starts)
        free(self.t.heads)
        free(self.t.index)
        free(self.t.verified)
        if self.view != NULL:
            PyBuffer_Release(self.view)     # nothing, if taking it failed
            free(self.view)

    cdef _damaged(self, uint64_t offset, str reason, expected=None, found=None):
        return Corruption(reason, path=self.path, offset=offset, expected=expected, found=found)

    cdef const uint8_t* _meta_block(self, uint64_t offset, uint64_t size, uint64_t end, str name) except NULL:
        """Payload of a checked, uncompressed block that must end at `end`."""
        if offset > end or size > end - offset or end - offset - size != BLOCK_TRAILER_SIZE:
            raise self._damaged(self.t.size - FOOTER_SIZE, f"the footer places the {name} block wrongly")
        cdef const uint8_t* payload = self.t.base + offset
        if not checksum_holds(payload, size):
            raise self._damaged(offset, f"the checksum of the {name} block does not match")
        if payload[size] != CODEC_NONE or get_fixed32(payload + size + 1) != size:
            raise self._damaged(offset, f"the {name} block states a wrong codec or size")
        return payload

    cdef _open(self):
        if self.t.size < FOOTER_SIZE:
            raise self._damaged(0, "the file is too short for a table", FOOTER_SIZE, self.t.size)
        cdef uint64_t footer_offset = self.t.size - FOOTER_SIZE
        cdef const uint8_t* footer = self.t.base + footer_offset
        if bytes_of(footer + 56, 8) != MAGIC:
            raise self._damaged(footer_offset, "this is not a table: wrong magic", MAGIC, bytes_of(footer + 56, 8))
        if crc32c(0, footer, 52) != get_fixed32(footer + 52):
            raise self._damaged(footer_offset, "the checksum of the footer does not match")
        self.version = get_fixed32(footer + 48)
        if not FORMAT_VERSION_PLAIN <= self.version <= FORMAT_VERSION:
            raise NotSupported(f"{self.path}: table format version {self.version}, this program reads up to {FORMAT_VERSION}",
                               hint="open the directory with the release that wrote it, or a newer one")
        cdef uint64_t filter_offset = get_fixed64(footer)
        cdef uint64_t filter_size = get_fixed64(footer + 8)
        cdef uint64_t properties_offset = get_fixed64(footer + 16)
        cdef uint64_t properties_size = get_fixed64(footer + 24)
        cdef uint64_t index_offset = get_fixed64(footer + 32)
        cdef uint64_t index_size = get_fixed64(footer + 40)
        self._meta_block(index_offset, index_size, footer_offset, "index")
        self._meta_block(properties_offset, properties_size, index_offset, "properties")
        self._meta_block(filter_offset, filter_size, properties_offset, "filter")
        self._read_properties(properties_offset, properties_size)
        cdef uint64_t padding = (LINE - filter_offset % LINE) % LINE
        if filter_size:
            if filter_size < padding + LINE or (filter_size - padding) % LINE:
                raise self._damaged(filter_offset, "the filter is not made of whole lines")
            self.t.filter = self.t.base + filter_offset + padding
            self.t.filter_lines = (filter_size - padding) // LINE
        self._read_index(index_offset, index_size, self._read_ranges(filter_offset))
        if self.properties["codec"] == "zstd":
            import zstandard  # noqa: F401   here, so that decode_zstd need not import anything new

    cdef uint64_t _read_ranges(self, uint64_t filter_offset) except? 0:
        """Where the data ends. The range block, if there is one, lies between data and filter."""
        cdef uint64_t size = self.properties["range_block_bytes"]
        cdef uint64_t offset
        if size == 0 and self.properties["range_deletes"] == 0:
            return filter_offset
        if self.version == FORMAT_VERSION_PLAIN or self.properties["external"] or self.t.has_global_sequence:
            raise self._damaged(filter_offset, "a table that must not have range deletes has some")
        if filter_offset < BLOCK_TRAILER_SIZE or size > filter_offset - BLOCK_TRAILER_SIZE:
            raise self._damaged(filter_offset, "the range block lies before the file")
        offset = filter_offset - BLOCK_TRAILER_SIZE - size
        self._meta_block(offset, size, filter_offset, "range")
        self.t.ranges = ranges_decode(self.t.base + offset, size, self.path, offset)
        if self.t.ranges.count == 0 or self.t.ranges.count != self.properties["range_deletes"]:
            raise self._damaged(offset, "the number of range deletes is wrong", self.properties["range_deletes"],
                                self.t.ranges.count)
        ranges = Ranges.make(ranges_retain(self.t.ranges))
        if ranges.smallest < self.properties["smallest"] or ranges.largest > self.properties["largest"] \
                or ranges.largest_sequence > self.properties["max_sequence"] \
                or ranges.smallest_sequence < self.properties["min_sequence"]:
            raise self._damaged(offset, "a range delete lies outside what the properties state")
        return offset

    cdef _read_properties(self, uint64_t offset, uint64_t size):
        cdef Reader r = reader(self.t.base + offset, size)
        cdef Reader inner
        cdef uint64_t tag = 0
        cdef uint64_t number = 0
        cdef const uint8_t* data = NULL
        cdef size_t n = 0
        found = {}
        while left(&r):
            if not read_varint(&r, &tag) or not read_bytes(&r, &data, &n):
                raise self._damaged(offset, "a property is cut off")
            name = PROPERTIES.get(tag)
            if name is None:
                continue                # from a newer writer; what readers must know changes the format version
            if tag in TEXT_PROPERTIES:
                found[name] = bytes_of(data, n)
                if name == "smallest":
                    self.t.smallest.data = data
                    self.t.smallest.size = n
                elif name == "largest":
                    self.t.largest.data = data
                    self.t.largest.size = n
                continue
            inner = reader(data, n)
            if not read_varint(&inner, &number) or left(&inner):
                raise self._damaged(offset, f"the property {name} is not a number")
            found[name] = number
        for name in OPTIONAL_PROPERTIES:
            found.setdefault(name, 0)
        tallies = {}
        if found["value_files"]:
            inner = reader(<const uint8_t*><const char*>(<bytes>found["value_files"]), len(found["value_files"]))
            while left(&inner):
                if not read_varint(&inner, &tag) or not read_varint(&inner, &number):
                    raise self._damaged(offset, "the list of value files is cut off")
                tallies[tag] = number
        found["value_files"] = tallies
        missing = [name for name in PROPERTIES.values() if name not in found]
        if missing:
            raise self._damaged(offset, f"the properties {', '.join(missing)} are missing")
        self.t.newest_sequence = self.t.global_sequence if self.t.has_global_sequence else found["max_sequence"]
        found["codec"] = {CODEC_NONE: "none", CODEC_ZSTD: "zstd", CODEC_LZ4: "lz4"}.get(found["codec"], "unknown")
        found["external"] = bool(found["external"])
        self.properties = found
        if self.t.smallest.size == 0 or compare_bytes(self.t.smallest.data, self.t.smallest.size,
                                                      self.t.largest.data, self.t.largest.size) > 0:
            raise self._damaged(offset, "the smallest key lies above the largest")

    cdef _read_index(self, uint64_t offset, uint64_t size, uint64_t data_end):
        cdef Reader r = reader(self.t.base + offset, size)
        cdef uint64_t blocks = self.properties["blocks"]
        cdef uint64_t at = 0
        cdef uint64_t stored = 0
        cdef uint64_t i
        cdef IndexEntry* entry
        if blocks == 0 or blocks > size // 2 or blocks > <uint64_t>0x7FFFFFFF:
            raise self._damaged(offset, "the index cannot hold that many blocks", blocks, size)
        self.t.index = <IndexEntry*>calloc(blocks, sizeof(IndexEntry))
        self.t.verified = <uint8_t*>calloc(blocks, 1)
        self.t.resident = <CachedBlock**>calloc(blocks, sizeof(CachedBlock*))
        if self.t.index == NULL or self.t.verified == NULL or self.t.resident == NULL:
            raise MemoryError
        self.t.entries = self.properties["entries"]
        self.t.compressed = self.properties["codec"] != "none"
        self.t.blocks = <uint32_t>blocks
        for i in range(blocks):
            entry = &self.t.index[i]
            if not read_bytes(&r, &entry.key.data, &entry.key.size) or not read_varint(&r, &stored):
                raise self._damaged(offset, "an index entry is cut off")
            if entry.key.size <= TRAILER_SIZE:
                raise self._damaged(offset, "an index key is too short")
            if i and compare_internal(self.t.index[i - 1].key, entry.key) >= 0:
                raise self._damaged(offset, "the index keys are not in order")
            if stored > data_end - at or data_end - at - stored < BLOCK_TRAILER_SIZE or stored > <uint64_t>0xFFFFFFFF:
                raise self._damaged(offset, "the index describes blocks outside the data")
            entry.offset = at
            entry.stored_size = <uint32_t>stored
            at += stored + BLOCK_TRAILER_SIZE
        if left(&r) or at != data_end:
            raise self._damaged(offset, "the index does not cover the data")
        self._read_heads()

    cdef _read_heads(self):
        cdef Slice first = self.t.index[0].key
        cdef Slice last = self.t.index[self.t.blocks - 1].key
        cdef size_t most = min(first.size, last.size) - TRAILER_SIZE
        cdef uint32_t i
        self.t.heads = <uint64_t*>malloc(self.t.blocks * sizeof(uint64_t))
        if self.t.heads == NULL:
            raise MemoryError
        while self.t.common < most and first.data[self.t.common] == last.data[self.t.common]:
            self.t.common += 1          # the keys are in order: what the first and the last share, all share
        for i in range(self.t.blocks):
            self.t.heads[i] = head_of(self.t.index[i].key.data + self.t.common,
                                      self.t.index[i].key.size - TRAILER_SIZE - self.t.common)

    cdef _check_meta(self, meta):
        for name in ("entries", "smallest", "largest"):
            if getattr(meta, name) != self.properties[name]:
                raise self._damaged(0, f"not the file that the manifest describes: {name} differs",
                                    getattr(meta, name), self.properties[name])
        if meta.size != self.t.size:
            raise self._damaged(0, "not the file that the manifest describes: size differs", meta.size, self.t.size)

    # -- reading ------------------------------------------------------------------------------------------------------
    cpdef raise_status(self, int status):
        """Raise what `status` stands for, if this table is the one that failed. CURSOR_OK: nothing."""
        if status == CURSOR_NO_MEMORY:
            raise MemoryError
        if status == CURSOR_IO:
            raise OSError(5, "a block could not be decoded", self.path)
        if status == CURSOR_CORRUPT and self.t.error_offset >= 0:
            raise self._damaged(self.t.error_offset, self.t.error_reason.decode())

    def get(self, bytes prefix not None, uint64_t sequence=(1 << 56) - 1):
        """(kind, value) of the newest entry of `prefix` (family || user key) with a sequence <= `sequence`, or None."""
        cdef Slice value
        cdef int kind = 0
        cdef CachedBlock* pin = NULL
        cdef const uint8_t* p = <const uint8_t*><const char*>prefix
        cdef size_t n = len(prefix)
        cdef int found = table_get(&self.t, p, n, filter_hash(p, n), sequence, &value, &kind, &pin)
        if found < 0:
            self.raise_status(found)
        if found != 1:
            return None
        try:
            return kind, bytes_of(value.data, value.size)
        finally:
            release_block(pin)

    def ranges(self):
        """Its range deletes, or None."""
        return None if self.t.ranges == NULL else Ranges.make(ranges_retain(self.t.ranges))

    def cursor(self):
        return OwnedCursor.make(table_cursor(&self.t), self)

    def verify(self):
        """Check every checksum, the order of all keys, the index and the filter. Corruption, or how many entries there are."""
        cdef uint64_t footer_offset = self.t.size - FOOTER_SIZE
        cdef const uint8_t* footer = self.t.base + footer_offset
        cdef uint64_t entries = 0
        cdef int status
        cdef bint references = bool(self.properties["value_files"])
        if crc32c(0, footer, 52) != get_fixed32(footer + 52):
            raise self._damaged(footer_offset, "the checksum of the footer does not match")
        self._meta_block(get_fixed64(footer + 32), get_fixed64(footer + 40), footer_offset, "index")
        self._meta_block(get_fixed64(footer + 16), get_fixed64(footer + 24), get_fixed64(footer + 32), "properties")
        self._meta_block(get_fixed64(footer), get_fixed64(footer + 8), get_fixed64(footer + 16), "filter")
        if self.t.ranges != NULL:
            self._meta_block(get_fixed64(footer) - BLOCK_TRAILER_SIZE - <uint64_t>self.properties["range_block_bytes"],
                             self.properties["range_block_bytes"], get_fixed64(footer), "range")
        with nogil:
            status = verify_blocks(&self.t, references, &entries)
        self.raise_status(status)
        if entries != self.properties["entries"]:
            raise self._damaged(0, "the number of entries is wrong", self.properties["entries"], entries)
        return entries


cdef inline bint misses(TableData* t, int order) noexcept nogil:
    """The order of an outermost key and the bound that the properties state: with range deletes a key may lie within it."""
    return order != 0 if t.ranges == NULL else order < 0


cdef int verify_blocks(TableData* t, bint references, uint64_t* entries) noexcept nogil:
    cdef Cursor* c
    cdef TableCursor* tc
    cdef Slice last
    cdef uint8_t* room = NULL
    cdef size_t room_size = 0
    cdef int status
    cdef uint32_t i
    cdef IndexEntry* entry
    for i in range(t.blocks):           # again, whatever was verified before: the disk may have changed since
        entry = &t.index[i]
        if not checksum_holds(t.base + entry.offset, entry.stored_size):
            return damage(t, entry.offset, "the checksum of a data block does not match")
        t.verified[i] = 1
    c = table_cursor(t)
    if c == NULL:
        return CURSOR_NO_MEMORY
    tc = <TableCursor*>c.impl
    last.data = NULL
    last.size = 0
    c.ops.seek_first(c)
    while c.valid:
        entries[0] += 1
        if last.size and compare_internal(last, c.key) >= 0:
            bad_entry(tc, "the keys are not in order")
            break
        if not entry_is_sound(<int>(read_trailer(c.key.data + c.key.size - TRAILER_SIZE) & 255), c.value.size):
            bad_entry(tc, "an entry has an unknown kind, or a value that is none of its kind")
            break
        if not references and kind_is_reference(<int>(read_trailer(c.key.data + c.key.size - TRAILER_SIZE) & 255)):
            bad_entry(tc, "an entry refers to a value file, and the properties name none")
            break
        if not t.has_global_sequence and compare_internal(c.key, t.index[tc.block].key) > 0:
            bad_entry(tc, "a key lies above its block's key in the index")
            break
        if not filter_may_hold(t, filter_hash(c.key.data, c.key.size - TRAILER_SIZE)):
            bad_entry(tc, "the filter denies a key that is there")
            break
        if last.size == 0 and misses(t, compare_bytes(c.key.data, c.key.size - TRAILER_SIZE, t.smallest.data, t.smallest.size)):
            bad_entry(tc, "the first key is not the smallest that the properties state")
            break
        if c.key.size > room_size:
            free(room)
            room_size = c.key.size * 2
            room = <uint8_t*>malloc(room_size)
            if room == NULL:
                fail(tc, CURSOR_NO_MEMORY)
                break
        memcpy(room, c.key.data, c.key.size)
        last.data = room
        last.size = c.key.size
        c.ops.next(c)
    if c.status == CURSOR_OK and (last.size == 0 or misses(t, compare_bytes(t.largest.data, t.largest.size, last.data,
                                                                            last.size - TRAILER_SIZE))):
        bad_entry(tc, "the last key is not the largest that the properties state")
    status = c.status
    free(room)
    c.ops.destroy(c)
    return status


PROPERTIES = {
    1: "entries",
    2: "deletes",
    3: "min_sequence",
    4: "max_sequence",
    5: "raw_bytes",
    6: "blocks",
    7: "smallest",
    8: "largest",
    9: "codec",
    10: "created_ms",
    11: "external",
    12: "families",                     # of an external table: "id name" lines, so that nobody reads it under other ids
    13: "expiring",                     # how many entries have an expiry
    14: "range_deletes",                # how many fragments
    15: "range_block_bytes",            # size of the range block's payload, which ends where the filter block begins
    20: "value_files",                  # pairs of varints: number of a value file, bytes of values that are referred to in it
}
OPTIONAL_PROPERTIES = frozenset(("expiring", "range_deletes", "range_block_bytes", "value_files"))      # numbers; absent: 0
TEXT_PROPERTIES = frozenset((7, 8, 12, 20))
