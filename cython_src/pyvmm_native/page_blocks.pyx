# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Blocks of guest pages between RAM and a file or a message.

A block is 512 pages, 2 MiB. `first_pfn` is its first page frame, a multiple of 512. `bitmap`, 64
bytes, has a bit for each of its pages, bit 0 of byte 0 for the first: the pages whose bit is set
are in the file or the message, without gaps, in a file from `offset` (bytes) on. `crc` is the
CRC-32C of them all.

Between RAM and a file the kernel copies pages, and nothing else does. They go in pieces that the
processor's cache holds, and each is added to the checksum just before it is written or after it was
read. So RAM of a guest that waits for its pages holds bytes that have not been verified, and a page
that the guest changes while it is stored may differ from the checksum. The caller keeps the first
guest from running, and stores the block of the second again. Every function releases the GIL.
"""

import os

from libc.errno cimport EINTR, EIO, EOPNOTSUPP, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.types cimport off_t

from pyvmm_native.checksum cimport crc_of
from pyvmm_native.iovecs cimport WINDOW_PARTS, consume, iovec, next_window
from pyvmm_native.memory cimport PAGE_SHIFT, GuestMemory

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec *vector, int count, off_t offset)
    ssize_t pwritev(int fd, const iovec *vector, int count, off_t offset)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <linux/falloc.h>

    static int punch(int fd, off_t offset, off_t length)
    {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    }

    /* Begin to write a range to the disk. Errors are those of the next fsync(2). */
    static void begin_writeback(int fd, off_t offset, off_t length)
    {
        (void)sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE);
    }
    """
    int punch(int fd, off_t offset, off_t length)
    void begin_writeback(int fd, off_t offset, off_t length)

cdef enum:
    PIECE_BYTES = 1024 * 1024    # what file systems cache in one unit, and a processor nearby

BLOCK_PAGES = BLOCK_PAGES_


class ChecksumError(ValueError):
    """Pages of a file do not match their checksum."""


def store_block(
    GuestMemory memory not None, uint64_t first_pfn, const uint8_t[::1] bitmap not None,
    int fd, off_t offset, *, bint write_behind=False,
):
    """Write the pages of a block to the file `fd` at `offset` and return their checksum.

    It is that of the pages in the file unless one of them changes meanwhile. With `write_behind`
    the disk begins to write them, so that a later fsync(2) is short; if it is busy, that may wait
    for it. OSError when they cannot be written, ValueError for a page outside RAM.
    """
    cdef iovec parts[BLOCK_PAGES_]
    cdef uint32_t crc = 0
    cdef int error
    check_block(memory, first_pfn, bitmap)
    with nogil:
        error = write_parts(
            fd, offset, parts, list_parts(memory, first_pfn, &bitmap[0], parts), &crc
        )
        if write_behind and not error:
            begin_writeback(fd, offset, pages_in(&bitmap[0]) << PAGE_SHIFT)
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
    """Read the pages of a block from the file `fd` into guest RAM and verify their checksum.

    ChecksumError if it is wrong; OSError when they cannot be read, EIO where the file ends too
    early: their contents are undefined then, and the guest must not run. ValueError for a page
    outside RAM.
    """
    cdef iovec parts[BLOCK_PAGES_]
    cdef uint32_t found = 0
    cdef int error
    check_block(memory, first_pfn, bitmap)
    with nogil:
        error = read_parts(
            fd, offset, parts, list_parts(memory, first_pfn, &bitmap[0], parts), &found
        )
        mark_block_dirty(memory, first_pfn, &bitmap[0])
    raise_error(error, found == crc, first_pfn)


def check_stored(
    uint64_t first_pfn, const uint8_t[::1] bitmap not None, int fd, off_t offset, uint32_t crc
):
    """Read the pages of a block and check them as `load_block` does, without a guest.

    ChecksumError and OSError as for `load_block`; ValueError for a bitmap of a wrong size.
    """
    if bitmap.shape[0] != BITMAP_BYTES:
        raise ValueError(f"a bitmap of {bitmap.shape[0]} bytes")
    cdef uint64_t left = pages_in(&bitmap[0]) << PAGE_SHIFT
    cdef uint8_t *piece = <uint8_t *>malloc(PIECE_BYTES)
    cdef iovec part
    cdef uint64_t size
    cdef uint32_t found = 0
    cdef int error = 0
    if piece == NULL:
        raise MemoryError
    with nogil:
        while left and not error:
            size = min(left, <uint64_t>PIECE_BYTES)
            part.iov_base, part.iov_len = piece, size
            error = read_parts(fd, offset, &part, 1, &found)
            offset += size
            left -= size
    free(piece)
    raise_error(error, found == crc, first_pfn)


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


