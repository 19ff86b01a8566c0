/* How many background steps need the GIL just now. One copy of this state: gilturn.pyx; others come through its functions. */
#ifndef NOKV_GILTURN_H
#define NOKV_GILTURN_H
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "clock.h"

typedef struct nokv_turns {
    int needed;                         /* steps that need the GIL, whether or not they have it */
    int64_t rest_until;                 /* nobody came, or he stays long: until then no writer gives way */
    int giving_way;                     /* a writer does: among several, CPython may give the GIL to another one instead */
    int processor;                      /* that the busiest writer was seen on */
} nokv_turns;

static __thread int nokv_in_step;
static __thread int nokv_is_helper;         /* a thread of ours that never takes the GIL */

/* Some system calls keep the processor for milliseconds: the kernel clears a huge page, or frees a file's pages, without a break, and
   whoever wakes up there waits. For as long as they take the calling thread stays off the writer's processor, if it may run elsewhere.
   By number, as the C library declares them for _GNU_SOURCE only. */
#if defined(__linux__) && defined(SYS_getcpu) && defined(SYS_sched_setaffinity)
enum { NOKV_MASK_WORDS = 16 };          /* 1,024 processors; more than that: nothing is done */
static __thread unsigned long nokv_mask[NOKV_MASK_WORDS];
static __thread long nokv_mask_bytes;

static inline int nokv_processor(void) {
    unsigned cpu = 0;
    return syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 ? (int)cpu : -1;
}

static inline void nokv_leave_processor(int processor) {
    unsigned long rest[NOKV_MASK_WORDS], any = 0;
    const int bits = 8 * (int)sizeof(unsigned long);
    long i;
    nokv_mask_bytes = 0;
    if (processor < 0 || processor >= bits * NOKV_MASK_WORDS) return;
    const long size = syscall(SYS_sched_getaffinity, 0, sizeof nokv_mask, nokv_mask);
    if (size <= 0) return;
    for (i = 0; i < size / (long)sizeof(unsigned long); i++) {
        rest[i] = nokv_mask[i];
        if (i == processor / bits) rest[i] &= ~(1ul << (processor % bits));
        any |= rest[i];
    }
    if (any && syscall(SYS_sched_setaffinity, 0, size, rest) == 0) nokv_mask_bytes = size;
}

static inline void nokv_return_to_processor(void) {
    if (nokv_mask_bytes) (void)syscall(SYS_sched_setaffinity, 0, nokv_mask_bytes, nokv_mask);
    nokv_mask_bytes = 0;
}
#else
static inline int nokv_processor(void) { return -1; }
static inline void nokv_leave_processor(int processor) { (void)processor; }
static inline void nokv_return_to_processor(void) {}
#endif

static inline int nokv_turns_load(const nokv_turns* t) { return __atomic_load_n(&t->needed, __ATOMIC_RELAXED); }
static inline void nokv_turns_here(nokv_turns* t) { __atomic_store_n(&t->processor, nokv_processor(), __ATOMIC_RELAXED); }
static inline void nokv_turns_leave(const nokv_turns* t) { nokv_leave_processor(__atomic_load_n(&t->processor, __ATOMIC_RELAXED)); }
static inline void nokv_turns_add(nokv_turns* t, int n) { (void)__atomic_add_fetch(&t->needed, n, __ATOMIC_ACQ_REL); }

/* Never shorter than before. Only who has the GIL, or gives way, calls it: what gets lost between the two is one rest. */
static inline void nokv_turns_rest_until(nokv_turns* t, int64_t when) {
    if (when > __atomic_load_n(&t->rest_until, __ATOMIC_RELAXED)) __atomic_store_n(&t->rest_until, when, __ATOMIC_RELAXED);
}

/* Without the GIL: until no step needs it, for `limit` ns at most. */
static inline void nokv_turns_wait(nokv_turns* t, int64_t now, int64_t limit, int64_t rest) {
    const int64_t until = now + limit;
    while (nokv_turns_load(t) > 0) {
        sched_yield();                  /* sleeping, and being woken up, would take longer than most turns */
        now = nokv_monotonic_ns();
        if (now >= until) {
            nokv_turns_rest_until(t, now + rest);
            return;
        }
    }
}
/* Whether to wait: then nokv_turns_end follows. */
static inline int nokv_turns_begin(nokv_turns* t, int64_t now) {
    return now >= __atomic_load_n(&t->rest_until, __ATOMIC_RELAXED) && !__atomic_exchange_n(&t->giving_way, 1, __ATOMIC_ACQUIRE);
}
static inline void nokv_turns_end(nokv_turns* t) { __atomic_store_n(&t->giving_way, 0, __ATOMIC_RELEASE); }
#endif
