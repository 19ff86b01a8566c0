"""Range deletes (docs/formats/sst.md): fragments, how they are made, merged, cut and stored, and the cursor that hides what they
delete.

Overlapping ranges are cut at each other's borders. Of the sequences that cover one piece only the newest per group of snapshots
matters (a "stripe": sequences that the same snapshots see), so n ranges make at most 2n - 1 fragments with at most as many sequences
each as there are stripes. Each stripe is painted from its newest range to its oldest; what is painted already is jumped over
(union-find), so that nested ranges cost no more than others.

Threads: a list never changes; references are counted atomically.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset

from nokv._ext.codec cimport Reader, left, put_varint, read_bytes, read_varint, reader
from nokv._ext.cursor cimport CURSOR_OK, Cursor, CursorOps, Slice, TRAILER_SIZE, compare_bytes, read_trailer

from nokv._ext.merge cimport cursor_skip

from nokv.errors import Corruption, UsageError

cdef enum:
    HIDDEN_MAX = 4                      # so many hidden entries are stepped over, then we jump

cdef extern from *:
    """
    static inline int nokv_add_reference(int* counter, int by) { return __atomic_add_fetch(counter, by, __ATOMIC_ACQ_REL); }
    """
    int nokv_add_reference(int* counter, int by) noexcept nogil

cdef uint64_t SEQUENCE_LIMIT = <uint64_t>1 << 56


cdef struct Span:                       # an item as elementary pieces [low, high), with its stripe
    uint64_t sequence
    uint64_t stripe
    uint32_t low
    uint32_t high

cdef struct Paint:
    uint64_t sequence
    uint32_t piece


# -- lists ------------------------------------------------------------------------------------------------------------
cdef RangeList* ranges_retain(RangeList* list) noexcept nogil:
    if list != NULL:
        nokv_add_reference(&list.references, 1)
    return list


cdef void ranges_release(RangeList* list) noexcept nogil:
    if list != NULL and nokv_add_reference(&list.references, -1) == 0:
        free(list)


cdef RangeList* new_list(size_t fragments, size_t sequences, size_t key_bytes, uint8_t** keys) noexcept nogil:
    """One piece of memory; the keys' bytes go to *keys."""
    cdef size_t slices = fragments * sizeof(Slice)
    cdef size_t size = sizeof(RangeList) + 2 * slices + sequences * 8 + (fragments + 1) * 4 + key_bytes
    cdef uint8_t* p
    cdef RangeList* list
    if fragments > <size_t>0x7FFFFFFF or sequences > <size_t>0x7FFFFFFF:
        return NULL
    p = <uint8_t*>malloc(size)
    if p == NULL:
        return NULL
    list = <RangeList*>p
    memset(list, 0, sizeof(RangeList))
    list.references = 1
    list.count = <uint32_t>fragments
    list.sequence_count = <uint32_t>sequences
    list.size = size
    p += sizeof(RangeList)
    list.starts = <Slice*>p
    p += slices
    list.ends = <Slice*>p
    p += slices
    list.sequences = <uint64_t*>p
    p += sequences * 8
    list.first = <uint32_t*>p
    list.first[fragments] = <uint32_t>sequences
    keys[0] = p + (fragments + 1) * 4
    return list


cdef void note_sequences(RangeList* list) noexcept nogil:
    cdef uint32_t i
    list.smallest_sequence = <uint64_t>-1 if list.sequence_count else 0
    for i in range(list.sequence_count):
        if list.sequences[i] > list.largest_sequence:
            list.largest_sequence = list.sequences[i]
        if list.sequences[i] < list.smallest_sequence:
            list.smallest_sequence = list.sequences[i]


cdef int compare_points(const void* a, const void* b) noexcept nogil:
    return compare_bytes((<Slice*>a).data, (<Slice*>a).size, (<Slice*>b).data, (<Slice*>b).size)


cdef int newest_first(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<Span*>a).sequence
    cdef uint64_t y = (<Span*>b).sequence
    return -1 if x > y else (1 if x < y else 0)


