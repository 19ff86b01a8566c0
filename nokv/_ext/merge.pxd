"""Cursors put together: a k-way merge, and a Python handle that owns a cursor."""

from libc.stdint cimport uint64_t

from nokv._ext.cursor cimport Cursor, Slice

# Takes over `children` (also destroys them) and returns one cursor over all of them, in key order; equal keys come in the order
# of the children. NULL if there is no memory: then the children still belong to the caller. n == 0 gives an empty cursor.
cdef Cursor* merge_cursors(Cursor** children, int n) noexcept nogil

# For who goes on in the direction of the last move, and no other: `c`, or the only part of it that has entries left.
cdef Cursor* merge_alone(Cursor* c) noexcept nogil

# Moves each part of a cursor (merged or not) that has nothing newer than `below` between low and high out of there, in the
# direction in which it is being walked; `target` is the internal key low or high with a trailer of zeros. For what walks over entries
# that it does not want.
cdef void cursor_skip(Cursor* c, Slice low, Slice high, Slice target, uint64_t below, bint backward) noexcept nogil

cdef class OwnedCursor:
    """A Cursor together with the object that keeps alive what it walks. One thread at a time."""
    cdef Cursor* c
    cdef object owner

    @staticmethod
    cdef OwnedCursor make(Cursor* c, object owner)          # MemoryError if c is NULL
    cdef int check(self) except -1                          # raises what the cursor's status says (owner.raise_status)
