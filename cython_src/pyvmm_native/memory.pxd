# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint64_t


cdef struct Region:
    uint64_t gpa
    uint64_t size_bytes
    uint8_t *hva


cdef class GuestMemory:
    cdef Region *_regions
    cdef Py_ssize_t _count
    cdef list _exports
    cdef readonly uint64_t size_bytes
    # Set once the host memory is known to be of a kind that a discard frees (discard.pyx).
    cdef bint discardable
    # A byte for each page of every region in turn; NULL until dirty pages are first logged.
    cdef uint8_t *_dirty
    cdef bint _dirty_logging

    cdef int _append(self, object gpa, object buffer) except -1
    cdef (uint64_t, uint64_t) _checked(self, object gpa, object length) except *

    # Host address of [gpa, gpa + length), or NULL unless it lies inside one region and length > 0.
    cdef void *translate(self, uint64_t gpa, uint64_t length) noexcept nogil
    # The part of [gpa, gpa + length) that lies in the region of `gpa`; NULL when gpa is not RAM.
    cdef uint8_t *span(self, uint64_t gpa, uint64_t length, uint64_t *got) noexcept nogil
    # Whether [gpa, gpa + length) is RAM throughout, over contiguous regions if need be.
    cdef bint covers(self, uint64_t gpa, uint64_t length) noexcept nogil
    # Copies for ranges that `covers` has accepted; they stop early at the end of RAM otherwise.
    cdef void copy_out(self, uint64_t gpa, void *target, uint64_t length) noexcept nogil
    cdef void copy_in(self, uint64_t gpa, const void *source, uint64_t length) noexcept nogil
    # Whether dirty pages are being logged; if so, the log can be used.
    cdef bint logs_dirty_pages(self) noexcept nogil
    # Mark [gpa, gpa + length), which is RAM, as dirty, if dirty pages are being logged.
    cdef void mark_dirty(self, uint64_t gpa, uint64_t length) noexcept nogil


cdef enum:
    PAGE_SHIFT = 12
    PAGE_BYTES = 1 << 12
    # Copies of at least this size release the GIL.
    GIL_FREE_BYTES = 256 * 1024