cdef uint32_t point_at(const Slice* points, uint32_t count, Slice wanted) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(points[middle].data, points[middle].size, wanted.data, wanted.size) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef uint64_t stripe_of(uint64_t sequence, const uint64_t* snapshots, size_t count) noexcept nogil:
    """How many snapshots do not see it."""
    cdef size_t low = 0
    cdef size_t high = count
    cdef size_t middle
    while low < high:
        middle = low + (high - low) // 2
        if snapshots[middle] < sequence:
            low = middle + 1
        else:
            high = middle
    return low


cdef uint32_t unpainted(uint32_t* follow, uint32_t i) noexcept nogil:
    """The first piece >= i that has no paint of this stripe."""
    cdef uint32_t root = i
    cdef uint32_t after
    while follow[root] != root:
        root = follow[root]
    while follow[i] != root:
        after = follow[i]
        follow[i] = root
        i = after
    return root


cdef RangeList* ranges_build(RangeItem* items, size_t n, const uint64_t* snapshots, size_t snapshot_count, bint bottom) noexcept nogil:
    cdef Slice* points = NULL
    cdef Span* spans = NULL
    cdef uint32_t* follow = NULL
    cdef uint32_t* counts = NULL            # sequences of each piece, then where they begin
    cdef uint64_t* sorted_sequences = NULL
    cdef Paint* paints = NULL
    cdef Paint* fresh
    cdef RangeList* list = NULL
    cdef uint8_t* keys = NULL
    cdef size_t paint_count = 0, paint_room = 0, i, j
    cdef uint32_t points_count = 0, piece, k
    if n == 0:
        return new_list(0, 0, 0, &keys)
    if n > <size_t>0x3FFFFFFF:
        return NULL
    points = <Slice*>malloc(2 * n * sizeof(Slice))
    spans = <Span*>malloc(n * sizeof(Span))
    follow = <uint32_t*>malloc((2 * n + 1) * 4)
    counts = <uint32_t*>calloc(2 * n + 2, 4)
    if points == NULL or spans == NULL or follow == NULL or counts == NULL:
        free(points)
        free(spans)
        free(follow)
        free(counts)
        return NULL
    for i in range(n):
        points[2 * i] = items[i].start
        points[2 * i + 1] = items[i].end
    qsort(points, 2 * n, sizeof(Slice), compare_points)
    for i in range(2 * n):
        if i == 0 or compare_points(&points[i], &points[points_count - 1]) != 0:
            points[points_count] = points[i]
            points_count += 1
    for i in range(n):
        spans[i].sequence = items[i].sequence
        spans[i].stripe = stripe_of(items[i].sequence, snapshots, snapshot_count)
        spans[i].low = point_at(points, points_count, items[i].start)
        spans[i].high = point_at(points, points_count, items[i].end)
    qsort(spans, n, sizeof(Span), newest_first)
    i = 0
    while i < n:                            # one stripe at a time, newest first
        if bottom and spans[i].stripe == 0:
            break
        for k in range(points_count):
            follow[k] = k
        j = i
        while j < n and spans[j].stripe == spans[i].stripe:
            piece = unpainted(follow, spans[j].low)
            while piece < spans[j].high:
                if paint_count == paint_room:
                    paint_room = paint_room * 2 + 16
                    fresh = <Paint*>realloc(paints, paint_room * sizeof(Paint))
                    if fresh == NULL:
                        free(points)
                        free(spans)
                        free(follow)
                        free(counts)
                        free(paints)
                        return NULL
                    paints = fresh
                paints[paint_count].sequence = spans[j].sequence
                paints[paint_count].piece = piece
                paint_count += 1
                counts[piece] += 1
                follow[piece] = piece + 1
                piece = unpainted(follow, piece + 1)
            j += 1
        i = j
    # by piece: counts become places, and what was painted first (the newest) comes first
    sorted_sequences = <uint64_t*>malloc((paint_count + 1) * 8)
    if sorted_sequences != NULL:
        k = 0
        for i in range(points_count):
            piece = counts[i]
            counts[i] = k
            follow[i] = k                   # moves on while the piece is filled
            k += piece
        counts[points_count] = k
        for i in range(paint_count):
            piece = paints[i].piece
            sorted_sequences[follow[piece]] = paints[i].sequence
            follow[piece] += 1
        list = from_pieces(points, points_count, counts, sorted_sequences)
    free(points)
    free(spans)
    free(follow)
    free(counts)
    free(paints)
    free(sorted_sequences)
    return list


