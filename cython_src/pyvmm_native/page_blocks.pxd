# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.types cimport off_t

from pyvmm_native.iovecs cimport iovec
from pyvmm_native.memory cimport GuestMemory

cdef enum:
    BLOCK_PAGES_ = 512
    BLOCK_BYTES_ = 512 * 4096
    BITMAP_BYTES = 64

# List where the pages of a block, which `check_block` has accepted, are in host memory; return the
# number of parts, at most BLOCK_PAGES_.
cdef int list_parts(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap, iovec *parts
) noexcept nogil

# Fill `parts` from the file `fd` at `offset`, and add what has been read to `crc` while it is in
# the cache. Return 0 or an errno, EIO where the file ends too early. The parts are used up.
cdef int read_parts(int fd, off_t offset, iovec *parts, int count, uint32_t *crc) noexcept nogil

# Log the pages of a block, which have been written to, if dirty pages are being logged.
cdef void mark_block_dirty(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap
) noexcept nogil

# Return the first page of the first run of set bits at or after page `start`, and store where it
# ends in `end`; return BLOCK_PAGES_ when there is none.
cdef int next_run(const uint8_t *bitmap, int start, int *end) noexcept nogil

# Return the number of pages of a block.
cdef uint64_t pages_in(const uint8_t *bitmap) noexcept nogil

# Return whether a block can begin at `first_pfn`, and its pages are all in RAM.
cdef bint block_in_ram(
    GuestMemory memory, uint64_t first_pfn, const uint8_t *bitmap
) noexcept nogil
