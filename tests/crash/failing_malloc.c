/* Preloaded by test_memory_failures.py: the n-th allocation that an extension of nokv makes fails; everybody else's work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static __thread long left, seen; /* of the thread that armed it */
static __thread int inside;      /* dladdr allocates */

void nokv_fail_malloc(long n) { left = n; if (n) seen = 0; }
long nokv_malloc_calls(void) { return seen; }

static int fails(void *caller) {
    Dl_info info;
    if (left == 0 || inside) return 0;
    inside = 1;
    int ours = dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/nokv/_ext/");
    inside = 0;
    if (!ours) return 0;
    seen++;
    if (--left != 0) return 0;
    errno = ENOMEM;
    return 1;
}
#define OR_FAIL(real) (fails(__builtin_return_address(0)) ? NULL : real)

void *malloc(size_t size) { return OR_FAIL(__libc_malloc(size)); }
void *calloc(size_t n, size_t size) { return OR_FAIL(__libc_calloc(n, size)); }
void *realloc(void *old, size_t size) { return OR_FAIL(__libc_realloc(old, size)); }

int posix_memalign(void **out, size_t alignment, size_t size) {
    void *p = OR_FAIL(__libc_memalign(alignment, size));
    if (p == NULL) return ENOMEM;
    *out = p;
    return 0;
}

/* Of memory, not of files. */
void *mmap(void *place, size_t size, int protection, int flags, int fd, off_t offset) {
    if ((flags & MAP_ANONYMOUS) && fails(__builtin_return_address(0))) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, place, size, protection, flags, fd, offset);
}
