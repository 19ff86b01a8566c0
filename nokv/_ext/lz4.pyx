"""The LZ4 block format for Python: tests and tools. Tables call the C functions (lz4.pxd)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from nokv.errors import Corruption


def compress(bytes data not None, Py_ssize_t room):
    """At most `room` bytes, or None if they do not suffice (also for no bytes at all, and for more than 4 MiB)."""
    cdef bytes target = PyBytes_FromStringAndSize(NULL, room)
    cdef size_t size = lz4_compress(<const uint8_t*>PyBytes_AS_STRING(data), <size_t>len(data),
                                    <uint8_t*>PyBytes_AS_STRING(target), <size_t>room)
    return target[:size] if size else None


def decompress(bytes data not None, Py_ssize_t raw_size):
    """Corruption if these bytes do not make exactly `raw_size` bytes."""
    cdef bytes target = PyBytes_FromStringAndSize(NULL, raw_size)
    if not lz4_decompress(<const uint8_t*>PyBytes_AS_STRING(data), <size_t>len(data), <uint8_t*>PyBytes_AS_STRING(target),
                          <size_t>raw_size):
        raise Corruption("not an LZ4 block of the stated size")
    return target
