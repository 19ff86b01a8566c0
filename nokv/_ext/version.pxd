"""An immutable set of tables by level: level 0 newest first (ranges overlap), the others sorted and disjoint."""

from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.block cimport TableData
from nokv._ext.blockcache cimport CachedBlock
from nokv._ext.cursor cimport Cursor, Slice
from nokv._ext.pointindex cimport Hint
from nokv._ext.ranges cimport RangeList, RangeSource

cdef struct Level:
    TableData** tables
    int count

cdef class Version:
    cdef readonly tuple levels          # of tuples of Table
    cdef readonly dict values           # number -> ValueFile that the tables refer to
    cdef Level* data
    cdef int level_count
    cdef RangeSource* range_sources     # the range deletes: a source for each table of level 0 and each level below
    cdef int range_source_count
    cdef RangeList** range_lists

    # Newest entry of `prefix` (family || user key), whose filter_hash is `hash`, with a sequence <= `sequence`: 1 found (look at
    # *kind: it may be a delete), 0 absent, < 0 a CursorStatus: then call raise_status(it). `value` lies in *pin, which is borrowed
    # (see pointindex.pxd).
    cdef int get(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, uint64_t sequence, Slice* value, int* kind,
                 CachedBlock** pin) noexcept nogil
    # One of several point reads to come (see Hint in pointindex.pxd). False: there is no table to ask.
    cdef bint hint(self, const uint8_t* prefix, size_t prefix_size, uint64_t hash, Hint* hint) noexcept nogil
    cdef int cursor_count(self) noexcept nogil                          # how many cursors add_cursors makes
    # How many, or < 0 a CursorStatus (none made then). `cached`: see tablecursor.pxd.
    cdef int add_cursors(self, Cursor** out, int max, bint cached) noexcept nogil
    cdef int _undo(self, Cursor** out, int n) noexcept nogil
    cdef int _gather_ranges(self) except -1
    cpdef raise_status(self, int status)                                # Corruption with file and offset, MemoryError, ...
