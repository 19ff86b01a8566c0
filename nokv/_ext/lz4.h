/* The LZ4 block format (github.com/lz4/lz4, doc/lz4_Block_format.md), own code, for blocks of tables: a few hundred MB/s to
 * write, above 1 GB/s to read, without the GIL and without a library.
 *
 * A block is sequences of: token (literals << 4 | match length - 4) | more length bytes, 255 each until a smaller one |
 * literals | distance (2, little-endian, 1..65535) | more match length bytes. The last sequence ends after its literals.
 * The last 5 bytes are literals, and no match begins in the last 12. */
#ifndef NOKV_LZ4_H
#define NOKV_LZ4_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NOKV_LZ4_HASH_BITS 12
#define NOKV_LZ4_INPUT_MAX (4u << 20)

static inline uint32_t nokv_lz4_load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint32_t nokv_lz4_hash(const uint8_t *p) {
    return (nokv_lz4_load32(p) * 2654435761u) >> (32 - NOKV_LZ4_HASH_BITS);
}

static inline uint8_t *nokv_lz4_put_length(uint8_t *out, size_t rest) {
    while (rest >= 255) {
        *out++ = 255;
        rest -= 255;
    }
    *out++ = (uint8_t)rest;
    return out;
}

/* `match` 0: the last sequence. NULL: it does not fit before `limit`. */
static inline uint8_t *nokv_lz4_put_sequence(uint8_t *out, const uint8_t *limit, const uint8_t *literals, size_t count,
                                             size_t match, size_t distance) {
    size_t most = 1 + count / 255 + 1 + count + 2 + match / 255 + 1;
    uint8_t *token = out;
    if (most > (size_t)(limit - out)) return NULL;
    out++;
    *token = (uint8_t)((count < 15 ? count : 15) << 4);
    if (count >= 15) out = nokv_lz4_put_length(out, count - 15);
    memcpy(out, literals, count);
    out += count;
    if (match == 0) return out;
    *out++ = (uint8_t)distance;
    *out++ = (uint8_t)(distance >> 8);
    match -= 4;
    *token |= (uint8_t)(match < 15 ? match : 15);
    if (match >= 15) out = nokv_lz4_put_length(out, match - 15);
    return out;
}

/* How many bytes `target` received; 0: they would be more than `room`, or the input is too large. */
static size_t nokv_lz4_compress(const uint8_t *source, size_t size, uint8_t *target, size_t room) {
    uint32_t table[1 << NOKV_LZ4_HASH_BITS];
    const uint8_t *at = source, *done = source, *end = source + size;
    uint8_t *out = target;
    const uint8_t *limit = target + room;
    if (size == 0 || size > NOKV_LZ4_INPUT_MAX) return 0;
    memset(table, 0, sizeof table);
    if (size >= 13) {
        const uint8_t *last_start = end - 12, *match_end = end - 5;
        unsigned misses = 0;
        at++;
        while (at <= last_start) {
            uint32_t hash = nokv_lz4_hash(at);
            const uint8_t *from = source + table[hash];
            size_t length = 4;
            table[hash] = (uint32_t)(at - source);
            if (from >= at || at - from > 65535 || nokv_lz4_load32(from) != nokv_lz4_load32(at)) {
                at += 1 + (misses++ >> 6);
                continue;
            }
            misses = 0;
            while (at > done && from > source && at[-1] == from[-1]) at--, from--;
            while (at + length < match_end && at[length] == from[length]) length++;
            out = nokv_lz4_put_sequence(out, limit, done, (size_t)(at - done), length, (size_t)(at - from));
            if (out == NULL) return 0;
            at += length;
            done = at;
            if (at <= last_start) table[nokv_lz4_hash(at - 2)] = (uint32_t)(at - 2 - source);
        }
    }
    out = nokv_lz4_put_sequence(out, limit, done, (size_t)(end - done), 0, 0);
    return out == NULL ? 0 : (size_t)(out - target);
}

/* 1: `target` holds exactly `raw_size` bytes. 0: these bytes are no such block; some of `target` may have been written. */
static int nokv_lz4_decompress(const uint8_t *source, size_t size, uint8_t *target, size_t raw_size) {
    const uint8_t *at = source, *end = source + size;
    uint8_t *out = target, *limit = target + raw_size;
    while (at < end) {
        unsigned token = *at++, more;
        size_t count = token >> 4, length = token & 15, distance;
        if (count == 15)
            do {
                if (at >= end || count > raw_size) return 0;
                count += more = *at++;
            } while (more == 255);
        if (count > (size_t)(end - at) || count > (size_t)(limit - out)) return 0;
        memcpy(out, at, count);
        at += count;
        out += count;
        if (at == end) return out == limit;
        if (end - at < 2) return 0;
        distance = at[0] | (size_t)at[1] << 8;
        at += 2;
        if (distance == 0 || distance > (size_t)(out - target)) return 0;
        if (length == 15)
            do {
                if (at >= end || length > raw_size) return 0;
                length += more = *at++;
            } while (more == 255);
        length += 4;
        if (length > (size_t)(limit - out)) return 0;
        if (distance == 1) {
            memset(out, out[-1], length);
            out += length;
        } else if (distance >= length) {
            memcpy(out, out - distance, length);
            out += length;
        } else {
            while (length--) {
                *out = *(out - distance);
                out++;
            }
        }
    }
    return 0;
}
#endif
