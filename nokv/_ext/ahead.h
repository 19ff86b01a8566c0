/* The thread of prefault.pyx and what it shares with the writer. No function here takes the GIL. */
#ifndef NOKV_AHEAD_H
#define NOKV_AHEAD_H
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <unistd.h>

typedef struct nokv_ahead_map {
    unsigned char* base;                /* NULL: none */
    uint64_t capacity, ready;
    const uint64_t* end;                /* the writer stores it, the thread loads it */
    uint64_t* due;                      /* both store it */
} nokv_ahead_map;

typedef struct nokv_ahead {
    pthread_mutex_t lock;               /* held for a piece of work on: */
    nokv_ahead_map map;
    uint64_t left_behind;

    pthread_mutex_t post;               /* held for an instant, after `lock` if both are; of `next`, `posted`, `before`, `map.base`: */
    nokv_ahead_map next;                /* the writer must not wait until a piece is done: it leaves the next mapping here */
    int posted;
    uint64_t before;                    /* bytes of the mappings before this one */

    pthread_t thread;
    sem_t wakes;
    pid_t pid;                          /* 0: no thread. Nor is there one in the child of a fork */
    int stop, entering;                 /* entering: so many wait for the lock */
    uint64_t syncs;
    void* pool;
} nokv_ahead;

#define nokv_get(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define nokv_set(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define nokv_add(place, value) ((void)__atomic_add_fetch(place, value, __ATOMIC_ACQ_REL))

static inline int nokv_ahead_lives(const nokv_ahead* a) { return a->pid != 0 && a->pid == getpid(); }

static inline int nokv_ahead_start(nokv_ahead* a, void* (*run)(void*)) {
    pthread_attr_t attributes;
    int failed;
    if (sem_init(&a->wakes, 0, 0) != 0) return 0;
    pthread_mutex_init(&a->lock, NULL);
    pthread_mutex_init(&a->post, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    failed = pthread_create(&a->thread, &attributes, run, a);
    pthread_attr_destroy(&attributes);
    if (failed) {
        pthread_mutex_destroy(&a->lock);
        pthread_mutex_destroy(&a->post);
        sem_destroy(&a->wakes);
        return 0;
    }
    a->pid = getpid();
    return 1;
}

static inline void nokv_ahead_wait(nokv_ahead* a) { while (sem_wait(&a->wakes) != 0) {} }
static inline void nokv_ahead_wake(nokv_ahead* a) { (void)sem_post(&a->wakes); }

/* The thread takes and leaves the lock for each piece; a mutex alone would let it be first every time. */
static inline void nokv_ahead_enter(nokv_ahead* a) {
    nokv_add(&a->entering, 1);
    pthread_mutex_lock(&a->lock);
    nokv_add(&a->entering, -1);
}
static inline int nokv_ahead_try(nokv_ahead* a) { return pthread_mutex_trylock(&a->lock) == 0; }
static inline void nokv_ahead_reenter(nokv_ahead* a) {
    while (nokv_get(&a->entering)) sched_yield();
    pthread_mutex_lock(&a->lock);
}
static inline void nokv_ahead_leave(nokv_ahead* a) { pthread_mutex_unlock(&a->lock); }

/* The writer's next mapping takes over. */
static inline void nokv_ahead_post(nokv_ahead* a, nokv_ahead_map map) {
    pthread_mutex_lock(&a->post);
    if (a->posted) a->before += nokv_get(a->next.end);
    a->next = map;
    nokv_set(&a->posted, 1);
    pthread_mutex_unlock(&a->post);
}

/* With `lock` held: go over to the mapping that was posted. */
static inline void nokv_ahead_take(nokv_ahead* a) {
    if (!nokv_get(&a->posted)) return;
    pthread_mutex_lock(&a->post);
    if (a->posted) {
        if (a->map.base != NULL) a->before += nokv_get(a->map.end);
        a->map = a->next;
        a->left_behind = 0;
        nokv_set(&a->posted, 0);
    }
    pthread_mutex_unlock(&a->post);
}

/* With `lock` held: bytes written since the start. */
static inline uint64_t nokv_ahead_written(nokv_ahead* a) {
    uint64_t written;
    pthread_mutex_lock(&a->post);
    written = a->before + (a->map.base != NULL ? nokv_get(a->map.end) : 0);
    pthread_mutex_unlock(&a->post);
    return written;
}

/* Nobody touches the mapping at `base` when this returns. Waits for a piece of work if it is this mapping's turn. */
static inline void nokv_ahead_drop(nokv_ahead* a, const unsigned char* base) {
    int in_use;
    pthread_mutex_lock(&a->post);
    if (a->posted && a->next.base == base) {
        a->before += nokv_get(a->next.end);
        nokv_set(&a->posted, 0);
    }
    in_use = a->map.base == base;
    pthread_mutex_unlock(&a->post);
    if (!in_use) return;
    nokv_ahead_enter(a);
    pthread_mutex_lock(&a->post);
    if (a->map.base == base) {          /* else another one has taken over */
        a->before += nokv_get(a->map.end);
        a->map.base = NULL;
    }
    pthread_mutex_unlock(&a->post);
    nokv_ahead_leave(a);
}

static inline void nokv_ahead_end(nokv_ahead* a) {
    nokv_set(&a->stop, 1);
    nokv_ahead_wake(a);
    pthread_join(a->thread, NULL);
    pthread_mutex_destroy(&a->lock);
    pthread_mutex_destroy(&a->post);
    sem_destroy(&a->wakes);
    a->pid = 0;
}
#endif
