"""Whose turn it is to have the GIL: a busy writer's, or that of a step of the engine's own threads.

CPython takes the GIL from a thread that does not let go of it after sys.getswitchinterval(), 5 ms. A flush, or the making of a log
segment, needs it a dozen times for 0.1 ms each: it would wait longer than it works, the memory that it is to free comes late, and
writers have to pause. Therefore steps say when they need the GIL, and a writer that sees this between two writes lets them go first.

Owns: how many steps need the GIL. A step needs it from `begin` to `end`, also while it makes a short system call, but not between
`gil_away` and `gil_back`: long work without the GIL. In other threads both do nothing. Does not own: the steps, nor the GIL: who gets
it is up to CPython, and a writer that waits in vain (the step waits for a lock, say) goes on, and gives no way for a while.

In the child of a fork no step runs.
"""

from nokv._ext.clock cimport nokv_monotonic_ns
from nokv._ext.scheduling cimport nokv_pass

cdef extern from "gilturn.h":
    ctypedef struct nokv_turns:
        int needed
        int giving_way
        int processor
    int nokv_in_step
    int nokv_is_helper
    int nokv_turns_load(const nokv_turns* t) noexcept nogil
    void nokv_turns_add(nokv_turns* t, int n) noexcept nogil
    void nokv_turns_wait(nokv_turns* t, long long now, long long limit, long long rest) noexcept nogil
    void nokv_turns_rest_until(nokv_turns* t, long long when) noexcept nogil
    void nokv_turns_here(nokv_turns* t) noexcept nogil
    void nokv_turns_leave(const nokv_turns* t) noexcept nogil
    void nokv_return_to_processor() noexcept nogil
    bint nokv_turns_begin(nokv_turns* t, long long now) noexcept nogil
    void nokv_turns_end(nokv_turns* t) noexcept nogil
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil) nogil

cdef enum:
    GIVE_NS = 200_000               # as long as a turn may take
    REST_NS = 5_000_000             # CPython's own interval
    BUSY_NS = 50_000

cdef nokv_turns turns
turns.processor = -1
gil_needed = &turns.needed


cdef void _in_child() noexcept nogil:
    global nokv_in_step
    turns.needed = 0
    turns.giving_way = 0
    nokv_in_step = 0


pthread_atfork(NULL, NULL, _in_child)


cdef void gil_away() noexcept nogil:
    if nokv_in_step:
        nokv_turns_add(&turns, -1)
        nokv_pass()                 # the writer that gave way may have to run here


cdef void gil_back() noexcept nogil:
    if nokv_in_step:
        nokv_turns_add(&turns, 1)


cdef void gil_give_way() noexcept:
    cdef long long now
    if nokv_in_step:
        return
    now = nokv_monotonic_ns()
    if not nokv_turns_begin(&turns, now):
        return
    with nogil:
        writer_is_here()
        nokv_turns_wait(&turns, now, GIVE_NS, REST_NS)
        nokv_turns_end(&turns)


cdef void writer_is_here() noexcept nogil:
    nokv_turns_here(&turns)


cdef void thread_is_helper() noexcept nogil:
    global nokv_is_helper
    nokv_is_helper = 1


cdef void leave_writer() noexcept nogil:
    if nokv_in_step or nokv_is_helper:
        nokv_turns_leave(&turns)


cdef void return_to_writer() noexcept nogil:
    nokv_return_to_processor()


def expect():
    """A step is about to begin on a thread that wakes up: it needs the GIL already."""
    nokv_turns_add(&turns, 1)


def begin(bint expected=False):
    """This thread's step begins. `expected`: `expect` has been called for it."""
    global nokv_in_step
    nokv_in_step = 1
    if not expected:
        nokv_turns_add(&turns, 1)


def end():
    """This thread's step has ended."""
    global nokv_in_step
    if nokv_in_step:
        nokv_in_step = 0
        nokv_turns_add(&turns, -1)


def hold_on():
    """Who calls this has kept its caller waiting already: for an instant no writer gives way."""
    nokv_turns_rest_until(&turns, nokv_monotonic_ns() + BUSY_NS)


def needed():
    """How many steps need the GIL now."""
    return nokv_turns_load(&turns)
