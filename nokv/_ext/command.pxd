"""How commands, results and command batches are laid out (docs/formats/command.md), and the growing buffer they are
packed into. Shared by command.pyx (client and service side) and mvcc.pyx (apply side)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nokv._ext.codec cimport Reader

cdef enum:
    COMMAND_VERSION = 1
    # kinds of a packed message; never change once released
    GROUP_WRITES = 1
    GROUP_READS = 2
    GROUP_RESULTS = 3
    BATCH_WRITE = 16
    BATCH_ADMIN = 17
    # commands
    COMMAND_PUT = 1
    COMMAND_DELETE = 2
    COMMAND_GET = 3
    COMMAND_SCAN = 4
    # results
    RESULT_ABSENT = 0
    RESULT_VALUE = 1
    RESULT_DONE = 2
    RESULT_PAIRS = 3
    RESULT_LOCKED = 4
    # flags of a scan
    SCAN_REVERSE = 1
    SCAN_KEYS_ONLY = 2
    # flags of pairs
    PAIRS_MORE = 1
    PAIRS_KEYS_ONLY = 2
    # limits
    KEY_BYTES_MAX = 65536
    WRITE_KEY_BYTES_MAX = 58232     # encoded and with a timestamp it is still a key of the engine
    VALUE_BYTES_MAX = 67108864
    COMMANDS_MAX = 1048576
    CRC_BYTES = 4

cdef class Packer:
    """A growing byte buffer. `fail` is sticky: out of memory shows when the bytes are taken."""
    cdef uint8_t* data
    cdef size_t size
    cdef size_t room
    cdef bint failed
    cdef bint reserve(self, size_t more) noexcept nogil
    cdef void byte(self, uint8_t value) noexcept nogil
    cdef void varint(self, uint64_t value) noexcept nogil
    cdef void fixed64(self, uint64_t value) noexcept nogil
    cdef void raw(self, const uint8_t* data, size_t size) noexcept nogil
    cdef void sized(self, const uint8_t* data, size_t size) noexcept nogil
    cdef bytes seal(self)               # append the checksum, return everything
    cdef bytes take_bytes(self)

# 1: `r` stands after the two header bytes, `kind` is set, and the checksum is right and cut off. 0: not our bytes.
cdef bint open_packed(const uint8_t* data, size_t size, Reader* r, uint8_t* kind) noexcept nogil
