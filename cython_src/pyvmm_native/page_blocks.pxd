# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.types cimport off_t

from pyvmm_native.memory cimport GuestMemory

cdef enum:
    BLOCK_PAGES_ = 512
    BLOCK_BYTES_ = 512 * 4096
    BITMAP_BYTES = 64

# Result for a wrong checksum, beside errno values.
cdef enum:
    WRONG_CHECKSUM = -1

cdef uint64_t pages_in(const uint8_t *bitmap) noexcept nogil

# Read the pages of a block into `buffer` (BLOCK_BYTES_) and check them; return 0, an errno or
# WRONG_CHECKSUM.
cdef int read_block(
    int fd, off_t offset, const uint8_t *bitmap, uint32_t crc, uint8_t *buffer
) noexcept nogil

# Return the first page of the first run of set bits at or after page `start`, and store where it
# ends in `end`; return BLOCK_PAGES_ when there is none.
cdef int next_run(const uint8_t *bitmap, int start, int *end) noexcept nogil

# Raise ValueError unless the arguments describe a block whose pages are all in RAM.
cdef check_block(GuestMemory memory, uint64_t first_pfn, const uint8_t[::1] bitmap)
