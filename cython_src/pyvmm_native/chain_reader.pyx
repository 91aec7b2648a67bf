# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Reading the device-readable bytes of several buffers as one stream.

A stream has no message boundaries and nothing in it is checked, so its bytes need not be copied
before they are used: `ChainReader.write_to` hands guest memory itself to writev(2), 1024 ranges at
a time, without the GIL. The addresses are safe whatever the driver does meanwhile: a chain holds
its elements as they were checked, and the memory they lie in stays mapped as long as the chain
exists. A byte that the driver changes while it is read arrives as it was before or after.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strerror

from pyvmm_native.iovecs cimport iovec
from pyvmm_native.memory cimport GIL_FREE_BYTES
from pyvmm_native.ring cimport Chain

cdef extern from "<sys/uio.h>" nogil:
    Py_ssize_t writev(int fd, const iovec *ranges, int count)

cdef enum:
    BATCH_RANGES = 1024    # IOV_MAX: the kernel takes no more at once


@cython.final
cdef class ChainReader:
    """The device-readable bytes of `chains` in order, without the first `skip` bytes.

    `len` is their number; it is 0 when there are no more than `skip`. Each method starts at the
    first byte.
    """

    cdef list _chains          # they keep guest memory mapped
    cdef iovec *_ranges        # host addresses; none is empty
    cdef Py_ssize_t _count
    cdef uint64_t _size

    def __cinit__(self, list chains not None, uint64_t skip=0):
        cdef Chain chain
        cdef size_t most = 1
        self._chains = list(chains)
        for chain in self._chains:
            # An element may lie in several regions of RAM that touch.
            most += chain._readable_count * <size_t>chain._memory._count
        self._ranges = <iovec *>malloc(most * sizeof(iovec))
        if self._ranges == NULL:
            raise MemoryError
        for chain in self._chains:
            skip = self._append(chain, skip)

    def __dealloc__(self):
        free(self._ranges)

    cdef uint64_t _append(self, Chain chain, uint64_t skip) noexcept:
        cdef uint64_t gpa, length, got
        cdef uint8_t *hva
        cdef uint32_t i
        for i in range(chain._readable_count):
            gpa = chain._segments[i].gpa
            length = chain._segments[i].length
            while length:
                hva = chain._memory.span(gpa, length, &got)
                if hva == NULL:  # never, in a chain
                    break
                gpa += got
                length -= got
                if skip >= got:
                    skip -= got
                    continue
                self._ranges[self._count].iov_base = hva + skip
                self._ranges[self._count].iov_len = got - skip
                self._size += got - skip
                self._count += 1
                skip = 0
        return skip

    def __len__(self):
        return self._size

    def read(self, uint64_t max_bytes):
        """Return a copy of the first bytes, at most `max_bytes`; each byte is read once."""
        cdef uint64_t size = min(max_bytes, self._size)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t *target = <uint8_t *>PyBytes_AS_STRING(data)
        if size < GIL_FREE_BYTES:
            self._copy(target, size)
        else:
            with nogil:
                self._copy(target, size)
        return data

    cdef void _copy(self, uint8_t *target, uint64_t size) noexcept nogil:
        cdef iovec *source = self._ranges
        cdef uint64_t part
        while size:
            part = min(size, source.iov_len)
            memcpy(target, source.iov_base, part)
            target += part
            size -= part
            source += 1

    def write_to(self, int fd):
        """Write the bytes to the non-blocking descriptor `fd`, from guest memory.

        Return how many it has taken, 0 if it takes none now. OSError as of writev(2).
        """
        cdef Py_ssize_t first = 0, done
        cdef uint64_t expected, total = 0
        cdef Py_ssize_t i, count
        while first < self._count:
            count = min(self._count - first, <Py_ssize_t>BATCH_RANGES)
            expected = 0
            for i in range(first, first + count):
                expected += self._ranges[i].iov_len
            with nogil:
                done = writev(fd, self._ranges + first, <int>count)
            if done < 0:
                if total or errno == EAGAIN or errno == EINTR:
                    return total
                raise OSError(errno, strerror(errno).decode())
            total += done
            if <uint64_t>done < expected:
                break
            first += count
        return total
