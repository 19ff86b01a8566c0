from libc.stdint cimport uint8_t, uint64_t

from nokv._ext.view cimport Store

# A Scan of the view of now, which `sequence` belongs to. `now_ms`: its moment, or 0.
cdef object new_scan(Store core, uint8_t family, uint64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                     limit, bint keys, bint values)