cdef bint same_sequences(const uint32_t* begins, const uint64_t* sequences, uint32_t a, uint32_t b) noexcept nogil:
    cdef uint32_t i
    if begins[a + 1] - begins[a] != begins[b + 1] - begins[b]:
        return False
    for i in range(begins[a + 1] - begins[a]):
        if sequences[begins[a] + i] != sequences[begins[b] + i]:
            return False
    return True


cdef RangeList* from_pieces(const Slice* points, uint32_t points_count, const uint32_t* begins, const uint64_t* sequences) noexcept nogil:
    """Piece i lies between points i and i + 1, with sequences[begins[i] .. begins[i + 1]). Neighbours that are alike become one."""
    cdef size_t fragments = 0, total = 0, key_bytes = 0
    cdef uint32_t i, j
    cdef uint32_t pieces = points_count - 1
    cdef RangeList* list
    cdef uint8_t* keys = NULL
    i = 0
    while i < pieces:
        if begins[i + 1] == begins[i]:
            i += 1
            continue
        j = i + 1
        while j < pieces and same_sequences(begins, sequences, i, j):
            j += 1
        fragments += 1
        total += begins[i + 1] - begins[i]
        key_bytes += points[i].size + points[j].size
        i = j
    list = new_list(fragments, total, key_bytes, &keys)
    if list == NULL:
        return NULL
    fragments = total = 0
    i = 0
    while i < pieces:
        if begins[i + 1] == begins[i]:
            i += 1
            continue
        j = i + 1
        while j < pieces and same_sequences(begins, sequences, i, j):
            j += 1
        list.starts[fragments] = put_key(&keys, points[i])
        list.ends[fragments] = put_key(&keys, points[j])
        list.first[fragments] = <uint32_t>total
        memcpy(list.sequences + total, sequences + begins[i], (begins[i + 1] - begins[i]) * 8)
        total += begins[i + 1] - begins[i]
        fragments += 1
        i = j
    note_sequences(list)
    return list


cdef inline Slice put_key(uint8_t** keys, Slice key) noexcept nogil:
    cdef Slice copy
    copy.data = keys[0]
    copy.size = key.size
    memcpy(keys[0], key.data, key.size)
    keys[0] += key.size
    return copy


cdef RangeList* ranges_merge(RangeList** lists, int n, const uint64_t* snapshots, size_t snapshot_count, bint bottom) noexcept nogil:
    cdef size_t total = 0, at = 0
    cdef int i
    cdef uint32_t f, s
    cdef RangeItem* items
    cdef RangeList* merged
    for i in range(n):
        total += lists[i].sequence_count
    items = <RangeItem*>malloc((total + 1) * sizeof(RangeItem))
    if items == NULL:
        return NULL
    for i in range(n):
        for f in range(lists[i].count):
            for s in range(lists[i].first[f], lists[i].first[f + 1]):
                items[at].start = lists[i].starts[f]
                items[at].end = lists[i].ends[f]
                items[at].sequence = lists[i].sequences[s]
                at += 1
    merged = ranges_build(items, total, snapshots, snapshot_count, bottom)
    free(items)
    return merged


