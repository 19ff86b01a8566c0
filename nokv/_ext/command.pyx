"""Packs and unpacks what travels between client, service and Raft log: docs/formats/command.md.

Every packed message is `version, kind, body, crc32c`. Bytes are hostile until `open_packed` and the bounded reads of
codec.pxd have looked at them; a bad message raises `UsageError` (a peer's mistake, nothing of ours is damaged).
Thread rules: all functions are pure, any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from nokv._ext.codec cimport (
    VARINT_SIZE_MAX, Reader, get_fixed32, get_fixed64, left, put_fixed32, put_fixed64, put_varint, read_byte, read_bytes,
    read_fixed64, read_varint, reader, take,
)
from nokv._ext.crc32c cimport crc32c

from nokv.errors import BytesRequired, KeyLocked, KeyNotInRegion, UsageError


cdef class Packer:
    def __dealloc__(self):
        free(self.data)

    cdef bint reserve(self, size_t more) noexcept nogil:
        cdef size_t room
        cdef void* grown
        if self.failed:
            return 0
        if more <= self.room - self.size:
            return 1
        room = self.room * 2 if self.room else 256
        while room - self.size < more:
            room *= 2
        grown = realloc(self.data, room)
        if grown == NULL:
            self.failed = True
            return 0
        self.data = <uint8_t*>grown
        self.room = room
        return 1

    cdef void byte(self, uint8_t value) noexcept nogil:
        if self.reserve(1):
            self.data[self.size] = value
            self.size += 1

    cdef void varint(self, uint64_t value) noexcept nogil:
        if self.reserve(VARINT_SIZE_MAX):
            self.size += put_varint(self.data + self.size, value)

    cdef void fixed64(self, uint64_t value) noexcept nogil:
        if self.reserve(8):
            put_fixed64(self.data + self.size, value)
            self.size += 8

    cdef void raw(self, const uint8_t* data, size_t size) noexcept nogil:
        if self.reserve(size):
            memcpy(self.data + self.size, data, size)
            self.size += size

    cdef void sized(self, const uint8_t* data, size_t size) noexcept nogil:
        self.varint(size)
        self.raw(data, size)

    cdef bytes seal(self):
        if self.reserve(CRC_BYTES):
            put_fixed32(self.data + self.size, crc32c(0, self.data, self.size))
            self.size += CRC_BYTES
        return self.take_bytes()

    cdef bytes take_bytes(self):
        if self.failed:
            raise MemoryError("packing a message")
        return PyBytes_FromStringAndSize(<const char*>self.data, <Py_ssize_t>self.size)


cdef Packer new_packer(uint8_t kind):
    cdef Packer packer = Packer()
    packer.byte(COMMAND_VERSION)
    packer.byte(kind)
    return packer


cdef bint open_packed(const uint8_t* data, size_t size, Reader* r, uint8_t* kind) noexcept nogil:
    if size < 2 + CRC_BYTES or data[0] != COMMAND_VERSION:
        return 0
    if get_fixed32(data + size - CRC_BYTES) != crc32c(0, data, size - CRC_BYTES):
        return 0
    kind[0] = data[1]
    r[0] = reader(data + 2, size - 2 - CRC_BYTES)
    return 1


cdef inline void pack_key(Packer packer, bytes key, Py_ssize_t limit) except *:
    if key is None:                 # which passes for `bytes`, and has no bytes
        raise BytesRequired("a key must be bytes, not None")
    if PyBytes_GET_SIZE(key) > limit:
        raise UsageError(f"a key has at most {limit} bytes here, not {len(key)}")
    packer.sized(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))


cdef inline void pack_bytes(Packer packer, bytes data) except *:
    if data is None:
        raise BytesRequired("bytes are needed here, not None")
    packer.sized(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def pack_writes(operations not None):
    """One group of writes. `operations` is a sized iterable of (key, value); a value of None deletes the key.

    All of them commit at one timestamp; if a key comes twice, the last one counts.
    """
    cdef Packer packer = new_packer(GROUP_WRITES)
    cdef bytes key, value
    _check_count(len(operations))
    packer.varint(len(operations))
    for key, found in operations:
        if found is None:
            packer.byte(COMMAND_DELETE)
            pack_key(packer, key, WRITE_KEY_BYTES_MAX)
        else:
            value = found
            if PyBytes_GET_SIZE(value) > VALUE_BYTES_MAX:
                raise UsageError(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(value)}")
            packer.byte(COMMAND_PUT)
            pack_key(packer, key, WRITE_KEY_BYTES_MAX)
            pack_bytes(packer, value)
    return packer.seal()


def pack_puts(pairs not None):
    """One group of puts: `pairs` is a sized iterable of (key, value)."""
    return pack_writes(pairs)


def pack_deletes(keys not None):
    return pack_writes([(key, None) for key in keys])


def pack_gets(keys not None):
    """One group of point reads: results come in the order of `keys`."""
    cdef Packer packer = new_packer(GROUP_READS)
    cdef bytes key
    _check_count(len(keys))
    packer.varint(len(keys))
    for key in keys:
        packer.byte(COMMAND_GET)
        pack_key(packer, key, KEY_BYTES_MAX)
    return packer.seal()


def pack_scan(bytes start not None, bytes end not None, uint64_t limit, *, bint reverse=False, bint keys_only=False):
    """One group with one scan of [start, end); empty `end` = to the end. `limit` 0 = as much as one answer holds."""
    return pack_reads([(start, end, limit, (SCAN_REVERSE if reverse else 0) | (SCAN_KEYS_ONLY if keys_only else 0))])


def pack_reads(commands not None):
    """One group of reads: each is a key (bytes: a point read) or (start, end, limit, flags) (a scan)."""
    cdef Packer packer = new_packer(GROUP_READS)
    cdef bytes key, start, end
    _check_count(len(commands))
    packer.varint(len(commands))
    for command in commands:
        if isinstance(command, bytes):
            packer.byte(COMMAND_GET)
            pack_key(packer, command, KEY_BYTES_MAX)
            continue
        start, end, limit, flags = command
        if len(start) > KEY_BYTES_MAX or len(end) > KEY_BYTES_MAX:
            raise UsageError(f"a key has at most {KEY_BYTES_MAX} bytes")
        if end and start > end:
            raise UsageError("scan: start is after end")
        packer.byte(COMMAND_SCAN)
        packer.byte(flags)
        packer.varint(limit)
        pack_bytes(packer, start)
        pack_bytes(packer, end)
    return packer.seal()


cdef void _check_count(Py_ssize_t n) except *:
    if n > COMMANDS_MAX:
        raise UsageError(f"a group has at most {COMMANDS_MAX} commands, not {n}")


cdef inline bint _outside(const uint8_t* key, size_t size, bytes start, bytes end) noexcept:
    """Is the key outside [start, end)?"""
    cdef size_t n = PyBytes_GET_SIZE(start)
    cdef int order = memcmp(key, <const char*>PyBytes_AS_STRING(start), n if n < size else size)
    if order < 0 or (order == 0 and size < n):
        return True
    n = PyBytes_GET_SIZE(end)
    if n == 0:
        return False
    order = memcmp(key, <const char*>PyBytes_AS_STRING(end), n if n < size else size)
    return order > 0 or (order == 0 and size >= n)


def check_writes(bytes group not None, bytes start not None, bytes end not None):
    """How many writes the group has. UsageError if malformed, KeyNotInRegion if a key is outside [start, end)."""
    cdef Reader r
    cdef uint8_t kind = 0, command = 0
    cdef uint64_t count = 0, i
    cdef const uint8_t* key = NULL
    cdef const uint8_t* value = NULL
    cdef size_t key_size = 0, value_size = 0
    if not open_packed(<const uint8_t*>PyBytes_AS_STRING(group), PyBytes_GET_SIZE(group), &r, &kind):
        raise _malformed("writes")
    if kind != GROUP_WRITES or not read_varint(&r, &count) or count > COMMANDS_MAX:
        raise _malformed("writes")
    for i in range(count):
        if not read_byte(&r, &command) or not read_bytes(&r, &key, &key_size):
            raise _malformed("writes")
        if key_size > WRITE_KEY_BYTES_MAX:
            raise _malformed("writes")
        if command == COMMAND_PUT:
            if not read_bytes(&r, &value, &value_size) or value_size > VALUE_BYTES_MAX:
                raise _malformed("writes")
        elif command != COMMAND_DELETE:
            raise _malformed("writes")
        if _outside(key, key_size, start, end):
            raise KeyNotInRegion(f"key {key[:min(key_size, <size_t>64)]!r} is not in the region's range")
    if left(&r):
        raise _malformed("writes")
    return count


def unpack_writes(bytes group not None):
    """[(key, value or None)]: for tests and tools; the apply path does not build this list."""
    cdef Reader r
    cdef uint8_t kind = 0, command = 0
    cdef uint64_t count = 0, i
    cdef const uint8_t* key = NULL
    cdef const uint8_t* value = NULL
    cdef size_t key_size = 0, value_size = 0
    cdef list out = []
    check_writes(group, b"", b"")
    open_packed(<const uint8_t*>PyBytes_AS_STRING(group), PyBytes_GET_SIZE(group), &r, &kind)
    read_varint(&r, &count)
    for i in range(count):
        read_byte(&r, &command)
        read_bytes(&r, &key, &key_size)
        if command == COMMAND_PUT:
            read_bytes(&r, &value, &value_size)
            out.append((key[:key_size], value[:value_size]))
        else:
            out.append((key[:key_size], None))
    return out


def unpack_reads(bytes group not None, bytes start not None, bytes end not None):
    """(commands, all_gets): each command is a key or (start, end, limit, flags), a scan being clipped to [start, end).

    UsageError if malformed, KeyNotInRegion if a key, or a whole scan, is outside the range.
    """
    cdef Reader r
    cdef uint8_t kind = 0, command = 0, flags = 0
    cdef uint64_t count = 0, limit = 0, i
    cdef const uint8_t* key = NULL
    cdef const uint8_t* stop = NULL
    cdef size_t key_size = 0, stop_size = 0
    cdef list out = []
    cdef bint all_gets = True
    cdef bytes low, high
    if not open_packed(<const uint8_t*>PyBytes_AS_STRING(group), PyBytes_GET_SIZE(group), &r, &kind):
        raise _malformed("reads")
    if kind != GROUP_READS or not read_varint(&r, &count) or count > COMMANDS_MAX:
        raise _malformed("reads")
    for i in range(count):
        if not read_byte(&r, &command):
            raise _malformed("reads")
        if command == COMMAND_GET:
            if not read_bytes(&r, &key, &key_size) or key_size > KEY_BYTES_MAX:
                raise _malformed("reads")
            if _outside(key, key_size, start, end):
                raise KeyNotInRegion(f"key {key[:min(key_size, <size_t>64)]!r} is not in the region's range")
            out.append(key[:key_size])
        elif command == COMMAND_SCAN:
            if not (read_byte(&r, &flags) and read_varint(&r, &limit) and read_bytes(&r, &key, &key_size)
                    and read_bytes(&r, &stop, &stop_size)) or key_size > KEY_BYTES_MAX or stop_size > KEY_BYTES_MAX:
                raise _malformed("reads")
            if flags & ~(SCAN_REVERSE | SCAN_KEYS_ONLY):
                raise _malformed("reads")
            low, high = key[:key_size], stop[:stop_size]
            if (end and low >= end) or (high and high <= start and high > low):
                raise KeyNotInRegion("the scan does not touch the region's range")
            low = max(low, start)
            high = min(high, end) if high and end else (high or end)
            out.append((low, high, limit, flags))
            all_gets = False
        else:
            raise _malformed("reads")
    if left(&r):
        raise _malformed("reads")
    return out, all_gets


def pack_results(results not None):
    """Results in the order of the commands. Each is None (absent), bytes (a value), an int (so many writes are done),
    (pairs, more, keys_only) of a scan, or a KeyLocked whose `lock` is (key, lock record)."""
    cdef Packer packer = new_packer(GROUP_RESULTS)
    cdef bytes key, value
    cdef bint keys_only
    packer.varint(len(results))
    for result in results:
        if result is None:
            packer.byte(RESULT_ABSENT)
        elif type(result) is bytes:
            packer.byte(RESULT_VALUE)
            pack_bytes(packer, result)
        elif type(result) is int:
            packer.byte(RESULT_DONE)
            packer.varint(result)
        elif type(result) is tuple:
            pairs, more, keys_only = result
            packer.byte(RESULT_PAIRS)
            packer.byte((PAIRS_MORE if more else 0) | (PAIRS_KEYS_ONLY if keys_only else 0))
            packer.varint(len(pairs))
            for key, value in pairs:
                pack_bytes(packer, key)
                if not keys_only:
                    pack_bytes(packer, value)
        elif isinstance(result, KeyLocked):
            key, value = result.lock
            packer.byte(RESULT_LOCKED)
            pack_bytes(packer, key)
            pack_bytes(packer, value)
        else:
            raise TypeError(f"not a result: {type(result).__name__}")
    return packer.seal()


def pack_done(uint64_t count):
    """The result of a group of writes."""
    cdef Packer packer = new_packer(GROUP_RESULTS)
    packer.varint(1)
    packer.byte(RESULT_DONE)
    packer.varint(count)
    return packer.seal()


def unpack_results(bytes data not None):
    """A list in the order of the commands: None, bytes, int (writes done), (pairs, more) of a scan, or a KeyLocked
    (returned, not raised). `pairs` is [(key, value)], values empty if only keys were asked for; `more` says that the scan
    stopped before the end of the region's part of its range. UsageError if the bytes are not results."""
    cdef Reader r
    cdef uint8_t kind = 0, result = 0, flags = 0
    cdef uint64_t count = 0, n = 0, i, j
    cdef const uint8_t* key = NULL
    cdef const uint8_t* value = NULL
    cdef size_t key_size = 0, value_size = 0
    cdef list out = []
    cdef list pairs
    if not open_packed(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &r, &kind):
        raise _malformed("results")
    if kind != GROUP_RESULTS or not read_varint(&r, &count) or count > left(&r):
        raise _malformed("results")
    for i in range(count):
        if not read_byte(&r, &result):
            raise _malformed("results")
        if result == RESULT_ABSENT:
            out.append(None)
        elif result == RESULT_VALUE:
            if not read_bytes(&r, &value, &value_size):
                raise _malformed("results")
            out.append(value[:value_size])
        elif result == RESULT_DONE:
            if not read_varint(&r, &n):
                raise _malformed("results")
            out.append(n)
        elif result == RESULT_PAIRS:
            if not read_byte(&r, &flags) or not read_varint(&r, &n) or n > left(&r):
                raise _malformed("results")
            pairs = []
            for j in range(n):
                if not read_bytes(&r, &key, &key_size):
                    raise _malformed("results")
                value_size = 0
                if not flags & PAIRS_KEYS_ONLY and not read_bytes(&r, &value, &value_size):
                    raise _malformed("results")
                pairs.append((key[:key_size], value[:value_size] if value_size else b""))
            out.append((pairs, bool(flags & PAIRS_MORE)))
        elif result == RESULT_LOCKED:
            if not (read_bytes(&r, &key, &key_size) and read_bytes(&r, &value, &value_size)):
                raise _malformed("results")
            out.append(KeyLocked("the key is locked by a transaction", lock=(key[:key_size], value[:value_size])))
        else:
            raise _malformed("results")
    if left(&r):
        raise _malformed("results")
    return out


