/* CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected 0x82F63B78; RFC 3720 appendix B.4 has the test vectors).
 *
 * Own code. The instructions of the CPU are chosen when the module is loaded (no -march flags): SSE4.2 on x86-64, the CRC
 * extension on AArch64, else eight tables ("slicing by 8", Kounavis and Berry 2005). Every module that includes this file
 * gets a private copy; the tables are made before any code of the module runs, so any thread may call it.
 *
 * nokv_crc32c(0, a) is the checksum of a; nokv_crc32c(nokv_crc32c(0, a), b) is the one of a followed by b. */
#ifndef NOKV_CRC32C_H
#define NOKV_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t nokv_crc32c_tables[8][256];

static uint64_t nokv_crc32c_load64(const uint8_t *p) { /* little-endian, any alignment */
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = (v << 8) | p[i];
    return v;
}

static uint32_t nokv_crc32c_portable(uint32_t crc, const uint8_t *p, size_t n) {
    const uint32_t (*t)[256] = (const uint32_t (*)[256])nokv_crc32c_tables;
    crc = ~crc;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t w = nokv_crc32c_load64(p) ^ crc;
        crc = t[7][w & 255] ^ t[6][(w >> 8) & 255] ^ t[5][(w >> 16) & 255] ^ t[4][(w >> 24) & 255]
            ^ t[3][(w >> 32) & 255] ^ t[2][(w >> 40) & 255] ^ t[1][(w >> 48) & 255] ^ t[0][w >> 56];
    }
    for (; n > 0; p++, n--) crc = t[0][(crc ^ *p) & 255] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define NOKV_CRC32C_TARGET __attribute__((target("sse4.2")))
NOKV_CRC32C_TARGET static inline uint64_t nokv_crc32c_8(uint64_t crc, const uint8_t *p) {
    uint64_t w;
    memcpy(&w, p, 8);
    return _mm_crc32_u64(crc, w);
}
NOKV_CRC32C_TARGET static inline uint64_t nokv_crc32c_1(uint64_t crc, uint8_t byte) { return _mm_crc32_u8((uint32_t)crc, byte); }
static int nokv_crc32c_cpu_has_it(void) { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__aarch64__) && defined(__GNUC__) && (defined(__ARM_FEATURE_CRC32) || defined(__APPLE__) || defined(__linux__))
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define NOKV_CRC32C_TARGET __attribute__((target("crc")))
#else
#define NOKV_CRC32C_TARGET __attribute__((target("+crc")))
#endif
NOKV_CRC32C_TARGET static inline uint64_t nokv_crc32c_8(uint64_t crc, const uint8_t *p) {
    uint32_t c = (uint32_t)crc;
    uint64_t w;
    memcpy(&w, p, 8);
    __asm__("crc32cx %w0, %w0, %x1" : "+r"(c) : "r"(w));
    return c;
}
NOKV_CRC32C_TARGET static inline uint64_t nokv_crc32c_1(uint64_t crc, uint8_t byte) {
    uint32_t c = (uint32_t)crc;
    __asm__("crc32cb %w0, %w0, %w1" : "+r"(c) : "r"((uint32_t)byte));
    return c;
}
static int nokv_crc32c_cpu_has_it(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1UL << 7)) != 0; /* HWCAP_CRC32 */
#else
    return 1; /* every 64-bit Apple CPU */
#endif
}
#endif

#if defined(NOKV_CRC32C_TARGET)
/* The instruction takes three cycles and one can begin in each: three lanes of a buffer at once. A lane that begins with a
 * register of zero is joined to the one before it by moving that one's register over as many zero bytes, which is linear:
 * four lookups. */
enum { NOKV_CRC32C_LONG = 1344, NOKV_CRC32C_SHORT = 256 }; /* bytes of a lane: thrice the long one is most of a block */
static uint32_t nokv_crc32c_over_long[4][256], nokv_crc32c_over_short[4][256];

static inline uint32_t nokv_crc32c_over(const uint32_t (*t)[256], uint32_t crc) {
    return t[0][crc & 255] ^ t[1][(crc >> 8) & 255] ^ t[2][(crc >> 16) & 255] ^ t[3][crc >> 24];
}

NOKV_CRC32C_TARGET static void nokv_crc32c_lanes(uint32_t (*t)[256], size_t lane) {
    static const uint8_t zeros[8];
    for (int bit = 0; bit < 32; bit++) {
        uint64_t c = (uint64_t)1 << bit;
        uint32_t *row = t[bit / 8];
        for (size_t i = 0; i < lane; i += 8) c = nokv_crc32c_8(c, zeros);
        for (int n = 0; n < 1 << bit % 8; n++) row[n + (1 << bit % 8)] = row[n] ^ (uint32_t)c; /* row[0] is 0 */
    }
}

NOKV_CRC32C_TARGET static inline uint64_t nokv_crc32c_three(uint64_t crc, const uint8_t *p, size_t lane, const uint32_t (*t)[256]) {
    uint64_t b = 0, c = 0;
    for (const uint8_t *end = p + lane; p < end; p += 8) {
        crc = nokv_crc32c_8(crc, p);
        b = nokv_crc32c_8(b, p + lane);
        c = nokv_crc32c_8(c, p + 2 * lane);
    }
    return nokv_crc32c_over(t, nokv_crc32c_over(t, (uint32_t)crc) ^ (uint32_t)b) ^ c;
}

NOKV_CRC32C_TARGET static uint32_t nokv_crc32c_cpu(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = (uint32_t)~crc;
    for (; n >= 3 * NOKV_CRC32C_LONG; p += 3 * NOKV_CRC32C_LONG, n -= 3 * NOKV_CRC32C_LONG)
        c = nokv_crc32c_three(c, p, NOKV_CRC32C_LONG, (const uint32_t (*)[256])nokv_crc32c_over_long);
    for (; n >= 3 * NOKV_CRC32C_SHORT; p += 3 * NOKV_CRC32C_SHORT, n -= 3 * NOKV_CRC32C_SHORT)
        c = nokv_crc32c_three(c, p, NOKV_CRC32C_SHORT, (const uint32_t (*)[256])nokv_crc32c_over_short);
    for (; n >= 8; p += 8, n -= 8) c = nokv_crc32c_8(c, p);
    for (; n > 0; p++, n--) c = nokv_crc32c_1(c, *p);
    return ~(uint32_t)c;
}
#endif

static uint32_t (*nokv_crc32c)(uint32_t, const uint8_t *, size_t) = nokv_crc32c_portable;

__attribute__((constructor)) static void nokv_crc32c_start(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1)));
        nokv_crc32c_tables[0][i] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++) {
            uint32_t below = nokv_crc32c_tables[k - 1][i];
            nokv_crc32c_tables[k][i] = nokv_crc32c_tables[0][below & 255] ^ (below >> 8);
        }
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
#endif
#if defined(NOKV_CRC32C_TARGET)
    if (nokv_crc32c_cpu_has_it()) {
        nokv_crc32c_lanes(nokv_crc32c_over_long, NOKV_CRC32C_LONG);
        nokv_crc32c_lanes(nokv_crc32c_over_short, NOKV_CRC32C_SHORT);
        nokv_crc32c = nokv_crc32c_cpu;
    }
#endif
}

#endif
