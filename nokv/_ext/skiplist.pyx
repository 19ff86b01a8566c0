"""The memtable's order: a skiplist of its keys, the sort of those that wait to be linked, and the cursors that walk it.

Owns: how nodes stand in order. Does not own: their memory, the hash index beside it, who may do what when (memtable.pyx). Threads:
whoever links is alone in it; cursors need no lock (a node is complete before the store that links it).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from nokv._ext.cursor cimport (
    CURSOR_NO_MEMORY,
    TRAILER_SIZE,
    Cursor,
    CursorOps,
    Slice,
    compare_bytes,
    put_trailer,
    read_trailer,
)
from nokv._ext.scheduling cimport nokv_pass

cdef enum:
    RADIX_MIN = 512                 # so many keys are sorted by their heads, byte by byte
    ORDER_STEPS_MAX = 8
    ORDER_MIN = 256                 # keys: a search among fewer is short
    PASS_ITEMS = 1024               # of a sort, until a thread that waits for the processor gets it
    AHEAD = 6                       # nodes that a flush asks for before it needs them


# -- search -----------------------------------------------------------------------------------------------------------
cdef struct Search:
    Node* node                      # the last one known to be smaller than the key
    Node* after                     # its successor, at the level that was walked last
    Node* known                     # compared already, and not smaller

cdef inline uint64_t _head(const uint8_t* key, size_t size, size_t start) noexcept nogil:
    cdef uint64_t head = 0
    cdef size_t i
    if start + 8 <= size:
        memcpy(&head, key + start, 8)
        return nokv_big_endian(head)
    for i in range(start, start + 8):
        head = (head << 8) | (key[i] if i < size else 0)
    return head

cdef uint64_t _count_below(const Order* order, const uint8_t* key, size_t size) noexcept nogil:
    """How many of its nodes are smaller than the key."""
    cdef uint64_t low = 0, high = order.count, middle, head
    cdef int difference = memcmp(key, order.prefix, min(size, order.common))
    if difference != 0 or size < order.common:
        return order.count if difference > 0 else 0
    head = _head(key, size, order.common)
    while low < high:
        middle = low + (high - low) // 2
        if order.heads[middle] < head:
            low = middle + 1
        else:
            high = middle
    if low == order.count or order.heads[low] != head:
        return low
    high = order.count
    middle = low
    while middle < high:            # up to the first greater head
        if order.heads[middle + (high - middle) // 2] <= head:
            middle += (high - middle) // 2 + 1
        else:
            high = middle + (high - middle) // 2
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(node_key(order.nodes[middle]), node_key_size(order.nodes[middle]), key, size) < 0:
            low = middle + 1
        else:
            high = middle
    return low

cdef inline void _begin_in_order(Table* t, Search* s, const Order* order, const uint8_t* key, size_t size) noexcept nogil:
    cdef uint64_t below = _count_below(order, key, size)
    s.node = order.nodes[below - 1] if below else t.head
    s.known = order.nodes[below] if below < order.count else NULL
    s.after = NULL

cdef inline bint _walk_order(Search* s, const uint8_t* key, size_t size) noexcept nogil:
    """The top level of a search that began in the order. False: too much was linked here since it was made."""
    cdef int steps
    s.after = node_next(s.node, ORDER_LEVEL)
    for steps in range(ORDER_STEPS_MAX):
        if s.after == NULL or s.after == s.known:
            return True
        nokv_prefetch(<uint8_t*>node_next(s.node, ORDER_LEVEL - 1) + sizeof(Node))
        if compare_bytes(node_key(s.after), node_key_size(s.after), key, size) >= 0:
            s.known = s.after
            return True
        s.node = s.after
        s.after = node_next(s.node, ORDER_LEVEL)
    return False

cdef inline void _walk_level(Search* s, const uint8_t* key, size_t size, int level) noexcept nogil:
    s.after = node_next(s.node, level)
    while s.after != NULL and s.after != s.known:
        if level > 0:               # where the search goes if `after` is too far: two cache misses at a time, not one
            nokv_prefetch(<uint8_t*>node_next(s.node, level - 1) + sizeof(Node))
        if compare_bytes(node_key(s.after), node_key_size(s.after), key, size) >= 0:
            s.known = s.after
            break
        s.node = s.after
        s.after = node_next(s.node, level)

cdef Node* _find(Table* t, const uint8_t* key, size_t size) noexcept nogil:
    """First node >= key, or NULL."""
    cdef Search s
    cdef const Order* order = <Order*>nokv_load_acquire(<void**>&t.order)
    cdef int level = ORDER_LEVEL
    if order != NULL:
        _begin_in_order(t, &s, order, key, size)
    if order == NULL or not _walk_order(&s, key, size):
        level = t.height
        s.node = t.head
        s.known = s.after = NULL
    while level > 0:
        level -= 1
        _walk_level(&s, key, size, level)
    return s.after

cdef void renew_order(Table* t, uint64_t linked) noexcept nogil:
    cdef uint64_t count = 0, i
    cdef Node* node
    cdef Order* order
    if linked < ORDER_MIN or (t.order != NULL and linked < t.order.made + t.order.made // 2):
        return
    node = node_next(t.head, ORDER_LEVEL)
    while node != NULL:
        count += 1
        node = node_next(node, ORDER_LEVEL)
    if count == 0:
        return
    order = <Order*>malloc(sizeof(Order) + 16 * count)
    if order == NULL:
        return
    order.size = sizeof(Order) + 16 * count
    order.older = t.order
    order.made = linked
    order.count = count
    order.heads = <uint64_t*>(<uint8_t*>order + sizeof(Order))
    order.nodes = <Node**>(order.heads + count)
    node = t.head
    for i in range(count):
        node = node_next(node, ORDER_LEVEL)
        order.nodes[i] = node
    order.common = _common(order.nodes[0], node, ORDER_PREFIX)
    memcpy(order.prefix, node_key(node), order.common)
    for i in range(count):
        order.heads[i] = _head(node_key(order.nodes[i]), node_key_size(order.nodes[i]), order.common)
    nokv_store_release(<void**>&t.order, order)


# -- order ------------------------------------------------------------------------------------------------------------
cdef inline bint _precedes(Node* node, Node* other) noexcept nogil:
    """NULL stands past the end."""
    return node != NULL and compare_bytes(node_key(node), node_key_size(node), node_key(other), node_key_size(other)) < 0

cdef void _link_sorted(Table* t, SortItem* items, uint64_t count) noexcept nogil:
    """The search for each begins where the one before it ended: up as far as needed, then down."""
    cdef Node* before[HEIGHT_MAX]
    cdef Node* node
    cdef Node* after
    cdef Node* known                # compared already, and not smaller
    cdef int level
    cdef bint moved
    cdef uint64_t i
    for level in range(HEIGHT_MAX):
        before[level] = t.head
    for i in range(count):
        node = items[i].node
        if i + 4 < count:
            nokv_prefetch(items[i + 4].node)
            nokv_prefetch(<uint8_t*>items[i + 4].node + 64)
        level = 0 if i else t.height
        known = NULL
        while level < t.height:
            after = node_next(before[level], level)
            if not _precedes(after, node):
                known = after
                break
            level += 1
        moved = False                   # a level that moved stands at or behind the level below it
        while level > 0:
            level -= 1
            if moved:
                before[level] = before[level + 1]
            after = node_next(before[level], level)
            while after != NULL and after != known:
                if level > 0:
                    nokv_prefetch(<uint8_t*>node_next(before[level], level - 1) + sizeof(Node))
                if not _precedes(after, node):
                    known = after
                    break
                before[level] = after
                after = node_next(after, level)
                moved = True
        link_node(t, node, before)

cdef inline bint _sorts_before(SortItem* a, SortItem* b) noexcept nogil:
    if a.head != b.head:
        return a.head < b.head
    return compare_bytes(node_key(a.node), node_key_size(a.node), node_key(b.node), node_key_size(b.node)) < 0

cdef SortItem* _sort(SortItem* items, SortItem* room, uint64_t count) noexcept nogil:
    """Merge sort, from runs of eight up. The result is in `items` or `room`."""
    cdef SortItem* target
    cdef SortItem item
    cdef uint64_t width = 8, low, middle, high, i, j, out
    for low in range(0, count, 8):
        high = min(low + 8, count)
        for i in range(low + 1, high):
            item = items[i]
            j = i
            while j > low and _sorts_before(&item, &items[j - 1]):
                items[j] = items[j - 1]
                j -= 1
            items[j] = item
    while width < count:
        low = 0
        while low < count:
            if low % PASS_ITEMS == 0 and count >= PASS_ITEMS:
                nokv_pass()
            middle = min(low + width, count)
            high = min(middle + width, count)
            if middle == high or not _sorts_before(&items[middle], &items[middle - 1]):
                memcpy(room + low, items + low, (high - low) * sizeof(SortItem))
            else:
                i = low
                j = middle
                out = low
                while i < middle and j < high:
                    if _sorts_before(&items[j], &items[i]):
                        room[out] = items[j]
                        j += 1
                    else:
                        room[out] = items[i]
                        i += 1
                    out += 1
                memcpy(room + out, items + i, (middle - i) * sizeof(SortItem))
                out += middle - i
                memcpy(room + out, items + j, (high - j) * sizeof(SortItem))
            low = high
        target = room
        room = items
        items = target
        width *= 2
    return items

cdef SortItem* _sort_by_head(SortItem* items, SortItem* room, uint64_t count) noexcept nogil:
    """As `_sort`: by the bytes of the heads, the last one first, but for those that all have in common; then what is left equal."""
    cdef uint32_t counts[8][256]
    cdef uint64_t i, j, differing = 0
    cdef uint32_t total, n
    cdef int byte, value
    cdef SortItem* target
    memset(counts, 0, sizeof(counts))
    for i in range(count):
        differing |= items[i].head ^ items[0].head
        for byte in range(8):
            counts[byte][(items[i].head >> (8 * byte)) & 255] += 1
    for byte in range(8):
        if ((differing >> (8 * byte)) & 255) == 0:
            continue
        total = 0
        for value in range(256):
            n = counts[byte][value]
            counts[byte][value] = total
            total += n
        for i in range(count):
            if i % PASS_ITEMS == 0:
                nokv_pass()
            value = (items[i].head >> (8 * byte)) & 255
            room[counts[byte][value]] = items[i]
            counts[byte][value] += 1
        target = room
        room = items
        items = target
    i = 0
    while i < count:
        j = i + 1
        while j < count and items[j].head == items[i].head:
            j += 1
        if j - i > 1:
            target = _sort(items + i, room + i, j - i)
            if target != items + i:
                memcpy(items + i, target, (j - i) * sizeof(SortItem))
        i = j
    return items

cdef size_t _common(Node* a, Node* b, size_t most) noexcept nogil:
    """With how many bytes, of up to `most`, both keys begin."""
    cdef size_t k = 0
    most = min(most, min(node_key_size(a), node_key_size(b)))
    while k < most and node_key(a)[k] == node_key(b)[k]:
        k += 1
    return k

cdef SortItem* sort_nodes(Node* latest, uint64_t count, SortItem* items) noexcept nogil:
    """The `count` pending nodes from `latest` on, sorted: somewhere in `items`, which has room for twice as many."""
    cdef uint64_t i = count
    cdef size_t common
    cdef Node* node = latest
    cdef Node* first
    while i > 0:                        # in the order in which they came: it may be the right one already
        i -= 1
        if i % PASS_ITEMS == PASS_ITEMS - 1:
            nokv_pass()
        items[i].node = node
        node = node_before(node)
    first = items[0].node
    common = node_key_size(first)
    common = _common(first, latest, node_key_size(first))       # heads begin where keys begin to differ: a guess, mostly right
    i = 0
    while i < count:
        if i % PASS_ITEMS == PASS_ITEMS - 1:
            nokv_pass()
        node = items[i].node
        if node_key_size(node) < common or memcmp(node_key(node), node_key(first), common) != 0:
            for i in range(count):
                common = _common(first, items[i].node, common)
            i = 0
            node = first
        items[i].head = _head(node_key(node), node_key_size(node), common)
        i += 1
    return _sort_by_head(items, items + count, count) if count >= RADIX_MIN else _sort(items, items + count, count)

cdef void settle_nodes(Table* t, Node* latest, uint64_t count, SortItem* items) noexcept nogil:
    """Sort the `count` pending nodes from `latest` on and link them. `items` has room for twice as many."""
    _link_sorted(t, sort_nodes(latest, count, items), count)


# -- cursors ----------------------------------------------------------------------------------------------------------
cdef struct Walk:
    Table* table
    Node* node
    Entry* entry
    uint64_t packed                 # of the entry when we came to it: a collapse may have changed it since
    uint64_t newest                 # sequence in the table when the cursor was made
    uint8_t* key                    # prefix || trailer
    size_t capacity
    Search search                   # of the seek to come
    int asked                       # up to which level it was made; -1: not at all
    Node** nodes                    # of a flush: all of them, in order
    uint64_t count
    uint64_t at

cdef Cursor* new_cursor(Table* t) noexcept nogil:
    cdef Cursor* c = <Cursor*>calloc(1, sizeof(Cursor) + sizeof(Walk))
    cdef Walk* w
    if c == NULL:
        return NULL
    w = <Walk*>(<uint8_t*>c + sizeof(Cursor))
    w.table = t
    w.newest = t.largest_sequence
    w.asked = -1
    c.impl = w
    c.ops = &_ops
    return c

cdef Cursor* new_flush_cursor(Table* t, Node** nodes, uint64_t count) noexcept nogil:
    """Walks these nodes, all that the table has, in this order, and frees the array (also if there is no memory for the cursor)."""
    cdef Cursor* c = new_cursor(t)
    if c == NULL:
        free(nodes)
        return NULL
    c.ops = &_flush_ops
    (<Walk*>c.impl).nodes = nodes
    (<Walk*>c.impl).count = count
    return c

cdef void _stand(Cursor* c, Node* node, Entry* entry) noexcept nogil:
    """Publish (node, entry) as the cursor's position; NULL: past an end."""
    cdef Walk* w = <Walk*>c.impl
    cdef size_t size, key_size
    cdef uint8_t* fresh
    if node == NULL or entry == NULL:
        c.valid = False
        return
    key_size = node_key_size(node)
    size = key_size + TRAILER_SIZE
    if size > w.capacity:
        fresh = <uint8_t*>realloc(w.key, size * 2)
        if fresh == NULL:
            c.valid = False
            c.status = CURSOR_NO_MEMORY
            return
        w.key = fresh
        w.capacity = size * 2
    if node != w.node or c.key.size != size or not c.valid:
        memcpy(w.key, node_key(node), key_size)
        nokv_prefetch(node_next(node, 0))           # whoever walks on finds it there
        nokv_prefetch(<uint8_t*>node_next(node, 0) + 64)
    w.node = node
    w.entry = entry
    w.packed = entry.packed
    put_trailer(w.key + key_size, entry.packed >> 8, <int>(entry.packed & 255))
    c.key.data = w.key
    c.key.size = size
    c.value.data = entry_value(entry)
    c.value.size = entry.value_size
    c.valid = True

