# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Blocks of guest pages between RAM and a connected socket.

On the socket a block (see `page_blocks`) is its head, its pages in order, and the checksum of their
bytes, u64, little-endian. The head is a record (`pyvmm.state.records`): its header, the first page
frame, u64, and the bitmap. This module writes none, and reads only those that follow a block at
once and begin as the head of that block does; the caller has read that one, and reads all others.

`send_blocks` copies each page to a buffer, as the guest may change it meanwhile, adds the copy to
the checksum, and sends the buffer when it has a piece. The head of the next block goes with the end
of the one before, for which the peer waits anyway. `receive_blocks` receives straight into guest
RAM, and adds what has arrived while it is in a cache. So RAM that waits for its guest holds bytes
that have not been verified, and the guest must not run before they are. Both end after `BATCH_S`,
when a block does: then the caller counts, looks for an abort, and calls again. In between no time
passes in Python, in which the other side would wait.

To wake a thread costs as much as to send 100 KiB, so it is to be woken seldom. A TCP socket wakes
the receiver when what it waits for has arrived, or so much of it that the sender does not have to
wait for room (SO_RCVLOWAT); after `MARK_WAIT_S` it takes what there is. The socket does not block
otherwise. While blocks are received from a unix socket it does, for the time that is left until the
deadline (SO_RCVTIMEO): the kernel then fills all of it in one call. Sending waits in poll(2),
because a unix socket applies SO_SNDTIMEO to each of its buffers separately: a peer that takes a
little before each time-out would prolong it.
No memory is allocated for a block, and the GIL is not held.
"""

import math
import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from pyvmm_native.checksum cimport Checksum, crc_of
from pyvmm_native.clock cimport monotonic_ns
from pyvmm_native.iovecs cimport WINDOW_PARTS, advance, consume, iovec, next_window
from pyvmm_native.memory cimport GuestMemory
from pyvmm_native.page_blocks cimport (
    BITMAP_BYTES, BLOCK_BYTES_, BLOCK_PAGES_, block_in_ram, list_parts, mark_block_dirty, pages_in
)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    short POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sys/ioctl.h>" nogil:
    int FIONBIO
    int ioctl(int fd, unsigned long request, int *value)

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int AF_UNIX
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_WAITALL
    int SOL_SOCKET
    int SO_DOMAIN
    int SO_RCVBUF
    int SO_RCVLOWAT
    int SO_RCVTIMEO
    int getsockopt(int fd, int level, int name, void *value, unsigned int *size)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef enum:
    COPY_BYTES = 4096
    SUM_BYTES = 8
    # Most bytes of a call. A peer that waits on a unix socket is woken for each that sends; on TCP
    # it chooses itself when it is, and less than a block stays in a cache nearer to the processor.
    UNIX_PIECE_BYTES = BLOCK_BYTES_
    TCP_PIECE_BYTES = 512 * 1024
    RECEIVED_BYTES = BLOCK_BYTES_ + SUM_BYTES
    # Part of its buffer that a TCP socket fills before it wakes the receiver. The kernel would set
    # the buffer for a larger mark, and not enlarge it to what the connection needs.
    WAKING_SHARE = 4
    # The header of a head begins with its kind, version and size; then come the CRC-32C of what
    # follows the header, and that of the header up to there.
    FIXED_BYTES = 44
    CRC_BYTES = 4
    HEADER_BYTES = FIXED_BYTES + 2 * CRC_BYTES
    HEAD_BYTES_ = HEADER_BYTES + 8 + BITMAP_BYTES
    CLOSED = -1     # beside errno values

HEAD_BYTES = HEAD_BYTES_


@cython.final
cdef class PageSocket:
    """Sends and receives blocks of `memory` on the stream socket `fd`, which does not block.

    `fd` stays the caller's, who keeps it open meanwhile. `deadline` is a time.monotonic(), or
    infinite, for all blocks that a call sends, and for the first that it receives. After a failure
    the position in the stream is lost.

    Threads: migration.
    """

    cdef int _fd
    cdef GuestMemory _memory
    cdef Checksum _checksum
    cdef uint8_t *_piece
    cdef size_t _piece_bytes
    cdef bint _is_tcp
    cdef double _deadline
    cdef double _block_s
    cdef double _batch_ends_at
    # Where the bytes of a block go to or come from: its runs of pages, then its checksum.
    cdef iovec _parts[BLOCK_PAGES_ + 1]
    cdef int _count
    cdef uint8_t _ahead[HEAD_BYTES_]
    cdef size_t _ahead_bytes

    def __cinit__(self, int fd, GuestMemory memory not None, Checksum checksum not None):
        self._fd, self._memory, self._checksum = fd, memory, checksum
        self._is_tcp = family_of(fd) != AF_UNIX
        self._piece_bytes = TCP_PIECE_BYTES if self._is_tcp else UNIX_PIECE_BYTES
        self._piece = <uint8_t *>malloc(self._piece_bytes)
        if self._piece == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._piece)

    def send_blocks(self, const uint8_t[::1] heads not None, double deadline):
        """Send at least the first of the blocks that `heads` names, each behind its head.

        Return the number of blocks that were sent, and of their bytes. Fewer than all are sent when
        `BATCH_S` has passed or the peer has sent something. TimeoutError after the deadline,
        OSError when the connection is broken, ValueError for a page outside RAM.
        """
        cdef int error = 0
        cdef Py_ssize_t i, sent = 0, count = heads.shape[0] // HEAD_BYTES_
        cdef uint64_t size = 0
        cdef bint leads = False
        if not count or heads.shape[0] % HEAD_BYTES_:
            raise ValueError(f"no heads of blocks: {heads.shape[0]} bytes")
        for i in range(count):
            self._check(&heads[i * HEAD_BYTES_])
        self._begin(deadline)
        with nogil:
            while not error and sent < count and (sent == 0 or leads):
                error = self._send(&heads[sent * HEAD_BYTES_], sent + 1 < count, &leads, &size)
                sent += 1
        raise_error(error)
        return sent, size

    def receive_blocks(self, const uint8_t[::1] head not None, double deadline, double block_s):
        """Receive the block whose `head` has arrived, and those that follow it at once.

        Each of those has `block_s` seconds, as the first may have waited for most of its time.
        Return whether all checksums were right, the number of pages received, and what has arrived
        of the message after them. Raises as `send_blocks`, and EOFError when the peer has closed
        the connection inside a block.
        """
        cdef int error
        cdef bint right = True
        cdef uint64_t pages = 0
        if head.shape[0] != HEAD_BYTES_:
            raise ValueError(f"no head of a block: {head.shape[0]} bytes")
        self._check(&head[0])
        self._begin(deadline)
        self._block_s = block_s
        with nogil:
            memcpy(self._ahead, &head[0], HEAD_BYTES_)
            self._ahead_bytes = 0
            self._set_blocking(True)
            error = self._receive_batch(&head[0], &right, &pages)
            if self._is_tcp:
                self._wake_at(1)
            self._set_blocking(False)
        raise_error(error)
        return right, pages, PyBytes_FromStringAndSize(<char *>self._ahead, self._ahead_bytes)

    cdef _check(self, const uint8_t *head):
        """Raise ValueError unless `head` names pages that are all in RAM."""
        cdef uint64_t first_pfn = first_pfn_of(head)
        if not block_in_ram(self._memory, first_pfn, bitmap_of(head)):
            raise ValueError(f"the block at page frame {first_pfn:#x} is not inside guest RAM")

    cdef void _begin(self, double deadline) noexcept:
        self._deadline = deadline
        self._batch_ends_at = now_s() + BATCH_S

    cdef void _begin_block(self, const uint8_t *head) noexcept nogil:
        """List the parts of the block in host memory."""
        self._count = list_parts(self._memory, first_pfn_of(head), bitmap_of(head), self._parts)
        self._checksum.begin()

    # --- Send -----------------------------------------------------------------------------------
    cdef int _send(
        self, const uint8_t *head, bint has_next, bint *leads, uint64_t *sent
    ) noexcept nogil:
        """Send a block, with its head unless that `leads`, having been sent before.

        Send the next head, too, if there is one and the batch continues; `leads` says so then. Add
        the bytes of the block to `sent`. Return 0 or an errno.
        """
        cdef iovec vector[4]
        cdef uint64_t total
        cdef size_t filled, size
        cdef int part = 0, error
        cdef bint last
        cdef iovec *left
        self._begin_block(head)
        vector[0].iov_base = <void *>head
        vector[0].iov_len = 0 if leads[0] else HEAD_BYTES_
        leads[0] = False
        sent[0] += HEAD_BYTES_ + SUM_BYTES
        while True:
            filled = 0
            while part < self._count and filled < self._piece_bytes:
                left = &self._parts[part]
                size = min(left.iov_len, <size_t>COPY_BYTES)
                memcpy(self._piece + filled, left.iov_base, size)
                self._checksum.add(self._piece + filled, size)
                filled += size
                advance(left, size)
                part += left.iov_len == 0
            last = part == self._count
            vector[1].iov_base = self._piece
            vector[1].iov_len = filled
            total = self._checksum.value() if last else 0
            vector[2].iov_base = &total
            vector[2].iov_len = SUM_BYTES if last else 0
            if last and has_next:
                leads[0] = now_s() < self._batch_ends_at and not self._poll(POLLIN, 0)
            vector[3].iov_base = <void *>(head + HEAD_BYTES_)
            vector[3].iov_len = HEAD_BYTES_ if leads[0] else 0
            sent[0] += filled
            error = self._send_all(vector, 4)
            if error or last:
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
            left_s = left_until(self._deadline)
            if left_s <= 0:
                return ETIMEDOUT
            put = sendmsg(self._fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if put < 0:
                if errno == EAGAIN:
                    self._poll(POLLOUT, timeout_ms(left_s))
                elif errno != EINTR:
                    return errno
            while put > 0:
                put -= consume(&vector, &count, put)

    # --- Receive --------------------------------------------------------------------------------
    cdef int _receive_batch(
        self, const uint8_t *head, bint *right, uint64_t *pages
    ) noexcept nogil:
        """Receive blocks until one is damaged, another message follows, or the batch ends."""
        cdef int error
        cdef uint64_t expected = 0
        while True:
            self._begin_block(self._ahead)
            error = self._receive(&expected)
            mark_block_dirty(self._memory, first_pfn_of(self._ahead), bitmap_of(self._ahead))
            if error:
                return error
            pages[0] += pages_in(bitmap_of(self._ahead))
            right[0] = self._checksum.value() == expected
            if not right[0] or now_s() >= self._batch_ends_at:
                return 0
            error = self._receive_head()
            if error or not self._continues(head):
                return error
            self._ahead_bytes = 0
            self._deadline = now_s() + self._block_s

    cdef int _receive_head(self) noexcept nogil:
        """Receive what there is of the next message, and wait for it until the batch ends.

        Return 0 or an errno. The end of the stream is left to the next receive.
        """
        cdef ssize_t got
        cdef int error = self._limit_receive(self._batch_ends_at)
        if error:
            return 0 if error == ETIMEDOUT else error
        if self._is_tcp and not self._wake_at(1):
            return errno
        got = recv(self._fd, self._ahead, HEAD_BYTES_, 0)
        if got < 0 and errno != EAGAIN and errno != EINTR:
            return errno
        self._ahead_bytes = max(got, 0)
        return 0

    cdef bint _continues(self, const uint8_t *head) noexcept nogil:
        """Return whether what has been received ahead is the head of a block, as `head` is."""
        cdef const uint8_t *ahead = self._ahead
        cdef uint32_t crc, own_crc
        if self._ahead_bytes != HEAD_BYTES_:
            return False
        crc = crc_of(0, ahead + HEADER_BYTES, HEAD_BYTES_ - HEADER_BYTES)
        own_crc = crc_of(0, ahead, FIXED_BYTES + CRC_BYTES)
        return (
            memcmp(ahead, head, FIXED_BYTES) == 0
            and crc == u32_at(ahead + FIXED_BYTES)
            and own_crc == u32_at(ahead + FIXED_BYTES + CRC_BYTES)
            and pages_in(bitmap_of(ahead)) > 0
            and block_in_ram(self._memory, first_pfn_of(ahead), bitmap_of(ahead))
        )

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
                &self._parts[part], self._count + 1 - part, window, RECEIVED_BYTES
            )
            error = self._await_bytes(window, message.msg_iovlen)
            if error:
                return error
            got = recvmsg(self._fd, &message, MSG_DONTWAIT if self._is_tcp else MSG_WAITALL)
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

    cdef int _await_bytes(self, const iovec *window, size_t count) noexcept nogil:
        """Wait until the socket has all bytes of `window`, or many, if it is one of TCP.

        Have the next receive wait for them otherwise. Return 0 or an errno.
        """
        cdef size_t i
        cdef int size = 0, room = 0
        cdef unsigned int room_bytes = sizeof(room)
        cdef double left_s
        if not self._is_tcp:
            return self._limit_receive(self._deadline)
        for i in range(count):
            size += window[i].iov_len
        left_s = left_until(self._deadline)
        if left_s <= 0:
            return ETIMEDOUT
        if getsockopt(self._fd, SOL_SOCKET, SO_RCVBUF, &room, &room_bytes) < 0:
            return errno
        if not self._wake_at(min(size, room // WAKING_SHARE)):
            return errno
        self._poll(POLLIN, timeout_ms(min(left_s, MARK_WAIT_S)))
        return 0

    cdef bint _wake_at(self, int size) noexcept nogil:
        """Have the kernel wake this thread when `size` bytes have arrived; False with an errno."""
        return setsockopt(self._fd, SOL_SOCKET, SO_RCVLOWAT, &size, sizeof(size)) == 0

    cdef void _set_blocking(self, bint blocking) noexcept nogil:
        cdef int nonblocking = not blocking
        ioctl(self._fd, FIONBIO, &nonblocking)

    cdef short _poll(self, short events, int timeout_ms) noexcept nogil:
        """Wait for `events`, or the socket's end; return which there are, or 0."""
        cdef pollfd socket
        socket.fd, socket.events, socket.revents = self._fd, events, 0
        poll(&socket, 1, timeout_ms)
        return socket.revents

    cdef int _limit_receive(self, double deadline) noexcept nogil:
        """Have the next receive wait no longer than `deadline`. Return 0 or an errno."""
        cdef timeval left
        cdef double left_s = left_until(deadline)
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


