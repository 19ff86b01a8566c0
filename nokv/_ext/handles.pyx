"""Snapshots and families: the verbs of a database over another moment, or another keyspace."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.apply cimport WritableStore
from nokv._ext.batch cimport as_bytes
from nokv._ext.cursor cimport KIND_DELETE, KIND_PUT
from nokv._ext.scan cimport new_scan
from nokv._ext.view cimport Store

from nokv.errors import Closed


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Snapshot:
    """A consistent read view; `with` closes it. Reads of a closed one raise Closed."""

    cdef Store core
    cdef readonly uint64_t sequence
    cdef uint64_t now_ms            # what expires later is there for this view, however long it is kept
    cdef bint open
    cdef object __weakref__

    def __cinit__(self, Store core not None):
        core.check_open()
        self.core = core
        self.now_ms = core.view_time()
        self.sequence = core.sequence
        core.hold(self.sequence)
        self.open = True
        if self.now_ms:
            core.hold_moment(self.now_ms)

    def __dealloc__(self):
        self._release()

    cdef _release(self):
        if self.open:
            self.open = False
            self.core.let_go(self.sequence)
            if self.now_ms:
                self.core.let_go_moment(self.now_ms)

    cdef int check(self) except -1:
        if not self.open:
            raise Closed("the snapshot is closed")
        return self.core.check_open()

    def get(self, key, default=None):
        self.check()
        return self.core.read(0, key, self.sequence, default, self.now_ms)

    def get_many(self, keys):
        self.check()
        return self.core.read_many(0, keys, self.sequence, self.now_ms)

    def scan(self, start=None, end=None, *, prefix=None, reverse=False, limit=None, keys=True, values=True):
        self.check()
        return new_scan(self.core, 0, self.sequence, self.now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        """A position to move by hand. It ends with the snapshot."""
        from nokv._ext.iterator import Iterator

        self.check()
        return Iterator(self.core, 0, self.sequence, self.now_ms, start, end, prefix, self)

    def family(self, name):
        """The same verbs over one family, at this snapshot."""
        self.check()
        return SnapshotFamily(self, name, self.core._family_number(name))

    def close(self):
        self._release()

    @property
    def closed(self):
        return not self.open

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self._release()


cdef class SnapshotFamily:
    cdef Snapshot snapshot
    cdef readonly object name
    cdef readonly int id

    def __cinit__(self, Snapshot snapshot not None, name, int number):
        self.snapshot = snapshot
        self.name = name
        self.id = number

    def get(self, key, default=None):
        self.snapshot.check()
        return self.snapshot.core.read(<uint8_t>self.id, key, self.snapshot.sequence, default, self.snapshot.now_ms)

    def get_many(self, keys):
        self.snapshot.check()
        return self.snapshot.core.read_many(<uint8_t>self.id, keys, self.snapshot.sequence, self.snapshot.now_ms)

    def scan(self, start=None, end=None, *, prefix=None, reverse=False, limit=None, keys=True, values=True):
        cdef Snapshot s = self.snapshot
        s.check()
        return new_scan(s.core, <uint8_t>self.id, s.sequence, s.now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        from nokv._ext.iterator import Iterator

        cdef Snapshot s = self.snapshot
        s.check()
        return Iterator(s.core, self.id, s.sequence, s.now_ms, start, end, prefix, s)


cdef class Family:
    """One keyspace of a database: the same verbs as the database itself, which is family 0."""

    cdef WritableStore core
    cdef readonly str name
    cdef readonly int id

    def __cinit__(self, WritableStore core not None, str name not None, int number):
        self.core = core
        self.name = name
        self.id = number

    def get(self, key, default=None):
        if type(key) is not bytes:
            key = as_bytes(key, "key")      # before the sequence: it may let a writer run
        return self.core.read(<uint8_t>self.id, key, self.core.sequence, default, 0)

    def get_many(self, keys):
        cdef uint64_t now_ms = self.core.view_time()
        return self.core.read_many(<uint8_t>self.id, keys, self.core.sequence, now_ms)

    def put(self, key, value, *, ttl=None, sync=None):
        if ttl is not None:
            self.core.put_expiring(<uint8_t>self.id, key, value, ttl, sync)
            return
        self.core.write_one(KIND_PUT, <uint8_t>self.id, key, value, sync)

    def delete(self, key, *, sync=None):
        self.core.write_one(KIND_DELETE, <uint8_t>self.id, key, None, sync)

    def delete_range(self, start, end, *, sync=None):
        self.core._delete_range(self.id, start, end, sync)

    def compact(self, start=None, end=None):
        """Rewrite the tables that touch start <= key < end (None: open), without superseded versions and what is deleted or has
        expired."""
        self.core._compact_family(self.id, start, end)

    def put_many(self, pairs, *, sync=None):
        self.core._put_many(self.id, pairs, sync)

    def scan(self, start=None, end=None, *, prefix=None, reverse=False, limit=None, keys=True, values=True):
        cdef uint64_t now_ms = self.core.view_time()
        return new_scan(self.core, <uint8_t>self.id, -1, now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        from nokv._ext.iterator import Iterator

        return Iterator(self.core, self.id, None, self.core.view_time(), start, end, prefix)

    def __repr__(self):
        return f"<Family {self.name!r} id={self.id}>"
