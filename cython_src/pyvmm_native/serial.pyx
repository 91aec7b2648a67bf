# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The queue of console output, and the fast path on which the guest's OUT fills it.

For every character that a guest prints, it reads the UART's line status register (LSR) and writes
its transmitter holding register (THR); with a verbose kernel these are 19 of 20 exits of a boot.
Nearly always neither needs the model: LSR is unchanged, and the character is appended to those
that are waiting. `SerialFastPath` serves these two accesses in the KVM_RUN loop, without Python,
the GIL or the device lock, whenever the UART's model permits it.
Everything else goes to the model: among others the first character of a batch, and the first beyond
the queue's limit. Accesses served here are the same events as those that the model serves.

Both paths end in the same `ByteQueue`, so characters stay in order. One mutex, the queue's, covers
the bytes and the fast path's two numbers. It is held for a few instructions and no thread waits
while holding it, so it may be taken with or without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from pyvmm_native.events cimport REGISTER_READ, REGISTER_WRITE, EventBuffer

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef enum:
    THR = 0
    LSR = 5
    TO_MODEL = -1
    FIRST_ROOM_BYTES = 4096

# For `SerialFastPath.thr_credits`: no limit.
UNLIMITED = (1 << 31) - 1
cdef int unlimited = UNLIMITED


cdef class ByteQueue:
    """Bytes from any number of threads to one that takes them all at once, in order.

    `put` calls `on_nonempty()`, in its own thread, when the queue was empty.
    `limit_bytes` is the length at which the fast path stops; `put` takes any number.
    """

    def __cinit__(self, on_nonempty, size_t limit_bytes):
        pthread_mutex_init(&self.mutex, NULL)
        self.on_nonempty = on_nonempty
        self.limit = limit_bytes

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)
        free(self.data)

    def __len__(self):
        cdef size_t length
        pthread_mutex_lock(&self.mutex)
        length = self.length
        pthread_mutex_unlock(&self.mutex)
        return length

    def put(self, bytes data not None):
        """Append `data`; MemoryError, with nothing appended, when there is no memory for it."""
        if self.append(<const uint8_t *>PyBytes_AS_STRING(data), len(data)):
            self.on_nonempty()

    cdef int append(self, const uint8_t *data, size_t length) except -1:
        """Append; return 1 if the queue was empty, else 0."""
        cdef bint enough = True, first = False
        pthread_mutex_lock(&self.mutex)
        if length and not self.closed:
            if self.length + length > self.room:
                enough = self.grow(self.length + length)
            if enough:
                first = self.length == 0
                memcpy(self.data + self.length, data, length)
                self.length += length
        pthread_mutex_unlock(&self.mutex)
        if not enough:
            raise MemoryError
        return first

    cdef bint grow(self, size_t least) noexcept:
        """Make room for at least `least` bytes; return False if there is no memory."""
        cdef size_t room = max(least, 2 * self.room, <size_t>FIRST_ROOM_BYTES)
        cdef uint8_t *data = <uint8_t *>realloc(self.data, room)
        if data == NULL:
            return False
        self.data = data
        self.room = room
        return True

    cdef bint may_append_one(self) noexcept nogil:
        """Return whether one byte can be appended without Python, the mutex being held.

        The first byte has to wake the reader, and beyond the limit the writer has to wait.
        """
        return 0 < self.length < min(self.limit, self.room)

    def take(self):
        """Remove and return all bytes."""
        cdef bytes taken
        pthread_mutex_lock(&self.mutex)
        try:
            taken = PyBytes_FromStringAndSize(<char *>self.data, self.length)
            self.length = 0
        finally:
            pthread_mutex_unlock(&self.mutex)
        return taken

    def close(self):
        """Discard all bytes, present and future ones."""
        pthread_mutex_lock(&self.mutex)
        self.closed = True
        self.length = 0
        pthread_mutex_unlock(&self.mutex)


