"""Scans: lazy iterators of pairs, keys or values over one consistent view, filled in chunks by C loops.

Owns: the bounds of a scan, what it holds while it lives, the list-making loops. A position to move by hand is in iterator.pyx.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from nokv._ext.batch cimport as_bytes
from nokv._ext.cursor cimport (
    CURSOR_OK,
    KIND_DELETE,
    KIND_PUT,
    TRAILER_SIZE,
    Cursor,
    Slice,
    compare_bytes,
    live_value,
    read_trailer,
)
from nokv._ext.view cimport STATE_OPEN, Store, View

from nokv.errors import Corruption, UsageError

cdef enum:
    CHUNK_FIRST = 32
    CHUNK_MAX = 1024
    CHUNK_BYTES_MAX = 1 << 20       # of values: large ones come in chunks of few, or of one


cdef bytes _successor(bytes prefix):
    """The smallest key that is greater than every key with this prefix; None if there is none."""
    cdef Py_ssize_t n = len(prefix)
    while n > 0 and prefix[n - 1] == 255:
        n -= 1
    if n == 0:
        return None
    return prefix[:n - 1] + bytes((prefix[n - 1] + 1,))


cdef object scan_of(Store core, View view, uint8_t family, uint64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                    limit, bint keys, bint values):
    cdef bytes lower, upper
    core.check_open()
    if not keys and not values:
        raise UsageError("a scan of neither keys nor values", hint="leave one of keys=, values= true")
    if limit is not None and limit < 0:
        raise UsageError(f"limit {limit} is negative", hint="None: no limit")
    lower = b"" if start is None else as_bytes(start, "start")
    upper = None if end is None else as_bytes(end, "end")
    if start is not None and end is not None and lower > upper:
        raise UsageError("the scan's start is after its end", hint="reverse=True keeps start <= end, and walks backwards")
    if prefix is not None:
        prefix = as_bytes(prefix, "prefix")
        if prefix > lower:
            lower = prefix
        after = _successor(prefix)
        if after is not None and (upper is None or after < upper):
            upper = after
    head = bytes((family,))
    if upper is not None:
        upper = head + upper
    elif family < 255:
        upper = bytes((family + 1,))
    return Scan(core, view, head + lower, upper, sequence, now_ms, reverse, -1 if limit is None else limit, keys, values)


cdef object new_scan(Store core, uint8_t family, uint64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                     limit, bint keys, bint values):
    cdef View view = core.view          # first: it belongs to `sequence`
    core.hold(sequence)                 # looking at the bounds may let writers run
    try:
        return scan_of(core, view, family, sequence, now_ms, start, end, prefix, reverse, limit, keys, values)
    finally:
        core.let_go(sequence)


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Scan:
    """Iterator of a scan: C loops fill a list, `next` takes from it. Holds everything it walks; one thread at a time."""

    cdef Store core
    cdef View view
    cdef Cursor* c
    cdef bytes lower, upper
    cdef uint64_t sequence, now_ms  # the view's moment: nothing expires while it is walked
    cdef bint reverse, keys, values, held, done, busy, started
    cdef int64_t remaining
    cdef list chunk
    cdef Py_ssize_t position, chunk_size
    cdef size_t chunk_bytes         # of the values in it
    cdef uint8_t* last              # family || key of the last key dealt with
    cdef size_t last_size, last_capacity

    def __cinit__(self, Store core not None, View view not None, bytes lower not None, bytes upper, uint64_t sequence,
                  uint64_t now_ms, bint reverse, int64_t limit, bint keys, bint values):
        self.c = NULL
        self.last = NULL
        self.core = core
        self.view = view
        self.lower = lower
        self.upper = upper
        self.sequence = sequence
        self.now_ms = now_ms
        self.reverse = reverse
        self.remaining = limit
        self.keys = keys
        self.values = values
        self.chunk = []
        self.position = 0
        self.chunk_size = CHUNK_FIRST
        core.hold(sequence)
        self.held = True
        if now_ms:
            core.hold_moment(now_ms)
        core.scans += 1

    def __dealloc__(self):
        self._release()

    cdef _release(self):
        self.done = True
        if self.c != NULL:
            self.c.ops.destroy(self.c)
            self.c = NULL
        if self.last != NULL:
            free(self.last)
            self.last = NULL
        if self.held:
            self.held = False
            self.core.let_go(self.sequence)
            if self.now_ms:
                self.core.let_go_moment(self.now_ms)
        self.view = None

    def close(self):
        """Let go of what the scan holds; also happens at its end, and when it is garbage."""
        if self.busy:
            raise UsageError("the scan is in use by another thread")
        self.chunk = []
        self.position = 0
        self._release()

    def __iter__(self):
        return self

    def __next__(self):
        cdef object item
        if self.core.state != STATE_OPEN:
            self.core.check_open()
        if self.position >= len(self.chunk):
            if self.done:
                raise StopIteration
            self._fill()
            if self.position >= len(self.chunk):
                raise StopIteration
        item = self.chunk[self.position]
        self.position += 1
        return item

    def fetch(self, Py_ssize_t count):
        """Up to `count` of the next items as one list."""
        cdef list items = []
        cdef Py_ssize_t have
        if self.core.state != STATE_OPEN:
            self.core.check_open()
        while len(items) < count:
            have = len(self.chunk) - self.position
            if have == 0:
                if self.done:
                    break
                if self.chunk_size < count - len(items):
                    self.chunk_size = min(count - len(items), CHUNK_MAX)
                self._fill()
                continue
            have = min(have, count - len(items))
            items += self.chunk[self.position:self.position + have]
            self.position += have
        return items

    cdef int _remember(self, const uint8_t* key, size_t size) except -1:
        cdef uint8_t* fresh
        if size > self.last_capacity:
            fresh = <uint8_t*>realloc(self.last, size * 2)
            if fresh == NULL:
                raise MemoryError()
            self.last = fresh
            self.last_capacity = size * 2
        memcpy(self.last, key, size)
        self.last_size = size
        return 0

    cdef int _start(self) except -1:
        cdef bytes target
        cdef Slice key
        cdef Cursor* c
        self.c = self.core.open_cursor(self.view, self.sequence)
        c = self.c
        self.started = True
        if not self.reverse:
            target = self.lower + b"\0" * TRAILER_SIZE
        elif self.upper is not None:
            target = self.upper + b"\0" * TRAILER_SIZE
        else:
            c.ops.seek_last(c)
            return 0
        key.data = <const uint8_t*>PyBytes_AS_STRING(target)
        key.size = <size_t>len(target)
        c.ops.seek(c, key)
        if self.reverse:
            if c.valid:
                c.ops.prev(c)
            elif c.status == CURSOR_OK:
                c.ops.seek_last(c)
        return 0

    cdef int _fill(self) except -1:
        """The next chunk, or the end. Only one thread may be in here: a block's decoding lets others run."""
        cdef Py_ssize_t want = self.chunk_size
        if self.busy:
            raise UsageError("the scan is in use by another thread", hint="one thread walks a scan at a time")
        if self.remaining >= 0 and self.remaining < want:
            want = self.remaining
        self.chunk = []
        self.position = 0
        self.chunk_bytes = 0
        self.busy = True
        try:
            if want > 0:
                if not self.started:
                    self._start()
                if self.reverse:
                    self._fill_reverse(want)
                else:
                    self._fill_forward(want)
                if self.c.status < 0:
                    self.view.version.raise_status(self.c.status)
        except BaseException:
            self.chunk = []
            self._release()
            raise
        finally:
            self.busy = False
        if self.remaining >= 0:
            self.remaining -= len(self.chunk)
        if (len(self.chunk) < want and self.chunk_bytes < CHUNK_BYTES_MAX) or self.remaining == 0:
            self._release()
        if self.chunk_size < CHUNK_MAX:
            self.chunk_size *= 4 if self.chunk_size * 4 <= CHUNK_MAX else 2
        return 0

    cdef object _item(self, const uint8_t* key, size_t size, int kind, Slice value):
        """What the scan yields for a visible entry, or None if that is no value."""
        cdef object k, v
        cdef int live
        if kind != KIND_PUT:
            live = live_value(kind, &value, self.now_ms)
            if live < 0:
                raise Corruption("a stored value is malformed", found=kind)
            if live == 0:
                return None
        if not self.values:
            return PyBytes_FromStringAndSize(<const char*>key + 1, <Py_ssize_t>size - 1)
        v = self.core.user_value(self.view, kind, &value)
        self.chunk_bytes += <size_t>PyBytes_GET_SIZE(v)
        if not self.keys:
            return v
        k = PyBytes_FromStringAndSize(<const char*>key + 1, <Py_ssize_t>size - 1)
        return (k, v)

    cdef int _fill_forward(self, Py_ssize_t want) except -1:
        cdef Cursor* c = self.c
        cdef const uint8_t* key
        cdef const uint8_t* upper = NULL if self.upper is None else <const uint8_t*>PyBytes_AS_STRING(self.upper)
        cdef size_t size, upper_size = 0 if self.upper is None else <size_t>len(self.upper)
        cdef uint64_t packed
        cdef Py_ssize_t count = 0
        cdef list chunk = self.chunk
        cdef object item
        while c.valid and count < want and self.chunk_bytes < CHUNK_BYTES_MAX:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            packed = read_trailer(key + size)
            if (packed >> 8) <= self.sequence and not (
                self.last_size == size and memcmp(self.last, key, size) == 0
            ):
                if upper != NULL and compare_bytes(key, size, upper, upper_size) >= 0:
                    return 0
                self._remember(key, size)       # older versions of this key are hidden from here on
                if (packed & 255) != KIND_DELETE:
                    item = self._item(key, size, <int>(packed & 255), c.value)
                    if item is not None:
                        chunk.append(item)
                        count += 1
            c.ops.next(c)
        return 0

    cdef int _fill_reverse(self, Py_ssize_t want) except -1:
        """Backwards the versions of a key come oldest first: the last visible one of a run counts."""
        cdef Cursor* c = self.c
        cdef const uint8_t* key
        cdef const uint8_t* lower = <const uint8_t*>PyBytes_AS_STRING(self.lower)
        cdef size_t size, lower_size = <size_t>len(self.lower)
        cdef uint64_t packed
        cdef Py_ssize_t count = 0
        cdef list chunk = self.chunk
        cdef object candidate
        while c.valid and count < want and self.chunk_bytes < CHUNK_BYTES_MAX:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            if compare_bytes(key, size, lower, lower_size) < 0:
                return 0
            self._remember(key, size)
            candidate = None
            while c.valid:
                key = c.key.data
                size = c.key.size - TRAILER_SIZE
                if size != self.last_size or memcmp(key, self.last, size) != 0:
                    break
                packed = read_trailer(key + size)
                if (packed >> 8) <= self.sequence:
                    candidate = None if (packed & 255) == KIND_DELETE else self._item(key, size, <int>(packed & 255), c.value)
                c.ops.prev(c)
            if c.status < 0:
                return 0
            if candidate is not None:
                chunk.append(candidate)
                count += 1
        return 0
