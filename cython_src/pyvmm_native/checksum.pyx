# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Checksums of page blocks and records.

Records, files and messages have CRC-32C, for which processors have an instruction (`crc32c.h`).
"""

from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    int crc32c_in_hardware
    void crc32c_prepare()
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
    uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *data, size_t length)

crc32c_prepare()


cdef uint32_t crc_of(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil:
    if crc32c_in_hardware:
        return ~crc32c_by_instruction(~crc, data, length)
    return ~crc32c_by_table(~crc, data, length)


def crc32c(data, uint32_t crc=0, *, bint by_table=False):
    """Return the CRC-32C (polynomial 0x1EDC6F41, RFC 3720) of `data`, computed without the GIL.

    `crc` is the checksum of the preceding bytes, for data in pieces. `by_table` avoids
    the processor's instruction, for tests.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if by_table:
            return ~crc32c_by_table(~crc, <const uint8_t *>view.buf, view.len) & <uint32_t>-1
        with nogil:
            crc = crc_of(crc, <const uint8_t *>view.buf, view.len)
        return crc
    finally:
        PyBuffer_Release(&view)
