"""The compiled foreground: put, get, delete, write, get_many, put_many, scan are one call into this module each.

Owns: the order "log, insert, publish", what a read sees, the list of live snapshots. Does not own: when to flush, where files are,
what to do when a log is full: those are calls to the Python subclass (nokv/engine/db.py): `_make_room`, `_prepare_segment`,
`_became_dirty`, `_append_unmapped`, `_sync_log`, `_poison`.

Threads: any. A write keeps the GIL from its check for room to its publication and calls no Python code in between, so writes need
no lock of their own. Reads take one reference to the current View and work on it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.batch cimport (
    BATCH_HEADER_SIZE,
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    WriteBatch,
    as_bytes,
    check_sizes,
    expiry_of,
    record_is_known,
    record_size,
    with_expiry,
    write_record,
)
from nokv._ext.blockcache cimport CachedBlock, release_block
from nokv._ext.codec cimport Reader, get_fixed32, get_fixed64, left, put_fixed32, put_fixed64, read_byte, read_bytes, read_fixed32, read_fixed64, reader
from nokv._ext.cursor cimport (
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    EXPIRY_SIZE,
    KIND_DELETE,
    KIND_EXPIRING_PUT,
    KIND_PUT,
    KIND_RANGE_DELETE,
    TRAILER_SIZE,
    Cursor,
    Slice,
    compare_bytes,
    kind_expires,
    kind_is_reference,
    live_value,
    read_trailer,
)
from nokv._ext.memtable cimport MemTable, hash_prefix, prefetch_node, prefetch_slot
from nokv._ext.merge cimport OwnedCursor, merge_cursors
from nokv._ext.ranges cimport RangeList, RangeSource, hiding_cursor, ranges_written
from nokv._ext.pointindex cimport Hint, hint_block, hint_done, hint_entry, hint_place
from nokv._ext.valuefile cimport read_value
from nokv._ext.version cimport Version
from nokv._ext.wal cimport RECORD_BATCH, LiveSegmentReader, SegmentReader, SegmentWriter, WalCore

from nokv.errors import Closed, Corruption, NotFound, UsageError

cdef enum:
    STATE_OPEN = 0
    STATE_CLOSED = 1
    STATE_FORKED = 2
    DURABILITY_SYNC = 2
    KEY_ON_STACK = 264
    CHUNK_FIRST = 32
    CHUNK_MAX = 1024
    CHUNK_BYTES_MAX = 1 << 20       # of values: large ones come in chunks of few, or of one
    CURSORS_MAX = 4096
    AHEAD = 8                       # a power of two
    HINTED = 16                     # point reads whose cache misses overlap

SEQUENCE_MAX = (1 << 56) - 1


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class View:
    def __cinit__(self, MemTable mem not None, tuple immutables not None, Version version not None):
        for item in immutables:
            if not isinstance(item, MemTable):
                raise TypeError("immutables must be memtables")
        self.mem = mem
        self.immutables = immutables
        self.version = version


cdef inline int _search(View view, const uint8_t* prefix, size_t size, uint64_t sequence, Slice* value, int* kind,
                        CachedBlock** pin):
    """1 found (maybe a delete), 0 absent, < 0 a status of the view's Version."""
    cdef uint64_t hash = hash_prefix(prefix, size)
    cdef MemTable table
    if view.mem.get(prefix, size, hash, sequence, value, kind):
        return 1
    for item in view.immutables:
        table = <MemTable>item
        if table.get(prefix, size, hash, sequence, value, kind):
            return 1
    return view.version.get(prefix, size, sequence, value, kind, pin)


