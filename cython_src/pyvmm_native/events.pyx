# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
# cython: embedsignature=True, embedsignature.format=clinic
"""The stream of events of one machine: a bounded buffer that any thread fills and one thread takes.

While it is not watched, an emitter reads one flag and does nothing else. While it is, the emitter
appends the event under a mutex that is held for the copy of a few bytes, with or without the GIL,
and the reader takes all that wait in constant time: see event_halves.pxd. A buffer that is full
drops further events and counts them, so a guest can neither fill the host's memory nor be made to
wait by a slow reader. An event for which there is no memory is dropped, too: no emitter fails
because somebody watches.

The kinds and the strings of events have numbers, from tables that only grow. Strings may come from
the guest, which cannot use the table up: the last `NAME_STRINGS` entries are for native code, whose
events name devices, queues and registers by numbers only.

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
from libc.stdint cimport uint32_t, uint64_t

from pyvmm_native.event_halves cimport (
    append, clear_half, Event, free_half, Half, MAX_KINDS, MAX_STRINGS, new_half, next_half,
    NOT_KEPT, pthread_mutex_t, start_halves, stop_halves,
)

import os

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef enum:
    MAX_TABLE_TEXT = 64     # longer strings, which hardly repeat, are not put into the table
    MAX_TEXT = 400          # longer ones are cut
    NAME_STRINGS = 1024

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


@cython.final
cdef class EventBuffer:
    """The events of one machine that wait for their reader.

    `watched` is True between `start` and `stop`. Events are emitted by any thread, `start`, `take`
    and `stop` are called by one thread at a time.
    """

    def __cinit__(self):
        pthread_mutex_init(&self._halves.mutex, NULL)
        self._kind_ids = {}
        self._kinds = []
        self._string_ids = {}
        self._strings = [""]  # 0 stands for a string that follows
        for name, fields in _NATIVE_KINDS:
            string_fields = sum(1 << i for i, (_, kind) in enumerate(fields) if kind == "s")
            self._add_kind(name, tuple(field for field, _ in fields), string_fields)

    def __dealloc__(self):
        stop_halves(&self._halves)
        pthread_mutex_destroy(&self._halves.mutex)

    # --- The reader's side ------------------------------------------------------------------
    def start(self, size_t half_bytes=HALF_BYTES):
        """Keep events from now on, at most `half_bytes` of them until they are taken.

        Return an eventfd, which is readable when half of that is used; `stop` closes it.
        RuntimeError if the buffer is watched already; MemoryError, OSError.
        """
        if self._halves.filling != NULL:
            raise RuntimeError("the events are watched already")
        cdef Half *filling = new_half(half_bytes)
        cdef Half *taken = new_half(half_bytes)
        cdef int wake_fd
        try:
            if filling == NULL or taken == NULL:
                raise MemoryError
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            free_half(filling)
            free_half(taken)
            raise
        start_halves(&self._halves, filling, taken, half_bytes, wake_fd)
        self.watched = True
        return wake_fd

    def take(self):
        """Return all events that wait, as a `Batch`; None if there are none.

        After a MemoryError the next call returns the same events.
        """
        cdef Half *half = next_half(&self._halves)
        if half == NULL:
            return None
        batch = Batch(
            half.first_seq,
            half.base_ns,
            half.count,
            half.dropped,
            [(i, *self._kinds[i]) for i in range(len(self._kinds)) if half.kinds[i]],
            [(i, self._strings[i]) for i in range(1, len(self._strings)) if half.strings[i]],
            PyBytes_FromStringAndSize(<char *>half.data, half.length),
        )
        clear_half(half)
        return batch

    def stop(self):
        """Keep no further events; return those that wait, as `take` does."""
        cdef Batch batch
        cdef Half *rest
        if self._halves.filling == NULL:
            return None
        self.watched = False
        try:
            batch = self.take()
            rest = next_half(&self._halves)
            if batch is not None and rest != NULL:  # an earlier call of `take` has failed
                batch.dropped += rest.count + rest.dropped
        finally:
            stop_halves(&self._halves)
        return batch

    def arm(self, is_kind, on_event):
        """Call `on_event(seq, name, fields)` with each event whose kind `is_kind(name)` accepts.

        It is called after the event was appended, on the thread that emits it, with the GIL.
        Neither may raise. `disarm` ends that; called by any thread with the GIL.
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
        if not self.watched:
            return
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"event {name} has more than {MAX_FIELDS} fields")
        try:
            self._encode(name, fields)
        except MemoryError:
            self._append(-1, NULL, 0, NULL, NULL)

    cdef int _encode(self, str name, dict fields) except -1:
        """Append the event, unless there is a MemoryError."""
        cdef uint64_t values[MAX_FIELDS]
        cdef const char *texts[MAX_FIELDS]
        cdef size_t lengths[MAX_FIELDS]
        cdef uint32_t string_fields = 0
        cdef int count = 0
        cdef list encoded = []
        cdef object value
        for value in fields.values():
            texts[count] = NULL
            if isinstance(value, int) and 0 <= value < 1 << 64:
                values[count] = value
            else:
                text = str(value)
                string_fields |= 1 << count
                values[count] = self._number_of(text, MAX_STRINGS - NAME_STRINGS)
                if values[count] == 0:
                    data = text.encode(errors="replace")[:MAX_TEXT]
                    encoded.append(data)
                    texts[count], lengths[count] = PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
            count += 1
        self._append(
            self._add_kind(name, tuple(fields), string_fields), values, count, texts, lengths
        )
        return 0

    cdef uint64_t string_id(self, str text) except? 0:
        return self._number_of(text, MAX_STRINGS)

    cdef uint64_t _number_of(self, str text, Py_ssize_t limit) except? 0:
        """Return the number of `text` in the table; 0 if it is too long, or all `limit` are used.
        """
        cdef Py_ssize_t count
        number = self._string_ids.get(text)
        if number is not None:
            return number
        if len(text) > MAX_TABLE_TEXT:
            return 0
        kept = text.encode(errors="replace").decode()  # what UTF-8 can hold
        # From here on no Python code runs, which could be that of another thread.
        count = len(self._strings)
        if count >= limit:
            return 0
        # Appended first: a number is never seen before its text.
        self._strings.append(kept)
        self._string_ids[text] = count
        return count

    cdef int _add_kind(self, str name, tuple fields, uint32_t string_fields) except -2:
        """Return the number of the kind; -1 if the table is full."""
        cdef Py_ssize_t count
        cdef bint is_step_kind
        key = (name, fields, string_fields)
        number = self._kind_ids.get(key)
        if number is not None:
            return number
        types = ["s" if string_fields >> i & 1 else "u" for i in range(len(fields))]
        kind = (name, tuple(zip(fields, types)))
        while True:
            is_kind = self._is_step_kind
            is_step_kind = is_kind is not None and bool(is_kind(name))
            # Meanwhile another thread may have armed something else, or have added the kind. From
            # here on no Python code runs, so none does.
            if is_kind is self._is_step_kind:
                break
        number = self._kind_ids.get(key)
        if number is not None:
            return number
        count = len(self._kinds)
        if count >= MAX_KINDS:
            return -1
        self._string_fields[count] = string_fields
        self._step_kinds[count] = is_step_kind
        self._kinds.append(kind)
        self._kind_ids[key] = count
        return count

    cdef void emit(self, int kind, const uint64_t *values, int count) noexcept nogil:
        self._append(kind, values, count, NULL, NULL)

    cdef void _append(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil:
        cdef Event event
        cdef uint64_t seq
        event.kind, event.count, event.values = kind, count, values
        event.texts, event.lengths = texts, lengths
        event.string_fields = self._string_fields[kind] if kind >= 0 else 0
        seq = append(&self._halves, &event)
        if self._armed and kind >= 0 and self._step_kinds[kind] and seq != NOT_KEPT:
            self._call_step(seq, &event)

    cdef void _call_step(self, uint64_t seq, const Event *event) noexcept with gil:
        cdef int i
        cdef uint64_t value
        on_event = self._on_step_event
        if on_event is None:
            return
        name, types = self._kinds[event.kind]
        fields = {}
        for i in range(event.count):
            field, field_type = types[i]
            value = event.values[i]
            if field_type == "u":
                fields[field] = value
            elif value == 0 and event.texts != NULL and event.texts[i] != NULL:
                fields[field] = event.texts[i][:event.lengths[i]].decode(errors="replace")
            else:
                fields[field] = self._strings[value]
        on_event(seq, name, fields)


def native_kinds():
    """Return the name and the fields, as in `Batch.kinds`, of each kind that native code emits."""
    return _NATIVE_KINDS
