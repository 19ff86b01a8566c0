/* Pages of files and mappings, as their writers and readers want them. Systems that cannot do it do nothing: stores fault the pages in. */
#ifndef NOKV_PAGES_H
#define NOKV_PAGES_H
#include <stddef.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
/* An empty range of an unknown advice is EINVAL, too: Linux before 5.14. */
static inline int nokv_can_populate(void* page) { return madvise(page, 0, MADV_POPULATE_WRITE) == 0; }
static inline void nokv_populate(void* p, size_t size) { (void)madvise(p, size, MADV_POPULATE_WRITE); }
static inline void nokv_unmap_pages(void* p, size_t size) { (void)madvise(p, size, MADV_DONTNEED); }
#else
static inline int nokv_can_populate(void* page) { (void)page; return 0; }
static inline void nokv_populate(void* p, size_t size) { (void)p; (void)size; }
static inline void nokv_unmap_pages(void* p, size_t size) { (void)p; (void)size; }
#endif

/* SYNC_FILE_RANGE_WRITE, a hint. By number: the declaration hangs on feature macros that Python's headers set. */
static inline void nokv_start_writing(int fd, int64_t offset, int64_t size) {
#if defined(__linux__) && defined(SYS_sync_file_range) && defined(__LP64__)
    (void)syscall(SYS_sync_file_range, fd, (long)offset, (long)size, 2u);
#else
    (void)fd; (void)offset; (void)size;
#endif
}
#endif
