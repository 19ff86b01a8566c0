"""System calls on files that Python's standard library lacks, or makes with the GIL held. For nokv/env/files.py; tables
look whether they lie in a FileMap.

Threads: any. The caller keeps the map or the descriptor open until the call returns.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

from nokv._ext.scheduling cimport nokv_pass

import os
import sys

cdef extern from "pages.h":
    void nokv_start_writing(int fd, int64_t offset, int64_t size) noexcept nogil

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

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>

    /* The descriptor of a file to read, and its size. Or -errno. */
    static int nokv_open_file(const char* path, long long* size) {
        struct stat about;
        int failed, fd;
        do fd = open(path, O_RDONLY | O_CLOEXEC); while (fd < 0 && errno == EINTR);
        if (fd < 0) return -errno;
        failed = fstat(fd, &about) != 0 ? errno : S_ISDIR(about.st_mode) ? EISDIR : 0;
        if (failed) {
            close(fd);
            return -failed;
        }
        *size = (long long)about.st_size;
        return fd;
    }

    /* 0, or an errno. An empty file has no map. */
    static int nokv_map_file(const char* path, void** base, size_t* size) {
        long long found = 0;
        void* p;
        int failed = 0, fd = nokv_open_file(path, &found);
        if (fd < 0) return -fd;
        if (found) {
            p = mmap(NULL, (size_t)found, PROT_READ, MAP_SHARED, fd, 0);
            if (p == MAP_FAILED) failed = errno;
            else { *base = p; *size = (size_t)found; }
        }
        close(fd);
        return failed;
    }

    static void nokv_unmap_file(void* base, size_t size) { if (base != NULL) munmap(base, size); }

    /* How many bytes were read, or -errno. */
    static long long nokv_read(int fd, char* into, size_t size) {
        ssize_t n;
        do n = read(fd, into, size); while (n < 0 && errno == EINTR);
        return n < 0 ? -(long long)errno : (long long)n;
    }
    """
    int nokv_open_file(const char* path, long long* size) noexcept nogil
    int nokv_map_file(const char* path, void** base, size_t* size) noexcept nogil
    void nokv_unmap_file(void* base, size_t size) noexcept nogil
    long long nokv_read(int fd, char* into, size_t size) noexcept nogil
    int nokv_close "close"(int fd) noexcept nogil

CAN_SYNC_RANGES = sys.platform.startswith("linux")
"""Whether `sync_range` is there: Linux's msync is an fdatasync of a range."""


cdef enum:
    PIECE = 262144                  # whose writing keeps the kernel busy for 0.05 ms


def sync_range(int fd, map not None, uint64_t start, uint64_t end):
    """fdatasync for the pages of a shared mapping of `fd` that hold start <= offset < end, and nothing else: other pages stay as they
    are, dirty and writable. In pieces, between which threads that wait for the processor go first: of all of it the kernel may make
    4 ms without a break. OSError as fdatasync raises it. Linux only."""
    cdef Py_buffer view
    cdef uint64_t size, piece
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
        piece = start
        while piece < end:
            nokv_start_writing(fd, <int64_t>piece, <int64_t>min(end - piece, <uint64_t>PIECE))      # its errors are the sync's
            piece += PIECE
            nokv_pass()
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


cdef bytes c_path(str path):
    cdef bytes name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


cdef class FileMap:
    """A whole file as memory to read, without a descriptor: one system call less to open it, and none held while it is used."""

    cdef void* base
    cdef size_t size

    def __cinit__(self, str path not None):
        cdef bytes name = c_path(path)
        cdef const char* raw = name
        cdef int failed
        with nogil:
            failed = nokv_map_file(raw, &self.base, &self.size)
        if failed:
            raise OSError(failed, os.strerror(failed), path)

    def __dealloc__(self):
        nokv_unmap_file(self.base, self.size)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.base if self.size else <void*>&self.size, <Py_ssize_t>self.size, True, flags)


def read_file(str path not None):
    """All of a file. OSError with its name."""
    cdef bytes name = c_path(path)
    cdef const char* raw = name
    cdef long long size = 0, n = 1
    cdef Py_ssize_t room
    cdef bytes piece
    cdef list pieces = []
    cdef int fd
    cdef char* into
    with nogil:
        fd = nokv_open_file(raw, &size)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    try:
        room = <Py_ssize_t>size + 1         # one more, so that the end shows at once
        while True:
            piece = PyBytes_FromStringAndSize(NULL, room)
            into = PyBytes_AS_STRING(piece)
            with nogil:
                n = nokv_read(fd, into, <size_t>room)
            if n < 0:
                raise OSError(<int>-n, os.strerror(<int>-n), path)
            pieces.append(piece[:n])
            if n == 0 or (n == size and len(pieces) == 1):
                break
            room = 1 << 16
    finally:
        nokv_close(fd)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
