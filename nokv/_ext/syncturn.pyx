"""Who syncs the log, and who waits for it: group commit.

Owns: the turn to sync and the wait for another's, both without the GIL. Does not own: the sync itself, what it covers, what its
failure means (nokv/engine/wal/log.py).

    enter   what I appended is covered            -> done
            nobody syncs                          -> the turn is mine: sync, then leave
            somebody does                         -> wait for him, then look again
    leave   what my sync covered is on disk; all who waited go on at once

Threads that commit in a loop come back soon after the sync that released them, but not all at once: whoever is first would sync
alone while the others append, and only every other sync would serve all. So the one whose turn it is waits until as many as last
time have come, for a part of what a sync takes. Where that is in vain it is tried ever more rarely.

Threads: any. The mutex is held for an instant, and never while somebody waits for the GIL.
"""

from libc.stdint cimport int64_t

from nokv._ext.block cimport pthread_mutex_t

from nokv.errors import UsageError

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>

    static long long nokv_now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
    }

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
        when -= nokv_now_ns();
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
    long long nokv_now_ns() noexcept nogil
    int nokv_cond_new(pthread_cond_t* condition) noexcept nogil
    void nokv_cond_wait_until(pthread_cond_t* condition, pthread_mutex_t* mutex, long long when) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_signal(pthread_cond_t* condition)
    int pthread_cond_broadcast(pthread_cond_t* condition)

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef enum:
    GATHER_PART = 2                     # of a sync's time that the others are waited for
    GATHER_NS_MAX = 1_000_000
    VAIN_MAX = 6                        # 2 to the power of this: so many turns at most until it is tried again


cdef class SyncTurn:
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t ended           # a sync has
    cdef pthread_cond_t gathered        # as many wait as last time
    cdef readonly int64_t covered       # by the syncs that have ended
    cdef bint more                      # there is something to sync whatever is covered
    cdef bint syncing
    cdef unsigned long owner            # whose turn it is, while `syncing`
    cdef int64_t round                  # how many syncs have ended
    cdef readonly int64_t waiting       # for this one to end
    cdef int64_t expected               # to be in the next group
    cdef bint gathering
    cdef int vain                       # how often it was, since it last was not
    cdef int64_t pass_by                # so many turns until it is tried again
    cdef long long began_ns
    cdef long long took_ns              # the last sync

    # Neither is destroyed: they own nothing, and in the child of a fork somebody may seem to wait for one, for ever.
    def __cinit__(self, int64_t covered):
        self.covered = covered
        self.expected = 1
        if pthread_mutex_init(&self.mutex, NULL) or nokv_cond_new(&self.ended) or nokv_cond_new(&self.gathered):
            raise MemoryError()

    def enter(self, int64_t target, bint gather=True):
        """False: a sync has ended that covers `target`, and nothing is `unfinished`. True: it is this thread's turn, and all others
        wait until it leaves. `gather`: first wait for others, if some are expected; what they have appended is to be covered too."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef int64_t seen
        cdef int outcome = -1
        with nogil:
            pthread_mutex_lock(&self.mutex)
            while True:
                if self.covered >= target and not self.more:
                    outcome = 0
                    break
                if not self.syncing:
                    self.syncing = True
                    self.owner = me
                    if gather:
                        self.gather()
                    self.began_ns = nokv_now_ns()
                    outcome = 1
                    break
                if self.owner == me:
                    break
                self.waiting += 1
                if self.gathering and self.waiting + 1 >= self.expected:
                    pthread_cond_signal(&self.gathered)
                seen = self.round
                while self.round == seen:
                    pthread_cond_wait(&self.ended, &self.mutex)
            pthread_mutex_unlock(&self.mutex)
        if outcome < 0:
            raise UsageError("a sync inside a sync of the same log", hint="do not write in a signal handler or finalizer")
        return outcome == 1

    cdef void gather(self) noexcept nogil:
        cdef long long until
        if self.waiting + 1 >= self.expected:
            return
        if self.pass_by:
            self.pass_by -= 1
            return
        until = nokv_now_ns() + min(self.took_ns // GATHER_PART, <long long>GATHER_NS_MAX)
        self.gathering = True
        while self.waiting + 1 < self.expected and nokv_now_ns() < until:
            nokv_cond_wait_until(&self.gathered, &self.mutex, until)
        self.gathering = False
        if self.waiting + 1 >= self.expected:
            self.vain = 0
        else:
            self.vain = min(self.vain + 1, <int>VAIN_MAX)
            self.pass_by = <int64_t>1 << self.vain

    def leave(self, int64_t covered):
        """The turn is over. `covered`: what is on disk now; below zero: the sync failed. Nothing happens if it was not our turn."""
        cdef unsigned long me = PyThread_get_thread_ident()
        with nogil:
            pthread_mutex_lock(&self.mutex)
            if self.syncing and self.owner == me:
                self.expected = 1
                if covered >= 0:
                    self.covered = covered
                    self.took_ns = nokv_now_ns() - self.began_ns
                    self.expected = self.waiting + 1
                self.waiting = 0
                self.round += 1
                self.syncing = False
                pthread_cond_broadcast(&self.ended)
            pthread_mutex_unlock(&self.mutex)

    def settle(self):
        """Wait until nobody syncs."""
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