cdef inline Entry* _oldest(Node* node) noexcept nogil:
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
    while entry_older(entry) != NULL:
        entry = entry_older(entry)
    return entry

cdef void _stand_newest(Cursor* c, Node* node) noexcept nogil:
    _stand(c, node, <Entry*>nokv_load_acquire(<void**>&node.newest) if node != NULL else NULL)

cdef void _stand_oldest(Cursor* c, Node* node) noexcept nogil:
    if node == NULL or node == (<Walk*>c.impl).table.head:
        c.valid = False
    else:
        _stand(c, node, _oldest(node))

cdef void _seek_first(Cursor* c) noexcept nogil:
    _stand_newest(c, node_next((<Walk*>c.impl).table.head, 0))

cdef void _seek_last(Cursor* c) noexcept nogil:
    _stand_oldest(c, (<Walk*>c.impl).table.tails[0])

cdef void _seek(Cursor* c, Slice target) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef size_t size = target.size - TRAILER_SIZE
    cdef uint64_t packed = read_trailer(target.data + size)
    cdef Node* node = w.search.after if w.asked == 0 else _find(w.table, target.data, size)
    cdef Entry* entry
    w.asked = -1
    if node != NULL and node_key_size(node) == size and memcmp(node_key(node), target.data, size) == 0:
        entry = <Entry*>nokv_load_acquire(<void**>&node.newest)
        while entry != NULL and entry.packed > packed:
            entry = entry_older(entry)
        if entry != NULL:
            _stand(c, node, entry)
            return
        node = node_next(node, 0)
    _stand_newest(c, node)

