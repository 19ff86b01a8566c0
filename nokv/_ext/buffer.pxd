"""Bytes that grow at their end. Whoever has one frees `data`. False: no memory, and nothing has changed."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from nokv._ext.codec cimport put_varint

cdef struct Buffer:
    uint8_t* data
    size_t size
    size_t room

cdef inline bint reserve(Buffer* b, size_t more) noexcept nogil:
    cdef size_t wanted
    cdef uint8_t* data
    if more <= b.room - b.size:
        return True
    wanted = b.room * 2
    if wanted < b.size + more:
        wanted = b.size + more
    if wanted < 256:
        wanted = 256
    data = <uint8_t*>realloc(b.data, wanted)
    if data == NULL:
        return False
    b.data = data
    b.room = wanted
    return True

cdef inline bint append(Buffer* b, const uint8_t* data, size_t size) noexcept nogil:
    if not reserve(b, size):
        return False
    if size:
        memcpy(b.data + b.size, data, size)
        b.size += size
    return True

cdef inline bint append_varint(Buffer* b, uint64_t value) noexcept nogil:
    if not reserve(b, 10):
        return False
    b.size += put_varint(b.data + b.size, value)
    return True
