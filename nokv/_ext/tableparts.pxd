"""The filter and the index of an open table: checked when they are first needed.

Any thread, with the GIL or without: what is waited for meanwhile never needs the GIL.
"""

from nokv._ext.block cimport TableData
from nokv._ext.cursor cimport CURSOR_OK

cdef enum:
    PART_FILTER = 1
    PART_INDEX = 2

cdef extern from *:
    """static inline int nokv_parts(const int* parts) { return __atomic_load_n(parts, __ATOMIC_ACQUIRE); }"""
    int nokv_parts(const int* parts) noexcept nogil

cdef int check_part(TableData* t, int part) noexcept nogil

# CURSOR_OK, CURSOR_CORRUPT (noted in `t`) or CURSOR_NO_MEMORY. Then, and only then, what the part holds may be looked at.
cdef inline int need(TableData* t, int part) noexcept nogil:
    return CURSOR_OK if nokv_parts(&t.parts) & part else check_part(t, part)

cdef void parts_init(TableData* t) noexcept nogil       # once, before any other thread sees the table
cdef void parts_free(TableData* t) noexcept nogil
