"""The point index: an open-addressing hash table from keys to places in the table, 4 bytes a slot, about 5.7 bytes a key. A
slot holds some bits of the key's hash and, in its low `position_bits`, 1 + (block << restart_bits | restart point); `starts` says
where that restart point lies (2 bytes each), so that the block's end need not be looked at. It is made in memory as blocks are
read: the first point read of a block enters the block's keys. It replaces the binary search over the index (a dozen dependent
cache misses) by one miss. What it does not know, or what does not check out, is searched for the long way.

Changed under the GIL only: every caller of table_get holds it, and a block's decoding (which may let others in) comes before.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.block cimport IndexEntry, TableData
from nokv._ext.blockcache cimport CachedBlock, block_data, cache_find
from nokv._ext.codec cimport get_fixed32
from nokv._ext.cursor cimport CURSOR_OK, KIND_DELETE, Slice, TRAILER_SIZE, compare_bytes, put_trailer, read_trailer
from nokv._ext.filter cimport LINE, filter_hash, filter_may_hold
from nokv._ext.ranges cimport ranges_cover
from nokv._ext.tablecursor cimport TableCursor, compare_target, enter_block, read_entry, seek_to, step, unload
from nokv._ext.tableparts cimport PART_FILTER, PART_INDEX, need

cdef extern from *:
    """static inline void nokv_prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }"""
    void nokv_prefetch(const void* p) noexcept nogil

cdef enum:
    POSITION_BITS_MAX = 26              # leaves at least 6 bits of hash
    BLOCK_ENTRIES_MAX = 1 << 16         # on the average; a table that claims more has no point index
    HINT_LINES = 12
    STACK_KEY = 512


cdef inline int covered_by(uint64_t range_delete, Slice* value, int* kind) noexcept nogil:
    """The answer for a key that has no entry of its own, or only an older one: a delete, if there is a range delete."""
    if range_delete == 0:
        return 0
    kind[0] = KIND_DELETE
    value.data = NULL
    value.size = 0
    return 1


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
    found = need(t, PART_FILTER)
    if found != CURSOR_OK:
        return found
    if not filter_may_hold(t.filter, t.filter_lines, hash):
        return covered_by(covered, value, kind)
    if t.has_global_sequence and t.global_sequence > sequence:
        return 0
    found = need(t, PART_INDEX)
    if found != CURSOR_OK:
        return found
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
    if t.slots == NULL or not filter_may_hold(t.filter, t.filter_lines, hint.hash):
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
