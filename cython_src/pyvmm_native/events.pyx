# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
# cython: embedsignature=True, embedsignature.format=clinic
"""The stream of events of one machine: a bounded buffer that any thread fills and one thread takes.

While it is not watched, an emitter reads one flag and does nothing else. While it is, the emitter
appends the event under a mutex that is held for the copy of a few bytes, with or without the GIL.
Two halves take turns: the reader exchanges them under the mutex, in constant time, and reads the
full one without it. A half that is full drops further events and counts them, so a guest can
neither fill the host's memory nor be made to wait by a slow reader.

The time of an event is taken under the mutex, from CLOCK_MONOTONIC, so events are in order of time.
Each has a sequence number; those that were dropped have theirs too.

A batch, which `take` returns and `event_decoder.decode` reads, explains itself:

* `kinds` has the kinds of events in it: number, name, and the name and type of each field, where a
  type is "u" (unsigned, 64 bits) or "s" (string);
* `strings` has the strings in it by number;
* `payload` is a sequence of events. Each is a row of LEB128 numbers: kind, nanoseconds since the
  event before (the first: since `base_ns`), and the fields. A string is its number in the table, or
  0, its length in bytes, and its text in UTF-8.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

import os

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from "<string.h>" nogil:
    void *memcpy(void *target, const void *source, size_t size)
    void *memset(void *target, int value, size_t size)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *time)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t size)

cdef enum:
    MAX_NUMBER_BYTES = 10   # of a 64-bit number in LEB128
    MAX_TABLE_TEXT = 64     # longer strings, which hardly repeat, are not put into the table
    MAX_TEXT = 400          # longer ones are cut

HALF_BYTES = 1 << 20
"""Bytes of events that may wait for the reader."""

# Name and fields of the kinds that native code emits, by number.
_NATIVE_KINDS = (
    ("register_read", (("table", "s"), ("register", "s"), ("value", "u"))),
    ("register_write", (("table", "s"), ("register", "s"), ("value", "u"))),
    ("descriptor", (
        ("device", "s"), ("queue", "s"), ("head", "u"), ("table_gpa", "u"), ("index", "u"),
        ("gpa", "u"), ("length", "u"), ("flags", "u"), ("next", "u"),
    )),
    ("chain", (
        ("device", "s"), ("queue", "s"), ("head", "u"), ("avail_index", "u"), ("elements", "u"),
        ("readable_bytes", "u"), ("writable_bytes", "u"),
    )),
    ("used", (
        ("device", "s"), ("queue", "s"), ("head", "u"), ("used_index", "u"), ("length", "u"),
    )),
    ("used_notification", (
        ("device", "s"), ("queue", "s"), ("sent", "u"), ("why", "s"), ("used_event", "u"),
        ("used_index", "u"), ("buffers", "u"),
    )),
    ("avail_notifications", (
        ("device", "s"), ("queue", "s"), ("enabled", "u"), ("why", "s"), ("avail_event", "u"),
    )),
    ("vm_exit", (
        ("vcpu", "u"), ("reason", "s"), ("address", "u"), ("size", "u"), ("write", "u"),
    )),
)


cdef class Batch:
    """Consecutive events, encoded; see the module.

    `first_seq` is the sequence number of the first event, `base_ns` the CLOCK_MONOTONIC from which
    its time counts. There are `event_count` events, after which `dropped` were lost for want of
    room. `kinds` has (number, name, fields) of each kind, whose fields are (name, type) pairs,
    `strings` has (number, text) of each string, and `payload` the events.
    """

    # No NamedTuple: making one takes 0.3 ms of every start.
    cdef readonly object first_seq
    cdef readonly object base_ns
    cdef readonly object event_count
    cdef readonly object dropped
    cdef readonly list kinds
    cdef readonly list strings
    cdef readonly bytes payload

    def __init__(
        self, first_seq, base_ns, event_count, dropped, list kinds, list strings, bytes payload
    ):
        self.first_seq, self.base_ns = first_seq, base_ns
        self.event_count, self.dropped = event_count, dropped
        self.kinds, self.strings, self.payload = kinds, strings, payload


cdef Half *new_half(size_t size) noexcept:
    """Return an empty half, or NULL if there is no memory."""
    cdef Half *half = <Half *>calloc(1, sizeof(Half))
    if half == NULL:
        return NULL
    half.data = <uint8_t *>malloc(size)
    if half.data == NULL:
        free(half)
        return NULL
    return half


cdef void free_half(Half *half) noexcept:
    if half != NULL:
        free(half.data)
        free(half)


cdef inline uint8_t *put_number(uint8_t *target, uint64_t value) noexcept nogil:
    while value >= 0x80:
        target[0] = <uint8_t>(value | 0x80)
        value >>= 7
        target += 1
    target[0] = <uint8_t>value
    return target + 1


@cython.final
cdef class EventBuffer:
    """The events of one machine that wait for their reader.

    `watched` is True between `start` and `stop`. Events are emitted by any thread, `start`, `take`
    and `stop` are called by one thread at a time.
    """

    def __cinit__(self):
        pthread_mutex_init(&self._mutex, NULL)
        self._wake_fd = -1
        self._kind_ids = {}
        self._kinds = []
        self._string_ids = {}
        self._strings = [""]  # 0 stands for a string that follows
        for name, fields in _NATIVE_KINDS:
            string_fields = sum(1 << i for i, (_, kind) in enumerate(fields) if kind == "s")
            self._add_kind(name, tuple(field for field, _ in fields), string_fields)

    def __dealloc__(self):
        self._free_halves()
        pthread_mutex_destroy(&self._mutex)

    # --- The reader's side ------------------------------------------------------------------
    def start(self, size_t half_bytes=HALF_BYTES):
        """Keep events from now on, at most `half_bytes` of them until they are taken.

        Return an eventfd, which is readable when half of that is used; `stop` closes it.
        RuntimeError if the buffer is watched already; MemoryError, OSError.
        """
        if self._filling != NULL:
            raise RuntimeError("the events are watched already")
        cdef Half *filling = new_half(half_bytes)
        cdef Half *taken = new_half(half_bytes)
        cdef int wake_fd
        try:
            if filling == NULL or taken == NULL:
                raise MemoryError
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except (MemoryError, OSError):
            free_half(filling)
            free_half(taken)
            raise
        # Native code may still be emitting an event that it began before the last `stop`.
        pthread_mutex_lock(&self._mutex)
        self._filling, self._taken = filling, taken
        self._half_bytes, self._wake_fd = half_bytes, wake_fd
        self._next_seq = 0
        self._woken = False
        pthread_mutex_unlock(&self._mutex)
        self.watched = True
        return self._wake_fd

    def take(self):
        """Return all events that wait, as a `Batch`; None if there are none."""
        cdef Half *half
        cdef uint64_t first_seq
        if self._filling == NULL:
            return None
        pthread_mutex_lock(&self._mutex)
        half, self._filling = self._filling, self._taken
        self._taken = half
        first_seq = self._next_seq
        self._next_seq += half.count + half.dropped
        self._woken = False
        pthread_mutex_unlock(&self._mutex)
        if half.count == 0 and half.dropped == 0:
            return None
        batch = Batch(
            first_seq,
            half.base_ns,
            half.count,
            half.dropped,
            [(i, *self._kinds[i]) for i in range(len(self._kinds)) if half.kinds[i]],
            [(i, self._strings[i]) for i in range(1, len(self._strings)) if half.strings[i]],
            PyBytes_FromStringAndSize(<char *>half.data, half.length),
        )
        half.length = half.count = half.dropped = half.base_ns = half.last_ns = 0
        memset(half.kinds, 0, sizeof(half.kinds))
        memset(half.strings, 0, sizeof(half.strings))
        return batch

    def stop(self):
        """Keep no further events; return those that wait, as `take` does."""
        if self._filling == NULL:
            return None
        self.watched = False
        batch = self.take()
        self._free_halves()
        return batch

    cdef int _free_halves(self) noexcept:
        cdef Half *filling
        cdef Half *taken
        cdef int wake_fd
        pthread_mutex_lock(&self._mutex)
        filling, taken, wake_fd = self._filling, self._taken, self._wake_fd
        self._filling = self._taken = NULL
        self._wake_fd = -1
        pthread_mutex_unlock(&self._mutex)
        free_half(filling)
        free_half(taken)
        if wake_fd >= 0:
            os.close(wake_fd)
        return 0

    def arm(self, is_kind, on_event):
        """Call `on_event(seq, name, fields)` with each event whose kind `is_kind(name)` accepts.

        It is called after the event was appended, on the thread that emits it, with the GIL, and
        must not raise. `disarm` ends that; called by any thread with the GIL.
        """
        self._is_step_kind, self._on_step_event = is_kind, on_event
        for i in range(len(self._kinds)):
            self._step_kinds[i] = bool(is_kind(self._kinds[i][0]))
        self._armed = True

    def disarm(self):
        """Call back with no further event."""
        self._armed = False
        self._is_step_kind = self._on_step_event = None

    def kind_names(self):
        """Return the names of the kinds: those of native code, and all that were ever emitted."""
        return {name for name, _ in self._kinds}

    # --- The emitters' side -----------------------------------------------------------------
    def event(self, str name not None, **fields):
        """Append the event `name`, if the buffer is watched.

        Values are strings or integers; an integer beyond 64 bits unsigned becomes a string.
        """
        cdef uint64_t values[MAX_FIELDS]
        cdef const char *texts[MAX_FIELDS]
        cdef size_t lengths[MAX_FIELDS]
        cdef uint32_t string_fields = 0
        cdef int count = 0, kind
        cdef list encoded = []
        cdef object value
        if not self.watched:
            return
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"event {name} has more than {MAX_FIELDS} fields")
        for value in fields.values():
            texts[count] = NULL
            if isinstance(value, int) and 0 <= value < 1 << 64:
                values[count] = value
            else:
                text = str(value)
                string_fields |= 1 << count
                values[count] = self.string_id(text)
                if values[count] == 0:
                    data = text.encode(errors="replace")[:MAX_TEXT]
                    encoded.append(data)
                    texts[count], lengths[count] = PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
            count += 1
        kind = self._add_kind(name, tuple(fields), string_fields)
        self._append(kind, values, count, texts, lengths)

    cdef uint64_t string_id(self, str text) except? 0:
        number = self._string_ids.get(text)
        if number is None:
            if len(text) > MAX_TABLE_TEXT or len(self._strings) >= MAX_STRINGS:
                return 0
            # Appended first: a number is never seen before its text, which is what UTF-8 can hold.
            self._strings.append(text.encode(errors="replace").decode())
            number = self._string_ids[text] = len(self._strings) - 1
        return number

    cdef int _add_kind(self, str name, tuple fields, uint32_t string_fields) except -2:
        """Return the number of the kind; -1 if the table is full."""
        key = (name, fields, string_fields)
        number = self._kind_ids.get(key)
        if number is None:
            if len(self._kinds) >= MAX_KINDS:
                return -1
            types = ["s" if string_fields >> i & 1 else "u" for i in range(len(fields))]
            self._string_fields[len(self._kinds)] = string_fields
            is_kind = self._is_step_kind
            self._step_kinds[len(self._kinds)] = is_kind is not None and bool(is_kind(name))
            self._kinds.append((name, tuple(zip(fields, types))))
            number = self._kind_ids[key] = len(self._kinds) - 1
        return number

    cdef void emit(self, int kind, const uint64_t *values, int count) noexcept nogil:
        self._append(kind, values, count, NULL, NULL)

    cdef void _append(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil:
        cdef uint64_t seq = self._keep(kind, values, count, texts, lengths)
        if self._armed and kind >= 0 and self._step_kinds[kind]:
            self._call_step(seq, kind, values, count, texts, lengths)

    cdef void _call_step(
        self, uint64_t seq, int kind, const uint64_t *values, int count, const char **texts,
        const size_t *lengths
    ) noexcept with gil:
        cdef int i
        on_event = self._on_step_event
        if on_event is None:
            return
        name, types = self._kinds[kind]
        fields = {}
        for i in range(count):
            field, field_type = types[i]
            if field_type == "u":
                fields[field] = values[i]
            elif values[i] == 0 and texts != NULL and texts[i] != NULL:
                fields[field] = texts[i][:lengths[i]].decode(errors="replace")
            else:
                fields[field] = self._strings[values[i]]
        on_event(seq, name, fields)

    cdef uint64_t _keep(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil:
        """Append an event if there is room; return its sequence number."""
        cdef size_t most = MAX_NUMBER_BYTES * (2 + <size_t>count)
        cdef timespec now
        cdef uint64_t ns
        cdef uint8_t *end
        cdef Half *half
        cdef uint64_t one = 1, seq
        cdef int i
        if texts != NULL:
            for i in range(count):
                if texts[i] != NULL:
                    most += MAX_NUMBER_BYTES + lengths[i]
        pthread_mutex_lock(&self._mutex)
        half = self._filling
        if half == NULL:
            pthread_mutex_unlock(&self._mutex)
            return 0
        seq = self._next_seq + half.count + half.dropped
        # Once one was dropped all are, so that those that are kept have consecutive numbers.
        if kind < 0 or half.dropped or half.length + most > self._half_bytes:
            half.dropped += 1
            pthread_mutex_unlock(&self._mutex)
            return seq
        clock_gettime(CLOCK_MONOTONIC, &now)
        ns = <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
        if half.count == 0:
            half.base_ns = half.last_ns = ns
        end = half.data + half.length
        end = put_number(end, kind)
        end = put_number(end, ns - half.last_ns)
        half.last_ns = ns
        for i in range(count):
            end = put_number(end, values[i])
            if self._string_fields[kind] >> i & 1:
                if values[i]:
                    half.strings[values[i]] = 1
                elif texts != NULL and texts[i] != NULL:
                    end = put_number(end, lengths[i])
                    memcpy(end, texts[i], lengths[i])
                    end += lengths[i]
                else:
                    end = put_number(end, 0)
        half.kinds[kind] = 1
        half.length = end - half.data
        half.count += 1
        if half.length > self._half_bytes // 2 and not self._woken:
            self._woken = True
            # Under the mutex, which keeps `stop` from closing it; an eventfd does not block here.
            write(self._wake_fd, &one, sizeof(one))
        pthread_mutex_unlock(&self._mutex)
        return seq


def native_kinds():
    """Return the name and the fields, as in `Batch.kinds`, of each kind that native code emits."""
    return _NATIVE_KINDS
