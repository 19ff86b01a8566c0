"""System calls on files that Python's standard library lacks, or makes with the GIL held. For nokv/env/files.py only.

Threads: any. The caller keeps the map or the descriptor open until the call returns.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyObject_GetBuffer, PyBuffer_Release
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

import os
import sys

cdef extern from *:
    """
    #if defined(__linux__)
    #include <errno.h>
    #include <sys/mman.h>
    static int nokv_sync_range(void* p, size_t size) { return msync(p, size, MS_SYNC) == 0 ? 0 : errno; }
    #else
    static int nokv_sync_range(void* p, size_t size) { (void)p; (void)size; return 0; }
    #endif
    """
    int nokv_sync_range(void* p, size_t size) noexcept nogil

CAN_SYNC_RANGES = sys.platform.startswith("linux")
"""Whether `sync_range` is there: Linux's msync is an fdatasync of a range."""


def sync_range(map not None, uint64_t start, uint64_t end):
    """fdatasync for the pages of a shared file mapping that hold start <= offset < end, and nothing else: other pages stay as they
    are, dirty and writable. OSError as fdatasync raises it. Linux only."""
    cdef Py_buffer view
    cdef uint64_t size
    cdef uint8_t* base
    cdef int failed
    if not CAN_SYNC_RANGES:
        raise NotImplementedError
    start &= ~<uint64_t>(os.sysconf("SC_PAGESIZE") - 1)
    PyObject_GetBuffer(map, &view, PyBUF_SIMPLE)
    base = <uint8_t*>view.buf
    size = <uint64_t>view.len
    PyBuffer_Release(&view)             # a map with an exported buffer could not be closed, were that to fail
    if end > size or start > end:
        raise ValueError("a range outside the map")
    with nogil:
        failed = nokv_sync_range(base + start, <size_t>(end - start))
    if failed:
        raise OSError(failed, os.strerror(failed))


def zero(map not None, uint64_t size):
    """Store zeros over the first `size` bytes of a writable map."""
    cdef Py_buffer view
    cdef uint8_t* base
    PyObject_GetBuffer(map, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    base = <uint8_t*>view.buf
    if size > <uint64_t>view.len:
        PyBuffer_Release(&view)
        raise ValueError("the map is shorter")
    with nogil:
        memset(base, 0, <size_t>size)
    PyBuffer_Release(&view)