cdef int family_of(int fd) except -1:
    """Return the address family of the socket `fd`."""
    cdef int family = 0
    cdef unsigned int size = sizeof(family)
    if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0:
        raise_error(errno)
    return family


cdef double INFINITE_S = math.inf
cdef double LONGEST_S = 1e6    # of one wait; poll(2) takes an int of milliseconds
cdef double BATCH_S = 0.02
# A sender may stop before the mark when the window gets small, and resume only when it is larger.
cdef double MARK_WAIT_S = 0.005


cdef inline double now_s() noexcept nogil:
    return monotonic_ns() / 1e9


cdef inline double left_until(double deadline) noexcept nogil:
    """Return the seconds until `deadline`, at most `LONGEST_S`, or infinity."""
    return INFINITE_S if deadline == INFINITE_S else min(deadline - now_s(), LONGEST_S)


cdef inline int timeout_ms(double left_s) noexcept nogil:
    return -1 if left_s == INFINITE_S else <int>(left_s * 1000) + 1


cdef inline uint32_t u32_at(const uint8_t *data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, sizeof(value))
    return value


cdef inline uint64_t first_pfn_of(const uint8_t *head) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, head + HEADER_BYTES, sizeof(value))
    return value


cdef inline const uint8_t *bitmap_of(const uint8_t *head) noexcept nogil:
    return head + HEAD_BYTES_ - BITMAP_BYTES


cdef raise_error(int error):
    if error == CLOSED:
        raise EOFError("the peer has closed the connection")
    if error:
        raise OSError(error, os.strerror(error))    # TimeoutError for ETIMEDOUT
