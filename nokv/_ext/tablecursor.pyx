"""Walking a table. Whoever finds damage notes where in TableData and returns CURSOR_CORRUPT; Table.raise_status turns that into
Corruption with file and offset."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.block cimport INTERNAL_KEY_SIZE_MAX, TableData, damage, load_block
from nokv._ext.blockcache cimport release_block
from nokv._ext.codec cimport Reader, get_fixed32, left, read_varint, reader, take
from nokv._ext.cursor cimport (
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    CursorOps,
    Slice,
    TRAILER_SIZE,
    put_trailer,
    read_trailer,
)
from nokv._ext.tableparts cimport PART_INDEX, need


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


cdef inline bint ready(TableCursor* tc) noexcept nogil:
    cdef int status = need(tc.table, PART_INDEX)
    if status != CURSOR_OK:
        fail(tc, status)
    return status == CURSOR_OK


cdef void table_seek_first(Cursor* self) noexcept nogil:
    if ready(<TableCursor*>self.impl):
        first_of_block(<TableCursor*>self.impl, 0)


cdef void table_seek_last(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    if ready(tc):
        last_of_block(tc, tc.table.blocks - 1)


cdef void table_seek(Cursor* self, Slice internal_key) noexcept nogil:
    if ready(<TableCursor*>self.impl):
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


cdef void table_rest(Cursor* self) noexcept nogil:
    self.valid = False
    unload(<TableCursor*>self.impl)


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
TABLE_OPS.rest = table_rest
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
