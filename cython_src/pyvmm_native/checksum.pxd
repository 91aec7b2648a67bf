# SPDX-License-Identifier: Apache-2.0
cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

# CRC-32C of `length` bytes, continuing from `crc`, that of the bytes before (0 at the start).
cdef uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil


@cython.final
cdef class Checksum:
    cdef readonly str name
    cdef int _algorithm
    cdef uint32_t _crc
    cdef void *_xxh3

    # The same as the methods in Python: begin, add bytes, return the checksum of all of them.
    cdef void begin(self) noexcept nogil
    cdef void add(self, const uint8_t *data, size_t length) noexcept nogil
    cdef uint64_t value(self) noexcept nogil
