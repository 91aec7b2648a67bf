# SPDX-License-Identifier: Apache-2.0
# The C interface of serial.pyx, for the KVM_RUN loop without the GIL.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

from pyvmm_native.events cimport EventBuffer

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef class ByteQueue:
    cdef pthread_mutex_t mutex
    cdef object on_nonempty
    cdef uint8_t *data
    cdef size_t length
    cdef size_t room
    cdef size_t limit
    cdef bint closed

    cdef int append(self, const uint8_t *data, size_t length) except -1
    cdef bint grow(self, size_t least) noexcept
    cdef bint may_append_one(self) noexcept nogil

cdef class SerialFastPath:
    cdef ByteQueue queue
    cdef int port
    cdef int status  # the value of LSR, or TO_MODEL
    cdef int credits  # writes to THR that need only the queue
    # Where events go, and the numbers of the names in them.
    cdef EventBuffer events
    cdef uint64_t table_id
    cdef uint64_t lsr_id
    cdef uint64_t thr_id

    cdef bint use_credit(self) noexcept nogil
    cdef bint serve_read(self, int port, uint8_t *value) noexcept nogil
    cdef bint serve_write(self, int port, uint8_t value) noexcept nogil
    cdef void emit(self, int kind, uint64_t register_id, uint8_t value) noexcept nogil
