# SPDX-License-Identifier: Apache-2.0
# The C interface of events.pyx, for native code that emits events without the GIL.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyvmm_native.event_halves cimport Event, Halves, MAX_KINDS

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


cdef class EventBuffer:
    cdef readonly bint watched
    cdef Halves _halves
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

    cdef uint64_t _number_of(self, str text, Py_ssize_t limit) except? 0
    cdef int _add_kind(self, str name, tuple fields, uint32_t string_fields) except -2
    cdef int _encode(self, str name, dict fields) except -1
    cdef void _append(
        self, int kind, const uint64_t *values, int count, const char **texts, const size_t *lengths
    ) noexcept nogil
    cdef void _call_step(self, uint64_t seq, const Event *event) noexcept with gil
