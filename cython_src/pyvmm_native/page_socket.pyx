# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Blocks of guest pages between RAM and a connected socket.

On the socket a block (see `page_blocks`) is its pages in order and the checksum of their bytes,
u64, little-endian. `send_block` copies each page to a buffer, as the guest may change it meanwhile,
adds the copy to the checksum, and sends the buffer when it has a piece that the processor's cache
holds. `receive_block` receives straight into guest RAM, and adds what has arrived while it is in
the cache. So RAM that waits for its guest holds bytes that have not been verified, and the guest
must not run before they are.

The socket does not block otherwise. While a block is received it does, for the time that is left
until the deadline (SO_RCVTIMEO): the kernel then fills a whole piece in one call, and wakes this
thread less often. Sending waits in poll(2), because a unix socket applies SO_SNDTIMEO to each of
its buffers separately: a peer that takes a little before each time-out would prolong the wait.
No memory is allocated for a block, and the GIL is not held.
"""

import math
import os

cimport cython
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from pyvmm_native.checksum cimport Checksum
from pyvmm_native.clock cimport monotonic_ns
from pyvmm_native.iovecs cimport WINDOW_PARTS, advance, consume, iovec, next_window
from pyvmm_native.memory cimport GuestMemory
from pyvmm_native.page_blocks cimport BLOCK_PAGES_, check_block, list_parts, mark_block_dirty

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    short POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sys/ioctl.h>" nogil:
    int FIONBIO
    int ioctl(int fd, unsigned long request, int *value)

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_WAITALL
    int SOL_SOCKET
    int SO_RCVTIMEO
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)

cdef extern from "<string.h>" nogil:
    void *memcpy(void *target, const void *source, size_t size)
    void *memset(void *target, int value, size_t size)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef enum:
    PIECE_BYTES = 512 * 1024
    COPY_BYTES = 4096
    SUM_BYTES = 8
    CLOSED = -1     # beside errno values


@cython.final
cdef class PageSocket:
    """Sends and receives blocks of `memory` on the stream socket `fd`, which does not block.

    `fd` stays the caller's, who keeps it open meanwhile. `deadline` is a time.monotonic(), or
    infinite. After a failure the position in the stream is lost.

    Threads: migration.
    """

    cdef int _fd
    cdef GuestMemory _memory
    cdef Checksum _checksum
    cdef uint8_t *_piece
    cdef double _deadline
    # Where the bytes of a block go to or come from: its runs of pages, then its checksum.
    cdef iovec _parts[BLOCK_PAGES_ + 1]
    cdef int _count

    def __cinit__(self, int fd, GuestMemory memory not None, Checksum checksum not None):
        self._fd, self._memory, self._checksum = fd, memory, checksum
        self._piece = <uint8_t *>malloc(PIECE_BYTES)
        if self._piece == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._piece)

    def send_block(
        self, const uint8_t[::1] head not None, uint64_t first_pfn,
        const uint8_t[::1] bitmap not None, double deadline,
    ):
        """Send `head`, at least one byte, the pages of a block, and their checksum.

        TimeoutError after the deadline, OSError when the connection is broken, ValueError for a
        page outside RAM.
        """
        cdef int error
        self._begin(first_pfn, bitmap, deadline)
        with nogil:
            error = self._send(&head[0], head.shape[0])
        raise_error(error)

    def receive_block(self, uint64_t first_pfn, const uint8_t[::1] bitmap not None, deadline):
        """Receive the pages of a block and their checksum; return whether it is right.

        Raises as `send_block`, and EOFError when the peer has closed the connection.
        """
        cdef int error
        cdef uint64_t expected = 0
        self._begin(first_pfn, bitmap, deadline)
        with nogil:
            self._set_blocking(True)
            error = self._receive(&expected)
            self._set_blocking(False)
            mark_block_dirty(self._memory, first_pfn, &bitmap[0])
        raise_error(error)
        return self._checksum.value() == expected

    cdef _begin(self, uint64_t first_pfn, const uint8_t[::1] bitmap, double deadline):
        """List the parts of the block in host memory."""
        check_block(self._memory, first_pfn, bitmap)
        self._deadline = deadline
        self._count = list_parts(self._memory, first_pfn, &bitmap[0], self._parts)
        self._checksum.begin()

    cdef int _send(self, const uint8_t *head, size_t head_bytes) noexcept nogil:
        """Return 0 or an errno."""
        cdef iovec vector[3]
        cdef uint64_t total
        cdef size_t filled, size
        cdef int part = 0, error
        cdef iovec *left
        vector[0].iov_base = <void *>head
        vector[0].iov_len = head_bytes
        while True:
            filled = 0
            while part < self._count and filled < PIECE_BYTES:
                left = &self._parts[part]
                size = min(left.iov_len, <size_t>COPY_BYTES)
                memcpy(self._piece + filled, left.iov_base, size)
                self._checksum.add(self._piece + filled, size)
                filled += size
                advance(left, size)
                part += left.iov_len == 0
            vector[1].iov_base = self._piece
            vector[1].iov_len = filled
            total = self._checksum.value() if part == self._count else 0
            vector[2].iov_base = &total
            vector[2].iov_len = SUM_BYTES if part == self._count else 0
            error = self._send_all(vector, 3)
            if error or part == self._count:
                return error

    cdef int _send_all(self, iovec *vector, int count) noexcept nogil:
        """Send all bytes of `vector`, and leave it empty. Return 0 or an errno."""
        cdef msghdr message
        cdef ssize_t put
        cdef double left_s
        memset(&message, 0, sizeof(message))
        while True:
            while count and not vector.iov_len:
                vector += 1
                count -= 1
            if not count:
                return 0
            message.msg_iov, message.msg_iovlen = vector, count
            left_s = self._left_s()
            if left_s <= 0:
                return ETIMEDOUT
            put = sendmsg(self._fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if put < 0:
                if errno == EAGAIN:
                    self._await_room(left_s)
                elif errno != EINTR:
                    return errno
            while put > 0:
                put -= consume(&vector, &count, put)

    cdef int _receive(self, uint64_t *expected) noexcept nogil:
        """Fill the parts of the block and `expected`. Return 0, CLOSED or an errno."""
        cdef int part = 0, error
        cdef size_t size
        cdef ssize_t got
        cdef msghdr message
        cdef iovec window[WINDOW_PARTS]
        memset(&message, 0, sizeof(message))
        self._parts[self._count].iov_base = expected
        self._parts[self._count].iov_len = SUM_BYTES
        while part <= self._count:
            message.msg_iov = window
            message.msg_iovlen = next_window(
                &self._parts[part], self._count + 1 - part, window, PIECE_BYTES
            )
            error = self._limit_receive()
            if error:
                return error
            got = recvmsg(self._fd, &message, MSG_WAITALL)
            if got == 0:
                return CLOSED
            if got < 0 and errno != EAGAIN and errno != EINTR:
                return errno
            while got > 0:
                size = min(self._parts[part].iov_len, <size_t>got)
                if part < self._count:
                    self._checksum.add(<uint8_t *>self._parts[part].iov_base, size)
                advance(&self._parts[part], size)
                got -= size
                part += self._parts[part].iov_len == 0
        return 0

    cdef void _set_blocking(self, bint blocking) noexcept nogil:
        cdef int nonblocking = not blocking
        ioctl(self._fd, FIONBIO, &nonblocking)

    cdef double _left_s(self) noexcept nogil:
        """Return the seconds until the deadline, at most `LONGEST_S`, or infinity."""
        if self._deadline == INFINITE_S:
            return INFINITE_S
        return min(self._deadline - monotonic_ns() / 1e9, LONGEST_S)

    cdef void _await_room(self, double left_s) noexcept nogil:
        """Wait until the socket has room, is broken, or `left_s` have passed."""
        cdef pollfd socket
        socket.fd, socket.events = self._fd, POLLOUT
        poll(&socket, 1, -1 if left_s == INFINITE_S else <int>(left_s * 1000) + 1)

    cdef int _limit_receive(self) noexcept nogil:
        """Have the next receive wait no longer than the deadline. Return 0 or an errno."""
        cdef timeval left
        cdef double left_s = self._left_s()
        left.tv_sec = left.tv_usec = 0     # no limit
        if left_s <= 0:
            return ETIMEDOUT
        if left_s != INFINITE_S:
            left.tv_sec = <long>left_s
            left.tv_usec = <long>((left_s - left.tv_sec) * 1e6) + 1
            if left.tv_usec == 1000000:
                left.tv_sec, left.tv_usec = left.tv_sec + 1, 0
        if setsockopt(self._fd, SOL_SOCKET, SO_RCVTIMEO, &left, sizeof(left)) < 0:
            return errno
        return 0


cdef double INFINITE_S = math.inf
cdef double LONGEST_S = 1e6    # of one wait; poll(2) takes an int of milliseconds


cdef raise_error(int error):
    if error == CLOSED:
        raise EOFError("the peer has closed the connection")
    if error:
        raise OSError(error, os.strerror(error))    # TimeoutError for ETIMEDOUT
