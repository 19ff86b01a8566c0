"""An immutable set of tables. Point reads probe filters first; range reads use one cursor per level-0 table and one per level below.

Sequences of level-0 tables do not overlap (a flush covers a span of its own, an ingested group has one sequence to itself), so
the first hit from newest to oldest is the newest version. Below level 0 a deeper level never holds anything newer.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from nokv._ext.block cimport TableData
from nokv._ext.blockcache cimport CachedBlock
from nokv._ext.cursor cimport (
    CURSOR_CORRUPT,
    CURSOR_NO_MEMORY,
    CURSOR_OK,
    Cursor,
    CursorOps,
    Slice,
    TRAILER_SIZE,
    compare_bytes,
)
from nokv._ext.filter cimport filter_ask_for, filter_hash, filter_may_hold
from nokv._ext.merge cimport OwnedCursor, merge_cursors
from nokv._ext.pointindex cimport Hint, hint_start, table_get
from nokv._ext.ranges cimport RangeList, RangeSource, Ranges, ranges_retain
from nokv._ext.table cimport Table
from nokv._ext.tablecursor cimport table_cursor, table_cursor_reset
from nokv._ext.tableparts cimport PART_FILTER, nokv_parts

from nokv.errors import Corruption, InvariantError


# -- a level below 0 as one cursor ------------------------------------------------------------------------------------
cdef struct LevelCursor:
    Cursor base
    TableData** tables
    int count
    int at
    bint asked
    Cursor* inner


cdef inline int find_table(TableData** tables, int count, const uint8_t* prefix, size_t size) noexcept nogil:
    """The first table whose largest key is >= prefix, or `count`."""
    cdef int low = 0
    cdef int high = count
    cdef int middle
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(tables[middle].largest.data, tables[middle].largest.size, prefix, size) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline void open_at(LevelCursor* lc, int at) noexcept nogil:
    lc.at = at
    table_cursor_reset(lc.inner, lc.tables[at])


cdef void settle(LevelCursor* lc, int direction) noexcept nogil:
    """Show where `inner` stands; where it has run out, go on in the neighbour."""
    while not lc.inner.valid and lc.inner.status == CURSOR_OK:
        if direction > 0 and lc.at + 1 < lc.count:
            open_at(lc, lc.at + 1)
            lc.inner.ops.seek_first(lc.inner)
        elif direction < 0 and lc.at > 0:
            open_at(lc, lc.at - 1)
            lc.inner.ops.seek_last(lc.inner)
        else:
            break
    lc.base.valid = lc.inner.valid
    lc.base.status = lc.inner.status
    lc.base.key = lc.inner.key
    lc.base.value = lc.inner.value


cdef void level_seek_first(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    open_at(lc, 0)
    lc.inner.ops.seek_first(lc.inner)
    settle(lc, 1)


cdef void level_seek_last(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    open_at(lc, lc.count - 1)
    lc.inner.ops.seek_last(lc.inner)
    settle(lc, -1)


cdef void level_seek(Cursor* self, Slice internal_key) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    cdef int at
    if lc.asked:                        # it is open
        lc.asked = False
    else:
        at = find_table(lc.tables, lc.count, internal_key.data, internal_key.size - TRAILER_SIZE)
        if at == lc.count:
            self.valid = False
            return
        open_at(lc, at)
    lc.inner.ops.seek(lc.inner, internal_key)
    settle(lc, 1)


cdef void level_ask(Cursor* self, Slice internal_key, int step) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    cdef int at
    if step == 0:
        at = find_table(lc.tables, lc.count, internal_key.data, internal_key.size - TRAILER_SIZE)
        if at < lc.count:
            open_at(lc, at)
        lc.asked = at < lc.count
    if lc.asked:
        lc.inner.ops.ask(lc.inner, internal_key, step)


cdef void level_next(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    lc.inner.ops.next(lc.inner)
    settle(lc, 1)


cdef void level_prev(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    lc.inner.ops.prev(lc.inner)
    settle(lc, -1)


cdef void level_rest(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    self.valid = False
    lc.inner.ops.rest(lc.inner)


cdef void level_destroy(Cursor* self) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    lc.inner.ops.destroy(lc.inner)
    free(lc)


cdef uint64_t level_newest(Cursor* self, Slice low, Slice high) noexcept nogil:
    cdef LevelCursor* lc = <LevelCursor*>self.impl
    cdef uint64_t newest = 0
    cdef int i = find_table(lc.tables, lc.count, low.data, low.size)
    while i < lc.count and compare_bytes(lc.tables[i].smallest.data, lc.tables[i].smallest.size, high.data, high.size) < 0:
        if lc.tables[i].newest_sequence > newest:
            newest = lc.tables[i].newest_sequence
        i += 1
    return newest


cdef CursorOps LEVEL_OPS
LEVEL_OPS.newest = level_newest
LEVEL_OPS.ask = level_ask
LEVEL_OPS.seek_first = level_seek_first
LEVEL_OPS.seek_last = level_seek_last
LEVEL_OPS.seek = level_seek
LEVEL_OPS.next = level_next
LEVEL_OPS.prev = level_prev
LEVEL_OPS.rest = level_rest
LEVEL_OPS.destroy = level_destroy


cdef Cursor* level_cursor(TableData** tables, int count, bint cached) noexcept nogil:
    if count == 1:
        return table_cursor(tables[0], cached)
    cdef LevelCursor* lc = <LevelCursor*>calloc(1, sizeof(LevelCursor))
    if lc == NULL:
        return NULL
    lc.inner = table_cursor(tables[0], cached)
    if lc.inner == NULL:
        free(lc)
        return NULL
    lc.base.impl = lc
    lc.base.ops = &LEVEL_OPS
    lc.tables = tables
    lc.count = count
    return &lc.base


cdef inline bint surely_absent(const TableData* t, uint64_t hash) noexcept nogil:
    """False: ask the table."""
    return t.ranges == NULL and nokv_parts(&t.parts) & PART_FILTER and not filter_may_hold(t.filter, t.filter_lines, hash)


# -- version ----------------------------------------------------------------------------------------------------------
# the collector must not take away what __dealloc__ still needs
@cython.no_gc_clear
cdef class Version:
    """`levels[0]` newest first, `levels[1:]` in key order and disjoint; each a tuple of Table."""

    def __init__(self, levels, dict values=None):
        cdef Table table
        cdef int i, j
        self.levels = tuple(tuple(level) for level in levels)
        self.values = {} if values is None else values
        self.data = <Level*>calloc(len(self.levels) + 1, sizeof(Level))
        if self.data == NULL:
            raise MemoryError
        self.level_count = <int>len(self.levels)
        for i in range(self.level_count):
            tables = self.levels[i]
            self.data[i].tables = <TableData**>calloc(len(tables) + 1, sizeof(TableData*))
            if self.data[i].tables == NULL:
                raise MemoryError
            self.data[i].count = <int>len(tables)
            for j in range(self.data[i].count):
                table = tables[j]
                self.data[i].tables[j] = &table.t
                if i and j and compare_bytes(self.data[i].tables[j - 1].largest.data, self.data[i].tables[j - 1].largest.size,
                                             table.t.smallest.data, table.t.smallest.size) >= 0:
                    raise InvariantError(f"level {i}: {tables[j - 1].path} and {table.path} overlap")
        self._gather_ranges()

    cdef int _gather_ranges(self) except -1:
        cdef int i, j, lists = 0
        cdef bint alone
        cdef RangeSource* source = NULL
        for i in range(self.level_count):
            for j in range(self.data[i].count):
                lists += self.data[i].tables[j].ranges != NULL
        if lists == 0:
            return 0
        self.range_lists = <RangeList**>malloc(lists * sizeof(RangeList*))
        self.range_sources = <RangeSource*>malloc(lists * sizeof(RangeSource))
        if self.range_lists == NULL or self.range_sources == NULL:
            raise MemoryError
        lists = 0
        for i in range(self.level_count):
            alone = True
            for j in range(self.data[i].count):
                if self.data[i].tables[j].ranges == NULL:
                    continue
                if alone:
                    source = &self.range_sources[self.range_source_count]
                    source.lists = self.range_lists + lists
                    source.count = 0
                    self.range_source_count += 1
                self.range_lists[lists] = self.data[i].tables[j].ranges
                source.count += 1
                lists += 1
                alone = i == 0              # tables of level 0 overlap
        return 0

    def __dealloc__(self):
        cdef int i
        if self.data != NULL:
            for i in range(self.level_count):
                free(self.data[i].tables)
            free(self.data)
        free(self.range_lists)
        free(self.range_sources)

    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value, int* kind,
                 CachedBlock** pin) noexcept nogil:
        cdef int i, found
        cdef Level* level
        pin[0] = NULL
        if self.level_count == 0:
            return 0
        level = &self.data[0]
        for i in range(level.count):        # one cache miss each, all at once
            filter_ask_for(level.tables[i].filter, level.tables[i].filter_lines, hash)
        for i in range(level.count):
            if surely_absent(level.tables[i], hash):
                continue
            found = table_get(level.tables[i], prefix, prefix_size, hash, sequence, value, kind, pin)
            if found != 0:
                return found
        for i in range(1, self.level_count):
            level = &self.data[i]
            if level.count == 0:
                continue
            found = find_table(level.tables, level.count, prefix, prefix_size)
            if found == level.count:
                continue
            found = table_get(level.tables[found], prefix, prefix_size, hash, sequence, value, kind, pin)
            if found != 0:
                return found
        return 0

    cdef bint hint(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, Hint* hint) noexcept nogil:
        """The filters of all tables that will be asked are on their way; the hint goes on with the deepest of them."""
        cdef int i, at
        cdef bint found = False
        for i in range(self.level_count):
            if i == 0:
                for at in range(self.data[0].count):
                    hint_start(hint, self.data[0].tables[at], hash)
                    found = True
            elif self.data[i].count:
                at = find_table(self.data[i].tables, self.data[i].count, prefix, prefix_size)
                if at < self.data[i].count:
                    hint_start(hint, self.data[i].tables[at], hash)
                    found = True
        return found

    cdef int cursor_count(self) noexcept nogil:
        cdef int i
        cdef int n = 0
        if self.level_count:
            n = self.data[0].count
        for i in range(1, self.level_count):
            n += self.data[i].count > 0
        return n

    cdef int add_cursors(self, Cursor** out, int max, bint cached) noexcept nogil:
        cdef int i
        cdef int n = 0
        if self.cursor_count() > max:
            return CURSOR_NO_MEMORY
        if self.level_count:
            for i in range(self.data[0].count):
                out[n] = table_cursor(self.data[0].tables[i], cached)
                n += 1
                if out[n - 1] == NULL:
                    return self._undo(out, n - 1)
        for i in range(1, self.level_count):
            if self.data[i].count == 0:
                continue
            out[n] = level_cursor(self.data[i].tables, self.data[i].count, cached)
            n += 1
            if out[n - 1] == NULL:
                return self._undo(out, n - 1)
        return n

    cdef int _undo(self, Cursor** out, int n) noexcept nogil:
        cdef int i
        for i in range(n):
            out[i].ops.destroy(out[i])
        return CURSOR_NO_MEMORY

    cpdef raise_status(self, int status):
        """Raise what a failed read of this version stands for. CURSOR_OK: nothing."""
        if status == CURSOR_OK:
            return
        if status == CURSOR_NO_MEMORY:
            raise MemoryError
        for tables in self.levels:
            for table in tables:
                if status == CURSOR_CORRUPT:
                    (<Table>table).raise_status(status)
        if status == CURSOR_CORRUPT:
            raise Corruption("damaged data under a cursor")
        raise OSError(5, "a block could not be decoded")

    # -- for Python: the engine's steps, offline tools, tests -----------------------------------------------------------
    def lookup(self, bytes prefix not None, uint64_t sequence=(1 << 56) - 1):
        """(kind, value) of the newest entry of `prefix` (family || user key) with a sequence <= `sequence`, or None."""
        cdef Slice value
        cdef int kind = 0
        cdef CachedBlock* pin = NULL
        cdef const uint8_t* p = <const uint8_t*><const char*>prefix
        cdef int found = self.get(p, len(prefix), filter_hash(p, len(prefix)), sequence, &value, &kind, &pin)
        if found < 0:
            self.raise_status(found)
        if found != 1:
            return None
        return kind, PyBytes_FromStringAndSize(<const char*>value.data, <Py_ssize_t>value.size)

    def cursor(self):
        """All entries of all tables, every version of every key. For what reads them once: the block cache is left alone."""
        cdef int room = self.cursor_count()
        cdef Cursor** children = <Cursor**>calloc(room + 1, sizeof(Cursor*))
        cdef Cursor* merged
        cdef int n
        cdef int i
        if children == NULL:
            raise MemoryError
        n = self.add_cursors(children, room, False)
        if n < 0:
            free(children)
            raise MemoryError
        merged = merge_cursors(children, n)
        if merged == NULL:
            for i in range(n):
                children[i].ops.destroy(children[i])
        free(children)
        return OwnedCursor.make(merged, self)

    def ranges(self):
        """The range deletes, as a list of Ranges."""
        cdef list found = []
        cdef int i, j
        for i in range(self.range_source_count):
            for j in range(self.range_sources[i].count):
                found.append(Ranges.make(ranges_retain(self.range_sources[i].lists[j])))
        return found

    def files(self):
        """The FileMeta of every table, by level."""
        return [[table.meta for table in tables] for tables in self.levels]
