# SPDX-License-Identifier: Apache-2.0
# The C interface of events.pyx, for native code that emits events without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

# Kinds that native code emits; `native_kinds` has their names and fields.
cdef enum:
    REGISTER_READ = 0
    REGISTER_WRITE = 1
    DESCRIPTOR = 2
    CHAIN = 3
    USED = 4
    USED_NOTIFICATION = 5
    AVAIL_NOTIFICATIONS = 6
    VM_EXIT = 7

cdef enum:
    MAX_FIELDS = 16
    MAX_KINDS = 512
    MAX_STRINGS = 4096


# One of the two halves of the buffer: events of one batch, and the tables they refer to.
cdef struct Half:
    uint8_t *data
    size_t length
    uint64_t base_ns
    uint64_t last_ns
    uint64_t count
    uint64_t dropped
    uint8_t kinds[MAX_KINDS]
    uint8_t strings[MAX_STRINGS]


cdef class EventBuffer:
    cdef readonly bint watched
    cdef pthread_mutex_t _mutex
    cdef Half *_filling
    cdef Half *_taken
    cdef size_t _half_bytes
    cdef uint64_t _next_seq
    cdef int _wake_fd
    cdef bint _woken
    cdef dict _kind_ids
    cdef list _kinds
    cdef uint32_t _string_fields[MAX_KINDS]
    cdef dict _string_ids
    cdef list _strings
    cdef bint _armed
    cdef uint8_t _step_kinds[MAX_KINDS]
    cdef object _is_step_kind
    cdef object _on_step_event

    # The number of `text` in the table of strings, for values of `emit`; 0 if the table is full.
    cdef uint64_t string_id(self, str text) except? 0
    # Append an event; a field that is a string has its number as value.
    cdef void emit(self, int kind, const uint64_t *values, int count) noexcept nogil

    cdef int _add_kind(self, str name, tuple fields, uint32_t string_fields) except -2
    cdef int _free_halves(self) noexcept
    cdef void _append(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil
    cdef uint64_t _keep(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil
    cdef void _call_step(
        self, uint64_t seq, int kind, const uint64_t *values, int count, const char **texts,
        const size_t *lengths
    ) noexcept with gil
