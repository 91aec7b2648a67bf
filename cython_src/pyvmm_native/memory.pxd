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
    # Set once the host memory was seen to be such that discarding frees it (discard.pyx).
    cdef bint discardable
    # A byte for each page of every region, one after the other, once changes have been logged.
    cdef uint8_t *_changed
    cdef bint _logging

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
    # Log that [gpa, gpa + length), which is RAM, was changed, if changes are logged.
    cdef void note_change(self, uint64_t gpa, uint64_t length) noexcept nogil


# From this many bytes on a copy is worth giving other threads the interpreter.
cdef enum:
    GIL_FREE_BYTES = 256 * 1024
