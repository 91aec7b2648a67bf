# SPDX-License-Identifier: Apache-2.0
# Lists of host memory (struct iovec) that one system call after another fills or empties.
#
# What has been done is taken from the front of the list. A window is the copy of its first
# elements that one call is given: so few bytes that the processor's cache has them from the call to
# the checksum, or from the checksum to the call.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef enum:
    WINDOW_PARTS = 256    # of a window


cdef inline void advance(iovec *part, size_t size) noexcept nogil:
    part.iov_base = <uint8_t *>part.iov_base + size
    part.iov_len -= size


cdef inline size_t consume(iovec **vector, int *count, size_t size) noexcept nogil:
    """Take up to `size` bytes from the first element of `vector`; return how many."""
    cdef size_t taken = min(vector[0].iov_len, size)
    advance(vector[0], taken)
    if vector[0].iov_len == 0:
        vector[0] += 1
        count[0] -= 1
    return taken


cdef inline int next_window(
    const iovec *vector, int count, iovec *window, size_t left
) noexcept nogil:
    """Copy the first elements of `vector`, `left` bytes at most, to `window`, of WINDOW_PARTS.

    Return their number.
    """
    cdef int taken = 0
    while taken < count and taken < WINDOW_PARTS and left:
        window[taken] = vector[taken]
        window[taken].iov_len = min(window[taken].iov_len, left)
        left -= window[taken].iov_len
        taken += 1
    return taken
