# SPDX-License-Identifier: Apache-2.0
# What the KVM_RUN loop calls without the GIL.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef class ByteQueue:
    cdef pthread_mutex_t mutex
    cdef object on_first
    cdef uint8_t *data
    cdef size_t length
    cdef size_t room
    cdef size_t limit
    cdef bint closed

    cdef int append(self, const uint8_t *data, size_t length) except -1
    cdef bint grow(self, size_t least) noexcept
    cdef bint takes_one(self) noexcept nogil

cdef class SerialShortcut:
    cdef ByteQueue queue
    cdef int port
    cdef int status  # what LSR reads as, or ASK
    cdef int plain  # writes to THR that need only the queue

    cdef bint count_plain(self) noexcept nogil
    cdef bint serve_read(self, int port, uint8_t *value) noexcept nogil
    cdef bint serve_write(self, int port, uint8_t value) noexcept nogil
