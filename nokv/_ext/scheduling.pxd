"""What a thread says to the scheduler (scheduling.h)."""

cdef extern from "scheduling.h":
    int nokv_step_aside() noexcept nogil
    void nokv_pass() noexcept nogil
