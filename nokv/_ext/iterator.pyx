"""A cursor for people: seek, step both ways, look. Over the same merge and the same visibility rule as a scan.

Owns: one position in one consistent view. Between calls it stands on a visible entry of its bounds, or on nothing.
Going forward the merge cursor stands on that entry; going backward it stands before the entry's versions, and the
entry is kept in `key_data` and `value_data`. Turning round is one seek.

`changed` is what a transaction's commit asks: was anything in these ranges written after a sequence?

Threads: one at a time (a block's decoding lets others run; a second thread gets UsageError).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from nokv._ext.batch cimport as_bytes
from nokv._ext.cursor cimport (
    CURSOR_OK,
    EXPIRY_SIZE,
    KIND_DELETE,
    KIND_PUT,
    TRAILER_SIZE,
    Cursor,
    Slice,
    compare_bytes,
    kind_expires,
    live_value,
    read_expiry,
    read_trailer,
)
from nokv._ext.version cimport Version
from nokv._ext.view cimport Store, View

from nokv.errors import Closed, Corruption, UsageError

cdef enum:
    FORWARD = 0
    BACKWARD = 1

NEWEST = b"\0" * TRAILER_SIZE       # sorts before every real trailer of the same key


cdef struct Bytes:
    uint8_t* data
    size_t size
    size_t capacity


cdef int store(Bytes* target, const uint8_t* data, size_t size) except -1:
    cdef uint8_t* fresh
    if size > target.capacity:
        fresh = <uint8_t*>realloc(target.data, size * 2)
        if fresh == NULL:
            raise MemoryError()
        target.data = fresh
        target.capacity = size * 2
    if size:
        memcpy(target.data, data, size)
    target.size = size
    return 0


cdef bytes successor(bytes prefix):
    """The smallest key greater than every key with this prefix; None if there is none."""
    cdef Py_ssize_t n = len(prefix)
    while n > 0 and prefix[n - 1] == 255:
        n -= 1
    return None if n == 0 else prefix[:n - 1] + bytes((prefix[n - 1] + 1,))


cdef object bounds(int family, start, end, prefix):
    """(lower, upper or None) with the family in front. UsageError for a reversed range."""
    cdef bytes lower = b"" if start is None else as_bytes(start, "start")
    cdef bytes upper = None if end is None else as_bytes(end, "end")
    cdef bytes head = bytes((family,))
    cdef bytes after
    if start is not None and end is not None and lower > upper:
        raise UsageError("the range's start is after its end", hint="bounds are start <= key < end in both directions")
    if prefix is not None:
        prefix = as_bytes(prefix, "prefix")
        if prefix > lower:
            lower = prefix
        after = successor(prefix)
        if after is not None and (upper is None or after < upper):
            upper = after
    if upper is not None:
        upper = head + upper
    elif family < 255:
        upper = bytes((family + 1,))
    return head + lower, upper


def family_bounds(int family, start, end):
    """(lower, upper or None), family || user key. UsageError for a reversed range."""
    return bounds(family, start, end, None)


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Iterator:
    """Made by `iterator()` of a database, a family or a snapshot. Stands on nothing until the first seek."""

    cdef Store core
    cdef View view
    cdef object owner               # a snapshot: closing it ends this too
    cdef Cursor* c
    cdef bytes head, lower, upper
    cdef readonly uint64_t sequence
    cdef uint64_t now_ms            # the view's moment: nothing expires while it is walked
    cdef int kind                   # of the entry where we stand
    cdef bint held, busy, on
    cdef int direction
    cdef Bytes current              # family || user key of where we stand
    cdef Bytes value_data           # its stored value, going backward
    cdef Slice value_slice          # the live part of its stored value

    def __cinit__(self, Store core not None, int family, sequence, uint64_t now_ms, start, end, prefix, owner=None):
        self.c = NULL
        self.current.data = self.value_data.data = NULL
        self.current.capacity = self.value_data.capacity = 0
        core.check_open()
        self.core = core
        self.owner = owner
        self.head = bytes((family,))
        self.lower, self.upper = bounds(family, start, end, prefix)
        self.sequence = core.sequence if sequence is None else sequence
        self.now_ms = now_ms
        core.hold(self.sequence)
        self.held = True
        if now_ms:
            core.hold_moment(now_ms)
        self.view = core.view
        self.c = core.open_cursor(self.view, self.sequence)

    def __dealloc__(self):
        self._release()

    cdef _release(self):
        self.on = False
        if self.c != NULL:
            self.c.ops.destroy(self.c)
            self.c = NULL
        free(self.current.data)
        free(self.value_data.data)
        self.current.data = self.value_data.data = NULL
        self.current.size = self.current.capacity = self.value_data.size = self.value_data.capacity = 0
        if self.held:
            self.held = False
            self.core.let_go(self.sequence)
            if self.now_ms:
                self.core.let_go_moment(self.now_ms)
        self.view = None

    cdef int check(self) except -1:
        self.core.check_open()
        if self.c == NULL:
            raise Closed("the iterator is closed")
        if self.owner is not None and self.owner.closed:
            raise Closed("the iterator's snapshot is closed")
        if self.busy:
            raise UsageError("the iterator is in use by another thread", hint="one thread walks an iterator at a time")
        return 0

    cdef int check_on(self) except -1:
        self.check()
        if not self.on:
            raise UsageError("the iterator stands on no entry", hint="seek first, and look at `valid`")
        return 0

    cdef int seek_cursor(self, bytes prefix) except -1:
        """The merge cursor on the first entry, visible or not, whose family || user key is >= prefix."""
        cdef bytes target = prefix + NEWEST
        cdef Slice key
        key.data = <const uint8_t*>PyBytes_AS_STRING(target)
        key.size = <size_t>len(target)
        self.c.ops.seek(self.c, key)
        return 0

    cdef int before(self, bytes prefix) except -1:
        """The merge cursor on the last entry below prefix (None: the last of all)."""
        if prefix is None:
            self.c.ops.seek_last(self.c)
            return 0
        self.seek_cursor(prefix)
        if self.c.valid:
            self.c.ops.prev(self.c)
        elif self.c.status == CURSOR_OK:
            self.c.ops.seek_last(self.c)
        return 0

    cdef int find_forward(self, bint skip) except -1:
        """From the merge cursor on, the first visible entry within the bounds; with `skip`, after the current key."""
        cdef Cursor* c = self.c
        cdef const uint8_t* upper = NULL if self.upper is None else <const uint8_t*>PyBytes_AS_STRING(self.upper)
        cdef size_t upper_size = 0 if self.upper is None else <size_t>len(self.upper)
        cdef const uint8_t* key
        cdef size_t size
        cdef uint64_t packed
        self.on = False
        self.direction = FORWARD
        while c.valid:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            packed = read_trailer(key + size)
            if (packed >> 8) <= self.sequence and not (
                skip and size == self.current.size and memcmp(key, self.current.data, size) == 0
            ):
                if upper != NULL and compare_bytes(key, size, upper, upper_size) >= 0:
                    return 0
                store(&self.current, key, size)
                if self.is_live(<int>(packed & 255), c.value):
                    self.on = True
                    return 0
                skip = True                     # deleted: its older versions are hidden
            c.ops.next(c)
        return 0

    cdef int find_backward(self) except -1:
        """From the merge cursor back, the last key with a visible value. Versions of a key come oldest first."""
        cdef Cursor* c = self.c
        cdef const uint8_t* lower = <const uint8_t*>PyBytes_AS_STRING(self.lower)
        cdef size_t lower_size = <size_t>len(self.lower)
        cdef const uint8_t* key
        cdef size_t size
        cdef uint64_t packed
        cdef Slice stored
        cdef int kind = 0
        cdef bint found
        self.on = False
        self.direction = BACKWARD
        while c.valid:
            key = c.key.data
            size = c.key.size - TRAILER_SIZE
            if compare_bytes(key, size, lower, lower_size) < 0:
                return 0
            store(&self.current, key, size)
            found = False
            while c.valid:
                key = c.key.data
                size = c.key.size - TRAILER_SIZE
                if size != self.current.size or memcmp(key, self.current.data, size) != 0:
                    break
                packed = read_trailer(key + size)
                if (packed >> 8) <= self.sequence:
                    found = (packed & 255) != KIND_DELETE
                    if found:
                        kind = <int>(packed & 255)
                        store(&self.value_data, c.value.data, c.value.size)
                c.ops.prev(c)
            if c.status < 0:
                return 0
            if found:
                stored.data = self.value_data.data
                stored.size = self.value_data.size
                if self.is_live(kind, stored):
                    self.on = True
                    return 0
        return 0

    cdef bint is_live(self, int kind, Slice value) except -1:
        """Is a visible entry a value at the view's moment? Then `value_slice` is that."""
        cdef int live
        if kind != KIND_PUT:
            live = live_value(kind, &value, self.now_ms)
            if live < 0:
                raise Corruption("a stored value is malformed", found=kind)
            if live == 0:
                return False
        self.kind = kind
        self.value_slice = value
        return True

    cdef bint finish(self) except *:
        if self.c.status < 0:
            self.on = False
            self.view.version.raise_status(self.c.status)
        return self.on

    def seek_first(self):
        """To the first entry of the bounds. True if there is one."""
        return self._seek(self.lower)

    def seek_last(self):
        """To the last entry of the bounds. True if there is one."""
        return self._seek_below(self.upper)

    def seek(self, key):
        """To the first entry whose key is >= `key`. True if there is one."""
        cdef bytes target = self.head + as_bytes(key, "key")
        return self._seek(target if target > self.lower else self.lower)

    def seek_for_prev(self, key):
        """To the last entry whose key is <= `key`. True if there is one."""
        cdef bytes after = self.head + as_bytes(key, "key") + b"\0"
        return self._seek_below(after if self.upper is None or after < self.upper else self.upper)

    def _seek(self, bytes target not None):
        self.check()
        self.busy = True
        try:
            self.seek_cursor(target)
            self.find_forward(False)
            return self.finish()
        finally:
            self.busy = False

    def _seek_below(self, bytes target):
        self.check()
        self.busy = True
        try:
            self.before(target)
            self.find_backward()
            return self.finish()
        finally:
            self.busy = False

    def next(self):
        """To the entry after this one. True if there is one. UsageError if it stands on none."""
        self.check_on()
        self.busy = True
        try:
            if self.direction == BACKWARD:
                self.seek_cursor(self.current.data[:self.current.size])
            else:
                self.c.ops.next(self.c)
            self.find_forward(True)
            return self.finish()
        finally:
            self.busy = False

    def prev(self):
        """To the entry before this one. True if there is one. UsageError if it stands on none."""
        self.check_on()
        self.busy = True
        try:
            if self.direction == FORWARD:
                self.before(self.current.data[:self.current.size])
            self.find_backward()
            return self.finish()
        finally:
            self.busy = False

    @property
    def valid(self):
        """Does it stand on an entry?"""
        self.check()
        return self.on

    @property
    def key(self):
        self.check_on()
        return PyBytes_FromStringAndSize(<const char*>self.current.data + 1, <Py_ssize_t>self.current.size - 1)

    @property
    def value(self):
        self.check_on()
        return self.core.user_value(self.view, self.kind, &self.value_slice)

    @property
    def expires_at_ms(self):
        """The Unix millisecond from which on this entry is absent, or None."""
        self.check_on()
        return read_expiry(self.value_slice.data - EXPIRY_SIZE) if kind_expires(self.kind) else None

    @property
    def item(self):
        """(key, value)"""
        return self.key, self.value

    @property
    def closed(self):
        return self.c == NULL

    def close(self):
        """Let go of the view. Idempotent; also happens when it is garbage."""
        if self.busy:
            raise UsageError("the iterator is in use by another thread")
        self._release()

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self.close()