cdef class SerialFastPath:
    """Fast path for two registers of the UART at I/O port `port`; characters go to `queue`.

    The UART's model decides what may be served here; each of its settings takes effect at once, for
    all threads. An access served here is ordered before or after what the model does at the same
    time.
    """

    def __cinit__(self, ByteQueue queue not None, int port):
        self.queue = queue
        self.port = port
        self.status = TO_MODEL

    @property
    def line_status(self):
        """The byte that a read of LSR returns, or None when the model must serve it.

        A byte may be given while reading LSR has no effect on the model but to end `thr_credits`.
        """
        cdef int status
        pthread_mutex_lock(&self.queue.mutex)
        status = self.status
        pthread_mutex_unlock(&self.queue.mutex)
        return None if status == TO_MODEL else status

    @line_status.setter
    def line_status(self, value):
        cdef int status = TO_MODEL if value is None else value
        pthread_mutex_lock(&self.queue.mutex)
        self.status = status
        pthread_mutex_unlock(&self.queue.mutex)

    @property
    def thr_credits(self):
        """Number of writes to THR that the fast path may still serve, or `UNLIMITED`.

        A read of LSR resets it to 0, unless it is `UNLIMITED`.
        """
        cdef int credits
        pthread_mutex_lock(&self.queue.mutex)
        credits = self.credits
        pthread_mutex_unlock(&self.queue.mutex)
        return credits

    @thr_credits.setter
    def thr_credits(self, int count):
        pthread_mutex_lock(&self.queue.mutex)
        self.credits = count
        pthread_mutex_unlock(&self.queue.mutex)

    def take_thr_credit(self):
        """Use a credit for a write that the model serves; return False when none is left."""
        cdef bint taken
        pthread_mutex_lock(&self.queue.mutex)
        taken = self.use_credit()
        pthread_mutex_unlock(&self.queue.mutex)
        return taken

    def trace(self, EventBuffer events not None, table, lsr, thr):
        """Emit events to `events`, with these names of the UART's table and its two registers."""
        self.table_id = events.string_id(table)
        self.lsr_id, self.thr_id = events.string_id(lsr), events.string_id(thr)
        self.events = events

    def read(self, int offset):
        """Serve a one-byte IN at register `offset` as the KVM_RUN loop does.

        Return None when the model must serve it.
        """
        cdef uint8_t value = 0
        return value if self.serve_read(self.port + offset, &value) else None

    def write(self, int offset, uint8_t value):
        """Serve a one-byte OUT as the KVM_RUN loop does.

        Return False, with nothing done, when the model must serve it.
        """
        return bool(self.serve_write(self.port + offset, value))

    cdef bint use_credit(self) noexcept nogil:
        if self.credits == 0:
            return False
        if self.credits != unlimited:
            self.credits -= 1
        return True

    cdef bint serve_read(self, int port, uint8_t *value) noexcept nogil:
        cdef int status
        if port != self.port + LSR:
            return False
        pthread_mutex_lock(&self.queue.mutex)
        status = self.status
        if status != TO_MODEL and self.credits != unlimited:
            self.credits = 0
        pthread_mutex_unlock(&self.queue.mutex)
        if status == TO_MODEL:
            return False
        value[0] = <uint8_t>status
        if self.events is not None and self.events.watched:
            self.emit(REGISTER_READ, self.lsr_id, value[0])
        return True

    cdef bint serve_write(self, int port, uint8_t value) noexcept nogil:
        cdef bint served
        if port != self.port + THR:
            return False
        pthread_mutex_lock(&self.queue.mutex)
        served = self.queue.may_append_one() and self.use_credit()
        if served:
            self.queue.data[self.queue.length] = value
            self.queue.length += 1
        pthread_mutex_unlock(&self.queue.mutex)
        if served and self.events is not None and self.events.watched:
            self.emit(REGISTER_WRITE, self.thr_id, value)
        return served

    cdef void emit(self, int kind, uint64_t register_id, uint8_t value) noexcept nogil:
        cdef uint64_t[3] values = [self.table_id, register_id, value]
        self.events.emit(kind, values, 3)
