"""CRC-32C of bytes in memory. Any thread, with or without the GIL. `crc32c(0, p, n)` starts, the result continues."""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t crc32c "nokv_crc32c"(uint32_t crc, const uint8_t* p, size_t n) noexcept nogil
    uint32_t crc32c_portable "nokv_crc32c_portable"(uint32_t crc, const uint8_t* p, size_t n) noexcept nogil