cdef void _ask_ahead(View view, uint8_t family, list items, Py_ssize_t first, int count, Hint* hints) noexcept:
    """Ask for the memory that reading these keys will look at: the cache misses of all of them overlap."""
    cdef uint8_t[KEY_ON_STACK] prefix
    cdef uint64_t[HINTED] hashes
    cdef size_t size
    cdef object key
    cdef int i
    cdef MemTable mem = view.mem
    cdef Version version = view.version
    for i in range(count):
        hints[i].position = 0
        hints[i].pin = NULL
        hints[i].table = NULL
        hashes[i] = 0
        key = items[first + i]
        if type(key) is not bytes or PyBytes_GET_SIZE(key) >= KEY_ON_STACK:
            continue
        size = <size_t>PyBytes_GET_SIZE(key) + 1
        prefix[0] = family
        memcpy(prefix + 1, PyBytes_AS_STRING(key), size - 1)
        if mem.t.nodes:
            hashes[i] = hash_prefix(prefix, size)
            prefetch_slot(&mem.t, hashes[i])
        if not version.hint(prefix, size, &hints[i]):
            hints[i].table = NULL
    for i in range(count):
        if mem.t.nodes:
            prefetch_node(&mem.t, hashes[i])
        if hints[i].table != NULL:
            hint_place(&hints[i])
    for i in range(count):
        if hints[i].position:
            hint_block(&hints[i])
    for i in range(count):
        if hints[i].position:
            hint_entry(&hints[i])


