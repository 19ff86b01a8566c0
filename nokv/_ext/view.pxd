from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.cursor cimport Cursor, Slice
from nokv._ext.memtable cimport MemTable
from nokv._ext.version cimport Version

cdef enum:
    STATE_OPEN = 0
    STATE_CLOSED = 1
    STATE_FORKED = 2

cdef struct Walker:                     # what a scan walks with; it points into its view
    Cursor* c
    bint kept                           # it may rest in the view and serve the next scan
    uint8_t* key                        # for the scan's own use
    size_t key_room

cdef class View:
    """What a read looks at: newest first. Immutable; replaced as a whole."""
    cdef readonly MemTable mem
    cdef readonly tuple immutables      # of MemTable, newest first
    cdef readonly Version version
    cdef Walker* idle                   # made for a scan that has ended, or NULL: most scans make no cursors
    cdef void give_back(self, Walker* walker) noexcept

cdef class Store:
    """A database as readers see it."""
    cdef public View view
    cdef public uint64_t sequence       # of the newest visible entry
    cdef public int state               # STATE_OPEN, ...
    cdef public bint expiring           # a value that expires was ever written or found here
    cdef public int family_count        # ids 0 .. family_count - 1 exist
    cdef readonly uint64_t newest_snapshot
    cdef uint64_t* live                 # sequences that are held, rising, one item per holder
    cdef Py_ssize_t live_count, live_capacity
    cdef uint64_t* moments              # at which held views judge expiry, in no order
    cdef Py_ssize_t moment_count, moment_capacity
    cdef readonly uint64_t gets, hits, scans
    cdef object __weakref__
    cdef int check_open(self) except -1
    # `now_ms`: the moment of the view (0 for a single read: the clock is asked if it matters)
    cdef object read(self, uint8_t family, object key, uint64_t sequence, object default, uint64_t now_ms)
    cdef object read_in(self, View view, uint8_t family, object key, uint64_t sequence, object default, uint64_t now_ms)
    cdef list read_many(self, uint8_t family, object keys, uint64_t sequence, uint64_t now_ms)
    cdef uint64_t now_ms(self) except? 0
    cdef uint64_t now_ms_at(self, uint64_t sequence) except? 0
    cdef uint64_t view_time(self) except? 0
    cdef object user_value(self, View view, int kind, const Slice* value)
    cdef int hold(self, uint64_t sequence) except -1
    cdef void let_go(self, uint64_t sequence) noexcept
    cdef int hold_moment(self, uint64_t now_ms) except -1
    cdef void let_go_moment(self, uint64_t now_ms) noexcept
    # For a reader at `sequence`; to be given back to the view.
    cdef Walker* take_walker(self, View view, uint64_t sequence) except NULL
    cdef Cursor* open_cursor(self, View view, uint64_t sequence) except NULL
    cdef Cursor* hide(self, View view, Cursor* inner, uint64_t sequence) except NULL
    cdef Cursor* open_raw_cursor(self, View view) except NULL
    cdef bint range_written(self, View view, Slice lower, const Slice* upper, uint64_t after) except *
