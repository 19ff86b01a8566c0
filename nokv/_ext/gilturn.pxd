cdef int* gil_needed                        # above zero: a background step needs the GIL

cdef void gil_away() noexcept nogil         # what comes next takes long and does without the GIL
cdef void gil_back() noexcept nogil         # it is over; before the GIL is taken again
cdef void gil_give_way() noexcept           # with the GIL, where other threads may run

cdef void writer_is_here() noexcept nogil   # now and then: on this processor
cdef void thread_is_helper() noexcept nogil # this one, which never takes the GIL
cdef void leave_writer() noexcept nogil     # for a system call that keeps the processor for long; not nested. For steps and helpers only
cdef void return_to_writer() noexcept nogil
