/* Pages of a mapping, as the writer of a log wants them. Systems that cannot do it do nothing: stores fault the pages in. */
#ifndef NOKV_PAGES_H
#define NOKV_PAGES_H
#include <stddef.h>
#if defined(__linux__)
#include <sys/mman.h>
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
#endif
