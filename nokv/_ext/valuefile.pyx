"""Value files: where values of `value_file_threshold` bytes and more lie (docs/formats/value_file.md).

    file   = header (32) | record ...
    record = value crc (4) | value size (4) | key size (4) | sequence (8) | header crc (4) | key | value

A file is written once, from front to back, by the flush or compaction that makes the tables which refer to it, and is synced
before the manifest names either. Afterwards it never changes. Who reads a value checks the CRC that the reference states, so a
record's own header is for those who walk the file: `verify`, `nokv blob show`, repair.

Threads: a ValueFile is immutable. A ValueSink belongs to one step; its C methods run without the GIL and take it to write.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from nokv._ext.batch cimport VALUE_BYTES_MAX
from nokv._ext.codec cimport get_fixed32, get_fixed64, put_fixed32, put_fixed64
from nokv._ext.crc32c cimport crc32c
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_IO,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    EXPIRY_SIZE,
    KIND_EXPIRING_PUT,
    KIND_EXPIRING_REFERENCE,
    KIND_PUT,
    KIND_REFERENCE,
    TRAILER_SIZE,
    Cursor,
    Slice,
    kind_expires,
    kind_is_reference,
    kind_is_value,
    read_trailer,
)
from nokv._ext.merge cimport OwnedCursor

from nokv.errors import Corruption, NotSupported, UsageError

cdef enum:
    FILE_HEADER = 32
    RECORD_HEADER = 24
    PREFIX_MAX = 65537
    CHUNK = 1 << 20                     # what gathers before it is written; a larger value is written from where it lies
    CHECK_WITHOUT_GIL = 32768
    FAMILY_LOCK = 2                     # the families of the transaction layer's records and of local state: read in place
    FAMILY_LOCAL = 4

MAGIC = b"NOKVVAL\x01"
FORMAT_VERSION = 1
HEADER_SIZE = FILE_HEADER
RECORD_HEADER_SIZE = RECORD_HEADER


cdef int tally(Tallies* t, uint64_t number, uint64_t bytes) noexcept nogil:
    cdef size_t i
    cdef Tally* fresh
    if t.last < t.count and t.items[t.last].number == number:
        t.items[t.last].bytes += bytes
        return CURSOR_OK
    for i in range(t.count):
        if t.items[i].number == number:
            t.last = i
            t.items[i].bytes += bytes
            return CURSOR_OK
    if t.count == t.room:
        fresh = <Tally*>realloc(t.items, (t.room * 2 + 8) * sizeof(Tally))
        if fresh == NULL:
            return CURSOR_NO_MEMORY
        t.items = fresh
        t.room = t.room * 2 + 8
    t.items[t.count].number = number
    t.items[t.count].bytes = bytes
    t.last = t.count
    t.count += 1
    return CURSOR_OK


# -- references -------------------------------------------------------------------------------------------------------
cdef bint read_reference(const Slice* stored, Reference* out) noexcept nogil:
    if stored.size != REFERENCE_SIZE or stored.data[0] != REFERENCE_VERSION:
        return False
    out.crc = get_fixed32(stored.data + 1)
    out.size = get_fixed32(stored.data + 5)
    out.number = get_fixed64(stored.data + 9)
    out.offset = get_fixed64(stored.data + 17)
    return out.size <= VALUE_BYTES_MAX


cdef inline void put_reference(uint8_t* out, const Reference* ref) noexcept nogil:
    out[0] = REFERENCE_VERSION
    put_fixed32(out + 1, ref.crc)
    put_fixed32(out + 5, ref.size)
    put_fixed64(out + 9, ref.number)
    put_fixed64(out + 17, ref.offset)


cdef inline bint inside(const Reference* ref, uint64_t size) noexcept nogil:
    return ref.offset >= FILE_HEADER and ref.offset <= size and ref.size <= size - ref.offset


cdef ValueFile file_of(dict values, const Reference* ref):
    cdef ValueFile file = None if values is None else values.get(ref.number)
    if file is None:
        raise Corruption(f"a table refers to value file {ref.number}, which the manifest does not name")
    if not inside(ref, file.size):
        raise Corruption("a value lies beyond the end of its file", path=file.path, offset=ref.offset, expected=ref.size,
                         found=file.size)
    return file


cdef bytes read_value(dict values, const Slice* stored):
    cdef Reference ref
    cdef ValueFile file
    cdef bytes value
    cdef uint8_t* out
    cdef uint32_t found
    if not read_reference(stored, &ref):
        raise Corruption("a reference to a value file is malformed")
    file = file_of(values, &ref)
    value = PyBytes_FromStringAndSize(NULL, ref.size)
    out = <uint8_t*>PyBytes_AS_STRING(value)
    if ref.size < CHECK_WITHOUT_GIL:
        memcpy(out, file.base + ref.offset, ref.size)
        found = crc32c(0, out, ref.size)
    else:
        with nogil:
            memcpy(out, file.base + ref.offset, ref.size)
            found = crc32c(0, out, ref.size)
    if found != ref.crc:
        raise Corruption("the checksum of a value does not match", path=file.path, offset=ref.offset, expected=ref.crc,
                         found=found)
    return value


def decode_reference(bytes stored not None):
    """(file number, offset, size, crc) of a reference; Corruption if it is malformed."""
    cdef Slice s
    cdef Reference ref
    s.data = <const uint8_t*>PyBytes_AS_STRING(stored)
    s.size = len(stored)
    if not read_reference(&s, &ref):
        raise Corruption("a reference to a value file is malformed")
    return ref.number, ref.offset, ref.size, ref.crc


def resolve_reference(dict values not None, bytes stored not None):
    """The value that a reference stands for."""
    cdef Slice s
    s.data = <const uint8_t*>PyBytes_AS_STRING(stored)
    s.size = len(stored)
    return read_value(values, &s)


# -- reading ----------------------------------------------------------------------------------------------------------
cdef uint32_t header_crc(uint64_t number, uint64_t offset, const uint8_t* header, const uint8_t* key, size_t key_size) noexcept nogil:
    cdef uint8_t place[36]
    put_fixed64(place, number)
    put_fixed64(place + 8, offset)
    memcpy(place + 16, header, 20)
    return crc32c(crc32c(0, place, 36), key, key_size)


@cython.no_gc_clear          # what a view points into must outlive it, also when a cycle is collected
cdef class ValueFile:
    """One file, mapped. `number`: the one it must state (None: any). `size`: what the manifest says (None: any)."""

    def __init__(self, buffer, str path not None, number=None, size=None):
        cdef uint64_t total = len(buffer)
        self.path = path
        if total < FILE_HEADER:
            raise self._damaged(0, "the file is shorter than its header")
        self.data = buffer
        self.base = &self.data[0]
        self.size = total
        if bytes(self.data[:8]) != MAGIC or crc32c(0, self.base, 28) != get_fixed32(self.base + 28):
            raise self._damaged(0, "the header of the value file is damaged")
        if get_fixed32(self.base + 8) != FORMAT_VERSION:
            raise NotSupported(
                f"{path}: value file format version {get_fixed32(self.base + 8)}, this program reads {FORMAT_VERSION}",
                hint="open the directory with the release that wrote it, or a newer one",
            )
        self.number = get_fixed64(self.base + 12)
        if number is not None and self.number != number:
            raise self._damaged(12, "the value file has another number", number, self.number)
        if size is not None and total != size:
            raise self._damaged(min(total, size), "the value file has another size", size, total)

    def _damaged(self, offset, reason, expected=None, found=None):
        return Corruption(reason, path=self.path, offset=offset, expected=expected, found=found)

    def records(self, *, bint check=False, uint64_t start=FILE_HEADER):
        """(offset, family || user key, sequence, value size, value crc) of every record, in order. `check`: read the values
        too. Corruption at the first record that does not check out."""
        cdef uint64_t at = start
        cdef uint32_t size, key_size
        while at < self.size:
            if self.size - at < RECORD_HEADER:
                raise self._damaged(at, "the value file ends inside a record's header")
            size = get_fixed32(self.base + at + 4)
            key_size = get_fixed32(self.base + at + 8)
            if key_size == 0 or key_size > PREFIX_MAX or size > VALUE_BYTES_MAX or \
                    <uint64_t>key_size + size > self.size - at - RECORD_HEADER:
                raise self._damaged(at, "a record runs past the end of the value file, or is too large")
            if header_crc(self.number, at, self.base + at, self.base + at + RECORD_HEADER, key_size) != \
                    get_fixed32(self.base + at + 20):
                raise self._damaged(at, "the header of a record in a value file is damaged")
            if check:
                self._check_value(at + RECORD_HEADER + key_size, size, get_fixed32(self.base + at))
            yield (
                at,
                PyBytes_FromStringAndSize(<const char*>self.base + at + RECORD_HEADER, key_size),
                get_fixed64(self.base + at + 12),
                size,
                get_fixed32(self.base + at),
            )
            at += RECORD_HEADER + <uint64_t>key_size + size

    def _check_value(self, uint64_t offset, uint32_t size, uint32_t expected):
        cdef uint32_t found
        with nogil:
            found = crc32c(0, self.base + offset, size)
        if found != expected:
            raise self._damaged(offset, "the checksum of a value does not match", expected, found)

    def verify(self):
        """Read every byte. How many records there are; Corruption(path, offset) at the first damage."""
        cdef uint64_t count = 0
        for _ in self.records(check=True):
            count += 1
        return count


def check_references(OwnedCursor source not None, dict values not None, bint check=False):
    """Does every reference under the cursor lead to a record of its own key, size and checksum? How many there are.
    `check`: read the values too. Corruption names the value file and the offset."""
    cdef Cursor* c = source.c
    cdef Slice stored
    cdef Reference ref
    cdef ValueFile file
    cdef uint64_t packed, count = 0, start
    cdef size_t prefix
    cdef int kind
    source.seek_first()
    while c.valid:
        prefix = c.key.size - TRAILER_SIZE
        packed = read_trailer(c.key.data + prefix)
        kind = <int>(packed & 255)
        if kind_is_reference(kind):
            stored = c.value
            if kind == KIND_EXPIRING_REFERENCE:
                if stored.size < EXPIRY_SIZE:
                    raise Corruption("a stored value is malformed", found=kind)
                stored.data += EXPIRY_SIZE
                stored.size -= EXPIRY_SIZE
            if not read_reference(&stored, &ref):
                raise Corruption("a reference to a value file is malformed")
            file = file_of(values, &ref)
            start = ref.offset - prefix - RECORD_HEADER
            if ref.offset < FILE_HEADER + RECORD_HEADER + prefix or get_fixed32(file.base + start) != ref.crc or \
                    get_fixed32(file.base + start + 4) != ref.size or get_fixed32(file.base + start + 8) != prefix or \
                    memcmp(file.base + start + RECORD_HEADER, c.key.data, prefix) != 0:
                raise Corruption("a reference does not lead to its record", path=file.path, offset=ref.offset)
            if check:
                file._check_value(ref.offset, ref.size, ref.crc)
            count += 1
        c.ops.next(c)
    source.check()
    return count


# -- writing ----------------------------------------------------------------------------------------------------------
cdef class ValueSink:
    """Where a step that writes tables puts large values.

    threshold   values of so many bytes and more go to a file (0: none does)
    values      the files that the step's input may refer to
    rewrite     numbers of those whose values move to a new file
    inlines     references become the values themselves (external tables)
    create      () -> (number, path, file): begin a value file
    remove      path -> None: after `abort`
    """

    def __cinit__(self, *args, **kwargs):
        self.sources = NULL
        self.pending = self.joined = NULL
        self.dead.items = NULL

    def __init__(self, dict values, *, uint64_t threshold=0, rewrite=(), bint inlines=False,
                 uint64_t file_bytes_max=1 << 28, create=None, remove=None):
        cdef ValueFile file
        cdef size_t i = 0
        self.values = {} if values is None else values
        self.threshold = threshold
        self.inlines = inlines
        self.file_bytes_max = file_bytes_max
        self.create = create
        self.remove = remove
        self.finished = []
        self.sources = <Source*>calloc(len(self.values) + 1, sizeof(Source))
        if self.sources == NULL:
            raise MemoryError
        for number in sorted(self.values):
            file = self.values[number]
            self.sources[i].number = number
            self.sources[i].base = file.base
            self.sources[i].size = file.size
            self.sources[i].rewrite = number in rewrite
            i += 1
        self.source_count = i

    def __dealloc__(self):
        free(self.sources)
        free(self.pending)
        free(self.joined)
        free(self.dead.items)

    cdef Source* source(self, uint64_t number) noexcept nogil:
        cdef size_t low = 0, high = self.source_count, middle
        if self.source_last < high and self.sources[self.source_last].number == number:
            return &self.sources[self.source_last]
        while low < high:
            middle = low + (high - low) // 2
            if self.sources[middle].number < number:
                low = middle + 1
            else:
                high = middle
        if low == self.source_count or self.sources[low].number != number:
            return NULL
        self.source_last = low
        return &self.sources[low]

    cdef bint wants(self, int kind, const uint8_t* prefix, const Slice* value) noexcept nogil:
        """Must this entry go through `convert`?"""
        if kind_is_reference(kind):
            return True
        return (self.threshold != 0 and kind_is_value(kind) and value.size >= self.threshold
                + (EXPIRY_SIZE if kind_expires(kind) else 0) and (prefix[0] < FAMILY_LOCK or prefix[0] > FAMILY_LOCAL))

    cdef int drop(self, int kind, Slice value) noexcept nogil:
        """An entry of the input that is not in the output."""
        cdef Reference ref
        if not kind_is_reference(kind) or self.inlines:
            return CURSOR_OK
        if kind_expires(kind) and value.size >= EXPIRY_SIZE:
            value.data += EXPIRY_SIZE
            value.size -= EXPIRY_SIZE
        if not read_reference(&value, &ref):
            return CURSOR_CORRUPT
        return tally(&self.dead, ref.number, ref.size)

    cdef int convert(self, int* kind, const uint8_t* prefix, size_t prefix_size, uint64_t sequence, Slice* value,
                     Tallies* referenced) noexcept nogil:
        """What the table stores: `kind` and `value` change. Good until the next call."""
        cdef Reference ref
        cdef Slice body = value[0]
        cdef Source* from_file
        cdef size_t head = EXPIRY_SIZE if kind_expires(kind[0]) else 0
        cdef int status
        cdef uint8_t* fresh
        if body.size < head:
            return CURSOR_CORRUPT
        body.data += head
        body.size -= head
        if kind_is_reference(kind[0]):
            if not read_reference(&body, &ref):
                return CURSOR_CORRUPT
            from_file = self.source(ref.number)
            if not self.inlines and (from_file == NULL or not from_file.rewrite):
                return tally(referenced, ref.number, ref.size)
            status = self.resolve(&ref, &body)
            if status != CURSOR_OK:
                return status
            if self.inlines:
                kind[0] = KIND_EXPIRING_PUT if head else KIND_PUT
                if head:
                    fresh = <uint8_t*>realloc(self.joined, head + body.size)
                    if fresh == NULL:
                        return CURSOR_NO_MEMORY
                    self.joined = fresh
                    memcpy(fresh, value.data, head)
                    memcpy(fresh + head, body.data, body.size)
                    body.data = fresh
                    body.size += head
                value[0] = body
                return CURSOR_OK
            status = tally(&self.dead, ref.number, ref.size)
            if status != CURSOR_OK:
                return status
            self.rewritten_bytes += ref.size
        status = self.store(prefix, prefix_size, sequence, &body, &ref)
        if status != CURSOR_OK:
            return status
        if head:
            memcpy(self.room, value.data, head)
        put_reference(&self.room[0] + head, &ref)
        kind[0] = KIND_EXPIRING_REFERENCE if head else KIND_REFERENCE
        value.data = &self.room[0]
        value.size = head + REFERENCE_SIZE
        return tally(referenced, ref.number, ref.size)

    cdef int resolve(self, Reference* ref, Slice* out) noexcept nogil:
        cdef Source* file = self.source(ref.number)
        self.bad_number = ref.number
        self.bad_offset = ref.offset
        self.bad_expected = ref.crc
        self.bad_found = 0
        if file == NULL or not inside(ref, file.size):
            return CURSOR_CORRUPT
        self.bad_found = crc32c(0, file.base + ref.offset, ref.size)
        if self.bad_found != ref.crc:
            return CURSOR_CORRUPT
        self.bad_number = 0
        out.data = file.base + ref.offset
        out.size = ref.size
        return CURSOR_OK

    cdef int store(self, const uint8_t* prefix, size_t prefix_size, uint64_t sequence, const Slice* value,
                   Reference* out) noexcept nogil:
        cdef uint8_t* at
        cdef uint8_t* fresh
        cdef size_t need = RECORD_HEADER + prefix_size + (value.size if value.size <= CHUNK else 0)
        cdef uint64_t start
        if (self.number == 0 or self.written + self.pending_size >= self.file_bytes_max) and self.begin_file() != CURSOR_OK:
            return CURSOR_IO
        if self.pending_size and self.pending_size + need > 2 * CHUNK and self.write_pending(NULL, 0) != CURSOR_OK:
            return CURSOR_IO
        if self.pending_size + need > self.pending_room:
            fresh = <uint8_t*>realloc(self.pending, self.pending_size + need)
            if fresh == NULL:
                return CURSOR_NO_MEMORY
            self.pending = fresh
            self.pending_room = self.pending_size + need
        start = self.written + self.pending_size
        at = self.pending + self.pending_size
        out.crc = crc32c(0, value.data, value.size)
        out.size = <uint32_t>value.size
        out.number = self.number
        out.offset = start + RECORD_HEADER + prefix_size
        put_fixed32(at, out.crc)
        put_fixed32(at + 4, out.size)
        put_fixed32(at + 8, <uint32_t>prefix_size)
        put_fixed64(at + 12, sequence)
        put_fixed32(at + 20, header_crc(self.number, start, at, prefix, prefix_size))
        memcpy(at + RECORD_HEADER, prefix, prefix_size)
        if value.size <= CHUNK and value.size:
            memcpy(at + RECORD_HEADER + prefix_size, value.data, value.size)
        self.pending_size += need
        self.records += 1
        self.value_bytes += value.size
        if value.size > CHUNK:
            return self.write_pending(value.data, value.size)
        if self.pending_size >= CHUNK:
            return self.write_pending(NULL, 0)
        return CURSOR_OK

    cdef int begin_file(self) noexcept with gil:
        cdef uint8_t[FILE_HEADER] head
        try:
            if self.number:
                self._end_file()
            self.number, self.path, self.file = self.create()
            self.written = self.records = self.value_bytes = 0
            memcpy(head, <const uint8_t*><const char*>(<bytes>MAGIC), 8)
            put_fixed32(head + 8, FORMAT_VERSION)
            put_fixed64(head + 12, self.number)
            put_fixed64(head + 20, 0)
            put_fixed32(head + 28, crc32c(0, head, 28))
            self._write(head, FILE_HEADER)
            return CURSOR_OK
        except BaseException as error:  # raised again as soon as the C loop has stopped
            self.error = error
            return CURSOR_IO

    cdef int write_pending(self, const uint8_t* more, size_t more_size) noexcept with gil:
        try:
            self._write(self.pending, self.pending_size)
            self.pending_size = 0
            self._write(more, more_size)
            return CURSOR_OK
        except BaseException as error:  # raised again as soon as the C loop has stopped
            self.error = error
            return CURSOR_IO

    cdef _write(self, const uint8_t* data, size_t size):
        cdef Py_ssize_t done
        while size:
            done = self.file.write(PyMemoryView_FromMemory(<char*>data, <Py_ssize_t>size, PyBUF_READ))
            if done <= 0:
                raise OSError(5, "nothing was written")
            data += done
            size -= done
            self.written += done

    cdef _end_file(self):
        if self.pending_size:
            self._write(self.pending, self.pending_size)
            self.pending_size = 0
        self.file.sync()
        self.file.close()
        self.finished.append((self.number, self.path, self.written, self.records, self.value_bytes))
        self.number = 0
        self.file = None

    cdef raise_error(self, int status):
        """Raise what `convert` or `drop` met. Returns if it was not theirs."""
        cdef ValueFile file
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if status == CURSOR_CORRUPT:
            file = self.values.get(self.bad_number) if self.bad_number else None
            if file is not None:
                raise Corruption("the checksum of a value does not match", path=file.path, offset=self.bad_offset,
                                 expected=self.bad_expected, found=self.bad_found)
            if self.bad_number:
                raise Corruption(f"a table refers to value file {self.bad_number}, which the manifest does not name")

    def finish(self):
        """Sync what was written. [(number, path, size, records, bytes of values)] of the new files."""
        if self.number:
            self._end_file()
        return self.finished

    def abort(self):
        """Remove what was written; what cannot be removed is a leftover that the next open removes."""
        paths = [path for _, path, _, _, _ in self.finished]
        if self.number:
            paths.append(self.path)
            try:
                self.file.close()
            except OSError:
                pass
            self.number = 0
            self.file = None
        self.finished = []
        for path in paths:
            try:
                self.remove(path)
            except OSError:
                pass

    def dead_bytes(self):
        """{file number: bytes of values that the new tables do not refer to and the old ones did}"""
        cdef size_t i
        return {self.dead.items[i].number: self.dead.items[i].bytes for i in range(self.dead.count)}
