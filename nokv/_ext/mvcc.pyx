"""The MVCC codec and its hot loops: keys, records, the merge of committed and plain records, apply of command batches.

The memcomparable key layout is the public one of MyRocks and TiKV: groups of eight bytes, each followed by a marker
255 - (number of padding zeros); a key whose length is a multiple of eight ends with an all-padding group. So the encoded
form orders like the key, and no encoded key is a prefix of another. docs/formats/mvcc.md has the records.
Thread rules: functions are pure except `apply_batch`, which writes into the batch it is given.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.batch cimport WriteBatch
from nokv._ext.codec cimport Reader, left, read_byte, read_bytes, read_fixed64, read_varint
from nokv._ext.command cimport (
    BATCH_WRITE, COMMAND_DELETE, COMMAND_PUT, COMMANDS_MAX, GROUP_WRITES, VALUE_BYTES_MAX, WRITE_KEY_BYTES_MAX, open_packed,
)
from nokv._ext.cursor cimport KIND_PUT, TRAILER_SIZE, Cursor, Slice, put_trailer, read_trailer
from nokv._ext.view cimport Store, View

from nokv.errors import BytesRequired, Corruption, KeyLocked

TS_MAX = 0xFFFFFFFFFFFFFFFF
SHORT_VALUE_MAX = SHORT_VALUE_BYTES_MAX


# -- keys -------------------------------------------------------------------------------------------------------------
cdef size_t put_encoded(uint8_t* out, const uint8_t* key, size_t size) noexcept nogil:
    """Writes encoded_size(size) bytes and returns that number."""
    cdef uint8_t* start = out
    while size >= KEY_GROUP:
        memcpy(out, key, KEY_GROUP)
        out[KEY_GROUP] = 255
        out += KEY_GROUP + 1
        key += KEY_GROUP
        size -= KEY_GROUP
    memset(out, 0, KEY_GROUP)
    if size:
        memcpy(out, key, size)
    out[KEY_GROUP] = <uint8_t>(255 - (KEY_GROUP - size))
    return <size_t>(out - start) + KEY_GROUP + 1


cdef Py_ssize_t get_decoded(uint8_t* out, const uint8_t* data, size_t size, size_t* used) noexcept nogil:
    """Decodes one key from the front of `data` into `out` (room for `size`). Returns its length, or -1 if malformed."""
    cdef Py_ssize_t length = 0
    cdef size_t pos = 0
    cdef int real, i
    while size - pos >= KEY_GROUP + 1:
        real = <int>data[pos + KEY_GROUP] - (255 - KEY_GROUP)
        if real < 0:
            return -1
        memcpy(out + length, data + pos, real)
        length += real
        for i in range(real, KEY_GROUP):
            if data[pos + i] != 0:
                return -1
        pos += KEY_GROUP + 1
        if real < KEY_GROUP:
            used[0] = pos
            return length
    return -1


cdef bytes _encode(const uint8_t* key, size_t size, bint with_ts, uint64_t ts):
    cdef size_t n = encoded_size(size)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n + (TIMESTAMP_BYTES if with_ts else 0)))
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(out)
    put_encoded(p, key, size)
    if with_ts:
        put_timestamp(p + n, ts)
    return out


def encode_key(bytes key not None):
    return _encode(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), False, 0)


def versioned_key(bytes key not None, uint64_t ts):
    """The key in `write` (ts = commit_ts) or `default` (ts = start_ts). Of one key, the newest timestamp sorts first."""
    return _encode(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), True, ts)


def decode_key(bytes encoded not None):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(encoded))
    cdef size_t used = 0
    cdef Py_ssize_t n = get_decoded(
        <uint8_t*>PyBytes_AS_STRING(out), <const uint8_t*>PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded), &used
    )
    if n < 0 or <Py_ssize_t>used != PyBytes_GET_SIZE(encoded):
        raise Corruption(f"not a memcomparable key: {encoded[:64].hex()}")
    return out[:n]


def split_versioned_key(bytes encoded not None):
    """(key, timestamp). Corruption if the bytes are not a versioned key."""
    if PyBytes_GET_SIZE(encoded) < KEY_GROUP + 1 + TIMESTAMP_BYTES:
        raise Corruption(f"not a versioned key: {encoded[:64].hex()}")
    cdef Py_ssize_t n = PyBytes_GET_SIZE(encoded) - TIMESTAMP_BYTES
    return decode_key(encoded[:n]), get_timestamp(<const uint8_t*>PyBytes_AS_STRING(encoded) + n)


# -- records ----------------------------------------------------------------------------------------------------------
cdef bytes _write_record(int kind, uint64_t start_ts, bint inline_value, const uint8_t* value, size_t size):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, WRITE_HEADER_BYTES + (<Py_ssize_t>size if inline_value else 0))
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(out)
    cdef int i
    p[0] = <uint8_t>((RECORD_VERSION << 4) | kind)
    p[1] = WRITE_INLINE if inline_value else 0
    for i in range(8):
        p[2 + i] = <uint8_t>(start_ts >> (56 - 8 * i))
    if inline_value and size:
        memcpy(p + WRITE_HEADER_BYTES, value, size)
    return out


def encode_write(int kind, uint64_t start_ts, bytes short_value=None):
    """A commit record. `short_value` None: the value, if any, is in `default` at start_ts."""
    if kind < WRITE_PUT or kind > WRITE_LOCK:
        raise ValueError(f"unknown kind of write record: {kind}")
    if short_value is None:
        return _write_record(kind, start_ts, False, NULL, 0)
    return _write_record(
        kind, start_ts, True, <const uint8_t*>PyBytes_AS_STRING(short_value), PyBytes_GET_SIZE(short_value)
    )


def decode_write(bytes record not None):
    """(kind, start_ts, value or None). Corruption if malformed."""
    cdef uint64_t start_ts = 0
    cdef int kind = _check_write(record, &start_ts)
    if kind < 0:
        raise _bad_record(record)
    if PyBytes_AS_STRING(record)[1] & WRITE_INLINE:
        return kind, start_ts, record[WRITE_HEADER_BYTES:]
    return kind, start_ts, None


cdef int _check_write(bytes record, uint64_t* start_ts) noexcept:
    """The kind, or -1 if malformed."""
    cdef const uint8_t* p
    cdef Py_ssize_t size
    cdef uint64_t value = 0
    cdef int i
    if record is None:              # which passes for `bytes`
        return -1
    p = <const uint8_t*>PyBytes_AS_STRING(record)
    size = PyBytes_GET_SIZE(record)
    if size < WRITE_HEADER_BYTES or (p[0] >> 4) != RECORD_VERSION or p[1] > WRITE_INLINE:
        return -1
    if (p[0] & 15) < WRITE_PUT or (p[0] & 15) > WRITE_LOCK or (p[1] == 0 and size != WRITE_HEADER_BYTES):
        return -1
    for i in range(8):
        value = (value << 8) | p[2 + i]
    start_ts[0] = value
    return p[0] & 15


cdef object _bad_record(bytes record):
    if record is None:
        return BytesRequired("a write record must be bytes, not None")
    return Corruption(f"malformed write record: {record[:32].hex()} (docs/formats/mvcc.md)")


def lock_start_ts(bytes record not None):
    """start_ts of a lock record: version << 4 | kind, then start_ts (8 bytes, big-endian), then what later versions add."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(record)
    cdef uint64_t value = 0
    cdef int i
    if PyBytes_GET_SIZE(record) < 9 or (p[0] >> 4) != RECORD_VERSION:
        raise Corruption(f"malformed lock record: {record[:32].hex()} (docs/formats/mvcc.md)")
    for i in range(8):
        value = (value << 8) | p[1 + i]
    return value


