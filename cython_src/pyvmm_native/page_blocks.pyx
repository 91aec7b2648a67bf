# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Blocks of guest pages between RAM and a file or a message.

A block is 512 pages, 2 MiB. `first_pfn` is its first page frame, a multiple of 512. `bitmap`, 64
bytes, has a bit for each of its pages, bit 0 of byte 0 for the first: the pages whose bit is set
are in the file or the message, without gaps, in a file from `offset` (bytes) on. `crc` is the
CRC-32C of them all. A block is copied between RAM and a buffer, once, and the copy is
checked: nothing enters guest RAM before its checksum is verified. Every function releases
the GIL.
"""

import os

from libc.errno cimport EINTR, EIO, EOPNOTSUPP, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.types cimport off_t

from pyvmm_native.checksum cimport crc_of
from pyvmm_native.memory cimport PAGE_SHIFT, GuestMemory

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <linux/falloc.h>

    static int punch(int fd, off_t offset, off_t length)
    {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    }
    """
    int punch(int fd, off_t offset, off_t length)

BLOCK_PAGES = BLOCK_PAGES_


class ChecksumError(ValueError):
    """Pages of a file do not match their checksum."""


def store_block(
    GuestMemory memory not None, uint64_t first_pfn, const uint8_t[::1] bitmap not None,
    int fd, off_t offset,
):
    """Write the pages of a block to the file `fd` at `offset` and return their checksum.

    OSError when they cannot be written, ValueError for a page outside RAM.
    """
    check_block(memory, first_pfn, bitmap)
    cdef uint8_t *buffer = <uint8_t *>malloc(BLOCK_BYTES_)
    cdef size_t size
    cdef uint32_t crc
    cdef int error
    if buffer == NULL:
        raise MemoryError
    try:
        with nogil:
            size = gather(memory, first_pfn, &bitmap[0], buffer)
            crc = crc_of(0, buffer, size)
            error = write_all(fd, buffer, size, offset)
    finally:
        free(buffer)
    if error:
        raise OSError(error, os.strerror(error))
    return crc


def punch_hole(int fd, off_t offset, off_t length):
    """Deallocate `length` bytes of the file `fd` at `offset`; they read as zeros afterwards.

    The file is left as it is on a file system without holes. OSError for other failures.
    """
    cdef int error
    with nogil:
        error = errno if punch(fd, offset, length) < 0 else 0
    if error and error != EOPNOTSUPP:
        raise OSError(error, os.strerror(error))


def load_block(
    GuestMemory memory not None, uint64_t first_pfn, const uint8_t[::1] bitmap not None,
    int fd, off_t offset, uint32_t crc,
):
    """Read the pages of a block from the file `fd` into guest RAM, if their checksum is right.

    ChecksumError, with RAM unchanged, if it is not; OSError when they cannot be read, EIO where the
    file ends too early. ValueError for a page outside RAM.
    """
    check_block(memory, first_pfn, bitmap)
    cdef uint8_t *buffer = <uint8_t *>malloc(BLOCK_BYTES_)
    cdef int error
    if buffer == NULL:
        raise MemoryError
    try:
        with nogil:
            error = read_block(fd, offset, &bitmap[0], crc, buffer)
            if not error:
                scatter(memory, first_pfn, &bitmap[0], buffer)
    finally:
        free(buffer)
    raise_error(error, first_pfn)


def check_stored(
    uint64_t first_pfn, const uint8_t[::1] bitmap not None, int fd, off_t offset, uint32_t crc
):
    """Read the pages of a block and check them as `load_block` does, without a guest.

    ChecksumError and OSError as for `load_block`; ValueError for a bitmap of a wrong size.
    """
    if bitmap.shape[0] != BITMAP_BYTES:
        raise ValueError(f"a bitmap of {bitmap.shape[0]} bytes")
    cdef uint8_t *buffer = <uint8_t *>malloc(BLOCK_BYTES_)
    cdef int error
    if buffer == NULL:
        raise MemoryError
    try:
        with nogil:
            error = read_block(fd, offset, &bitmap[0], crc, buffer)
    finally:
        free(buffer)
    raise_error(error, first_pfn)


def gather_block(
    GuestMemory memory not None, uint64_t first_pfn, const uint8_t[::1] bitmap not None,
    uint8_t[::1] target not None,
):
    """Copy the pages of a block to the beginning of `target` and return their size in bytes.

    ValueError for a page outside RAM, and when `target` is too small.
    """
    check_block(memory, first_pfn, bitmap)
    cdef size_t size = pages_in(&bitmap[0]) << PAGE_SHIFT
    if <size_t>target.shape[0] < size:
        raise ValueError(f"no room for {size} bytes in {target.shape[0]}")
    if size:
        with nogil:
            gather(memory, first_pfn, &bitmap[0], &target[0])
    return size


