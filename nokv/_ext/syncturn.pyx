"""Who syncs the log, and who waits for it: group commit.

Owns: the turn to sync and the wait for another's, both without the GIL. Does not own: the sync itself, what it covers, what its
failure means (nokv/engine/wal/log.py).

    enter   what I appended is covered            -> done
            nobody syncs                          -> the turn is mine: sync, then leave
            somebody does                         -> wait for him, then look again
    leave   what my sync covered is on disk; all who waited go on at once

Threads that commit in a loop come back soon after the sync that released them, but not all at once: whoever is first would sync
alone while the others append, and only every other sync would serve all. So the first waits until as many as last time have come,
for as long as a sync takes at most; the last to come syncs, for he is awake. Where that is in vain it is tried ever more rarely.

Threads: any. The mutex is held for an instant, and never while somebody waits for the GIL; so it may be taken with the GIL held.
"""

from libc.stdint cimport int64_t

from nokv._ext.block cimport pthread_mutex_t
from nokv._ext.clock cimport nokv_monotonic_ns
from nokv._ext.gilturn cimport gil_away, gil_back

from nokv.errors import UsageError

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>
    #include "clock.h"

    static int nokv_cond_new(pthread_cond_t* condition) {
    #if defined(__APPLE__)
        return pthread_cond_init(condition, NULL);
    #else
        pthread_condattr_t kind;
        int failed = pthread_condattr_init(&kind);
        if (failed) return failed;
        failed = pthread_condattr_setclock(&kind, CLOCK_MONOTONIC);
        if (!failed) failed = pthread_cond_init(condition, &kind);
        pthread_condattr_destroy(&kind);
        return failed;
    #endif
    }

    /* Until `when` at most; it may return early. */
    static void nokv_cond_wait_until(pthread_cond_t* condition, pthread_mutex_t* mutex, long long when) {
        struct timespec t;
    #if defined(__APPLE__)
        when -= nokv_monotonic_ns();
        if (when <= 0) return;
    #endif
        t.tv_sec = (time_t)(when / 1000000000);
        t.tv_nsec = (long)(when % 1000000000);
    #if defined(__APPLE__)
        pthread_cond_timedwait_relative_np(condition, mutex, &t);
    #else
        pthread_cond_timedwait(condition, mutex, &t);
    #endif
    }
    """
    ctypedef struct pthread_cond_t:
        pass
    int nokv_cond_new(pthread_cond_t* condition) noexcept nogil
    void nokv_cond_wait_until(pthread_cond_t* condition, pthread_mutex_t* mutex, long long when) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_broadcast(pthread_cond_t* condition)

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef enum:
    GATHER_NS_MAX = 1_000_000
    VAIN_MAX = 6                        # 2 to the power of this: so many turns at most until it is tried again


cdef object _inside():
    return UsageError(
        "a sync, or a close, inside a sync of the same log",
        hint="in a signal handler or finalizer neither write nor close: leave that to whoever it interrupts",
    )


cdef class SyncTurn:
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t ended           # a sync has
    cdef readonly int64_t covered       # by the syncs that have ended
    cdef bint more                      # there is something to sync whatever is covered
    cdef bint syncing
    cdef unsigned long owner            # whose turn it is, while `syncing`
    cdef int64_t round                  # how many syncs have ended
    cdef readonly int64_t waiting       # for this one to end, beside the owner
    cdef int64_t expected               # to be in the next group
    cdef bint gathering                 # the owner waits for them
    cdef int vain                       # how often it was, since it last was not
    cdef int64_t pass_by                # so many turns until it is tried again
    cdef readonly int64_t gathers       # how often an owner has waited for them
    cdef long long began_ns
    cdef long long took_ns              # the last sync
    cdef long long gather_ns            # how long to wait for them; below zero: as long as the last sync took, if that is not too long

    # Neither is destroyed: they own nothing, and in the child of a fork somebody may seem to wait for one, for ever.
    def __cinit__(self, int64_t covered, gather_ns=None):
        """`gather_ns`: how long the first waits for others, if not for as long as a sync takes, a millisecond at most."""
        self.covered = covered
        self.gather_ns = -1 if gather_ns is None else gather_ns
        self.expected = 1
        if pthread_mutex_init(&self.mutex, NULL) or nokv_cond_new(&self.ended):
            raise MemoryError()

    def enter(self, int64_t target, bint gather=True):
        """False: a sync has ended that covers `target`, and nothing is `unfinished`. True: it is this thread's turn, and all others
        wait until it leaves. `gather`: first wait for others, if some are expected; what they have appended is to be covered too."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef int outcome
        with nogil:
            gil_away()
            pthread_mutex_lock(&self.mutex)
            outcome = self.take(me, target, gather)
            pthread_mutex_unlock(&self.mutex)
            gil_back()
        if outcome < 0:
            raise _inside()
        return outcome == 1

    def check(self):
        """UsageError if it is this thread's turn: then whoever asks runs in the middle of its sync, and must neither enter nor leave."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint mine
        pthread_mutex_lock(&self.mutex)     # nobody who holds it waits for the GIL
        mine = self.syncing and self.owner == me
        pthread_mutex_unlock(&self.mutex)
        if mine:
            raise _inside()

    cdef int take(self, unsigned long me, int64_t target, bint gather) noexcept nogil:
        """1: my turn; 0: covered; -1: it is mine already."""
        cdef int64_t seen
        while self.covered < target or self.more:
            seen = self.round
            if not self.syncing:
                self.syncing = True
                self.owner = me
                if not gather or self.waiting + 1 >= self.expected or self.gathered(me):
                    self.began_ns = nokv_monotonic_ns()
                    return 1
            elif self.owner == me:
                return -1
            elif self.gathering and gather and self.waiting + 2 >= self.expected:
                self.gathering = False
                self.vain = 0
                self.owner = me                 # who was the owner waits now, and wakes when it is done
                self.waiting += 1
                self.began_ns = nokv_monotonic_ns()
                return 1
            else:
                self.waiting += 1
            while self.round == seen:
                pthread_cond_wait(&self.ended, &self.mutex)
        return 0

    cdef bint gathered(self, unsigned long me) noexcept nogil:
        """Wait for those who are expected. False: the last of them has taken over."""
        cdef int64_t seen = self.round
        cdef long long until
        if self.pass_by:
            self.pass_by -= 1
            return True
        until = nokv_monotonic_ns() + (min(self.took_ns, <long long>GATHER_NS_MAX) if self.gather_ns < 0 else self.gather_ns)
        self.gathering = True
        self.gathers += 1
        while self.round == seen and self.owner == me and nokv_monotonic_ns() < until:
            nokv_cond_wait_until(&self.ended, &self.mutex, until)
        if self.round != seen or self.owner != me:
            return False
        self.gathering = False
        self.vain = min(self.vain + 1, <int>VAIN_MAX)
        self.pass_by = <int64_t>1 << self.vain
        return True

    def leave(self, int64_t covered):
        """The turn is over. `covered`: what is on disk now; below zero: the sync failed. Nothing happens if it was not our turn."""
        cdef unsigned long me = PyThread_get_thread_ident()
        pthread_mutex_lock(&self.mutex)         # with the GIL: those who wake would get it, and we would queue up behind them
        if self.syncing and self.owner == me:
            self.expected = 1
            if covered >= 0:
                self.covered = covered
                self.took_ns = nokv_monotonic_ns() - self.began_ns
                self.expected = self.waiting + 1
            self.waiting = 0
            self.round += 1
            self.syncing = False
            pthread_cond_broadcast(&self.ended)
        pthread_mutex_unlock(&self.mutex)

    def settle(self):
        """Wait until nobody syncs. Never inside a sync."""
        self.check()
        with nogil:
            pthread_mutex_lock(&self.mutex)
            while self.syncing:
                pthread_cond_wait(&self.ended, &self.mutex)
            pthread_mutex_unlock(&self.mutex)

    @property
    def unfinished(self):
        """There is something to sync whatever is covered."""
        return self.more

    @unfinished.setter
    def unfinished(self, bint value):
        pthread_mutex_lock(&self.mutex)     # nobody who holds it waits for the GIL
        self.more = value
        pthread_mutex_unlock(&self.mutex)
