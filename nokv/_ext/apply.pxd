from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.batch cimport WriteBatch
from nokv._ext.memtable cimport MemTable
from nokv._ext.view cimport Store
from nokv._ext.wal cimport LiveSegmentReader, WalCore

cdef class WritableStore(Store):
    """A database as writers see it."""
    cdef public WalCore wal
    cdef public bint ready              # the fast path may run: open, writable, nothing to wait for
    cdef public int durability          # 0 process, 1 interval, 2 sync
    cdef public bint dirty              # something was logged since the owner was last told
    cdef public uint64_t room_bytes     # of the memtable, before the owner is asked for more
    cdef readonly uint64_t puts, deletes, range_deletes, batches, written_bytes
    cdef int write_one(self, int kind, uint8_t family, object key, object value, object sync) except -1
    cdef int put_expiring(self, uint8_t family, object key, object value, object ttl, object sync) except -1
    cdef int _delete_range(self, int family, start, end, sync) except -1
    cdef int _put_many(self, int family, object pairs, object sync) except -1
    cdef int put_plain(self, int family, object pairs, uint64_t size) except -1
    cdef int write_payload(self, WriteBatch batch, bint log) except -1
    cdef int after_log(self, object sync) except -1
    cdef object follow_segment(self, LiveSegmentReader segment, MemTable mem, uint64_t end, uint64_t flushed, uint64_t last,
                               uint64_t room, str path)