cdef raise_error(int error, bint matches, uint64_t first_pfn):
    if error:
        raise OSError(error, os.strerror(error))
    if not matches:
        raise ChecksumError(f"wrong checksum of the pages from {first_pfn << PAGE_SHIFT:#x} on")


cdef check_block(GuestMemory memory, uint64_t first_pfn, const uint8_t[::1] bitmap):
    """Raise ValueError unless the arguments describe a block whose pages are all in RAM."""
    if bitmap.shape[0] != BITMAP_BYTES:
        raise ValueError(f"no block: {bitmap.shape[0]} bytes of bitmap")
    if not block_in_ram(memory, first_pfn, &bitmap[0]):
        raise ValueError(f"the block at page frame {first_pfn:#x} is not inside guest RAM")


cdef bint block_in_ram(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap
) noexcept nogil:
    cdef int start, end = 0
    cdef uint64_t gpa
    if first_pfn % BLOCK_PAGES_ or first_pfn >> 40:
        return False
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        gpa = (first_pfn + start) << PAGE_SHIFT
        if not memory.covers(gpa, <uint64_t>(end - start) << PAGE_SHIFT):
            return False
        start = next_run(bitmap, end, &end)
    return True


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


cdef int list_parts(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap, iovec *parts
) noexcept nogil:
    cdef uint64_t gpa, left, got
    cdef int start, end = 0, count = 0
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        gpa = (first_pfn + start) << PAGE_SHIFT
        left = <uint64_t>(end - start) << PAGE_SHIFT
        while left:
            parts[count].iov_base = memory.span(gpa, left, &got)
            parts[count].iov_len = got
            count += 1
            gpa += got
            left -= got
        start = next_run(bitmap, end, &end)
    return count


cdef void mark_block_dirty(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap
) noexcept nogil:
    cdef int start, end = 0
    start = next_run(bitmap, 0, &end)
    while start < BLOCK_PAGES_:
        memory.mark_dirty((first_pfn + start) << PAGE_SHIFT, <uint64_t>(end - start) << PAGE_SHIFT)
        start = next_run(bitmap, end, &end)


cdef inline size_t left_of_piece(off_t offset) noexcept nogil:
    """Return the bytes to the next multiple of a piece in a file.

    File systems cache a write in units as large as its length and its alignment allow.
    """
    return PIECE_BYTES - (offset & (PIECE_BYTES - 1))


cdef int read_parts(int fd, off_t offset, iovec *parts, int count, uint32_t *crc) noexcept nogil:
    cdef iovec window[WINDOW_PARTS]
    cdef int taken
    cdef ssize_t got
    while count:
        taken = next_window(parts, count, window, left_of_piece(offset))
        got = preadv(fd, window, taken, offset)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            return errno if got < 0 else EIO    # the file ends too early
        offset += got
        while got:
            crc[0] = crc_of(crc[0], <uint8_t *>parts.iov_base, min(parts.iov_len, <size_t>got))
            got -= consume(&parts, &count, got)
    return 0


cdef int write_parts(int fd, off_t offset, iovec *parts, int count, uint32_t *crc) noexcept nogil:
    """Write `parts`, which are used up, and add them to `crc`. Return 0 or an errno."""
    cdef iovec window[WINDOW_PARTS]
    cdef int taken, i, error
    cdef size_t size
    while count:
        taken = next_window(parts, count, window, left_of_piece(offset))
        size = 0
        for i in range(taken):
            crc[0] = crc_of(crc[0], <uint8_t *>window[i].iov_base, window[i].iov_len)
            size += window[i].iov_len
        error = write_all(fd, offset, window, taken)
        if error:
            return error
        offset += size
        while size:
            size -= consume(&parts, &count, size)
    return 0


cdef int write_all(int fd, off_t offset, iovec *vector, int count) noexcept nogil:
    """Write all bytes of `vector`, which is used up. Return 0 or an errno."""
    cdef ssize_t put
    while count:
        put = pwritev(fd, vector, count, offset)
        if put < 0 and errno == EINTR:
            continue
        if put <= 0:
            return errno if put < 0 else EIO
        offset += put
        while put:
            put -= consume(&vector, &count, put)
    return 0