def scatter_block(
    GuestMemory memory not None, uint64_t first_pfn, const uint8_t[::1] bitmap not None,
    const uint8_t[::1] source not None,
):
    """Copy `source` into the pages of a block.

    ValueError for a page outside RAM, and unless `source` has exactly the bytes of those pages.
    """
    check_block(memory, first_pfn, bitmap)
    cdef size_t size = pages_in(&bitmap[0]) << PAGE_SHIFT
    if <size_t>source.shape[0] != size:
        raise ValueError(f"{source.shape[0]} bytes for pages of {size}")
    if size:
        with nogil:
            scatter(memory, first_pfn, &bitmap[0], &source[0])


cdef raise_error(int error, uint64_t first_pfn):
    if error == WRONG_CHECKSUM:
        raise ChecksumError(f"wrong checksum of the pages from {first_pfn << PAGE_SHIFT:#x} on")
    if error:
        raise OSError(error, os.strerror(error))


cdef check_block(GuestMemory memory, uint64_t first_pfn, const uint8_t[::1] bitmap):
    """Raise ValueError unless the arguments describe a block whose pages are all in RAM."""
    cdef int start, end = 0
    cdef uint64_t gpa
    if bitmap.shape[0] != BITMAP_BYTES or first_pfn % BLOCK_PAGES_ or first_pfn >> 40:
        raise ValueError(f"no block: {bitmap.shape[0]} bytes of bitmap, page frame {first_pfn:#x}")
    start = next_run(&bitmap[0], 0, &end)
    while start < BLOCK_PAGES_:
        gpa = (first_pfn + start) << PAGE_SHIFT
        if not memory.covers(gpa, <uint64_t>(end - start) << PAGE_SHIFT):
            raise ValueError(f"the block at page frame {first_pfn:#x} is not inside guest RAM")
        start = next_run(&bitmap[0], end, &end)


cdef int next_run(const uint8_t *bitmap, int start, int *end) noexcept nogil:
    cdef int stop
    while start < BLOCK_PAGES_ and not bitmap[start >> 3] >> (start & 7) & 1:
        start += 1
    stop = start
    while stop < BLOCK_PAGES_ and bitmap[stop >> 3] >> (stop & 7) & 1:
        stop += 1
    end[0] = stop
    return start


cdef uint64_t pages_in(const uint8_t *bitmap) noexcept nogil:
    cdef int start, end = 0
    cdef uint64_t pages = 0
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        pages += end - start
        start = next_run(bitmap, end, &end)
    return pages


cdef size_t gather(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap, uint8_t *buffer
) noexcept nogil:
    cdef size_t size, filled = 0
    cdef int start, end = 0
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        size = <size_t>(end - start) << PAGE_SHIFT
        memory.copy_out((first_pfn + start) << PAGE_SHIFT, buffer + filled, size)
        filled += size
        start = next_run(bitmap, end, &end)
    return filled


cdef void scatter(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap, const uint8_t *buffer
) noexcept nogil:
    cdef size_t size
    cdef int start, end = 0
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        size = <size_t>(end - start) << PAGE_SHIFT
        memory.copy_in((first_pfn + start) << PAGE_SHIFT, buffer, size)
        buffer += size
        start = next_run(bitmap, end, &end)


cdef int read_block(
    int fd, off_t offset, const uint8_t *bitmap, uint32_t crc, uint8_t *buffer
) noexcept nogil:
    cdef size_t left = pages_in(bitmap) << PAGE_SHIFT
    cdef size_t size = left
    cdef uint8_t *cursor = buffer
    cdef ssize_t got
    while left:
        got = pread(fd, cursor, left, offset)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            return errno if got < 0 else EIO    # the file ends too early
        cursor += got
        offset += got
        left -= got
    return 0 if crc_of(0, buffer, size) == crc else WRONG_CHECKSUM


cdef int write_all(int fd, const uint8_t *buffer, size_t left, off_t offset) noexcept nogil:
    """Return 0 or an errno."""
    cdef ssize_t put
    while left:
        put = pwrite(fd, buffer, left, offset)
        if put < 0 and errno == EINTR:
            continue
        if put <= 0:
            return errno if put < 0 else EIO
        buffer += put
        offset += put
        left -= put
    return 0
