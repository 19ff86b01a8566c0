"""Writing: put, delete, write, put_many, recovery's replay, a follower's replay.

Owns: the order "log, insert, publish". Does not own: when to flush, where files are, what to do when a log is full: those are calls
to the Python subclass (nokv/engine/db.py): `_make_room`, `_prepare_segment`, `_became_dirty`, `_append_unmapped`, `_sync_log`,
`_poison`.

Threads: any. A write keeps the GIL from its check for room to its publication and calls no Python code in between, so writes need
no lock of their own.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from nokv._ext.batch cimport (
    BATCH_BYTES_MAX,
    BATCH_HEADER_SIZE,
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    WriteBatch,
    as_bytes,
    check_sizes,
    expiry_of,
    record_is_known,
    record_size,
    sequences_are_sound,
    with_expiry,
    write_record,
)
from nokv._ext.codec cimport Reader, get_fixed32, get_fixed64, left, put_fixed32, put_fixed64, read_byte, read_bytes, read_fixed32, read_fixed64, reader
from nokv._ext.cursor cimport (
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    EXPIRY_SIZE,
    KIND_DELETE,
    KIND_EXPIRING_PUT,
    KIND_PUT,
    KIND_RANGE_DELETE,
    Slice,
    compare_bytes,
    kind_expires,
)
from nokv._ext.gilturn cimport gil_give_way, gil_needed
from nokv._ext.memtable cimport MemTable, hash_prefix, prefetch_node, prefetch_slot
from nokv._ext.view cimport STATE_OPEN, Store
from nokv._ext.wal cimport RECORD_BATCH, LiveSegmentReader, SegmentReader, SegmentWriter

from nokv.errors import Closed, Corruption, NotFound, UsageError

cdef extern from "Python.h":        # without the reference counts, which would be a store to each key and value
    PyObject* PyList_GET_ITEM(PyObject* items, Py_ssize_t i) nogil
    PyObject* PyTuple_GET_ITEM(PyObject* items, Py_ssize_t i) nogil
    Py_ssize_t Py_SIZE(PyObject* item) nogil

cdef enum:
    DURABILITY_SYNC = 2
    AHEAD = 16                      # a power of two


cdef struct Record:
    const uint8_t* prefix
    const uint8_t* value
    size_t prefix_size
    size_t value_size
    uint64_t hash
    uint8_t kind


cdef inline bint _read_record(Reader* r, Record* record) noexcept nogil:
    record.value = NULL
    record.value_size = 0
    if not read_byte(r, &record.kind) or not read_bytes(r, &record.prefix, &record.prefix_size) or record.prefix_size == 0:
        return False
    if record.kind != KIND_DELETE and not read_bytes(r, &record.value, &record.value_size):
        return False
    return record_is_known(record.kind, record.value_size)


cdef int _insert_range(Store core, MemTable mem, uint64_t sequence, const Record* record, uint64_t newest_snapshot) noexcept:
    """As `_insert`."""
    cdef Slice start, end
    cdef uint64_t* held = core.live
    cdef size_t count = <size_t>core.live_count
    cdef int done
    start.data = record.prefix
    start.size = record.prefix_size
    end.data = record.value
    end.size = record.value_size
    if compare_bytes(start.data, start.size, end.data, end.size) >= 0:
        return 0
    if newest_snapshot > core.newest_snapshot:          # a reader beside a writer: what it shows now counts as held
        held = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
        if held == NULL:
            return CURSOR_NO_MEMORY
        if count:
            memcpy(held, core.live, count * sizeof(uint64_t))
        held[count] = newest_snapshot
        count += 1
    done = mem.add_range(sequence, start, end, held, count)
    if held != core.live:
        free(held)
    return 1 if done == CURSOR_OK else done


cdef uint64_t _last_sequence(const uint8_t* data, str path, uint64_t offset) except? 0:
    """The newest sequence of a batch that has a header, in the record at `offset`."""
    cdef uint64_t first = get_fixed64(data)
    cdef uint32_t count = get_fixed32(data + 8)
    if not sequences_are_sound(first, count):
        raise Corruption("write batch has an impossible sequence", path=path, offset=offset, expected="1 to 2**56 - 1", found=first)
    return first + count - 1


cdef int _insert(Store core, MemTable mem, const uint8_t* data, size_t size, uint64_t newest_snapshot) noexcept:
    """Insert every record of a batch payload: 1, 0 malformed (a prefix may be in), or CURSOR_NO_MEMORY. Reads some records ahead,
    so that the hash index's cache misses overlap."""
    cdef Reader r = reader(data, size)
    cdef Record ahead[AHEAD]
    cdef Record* record
    cdef uint64_t sequence = 0
    cdef uint32_t count = 0, i, read = 0
    cdef int done
    if not read_fixed64(&r, &sequence) or not read_fixed32(&r, &count):
        return 0
    for i in range(count):
        while read < count and read < i + AHEAD:
            record = &ahead[read & (AHEAD - 1)]
            if not _read_record(&r, record):
                return 0
            record.hash = hash_prefix(record.prefix, record.prefix_size)
            prefetch_slot(&mem.t, record.hash)
            read += 1
        if i + AHEAD // 2 < read:
            prefetch_node(&mem.t, ahead[(i + AHEAD // 2) & (AHEAD - 1)].hash)
        record = &ahead[i & (AHEAD - 1)]
        if record.kind == KIND_RANGE_DELETE:
            done = _insert_range(core, mem, sequence + i, record, newest_snapshot)
            if done != 1:
                return done
        elif mem.add_hashed(sequence + i, record.kind, record.prefix, record.prefix_size, record.hash, record.value,
                          record.value_size, newest_snapshot) != CURSOR_OK:
            return CURSOR_NO_MEMORY
    return 1 if left(&r) == 0 else 0


cdef uint64_t _plain_size(object pairs) noexcept:
    """The size of the batch payload of a list or tuple of tuples of two bytes each. 0: it is something else, or empty, or too large:
    WriteBatch will say what is wrong, if anything. Runs no code of others."""
    cdef bint is_list = type(pairs) is list
    cdef uint64_t size = BATCH_HEADER_SIZE
    cdef Py_ssize_t i, count
    cdef PyObject* pair
    cdef PyObject* key
    cdef PyObject* value
    if not is_list and type(pairs) is not tuple:
        return 0
    count = Py_SIZE(<PyObject*>pairs)
    for i in range(count):
        pair = PyList_GET_ITEM(<PyObject*>pairs, i) if is_list else PyTuple_GET_ITEM(<PyObject*>pairs, i)
        if not PyTuple_CheckExact(<object>pair) or Py_SIZE(pair) != 2:
            return 0
        key = PyTuple_GET_ITEM(pair, 0)
        value = PyTuple_GET_ITEM(pair, 1)
        if not PyBytes_CheckExact(<object>key) or not PyBytes_CheckExact(<object>value):
            return 0
        if Py_SIZE(key) > KEY_BYTES_MAX or Py_SIZE(value) > VALUE_BYTES_MAX:
            return 0
        size += record_size(KIND_PUT, Py_SIZE(key), Py_SIZE(value))
        if size > BATCH_BYTES_MAX:
            return 0
    return size if count else 0


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class WritableStore(Store):
    def __cinit__(self, *args, **kwargs):
        self.ready = False

    # -- what the Python subclass does --------------------------------------------------------------------------------
    def _make_room(self, size):
        raise NotImplementedError

    def _prepare_segment(self):
        raise NotImplementedError

    def _became_dirty(self):
        raise NotImplementedError

    def _append_unmapped(self, batch, log):
        raise NotImplementedError

    def _sync_log(self):
        raise NotImplementedError

    def _poison(self, reason):
        raise NotImplementedError

    # -- one write ----------------------------------------------------------------------------------------------------
    cdef int write_one(self, int kind, uint8_t family, object key, object value, object sync) except -1:
        cdef uint64_t need, key_size, value_size = 0, hash
        cdef const uint8_t* value_data = NULL
        cdef uint8_t* payload
        cdef uint8_t* end
        cdef uint8_t* prefix = NULL
        cdef SegmentWriter writer
        cdef MemTable mem
        cdef WriteBatch batch
        if type(key) is not bytes:
            key = as_bytes(key, "key")
        key_size = <uint64_t>PyBytes_GET_SIZE(key)
        if kind != KIND_DELETE:
            if type(value) is not bytes:
                value = as_bytes(value, "value")
            value_size = <uint64_t>PyBytes_GET_SIZE(value)
            value_data = <const uint8_t*>PyBytes_AS_STRING(value)
        if key_size > KEY_BYTES_MAX or value_size > VALUE_BYTES_MAX:
            check_sizes(key, <Py_ssize_t>value_size - (EXPIRY_SIZE if kind_expires(kind) else 0))
        need = BATCH_HEADER_SIZE + record_size(kind, key_size, value_size)
        while True:
            if self.state != STATE_OPEN:
                self.check_open()
            mem = self.view.mem
            if self.ready and mem.t.used < self.room_bytes and self.wal.failure is None:
                writer = self.wal.active
                if writer.base == NULL:
                    batch = WriteBatch()
                    batch.add(kind, family, key, value)
                    self._append_unmapped(batch, True)
                    return self.after_log(sync)
                if writer.has_room(need):
                    break
            self._make_room(need)
        payload = writer.reserve()
        put_fixed64(payload, self.sequence + 1)
        put_fixed32(payload + 8, 1)
        end = write_record(payload + BATCH_HEADER_SIZE, kind, family, <const uint8_t*>PyBytes_AS_STRING(key), key_size,
                           value_data, value_size, &prefix)
        hash = hash_prefix(prefix, key_size + 1)
        prefetch_slot(&mem.t, hash)         # on its way while the record is checksummed
        writer.commit(RECORD_BATCH, <uint64_t>(end - payload))
        self.wal.appended += 1
        self.wal.appended_bytes += need
        if mem.add_hashed(self.sequence + 1, kind, prefix, key_size + 1, hash, value_data, value_size,
                          self.newest_snapshot) != CURSOR_OK:
            self._poison("out of memory after a record was logged")
            raise MemoryError()
        if kind_expires(kind):
            self.expiring = True
        self.sequence += 1
        self.written_bytes += key_size + value_size
        if kind == KIND_DELETE:
            self.deletes += 1
        else:
            self.puts += 1
        if writer.end > self.wal.soft_limit:
            self._prepare_segment()
        return self.after_log(sync)

    cdef int after_log(self, object sync) except -1:
        if not self.dirty:
            self.dirty = True
            self._became_dirty()
        if sync is None:
            if self.durability == DURABILITY_SYNC:
                self._sync_log()
        elif sync:
            self._sync_log()
        if gil_needed[0] > 0:
            gil_give_way()
        return 0

    cdef int write_payload(self, WriteBatch batch, bint log) except -1:
        """Log (unless `log` is false), insert, publish. The caller has made room; nothing in here lets another thread in, but
        for a log that is not mapped: then the caller holds the write lock."""
        cdef uint64_t first = self.sequence + 1
        cdef SegmentWriter writer
        put_fixed64(batch.data, first)
        put_fixed32(batch.data + 8, batch.count)
        if log:
            writer = self.wal.active
            if writer is None:
                raise Closed("the log is closed")
            writer.append_written(RECORD_BATCH, batch.data, batch.size)
            self.wal.appended += 1
            self.wal.appended_bytes += batch.size
        if _insert(self, self.view.mem, batch.data, batch.size, self.newest_snapshot) != 1:
            self._poison("out of memory after a record was logged")
            raise MemoryError()
        if self.view.mem.t.expiring:
            self.expiring = True
        self.sequence += batch.count
        self.batches += 1
        self.puts += batch.count - batch.deletes - batch.range_deletes
        self.deletes += batch.deletes
        self.range_deletes += batch.range_deletes
        self.written_bytes += batch.size
        return 0

    def _write_locked(self, WriteBatch batch not None, bint log):
        """For the subclass, which holds the write lock and has made room."""
        self.write_payload(batch, log)

    def _has_room(self, uint64_t size, bint log):
        cdef SegmentWriter writer = self.wal.active
        return self.view.mem.t.used < self.room_bytes and (not log or (writer is not None and writer.has_room(size)))

    def write(self, WriteBatch batch not None, *, sync=None, log=True):
        """Apply all operations of the batch, in order, atomically. `log=False`: no WAL record, durable only after a flush."""
        cdef SegmentWriter writer
        cdef bint logged = log
        if batch.count == 0:
            self.check_open()
            return
        if batch.family_max >= self.family_count:
            raise NotFound(f"family {batch.family_max} does not exist in this database")
        if batch.frozen:
            raise UsageError("the batch is being written")
        batch.frozen = True
        try:
            while True:
                if self.state != STATE_OPEN:
                    self.check_open()
                if self.ready and self.view.mem.t.used < self.room_bytes and self.wal.failure is None:
                    writer = self.wal.active
                    if writer.base == NULL:
                        self._append_unmapped(batch, logged)
                        break
                    if not logged:
                        self.write_payload(batch, False)
                        break
                    if writer.has_room(batch.size):
                        self.write_payload(batch, True)
                        break
                self._make_room(batch.size if logged else 0)
        finally:
            batch.frozen = False
        if logged:
            writer = self.wal.active
            if writer is not None and writer.end > self.wal.soft_limit:
                self._prepare_segment()
            self.after_log(sync)

    cdef int put_expiring(self, uint8_t family, object key, object value, object ttl, object sync) except -1:
        cdef uint64_t expiry = expiry_of(ttl, self._now_ms())
        return self.write_one(KIND_EXPIRING_PUT, family, key, with_expiry(expiry, as_bytes(value, "value")), sync)

    cdef int _delete_range(self, int family, start, end, sync) except -1:
        cdef WriteBatch batch = WriteBatch()
        self.check_open()
        batch.add_range(family, start, end)
        self.write(batch, sync=sync)
        return 0

    cdef int _put_many(self, int family, object pairs, object sync) except -1:
        cdef WriteBatch batch
        cdef SegmentWriter writer
        cdef uint64_t need
        self.check_open()
        while family < self.family_count:
            need = _plain_size(pairs)       # again after each wait: others may have changed the list meanwhile
            if need == 0:
                break
            if self.state != STATE_OPEN:
                self.check_open()
            if self.ready and self.view.mem.t.used < self.room_bytes and self.wal.failure is None:
                writer = self.wal.active
                if writer.base == NULL:
                    break
                if writer.has_room(need):
                    self.put_plain(family, pairs, need)
                    if writer.end > self.wal.soft_limit:
                        self._prepare_segment()
                    return self.after_log(sync)
            self._make_room(need)
        batch = WriteBatch()
        batch.put_many(pairs, family)
        self.write(batch, sync=sync)
        return 0

    cdef int put_plain(self, int family, object pairs, uint64_t size) except -1:
        """What `_plain_size` has just looked at, into the log where there is room for it, and from there into the memtable."""
        cdef uint8_t* payload = self.wal.active.reserve()
        cdef uint8_t* out = payload + BATCH_HEADER_SIZE
        cdef uint8_t* prefix = NULL
        cdef uint32_t count = <uint32_t>len(pairs)
        cdef bint is_list = type(pairs) is list
        cdef PyObject* pair
        cdef PyObject* key
        cdef PyObject* value
        cdef uint32_t i
        put_fixed64(payload, self.sequence + 1)
        put_fixed32(payload + 8, count)
        for i in range(count):
            pair = PyList_GET_ITEM(<PyObject*>pairs, i) if is_list else PyTuple_GET_ITEM(<PyObject*>pairs, i)
            key = PyTuple_GET_ITEM(pair, 0)
            value = PyTuple_GET_ITEM(pair, 1)
            out = write_record(out, KIND_PUT, <uint8_t>family, <const uint8_t*>PyBytes_AS_STRING(<object>key), Py_SIZE(key),
                               <const uint8_t*>PyBytes_AS_STRING(<object>value), Py_SIZE(value), &prefix)
        self.wal.active.commit(RECORD_BATCH, size)
        self.wal.appended += 1
        self.wal.appended_bytes += size
        if _insert(self, self.view.mem, payload, size, self.newest_snapshot) != 1:
            self._poison("out of memory after a record was logged")
            raise MemoryError()
        self.sequence += count
        self.batches += 1
        self.puts += count
        self.written_bytes += size
        return 0

    # -- replay -------------------------------------------------------------------------------------------------------
    def _replay_segment(self, SegmentReader segment not None, uint64_t end, uint64_t flushed, str path):
        """Recovery: insert the batches of one log segment, but those that are in tables already (sequence <= flushed). Stops at
        `end`, or before it at a record that does not check out: see `segment.offset`."""
        cdef MemTable mem = self.view.mem
        cdef const uint8_t* data = NULL
        cdef uint32_t size = 0
        cdef uint64_t offset, last
        cdef int record_type = 0, done
        while True:
            offset = segment.offset
            if not segment.next(end, &record_type, &data, &size):
                return
            if record_type != RECORD_BATCH:
                continue
            if size < BATCH_HEADER_SIZE:
                raise Corruption("write batch has no header", path=path, offset=offset)
            last = _last_sequence(data, path, offset)
            if last <= flushed:
                continue
            done = _insert(self, mem, data, size, 0)
            if mem.t.expiring:
                self.expiring = True
            if done == CURSOR_NO_MEMORY:
                raise MemoryError()
            if done != 1:
                raise Corruption("write batch is malformed", path=path, offset=offset)
            if last > self.sequence:
                self.sequence = last

    def _follow_segment(self, LiveSegmentReader segment not None, MemTable mem not None, uint64_t end, uint64_t flushed,
                        uint64_t last, uint64_t room, list held not None, str path):
        """A reader beside a writer: insert into `mem`, until it uses `room` bytes, what `segment` holds, but batches that are in
        tables (sequence <= flushed). Nothing is published, and nothing gives way that is visible now, or at one of the sequences
        `held`. `last`: the newest sequence in `mem`, or 0. Returns (first, last, gap): the sequences inserted, and whether some
        are missing between."""
        cdef Py_ssize_t holding = 0
        try:
            for sequence in held:
                self.hold(sequence)
                holding += 1
            return self.follow_segment(segment, mem, end, flushed, last, room, path)
        finally:
            for sequence in held[:holding]:
                self.let_go(sequence)

    cdef object follow_segment(self, LiveSegmentReader segment, MemTable mem, uint64_t end, uint64_t flushed, uint64_t last,
                               uint64_t room, str path):
        cdef const uint8_t* data = NULL
        cdef uint32_t size = 0
        cdef uint64_t offset, begin, stop, first = 0
        cdef int record_type = 0, done
        cdef bint gap = False
        while mem.t.used < room:
            offset = segment.offset
            if not segment.next(end, &record_type, &data, &size):
                if segment.no_memory:
                    raise MemoryError()
                break
            if record_type != RECORD_BATCH:
                continue
            if size < BATCH_HEADER_SIZE:
                raise Corruption("write batch has no header", path=path, offset=offset)
            begin = get_fixed64(data)
            stop = _last_sequence(data, path, offset)
            if stop <= flushed:
                continue
            done = _insert(self, mem, data, size, self.sequence)
            if mem.t.expiring:
                self.expiring = True
            if done == CURSOR_NO_MEMORY:
                raise MemoryError()
            if done != 1:
                raise Corruption("write batch is malformed", path=path, offset=offset)
            if last != 0 and begin != last + 1:
                gap = True
            if first == 0:
                first = begin
            last = stop
        return first, last, gap
