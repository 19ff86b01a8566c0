"""Data blocks of a table.

    data block ... | range block (if there are range deletes) | filter block | properties block | index block | footer (64 bytes)
    block   = payload | codec (1) | raw size (4) | CRC-32C of payload, codec and raw size (4)
    entry   = varint shared | varint unshared | varint value size | unshared key bytes | value
    payload = entries | offset of each restart point (4 each) | how many (4)

A block's checksum is looked at the first time it is read, and its layout every time: lengths, restart points and the order of its
keys. Then it is expanded (see block.pxd), and readers find, compare and copy without decoding anything.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.blockcache cimport PREFIX_KEPT, CachedBlock, cache_add, nokv_ask_for
from nokv._ext.codec cimport Reader, get_fixed32, left, read_varint, reader, take
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_IO,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    compare_internal,
    put_trailer,
    read_trailer,
)
from nokv._ext.lz4 cimport lz4_decompress


cdef enum:
    ENTRY_LINES = 8                     # cache lines: what is read on from there comes by itself


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


cdef bint make_room(void** data, size_t* room, size_t need, size_t spare) noexcept nogil:
    if need <= room[0]:
        return True
    free(data[0])
    need += need // 16 * spare
    data[0] = malloc(need)
    room[0] = need if data[0] != NULL else 0
    return data[0] != NULL


cdef void free_room(BlockRoom* room) noexcept nogil:
    free(room.raw)
    free(room.block)
    memset(room, 0, sizeof(BlockRoom))


cdef int load_block(TableData* t, uint32_t i, CachedBlock** block) noexcept nogil:
    cdef BlockRoom room
    cdef int status
    memset(&room, 0, sizeof(room))
    status = read_block(t, i, &room)    # may let the GIL go: another thread may then load the same block
    free(room.raw)
    if status == CURSOR_OK:
        block[0] = cache_add(t.cache, &t.homes[i], room.block)
    else:
        free(room.block)
    return status


cdef int read_block(TableData* t, uint32_t i, BlockRoom* room) noexcept nogil:
    cdef IndexEntry* entry = &t.index[i]
    cdef const uint8_t* stored = t.base + entry.offset
    cdef uint8_t codec = stored[entry.stored_size]
    cdef size_t raw_size = get_fixed32(stored + entry.stored_size + 1)
    cdef int status
    if not t.verified[i]:
        if not checksum_holds(stored, entry.stored_size):
            return damage(t, entry.offset, "the checksum of a data block does not match")
        t.verified[i] = 1
    if codec == CODEC_NONE:
        if raw_size != entry.stored_size:
            return damage(t, entry.offset, "a plain block states another size than it has")
        return expand(t, entry.offset, stored, raw_size, True, room)
    if codec != CODEC_ZSTD and codec != CODEC_LZ4:
        return damage(t, entry.offset, "a data block has an unknown codec")
    if raw_size > ZSTD_RAW_SIZE_MAX:
        return damage(t, entry.offset, "a compressed block states a size above the limit")
    if not make_room(<void**>&room.raw, &room.raw_room, raw_size + 1, room.spare):
        return CURSOR_NO_MEMORY
    if codec == CODEC_ZSTD:
        status = decode_zstd(stored, entry.stored_size, room.raw, raw_size)
    else:
        status = CURSOR_OK if lz4_decompress(stored, entry.stored_size, room.raw, raw_size) else CURSOR_CORRUPT
    if status == CURSOR_CORRUPT:
        return damage(t, entry.offset, "a compressed block cannot be decoded to the stated size")
    if status != CURSOR_OK:
        return status
    return expand(t, entry.offset, room.raw, raw_size, False, room)


# -- expanding --------------------------------------------------------------------------------------------------------
cdef struct RawEntry:
    size_t shared
    size_t unshared
    size_t value_size
    const uint8_t* suffix
    const uint8_t* value


cdef inline const char* read_entry(Reader* r, size_t last_size, RawEntry* entry) noexcept nogil:
    """NULL, or what is wrong. `last_size`: of the key before, 0 if this one must stand alone."""
    cdef uint64_t shared = 0
    cdef uint64_t unshared = 0
    cdef uint64_t value_size = 0
    if left(r) >= 3 and (r.pos[0] | r.pos[1] | r.pos[2]) < 128:
        shared = r.pos[0]
        unshared = r.pos[1]
        value_size = r.pos[2]
        r.pos += 3
    elif not (read_varint(r, &shared) and read_varint(r, &unshared) and read_varint(r, &value_size)):
        return "an entry's lengths are cut off"
    # a key shares at most the user key with the one before it, so that its trailer is its own
    if unshared < TRAILER_SIZE or unshared > INTERNAL_KEY_SIZE_MAX or shared > INTERNAL_KEY_SIZE_MAX \
            or shared + unshared > INTERNAL_KEY_SIZE_MAX or shared + unshared <= TRAILER_SIZE \
            or (shared and shared + TRAILER_SIZE > last_size):
        return "an entry's key has an impossible length"
    entry.suffix = take(r, unshared)
    if entry.suffix == NULL:
        return "an entry's key runs past the block"
    entry.value = take(r, value_size)
    if entry.value == NULL:
        return "an entry's value runs past the block"
    entry.shared = <size_t>shared
    entry.unshared = <size_t>unshared
    entry.value_size = <size_t>value_size
    return NULL


cdef inline size_t expanded_size(const RawEntry* entry, bint in_place) noexcept nogil:
    cdef size_t value_size = entry.value_size
    if in_place and value_size >= LONG_VALUE_SIZE:
        value_size = sizeof(void*)
    return (sizeof(Entry) + entry.shared + entry.unshared + value_size + ENTRY_ALIGN - 1) & ~<size_t>(ENTRY_ALIGN - 1)


cdef int expand(TableData* t, uint64_t offset, const uint8_t* raw, size_t raw_size, bint in_place, BlockRoom* room) noexcept nogil:
    """Twice over the entries: to check and to measure, then to write. `in_place`: `raw` is as good as the table, so that long
    values may stay there; but it may change under us, and so nothing that the first pass found is relied on."""
    cdef RawEntry entry
    cdef Reader r
    cdef const uint8_t* restarts
    cdef const char* wrong
    cdef size_t entries_end, last_size = 0
    cdef uint64_t size = sizeof(CachedBlock), keys = 0
    cdef uint32_t count = 0, restart = 0, restart_count
    if raw_size < 8:
        return damage(t, offset, "a data block is too short")
    restart_count = get_fixed32(raw + raw_size - 4)
    if restart_count == 0 or restart_count > (raw_size - 4) // 4:
        return damage(t, offset, "a data block states a wrong number of restart points")
    entries_end = raw_size - 4 - 4 * <size_t>restart_count
    restarts = raw + entries_end
    r = reader(raw, entries_end)
    while left(&r):
        if restart < restart_count and get_fixed32(restarts + 4 * <size_t>restart) == <uint32_t>(r.pos - raw):
            restart += 1
            last_size = 0
        wrong = read_entry(&r, last_size, &entry)
        if wrong != NULL:
            return damage(t, offset, wrong)
        last_size = entry.shared + entry.unshared
        keys += last_size
        size += expanded_size(&entry, in_place)
        count += 1
    if restart != restart_count or count == 0:
        return damage(t, offset, "the restart points do not fit the entries")
    size += places_size(count)
    if keys > EXPANDED_KEYS_MAX or size > <uint64_t>0x7FFFFFFF:
        return damage(t, offset, "the keys of a data block take more than the limit")
    if not make_room(<void**>&room.block, &room.block_room, <size_t>size, room.spare):
        return CURSOR_NO_MEMORY
    memset(room.block, 0, sizeof(CachedBlock))
    room.block.size = size
    room.block.count = count
    room.block.end = <uint32_t>size
    wrong = write_entries(t, raw, entries_end, in_place, room.block)
    if wrong != NULL:
        return damage(t, offset, wrong)
    write_heads(room.block)
    return CURSOR_OK


cdef const char* write_entries(TableData* t, const uint8_t* raw, size_t entries_end, bint in_place, CachedBlock* block) noexcept nogil:
    cdef Reader r = reader(raw, entries_end)
    cdef RawEntry entry
    cdef uint8_t* out = <uint8_t*>first_entry(block)
    cdef const uint8_t* end = <const uint8_t*>block + block.end
    cdef uint8_t* key
    cdef Slice last, current
    cdef size_t size
    cdef uint32_t i
    cdef const char* wrong
    last.data = NULL
    last.size = 0
    for i in range(block.count):
        wrong = read_entry(&r, last.size, &entry)
        if wrong != NULL:
            return wrong
        size = expanded_size(&entry, in_place)
        if size > <size_t>(end - out):
            return "a data block changed while it was read"
        entry_place(block, i)[0] = <uint32_t>(out - <uint8_t*>block)
        key = out + sizeof(Entry)
        if entry.shared:
            memcpy(key, last.data, entry.shared)
        memcpy(key + entry.shared, entry.suffix, entry.unshared)
        current.data = key
        current.size = entry.shared + entry.unshared
        (<Entry*>out).key_size = <uint32_t>current.size
        (<Entry*>out).value_size = <uint32_t>entry.value_size
        key += current.size
        if in_place and entry.value_size >= LONG_VALUE_SIZE:
            (<Entry*>out).key_size |= LONG_VALUE
            memcpy(key, &entry.value, sizeof(void*))
        else:
            memcpy(key, entry.value, entry.value_size)
        if t.has_global_sequence:       # on disk all sequences are 0
            put_trailer(key - TRAILER_SIZE, t.global_sequence, <int>(read_trailer(key - TRAILER_SIZE) & 255))
        if i and not (entry.unshared > TRAILER_SIZE and entry.shared + TRAILER_SIZE < last.size
                      and entry.suffix[0] > last.data[entry.shared]) and compare_internal(last, current) >= 0:
            return "the keys of a data block are not in order"
        last = current
        out += size
    if out != end or left(&r):
        return "a data block changed while it was read"
    return NULL


cdef inline uint32_t head_of(const uint8_t* key, size_t size) noexcept nogil:
    cdef uint32_t head = 0
    cdef size_t i
    if size >= 4:
        return (<uint32_t>key[0] << 24) | (<uint32_t>key[1] << 16) | (<uint32_t>key[2] << 8) | key[3]
    for i in range(size):
        head |= <uint32_t>key[i] << (24 - 8 * i)
    return head


cdef void write_heads(CachedBlock* block) noexcept nogil:
    cdef Slice first = entry_key(block_entry(block, 0))
    cdef Slice key = entry_key(block_entry(block, block.count - 1))
    cdef size_t common = 0
    cdef size_t most = min(first.size, key.size) - TRAILER_SIZE
    cdef uint32_t i, head
    while common < most and first.data[common] == key.data[common]:
        common += 1                     # the keys are in order: what the first and the last share, all share
    block.common = <uint32_t>common
    memcpy(block.prefix, first.data, min(common, <size_t>PREFIX_KEPT))
    for i in range(block.count):
        key = entry_key(block_entry(block, i))
        head = head_of(key.data + common, key.size - TRAILER_SIZE - common)
        head_place(block, i)[0] = head
        if i % GROUP == 0:
            block_samples(block)[i // GROUP] = head


# -- searching --------------------------------------------------------------------------------------------------------
cdef inline uint32_t groups_below(const CachedBlock* block, uint32_t head) noexcept nogil:
    """How many groups begin with a head below `head`: the first head that is not is in the last of them, or begins the next."""
    cdef const uint32_t* samples = block_samples(block)
    cdef uint32_t low = 0, high = (block.count + GROUP - 1) // GROUP, middle
    while low < high:
        middle = low + (high - low) // 2
        if samples[middle] < head:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint32_t first_head(const CachedBlock* block, uint32_t head) noexcept nogil:
    """0 .. count: the first entry whose head is not below `head`."""
    cdef uint32_t low = groups_below(block, head), i, below = 0
    cdef const uint32_t* heads
    if low == 0:
        return 0
    low = (low - 1) * GROUP
    heads = block_group(block, low)
    for i in range(group_size(block, low)):
        below += heads[i] < head
    return low + below


cdef void ask_for_group(const CachedBlock* block, const uint8_t* prefix, size_t size) noexcept nogil:
    cdef uint32_t low
    cdef const uint8_t* group
    if size > block.common:
        low = groups_below(block, head_of(prefix + block.common, size - block.common))
        group = <const uint8_t*>block_group(block, low * GROUP - GROUP if low else 0)
        nokv_ask_for(group)
        nokv_ask_for(group + 64)


cdef void ask_for_entry(const CachedBlock* block, const uint8_t* prefix, size_t size) noexcept nogil:
    cdef uint32_t low, line
    cdef const uint8_t* entry
    if size > block.common:
        low = first_head(block, head_of(prefix + block.common, size - block.common))
        entry = block_entry(block, min(low, block.count - 1))
        for line in range(ENTRY_LINES):
            nokv_ask_for(entry + 64 * line)


cdef uint32_t find_in_block(const CachedBlock* block, const uint8_t* prefix, size_t size, const uint8_t* trailer) noexcept nogil:
    cdef uint32_t low, high, middle, head
    cdef size_t common = block.common
    cdef size_t compared = min(size, common)
    cdef const uint8_t* start = &block.prefix[0]
    cdef Slice key
    cdef int order
    if compared > PREFIX_KEPT:
        start = first_entry(block) + sizeof(Entry)
    order = memcmp(prefix, start, compared)
    if order != 0:
        return 0 if order < 0 else block.count
    if size < common:
        return 0
    head = head_of(prefix + common, size - common)
    low = first_head(block, head)
    if low == block.count or head_place(block, low)[0] > head:
        return low
    high = low + 1
    if high < block.count and head_place(block, high)[0] == head:
        high = block.count
        middle = low
        while middle + 1 < high:        # high: the first with a greater head
            if head_place(block, middle + (high - middle) // 2)[0] > head:
                high = middle + (high - middle) // 2
            else:
                middle += (high - middle) // 2
    while low < high:
        middle = low + (high - low) // 2
        key = entry_key(block_entry(block, middle))
        order = compare_bytes(key.data, key.size - TRAILER_SIZE, prefix, size)
        if order == 0:
            order = memcmp(key.data + key.size - TRAILER_SIZE, trailer, TRAILER_SIZE)
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low
