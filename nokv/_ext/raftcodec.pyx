"""Bytes of Raft messages between processes and of Raft records in the write-ahead log.

The layouts are docs/formats/raft_message.md and docs/formats/raft_log.md. One call encodes or decodes a whole batch. The
value classes come in through the constructor, because `_ext` lies below `raft`. Everything that is read is hostile until
checked: each length is compared with what is left, counts have limits, and every failure is `Corruption` with the offset and
the field. Encoding a value that the format cannot hold raises ValueError and produces nothing.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject, Py_XDECREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nokv._ext.codec cimport (
    VARINT_SIZE_MAX, Reader, get_fixed32, left, put_fixed32, put_varint, read_byte, read_bytes, read_varint, reader,
)
from nokv._ext.crc32c cimport crc32c

from nokv.errors import Corruption

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t size) except -1

cdef enum:
    VERSION = 1
    BATCH_HEADER = 12           # version, 3 zero bytes, crc32c of the rest, count
    PAYLOAD_MAX = 67108864      # 64 MiB: one message batch or one log record
    DATA_MAX = 33554432         # 32 MiB: one entry, one snapshot's data
    CONTEXT_MAX = 65536
    MEMBERS_MAX = 1024          # in each list of a ConfState
    MESSAGES_MAX = 131072       # in one batch
    ENTRIES_MAX = 262144        # in one batch or record: bounds what a hostile payload can make us allocate
    RECORD_TARGET = 4194304     # a log record is closed after this many bytes

    FLAG_REJECT = 1
    FLAG_ENTRIES = 2
    FLAG_SNAPSHOT = 4
    FLAG_CONTEXT = 8
    FLAG_REJECT_HINT = 16
    FLAG_VOTE = 32
    FLAGS_KNOWN = 63

    LOG_FLAG_HARD_STATE = 1

    TYPE_ENTRIES = 16
    TYPE_HARD_STATE = 17
    TYPE_MARK = 18
    TYPE_REMOVED = 19

    C_OP_ENTRIES = 0
    C_OP_HARD_STATE = 1
    C_OP_RESET = 2
    C_OP_COMPACTED = 3
    C_OP_CHECKPOINT = 4
    C_OP_REMOVED = 5

RECORD_ENTRIES = TYPE_ENTRIES
RECORD_HARD_STATE = TYPE_HARD_STATE
RECORD_MARK = TYPE_MARK
RECORD_REMOVED = TYPE_REMOVED
OP_ENTRIES = C_OP_ENTRIES
OP_HARD_STATE = C_OP_HARD_STATE
OP_RESET = C_OP_RESET
OP_COMPACTED = C_OP_COMPACTED
OP_CHECKPOINT = C_OP_CHECKPOINT
OP_REMOVED = C_OP_REMOVED
BATCH_BYTES_MAX = PAYLOAD_MAX
BATCH_MESSAGES_MAX = MESSAGES_MAX
BATCH_ENTRIES_MAX = ENTRIES_MAX
ENTRY_DATA_MAX = DATA_MAX
SNAPSHOT_DATA_MAX = DATA_MAX


# -- a growing bytes object: what is written is what the caller gets, with no copy at the end --------------------------
cdef class Out:
    cdef PyObject* object
    cdef uint8_t* data
    cdef size_t used
    cdef size_t capacity

    def __cinit__(self):
        self.object = NULL
        self.capacity = 0
        self.used = 0

    def __dealloc__(self):
        Py_XDECREF(self.object)

    cdef int start(self, size_t capacity) except -1:
        fresh = PyBytes_FromStringAndSize(NULL, capacity)
        self.object = <PyObject*>fresh
        # the reference that `fresh` holds goes away at the end of this function: keep one of our own, and make it the
        # only one before the first resize
        self.data = <uint8_t*>PyBytes_AS_STRING(fresh)
        self.capacity = capacity
        self.used = 0
        take_reference(self.object)
        return 0

    cdef int room(self, size_t n) except -1:
        cdef size_t wanted
        if self.capacity - self.used >= n:
            return 0
        if n > <size_t>PAYLOAD_MAX * 2 or self.used + n > <size_t>PAYLOAD_MAX * 2:
            raise ValueError("raft codec: the batch is too large")
        wanted = self.used + n
        if wanted < self.capacity * 2:
            wanted = self.capacity * 2
        _PyBytes_Resize(&self.object, <Py_ssize_t>wanted)
        self.data = <uint8_t*>PyBytes_AS_STRING(<object>self.object)
        self.capacity = wanted
        return 0

    cdef bytes finish(self):
        _PyBytes_Resize(&self.object, <Py_ssize_t>self.used)
        result = <bytes>self.object     # a second reference; ours is dropped here, so that `start` may follow
        Py_XDECREF(self.object)
        self.object = NULL
        self.capacity = 0
        self.used = 0
        return result


cdef extern from *:
    """
    static void nokv_take_reference(PyObject *object) { Py_INCREF(object); }
    """
    void take_reference "nokv_take_reference"(PyObject* object)


cdef inline int put_byte(Out out, int value) except -1:
    out.room(1)
    out.data[out.used] = <uint8_t>value
    out.used += 1
    return 0


cdef inline int put_number(Out out, uint64_t value) except -1:
    out.room(VARINT_SIZE_MAX)
    out.used += put_varint(out.data + out.used, value)
    return 0


cdef int put_data(Out out, object data, size_t limit, str field) except -1:
    if type(data) is not bytes:
        raise ValueError(f"raft codec: {field} must be bytes, not {type(data).__name__}")
    cdef size_t size = <size_t>PyBytes_GET_SIZE(data)
    if size > limit:
        raise ValueError(f"raft codec: {field} has {size} bytes, at most {limit} fit")
    out.room(VARINT_SIZE_MAX + size)
    out.used += put_varint(out.data + out.used, size)
    memcpy(out.data + out.used, PyBytes_AS_STRING(data), size)
    out.used += size
    return 0


cdef inline int number_of(object member) except -1:
    """The number behind an enum member; they are small and never change (docs/formats)."""
    cdef long value = member if isinstance(member, int) else member._value_
    if value < 0 or value > 255:
        raise ValueError(f"raft codec: {member!r} does not fit one byte")
    return <int>value


cdef uint64_t numeric(object value, str field) except? 18446744073709551615:
    try:
        return value
    except (OverflowError, TypeError):
        raise ValueError(f"raft codec: {field} is {value!r}, not a number of 64 bits") from None


cdef int put_entry(Out out, object entry) except -1:
    put_number(out, numeric(entry.term, "entry.term"))
    put_number(out, numeric(entry.index, "entry.index"))
    put_byte(out, number_of(entry.kind))
    put_data(out, entry.data, DATA_MAX, "entry.data")
    return 0


cdef int put_members(Out out, object members) except -1:
    if len(members) > MEMBERS_MAX:
        raise ValueError("raft codec: too many members")
    put_number(out, <uint64_t>len(members))
    for member in members:
        put_number(out, numeric(member, "member"))
    return 0


cdef int put_metadata(Out out, object metadata) except -1:
    cdef object conf_state = metadata.conf_state
    put_number(out, numeric(metadata.index, "snapshot.index"))
    put_number(out, numeric(metadata.term, "snapshot.term"))
    put_members(out, conf_state.voters)
    put_members(out, conf_state.learners)
    put_members(out, conf_state.voters_outgoing)
    put_members(out, conf_state.learners_next)
    put_byte(out, 1 if conf_state.auto_leave else 0)
    return 0


cdef int put_hard_state(Out out, object hard_state) except -1:
    put_number(out, numeric(hard_state.term, "hard_state.term"))
    put_number(out, numeric(hard_state.vote, "hard_state.vote"))
    put_number(out, numeric(hard_state.commit, "hard_state.commit"))
    return 0


cdef class Input:
    """A buffer being decoded, with the words for its errors."""

    cdef Py_buffer view
    cdef bint held
    cdef Reader r
    cdef const uint8_t* start
    cdef str what

    def __cinit__(self, data, str what):
        self.held = False
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.held = True
        self.start = <const uint8_t*>self.view.buf
        self.r = reader(self.start, <size_t>self.view.len)
        self.what = what

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef object error(self, str field):
        return Corruption(f"{self.what}: {field} at byte {self.r.pos - self.start} of {self.view.len}")

    cdef uint64_t number(self, str field) except? 18446744073709551615:
        cdef uint64_t value = 0
        if not read_varint(&self.r, &value):
            raise self.error(field)
        return value

    cdef int byte(self, str field) except -1:
        cdef uint8_t value = 0
        if not read_byte(&self.r, &value):
            raise self.error(field)
        return value

    cdef bytes data(self, size_t limit, str field):
        cdef const uint8_t* p = NULL
        cdef size_t size = 0
        cdef Reader saved = self.r
        if not read_bytes(&self.r, &p, &size):
            raise self.error(field)
        if size > limit:
            self.r = saved
            raise self.error(field + " (too long)")
        return PyBytes_FromStringAndSize(<const char*>p, <Py_ssize_t>size)

    cdef uint64_t count(self, uint64_t limit, uint64_t item_bytes, str field) except? 18446744073709551615:
        """A count of items that each take at least `item_bytes` of what is left."""
        cdef uint64_t n = self.number(field)
        if n > limit or n > left(&self.r) // item_bytes:
            raise self.error(field)
        return n

    cdef tuple members(self):
        cdef uint64_t n = self.count(MEMBERS_MAX, 1, "members")
        cdef uint64_t i
        cdef list found = []
        for i in range(n):
            found.append(self.number("member"))
        return tuple(found)


cdef class RaftCodec:
    """Encoder and decoder over the given value classes. Any thread; holds no state between calls.

    `message_types` and `entry_kinds` are indexed by wire number; None marks a number that may not travel.
    """

    cdef object message_class, entry_class, snapshot_class, metadata_class, conf_state_class, hard_state_class
    cdef tuple message_types, entry_kinds

    def __init__(
        self, *, message, entry, snapshot, metadata, conf_state, hard_state, tuple message_types, tuple entry_kinds
    ):
        self.message_class = message
        self.entry_class = entry
        self.snapshot_class = snapshot
        self.metadata_class = metadata
        self.conf_state_class = conf_state
        self.hard_state_class = hard_state
        self.message_types = message_types
        self.entry_kinds = entry_kinds

    # -- messages -----------------------------------------------------------------------------------------------------
    def encode_messages(self, list messages not None):
        """Bytes of a batch of (group_id, Message)."""
        cdef Out out = Out()
        cdef Py_ssize_t entries = 0
        cdef int flags, kind
        if len(messages) > MESSAGES_MAX:
            raise ValueError(f"raft codec: {len(messages)} messages, at most {MESSAGES_MAX} in one batch")
        out.start(256 + 64 * len(messages))
        out.used = BATCH_HEADER
        for group_id, message in messages:
            kind = number_of(message.type)
            if kind >= len(self.message_types) or self.message_types[kind] is None:
                raise ValueError(f"raft codec: {message.type!r} does not travel between processes")
            if message.responses:
                raise ValueError("raft codec: responses do not travel between processes")
            flags = 0
            if message.reject:
                flags |= FLAG_REJECT
            if message.entries:
                flags |= FLAG_ENTRIES
            if message.snapshot is not None:
                flags |= FLAG_SNAPSHOT
            if message.context:
                flags |= FLAG_CONTEXT
            if message.reject_hint:
                flags |= FLAG_REJECT_HINT
            if message.vote:
                flags |= FLAG_VOTE
            put_byte(out, kind)
            put_byte(out, flags)
            put_number(out, numeric(group_id, "group_id"))
            put_number(out, numeric(message.to, "message.to"))
            put_number(out, numeric(message.sender, "message.sender"))
            put_number(out, numeric(message.term, "message.term"))
            put_number(out, numeric(message.log_term, "message.log_term"))
            put_number(out, numeric(message.index, "message.index"))
            put_number(out, numeric(message.commit, "message.commit"))
            if flags & FLAG_REJECT_HINT:
                put_number(out, numeric(message.reject_hint, "message.reject_hint"))
            if flags & FLAG_VOTE:
                put_number(out, numeric(message.vote, "message.vote"))
            if flags & FLAG_CONTEXT:
                put_data(out, message.context, CONTEXT_MAX, "message.context")
            if flags & FLAG_SNAPSHOT:
                put_metadata(out, message.snapshot.metadata)
                put_data(out, message.snapshot.data, DATA_MAX, "snapshot.data")
            if flags & FLAG_ENTRIES:
                entries += len(message.entries)
                if entries > ENTRIES_MAX:
                    raise ValueError(f"raft codec: more than {ENTRIES_MAX} entries in one batch")
                put_number(out, <uint64_t>len(message.entries))
                for entry in message.entries:
                    put_entry(out, entry)
        if out.used > <size_t>PAYLOAD_MAX:
            raise ValueError(f"raft codec: {out.used} bytes, at most {PAYLOAD_MAX} in one batch")
        put_fixed32(out.data, VERSION)
        put_fixed32(out.data + 8, <uint32_t>len(messages))
        put_fixed32(out.data + 4, crc32c(0, out.data + 8, out.used - 8))
        return out.finish()

    def decode_messages(self, data):
        """The list of (group_id, Message) in a batch. Corruption if a single bit is not as it was sent."""
        cdef Input source = Input(data, "raft message batch")
        cdef size_t size = <size_t>source.view.len
        cdef uint32_t i, n
        cdef uint64_t entries = 0
        cdef list found = []
        if size < BATCH_HEADER:
            raise source.error("header cut short")
        if size > <size_t>PAYLOAD_MAX:
            raise source.error("batch larger than the limit")
        if get_fixed32(source.start) != VERSION:
            raise source.error(f"unknown version {get_fixed32(source.start)}")
        if get_fixed32(source.start + 4) != crc32c(0, source.start + 8, size - 8):
            raise source.error("checksum mismatch")
        n = get_fixed32(source.start + 8)
        source.r.pos = source.start + BATCH_HEADER
        if n > MESSAGES_MAX or n > left(&source.r) // 9:
            raise source.error("message count")
        for i in range(n):
            found.append(self._message(source, &entries))
        if left(&source.r) != 0:
            raise source.error("bytes after the last message")
        return found

    cdef object _message(self, Input source, uint64_t* entries_total):
        cdef int kind = source.byte("message.type")
        cdef int flags = source.byte("message.flags")
        cdef uint64_t reject_hint = 0, vote = 0, n, i
        cdef object message_type
        if kind >= len(self.message_types) or self.message_types[kind] is None:
            raise source.error(f"message.type {kind}")
        if flags & ~FLAGS_KNOWN:
            raise source.error(f"message.flags {flags}")
        message_type = self.message_types[kind]
        group_id = source.number("group_id")
        to = source.number("message.to")
        sender = source.number("message.sender")
        term = source.number("message.term")
        log_term = source.number("message.log_term")
        index = source.number("message.index")
        commit = source.number("message.commit")
        if flags & FLAG_REJECT_HINT:
            reject_hint = source.number("message.reject_hint")
        if flags & FLAG_VOTE:
            vote = source.number("message.vote")
        context = source.data(CONTEXT_MAX, "message.context") if flags & FLAG_CONTEXT else b""
        snapshot = None
        if flags & FLAG_SNAPSHOT:
            metadata = self._metadata(source)
            snapshot = self.snapshot_class(metadata, source.data(DATA_MAX, "snapshot.data"))
        cdef list entries = []
        if flags & FLAG_ENTRIES:
            entries = self._entries(source, entries_total)
        return group_id, self.message_class(
            message_type, to, sender, term, log_term, index, entries, commit, vote, snapshot,
            bool(flags & FLAG_REJECT), reject_hint, context,
        )

    cdef list _entries(self, Input source, uint64_t* total):
        cdef uint64_t n = source.count(ENTRIES_MAX - total[0], 4, "entry count")
        cdef uint64_t i
        cdef int kind
        cdef list found = []
        total[0] += n
        for i in range(n):
            term = source.number("entry.term")
            index = source.number("entry.index")
            kind = source.byte("entry.kind")
            if kind >= len(self.entry_kinds) or self.entry_kinds[kind] is None:
                raise source.error(f"entry.kind {kind}")
            found.append(self.entry_class(term, index, self.entry_kinds[kind], source.data(DATA_MAX, "entry.data")))
        return found

    cdef object _metadata(self, Input source):
        cdef int auto_leave
        index = source.number("snapshot.index")
        term = source.number("snapshot.term")
        voters = source.members()
        learners = source.members()
        voters_outgoing = source.members()
        learners_next = source.members()
        auto_leave = source.byte("conf_state.auto_leave")
        if auto_leave > 1:
            raise source.error("conf_state.auto_leave")
        conf_state = self.conf_state_class(voters, learners, voters_outgoing, learners_next, bool(auto_leave))
        return self.metadata_class(index, term, conf_state)

    cdef object _hard_state(self, Input source):
        term = source.number("hard_state.term")
        vote = source.number("hard_state.vote")
        commit = source.number("hard_state.commit")
        return self.hard_state_class(term, vote, commit)

    # -- log records --------------------------------------------------------------------------------------------------
    def encode_entries(self, group_id, hard_state, list entries not None):
        """Records [(type, payload)] for one group's Ready: its entries, and its hard state in the last of them."""
        cdef Out out = Out()
        cdef list records = []
        cdef Py_ssize_t i = 0, first, n = len(entries)
        cdef size_t count_at, target
        if n == 0:
            if hard_state is not None:
                out.start(64)
                put_byte(out, VERSION)
                put_number(out, numeric(group_id, "group_id"))
                put_hard_state(out, hard_state)
                records.append((TYPE_HARD_STATE, out.finish()))
            return records
        while i < n:
            # One record holds entries up to RECORD_TARGET bytes; the hard state goes into the last, so that a torn
            # tail never leaves a commit index beyond the entries.
            first = i
            target = 0
            while i < n and i - first < ENTRIES_MAX and (i == first or target < RECORD_TARGET):
                target += <size_t>len(entries[i].data) + 32
                i += 1
            out.start(target + 64)
            put_byte(out, VERSION)
            put_byte(out, LOG_FLAG_HARD_STATE if hard_state is not None and i == n else 0)
            put_number(out, numeric(group_id, "group_id"))
            if hard_state is not None and i == n:
                put_hard_state(out, hard_state)
            put_number(out, <uint64_t>(i - first))
            for entry in entries[first:i]:
                put_entry(out, entry)
            records.append((TYPE_ENTRIES, out.finish()))
        return records

    def encode_mark(self, int op, group_id, metadata, hard_state=None):
        """Record (type, payload): the log of the group starts after `metadata.index`. Reset, compaction or checkpoint."""
        cdef Out out = Out()
        if op < C_OP_RESET or op > C_OP_CHECKPOINT:
            raise ValueError(f"raft codec: {op} is not a mark")
        out.start(128)
        put_byte(out, VERSION)
        put_byte(out, op)
        put_byte(out, LOG_FLAG_HARD_STATE if hard_state is not None else 0)
        put_number(out, numeric(group_id, "group_id"))
        put_metadata(out, metadata)
        if hard_state is not None:
            put_hard_state(out, hard_state)
        return TYPE_MARK, out.finish()

    def encode_removed(self, group_id):
        """Record (type, payload): whatever came before about the group is void."""
        cdef Out out = Out()
        out.start(16)
        put_byte(out, VERSION)
        put_number(out, numeric(group_id, "group_id"))
        return TYPE_REMOVED, out.finish()

    def decode_record(self, int record_type, data):
        """(group_id, op, metadata or None, hard state or None, entries). The WAL has verified the checksum."""
        cdef Input source = Input(data, "raft log record")
        cdef int op, flags
        cdef uint64_t entries_total = 0
        cdef list entries = []
        if source.view.len > PAYLOAD_MAX:
            raise source.error("record larger than the limit")
        if source.byte("version") != VERSION:
            raise source.error("unknown version")
        metadata = None
        hard_state = None
        if record_type == TYPE_ENTRIES:
            op = C_OP_ENTRIES
            flags = source.byte("flags")
            group_id = source.number("group_id")
            if flags & ~LOG_FLAG_HARD_STATE:
                raise source.error(f"flags {flags}")
            if flags:
                hard_state = self._hard_state(source)
            entries = self._entries(source, &entries_total)
        elif record_type == TYPE_HARD_STATE:
            op = C_OP_HARD_STATE
            group_id = source.number("group_id")
            hard_state = self._hard_state(source)
        elif record_type == TYPE_MARK:
            op = source.byte("mark")
            if op < C_OP_RESET or op > C_OP_CHECKPOINT:
                raise source.error(f"mark {op}")
            flags = source.byte("flags")
            if flags & ~LOG_FLAG_HARD_STATE:
                raise source.error(f"flags {flags}")
            group_id = source.number("group_id")
            metadata = self._metadata(source)
            if flags:
                hard_state = self._hard_state(source)
        elif record_type == TYPE_REMOVED:
            op = C_OP_REMOVED
            group_id = source.number("group_id")
        else:
            raise source.error(f"record type {record_type}")
        if left(&source.r) != 0:
            raise source.error("bytes after the record")
        return group_id, op, metadata, hard_state, entries