# -- reads ------------------------------------------------------------------------------------------------------------
cdef object _long_value(object default_get, bytes key, uint64_t start_ts):
    value = default_get(versioned_key(key, start_ts))
    if value is None:
        raise Corruption(f"the value of {key[:64]!r} at start_ts {start_ts} is missing from the family default")
    return value


def resolve(bytes key not None, list versions not None, object default_get not None):
    """What `versions`, the (versioned key, record) pairs of `key` that the reader may see, newest first, say about it:
    (True, value), (True, None) for deleted, or (False, None) if nothing of it counts (rollbacks, locks only)."""
    cdef uint64_t start_ts = 0
    cdef bytes record
    cdef int kind
    for _, record in versions:
        kind = _check_write(record, &start_ts)
        if kind < 0:
            raise _bad_record(record)
        if kind == WRITE_DELETE:
            return True, None
        if kind == WRITE_PUT:
            if PyBytes_AS_STRING(record)[1] & WRITE_INLINE:
                return True, record[WRITE_HEADER_BYTES:]
            return True, _long_value(default_get, key, start_ts)
    return False, None


cdef class VisibleKeys:
    """Walks the `write` family in either direction: one step per user key, the version visible at `ts` picked.

    `key` None at the end; `found` says whether a visible record decided; then `value` is bytes, or None for deleted;
    with `long_at` > 0 the value lies in `default` at that start_ts (0 is never a start_ts of a long value).
    """
    cdef object source
    cdef uint64_t ts
    cdef bint reverse
    cdef bytes pending_key          # versioned
    cdef bytes pending_record
    cdef bytes key
    cdef bytes record               # the deciding record, or None
    cdef int kind
    cdef uint64_t start_ts

    def __init__(self, source, uint64_t ts, bint reverse):
        self.source = iter(source)
        self.ts = ts
        self.reverse = reverse
        self._pull()

    cdef int _pull(self) except -1:
        pair = next(self.source, None)
        if pair is None:
            self.pending_key = None
            return 0
        self.pending_key, self.pending_record = pair
        if self.pending_key is None:
            raise BytesRequired("a versioned key must be bytes, not None")
        if PyBytes_GET_SIZE(self.pending_key) < KEY_GROUP + 1 + TIMESTAMP_BYTES:
            raise Corruption(f"not a versioned key: {self.pending_key.hex()}")
        return 0

    cdef int step(self) except -1:
        """To the next user key."""
        cdef Py_ssize_t n
        cdef uint64_t commit_ts, start_ts = 0
        cdef bytes current
        cdef int kind
        self.record = None
        self.kind = 0
        if self.pending_key is None:
            self.key = None
            return 0
        current = self.pending_key
        n = PyBytes_GET_SIZE(current) - TIMESTAMP_BYTES
        self.key = decode_key(current[:n])
        while True:
            commit_ts = get_timestamp(<const uint8_t*>PyBytes_AS_STRING(self.pending_key) + n)
            # Forward, versions come newest first: the first visible one decides. In reverse: the last visible one.
            if commit_ts <= self.ts and (self.reverse or self.record is None):
                kind = _check_write(self.pending_record, &start_ts)
                if kind < 0:
                    raise _bad_record(self.pending_record)
                if kind == WRITE_PUT or kind == WRITE_DELETE:
                    self.record, self.kind, self.start_ts = self.pending_record, kind, start_ts
            self._pull()
            if (
                self.pending_key is None
                or PyBytes_GET_SIZE(self.pending_key) != n + TIMESTAMP_BYTES
                or memcmp(PyBytes_AS_STRING(self.pending_key), PyBytes_AS_STRING(current), n) != 0
            ):
                return 0

    cdef object value(self, object default_get):
        if PyBytes_AS_STRING(self.record)[1] & WRITE_INLINE:
            return self.record[WRITE_HEADER_BYTES:]
        return _long_value(default_get, self.key, self.start_ts)


