"""Scans: lazy iterators of pairs, keys or values over one consistent view, filled in chunks by C loops.

Owns: the bounds of a scan, what it holds while it lives, the loops that make items. A position to move by hand is in iterator.pyx.
A scan with a limit of at most CHUNK_MAX is one chunk; `list` asks for its length first, which makes the chunk.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

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
    nokv_load_big_endian,
    read_trailer,
)
from nokv._ext.merge cimport merge_alone
from nokv._ext.view cimport STATE_OPEN, Store, View, Walker

from nokv.errors import Corruption, UsageError

cdef extern from *:
    """static inline PyObject* nokv_own(PyObject* item) { return item; }"""
    object own "nokv_own"(PyObject* item)       # takes over the reference

cdef extern from "Python.h":
    object PyTuple_New(Py_ssize_t size)
    void PyTuple_SET_ITEM(object pair, Py_ssize_t at, object item)

cdef enum:
    CHUNK_FIRST = 32
    CHUNK_MAX = 256
    CHUNK_BYTES_MAX = 1 << 20       # of values: large ones come in chunks of few, or of one
    BOUNDS_INLINE = 88


cdef bytes _successor(bytes prefix):
    """The smallest key that is greater than every key with this prefix; None if there is none."""
    cdef Py_ssize_t n = len(prefix)
    while n > 0 and prefix[n - 1] == 255:
        n -= 1
    if n == 0:
        return None
    return prefix[:n - 1] + bytes((prefix[n - 1] + 1,))


cdef object new_scan(Store core, uint8_t family, int64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                     limit, bint keys, bint values):
    cdef bytes lower, upper
    cdef int64_t most = -1
    cdef Scan scan
    if core.state != STATE_OPEN:
        core.check_open()
    if not keys and not values:
        raise UsageError("a scan of neither keys nor values", hint="leave one of keys=, values= true")
    if limit is not None:
        most = limit
        if most < 0:
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
    scan = Scan.__new__(Scan)
    scan.core = core
    scan.done = False
    scan.put_bounds(family, lower, upper)
    scan.now_ms = now_ms
    scan.reverse = reverse
    scan.remaining = most
    scan.keys = keys
    scan.values = values
    scan.chunk_size = most if 0 <= most <= CHUNK_MAX else CHUNK_FIRST
    # now that nobody else can run any more: view and sequence belong together, and are held from here on
    scan.sequence = core.sequence if sequence < 0 else <uint64_t>sequence
    scan.view = core.view
    core.hold(scan.sequence)
    scan.held = True
    if now_ms:
        core.hold_moment(now_ms)
        scan.moment_held = True
    core.scans += 1
    return scan


cdef inline bint same(const uint8_t* a, const uint8_t* b, size_t size) noexcept nogil:
    """Neighbours differ in their last bytes."""
    if size >= 8 and nokv_load_big_endian(a + size - 8) != nokv_load_big_endian(b + size - 8):
        return False
    return memcmp(a, b, size) == 0


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
@cython.final
@cython.freelist(8)
cdef class Scan:
    """Iterator of a scan: C loops make a chunk of items, `next` hands them out. Holds everything it walks; one thread at a time."""

    cdef Store core
    cdef View view
    cdef Walker* walker
    cdef Cursor* c                  # what is walked: the walker's cursor, or the only part of it that has entries left
    cdef uint64_t sequence, now_ms  # the view's moment: nothing expires while it is walked
    cdef int64_t remaining
    cdef PyObject** items           # the chunk; those from `position` to `count` are ours
    cdef Py_ssize_t position, count, room, chunk_size
    cdef size_t chunk_bytes         # of the values in it
    cdef bint reverse, keys, values, held, moment_held, done, busy, ended
    cdef str failed                 # the error that ended it; None: none did
    cdef bint due                   # the cursor still stands on what the last chunk ended with
    # family || key, with room for a trailer behind each; no upper bound but the family's end: one byte, or size 0
    cdef uint8_t* lower
    cdef uint8_t* upper
    cdef size_t lower_size, upper_size
    cdef uint8_t[BOUNDS_INLINE] inline_bounds
    cdef const uint8_t* last        # the last user key dealt with: in an item of the chunk, or the walker's `key`
    cdef size_t last_size           # with the family

    def __cinit__(self):
        self.done = True                # made by new_scan only

    def __dealloc__(self):
        self._drop()
        self._release()
        free(self.items)
        if self.lower != self.inline_bounds:
            free(self.lower)

    cdef int put_bounds(self, uint8_t family, bytes lower, bytes upper) except -1:
        cdef size_t need
        self.lower_size = <size_t>PyBytes_GET_SIZE(lower) + 1
        if upper is not None:
            self.upper_size = <size_t>PyBytes_GET_SIZE(upper) + 1
        else:
            self.upper_size = 1 if family < 255 else 0
        need = self.lower_size + self.upper_size + 2 * TRAILER_SIZE
        self.lower = self.inline_bounds
        if need > BOUNDS_INLINE:
            self.lower = <uint8_t*>malloc(need)
            if self.lower == NULL:
                raise MemoryError()
        self.upper = self.lower + self.lower_size + TRAILER_SIZE
        self.lower[0] = family
        memcpy(self.lower + 1, PyBytes_AS_STRING(lower), self.lower_size - 1)
        memset(self.lower + self.lower_size, 0, TRAILER_SIZE)
        if upper is not None:
            self.upper[0] = family
            memcpy(self.upper + 1, PyBytes_AS_STRING(upper), self.upper_size - 1)
        else:
            self.upper[0] = family + 1
        memset(self.upper + self.upper_size, 0, TRAILER_SIZE)
        return 0

    cdef inline int check(self) except -1:
        if self.core is None:
            raise UsageError("a scan that is none", hint="call scan() of a database, a family or a snapshot")
        if self.core.state != STATE_OPEN:
            self.core.check_open()
        return 0

    cdef void _drop(self) noexcept:
        """What is left of the chunk."""
        while self.position < self.count:
            self._take()
        self.position = self.count = 0

    cdef _release(self):
        self.done = True
        self.c = NULL
        if self.walker != NULL:
            self.view.give_back(self.walker)
            self.walker = NULL
        if self.held:
            self.held = False
            self.core.let_go(self.sequence)
            if self.moment_held:
                self.core.let_go_moment(self.now_ms)
        self.view = None

    def close(self):
        """Let go of what the scan holds; also happens at its end, and when it is garbage."""
        if self.busy:
            raise UsageError("the scan is in use by another thread")
        self._drop()
        self._release()
        self.failed = None

    def __iter__(self):
        return self

    def __length_hint__(self):
        """How many items there are at least."""
        self.check()
        if self.position == self.count:
            if not self.done:
                self._fill()
            elif self.failed is not None:
                self._fail_again()
        return self.count - self.position

    def __next__(self):
        if self.core is None or self.core.state != STATE_OPEN:
            self.check()
        if self.position == self.count:
            if not self.done:
                self._fill()
            if self.position == self.count:
                if self.failed is not None:
                    self._fail_again()
                raise StopIteration
        return self._take()

    cdef inline object _take(self):
        self.position += 1
        return own(self.items[self.position - 1])

    def fetch(self, Py_ssize_t count):
        """Up to `count` of the next items as one list."""
        cdef list items = []
        self.check()
        while len(items) < count:
            if self.position < self.count:
                items.append(self._take())
                continue
            if self.done:
                if self.failed is not None:
                    self._fail_again()
                break
            if self.chunk_size < count - len(items):
                self.chunk_size = min(count - len(items), CHUNK_MAX)
            self._fill()
        return items

    cdef int _fail_again(self) except -1:
        """Nobody may take a scan that could not go on for one that has ended."""
        raise UsageError(f"the scan ended with an error before ({self.failed})", hint="begin a new scan")

    cdef int _start(self) except -1:
        cdef Slice key
        cdef Cursor* c
        self.walker = self.core.take_walker(self.view, self.sequence)
        self.c = c = self.walker.c
        if self.reverse:
            key.data = self.upper
            key.size = self.upper_size
        else:
            key.data = self.lower
            key.size = self.lower_size
        if key.size == 0:
            c.ops.seek_last(c)
            return 0
        key.size += TRAILER_SIZE
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
        if 0 <= self.remaining < want:
            want = self.remaining
        self.position = self.count = 0
        self.chunk_bytes = 0
        self.busy = True
        try:
            self._room_for(want)
            if want > 0:
                if self.walker == NULL:
                    self._start()
                if self.reverse:
                    self._fill_reverse(want)
                else:
                    self._fill_forward(want)
                if self.walker.c.status < 0:
                    self.view.version.raise_status(self.walker.c.status)
                if self.c.status < 0:
                    self.view.version.raise_status(self.c.status)
        except BaseException as error:
            self.failed = f"{type(error).__name__}: {error}"        # not the error itself: its traceback may lead back here
            self._drop()
            if self.walker != NULL:
                self.walker.kept = False
            self._release()
            raise
        finally:
            self.busy = False
        if self.remaining >= 0:
            self.remaining -= self.count
        if self.ended or self.remaining == 0:
            self._release()
        if self.chunk_size < CHUNK_MAX:
            self.chunk_size = min(self.chunk_size * 4, CHUNK_MAX)
        return 0

    cdef int _room_for(self, Py_ssize_t want) except -1:
        if want > self.room:
            free(self.items)
            self.room = 0
            self.items = <PyObject**>malloc(want * sizeof(PyObject*))
            if self.items == NULL:
                raise MemoryError()
            self.room = want
        return 0

    cdef int _remember(self, const uint8_t* key, size_t size) except -1:
        """A copy of a user key; `size` is one more."""
        cdef Walker* walker = self.walker
        cdef uint8_t* fresh
        if size > walker.key_room:
            fresh = <uint8_t*>realloc(walker.key, size * 2)
            if fresh == NULL:
                raise MemoryError()
            walker.key = fresh
            walker.key_room = size * 2
        memcpy(walker.key, key, size - 1)
        self.last = walker.key
        self.last_size = size
        return 0

    cdef int _keep(self, object item) except -1:
        Py_INCREF(item)
        self.items[self.count] = <PyObject*>item
        self.count += 1
        return 0

    cdef object _item(self, const uint8_t* key, size_t size, int kind, const Slice* stored):
        """What the scan yields for a visible entry, or None if that is no value."""
        cdef Slice value = stored[0]
        cdef object v
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
        return pair_of(key, size, v)

    cdef int _fill_forward(self, Py_ssize_t want) except -1:
        cdef Cursor* c = self.c
        cdef const uint8_t* key
        cdef const uint8_t* upper = self.upper
        cdef const uint8_t* last = self.last
        cdef size_t size, upper_size = self.upper_size, last_size = self.last_size
        cdef uint64_t packed, sequence = self.sequence
        cdef bint pairs = self.keys and self.values
        cdef object item, k, v
        if self.due:
            c.ops.next(c)
            self.due = False
        self.c = c = merge_alone(c)
        while c.valid:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            packed = read_trailer(key + size)
            if upper_size == 1:
                if key[0] >= upper[0]:
                    break
            elif upper_size and compare_bytes(key, size, upper, upper_size) >= 0:
                break
            # older versions of a key are hidden by the newest that is visible
            if (packed >> 8) <= sequence and not (size == last_size and same(key + 1, last, size - 1)):
                last_size = size
                if (packed & 255) == KIND_PUT and pairs:
                    item = PyTuple_New(2)
                    k = PyBytes_FromStringAndSize(<const char*>key + 1, <Py_ssize_t>size - 1)
                    last = <const uint8_t*>PyBytes_AS_STRING(k)
                    Py_INCREF(k)
                    PyTuple_SET_ITEM(item, 0, k)
                    v = PyBytes_FromStringAndSize(<const char*>c.value.data, <Py_ssize_t>c.value.size)
                    Py_INCREF(v)
                    PyTuple_SET_ITEM(item, 1, v)
                    self.chunk_bytes += c.value.size
                    self._keep(item)
                else:
                    self._remember(key + 1, size)
                    last = self.last
                    if (packed & 255) != KIND_DELETE:
                        item = self._item(key, size, <int>(packed & 255), &c.value)
                        if item is not None:
                            self._keep(item)
                if self.count == want or self.chunk_bytes >= CHUNK_BYTES_MAX:
                    self.due = True
                    if last != self.last:
                        self._remember(last, last_size)
                    return 0
            c.ops.next(c)
        self.ended = True
        return 0

    cdef int _fill_reverse(self, Py_ssize_t want) except -1:
        """Backwards the versions of a key come oldest first: the last visible one of a run counts."""
        cdef Cursor* c = self.c
        cdef const uint8_t* key
        cdef uint8_t family
        cdef size_t size
        cdef uint64_t packed
        cdef object candidate
        self.c = c = merge_alone(c)
        while c.valid:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            if compare_bytes(key, size, self.lower, self.lower_size) < 0:
                break
            if self.count == want or self.chunk_bytes >= CHUNK_BYTES_MAX:
                return 0
            family = key[0]
            self._remember(key + 1, size)
            candidate = None
            while True:
                packed = read_trailer(key + size)
                if (packed >> 8) <= self.sequence:
                    candidate = None if (packed & 255) == KIND_DELETE else self._item(key, size, <int>(packed & 255), &c.value)
                c.ops.prev(c)
                if not c.valid:
                    break
                key = c.key.data
                size = c.key.size - TRAILER_SIZE
                if size != self.last_size or key[0] != family or not same(key + 1, self.last, size - 1):
                    break
            if c.status < 0:
                return 0
            if candidate is not None:
                self._keep(candidate)
        self.ended = True
        return 0


cdef inline object pair_of(const uint8_t* key, size_t size, object value):
    cdef object pair = PyTuple_New(2)
    cdef object k = PyBytes_FromStringAndSize(<const char*>key + 1, <Py_ssize_t>size - 1)
    Py_INCREF(k)
    PyTuple_SET_ITEM(pair, 0, k)
    Py_INCREF(value)
    PyTuple_SET_ITEM(pair, 1, value)
    return pair
