# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyvmm_native.events cimport EventBuffer
from pyvmm_native.memory cimport GuestMemory


# One element of a buffer, as checked: guest-physical address and length in bytes.
cdef struct Segment:
    uint64_t gpa
    uint64_t length


# A descriptor (2.7.5), copied out of guest memory.
cdef struct Descriptor:
    uint64_t addr
    uint32_t length
    uint16_t flags
    uint16_t next


cdef class Chain:
    cdef readonly uint16_t head
    cdef readonly bytes readable
    cdef readonly uint64_t readable_bytes
    cdef readonly uint64_t writable_bytes
    cdef GuestMemory _memory
    # The elements, readable ones first.
    cdef Segment *_segments
    cdef uint32_t _readable_count
    cdef uint32_t _segment_count

    cdef void _gather(self, uint8_t *target) noexcept nogil
    cdef void _scatter(self, const uint8_t *source, uint64_t length) noexcept nogil


cdef class SplitQueue:
    cdef readonly GuestMemory memory
    cdef readonly uint32_t size
    cdef readonly bint event_idx
    cdef readonly bint indirect
    cdef uint8_t *_desc
    cdef uint8_t *_avail
    cdef uint8_t *_used
    cdef uint64_t _used_gpa
    cdef uint16_t _next_avail
    cdef uint16_t _next_used
    cdef uint32_t _unsignalled
    # Result of `_walk`: the elements of one chain, readable ones first.
    cdef Segment *_segments
    cdef uint32_t _readable_count
    cdef uint32_t _segment_count
    cdef uint64_t _readable_bytes
    cdef uint64_t _writable_bytes
    # Where events go, and the numbers of the strings in them.
    cdef EventBuffer _events
    cdef uint64_t _device_id
    cdef uint64_t _queue_id
    cdef uint64_t _by_flag
    cdef uint64_t _by_index

    cdef uint8_t *_area(self, object name, object gpa, int alignment, uint64_t length) except NULL
    cdef void _mark_used_dirty(self) noexcept
    cdef void _set_used(self, uint16_t head, uint32_t length) noexcept
    cdef void _publish_used(self) noexcept
    cdef bint _enable_notifications(self) noexcept
    cdef int _available(self) except -1
    # The head of the next buffer; `_check` walks its chain and raises RingError for a fault.
    cdef uint16_t _next_head(self) noexcept nogil
    cdef int _check(self, uint16_t head) except -1
    # Take the buffer whose chain was walked out of the available ring.
    cdef void _advance(self, uint16_t head) noexcept
    # Copy the device-readable part of the chain that was walked.
    cdef void _gather(self, uint8_t *target) noexcept nogil
    cdef const char *_walk(self, uint16_t head) noexcept nogil
    cdef const char *_enter_table(
        self, const Descriptor *desc, const uint8_t **table, uint32_t *entries) noexcept nogil
    cdef const char *_accept(self, const Descriptor *desc) noexcept nogil
    cdef Chain _take(self, uint16_t head, uint64_t max_readable_bytes)
    cdef bint _watched(self) noexcept nogil
    cdef void _emit_descriptor(
        self, uint16_t head, uint64_t table_gpa, uint32_t index, const Descriptor *desc
    ) noexcept nogil
    cdef void _emit_chain(self, uint16_t head) noexcept nogil
    cdef void _emit_used(self, uint16_t head, uint32_t length) noexcept nogil
    cdef void _emit_used_notification(
        self, bint sent, uint16_t used_event, uint32_t buffers
    ) noexcept nogil
    cdef void _emit_avail_notifications(self, bint enabled) noexcept nogil
