# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False
"""The console's bytes on their way from the guest's OUT to whoever shows them (see serial.pyi).

One mutex, the queue's, covers the bytes and the shortcut's two numbers. It is held for a few
instructions and nothing is waited for meanwhile, so threads may take it with or without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef enum:
    THR = 0
    LSR = 5
    ASK = -1
    FIRST_ROOM_BYTES = 4096

EVERY = (1 << 31) - 1
cdef int every = EVERY


cdef class ByteQueue:
    def __cinit__(self, on_first, size_t limit_bytes):
        pthread_mutex_init(&self.mutex, NULL)
        self.on_first = on_first
        self.limit = limit_bytes

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)
        free(self.data)

    def __len__(self):
        return self.length

    def put(self, bytes data not None):
        if self.append(<const uint8_t *>PyBytes_AS_STRING(data), len(data)):
            self.on_first()

    cdef int append(self, const uint8_t *data, size_t length) except -1:
        """Append; 1 if the queue was empty before and is not any more, else 0."""
        cdef bint enough = True, first = False
        pthread_mutex_lock(&self.mutex)
        if not self.closed:
            if self.length + length > self.room:
                enough = self.grow(self.length + length)
            if enough:
                first = self.length == 0 and length > 0
                memcpy(self.data + self.length, data, length)
                self.length += length
        pthread_mutex_unlock(&self.mutex)
        if not enough:
            raise MemoryError
        return first

    cdef bint grow(self, size_t least) noexcept:
        """Make room for `least` bytes or more; False if there is no memory."""
        cdef size_t room = max(least, 2 * self.room, <size_t>FIRST_ROOM_BYTES)
        cdef uint8_t *data = <uint8_t *>realloc(self.data, room)
        if data == NULL:
            return False
        self.data = data
        self.room = room
        return True

    cdef bint takes_one(self) noexcept nogil:
        """Whether one byte can be appended without Python, the mutex being held.

        The first has to wake somebody, and where there are too many their writer has to wait.
        """
        return 0 < self.length < min(self.limit, self.room)

    def take(self):
        cdef bytes taken
        pthread_mutex_lock(&self.mutex)
        try:
            taken = PyBytes_FromStringAndSize(<char *>self.data, self.length)
            self.length = 0
        finally:
            pthread_mutex_unlock(&self.mutex)
        return taken

    def close(self):
        pthread_mutex_lock(&self.mutex)
        self.closed = True
        self.length = 0
        pthread_mutex_unlock(&self.mutex)


cdef class SerialShortcut:
    def __cinit__(self, ByteQueue queue not None, int port):
        self.queue = queue
        self.port = port
        self.status = ASK

    @property
    def line_status(self):
        return None if self.status == ASK else self.status

    @line_status.setter
    def line_status(self, value):
        cdef int status = ASK if value is None else value
        pthread_mutex_lock(&self.queue.mutex)
        self.status = status
        pthread_mutex_unlock(&self.queue.mutex)

    @property
    def plain_writes(self):
        return self.plain

    @plain_writes.setter
    def plain_writes(self, int count):
        pthread_mutex_lock(&self.queue.mutex)
        self.plain = count
        pthread_mutex_unlock(&self.queue.mutex)

    def take_plain_write(self):
        cdef bint taken
        pthread_mutex_lock(&self.queue.mutex)
        taken = self.count_plain()
        pthread_mutex_unlock(&self.queue.mutex)
        return taken

    def read(self, int offset):
        cdef uint8_t value = 0
        return value if self.serve_read(self.port + offset, &value) else None

    def write(self, int offset, uint8_t value):
        return bool(self.serve_write(self.port + offset, value))

    cdef bint count_plain(self) noexcept nogil:
        if self.plain == 0:
            return False
        if self.plain != every:
            self.plain -= 1
        return True

    cdef bint serve_read(self, int port, uint8_t *value) noexcept nogil:
        cdef int status
        if port != self.port + LSR:
            return False
        pthread_mutex_lock(&self.queue.mutex)
        status = self.status
        if status != ASK and self.plain != every:
            self.plain = 0
        pthread_mutex_unlock(&self.queue.mutex)
        if status == ASK:
            return False
        value[0] = <uint8_t>status
        return True

    cdef bint serve_write(self, int port, uint8_t value) noexcept nogil:
        cdef bint served
        if port != self.port + THR:
            return False
        pthread_mutex_lock(&self.queue.mutex)
        served = self.queue.takes_one() and self.count_plain()
        if served:
            self.queue.data[self.queue.length] = value
            self.queue.length += 1
        pthread_mutex_unlock(&self.queue.mutex)
        return served
