# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
# cython: embedsignature=True, embedsignature.format=clinic
"""The reader of batches of events, whose layout `pyvmm_native.events` describes.

A batch may come from a file, so nothing in it is trusted: kinds and strings that are not in its
tables, numbers of more than 64 bits and events that are cut short are errors.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t


class EventError(ValueError):
    """A batch of events that is malformed."""


cdef struct Cursor:
    const uint8_t *next
    const uint8_t *end


cdef int get_number(Cursor *cursor, uint64_t *value) except -1:
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while True:
        if cursor.next == cursor.end:
            raise EventError("an event is cut short")
        byte = cursor.next[0]
        cursor.next += 1
        if shift == 63 and byte > 1:
            raise EventError("a number has more than 64 bits")
        value[0] |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return 0
        shift += 7


cdef str get_string(Cursor *cursor, dict strings):
    cdef uint64_t number, length
    get_number(cursor, &number)
    if number:
        text = strings.get(number)
        if text is None:
            raise EventError(f"string {number} is not in the table")
        return text
    get_number(cursor, &length)
    if length > <uint64_t>(cursor.end - cursor.next):
        raise EventError("a string is cut short")
    text = cursor.next[:length].decode(errors="replace")
    cursor.next += length
    return text


def decode(batch):
    """Return the events of a `Batch` as (nanoseconds, kind number, values); EventError.

    Nanoseconds are CLOCK_MONOTONIC; a value is an int or a str, by the type of the field.
    """
    cdef bytes payload = batch.payload
    cdef Cursor cursor
    cdef uint64_t ns = batch.base_ns, delta, number, value
    cdef dict strings = dict(batch.strings)
    cdef dict types = {}
    cdef str code
    cdef list events = []
    cursor.next = <const uint8_t *>PyBytes_AS_STRING(payload)
    cursor.end = cursor.next + PyBytes_GET_SIZE(payload)
    for number, _, fields in batch.kinds:
        types[number] = "".join([code for _, code in fields])
    while cursor.next != cursor.end:
        get_number(&cursor, &number)
        get_number(&cursor, &delta)
        ns += delta
        code = types.get(number)
        if code is None:
            raise EventError(f"kind {number} is not in the table")
        values = []
        for letter in code:
            if letter == "u":
                get_number(&cursor, &value)
                values.append(value)
            else:
                values.append(get_string(&cursor, strings))
        events.append((ns, number, tuple(values)))
    if len(events) != batch.event_count:
        raise EventError(f"{len(events)} events in a batch of {batch.event_count}")
    return events