cdef inline object _result(Core core, View view, int found, int kind, Slice* value, CachedBlock* pin, object default,
                           uint64_t sequence, uint64_t now_ms):
    """`now_ms` 0: the clock is asked, if it matters."""
    cdef object result = default
    if found < 0:
        view.version.raise_status(found)
    try:
        if found and kind != KIND_PUT:
            if now_ms == 0 and kind_expires(kind):
                now_ms = core.now_ms_at(sequence)
            found = live_value(kind, value, now_ms)
            if found < 0:
                raise Corruption("a stored value is malformed", found=kind)
        if found:
            result = core.user_value(view, kind, value)
        return result
    finally:
        if pin != NULL:
            release_block(pin)


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Core:
    def __cinit__(self, *args, **kwargs):
        self.live = self.moments = NULL
        self.live_count = self.live_capacity = 0
        self.state = STATE_CLOSED
        self.ready = False
        self.family_count = 1

    def __dealloc__(self):
        free(self.live)
        free(self.moments)

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

    def _now_ms(self):
        raise NotImplementedError

    cdef uint64_t now_ms(self) except? 0:
        return self._now_ms()

    cdef uint64_t now_ms_at(self, uint64_t sequence) except? 0:
        """The clock may let writers run: what a reader at `sequence` has found in memory must not be overwritten meanwhile."""
        self.hold(sequence)
        try:
            return self.now_ms()
        finally:
            self.let_go(sequence)

    cdef uint64_t view_time(self) except? 0:
        """The moment at which a view of now judges expiry; 0 while nothing in here can expire, and nobody asks."""
        cdef uint64_t now_ms
        if not self.expiring:
            return 0
        self.hold_moment(0)             # a compaction that asks meanwhile drops nothing that may be alive for us
        try:
            now_ms = self._now_ms()
        finally:
            self.let_go_moment(0)
        return now_ms

    cdef int hold_moment(self, uint64_t now_ms) except -1:
        """What is alive at this moment stays until let_go_moment."""
        cdef uint64_t* fresh
        if self.moment_count == self.moment_capacity:
            fresh = <uint64_t*>realloc(self.moments, sizeof(uint64_t) * (self.moment_capacity * 2 + 8))
            if fresh == NULL:
                raise MemoryError()
            self.moments = fresh
            self.moment_capacity = self.moment_capacity * 2 + 8
        self.moments[self.moment_count] = now_ms
        self.moment_count += 1
        return 0

    cdef void let_go_moment(self, uint64_t now_ms) noexcept:
        cdef Py_ssize_t i
        for i in range(self.moment_count):
            if self.moments[i] == now_ms:
                self.moment_count -= 1
                self.moments[i] = self.moments[self.moment_count]
                return

    def _expired_ms(self):
        """What expired at this moment is absent for everybody, now and later. 0: nothing is."""
        cdef uint64_t horizon
        cdef Py_ssize_t i
        if not self.expiring:
            return 0
        horizon = self._now_ms()
        for i in range(self.moment_count):
            if self.moments[i] < horizon:
                horizon = self.moments[i]
        return horizon

    cdef inline object user_value(self, View view, int kind, const Slice* value):
        """The user's bytes of a value that `live_value` found alive."""
        if kind_is_reference(kind):
            return read_value(view.version.values, value)
        return PyBytes_FromStringAndSize(<const char*>value.data, <Py_ssize_t>value.size)

    cdef int check_open(self) except -1:
        if self.state == STATE_OPEN:
            return 0
        if self.state == STATE_FORKED:
            raise Closed("the process forked after this database was opened", hint="open it in one process only")
        raise Closed("the database is closed", hint="open it again with nokv.open")

    def _check_open(self):
        self.check_open()

    # -- reads --------------------------------------------------------------------------------------------------------
    cdef object read(self, uint8_t family, object key, uint64_t sequence, object default, uint64_t now_ms):
        return self.read_in(self.view, family, key, sequence, default, now_ms)

    cdef object read_in(self, View view, uint8_t family, object key, uint64_t sequence, object default, uint64_t now_ms):
        cdef uint8_t small[KEY_ON_STACK]
        cdef uint8_t* prefix = small
        cdef size_t size
        cdef Slice value
        cdef int kind = 0, found
        cdef CachedBlock* pin = NULL
        if self.state != STATE_OPEN:
            self.check_open()
        if type(key) is not bytes:
            key = as_bytes(key, "key")
        size = <size_t>PyBytes_GET_SIZE(key) + 1
        if size > KEY_ON_STACK:
            if size > KEY_BYTES_MAX + 1:
                return default                      # such a key cannot be stored
            prefix = <uint8_t*>malloc(size)
            if prefix == NULL:
                raise MemoryError()
        prefix[0] = family
        memcpy(prefix + 1, PyBytes_AS_STRING(key), size - 1)
        self.gets += 1
        try:
            found = _search(view, prefix, size, sequence, &value, &kind, &pin)
            return _result(self, view, found, kind, &value, pin, default, sequence, now_ms)
        finally:
            if prefix != small:
                free(prefix)

    cdef list read_many(self, uint8_t family, object keys, uint64_t sequence, uint64_t now_ms):
        cdef View view = self.view          # first: it belongs to `sequence`, and a reader's refresh may replace both
        cdef list items, results
        cdef Py_ssize_t count, i = 0
        cdef Hint[HINTED] hints
        cdef int hinted, j
        # making the keys, or reading a block, may let writers run: what we see must not be superseded in place
        self.hold(sequence)
        try:
            items = list(keys)              # a copy: whoever runs meanwhile may change the caller's list
            count = len(items)
            results = [None] * count
            while i < count:
                hinted = <int>min(HINTED, count - i)
                _ask_ahead(view, family, items, i, hinted, hints)
                try:
                    for j in range(hinted):
                        results[i + j] = self.read_in(view, family, items[i + j], sequence, None, now_ms)
                finally:
                    for j in range(hinted):
                        hint_done(&hints[j])
                i += hinted
        finally:
            self.let_go(sequence)
        return results

    def get(self, key, default=None):
        """The value under `key`, or `default`."""
        if type(key) is not bytes:
            key = as_bytes(key, "key")      # before the sequence: it may let a writer run
        return self.read(0, key, self.sequence, default, 0)

    def get_many(self, keys):
        """Values in the order of the keys, None where there is none; one consistent view, one C loop."""
        cdef uint64_t now_ms = self.view_time()     # before the sequence: it may let a writer run
        return self.read_many(0, keys, self.sequence, now_ms)

    def flushed_get(self, family, key):
        """What a crash would find: only what is in SSTs. None if absent."""
        cdef bytes prefix
        cdef Slice value
        cdef int kind = 0, found
        cdef CachedBlock* pin = NULL
        cdef View view
        cdef uint64_t now_ms
        self.check_open()
        prefix = bytes([self._family_number(family)]) + as_bytes(key, "key")
        now_ms = self.view_time()
        view = self.view
        found = view.version.get(prefix, len(prefix), <uint64_t>SEQUENCE_MAX, &value, &kind, &pin)
        return _result(self, view, found, kind, &value, pin, None, self.sequence, now_ms)

    def _family_number(self, family):
        if family is None:
            return 0
        if isinstance(family, int):
            if not 0 <= family < self.family_count:
                raise NotFound(f"family {family} does not exist")
            return family
        if isinstance(family, str):
            return self._family_id(family)
        return family.id

    # -- writes -------------------------------------------------------------------------------------------------------
    cdef int write_one(self, int kind, uint8_t family, object key, object value, object sync) except -1:
        cdef uint64_t need, key_size, value_size = 0
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
        writer.commit(RECORD_BATCH, <uint64_t>(end - payload))
        self.wal.appended += 1
        self.wal.appended_bytes += need
        if mem.add(self.sequence + 1, kind, prefix, key_size + 1, value_data, value_size, self.newest_snapshot) != CURSOR_OK:
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
        self.puts += batch.count
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

    def put(self, key, value, *, ttl=None, sync=None):
        """Store `value` under `key`. Survives the death of this process; with sync=True, power loss too. With `ttl` the key is
        absent from that many milliseconds on."""
        if ttl is not None:
            self.put_expiring(0, key, value, ttl, sync)
            return
        self.write_one(KIND_PUT, 0, key, value, sync)

    cdef int put_expiring(self, uint8_t family, object key, object value, object ttl, object sync) except -1:
        cdef uint64_t expiry = expiry_of(ttl, self._now_ms())
        return self.write_one(KIND_EXPIRING_PUT, family, key, with_expiry(expiry, as_bytes(value, "value")), sync)

    def delete(self, key, *, sync=None):
        """Forget `key`, which need not exist."""
        self.write_one(KIND_DELETE, 0, key, None, sync)

    def delete_range(self, start, end, *, sync=None):
        """Forget every key in start <= key < end (None: open). One record, however many keys there are."""
        self._delete_range(0, start, end, sync)

    cdef int _delete_range(self, int family, start, end, sync) except -1:
        cdef WriteBatch batch = WriteBatch()
        self.check_open()
        batch.add_range(family, start, end)
        self.write(batch, sync=sync)
        return 0

    def put_many(self, pairs, *, sync=None):
        """Store all (key, value) pairs atomically: one log record, one C loop. A dict does too."""
        self._put_many(0, pairs, sync)

    cdef int _put_many(self, int family, object pairs, object sync) except -1:
        cdef WriteBatch batch = WriteBatch()
        self.check_open()
        if isinstance(pairs, dict):
            pairs = pairs.items()
        batch.put_many(pairs, family)
        self.write(batch, sync=sync)
        return 0

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
            last = get_fixed64(data) + get_fixed32(data + 8) - 1
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
            stop = begin + get_fixed32(data + 8) - 1
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

    def _publish(self, View view not None, uint64_t sequence):
        """Both at once: no read sees one without the other."""
        cdef View old = self.view           # let go of at the end: that may run other threads
        self.sequence = sequence
        self.view = view

    def _stand_at(self, Core other not None):
        """See what `other` sees now, from here on."""
        self.view = other.view
        self.sequence = other.sequence
        self.family_count = other.family_count
        self.expiring = other.expiring
        self.state = other.state

    def _memtable_cursor(self, MemTable mem not None):
        """For the flush: every entry of a memtable that takes no more writes."""
        mem.settle()
        return OwnedCursor.make(mem.cursor(), mem)

    # -- snapshots ----------------------------------------------------------------------------------------------------
    # A C array and not a list: the collector empties the lists of a garbage cycle before its last members let go.
    cdef int hold(self, uint64_t sequence) except -1:
        """What a reader at `sequence` sees stays until let_go."""
        cdef Py_ssize_t i = self.live_count
        cdef uint64_t* fresh
        if i == self.live_capacity:
            fresh = <uint64_t*>realloc(self.live, sizeof(uint64_t) * (i * 2 + 8))
            if fresh == NULL:
                raise MemoryError()
            self.live = fresh
            self.live_capacity = i * 2 + 8
        while i > 0 and self.live[i - 1] > sequence:
            self.live[i] = self.live[i - 1]
            i -= 1
        self.live[i] = sequence
        self.live_count += 1
        self.newest_snapshot = self.live[self.live_count - 1]
        return 0

    cdef void let_go(self, uint64_t sequence) noexcept:
        cdef Py_ssize_t i = self.live_count - 1
        while i >= 0 and self.live[i] != sequence:
            i -= 1
        if i < 0:
            return
        self.live_count -= 1
        while i < self.live_count:
            self.live[i] = self.live[i + 1]
            i += 1
        self.newest_snapshot = self.live[self.live_count - 1] if self.live_count else 0

    def snapshot_sequences(self):
        """Sequences that live snapshots and scans read at, rising."""
        cdef Py_ssize_t i
        return [self.live[i] for i in range(self.live_count)]

    def snapshot(self):
        """A read view of this moment. Close it (or use `with`): it keeps superseded versions alive."""
        self.check_open()
        return Snapshot(self)

    # -- scans --------------------------------------------------------------------------------------------------------
    cdef Cursor* open_cursor(self, View view, uint64_t sequence) except NULL:
        """A cursor over the entries of a view, in which those are missing that a range delete hides from a reader at `sequence`."""
        cdef Cursor* inner = self.open_raw_cursor(view)
        cdef Cursor* hiding
        cdef RangeSource* sources
        cdef RangeList** lists
        cdef MemTable mem
        cdef int count = 0, n = 0, i
        cdef tuple memtables = (view.mem, *view.immutables)     # now: from the count on nobody else may run
        for item in memtables:
            count += (<MemTable>item).t.piece_count
        if count == 0 and view.version.range_source_count == 0:
            return inner
        sources = <RangeSource*>malloc((count + view.version.range_source_count) * sizeof(RangeSource))
        lists = <RangeList**>malloc((count + 1) * sizeof(RangeList*))
        hiding = NULL
        if sources != NULL and lists != NULL:
            for item in memtables:
                mem = <MemTable>item
                for i in range(mem.t.piece_count):
                    lists[n] = mem.t.pieces[i]
                    sources[n].lists = &lists[n]
                    sources[n].count = 1
                    n += 1
            for i in range(view.version.range_source_count):
                sources[n] = view.version.range_sources[i]
                n += 1
            hiding = hiding_cursor(inner, sources, n, sequence)
        free(sources)
        free(lists)
        if hiding == NULL:
            inner.ops.destroy(inner)
            raise MemoryError()
        return hiding

    cdef bint range_written(self, View view, Slice lower, const Slice* upper, uint64_t after) except *:
        """Did a range delete after the sequence `after` touch lower <= key < upper (NULL: open)?"""
        cdef MemTable mem
        cdef RangeSource* source
        cdef int i, j
        for item in (view.mem, *view.immutables):
            mem = <MemTable>item
            for i in range(mem.t.piece_count):
                if ranges_written(mem.t.pieces[i], lower, upper, after):
                    return True
        for i in range(view.version.range_source_count):
            source = &view.version.range_sources[i]
            for j in range(source.count):
                if ranges_written(source.lists[j], lower, upper, after):
                    return True
        return False

    cdef Cursor* open_raw_cursor(self, View view) except NULL:
        cdef Cursor** parts
        cdef Cursor* merged
        cdef int count = 0, tables, most, i
        cdef bint ok = True
        view.mem.settle()
        for item in view.immutables:
            (<MemTable>item).settle()
        tables = view.version.cursor_count()
        most = 1 + <int>len(view.immutables) + tables
        parts = <Cursor**>malloc(sizeof(Cursor*) * most)
        if parts == NULL:
            raise MemoryError()
        parts[0] = view.mem.cursor()
        ok = parts[0] != NULL
        count = 1 if ok else 0
        for item in view.immutables:
            if ok:
                parts[count] = (<MemTable>item).cursor()
                ok = parts[count] != NULL
                count += 1 if ok else 0
        if ok and tables:
            i = view.version.add_cursors(parts + count, tables)
            ok = i >= 0
            count += i if ok else 0
        merged = NULL
        if ok:
            merged = parts[0] if count == 1 else merge_cursors(parts, count)
        if merged == NULL:
            for i in range(count):
                parts[i].ops.destroy(parts[i])
        free(parts)
        if merged == NULL:
            raise MemoryError()
        return merged

    cdef object new_scan(self, uint8_t family, uint64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                         limit, bint keys, bint values):
        cdef View view = self.view          # first: it belongs to `sequence`
        self.hold(sequence)                 # looking at the bounds may let writers run
        try:
            return self.scan_of(view, family, sequence, now_ms, start, end, prefix, reverse, limit, keys, values)
        finally:
            self.let_go(sequence)

    cdef object scan_of(self, View view, uint8_t family, uint64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                        limit, bint keys, bint values):
        cdef bytes lower, upper
        self.check_open()
        if not keys and not values:
            raise UsageError("a scan of neither keys nor values", hint="leave one of keys=, values= true")
        if limit is not None and limit < 0:
            raise UsageError(f"limit {limit} is negative")
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
        return Scan(self, view, head + lower, upper, sequence, now_ms, reverse, -1 if limit is None else limit, keys, values)

    def scan(self, start=None, end=None, *, prefix=None, reverse=False, limit=None, keys=True, values=True):
        """Iterate start <= key < end in key order (backwards with reverse=True), over the view of this moment."""
        cdef uint64_t now_ms = self.view_time()
        return self.new_scan(0, self.sequence, now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        """A position to move by hand, within start <= key < end, over the view of this moment."""
        from nokv._ext.iterator import Iterator         # it walks this module's views

        return Iterator(self, 0, None, self.view_time(), start, end, prefix)

    def _scan_all(self, View view not None):
        """For tests and checks: every visible or invisible entry as (prefix, sequence, kind, value)."""
        cdef Cursor* c = self.open_raw_cursor(view)
        cdef uint64_t packed
        cdef list found = []
        try:
            c.ops.seek_first(c)
            while c.valid:
                packed = read_trailer(c.key.data + c.key.size - TRAILER_SIZE)
                found.append((c.key.data[:c.key.size - TRAILER_SIZE], packed >> 8, <int>(packed & 255), c.value.data[:c.value.size]))
                c.ops.next(c)
            if c.status < 0:
                view.version.raise_status(c.status)
        finally:
            c.ops.destroy(c)
        return found


cdef bytes _successor(bytes prefix):
    """The smallest key that is greater than every key with this prefix; None if there is none."""
    cdef Py_ssize_t n = len(prefix)
    while n > 0 and prefix[n - 1] == 255:
        n -= 1
    if n == 0:
        return None
    return prefix[:n - 1] + bytes((prefix[n - 1] + 1,))


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


cdef int _insert_range(Core core, MemTable mem, uint64_t sequence, const Record* record, uint64_t newest_snapshot) noexcept:
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


cdef int _insert(Core core, MemTable mem, const uint8_t* data, size_t size, uint64_t newest_snapshot) noexcept:
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
        record = &ahead[i & (AHEAD - 1)]
        if record.kind == KIND_RANGE_DELETE:
            done = _insert_range(core, mem, sequence + i, record, newest_snapshot)
            if done != 1:
                return done
        elif mem.add_hashed(sequence + i, record.kind, record.prefix, record.prefix_size, record.hash, record.value,
                          record.value_size, newest_snapshot) != CURSOR_OK:
            return CURSOR_NO_MEMORY
    return 1 if left(&r) == 0 else 0


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Scan:
    """Iterator of a scan: C loops fill a list, `next` takes from it. Holds everything it walks; one thread at a time."""

    cdef Core core
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

    def __cinit__(self, Core core not None, View view not None, bytes lower not None, bytes upper, uint64_t sequence,
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


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Snapshot:
    """A consistent read view; `with` closes it. Reads of a closed one raise Closed."""

    cdef Core core
    cdef readonly uint64_t sequence
    cdef uint64_t now_ms            # what expires later is there for this view, however long it is kept
    cdef bint open
    cdef object __weakref__

    def __cinit__(self, Core core not None):
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
        return self.core.new_scan(0, self.sequence, self.now_ms, start, end, prefix, reverse, limit, keys, values)

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
        return s.core.new_scan(<uint8_t>self.id, s.sequence, s.now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        from nokv._ext.iterator import Iterator

        cdef Snapshot s = self.snapshot
        s.check()
        return Iterator(s.core, self.id, s.sequence, s.now_ms, start, end, prefix, s)


cdef class Family:
    """One keyspace of a database: the same verbs as the database itself, which is family 0."""

    cdef Core core
    cdef readonly str name
    cdef readonly int id

    def __cinit__(self, Core core not None, str name not None, int number):
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
        return self.core.new_scan(<uint8_t>self.id, self.core.sequence, now_ms, start, end, prefix, reverse, limit, keys, values)

    def iterator(self, start=None, end=None, *, prefix=None):
        from nokv._ext.iterator import Iterator

        return Iterator(self.core, self.id, None, self.core.view_time(), start, end, prefix)

    def __repr__(self):
        return f"<Family {self.name!r} id={self.id}>"
