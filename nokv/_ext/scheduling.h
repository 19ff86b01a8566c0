/* What a thread says to the scheduler. */
#ifndef NOKV_SCHEDULING_H
#define NOKV_SCHEDULING_H
#if defined(__linux__)
#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <sched.h>
#include <stdint.h>
#include "clock.h"

/* Its share of the processor stays what it is, but a thread that wakes up where it runs goes first, and it does not do so to others:
   SCHED_BATCH, and a long slice, which Linux 6.12 and later weigh against the waker's (kernel documentation, sched-eevdf). Whatever the
   system refuses is left as it is. Only for a thread with the default policy: real-time threads know what they do. */
static inline int nokv_step_aside(void) {
#if defined(__linux__) && defined(SYS_sched_setattr) && defined(SCHED_BATCH)
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attributes = {sizeof attributes, SCHED_BATCH, 0, 0, 0, 20 * 1000 * 1000, 0, 0};
    if (sched_getscheduler(0) != SCHED_OTHER) return 0;
    attributes.nice = getpriority(PRIO_PROCESS, 0);
    return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
#else
    return 0;
#endif
}

/* Background work without the GIL calls this every 0.1 ms or so: whoever waits for this processor goes first. Without it a writer that
   wakes up here, or a thread that was given the GIL, waits for the scheduler's next tick, up to 4 ms. A yield may cost a turn, and where
   the machine is busy with others these turns add up: but for some credit no more time is given away than was worked. */
enum { NOKV_PASS_CREDIT_NS = 20 * 1000 * 1000 };

static inline void nokv_pass(void) {
    static __thread int64_t credit = NOKV_PASS_CREDIT_NS, last;
    int64_t now = nokv_monotonic_ns();
    if (last) credit += now - last;
    if (credit > NOKV_PASS_CREDIT_NS) credit = NOKV_PASS_CREDIT_NS;
    last = now;
    if (credit <= 0) return;
    sched_yield();
    last = nokv_monotonic_ns();
    credit -= last - now;
}
#endif
