"""System calls on files that Python's standard library lacks, makes with the GIL held, or makes without a word on when it needs the GIL
again (gilturn.pyx). For nokv/env/files.py; tables look whether they lie in a FileMap, the log whether it lies in a LogMap.

Threads: any. The caller keeps the map or the descriptor open until the call returns.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

from nokv._ext.scheduling cimport nokv_pass

import os
import sys

from nokv._ext.gilturn cimport gil_away, gil_back, leave_writer, return_to_writer

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

    /* These return 0, or an errno; EINTR is the caller's. */
    static int nokv_sync_data(int fd) {
    #if defined(__APPLE__)
        return fcntl(fd, F_FULLFSYNC) == 0 ? 0 : errno;     /* fdatasync does not reach the platter there */
    #else
        return fdatasync(fd) == 0 ? 0 : errno;
    #endif
    }

    static int nokv_sync_directory(const char* path) {
        int failed, fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) return errno;
        failed = fsync(fd) == 0 ? 0 : errno;
        close(fd);
        return failed == EINVAL || failed == ENOTSUP ? 0 : failed;      /* some network file systems cannot */
    }

    static int nokv_allocate(int fd, long long size) {
    #if defined(__APPLE__)
        return ftruncate(fd, (off_t)size) == 0 ? 0 : errno;
    #else
        return posix_fallocate(fd, 0, (off_t)size);
    #endif
    }

    /* A new file to write, in place of what a former one of this name may have left: whoever still maps that keeps what it maps.
       The descriptor, or -errno. */
    static int nokv_create_file(const char* path) {
        int fd;
        if (unlink(path) != 0 && errno != ENOENT) return -errno;
        do fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644); while (fd < 0 && errno == EINTR);
        return fd < 0 ? -errno : fd;
    }

    /* After EINTR the descriptor is gone all the same. */
    static int nokv_close_file(int fd) { return close(fd) == 0 || errno == EINTR ? 0 : errno; }

    /* How many bytes were written, or -errno. Linux moves at most 2 GiB - 4 KiB in one write. */
    static long long nokv_write(int fd, const char* data, size_t size) {
        ssize_t n = write(fd, data, size > 1u << 30 ? 1u << 30 : size);
        return n < 0 ? -(long long)errno : (long long)n;
    }

    /* A log file to store to: 0, or an errno, and nothing is left behind then. An existing one must have the size already. */
    static int nokv_open_log(const char* path, int fresh, size_t capacity, int* opened, void** base) {
        struct stat about;
        void* p;
        int failed = 0, fd;
        do fd = open(path, O_RDWR | O_CLOEXEC | (fresh ? O_CREAT | O_EXCL : 0), 0644); while (fd < 0 && errno == EINTR);
        if (fd < 0) return errno;
        if (fresh) do failed = nokv_allocate(fd, (long long)capacity); while (failed == EINTR);
        else if (fstat(fd, &about) != 0) failed = errno;
        else if ((unsigned long long)about.st_size < capacity) failed = EINVAL;
        if (!failed) {
            p = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (p == MAP_FAILED) failed = errno;
        }
        if (failed) {
            close(fd);
            if (fresh) unlink(path);
            return failed;
        }
        (void)madvise(p, capacity, MADV_RANDOM);    /* no reading ahead, which makes large folios too */
        *opened = fd;
        *base = p;
        return 0;
    }

    static int nokv_write_back(void* base, size_t size) { return msync(base, size, MS_SYNC) == 0 ? 0 : errno; }

    static int nokv_remove(const char* path) { return unlink(path) == 0 ? 0 : errno; }
    """
    int nokv_open_file(const char* path, long long* size) noexcept nogil
    int nokv_map_file(const char* path, void** base, size_t* size) noexcept nogil
    void nokv_unmap_file(void* base, size_t size) noexcept nogil
    long long nokv_read(int fd, char* into, size_t size) noexcept nogil
    int nokv_close "close"(int fd) noexcept nogil
    int nokv_sync_data(int fd) noexcept nogil
    int nokv_sync_directory(const char* path) noexcept nogil
    int nokv_remove(const char* path) noexcept nogil
    int nokv_create_file(const char* path) noexcept nogil
    int nokv_close_file(int fd) noexcept nogil
    long long nokv_write(int fd, const char* data, size_t size) noexcept nogil
    int nokv_open_log(const char* path, int fresh, size_t capacity, int* opened, void** base) noexcept nogil
    int nokv_write_back(void* base, size_t size) noexcept nogil

cdef object _error(int failed, str path=None):
    return OSError(failed, os.strerror(failed)) if path is None else OSError(failed, os.strerror(failed), path)


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
        gil_away()
        leave_writer()
        piece = start
        while piece < end:
            nokv_start_writing(fd, <int64_t>piece, <int64_t>min(end - piece, <uint64_t>PIECE))      # its errors are the sync's
            piece += PIECE
            nokv_pass()
        failed = nokv_sync_range(base + start, <size_t>(end - start))
        return_to_writer()
        gil_back()
    if failed:
        raise _error(failed)


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
        gil_away()
        memset(base, 0, <size_t>size)
        gil_back()
    PyBuffer_Release(&view)


cdef bytes c_path(str path):
    cdef bytes name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


