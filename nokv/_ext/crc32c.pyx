"""CRC-32C for Python callers. Compiled callers use crc32c.pxd, whose `crc32c` is the C function itself; that is why the
Python functions have other names here and get theirs at the end."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

cdef size_t GIL_BYTES = 32768       # below this, dropping the GIL costs more than it gives


def _checksum(data, uint32_t crc=0):
    """Checksum of `data`, or of what `crc` covers followed by `data`."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    cdef const uint8_t* p = <const uint8_t*>view.buf
    cdef size_t n = <size_t>view.len
    try:
        if n < GIL_BYTES:
            return crc32c(crc, p, n)
        with nogil:
            crc = crc32c(crc, p, n)
        return crc
    finally:
        PyBuffer_Release(&view)


def _checksum_portable(data, uint32_t crc=0):
    """The same from tables alone, as on a CPU without the instruction. For tests."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return crc32c_portable(crc, <const uint8_t*>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)


globals()["crc32c"] = _checksum
globals()["crc32c_portable"] = _checksum_portable
