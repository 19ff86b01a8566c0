"""Cursors put together: a k-way merge, and a Python handle that owns a cursor."""

from nokv._ext.cursor cimport Cursor

# Takes over `children` (also destroys them) and returns one cursor over all of them, in key order; equal keys come in the order
# of the children. NULL if there is no memory: then the children still belong to the caller. n == 0 gives an empty cursor.
cdef Cursor* merge_cursors(Cursor** children, int n) noexcept nogil

cdef class OwnedCursor:
    """A Cursor together with the object that keeps alive what it walks. One thread at a time."""
    cdef Cursor* c
    cdef object owner

    @staticmethod
    cdef OwnedCursor make(Cursor* c, object owner)          # MemoryError if c is NULL
    cdef int check(self) except -1                          # raises what the cursor's status says (owner.raise_status)
