"""The LZ4 block format. Any thread, with or without the GIL."""

from libc.stdint cimport uint8_t

cdef extern from "lz4.h" nogil:
    size_t lz4_compress "nokv_lz4_compress"(const uint8_t* source, size_t size, uint8_t* target, size_t room) noexcept nogil
    bint lz4_decompress "nokv_lz4_decompress"(const uint8_t* source, size_t size, uint8_t* target, size_t raw_size) noexcept nogil