cdef void _ask(Cursor* c, Slice target, int step) noexcept nogil:
    """A level a step, from the order."""
    cdef Walk* w = <Walk*>c.impl
    cdef Search* s = &w.search
    cdef size_t size = target.size - TRAILER_SIZE
    cdef int level = ORDER_LEVEL + 1 - step
    cdef const Order* order
    if step == 0:
        w.asked = -1
        order = <Order*>nokv_load_acquire(<void**>&w.table.order)      # whoever renews it may do so without the GIL
        if order != NULL:
            w.asked = level
            _begin_in_order(w.table, s, order, target.data, size)
            nokv_prefetch(<uint8_t*>s.node - 8 * level)
            nokv_prefetch(<uint8_t*>s.node + sizeof(Node))
        return
    if w.asked != level + 1:
        return
    if level == ORDER_LEVEL:
        if not _walk_order(s, target.data, size):
            w.asked = -1
            return
    else:
        _walk_level(s, target.data, size, level)
    w.asked = level
    if level > 0:
        s.after = node_next(s.node, level - 1)
    if s.after != NULL:
        nokv_prefetch(s.after)
        nokv_prefetch(<uint8_t*>s.after + 64)

cdef void _move_next(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* older = entry_older(w.entry)
    if older != NULL:
        _stand(c, w.node, older)
    else:
        _stand_newest(c, node_next(w.node, 0))

cdef void _move_prev(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* entry = <Entry*>nokv_load_acquire(<void**>&w.node.newest)
    cdef Entry* newer = NULL
    while entry != NULL and entry.packed > w.packed:
        newer = entry
        entry = entry_older(entry)
    if newer != NULL:
        _stand(c, w.node, newer)
    else:
        _stand_oldest(c, <Node*>nokv_load_acquire(<void**>&w.node.previous))

cdef void _flush_stand(Cursor* c, uint64_t at) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef uint8_t* ahead
    w.at = at
    if at + AHEAD < w.count:
        ahead = <uint8_t*>w.nodes[at + AHEAD]
        nokv_prefetch(ahead)
        nokv_prefetch(ahead + 64)
        nokv_prefetch(ahead + 128)
    _stand_newest(c, w.nodes[at] if at < w.count else NULL)

cdef void _flush_seek_first(Cursor* c) noexcept nogil:
    _flush_stand(c, 0)

cdef void _flush_next(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* older = entry_older(w.entry)
    if older != NULL:
        _stand(c, w.node, older)
    else:
        _flush_stand(c, w.at + 1)

cdef void _flush_seek(Cursor* c, Slice target) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef uint64_t low = 0, high = w.count, middle
    cdef size_t size = target.size - TRAILER_SIZE
    while low < high:
        middle = low + (high - low) // 2
        if compare_bytes(node_key(w.nodes[middle]), node_key_size(w.nodes[middle]), target.data, size) < 0:
            low = middle + 1
        else:
            high = middle
    _flush_stand(c, low)
    if c.valid and node_key_size(w.node) == size and memcmp(node_key(w.node), target.data, size) == 0:
        while c.valid and w.node == w.nodes[low] and w.packed > read_trailer(target.data + size):
            _flush_next(c)

cdef void _flush_seek_last(Cursor* c) noexcept nogil:
    (<Walk*>c.impl).at = (<Walk*>c.impl).count - 1
    _stand_oldest(c, (<Walk*>c.impl).nodes[(<Walk*>c.impl).at])

cdef void _flush_prev(Cursor* c) noexcept nogil:
    cdef Walk* w = <Walk*>c.impl
    cdef Entry* entry = w.node.newest
    cdef Entry* newer = NULL
    while entry != w.entry:
        newer = entry
        entry = entry_older(entry)
    if newer != NULL:
        _stand(c, w.node, newer)
    elif w.at == 0:
        c.valid = False
    else:
        w.at -= 1
        _stand_oldest(c, w.nodes[w.at])

cdef void _rest(Cursor* c) noexcept nogil:
    c.valid = False
    (<Walk*>c.impl).newest = <uint64_t>-1       # what is added meanwhile counts when it moves again

cdef void _destroy(Cursor* c) noexcept nogil:
    free((<Walk*>c.impl).nodes)
    free((<Walk*>c.impl).key)
    free(c)

cdef uint64_t _newest(Cursor* c, Slice low, Slice high) noexcept nogil:
    return (<Walk*>c.impl).newest

cdef CursorOps _ops
_ops.newest = _newest
_ops.ask = _ask
_ops.seek_first = _seek_first
_ops.seek_last = _seek_last
_ops.seek = _seek
_ops.next = _move_next
_ops.prev = _move_prev
_ops.rest = _rest
_ops.destroy = _destroy

cdef CursorOps _flush_ops
_flush_ops.newest = _newest
_flush_ops.seek_first = _flush_seek_first
_flush_ops.seek_last = _flush_seek_last
_flush_ops.seek = _flush_seek
_flush_ops.next = _flush_next
_flush_ops.prev = _flush_prev
_flush_ops.rest = _rest
_flush_ops.destroy = _destroy
