"""Opening a sorted string table and checking all of it (docs/formats/sst.md).

Everything that comes from the file is checked before use: the footer, properties and range deletes when the table is opened,
filter and index when they are first needed (tableparts.pyx), a data block the first time it is read.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from nokv._ext.block cimport (
    BLOCK_TRAILER_SIZE,
    CODEC_LZ4,
    CODEC_NONE,
    CODEC_ZSTD,
    IndexEntry,
    TableData,
    checksum_holds,
    damage,
)
from nokv._ext.blockcache cimport BlockCache, CachedBlock, cache_forget
from nokv._ext.codec cimport Reader, get_fixed32, get_fixed64, left, read_bytes, read_varint, reader
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_IO,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
    compare_internal,
    entry_is_sound,
    kind_is_reference,
    read_trailer,
)
from nokv._ext.filter cimport LINE, filter_hash, filter_may_hold
from nokv._ext.merge cimport OwnedCursor
from nokv._ext.pointindex cimport table_get
from nokv._ext.ranges cimport Ranges, ranges_decode, ranges_release, ranges_retain
from nokv._ext.tablecursor cimport TableCursor, bad_entry, fail, table_cursor
from nokv._ext.tableparts cimport PART_FILTER, PART_INDEX, need, parts_free, parts_init

from nokv._ext.disk import FileMap
from nokv.errors import Corruption, NotSupported

MAGIC = b"NOKVSST\x01"
FORMAT_VERSION_PLAIN = 1                # deletes and puts
FORMAT_VERSION = 2                      # kinds above 1, or the codec lz4


cdef tuple rising_numbers(bytes data):
    """Varints, or None if they are none, or fall."""
    cdef Reader r = reader(<const uint8_t*><const char*>data, len(data))
    cdef uint64_t number = 0
    cdef uint64_t before = 0
    found = []
    while left(&r):
        if not read_varint(&r, &number) or number < before:
            return None
        before = number
        found.append(number)
    return tuple(found)


cdef bytes bytes_of(const uint8_t* p, size_t n):
    return (<const char*>p)[:n] if n else b""


# the collector must not take away what __dealloc__ still needs
@cython.no_gc_clear
cdef class Table:
    """One open table. `buffer` is the whole file; `meta` (a FileMeta) and `global_sequence` come from the manifest."""

    def __cinit__(self):
        self.t.error_offset = -1
        parts_init(&self.t)

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
        whole = getattr(buffer, "obj", None)
        self.t.mapped = type(whole) is FileMap and memoryview(whole).nbytes == self.view.len
        self.t.cache = cache.data
        if global_sequence is not None:
            self.t.global_sequence = global_sequence
            self.t.has_global_sequence = True
        self._open()
        if meta is not None:
            self._check_meta(meta)

    def __dealloc__(self):
        ranges_release(self.t.ranges)
        if self.t.homes != NULL:
            cache_forget(self.t.cache, self.t.homes, self.t.blocks)
        parts_free(&self.t)
        free(self.t.slots)
        free(self.t.indexed)
        if self.view != NULL:
            PyBuffer_Release(self.view)     # nothing, if taking it failed
            free(self.view)

    cdef _damaged(self, uint64_t offset, str reason, expected=None, found=None):
        return Corruption(reason, path=self.path, offset=offset, expected=expected, found=found)

    cdef int _place(self, uint64_t offset, uint64_t size, uint64_t end, str name) except -1:
        if offset > end or size > end - offset or end - offset - size != BLOCK_TRAILER_SIZE:
            raise self._damaged(self.t.size - FOOTER_SIZE, f"the footer places the {name} block wrongly")
        return 0

    cdef const uint8_t* _meta_block(self, uint64_t offset, uint64_t size, uint64_t end, str name) except NULL:
        """Payload of a checked, uncompressed block that must end at `end`."""
        self._place(offset, size, end, name)
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
        self._place(index_offset, index_size, footer_offset, "index")
        self._meta_block(properties_offset, properties_size, index_offset, "properties")
        self._place(filter_offset, filter_size, properties_offset, "filter")
        self._read_properties(properties_offset, properties_size)
        cdef uint64_t blocks = self.properties["blocks"]
        if blocks == 0 or blocks > index_size // 2 or blocks > <uint64_t>0x7FFFFFFF:
            raise self._damaged(index_offset, "the index cannot hold that many blocks", blocks, index_size)
        self.t.blocks = <uint32_t>blocks
        self.t.entries = self.properties["entries"]
        self.t.raw_bytes = self.properties["raw_bytes"]
        self.t.index_offset = index_offset
        self.t.index_size = index_size
        self.t.filter_offset = filter_offset
        self.t.filter_size = filter_size
        cdef uint64_t padding = (LINE - filter_offset % LINE) % LINE
        if filter_size:
            if filter_size < padding + LINE or (filter_size - padding) % LINE:
                raise self._damaged(filter_offset, "the filter is not made of whole lines")
            self.t.filter = self.t.base + filter_offset + padding
            self.t.filter_lines = (filter_size - padding) // LINE
        self.t.data_end = self._read_ranges(filter_offset)
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
        found["expiries"] = rising_numbers(found["expiries"] or b"")
        if found["expiries"] is None:
            raise self._damaged(offset, "the moments of expiry are not a list of rising numbers")
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
        return kind, bytes_of(value.data, value.size)

    def ranges(self):
        """Its range deletes, or None."""
        return None if self.t.ranges == NULL else Ranges.make(ranges_retain(self.t.ranges))

    def cursor(self):
        """For what reads all of it once: the block cache is left alone."""
        return OwnedCursor.make(table_cursor(&self.t, False), self)

    @property
    def point_index_bytes(self):
        """Memory of the point index; 0 until the first point read makes it."""
        cdef TableData* t = &self.t
        if t.slots == NULL:
            return 0
        return t.slot_count * 4 + t.blocks

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
            status = need(&self.t, PART_FILTER)
            if status == CURSOR_OK:
                status = need(&self.t, PART_INDEX)
            if status == CURSOR_OK:
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
    c = table_cursor(t, False)
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
        if not t.has_global_sequence and compare_internal(c.key, t.index[tc.number].key) > 0:
            bad_entry(tc, "a key lies above its block's key in the index")
            break
        if not filter_may_hold(t.filter, t.filter_lines, filter_hash(c.key.data, c.key.size - TRAILER_SIZE)):
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
    16: "expiries",                     # varints: by when each of so many equal parts of these entries has expired
    20: "value_files",                  # pairs of varints: number of a value file, bytes of values that are referred to in it
}
OPTIONAL_PROPERTIES = frozenset(("expiring", "expiries", "range_deletes", "range_block_bytes", "value_files"))  # absent: 0
TEXT_PROPERTIES = frozenset((7, 8, 12, 16, 20))
