"""Reading the fields of a record whose owner knows what they mean: varints and counted bytes, one bounds check each.

For what is decoded once per file or edit (nokv/engine/manifest/edit.py); loops over keys read with codec.pxd themselves.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.codec cimport VARINT_SIZE_MAX, Reader, left, read_varint, reader, take

from nokv.errors import Corruption


cdef class FieldReader:
    """`data[start:end]`, front to back. What does not fit is Corruption at `offset` of the file `path`."""

    cdef bytes data
    cdef str path
    cdef object offset
    cdef Reader r

    def __cinit__(self, bytes data not None, str path not None, offset, Py_ssize_t start=0, end=None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t stop = size if end is None else end
        if not 0 <= start <= stop <= size:
            raise ValueError("a range outside the data")
        self.data = data
        self.path = path
        self.offset = offset
        self.r = reader(<const uint8_t*>PyBytes_AS_STRING(data) + start, <size_t>(stop - start))

    def damaged(self, str reason not None):
        return Corruption(reason, path=self.path, offset=self.offset)

    def left(self):
        return left(&self.r)

    cdef uint64_t number(self) except? 0:
        cdef uint64_t value = 0
        cdef size_t i
        if read_varint(&self.r, &value):
            return value
        for i in range(min(left(&self.r), <size_t>VARINT_SIZE_MAX)):
            if self.r.pos[i] < 128:
                raise self.damaged("a number does not fit 64 bits")
        if left(&self.r) >= VARINT_SIZE_MAX:
            raise self.damaged("a number does not fit 64 bits")
        raise self.damaged("a field runs past the end of its record")

    def varint(self):
        return self.number()

    def varints(self, Py_ssize_t count):
        """So many numbers, as a list."""
        cdef list found = []
        cdef Py_ssize_t _
        for _ in range(count):
            found.append(self.number())
        return found

    def take(self, uint64_t size):
        cdef const uint8_t* start = take(&self.r, size)
        if start == NULL:
            raise self.damaged("a field runs past the end of its record")
        return (<const char*>start)[:size] if size else b""

    def counted(self):
        """A length, then so many bytes."""
        return self.take(self.number())

    def inner(self):
        """A length, then a reader of so many bytes."""
        cdef uint64_t size = self.number()
        cdef const uint8_t* start = take(&self.r, size)
        cdef Py_ssize_t at
        if start == NULL:
            raise self.damaged("a field runs past the end of its record")
        at = start - <const uint8_t*>PyBytes_AS_STRING(self.data)
        return FieldReader(self.data, self.path, self.offset, at, at + <Py_ssize_t>size)

    def finish(self):
        if left(&self.r):
            raise self.damaged("a field is longer than what it holds")
