# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t


cdef class GilRequest:
    cdef int64_t _begun
    cdef bint _is_sent

    # Called before the GIL is taken, and as soon as it is held, by one thread.
    cdef void begin(self) noexcept nogil
    cdef void granted(self) noexcept

    cdef void _send(self) noexcept nogil