def changed(Store core not None, uint64_t sequence, list ranges not None, bint tables):
    """The first of `ranges` (lower, upper or None; family || user key) in which something was written after `sequence`,
    or None. `tables=False` looks at memtables only: the caller knows that no table holds anything newer. The caller
    keeps writers out."""
    cdef View view = core.view
    cdef Cursor* c
    cdef Slice target, bound
    cdef bytes lower, upper, key
    cdef size_t size
    if not tables:
        view = View(view.mem, view.immutables, Version([]))
    c = core.open_raw_cursor(view)
    try:
        for lower, upper in ranges:
            key = lower + NEWEST
            target.data = <const uint8_t*>PyBytes_AS_STRING(lower)
            target.size = <size_t>len(lower)
            if upper is not None:
                bound.data = <const uint8_t*>PyBytes_AS_STRING(upper)
                bound.size = <size_t>len(upper)
            if core.range_written(view, target, NULL if upper is None else &bound, sequence):
                return lower, upper
            target.data = <const uint8_t*>PyBytes_AS_STRING(key)
            target.size = <size_t>len(key)
            c.ops.seek(c, target)
            while c.valid:
                size = c.key.size - TRAILER_SIZE
                if upper is not None and compare_bytes(
                    c.key.data, size, <const uint8_t*>PyBytes_AS_STRING(upper), <size_t>len(upper)
                ) >= 0:
                    break
                if (read_trailer(c.key.data + size) >> 8) > sequence:
                    return lower, upper
                c.ops.next(c)
            if c.status < 0:
                view.version.raise_status(c.status)
        return None
    finally:
        c.ops.destroy(c)