cdef RangeList* ranges_cut(RangeList* list, const Slice* lower, const Slice* upper) noexcept nogil:
    """What of it lies in lower <= key < upper (NULL: open)."""
    cdef uint32_t begin = 0
    cdef uint32_t end = list.count
    cdef uint32_t i
    cdef size_t key_bytes = 0
    cdef uint8_t* keys = NULL
    cdef Slice start, stop
    cdef RangeList* part
    if lower != NULL:
        begin = ranges_find(list, lower.data, lower.size)
    while end > begin and upper != NULL and compare_points(&list.starts[end - 1], upper) >= 0:
        end -= 1
    if end < begin:
        end = begin
    for i in range(begin, end):
        key_bytes += list.starts[i].size + list.ends[i].size
    if end > begin:
        key_bytes += (lower.size if lower != NULL else 0) + (upper.size if upper != NULL else 0)
    part = new_list(end - begin, list.first[end] - list.first[begin], key_bytes, &keys)
    if part == NULL:
        return NULL
    for i in range(begin, end):
        start = list.starts[i]
        stop = list.ends[i]
        if lower != NULL and compare_points(&start, lower) < 0:
            start = lower[0]
        if upper != NULL and compare_points(&stop, upper) > 0:
            stop = upper[0]
        part.starts[i - begin] = put_key(&keys, start)
        part.ends[i - begin] = put_key(&keys, stop)
        part.first[i - begin] = list.first[i] - list.first[begin]
    memcpy(part.sequences, list.sequences + list.first[begin], (list.first[end] - list.first[begin]) * 8)
    note_sequences(part)
    return part


cdef bint ranges_written(RangeList* list, Slice lower, const Slice* upper, uint64_t after) noexcept nogil:
    """Was anything in lower <= key < upper (NULL: open) deleted by a range after the sequence `after`?"""
    cdef uint32_t i = ranges_find(list, lower.data, lower.size)
    while i < list.count and (upper == NULL or compare_points(&list.starts[i], upper) < 0):
        if list.sequences[list.first[i]] > after:
            return True
        i += 1
    return False


# -- the hiding cursor ------------------------------------------------------------------------------------------------
cdef struct HidingCursor:
    Cursor base
    Cursor* inner
    uint64_t sequence
    RangeSource* sources
    int source_count
    RangeList** lists               # of all sources, one after the other
    int list_count
    bint known                      # `cover` is right for low <= key < high (a NULL: open)
    uint64_t cover
    Slice low
    Slice high
    int hidden                      # entries that were stepped over between low and high
    uint8_t* target                 # room for a jump's key
    size_t target_room


cdef void look(HidingCursor* h, const uint8_t* key, size_t size) noexcept nogil:
    """The cover of `key`, and how far around it holds."""
    cdef int i, first, last, middle
    cdef uint32_t f
    cdef uint64_t newest
    cdef RangeSource* source
    cdef RangeList* list
    cdef Slice low, high
    h.known = True
    h.hidden = 0
    h.cover = 0
    h.low.data = h.high.data = NULL
    h.low.size = h.high.size = 0
    for i in range(h.source_count):
        source = &h.sources[i]
        first = 0                   # the first list that ends above the key
        last = source.count
        while first < last:
            middle = first + (last - first) // 2
            list = source.lists[middle]
            if compare_bytes(list.ends[list.count - 1].data, list.ends[list.count - 1].size, key, size) <= 0:
                first = middle + 1
            else:
                last = middle
        low.data = high.data = NULL
        low.size = high.size = 0
        if first == source.count:
            list = source.lists[first - 1]
            low = list.ends[list.count - 1]
        else:
            list = source.lists[first]
            f = ranges_find(list, key, size)
            if compare_bytes(list.starts[f].data, list.starts[f].size, key, size) <= 0:
                newest = fragment_newest(list, f, h.sequence)
                if newest > h.cover:
                    h.cover = newest
                low = list.starts[f]
                high = list.ends[f]
            else:
                high = list.starts[f]
                if f:
                    low = list.ends[f - 1]
                elif first:
                    list = source.lists[first - 1]
                    low = list.ends[list.count - 1]
        if low.data != NULL and (h.low.data == NULL or compare_points(&low, &h.low) > 0):
            h.low = low
        if high.data != NULL and (h.high.data == NULL or compare_points(&high, &h.high) < 0):
            h.high = high


cdef bint jump(HidingCursor* h, bint backward) noexcept nogil:
    """Let whatever is older than the range delete go to the range's other end: a range may hide millions of entries, and what is
    newer is soon met. False if there is no memory for that."""
    cdef Slice* to = &h.low if backward else &h.high       # both are there: something covers
    cdef size_t size = to.size + TRAILER_SIZE
    cdef uint8_t* room
    cdef Slice target
    if size > h.target_room:
        room = <uint8_t*>realloc(h.target, size)
        if room == NULL:
            return False
        h.target = room
        h.target_room = size
    memcpy(h.target, to.data, to.size)
    memset(h.target + to.size, 0, TRAILER_SIZE)
    target.data = h.target
    target.size = size
    cursor_skip(h.inner, h.low, h.high, target, h.cover, backward)
    return True