def pack_batch(uint64_t proposal_id, uint64_t floor_ts, groups not None):
    """The payload of a Raft entry: `groups` is a sized iterable of (commit_ts, packed group of writes)."""
    cdef Packer packer = new_packer(BATCH_WRITE)
    cdef bytes group
    cdef uint64_t commit_ts
    packer.fixed64(proposal_id)
    packer.fixed64(floor_ts)
    packer.varint(len(groups))
    for commit_ts, group in groups:
        packer.fixed64(commit_ts)
        pack_bytes(packer, group)
    return packer.seal()


def batch_proposal_id(bytes payload not None):
    """The proposal_id of a batch that this process packed."""
    if PyBytes_GET_SIZE(payload) < 10:
        raise _malformed("command batch")
    return get_fixed64(<const uint8_t*>PyBytes_AS_STRING(payload) + 2)


def unpack_batch(bytes payload not None):
    """(proposal_id, floor_ts, [(commit_ts, packed group)]): for tests and tools. UsageError if it is not a batch."""
    cdef Reader r
    cdef uint8_t kind = 0
    cdef uint64_t proposal_id = 0, floor_ts = 0, count = 0, commit_ts = 0, i
    cdef const uint8_t* group = NULL
    cdef size_t group_size = 0
    cdef list groups = []
    if not open_packed(<const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), &r, &kind):
        raise _malformed("command batch")
    if kind != BATCH_WRITE or not (read_fixed64(&r, &proposal_id) and read_fixed64(&r, &floor_ts)
                                   and read_varint(&r, &count)):
        raise _malformed("command batch")
    for i in range(count):
        if not read_fixed64(&r, &commit_ts) or not read_bytes(&r, &group, &group_size):
            raise _malformed("command batch")
        groups.append((commit_ts, group[:group_size]))
    if left(&r):
        raise _malformed("command batch")
    return proposal_id, floor_ts, groups


cdef object _malformed(str what):
    return UsageError(f"malformed {what}: not the encoding of docs/formats/command.md")
