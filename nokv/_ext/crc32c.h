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
__attribute__((target("sse4.2"))) static uint32_t nokv_crc32c_cpu(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = (uint32_t)~crc, w;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&w, p, 8);
        c = _mm_crc32_u64(c, w);
    }
    for (; n > 0; p++, n--) c = _mm_crc32_u8((uint32_t)c, *p);
    return ~(uint32_t)c;
}
static int nokv_crc32c_cpu_has_it(void) { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__aarch64__) && defined(__GNUC__) && (defined(__ARM_FEATURE_CRC32) || defined(__APPLE__) || defined(__linux__))
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__clang__)
__attribute__((target("crc")))
#else
__attribute__((target("+crc")))
#endif
static uint32_t nokv_crc32c_cpu(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t w;
    crc = ~crc;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&w, p, 8);
        __asm__("crc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(w));
    }
    for (; n > 0; p++, n--) __asm__("crc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p));
    return ~crc;
}
static int nokv_crc32c_cpu_has_it(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1UL << 7)) != 0; /* HWCAP_CRC32 */
#else
    return 1; /* every 64-bit Apple CPU */
#endif
}
#else
#define nokv_crc32c_cpu nokv_crc32c_portable
static int nokv_crc32c_cpu_has_it(void) { return 0; }
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
    if (nokv_crc32c_cpu_has_it()) nokv_crc32c = nokv_crc32c_cpu;
}

#endif