cdef void settle(HidingCursor* h, bint backward) noexcept nogil:
    """From where the inner cursor stands on to the first entry that is not hidden."""
    cdef Cursor* inner = h.inner
    cdef size_t size
    while inner.valid:
        size = inner.key.size - TRAILER_SIZE
        if not h.known or (h.high.data != NULL and compare_bytes(inner.key.data, size, h.high.data, h.high.size) >= 0) or (
            h.low.data != NULL and compare_bytes(inner.key.data, size, h.low.data, h.low.size) < 0
        ):
            look(h, inner.key.data, size)
        if h.cover <= (read_trailer(inner.key.data + size) >> 8):
            break
        h.hidden += 1
        if h.hidden == HIDDEN_MAX and jump(h, backward):
            continue
        if backward:
            inner.ops.prev(inner)
        else:
            inner.ops.next(inner)
    h.base.valid = inner.valid
    h.base.status = inner.status
    h.base.key = inner.key
    h.base.value = inner.value


cdef void hiding_seek_first(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    h.hidden = 0
    h.inner.ops.seek_first(h.inner)
    settle(h, False)


cdef void hiding_seek_last(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    h.hidden = 0
    h.inner.ops.seek_last(h.inner)
    settle(h, True)


cdef void hiding_seek(Cursor* self, Slice internal_key) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    h.hidden = 0
    h.inner.ops.seek(h.inner, internal_key)
    settle(h, False)


cdef void hiding_next(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    h.inner.ops.next(h.inner)
    settle(h, False)


cdef void hiding_prev(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    h.inner.ops.prev(h.inner)
    settle(h, True)


cdef void hiding_rest(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    self.valid = False
    h.inner.ops.rest(h.inner)


cdef void hiding_destroy(Cursor* self) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>self.impl
    cdef int i
    h.inner.ops.destroy(h.inner)
    for i in range(h.list_count):
        ranges_release(h.lists[i])
    free(h.lists)
    free(h.sources)
    free(h.target)
    free(h)


cdef CursorOps HIDING_OPS
HIDING_OPS.seek_first = hiding_seek_first
HIDING_OPS.seek_last = hiding_seek_last
HIDING_OPS.seek = hiding_seek
HIDING_OPS.next = hiding_next
HIDING_OPS.prev = hiding_prev
HIDING_OPS.rest = hiding_rest
HIDING_OPS.destroy = hiding_destroy


cdef Cursor* hiding_cursor(Cursor* inner, RangeSource* sources, int count, uint64_t sequence) noexcept nogil:
    cdef HidingCursor* h = <HidingCursor*>calloc(1, sizeof(HidingCursor))
    cdef int i, j
    if h == NULL:
        return NULL
    for i in range(count):
        h.list_count += sources[i].count
    h.sources = <RangeSource*>malloc((count + 1) * sizeof(RangeSource))
    h.lists = <RangeList**>malloc((h.list_count + 1) * sizeof(RangeList*))
    if h.sources == NULL or h.lists == NULL:
        free(h.sources)
        free(h.lists)
        free(h)
        return NULL
    h.list_count = 0
    for i in range(count):
        h.sources[i].lists = h.lists + h.list_count
        h.sources[i].count = sources[i].count
        for j in range(sources[i].count):
            h.lists[h.list_count] = ranges_retain(sources[i].lists[j])
            h.list_count += 1
    h.source_count = count
    h.inner = inner
    h.sequence = sequence
    h.base.impl = h
    h.base.ops = &HIDING_OPS
    return &h.base


# -- for Python -------------------------------------------------------------------------------------------------------
cdef bytes as_bytes(Slice key):
    return key.data[:key.size]


cdef Slice slice_of(bytes key):
    cdef Slice s
    s.data = <const uint8_t*><const char*>key
    s.size = <size_t>len(key)
    return s


cdef class Ranges:
    def __cinit__(self):
        cdef uint8_t* keys = NULL
        self.list = new_list(0, 0, 0, &keys)        # made from Python it covers nothing
        if self.list == NULL:
            raise MemoryError()

    def __dealloc__(self):
        ranges_release(self.list)

    @staticmethod
    cdef Ranges make(RangeList* list):
        if list == NULL:
            raise MemoryError()
        cdef Ranges made = Ranges.__new__(Ranges)
        ranges_release(made.list)
        made.list = list
        return made

    @staticmethod
    def of(items, snapshots=(), *, bint bottom=False):
        """Fragments of (start, end, sequence) ranges, family || user key; see `merged`."""
        cdef list held = [(start, end, sequence) for start, end, sequence in items]
        cdef RangeItem* c_items = <RangeItem*>malloc((len(held) + 1) * sizeof(RangeItem))
        cdef uint64_t* c_snapshots = NULL
        cdef Py_ssize_t count = 0, i = 0
        cdef bytes start, end
        if c_items == NULL:
            raise MemoryError()
        try:
            for start, end, sequence in held:
                if not start < end or not 0 < sequence < SEQUENCE_LIMIT:
                    raise UsageError(f"no range delete: {start!r} to {end!r} at {sequence}")
                c_items[i].start = slice_of(start)
                c_items[i].end = slice_of(end)
                c_items[i].sequence = sequence
                i += 1
            c_snapshots = sequences_of(snapshots, &count)
            return Ranges.make(ranges_build(c_items, i, c_snapshots, count, bottom))
        finally:
            free(c_items)
            free(c_snapshots)

    @staticmethod
    def merged(parts, snapshots=(), *, bint bottom=False):
        """All of `parts` (Ranges) as one. Of the sequences that the same snapshots see the newest counts; with `bottom`, none of
        those that every snapshot sees (nothing older is left that they could hide)."""
        cdef list held = list(parts)
        cdef RangeList** lists = <RangeList**>malloc((len(held) + 1) * sizeof(RangeList*))
        cdef uint64_t* c_snapshots = NULL
        cdef Py_ssize_t count = 0
        cdef Ranges part
        cdef int n = 0
        if lists == NULL:
            raise MemoryError()
        try:
            for part in held:
                if part is None:
                    raise UsageError("None is no list of ranges")
                lists[n] = part.list
                n += 1
            c_snapshots = sequences_of(snapshots, &count)
            return Ranges.make(ranges_merge(lists, n, c_snapshots, count, bottom))
        finally:
            free(lists)
            free(c_snapshots)

    def cut(self, bytes lower, bytes upper):
        """What of it lies in lower <= key < upper; None: open."""
        cdef Slice low, high
        if lower is not None:
            low = slice_of(lower)
        if upper is not None:
            high = slice_of(upper)
        return Ranges.make(ranges_cut(self.list, NULL if lower is None else &low, NULL if upper is None else &high))

    def cover(self, bytes key not None, uint64_t sequence=(1 << 56) - 1):
        """The newest range delete of `key` (family || user key) that a reader at `sequence` sees; 0: none."""
        return ranges_cover(self.list, <const uint8_t*><const char*>key, len(key), sequence)

    def fragments(self):
        """[(start, end, (sequences, newest first))]"""
        cdef uint32_t i, s
        cdef RangeList* l = self.list
        return [
            (as_bytes(l.starts[i]), as_bytes(l.ends[i]), tuple([l.sequences[s] for s in range(l.first[i], l.first[i + 1])]))
            for i in range(l.count)
        ]

    @property
    def smallest(self):
        """The first key that it covers; None: nothing."""
        return as_bytes(self.list.starts[0]) if self.list.count else None

    @property
    def largest(self):
        """A key that none of its keys is above, as close as keys allow; None: nothing."""
        cdef bytes end
        if not self.list.count:
            return None
        end = as_bytes(self.list.ends[self.list.count - 1])
        return end[:len(end) - 1] if end.endswith(b"\0") else end      # what is below "x\0" is at most "x"

    @property
    def smallest_sequence(self):
        return self.list.smallest_sequence

    @property
    def largest_sequence(self):
        return self.list.largest_sequence

    @property
    def size_bytes(self):
        return self.list.size

    def __len__(self):
        return self.list.count

    def encode(self):
        """The payload of a table's range block."""
        cdef RangeList* l = self.list
        cdef size_t room = 10, at = 0
        cdef uint32_t i, s
        cdef uint8_t* out
        for i in range(l.count):
            room += 30 + l.starts[i].size + l.ends[i].size
        room += 10 * <size_t>l.sequence_count
        out = <uint8_t*>malloc(room)
        if out == NULL:
            raise MemoryError()
        at += put_varint(out, l.count)
        for i in range(l.count):
            at += put_varint(out + at, l.starts[i].size)
            memcpy(out + at, l.starts[i].data, l.starts[i].size)
            at += l.starts[i].size
            at += put_varint(out + at, l.ends[i].size)
            memcpy(out + at, l.ends[i].data, l.ends[i].size)
            at += l.ends[i].size
            at += put_varint(out + at, l.first[i + 1] - l.first[i])
            for s in range(l.first[i], l.first[i + 1]):
                at += put_varint(out + at, l.sequences[s])
        try:
            return (<const char*>out)[:at]
        finally:
            free(out)


cdef uint64_t* sequences_of(snapshots, Py_ssize_t* count) except NULL:
    ordered = sorted(snapshots)
    cdef uint64_t* out = <uint64_t*>malloc((len(ordered) + 1) * 8)
    cdef Py_ssize_t i
    if out == NULL:
        raise MemoryError()
    for i in range(len(ordered)):
        out[i] = ordered[i]
    count[0] = len(ordered)
    return out


def decode_ranges(const uint8_t[::1] payload not None, *, str path="", uint64_t offset=0):
    """Ranges of a table's range block. Corruption (path, offset) for whatever `encode` does not write."""
    cdef const uint8_t* data = &payload[0] if payload.shape[0] else NULL
    return Ranges.make(ranges_decode(data, <size_t>payload.shape[0], path, offset))


cdef RangeList* ranges_decode(const uint8_t* data, size_t size, str path, uint64_t offset) except NULL:
    cdef Reader r = reader(data, size)
    cdef Reader again
    cdef uint64_t count = 0, n = 0, sequence = 0, before
    cdef size_t total = 0, key_bytes = 0
    cdef uint64_t i, s
    cdef Slice start, end, last
    cdef RangeList* list
    cdef uint8_t* keys = NULL
    last.data = NULL
    last.size = 0
    if not read_varint(&r, &count) or count > size:
        raise Corruption("the range deletes state a wrong count", path=path, offset=offset)
    again = r
    for i in range(count):
        if not (read_bytes(&r, &start.data, &start.size) and read_bytes(&r, &end.data, &end.size) and read_varint(&r, &n)):
            raise Corruption("a range delete is cut off", path=path, offset=offset)
        if start.size == 0 or compare_points(&start, &end) >= 0 or (i and compare_points(&last, &start) > 0):
            raise Corruption("the range deletes are not in order", path=path, offset=offset)
        if n == 0 or n > left(&r):
            raise Corruption("a range delete states a wrong number of sequences", path=path, offset=offset)
        before = SEQUENCE_LIMIT
        for s in range(n):
            if not read_varint(&r, &sequence) or sequence == 0 or sequence >= before:
                raise Corruption("the sequences of a range delete are not in order", path=path, offset=offset)
            before = sequence
        total += n
        key_bytes += start.size + end.size
        last = end
    if left(&r):
        raise Corruption("there is something after the last range delete", path=path, offset=offset)
    list = new_list(count, total, key_bytes, &keys)
    if list == NULL:
        raise MemoryError()
    total = 0
    for i in range(count):
        read_bytes(&again, &start.data, &start.size)
        read_bytes(&again, &end.data, &end.size)
        read_varint(&again, &n)
        list.starts[i] = put_key(&keys, start)
        list.ends[i] = put_key(&keys, end)
        list.first[i] = <uint32_t>total
        for s in range(n):
            read_varint(&again, &list.sequences[total])
            total += 1
    note_sequences(list)
    return list
