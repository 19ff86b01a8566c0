"""WriteBatch: operations that become visible and durable together. Its buffer is the WAL record's payload.

Layout: docs/formats/write_batch.md. Threads: one at a time; a batch that is being written refuses changes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from nokv._ext.codec cimport Reader, left, put_fixed32, put_fixed64, read_byte, read_bytes, read_fixed32, read_fixed64
from nokv._ext.codec cimport reader
from nokv._ext.cursor cimport EXPIRY_SIZE, KIND_DELETE, KIND_EXPIRING_PUT, KIND_PUT, KIND_RANGE_DELETE, compare_bytes, kind_expires

from nokv.errors import BytesRequired, Corruption, UsageError

KEY_BYTES_LIMIT = KEY_BYTES_MAX
VALUE_BYTES_LIMIT = VALUE_BYTES_MAX
TTL_MS_LIMIT = 1 << 48            # about 8,900 years
EXPIRY_MS_LIMIT = 1 << 53         # a JSON reader keeps such a number whole
PAIRS_HINT = "each is a tuple of a key and a value; nothing was put"


cdef bytes as_bytes(object value, str what):
    if type(value) is bytes:
        return <bytes>value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    hint = "encode it first: text.encode()" if isinstance(value, str) else "keys and values are bytes"
    raise BytesRequired(f"{what} must be bytes, not {type(value).__name__}", hint=hint)


cdef object _iterated(object pairs):
    if isinstance(pairs, dict):
        return pairs.items()
    if not hasattr(pairs, "__iter__") and not hasattr(pairs, "__getitem__"):
        raise BytesRequired(f"put_many takes pairs, not {type(pairs).__name__}", hint="[(key, value), ...], or a dict")
    return pairs


cdef tuple _checked_pair(object pair, Py_ssize_t index):
    """(key, value) as bytes; else an error that says which pair it is."""
    if isinstance(pair, (bytes, bytearray, memoryview, str)):
        raise BytesRequired(f"pair {index} is {type(pair).__name__}, not (key, value)", hint=PAIRS_HINT)
    try:
        key, value = pair
    except TypeError as error:
        raise BytesRequired(f"pair {index} is {type(pair).__name__}, not (key, value)", hint=PAIRS_HINT) from error
    except ValueError as error:
        raise UsageError(f"pair {index} is {type(pair).__name__} of another length than 2", hint=PAIRS_HINT) from error
    try:
        key = as_bytes(key, "key")
        value = as_bytes(value, "value")
        check_sizes(<bytes>key, PyBytes_GET_SIZE(<bytes>value))
    except UsageError as error:
        raise type(error)(f"pair {index}: {error}", hint=error.hint) from None
    return key, value


def checked_pairs(pairs):
    """What `put_many` was given (a dict, or an iterable of pairs) as a list of (key, value) in bytes. UsageError or BytesRequired
    names the first pair that is none."""
    cdef Py_ssize_t index = 0
    cdef list found = []
    for pair in _iterated(pairs):
        found.append(_checked_pair(pair, index))
        index += 1
    return found


cdef int check_sizes(bytes key, Py_ssize_t value_size) except -1:
    if PyBytes_GET_SIZE(key) > KEY_BYTES_MAX:
        raise UsageError(f"a key of {len(key)} bytes is too long", hint=f"keys have at most {KEY_BYTES_MAX} bytes")
    if value_size > VALUE_BYTES_MAX:
        raise UsageError(f"a value of {value_size} bytes is too long", hint="values have at most 1 GiB - 1 bytes")
    return 0


cdef bytes range_end(int family, object end):
    """Family || user key at which a range ends; None: after the family's last key."""
    if end is not None:
        return bytes((family,)) + as_bytes(end, "end")
    if family < 255:
        return bytes((family + 1,))
    return b"\xff" * (KEY_BYTES_MAX + 1) + b"\0"


cdef uint64_t expiry_of(object ttl, object now_ms) except 0:
    """The Unix millisecond at which a value put at `now_ms` with this time to live is absent."""
    if type(ttl) is not int or not 0 < ttl <= TTL_MS_LIMIT:
        raise UsageError(f"ttl={ttl!r} is no time to live",
                         hint="milliseconds, an int from 1 to 2**48; None: the value does not expire")
    return min(now_ms + ttl, EXPIRY_MS_LIMIT)


def expiry_after(uint64_t now_ms, object ttl):
    """The Unix millisecond at which a value put at `now_ms` with this time to live is absent. UsageError for a bad `ttl`."""
    return expiry_of(ttl, now_ms)


cdef bytes with_expiry(uint64_t expiry, bytes value):
    """The stored value of an expiring put."""
    cdef bytes stored = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(value) + EXPIRY_SIZE)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(stored)
    put_fixed64(out, expiry)
    memcpy(out + EXPIRY_SIZE, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return stored


cdef class WriteBatch:
    """`put`, `delete` and `delete_range` collect; `db.write(batch)` applies all or nothing, in order. Reusable after `clear()`, and as it is."""

    def __cinit__(self, *args, **kwargs):
        self.capacity = 256
        self.data = <uint8_t*>malloc(self.capacity)
        if self.data == NULL:
            raise MemoryError()
        self.size = BATCH_HEADER_SIZE
        self.count = 0
        self.family_max = 0

    def __init__(self, *, resolve=None, now_ms=None):
        """`resolve`: family name to id; `now_ms`: the clock that times to live count from. A database's `write_batch` gives both."""
        self.resolve = resolve
        self.now_ms = now_ms

    def __dealloc__(self):
        free(self.data)

    cdef int family_id(self, object family) except -1:
        cdef int number
        if family is None:
            return 0
        if isinstance(family, int):
            number = family
        elif isinstance(family, str):
            if self.resolve is None:
                raise UsageError("this batch does not know family names", hint="pass db.family(name), or use db.write_batch()")
            number = self.resolve(family)
        else:
            number = family.id
        if not 0 <= number <= 255:
            raise UsageError(f"family id {number} is out of range")
        return number

    cdef int add(self, int kind, int family, bytes key, bytes value) except -1:
        cdef uint64_t key_size = <uint64_t>PyBytes_GET_SIZE(key)
        cdef uint64_t value_size = 0 if value is None else <uint64_t>PyBytes_GET_SIZE(value)
        cdef const uint8_t* value_data = NULL if value is None else <const uint8_t*>PyBytes_AS_STRING(value)
        cdef uint64_t need
        cdef size_t capacity
        cdef uint8_t* data
        cdef uint8_t* prefix = NULL
        if self.frozen:
            raise UsageError("the batch is being written")
        if key_size > KEY_BYTES_MAX or value_size > VALUE_BYTES_MAX:
            check_sizes(key, <Py_ssize_t>value_size - (EXPIRY_SIZE if kind_expires(kind) else 0))
        need = self.size + record_size(kind, key_size, value_size)
        if need > BATCH_BYTES_MAX:
            raise UsageError("the batch would be larger than 2 GiB", hint="write it in parts")
        if need > self.capacity:
            capacity = self.capacity
            while capacity < need:
                capacity *= 2
            data = <uint8_t*>realloc(self.data, capacity)
            if data == NULL:
                raise MemoryError()
            self.data = data
            self.capacity = capacity
        write_record(self.data + self.size, kind, <uint8_t>family, <const uint8_t*>PyBytes_AS_STRING(key), key_size,
                     value_data, value_size, &prefix)
        self.size = need
        self.count += 1
        if kind == KIND_DELETE:
            self.deletes += 1
        elif kind == KIND_RANGE_DELETE:
            self.range_deletes += 1
        if family > self.family_max:
            self.family_max = family
        return 0

    def put(self, key, value, family=None, *, ttl=None, expires_at_ms=None):
        """`ttl`: milliseconds from now on; or `expires_at_ms`: the Unix millisecond from which on the value is absent."""
        cdef int number = 0 if family is None else self.family_id(family)
        cdef uint64_t expiry
        if ttl is None and expires_at_ms is None:
            self.add(KIND_PUT, number, as_bytes(key, "key"), as_bytes(value, "value"))
            return
        if expires_at_ms is None:
            if self.now_ms is None:
                raise UsageError("this batch does not know the time", hint="use db.write_batch(), or expires_at_ms")
            expiry = expiry_of(ttl, self.now_ms())
        elif ttl is not None:
            raise UsageError("ttl and expires_at_ms say the same thing twice", hint="give one of them")
        elif type(expires_at_ms) is not int or not 0 < expires_at_ms <= EXPIRY_MS_LIMIT:
            raise UsageError(f"expires_at_ms={expires_at_ms!r} is no moment", hint="Unix time in milliseconds, from 1 to 2**53")
        else:
            expiry = expires_at_ms
        self.add(KIND_EXPIRING_PUT, number, as_bytes(key, "key"), with_expiry(expiry, as_bytes(value, "value")))

    def delete(self, key, family=None):
        self.add(KIND_DELETE, 0 if family is None else self.family_id(family), as_bytes(key, "key"), None)

    def delete_range(self, start, end, family=None):
        """Every key in start <= key < end (None: open); what the batch puts there later stays."""
        self.add_range(0 if family is None else self.family_id(family), start, end)

    cdef int add_range(self, int family, object start, object end) except -1:
        cdef bytes first = b"" if start is None else as_bytes(start, "start")
        cdef bytes last = range_end(family, end)
        if PyBytes_GET_SIZE(first) > KEY_BYTES_MAX or (end is not None and PyBytes_GET_SIZE(last) > KEY_BYTES_MAX + 1):
            check_sizes(first, 0)
            check_sizes(last[1:], 0)
        if end is not None and first >= last[1:]:
            if first == last[1:]:
                return 0
            raise UsageError("the range's start is after its end", hint="a range is start <= key < end")
        return self.add(KIND_RANGE_DELETE, family, first, last)

    def put_many(self, pairs, family=None):
        """One C loop over (key, value) pairs, or a dict. All are added, or none: UsageError names the first that is no pair."""
        cdef int number = 0 if family is None else self.family_id(family)
        cdef object pair, key, value
        cdef Py_ssize_t index = 0
        cdef size_t size = self.size
        cdef uint32_t count = self.count, deletes = self.deletes, range_deletes = self.range_deletes, clears = self.clears
        cdef int family_max = self.family_max
        try:
            for pair in _iterated(pairs):
                if type(pair) is tuple and len(<tuple>pair) == 2:
                    key = (<tuple>pair)[0]
                    value = (<tuple>pair)[1]
                    if type(key) is not bytes and isinstance(key, (bytes, bytearray, memoryview)):
                        key = bytes(key)
                    if type(value) is not bytes and isinstance(value, (bytes, bytearray, memoryview)):
                        value = bytes(value)
                    if type(key) is not bytes or type(value) is not bytes or PyBytes_GET_SIZE(<bytes>key) > KEY_BYTES_MAX or \
                            PyBytes_GET_SIZE(<bytes>value) > VALUE_BYTES_MAX:
                        _checked_pair(pair, index)      # says what is wrong
                else:
                    key, value = _checked_pair(pair, index)
                self.add(KIND_PUT, number, <bytes>key, <bytes>value)
                index += 1
        except BaseException:
            if self.clears == clears and not self.frozen:       # else what was here before is not here now
                self.size, self.count, self.deletes, self.range_deletes = size, count, deletes, range_deletes
                self.family_max = family_max
            raise

    def clear(self):
        if self.frozen:
            raise UsageError("the batch is being written")
        self.size = BATCH_HEADER_SIZE
        self.count = self.deletes = self.range_deletes = 0
        self.clears += 1
        self.family_max = 0

    def __len__(self):
        return self.count

    @property
    def size_bytes(self):
        return self.size

    def payload(self, uint64_t first_sequence):
        """The WAL payload that a write at this sequence makes."""
        cdef bytes made = PyBytes_FromStringAndSize(<const char*>self.data, <Py_ssize_t>self.size)
        cdef uint8_t* header = <uint8_t*>PyBytes_AS_STRING(made)    # ours is not touched: it may be being written
        put_fixed64(header, first_sequence)
        put_fixed32(header + 8, self.count)
        return made

    def __repr__(self):
        return f"WriteBatch({self.count} operations, {self.size} bytes)"


def decode_batch(const uint8_t[::1] payload not None):
    """(first sequence, [(kind, family, key, stored value)]): None for a delete; for a range delete the family || user key at which it
    ends. Corruption with the offset inside the payload."""
    cdef Reader r = reader(&payload[0] if payload.shape[0] else NULL, <size_t>payload.shape[0])
    cdef size_t total = <size_t>payload.shape[0]
    cdef uint64_t sequence = 0
    cdef uint32_t count = 0, i
    cdef uint8_t kind = 0
    cdef const uint8_t* prefix = NULL
    cdef const uint8_t* value = NULL
    cdef size_t prefix_size = 0, value_size = 0
    cdef list found = []
    if not read_fixed64(&r, &sequence) or not read_fixed32(&r, &count):
        raise Corruption("write batch has no header", offset=0)
    if not sequences_are_sound(sequence, count):
        raise Corruption("write batch has an impossible sequence", offset=0, expected="1 to 2**56 - 1", found=sequence)
    for i in range(count):
        value = NULL
        value_size = 0
        if not read_byte(&r, &kind) or not read_bytes(&r, &prefix, &prefix_size) or prefix_size == 0:
            raise Corruption("write batch ends inside a key", offset=total - left(&r))
        if kind != KIND_DELETE and not read_bytes(&r, &value, &value_size):
            raise Corruption("write batch ends inside a value", offset=total - left(&r))
        if not record_is_known(kind, value_size):
            raise Corruption("write batch has an unknown kind, or a value that is none of its kind", offset=total - left(&r),
                             found=kind)
        if kind == KIND_RANGE_DELETE and compare_bytes(prefix, prefix_size, value, value_size) >= 0:
            raise Corruption("write batch has a range delete that ends before it begins", offset=total - left(&r))
        found.append((kind, prefix[0], prefix[1:prefix_size], None if kind == KIND_DELETE else value[:value_size]))
    if left(&r):
        raise Corruption("write batch has bytes after its last record", offset=total - left(&r))
    return sequence, found
