"""The point index: an open-addressing hash table from keys to places in the table, 4 bytes a slot, about 5.7 bytes a key. A
slot holds some bits of the key's hash and, in its low `position_bits`, 1 + (block << offset_bits | where the entry is in it / 8). It
is made in memory as blocks are read: the first point read of a block enters the block's keys, each where its newest version is. It
replaces two binary searches (a dozen dependent cache misses) by one miss. What it does not know, or what does not check out, is
searched for the long way.

Changed under the GIL only: every caller of table_get holds it, and a block's decoding (which may let others in) comes before.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from nokv._ext.block cimport (
    ENTRY_ALIGN,
    Entry,
    LONG_VALUE,
    TableData,
    block_entry,
    cached_block,
    entry_key,
    entry_size,
    entry_value,
    find_in_block,
    first_entry,
)
from nokv._ext.blockcache cimport CachedBlock, Home, nokv_ask_for
from nokv._ext.cursor cimport CURSOR_OK, KIND_DELETE, Slice, TRAILER_SIZE, compare_bytes, put_trailer, read_trailer
from nokv._ext.filter cimport LINE, filter_hash, filter_may_hold
from nokv._ext.ranges cimport ranges_cover
from nokv._ext.tablecursor cimport find_block
from nokv._ext.tableparts cimport PART_FILTER, PART_INDEX, need

cdef enum:
    POSITION_BITS_MAX = 26              # leaves at least 6 bits of hash
    BLOCK_ENTRIES_MAX = 1 << 16         # on the average; a table that claims more has no point index


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


cdef bint make_slots(TableData* t, const CachedBlock* block) noexcept nogil:
    """False: this table does without. `block`: one of its blocks, to learn how large they are."""
    cdef int offset_bits, position_bits
    cdef uint64_t each = t.entries // t.blocks + 1
    cdef uint64_t bytes
    if t.slots_free == 0 and t.slot_count:
        return False                    # tried before
    t.slot_count = 1
    bytes = min(t.raw_bytes // t.blocks + each * 32, <uint64_t>1 << 31)
    offset_bits = bits_for((bytes + bytes // 4) // ENTRY_ALIGN)
    position_bits = bits_for((<uint64_t>t.blocks << offset_bits) + 1)
    while position_bits < POSITION_BITS_MAX and block.end // ENTRY_ALIGN >> offset_bits:
        offset_bits += 1                # what lies farther back in a block than this reaches is not entered
        position_bits += 1
    if position_bits > POSITION_BITS_MAX or t.entries > <uint64_t>t.blocks * BLOCK_ENTRIES_MAX:
        return False
    t.indexed = <uint8_t*>calloc(t.blocks, 1)
    t.slots = <uint32_t*>calloc(t.entries * 10 // 7 + 8, 4)
    if t.slots == NULL or t.indexed == NULL:
        free(t.slots)
        free(t.indexed)
        t.slots = NULL
        t.indexed = NULL
        return False
    t.slot_count = t.entries * 10 // 7 + 8
    t.slots_free = t.entries
    t.offset_bits = offset_bits
    t.position_bits = position_bits
    return True


cdef bint goes_on(const TableData* t, uint32_t number, const uint8_t* prefix, size_t size) noexcept nogil:
    """May the block before have versions of this key too?"""
    cdef Slice key
    cdef size_t i
    if number == 0:
        return False
    key = t.index[number - 1].key
    if compare_bytes(key.data, key.size - TRAILER_SIZE, prefix, size) != 0:
        return False
    for i in range(TRAILER_SIZE):       # zeros: a separator, which sorts before every version of its key
        if key.data[key.size - 1 - i]:
            return True
    return False


cdef void index_block(TableData* t, uint32_t number, const CachedBlock* block) noexcept nogil:
    """Enter the keys of a block, if that was not done before."""
    cdef const uint8_t* entry = first_entry(block)
    cdef Slice key, last
    cdef uint32_t at, i
    cdef uint64_t hash, slot
    t.indexed[number] = 1
    last.data = NULL
    last.size = 0
    for i in range(block.count):
        key = entry_key(entry)
        key.size -= TRAILER_SIZE
        if (key.size != last.size or memcmp(last.data, key.data, key.size) != 0) if i \
                else not goes_on(t, number, key.data, key.size):
            at = <uint32_t>(entry - <const uint8_t*>block) // ENTRY_ALIGN
            if t.slots_free == 0 or at >> t.offset_bits:
                return
            t.slots_free -= 1
            hash = filter_hash(key.data, key.size)
            slot = slot_of(t, hash)
            while t.slots[slot] != 0:
                slot = slot + 1 if slot + 1 < t.slot_count else 0
            t.slots[slot] = tag_of(t, hash) | (1 + ((number << t.offset_bits) | at))
        last = key
        entry += entry_size(entry)


cdef inline bint shows(const uint8_t* entry, const uint8_t* prefix, size_t size) noexcept nogil:
    return (<Entry*>entry).key_size & ~LONG_VALUE == size + TRAILER_SIZE and memcmp(entry + sizeof(Entry), prefix, size) == 0


cdef inline bint lies_within(const TableData* t, Slice value) noexcept nogil:
    return value.data >= t.base and value.size <= t.size and value.data <= t.base + (t.size - value.size)


cdef int search_index(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                      CachedBlock** pin, const uint8_t** found) noexcept nogil:
    """1: the newest entry of `prefix`, if a reader at `sequence` may see it. 0: look elsewhere. < 0: a CursorStatus."""
    cdef uint64_t slot = slot_of(t, hash)
    cdef uint32_t tag = tag_of(t, hash)
    cdef uint32_t mask = (<uint32_t>1 << t.position_bits) - 1
    cdef uint32_t position, number
    cdef size_t at
    cdef const uint8_t* entry
    cdef int status
    while t.slots[slot] != 0:
        if (t.slots[slot] & ~mask) == tag:
            position = (t.slots[slot] & mask) - 1
            number = position >> t.offset_bits
            at = ENTRY_ALIGN * <size_t>(position & ((<uint32_t>1 << t.offset_bits) - 1))
            status = cached_block(t, number, pin)
            if status != CURSOR_OK:
                return status
            entry = <const uint8_t*>pin[0] + at
            nokv_ask_for(entry + 64)
            nokv_ask_for(entry + 128)
            # The file may have changed since the key was entered, and the block have been read again: look before each step.
            if at + sizeof(Entry) + size + TRAILER_SIZE <= t.homes[number].end and shows(entry, prefix, size):
                if at + entry_size(entry) > t.homes[number].end or (read_trailer(entry + sizeof(Entry) + size) >> 8) > sequence \
                        or ((<Entry*>entry).key_size & LONG_VALUE and not lies_within(t, entry_value(entry))):
                    return 0
                found[0] = entry
                return 1
        slot = slot + 1 if slot + 1 < t.slot_count else 0
    return 0


cdef int search(TableData* t, const uint8_t* prefix, size_t size, uint64_t sequence, CachedBlock** pin,
                const uint8_t** found) noexcept nogil:
    """As search_index, and the answer is final."""
    cdef uint8_t[TRAILER_SIZE] trailer
    cdef uint32_t number, ordinal
    cdef int status
    put_trailer(trailer, sequence, 255)
    for number in range(find_block(t, prefix, size, trailer), t.blocks):
        status = cached_block(t, number, pin)
        if status != CURSOR_OK:
            return status
        if (t.slots != NULL or make_slots(t, pin[0])) and not t.indexed[number]:
            index_block(t, number, pin[0])
        ordinal = find_in_block(pin[0], prefix, size, trailer)
        if ordinal < pin[0].count:
            found[0] = block_entry(pin[0], ordinal)
            return shows(found[0], prefix, size)
    return 0


cdef int table_get(TableData* t, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence,
                   Slice* value, int* kind, CachedBlock** pin) noexcept nogil:
    cdef int status = 0
    cdef uint64_t covered = 0
    cdef uint64_t packed
    cdef const uint8_t* entry = NULL
    pin[0] = NULL
    if t.ranges != NULL:
        covered = ranges_cover(t.ranges, prefix, size, sequence)
    if t.slots != NULL:
        nokv_ask_for(&t.slots[slot_of(t, hash)])
    status = need(t, PART_FILTER)
    if status != CURSOR_OK:
        return status
    if not filter_may_hold(t.filter, t.filter_lines, hash):
        return covered_by(covered, value, kind)
    if t.has_global_sequence and t.global_sequence > sequence:
        return 0
    status = need(t, PART_INDEX)
    if status != CURSOR_OK:
        return status
    if t.slots != NULL:
        status = search_index(t, prefix, size, hash, sequence, pin, &entry)
    if status == 0:
        status = search(t, prefix, size, sequence, pin, &entry)
    if status < 0:
        return status
    if status:
        packed = read_trailer(entry + sizeof(Entry) + size)
        if covered <= packed >> 8:
            value[0] = entry_value(entry)
            kind[0] = <int>(packed & 255)
            return 1
    return covered_by(covered, value, kind)


cdef void hint_start(Hint* hint, TableData* t, uint64_t hash) noexcept nogil:
    hint.table = t
    hint.hash = hash
    if t.filter_lines:
        nokv_ask_for(t.filter + ((hash >> 32) * t.filter_lines >> 32) * LINE)
    if t.slots != NULL:
        nokv_ask_for(&t.slots[slot_of(t, hash)])


cdef void hint_entry(Hint* hint) noexcept nogil:
    cdef TableData* t = hint.table
    cdef uint64_t slot
    cdef uint32_t mask, tag, position
    cdef Home* home
    cdef const uint8_t* entry
    if t.slots == NULL or not filter_may_hold(t.filter, t.filter_lines, hint.hash):
        return
    slot = slot_of(t, hint.hash)
    tag = tag_of(t, hint.hash)
    mask = (<uint32_t>1 << t.position_bits) - 1
    while t.slots[slot] != 0 and (t.slots[slot] & ~mask) != tag:
        slot = slot + 1 if slot + 1 < t.slot_count else 0
    position = t.slots[slot] & mask
    if position == 0:
        return
    position -= 1
    home = &t.homes[position >> t.offset_bits]
    if home.block == NULL:
        return
    entry = <const uint8_t*>home.block + ENTRY_ALIGN * <size_t>(position & ((<uint32_t>1 << t.offset_bits) - 1))
    nokv_ask_for(entry)
    nokv_ask_for(entry + 64)
    nokv_ask_for(entry + 128)