def scan_visible(write_pairs, plain_pairs, default_get, uint64_t ts, *, bint reverse=False, Py_ssize_t limit=0,
                 Py_ssize_t bytes_max=0, bint keys_only=False, dict locks=None):
    """Merge commit records and plain records into what a reader at `ts` sees: ([(key, value)], more).

    Both sources are iterators in the direction of the scan, `write_pairs` over versioned keys. A plain record counts as
    committed before every timestamp: it shows where no commit record is visible. `locks` maps keys to lock records the
    reader must not pass. `limit` and `bytes_max`: 0 = none; `more` = stopped by one of them, with something left.
    """
    cdef VisibleKeys committed = VisibleKeys(write_pairs, ts, reverse)
    cdef list out = []
    cdef Py_ssize_t total = 0, n = 0
    cdef bytes key, value, plain_key
    cdef bint from_plain, from_committed
    plain = iter(plain_pairs)
    pair = next(plain, None)
    committed.step()
    while pair is not None or committed.key is not None:
        if pair is None:
            from_plain, from_committed = False, True
        else:
            plain_key = pair[0]
            if committed.key is None:
                from_plain, from_committed = True, False
            else:
                from_plain = plain_key <= committed.key if not reverse else plain_key >= committed.key
                from_committed = plain_key >= committed.key if not reverse else plain_key <= committed.key
        key = plain_key if from_plain else committed.key
        if key is None:
            raise BytesRequired("a key must be bytes, not None")
        if locks is not None and key in locks:
            raise KeyLocked("the key is locked by a transaction", lock=(key, locks[key]))
        value = None
        if from_committed and committed.record is not None:
            if committed.kind == WRITE_PUT:
                value = b"" if keys_only else committed.value(default_get)
        elif from_plain:
            value = b"" if keys_only else pair[1]
        if value is not None:
            if (limit and n >= limit) or (bytes_max and n and total >= bytes_max):
                return out, True
            out.append((key, value))
            n += 1
            total += PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)
        if from_plain:
            pair = next(plain, None)
        if from_committed:
            committed.step()
    return out, False


