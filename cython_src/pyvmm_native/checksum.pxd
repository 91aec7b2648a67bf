# SPDX-License-Identifier: Apache-2.0
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

# CRC-32C of `length` bytes, continuing from `crc`, that of the bytes before (0 at the start).
cdef uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil
