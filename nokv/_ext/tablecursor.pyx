"""Walking a table. Whoever finds damage notes where in TableData and returns CURSOR_CORRUPT; Table.raise_status turns that into
Corruption with file and offset."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from nokv._ext.block cimport (
    TableData,
    ask_for_entry,
    ask_for_group,
    block_entry,
    cached_block,
    damage,
    entry_key,
    entry_size,
    entry_value,
    find_in_block,
    first_entry,
    free_room,
    read_block,
)
from nokv._ext.blockcache cimport CachedBlock, Home, hold_block, nokv_ask_for, release_block
from nokv._ext.cursor cimport CURSOR_OK, Cursor, CursorOps, Slice, TRAILER_SIZE, compare_bytes
from nokv._ext.tableparts cimport PART_INDEX, need, nokv_parts

cdef extern from "pages.h":
    void nokv_unmap_pages(void* p, size_t size) noexcept nogil

cdef enum:
    PASSED_BYTES = 1 << 20              # of a table stay in memory behind who reads all of it
    PAGE_MAX = 65536                    # a multiple of every page size there is


cdef void fail(TableCursor* tc, int status) noexcept nogil:
    tc.base.valid = False
    tc.base.status = status


cdef void bad_entry(TableCursor* tc, const char* reason) noexcept nogil:
    fail(tc, damage(tc.table, tc.table.index[tc.number].offset, reason))


cdef inline void unload(TableCursor* tc) noexcept nogil:
    if tc.cached:
        release_block(tc.block)
    tc.block = NULL


cdef inline void ask_for_block(const Home* home) noexcept nogil:
    """What a search in it looks at first."""
    cdef const uint8_t* block = <const uint8_t*>home.block
    if block != NULL:
        nokv_ask_for(block)
        nokv_ask_for(block + 64)
        nokv_ask_for(block + 128)


cdef void let_go_behind(TableCursor* tc, uint64_t offset) noexcept nogil:
    """A merge of many tables would otherwise have all of them in memory. Another reader finds the pages in the page cache."""
    if offset < tc.passed:
        tc.passed = offset & ~<uint64_t>(PAGE_MAX - 1)
    elif offset - tc.passed >= PASSED_BYTES:
        offset &= ~<uint64_t>(PAGE_MAX - 1)
        nokv_unmap_pages(<void*>(tc.table.base + tc.passed), offset - tc.passed)
        tc.passed = offset


cdef bint enter_block(TableCursor* tc, uint32_t number) noexcept nogil:
    cdef TableData* t = tc.table
    cdef CachedBlock* block = NULL
    cdef int status
    if tc.block != NULL and tc.number == number:
        return True
    unload(tc)
    tc.number = number
    if tc.cached:
        ask_for_block(&t.homes[number])
        status = cached_block(t, number, &block)
        if status == CURSOR_OK:
            hold_block(block)
            if number + 1 < t.blocks:
                ask_for_block(&t.homes[number + 1])     # where a scan goes on
    else:
        if t.mapped:
            let_go_behind(tc, t.index[number].offset)
        status = read_block(t, number, &tc.room)
        block = tc.room.block
    if status != CURSOR_OK:
        fail(tc, status)
        return False
    tc.block = block
    tc.end = <const uint8_t*>block + block.end
    return True


cdef inline void show(TableCursor* tc, uint32_t ordinal, const uint8_t* entry) noexcept nogil:
    tc.ordinal = ordinal
    tc.entry = entry
    tc.base.key = entry_key(entry)
    tc.base.value = entry_value(entry)
    tc.base.valid = True


cdef inline void first_of_block(TableCursor* tc, uint32_t number) noexcept nogil:
    if enter_block(tc, number):
        show(tc, 0, first_entry(tc.block))


cdef inline void last_of_block(TableCursor* tc, uint32_t number) noexcept nogil:
    if enter_block(tc, number):
        show(tc, tc.block.count - 1, block_entry(tc.block, tc.block.count - 1))


# -- finding a block --------------------------------------------------------------------------------------------------
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
    if low == t.blocks or t.heads[low] != head:
        last[0] = low
        return
    high = t.blocks
    while low < high:
        middle = low + (high - low) // 2
        if t.heads[middle] <= head:
            low = middle + 1
        else:
            high = middle
    last[0] = high


cdef uint32_t find_block(const TableData* t, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil:
    cdef uint8_t[TRAILER_SIZE] zeros
    cdef uint32_t low = 0, high = 0, middle
    cdef Slice key
    cdef int order
    if t.has_global_sequence:           # on disk the trailers say 0: find the user key, then look at its real trailer
        memset(zeros, 0, TRAILER_SIZE)
        trailer = zeros
    narrow(t, prefix, size, &low, &high)
    while low < high:
        middle = low + (high - low) // 2
        key = t.index[middle].key
        order = compare_bytes(key.data, key.size - TRAILER_SIZE, prefix, size)
        if order == 0:
            order = memcmp(key.data + key.size - TRAILER_SIZE, trailer, TRAILER_SIZE)
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low


# -- cursor -----------------------------------------------------------------------------------------------------------
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
    cdef TableCursor* tc = <TableCursor*>self.impl
    cdef size_t size = internal_key.size - TRAILER_SIZE
    cdef const uint8_t* trailer = internal_key.data + size
    cdef uint32_t number, ordinal
    self.valid = False
    if not ready(tc):
        return
    number = tc.asked_number if tc.asked else find_block(tc.table, internal_key.data, size, trailer)
    tc.asked = False
    while number < tc.table.blocks and enter_block(tc, number):
        ordinal = find_in_block(tc.block, internal_key.data, size, trailer)
        if ordinal < tc.block.count:
            show(tc, ordinal, block_entry(tc.block, ordinal))
            return
        number += 1                     # the key lies between the block's last one and the block's key in the index


cdef void table_ask(Cursor* self, Slice internal_key, int step) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    cdef TableData* t = tc.table
    cdef size_t size = internal_key.size - TRAILER_SIZE
    cdef const uint8_t* trailer = internal_key.data + size
    if step == 0:
        tc.asked = tc.cached and nokv_parts(&t.parts) & PART_INDEX
        if tc.asked:
            tc.asked_number = find_block(t, internal_key.data, size, trailer)
            nokv_ask_for(&t.homes[min(tc.asked_number, t.blocks - 1)])
        return
    if not tc.asked or tc.asked_number == t.blocks or t.homes[tc.asked_number].block == NULL:
        return
    if step == 1:
        ask_for_block(&t.homes[tc.asked_number])
    elif step == 2:
        if enter_block(tc, tc.asked_number):
            ask_for_group(tc.block, internal_key.data, size)
    elif tc.block != NULL and tc.number == tc.asked_number:
        ask_for_entry(tc.block, internal_key.data, size)


cdef void table_next(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    cdef const uint8_t* entry = tc.entry + entry_size(tc.entry)
    if entry < tc.end:
        show(tc, tc.ordinal + 1, entry)
    elif tc.number + 1 < tc.table.blocks:
        first_of_block(tc, tc.number + 1)
    else:
        self.valid = False


cdef void table_prev(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    if tc.ordinal:
        show(tc, tc.ordinal - 1, block_entry(tc.block, tc.ordinal - 1))
    elif tc.number:
        last_of_block(tc, tc.number - 1)
    else:
        self.valid = False


cdef void table_rest(Cursor* self) noexcept nogil:
    self.valid = False
    unload(<TableCursor*>self.impl)


cdef void table_destroy(Cursor* self) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>self.impl
    unload(tc)
    free_room(&tc.room)
    free(tc)


cdef uint64_t table_newest(Cursor* self, Slice low, Slice high) noexcept nogil:
    return (<TableCursor*>self.impl).table.newest_sequence


cdef CursorOps TABLE_OPS
TABLE_OPS.newest = table_newest
TABLE_OPS.ask = table_ask
TABLE_OPS.seek_first = table_seek_first
TABLE_OPS.seek_last = table_seek_last
TABLE_OPS.seek = table_seek
TABLE_OPS.next = table_next
TABLE_OPS.prev = table_prev
TABLE_OPS.rest = table_rest
TABLE_OPS.destroy = table_destroy


cdef Cursor* table_cursor(TableData* t, bint cached) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>calloc(1, sizeof(TableCursor))
    if tc == NULL:
        return NULL
    tc.base.impl = tc
    tc.base.ops = &TABLE_OPS
    tc.table = t
    tc.cached = cached
    tc.room.spare = 2
    return &tc.base


cdef void table_cursor_reset(Cursor* c, TableData* t) noexcept nogil:
    cdef TableCursor* tc = <TableCursor*>c.impl
    c.valid = False
    tc.asked = False
    if tc.table != t:
        unload(tc)
        tc.table = t
        tc.passed = 0
