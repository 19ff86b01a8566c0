from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nokv._ext.codec cimport put_varint, varint_size
from nokv._ext.cursor cimport EXPIRY_SIZE, KIND_DELETE, KIND_EXPIRING_PUT, KIND_PUT, KIND_RANGE_DELETE, kind_expires

cdef enum:
    BATCH_HEADER_SIZE = 12          # first sequence u64, count u32
    KEY_BYTES_MAX = 65536
    VALUE_BYTES_MAX = 0x3FFFFFFF
    BATCH_BYTES_MAX = 0x7FFFFFFF

cdef inline bint sequences_are_sound(uint64_t first, uint32_t count) noexcept nogil:
    """A batch's operations have sequences from 1 to 2**56 - 1, and no sum wraps around."""
    return 0 < first <= (<uint64_t>1 << 56) and first - 1 + count < (<uint64_t>1 << 56)

cdef inline bint record_is_known(int kind, uint64_t value_size) noexcept nogil:
    """May a batch hold a record of this kind, with a stored value of this size?"""
    return kind == KIND_PUT or kind == KIND_DELETE or (kind == KIND_EXPIRING_PUT and value_size >= EXPIRY_SIZE) or (
        kind == KIND_RANGE_DELETE and value_size > 0)

# record: kind u8 | varint size of prefix | prefix = family u8, user key | unless a delete: varint size of value | value
cdef inline uint64_t record_size(int kind, uint64_t key_size, uint64_t value_size) noexcept nogil:
    cdef uint64_t size = 1 + varint_size(key_size + 1) + key_size + 1
    if kind != KIND_DELETE:
        size += varint_size(value_size) + value_size
    return size

cdef inline uint8_t* write_record(uint8_t* out, int kind, uint8_t family, const uint8_t* key, size_t key_size,
                                  const uint8_t* value, size_t value_size, uint8_t** prefix) noexcept nogil:
    """Returns the end; *prefix is where family || key now stands."""
    out[0] = <uint8_t>kind
    out += 1
    out += put_varint(out, key_size + 1)
    prefix[0] = out
    out[0] = family
    memcpy(out + 1, key, key_size)
    out += 1 + key_size
    if kind != KIND_DELETE:
        out += put_varint(out, value_size)
        memcpy(out, value, value_size)
        out += value_size
    return out

cdef class WriteBatch:
    cdef uint8_t* data              # the WAL payload; its header is filled in when it is written
    cdef size_t size
    cdef size_t capacity
    cdef uint32_t count
    cdef uint32_t deletes, range_deletes    # among them
    cdef uint32_t clears            # how often `clear` was called
    cdef bint frozen                # being written: nothing may be added
    cdef int family_max
    cdef object resolve
    cdef object now_ms
    cdef int family_id(self, object family) except -1
    cdef int add_range(self, int family, object start, object end) except -1
    cdef int add(self, int kind, int family, bytes key, bytes value) except -1

cdef bytes range_end(int family, object end)
cdef bytes as_bytes(object value, str what)
cdef int check_sizes(bytes key, Py_ssize_t value_size) except -1
cdef uint64_t expiry_of(object ttl, object now_ms) except 0
cdef bytes with_expiry(uint64_t expiry, bytes value)
