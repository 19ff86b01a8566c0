"""What reads stand on: the current view, the sequences and moments that readers hold, point reads, cursors over a view.

Owns: what a read sees, the list of live snapshots. Does not own: what writes (apply.pyx), what scans (scan.pyx), the time: that is
a call to the Python subclass (nokv/engine/db.py): `_now_ms`.

Threads: any. Reads take one reference to the current View and work on it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from nokv._ext.batch cimport KEY_BYTES_MAX, as_bytes
from nokv._ext.blockcache cimport CachedBlock, hold_block, release_block
from nokv._ext.cursor cimport (
    CURSOR_OK,
    KIND_PUT,
    TRAILER_SIZE,
    Cursor,
    Slice,
    kind_expires,
    kind_is_reference,
    live_value,
    read_trailer,
)
from nokv._ext.filter cimport filter_hash
from nokv._ext.memtable cimport MemTable, hash_prefix, prefetch_node, prefetch_slot
from nokv._ext.merge cimport OwnedCursor, merge_cursors
from nokv._ext.ranges cimport RangeList, RangeSource, hiding_cursor, ranges_written
from nokv._ext.pointindex cimport Hint, hint_entry
from nokv._ext.valuefile cimport read_value
from nokv._ext.version cimport Version

from nokv.errors import Closed, Corruption, NotFound

cdef enum:
    KEY_ON_STACK = 264
    KEY_KEPT_MAX = 4096
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

    def __dealloc__(self):
        if self.idle != NULL:
            free_walker(self.idle)

    cdef void give_back(self, Walker* walker) noexcept:
        """The GIL is what guards `idle`."""
        if self.idle != NULL or not walker.kept or walker.c.status != CURSOR_OK or walker.key_room > KEY_KEPT_MAX:
            free_walker(walker)
            return
        walker.c.ops.rest(walker.c)
        self.idle = walker


cdef void free_walker(Walker* walker) noexcept:
    walker.c.ops.destroy(walker.c)
    free(walker.key)
    free(walker)


cdef inline int settle_all(View view) except -1:
    view.mem.settle()
    for item in view.immutables:
        (<MemTable>item).settle()
    return 0


cdef int range_pieces(MemTable mem, RangeSource* sources, RangeList** lists, int n) noexcept:
    cdef int i
    for i in range(mem.t.piece_count):
        lists[n] = mem.t.pieces[i]
        sources[n].lists = &lists[n]
        sources[n].count = 1
        n += 1
    return n


cdef inline bint hides(View view) noexcept:
    """Is there a range delete in this view?"""
    if view.mem.t.piece_count or view.version.range_source_count:
        return True
    for item in view.immutables:
        if (<MemTable>item).t.piece_count:
            return True
    return False


cdef inline bint _search_memory(View view, const uint8_t* prefix, size_t size, uint64_t hash, uint64_t sequence, Slice* value,
                                int* kind):
    """Found (maybe a delete)? `hash`: hash_prefix."""
    cdef MemTable table
    if view.mem.get(prefix, size, hash, sequence, value, kind):
        return True
    for item in view.immutables:
        table = <MemTable>item
        if table.get(prefix, size, hash, sequence, value, kind):
            return True
    return False


cdef struct Ask:                    # one of several point reads that are made together
    size_t size                     # of its prefix; 0: this one is read by itself
    uint64_t memory_hash
    uint64_t hash
    Hint hint
    uint8_t[KEY_ON_STACK] prefix


cdef void _ask_ahead(View view, uint8_t family, list items, Py_ssize_t first, int count, Ask* asks) noexcept:
    """Ask for the memory that reading these keys will look at: the cache misses of all of them overlap."""
    cdef Ask* ask
    cdef object key
    cdef int i
    cdef MemTable mem = view.mem
    cdef Version version = view.version
    for i in range(count):
        ask = &asks[i]
        ask.size = 0
        key = items[first + i]
        if type(key) is not bytes or PyBytes_GET_SIZE(key) >= KEY_ON_STACK:
            continue
        ask.size = <size_t>PyBytes_GET_SIZE(key) + 1
        ask.prefix[0] = family
        memcpy(ask.prefix + 1, PyBytes_AS_STRING(key), ask.size - 1)
        ask.memory_hash = hash_prefix(ask.prefix, ask.size)
        ask.hash = filter_hash(ask.prefix, ask.size)
        if mem.t.nodes:
            prefetch_slot(&mem.t, ask.memory_hash)
        if not version.hint(ask.prefix, ask.size, ask.hash, &ask.hint):
            ask.hint.table = NULL
    for i in range(count):
        ask = &asks[i]
        if ask.size:
            if mem.t.nodes:
                prefetch_node(&mem.t, ask.memory_hash)
            if ask.hint.table != NULL:
                hint_entry(&ask.hint)


cdef inline object _result(Store core, View view, int found, int kind, Slice* value, CachedBlock* pin, object default,
                           uint64_t sequence, uint64_t now_ms):
    """`now_ms` 0: the clock is asked, if it matters."""
    if found == 1 and kind == KIND_PUT:
        return PyBytes_FromStringAndSize(<const char*>value.data, <Py_ssize_t>value.size)
    if found == 0:
        return default
    if found < 0:
        view.version.raise_status(found)
    hold_block(pin)                         # what follows may let others run
    try:
        if now_ms == 0 and kind_expires(kind):
            now_ms = core.now_ms_at(sequence)
        found = live_value(kind, value, now_ms)
        if found < 0:
            raise Corruption("a stored value is malformed", found=kind)
        return core.user_value(view, kind, value) if found else default
    finally:
        release_block(pin)


@cython.no_gc_clear          # what a cursor points into must outlive it, also when a cycle is collected
cdef class Store:
    def __cinit__(self, *args, **kwargs):
        self.live = self.moments = NULL
        self.live_count = self.live_capacity = 0
        self.state = STATE_CLOSED
        self.family_count = 1

    def __dealloc__(self):
        free(self.live)
        free(self.moments)

    # -- what the Python subclass does --------------------------------------------------------------------------------
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
            found = _search_memory(view, prefix, size, hash_prefix(prefix, size), sequence, &value, &kind)
            if not found:
                found = view.version.get(prefix, size, filter_hash(prefix, size), sequence, &value, &kind, &pin)
            return _result(self, view, found, kind, &value, pin, default, sequence, now_ms)
        finally:
            if prefix != small:
                free(prefix)

    cdef list read_many(self, uint8_t family, object keys, uint64_t sequence, uint64_t now_ms):
        cdef View view = self.view          # first: it belongs to `sequence`, and a reader's refresh may replace both
        cdef list items, results
        cdef Py_ssize_t count, i = 0
        cdef Ask[HINTED] asks
        cdef Slice value
        cdef int hinted, j, kind = 0, found
        cdef CachedBlock* pin
        # making the keys, or reading a block, may let writers run: what we see must not be superseded in place
        self.hold(sequence)
        try:
            items = list(keys)              # a copy: whoever runs meanwhile may change the caller's list
            count = len(items)
            results = [None] * count
            while i < count:
                hinted = <int>min(HINTED, count - i)
                _ask_ahead(view, family, items, i, hinted, asks)
                for j in range(hinted):
                    if asks[j].size == 0:
                        results[i + j] = self.read_in(view, family, items[i + j], sequence, None, now_ms)
                        continue
                    if self.state != STATE_OPEN:
                        self.check_open()
                    self.gets += 1
                    pin = NULL
                    found = _search_memory(view, asks[j].prefix, asks[j].size, asks[j].memory_hash, sequence, &value, &kind)
                    if not found:
                        found = view.version.get(asks[j].prefix, asks[j].size, asks[j].hash, sequence, &value, &kind, &pin)
                    results[i + j] = _result(self, view, found, kind, &value, pin, None, sequence, now_ms)
                i += hinted
        finally:
            self.let_go(sequence)
        return results

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
        found = view.version.get(prefix, len(prefix), filter_hash(prefix, len(prefix)), <uint64_t>SEQUENCE_MAX, &value, &kind, &pin)
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

    def _publish(self, View view not None, uint64_t sequence):
        """Both at once: no read sees one without the other."""
        cdef View old = self.view           # let go of at the end: that may run other threads
        self.sequence = sequence
        self.view = view

    def _stand_at(self, Store other not None):
        """See what `other` sees now, from here on."""
        self.view = other.view
        self.sequence = other.sequence
        self.family_count = other.family_count
        self.expiring = other.expiring
        self.state = other.state

    def _memtable_cursor(self, MemTable mem not None):
        """For the flush: every entry of a memtable that takes no more writes."""
        return OwnedCursor.make(mem.flush_cursor(), mem)

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

    # -- cursors ------------------------------------------------------------------------------------------------------
    cdef Walker* take_walker(self, View view, uint64_t sequence) except NULL:
        cdef Walker* walker
        settle_all(view)
        if view.idle != NULL and not hides(view):       # from here on nobody else may run
            walker = view.idle
            view.idle = NULL
            return walker
        walker = <Walker*>calloc(1, sizeof(Walker))
        if walker == NULL:
            raise MemoryError()
        try:
            walker.c = self.open_raw_cursor(view)
            walker.kept = not hides(view)
            if not walker.kept:
                walker.c = self.hide(view, walker.c, sequence)
        except BaseException:
            free(walker)
            raise
        return walker

    cdef Cursor* open_cursor(self, View view, uint64_t sequence) except NULL:
        """A cursor over the entries of a view, in which those are missing that a range delete hides from a reader at `sequence`."""
        cdef Cursor* inner = self.open_raw_cursor(view)
        return self.hide(view, inner, sequence) if hides(view) else inner

    cdef Cursor* hide(self, View view, Cursor* inner, uint64_t sequence) except NULL:
        """Over `inner`, which it takes over, also if it fails."""
        cdef Cursor* hiding
        cdef RangeSource* sources
        cdef RangeList** lists
        cdef MemTable mem
        cdef int count = view.mem.t.piece_count, n = 0, i
        for item in view.immutables:                    # no Python object is made: nobody else may run and add one
            count += (<MemTable>item).t.piece_count
        sources = <RangeSource*>malloc((count + view.version.range_source_count + 1) * sizeof(RangeSource))
        lists = <RangeList**>malloc((count + 1) * sizeof(RangeList*))
        hiding = NULL
        if sources != NULL and lists != NULL:
            n = range_pieces(view.mem, sources, lists, 0)
            for item in view.immutables:
                n = range_pieces(<MemTable>item, sources, lists, n)
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
        settle_all(view)
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
            i = view.version.add_cursors(parts + count, tables, True)
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
