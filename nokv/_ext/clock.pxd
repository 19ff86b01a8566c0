"""The monotonic clock, without Python."""

from libc.stdint cimport int64_t

cdef extern from "clock.h":
    int64_t nokv_monotonic_ns() noexcept nogil
