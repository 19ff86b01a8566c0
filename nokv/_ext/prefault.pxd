from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.arena cimport ArenaPool

cdef extern from "ahead.h":
    ctypedef struct AheadMap "nokv_ahead_map":
        uint8_t* base
        uint64_t capacity, ready
        const uint64_t* end
        uint64_t* due
    ctypedef struct Ahead "nokv_ahead":
        AheadMap map
        uint64_t left_behind
        int pid, stop
        uint64_t syncs
        void* pool
    void ahead_wake "nokv_ahead_wake"(Ahead* a) noexcept nogil

cdef class Prefaulter:
    cdef Ahead* a
    # Under the GIL. `end` and `due` stay where they are until detach; past `due` the writer calls ahead_wake.
    cdef Ahead* attach(self, uint8_t* base, uint64_t capacity, uint64_t ready, const uint64_t* end, uint64_t* due) noexcept

cdef void ahead_detach(Ahead* a, uint8_t* base) noexcept nogil
