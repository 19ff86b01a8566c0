"""A sorted string table (docs/formats/sst.md): opening it and checking all of it.

An open Table never changes and may be used by any thread. Reading it: tablecursor.pxd and pointindex.pxd.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nokv._ext.block cimport TableData
from nokv._ext.blockcache cimport BlockCache

cdef enum:
    FOOTER_SIZE = 64

cdef class Table:
    cdef TableData t
    cdef Py_buffer* view                # not a member by value: the collector must not see through it (see table.pyx)
    cdef readonly str path
    cdef readonly object meta           # manifest.edit.FileMeta, or None
    cdef readonly dict properties
    cdef readonly uint32_t version      # of the format
    cdef BlockCache cache
    cdef object __weakref__
    cdef _damaged(self, uint64_t offset, str reason, expected=*, found=*)
    cdef int _place(self, uint64_t offset, uint64_t size, uint64_t end, str name) except -1
    cdef const uint8_t* _meta_block(self, uint64_t offset, uint64_t size, uint64_t end, str name) except NULL
    cdef _open(self)
    cdef uint64_t _read_ranges(self, uint64_t filter_offset) except? 0
    cdef _read_properties(self, uint64_t offset, uint64_t size)
    cdef _check_meta(self, meta)
    cpdef raise_status(self, int status)
