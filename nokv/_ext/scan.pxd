from libc.stdint cimport int64_t, uint8_t, uint64_t

from nokv._ext.view cimport Store

# A Scan of the view of now. `sequence`: -1 is whatever is the newest once the bounds are known. `now_ms`: its moment, or 0.
cdef object new_scan(Store core, uint8_t family, int64_t sequence, uint64_t now_ms, start, end, prefix, bint reverse,
                     limit, bint keys, bint values)
