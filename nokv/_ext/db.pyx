"""The compiled foreground: put, get, delete, write, get_many, put_many, scan are one call into this module each.

Owns: the verbs. What reads see is in view.pyx, how writes are made in apply.pyx, scans in scan.pyx, snapshots and families in
handles.pyx. The policy is the Python subclass (nokv/engine/db.py).
"""

cimport cython
from libc.stdint cimport uint64_t

from nokv._ext.apply cimport WritableStore
from nokv._ext.batch cimport as_bytes
from nokv._ext.cursor cimport KIND_DELETE, KIND_PUT
from nokv._ext.scan cimport new_scan

# what the engine needs of the other parts
from nokv._ext.handles import Family, Snapshot, SnapshotFamily
from nokv._ext.view import SEQUENCE_MAX, View


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Core(WritableStore):
    """The verbs of a database, which are those of its family 0."""

    def get(self, key, default=None):
        """The value under `key`, or `default`."""
        if type(key) is not bytes:
            key = as_bytes(key, "key")      # before the sequence: it may let a writer run
        return self.read(0, key, self.sequence, default, 0)

    def get_many(self, keys):
        """Values in the order of the keys, None where there is none; one consistent view, one C loop."""
        cdef uint64_t now_ms = self.view_time()     # before the sequence: it may let a writer run
        return self.read_many(0, keys, self.sequence, now_ms)

    def put(self, key, value, *, ttl=None, sync=None):
        """Store `value` under `key`. Survives the death of this process; with sync=True, power loss too. With `ttl` the key is
        absent from that many milliseconds on."""
        if ttl is not None:
            self.put_expiring(0, key, value, ttl, sync)
            return
        self.write_one(KIND_PUT, 0, key, value, sync)

    def delete(self, key, *, sync=None):
        """Forget `key`, which need not exist."""
        self.write_one(KIND_DELETE, 0, key, None, sync)

    def delete_range(self, start, end, *, sync=None):
        """Forget every key in start <= key < end (None: open). One record, however many keys there are."""
        self._delete_range(0, start, end, sync)

    def put_many(self, pairs, *, sync=None):
        """Store all (key, value) pairs atomically: one log record, one C loop. A dict does too."""
        self._put_many(0, pairs, sync)

    def snapshot(self):
        """A read view of this moment. Close it (or use `with`): it keeps superseded versions alive."""
        self.check_open()
        return Snapshot(self)

    def scan(self, start=None, end=None, *, prefix=None, reverse=False, limit=None, keys=True, values=True):
        """Iterate start <= key < end in key order (backwards with reverse=True), over the view of this moment."""
        cdef uint64_t now_ms = self.view_time()
        return new_scan(self, 0, -1, now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        """A position to move by hand, within start <= key < end, over the view of this moment."""
        from nokv._ext.iterator import Iterator         # it walks this module's views

        return Iterator(self, 0, None, self.view_time(), start, end, prefix)