def committed_many(Store core not None, uint64_t sequence, keys not None, uint64_t ts, uint8_t write_family,
                   uint8_t default_family):
    """([value or None per key], [positions of keys without a visible commit record]) of a DB at the sequence of a snapshot
    that the caller holds: one cursor for all keys, no Python object per version."""
    cdef View view
    cdef Cursor* c
    cdef uint8_t* target = NULL
    cdef size_t room = 0, size, prefix, at = 0
    cdef uint64_t start_ts
    cdef list out = [], missing = []
    cdef bytes key
    cdef object value
    cdef int found
    core.check_open()
    view = core.view
    c = core.open_cursor(view, sequence)
    try:
        for key in keys:
            if key is None:
                raise BytesRequired("a key must be bytes, not None")
            prefix = 1 + encoded_size(PyBytes_GET_SIZE(key))
            size = prefix + TIMESTAMP_BYTES + TRAILER_SIZE
            if size > room:
                free(target)
                room = size * 2
                target = <uint8_t*>malloc(room)
                if target == NULL:
                    raise MemoryError()
            target[0] = write_family
            put_encoded(target + 1, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            put_timestamp(target + prefix, ts)
            put_trailer(target + prefix + TIMESTAMP_BYTES, sequence, 255)
            value = None
            start_ts = 0
            found = _seek_committed(c, target, size, prefix, sequence, &start_ts)
            if found == -2:
                view.version.raise_status(c.status)
                raise Corruption("a cursor failed without a reason")
            if found == -1:
                raise _bad_record(c.value.data[:c.value.size])
            if found == 0:
                missing.append(at)
            elif found == WRITE_PUT:
                if c.value.data[1] & WRITE_INLINE:
                    value = c.value.data[WRITE_HEADER_BYTES:c.value.size]
                else:
                    value = core.read(default_family, versioned_key(key, start_ts), sequence, None, 0)
                    if value is None:
                        raise Corruption(f"the value of {key[:64]!r} at start_ts {start_ts} is missing from default")
            out.append(value)
            at += 1
    finally:
        c.ops.destroy(c)
        free(target)
    return out, missing


cdef int _seek_committed(Cursor* c, const uint8_t* target, size_t size, size_t prefix, uint64_t sequence,
                         uint64_t* start_ts) noexcept nogil:
    """The kind of the newest visible put or delete record at or after `target`, with the cursor on it; 0 none; -1 bad
    record; -2 the cursor failed."""
    cdef Slice key
    cdef uint8_t deleted[9]
    cdef uint64_t packed, value
    cdef bint has_deleted = False
    cdef int i, kind
    key.data = target
    key.size = size
    c.ops.seek(c, key)
    while c.valid:
        if c.key.size != size or memcmp(c.key.data, target, prefix) != 0:
            return 0
        packed = read_trailer(c.key.data + size - TRAILER_SIZE)
        if (packed >> 8) <= sequence and not (
            has_deleted and memcmp(deleted, c.key.data + prefix, TIMESTAMP_BYTES) == 0
        ):
            # Only the newest entry of one versioned key counts; what follows it is the same record, older.
            memcpy(deleted, c.key.data + prefix, TIMESTAMP_BYTES)
            has_deleted = True
            if (packed & 255) == KIND_PUT:
                if c.value.size < WRITE_HEADER_BYTES or (c.value.data[0] >> 4) != RECORD_VERSION:
                    return -1
                kind = c.value.data[0] & 15
                if kind < WRITE_PUT or kind > WRITE_LOCK or c.value.data[1] > WRITE_INLINE:
                    return -1
                if kind == WRITE_PUT or kind == WRITE_DELETE:
                    value = 0
                    for i in range(8):
                        value = (value << 8) | c.value.data[2 + i]
                    start_ts[0] = value
                    return kind
        c.ops.next(c)
    return -2 if c.status < 0 else 0


# -- apply ------------------------------------------------------------------------------------------------------------
cdef int _check_batch(const uint8_t* data, size_t size) noexcept nogil:
    """1 if every byte of a Raft entry's payload is the encoding we know, 0 if not. Nothing is applied before this."""
    cdef Reader r, g
    cdef uint8_t kind = 0, command = 0
    cdef uint64_t number = 0, groups = 0, count = 0, i, j
    cdef const uint8_t* p = NULL
    cdef size_t n = 0
    if not open_packed(data, size, &r, &kind) or kind != BATCH_WRITE:
        return 0
    if not (read_fixed64(&r, &number) and read_fixed64(&r, &number) and read_varint(&r, &groups)):
        return 0
    for i in range(groups):
        if not read_fixed64(&r, &number) or number == 0 or not read_bytes(&r, &p, &n):
            return 0
        if not open_packed(p, n, &g, &kind) or kind != GROUP_WRITES:
            return 0
        if not read_varint(&g, &count) or count > COMMANDS_MAX:
            return 0
        for j in range(count):
            if not read_byte(&g, &command) or not read_bytes(&g, &p, &n) or n > WRITE_KEY_BYTES_MAX:
                return 0
            if command == COMMAND_PUT:
                if not read_bytes(&g, &p, &n) or n > VALUE_BYTES_MAX:
                    return 0
            elif command != COMMAND_DELETE:
                return 0
        if left(&g):
            return 0
    return left(&r) == 0


def apply_batch(bytes payload not None, WriteBatch batch not None, int write_family, int default_family):
    """Turn one Raft entry into commit records in `batch`. Returns (proposal_id, [commands per group], max_ts), or None
    if the payload is anything but a write batch: then nothing was added, the same on every replica (RS-08)."""
    cdef Reader r, g
    cdef uint8_t kind = 0, command = 0
    cdef uint64_t proposal_id = 0, max_ts = 0, commit_ts = 0, groups = 0, count = 0, i, j
    cdef const uint8_t* key = NULL
    cdef const uint8_t* value = NULL
    cdef size_t key_size = 0, value_size = 0
    cdef list counts = []
    cdef bytes versioned, record
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(payload)
    cdef size_t size = PyBytes_GET_SIZE(payload)
    if not _check_batch(data, size):
        return None
    open_packed(data, size, &r, &kind)
    read_fixed64(&r, &proposal_id)
    read_fixed64(&r, &max_ts)
    read_varint(&r, &groups)
    for i in range(groups):
        read_fixed64(&r, &commit_ts)
        read_bytes(&r, &value, &value_size)
        open_packed(value, value_size, &g, &kind)
        read_varint(&g, &count)
        for j in range(count):
            read_byte(&g, &command)
            read_bytes(&g, &key, &key_size)
            versioned = _encode(key, key_size, True, commit_ts)
            if command == COMMAND_DELETE:
                record = _write_record(WRITE_DELETE, commit_ts, False, NULL, 0)
            else:
                read_bytes(&g, &value, &value_size)
                if value_size <= SHORT_VALUE_BYTES_MAX:
                    record = _write_record(WRITE_PUT, commit_ts, True, value, value_size)
                else:
                    # A one-phase commit's start_ts is its commit_ts: unique for the key, as commit timestamps are.
                    batch.add(KIND_PUT, default_family, versioned, value[:value_size])
                    record = _write_record(WRITE_PUT, commit_ts, False, NULL, 0)
            batch.add(KIND_PUT, write_family, versioned, record)
        counts.append(count)
        if commit_ts > max_ts:
            max_ts = commit_ts
    return proposal_id, counts, max_ts


def pack_pairs_for_digest(list pairs not None):
    """length-prefixed pairs (docs/formats/region_digest.md): 4-byte lengths, big-endian, then the bytes."""
    cdef bytes key, value
    cdef size_t total = 0, pos = 0, n
    for key, value in pairs:
        if key is None or value is None:
            raise BytesRequired("a pair must be bytes, not None")
        total += 8 + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>total)
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(out)
    for key, value in pairs:
        for item in (key, value):
            n = 0 if item is None else <size_t>PyBytes_GET_SIZE(item)
            if total - pos < 4 or total - pos - 4 < n:
                raise ValueError("the pairs changed while they were packed")
            pos += 4 + n
            p[0] = <uint8_t>(n >> 24)
            p[1] = <uint8_t>(n >> 16)
            p[2] = <uint8_t>(n >> 8)
            p[3] = <uint8_t>n
            memcpy(p + 4, <const char*>PyBytes_AS_STRING(item), n)
            p += 4 + n
    return out