# -- system calls that may take long: a background step does not need the GIL meanwhile, and says when it does again ------------------
def sync_data(int fd):
    """fdatasync, or what does as much here."""
    cdef int failed = EINTR
    while failed == EINTR:
        PyErr_CheckSignals()
        with nogil:
            gil_away()
            failed = nokv_sync_data(fd)
            gil_back()
    if failed:
        raise _error(failed)


def sync_directory(str path not None):
    """The names in it are on disk when this returns, where the file system can do that."""
    cdef bytes name = c_path(path)
    cdef const char* raw = name
    cdef int failed = EINTR
    while failed == EINTR:
        PyErr_CheckSignals()
        with nogil:
            gil_away()
            failed = nokv_sync_directory(raw)
            gil_back()
    if failed:
        raise _error(failed, path)


def create_file(str path not None):
    """A descriptor to write a new file with. What has this name is removed."""
    cdef bytes name = c_path(path)
    cdef const char* raw = name
    cdef int fd
    with nogil:
        gil_away()
        leave_writer()
        fd = nokv_create_file(raw)
        return_to_writer()
        gil_back()
    if fd < 0:
        raise _error(-fd, path)
    return fd


def write_all(int fd, const unsigned char[::1] data):
    """Write all of it where the descriptor stands. OSError: some of it may have been written."""
    cdef const char* p
    cdef size_t left = <size_t>data.shape[0]
    cdef long long n = 0
    if left == 0:
        return 0
    p = <const char*>&data[0]
    while left:
        with nogil:
            gil_away()
            n = nokv_write(fd, p, left)
            gil_back()
        if n > 0:
            p += n
            left -= <size_t>n
        elif n != -EINTR:
            raise _error(<int>-n if n else EIO)
        if left:
            PyErr_CheckSignals()        # one may have cut the write short
    return data.shape[0]


def close_file(int fd):
    """The descriptor is gone, also if this raises."""
    cdef int failed
    with nogil:
        gil_away()
        failed = nokv_close_file(fd)
        gil_back()
    if failed:
        raise _error(failed)


def remove_file(str path not None):
    """unlink. The kernel frees a large file's pages meanwhile."""
    cdef bytes name = c_path(path)
    cdef const char* raw = name
    cdef int failed
    with nogil:
        gil_away()
        leave_writer()
        failed = nokv_remove(raw)
        return_to_writer()
        gil_back()
    if failed:
        raise _error(failed, path)


cdef class LogMap:
    """A file of `capacity` bytes as memory to store to, shared with the page cache. `fresh`: the file is made, with all of its blocks;
    else it is there. Closed by its owner, when nobody stores to it any more."""

    cdef void* base
    cdef size_t size
    cdef Py_ssize_t exports
    cdef readonly int fd

    def __cinit__(self, str path not None, size_t capacity, bint fresh):
        cdef bytes name = c_path(path)
        cdef const char* raw = name
        cdef int failed
        self.fd = -1
        if capacity == 0:
            raise ValueError("an empty log file")
        with nogil:
            gil_away()
            leave_writer()
            failed = nokv_open_log(raw, fresh, capacity, &self.fd, &self.base)
            return_to_writer()
            gil_back()
        if failed:
            raise _error(failed, path)
        self.size = capacity

    def __dealloc__(self):
        if self.base != NULL:
            nokv_unmap_file(self.base, self.size)
            nokv_close(self.fd)

    def __len__(self):
        return <Py_ssize_t>self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.base == NULL:
            raise ValueError("the map is closed")
        PyBuffer_FillInfo(view, self, self.base, <Py_ssize_t>self.size, False, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    def flush(self):
        """Everything stored is on disk, where an fdatasync does not do that."""
        cdef int failed
        if self.base == NULL:
            raise ValueError("the map is closed")
        with nogil:
            gil_away()
            failed = nokv_write_back(self.base, self.size)
            gil_back()
        if failed:
            raise _error(failed)

    def close(self):
        """A second call does nothing. BufferError while somebody has it as a buffer."""
        cdef void* base = self.base
        cdef int fd = self.fd
        if base == NULL:
            return
        if self.exports:
            raise BufferError("the map is in use")
        self.base = NULL
        self.fd = -1                    # first: from now on the number may be another file's
        with nogil:
            gil_away()
            nokv_unmap_file(base, self.size)
            nokv_close(fd)
            gil_back()


cdef class FileMap:
    """A whole file as memory to read, without a descriptor: one system call less to open it, and none held while it is used."""

    cdef void* base
    cdef size_t size

    def __cinit__(self, str path not None):
        cdef bytes name = c_path(path)
        cdef const char* raw = name
        cdef int failed
        with nogil:
            gil_away()
            failed = nokv_map_file(raw, &self.base, &self.size)
            gil_back()
        if failed:
            raise _error(failed, path)

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
        raise _error(-fd, path)
    try:
        room = <Py_ssize_t>size + 1         # one more, so that the end shows at once
        while True:
            piece = PyBytes_FromStringAndSize(NULL, room)
            into = PyBytes_AS_STRING(piece)
            with nogil:
                n = nokv_read(fd, into, <size_t>room)
            if n < 0:
                raise _error(<int>-n, path)
            pieces.append(piece[:n])
            if n == 0 or (n == size and len(pieces) == 1):
                break
            room = 1 << 16
    finally:
        nokv_close(fd)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
