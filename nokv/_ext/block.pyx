"""Data blocks of a table.

    data block ... | range block (if there are range deletes) | filter block | properties block | index block | footer (64 bytes)
    block   = payload | codec (1) | raw size (4) | CRC-32C of payload, codec and raw size (4)
    entry   = varint shared | varint unshared | varint value size | unshared key bytes | value
    payload = entries | offset of each restart point (4 each) | how many (4)

A block's checksum is looked at the first time it is read. A plain block is read in place; a compressed one is decoded into the
block cache.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from nokv._ext.blockcache cimport CachedBlock, block_data, cache_add, cache_find, new_block, release_block
from nokv._ext.codec cimport get_fixed32
from nokv._ext.cursor cimport CURSOR_CORRUPT, CURSOR_IO, CURSOR_NO_MEMORY, CURSOR_OK
from nokv._ext.lz4 cimport lz4_decompress


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
